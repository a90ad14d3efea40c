//! Judging a run: answers by greedy decoding or by ranking the label strings, through the same encode as training.

use crate::backend::{Backend, Batch, Example};
use crate::config::Decoding;
use crate::data::Examples;
use crate::error::Result;
use crate::metrics::Scores;
use crate::model::{Frozen, Mixture, Pass};
use crate::tasks::Task;

/// How a set of examples is answered and judged.
pub struct Evaluator<'a, B: Backend> {
    /// The frozen model and its tokenizer.
    pub frozen: &'a Frozen<'a, B>,
    /// The mixture before it.
    pub mixture: &'a Mixture<B>,
    /// The task that judges.
    pub task: &'a Task,
    /// Which of the run's target prompts stands before the examples.
    pub target_prompt: u32,
    /// How answers are got.
    pub decoding: Decoding,
    /// Examples a batch.
    pub batch_size: usize,
    /// Tokens of an answer at most.
    pub longest_target: usize,
    /// Whether padding up to this many tokens joins the pool.
    pub pooled_width: Option<usize>,
}

/// What a run said to a set of examples.
#[derive(Clone, Debug)]
pub struct Evaluation {
    /// The task's metrics.
    pub scores: Scores,
    /// Each example's answer, as text.
    pub answers: Vec<String>,
    /// Each example's mixture, the target prompt last; for the token scorer the mean over rows. Empty rows without a
    /// scorer.
    pub attention: Vec<Vec<f64>>,
}

impl Evaluation {
    /// The mixture averaged over all examples.
    pub fn mean_attention(&self) -> Vec<f64> {
        let mut mean = vec![0.0; self.attention.first().map_or(0, Vec::len)];
        for row in &self.attention {
            for (mean, value) in mean.iter_mut().zip(row) {
                *mean += value / self.attention.len() as f64;
            }
        }
        mean
    }
}

impl<B: Backend> Evaluator<'_, B> {
    /// Answers every example with `target_prompt` of the run's state, and judges the answers. `progress` hears how many
    /// examples are done.
    ///
    /// # Errors
    /// Those of decoding text and of the metrics.
    pub fn evaluate(
        &self,
        state: &B::State,
        examples: &Examples,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Evaluation> {
        let mut sources = Vec::with_capacity(examples.len());
        sources.extend((0..examples.len()).map(|index| examples.source(index)));
        let (answers, attention) = self.answer(state, &sources, progress)?;
        let predictions = self.task.predictions(&answers);
        let scores = Scores::new(&self.task.metrics, &predictions, examples.references())?;
        Ok(Evaluation { scores, answers, attention })
    }

    /// The answer to each tokenised source, and its mixture.
    ///
    /// # Errors
    /// As [`Evaluator::evaluate`].
    pub fn answer(
        &self,
        state: &B::State,
        sources: &[Vec<u32>],
        progress: &mut dyn FnMut(usize),
    ) -> Result<(Vec<String>, Vec<Vec<f64>>)> {
        let (model, backend) = (&self.frozen.model, self.frozen.backend);
        let config = model.config();
        let labels = match self.decoding {
            Decoding::Labels => self.task.labels(),
            Decoding::Greedy => None,
        };
        let candidates = labels
            .as_deref()
            .unwrap_or_default()
            .iter()
            .map(|label| self.frozen.tokenizer.encode(label))
            .collect::<Result<Vec<_>>>()?;
        let mut answers = Vec::with_capacity(sources.len());
        let mut attention = Vec::with_capacity(sources.len());
        for sources in sources.chunks(self.batch_size.max(1)) {
            // The decoder's rows are set for each candidate or step; a batch needs some to begin with.
            let target = vec![config.eos_token_id];
            let packed: Vec<Example> = sources
                .iter()
                .map(|source| Example {
                    source: source.clone(),
                    target: target.clone(),
                    target_prompt: self.target_prompt,
                    ..Example::default()
                })
                .collect();
            let batch = Batch::pack(
                &packed,
                self.mixture.layout.prompt_length,
                config.decoder_start_token_id,
                config.vocab_size,
            )?;
            let batch = match self.pooled_width {
                Some(width) => batch.pooling_padding(width, config.pad_token_id),
                None => batch,
            };
            let encoding = model.encode(backend, self.mixture, state, &batch, &mut Pass::evaluation());
            let weights = backend.attention(encoding.mix());
            let per_example = weights.len() / sources.len().max(1);
            let prompts = self.prompts();
            for b in 0..sources.len() {
                attention.push(mean_rows(&weights[b * per_example..(b + 1) * per_example], prompts));
            }
            if let Some(labels) = &labels {
                for scores in model.score(backend, &batch, &encoding, &candidates)? {
                    // The first of equals, as the table lists them.
                    let best = (1..scores.len())
                        .fold(0, |best, other| if scores[other] > scores[best] { other } else { best });
                    answers.push(labels[best].clone());
                }
            } else {
                for said in model.greedy(backend, &batch, &encoding, self.longest_target)? {
                    answers.push(self.frozen.tokenizer.decode(&said)?.trim().to_owned());
                }
            }
            progress(answers.len());
        }
        Ok((answers, attention))
    }

    /// Prompts in the mixture.
    fn prompts(&self) -> usize {
        self.mixture.source_count + usize::from(!self.mixture.mixing.without_target)
    }
}

fn mean_rows(weights: &[f64], prompts: usize) -> Vec<f64> {
    if weights.is_empty() {
        return Vec::new();
    }
    let rows = weights.len() / prompts;
    let mut mean = vec![0.0; prompts];
    for row in weights.chunks_exact(prompts) {
        for (mean, weight) in mean.iter_mut().zip(row) {
            *mean += weight / rows as f64;
        }
    }
    mean
}
