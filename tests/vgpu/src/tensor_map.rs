//! Tensor maps: what a program says of a tensor in global memory and of the boxes that are copied from and to it.
//!
//! A map is 128 bytes that only the driver and the hardware understand, so its layout here is our own.

/// How the 16-byte pieces of a box are permuted in shared memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Swizzle {
    /// Not at all.
    None,
    /// Within spans of 32 bytes.
    Span32,
    /// Within spans of 64 bytes.
    Span64,
    /// Within spans of 128 bytes.
    Span128,
}

impl Swizzle {
    /// The bytes within which pieces change places; 16 for none.
    pub fn span(self) -> usize {
        match self {
            Self::None => 16,
            Self::Span32 => 32,
            Self::Span64 => 64,
            Self::Span128 => 128,
        }
    }

    /// Where a byte of shared memory goes: address bits from 4 on are combined with those from 7 on by exclusive or.
    pub fn place(self, address: u64) -> u64 {
        address ^ (address >> 7 & (self.span() as u64 / 16 - 1)) << 4
    }

    /// A name for reports.
    pub fn name(self) -> &'static str {
        match self {
            Self::None => "no swizzle",
            Self::Span32 => "the 32-byte swizzle",
            Self::Span64 => "the 64-byte swizzle",
            Self::Span128 => "the 128-byte swizzle",
        }
    }

    fn of(number: u8) -> Option<Self> {
        Some(match number {
            0 => Self::None,
            1 => Self::Span32,
            2 => Self::Span64,
            3 => Self::Span128,
            _ => return None,
        })
    }
}

/// Most dimensions of a tensor.
pub const MAX_DIMENSIONS: usize = 5;
/// Bytes of a map.
pub const MAP_BYTES: usize = 128;
const MAGIC: [u8; 4] = *b"vtm1";

/// A tensor and its boxes. Dimensions are innermost first; what lies beyond the rank is 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TensorMap {
    /// Dimensions.
    pub rank: usize,
    /// Bytes of an element.
    pub element: usize,
    /// The bytes of an element outside the tensor.
    pub outside: [u8; 8],
    /// How boxes lie in shared memory.
    pub swizzle: Swizzle,
    /// Where the tensor begins in global memory.
    pub address: u64,
    /// Elements in each dimension.
    pub dimensions: [u64; MAX_DIMENSIONS],
    /// Bytes from one element to the next in each dimension.
    pub strides: [u64; MAX_DIMENSIONS],
    /// Elements of a box in each dimension of shared memory.
    pub boxes: [u32; MAX_DIMENSIONS],
    /// Elements of the tensor from one element of the box to the next.
    pub steps: [u32; MAX_DIMENSIONS],
}

/// What `cuTensorMapEncodeTiled` is told.
#[derive(Clone, Debug)]
pub struct Request<'a> {
    /// `CUtensorMapDataType` by number.
    pub kind: u32,
    /// Where the tensor begins.
    pub address: u64,
    /// Elements in each dimension, innermost first.
    pub dimensions: &'a [u64],
    /// Bytes from one element to the next in each dimension but the innermost.
    pub strides: &'a [u64],
    /// Elements of the tensor that a box spans.
    pub boxes: &'a [u32],
    /// Every how many of them is copied.
    pub steps: &'a [u32],
    /// `CUtensorMapInterleave` by number.
    pub interleave: u32,
    /// `CUtensorMapSwizzle` by number.
    pub swizzle: u32,
    /// `CUtensorMapFloatOOBfill` by number.
    pub fill: u32,
}

/// Why there is no map.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// A device refuses it too.
    #[error("{0}")]
    Invalid(String),
    /// A device may take it, the virtual GPU does not model it.
    #[error("{0}, which is not modelled")]
    Unknown(String),
}

/// Bytes of an element of a data type, and the NaN that may stand for what lies outside.
fn kind(number: u32) -> Option<(usize, Option<[u8; 8]>)> {
    let nan = |bytes: &[u8]| {
        let mut out = [0; 8];
        out[..bytes.len()].copy_from_slice(bytes);
        Some(out)
    };
    Some(match number {
        0 => (1, None),
        1 => (2, None),
        2 | 3 => (4, None),
        4 | 5 => (8, None),
        6 | 9 => (2, nan(&[0xff, 0x7f])),
        7 | 10..=12 => (4, nan(&[0xff, 0xff, 0xff, 0x7f])),
        8 => (8, nan(&[0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x7f])),
        _ => return None,
    })
}

impl TensorMap {
    /// Checks what a program asks for, as the manual of `cuTensorMapEncodeTiled` has it.
    ///
    /// # Errors
    /// What is asked for and what is allowed.
    pub fn new(request: &Request<'_>) -> Result<Self, MapError> {
        let invalid = |message: String| Err(MapError::Invalid(message));
        let rank = request.dimensions.len();
        if !(1..=MAX_DIMENSIONS).contains(&rank) {
            return invalid(format!("a tensor has 1 to 5 dimensions, not {rank}"));
        }
        let Some((element, nan)) = kind(request.kind) else {
            return Err(MapError::Unknown(format!("data type {} of packed elements", request.kind)));
        };
        if request.interleave != 0 {
            return Err(MapError::Unknown("an interleaved layout".to_string()));
        }
        let Some(swizzle) = u8::try_from(request.swizzle).ok().and_then(Swizzle::of) else {
            return Err(MapError::Unknown(format!("swizzle {}", request.swizzle)));
        };
        if !request.address.is_multiple_of(16) {
            return invalid(format!("the address 0x{:x} must be a multiple of 16", request.address));
        }
        let outside = match (request.fill, nan) {
            (0, _) => [0; 8],
            (1, Some(nan)) => nan,
            (1, None) => return invalid("NaN can fill only floating-point tensors".to_string()),
            (other, _) => return invalid(format!("fill {other} is none")),
        };
        let mut out = Self {
            rank,
            element,
            outside,
            swizzle,
            address: request.address,
            dimensions: [1; MAX_DIMENSIONS],
            strides: [element as u64; MAX_DIMENSIONS],
            boxes: [1; MAX_DIMENSIONS],
            steps: [1; MAX_DIMENSIONS],
        };
        for axis in 0..rank {
            let size = request.dimensions[axis];
            if size == 0 || size > 1 << 32 {
                return invalid(format!("dimension {axis} is {size}; 1 to 2^32 are allowed"));
            }
            let (span, step) = (request.boxes[axis], request.steps[axis]);
            if !(1..=256).contains(&span) {
                return invalid(format!("dimension {axis} of the box is {span}; 1 to 256 are allowed"));
            }
            if !(1..=8).contains(&step) {
                return invalid(format!("element stride {axis} is {step}; 1 to 8 are allowed"));
            }
            // Without interleave, the innermost dimension has no stride.
            let step = if axis == 0 { 1 } else { step };
            out.dimensions[axis] = size;
            out.boxes[axis] = span.div_ceil(step);
            out.steps[axis] = step;
            if axis > 0 {
                let stride = request.strides[axis - 1];
                if !stride.is_multiple_of(16) || stride >= 1 << 40 {
                    return invalid(format!(
                        "stride {axis} is {stride}; multiples of 16 below 2^40 are allowed"
                    ));
                }
                out.strides[axis] = stride;
            }
        }
        let inner = out.inner_bytes();
        if !inner.is_multiple_of(16) {
            return invalid(format!("a row of the box has {inner} bytes; it must be a multiple of 16"));
        }
        if swizzle != Swizzle::None && inner > swizzle.span() {
            return invalid(format!(
                "a row of the box has {inner} bytes; {} allows {}",
                swizzle.name(),
                swizzle.span()
            ));
        }
        Ok(out)
    }

    /// Bytes of a row of a box.
    pub fn inner_bytes(&self) -> usize {
        self.boxes[0] as usize * self.element
    }

    /// Rows of a box.
    pub fn rows(&self) -> usize {
        self.boxes[1..].iter().map(|&size| size as usize).product()
    }

    /// Bytes of a box in shared memory.
    pub fn box_bytes(&self) -> usize {
        self.inner_bytes() * self.rows()
    }

    /// For a row of a box at some coordinates: the address of its first element inside the tensor, and the elements of the
    /// row that are inside; none where no element is.
    pub fn row(&self, coordinates: &[i64], row: usize) -> Option<(u64, std::ops::Range<usize>)> {
        let (mut address, mut left) = (self.address, row);
        for (axis, &start) in coordinates.iter().enumerate().take(self.rank).skip(1) {
            let size = self.boxes[axis] as usize;
            let at = start + (left % size) as i64 * i64::from(self.steps[axis]);
            left /= size;
            if at < 0 || at as u64 >= self.dimensions[axis] {
                return None;
            }
            address = address.wrapping_add(at as u64 * self.strides[axis]);
        }
        let first = coordinates[0].max(0);
        let end = (coordinates[0] + i64::from(self.boxes[0])).min(self.dimensions[0] as i64);
        if first >= end {
            return None;
        }
        address = address.wrapping_add(first as u64 * self.element as u64);
        Some((address, (first - coordinates[0]) as usize..(end - coordinates[0]) as usize))
    }

    /// The map as the program keeps it.
    pub fn encode(&self) -> [u8; MAP_BYTES] {
        let mut bytes = Vec::with_capacity(MAP_BYTES);
        bytes.extend(MAGIC);
        bytes.extend([self.rank as u8, self.element as u8, self.swizzle as u8, 0]);
        bytes.extend(self.outside);
        bytes.extend(self.address.to_le_bytes());
        self.dimensions.iter().for_each(|size| bytes.extend(((size - 1) as u32).to_le_bytes()));
        self.strides[1..].iter().for_each(|stride| bytes.extend(stride.to_le_bytes()));
        self.boxes.iter().for_each(|size| bytes.extend((*size as u16).to_le_bytes()));
        self.steps.iter().for_each(|step| bytes.push(*step as u8));
        let mut out = [0; MAP_BYTES];
        out[..bytes.len()].copy_from_slice(&bytes);
        out
    }

    /// Reads a map; none where there is none.
    pub fn decode(bytes: &[u8; MAP_BYTES]) -> Option<Self> {
        let mut rest = bytes.strip_prefix(&MAGIC)?;
        let mut take = |count: usize| {
            let (head, tail) = rest.split_at_checked(count)?;
            rest = tail;
            let mut value = [0; 8];
            value[..count].copy_from_slice(head);
            Some(u64::from_le_bytes(value))
        };
        let (rank, element, swizzle, _) = (take(1)?, take(1)?, take(1)?, take(1)?);
        let mut out = Self {
            rank: rank as usize,
            element: element as usize,
            swizzle: Swizzle::of(swizzle as u8)?,
            outside: take(8)?.to_le_bytes(),
            address: take(8)?,
            dimensions: [1; MAX_DIMENSIONS],
            strides: [element; MAX_DIMENSIONS],
            boxes: [1; MAX_DIMENSIONS],
            steps: [1; MAX_DIMENSIONS],
        };
        for size in &mut out.dimensions {
            *size = take(4)? + 1;
        }
        for stride in &mut out.strides[1..] {
            *stride = take(8)?;
        }
        for size in &mut out.boxes {
            *size = take(2)? as u32;
        }
        for step in &mut out.steps {
            *step = take(1)? as u32;
        }
        let sensible = (1..=MAX_DIMENSIONS).contains(&out.rank)
            && matches!(out.element, 1 | 2 | 4 | 8)
            && out.boxes.iter().all(|size| (1..=256).contains(size));
        sensible.then_some(out)
    }
}
