//! A whole layer of a T5 encoder in a program of one's own: both sublayers, forward and backward, with dropout, captured once and
//! replayed over batches of other lengths.
//!
//!     cargo run --release --example embed_layer

mod layer;

use cudarc::driver::CudaContext;
use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use half::bf16;
use layer::{Layer, Masks, Sizes, Weights};
use promptmix::backend::{DropoutStep, Heads, Side, Site, SiteKind};
use promptmix::cuda::{DeviceDropout, Kernels, Sequences, devices};

const SIZES: Sizes =
    Sizes { width: 512, inner: 1_024, heads: Heads { count: 8, width: 64 }, max_distance: 128 };
const EXAMPLES: usize = 4;
const CAPACITY: usize = 256;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if devices()?.is_empty() {
        return Err("no GPU was found".into());
    }
    let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
    let stream = kernels.stream();
    let (width, total) = (SIZES.width, SIZES.heads.total());
    let number = |i: usize| (i * 2_654_435_761 % 1_009) as f32 / 504.5 - 1.0;
    let matrix = |rows: usize, columns: usize| {
        let scale = 1.0 / (columns as f32).sqrt();
        let numbers: Vec<bf16> =
            (0..rows * columns).map(|i| bf16::from_f32(number(i + rows) * scale)).collect();
        stream.clone_htod(&numbers)
    };
    let bias: Vec<f32> = (0..SIZES.heads.count * (2 * SIZES.max_distance + 1)).map(number).collect();
    let weights = Weights {
        qkv: matrix(3 * total, width)?,
        o: matrix(width, total)?,
        w_in: matrix(SIZES.inner, width)?,
        w_out: matrix(width, SIZES.inner)?,
        bias: stream.clone_htod(&bias)?,
    };
    let step = DropoutStep::new(0.1, 1, &[42]).ok_or("a probability above 0")?;
    let dropout = DeviceDropout::new(stream, &step)?;
    let mask = |kind| dropout.mask(Site::new(Side::Encoder, kind, 0));
    let masks = Masks {
        probabilities: mask(SiteKind::SelfAttention),
        attention: mask(SiteKind::SelfAttentionOutput),
        inner: mask(SiteKind::FeedForward),
        feed_forward: mask(SiteKind::FeedForwardOutput),
    };

    let sequences = Sequences::with_capacity(stream, EXAMPLES, CAPACITY)?;
    let mut layer = Layer::new(&kernels, sequences.rows(), SIZES)?;
    let rows: Vec<f32> = (0..CAPACITY * width).map(number).collect();
    stream.memcpy_htod(&rows, &mut layer.input.x)?;
    let mut cu_seqlens = stream.clone_htod(&[0_i32; EXAMPLES + 1])?;
    let mut d_x = stream.clone_htod(&rows)?;
    let mut work = |cu_seqlens: &_, d_x: &mut _| {
        sequences.update_on_device(&kernels, cu_seqlens)?;
        layer.forward(&kernels, &weights, masks)?;
        layer.backward(&kernels, &weights, masks, d_x)
    };
    kernels.preload(|| work(&cu_seqlens, &mut d_x))?;
    stream.begin_capture(CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL)?;
    let captured = work(&cu_seqlens, &mut d_x);
    let graph = stream.end_capture(CUgraphInstantiate_flags(0));
    captured?;
    let graph = graph?.ok_or("no graph")?;
    for offsets in [[0, 60, 130, 200, 256], [0, 1, 1, 200, 210]] {
        stream.memcpy_htod(&offsets, &mut cu_seqlens)?;
        stream.memcpy_htod(&rows, &mut d_x)?;
        graph.launch()?;
        sequences.refused()?;
        let d_x = stream.clone_dtoh(&d_x)?;
        let real = &d_x[..offsets[EXAMPLES] as usize * width];
        let norm = real.iter().map(|d| f64::from(d * d)).sum::<f64>().sqrt();
        println!(
            "sequences that end at {:?}: the gradient of their rows has the norm {norm:.3}",
            &offsets[1..]
        );
        if !norm.is_finite() || norm == 0.0 {
            return Err("no gradient came back".into());
        }
    }
    Ok(())
}
