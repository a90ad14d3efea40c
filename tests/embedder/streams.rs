//! Operands that other streams write and read, and operands that begin where they must not.
//!
//! The virtual GPU reports work of two streams on the same memory that no event orders, and a report fails the test.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream};
use half::bf16;
use promptmix::backend::{
    Batch, DropoutStep, Example, Heads, Mixing, Objective, OptimizerStep, Scorer, Side, Site, SiteKind,
    StateLayout,
};
use promptmix::cuda::attention::{
    Attention, AttentionBackward, AttentionGradient, AttentionInput, Delta, InputGradient,
};
use promptmix::cuda::linear::{Epilogue, Linear, TileConfig, TileShape};
use promptmix::cuda::loss::{CrossEntropy, CrossEntropyRows, HiddenGradient, LossScratch, Plan};
use promptmix::cuda::mix::{FrozenSources, MixForward, PromptMix, pooled_keys};
use promptmix::cuda::norm::{FinalNorm, NormedRows};
use promptmix::cuda::optimizer::{AdamW, StepOperands};
use promptmix::cuda::{DeviceDropout, DropoutMask, LabelRows, Packed, Precision, Sequences};

use crate::launching::{Program, program};

const HEADS: Heads = Heads { count: 1, width: 16 };
const ROWS: usize = 70;
const WIDTH: usize = 16;

/// Numbers in memory that the operand is a part of: from the eighth number on, or where it must not begin from the first.
struct Wide<T>(CudaSlice<T>);

impl<T: cudarc::driver::DeviceRepr + Copy> Wide<T> {
    fn new(stream: &Arc<CudaStream>, value: T, count: usize) -> Self {
        Self(stream.clone_htod(&vec![value; count + 8]).expect("an upload"))
    }
}

/// Calls `launch` with a view of each of `$wide`, all from 8 numbers on but the one numbered `$odd`, which begins one number in.
macro_rules! views {
    ($odd:expr; $($name:ident: $kind:ident),* => $launch:expr) => {{
        let mut number = 0;
        $(
            number += 1;
            let from = if $odd == number { 1 } else { 8 };
            views!(@view $kind $name from);
        )*
        let _ = number;
        $launch
    }};
    (@view read $name:ident $from:ident) => {
        let end = $name.0.len() - 8 + $from;
        let $name = $name.0.slice($from..end);
    };
    (@view write $name:ident $from:ident) => {
        let end = $name.0.len() - 8 + $from;
        let mut $name = $name.0.slice_mut($from..end);
    };
}

/// Launches an op with the operand of that number askew; with 0, none is. Operands are of the stream.
type Op =
    (&'static str, &'static [&'static str], fn(&Program, &Arc<CudaStream>, usize) -> promptmix::Result<()>);

/// Every kind of operand of attention, a product, the mixture, the loss and AdamW, in the order of their numbers.
const OPS: [Op; 7] = [
    ("attention", &["qkv", "o", "log_sum_exp", "bias"], attention),
    ("attention backward", &["qkv", "o", "log_sum_exp", "d_o", "d_qkv", "delta"], attention_backward),
    ("a product", &["the rows that are multiplied", "weight", "x", "x_next", "partials_next"], product),
    ("a norm", &["x", "partials", "h"], norm),
    ("the mixture", &["table", "the sources", "the sources' keys", "values", "x"], mixture),
    (
        "the loss",
        &[
            "hidden",
            "head",
            "partials",
            "label_logits",
            "negative_log_likelihood",
            "loss",
            "greedy",
            "d_hidden",
            "weighted",
        ],
        loss,
    ),
    ("AdamW", &["values", "gradient", "first_moment", "second_moment"], adamw),
];

fn attention(program: &Program, stream: &Arc<CudaStream>, odd: usize) -> promptmix::Result<()> {
    let sequences = Sequences::new(stream, &[ROWS])?;
    let qkv = Wide::new(stream, bf16::ONE, ROWS * 3 * WIDTH);
    let (mut o, mut lse) = (Wide::new(stream, bf16::NAN, ROWS * WIDTH), Wide::new(stream, f32::NAN, ROWS));
    let bias = Wide::new(stream, 0.5_f32, 2 * 3 + 1);
    views!(odd; qkv: read, o: write, lse: write, bias: read => {
        let attention = Attention { bias: Some((&bias, 3)), ..Attention::of_itself(sequences.rows(), HEADS) };
        attention.forward(&program.kernels, AttentionInput::Packed(&qkv), &mut o, &mut lse)?;
    });
    // The mean of ones, read on the other stream.
    let read = stream.clone_dtoh(&o.0).expect("a download");
    assert!(read[8..].iter().all(|value| value.to_f32() == 1.0));
    Ok(())
}

fn attention_backward(program: &Program, stream: &Arc<CudaStream>, odd: usize) -> promptmix::Result<()> {
    let sequences = Sequences::new(stream, &[ROWS])?;
    let qkv = Wide::new(stream, bf16::ONE, ROWS * 3 * WIDTH);
    let (o, lse) = (Wide::new(stream, bf16::ONE, ROWS * WIDTH), Wide::new(stream, 20.0_f32, ROWS));
    let d_o = Wide::new(stream, bf16::ONE, ROWS * WIDTH);
    let mut d_qkv = Wide::new(stream, bf16::NAN, ROWS * 3 * WIDTH);
    let mut delta = Wide::new(stream, f32::NAN, ROWS);
    views!(odd; qkv: read, o: read, lse: read, d_o: read, d_qkv: write, delta: write => {
        Attention::of_itself(sequences.rows(), HEADS).backward(
            &program.kernels,
            AttentionBackward {
                input: AttentionInput::Packed(&qkv),
                o: &o,
                log_sum_exp: &lse,
                d_o: &d_o,
                delta: Some(Delta::Scratch(&mut delta)),
            },
            AttentionGradient { of_input: InputGradient::Packed(&mut d_qkv), inner: None },
        )?;
    });
    let read = stream.clone_dtoh(&d_qkv.0).expect("a download");
    assert!(read[8..].iter().all(|value| value.is_finite()));
    Ok(())
}

fn product(program: &Program, stream: &Arc<CudaStream>, odd: usize) -> promptmix::Result<()> {
    let sequences = Sequences::new(stream, &[ROWS])?;
    let tiles = TileConfig { shape: TileShape::Small, split_k: 1 };
    let mut linear = Linear::with_tiles(&program.kernels, sequences.rows(), WIDTH, WIDTH, [tiles; 2])?;
    let a = Wide::new(stream, bf16::ONE, ROWS * WIDTH);
    let weight = Wide::new(stream, bf16::ONE, WIDTH * WIDTH);
    let (x, mut x_next) =
        (Wide::new(stream, 1.0_f32, ROWS * WIDTH), Wide::new(stream, f32::NAN, ROWS * WIDTH));
    let mut partials = Wide::new(stream, f32::NAN, ROWS);
    views!(odd; a: read, weight: read, x: read, x_next: write, partials: write => {
        let epilogue = Epilogue::Add {
            mask: DropoutMask::default(),
            x: &x,
            x_next: &mut x_next,
            copy: None,
            partials_next: &mut partials,
        };
        linear.forward(&program.kernels, &a, &weight, epilogue)?;
    });
    let read = stream.clone_dtoh(&x_next.0).expect("a download");
    assert!(read[8..].iter().all(|&value| value == 17.0));
    Ok(())
}

fn norm(program: &Program, stream: &Arc<CudaStream>, odd: usize) -> promptmix::Result<()> {
    let sequences = Sequences::new(stream, &[ROWS])?;
    let (x, partials) =
        (Wide::new(stream, 2.0_f32, ROWS * WIDTH), Wide::new(stream, 4.0 * WIDTH as f32, ROWS));
    let mut h = Wide::new(stream, bf16::NAN, ROWS * WIDTH);
    views!(odd; x: read, partials: read, h: write => {
        let (rows, mask) = (sequences.rows(), DropoutMask::default());
        FinalNorm { rows, width: WIDTH, epsilon: 1e-6, norm_weight: None, scale: 1.0, mask }.forward(
            &program.kernels,
            NormedRows { x: &x, partials: &partials },
            &mut h,
        )?;
    });
    let read = stream.clone_dtoh(&h.0).expect("a download");
    assert!(read[8..].iter().all(|value| value.to_f32() == 1.0));
    Ok(())
}

fn mixture(program: &Program, stream: &Arc<CudaStream>, odd: usize) -> promptmix::Result<()> {
    let example = Example { source: vec![0], target: vec![1], ..Example::default() };
    let packed = Packed::new(stream, Batch::pack(&[example], 1, 0, 2)?)?;
    let mixing = Mixing { scorer: Some(Scorer::Uniform), ..Mixing::plain() };
    let layout = StateLayout::new(&mixing, 1, 1, 8, 0, false);
    let keys = pooled_keys(&[2.0; 2 * 8], 1, 8);
    let keys = Wide(stream.clone_htod(&[vec![0.0; 8], keys].concat()).expect("an upload"));
    let prompts = Wide::new(stream, 2.0_f32, 2 * 8);
    let (values, table) = (Wide::new(stream, 2.0_f32, 8), Wide::new(stream, 0.0_f32, 2 * 8));
    let mut x = Wide::new(stream, f32::NAN, 2 * 8);
    let mut mix = PromptMix::new(&program.kernels, packed.described(), &mixing, &layout, 2, 1)?;
    views!(odd; table: read, prompts: read, keys: read, values: read, x: write => {
        let sources = Some(FrozenSources { prompts: &prompts, keys: &keys });
        let (copy, partials, mask) = (None, None, DropoutMask::default());
        let of = MixForward { table: &table, sources, values: &values, x: &mut x, copy, partials, mask };
        mix.forward(&program.kernels, of)?;
    });
    let read = stream.clone_dtoh(&x.0).expect("a download");
    assert!(read[8..16].iter().all(|value| (value - 4.0).abs() < 1e-5), "{read:?}");
    Ok(())
}

fn loss(program: &Program, stream: &Arc<CudaStream>, odd: usize) -> promptmix::Result<()> {
    let rows = LabelRows::new(stream, &[3; 2], &[0.5; 2])?;
    let (hidden, head) = (Wide::new(stream, bf16::ZERO, 2 * 8), Wide::new(stream, bf16::ONE, 4 * 8));
    let plan = Plan::new(&program.kernels, Precision::Bf16, 2, [4, 8])?;
    let float = |count: usize| Wide::new(stream, f32::NAN, count);
    let (mut partials, mut weighted) = (float(plan.scratch().partials), float(plan.scratch().weighted));
    let (mut label_logits, mut likelihood, mut loss, mut d_hidden) =
        (float(2), float(2), float(2), float(2 * 8));
    let mut greedy = Wide::new(stream, u32::MAX, 2);
    views!(odd; hidden: read, head: read, partials: write, label_logits: write, likelihood: write, loss: write,
           greedy: write, d_hidden: write, weighted: write => {
        let (labels, objective) = (rows.rows(), Objective::default());
        CrossEntropy { labels, plan, lm_head: &head, objective, mean: None }.launch(
            &program.kernels,
            &hidden,
            LossScratch { partials: &mut partials, label_logits: &mut label_logits },
            CrossEntropyRows { negative_log_likelihood: &mut likelihood, loss: &mut loss, greedy: &mut greedy },
            Some(HiddenGradient { d_hidden: &mut d_hidden, weighted: &mut weighted }),
        )?;
    });
    let read = stream.clone_dtoh(&likelihood.0).expect("a download");
    // Four equal logits.
    assert!(read[8..].iter().all(|value| (value - 4.0_f32.ln()).abs() < 1e-5), "{read:?}");
    Ok(())
}

fn adamw(program: &Program, stream: &Arc<CudaStream>, odd: usize) -> promptmix::Result<()> {
    let mut adamw = AdamW::vector(&program.kernels, 16)?;
    adamw.schedule(&program.kernels, &[OptimizerStep::new(0.25, 0.0)])?;
    let (mut values, gradient) = (Wide::new(stream, 1.0_f32, 16), Wide::new(stream, 0.01_f32, 16));
    let (mut first, mut second) = (Wide::new(stream, 0.0_f32, 16), Wide::new(stream, 0.0_f32, 16));
    views!(odd; values: write, gradient: read, first: write, second: write => {
        let of = StepOperands {
            values: &mut values,
            gradient: &gradient,
            first_moment: &mut first,
            second_moment: &mut second,
        };
        adamw.step(&program.kernels, of)?;
    });
    let read = stream.clone_dtoh(&values.0).expect("a download");
    assert!(read[8..].iter().all(|value| (value - 0.75).abs() < 1e-4), "{read:?}");
    Ok(())
}

#[test]
fn operands_of_another_stream_are_ordered_for_every_op() {
    let Some(program) = program() else { return };
    // Written on it, launched on the stream of the kernels, read on it again, and freed there.
    let other = program.stream.context().new_stream().expect("a stream");
    for (op, _, launch) in OPS {
        launch(&program, &other, 0).unwrap_or_else(|error| panic!("{op}: {error}"));
    }
}

#[test]
fn every_operand_that_begins_askew_is_named() {
    let Some(program) = program() else { return };
    for (op, operands, launch) in OPS {
        for (index, name) in operands.iter().enumerate() {
            let launched = program.kernels.launches();
            let error = launch(&program, &program.stream, index + 1).expect_err(op).to_string();
            let expected = "expected an address that is a multiple of 16 bytes";
            assert!(error.contains(expected), "{name} of {op}: {error}");
            assert!(error.contains(&format!("{name}: {expected}")), "{name} of {op}: {error}");
            assert_eq!(program.kernels.launches(), launched, "{name} of {op}");
        }
    }
}

#[test]
fn a_bias_without_room_in_shared_memory_is_refused_before_anything_is_launched() {
    let Some(program) = program() else { return };
    let (rows, heads, reach) = (70, Heads { count: 1, width: 128 }, 60_000);
    let sequences = Sequences::new(&program.stream, &[rows]).expect("a sequence");
    let qkv = Wide::new(&program.stream, bf16::ONE, rows * 3 * 128).0;
    let (mut o, d_o) = (
        Wide::new(&program.stream, bf16::ONE, rows * 128).0,
        Wide::new(&program.stream, bf16::ONE, rows * 128).0,
    );
    let (qkv, mut o, d_o) = (qkv.slice(8..), o.slice_mut(8..), d_o.slice(8..));
    let mut floats = Wide::new(&program.stream, 0.0_f32, 2 * rows).0;
    let (mut lse, mut delta) = floats.split_at_mut(72);
    let bias = program.stream.clone_htod(&vec![0.0_f32; 2 * reach + 1]).expect("an upload");
    let attention = Attention { bias: Some((&bias, reach)), ..Attention::of_itself(sequences.rows(), heads) };
    let said = "bytes of shared memory, which a block of this GPU has";
    let input = AttentionInput::Packed(&qkv);
    let forward = attention.forward(&program.kernels, input, &mut o, &mut lse.slice_mut(..rows));
    let mut d_qkv = Wide::new(&program.stream, bf16::NAN, rows * 3 * 128).0;
    let backward = attention.backward(
        &program.kernels,
        AttentionBackward {
            input,
            o: &o,
            log_sum_exp: &lse.slice(..rows),
            d_o: &d_o,
            delta: Some(Delta::Scratch(&mut delta.slice_mut(..rows))),
        },
        AttentionGradient { of_input: InputGradient::Packed(&mut d_qkv.slice_mut(8..)), inner: None },
    );
    for (result, kernel) in [(forward, "attention_128"), (backward, "attention_backward_128")] {
        let error = result.expect_err("too long a bias").to_string();
        assert!(error.contains(said) && error.contains(kernel), "{error}");
        assert!(error.contains("a shorter maximum distance"), "{error}");
    }
    assert_eq!(program.kernels.launches(), 0);
}

/// Heads 128 wide with a bias as T5's take 101,364 bytes backward, which a block has on compute capability 8.9; with dropout they take
/// 102,388, which it has not. Refused is the pass whose kernels do not fit, before any of them is launched.
#[test]
fn a_block_of_99_kb_has_room_for_wide_heads_but_for_those_with_dropout() {
    if std::env::var_os("PROMPTMIX_TEST_DEVICE").is_some_and(|device| device == "cuda") {
        println!("skipped: the virtual GPU alone can be of another kind");
        return;
    }
    // The virtual GPU's kind is that of a process.
    if std::env::var("VGPU_PROFILE").as_deref() != Ok("sm_89") {
        let name = "streams::a_block_of_99_kb_has_room_for_wide_heads_but_for_those_with_dropout";
        let mut again = std::process::Command::new(std::env::current_exe().expect("this program"));
        let end = again.args(["--exact", name, "--nocapture"]).env("VGPU_PROFILE", "sm_89").output();
        let end = end.expect("an end");
        let printed =
            String::from_utf8_lossy(&end.stdout).into_owned() + &String::from_utf8_lossy(&end.stderr);
        assert!(end.status.success() && printed.contains("1 passed"), "{printed}");
        return;
    }
    let Some(program) = program() else { return };
    let (rows, heads, max_distance) = (70, Heads { count: 1, width: 128 }, 128);
    let total = heads.total();
    let sequences = Sequences::new(&program.stream, &[rows]).expect("a sequence");
    let halves =
        |count: usize| program.stream.clone_htod(&vec![bf16::from_f32(0.01); count]).expect("an upload");
    let floats = |count: usize| program.stream.clone_htod(&vec![f32::NAN; count]).expect("an upload");
    let (qkv, mut o, d_o, mut d_qkv) =
        (halves(rows * 3 * total), halves(rows * total), halves(rows * total), halves(rows * 3 * total));
    let (mut log_sum_exp, mut delta) = (floats(rows), floats(rows));
    let bias = program.stream.clone_htod(&vec![0.5_f32; 2 * max_distance + 1]).expect("an upload");
    let plain =
        Attention { bias: Some((&bias, max_distance)), ..Attention::of_itself(sequences.rows(), heads) };
    let step = DropoutStep::new(0.1, 1, &[1]).expect("dropout");
    let dropout = DeviceDropout::new(&program.stream, &step).expect("dropout");
    let mask = dropout.mask(Site::new(Side::Encoder, SiteKind::SelfAttention, 0));
    let input = AttentionInput::Packed(&qkv);
    let mut backward = |attention: Attention<'_>| {
        attention.forward(&program.kernels, input, &mut o, &mut log_sum_exp).expect("forward fits");
        let launched = program.kernels.launches();
        let from = AttentionBackward {
            input,
            o: &o,
            log_sum_exp: &log_sum_exp,
            d_o: &d_o,
            delta: Some(Delta::Scratch(&mut delta)),
        };
        let gradient = AttentionGradient { of_input: InputGradient::Packed(&mut d_qkv), inner: None };
        let end = attention.backward(&program.kernels, from, gradient);
        (end, program.kernels.launches() - launched)
    };
    let (end, launches) = backward(plain);
    end.expect("heads without dropout fit");
    assert_eq!(launches, 2);
    let (end, launches) = backward(Attention { mask, ..plain });
    let said = end.expect_err("with dropout they do not").to_string();
    assert!(said.contains("attention_backward_dropped_128") && said.contains("102388"), "{said}");
    assert!(said.contains("101376") && said.contains("no dropout"), "{said}");
    assert_eq!(launches, 0);
    program.stream.synchronize().expect("a healthy device");
}
