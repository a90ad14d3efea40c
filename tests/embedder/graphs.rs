//! A capture of the caller's own: replayed over other lengths than it was made with, it gives bit for bit what launches one by one
//! give over sequences of those lengths.

use cudarc::driver::sys::{CUgraphInstantiate_flags, CUstreamCaptureMode};
use cudarc::driver::{CudaContext, CudaGraph, CudaSlice};
use half::bf16;
use promptmix::backend::{DropoutStep, Heads, OptimizerStep, Side, Site, SiteKind};
use promptmix::cuda::attention::{Attention, AttentionInput, Columns};
use promptmix::cuda::linear::{Epilogue, Linear, TileConfig, TileShape};
use promptmix::cuda::norm::{FinalNorm, NormedRows};
use promptmix::cuda::optimizer::{AdamW, StepOperands};
use promptmix::cuda::{DeviceDropout, DropoutMask, Kernels, PackedRows, PairedSequences, Sequences};

use crate::launching::{Program, program};

const HEADS: Heads = Heads { count: 2, width: 16 };
const WIDTH: usize = 32;
const EXAMPLES: usize = 4;
const CAPACITY: usize = 200;
const TRAINED: usize = 1_500;
/// The same tiles for the capacity and for fewer rows, so that sums have one order.
const TILES: TileConfig = TileConfig { shape: TileShape::Small, split_k: 1 };

/// More than a tile of one, several of another, none, all of the room, and none at all but one row.
const BATCHES: [[usize; EXAMPLES]; 10] = [
    [5, 70, 31, 1],
    [0, 0, 0, 1],
    [50, 50, 50, 50],
    [200, 0, 0, 0],
    [0, 64, 0, 65],
    [1, 1, 1, 1],
    [0, 0, 199, 0],
    [128, 0, 64, 8],
    [63, 65, 2, 0],
    [17, 3, 90, 33],
];

fn upload<T: cudarc::driver::DeviceRepr>(program: &Program, values: &[T]) -> CudaSlice<T> {
    program.stream.clone_htod(values).expect("an upload")
}

/// What a step reads and writes, with room for every batch.
struct Step {
    qkv: CudaSlice<bf16>,
    bias: CudaSlice<f32>,
    weight: CudaSlice<bf16>,
    x: CudaSlice<f32>,
    o: CudaSlice<bf16>,
    log_sum_exp: CudaSlice<f32>,
    x_next: CudaSlice<f32>,
    partials: CudaSlice<f32>,
    h: CudaSlice<bf16>,
    values: CudaSlice<f32>,
    gradient: CudaSlice<f32>,
    first: CudaSlice<f32>,
    second: CudaSlice<f32>,
}

impl Step {
    fn new(program: &Program, rows: usize) -> Self {
        let float = |count: usize, key: usize| -> Vec<f32> {
            (0..count).map(|i| ((i + key) * 2_654_435_761 % 1_009) as f32 / 504.5 - 1.0).collect()
        };
        // All rows of the capacity, so that row i is the same for every size.
        let qkv = program.numbers(rows * 3 * WIDTH, 1).1;
        Self {
            qkv,
            bias: upload(program, &float(HEADS.count * 17, 5)),
            weight: program.numbers(WIDTH * WIDTH, 7).1,
            x: upload(program, &float(rows * WIDTH, 9)),
            o: upload(program, &vec![bf16::NAN; rows * WIDTH]),
            log_sum_exp: upload(program, &vec![f32::NAN; rows * HEADS.count]),
            x_next: upload(program, &vec![f32::NAN; rows * WIDTH]),
            partials: upload(program, &vec![f32::NAN; rows]),
            h: upload(program, &vec![bf16::NAN; rows * WIDTH]),
            values: upload(program, &float(TRAINED, 11)),
            gradient: upload(program, &float(TRAINED, 13)),
            first: upload(program, &[0.0; TRAINED]),
            second: upload(program, &[0.0; TRAINED]),
        }
    }

    /// Attention, its output projection with the residual, a norm, and a step of AdamW.
    fn launch(
        &mut self,
        kernels: &Kernels,
        rows: PackedRows<'_>,
        linear: &mut Linear<'_>,
        adamw: &mut AdamW,
    ) -> promptmix::Result<()> {
        let attention = Attention { bias: Some((&self.bias, 8)), ..Attention::of_itself(rows, HEADS) };
        attention.forward(kernels, AttentionInput::Packed(&self.qkv), &mut self.o, &mut self.log_sum_exp)?;
        let epilogue = Epilogue::Add {
            mask: DropoutMask::default(),
            x: &self.x,
            x_next: &mut self.x_next,
            copy: None,
            partials_next: &mut self.partials,
        };
        linear.forward(kernels, &self.o, &self.weight, epilogue)?;
        let mask = DropoutMask::default();
        FinalNorm { rows, width: WIDTH, epsilon: 1e-6, norm_weight: None, scale: 1.0, mask }.forward(
            kernels,
            NormedRows { x: &self.x_next, partials: &self.partials },
            &mut self.h,
        )?;
        let of = StepOperands {
            values: &mut self.values,
            gradient: &self.gradient,
            first_moment: &mut self.first,
            second_moment: &mut self.second,
        };
        adamw.step(kernels, of)
    }

    fn poison(&mut self, program: &Program) {
        let rows = self.partials.len();
        self.o = upload_into(program, &mut self.o, bf16::NAN, rows * WIDTH);
        self.h = upload_into(program, &mut self.h, bf16::NAN, rows * WIDTH);
    }
}

/// Fills a slice where it lies, since a graph knows its address; and gives it back.
fn upload_into(program: &Program, slice: &mut CudaSlice<bf16>, value: bf16, count: usize) -> CudaSlice<bf16> {
    program.stream.memcpy_htod(&vec![value; count], slice).expect("an upload");
    std::mem::replace(slice, program.stream.alloc_zeros(1).expect("room"))
}

pub fn capture(
    program: &Program,
    work: impl FnOnce() -> promptmix::Result<()>,
) -> promptmix::Result<CudaGraph> {
    let mode = CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    program.stream.begin_capture(mode).expect("a capture");
    let done = work();
    let graph = program.stream.end_capture(CUgraphInstantiate_flags(0));
    done?;
    Ok(graph.expect("the end of a capture").expect("a graph"))
}

fn offsets(lengths: &[usize]) -> Vec<i32> {
    let mut offsets = vec![0];
    for length in lengths {
        offsets.push(offsets.last().copied().unwrap_or(0) + *length as i32);
    }
    offsets
}

fn optimizer(program: &Program) -> AdamW {
    let mut adamw = AdamW::vector(&program.kernels, TRAINED).expect("an optimizer");
    adamw.schedule(&program.kernels, &[OptimizerStep::new(0.05, 0.01)]).expect("a schedule");
    adamw
}

/// bf16 by their bits, so that NaN is equal to itself.
fn bits(program: &Program, slice: &CudaSlice<bf16>, count: usize) -> Vec<u16> {
    let values = program.stream.clone_dtoh(slice).expect("a download");
    values[..count].iter().map(|value| value.to_bits()).collect()
}

#[test]
fn a_callers_capture_serves_any_lengths() {
    let Some(program) = program() else { return };
    let kernels = &program.kernels;
    let sequences = Sequences::with_capacity(&program.stream, EXAMPLES, CAPACITY).expect("room");
    let rows = sequences.rows();
    let mut linear = Linear::with_tiles(kernels, rows, WIDTH, WIDTH, [TILES; 2]).expect("a product");
    let (mut adamw, mut step) = (optimizer(&program), Step::new(&program, CAPACITY));
    let mut cu_seqlens = upload(&program, &[0_i32; EXAMPLES + 1]);
    let mut work = |step: &mut Step, cu_seqlens: &CudaSlice<i32>| {
        sequences.update_on_device(kernels, cu_seqlens)?;
        step.launch(kernels, rows, &mut linear, &mut adamw)
    };
    kernels.preload(|| work(&mut step, &cu_seqlens)).expect("kernels");
    let launched = kernels.launches();
    let graph = capture(&program, || work(&mut step, &cu_seqlens)).expect("a graph");
    assert_eq!(kernels.launches() - launched, 7, "two of the lengths, three ops, and two of AdamW");
    // Fresh runs have an optimizer of their own, which takes as many steps.
    let (mut plain_adamw, mut plain) = (optimizer(&program), Step::new(&program, CAPACITY));
    for lengths in BATCHES {
        let total: usize = lengths.iter().sum();
        step.poison(&program);
        program.stream.memcpy_htod(&offsets(&lengths), &mut cu_seqlens).expect("an upload");
        graph.launch().expect("a replay");
        sequences.refused().expect("lengths that fit");

        let real: Vec<usize> = lengths.into_iter().filter(|&length| length > 0).collect();
        let fixed = Sequences::new(&program.stream, &real).expect("sequences");
        let fresh = Step::new(&program, total);
        let (values, first, second) = (plain.values, plain.first, plain.second);
        plain = Step { values, first, second, ..fresh };
        let mut linear =
            Linear::with_tiles(kernels, fixed.rows(), WIDTH, WIDTH, [TILES; 2]).expect("a product");
        plain.launch(kernels, fixed.rows(), &mut linear, &mut plain_adamw).expect("launches");

        let (o, h) = (bits(&program, &step.o, CAPACITY * WIDTH), bits(&program, &step.h, CAPACITY * WIDTH));
        assert_eq!(o[..total * WIDTH], bits(&program, &plain.o, total * WIDTH), "o of {lengths:?}");
        assert_eq!(h[..total * WIDTH], bits(&program, &plain.h, total * WIDTH), "h of {lengths:?}");
        let finite = |bits: &[u16]| bits.iter().all(|&bits| bf16::from_bits(bits).is_finite());
        assert!(finite(&o[..total * WIDTH]) && finite(&h[..total * WIDTH]), "{lengths:?}");
        // What lies after the last sequence was left alone.
        assert!(o[total * WIDTH..].iter().all(|&bits| bits == bf16::NAN.to_bits()), "{lengths:?}");
        let read = |slice: &CudaSlice<f32>| program.stream.clone_dtoh(slice).expect("a download");
        assert_eq!(read(&step.values), read(&plain.values), "values after {lengths:?}");
    }
    let moved = program.stream.clone_dtoh(&step.values).expect("values");
    let start = program.stream.clone_dtoh(&Step::new(&program, 1).values).expect("values");
    assert!(moved.iter().zip(&start).any(|(moved, start)| moved != start), "AdamW moved something");
}

#[test]
fn lengths_of_the_host_are_those_of_the_device() {
    let Some(program) = program() else { return };
    let run = |fill: &dyn Fn(&Sequences)| {
        let sequences = Sequences::with_capacity(&program.stream, EXAMPLES, CAPACITY).expect("room");
        fill(&sequences);
        let mut step = Step::new(&program, CAPACITY);
        let attention = Attention::of_itself(sequences.rows(), HEADS);
        attention
            .forward(&program.kernels, AttentionInput::Packed(&step.qkv), &mut step.o, &mut step.log_sum_exp)
            .expect("a launch");
        bits(&program, &step.o, CAPACITY * WIDTH)
    };
    for lengths in BATCHES {
        let host = run(&|sequences| sequences.update(&lengths).expect("lengths that fit"));
        let cu_seqlens = upload(&program, &offsets(&lengths));
        let device = run(&|sequences| {
            // Whatever was there before leaves no trace.
            sequences.update(&[50; EXAMPLES]).expect("lengths that fit");
            sequences.update_on_device(&program.kernels, &cu_seqlens).expect("a launch");
            sequences.refused().expect("lengths that fit");
        });
        assert_eq!(host, device, "{lengths:?}");
    }
}

#[test]
fn many_examples_are_counted_across_the_block() {
    let Some(program) = program() else { return };
    // More than the block's threads, twice, and a tile each, or none.
    let lengths: Vec<usize> = (0..600).map(|i| [0, 1, 3, 0, 70][i % 5]).collect();
    let rows: usize = lengths.iter().sum();
    let qkv = program.numbers(rows * 24, 3).1;
    let run = |sequences: &Sequences| {
        let mut o = upload(&program, &vec![bf16::NAN; rows * 8]);
        let mut log_sum_exp = upload(&program, &vec![f32::NAN; rows]);
        Attention::of_itself(sequences.rows(), Heads { count: 1, width: 8 })
            .forward(&program.kernels, AttentionInput::Packed(&qkv), &mut o, &mut log_sum_exp)
            .expect("a launch");
        bits(&program, &o, rows * 8)
    };
    let real: Vec<usize> = lengths.iter().copied().filter(|&length| length > 0).collect();
    let expected = run(&Sequences::new(&program.stream, &real).expect("sequences"));
    let sequences = Sequences::with_capacity(&program.stream, lengths.len(), rows).expect("room");
    let cu_seqlens = upload(&program, &offsets(&lengths));
    sequences.update_on_device(&program.kernels, &cu_seqlens).expect("a launch");
    assert_eq!(run(&sequences), expected);
}

#[test]
fn lengths_beyond_the_capacity_are_refused_or_cut_off() {
    let Some(program) = program() else { return };
    let sequences = Sequences::with_capacity(&program.stream, 2, 100).expect("room");
    for (lengths, said) in [(&[60, 41][..], "2 lengths of 101 rows"), (&[1][..], "1 lengths of 1 rows")] {
        let error = sequences.update(lengths).expect_err(said).to_string();
        assert!(error.contains("2 lengths of at most 100 rows") && error.contains(said), "{error}");
    }
    let qkv = program.numbers(100 * 24, 3).1;
    let run = |sequences: &Sequences| {
        let mut o = upload(&program, &vec![bf16::NAN; 100 * 8]);
        let mut log_sum_exp = upload(&program, &vec![f32::NAN; 100]);
        Attention::of_itself(sequences.rows(), Heads { count: 1, width: 8 })
            .forward(&program.kernels, AttentionInput::Packed(&qkv), &mut o, &mut log_sum_exp)
            .expect("a launch");
        bits(&program, &o, 100 * 8)
    };
    // What each is taken for. The virtual GPU reports whatever is touched outside of the room.
    for (wrong, taken) in [
        ([0, 60, 1_000_000], [60, 40]),
        ([0, 200, 300], [100, 0]),
        ([0, 30, 20], [30, 0]),
        ([5, 30, 50], [30, 20]),
        ([0, i32::MIN, i32::MAX], [0, 100]),
        ([i32::MAX, -7, -9], [0, 0]),
    ] {
        let cu_seqlens = upload(&program, &wrong);
        sequences.update_on_device(&program.kernels, &cu_seqlens).expect("a launch");
        let found = run(&sequences);
        let error = sequences.refused().expect_err("a refusal").to_string();
        assert!(error.contains("end by 100"), "{error}");
        sequences.refused().expect("said once");
        sequences.update(&taken).expect("lengths that fit");
        assert_eq!(found, run(&sequences), "{wrong:?}");
    }
    let fixed = Sequences::new(&program.stream, &[2, 3]).expect("sequences");
    let error = fixed.update(&[2, 3]).expect_err("fixed lengths").to_string();
    assert!(error.contains("with_capacity"), "{error}");
    let error = Sequences::with_capacity(&program.stream, 3, 2).expect_err("too little room").to_string();
    assert!(error.contains("3 examples, 2 rows"), "{error}");
}

#[test]
fn pairs_are_refilled_on_both_sides() {
    let Some(program) = program() else { return };
    let pairs = PairedSequences::with_capacity(&program.stream, 3, 100, 150).expect("room");
    let (q, k, v) =
        (program.numbers(100 * 8, 1).1, program.numbers(150 * 8, 2).1, program.numbers(150 * 8, 3).1);
    let run = |pairs: &PairedSequences| {
        let described = pairs.described();
        let attention = Attention {
            queries: described.rows(Side::Decoder),
            keys: described.rows(Side::Encoder),
            ..Attention::of_itself(described.rows(Side::Decoder), Heads { count: 1, width: 8 })
        };
        let (targets, sources) = (pairs.targets() * 8, pairs.sources() * 8);
        let (q, k, v) = (q.slice(..targets), k.slice(..sources), v.slice(..sources));
        let columns = |matrix| Columns { matrix, first: 0, stride: 8 };
        let mut o = upload(&program, &vec![bf16::NAN; targets]);
        let mut log_sum_exp = upload(&program, &vec![f32::NAN; targets / 8]);
        let input = AttentionInput::Apart { q: columns(&q), k: columns(&k), v: columns(&v) };
        attention.forward(&program.kernels, input, &mut o, &mut log_sum_exp).expect("a launch");
        bits(&program, &o, targets)
    };
    for lengths in [[(5, 70), (20, 3), (1, 1)], [(65, 64), (0, 20), (35, 66)], [(0, 1), (0, 0), (1, 149)]] {
        let real: Vec<(usize, usize)> = lengths.into_iter().filter(|&(targets, _)| targets > 0).collect();
        pairs.update(&lengths).expect("lengths that fit");
        let host = run(&pairs);
        pairs.update(&[(30, 30); 3]).expect("lengths that fit");
        let (targets, sources): (Vec<usize>, Vec<usize>) = lengths.into_iter().unzip();
        let (targets, sources) = (upload(&program, &offsets(&targets)), upload(&program, &offsets(&sources)));
        pairs.update_on_device(&program.kernels, &targets, &sources).expect("a launch");
        pairs.refused().expect("lengths that fit");
        assert_eq!(run(&pairs), host, "{lengths:?}");
        // Sources of examples without targets lie before others: a fixed batch has none such.
        if real.len() == 3 {
            let fixed = PairedSequences::new(&program.stream, &real).expect("pairs");
            let expected = run(&fixed);
            assert_eq!(host[..expected.len()], expected, "{lengths:?}");
            assert!(expected.iter().all(|&bits| bf16::from_bits(bits).is_finite()));
        }
    }
}

#[test]
fn what_a_capture_cannot_hold_is_refused_before_it_breaks() {
    let Some(program) = program() else { return };
    let kernels = &program.kernels;
    let sequences = Sequences::with_capacity(&program.stream, 1, 8).expect("room");
    let mut adamw = optimizer(&program);
    let cu_seqlens = upload(&program, &[0, 8]);
    let mut messages = Vec::new();
    let mut refused =
        |result: promptmix::Result<()>| messages.push(result.expect_err("a refusal").to_string());
    kernels.preload(|| sequences.update_on_device(kernels, &cu_seqlens)).expect("kernels");
    let mut step = Step::new(&program, 8);
    let graph = capture(&program, || {
        let attention = Attention::of_itself(sequences.rows(), HEADS);
        let input = AttentionInput::Packed(&step.qkv);
        refused(attention.forward(kernels, input, &mut step.o, &mut step.log_sum_exp));
        refused(sequences.update(&[8]));
        refused(sequences.refused());
        refused(adamw.schedule(kernels, &[OptimizerStep::new(0.1, 0.0)]));
        refused(adamw.reports(kernels).map(drop));
        refused(AdamW::vector(kernels, 8).map(drop));
        refused(Linear::new(kernels, sequences.rows(), 8, 8).map(drop));
        refused(Sequences::new(&program.stream, &[8]).map(drop));
        refused(Sequences::with_capacity(&program.stream, 1, 8).map(drop));
        refused(kernels.preload(|| Ok(())));
        // The capture goes on all the same.
        sequences.update_on_device(kernels, &cu_seqlens)
    });
    graph.expect("a graph").launch().expect("a replay");
    sequences.refused().expect("lengths that fit");
    assert!(messages[0].contains("Kernels::preload"), "{}", messages[0]);
    assert!(
        messages[1..].iter().all(|message| message.contains("before CudaStream::begin_capture")),
        "{messages:#?}"
    );
}

#[test]
fn scratch_and_refilled_rows_belong_to_one_stream() {
    let Some(program) = program() else { return };
    let other = Kernels::new(program.stream.context().new_stream().expect("a stream")).expect("kernels");
    let sequences = Sequences::with_capacity(&program.stream, 1, 8).expect("room");
    let fixed = Sequences::new(&program.stream, &[8]).expect("sequences");
    let mut step = Step::new(&program, 8);
    let refused = |result: promptmix::Result<()>, said: &str| {
        let error = result.expect_err(said).to_string();
        assert!(error.contains(said) && error.contains("its own stream"), "{error}");
    };
    let mut linear = Linear::new(&program.kernels, fixed.rows(), WIDTH, WIDTH).expect("a product");
    let mut z = upload(&program, &[f32::NAN; 8 * WIDTH]);
    let launched = linear.forward(&other, &step.o, &step.weight, Epilogue::Float { z: &mut z });
    refused(launched, "a Linear with its workspace");
    let of = StepOperands {
        values: &mut step.values,
        gradient: &step.gradient,
        first_moment: &mut step.first,
        second_moment: &mut step.second,
    };
    refused(optimizer(&program).step(&other, of), "an AdamW with its counts");
    let attention = Attention::of_itself(sequences.rows(), HEADS);
    let input = AttentionInput::Packed(&step.qkv);
    refused(attention.forward(&other, input, &mut step.o, &mut step.log_sum_exp), "the batch's descriptor");
    let cu_seqlens = upload(&program, &[0, 8]);
    refused(sequences.update_on_device(&other, &cu_seqlens), "the batch's descriptor");
    assert_eq!(other.launches(), 0);
}

#[test]
fn operands_of_another_context_object_are_refused_by_name() {
    let Some(program) = program() else { return };
    let other = CudaContext::new(0).expect("another object of the device's context");
    let stream = other.new_stream().expect("a stream");
    let sequences = Sequences::new(&program.stream, &[8]).expect("sequences");
    let mut step = Step::new(&program, 8);
    let qkv = stream.clone_htod(&[bf16::ONE; 8 * 3 * WIDTH]).expect("an upload");
    let attention = Attention::of_itself(sequences.rows(), HEADS);
    let launched =
        attention.forward(&program.kernels, AttentionInput::Packed(&qkv), &mut step.o, &mut step.log_sum_exp);
    let error = launched.expect_err("another context").to_string();
    assert!(error.contains("qkv: expected memory of the kernels' CudaContext"), "{error}");
    let mut o = stream.clone_htod(&[bf16::ONE; 8 * WIDTH]).expect("an upload");
    let launched =
        attention.forward(&program.kernels, AttentionInput::Packed(&step.qkv), &mut o, &mut step.log_sum_exp);
    let error = launched.expect_err("another context").to_string();
    assert!(error.contains("o: expected memory of the kernels' CudaContext"), "{error}");
    assert_eq!(program.kernels.launches(), 0);
}

/// With q and k of zeros and v of ones o is a row's share of keys that are kept, times the scale: nothing but its mask.
#[test]
fn sequences_drop_by_their_number_fresh_or_refilled() {
    let Some(program) = program() else { return };
    let (lengths, total) = ([24, 24, 24], HEADS.total());
    let rows = lengths.iter().sum::<usize>();
    let row: Vec<bf16> = [vec![bf16::ZERO; 2 * total], vec![bf16::ONE; total]].concat();
    let qkv = upload(&program, &row.repeat(rows));
    let step = DropoutStep::new(0.5, 1, &[42]).expect("dropout");
    let dropout = DeviceDropout::new(&program.stream, &step).expect("dropout");
    let mask = dropout.mask(Site::new(Side::Decoder, SiteKind::SelfAttention, 0));
    let attend = |sequences: &Sequences| {
        let mut o = upload(&program, &vec![bf16::NAN; rows * total]);
        let mut log_sum_exp = upload(&program, &vec![f32::NAN; rows * HEADS.count]);
        let attention = Attention { mask, ..Attention::of_itself(sequences.rows(), HEADS) };
        let input = AttentionInput::Packed(&qkv);
        attention.forward(&program.kernels, input, &mut o, &mut log_sum_exp).expect("a launch");
        bits(&program, &o, rows * total)
    };
    let fresh = attend(&Sequences::new(&program.stream, &lengths).expect("sequences"));
    let refilled = Sequences::with_capacity(&program.stream, lengths.len(), rows).expect("room");
    refilled.update(&lengths).expect("lengths that fit");
    assert_eq!(attend(&refilled), fresh);
    assert!(fresh.iter().all(|&bits| bf16::from_bits(bits).is_finite()));
    let of: Vec<&[u16]> = fresh.chunks(lengths[0] * total).collect();
    assert!(of[0] != of[1] && of[0] != of[2] && of[1] != of[2], "two sequences drop alike");
}
