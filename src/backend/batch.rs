//! A ragged batch: examples packed end to end with offsets. No padding row exists.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// The decoder or the encoder: which of a batch's two row packings an op works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// R rows: the M prompt rows of an example, then its n_b source tokens; attention looks both ways.
    Encoder,
    /// T rows: the t_b target tokens of an example; attention is causal.
    Decoder,
}

/// Which encoder rows an op works on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// Every row.
    All,
    /// The M prompt rows of each example, B·M in all: in the first layer nothing else leads to a trained number.
    Prompt,
}

/// What a label row's loss is, beside its weight: plain cross entropy unless said otherwise.
///
/// loss = (1 - e)·(lse - z_label) + e·(lse - mean_v z_v) + zeta·lse² with lse = log sum_v e^(z_v) over the row's logits z.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Objective {
    /// e, from 0 up to below 1: the part of the target that is spread over the vocabulary (Szegedy et al., 2016).
    pub label_smoothing: f64,
    /// zeta, from 0: keeps the log-sum-exp of the logits near 0 (Chowdhery et al., 2022).
    pub z_loss: f64,
}

/// One example before packing.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Example {
    /// Token ids of the source text, end-of-sequence included; n_b of them.
    pub source: Vec<u32>,
    /// Token ids of the target text, end-of-sequence included; t_b of them.
    pub target: Vec<u32>,
    /// The example's index within its run's step (over all ranks and micro-batches): the key of its dropout masks.
    pub index: u32,
    /// The run whose scorer, loss and optimizer the example belongs to.
    pub run: u32,
    /// Which of the run's target prompts it uses (its task).
    pub target_prompt: u32,
}

/// B examples packed end to end. A copy shares the numbers: it costs as much for any number of rows.
#[derive(Clone, Debug)]
pub struct Batch {
    prompt_length: usize,
    vocabulary: usize,
    source_ids: Arc<[u32]>,
    source_offsets: Arc<[usize]>,
    labels: Arc<[u32]>,
    decoder_ids: Arc<[u32]>,
    target_offsets: Arc<[usize]>,
    index: Arc<[u32]>,
    run: Arc<[u32]>,
    target_prompt: Arc<[u32]>,
    pooled_padding: Option<(usize, u32)>,
    row_weights: Arc<[f64]>,
    objective: Objective,
    /// Tokens that are decoded at most, where they are decoded one after the other.
    decoding: Option<usize>,
    /// Rows of the encoder and the decoder, and target rows of an example, that buffers and grids are made for, where those
    /// are more than there are.
    capacity: [usize; 3],
    /// Differs between any two batches of a process that may differ in content.
    id: u64,
}

fn fresh_id() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

impl Batch {
    /// Packs `examples`, which must be grouped by run, each after a prompt of `prompt_length` rows.
    ///
    /// The decoder reads its labels shifted right after `decoder_start`.
    ///
    /// # Errors
    /// [`Error::Setting`] for no examples, an example without a source or target token, a token outside the
    /// vocabulary, or examples whose runs are not in ascending order.
    pub fn pack(
        examples: &[Example],
        prompt_length: usize,
        decoder_start: u32,
        vocabulary: usize,
    ) -> Result<Self> {
        let reject = |expected: &str, found: String| Err(Error::setting("batch", expected, found, ""));
        if examples.is_empty() {
            return reject("at least one example", "none".into());
        }
        let (mut source_ids, mut source_offsets) = (Vec::new(), vec![0]);
        let (mut labels, mut decoder_ids, mut target_offsets) = (Vec::new(), Vec::new(), vec![0]);
        let mut last_run = 0;
        for (position, example) in examples.iter().enumerate() {
            if example.source.is_empty() || example.target.is_empty() {
                return reject(
                    "at least one source and one target token an example",
                    format!("{} and {} in example {position}", example.source.len(), example.target.len()),
                );
            }
            let tokens = example.source.iter().chain(&example.target).chain([&decoder_start]);
            if let Some(id) = tokens.copied().find(|&id| id as usize >= vocabulary) {
                return reject(
                    &format!("token ids below {vocabulary}"),
                    format!("{id} in example {position}: the tokenizer does not fit the model"),
                );
            }
            if last_run > example.run {
                return reject("examples grouped by run, in ascending order", format!("run {}", example.run));
            }
            last_run = example.run;
            source_ids.extend_from_slice(&example.source);
            source_offsets.push(source_ids.len());
            labels.extend_from_slice(&example.target);
            decoder_ids.push(decoder_start);
            decoder_ids.extend_from_slice(&example.target[..example.target.len() - 1]);
            target_offsets.push(labels.len());
        }
        let of_each = |number: fn(&Example) -> u32| examples.iter().map(number).collect();
        Ok(Self {
            prompt_length,
            vocabulary,
            source_ids: source_ids.into(),
            source_offsets: source_offsets.into(),
            row_weights: vec![0.0; labels.len()].into(),
            labels: labels.into(),
            decoder_ids: decoder_ids.into(),
            target_offsets: target_offsets.into(),
            index: of_each(|example| example.index),
            run: of_each(|example| example.run),
            target_prompt: of_each(|example| example.target_prompt),
            pooled_padding: None,
            objective: Objective::default(),
            decoding: None,
            capacity: [0; 3],
            id: fresh_id(),
        })
    }

    /// Lets the embedding of `padding` join the pool of every example shorter than `width` tokens, as the released code
    /// does. `padding` must be in the vocabulary.
    #[must_use]
    pub fn pooling_padding(mut self, width: usize, padding: u32) -> Self {
        self.pooled_padding = Some((width, padding));
        self.id = fresh_id();
        self
    }

    /// The batch with a weight for each decoder row's loss, T values; without it they are all 0.
    ///
    /// # Errors
    /// [`Error::Setting`] if there are not T weights.
    pub fn weighted(mut self, row_weights: Vec<f64>) -> Result<Self> {
        if row_weights.len() != self.labels.len() {
            let expected = format!("{}, one a decoder row", self.labels.len());
            return Err(Error::setting("row weights", expected, row_weights.len().to_string(), ""));
        }
        self.row_weights = row_weights.into();
        self.id = fresh_id();
        Ok(self)
    }

    /// The batch to be learnt from by `objective`; without it the loss is plain cross entropy.
    #[must_use]
    pub fn with_objective(mut self, objective: Objective) -> Self {
        self.objective = objective;
        self.id = fresh_id();
        self
    }

    /// What the loss of each row is.
    pub fn objective(&self) -> Objective {
        self.objective
    }

    /// The same encoder rows with other decoder rows: `decoder_ids[b]` are read by example b, and scored against
    /// `labels[b]`. Used to rank label strings and to decode a token at a time after one encoding.
    ///
    /// # Errors
    /// [`Error::Setting`] if there are not B of each, an example's lengths differ or are zero, or a token lies outside
    /// the vocabulary.
    pub fn with_decoder(&self, decoder_ids: &[Vec<u32>], labels: &[Vec<u32>]) -> Result<Self> {
        let fits = decoder_ids.len() == self.examples()
            && labels.len() == self.examples()
            && decoder_ids
                .iter()
                .zip(labels)
                .all(|(ids, labels)| ids.len() == labels.len() && !ids.is_empty());
        if !fits {
            return Err(Error::setting(
                "decoder rows",
                format!(
                    "as many labels as input ids, at least one, for each of {} examples",
                    self.examples()
                ),
                format!("{} and {} rows", decoder_ids.len(), labels.len()),
                "",
            ));
        }
        let tokens = decoder_ids.iter().chain(labels).flatten();
        if let Some(id) = tokens.copied().find(|&id| id as usize >= self.vocabulary) {
            return Err(Error::setting(
                "decoder rows",
                format!("token ids below {}", self.vocabulary),
                format!("{id}: the tokenizer does not fit the model"),
                "",
            ));
        }
        let ends = labels.iter().scan(0, |end, labels| {
            *end += labels.len();
            Some(*end)
        });
        let labels: Arc<[u32]> = labels.concat().into();
        Ok(Self {
            row_weights: vec![0.0; labels.len()].into(),
            labels,
            decoder_ids: decoder_ids.concat().into(),
            target_offsets: std::iter::once(0).chain(ends).collect(),
            objective: Objective::default(),
            decoding: None,
            capacity: [self.capacity[0], 0, 0],
            id: fresh_id(),
            ..self.clone()
        })
    }

    /// The same encoder rows to be answered token by token, up to `longest` of them: each example has one decoder row, which reads
    /// `start` first.
    ///
    /// # Errors
    /// [`Error::Setting`] if `start` lies outside the vocabulary.
    pub fn decoded(&self, start: u32, longest: usize) -> Result<Self> {
        let first = vec![vec![start]; self.examples()];
        Ok(Self { decoding: Some(longest), ..self.with_decoder(&first, &first)? })
    }

    /// Tokens that are decoded at most, of a batch that is [`Batch::decoded`].
    pub fn decoding(&self) -> Option<usize> {
        self.decoding
    }

    /// The range `examples` as a batch of its own, without room for more rows; all examples are the batch as it is.
    ///
    /// # Panics
    /// If there are not so many examples.
    #[must_use]
    pub fn part(&self, examples: Range<usize>) -> Self {
        if examples == (0..self.examples()) {
            return self.clone();
        }
        let offsets = |offsets: &[usize]| -> Arc<[usize]> {
            let of = &offsets[examples.start..=examples.end];
            of.iter().map(|offset| offset - of[0]).collect()
        };
        let sources = self.source_offsets[examples.start]..self.source_offsets[examples.end];
        let targets = self.target_offsets[examples.start]..self.target_offsets[examples.end];
        Self {
            prompt_length: self.prompt_length,
            vocabulary: self.vocabulary,
            source_ids: self.source_ids[sources].into(),
            source_offsets: offsets(&self.source_offsets),
            labels: self.labels[targets.clone()].into(),
            decoder_ids: self.decoder_ids[targets.clone()].into(),
            target_offsets: offsets(&self.target_offsets),
            index: self.index[examples.clone()].into(),
            run: self.run[examples.clone()].into(),
            target_prompt: self.target_prompt[examples.clone()].into(),
            pooled_padding: self.pooled_padding,
            row_weights: self.row_weights[targets].into(),
            objective: self.objective,
            decoding: self.decoding,
            capacity: [0; 3],
            id: fresh_id(),
        }
    }

    /// Two batches of one number have the same content: a device may store a batch's descriptor under it.
    pub fn id(&self) -> u64 {
        self.id
    }

    /// The weight of each decoder row's loss, T values.
    pub fn row_weights(&self) -> &[f64] {
        &self.row_weights
    }

    /// Token ids are below it.
    pub fn vocabulary(&self) -> usize {
        self.vocabulary
    }

    /// B.
    pub fn examples(&self) -> usize {
        self.run.len()
    }

    /// M.
    pub fn prompt_length(&self) -> usize {
        self.prompt_length
    }

    /// The batch with room for `encoder` and `decoder` rows, and for `target` of the latter in one example: activations are
    /// made for so many, ops leave those after the real ones alone. One captured graph then serves every batch of that room.
    #[must_use]
    pub fn with_capacity(mut self, encoder: usize, decoder: usize, target: usize) -> Self {
        self.capacity = [encoder, decoder, target];
        self.id = fresh_id();
        self
    }

    /// The most target rows that an example has, or the batch's capacity for them where that is more.
    pub fn longest_target(&self) -> usize {
        let lengths = self.target_offsets.windows(2).map(|pair| pair[1] - pair[0]);
        lengths.max().unwrap_or(0).max(self.capacity[2])
    }

    /// Rows that activations are made for: R or T, or the batch's capacity where that is more.
    pub fn rows(&self, side: Side) -> usize {
        let capacity = match side {
            Side::Encoder => self.capacity[0],
            Side::Decoder => self.capacity[1],
        };
        self.real_rows(side).max(capacity)
    }

    /// R for the encoder, T for the decoder.
    pub fn real_rows(&self, side: Side) -> usize {
        match side {
            Side::Encoder => self.source_ids.len() + self.examples() * self.prompt_length,
            Side::Decoder => self.labels.len(),
        }
    }

    /// Rows of example `b` in the packing of `side`.
    pub fn range(&self, side: Side, b: usize) -> Range<usize> {
        match side {
            Side::Encoder => {
                self.source_offsets[b] + b * self.prompt_length
                    ..self.source_offsets[b + 1] + (b + 1) * self.prompt_length
            }
            Side::Decoder => self.target_offsets[b]..self.target_offsets[b + 1],
        }
    }

    /// Rows of example `b` that `scope` selects, in the packing of `side`; the decoder has no prompt rows.
    pub fn scoped_range(&self, side: Side, scope: Scope, b: usize) -> Range<usize> {
        let all = self.range(side, b);
        match scope {
            Scope::All => all,
            Scope::Prompt => all.start..all.start + self.prompt_length,
        }
    }

    /// Token ids of example `b`'s source.
    pub fn source(&self, b: usize) -> &[u32] {
        &self.source_ids[self.source_offsets[b]..self.source_offsets[b + 1]]
    }

    /// What the decoder reads, all examples, T ids.
    pub fn decoder_ids(&self) -> &[u32] {
        &self.decoder_ids
    }

    /// What the decoder should say, all examples, T ids.
    pub fn labels(&self) -> &[u32] {
        &self.labels
    }

    /// The index of example `b` within its run's step.
    pub fn example_index(&self, b: usize) -> u32 {
        self.index[b]
    }

    /// The run of example `b`.
    pub fn run(&self, b: usize) -> usize {
        self.run[b] as usize
    }

    /// The target prompt, within its run, of example `b`.
    pub fn target_prompt(&self, b: usize) -> usize {
        self.target_prompt[b] as usize
    }

    /// The padding token whose embedding joins the pool of example `b`, if one does.
    pub fn pooled_padding(&self, b: usize) -> Option<u32> {
        self.pooled_padding.filter(|(width, _)| self.source(b).len() < *width).map(|(_, padding)| padding)
    }

    /// Ranges of examples of one run, in order.
    pub fn runs(&self) -> Vec<(usize, Range<usize>)> {
        let mut ranges: Vec<(usize, Range<usize>)> = Vec::new();
        for b in 0..self.examples() {
            match ranges.last_mut() {
                Some((run, range)) if *run == self.run(b) => range.end = b + 1,
                _ => ranges.push((self.run(b), b..b + 1)),
            }
        }
        ranges
    }

    /// Label tokens of `run` in this batch.
    pub fn label_tokens(&self, run: usize) -> usize {
        let of_run = self.runs().into_iter().filter(|(of, _)| *of == run);
        of_run.map(|(_, range)| self.target_offsets[range.end] - self.target_offsets[range.start]).sum()
    }
}
