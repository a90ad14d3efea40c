//! The frozen `lm_head` and cross entropy.

use super::{Device, Matrix};
use crate::backend::{Batch, Side};
use crate::error::{Error, Result};

/// The frozen `lm_head`.
pub struct LmHead<'a, D: Device> {
    /// E, \[V, D\].
    pub weight: &'a D::Weight,
    /// The mean of E's rows, \[1, D\], for [`Readers::Lookup`](super::Readers::Lookup): the mean of a row's logits is one product
    /// with it.
    pub mean: &'a D::Weight,
}

/// The loss of a pass, read back.
#[derive(Clone, Debug, PartialEq)]
pub struct Loss {
    /// For each row of labels, -log p(label); T values.
    pub negative_log_likelihood: Vec<f64>,
    /// For each row, what is learnt from by the batch's [`Objective`](crate::backend::Objective): by default the same; T values.
    pub objective: Vec<f64>,
    /// For each row, the token of the highest logit (ties go to the lowest id); T values.
    pub greedy: Vec<u32>,
}

impl<D: Device> LmHead<'_, D> {
    pub(crate) fn check(&self, batch: &Batch, hidden: &D::Rows, d_hidden: Option<&D::Rows>) -> Result<()> {
        let (rows, [vocabulary, width]) = (batch.rows(Side::Decoder), self.weight.shape());
        let labels = batch.labels().iter().max().map_or(0, |&label| label as usize + 1);
        if vocabulary < labels {
            let expected = format!("at least {labels} rows, for the labels");
            return Err(Error::tensor("the head", expected, vocabulary.to_string(), ""));
        }
        self.mean.check("the mean of the head's rows", 1, width)?;
        hidden.check("hidden", rows, width)?;
        d_hidden.map_or(Ok(()), |d_hidden| d_hidden.check("d_hidden", rows, width))
    }
}

/// Fails unless `hidden` has the batch's decoder rows, of the width of `lm_head`.
pub(crate) fn check_logits<D: Device>(batch: &Batch, hidden: &D::Rows, lm_head: &D::Weight) -> Result<()> {
    let [_, width] = lm_head.shape();
    hidden.check("hidden", batch.rows(Side::Decoder), width)
}

/// `lm_head` and loss in one pass over vocabulary chunks; no logits are stored.
pub trait LossOps: Device {
    /// The loss of a pass, on the device until [`LossOps::read_loss`] asks.
    type DeviceLoss;

    /// The loss of hidden \[T, D\] against the batch's labels, by its objective. With `d_hidden` \[T, D\] also its gradient, for
    /// plain cross entropy d_hidden = w_t·(sum_v p_v E_v - E_label) with the batch's row weights w: attention with K = V = E.
    ///
    /// # Errors
    /// A shape that does not fit, and what the driver says.
    fn loss(
        &self,
        batch: &Batch,
        hidden: &Self::Rows,
        lm_head: &LmHead<'_, Self>,
        d_hidden: Option<&mut Self::Rows>,
    ) -> Result<Self::DeviceLoss>;
    /// Reads a loss back.
    ///
    /// # Errors
    /// What went wrong on the device meanwhile.
    fn read_loss(&self, saved: &Self::DeviceLoss) -> Result<Loss>;
    /// All logits of hidden, \[T, V\]: for verification only.
    ///
    /// # Errors
    /// As [`LossOps::loss`].
    fn logits(&self, batch: &Batch, hidden: &Self::Rows, lm_head: &Self::Weight) -> Result<Self::Rows>;
}
