//! The memory of a step is known before anything is allocated for it, and many shapes share it.

use promptmix::backend::{Device as _, DropoutStep, Example, MicroBatch, OptimizerOps, OptimizerStep, Side};
use promptmix::cuda::{Cuda, GraphCache, Precision};
use promptmix::model::{Pass, batch_of_lengths, foresee, label_weights};
use promptmix::pretrained::{Activation, T5Config};

use crate::device::device;
use crate::model::config;
use crate::random::Random;
use crate::setting::{Case, Setting, example, examples};

/// Layers and rows enough that what does not grow with them is small beside the rest.
fn setting(activation: Activation) -> Setting {
    let mut config = config(activation, true);
    (config.num_layers, config.num_decoder_layers) = (5, 4);
    let lengths = [(40, 2), (90, 3), (61, 1), (120, 2)];
    Setting::new(config.clone(), examples(9, &config, &lengths))
}

/// Rates of 0: only memory matters here.
fn schedule() -> [OptimizerStep; 1] {
    [OptimizerStep::new(0.0, 0.0)]
}

/// What a step with `examples` is foreseen to take.
fn foreseen(case: &Case<Cuda>, setting: &Setting, examples: &[Example]) -> usize {
    let batch = setting.pack(examples);
    let mut state = case.backend.state(&case.mixture.layout, &case.values, 1).expect("a state");
    let (dropout, schedule) = (DropoutStep::new(0.1, 0, &[1]), schedule());
    let micro = MicroBatch { batch: &batch, dropout: dropout.as_ref(), first: true, last: Some(&schedule) };
    case.model.step_bytes(&case.backend, &case.mixture, &mut state, &micro).expect("a plan")
}

/// Takes a step on each of `batches`; the bytes that the device has more than before, and the recorder.
fn taken(case: &Case<Cuda>, setting: &Setting, batches: &[Vec<Example>]) -> (usize, GraphCache) {
    let cuda = &case.backend;
    let mut state = cuda.state(&case.mixture.layout, &case.values, 1).expect("a state");
    let mut graph_cache = GraphCache::default();
    let before = cuda.allocated_bytes();
    for (step, examples) in batches.iter().enumerate() {
        let batch = setting.pack(examples);
        let weights = label_weights(&batch, &[batch.label_tokens(0)]);
        let batch = batch.weighted(weights).expect("a weight a row");
        let (dropout, schedule) = (DropoutStep::new(0.1, step as u64, &[1]), schedule());
        let micro =
            MicroBatch { batch: &batch, dropout: dropout.as_ref(), first: true, last: Some(&schedule) };
        case.model.train(cuda, &case.mixture, &mut state, &mut graph_cache, &micro).expect("a step");
    }
    let reports = cuda.reports(&mut state).expect("reports");
    cuda.synchronize().expect("a healthy device");
    assert_eq!(reports.len(), batches.len());
    (cuda.allocated_bytes() - before, graph_cache)
}

#[test]
fn a_step_takes_what_was_foreseen() {
    for (activation, precision) in [
        (Activation::Relu, Precision::Bf16),
        (Activation::GatedGelu, Precision::Bf16),
        (Activation::Relu, Precision::F32),
    ] {
        let setting = setting(activation);
        let Some(device) = device(precision) else { return };
        let case = setting.build_on(device.cuda);
        let planned = foreseen(&case, &setting, &setting.examples);
        let launches = case.backend.kernels().launches();
        assert_eq!(launches, 0, "nothing is computed to foresee it");
        let (taken, graph_cache) = taken(&case, &setting, std::slice::from_ref(&setting.examples));
        assert_eq!(graph_cache.arena_bytes(), planned.next_multiple_of(512));
        let ratio = planned as f64 / taken as f64;
        eprintln!("{activation:?} {precision:?}: {planned} planned, {taken} taken: {ratio:.3}");
        // The rest is the descriptor.
        assert!((0.98..=1.0).contains(&ratio), "{planned} bytes planned, {taken} taken");
    }
}

/// Of the rows of the residual stream backward reads the bf16 copy alone, so a layer more takes nothing in f32 for them.
#[test]
fn a_layer_takes_what_its_backward_reads() {
    let grown = |precision| -> Option<usize> {
        let bytes = |layers| {
            let mut setting = setting(Activation::Relu);
            setting.tensors.config.num_layers = layers;
            let case = setting.build_on(device(precision)?.cuda);
            Some(foreseen(&case, &setting, &setting.examples))
        };
        Some(bytes(9)? - bytes(5)?)
    };
    let (Some(bf16), Some(f32)) = (grown(Precision::Bf16), grown(Precision::F32)) else { return };
    let setting = setting(Activation::Relu);
    let T5Config { d_model, d_kv, d_ff, num_heads, .. } = *setting.config();
    let rows = room(setting.pack(&setting.examples).rows(Side::Encoder));
    // What attention and the feed-forward begin with, of so many bytes a number, and their norms; q, k, v and o; log-sum-exps; bits.
    let saved = |number: usize| {
        let attention = number * 4 * num_heads * d_kv + 4 * num_heads;
        4 * rows * (2 * (number * d_model + 4) + attention + d_ff / 8)
    };
    for (what, grown, saved) in [("bf16", bf16, saved(2)), ("f32", f32, saved(4))] {
        let ratio = grown as f64 / saved as f64;
        eprintln!("{what}: four layers more take {grown} bytes, backward reads {saved}: {ratio:.3}");
        // Each buffer is rounded up to 512 bytes.
        assert!((1.0..1.06).contains(&ratio), "{what}: {grown} bytes for {saved}");
    }
}

/// The places of buffers leave little unused between them: an arena is about what is in use when most is.
#[test]
fn an_arena_is_little_larger_than_what_is_in_use() {
    for activation in [Activation::Relu, Activation::GatedGelu] {
        let setting = setting(activation);
        let Some(device) = device(Precision::Bf16) else { return };
        let case = setting.build_on(device.cuda);
        let planned = foreseen(&case, &setting, &setting.examples);
        let cuda = &case.backend;
        let mut state = cuda.state(&case.mixture.layout, &case.values, 1).expect("a state");
        let before = cuda.peak_bytes();
        // Without a recorder every buffer is an allocation of its own.
        let batch = case.batch.clone().with_capacity(room(case.batch.rows(Side::Encoder)), 32, 4);
        let dropout = DropoutStep::new(0.1, 0, &[1]);
        case.model.issue(cuda, &case.mixture, &mut state, &batch, dropout.as_ref()).expect("a step");
        let used = cuda.peak_bytes() - before;
        let ratio = planned as f64 / used as f64;
        eprintln!("{activation:?}: {planned} planned, {used} used at most: {ratio:.3}");
        assert!((0.9..1.1).contains(&ratio), "{planned} bytes planned, {used} used");
    }
}

/// Rows as a recorder rounds them up: to an eighth's power of two.
fn room(rows: usize) -> usize {
    rows.next_multiple_of((rows / 8).next_power_of_two().max(32))
}

#[test]
fn twenty_batches_of_other_shapes_take_what_the_largest_takes() {
    let setting = setting(Activation::Relu);
    let mut random = Random::new(11);
    let mut batches: Vec<Vec<Example>> = (0..20)
        .map(|_| {
            let count = 1 + random.below(4);
            let drawn = |index| {
                let (source, target) = (1 + random.below(120), 1 + random.below(4));
                example(&mut Random::new(index), setting.config(), source, target, index as u32)
            };
            (0..count as u64).map(drawn).collect()
        })
        .collect();
    let rows =
        |examples: &Vec<Example>| -> usize { examples.iter().map(|example| example.source.len() + 5).sum() };
    let largest = batches.iter().max_by_key(|examples| rows(examples)).expect("twenty").clone();
    let Some(device) = device(Precision::Bf16) else { return };
    let case = setting.build_on(device.cuda);
    let (alone, graph_cache) = taken(&case, &setting, std::slice::from_ref(&largest));
    drop(graph_cache);
    let (all, graph_cache) = taken(&case, &setting, &batches);
    let ratio = all as f64 / alone as f64;
    eprintln!(
        "{} buckets, {} captures: {all} bytes, {alone} alone: {ratio:.3}",
        graph_cache.buckets(),
        graph_cache.captures()
    );
    assert!(graph_cache.buckets() > 6, "shapes vary");
    assert!(ratio <= 1.15, "{all} bytes, {alone} for the largest");
    // And that is what is foreseen for the largest of them.
    let most = batches.iter().map(|examples| foreseen(&case, &setting, examples)).max().expect("twenty");
    assert_eq!(graph_cache.arena_bytes(), most.next_multiple_of(512));
    // The other way round the first is the largest, and nothing moves.
    batches.sort_by_key(|examples| std::cmp::Reverse(foreseen(&case, &setting, examples)));
    let (_, graph_cache) = taken(&case, &setting, &batches);
    assert_eq!(graph_cache.captures(), graph_cache.buckets() as u64);
}

/// Work that is not recorded, as validation is, does not add up over its shapes either.
#[test]
fn passes_of_other_shapes_do_not_add_up() {
    let setting = setting(Activation::Relu);
    let Some(device) = device(Precision::Bf16) else { return };
    let case = setting.build_on(device.cuda);
    let cuda = &case.backend;
    let state = cuda.state(&case.mixture.layout, &case.values, 1).expect("a state");
    let mut random = Random::new(12);
    for index in 0..10 {
        let source = 40 + random.below(80);
        let batch = setting.pack(&[example(&mut random, setting.config(), source, 2, index)]);
        let tokens = [batch.label_tokens(0)];
        let loss = case.model.loss(cuda, &case.mixture, &state, &batch, &tokens, Pass::evaluation());
        let loss = loss.expect("a loss");
        assert!(loss.per_run[0].is_finite());
    }
    cuda.synchronize().expect("a healthy device");
    let (allocated, peak) = (cuda.allocated_bytes(), cuda.peak_bytes());
    assert!(allocated <= peak / 4 * 5, "{allocated} bytes allocated, {peak} in use at most");
}

#[test]
fn a_batch_that_will_not_fit_is_refused_with_one_that_does() {
    let config = config(Activation::Relu, true);
    let setting = Setting::new(config.clone(), examples(9, &config, &[(4, 1)]));
    let Some(device) = device(Precision::Bf16) else { return };
    let case = setting.build_on(device.cuda);
    let (model, cuda) = (&case.model, &case.backend);
    let mut state = cuda.state(&case.mixture.layout, &case.values, 1).expect("a state");
    let schedule = schedule();
    let mut bytes = |examples: usize| -> promptmix::Result<usize> {
        let batch = batch_of_lengths(examples, 5, 40, 2)?;
        let micro = MicroBatch { batch: &batch, dropout: None, first: true, last: Some(&schedule) };
        model.step_bytes(cuda, &case.mixture, &mut state, &micro)
    };
    let free = bytes(10).expect("a plan");
    foresee(free, 10, &mut bytes).expect("ten fit");
    let most = (10..).take_while(|&examples| bytes(examples).expect("a plan") <= free).last();
    let most = most.expect("ten fit");
    for too_many in [most + 1, most + 2, 7 * most] {
        let refused = foresee(free, too_many, &mut bytes).expect_err("too many").to_string();
        assert!(refused.contains(&format!("--batch-size {most} fits")), "{refused}");
    }
    let refused = foresee(1_000, 4, &mut bytes).expect_err("nothing fits").to_string();
    assert!(refused.contains("--max-source-length"), "{refused}");
    assert!(cuda.free_bytes().expect("a device's memory") > 1 << 20);
    cuda.synchronize().expect("a healthy device");
}
