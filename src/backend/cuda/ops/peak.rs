//! What a device can do at most, measured: products by the vendor's library, where it is there, and copies within the device.

use std::sync::Arc;

#[cfg(feature = "vendor")]
use cudarc::cublaslt::{CudaBlasLT, Matmul, MatmulConfig};
use cudarc::driver::{CudaSlice, CudaStream, DriverError};
#[cfg(feature = "vendor")]
use half::bf16;

#[cfg(feature = "vendor")]
use super::tile_search::Numbers;
use crate::backend::cuda::runtime::error::driver;
use crate::backend::cuda::runtime::event_clock::{EventClock, Times};
use crate::error::{Error, Result};

fn fail(error: DriverError) -> Error {
    driver("time a copy", error)
}

/// cuBLASLt on a stream: what this crate's own products are compared with, and used for nothing else. A build without the feature
/// `vendor` has none.
#[cfg(not(feature = "vendor"))]
#[derive(Debug)]
pub enum Vendor {}

#[cfg(not(feature = "vendor"))]
impl Vendor {
    /// Why there is none.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn open(_: &Arc<CudaStream>) -> std::result::Result<Self, String> {
        Err("this program was built without the feature `vendor`".to_owned())
    }

    /// Times a product.
    ///
    /// # Errors
    /// None, as there is no such library.
    pub fn time(&self, _: &mut EventClock<'_>, _: [usize; 3], _: bool, _: usize) -> Result<Times> {
        match *self {}
    }
}

/// cuBLASLt on a stream: what this crate's own products are compared with, and used for nothing else.
#[cfg(feature = "vendor")]
#[derive(Debug)]
pub struct Vendor {
    library: CudaBlasLT,
}

/// Names of the library. A missing one is a panic in cudarc, which looks for these among others.
#[cfg(feature = "vendor")]
const NAMES: [&str; 3] = ["libcublasLt.so", "libcublasLt.so.13", "libcublasLt.so.12"];

#[cfg(feature = "vendor")]
impl Vendor {
    /// The library, loaded now; or why there is none.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn open(stream: &Arc<CudaStream>) -> std::result::Result<Self, String> {
        // SAFETY: opens NVIDIA's library, whose initialisers any program that is linked with it runs.
        if !NAMES.iter().any(|name| unsafe { libloading::Library::new(*name) }.is_ok()) {
            return Err("libcublasLt was not found".to_owned());
        }
        let library = CudaBlasLT::new(stream.clone());
        library
            .map(|library| Self { library })
            .map_err(|error| format!("libcublasLt does not start: {error:?}"))
    }

    /// Times a product of bf16 with sums in f32, `[rows, k]` by a weight `[n, k]`, or `[k, n]` where that is read the other way.
    ///
    /// # Errors
    /// What the library and the driver say.
    pub fn time(
        &self,
        clock: &mut EventClock<'_>,
        [rows, n, k]: [usize; 3],
        backward: bool,
        repeats: usize,
    ) -> Result<Times> {
        let numbers = Numbers::new(clock.kernels());
        let (a, weight) = (numbers.halves(rows * k, 0)?, numbers.halves(n * k, 7)?);
        let mut z: CudaSlice<bf16> = numbers.halves(rows * n, 0)?;
        let size = |number: usize| number as u64;
        let step = |number: usize| i64::try_from(number).unwrap_or(i64::MAX);
        // The library's matrices are column by column: what it multiplies are the transposes of these.
        let config = MatmulConfig {
            transa: !backward,
            transb: false,
            transc: false,
            m: size(n),
            n: size(rows),
            k: size(k),
            alpha: 1.0,
            lda: step(if backward { n } else { k }),
            ldb: step(k),
            beta: 0.0,
            ldc: step(n),
            stride_a: None,
            stride_b: None,
            stride_c: None,
            stride_bias: None,
            batch_size: None,
        };
        clock.measure(repeats, || {
            // SAFETY: the three matrices have the sizes that the configuration says.
            unsafe { self.library.matmul(config, &weight, &a, &mut z, None, None) }
                .map_err(|error| Error::device("multiply by cuBLASLt", format!("{error:?}"), ""))
        })
    }
}

/// Times a copy of so many bytes within the device.
///
/// # Errors
/// No memory, and what the driver says.
pub fn time_copy(clock: &mut EventClock<'_>, bytes: usize, repeats: usize) -> Result<Times> {
    let stream = clock.kernels().stream().clone();
    let source: CudaSlice<u8> = stream.alloc_zeros(bytes).map_err(fail)?;
    let mut target: CudaSlice<u8> = stream.alloc_zeros(bytes).map_err(fail)?;
    clock.measure(repeats, || stream.memcpy_dtod(&source, &mut target).map_err(fail))
}
