//! `promptmix bench`: the training step on given dimensions with random weights, timed.

mod kernels;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Instant;

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};
use serde_json::json;

use super::device::{Device, Opened, on_device};
use super::random_model::{RandomModel, dimensions};
use crate::backend::{
    Backend, Batch, DropoutStep, Example, MicroBatch, Mixing, OptimizerStep, Scorer, StateLayout,
};
use crate::error::{Error, Result};
use crate::model::{Mixture, Pass, T5, label_weights};
use crate::pretrained::T5Config;

/// Flags of `promptmix bench`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Example:
  promptmix bench step --dims t5-small
  promptmix bench kernels --shapes t5-base --device cuda --json kernels.json")]
pub(super) struct Arguments {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, clap::Subcommand)]
enum What {
    /// Time forward and whole training steps
    Step(Box<Step>),
    /// Time every kernel at the shapes of models, with the environment that others need to cite it
    Kernels(Box<kernels::Kernels>),
    /// Compare two files that bench kernels wrote: what differs beyond the spread of passes
    Compare(kernels::Compare),
    /// Time every tile of every product on a GPU, and write the table that products choose by
    #[cfg(feature = "cuda")]
    Tiles(Box<super::tiles::Tiles>),
}

/// Flags of `promptmix bench step`.
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  promptmix bench step --dims t5-small --batch-size 8 --source-lengths 128 --target-length 8
  promptmix bench step --dims t5-base --batch-size 32 --source-lengths lengths.txt --json
  promptmix bench step --dims t5-base --batch-size 32 --device cuda")]
struct Step {
    /// t5-small, t5-base, t5-large, t5-3b, t5-v1_1-small, t5-v1_1-base, or a config.json
    #[arg(long, default_value = "t5-small")]
    dims: String,
    /// Examples a batch
    #[arg(long, default_value_t = 8)]
    batch_size: usize,
    /// Source tokens of every example, or a file with one length a line
    #[arg(long, default_value = "128")]
    source_lengths: String,
    /// Target tokens of every example
    #[arg(long, default_value_t = 8)]
    target_length: usize,
    /// Rows of the prompt
    #[arg(long, default_value_t = 100)]
    prompt_length: usize,
    /// Source prompts in the mixture
    #[arg(long, default_value_t = 6)]
    sources: usize,
    /// Dropout of the frozen model
    #[arg(long, default_value_t = 0.0)]
    dropout: f64,
    /// Passes timed, after some that are not; on a GPU a pass is as many steps as training issues before it reads them back
    #[arg(long, default_value_t = 9)]
    repeats: usize,
    /// Runs that share the batch and the frozen model, each with as many of its examples
    #[arg(long, default_value_t = 1)]
    runs: usize,
    /// One step and nothing else, untimed: for a profiler, or the virtual GPU
    #[arg(long)]
    once: bool,
    /// Load the model and stop: the baseline of peak memory
    #[arg(long)]
    idle: bool,
    /// Leave out the measurement of the product rate, so that peak memory is the step's alone
    #[arg(long)]
    no_product: bool,
    /// Tiles of products by this table, which bench tiles wrote, instead of the program's own
    #[cfg(feature = "cuda")]
    #[arg(long)]
    tiles: Option<PathBuf>,
    /// Print one line of JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    device: Device,
}

impl Arguments {
    pub(super) fn run(self) -> Result<ExitCode> {
        match self.what {
            What::Step(step) => step.run(),
            What::Kernels(kernels) => kernels.run(),
            What::Compare(compare) => compare.run(),
            #[cfg(feature = "cuda")]
            What::Tiles(tiles) => tiles.run(),
        }
    }
}

/// Times of one kind of pass.
struct Timing {
    /// Of a step, the mean over a pass each.
    milliseconds: Vec<f64>,
    /// Steps of a pass.
    steps: usize,
    tokens: usize,
    operations: u64,
}

impl Timing {
    fn median(&self) -> f64 {
        let mut sorted = self.milliseconds.clone();
        sorted.sort_by(f64::total_cmp);
        let middle = sorted.len() / 2;
        if sorted.len() % 2 == 1 { sorted[middle] } else { f64::midpoint(sorted[middle - 1], sorted[middle]) }
    }

    fn seconds(&self) -> f64 {
        self.milliseconds.iter().sum::<f64>() * self.steps as f64 / 1e3
    }

    fn step_count(&self) -> f64 {
        (self.milliseconds.len() * self.steps) as f64
    }

    fn gflop_per_second(&self) -> f64 {
        self.operations as f64 / self.seconds() / 1e9
    }

    fn json(&self) -> serde_json::Value {
        json!({
            "median_ms": self.median(),
            "min_ms": self.milliseconds.iter().copied().fold(f64::INFINITY, f64::min),
            "max_ms": self.milliseconds.iter().copied().fold(0.0, f64::max),
            "mean_ms": self.seconds() * 1e3 / self.step_count(),
            "steps_a_pass": self.steps,
            "tokens_per_s": self.tokens as f64 / self.seconds(),
            "counted_gflop": self.operations as f64 / self.step_count() / 1e9,
            "gflop_per_s": self.gflop_per_second(),
        })
    }
}

impl Step {
    fn run(self) -> Result<ExitCode> {
        let started = Instant::now();
        let config = dimensions(&self.dims)?;
        let lengths = self.lengths()?;
        if self.batch_size == 0 || self.target_length == 0 || self.prompt_length == 0 || self.repeats == 0 {
            return Err(Error::setting(
                "bench step",
                "a batch, a target, a prompt and a repeat of at least 1",
                "0",
                "",
            ));
        }
        if self.runs == 0 || !self.batch_size.is_multiple_of(self.runs) {
            let expected = format!("runs that share {} examples evenly", self.batch_size);
            return Err(Error::setting("--runs", expected, self.runs.to_string(), ""));
        }
        let opened = self.open()?;
        on_device!(opened, backend => self.measure(backend, &opened, &config, &lengths, started))
    }

    #[cfg(not(feature = "cuda"))]
    fn open(&self) -> Result<Opened> {
        self.device.open()
    }

    #[cfg(feature = "cuda")]
    fn open(&self) -> Result<Opened> {
        use crate::backend::cuda::linear::TileTable;
        let table = self.tiles.as_deref().map(TileTable::read).transpose()?;
        let mut opened = self.device.open()?;
        match (&mut opened, table) {
            (Opened::Cuda(cuda), Some(table)) => cuda.set_tiles(table),
            (Opened::Cpu(_), Some(_)) => {
                let advice = "products on the CPU have no tiles; leave out --tiles, or name --device cuda";
                return Err(Error::setting("--device", "cuda or cuda:N", "cpu", advice));
            }
            (_, None) => {}
        }
        Ok(opened)
    }

    fn measure<B: Backend>(
        &self,
        backend: &B,
        opened: &Opened,
        config: &T5Config,
        lengths: &[usize],
        started: Instant,
    ) -> Result<ExitCode> {
        let idle = peak_memory();
        let model = T5::load(backend, &RandomModel { config: config.clone() })?;
        let loaded = peak_memory();
        if self.idle {
            println!("{}", json!({ "idle_mib": idle, "loaded_mib": loaded }));
            return Ok(ExitCode::SUCCESS);
        }
        let mut bench = Bench::new(backend, &model, self, lengths)?;
        let first = bench.steps(1)?;
        let first_step = started.elapsed().as_secs_f64();
        if self.once {
            println!("{}", json!({ "seconds_to_first_step": first_step, "operations": first.operations }));
            return Ok(ExitCode::SUCCESS);
        }
        let product_rate = || if self.no_product { Ok(0.0) } else { opened.product_rate() };
        let rate_before = product_rate()?;
        let forward = bench.measure(self.repeats, 1, 2, |bench| bench.forward())?;
        // Where steps are issued ahead, shapes are recorded when they are met first: the timed passes meet none.
        let ahead = backend.steps_ahead();
        let unmeasured = if ahead == 1 { 2 } else { self.repeats };
        let step = bench.measure(self.repeats, ahead, unmeasured, |bench| bench.steps(ahead))?;
        let peak = peak_memory();
        let rate = rate_before.max(product_rate()?);
        let device = opened.name();
        let on_device = opened.device_memory().map(|bytes| bytes as f64 / f64::from(1 << 20));
        let report = json!({
            "dims": self.dims, "batch_size": self.batch_size, "source_lengths": self.source_lengths,
            "target_length": self.target_length, "prompt_length": self.prompt_length, "runs": self.runs,
            "dropout": self.dropout, "device": device, "version": env!("CARGO_PKG_VERSION"),
            "forward": forward.json(), "step": step.json(),
            "product_gflop_per_s": rate / 1e9,
            "share_of_product_rate": if rate > 0.0 { Some(step.gflop_per_second() * 1e9 / rate) } else { None },
            "seconds_to_first_step": first_step,
            "idle_mib": idle, "loaded_mib": loaded, "peak_mib": peak, "device_peak_mib": on_device,
        });
        if self.json {
            println!("{report}");
            return Ok(ExitCode::SUCCESS);
        }
        println!(
            "{} on {device}, batch {}, source {}, target {}, prompt {}, dropout {}",
            self.dims,
            self.batch_size,
            self.source_lengths,
            self.target_length,
            self.prompt_length,
            self.dropout
        );
        for (name, timing) in [("forward", &forward), ("step", &step)] {
            let fastest = timing.milliseconds.iter().copied().fold(f64::INFINITY, f64::min);
            let slowest = timing.milliseconds.iter().copied().fold(0.0, f64::max);
            println!(
                "{name:<8} median {:.1} ms ({fastest:.1} to {slowest:.1}), {:.0} tokens/s, {:.1} GFLOP, {:.1} GFLOP/s",
                timing.median(),
                timing.tokens as f64 / timing.seconds(),
                timing.operations as f64 / timing.step_count() / 1e9,
                timing.gflop_per_second(),
            );
        }
        if rate > 0.0 {
            println!(
                "product  {:.1} GFLOP/s on this machine: the step runs at {:.0} % of it",
                rate / 1e9,
                100.0 * step.gflop_per_second() * 1e9 / rate
            );
        }
        println!(
            "memory   {idle:.0} MiB idle, {loaded:.0} MiB with the model, {peak:.0} MiB at the peak; \
             {first_step:.2} s from start to the end of the first step"
        );
        if let Some(on_device) = on_device {
            println!("         {on_device:.0} MiB on the device at the peak");
        }
        Ok(ExitCode::SUCCESS)
    }

    fn lengths(&self) -> Result<Vec<usize>> {
        if let Ok(length) = self.source_lengths.parse::<usize>() {
            if length == 0 || length > 1_000_000 {
                return Err(Error::setting("--source-lengths", "1 to 1000000", length.to_string(), ""));
            }
            return Ok(vec![length]);
        }
        let path = PathBuf::from(&self.source_lengths);
        let text = std::fs::read_to_string(&path).map_err(|source| Error::file("read", &path, source))?;
        let lengths = text
            .lines()
            .enumerate()
            .filter(|(_, line)| !line.trim().is_empty())
            .map(|(number, line)| match line.trim().parse::<usize>() {
                Ok(length) if (1..=1_000_000).contains(&length) => Ok(length),
                _ => {
                    let found = line.chars().take(40).collect::<String>();
                    Err(Error::format(
                        &path,
                        Some(number as u64 + 1),
                        "a length from 1 to 1000000",
                        found,
                        "",
                    ))
                }
            })
            .collect::<Result<Vec<usize>>>()?;
        if lengths.is_empty() {
            return Err(Error::format(&path, None, "one length a line", "an empty file", ""));
        }
        Ok(lengths)
    }
}

/// A model, a mixture and an endless row of batches.
struct Bench<'a, B: Backend> {
    backend: &'a B,
    model: &'a T5<B>,
    mixture: Mixture<B>,
    state: B::State,
    graph_cache: B::GraphCache,
    lengths: &'a [usize],
    settings: &'a Step,
    next: usize,
    steps: u64,
    random: ChaCha8Rng,
}

impl<'a, B: Backend> Bench<'a, B> {
    fn new(backend: &'a B, model: &'a T5<B>, settings: &'a Step, lengths: &'a [usize]) -> Result<Self> {
        let width = model.config().d_model;
        let mut random = ChaCha8Rng::seed_from_u64(0);
        let mut draw = |count: usize, half_width: f32| -> Vec<f32> {
            let mut value = || random.next_u32() as f32 / u32::MAX as f32 * 2.0 - 1.0;
            (0..count).map(|_| value() * half_width).collect()
        };
        let mixing = Mixing {
            scorer: (settings.sources > 0).then_some(Scorer::Bottleneck),
            temperature: width as f64 * std::f64::consts::E,
            without_target: false,
            layer_norm_epsilon: 1e-5,
        };
        let length = settings.prompt_length;
        let layout = StateLayout::new(&mixing, 1, length, width, 100, false);
        let values: Vec<f64> = draw(settings.runs * layout.len(), 0.1).into_iter().map(f64::from).collect();
        let state = backend.state(&layout, &values, settings.runs)?;
        let sources = (settings.sources > 0).then(|| {
            backend.sources(&draw(settings.sources * length * width, 1.0), settings.sources, length, width)
        });
        let sources = sources.transpose()?;
        let mixture = Mixture { mixing, sources, source_count: settings.sources, layout };
        Ok(Self {
            backend,
            model,
            mixture,
            state,
            graph_cache: B::GraphCache::default(),
            lengths,
            settings,
            next: 0,
            steps: 0,
            random,
        })
    }

    fn batch(&mut self) -> Result<Batch> {
        let vocabulary = self.model.config().vocab_size as u32;
        let random = &mut self.random;
        let mut ids = |count: usize| (0..count).map(|_| 2 + random.next_u32() % (vocabulary - 2)).collect();
        let of_run = self.settings.batch_size / self.settings.runs;
        let examples: Vec<Example> = (0..self.settings.batch_size)
            .map(|at| {
                let source = ids(self.lengths[(self.next + at) % self.lengths.len()]);
                let target = ids(self.settings.target_length);
                let (run, index) = ((at / of_run) as u32, (at % of_run) as u32);
                Example { source, target, index, run, ..Example::default() }
            })
            .collect();
        self.next += self.settings.batch_size;
        Batch::pack(&examples, self.settings.prompt_length, 0, vocabulary as usize)
    }

    /// Times `repeats` passes of `steps` steps. Those before, `unmeasured` in number, are of the same batches if there are
    /// as many of them, else of the batches before.
    fn measure(
        &mut self,
        repeats: usize,
        steps: usize,
        unmeasured: usize,
        mut pass: impl FnMut(&mut Self) -> Result<Passed>,
    ) -> Result<Timing> {
        self.next = 0;
        let mut timing = Timing { milliseconds: Vec::new(), steps, tokens: 0, operations: 0 };
        for _ in 0..unmeasured {
            pass(self)?;
        }
        if unmeasured == repeats {
            self.next = 0;
        }
        for _ in 0..repeats {
            let passed = pass(self)?;
            timing.milliseconds.push(passed.milliseconds / steps as f64);
            timing.tokens += passed.tokens;
            timing.operations += passed.operations;
        }
        Ok(timing)
    }

    fn dropout(&self) -> Option<DropoutStep> {
        DropoutStep::new(self.settings.dropout, self.steps, &vec![0; self.settings.runs])
    }

    fn label_tokens(&self, batch: &Batch) -> Vec<usize> {
        (0..self.settings.runs).map(|run| batch.label_tokens(run)).collect()
    }

    fn tokens(&self, batch: &Batch) -> usize {
        (0..batch.examples()).map(|b| batch.source(b).len()).sum::<usize>() + batch.labels().len()
    }

    fn forward(&mut self) -> Result<Passed> {
        let batch = self.batch()?;
        let dropout = self.dropout();
        let before = self.backend.operations();
        let started = Instant::now();
        let pass = Pass { dropout: dropout.as_ref(), keep: false, observe: None };
        let tokens = self.label_tokens(&batch);
        self.model.loss(self.backend, &self.mixture, &self.state, &batch, &tokens, pass)?;
        Ok(Passed {
            milliseconds: started.elapsed().as_secs_f64() * 1e3,
            tokens: self.tokens(&batch),
            operations: self.backend.operations() - before,
        })
    }

    /// Training steps as training takes them: issued one after the other, then read back together.
    fn steps(&mut self, count: usize) -> Result<Passed> {
        let mut batches = (0..count).map(|_| self.batch()).collect::<Result<Vec<_>>>()?;
        let tokens = batches.iter().map(|batch| self.tokens(batch)).sum();
        let schedule = vec![OptimizerStep::new(1e-3, 1e-3); self.settings.runs];
        let before = self.backend.operations();
        let started = Instant::now();
        for batch in &mut batches {
            let dropout = self.dropout();
            let weights = label_weights(batch, &self.label_tokens(batch));
            *batch = batch.clone().weighted(weights)?;
            let micro = MicroBatch { batch, dropout: dropout.as_ref(), first: true, last: Some(&schedule) };
            let (state, graph_cache) = (&mut self.state, &mut self.graph_cache);
            self.model.train(self.backend, &self.mixture, state, graph_cache, &micro)?;
            self.steps += 1;
        }
        self.backend.reports(&mut self.state)?;
        let milliseconds = started.elapsed().as_secs_f64() * 1e3;
        let mut operations = self.backend.operations() - before;
        // A device that records steps counts them by their shape, whose room is more than a batch's rows: those are counted here.
        let mut counted = 0;
        for batch in &batches {
            let dropout = self.dropout();
            let micro = MicroBatch { batch, dropout: dropout.as_ref(), first: true, last: Some(&schedule) };
            let of_step = self.model.step_operations(self.backend, &self.mixture, &mut self.state, &micro)?;
            counted += of_step.unwrap_or(0);
            if of_step.is_some() {
                operations = counted;
            }
        }
        Ok(Passed { milliseconds, tokens, operations })
    }
}

/// What a pass took, and what was in it.
struct Passed {
    milliseconds: f64,
    tokens: usize,
    operations: u64,
}

/// This process's largest resident size so far, in MiB; 0 where the system does not tell.
fn peak_memory() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kilobytes = line.and_then(|line| line.split_whitespace().next()?.parse::<f64>().ok());
    kilobytes.unwrap_or(0.0) / 1024.0
}
