//! Answers that are decoded token by token: the encoder and eight tokens are one graph launch, and say what launches one by one say.

use promptmix::backend::cpu::Cpu;
use promptmix::backend::{Backend, Batch, Device as _, Scorer, Side};
use promptmix::cuda::{Cuda, GraphCache, Precision};
use promptmix::model::Pass;
use promptmix::pretrained::Activation;

use crate::device::{Device, device, launching_device};
use crate::model::config;
use crate::random::Random;
use crate::setting::{Case, Setting, example, examples};

fn setting(activation: Activation, end: Option<u32>) -> Setting {
    let mut config = config(activation, activation == Activation::Relu);
    // By itself no token ends a sequence.
    config.eos_token_id = end.unwrap_or(u32::MAX);
    let mut setting = Setting::new(config.clone(), examples(5, &config, &[(5, 1), (4, 1), (9, 1), (6, 1)]));
    (setting.mixing.scorer, setting.runs) = (Some(Scorer::Bottleneck), 2);
    setting
}

/// A batch of `count` examples, shared out among two runs, of sources from `shortest` tokens on.
fn batch(setting: &Setting, seed: u64, count: usize, shortest: usize) -> Batch {
    let mut random = Random::new(seed);
    let examples: Vec<_> = (0..count)
        .map(|b| {
            let source = shortest + random.below(5);
            let mut example = example(&mut random, setting.config(), source, 1, b as u32);
            example.run = u32::from(b >= count / 2);
            example
        })
        .collect();
    setting.pack(&examples)
}

/// What a batch's answers came to.
#[derive(Clone, Debug, PartialEq)]
struct Answered {
    said: Vec<Vec<u32>>,
    attention: Vec<f64>,
    scores: Vec<Vec<f64>>,
}

fn answer<B: Backend>(
    case: &Case<B>,
    graph_cache: &mut B::GraphCache,
    state: &B::State,
    batch: &Batch,
    longest: usize,
) -> Answered {
    let Case { backend, model, mixture, .. } = case;
    let (mut attention, mut scores) = (Vec::new(), Vec::new());
    // More places of labels than the device keeps descriptors of.
    let labels: Vec<Vec<u32>> = (0..6).map(|label| vec![7 + label, 3]).collect();
    let candidates = vec![labels.as_slice(); batch.examples()];
    let decoded = batch.decoded(case.model.config().decoder_start_token_id, longest).expect("a start");
    let said = model.answer(backend, mixture, state, graph_cache, &decoded, |batch, encoding| {
        assert!(attention.is_empty(), "called once");
        attention = backend.attention(encoding.mix())?;
        scores = model.score(backend, batch, encoding, &candidates)?;
        Ok(())
    });
    let said = said.expect("an answer");
    backend.synchronize().expect("a healthy device");
    assert_eq!(said.len(), batch.examples());
    assert!(scores.iter().flatten().all(|score| score.is_finite()));
    Answered { said, attention, scores }
}

fn state<B: Backend>(case: &Case<B>) -> B::State {
    case.backend.state(&case.mixture.layout, &case.values, case.runs).expect("a state")
}

fn built(setting: &Setting, precision: Precision, graphs: bool) -> Option<(Case<Cuda>, vgpu::Gpu)> {
    let Device { cuda, gpu } = device(precision)?;
    cuda.set_graphs(graphs);
    Some((setting.build_on(cuda), gpu))
}

/// How far below a step's highest logit those of what was said lie, by a pass over the whole of it.
fn behind_the_best<B: Backend>(case: &Case<B>, setting: &Setting, batch: &Batch, said: &[Vec<u32>]) -> f64 {
    let Case { backend, model, mixture, .. } = case;
    let start = setting.config().decoder_start_token_id;
    let shifted: Vec<Vec<u32>> = said
        .iter()
        .map(|said| std::iter::once(start).chain(said.iter().copied()).take(said.len()).collect())
        .collect();
    let whole = batch.with_decoder(&shifted, said).expect("decoder rows");
    let encoding = model.encode(backend, mixture, &state(case), &whole, &mut Pass::evaluation()).expect("h");
    let decoding = model.decode(backend, &whole, &encoding, &mut Pass::evaluation()).expect("rows");
    let logits = model.logits(backend, &whole, &decoding).and_then(|logits| backend.read(&logits));
    let (logits, vocabulary) = (logits.expect("logits"), setting.config().vocab_size);
    let rows = logits.chunks(vocabulary).zip(whole.labels());
    assert_eq!(rows.len(), whole.rows(Side::Decoder));
    rows.map(|(row, &label)| row.iter().copied().fold(f64::NAN, f64::max) - row[label as usize])
        .fold(0.0, |most: f64, behind| if behind.is_nan() { f64::INFINITY } else { most.max(behind) })
}

/// Which token to end sequences with, so that some of `free` end within eight tokens and some do not.
fn end_of(free: &[Vec<u32>]) -> u32 {
    let early = |id: &u32| free.iter().filter(|said| said[..8].contains(id)).count();
    let never = |id: &u32| free.iter().filter(|said| !said.contains(id)).count();
    let ids = free.iter().flatten().copied();
    ids.filter(|id| early(id) > 0).max_by_key(|id| early(id).min(never(id))).expect("an end")
}

#[test]
fn graphs_say_what_launches_say() {
    for activation in [Activation::Relu, Activation::GatedGelu] {
        let free = setting(activation, None);
        let Some((case, _gpu)) = built(&free, Precision::Bf16, false) else { return };
        let batches = |setting: &Setting| [1, 2].map(|seed| batch(setting, seed, 5, 4 + seed as usize % 2));
        let said = answer(&case, &mut GraphCache::default(), &state(&case), &batches(&free)[0], 19).said;
        assert!(said.iter().all(|said| said.len() == 19), "{said:?}");
        drop((case, _gpu));
        let ended = setting(activation, Some(end_of(&said)));
        let all = [(&free, 1), (&free, 8), (&ended, 0), (&free, 19), (&ended, 19)];
        let some = if activation == Activation::Relu { &all[..] } else { &all[4..] };
        for &(setting, longest) in some {
            let what = format!("{activation:?}, {longest} tokens");
            let batches = batches(setting);
            let Some((eager, _gpu)) = built(setting, Precision::Bf16, false) else { return };
            let (own, mut graph_cache) = (state(&eager), GraphCache::default());
            let expected = batches.each_ref().map(|of| answer(&eager, &mut graph_cache, &own, of, longest));
            assert_eq!((graph_cache.replays(), graph_cache.captures()), (0, 0));
            let Some((captured, _gpu)) = built(setting, Precision::Bf16, true) else { return };
            let (own, mut graph_cache) = (state(&captured), GraphCache::default());
            let mut launched = 0;
            for (number, (batch, expected)) in batches.iter().zip(&expected).enumerate() {
                let found = answer(&captured, &mut graph_cache, &own, batch, longest);
                assert_eq!(&found, expected, "{what}, batch {number}");
                let most = found.said.iter().map(Vec::len).max().expect("examples");
                launched += most.div_ceil(8).max(1);
                assert_eq!(
                    graph_cache.replays(),
                    launched as u64,
                    "{what}: eight tokens a launch, and no more than said"
                );
            }
            // Other tokens and lengths of a like shape are no other graphs.
            assert_eq!(graph_cache.buckets(), 1, "{what}");
            assert!(graph_cache.captures() <= longest.div_ceil(8).max(1) as u64, "{what}");
            assert!(expected[0] != expected[1] || longest == 0, "{what}: batches say different things");
            // What was said is what a pass over all of it finds most likely, but for near ties.
            for (batch, Answered { said, .. }) in batches.iter().zip(&expected).filter(|_| longest > 0) {
                let behind = behind_the_best(&eager, setting, batch, said);
                assert!(behind < 0.15, "{what}: {behind} below the highest logit");
            }
        }
        // Some ended, some did not, and none says anything after its end.
        let Some((case, _gpu)) = built(&ended, Precision::Bf16, true) else { return };
        let end = ended.config().eos_token_id;
        let short = answer(&case, &mut GraphCache::default(), &state(&case), &batches(&ended)[0], 19).said;
        for (short, long) in short.iter().zip(&said) {
            let until = long.iter().position(|&id| id == end).map_or(long.len(), |end| end + 1);
            assert_eq!(short[..], long[..until]);
        }
        assert!(short.iter().any(|said| said.len() <= 8) && short.iter().any(|said| said.len() == 19));
    }
}

/// In f32 nothing is captured, and the answers are the CPU's.
#[test]
fn slow_answers_are_those_of_the_cpu() {
    let setting = setting(Activation::GatedGelu, None);
    let batch = batch(&setting, 1, 5, 4);
    let cpu: Case<Cpu<f64>> = setting.build(2);
    let expected = answer(&cpu, &mut (), &state(&cpu), &batch, 11);
    let Some((case, _gpu)) = built(&setting, Precision::F32, true) else { return };
    let mut graph_cache = GraphCache::default();
    let found = answer(&case, &mut graph_cache, &state(&case), &batch, 11);
    assert_eq!(graph_cache.captures(), 0);
    assert_eq!(found.said, expected.said);
    // The same decoding after an encoding that is there already.
    for (case_said, expected) in [(eager(&case, &batch, 11), &expected), (eager(&cpu, &batch, 11), &expected)]
    {
        assert_eq!(case_said, expected.said);
    }
    assert!(found.said.iter().any(|said| said != &found.said[0]), "the examples say different things");
}

fn eager<B: Backend>(case: &Case<B>, batch: &Batch, longest: usize) -> Vec<Vec<u32>> {
    let Case { backend, model, mixture, .. } = case;
    let encoding = model.encode(backend, mixture, &state(case), batch, &mut Pass::evaluation()).expect("h");
    model.greedy(backend, batch, &encoding, longest).expect("an answer")
}

/// Other numbers of examples, other limits and other lengths are other graphs in one arena, which a larger one moves.
#[test]
fn shapes_that_grow_and_shrink_say_the_same() {
    let setting = setting(Activation::Relu, None);
    let of =
        [(4, 4, 10), (2, 4, 10), (4, 60, 10), (4, 4, 10), (4, 4, 3), (2, 4, 10), (4, 60, 10), (4, 4, 10)];
    let run = |graphs: bool| {
        let (case, gpu) = built(&setting, Precision::Bf16, graphs)?;
        let (own, mut graph_cache) = (state(&case), GraphCache::default());
        let answers: Vec<Answered> = of
            .iter()
            .enumerate()
            .map(|(seed, &(count, shortest, longest))| {
                let batch = batch(&setting, seed as u64, count, shortest);
                answer(&case, &mut graph_cache, &own, &batch, longest)
            })
            .collect();
        drop((case, gpu));
        Some((answers, graph_cache.buckets(), graph_cache.replays(), graph_cache.captures()))
    };
    let (Some((expected, ..)), Some((found, buckets, replays, captures))) = (run(false), run(true)) else {
        return;
    };
    assert_eq!(found, expected);
    assert_eq!((buckets, replays), (4, 15));
    // Two launches each for ten tokens: four examples, two, four long ones, which move the arena, and the short shapes again.
    assert_eq!(captures, 2 + 2 + 2 + 2 + 1 + 2);
}

/// The driver counts: after the first batch of its shape, eight tokens for 64 rows are one copy in, one launch and one read.
#[test]
fn eight_tokens_for_64_rows_are_one_launch() {
    let setting = setting(Activation::Relu, None);
    let run = |graphs: bool| {
        // Without fills between them launches follow each other as they do for a user.
        let Device { cuda, gpu } = launching_device(Precision::Bf16)?;
        cuda.set_graphs(graphs);
        let case = setting.build_on(cuda);
        let Case { backend, model, mixture, .. } = &case;
        let (own, mut graph_cache) = (state(&case), GraphCache::default());
        let (mut answers, mut before) = (Vec::new(), None);
        for seed in 0..3 {
            if seed == 1 {
                before = gpu.calls();
            }
            let batch = batch(&setting, seed, 64, 4).decoded(setting.config().decoder_start_token_id, 8);
            let batch = batch.expect("a start");
            let said = model.answer(backend, mixture, &own, &mut graph_cache, &batch, |_, _| Ok(()));
            let said = said.expect("an answer");
            assert!(said.len() == 64 && said.iter().all(|said| said.len() == 8));
            answers.push(said);
        }
        let calls = before.zip(gpu.calls());
        backend.synchronize().expect("a healthy device");
        Some((answers, calls, graph_cache))
    };
    let (Some((expected, ..)), Some((found, calls, graph_cache))) = (run(false), run(true)) else { return };
    assert_eq!(found, expected);
    assert_eq!((graph_cache.replays(), graph_cache.captures(), graph_cache.buckets()), (3, 1, 1));
    if let Some((before, after)) = calls {
        let [graphs, uploads] = [before.graphs + 2, before.uploads + 2];
        let [downloads, waits] = [before.downloads + 2, before.waits + 2];
        assert_eq!(after, vgpu::Calls { graphs, uploads, downloads, waits, ..before });
    }
}

/// Questions come in any number: the graphs of as many as were met last stay.
#[test]
fn graphs_of_ever_other_numbers_of_questions_do_not_add_up() {
    let setting = setting(Activation::Relu, None);
    let Some((case, _gpu)) = built(&setting, Precision::Bf16, true) else { return };
    let (own, mut graph_cache) = (state(&case), GraphCache::default());
    let first = answer(&case, &mut graph_cache, &own, &batch(&setting, 1, 1, 4), 1);
    for count in 2..=34 {
        answer(&case, &mut graph_cache, &own, &batch(&setting, 1, count, 4), 1);
    }
    assert_eq!((graph_cache.buckets(), graph_cache.replays()), (32, 34));
    let captures = graph_cache.captures();
    assert_eq!(answer(&case, &mut graph_cache, &own, &batch(&setting, 1, 1, 4), 1), first);
    assert_eq!((graph_cache.buckets(), graph_cache.captures()), (32, captures + 1));
}

/// What answers take is known before anything is allocated for them.
#[test]
fn answers_take_what_was_foreseen() {
    let setting = setting(Activation::GatedGelu, None);
    let Some((case, _gpu)) = built(&setting, Precision::Bf16, true) else { return };
    let (own, mut graph_cache) = (state(&case), GraphCache::default());
    let batch = batch(&setting, 1, 16, 30);
    let Case { backend, model, mixture, .. } = &case;
    let foreseen =
        |longest| model.evaluation_bytes(backend, mixture, &own, &batch, Some(longest)).expect("a plan");
    let planned = foreseen(20);
    assert_eq!(backend.kernels().launches(), 0, "nothing is computed to foresee it");
    assert!(foreseen(1_000) > planned, "keys and values of longer answers take more");
    let said = answer(&case, &mut graph_cache, &own, &batch, 20).said;
    assert!(said.iter().all(|said| said.len() == 20));
    assert_eq!(graph_cache.arena_bytes(), planned.next_multiple_of(512));
}
