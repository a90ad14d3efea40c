//! What a launch reads and writes: addresses with their checks, and cudarc's guards, which order a launch with the work of other
//! streams on the same memory.

use cudarc::driver::{CudaSlice, CudaStream, CudaView, CudaViewMut, DevicePtr, DevicePtrMut, SyncOnDrop};
use half::bf16;

use super::memory::Buffer;
use crate::error::{Error, Result};

/// Bytes that kernels read and write at a time: rows begin on a multiple of them, as widths are multiples of eight, where the first
/// row does.
const ACCESS: u64 = 16;

/// The number format of matrix operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Precision {
    /// bf16 through the tensor cores: what training runs in.
    #[default]
    Bf16,
    /// f32 without tensor cores, never TF32: slow, to verify with.
    F32,
}

impl Precision {
    /// Bytes of a number.
    pub fn bytes(self) -> usize {
        match self {
            Self::Bf16 => 2,
            Self::F32 => 4,
        }
    }

    /// The one of two kernels that computes in it.
    pub(crate) fn named(self, bf16: &'static str, f32: &'static str) -> &'static str {
        match self {
            Self::Bf16 => bf16,
            Self::F32 => f32,
        }
    }
}

impl std::fmt::Display for Precision {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str(match self {
            Self::Bf16 => "bf16",
            Self::F32 => "f32",
        })
    }
}

/// A matrix operand that a launch reads, in bf16 or, to verify, in f32: cudarc's slices and views of either.
pub trait ReadOperand {
    /// Its number format.
    fn precision(&self) -> Precision;
    /// Adds it to a launch: its address.
    #[doc(hidden)]
    fn read<'a>(&'a self, operands: &mut Operands<'a>, what: &str, length: usize) -> Result<u64>;
}

/// A matrix operand that a launch writes.
pub trait WriteOperand: ReadOperand {
    /// Adds it to a launch: its address.
    #[doc(hidden)]
    fn write<'a>(&'a mut self, operands: &mut Operands<'a>, what: &str, length: usize) -> Result<u64>;
}

macro_rules! read_operand {
    ($number:ty, $precision:ident: $($slice:ty),*) => {$(
        impl ReadOperand for $slice {
            fn precision(&self) -> Precision {
                Precision::$precision
            }
            fn read<'a>(&'a self, operands: &mut Operands<'a>, what: &str, length: usize) -> Result<u64> {
                operands.read::<$number>(what, self, length)
            }
        }
    )*};
}
macro_rules! write_operand {
    ($number:ty: $($slice:ty),*) => {$(
        impl WriteOperand for $slice {
            fn write<'a>(&'a mut self, operands: &mut Operands<'a>, what: &str, length: usize) -> Result<u64> {
                operands.write::<$number>(what, self, length)
            }
        }
    )*};
}
read_operand!(bf16, Bf16: CudaSlice<bf16>, CudaView<'_, bf16>, CudaViewMut<'_, bf16>, Buffer<bf16>);
read_operand!(f32, F32: CudaSlice<f32>, CudaView<'_, f32>, CudaViewMut<'_, f32>, Buffer<f32>);
write_operand!(bf16: CudaSlice<bf16>, CudaViewMut<'_, bf16>, Buffer<bf16>);
write_operand!(f32: CudaSlice<f32>, CudaViewMut<'_, f32>, Buffer<f32>);

/// The operands of a launch, or of several in a row. Each is checked as it is added. Until this is dropped, which must be after
/// the launch, it holds cudarc's guards: work of other streams on the same memory waits for the launch, as the launch does for
/// what they did before. Within a capture there are none: who launches the graph orders it.
#[derive(Debug)]
pub struct Operands<'a> {
    stream: &'a CudaStream,
    /// Within a capture, what takes the stream's place, so that nothing is ordered.
    unordered: Option<&'a CudaStream>,
    guards: Vec<Guard<'a>>,
}

#[expect(dead_code, reason = "a guard works by being dropped")]
struct Guard<'a>(SyncOnDrop<'a>);

impl std::fmt::Debug for Guard<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.write_str("a guard")
    }
}

impl<'a> Operands<'a> {
    /// None yet, of a launch on `stream`; within a capture guards are those of `unordered` instead.
    pub(crate) fn new(stream: &'a CudaStream, unordered: Option<&'a CudaStream>) -> Self {
        Self { stream, unordered, guards: Vec::new() }
    }

    /// Fails unless the launch is on the stream `of`, to which alone `what` belongs.
    pub(crate) fn check_stream(&self, what: &str, of: &CudaStream) -> Result<()> {
        check_stream(what, of, self.stream)
    }

    /// Adds what the launch reads: its address.
    ///
    /// # Errors
    /// Not `length` numbers, memory of another context, or an address that is no multiple of 16 bytes.
    pub(crate) fn read<T>(&mut self, what: &str, from: &'a dyn DevicePtr<T>, length: usize) -> Result<u64> {
        self.check(what, from.stream(), from.len(), length)?;
        let (address, guard) = from.device_ptr(self.unordered.unwrap_or(self.stream));
        self.add(what, address, guard)
    }

    /// Adds what the launch writes, or reads and writes: its address.
    ///
    /// # Errors
    /// As [`Operands::read`].
    pub(crate) fn write<T>(
        &mut self,
        what: &str,
        to: &'a mut dyn DevicePtrMut<T>,
        length: usize,
    ) -> Result<u64> {
        self.check(what, to.stream(), to.len(), length)?;
        let (address, guard) = to.device_ptr_mut(self.unordered.unwrap_or(self.stream));
        self.add(what, address, guard)
    }

    /// As [`Operands::read`]; 0, which kernels take as absent, for none.
    pub(crate) fn read_if<T>(
        &mut self,
        what: &str,
        from: Option<&'a dyn DevicePtr<T>>,
        length: usize,
    ) -> Result<u64> {
        from.map_or(Ok(0), |from| self.read(what, from, length))
    }

    /// Adds a matrix operand that the launch reads, which must be in `precision`.
    ///
    /// # Errors
    /// Another format, and those of [`Operands::read`].
    pub(crate) fn matrix(
        &mut self,
        what: &str,
        from: &'a dyn ReadOperand,
        precision: Precision,
        length: usize,
    ) -> Result<u64> {
        check_precision(what, precision, from.precision())?;
        from.read(self, what, length)
    }

    /// Adds a matrix operand that the launch writes, which must be in `precision`.
    ///
    /// # Errors
    /// As [`Operands::matrix`].
    pub(crate) fn matrix_mut(
        &mut self,
        what: &str,
        to: &'a mut dyn WriteOperand,
        precision: Precision,
        length: usize,
    ) -> Result<u64> {
        check_precision(what, precision, to.precision())?;
        to.write(self, what, length)
    }

    fn check(&self, what: &str, of: &CudaStream, found: usize, length: usize) -> Result<()> {
        if !std::ptr::eq(&**of.context(), &**self.stream.context()) {
            // One of the same device would do as memory; but its events are not known to ours.
            let advice = "make one CudaContext for a device, and clone its Arc";
            return Err(Error::tensor(what, "memory of the kernels' CudaContext", "another's", advice));
        }
        crate::backend::ops::check_length(what, length, found)
    }

    fn add(&mut self, what: &str, address: u64, guard: SyncOnDrop<'a>) -> Result<u64> {
        if self.unordered.is_some() {
            // It borrows, and owns nothing: forgotten, it records no event within the capture.
            std::mem::forget(guard);
        } else if !matches!(guard, SyncOnDrop::Record(None)) {
            self.guards.push(Guard(guard));
        }
        if address.is_multiple_of(ACCESS) {
            return Ok(address);
        }
        let found = format!("{} bytes beyond one", address % ACCESS);
        let expected = format!("an address that is a multiple of {ACCESS} bytes");
        Err(Error::tensor(what, expected, found, "begin the view at a multiple of 8 numbers"))
    }
}

/// Fails unless a launch on `stream` is on the one that `what` belongs to.
pub(crate) fn check_stream(what: &str, of: &CudaStream, stream: &CudaStream) -> Result<()> {
    if of.cu_stream() == stream.cu_stream() && of.context().cu_ctx() == stream.context().cu_ctx() {
        return Ok(());
    }
    let advice = "launch on the stream that it was made for, or make one for each stream";
    Err(Error::tensor(what, "a launch on its own stream", "one on another", advice))
}

fn check_precision(what: &str, expected: Precision, found: Precision) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    Err(Error::tensor(what, format!("{expected}, as the operands before it"), found.to_string(), ""))
}
