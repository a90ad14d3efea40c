//! Small random models before random batches. Every size differs from every other, H·K is not D, norm gains lie far
//! from 1, and no length is a multiple of a vector's width.

use promptmix::backend::cpu::{Cpu, Element};
use promptmix::backend::{Backend, Batch, DropoutStep, Example, Mixing, Scorer, StateLayout};
use promptmix::model::{Mixture, Pass, StepLoss, T5, Tensors};
use promptmix::pretrained::{Activation, T5Config};

use crate::random::Random;

/// Random weights of a configuration's shapes.
#[derive(Clone, Debug)]
pub struct RandomTensors {
    pub config: T5Config,
    /// One number of one tensor that is NaN.
    pub poisoned: Option<(String, usize)>,
}

impl Tensors for RandomTensors {
    fn config(&self) -> &T5Config {
        &self.config
    }

    fn read_into(&self, name: &str, shape: &[usize], values: &mut [f32]) -> promptmix::Result<()> {
        let known = self.config.tensors();
        let expected = known.iter().find(|(known, _)| known == name).map(|(_, shape)| shape.as_slice());
        assert_eq!(expected, Some(shape), "the loader asked for {name}");
        let seed =
            name.bytes().fold(17_u64, |hash, byte| hash.wrapping_mul(1_099_511_628_211) ^ u64::from(byte));
        let mut random = Random::new(seed);
        let fan_in = shape.last().map_or(1.0, |&columns| (columns as f64).powf(-0.5));
        for value in values.iter_mut() {
            *value = if name.ends_with("layer_norm.weight") {
                let sign = if random.uniform() < 0.25 { -1.0 } else { 1.0 };
                sign * (0.4 + 2.1 * random.uniform())
            } else if name == "shared.weight" {
                random.normal()
            } else if name.contains("relative_attention_bias") {
                0.7 * random.normal()
            } else if name.ends_with(".q.weight") {
                // T5 does not scale its scores: the initial spread of q does.
                random.normal() * fan_in * (self.config.d_kv as f64).powf(-0.5)
            } else {
                random.normal() * fan_in
            } as f32;
        }
        if let Some((_, index)) = self.poisoned.as_ref().filter(|(poisoned, _)| poisoned == name) {
            values[*index] = f32::NAN;
        }
        Ok(())
    }

    fn output_is_tied(&self) -> promptmix::Result<bool> {
        Ok(self.config.tie_word_embeddings)
    }
}

/// V 61, D 13, K 4, H 3, F 11.
pub fn small_config(activation: Activation, tied: bool, layers: usize, decoder_layers: usize) -> T5Config {
    let mut config = T5Config::new(61, 13, 4, 11, layers, 3);
    config.num_decoder_layers = decoder_layers;
    config.activation = activation;
    config.tie_word_embeddings = tied;
    config.relative_attention_num_buckets = 6;
    config.relative_attention_max_distance = 9;
    config
}

/// An example of `source` random source and `target` random target tokens.
pub fn example(random: &mut Random, config: &T5Config, source: usize, target: usize, index: u32) -> Example {
    let mut ids = |count: usize| (0..count).map(|_| 2 + random.below(config.vocab_size - 2) as u32).collect();
    Example { source: ids(source), target: ids(target), index, ..Example::default() }
}

/// Examples of one run with the given source and target lengths, indexed in order.
pub fn examples(seed: u64, config: &T5Config, lengths: &[(usize, usize)]) -> Vec<Example> {
    let mut random = Random::new(seed);
    let lengths = lengths.iter().enumerate();
    lengths.map(|(index, &(n, t))| example(&mut random, config, n, t, index as u32)).collect()
}

/// Every way to score.
pub const SCORERS: [Scorer; 6] =
    [Scorer::Bottleneck, Scorer::Linear, Scorer::Dot, Scorer::Token, Scorer::Uniform, Scorer::Constant];

/// A model, a mixture and a batch to be made.
#[derive(Clone, Debug)]
pub struct Setting {
    pub tensors: RandomTensors,
    pub mixing: Mixing,
    pub learnt_temperature: bool,
    /// Whether the state has a mean and a scale of every pooled input.
    pub standardized: bool,
    /// S.
    pub sources: usize,
    /// M.
    pub prompt_length: usize,
    /// Q.
    pub bottleneck_dim: usize,
    /// Target prompts a run.
    pub targets: usize,
    pub runs: usize,
    pub examples: Vec<Example>,
    /// Dropout's probability and step.
    pub dropout: (f64, u64),
    /// Width up to which the padding token joins the pool.
    pub pooled_padding: Option<(usize, u32)>,
}

impl Setting {
    /// Bottleneck scorer, three sources, no dropout, one run with one target prompt.
    pub fn new(config: T5Config, examples: Vec<Example>) -> Self {
        Self {
            tensors: RandomTensors { config, poisoned: None },
            mixing: Mixing {
                scorer: Some(Scorer::Bottleneck),
                temperature: 4.0,
                without_target: false,
                layer_norm_epsilon: 1e-5,
            },
            learnt_temperature: false,
            standardized: false,
            sources: 3,
            prompt_length: 5,
            bottleneck_dim: 7,
            targets: 1,
            runs: 1,
            examples,
            dropout: (0.0, 0),
            pooled_padding: None,
        }
    }

    pub fn config(&self) -> &T5Config {
        &self.tensors.config
    }

    pub fn pack(&self, examples: &[Example]) -> Batch {
        let config = self.config();
        let start = config.decoder_start_token_id;
        let batch = Batch::pack(examples, self.prompt_length, start, config.vocab_size).expect("a batch");
        match self.pooled_padding {
            Some((width, padding)) => batch.pooling_padding(width, padding),
            None => batch,
        }
    }

    /// On `threads` threads, with poisoned buffers: a value read before it is written shows as NaN.
    pub fn build<E: Element>(&self, threads: usize) -> Case<Cpu<E>> {
        self.build_on(Cpu::poisoning(Some(threads)).expect("threads"))
    }

    pub fn build_on<B: Backend>(&self, backend: B) -> Case<B> {
        let model = T5::load(&backend, &self.tensors).expect("a model");
        let width = self.config().d_model;
        let layout = StateLayout::new(
            &self.mixing,
            self.targets,
            self.prompt_length,
            width,
            self.bottleneck_dim,
            self.learnt_temperature,
        );
        let layout = match self.mixing.scorer {
            Some(Scorer::Constant) => {
                layout.with_logits(self.sources + usize::from(!self.mixing.without_target))
            }
            _ => layout,
        };
        let layout = if self.standardized { layout.with_standardized_inputs() } else { layout };
        let sources = (self.mixing.scorer.is_some() && self.sources > 0).then(|| {
            let values = Random::new(3).normals(self.sources * self.prompt_length * width, 1.0);
            let values: Vec<f32> = values.iter().map(|&value| value as f32).collect();
            backend.sources(&values, self.sources, self.prompt_length, width).expect("sources")
        });
        let values = (0..self.runs).flat_map(|run| start(&layout, run as u64)).collect();
        let seeds: Vec<u64> = (0..self.runs as u64).map(|run| 1_000 + run).collect();
        Case {
            batch: self.pack(&self.examples),
            mixture: Mixture { mixing: self.mixing.clone(), sources, source_count: self.sources, layout },
            runs: self.runs,
            dropout: DropoutStep::new(self.dropout.0, self.dropout.1, &seeds),
            backend,
            model,
            values,
        }
    }
}

/// Random parameters of one run, rounded to f32 so that both formats start alike.
fn start(layout: &StateLayout, run: u64) -> Vec<f64> {
    let mut values = vec![0.0; layout.len()];
    for (number, segment) in layout.segments().iter().enumerate() {
        let mut random = Random::new(100 * run + number as u64);
        let fan_in = segment.shape.last().map_or(1.0, |&columns| (columns as f64).powf(-0.5));
        for value in &mut values[segment.range.clone()] {
            let exact = match segment.name {
                "target_prompts" => random.normal(),
                "norm_weight" => 1.0 + 0.3 * random.normal(),
                "norm_bias" => 0.3 * random.normal(),
                "log_temperature" => 4.0_f64.ln() + 0.1 * random.normal(),
                _ => fan_in * random.normal(),
            };
            *value = f64::from(exact as f32);
        }
    }
    values
}

/// All that a step needs.
pub struct Case<B: Backend> {
    pub backend: B,
    pub model: T5<B>,
    pub mixture: Mixture<B>,
    pub batch: Batch,
    /// Parameters of all runs.
    pub values: Vec<f64>,
    pub runs: usize,
    pub dropout: Option<DropoutStep>,
}

impl<B: Backend> Case<B> {
    pub fn label_tokens(&self) -> Vec<usize> {
        (0..self.runs).map(|run| self.batch.label_tokens(run)).collect()
    }

    /// Each run's loss at `values`.
    pub fn loss(&self, values: &[f64]) -> Vec<f64> {
        let state = self.backend.state(&self.mixture.layout, values, self.runs).expect("a state");
        let pass = Pass { dropout: self.dropout.as_ref(), keep: false, observe: None };
        let tokens = self.label_tokens();
        let loss = self.model.loss(&self.backend, &self.mixture, &state, &self.batch, &tokens, pass);
        loss.expect("a loss").per_run
    }

    /// The loss and its gradient, flat over all runs.
    pub fn gradient(&self) -> (StepLoss, Vec<f64>) {
        self.gradient_of(&self.batch, &self.label_tokens())
    }

    /// As [`Case::gradient`] for another batch, each of its rows weighted by one over `label_tokens` of its run.
    pub fn gradient_of(&self, batch: &Batch, label_tokens: &[usize]) -> (StepLoss, Vec<f64>) {
        let mut state = self.backend.state(&self.mixture.layout, &self.values, self.runs).expect("a state");
        let dropout = self.dropout.as_ref();
        let loss = self.model.loss_and_gradient(
            &self.backend,
            &self.mixture,
            &mut state,
            batch,
            label_tokens,
            dropout,
        );
        (loss.expect("a loss").0, self.backend.read_gradient(&state).expect("a gradient"))
    }
}
