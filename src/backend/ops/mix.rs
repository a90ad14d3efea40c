//! The mixture of prompts.

use super::embedding::check_vocabulary;
use super::{Device, Mask, Matrix, OptimizerOps, Residual, check_length, check_mask};
use crate::backend::{Batch, Mixing, Scorer, Side, StateLayout};
use crate::error::{Error, Result};

/// Z_b = P_tgt + sum_j a_j P_j, with a from the pooled input of each example.
pub struct Mix<'a, D: MixOps> {
    /// How prompts are weighted.
    pub mixing: &'a Mixing,
    /// Frozen source prompts, if there are any.
    pub sources: Option<&'a D::Sources>,
    /// Whose prompt rows.
    pub batch: &'a Batch,
}

/// Where a mixture writes: the prompt rows of what the encoder reads. Token rows are the embedding's.
pub struct PromptRows<'a, D: Device> {
    /// x \[R, D\] and its norm.
    pub input: &'a mut Residual<D>,
    /// Dropout of the rows: the embedding's.
    pub mask: Mask<'a>,
    /// Epsilon of the norm of x.
    pub epsilon: f64,
}

impl<D: MixOps> Mix<'_, D> {
    /// Fails unless it fits a state, as [`check_mixture`] says, and what it writes has the batch's rows.
    pub(crate) fn check(
        &self,
        layout: &StateLayout,
        runs: usize,
        sources: Option<[usize; 3]>,
        output: &PromptRows<'_, D>,
    ) -> Result<()> {
        check_mixture(self.mixing, self.batch, layout, runs, sources)?;
        check_mask(output.mask, self.batch)?;
        output.input.check("x", self.batch.rows(Side::Encoder), layout.width)
    }

    /// Fails unless it fits a state, as [`check_mixture`] says, and `d_x` \[R, D\] has the batch's rows.
    pub(crate) fn check_gradient(
        &self,
        layout: &StateLayout,
        runs: usize,
        sources: Option<[usize; 3]>,
        d_x: &D::Rows,
    ) -> Result<()> {
        check_mixture(self.mixing, self.batch, layout, runs, sources)?;
        d_x.check("d_x", self.batch.rows(Side::Encoder), layout.width)
    }

    /// Fails unless `table` has a row of `width` for every token that inputs are pooled from.
    pub(crate) fn check_table(&self, table: &D::Weight, width: usize) -> Result<()> {
        let [vocabulary, _] = table.shape();
        check_vocabulary(pooled_vocabulary(self.batch), vocabulary)?;
        table.check("the embedding table", vocabulary, width)
    }
}

/// Rows that a table needs, for the tokens that inputs are pooled from.
pub(crate) fn pooled_vocabulary(batch: &Batch) -> usize {
    let padding = (0..batch.examples()).filter_map(|b| batch.pooled_padding(b)).max();
    padding.map_or(0, |id| id as usize + 1).max(batch.vocabulary())
}

/// Fails unless `runs` states of `layout` have what the mixture reads, and the sources, `[S, M, D]`, are of the state's prompts.
pub(crate) fn check_mixture(
    mixing: &Mixing,
    batch: &Batch,
    layout: &StateLayout,
    runs: usize,
    sources: Option<[usize; 3]>,
) -> Result<()> {
    let (length, width) = (layout.prompt_length, layout.width);
    if batch.prompt_length() != length {
        let found = format!("{} prompt rows", batch.prompt_length());
        return Err(Error::tensor("the mixture", format!("{length} prompt rows"), found, ""));
    }
    if let Some([_, found_length, found_width]) = sources
        && [found_length, found_width] != [length, width]
    {
        let found = format!("[{found_length}, {found_width}]");
        return Err(Error::tensor("the sources", format!("prompts of [{length}, {width}]"), found, ""));
    }
    let prompts = sources.map_or(0, |[count, ..]| count) + usize::from(!mixing.without_target);
    if width == 0 || mixing.scorer.is_some() && (length == 0 || prompts == 0) {
        let found = format!("[{prompts}, {length}, {width}]");
        let expected = "at least one prompt, of at least one row and column";
        return Err(Error::tensor("the mixture", expected, found, ""));
    }
    check_runs("the mixture", batch, layout, runs)?;
    check_parameters(mixing, layout, prompts)
}

/// Fails unless the state has every parameter that the mixture reads, in its shape.
fn check_parameters(mixing: &Mixing, layout: &StateLayout, prompts: usize) -> Result<()> {
    let (length, width, bottleneck_dim) = (layout.prompt_length, layout.width, layout.bottleneck_dim);
    let expected = StateLayout::new(mixing, layout.targets, length, width, bottleneck_dim, false);
    for segment in expected.segments() {
        let found = layout.segment(segment.name).map(|found| &found.shape);
        if found != Some(&segment.shape) {
            let found = found.map_or_else(|| "none".into(), |shape| format!("{shape:?}"));
            return Err(Error::tensor(segment.name, format!("{:?}", segment.shape), found, ""));
        }
    }
    if mixing.without_target && layout.segment("target_prompts").is_some() {
        let found = "target prompts in the state";
        return Err(Error::tensor("the mixture", "a state without target prompts", found, ""));
    }
    if mixing.scorer == Some(Scorer::Constant) {
        let found = layout.segment("logits").map_or(0, |segment| segment.range.len());
        if found != prompts {
            let expected = format!("{prompts} logits, one a prompt");
            return Err(Error::tensor("the constant scorer", expected, found.to_string(), ""));
        }
    }
    Ok(())
}

/// Fails if an example of the batch belongs to none of the `runs`, or uses a target prompt that its run does not have.
pub(crate) fn check_runs(what: &str, batch: &Batch, layout: &StateLayout, runs: usize) -> Result<()> {
    let outside =
        (0..batch.examples()).find(|&b| batch.run(b) >= runs || batch.target_prompt(b) >= layout.targets);
    let Some(b) = outside else { return Ok(()) };
    let expected = format!("examples of {runs} runs with {} target prompts each", layout.targets);
    let found = format!("target {} of run {}", batch.target_prompt(b), batch.run(b));
    Err(Error::tensor(what, expected, found, ""))
}

/// Fails unless there are so many numbers as `[S, M, D]` has, and a prompt has at least one.
pub(crate) fn check_sources(found: usize, [count, length, width]: [usize; 3]) -> Result<()> {
    if length == 0 || width == 0 {
        let found = format!("[{count}, {length}, {width}]");
        return Err(Error::tensor("the sources", "prompts of at least one row and column", found, ""));
    }
    check_length("the sources", count.saturating_mul(length).saturating_mul(width), found)
}

/// Pool, scorer, softmax and interpolation in one, and back.
pub trait MixOps: OptimizerOps {
    /// Frozen source prompts `[S, M, D]` with their pooled keys `[S, D]`.
    type Sources;
    /// What backward needs.
    type MixSaved;

    /// Copies `[S, M, D]` source prompts to the device and pools their keys.
    ///
    /// # Errors
    /// Another number of values, too many sources for the device, and what the driver says.
    fn sources(
        &self,
        values: &[f32],
        count: usize,
        prompt_length: usize,
        width: usize,
    ) -> Result<Self::Sources>;
    /// Writes the prompt rows of x \[R, D\], dropped by the mask, and their norms; token rows are left alone. `table` \[V, D\] is
    /// what inputs are pooled from.
    ///
    /// # Errors
    /// A shape that does not fit, an example of a run or target prompt that `state` does not have, and what the driver says.
    fn mix(
        &self,
        of: &Mix<'_, Self>,
        table: &Self::Weight,
        state: &Self::State,
        output: PromptRows<'_, Self>,
    ) -> Result<Self::MixSaved>;
    /// Adds to the state's gradient, from the prompt rows of `d_x` \[R, D\].
    ///
    /// # Errors
    /// As [`MixOps::mix`].
    fn mix_backward(
        &self,
        of: &Mix<'_, Self>,
        saved: &Self::MixSaved,
        d_x: &Self::Rows,
        state: &mut Self::State,
    ) -> Result<()>;
    /// The mixture's weights: `[B, S + 1]`, for the token scorer `[B, M, S + 1]`; the target prompt comes last.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    fn attention(&self, saved: &Self::MixSaved) -> Result<Vec<f64>>;
}
