//! Training runs on the bundled model: the CPU's curve, and what must not change.

use std::path::{Path, PathBuf};

use promptmix::Error;
use promptmix::backend::Backend;
use promptmix::backend::cpu::Cpu;
use promptmix::config::{Decoding, Method, RunConfig};
use promptmix::cuda::{Cuda, Precision};
use promptmix::data::epoch_order;
use promptmix::model::{Frozen, T5, Tensors};
use promptmix::pretrained::{Checkpoint, T5Config};
use promptmix::train::{
    Member, Monitor, RunFolder, Silent, StepRecord, Trainer, ValidationRecord, run_together,
};

use crate::device::{device, project};

const STEPS: u64 = 50;

/// Rows whose label is a matter of one word; one in five is wrong, so that the loss cannot fall to nothing, where a ratio
/// would say little.
fn write_rows(folder: &Path) {
    let words =
        [["a bad film", "a dull story", "an awful day"], ["a good film", "a fine story", "a great day"]];
    for (file, rows) in [("train", 120), ("validation", 6)] {
        let row = |row: usize| {
            let label = if row.is_multiple_of(5) { 1 - row % 2 } else { row % 2 };
            format!("{{\"sentence\": \"{} number {row}\", \"label\": {label}}}", words[row % 2][row % 3])
        };
        let lines: Vec<String> = (0..rows).map(row).collect();
        std::fs::write(folder.join(format!("{file}.jsonl")), lines.join("\n")).expect("written");
    }
}

fn config(data: &Path) -> RunConfig {
    let mut config = RunConfig::default();
    config.model = project().join("demo").display().to_string();
    config.task = "sst2".into();
    config.labels = Some("negative,positive".into());
    config.data = data.to_owned();
    config.method = Method::PromptTuning;
    (config.prompt_length, config.bottleneck_dim, config.batch_size) = (8, 16, 4);
    config.steps = Some(STEPS);
    // At the default of 0.3 so small a batch throws the loss about, and a rounding grows from step to step.
    (config.learning_rate, config.scorer_learning_rate) = (0.1, Some(0.03));
    config.decoding = Decoding::Labels;
    config
}

/// Two source prompts, from short runs on the CPU.
fn sources(data: &Path, folder: &Path) -> Vec<PathBuf> {
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let mut settings = config(data);
    let frozen = Frozen::load(&cpu, Path::new(&settings.model)).expect("the bundled model");
    let source = |seed: u64| {
        (settings.seed, settings.steps) = (seed, Some(3));
        let mut trainer = Trainer::new(&frozen, &settings, &mut Silent).expect("a run");
        trainer.run(None, &mut Silent).expect("three steps");
        let prompt = trainer.best_prompt().expect("a prompt").expect("a target");
        let path = folder.join(format!("source{seed}.safetensors"));
        prompt.save(&path).expect("saved");
        path
    };
    [1, 2].map(source).into()
}

/// Keeps every step's record; breaks the run off while it hears of step `crash`.
#[derive(Default)]
struct Heard {
    steps: Vec<StepRecord>,
    crash: Option<u64>,
}

impl Monitor for Heard {
    fn step(&mut self, record: &StepRecord) {
        assert!(self.crash != Some(record.step), "broken off");
        self.steps.push(record.clone());
    }
    fn validating(&mut self, _: usize, _: usize) {}
    fn validated(&mut self, _: &ValidationRecord) {}
    fn note(&mut self, _: &str) {}
}

impl Heard {
    /// All that a record says but how long it took.
    fn numbers(&self) -> Vec<(u64, [u64; 5])> {
        let numbers = |record: &StepRecord| {
            let entropy = record.attention_entropy.unwrap_or(-1.0);
            let rates = [record.learning_rate, record.scorer_learning_rate];
            let all = [record.loss, record.gradient_norm, rates[0], rates[1], entropy];
            (record.step, all.map(f64::to_bits))
        };
        self.steps.iter().map(numbers).collect()
    }
}

/// The loss of every step.
fn curve<B: Backend>(trainer: &mut Trainer<'_, B>) -> Vec<f64> {
    let mut heard = Heard::default();
    trainer.run(None, &mut heard).expect("finite steps");
    assert!(heard.steps.iter().all(|record| record.milliseconds > 0.0 && record.tokens_per_second > 0.0));
    heard.steps.iter().map(|record| record.loss).collect()
}

fn frozen_numbers(frozen: &Frozen<'_, Cuda>) -> Vec<Vec<u32>> {
    let weights = frozen.model.weights();
    let read = weights.iter().map(|weight| weight.read(frozen.backend).expect("numbers"));
    read.map(|numbers| numbers.into_iter().map(f32::to_bits).collect()).collect()
}

#[test]
fn fifty_steps_follow_the_cpu_and_change_no_frozen_number() {
    let data = tempfile::tempdir().expect("a temporary folder");
    write_rows(data.path());
    let mut settings = config(data.path());
    settings.method = Method::Attempt;
    settings.sources = sources(data.path(), data.path());
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let on_cpu = Frozen::load(&cpu, Path::new(&settings.model)).expect("the bundled model");
    let expected = curve(&mut Trainer::new(&on_cpu, &settings, &mut Silent).expect("a run"));

    let Some(device) = device(Precision::Bf16) else { return };
    let frozen = Frozen::load(&device.cuda, Path::new(&settings.model)).expect("the bundled model");
    let before = frozen_numbers(&frozen);
    let mut trainer = Trainer::new(&frozen, &settings, &mut Silent).expect("a run");
    let read_sources = |trainer: &Trainer<'_, Cuda>| {
        trainer.mixture().sources.as_ref().expect("two sources").read(&device.cuda).expect("numbers")
    };
    let sources_before = read_sources(&trainer);
    let found = curve(&mut trainer);
    assert_eq!((found.len(), expected.len()), (STEPS as usize, STEPS as usize));
    let evaluation = trainer.validate(&mut Silent).expect("a validation");
    assert!(evaluation.mean.is_finite());
    for (step, (found, expected)) in found.iter().zip(&expected).enumerate() {
        eprintln!("step {step}: {found:.4} {expected:.4} {:+.2} %", 100.0 * (found / expected - 1.0));
    }
    // Ten steps at a time: a single batch of four has a loss of its own.
    for (found, expected) in found.chunks(10).zip(expected.chunks(10)) {
        let [found, expected] = [found, expected].map(|losses| losses.iter().sum::<f64>() / 10.0);
        let off = 100.0 * (found / expected - 1.0);
        eprintln!("{found:.4} {expected:.4} {off:+.2} %");
        assert!(off.abs() <= 2.0, "ten steps' loss is {off:.2} % off the CPU's");
    }
    assert!(expected.windows(2).any(|pair| (pair[0] - pair[1]).abs() > 0.05), "the loss moves");
    assert!(before == frozen_numbers(&frozen), "a weight changed");
    assert!(sources_before == read_sources(&trainer), "a source changed");
    assert!(before.iter().flatten().any(|&bits| bits != 0));
}

/// A short run with dropout, several batches an epoch of which the last is smaller, and accumulation.
fn short(data: &Path) -> RunConfig {
    let mut settings = config(data);
    (settings.steps, settings.validate_every, settings.save_every) = (Some(8), Some(6), Some(3));
    (settings.batch_size, settings.gradient_accumulation_steps, settings.training_rows) = (3, 2, Some(14));
    (settings.dropout, settings.validation_rows) = (Some(0.1), Some(2));
    settings
}

#[test]
fn how_far_the_host_is_ahead_changes_no_bit_and_a_broken_run_goes_on_bit_for_bit() {
    let data = tempfile::tempdir().expect("a temporary folder");
    write_rows(data.path());
    let settings = short(data.path());
    let Some(device) = device(Precision::Bf16) else { return };
    let frozen = Frozen::load(&device.cuda, Path::new(&settings.model)).expect("the bundled model");
    let run = |ahead: usize| {
        device.cuda.set_steps_ahead(ahead);
        let mut trainer = Trainer::new(&frozen, &settings, &mut Silent).expect("a run");
        let mut heard = Heard::default();
        trainer.run(None, &mut heard).expect("finite steps");
        assert_eq!(heard.steps.len(), 8);
        let parameters = trainer.parameters().expect("parameters");
        (heard.numbers(), parameters, trainer.best_parameters().to_vec())
    };
    let one_by_one = run(1);
    let unbroken = run(16);
    assert!(one_by_one == unbroken, "{:?} and {:?}", one_by_one.0, unbroken.0);
    let losses: Vec<u64> = unbroken.0.iter().map(|(_, numbers)| numbers[0]).collect();
    assert!(losses.windows(2).all(|pair| pair[0] != pair[1]), "the loss moves");

    // Steps 4 to 6 are issued together; the run breaks off while step 5 is written down, and goes on after step 3.
    let runs = tempfile::tempdir().expect("a temporary folder");
    let out = runs.path().join("run");
    let mut folder = RunFolder::create(&out, &settings, &frozen.model_hash).expect("a folder");
    let mut broken = Trainer::new(&frozen, &settings, &mut Silent).expect("a run");
    let mut crash = Heard { crash: Some(5), ..Heard::default() };
    let crashed =
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| broken.run(Some(&mut folder), &mut crash)));
    assert!(crashed.is_err(), "the run was broken off");
    drop((broken, folder));
    device.cuda.set_steps_ahead(2);
    let mut resumed = Trainer::new(&frozen, &settings, &mut Silent).expect("a run");
    let mut folder = promptmix::train::resume(&mut resumed, &out).expect("a checkpoint");
    assert_eq!(resumed.step_count(), 3);
    let mut heard = Heard::default();
    resumed.run(Some(&mut folder), &mut heard).expect("five more steps");
    assert_eq!(heard.numbers(), unbroken.0[3..]);
    assert_eq!(resumed.parameters().expect("parameters"), unbroken.1);
    assert_eq!(resumed.best_parameters(), unbroken.2);
    let log = std::fs::read_to_string(out.join("log.jsonl")).expect("a log");
    let steps: Vec<u64> = log
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).expect("JSON"))
        .filter(|line| line.get("loss").is_some())
        .map(|line| line["step"].as_u64().expect("a step"))
        .collect();
    assert_eq!(steps, (1..=8).collect::<Vec<_>>(), "a line a step");
}

/// The bundled model, with a NaN where only long inputs read: the encoder's bias for keys far after a query.
struct Damaged(Checkpoint);

impl Tensors for Damaged {
    fn config(&self) -> &T5Config {
        self.0.config()
    }
    fn read_into(&self, name: &str, shape: &[usize], values: &mut [f32]) -> promptmix::Result<()> {
        self.0.read_into(name, shape, values)?;
        if name == "encoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight" {
            // Buckets come before heads; the lower half is for keys before the query.
            values[(shape[0] / 2 - 1) * shape[1]] = f32::NAN;
        }
        Ok(())
    }
    fn embedding_into(&self, values: &mut [f32]) -> promptmix::Result<()> {
        self.0.embedding_into(values)
    }
    fn output_is_tied(&self) -> promptmix::Result<bool> {
        Ok(self.0.output_is_tied())
    }
}

fn damaged<'a>(backend: &'a Cuda, model: &str) -> Frozen<'a, Cuda> {
    let mut frozen = Frozen::load(backend, Path::new(model)).expect("the bundled model");
    let checkpoint = Checkpoint::open(Path::new(model)).expect("the bundled model");
    frozen.model = T5::load(backend, &Damaged(checkpoint)).expect("a model");
    frozen
}

/// One long row among short ones, and the step that reads it, counted from 1.
fn write_one_long_row(folder: &Path, settings: &RunConfig) -> u64 {
    let long = 11;
    let row = |row: usize| {
        let words = if row == long { "film ".repeat(130) } else { format!("film {row}") };
        format!("{{\"sentence\": \"a good {words}\", \"label\": {}}}", row % 2)
    };
    for (file, rows) in [("train", 24), ("validation", 2)] {
        let lines: Vec<String> = (0..rows).map(row).collect();
        std::fs::write(folder.join(format!("{file}.jsonl")), lines.join("\n")).expect("written");
    }
    let place = epoch_order(24, settings.seed, 0).iter().position(|&row| row as usize == long);
    (place.expect("every row is read") / settings.batch_size) as u64 + 1
}

#[test]
fn a_loss_that_is_not_finite_that_comes_before_the_state_is_read_leaves_the_state_as_it_was_before() {
    let data = tempfile::tempdir().expect("a temporary folder");
    let mut settings = config(data.path());
    settings.steps = Some(6);
    // A seed whose long row comes neither first nor last.
    let bad = loop {
        let bad = write_one_long_row(data.path(), &settings);
        if (3..=4).contains(&bad) {
            break bad;
        }
        settings.seed += 1;
    };
    let Some(device) = device(Precision::Bf16) else { return };
    let whole = Frozen::load(&device.cuda, Path::new(&settings.model)).expect("the bundled model");
    let mut expected = Trainer::new(&whole, &settings, &mut Silent).expect("a run");
    let before: Vec<StepRecord> = (1..bad).map(|_| expected.step().expect("a finite step")).collect();

    let frozen = damaged(&device.cuda, &settings.model);
    let mut trainer = Trainer::new(&frozen, &settings, &mut Silent).expect("a run");
    let mut heard = Heard::default();
    match trainer.run(None, &mut heard) {
        Err(Error::NonFinite { step, tensor, .. }) => {
            assert_eq!((step, tensor.as_str()), (bad, "the encoder layer 0 self attention"));
        }
        other => panic!("expected a stop on a number that is not finite, found {other:?}"),
    }
    assert_eq!(heard.numbers(), Heard { steps: before, crash: None }.numbers());
    assert_eq!(trainer.step_count(), bad - 1);
    let parameters = |trainer: &Trainer<'_, Cuda>| trainer.parameters().expect("parameters");
    assert_eq!(parameters(&trainer), parameters(&expected));

    // Alone and beside a run that never reads the row: only the one that does stops.
    let short = tempfile::tempdir().expect("a temporary folder");
    write_rows(short.path());
    let mut other = settings.clone();
    (other.data, other.seed, other.training_rows) = (short.path().to_owned(), 7, Some(24));
    let run = |config: &RunConfig, name: &str| Member {
        name: name.into(),
        trainer: Trainer::new(&frozen, config, &mut Silent).expect("a run"),
        folder: None,
    };
    let mut members = [run(&settings, "long"), run(&other, "short")];
    let mut heard = HeardTogether::default();
    let outcomes = run_together(&frozen, &mut members, 2, &mut heard).expect("a device");
    match &outcomes[0] {
        Err(Error::NonFinite { step, tensor, .. }) => {
            assert_eq!((*step, tensor.as_str()), (bad, "the encoder layer 0 self attention of run long"));
        }
        other => panic!("expected a stop on a number that is not finite, found {other:?}"),
    }
    let both = (0..bad - 1).flat_map(|_| ["long", "short"]);
    let expected: Vec<&str> = both.chain((bad - 1..6).map(|_| "short")).collect();
    assert_eq!(heard.0, expected, "who took a step");
    assert_eq!(outcomes[1].as_ref().expect("an outcome").steps, 6);
    assert!(parameters(&members[1].trainer).iter().all(|value| value.is_finite()));
}

/// The runs whose steps were heard of, in order.
#[derive(Default)]
struct HeardTogether(Vec<String>, Vec<String>, Option<String>);

impl Monitor for HeardTogether {
    fn of_run(&mut self, name: Option<&str>) {
        self.2 = name.map(str::to_owned);
    }
    fn step(&mut self, record: &StepRecord) {
        assert!(record.loss.is_finite());
        self.0.push(self.2.clone().expect("of one run"));
    }
    fn note(&mut self, text: &str) {
        self.1.push(text.into());
    }
}
