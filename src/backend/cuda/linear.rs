//! Projections and the feed-forward.

use super::*;

/// What a feed-forward's backward needs.
#[derive(Debug)]
pub struct FeedForwardKept;
impl FeedForwardKept {
    pub(super) fn new(
        _cuda: &Cuda,
        _batch: &Batch,
        _side: Side,
        _feed_forward: &FeedForward<'_, Cuda>,
    ) -> Self {
        Self
    }
}

impl Cuda {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_project(
        &self,
        batch: &Batch,
        side: Side,
        x: &Rows,
        r: &Rows,
        weight: &Weight,
        z: &mut Rows,
    ) -> Result<()> {
        let _ = (batch, side, x, r, weight, z);
        Err(failure::absent())
    }
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_project_backward(
        &self,
        batch: &Batch,
        side: Side,
        scope: Scope,
        dz: &Rows,
        weight: &Weight,
        x: &Rows,
        r: &Rows,
        d_x: &mut Rows,
    ) -> Result<()> {
        let _ = (batch, side, scope, dz, weight, x, r, d_x);
        Err(failure::absent())
    }
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_add_project(
        &self,
        batch: &Batch,
        side: Side,
        y: &Rows,
        weight: &Weight,
        mask: Mask<'_>,
        epsilon: f64,
        x: &Rows,
        x_next: &mut Rows,
        r_next: &mut Rows,
    ) -> Result<()> {
        let _ = (batch, side, y, weight, mask, epsilon, x, x_next, r_next);
        Err(failure::absent())
    }
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_add_project_backward(
        &self,
        batch: &Batch,
        side: Side,
        d_x: &Rows,
        weight: &Weight,
        mask: Mask<'_>,
        d_y: &mut Rows,
    ) -> Result<()> {
        let _ = (batch, side, d_x, weight, mask, d_y);
        Err(failure::absent())
    }
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_feed_forward(
        &self,
        batch: &Batch,
        side: Side,
        feed_forward: &FeedForward<'_, Self>,
        x: &Rows,
        r: &Rows,
        x_next: &mut Rows,
        r_next: &mut Rows,
        kept: &mut FeedForwardKept,
    ) -> Result<()> {
        let _ = (batch, side, feed_forward, x, r, x_next, r_next, kept);
        Err(failure::absent())
    }
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_feed_forward_backward(
        &self,
        batch: &Batch,
        side: Side,
        feed_forward: &FeedForward<'_, Self>,
        kept: &FeedForwardKept,
        x: &Rows,
        r: &Rows,
        x_next: &Rows,
        d_x: &mut Rows,
    ) -> Result<()> {
        let _ = (batch, side, feed_forward, kept, x, r, x_next, d_x);
        Err(failure::absent())
    }
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_logits(
        &self,
        batch: &Batch,
        hidden: &Rows,
        head: &Weight,
        logits: &mut Rows,
    ) -> Result<()> {
        let _ = (batch, hidden, head, logits);
        Err(failure::absent())
    }
}
