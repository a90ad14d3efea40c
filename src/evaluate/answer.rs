//! Answers to tokenised questions, of different runs and tasks in one batch.

use super::Spellings;
use crate::backend::{Backend, Batch, Example};
use crate::error::{Error, Result};
use crate::model::{Encoding, Frozen, Mixture, Pass};

/// How one question is answered.
#[derive(Clone, Copy, Debug)]
pub enum Answering<'a> {
    /// Token after token, the most likely, up to so many.
    Greedy {
        /// Tokens at most.
        longest: usize,
        /// Labels that an answer may be, as their tokens read.
        spellings: &'a Spellings,
    },
    /// The most likely of these texts, the first of equals.
    Labels {
        /// The texts.
        texts: &'a [String],
        /// Their tokens, end mark included.
        tokens: &'a [Vec<u32>],
    },
}

/// One question.
#[derive(Clone, Debug)]
pub struct Question<'a> {
    /// Token ids of the source text, end mark included.
    pub source: Vec<u32>,
    /// The run, in the state's stack, that answers. Questions of a batch come in ascending order of runs.
    pub run: u32,
    /// Which of the run's target prompts it uses.
    pub target_prompt: u32,
    /// How it is answered.
    pub answering: Answering<'a>,
}

/// What was said.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Answer {
    /// The text.
    pub text: String,
    /// The mixture's weights, the target prompt last; for the token scorer the mean over rows. Empty without a scorer.
    pub attention: Vec<f64>,
}

/// Answers one batch of questions. `pooled_width`: padding up to so many tokens joins the pool. `graph_cache` has answered for this
/// model, mixture and state alone.
///
/// # Errors
/// Those of packing a batch, of the device and of decoding text.
pub fn answer<B: Backend>(
    frozen: &Frozen<'_, B>,
    mixture: &Mixture<B>,
    state: &B::State,
    pooled_width: Option<usize>,
    graph_cache: &mut B::GraphCache,
    questions: &[Question<'_>],
) -> Result<Vec<Answer>> {
    let (model, backend) = (&frozen.model, frozen.backend);
    let config = model.config();
    // The decoder's rows are set for each candidate or step; a batch needs some to begin with.
    let packed: Vec<Example> = questions
        .iter()
        .map(|question| Example {
            source: question.source.clone(),
            target: vec![config.eos_token_id],
            run: question.run,
            target_prompt: question.target_prompt,
            ..Example::default()
        })
        .collect();
    let length = mixture.layout.prompt_length;
    let batch = Batch::pack(&packed, length, config.decoder_start_token_id, config.vocab_size)?;
    let batch = match pooled_width {
        Some(width) => batch.pooling_padding(width, config.pad_token_id),
        None => batch,
    };
    let prompts = mixture.source_count + usize::from(!mixture.mixing.without_target);

    let candidates: Vec<&[Vec<u32>]> = questions
        .iter()
        .map(|question| match question.answering {
            Answering::Labels { tokens, .. } => tokens,
            Answering::Greedy { .. } => &[],
        })
        .collect();
    let (mut weights, mut scores) = (Vec::new(), Vec::new());
    let mut encoded = |batch: &Batch, encoding: &Encoding<B>| -> Result<()> {
        weights = backend.attention(encoding.mix())?;
        if candidates.iter().any(|candidates| !candidates.is_empty()) {
            scores = model.score(backend, batch, encoding, &candidates)?;
        }
        Ok(())
    };
    let longest = questions.iter().filter_map(|question| match question.answering {
        Answering::Greedy { longest, .. } => Some(longest),
        Answering::Labels { .. } => None,
    });
    let said = match longest.max() {
        Some(longest) => {
            let batch = batch.decoded(config.decoder_start_token_id, longest)?;
            model.answer(backend, mixture, state, graph_cache, &batch, encoded)?
        }
        None => {
            let encoding = model.encode(backend, mixture, state, &batch, &mut Pass::evaluation())?;
            encoded(&batch, &encoding)?;
            Vec::new()
        }
    };
    if !weights.iter().all(|weight| weight.is_finite()) {
        let advice = "the numbers of its scorer or of one of its prompts are likely too large";
        return Err(Error::tensor("the mixture's weights", "finite numbers", "one that is not", advice));
    }
    let per_example = weights.len() / questions.len().max(1);
    questions
        .iter()
        .enumerate()
        .map(|(b, question)| {
            let text = match question.answering {
                Answering::Labels { texts, .. } => {
                    let scores = &scores[b];
                    let best = (1..scores.len())
                        .fold(0, |best, other| if scores[other] > scores[best] { other } else { best });
                    texts[best].clone()
                }
                Answering::Greedy { longest, spellings } => {
                    // What a longer limit of another row let it say is not part of its answer.
                    let said = &said[b][..said[b].len().min(longest)];
                    spellings.label(frozen.tokenizer.decode(said)?.trim().to_owned())
                }
            };
            let attention = mean_rows(&weights[b * per_example..(b + 1) * per_example], prompts);
            Ok(Answer { text, attention })
        })
        .collect()
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
