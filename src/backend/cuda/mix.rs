//! The mixture of prompts.

use super::*;

/// Frozen source prompts and their pooled keys.
#[derive(Debug)]
pub struct Sources;
impl Sources {
    pub(super) fn new(
        _cuda: &Cuda,
        _values: &[f32],
        _count: usize,
        _prompt_length: usize,
        _width: usize,
    ) -> Self {
        Self
    }
}
/// What the mixture's backward needs.
#[derive(Debug)]
pub struct MixKept;
impl MixKept {
    pub(super) fn new(
        _cuda: &Cuda,
        _mixing: &Mixing,
        _sources: Option<&Sources>,
        _state: &State,
        _batch: &Batch,
    ) -> Self {
        Self
    }
    pub(super) fn attention(&self, _cuda: &Cuda) -> Vec<f64> {
        Vec::new()
    }
}

impl Cuda {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_mix(
        &self,
        mixing: &Mixing,
        table: &Weight,
        sources: Option<&Sources>,
        state: &State,
        batch: &Batch,
        x: &mut Rows,
        kept: &mut MixKept,
    ) -> Result<()> {
        let _ = (mixing, table, sources, state, batch, x, kept);
        Err(failure::absent())
    }
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_mix_backward(
        &self,
        mixing: &Mixing,
        sources: Option<&Sources>,
        batch: &Batch,
        kept: &MixKept,
        d_x: &Rows,
        state: &mut State,
    ) -> Result<()> {
        let _ = (mixing, sources, batch, kept, d_x, state);
        Err(failure::absent())
    }
}
