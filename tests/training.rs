//! A run from data to folder, on the bundled model: what is applied, what is kept, what is refused.

use std::fs;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::mpsc::{Receiver, Sender, channel};

use promptmix::Error;
use promptmix::backend::Scorer;
use promptmix::backend::cpu::Cpu;
use promptmix::config::{Decoding, LrScheduler, Method, RunConfig};
use promptmix::data::Split;
use promptmix::model::Frozen;
use promptmix::train::{Monitor, Ranks, RunFolder, Silent, StepRecord, Trainer, ValidationRecord, factor};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

/// Rows whose label is a matter of one word, in a folder of their own.
fn data(rows: usize) -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let words =
        [["a bad film", "a dull story", "an awful day"], ["a good film", "a fine story", "a great day"]];
    for (file, rows) in [("train", rows), ("validation", 12), ("test", 12)] {
        let lines: Vec<String> = (0..rows)
            .map(|row| {
                let label = row % 2;
                format!("{{\"sentence\": \"{} number {row}\", \"label\": {label}}}", words[label][row % 3])
            })
            .collect();
        fs::write(folder.path().join(format!("{file}.jsonl")), lines.join("\n")).expect("written");
    }
    folder
}

fn config(data: &Path) -> RunConfig {
    let mut config = RunConfig::default();
    config.model = model().display().to_string();
    config.task = "sst2".into();
    config.labels = Some("negative,positive".into());
    config.data = data.to_owned();
    config.method = Method::PromptTuning;
    config.prompt_length = 8;
    config.batch_size = 8;
    config.steps = Some(6);
    config.validate_every = Some(3);
    config.decoding = Decoding::Labels;
    config
}

/// Two source prompts of 8 rows, from short runs.
fn sources(frozen: &Frozen<'_, Cpu<f32>>, data: &Path, folder: &Path) -> Vec<PathBuf> {
    [1, 2]
        .map(|seed| {
            let mut config = config(data);
            config.seed = seed;
            config.steps = Some(2);
            let mut trainer = Trainer::new(frozen, &config, &mut Silent).expect("a run");
            trainer.run(None, &mut Silent).expect("two steps");
            let path = folder.join(format!("source{seed}.safetensors"));
            trainer
                .best_prompt()
                .expect("a prompt")
                .expect("prompt tuning has a target")
                .save(&path)
                .expect("saved");
            path
        })
        .into()
}

fn attempt(data: &Path, sources: Vec<PathBuf>) -> RunConfig {
    let mut config = config(data);
    config.method = Method::Attempt;
    config.sources = sources;
    config.bottleneck_dim = 16;
    config
}

/// Breaks a run off in the middle of a step's bookkeeping.
struct CrashAt(u64);

impl Monitor for CrashAt {
    fn step(&mut self, record: &StepRecord) {
        assert!(record.step < self.0, "broken off");
    }
    fn validating(&mut self, _: usize, _: usize) {}
    fn validated(&mut self, _: &ValidationRecord) {}
    fn note(&mut self, _: &str) {}
}

fn steps(trainer: &mut Trainer<'_, Cpu<f32>>, count: usize) -> Vec<StepRecord> {
    (0..count).map(|_| trainer.step().expect("a finite step")).collect()
}

#[test]
fn the_same_command_gives_the_same_bytes_with_one_thread_and_with_two() {
    let data = data(40);
    let prompts = tempfile::tempdir().expect("a temporary folder");
    let mut outcomes = Vec::new();
    for threads in [2, 2, 1] {
        let cpu = Cpu::<f32>::new(Some(threads)).expect("threads");
        let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
        let config = attempt(data.path(), sources(&frozen, data.path(), prompts.path()));
        let mut trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
        let losses: Vec<u64> = steps(&mut trainer, 4).iter().map(|record| record.loss.to_bits()).collect();
        let parameters: Vec<u64> =
            trainer.parameters().expect("parameters").iter().map(|value| value.to_bits()).collect();
        assert!(losses.iter().any(|&bits| bits != losses[0]), "the loss moves");
        outcomes.push((losses, parameters));
    }
    assert_eq!(outcomes[0], outcomes[1], "twice with two threads");
    assert_eq!(outcomes[0], outcomes[2], "with one thread and with two");
}

#[test]
fn the_scorer_has_a_learning_rate_of_its_own() {
    let data = data(24);
    let prompts = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let sources = sources(&frozen, data.path(), prompts.path());
    let moved = |scorer_learning_rate: f64, learning_rate: f64| {
        let mut config = attempt(data.path(), sources.clone());
        config.scorer_learning_rate = Some(scorer_learning_rate);
        config.learning_rate = learning_rate;
        config.lr_scheduler = LrScheduler::Constant;
        config.warmup_steps = Some(0);
        config.max_grad_norm = 0.0;
        let mut trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
        let before = trainer.parameters().expect("parameters");
        steps(&mut trainer, 1);
        let after = trainer.parameters().expect("parameters");
        let layout = trainer.mixture().layout.clone();
        let largest = |name: &str| {
            let range = layout.range(name, 0).expect("a segment");
            range.map(|i| (after[i] - before[i]).abs()).fold(0.0, f64::max)
        };
        (largest("target_prompts"), largest("w_down"), largest("norm_weight"))
    };
    // The first AdamW step moves every number with a gradient by its rate, to within epsilon against the gradient.
    let (prompt, scorer, norm) = moved(0.01, 0.3);
    assert!((prompt - 0.3).abs() < 0.003, "prompt moved by {prompt}");
    assert!((scorer - 0.01).abs() < 1e-4, "scorer moved by {scorer}");
    assert!((norm - 0.01).abs() < 1e-4, "LayerNorm moved by {norm}");
    let (prompt, scorer, _) = moved(0.05, 0.0);
    assert!(prompt == 0.0 && (scorer - 0.05).abs() < 5e-4, "prompt {prompt}, scorer {scorer}");
}

#[test]
fn a_frozen_scorer_stays_as_it_was_while_the_target_learns() {
    let data = data(24);
    let prompts = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let mut config = attempt(data.path(), sources(&frozen, data.path(), prompts.path()));
    for freeze_scorer in [true, false] {
        config.freeze_scorer = freeze_scorer;
        let mut trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
        let before = trainer.parameters().expect("parameters");
        steps(&mut trainer, 3);
        let after = trainer.parameters().expect("parameters");
        let layout = trainer.mixture().layout.clone();
        let moved = |name: &str| {
            let range = layout.range(name, 0).expect("a segment");
            after[range.clone()] != before[range]
        };
        assert!(moved("target_prompts"));
        for name in ["w_down", "w_up"] {
            assert_eq!(moved(name), !freeze_scorer, "{name}");
        }
    }
}

#[test]
fn a_target_prompt_starts_where_it_is_told_to() {
    use promptmix::backend::Device;
    use promptmix::config::PromptInit;
    let data = data(24);
    let prompts = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let saved = sources(&frozen, data.path(), prompts.path());
    let start =
        |method: Method, initialisation: PromptInit, initial_prompt: Option<PathBuf>, sources: &[PathBuf]| {
            let mut config = config(data.path());
            config.method = method;
            config.prompt_init = Some(initialisation);
            config.initial_prompt = initial_prompt;
            config.sources = sources.to_vec();
            let trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
            let range = trainer.mixture().layout.range("target_prompts", 0).expect("a segment");
            trainer.parameters().expect("parameters")[range].to_vec()
        };
    let tuning = |initialisation| start(Method::PromptTuning, initialisation, None, &[]);
    let embedding: Vec<Vec<f64>> = (0..frozen.model.config().vocab_size)
        .map(|row| {
            let row = cpu.weight_row(frozen.model.embedding(), row).expect("a row");
            row.iter().map(|&value| f64::from(value)).collect()
        })
        .collect();
    let width = embedding[0].len();
    let row_of =
        |values: &[f64]| embedding.iter().position(|row| row == values).expect("a row of the embedding");

    let mut rows: Vec<usize> = tuning(PromptInit::Vocabulary).chunks(width).map(row_of).collect();
    rows.sort_unstable();
    rows.dedup();
    assert_eq!(rows.len(), 8, "distinct rows");

    let words: Vec<usize> = ["negative", "positive"]
        .iter()
        .flat_map(|word| frozen.tokenizer.encode_without_eos(word).expect("pieces"))
        .map(|id| id as usize)
        .collect();
    let rows: Vec<usize> = tuning(PromptInit::Labels).chunks(width).map(row_of).collect();
    assert_eq!(rows[..words.len().min(8)], words[..words.len().min(8)], "the label words come first");

    let deviation = |values: &[f64]| (values.iter().map(|v| v * v).sum::<f64>() / values.len() as f64).sqrt();
    // Of 2,048 numbers a deviation varies by 0.016 of itself, and less where they are uniform.
    let (normal, uniform) = (tuning(PromptInit::Normal), tuning(PromptInit::Uniform));
    assert!((deviation(&normal) - 1.0).abs() < 0.1, "{}", deviation(&normal));
    assert!((deviation(&uniform) - 12.0_f64.sqrt().recip()).abs() < 0.05, "{}", deviation(&uniform));
    assert!(uniform.iter().all(|value| value.abs() <= 0.5) && normal.iter().any(|value| value.abs() > 0.5));

    let prompt = |path: &Path| {
        let prompt = promptmix::prompts::Prompt::load(path).expect("a prompt");
        prompt.values().iter().map(|&value| f64::from(value)).collect::<Vec<f64>>()
    };
    let (first, second) = (prompt(&saved[0]), prompt(&saved[1]));
    assert_ne!(first, second);
    assert_eq!(start(Method::PromptTuning, PromptInit::Prompt, Some(saved[1].clone()), &[]), second);
    assert_eq!(start(Method::Spot, PromptInit::Prompt, None, &saved[..1]), first);
    // Two equal weights: nothing says which is the nearer.
    let merged = start(Method::Spot, PromptInit::Prompt, None, &saved);
    for ((merged, first), second) in merged.iter().zip(&first).zip(&second) {
        assert!((merged - (first + second) / 2.0).abs() <= 1e-6 * first.abs().max(second.abs()).max(1.0));
    }
}

/// What is logged is what is minimised.
#[test]
fn a_smoothed_run_logs_its_objective() {
    let data = data(32);
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let loss = |label_smoothing: f64, z_loss: f64| {
        let mut config = config(data.path());
        (config.label_smoothing, config.z_loss) = (label_smoothing, z_loss);
        let mut trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
        steps(&mut trainer, 1)[0].loss
    };
    // The objective is linear in either weight, and log-sum-exp is far from 0 at the start.
    let (plain, smoothed, twice) = (loss(0.0, 0.0), loss(0.1, 0.0), loss(0.2, 0.0));
    let (change, again) = (smoothed - plain, twice - smoothed);
    assert!(
        change.abs() > 1e-3 && (change - again).abs() < 1e-4 * change.abs().max(1.0),
        "{change} and {again}"
    );
    assert!(loss(0.0, 1e-2) > plain + 1e-4, "z-loss adds");
}

#[test]
fn accumulation_gives_the_numbers_of_the_large_batch() {
    let data = data(32);
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let run = |batch_size: usize, accumulate: usize| {
        let mut config = config(data.path());
        config.batch_size = batch_size;
        config.gradient_accumulation_steps = accumulate;
        config.warmup_steps = Some(0);
        let mut trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
        let records = steps(&mut trainer, 2);
        (records[1].loss, records[1].gradient_norm)
    };
    let (large, accumulated) = (run(16, 1), run(4, 4));
    // f32 sums over 16 examples in another grouping: some units in the last place, grown by one update.
    for (a, b) in [(large.0, accumulated.0), (large.1, accumulated.1)] {
        assert!((a - b).abs() <= 1e-4 * a.abs(), "{large:?} and {accumulated:?}");
    }
}

/// Two threads as ranks: each waits for the other's part of a sum.
struct Pair {
    rank: usize,
    send: Sender<Vec<f64>>,
    receive: Receiver<Vec<f64>>,
}

impl Ranks for Pair {
    fn rank(&self) -> usize {
        self.rank
    }
    fn count(&self) -> usize {
        2
    }
    fn sum(&self, values: &mut [f64]) -> promptmix::Result<()> {
        self.send.send(values.to_vec()).expect("the other rank");
        let other = self.receive.recv().expect("the other rank");
        values.iter_mut().zip(other).for_each(|(sum, value)| *sum += value);
        Ok(())
    }
}

#[test]
fn two_ranks_give_the_numbers_of_one() {
    let data = data(30);
    let cpu = Cpu::<f32>::new(Some(1)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let prompts = tempfile::tempdir().expect("a temporary folder");
    let mut config = attempt(data.path(), sources(&frozen, data.path(), prompts.path()));
    // Two micro-batches of each rank, and in the epoch's last step one row for rank 0 and none for rank 1.
    (config.batch_size, config.gradient_accumulation_steps, config.dropout) = (4, 2, Some(0.1));
    config.training_rows = Some(17);
    let alone = steps(&mut Trainer::new(&frozen, &config, &mut Silent).expect("a run"), 4);
    let (to_one, at_one) = channel();
    let (to_zero, at_zero) = channel();
    let ranks = [(to_one, at_zero), (to_zero, at_one)];
    let records: Vec<Vec<StepRecord>> = std::thread::scope(|scope| {
        let config = &config;
        let run = |(rank, (send, receive)): (usize, (Sender<_>, Receiver<_>))| {
            scope.spawn(move || {
                let cpu = Cpu::<f32>::new(Some(1)).expect("threads");
                let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
                let trainer = Trainer::new(&frozen, config, &mut Silent).expect("a run");
                steps(&mut trainer.on_ranks(Rc::new(Pair { rank, send, receive })), 4)
            })
        };
        let threads: Vec<_> = ranks.into_iter().enumerate().map(run).collect();
        threads.into_iter().map(|thread| thread.join().expect("a rank")).collect()
    });
    let numbers = |record: &StepRecord| {
        [record.loss, record.gradient_norm, record.attention_entropy.expect("a scorer")]
    };
    for (zero, one) in records[0].iter().zip(&records[1]) {
        assert_eq!(numbers(zero), numbers(one), "the ranks differ in step {}", zero.step);
    }
    for (alone, together) in alone.iter().zip(&records[0]) {
        for (alone, together) in numbers(alone).into_iter().zip(numbers(together)) {
            // Some updates of f32 sums in another grouping.
            assert!(
                (alone - together).abs() <= 1e-4 * alone.abs().max(1e-3),
                "{alone} alone, {together} of two"
            );
        }
    }
    assert!(alone.windows(2).all(|pair| pair[0].loss != pair[1].loss));
}

#[test]
fn a_resumed_run_ends_with_the_bytes_of_an_unbroken_one() {
    let data = data(24);
    let runs = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let config = config(data.path());
    let mut unbroken = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    unbroken.run(None, &mut Silent).expect("six steps");

    let out = runs.path().join("run");
    let mut folder = RunFolder::create(&out, &config, &frozen.model_hash).expect("a folder");
    let mut broken = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    broken.resume(&out).expect("nothing is saved yet: the start");
    assert_eq!(broken.step_count(), 0);
    // A crash after step 5: the last checkpoint is that of the validation after step 3.
    let mut crash = CrashAt(5);
    let crashed =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| broken.run(Some(&mut folder), &mut crash)));
    assert!(crashed.is_err(), "the run was broken off");
    drop(broken);

    let mut resumed = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    resumed.resume(&out).expect("a checkpoint");
    assert_eq!(resumed.step_count(), 3);
    resumed.run(None, &mut Silent).expect("three more steps");
    assert_eq!(unbroken.parameters().expect("parameters"), resumed.parameters().expect("parameters"));
    assert_eq!(unbroken.best_parameters(), resumed.best_parameters());
}

#[test]
fn a_run_leaves_settings_logs_best_last_and_a_prompt_that_others_can_use() {
    let data = data(24);
    let runs = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let config = config(data.path());
    let out = runs.path().join("run");
    let mut folder = RunFolder::create(&out, &config, &frozen.model_hash).expect("a folder");
    let mut trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    let outcome = trainer.run(Some(&mut folder), &mut Silent).expect("six steps");
    assert_eq!((outcome.steps, outcome.trained), (6, 8 * 256));
    let log = fs::read_to_string(out.join("log.jsonl")).expect("a log");
    assert_eq!(log.lines().count(), 6 + 2, "a line a step and a line a validation");
    for name in ["run.json", "log.txt", "best.safetensors", "last.safetensors", "prompt.safetensors"] {
        assert!(out.join(name).metadata().is_ok_and(|file| file.len() > 0), "{name}");
    }
    assert_eq!(RunFolder::saved(&out).expect("settings").config, config);
    let evaluation = trainer.evaluate(Split::Test, None, &mut |_| {}).expect("an evaluation");
    assert_eq!((evaluation.answers.len(), evaluation.scores.invalid), (12, 0));

    let mut next = config.clone();
    next.method = Method::Spot;
    next.sources = vec![out.join("prompt.safetensors")];
    let spot = Trainer::new(&frozen, &next, &mut Silent).expect("a run from the prompt");
    assert_eq!(spot.parameters().expect("parameters"), trainer.best_parameters());

    let occupied = RunFolder::create(&out, &config, &frozen.model_hash).expect_err("the folder holds a run");
    assert!(occupied.to_string().contains("--resume"), "{occupied}");
}

/// Who asks for an end while the rows are still read need not wait for the last of them.
#[test]
fn an_end_that_is_asked_for_comes_before_all_rows_are_read() {
    struct Ends;
    impl Monitor for Ends {
        fn note(&mut self, text: &str) {
            assert!(!text.starts_with("training: "), "the rows were read to their end");
        }
        fn ends_before_first_step(&mut self) -> bool {
            true
        }
    }
    let data = data(16);
    let cpu = Cpu::<f32>::new(Some(1)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let error = Trainer::new(&frozen, &config(data.path()), &mut Ends).map(drop).unwrap_err();
    assert!(matches!(error, Error::NotBegun { .. }), "{error}");
    let said = error.to_string();
    assert!(said.contains("train.jsonl: no step was taken, and nothing was written"), "{said}");
}

#[test]
fn patience_ends_a_run_that_no_longer_improves() {
    let data = data(24);
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let mut config = config(data.path());
    config.learning_rate = 0.0;
    config.steps = Some(50);
    config.validate_every = Some(1);
    config.patience = Some(2);
    let mut trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    let outcome = trainer.run(None, &mut Silent).expect("a few steps");
    assert_eq!((outcome.steps, outcome.best_step, outcome.stopped_early), (3, 1, true));
}

#[test]
fn a_loss_that_is_not_finite_stops_the_run_and_names_step_and_tensor() {
    let data = data(24);
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let mut config = config(data.path());
    config.learning_rate = 1e6;
    config.warmup_steps = Some(0);
    config.lr_scheduler = LrScheduler::Constant;
    config.weight_decay = Some(1.0);
    config.steps = Some(200);
    let mut trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    match trainer.run(None, &mut Silent) {
        Err(Error::NonFinite { step, tensor, .. }) => {
            assert!(step > 1 && !tensor.is_empty(), "step {step}, {tensor}");
        }
        other => panic!("expected a stop on a number that is not finite, found {other:?}"),
    }
}

#[test]
fn schedules_climb_through_warm_up_and_end_where_they_should() {
    assert_eq!(factor(LrScheduler::Linear, 0, 10, 110), 0.0);
    assert_eq!(factor(LrScheduler::Linear, 5, 10, 110), 0.5);
    assert_eq!(factor(LrScheduler::Linear, 10, 10, 110), 1.0);
    assert_eq!(factor(LrScheduler::Linear, 60, 10, 110), 0.5);
    assert_eq!(factor(LrScheduler::Linear, 110, 10, 110), 0.0);
    assert_eq!(factor(LrScheduler::Constant, 109, 10, 110), 1.0);
    assert!((factor(LrScheduler::Cosine, 60, 10, 110) - 0.5).abs() < 1e-12);
    assert_eq!(factor(LrScheduler::Linear, 3, 500, 100), 0.006);
}

#[test]
fn presets_differ_in_what_the_design_says_they_differ_in() {
    use promptmix::config::{Preset, PromptInit};
    let mut config = RunConfig::default();
    assert_eq!(config.preset, Preset::Tuned);
    assert_eq!(
        (config.scorer_learning_rate(), config.warmup_steps(1_000), config.warmup_steps(100_000)),
        (0.01, 60, 500)
    );
    assert!(config.standardizes_inputs() && config.trains_layer_norm() && !config.pools_padding());
    assert_eq!(config.prompt_init(), PromptInit::Vocabulary);
    for scorer in [Scorer::Uniform, Scorer::Constant] {
        config.scorer = scorer;
        assert!(!config.standardizes_inputs(), "{scorer:?} reads no input");
    }
    assert_eq!(config.scorer_learning_rate(), 0.1, "of logits");
    config.scorer = Scorer::Bottleneck;
    config.preset = Preset::Paper;
    assert_eq!(
        (config.scorer_learning_rate(), config.warmup_steps(1_000), config.warmup_steps(100_000)),
        (0.1, 60, 500)
    );
    assert!(!config.standardizes_inputs() && config.trains_layer_norm() && !config.pools_padding());
    assert_eq!(config.prompt_init(), PromptInit::Vocabulary);
    config.preset = Preset::Reference;
    assert_eq!((config.scorer_learning_rate(), config.warmup_steps(1_000)), (0.3, 500));
    assert!(!config.standardizes_inputs());
    assert!(!config.trains_layer_norm() && config.pools_padding());
    assert_eq!(config.prompt_init(), PromptInit::Prompt);
    config.method = Method::PromptTuning;
    assert_eq!((config.prompt_init(), config.weight_decay()), (PromptInit::Normal, 1e-5));
}
