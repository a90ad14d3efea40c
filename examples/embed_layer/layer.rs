//! One layer of a T5 encoder, both sublayers, forward and backward, from the public ops alone.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr};
use half::bf16;
use promptmix::backend::Heads;
use promptmix::cuda::attention::{
    Attention, AttentionBackward, AttentionGradient, AttentionInput, Delta, InputGradient,
};
use promptmix::cuda::feed_forward::EachRow;
use promptmix::cuda::linear::{Epilogue, Linear, Norm, NormBackward};
use promptmix::cuda::{DropoutMask, Kernels, NORM_COLUMNS, PackedRows};

/// Sizes of a layer: width of the model and of the feed-forward, heads, and the reach of the position bias.
#[derive(Clone, Copy)]
pub struct Sizes {
    pub width: usize,
    pub inner: usize,
    pub heads: Heads,
    pub max_distance: usize,
}

pub const EPSILON: f32 = 1e-6;

type Error = Box<dyn std::error::Error>;

/// Frozen weights. Those of the norms are folded into the products after them: column c of `qkv` and of `w_in` times weight c.
pub struct Weights {
    /// \[3·H·K, D\].
    pub qkv: CudaSlice<bf16>,
    /// \[D, H·K\].
    pub o: CudaSlice<bf16>,
    /// \[F, D\].
    pub w_in: CudaSlice<bf16>,
    /// \[D, F\].
    pub w_out: CudaSlice<bf16>,
    /// \[H, 2·max_distance + 1\].
    pub bias: CudaSlice<f32>,
}

/// Dropout where a layer has it; the default drops nothing.
#[derive(Clone, Copy, Default)]
pub struct Masks<'a> {
    pub probabilities: DropoutMask<'a>,
    pub attention: DropoutMask<'a>,
    pub inner: DropoutMask<'a>,
    pub feed_forward: DropoutMask<'a>,
}

/// Rows of the residual stream as products read them: in f32, in bf16, and the sums of squares of 64 columns each.
pub struct Residual {
    pub x: CudaSlice<f32>,
    pub copy: CudaSlice<bf16>,
    pub partials: CudaSlice<f32>,
}

impl Residual {
    fn new(stream: &Arc<CudaStream>, rows: usize, width: usize) -> Result<Self, Error> {
        Ok(Self {
            x: stream.alloc_zeros(rows * width)?,
            copy: stream.alloc_zeros(rows * width)?,
            partials: stream.alloc_zeros(rows * width.div_ceil(NORM_COLUMNS))?,
        })
    }

    fn norm(&self) -> Norm<'_> {
        Norm { partials: &self.partials, epsilon: EPSILON }
    }
}

/// The layer for one set of rows, with what forward keeps.
pub struct Layer<'a> {
    sizes: Sizes,
    rows: PackedRows<'a>,
    products: [Linear<'a>; 4],
    pub input: Residual,
    qkv: CudaSlice<bf16>,
    o: CudaSlice<bf16>,
    log_sum_exp: CudaSlice<f32>,
    between: Residual,
    a: CudaSlice<bf16>,
    /// A bit an element of the ReLU, set where it is positive and not dropped.
    pub gates: CudaSlice<u8>,
    pub output: Residual,
    d_a: CudaSlice<bf16>,
    d_o: CudaSlice<bf16>,
    d_qkv: CudaSlice<bf16>,
    d_masked: CudaSlice<bf16>,
    inner: CudaSlice<f32>,
    inner_qkv: CudaSlice<f32>,
    delta: CudaSlice<f32>,
    d_copy: CudaSlice<bf16>,
}

impl<'a> Layer<'a> {
    pub fn new(kernels: &Kernels, rows: PackedRows<'a>, sizes: Sizes) -> Result<Self, Error> {
        let (stream, count, total) = (kernels.stream(), rows.count(), sizes.heads.total());
        let Sizes { width, inner, .. } = sizes;
        let bf16s = |columns: usize| stream.alloc_zeros::<bf16>(count * columns);
        let product = |out, input| Linear::new(kernels, rows, out, input);
        Ok(Self {
            sizes,
            rows,
            products: [
                product(3 * total, width)?,
                product(width, total)?,
                product(inner, width)?,
                product(width, inner)?,
            ],
            input: Residual::new(stream, count, width)?,
            qkv: bf16s(3 * total)?,
            o: bf16s(total)?,
            log_sum_exp: stream.alloc_zeros(count * sizes.heads.count)?,
            between: Residual::new(stream, count, width)?,
            a: bf16s(inner)?,
            gates: stream.alloc_zeros(count * inner / 8)?,
            output: Residual::new(stream, count, width)?,
            d_a: bf16s(inner)?,
            d_o: bf16s(total)?,
            d_qkv: bf16s(3 * total)?,
            d_masked: bf16s(width)?,
            inner: stream.alloc_zeros(count)?,
            inner_qkv: stream.alloc_zeros(count * 2 * sizes.heads.count)?,
            delta: stream.alloc_zeros(count * sizes.heads.count)?,
            d_copy: bf16s(width)?,
        })
    }

    fn attention<'s>(&self, weights: &'s Weights, masks: Masks<'s>) -> Attention<'s>
    where
        'a: 's,
    {
        Attention {
            bias: Some((&weights.bias as &dyn DevicePtr<f32>, self.sizes.max_distance)),
            mask: masks.probabilities,
            ..Attention::of_itself(self.rows, self.sizes.heads)
        }
    }

    /// `output` from `input.x` \[rows, D\]. It allocates nothing, so a capture may hold it.
    pub fn forward(
        &mut self,
        kernels: &Kernels,
        weights: &Weights,
        masks: Masks<'_>,
    ) -> promptmix::Result<()> {
        let attention = self.attention(weights, masks);
        let [qkv, o, w_in, w_out] = &mut self.products;
        let each = EachRow { rows: self.rows, width: self.sizes.width };
        each.squares(kernels, &self.input.x, Some(&mut self.input.copy), &mut self.input.partials)?;
        let epilogue = Epilogue::Project { norm: self.input.norm(), z: &mut self.qkv };
        qkv.forward(kernels, &self.input.copy, &weights.qkv, epilogue)?;
        attention.forward(kernels, AttentionInput::Packed(&self.qkv), &mut self.o, &mut self.log_sum_exp)?;
        let epilogue = Epilogue::Add {
            mask: masks.attention,
            x: &self.input.x,
            x_next: &mut self.between.x,
            copy: Some(&mut self.between.copy),
            partials_next: &mut self.between.partials,
        };
        o.forward(kernels, &self.o, &weights.o, epilogue)?;
        let (norm, mask) = (self.between.norm(), masks.inner);
        let epilogue = Epilogue::Relu { norm, mask, z: &mut self.a, bits: &mut self.gates };
        w_in.forward(kernels, &self.between.copy, &weights.w_in, epilogue)?;
        let epilogue = Epilogue::Add {
            mask: masks.feed_forward,
            x: &self.between.x,
            x_next: &mut self.output.x,
            copy: Some(&mut self.output.copy),
            partials_next: &mut self.output.partials,
        };
        w_out.forward(kernels, &self.a, &weights.w_out, epilogue)
    }

    /// `d_x` \[rows, D\] from the gradient of the output to that of the input, after forward with the same masks.
    pub fn backward(
        &mut self,
        kernels: &Kernels,
        weights: &Weights,
        masks: Masks<'_>,
        d_x: &mut CudaSlice<f32>,
    ) -> promptmix::Result<()> {
        let attention = self.attention(weights, masks);
        let [qkv, o, w_in, w_out] = &mut self.products;
        let each = EachRow { rows: self.rows, width: self.sizes.width };
        // The feed-forward: <dz, z> of each row, which the norm's backward wants, is <d_x, what it added>.
        each.inner(kernels, [&*d_x, &self.between.x, &self.output.x], &mut self.inner)?;
        each.masked_copy(kernels, masks.feed_forward, &*d_x, &mut self.d_masked)?;
        let epilogue = Epilogue::ReluBackward { mask: masks.inner, bits: &self.gates, dz: &mut self.d_a };
        w_out.backward(kernels, &self.d_masked, &weights.w_out, epilogue)?;
        let epilogue = Epilogue::NormBackward(NormBackward {
            x: &self.between.copy,
            norm: self.between.norm(),
            inner: &self.inner,
            d_x,
            copy: Some(&mut self.d_copy),
            inner_next: None,
        });
        w_in.backward(kernels, &self.d_a, &weights.w_in, epilogue)?;
        // The attention.
        each.masked_copy(kernels, masks.attention, &*d_x, &mut self.d_masked)?;
        o.backward(kernels, &self.d_masked, &weights.o, Epilogue::Plain { z: &mut self.d_o })?;
        let from = AttentionBackward {
            input: AttentionInput::Packed(&self.qkv),
            o: &self.o,
            log_sum_exp: &self.log_sum_exp,
            d_o: &self.d_o,
            delta: Some(Delta::Scratch(&mut self.delta)),
        };
        let of_input = InputGradient::Packed(&mut self.d_qkv);
        let gradient = AttentionGradient { of_input, inner: Some(&mut self.inner_qkv) };
        attention.backward(kernels, from, gradient)?;
        let epilogue = Epilogue::NormBackward(NormBackward {
            x: &self.input.copy,
            norm: self.input.norm(),
            inner: &self.inner_qkv,
            d_x,
            copy: Some(&mut self.d_copy),
            inner_next: None,
        });
        qkv.backward(kernels, &self.d_qkv, &weights.qkv, epilogue)
    }
}
