//! The comparison: six source prompts, then every method on the few-shot target.
//!
//! Trainings are independent and too small to share out over threads, so each worker runs whole trainings on a backend
//! of one thread: the numbers depend on neither the count of workers nor their order.

use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::SeedableRng;

use super::generate::{GeneratedTask, Rows, SOURCES, TARGET};
use super::report::{Report, Row};
use crate::backend::Scorer;
use crate::backend::cpu::Cpu;
use crate::config::{Decoding, Method, RunConfig};
use crate::data::Split;
use crate::error::{Error, Result};
use crate::model::Frozen;
use crate::prompts::{Prompt, PromptMetadata};
use crate::train::{Monitor, RunFolder, StepRecord, Trainer, ValidationRecord, normal};

/// What a comparison costs and how sure it is.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Settings {
    /// Seeds of the target's few rows, of initialisation, order and dropout: one training of each method and rate a seed.
    pub seeds: Vec<u64>,
    /// Seed of the generated data and of the source prompts.
    pub data_seed: u64,
    /// Rows of a source task.
    pub source_rows: Rows,
    /// Rows of the target; training draws `shots` a class of its training rows.
    pub target_rows: Rows,
    /// Target rows a class that a training learns from.
    pub shots: usize,
    /// Steps of a source training.
    pub source_steps: u64,
    /// Learning rate of a source training.
    pub source_learning_rate: f64,
    /// Steps of a target training, whatever the method.
    pub steps: u64,
    /// Steps between two validations of a target training.
    pub validate_every: u64,
    /// Learning rates of the prompt that every method tries; the scorer's is a third of it, as in the paper's defaults.
    pub learning_rates: Vec<f64>,
    /// The attention's temperature; D·e if not given.
    pub temperature: Option<f64>,
    /// One control more: the sum of the prompts with equal weights, which nothing scores.
    pub equal_weights: bool,
    /// M.
    pub prompt_length: usize,
    /// Examples a batch.
    pub batch_size: usize,
    /// Trainings at a time; one a core for `None`.
    pub workers: Option<usize>,
}

impl Settings {
    /// Three seeds.
    pub fn short() -> Self {
        Self {
            seeds: vec![1, 2, 3],
            data_seed: 1,
            source_rows: Rows { train: 480, validation: 64, test: 2 },
            target_rows: Rows { train: 200, validation: 64, test: 400 },
            shots: 16,
            source_steps: 150,
            source_learning_rate: 1.0,
            steps: 45,
            validate_every: 15,
            learning_rates: vec![0.3, 1.0],
            temperature: None,
            equal_weights: false,
            prompt_length: 10,
            batch_size: 16,
            workers: None,
        }
    }

    /// Five seeds, and the control of equal weights.
    pub fn long() -> Self {
        Self { seeds: vec![1, 2, 3, 4, 5], equal_weights: true, ..Self::short() }
    }

    fn check(&self) -> Result<()> {
        for (setting, empty) in [
            ("seeds", self.seeds.is_empty()),
            ("learning rates", self.learning_rates.is_empty()),
            ("workers", self.workers == Some(0)),
        ] {
            if empty {
                return Err(Error::setting(setting, "at least one", "none", ""));
            }
        }
        Ok(())
    }
}

/// Who listens to a comparison.
pub trait Progress {
    /// A part of the work begins, of so many steps in all.
    fn begin(&mut self, what: &'static str, steps: u64);
    /// One of its steps is done.
    fn step(&mut self);
}

/// Who learns the target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Contender {
    PromptTuning,
    /// Starts from one source.
    Spot(usize),
    Attempt,
    /// ATTEMPT whose sources are noise with the rows' norms of the true ones.
    AttemptOfNoise,
    /// ATTEMPT without attention: every weight is 1/(S+1).
    EqualWeights,
}

/// One training of the target.
#[derive(Clone, Copy, Debug)]
struct Job {
    contender: Contender,
    rate: f64,
    seed: u64,
}

/// A training of the target, and its best state by validation.
struct Trained {
    validation: f64,
    parameters: Vec<f64>,
}

/// Generates the tasks, learns the source prompts and compares the methods, all in the folder `out`, with the T5 in
/// `model`. Test rows are read only once every choice is made.
///
/// # Errors
/// If `out` holds generated data already or cannot be written, and those of training.
pub fn compare(settings: &Settings, model: &Path, out: &Path, progress: &mut dyn Progress) -> Result<Report> {
    settings.check()?;
    let data = out.join("data");
    if data.exists() {
        return Err(Error::setting(
            "the folder of the demonstration",
            "one without data",
            format!("{}", data.display()),
            "name another folder, or remove this one",
        ));
    }
    for task in SOURCES {
        task.write(&data_folder(out, task), settings.source_rows, settings.data_seed)?;
    }
    TARGET.write(&data_folder(out, TARGET), settings.target_rows, settings.data_seed)?;
    let workers = Workers { settings, model, out };

    let source_steps = settings.source_steps * SOURCES.len() as u64;
    progress.begin("source prompts", source_steps);
    let source_validation = workers.run(&SOURCES, progress, |frozen, task, monitor| {
        let config = workers.source_config(*task);
        let mut folder = RunFolder::create(&source_folder(out, *task), &config, &frozen.model_hash)?;
        let mut trainer = Trainer::new(frozen, &config, monitor)?;
        Ok(trainer.run(Some(&mut folder), monitor)?.best)
    })?;
    for &seed in &settings.seeds {
        workers.write_noise(seed)?;
    }

    // What SPoT starts from: the source that does best on the target's validation rows as it is.
    let every_source: Vec<usize> = (0..SOURCES.len()).collect();
    let transfer = workers.run(&every_source, progress, |frozen, &source, monitor| {
        let first = Job { contender: Contender::Spot(source), rate: 0.0, seed: settings.seeds[0] };
        Ok(Trainer::new(frozen, &workers.target_config(first), monitor)?.validate(monitor)?.mean)
    })?;
    let spot = first_best(&transfer);

    let mut contenders = vec![Contender::PromptTuning, Contender::Attempt, Contender::AttemptOfNoise];
    contenders.extend(settings.equal_weights.then_some(Contender::EqualWeights));
    contenders.extend((0..SOURCES.len()).map(Contender::Spot));
    let jobs: Vec<Job> = contenders
        .iter()
        .flat_map(|&contender| settings.learning_rates.iter().map(move |&rate| (contender, rate)))
        .flat_map(|(contender, rate)| settings.seeds.iter().map(move |&seed| Job { contender, rate, seed }))
        .collect();
    progress.begin("target", settings.steps * jobs.len() as u64);
    let trained = workers.run(&jobs, progress, |frozen, &job, monitor| {
        let config = workers.target_config(job);
        let mut trainer = Trainer::new(frozen, &config, monitor)?;
        let mut folder = match job.contender {
            Contender::Attempt => {
                Some(RunFolder::create(&attempt_folder(out, job), &config, &frozen.model_hash)?)
            }
            _ => None,
        };
        let outcome = trainer.run(folder.as_mut(), monitor)?;
        Ok(Trained { validation: outcome.best, parameters: trainer.best_parameters().to_vec() })
    })?;

    let chosen: Vec<(f64, Vec<f64>)> =
        contenders.iter().map(|&contender| choose_rate(settings, contender, &jobs, &trained)).collect();
    let single: Vec<f64> =
        chosen[contenders.len() - SOURCES.len()..].iter().map(|(_, validation)| mean(validation)).collect();
    let best_single = first_best(&single);

    let mut reported = vec![
        (Contender::PromptTuning, "prompt tuning".to_owned()),
        (Contender::Spot(spot), format!("SPoT from {}", SOURCES[spot].name)),
        (Contender::Attempt, "ATTEMPT".to_owned()),
        (Contender::AttemptOfNoise, "control: ATTEMPT, random sources".to_owned()),
        (
            Contender::Spot(best_single),
            format!("control: SPoT, best of six sources ({})", SOURCES[best_single].name),
        ),
    ];
    if settings.equal_weights {
        reported.push((Contender::EqualWeights, "control: ATTEMPT, equal weights".to_owned()));
    }
    let mut tests = Vec::new();
    for (contender, _) in &reported {
        let position = contenders.iter().position(|other| other == contender).unwrap_or_default();
        tests.extend(settings.seeds.iter().map(|&seed| Job {
            contender: *contender,
            rate: chosen[position].0,
            seed,
        }));
    }
    progress.begin("test rows", tests.len() as u64);
    let tested = workers.run(&tests, progress, |frozen, job, monitor| {
        let best = jobs.iter().zip(&trained).find(|(other, _)| {
            other.contender == job.contender && other.rate == job.rate && other.seed == job.seed
        });
        let parameters = best.map(|(_, trained)| trained.parameters.as_slice());
        let trainer = Trainer::new(frozen, &workers.target_config(*job), monitor)?;
        let evaluation = trainer.evaluate(Split::Test, parameters, &mut |_| {})?;
        monitor.done();
        Ok((evaluation.scores.mean().unwrap_or(f64::NAN), evaluation.attention))
    })?;

    let seeds = settings.seeds.len();
    let rows = reported
        .iter()
        .enumerate()
        .map(|(index, (contender, name))| {
            let position = contenders.iter().position(|other| other == contender).unwrap_or_default();
            Row {
                name: name.clone(),
                learning_rate: chosen[position].0,
                validation: chosen[position].1.clone(),
                test: tested[index * seeds..(index + 1) * seeds].iter().map(|(test, _)| *test).collect(),
            }
        })
        .collect();
    let attention: Vec<&Vec<f64>> =
        tested[2 * seeds..3 * seeds].iter().flat_map(|(_, attention)| attention).collect();
    Ok(Report {
        settings: settings.clone(),
        sources: SOURCES.iter().map(|task| task.name.to_owned()).collect(),
        source_validation,
        transfer,
        rows,
        attention: mean_rows(&attention),
        entropy: attention.iter().map(|row| entropy(row)).sum::<f64>() / attention.len().max(1) as f64,
        run: attempt_folder(out, tests[2 * seeds]),
        source_prompts: workers.source_paths(),
        model: model.to_owned(),
    })
}

struct Workers<'a> {
    settings: &'a Settings,
    model: &'a Path,
    out: &'a Path,
}

impl Workers<'_> {
    /// Does all jobs, each worker one after the other, and gives their results in the jobs' order.
    fn run<J: Sync, R: Send>(
        &self,
        jobs: &[J],
        progress: &mut dyn Progress,
        work: impl Fn(&Frozen<'_, Cpu>, &J, &mut Ticks) -> Result<R> + Sync,
    ) -> Result<Vec<R>> {
        let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let workers = self.settings.workers.unwrap_or(cores).clamp(1, jobs.len().max(1));
        let next = AtomicUsize::new(0);
        let results: Mutex<Vec<(usize, Result<R>)>> = Mutex::new(Vec::with_capacity(jobs.len()));
        let finish = |index: usize, result: Result<R>| {
            if result.is_err() {
                next.store(jobs.len(), Ordering::Relaxed);
            }
            results.lock().unwrap_or_else(std::sync::PoisonError::into_inner).push((index, result));
        };
        std::thread::scope(|scope| {
            let (sender, ticks) = channel();
            for _ in 0..workers {
                let mut monitor = Ticks(sender.clone());
                let (next, finish, work) = (&next, &finish, &work);
                scope.spawn(move || {
                    let opened = Cpu::new(Some(1));
                    let frozen = opened.as_ref().map(|backend| Frozen::load(backend, self.model));
                    let frozen = match (&opened, frozen) {
                        (Ok(_), Ok(Ok(frozen))) => frozen,
                        (_, Ok(Err(error))) => return finish(0, Err(error)),
                        _ => {
                            let what = "one worker thread more";
                            return finish(0, Err(Error::setting("--threads", "fewer", what, "")));
                        }
                    };
                    loop {
                        let index = next.fetch_add(1, Ordering::Relaxed);
                        let Some(job) = jobs.get(index) else { break };
                        finish(index, work(&frozen, job, &mut monitor));
                    }
                });
            }
            drop(sender);
            ticks.iter().for_each(|()| progress.step());
        });
        let mut results = results.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        results.sort_by_key(|(index, _)| *index);
        results.into_iter().map(|(_, result)| result).collect()
    }

    fn config(&self, task: GeneratedTask) -> RunConfig {
        RunConfig {
            model: self.model.display().to_string(),
            task: task.name.into(),
            template: Some("{text}".into()),
            labels: Some(task.labels.join(",")),
            data: data_folder(self.out, task),
            prompt_length: self.settings.prompt_length,
            batch_size: self.settings.batch_size,
            decoding: Decoding::Labels,
            threads: Some(1),
            ..RunConfig::default()
        }
    }

    fn source_config(&self, task: GeneratedTask) -> RunConfig {
        RunConfig {
            method: Method::PromptTuning,
            steps: Some(self.settings.source_steps),
            validate_every: Some((self.settings.source_steps / 3).max(1)),
            learning_rate: self.settings.source_learning_rate,
            seed: self.settings.data_seed,
            ..self.config(task)
        }
    }

    fn target_config(&self, job: Job) -> RunConfig {
        let settings = self.settings;
        let config = RunConfig {
            steps: Some(settings.steps),
            validate_every: Some(settings.validate_every),
            few_shot: Some(settings.shots),
            class_balanced: true,
            learning_rate: job.rate,
            scorer_learning_rate: Some(job.rate / 3.0),
            temperature: settings.temperature,
            seed: job.seed,
            ..self.config(TARGET)
        };
        match job.contender {
            Contender::PromptTuning => RunConfig { method: Method::PromptTuning, ..config },
            Contender::Spot(source) => RunConfig {
                method: Method::Spot,
                sources: vec![self.source_paths().swap_remove(source)],
                ..config
            },
            Contender::Attempt => RunConfig { sources: self.source_paths(), ..config },
            Contender::EqualWeights => {
                RunConfig { sources: self.source_paths(), scorer: Scorer::Uniform, ..config }
            }
            Contender::AttemptOfNoise => RunConfig { sources: self.noise_paths(job.seed), ..config },
        }
    }

    fn source_paths(&self) -> Vec<PathBuf> {
        SOURCES.iter().map(|task| source_folder(self.out, *task).join("prompt.safetensors")).collect()
    }

    fn noise_paths(&self, seed: u64) -> Vec<PathBuf> {
        let folder = self.out.join("noise").join(seed.to_string());
        SOURCES.iter().map(|task| folder.join(format!("{}.safetensors", task.name))).collect()
    }

    /// For each source prompt one of noise, each row with the norm of the source's.
    fn write_noise(&self, seed: u64) -> Result<()> {
        let mut random = ChaCha8Rng::seed_from_u64(seed);
        let folder = self.out.join("noise").join(seed.to_string());
        std::fs::create_dir_all(&folder).map_err(|source| Error::file("create", &folder, source))?;
        for (source, path) in self.source_paths().iter().zip(self.noise_paths(seed)) {
            let source = Prompt::load(source)?;
            let noise = Prompt::new(
                source.name(),
                noise_like(&source, &mut random),
                source.length(),
                source.width(),
                PromptMetadata {
                    model_sha256: source.metadata().model_sha256.clone(),
                    ..PromptMetadata::default()
                },
            )?;
            noise.save(&path)?;
        }
        Ok(())
    }
}

fn noise_like(source: &Prompt, random: &mut ChaCha8Rng) -> Vec<f32> {
    let norm = |row: &[f64]| row.iter().map(|value| value * value).sum::<f64>().sqrt();
    let mut values = Vec::with_capacity(source.values().len());
    for row in source.values().chunks_exact(source.width()) {
        let row: Vec<f64> = row.iter().map(|&value| f64::from(value)).collect();
        let noise: Vec<f64> = row.iter().map(|_| normal(random)).collect();
        let scale = norm(&row) / norm(&noise);
        values.extend(noise.iter().map(|value| (value * scale) as f32));
    }
    values
}

/// Passes a worker's steps on.
struct Ticks(Sender<()>);

impl Ticks {
    fn done(&mut self) {
        // Whoever listened may be gone; the work goes on all the same.
        let _ = self.0.send(());
    }
}

impl Monitor for Ticks {
    fn step(&mut self, _: &StepRecord) {
        self.done();
    }
    fn validating(&mut self, _: usize, _: usize) {}
    fn validated(&mut self, _: &ValidationRecord) {}
    fn note(&mut self, _: &str) {}
}

fn data_folder(out: &Path, task: GeneratedTask) -> PathBuf {
    out.join("data").join(task.name)
}

fn source_folder(out: &Path, task: GeneratedTask) -> PathBuf {
    out.join("sources").join(task.name)
}

fn attempt_folder(out: &Path, job: Job) -> PathBuf {
    out.join("runs").join(format!("attempt-rate-{}-seed-{}", job.rate, job.seed))
}

/// The rate with the best mean validation, the first of equals, and that validation by seed.
fn choose_rate(
    settings: &Settings,
    contender: Contender,
    jobs: &[Job],
    trained: &[Trained],
) -> (f64, Vec<f64>) {
    let by_rate: Vec<Vec<f64>> = settings
        .learning_rates
        .iter()
        .map(|&rate| {
            let own = |job: &Job| job.contender == contender && job.rate == rate;
            jobs.iter()
                .zip(trained)
                .filter(|(job, _)| own(job))
                .map(|(_, trained)| trained.validation)
                .collect()
        })
        .collect();
    let means: Vec<f64> = by_rate.iter().map(|validation| mean(validation)).collect();
    let best = first_best(&means);
    (settings.learning_rates[best], by_rate[best].clone())
}

/// The index of the largest, the first of equals; numbers that are none lose.
fn first_best(values: &[f64]) -> usize {
    (1..values.len()).fold(0, |best, other| {
        if values[other] > values[best] || values[best].is_nan() { other } else { best }
    })
}

pub(super) fn mean(values: &[f64]) -> f64 {
    values.iter().sum::<f64>() / values.len() as f64
}

fn mean_rows(rows: &[&Vec<f64>]) -> Vec<f64> {
    let mut mean = vec![0.0; rows.first().map_or(0, |row| row.len())];
    for row in rows {
        for (mean, value) in mean.iter_mut().zip(row.iter()) {
            *mean += value / rows.len() as f64;
        }
    }
    mean
}

fn entropy(weights: &[f64]) -> f64 {
    -weights.iter().filter(|&&weight| weight > 0.0).map(|weight| weight * weight.ln()).sum::<f64>()
}
