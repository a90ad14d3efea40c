//! Training runs on the bundled model: the CPU's curve, and what must not change.

use std::path::{Path, PathBuf};

use promptmix::backend::Backend;
use promptmix::backend::cpu::Cpu;
use promptmix::config::{Decoding, Method, RunConfig};
use promptmix::cuda::{Cuda, Precision};
use promptmix::model::Frozen;
use promptmix::train::{Silent, Trainer};

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
    (config.prompt_length, config.rank, config.batch_size) = (8, 16, 4);
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

/// The loss of every step.
fn curve<B: Backend>(frozen: &Frozen<'_, B>, config: &RunConfig) -> Vec<f64> {
    let mut trainer = Trainer::new(frozen, config, &mut Silent).expect("a run");
    (0..STEPS).map(|_| trainer.step().expect("a finite step").loss).collect()
}

fn frozen_numbers(frozen: &Frozen<'_, Cuda>) -> Vec<Vec<u32>> {
    let weights = frozen.model.weights();
    let read = weights.iter().map(|weight| weight.read(frozen.backend));
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
    let expected = curve(&on_cpu, &settings);

    let Some(device) = device(Precision::Bf16) else { return };
    let frozen = Frozen::load(&device.cuda, Path::new(&settings.model)).expect("the bundled model");
    let before = frozen_numbers(&frozen);
    let mut trainer = Trainer::new(&frozen, &settings, &mut Silent).expect("a run");
    let read_sources = |trainer: &Trainer<'_, Cuda>| {
        trainer.mixture().sources.as_ref().expect("two sources").read(&device.cuda)
    };
    let sources_before = read_sources(&trainer);
    let found: Vec<f64> = (0..STEPS).map(|_| trainer.step().expect("a finite step").loss).collect();
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
