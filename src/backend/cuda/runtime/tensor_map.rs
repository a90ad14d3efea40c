//! Tensor maps: matrices as the tensor copies of compute capability 9.0 see them.

use cudarc::driver::sys::{
    CUtensorMapDataType_enum as DataType, CUtensorMapFloatOOBfill_enum as Fill,
    CUtensorMapInterleave_enum as Interleave, CUtensorMapL2promotion_enum as Promotion,
    CUtensorMapSwizzle_enum as Swizzle, cuTensorMapEncodeTiled,
};

use super::arguments::hopper::TensorMap;
use super::error::driver;
use crate::error::Result;

/// Bytes of a bf16 number.
const BYTES: usize = 2;

/// The map of a matrix in bf16 at `address`, of rows without gaps, which copies bring in boxes of so many rows and columns with
/// 128-byte swizzle. A box's row is at most 64 columns. Rows are a multiple of eight columns, and the address of 16 bytes.
///
/// # Errors
/// What the driver says.
pub(crate) fn tensor_map(
    address: u64,
    [rows, columns]: [usize; 2],
    [box_rows, box_columns]: [usize; 2],
) -> Result<TensorMap> {
    let mut map = TensorMap::default();
    let sizes = [columns as u64, rows as u64];
    let strides = [(columns * BYTES) as u64];
    let of_box = [box_columns as u32, box_rows as u32];
    let steps = [1_u32; 2];
    // SAFETY: the map is as large and as aligned as a CUtensorMap, the arrays are of the rank's two dimensions, the strides of one
    // less; nothing is read at the address, which is a number here.
    unsafe {
        cuTensorMapEncodeTiled(
            (&raw mut map).cast(),
            DataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
            2,
            address as *mut std::ffi::c_void,
            sizes.as_ptr(),
            strides.as_ptr(),
            of_box.as_ptr(),
            steps.as_ptr(),
            Interleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
            Swizzle::CU_TENSOR_MAP_SWIZZLE_128B,
            Promotion::CU_TENSOR_MAP_L2_PROMOTION_L2_256B,
            Fill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
        )
    }
    .result()
    .map_err(|error| driver(&format!("describe a matrix of {rows} rows of {columns}"), error))?;
    Ok(map)
}
