//! The rules of promptmix.h beside what the launchers launch, case by case: blocks, threads and shared memory.

use std::collections::BTreeMap;

use half::bf16;
use promptmix::backend::{
    Activation, Batch, DropoutStep, Example, Heads, Mixing, Objective, OptimizerStep, Scorer, Side, Site,
    SiteKind, StateLayout,
};
use promptmix::cuda::attention::{
    Attention, AttentionBackward, AttentionGradient, AttentionInput, Columns, ColumnsMut, Delta,
    InputGradient,
};
use promptmix::cuda::cross_attention::{
    AbsorbedBackward, AbsorbedCrossAttention, AbsorbedForward, AbsorbedGradient, AbsorbedShape,
    QueryGradient, Wide,
};
use promptmix::cuda::cudarc::driver::{CudaContext, CudaSlice, CudaViewMut, DeviceRepr, ValidAsZeroBits};
use promptmix::cuda::decode::DecodeStep;
use promptmix::cuda::feed_forward::{EachRow, Gate};
use promptmix::cuda::linear::{Epilogue, Linear};
use promptmix::cuda::loss::{CrossEntropy, CrossEntropyRows, HiddenGradient, LossScratch, Plan};
use promptmix::cuda::mix::{FrozenSources, MixBackward, MixForward, PromptMix};
use promptmix::cuda::norm::{FinalNorm, FinalNormGradient, NormedRows};
use promptmix::cuda::optimizer::{AdamW, StepOperands};
use promptmix::cuda::{
    DeviceDropout, DropoutMask, Kernels, LabelRows, Packed, PairedSequences, Precision, ReadOperand,
    Sequences, WriteOperand, devices,
};

use super::c;

/// A launch: kernel, blocks, threads, bytes of shared memory.
type Launch = (String, u64, u32, u32);

/// The same without the kernel.
type Size = (u64, u32, u32);

/// What launchers launch, by the virtual GPU's counters.
struct Watched {
    kernels: Kernels,
    cases: BTreeMap<&'static str, Vec<Launch>>,
    gpu: vgpu::Gpu,
}

impl Watched {
    fn zeros<T: DeviceRepr + ValidAsZeroBits>(&self, count: usize) -> CudaSlice<T> {
        self.kernels.stream().alloc_zeros(count.max(1)).expect("memory")
    }

    fn counted(&self) -> BTreeMap<String, Size> {
        let counters = self.gpu.summary().expect("the virtual GPU").counters;
        let one =
            |of: vgpu::counters::Counters| (of.kernel, (of.blocks, of.block_threads, of.dynamic_shared));
        counters.into_iter().map(one).collect()
    }

    fn case(&mut self, name: &'static str, launch: impl FnOnce(&Self)) {
        let before = self.counted();
        launch(self);
        let launched = self.counted().into_iter().filter_map(|(kernel, (blocks, threads, shared))| {
            let blocks = blocks - before.get(&kernel).map_or(0, |before| before.0);
            (blocks > 0).then_some((kernel, blocks, threads, shared))
        });
        let launched = launched.collect();
        self.cases.insert(name, launched);
    }

    /// Both passes.
    fn attend<T: DeviceRepr + ValidAsZeroBits>(&self, attention: &Attention<'_>)
    where
        CudaSlice<T>: ReadOperand + WriteOperand,
    {
        let (queries, keys) = (attention.queries.count(), attention.keys.count());
        let (total, count) = (attention.heads.total(), attention.heads.count);
        let matrix = |rows: usize| self.zeros::<T>(rows * total);
        let (q, k, v, d_o, mut o) =
            (matrix(queries), matrix(keys), matrix(keys), matrix(queries), matrix(queries));
        let (mut d_q, mut d_k, mut d_v) = (matrix(queries), matrix(keys), matrix(keys));
        let (mut log_sum_exp, mut delta) = (self.zeros(queries * count), self.zeros(queries * count));
        let [q, k, v] = [&q, &k, &v].map(|matrix| Columns { matrix, first: 0, stride: total });
        let input = AttentionInput::Apart { q, k, v };
        attention.forward(&self.kernels, input, &mut o, &mut log_sum_exp).expect("a launch");
        let from = AttentionBackward {
            input,
            o: &o,
            log_sum_exp: &log_sum_exp,
            d_o: &d_o,
            delta: Some(Delta::Scratch(&mut delta)),
        };
        let [d_q, d_k, d_v] =
            [&mut d_q, &mut d_k, &mut d_v].map(|matrix| ColumnsMut { matrix, first: 0, stride: total });
        let of_input = InputGradient::Apart { d_q: Some(d_q), d_k, d_v };
        let gradient = AttentionGradient { of_input, inner: None };
        attention.backward(&self.kernels, from, gradient).expect("a launch");
    }

    fn attention(&mut self) {
        let stream = self.kernels.stream().clone();
        let (wide, narrow) = (Heads { count: 3, width: 72 }, Heads { count: 2, width: 64 });
        let step = DropoutStep::new(0.5, 1, &[42]).expect("dropout");
        let dropout = DeviceDropout::new(&stream, &step).expect("dropout");
        let mask = dropout.mask(Site::new(Side::Decoder, SiteKind::SelfAttention, 0));
        let bias = self.zeros::<f32>(narrow.count * 17);
        let longer = Sequences::new(&stream, &[5, 70, 31]).expect("sequences");
        let shorter = Sequences::new(&stream, &[5, 16, 3]).expect("sequences");
        let biased = Attention { bias: Some((&bias, 8)), ..Attention::of_itself(longer.rows(), narrow) };
        self.case("attention", |watched| watched.attend::<bf16>(&biased));
        self.case("attention-f32", |watched| watched.attend::<f32>(&biased));
        let short = Attention { bias: Some((&bias, 8)), ..Attention::of_itself(shorter.rows(), narrow) };
        self.case("attention-short", |watched| watched.attend::<bf16>(&short));
        let dropped = Attention { mask, ..Attention::of_itself(longer.rows(), wide) };
        self.case("attention-dropped", |watched| watched.attend::<bf16>(&dropped));
        let dropped = Attention { mask, ..Attention::of_itself(shorter.rows(), wide) };
        self.case("attention-short-dropped", |watched| watched.attend::<bf16>(&dropped));
        let pairs = PairedSequences::new(&stream, &[(5, 70), (16, 80), (3, 1)]).expect("pairs");
        let described = pairs.described();
        let (queries, keys) = (described.rows(Side::Decoder), described.rows(Side::Encoder));
        let apart = Attention { queries, keys, ..Attention::of_itself(queries, narrow) };
        self.case("attention-apart", |watched| watched.attend::<bf16>(&apart));
    }

    fn products(&mut self) {
        let stream = self.kernels.stream().clone();
        let rows = Sequences::new(&stream, &[106]).expect("rows");
        let few = Sequences::new(&stream, &[9]).expect("rows");
        let forward = |watched: &Self, rows: &Sequences, [out, input]: [usize; 2], float: bool| {
            let mut linear = Linear::new(&watched.kernels, rows.rows(), out, input).expect("a product");
            let (a, weight) =
                (watched.zeros::<bf16>(rows.count() * input), watched.zeros::<bf16>(out * input));
            let (mut z, mut of_float) =
                (watched.zeros::<bf16>(rows.count() * out), watched.zeros(rows.count() * out));
            let epilogue = match float {
                true => Epilogue::Float { z: &mut of_float },
                false => Epilogue::Plain { z: &mut z },
            };
            linear.forward(&watched.kernels, &a, &weight, epilogue).expect("a launch");
        };
        self.case("gemm-plain", |watched| forward(watched, &rows, [136, 264], false));
        self.case("gemm-float", |watched| forward(watched, &rows, [136, 264], true));
        self.case("gemm-deep", |watched| forward(watched, &few, [64, 2048], false));
        self.case("gemm-backward", |watched| {
            let mut linear = Linear::new(&watched.kernels, rows.rows(), 136, 264).expect("a product");
            let (dz, weight) = (watched.zeros::<bf16>(106 * 136), watched.zeros::<bf16>(136 * 264));
            let mut d_h = watched.zeros(106 * 264);
            let epilogue = Epilogue::Accumulate { d_h: &mut d_h };
            linear.backward(&watched.kernels, &dz, &weight, epilogue).expect("a launch");
        });
    }

    fn lose<T: DeviceRepr + ValidAsZeroBits>(
        &self,
        rows: usize,
        lm_head: [usize; 2],
        gradient: bool,
        of: Precision,
    ) where
        CudaSlice<T>: ReadOperand,
    {
        let [vocabulary, width] = lm_head;
        let labels = LabelRows::new(self.kernels.stream(), &vec![1; rows], &vec![1.0; rows]).expect("labels");
        let plan = Plan::new(&self.kernels, of, rows, lm_head).expect("a plan");
        let (hidden, head) = (self.zeros::<T>(rows * width), self.zeros::<T>(vocabulary * width));
        let (mut partials, mut label_logits) = (self.zeros(plan.scratch().partials), self.zeros(rows));
        let (mut likelihood, mut loss, mut greedy) = (self.zeros(rows), self.zeros(rows), self.zeros(rows));
        let (mut d_hidden, mut weighted) = (self.zeros(rows * width), self.zeros(plan.scratch().weighted));
        let of = CrossEntropy {
            labels: labels.rows(),
            plan,
            lm_head: &head,
            objective: Objective::default(),
            mean: None,
        };
        let gradient =
            gradient.then_some(HiddenGradient { d_hidden: &mut d_hidden, weighted: &mut weighted });
        let scratch = LossScratch { partials: &mut partials, label_logits: &mut label_logits };
        let written = CrossEntropyRows {
            negative_log_likelihood: &mut likelihood,
            loss: &mut loss,
            greedy: &mut greedy,
        };
        of.launch(&self.kernels, &hidden, scratch, written, gradient).expect("a launch");
    }

    fn cross<T: DeviceRepr + ValidAsZeroBits>(&self)
    where
        CudaSlice<T>: ReadOperand + WriteOperand,
        for<'v> CudaViewMut<'v, T>: WriteOperand,
    {
        let pairs = PairedSequences::new(self.kernels.stream(), &[(3, 70), (2, 80)]).expect("pairs");
        let (heads, depth) = (Heads { count: 2, width: 16 }, 136);
        let shape = AbsorbedShape { batch: pairs.described(), heads, depth };
        let matrix = |count: usize| self.zeros::<T>(count);
        let (w_k, w_v) = (matrix(heads.total() * depth), matrix(heads.total() * depth));
        let attention = AbsorbedCrossAttention { shape, w_k: &w_k, w_v: &w_v, mask: DropoutMask::default() };
        let (lengths, narrow) = (attention.lengths().expect("lengths"), 5 * heads.total());
        let (q, h, d_o, mut o) = (matrix(narrow), matrix(150 * depth), matrix(narrow), matrix(narrow));
        let (mut absorbed_q, mut mixed, mut d_mixed) =
            (matrix(lengths.wide), matrix(lengths.wide), matrix(lengths.wide));
        let (mut scores, mut sums) = (self.zeros(lengths.pairs), self.zeros(lengths.sums));
        let mut dropped = matrix(lengths.dropped);
        let forward = AbsorbedForward {
            q: &q,
            h: &h,
            absorbed_q: Wide::Made(&mut absorbed_q),
            scores: &mut scores,
            sums: &mut sums.slice_mut(0..lengths.sums),
            dropped: &mut dropped.slice_mut(0..lengths.dropped),
            mixed: &mut mixed,
            o: &mut o,
        };
        attention.forward(&self.kernels, forward).expect("a launch");
        let from = AbsorbedBackward {
            h: &h,
            absorbed_q: &absorbed_q,
            scores: &scores,
            sums: &sums.slice(0..lengths.sums),
            o: &o,
            d_o: &d_o,
            d_mixed: Wide::Made(&mut d_mixed),
        };
        let (mut ds, mut p, mut d_absorbed_q, mut d_q) =
            (matrix(lengths.pairs), matrix(lengths.pairs), matrix(lengths.wide), matrix(narrow));
        let mut d_h = self.zeros(150 * depth);
        let gradient = AbsorbedGradient {
            ds: &mut ds,
            p: &mut p,
            d_q: Some(QueryGradient { d_absorbed_q: &mut d_absorbed_q, d_q: &mut d_q, inner: None }),
            d_h: Some(&mut d_h),
        };
        attention.backward(&self.kernels, from, gradient).expect("a launch");
    }

    fn mix(&self, scorer: Scorer) {
        let stream = self.kernels.stream();
        let example = Example { source: vec![1, 2], target: vec![1], ..Example::default() };
        let packed =
            Packed::new(stream, Batch::pack(&vec![example; 9], 5, 0, 3).expect("a batch")).expect("packed");
        let mixing = Mixing { scorer: Some(scorer), ..Mixing::plain() };
        let layout = StateLayout::new(&mixing, 1, 5, 24, 4, false);
        let mut mix =
            PromptMix::new(&self.kernels, packed.described(), &mixing, &layout, 2, 1).expect("a mixture");
        let (prompts, keys) = (self.zeros(2 * 5 * 24), self.zeros(2 * 24));
        let (values, table) = (self.zeros(layout.len()), self.zeros(3 * 24));
        let (mut x, mut gradient) = (self.zeros(9 * 7 * 24), self.zeros(layout.len()));
        let sources = Some(FrozenSources { prompts: &prompts, keys: &keys });
        let (copy, partials, mask) = (None, None, DropoutMask::default());
        let of = MixForward { table: &table, sources, values: &values, x: &mut x, copy, partials, mask };
        mix.forward(&self.kernels, of).expect("a launch");
        let of = MixBackward { sources, values: &values, d_x: &x, gradient: &mut gradient };
        mix.backward(&self.kernels, of).expect("a launch");
    }

    fn others(&mut self) {
        let stream = self.kernels.stream().clone();
        self.case("decode", |watched| {
            let (heads, bias) = (Heads { count: 3, width: 24 }, watched.zeros(3 * 3));
            let (qkv, mut cache) = (watched.zeros::<bf16>(5 * 3 * 72), watched.zeros::<bf16>(5 * 4 * 2 * 72));
            let mut o = watched.zeros::<bf16>(5 * 72);
            let step = DecodeStep { examples: 5, heads, length: 4, position: 0, bias: (&bias, 1) };
            step.forward(&watched.kernels, &qkv, &mut cache, &mut o).expect("a launch");
        });
        self.case("optimizer", |watched| {
            let mut adamw = AdamW::vector(&watched.kernels, 5_000).expect("an optimizer");
            adamw.schedule(&watched.kernels, &[OptimizerStep::new(0.1, 0.0)]).expect("a schedule");
            let (mut values, gradient) = (watched.zeros(5_000), watched.zeros(5_000));
            let (mut first, mut second) = (watched.zeros(5_000), watched.zeros(5_000));
            let operands = StepOperands {
                values: &mut values,
                gradient: &gradient,
                first_moment: &mut first,
                second_moment: &mut second,
            };
            adamw.step(&watched.kernels, operands).expect("a launch");
        });
        let sequences = Sequences::new(&stream, &[5, 70, 31]).expect("sequences");
        let rows = sequences.rows();
        self.case("rows", |watched| {
            let (x, partials) = (watched.zeros(106 * 72), watched.zeros(106 * 2));
            let (mut h, mut d_x, mut inner) =
                (watched.zeros::<bf16>(106 * 72), watched.zeros(106 * 72), watched.zeros(106));
            let norm = FinalNorm {
                rows,
                width: 72,
                epsilon: 1e-6,
                norm_weight: None,
                scale: 1.0,
                mask: DropoutMask::default(),
            };
            let input = NormedRows { x: &x, partials: &partials };
            norm.forward(&watched.kernels, input, &mut h).expect("a launch");
            let written = FinalNormGradient { d_x: &mut d_x, copy: None, inner: None };
            norm.backward(&watched.kernels, input, &x, written).expect("a launch");
            let (z, mut a) = (watched.zeros::<bf16>(106 * 144), watched.zeros::<bf16>(106 * 72));
            let gate =
                Gate { rows, width: 72, activation: Activation::GatedSilu, mask: DropoutMask::default() };
            gate.forward(&watched.kernels, &z, &mut a).expect("a launch");
            let each = EachRow { rows, width: 72 };
            each.inner(&watched.kernels, [&x, &x, &x], &mut inner).expect("a launch");
            let mut partials = watched.zeros(106 * 2);
            each.squares(&watched.kernels, &x, None, &mut partials).expect("a launch");
        });
        self.case("sequences", |watched| {
            let refilled = Sequences::with_capacity(&stream, 3, 600).expect("sequences");
            let lengths = stream.clone_htod(&[0, 5, 75, 106]).expect("memory");
            refilled.update_on_device(&watched.kernels, &lengths).expect("a launch");
        });
    }
}

#[test]
fn the_rules_of_the_header_are_those_of_the_launchers() {
    if !super::kernels::are_built() {
        return;
    }
    let Some(compiler) = c::compiler("gcc") else { return };
    let gpu = vgpu::load().expect("a GPU, virtual or real");
    if !gpu.is_virtual() {
        eprintln!("skipped: launches are counted on the virtual GPU alone");
        return;
    }
    let stream = CudaContext::new(0).expect("a context").new_stream().expect("a stream");
    let kernels = Kernels::new(stream).expect("kernels");
    let mut watched = Watched { kernels, cases: BTreeMap::new(), gpu };
    watched.attention();
    watched.products();
    watched.case("loss", |watched| watched.lose::<bf16>(37, [501, 136], false, Precision::Bf16));
    watched.case("loss-gradient", |watched| watched.lose::<bf16>(37, [501, 1032], true, Precision::Bf16));
    watched.case("loss-f32", |watched| watched.lose::<f32>(3, [101, 24], true, Precision::F32));
    watched.case("cross", Watched::cross::<bf16>);
    watched.case("cross-f32", Watched::cross::<f32>);
    watched.case("mix", |watched| watched.mix(Scorer::Bottleneck));
    watched.case("mix-token", |watched| watched.mix(Scorer::Token));
    watched.others();

    let folder = c::folder();
    let source = super::root().join("tests/export/rules.c");
    let program = compiler.program(folder.path(), &source, "c11", &[]);
    let multiprocessors = devices().expect("a device")[0].multiprocessors.to_string();
    let printed = c::run(std::process::Command::new(program).arg(multiprocessors));
    let mut rules: BTreeMap<&str, BTreeMap<&str, Vec<Size>>> = BTreeMap::new();
    for line in printed.lines() {
        let words: Vec<&str> = line.split(' ').collect();
        let launch = (
            words[2].parse().expect("blocks"),
            words[3].parse().expect("threads"),
            words[4].parse().expect("bytes"),
        );
        rules.entry(words[0]).or_default().entry(words[1]).or_default().push(launch);
    }
    assert_eq!(rules.keys().collect::<Vec<_>>(), watched.cases.keys().collect::<Vec<_>>());
    for (case, launched) in &watched.cases {
        let ruled = &rules[case];
        assert!(!launched.is_empty(), "{case} launches");
        for (kernel, blocks, threads, shared) in launched {
            let found =
                ruled.get(kernel.as_str()).unwrap_or_else(|| panic!("{case}: no rule gives {kernel}"));
            if case.starts_with("gemm") {
                // One of the tiles and parts.
                assert!(
                    found.contains(&(*blocks, *threads, *shared)),
                    "{case}: {kernel} {blocks} {threads} {shared} of {found:?}"
                );
                continue;
            }
            let sum: u64 = found.iter().map(|launch| launch.0).sum();
            assert_eq!((sum, found[0].1, found[0].2), (*blocks, *threads, *shared), "{case}: {kernel}");
        }
        if !case.starts_with("gemm") {
            assert_eq!(ruled.len(), launched.len(), "{case}: {ruled:?} and {launched:?}");
        }
    }
}
