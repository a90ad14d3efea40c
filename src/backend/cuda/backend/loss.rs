//! The frozen `lm_head` and cross entropy.

use cudarc::driver::DevicePtrMut;

use super::{Buffer, Cuda, Rows, Weight, read};
use crate::backend::cuda::ops::linear::Epilogue;
use crate::backend::cuda::ops::loss::{CrossEntropy, CrossEntropyRows, HiddenGradient, LossScratch, Plan};
use crate::backend::ops::check_logits;
use crate::backend::{Batch, Format, LmHead, Loss, LossOps, Matrix, Side};
use crate::error::Result;

/// The loss of a pass, on the device until it is read.
#[derive(Debug)]
pub struct DeviceLoss {
    negative_log_likelihood: Buffer<f32>,
    objective: Buffer<f32>,
    greedy: Buffer<u32>,
}

impl DeviceLoss {
    /// \[T\]: what training minimises.
    pub(super) fn objective(&self) -> &Buffer<f32> {
        &self.objective
    }
}

impl Cuda {
    /// The loss of each row with, where it is wanted, its gradient; the most likely tokens go to `greedy`. Negative log
    /// likelihoods, then objectives.
    pub(super) fn cross_entropy(
        &self,
        batch: &Batch,
        hidden: &Rows,
        lm_head: &LmHead<'_, Self>,
        d_hidden: Option<&mut Rows>,
        greedy: &mut dyn DevicePtrMut<u32>,
    ) -> Result<[Buffer<f32>; 2]> {
        lm_head.check(batch, hidden, d_hidden.as_deref())?;
        let (rows, [vocabulary, width]) = (batch.rows(Side::Decoder), lm_head.weight.shape());
        let plan = Plan::of(self.precision(), self.info().multiprocessors, rows, [vocabulary, width])?;
        let lengths = plan.scratch();
        let [mut negative_log_likelihood, mut loss] = [self.allocate(rows)?, self.allocate(rows)?];
        let mut partials: Buffer<f32> = self.allocate(lengths.partials)?;
        let mut label_logits: Buffer<f32> = self.allocate(rows)?;
        let mut weighted: Buffer<f32> =
            self.allocate(if d_hidden.is_some() { lengths.weighted } else { 0 })?;
        let products = 1 + usize::from(d_hidden.is_some());
        let gradient = match d_hidden {
            Some(d_hidden) => {
                Some(HiddenGradient { d_hidden: d_hidden.float_mut()?, weighted: &mut weighted })
            }
            None => None,
        };
        let objective = batch.objective();
        let mean = match objective.label_smoothing > 0.0 {
            true => Some(read(lm_head.mean.float()?)),
            false => None,
        };
        let entropy = CrossEntropy {
            labels: self.described(batch)?.rows(Side::Decoder),
            plan,
            lm_head: lm_head.weight.operand(),
            objective,
            mean,
        };
        let written = CrossEntropyRows {
            negative_log_likelihood: &mut negative_log_likelihood,
            loss: &mut loss,
            greedy,
        };
        let scratch = LossScratch { partials: &mut partials, label_logits: &mut label_logits };
        self.count(products * 2 * batch.real_rows(Side::Decoder) * vocabulary * width);
        entropy.launch(self.kernels(), hidden.operand()?, scratch, written, gradient)?;
        Ok([negative_log_likelihood, loss])
    }
}

impl LossOps for Cuda {
    type DeviceLoss = DeviceLoss;

    fn loss(
        &self,
        batch: &Batch,
        hidden: &Rows,
        lm_head: &LmHead<'_, Self>,
        d_hidden: Option<&mut Rows>,
    ) -> Result<DeviceLoss> {
        let mut greedy = self.allocate(batch.rows(Side::Decoder))?;
        let [negative_log_likelihood, objective] =
            self.cross_entropy(batch, hidden, lm_head, d_hidden, &mut greedy)?;
        Ok(DeviceLoss { negative_log_likelihood, objective, greedy })
    }

    fn read_loss(&self, saved: &DeviceLoss) -> Result<Loss> {
        let read = |buffer: &Buffer<f32>| -> Result<Vec<f64>> {
            Ok(self.download(buffer, buffer.len())?.into_iter().map(f64::from).collect())
        };
        Ok(Loss {
            negative_log_likelihood: read(&saved.negative_log_likelihood)?,
            objective: read(&saved.objective)?,
            greedy: self.download(&saved.greedy, saved.greedy.len())?,
        })
    }

    fn logits(&self, batch: &Batch, hidden: &Rows, lm_head: &Weight) -> Result<Rows> {
        check_logits::<Self>(batch, hidden, lm_head)?;
        let mut logits = self.activation(batch.rows(Side::Decoder), lm_head.shape()[0], Format::Float)?;
        let rows = self.described(batch)?.rows(Side::Decoder);
        self.product(rows, hidden.operand()?, lm_head, Epilogue::Float { z: logits.float_mut()? })?;
        Ok(logits)
    }
}
