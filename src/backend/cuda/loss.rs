//! Head and cross entropy.

use super::*;

/// The loss of a pass.
#[derive(Debug)]
pub struct LossKept;
impl LossKept {
    pub(super) fn new(_cuda: &Cuda, _batch: &Batch) -> Self {
        Self
    }
    pub(super) fn read(&self, _cuda: &Cuda) -> Loss {
        Loss { negative_log_likelihood: Vec::new(), greedy: Vec::new() }
    }
}

impl Cuda {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_loss(
        &self,
        batch: &Batch,
        hidden: &Rows,
        head: &Weight,
        d_hidden: Option<&mut Rows>,
        kept: &mut LossKept,
    ) -> Result<()> {
        let _ = (batch, hidden, head, d_hidden, kept);
        Err(failure::absent())
    }
}
