//! Tensor maps for tests, without the driver.

/// A tensor map of rows of numbers, innermost dimension first; `kind` and `swizzle` are CUDA's own numbers.
pub fn tensor_map(
    kind: u32,
    address: u64,
    dimensions: [u64; 2],
    row_bytes: u64,
    boxes: [u32; 2],
    swizzle: u32,
) -> [u8; 128] {
    let strides = [row_bytes];
    let request = vgpu::tensor_map::Request {
        kind,
        address,
        dimensions: &dimensions,
        strides: &strides,
        boxes: &boxes,
        steps: &[1, 1],
        interleave: 0,
        swizzle,
        fill: 0,
    };
    vgpu::tensor_map::TensorMap::new(&request).unwrap().encode()
}

/// `CU_TENSOR_MAP_DATA_TYPE_BFLOAT16`.
pub const MAP_BF16: u32 = 9;
/// `CU_TENSOR_MAP_SWIZZLE_128B`.
pub const MAP_SWIZZLE_128: u32 = 3;
