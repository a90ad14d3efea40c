//! A layer of an encoder from public ops alone, `examples/embed_layer`, beside the same layer of the backend.

use cudarc::driver::CudaSlice;
use half::bf16;
use promptmix::Result;
use promptmix::backend::{
    Activation, Batch, Device as _, DropoutStep, Example, FeedForward, FeedForwardBackward, Format, Heads,
    Mask, Projection, ProjectionBackward, Readers, Residual, ResidualProjection, ResidualProjectionBackward,
    Scope, SelfAttention, SelfAttentionBackward, Side, Site, SiteKind,
};
use promptmix::cuda::{DeviceDropout, Precision, Sequences};
use promptmix::verify::{Tolerance, compare};

use crate::device::{Place, device, matrix, narrowed, numbers, roundings};
use crate::layer_of_example::{EPSILON, Layer, Masks, Sizes, Weights};

const PROMPT: usize = 3;

/// The layer's weights in f32, all of them numbers that bf16 has.
struct Numbers {
    qkv: Vec<f32>,
    o: Vec<f32>,
    w_in: Vec<f32>,
    w_out: Vec<f32>,
    /// Of each head.
    bias: Vec<Vec<f32>>,
}

impl Numbers {
    fn new(sizes: Sizes) -> Self {
        let (width, total) = (sizes.width, sizes.heads.total());
        let mut qkv = matrix(1, 3 * total, width);
        // T5 does not scale its scores: the spread of q does.
        let shrink = bf16::from_f32((sizes.heads.width as f32).powf(-0.5)).to_f32();
        qkv[..total * width].iter_mut().for_each(|q| *q = bf16::from_f32(*q * shrink).to_f32());
        let slots = 2 * sizes.max_distance + 1;
        let bias = (0..sizes.heads.count as u64).map(|head| narrowed(&numbers(90 + head, slots, 0.7)));
        Self {
            qkv,
            o: matrix(2, width, total),
            w_in: matrix(3, sizes.inner, width),
            w_out: matrix(4, width, sizes.inner),
            bias: bias.collect(),
        }
    }
}

/// What the layer reads, and what it gives.
struct Found {
    x: Vec<f64>,
    output: Vec<f64>,
    d_x: Vec<f64>,
}

/// The layer as the encoder runs it.
fn of_backend<B: Place>(
    backend: &B,
    batch: &Batch,
    sizes: Sizes,
    of: &Numbers,
    dropout: Option<&DropoutStep>,
) -> Result<Found> {
    let Sizes { width, inner, heads, max_distance } = sizes;
    let (side, rows, total) = (Side::Encoder, batch.rows(Side::Encoder), heads.total());
    let mask = |kind| -> Mask<'_> { dropout.map(|step| (step, Site::new(side, kind, 1))) };
    let weight = |values: &[f32], out, input| backend.weight(values.to_vec(), out, input, Readers::Many);
    let (w_qkv, w_o) = (weight(&of.qkv, 3 * total, width)?, weight(&of.o, width, total)?);
    let (w_in, w_out) = (weight(&of.w_in, inner, width)?, weight(&of.w_out, width, inner)?);
    let bias = backend.position_bias(of.bias.clone(), max_distance)?;
    // A product before it makes x and its norm, as in the model.
    let before = weight(&matrix(5, width, width), width, width)?;
    let y = backend.place(&numbers(6, rows * width, 1.0), width, Format::Operand)?;
    let start = backend.place(&numbers(7, rows * width, 1.0), width, Format::Residual)?;
    let (mut input, epsilon) = (Residual::new(backend, rows, width)?, f64::from(EPSILON));
    let first = ResidualProjection { batch, side, y: &y, weight: &before, mask: None, epsilon, x: &start };
    backend.add_project(first, &mut input)?;

    let mut qkv = backend.rows(rows, 3 * total, Format::Operand)?;
    backend.project(Projection { batch, side, input: &input, weight: &w_qkv }, &mut qkv)?;
    let attention = SelfAttention { batch, side, heads, bias: &bias, mask: mask(SiteKind::SelfAttention) };
    let mut o = backend.rows(rows, total, Format::Operand)?;
    let mut log_sum_exp = backend.rows(rows, heads.count, Format::Float)?;
    backend.self_attention(&attention, &qkv, &mut o, &mut log_sum_exp)?;
    let mut between = Residual::new(backend, rows, width)?;
    let of_output = mask(SiteKind::SelfAttentionOutput);
    let added =
        ResidualProjection { batch, side, y: &o, weight: &w_o, mask: of_output, epsilon, x: &input.x };
    backend.add_project(added, &mut between)?;
    let feed_forward = FeedForward {
        batch,
        side,
        w_in: &w_in,
        w_out: &w_out,
        activation: Activation::Relu,
        inner_mask: mask(SiteKind::FeedForward),
        output_mask: mask(SiteKind::FeedForwardOutput),
        epsilon,
    };
    let mut output = Residual::new(backend, rows, width)?;
    let saved = backend.feed_forward(&feed_forward, &between, &mut output, true)?.expect("kept");

    let mut d_x = backend.place(&numbers(8, rows * width, 1.0), width, Format::Residual)?;
    let from = FeedForwardBackward { saved: &saved, input: &between, x_next: &output.x };
    backend.feed_forward_backward(&feed_forward, from, &mut d_x)?;
    let mut d_o = backend.rows(rows, total, Format::Operand)?;
    let y = Some((&o, heads));
    let of_o = ResidualProjectionBackward { batch, side, d_x: &d_x, weight: &w_o, mask: of_output, y };
    backend.add_project_backward(of_o, &mut d_o)?;
    let (mut d_qkv, scope) = (backend.rows(rows, 3 * total, Format::ProjectionGradient)?, Scope::All);
    let from = SelfAttentionBackward { scope, qkv: &qkv, o: &o, log_sum_exp: &log_sum_exp, d_o: &d_o };
    backend.self_attention_backward(&attention, from, &mut d_qkv)?;
    let (dz, input) = (&d_qkv, &input);
    let projected = ProjectionBackward { batch, side, scope, dz, weight: &w_qkv, input, below: None };
    backend.project_backward(projected, &mut d_x)?;
    Ok(Found { x: backend.read(&input.x)?, output: backend.read(&output.x)?, d_x: backend.read(&d_x)? })
}

/// Both layers of one batch; with dropout at the sites of one layer.
fn compare_layers(lengths: &[usize], sizes: Sizes, dropped: f64) {
    let Some(device) = device(Precision::Bf16) else { return };
    let (cuda, kernels) = (&device.cuda, device.cuda.kernels());
    let step = DropoutStep::new(dropped, 5, &[77]);
    let examples: Vec<Example> = lengths
        .iter()
        .enumerate()
        .map(|(index, &length)| Example {
            source: vec![1; length - PROMPT],
            target: vec![1],
            index: index as u32,
            ..Example::default()
        })
        .collect();
    let batch = Batch::pack(&examples, PROMPT, 0, 50).expect("a batch");
    let of = Numbers::new(sizes);
    let expected = of_backend(cuda, &batch, sizes, &of, step.as_ref()).expect("a layer of the backend");
    cuda.synchronize().expect("a healthy device");

    let stream = kernels.stream();
    let halves = |values: &[f32]| -> CudaSlice<bf16> {
        let values: Vec<bf16> = values.iter().map(|&value| bf16::from_f32(value)).collect();
        stream.clone_htod(&values).expect("an upload")
    };
    let weights = Weights {
        qkv: halves(&of.qkv),
        o: halves(&of.o),
        w_in: halves(&of.w_in),
        w_out: halves(&of.w_out),
        bias: stream.clone_htod(&of.bias.concat()).expect("an upload"),
    };
    let dropout = step.as_ref().map(|step| DeviceDropout::new(stream, step).expect("dropout"));
    let mask = |kind| {
        let site = Site::new(Side::Encoder, kind, 1);
        dropout.as_ref().map_or_else(Default::default, |dropout| dropout.mask(site))
    };
    let masks = Masks {
        probabilities: mask(SiteKind::SelfAttention),
        attention: mask(SiteKind::SelfAttentionOutput),
        inner: mask(SiteKind::FeedForward),
        feed_forward: mask(SiteKind::FeedForwardOutput),
    };
    let sequences = Sequences::new(stream, lengths).expect("sequences");
    let mut layer = Layer::new(kernels, sequences.rows(), sizes).expect("a layer");
    stream.memcpy_htod(&narrowed(&expected.x), &mut layer.input.x).expect("an upload");
    let rows = sequences.count();
    let d_x = narrowed(&numbers(8, rows * sizes.width, 1.0));
    let mut d_x = stream.clone_htod(&d_x).expect("an upload");
    layer.forward(kernels, &weights, masks).expect("launches");
    layer.backward(kernels, &weights, masks, &mut d_x).expect("launches");
    let read = |slice: &CudaSlice<f32>| -> Vec<f64> {
        stream.clone_dtoh(slice).expect("a download").into_iter().map(f64::from).collect()
    };
    let (output, d_x) = (read(&layer.output.x), read(&d_x));
    cuda.synchronize().expect("a healthy device");
    let what = format!("{lengths:?}, dropout {dropped}");
    // Forward the kernels are the same. Backward the backend finds delta and the inner products of rows in the products before, in
    // another order of f32 sums; where that turns the rounding of a number of d_qkv, an entry of d_x moves by a term's rounding.
    let bounds = [Tolerance::OfLargest(0.0), roundings(1.0)];
    let results = [("output", &output, &expected.output), ("d_x", &d_x, &expected.d_x)];
    for ((name, found, expected), bound) in results.into_iter().zip(bounds) {
        let comparison = compare(found, expected);
        eprintln!("{name} of {what}: off by {:.1e} of the largest", comparison.worst_relative);
        assert!(comparison.passes(bound), "{name} of {what}: {comparison:?}");
    }
}

#[test]
fn a_layer_of_public_ops_is_the_backends() {
    let small = Sizes { width: 64, inner: 136, heads: Heads { count: 3, width: 24 }, max_distance: 9 };
    for dropped in [0.0, 0.2] {
        compare_layers(&[5, 70, 33], small, dropped);
    }
    let t5_small =
        Sizes { width: 512, inner: 2_048, heads: Heads { count: 8, width: 64 }, max_distance: 128 };
    compare_layers(&[40, 93], t5_small, 0.1);
}
