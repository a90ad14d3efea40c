//! Answers to validation and test rows, and the best state so far.

use super::Trainer;
use crate::backend::Backend;
use crate::data::Split;
use crate::error::Result;
use crate::evaluate::{Evaluation, Evaluator};
use crate::train::log::{Monitor, TaskRecord, ValidationRecord};
use crate::train::task_data::split_examples;

/// Examples of a validation batch: forward alone keeps little, so it may be larger than a training batch.
pub(super) const EVALUATION_BATCH: usize = 64;

impl<B: Backend> Trainer<'_, B> {
    /// Answers the validation rows of every task with the current state, and remembers it if it is the best so far: the
    /// one whose mean over the tasks of the mean over their metrics is the highest.
    ///
    /// # Errors
    /// Those of evaluation.
    pub fn validate(&mut self, monitor: &mut dyn Monitor) -> Result<ValidationRecord> {
        let examples = self.tasks.iter().map(|data| data.validation.len()).sum();
        let mut evaluations = Vec::with_capacity(self.tasks.len());
        let mut before = 0;
        for (index, data) in self.tasks.iter().enumerate() {
            evaluations.push(self.evaluator(index).evaluate(&self.state, &data.validation, &mut |done| {
                monitor.validating(before + done, examples);
            })?);
            before += data.validation.len();
        }
        let records: Vec<TaskRecord> = self.tasks().zip(&evaluations).map(TaskRecord::new).collect();
        let means: Vec<f64> = records.iter().map(|record| record.mean).collect();
        let mean = means.iter().sum::<f64>() / means.len() as f64;
        // The first validation counts even where its metric is not defined: there must be a best.
        let best = self.checkpoint.best.is_none_or(|(best, _)| mean > best || best.is_nan());
        let record = ValidationRecord::new(self.checkpoint.step, mean, best, self.prompts.clone(), records);
        if best {
            self.checkpoint.best = Some((mean, self.checkpoint.step));
            self.checkpoint.best_of_tasks = means;
            self.checkpoint.best_undefined = record.undefined();
            self.checkpoint.without_improvement = 0;
            self.best = self.parameters()?;
            self.best_examples.clear();
            for (index, evaluation) in evaluations.iter().enumerate() {
                let records = self.example_records(index, evaluation)?;
                self.best_examples.extend(records);
            }
        } else {
            self.checkpoint.without_improvement += 1;
        }
        Ok(record)
    }

    /// Answers `split` of the first task's data with the best parameters so far, or with `parameters`; of the validation rows
    /// those that training validates on.
    ///
    /// # Errors
    /// Those of the data and of evaluation.
    pub fn evaluate(
        &self,
        split: Split,
        parameters: Option<&[f64]>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Evaluation> {
        self.evaluate_task(0, split, parameters, progress)
    }

    /// As [`evaluate`](Self::evaluate), of the task with this index.
    ///
    /// # Errors
    /// As there.
    ///
    /// # Panics
    /// If there is no such task.
    pub fn evaluate_task(
        &self,
        task: usize,
        split: Split,
        parameters: Option<&[f64]>,
        progress: &mut dyn FnMut(usize),
    ) -> Result<Evaluation> {
        let data = &self.tasks[task];
        let values = parameters.unwrap_or(&self.best);
        let state = self.frozen.backend.state(&self.mixture.layout, values, 1)?;
        if split == Split::Validation {
            return self.evaluator(task).evaluate(&state, &data.validation, progress);
        }
        let examples =
            split_examples(self.frozen, &self.config, &data.task, &data.place, split, data.longest_target)?;
        self.evaluator(task).evaluate(&state, &examples, progress)
    }

    /// Puts the trainer's settings to work on answers of the task with this index.
    ///
    /// # Panics
    /// If there is no such task.
    pub fn evaluator(&self, task: usize) -> Evaluator<'_, B> {
        let data = &self.tasks[task];
        Evaluator {
            frozen: self.frozen,
            mixture: &self.mixture,
            task: &data.task,
            target_prompt: task as u32,
            decoding: self.config.decoding,
            batch_size: EVALUATION_BATCH,
            longest_target: data.longest_target,
            pooled_width: self.pooled_width(),
        }
    }
}
