//! What the layers of both sides have: self attention and the feed-forward, forward and backward.

use super::{Pass, T5};
use crate::backend::{
    Backend, Batch, DropoutStep, FeedForward, FeedForwardBackward, Format, Mask, ProjectionBackward,
    Residual, ResidualProjection, Scope, SelfAttention, SelfAttentionOutputBackward, Side, Site, SiteKind,
};
use crate::error::Result;

/// Weights of the sublayers that both sides have, norm weights folded in.
pub(super) struct LayerWeights<B: Backend> {
    pub(super) qkv: B::Weight,
    pub(super) o: B::Weight,
    pub(super) w_in: B::Weight,
    pub(super) w_out: B::Weight,
}

/// A layer and what it works on.
pub(super) struct Layer<'a, B: Backend> {
    pub(super) model: &'a T5<B>,
    pub(super) weights: &'a LayerWeights<B>,
    pub(super) side: Side,
    pub(super) index: usize,
    pub(super) batch: &'a Batch,
    pub(super) dropout: Option<&'a DropoutStep>,
}

/// What backward needs of a self attention sublayer.
pub(super) struct SelfAttentionSaved<B: Backend> {
    pub(super) input: Residual<B>,
    qkv: B::Rows,
    o: B::Rows,
    log_sum_exp: B::Rows,
}

/// What backward needs of a feed-forward sublayer.
pub(super) struct FeedForwardSaved<B: Backend> {
    pub(super) input: Residual<B>,
    inside: B::FeedForwardSaved,
}

/// What the queries, keys and values of a self attention are projected from, and what is written: these of all heads, the attention's
/// output and the log-sum-exps.
pub(super) struct Attended<'a, B: Backend> {
    pub(super) input: &'a Residual<B>,
    pub(super) qkv: &'a mut B::Rows,
    pub(super) o: &'a mut B::Rows,
    pub(super) log_sum_exp: &'a mut B::Rows,
}

/// The mask of a kind of site in a layer, in training with dropout.
pub(super) fn mask(dropout: Option<&DropoutStep>, side: Side, kind: SiteKind, layer: usize) -> Mask<'_> {
    dropout.map(|step| (step, Site::new(side, kind, layer)))
}

impl<'a, B: Backend> Layer<'a, B> {
    pub(super) fn mask(&self, kind: SiteKind) -> Mask<'a> {
        mask(self.dropout, self.side, kind, self.index)
    }

    /// Its name for observers.
    pub(super) fn name(&self) -> String {
        let side = if self.side == Side::Encoder { "encoder" } else { "decoder" };
        format!("{side} layer {}", self.index)
    }

    /// The end of an attention sublayer that began with `x` and gave `y`.
    pub(super) fn output<'b>(
        &'b self,
        y: &'b B::Rows,
        weight: &'b B::Weight,
        kind: SiteKind,
        x: &'b B::Rows,
    ) -> ResidualProjection<'b, B> {
        let (batch, side, epsilon) = (self.batch, self.side, self.model.epsilon());
        ResidualProjection { batch, side, y, weight, mask: self.mask(kind), epsilon, x }
    }

    /// Attention over the tokens of the batch.
    pub(super) fn attend(&self, backend: &B, of: Attended<'_, B>) -> Result<()> {
        let Attended { input, qkv, o, log_sum_exp } = of;
        backend.self_attention_project(&self.attention(), input, &self.weights.qkv, qkv, [o, log_sum_exp])
    }

    /// The self attention sublayer, whose qkv and heads `attend` finds.
    pub(super) fn self_attention(
        &self,
        backend: &B,
        mut input: Residual<B>,
        pass: &mut Pass<'_, B>,
        attend: impl FnOnce(Attended<'_, B>) -> Result<()>,
    ) -> Result<(Residual<B>, Option<SelfAttentionSaved<B>>)> {
        let Self { model, weights, side, batch, .. } = *self;
        let (rows, total) = (batch.rows(side), model.heads.total());
        let mut qkv = backend.rows(rows, 3 * total, Format::Operand)?;
        let mut o = backend.rows(rows, total, Format::Operand)?;
        let mut log_sum_exp = backend.rows(rows, model.heads.count, Format::Float)?;
        attend(Attended { input: &input, qkv: &mut qkv, o: &mut o, log_sum_exp: &mut log_sum_exp })?;
        let mut next = Residual::new(backend, rows, model.config.d_model)?;
        backend
            .add_project(self.output(&o, &weights.o, SiteKind::SelfAttentionOutput, &input.x), &mut next)?;
        backend.release_forward(&mut input.x);
        pass.observe(|| format!("{} self attention", self.name()), &next.x)?;
        Ok((next, pass.keep.then_some(SelfAttentionSaved { input, qkv, o, log_sum_exp })))
    }

    /// Turns the gradient of what [`Layer::self_attention`] gave, in `d_x`, into that of its input, of the rows in `scope`.
    /// `below` as in [`ProjectionBackward`].
    pub(super) fn self_attention_backward(
        &self,
        backend: &B,
        saved: &SelfAttentionSaved<B>,
        scope: Scope,
        below: Option<&B::Rows>,
        d_x: &mut B::Rows,
    ) -> Result<()> {
        let Self { model, weights, side, batch, .. } = *self;
        let scoped = match scope {
            Scope::Prompt => batch.examples() * batch.prompt_length(),
            Scope::All => batch.rows(side),
        };
        let mut d_qkv = backend.rows(scoped, 3 * model.heads.total(), Format::ProjectionGradient)?;
        let from = SelfAttentionOutputBackward {
            scope,
            qkv: &saved.qkv,
            o: &saved.o,
            log_sum_exp: &saved.log_sum_exp,
            d_x,
            weight: &weights.o,
            mask: self.mask(SiteKind::SelfAttentionOutput),
        };
        backend.self_attention_output_backward(&self.attention(), from, &mut d_qkv)?;
        let (dz, weight, input) = (&d_qkv, &weights.qkv, &saved.input);
        backend.project_backward(ProjectionBackward { batch, side, scope, dz, weight, input, below }, d_x)
    }

    /// The feed-forward sublayer, the end of every layer.
    pub(super) fn feed_forward(
        &self,
        backend: &B,
        mut input: Residual<B>,
        pass: &mut Pass<'_, B>,
    ) -> Result<(Residual<B>, Option<FeedForwardSaved<B>>)> {
        let mut next = Residual::new(backend, self.batch.rows(self.side), self.model.config.d_model)?;
        let inside = backend.feed_forward(&self.inner(), &input, &mut next, pass.keep)?;
        backend.release_forward(&mut input.x);
        pass.observe(|| format!("{} feed-forward", self.name()), &next.x)?;
        Ok((next, inside.map(|inside| FeedForwardSaved { input, inside })))
    }

    /// Turns the gradient of `x_next`, which [`Layer::feed_forward`] gave, in `d_x`, into that of its input.
    pub(super) fn feed_forward_backward(
        &self,
        backend: &B,
        saved: &FeedForwardSaved<B>,
        x_next: &B::Rows,
        d_x: &mut B::Rows,
    ) -> Result<()> {
        let from = FeedForwardBackward { saved: &saved.inside, input: &saved.input, x_next };
        backend.feed_forward_backward(&self.inner(), from, d_x)
    }

    fn attention(&self) -> SelfAttention<'a, B> {
        SelfAttention {
            batch: self.batch,
            side: self.side,
            heads: self.model.heads,
            bias: self.model.bias(self.side),
            mask: self.mask(SiteKind::SelfAttention),
        }
    }

    fn inner(&self) -> FeedForward<'a, B> {
        FeedForward {
            batch: self.batch,
            side: self.side,
            w_in: &self.weights.w_in,
            w_out: &self.weights.w_out,
            activation: self.model.activation,
            inner_mask: self.mask(SiteKind::FeedForward),
            output_mask: self.mask(SiteKind::FeedForwardOutput),
            epsilon: self.model.epsilon(),
        }
    }
}
