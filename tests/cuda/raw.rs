//! Kernels launched alone, on cudarc's own buffers.

use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaSlice, CudaStream};
use half::bf16;
use promptmix::backend::{Device as _, Heads};
use promptmix::cuda::attention::{
    Attention, AttentionBackward, AttentionGradient, AttentionInput, Delta, InputGradient,
};
use promptmix::cuda::{Kernels, Precision, Sequences};
use vgpu::check::Check;

use crate::device::{device, numbers};

#[test]
fn attention_on_buffers_of_ones_own() {
    attention_over([1, 65, 30]);
    // Few enough rows for a warp to hold.
    attention_over([1, 16, 15]);
}

fn attention_over(lengths: [usize; 3]) {
    let Some(device) = device(Precision::Bf16) else { return };
    let kernels = device.cuda.kernels();
    let stream = kernels.stream();
    let heads = Heads { count: 2, width: 16 };
    let sequences = Sequences::new(stream, &lengths).expect("three sequences");
    let (rows, total) = (sequences.count(), heads.total());
    assert_eq!(rows, lengths.iter().sum::<usize>());
    let up = |values: &[f64]| {
        let values: Vec<bf16> = values.iter().map(|&value| bf16::from_f64(value)).collect();
        stream.clone_htod(&values).expect("an upload")
    };
    let values = numbers(1, rows * 3 * total, 0.5);
    let (qkv, d_o) = (up(&values), up(&numbers(2, rows * total, 1.0)));
    let poison = |count: usize| up(&vec![f64::NAN; count]);
    let floats = || stream.clone_htod(&vec![f32::NAN; rows * heads.count]).expect("an upload");
    let (mut o, mut log_sum_exp, mut delta) = (poison(rows * total), floats(), floats());
    let mut d_qkv = poison(rows * 3 * total);
    let attention = Attention { causal: true, ..Attention::of_itself(sequences.rows(), heads) };
    let input = AttentionInput::Packed(&qkv);
    attention.forward(kernels, input, &mut o, &mut log_sum_exp).expect("forward");
    let (o_known, sums) = (&o, &log_sum_exp);
    let needed = attention.needs_delta(Precision::Bf16);
    assert_eq!(needed, lengths.iter().any(|&length| length > 16));
    let room: Option<Delta<'_>> = if needed { Some(Delta::Scratch(&mut delta)) } else { None };
    let from = AttentionBackward { input, o: o_known, log_sum_exp: sums, d_o: &d_o, delta: room };
    let gradient = AttentionGradient { of_input: InputGradient::Packed(&mut d_qkv), inner: None };
    attention.backward(kernels, from, gradient).expect("backward");
    let said = stream.clone_dtoh(&o).expect("o");
    let gradient = stream.clone_dtoh(&d_qkv).expect("d_qkv");
    device.cuda.synchronize().expect("a healthy device");

    // A row that sees only itself repeats its own v: the first of every sequence.
    let mut first = 0;
    for length in lengths {
        for column in 0..total {
            let v = values[first * 3 * total + 2 * total + column];
            assert!((said[first * total + column].to_f64() - v).abs() <= v.abs() / 256.0, "row {first}");
        }
        first += length;
    }
    assert!(
        gradient.iter().all(|value| value.is_finite()) && gradient.iter().any(|value| value.to_f32() != 0.0)
    );

    let longer = poison(rows * 3 * total + 8);
    let askew = longer.slice(1..=rows * 3 * total);
    let refused = attention.forward(kernels, AttentionInput::Packed(&askew), &mut o, &mut log_sum_exp);
    let said = refused.expect_err("rows that begin on no 16 bytes").to_string();
    assert!(said.contains("qkv: expected an address that is a multiple of 16 bytes"), "{said}");

    let wrong = Sequences::new(stream, &[rows - 1]).expect("a sequence");
    let fewer = Attention { queries: wrong.rows(), keys: wrong.rows(), ..attention };
    let fitting = qkv.slice(0..(rows - 1) * 3 * total);
    let refused = fewer.forward(kernels, AttentionInput::Packed(&fitting), &mut o, &mut log_sum_exp);
    assert!(
        refused
            .expect_err("another length")
            .to_string()
            .contains(&format!("o: expected {}", (rows - 1) * total)),
        "names the operand"
    );
    assert!(Sequences::new(stream, &[3, 0]).is_err());
}

/// A context that tracks events, as cudarc's do unless told otherwise, with two streams.
fn two_streams() -> Option<(vgpu::Gpu, Arc<CudaContext>, [Arc<CudaStream>; 2])> {
    if !crate::kernels::are_built() {
        return None;
    }
    let gpu = vgpu::load().expect("a GPU, virtual or real");
    let context = CudaContext::new(0).expect("a context");
    let streams = [(); 2].map(|()| context.new_stream().expect("a stream"));
    assert!(context.is_managing_stream_synchronization());
    Some((gpu, context, streams))
}

const HEADS: Heads = Heads { count: 2, width: 16 };
const ROWS: usize = 70;
const NUMBERS: usize = ROWS * HEADS.count * HEADS.width;

/// What the launch reads and writes, which belongs to one stream.
struct Own {
    sequences: Sequences,
    qkv: CudaSlice<bf16>,
    o: CudaSlice<bf16>,
    log_sum_exp: CudaSlice<f32>,
}

impl Own {
    /// Written by copies and fills on that stream, which nobody waits for.
    fn new(stream: &Arc<CudaStream>) -> Self {
        let values: Vec<bf16> = numbers(1, 3 * NUMBERS, 0.5).into_iter().map(bf16::from_f64).collect();
        Self {
            sequences: Sequences::new(stream, &[1, ROWS - 1]).expect("two sequences"),
            qkv: stream.clone_htod(&values).expect("an upload"),
            o: stream.alloc_zeros(NUMBERS).expect("a fill"),
            log_sum_exp: stream.alloc_zeros(ROWS * HEADS.count).expect("a fill"),
        }
    }

    /// Attention on the stream of `kernels`.
    fn launch(&mut self, kernels: &Kernels) -> promptmix::Result<()> {
        let attention = Attention { causal: true, ..Attention::of_itself(self.sequences.rows(), HEADS) };
        let input = AttentionInput::Packed(&self.qkv);
        attention.forward(kernels, input, &mut self.o, &mut self.log_sum_exp)
    }
}

/// cudarc orders the work of a context's streams by events that its slices carry: a launch waits for what other streams did
/// with its operands, and what they do with them afterwards waits for the launch. The virtual GPU reports where nothing
/// orders two streams on the same bytes.
#[test]
fn a_launch_is_ordered_with_the_work_of_another_stream_on_its_operands() {
    let Some((gpu, _context, [a, b])) = two_streams() else { return };
    let kernels = Kernels::new(b).expect("kernels");
    for _ in 0..3 {
        let mut own = Own::new(&a);
        // Reads and writes on B what copies and fills on A wrote.
        own.launch(&kernels).expect("a launch after the fills");
        // Read back and written over on A, while B may not have begun yet.
        let o = a.clone_dtoh(&own.o).expect("a copy after the launch");
        let qkv = vec![bf16::ZERO; 3 * NUMBERS];
        a.memcpy_htod(&qkv, &mut own.qkv).expect("a copy after the launch");
        a.memset_zeros(&mut own.log_sum_exp).expect("a fill after the launch");
        // And on B again what A wrote meanwhile.
        own.launch(&kernels).expect("a launch after the copies");
        let again = a.clone_dtoh(&own.o).expect("a copy after the launch");
        a.synchronize().expect("a healthy device");
        assert!(gpu.take_reports().is_empty(), "no two streams met");
        let v = &numbers(1, 3 * NUMBERS, 0.5)[2 * HEADS.total()..3 * HEADS.total()];
        for (found, expected) in o.iter().zip(v) {
            assert!(
                (found.to_f64() - expected).abs() <= expected.abs() / 256.0,
                "the first row repeats its v"
            );
        }
        assert!(again.iter().all(|value| value.to_f32() == 0.0), "attention over zeros");
    }
}

/// Without events the same work is not ordered, and the virtual GPU says so: the test above would see it.
#[test]
fn without_events_two_streams_meet() {
    let Some((gpu, context, [a, b])) = two_streams() else { return };
    if !gpu.is_virtual() {
        return;
    }
    // SAFETY: what the streams then do at once is numbers that nobody reads.
    unsafe { context.disable_event_tracking() };
    let kernels = Kernels::new(b).expect("kernels");
    // Another test that waits for the whole device in between orders the two by chance.
    let met = (0..20).any(|_| {
        let launched = Own::new(&a).launch(&kernels);
        let reports = gpu.take_reports();
        assert!(reports.iter().all(|report| report.check == Check::StreamRace), "{reports:?}");
        launched.is_err() && !reports.is_empty()
    });
    assert!(met, "a launch beside the fills of its operands");
    context.synchronize().expect("a healthy device");
    gpu.take_reports();
}

#[test]
fn memory_of_another_context_is_refused_by_name() {
    let Some((_gpu, _context, [a, b])) = two_streams() else { return };
    let kernels = Kernels::new(b).expect("kernels");
    let mut own = Own::new(&a);
    let other = CudaContext::new_non_primary(0, 0).expect("another context");
    let stream = other.new_stream().expect("a stream");
    let attention = Attention { causal: true, ..Attention::of_itself(own.sequences.rows(), HEADS) };
    let foreign: CudaSlice<bf16> = stream.alloc_zeros(3 * NUMBERS).expect("a fill");
    let before = kernels.launches();
    let input = AttentionInput::Packed(&foreign);
    let refused = attention.forward(&kernels, input, &mut own.o, &mut own.log_sum_exp);
    let said = refused.expect_err("qkv of another context").to_string();
    assert!(said.contains("qkv: expected memory of the kernels' CudaContext"), "{said}");
    let mut foreign: CudaSlice<f32> = stream.alloc_zeros(ROWS * HEADS.count).expect("a fill");
    let input = AttentionInput::Packed(&own.qkv);
    let refused = attention.forward(&kernels, input, &mut own.o, &mut foreign);
    let said = refused.expect_err("sums of another context").to_string();
    assert!(said.contains("log_sum_exp: expected memory of the kernels' CudaContext"), "{said}");
    assert_eq!(kernels.launches(), before, "nothing was launched");
    own.launch(&kernels).expect("a launch on the context's own");
    a.synchronize().expect("a healthy device");
}
