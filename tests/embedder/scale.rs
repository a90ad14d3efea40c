//! The softmax scale. Of a power of two it is exact: scores scaled by 1/4 are those of queries that are a quarter as large, so that
//! every kernel must give the same bits both ways, but for d_q, which is a quarter of the other.

use cudarc::driver::{CudaSlice, DeviceRepr};
use half::bf16;
use promptmix::backend::{DropoutStep, Heads, Side, Site, SiteKind};
use promptmix::cuda::attention::{
    Attention, AttentionBackward, AttentionGradient, AttentionInput, Delta, InputGradient,
};
use promptmix::cuda::{DeviceDropout, ReadOperand, Sequences, WriteOperand};

use crate::launching::{Program, program};

const SCALE: f32 = 0.25;

trait Number: DeviceRepr + Copy + Into<f64> + Unpin {
    fn of(value: f64) -> Self;
}
impl Number for bf16 {
    fn of(value: f64) -> Self {
        Self::from_f64(value)
    }
}
impl Number for f32 {
    fn of(value: f64) -> Self {
        value as Self
    }
}

/// What both passes write.
#[derive(PartialEq)]
struct Written {
    o: Vec<f64>,
    log_sum_exp: Vec<f64>,
    d_qkv: Vec<f64>,
    inner: Vec<f64>,
}

/// Both passes with q times `of_queries`.
fn passes<T: Number>(program: &Program, attention: &Attention<'_>, of_queries: f64) -> Written
where
    CudaSlice<T>: ReadOperand + WriteOperand,
{
    let (rows, total) = (attention.queries.count(), attention.heads.total());
    let up = |values: Vec<f64>| -> CudaSlice<T> {
        program.stream.clone_htod(&values.into_iter().map(T::of).collect::<Vec<T>>()).expect("an upload")
    };
    let poison = |count: usize| program.stream.clone_htod(&vec![f32::NAN; count]).expect("an upload");
    let (mut qkv, d_o) = (program.numbers(rows * 3 * total, 1).0, up(program.numbers(rows * total, 2).0));
    for (i, number) in qkv.iter_mut().enumerate() {
        *number *= if i % (3 * total) < total { of_queries } else { 1.0 };
    }
    let (qkv, mut o, mut d_qkv) =
        (up(qkv), up(vec![f64::NAN; rows * total]), up(vec![f64::NAN; rows * 3 * total]));
    let heads = attention.heads.count;
    let (mut log_sum_exp, mut delta, mut inner) =
        (poison(rows * heads), poison(rows * heads), poison(rows * 2 * heads));
    let input = AttentionInput::Packed(&qkv);
    attention.forward(&program.kernels, input, &mut o, &mut log_sum_exp).expect("a launch");
    let from = AttentionBackward {
        input,
        o: &o,
        log_sum_exp: &log_sum_exp,
        d_o: &d_o,
        delta: Some(Delta::Scratch(&mut delta)),
    };
    let of_input = InputGradient::Packed(&mut d_qkv);
    let gradient = AttentionGradient { of_input, inner: Some(&mut inner) };
    attention.backward(&program.kernels, from, gradient).expect("a launch");
    let down = |slice: &CudaSlice<T>| -> Vec<f64> {
        program.stream.clone_dtoh(slice).expect("a download").into_iter().map(Into::into).collect()
    };
    let floats = |slice: &CudaSlice<f32>| -> Vec<f64> {
        program.stream.clone_dtoh(slice).expect("a download").into_iter().map(f64::from).collect()
    };
    Written { o: down(&o), log_sum_exp: floats(&log_sum_exp), d_qkv: down(&d_qkv), inner: floats(&inner) }
}

fn compare<T: Number>(program: &Program, case: &str, attention: &Attention<'_>)
where
    CudaSlice<T>: ReadOperand + WriteOperand,
{
    let total = attention.heads.total();
    let mut scaled = passes::<T>(program, &Attention { softmax_scale: SCALE, ..*attention }, 1.0);
    let plain = passes::<T>(program, attention, f64::from(SCALE));
    let unscaled = passes::<T>(program, attention, 1.0);
    for (i, number) in scaled.d_qkv.iter_mut().enumerate() {
        // d_q = scale·ds k, of queries a quarter as large ds k.
        *number /= if i % (3 * total) < total { f64::from(SCALE) } else { 1.0 };
    }
    let parts = [
        ("o", &scaled.o, &plain.o, &unscaled.o),
        ("log_sum_exp", &scaled.log_sum_exp, &plain.log_sum_exp, &unscaled.log_sum_exp),
        ("d_qkv", &scaled.d_qkv, &plain.d_qkv, &unscaled.d_qkv),
        ("inner", &scaled.inner, &plain.inner, &unscaled.inner),
    ];
    for (what, scaled, plain, unscaled) in parts {
        assert!(scaled.iter().all(|number| number.is_finite()), "{case}: {what}");
        assert_eq!(scaled, plain, "{case}: {what}");
        assert_ne!(scaled, unscaled, "{case}: the scale changes {what}");
    }
}

#[test]
fn scaled_scores_are_those_of_scaled_queries() {
    let Some(program) = program() else { return };
    let step = DropoutStep::new(0.5, 1, &[42]).expect("dropout");
    let dropout = DeviceDropout::new(&program.stream, &step).expect("dropout");
    let mask = dropout.mask(Site::new(Side::Decoder, SiteKind::SelfAttention, 0));
    let long = Sequences::new(&program.stream, &[5, 70, 31]).expect("sequences");
    let short = Sequences::new(&program.stream, &[5, 16, 3]).expect("sequences");
    for width in [16, 72] {
        let heads = Heads { count: 2, width };
        let bias = program.numbers(heads.count * 17, 7).0.into_iter().map(|value| value as f32);
        let bias = program.stream.clone_htod(&bias.collect::<Vec<f32>>()).expect("an upload");
        for (kind, sequences) in [("long", &long), ("short", &short)] {
            let causal = Attention {
                bias: Some((&bias, 8)),
                causal: true,
                ..Attention::of_itself(sequences.rows(), heads)
            };
            let case = format!("{kind}, heads {width} wide");
            compare::<bf16>(&program, &case, &causal);
            compare::<bf16>(&program, &format!("{case}, with dropout"), &Attention { mask, ..causal });
            compare::<f32>(&program, &format!("{case}, in f32"), &causal);
        }
    }
}

#[test]
fn a_scale_that_is_none_is_refused() {
    let Some(program) = program() else { return };
    let sequences = Sequences::new(&program.stream, &[3]).expect("a sequence");
    let qkv = program.numbers(3 * 24, 1).1;
    let mut o = program.stream.alloc_zeros::<bf16>(3 * 8).expect("room");
    let mut log_sum_exp = program.stream.alloc_zeros::<f32>(3).expect("room");
    for scale in [0.0, -1.0, f32::NAN, f32::INFINITY] {
        let heads = Heads { count: 1, width: 8 };
        let attention = Attention { softmax_scale: scale, ..Attention::of_itself(sequences.rows(), heads) };
        let input = AttentionInput::Packed(&qkv);
        let refused = attention.forward(&program.kernels, input, &mut o, &mut log_sum_exp);
        let said = refused.expect_err("no scale").to_string();
        assert!(said.contains("softmax_scale: expected a finite number above zero"), "{said}");
    }
    assert_eq!(program.kernels.launches(), 0);
}
