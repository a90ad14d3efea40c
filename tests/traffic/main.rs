//! What the kernels move, as the virtual GPU counts it: no bank conflicts where the work is, whole sectors, and few bytes
//! beyond those that must be moved. A program of its own, because counters are those of a process.

use half::bf16;
use promptmix::Result;
use promptmix::backend::{
    Activation, Batch, CrossAttention, CrossAttentionBackward, CrossAttentionOps, Device, Embedding,
    EmbeddingOps, Example, FeedForward, FeedForwardBackward, FeedForwardOps, FinalNorm, FinalNormBackward,
    Format, Heads, LinearOps, LmHead, LossOps, Mix, MixOps, Mixing, NormOps, OptimizerOps, OptimizerStep,
    Projection, ProjectionBackward, PromptRows, Readers, Residual, Scope, Scorer, SelfAttention,
    SelfAttentionBackward, SelfAttentionOps, Side, StateLayout,
};
use promptmix::cuda::linear::{Epilogue, Linear};
use promptmix::cuda::{Cuda, Precision, Sequences};
use vgpu::counters::Counters;

#[path = "../common/kernels.rs"]
mod kernels;

const WIDTH: usize = 512;
const INNER: usize = 2_048;
const HEADS: Heads = Heads { count: 8, width: 64 };
const VOCABULARY: usize = 4_000;

fn numbers(count: usize) -> Vec<f32> {
    (0..count).map(|i| ((i * 2_654_435_761) % 1_009) as f32 / 504.5 - 1.0).collect()
}

/// Examples of t5-small's widths whose 2,048 encoder rows fill large tiles, with so many target rows each; every token is another one.
fn batch_of(targets: usize) -> Batch {
    let example = |index: usize| Example {
        source: (0..492).map(|i| (500 * index + i) as u32).collect(),
        target: (0..targets).map(|i| (3_000 + targets * index + i) as u32).collect(),
        index: index as u32,
        ..Example::default()
    };
    Batch::pack(&(0..4).map(example).collect::<Vec<_>>(), 20, 0, VOCABULARY).expect("a batch")
}

/// Every op of an encoder layer and the mixture, cross attention of short targets and the loss, once.
fn work(cuda: &Cuda) -> Result<()> {
    let batch = &batch_of(2);
    let (side, rows) = (Side::Encoder, batch.rows(Side::Encoder));
    let weight = |out: usize, input: usize| cuda.weight(numbers(out * input), out, input, Readers::Many);
    let place = |width: usize, format: Format| cuda.activation_of(&numbers(rows * width), width, format);
    let table = cuda.weight(numbers(VOCABULARY * WIDTH), VOCABULARY, WIDTH, Readers::Lookup)?;
    let mut input = Residual::new(cuda, rows, WIDTH)?;

    let mixing = Mixing {
        scorer: Some(Scorer::Bottleneck),
        temperature: 1_000.0,
        without_target: false,
        layer_norm_epsilon: 1e-5,
    };
    let layout = StateLayout::new(&mixing, 1, 20, WIDTH, 100, false);
    let values: Vec<f64> = numbers(layout.len()).into_iter().map(f64::from).collect();
    let mut state = cuda.state(&layout, &values, 1)?;
    let sources = cuda.sources(&numbers(6 * 20 * WIDTH), 6, 20, WIDTH)?;
    let mix = Mix { mixing: &mixing, sources: Some(&sources), batch };
    let epsilon = 1e-6;
    let mixed = cuda.mix(&mix, &table, &state, PromptRows { input: &mut input, mask: None, epsilon })?;
    cuda.embed(Embedding { table: &table, batch, side, mask: None, epsilon }, &mut input)?;
    let input = input;

    let w_qkv = weight(3 * WIDTH, WIDTH)?;
    let mut qkv = cuda.rows(rows, 3 * WIDTH, Format::Operand)?;
    cuda.project(Projection { batch, side, input: &input, weight: &w_qkv }, &mut qkv)?;
    let bias = cuda.position_bias(vec![numbers(2 * 127 + 1); HEADS.count], 127)?;
    let mut o = cuda.rows(rows, WIDTH, Format::Operand)?;
    let mut log_sum_exp = cuda.rows(rows, HEADS.count, Format::Float)?;
    let attention = SelfAttention { batch, side, heads: HEADS, bias: &bias, mask: None };
    cuda.self_attention(&attention, &qkv, &mut o, &mut log_sum_exp)?;
    let mut d_qkv = cuda.rows(rows, 3 * WIDTH, Format::ProjectionGradient)?;
    let d_o = place(WIDTH, Format::Operand)?;
    let scope = Scope::All;
    let from = SelfAttentionBackward { scope, qkv: &qkv, o: &o, log_sum_exp: &log_sum_exp, d_o: &d_o };
    cuda.self_attention_backward(&attention, from, &mut d_qkv)?;
    let mut d_x = place(WIDTH, Format::Residual)?;
    let (dz, weight_of) = (&d_qkv, &w_qkv);
    let of = ProjectionBackward { batch, side, scope, dz, weight: weight_of, input: &input, below: None };
    cuda.project_backward(of, &mut d_x)?;

    for activation in [Activation::Relu, Activation::GatedGelu] {
        let w_in = weight(activation.projections() * INNER, WIDTH)?;
        let w_out = weight(WIDTH, INNER)?;
        let (inner_mask, output_mask) = (None, None);
        let (w_in, w_out) = (&w_in, &w_out);
        let feed_forward =
            FeedForward { batch, side, w_in, w_out, activation, inner_mask, output_mask, epsilon };
        let mut next = Residual::new(cuda, rows, WIDTH)?;
        let saved = cuda.feed_forward(&feed_forward, &input, &mut next, true)?.expect("kept");
        let from = FeedForwardBackward { saved: &saved, input: &input, x_next: &next.x };
        cuda.feed_forward_backward(&feed_forward, from, &mut d_x)?;
    }
    let mut h = cuda.rows(rows, WIDTH, Format::Operand)?;
    let norm = || FinalNorm { batch, side, input: &input, norm_weight: None, scale: 1.0, mask: None };
    cuda.final_norm(norm(), &mut h)?;
    let d_h = place(WIDTH, Format::Float)?;
    cuda.final_norm_backward(norm(), FinalNormBackward { d_h: &d_h, below: None }, &mut d_x)?;
    cuda.mix_backward(&mix, &mixed, &d_x, &mut state)?;

    let targets = batch.rows(Side::Decoder);
    let few = |width: usize, format: Format| cuda.activation_of(&numbers(targets * width), width, format);
    let (w_k, w_v) = (weight(WIDTH, WIDTH)?, weight(WIDTH, WIDTH)?);
    let cross = CrossAttention { batch, heads: HEADS, w_k: &w_k, w_v: &w_v, mask: None };
    let (q, mut o) = (few(WIDTH, Format::Operand)?, cuda.rows(targets, WIDTH, Format::Operand)?);
    let saved = cuda.cross_attention(&cross, &q, &h, &mut o, true)?.expect("kept");
    assert!(saved.is_absorbed());
    let d_o = few(WIDTH, Format::Operand)?;
    let mut d_q = cuda.rows(targets, WIDTH, Format::ProjectionGradient)?;
    let mut d_h = cuda.source_gradient(batch, WIDTH)?;
    let from = CrossAttentionBackward { saved: &saved, q: &q, h: &h, o: &o, d_o: &d_o };
    cuda.cross_attention_backward(&cross, from, Some(&mut d_q), &mut d_h)?;
    cuda.source_rows(batch, d_h)?;
    // The decoder's self attention over a few rows more, as examples of four and fewer need no shared memory; and an optimizer's step
    // over numbers enough for many blocks.
    let longer = &batch_of(5);
    let rows = longer.rows(Side::Decoder);
    let long = |width: usize| cuda.activation_of(&numbers(rows * width), width, Format::Operand);
    let (qkv, d_o, mut o) = (long(3 * WIDTH)?, long(WIDTH)?, cuda.rows(rows, WIDTH, Format::Operand)?);
    let mut log_sum_exp = cuda.rows(rows, HEADS.count, Format::Float)?;
    let attention = SelfAttention { batch: longer, side: Side::Decoder, ..attention };
    cuda.self_attention(&attention, &qkv, &mut o, &mut log_sum_exp)?;
    let mut d_qkv = cuda.rows(rows, 3 * WIDTH, Format::ProjectionGradient)?;
    let from = SelfAttentionBackward { scope, qkv: &qkv, o: &o, log_sum_exp: &log_sum_exp, d_o: &d_o };
    cuda.self_attention_backward(&attention, from, &mut d_qkv)?;
    let many = StateLayout::new(&mixing, 1, 2_000, WIDTH, 100, false);
    let values: Vec<f64> = numbers(many.len()).into_iter().map(f64::from).collect();
    let mut state = cuda.state(&many, &values, 1)?;
    cuda.write_gradient(&mut state, &values)?;
    cuda.optimizer_step(&mut state, &[OptimizerStep::new(0.3, 0.1)])?;
    let mean = cuda.weight(vec![0.0; WIDTH], 1, WIDTH, Readers::Lookup)?;
    let mut d_hidden = cuda.rows(targets, WIDTH, Format::Float)?;
    cuda.loss(batch, &q, &LmHead { weight: &table, mean: &mean }, Some(&mut d_hidden))?;
    cuda.synchronize()
}

/// A product of `size` in each direction, forward and backward.
fn product(cuda: &Cuda, size: usize) {
    let kernels = cuda.kernels();
    let sequences = Sequences::new(kernels.stream(), &[size]).expect("rows");
    let mut linear = Linear::new(kernels, sequences.rows(), size, size).expect("a product");
    let numbers: Vec<bf16> = numbers(size * size).into_iter().map(bf16::from_f32).collect();
    let mut slices = [(); 3].map(|()| kernels.stream().clone_htod(&numbers).expect("an upload"));
    let [a, weight, z] = &mut slices;
    linear.forward(kernels, &*a, &*weight, Epilogue::Plain { z }).expect("forward");
    linear.backward(kernels, &*a, &*weight, Epilogue::Plain { z }).expect("backward");
    cuda.synchronize().expect("a healthy device");
}

/// The kernels of a product of so many rows, columns and steps, forward and backward, on 108 multiprocessors.
fn kernels_of_a_product(gpu: &vgpu::Gpu, cuda: &Cuda, size: usize) -> Vec<String> {
    gpu.change(&vgpu::Change { reset_counters: true, ..Default::default() });
    product(cuda, size);
    gpu.summary().expect("counters").counters.into_iter().map(|counters| counters.kernel).collect()
}

#[test]
fn what_the_kernels_move() {
    if !kernels::are_built() {
        return;
    }
    let gpu = vgpu::load().expect("a GPU");
    if !gpu.is_virtual() {
        eprintln!("skipped: a real GPU counts nothing; set PROMPTMIX_TEST_DEVICE=vgpu");
        return;
    }
    let cuda = Cuda::poisoning(0, Precision::Bf16).expect("a device");
    gpu.change(&vgpu::Change { reset_counters: true, ..Default::default() });
    work(&cuda).expect("every op");
    // 4 small tiles, 96 medium ones, 64 large ones.
    for size in [96, 960, 1_024] {
        product(&cuda, size);
    }
    let counters = gpu.summary().expect("counters").counters;
    assert_eq!(
        kernels_of_a_product(&gpu, &cuda, 96),
        ["gemm_forward_small_plain", "gemm_backward_small_plain"]
    );
    assert_eq!(kernels_of_a_product(&gpu, &cuda, 960), ["gemm_forward_medium", "gemm_backward_medium"]);
    // From 1,024 in each direction on, whatever the device.
    assert_eq!(kernels_of_a_product(&gpu, &cuda, 1_024), ["gemm_forward_large", "gemm_backward_large"]);
    let moved = |c: &Counters| c.loads.moved_bytes() + c.stores.moved_bytes();
    let floor = |c: &Counters| c.loads.unique_bytes + c.stores.unique_bytes;
    for c in &counters {
        let of_floor = moved(c) as f64 / floor(c).max(1) as f64;
        eprintln!("{:<24} {:>9} bytes, {of_floor:.3} of the floor", c.kernel, moved(c));
    }

    let main_loops = [
        "gemm_forward_large",
        "gemm_backward_large",
        "gemm_forward_medium",
        "gemm_backward_medium",
        "gemm_forward_small_plain",
        "gemm_backward_small_plain",
        "attention_64",
        "attention_backward_64",
        "cross_widen_bf16",
        "cross_scores_bf16",
        "cross_mix_bf16",
        "cross_narrow_bf16",
        "cross_scores_backward_bf16",
        "cross_backward_bf16",
        "cross_sources_bf16",
        "attention_short_64",
        "attention_short_backward_64",
        "loss_words_bf16",
    ];
    // Elementwise kernels: 1.1 of what must be moved. The mixture: 1.25, as prompts are read once a block of examples.
    let bounds = [
        ("embed", 1.1),
        ("final_norm_bf16", 1.1),
        ("final_norm_backward", 1.1),
        ("gate_bf16", 1.1),
        ("gate_backward_bf16", 1.1),
        ("row_inner", 1.1),
        ("gradient_norm", 1.1),
        ("adamw", 1.1),
        ("mix_rows", 1.25),
    ];
    let of = |name: &str| {
        let found = counters.iter().find(|c| c.kernel == name);
        found.unwrap_or_else(|| {
            panic!("{name} did not run: {:?}", counters.iter().map(|c| &c.kernel).collect::<Vec<_>>())
        })
    };
    for name in main_loops {
        let c = of(name);
        assert!(c.matrix.requests > 0 && c.async_stores.requests > 0, "{name} works through shared memory");
        assert_eq!(
            (c.matrix.conflicts, c.async_stores.conflicts),
            (0, 0),
            "{name}: bank conflicts in its main loop"
        );
        let (loads, stores) = (c.shared_loads.conflicts, c.shared_stores.conflicts);
        assert_eq!((loads, stores), (0, 0), "{name}: bank conflicts around its main loop");
        // Whole sectors, but for what a block reads once: tile maps, sums of rows, a fragment of its own rows.
        let of_asked = c.loads.moved_bytes() as f64 / c.loads.bytes as f64;
        assert!(of_asked <= 1.2, "{name} moves {of_asked:.3} of what its loads ask for");
    }
    for (name, bound) in bounds {
        let c = of(name);
        let of_floor = moved(c) as f64 / floor(c) as f64;
        assert!(of_floor <= bound, "{name} moves {of_floor:.3} of what it must");
    }
}
