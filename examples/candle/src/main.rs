//! A product with a frozen weight as an op of candle, forward and backward, on candle's own CUDA buffers and stream: nothing is copied.
//!
//!     cargo run --release

use std::sync::{Arc, Mutex, PoisonError};

use candle_core::cuda::CudaStorageSlice;
use candle_core::{CpuStorage, CudaStorage, CustomOp2, DType, Device, Layout, Result, Shape, Tensor, Var, bail};
use half::bf16;
use promptmix::cuda::linear::{Epilogue, Linear};
use promptmix::cuda::{Kernels, Sequences};

/// a W^T for rows a \[rows, in\] and a weight \[out, in\], or a W for rows \[rows, out\].
#[derive(Clone)]
struct Product {
    /// On the stream of candle's device, which cudarc orders with candle's own work. A `Kernels` is for one thread at a time.
    kernels: Arc<Mutex<Kernels>>,
    backward: bool,
}

impl Product {
    fn new(device: &Device) -> Result<Self> {
        let kernels = Kernels::new(device.as_cuda_device()?.cuda_stream()).map_err(candle_core::Error::wrap)?;
        Ok(Self { kernels: Arc::new(Mutex::new(kernels)), backward: false })
    }
}

/// The numbers of a tensor that lies in one piece.
fn whole(layout: &Layout) -> Result<(usize, usize)> {
    match layout.contiguous_offsets() {
        Some(range) => Ok(range),
        None => bail!("a product reads tensors that lie in one piece: call contiguous() before"),
    }
}

impl CustomOp2 for Product {
    fn name(&self) -> &'static str {
        "promptmix-product"
    }

    fn cpu_fwd(&self, _: &CpuStorage, _: &Layout, _: &CpuStorage, _: &Layout) -> Result<(CpuStorage, Shape)> {
        bail!("this product is for CUDA devices: use Tensor::matmul on the CPU")
    }

    fn cuda_fwd(
        &self,
        a: &CudaStorage,
        of_a: &Layout,
        weight: &CudaStorage,
        of_weight: &Layout,
    ) -> Result<(CudaStorage, Shape)> {
        let ((rows, _), (out, input)) = (of_a.shape().dims2()?, of_weight.shape().dims2()?);
        let (from, to) = whole(of_a)?;
        let a_rows = a.as_cuda_slice::<bf16>()?.slice(from..to);
        let (from, to) = whole(of_weight)?;
        let weight = weight.as_cuda_slice::<bf16>()?.slice(from..to);
        let columns = if self.backward { input } else { out };
        let kernels = self.kernels.lock().unwrap_or_else(PoisonError::into_inner);
        let wrap = |error: promptmix::Error| candle_core::Error::wrap(error);
        let mut z = a.device.alloc_zeros::<bf16>(rows * columns)?;
        let sequences = Sequences::new(kernels.stream(), &[rows]).map_err(wrap)?;
        // A program that calls it often keeps these: they hold the scratch of products that are cut along their depth.
        let mut linear = Linear::new(&kernels, sequences.rows(), out, input).map_err(wrap)?;
        let epilogue = Epilogue::Plain { z: &mut z };
        let launched = match self.backward {
            false => linear.forward(&kernels, &a_rows, &weight, epilogue),
            true => linear.backward(&kernels, &a_rows, &weight, epilogue),
        };
        launched.map_err(wrap)?;
        let storage = CudaStorage { slice: CudaStorageSlice::BF16(z), device: a.device.clone() };
        Ok((storage, Shape::from((rows, columns))))
    }

    /// d_a = d W; the weight is frozen.
    fn bwd(&self, _: &Tensor, weight: &Tensor, _: &Tensor, d: &Tensor) -> Result<(Option<Tensor>, Option<Tensor>)> {
        let back = Self { backward: !self.backward, ..self.clone() };
        Ok((Some(d.contiguous()?.apply_op2_no_bwd(weight, &back)?), None))
    }
}

fn main() -> Result<()> {
    // A stream of its own: the kernels' work and candle's are on it, one after the other.
    let device = Device::new_cuda_with_stream(0)?;
    let matrix = |rows: usize, columns: usize| {
        Tensor::randn(0.0_f32, 1.0, (rows, columns), &device)?.to_dtype(DType::BF16)
    };
    let (a, weight) = (Var::from_tensor(&matrix(37, 64)?)?, matrix(48, 64)?);
    let ours = a.as_tensor().apply_op2(&weight, Product::new(&device)?)?;
    let candles = a.as_tensor().matmul(&weight.t()?)?;
    let gradient = |z: &Tensor| -> Result<Tensor> {
        let gradients = z.to_dtype(DType::F32)?.sqr()?.sum_all()?.backward()?;
        match gradients.get(&a) {
            Some(gradient) => Ok(gradient.clone()),
            None => bail!("no gradient of a"),
        }
    };
    let off = |found: &Tensor, expected: &Tensor| -> Result<f32> {
        let (found, expected) = (found.to_dtype(DType::F32)?, expected.to_dtype(DType::F32)?);
        let largest = expected.abs()?.max_all()?.to_scalar::<f32>()?;
        Ok((found - expected)?.abs()?.max_all()?.to_scalar::<f32>()? / largest)
    };
    let (z_off, d_off) = (off(&ours, &candles)?, off(&gradient(&ours)?, &gradient(&candles)?)?);
    println!("the product is {z_off:.1e} off candle's, its gradient {d_off:.1e}");
    // Both round to bf16 once a product; the gradient is of two.
    if !(z_off <= 1.0 / 128.0 && d_off <= 1.0 / 64.0) {
        bail!("promptmix and candle disagree");
    }
    Ok(())
}
