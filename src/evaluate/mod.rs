//! Evaluating runs: answers by greedy decoding or by ranking the label strings, through the same encode as training, and statistics over
//! several runs.

mod answer;
mod attention;
mod spelling;
mod statistics;

pub use answer::{Answer, Answering, Question, answer};
pub use attention::AttentionSpread;
pub use spelling::Spellings;
pub(crate) use statistics::first_best;
pub use statistics::{Paired, Spread, mean, standard_deviation};

use crate::backend::Backend;
use crate::config::Decoding;
use crate::data::{Counts, Examples};
use crate::error::Result;
use crate::metrics::Scores;
use crate::model::{Frozen, Mixture};
use crate::tasks::Task;

/// How a set of examples is answered and evaluated.
pub struct Evaluator<'a, B: Backend> {
    /// The frozen model and its tokenizer.
    pub frozen: &'a Frozen<'a, B>,
    /// The mixture before it.
    pub mixture: &'a Mixture<B>,
    /// The task that evaluates.
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
    /// Mean and spread of the mixtures.
    pub spread: AttentionSpread,
    /// Of the rows: how many there were, and how many were truncated.
    pub counts: Counts,
}

impl<B: Backend> Evaluator<'_, B> {
    /// Answers every example with `target_prompt` of the run's state, and evaluates the answers. `progress` hears how many
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
        let spread = AttentionSpread::new(&attention, self.mixture.source_count);
        Ok(Evaluation { scores, answers, attention, spread, counts: examples.counts() })
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
        let labels = match self.decoding {
            Decoding::Labels => self.task.labels(),
            Decoding::Greedy => None,
        };
        let tokens = labels
            .as_deref()
            .unwrap_or_default()
            .iter()
            .map(|label| self.frozen.tokenizer.encode(label))
            .collect::<Result<Vec<_>>>()?;
        let spellings = Spellings::new(&self.frozen.tokenizer, self.task)?;
        let answering = match &labels {
            Some(texts) => Answering::Labels { texts, tokens: &tokens },
            None => Answering::Greedy { longest: self.longest_target, spellings: &spellings },
        };
        let mut graph_cache = B::GraphCache::default();
        let mut answers = Vec::with_capacity(sources.len());
        let mut attention = Vec::with_capacity(sources.len());
        for sources in sources.chunks(self.batch_size.max(1)) {
            let questions: Vec<Question<'_>> = sources
                .iter()
                .map(|source| Question {
                    source: source.clone(),
                    run: 0,
                    target_prompt: self.target_prompt,
                    answering,
                })
                .collect();
            let (frozen, mixture, width) = (self.frozen, self.mixture, self.pooled_width);
            for answer in answer(frozen, mixture, state, width, &mut graph_cache, &questions)? {
                answers.push(answer.text);
                attention.push(answer.attention);
            }
            progress(answers.len());
        }
        Ok((answers, attention))
    }
}
