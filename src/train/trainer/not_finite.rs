//! Which tensor of a step was the first that is not finite.

use super::Trainer;
use crate::backend::{Backend, Batch, DropoutStep};
use crate::error::{Error, Result};
use crate::model::Pass;
use crate::train::step::Issued;

impl<B: Backend> Trainer<'_, B> {
    /// Runs the step again, looking at every tensor, to name the first that is not finite. The state is as before it.
    pub(super) fn not_finite(&mut self, step: u64, issued: &Issued) -> Result<Error> {
        let (backend, model) = (self.frozen.backend, &self.frozen.model);
        let Issued { batches, dropout, .. } = issued;
        let dropout: Option<&DropoutStep> = dropout.as_ref();
        let values = self.parameters()?;
        let parameter = self
            .mixture
            .layout
            .segments()
            .iter()
            .find(|segment| values[segment.range.clone()].iter().any(|value| !value.is_finite()));
        let mut first = parameter.map(|segment| format!("the parameter {}", segment.name));
        for batch in batches {
            let mut observe = |name: &str, rows: &B::Rows| {
                if first.is_none() && !backend.is_finite(rows)? {
                    first = Some(format!("the {name}"));
                }
                Ok(())
            };
            let pass = Pass { dropout, keep: false, observe: Some(&mut observe) };
            let tokens = [batch.label_tokens(0)];
            let loss = model.loss(backend, &self.mixture, &self.state, batch, &tokens, pass)?;
            if first.is_none() && loss.per_run.iter().any(|loss| !loss.is_finite()) {
                first = Some("the loss".into());
            }
        }
        let tensor = match first {
            Some(first) => first,
            None => self.broken_gradient(batches, dropout)?,
        };
        let advice = "lower --learning-rate, or set --max-grad-norm; the last checkpoint is as it was";
        Ok(Error::NonFinite { step, tensor, advice: advice.into() })
    }

    /// The parts of the gradient that are not finite.
    fn broken_gradient(&mut self, batches: &[Batch], dropout: Option<&DropoutStep>) -> Result<String> {
        let (backend, model) = (self.frozen.backend, &self.frozen.model);
        backend.begin_step(&mut self.state)?;
        for batch in batches {
            model.issue(backend, &self.mixture, &mut self.state, batch, dropout)?;
        }
        let gradient = backend.read_gradient(&self.state)?;
        let segments = self.mixture.layout.segments().iter();
        let broken =
            segments.filter(|segment| gradient[segment.range.clone()].iter().any(|value| !value.is_finite()));
        let names: Vec<&str> = broken.map(|segment| segment.name).collect();
        Ok(if names.is_empty() {
            "the gradient".into()
        } else {
            format!("the gradient of {}", names.join(", "))
        })
    }
}
