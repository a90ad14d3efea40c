//! The mixture of prompts.

use super::OptimizerOps;
use crate::backend::{Batch, Mixing};
use crate::error::Result;

/// Z_b = P_tgt + sum_j a_j P_j, with a from the pooled input of each example.
pub struct Mix<'a, D: MixOps> {
    /// How prompts are weighted.
    pub mixing: &'a Mixing,
    /// Frozen source prompts, if there are any.
    pub sources: Option<&'a D::Sources>,
    /// Whose prompt rows.
    pub batch: &'a Batch,
}

/// Pool, scorer, softmax and interpolation in one, and back.
pub trait MixOps: OptimizerOps {
    /// Frozen source prompts `[S, M, D]` with their pooled keys `[S, D]`.
    type Sources;
    /// What backward needs.
    type MixKept;

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
    /// Writes the prompt rows of `x` \[R, D\]; its token rows are left alone. `table` \[V, D\] is what inputs are pooled from.
    ///
    /// # Errors
    /// A shape that does not fit, an example of a run or target prompt that `state` does not have, and what the driver says.
    fn mix(
        &self,
        of: &Mix<'_, Self>,
        table: &Self::Weight,
        state: &Self::State,
        x: &mut Self::Rows,
    ) -> Result<Self::MixKept>;
    /// Adds to the state's gradient, from the prompt rows of `d_x` \[R, D\].
    ///
    /// # Errors
    /// As [`MixOps::mix`].
    fn mix_backward(
        &self,
        of: &Mix<'_, Self>,
        kept: &Self::MixKept,
        d_x: &Self::Rows,
        state: &mut Self::State,
    ) -> Result<()>;
    /// The mixture's weights: `[B, S + 1]`, for the token scorer `[B, M, S + 1]`; the target prompt comes last.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    fn attention(&self, kept: &Self::MixKept) -> Result<Vec<f64>>;
}
