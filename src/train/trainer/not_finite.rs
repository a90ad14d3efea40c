//! Which tensor of a step was the first that is not finite.

use super::Trainer;
use crate::backend::{Backend, Batch, DropoutStep, Example};
use crate::error::{Error, Result};
use crate::model::Pass;
use crate::train::step::{self, Prepared, RunPart};

impl<B: Backend> Trainer<'_, B> {
    /// Runs the step again, looking at every tensor, to name the first that is not finite. The state is as before it.
    pub(in crate::train) fn not_finite(&mut self, step: u64, prepared: &Prepared) -> Result<Error> {
        let (backend, model) = (self.frozen.backend, &self.frozen.model);
        let Prepared { batches, dropout } = prepared;
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
        Ok(Error::NonFinite { step, tensor, advice: self.advice_on_not_finite() })
    }

    /// As [`not_finite`](Self::not_finite), of what this run gave to a step that it shared with others.
    pub(in crate::train) fn not_finite_alone(&mut self, part: &RunPart) -> Result<Error> {
        let examples = part.examples.iter().map(|example| Example { run: 0, ..example.clone() }).collect();
        let alone = RunPart { examples, ..*part };
        let shared = self.shared(part.step);
        let prepared = step::prepare(self.frozen, &self.mixture, &shared, &[alone])?;
        self.not_finite(part.step + 1, &prepared)
    }

    /// What to do about a step that is not finite, which is the next.
    fn advice_on_not_finite(&self) -> String {
        if self.checkpoint.updates > 0 {
            return "lower --learning-rate, or set --max-grad-norm; the last checkpoint is as it was"
                .to_owned();
        }
        let config = &self.config;
        let from = match (&config.initial_prompt, &config.sources[..]) {
            (Some(prompt), _) => format!("the numbers of {} are likely too large", prompt.display()),
            (None, []) => {
                return "no update has been made, so it comes of the model itself or of the rows: check that its weights are \
                        whole, and that it is not one that overflows in this precision"
                    .to_owned();
            }
            (None, [source]) => format!("the numbers of {} are likely too large", source.display()),
            (None, _) => "the numbers of a source are likely too large".to_owned(),
        };
        format!(
            "no update has been made, so it comes of what the run starts from: {from}; promptmix prompts show says how large"
        )
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
