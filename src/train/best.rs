//! What the best validation leaves: prompts and a scorer that other runs can use, and what was answered.

use std::collections::BTreeMap;

use super::Trainer;
use super::initial::temperature;
use super::run_folder::{ExampleRecord, RunFolder};
use crate::backend::{Backend, Group};
use crate::config::Method;
use crate::error::{Error, Result};
use crate::evaluate::Evaluation;
use crate::prompts::{Prompt, PromptMetadata, SavedScorer};

/// Validation examples that are written down at the best step, and the tokens of each.
const EXAMPLE_RECORDS: usize = 64;
const EXAMPLE_RECORD_TOKENS: usize = 48;

impl<B: Backend> Trainer<'_, B> {
    /// The best target prompt of the first task as one that other runs can use; `None` without a target.
    ///
    /// # Errors
    /// If its numbers cannot make a prompt.
    pub fn best_prompt(&self) -> Result<Option<Prompt>> {
        Ok(self.best_prompts()?.into_iter().next())
    }

    /// The best target prompts, one a task in their order; none without a target.
    ///
    /// # Errors
    /// If their numbers cannot make a prompt.
    pub fn best_prompts(&self) -> Result<Vec<Prompt>> {
        let layout = &self.mixture.layout;
        let mut prompts = Vec::new();
        for (index, data) in self.tasks.iter().enumerate() {
            let Some(range) = layout.target_prompt(0, index) else { break };
            let (task, best) = (&data.task, self.checkpoint.best);
            let values = self.best[range].iter().map(|&value| value as f32).collect();
            let several = self.tasks.len() > 1;
            let is_undefined = task.metrics.iter().any(|metric| {
                let name = if several { format!("{} {metric}", task.name) } else { metric.to_string() };
                self.checkpoint.best_undefined.contains(&name)
            });
            let names: Vec<&str> = task.metrics.iter().map(|metric| metric.name()).collect();
            let name =
                if names.len() > 1 { format!("mean of {}", names.join(" and ")) } else { names.concat() };
            let metadata = PromptMetadata {
                task: Some(task.name.clone()),
                model_sha256: Some(self.frozen.model_hash.clone()),
                method: Some(self.config.method.name().into()),
                steps: best.map(|(_, step)| step),
                learning_rate: Some(self.config.learning_rate),
                seed: Some(self.config.seed),
                metric: self
                    .checkpoint
                    .best_of_tasks
                    .get(index)
                    .filter(|_| !is_undefined)
                    .map(|&value| (name, value)),
                ..PromptMetadata::default()
            };
            prompts.push(Prompt::new(&task.name, values, layout.prompt_length, layout.width, metadata)?);
        }
        Ok(prompts)
    }

    /// The best scorer as one that other runs can start from; `None` where nothing scores with numbers of its own.
    pub fn best_scorer(&self) -> Option<SavedScorer> {
        if self.config.method != Method::Attempt {
            return None;
        }
        let layout = &self.mixture.layout;
        let segments: BTreeMap<_, _> = layout
            .segments()
            .iter()
            .filter(|segment| segment.group != Group::Prompt)
            .map(|segment| {
                let values = self.best[segment.range.clone()].iter().map(|&value| value as f32).collect();
                (segment.name.to_owned(), (segment.shape.clone(), values))
            })
            .collect();
        if !segments.contains_key("w_down") && !segments.contains_key("weight") {
            return None;
        }
        let fixed = !segments.contains_key("log_temperature");
        let temperature = fixed.then(|| temperature(&self.config, layout.width));
        Some(SavedScorer::new(segments, Some(self.frozen.model_hash.clone()), temperature))
    }

    /// Writes the best state, its prompts and its scorer: `prompt.safetensors` of a single task, else `prompts/` with one
    /// a task.
    pub(super) fn save_best(&self, folder: &RunFolder) -> Result<()> {
        let step = self.checkpoint.best.map_or(0, |(_, step)| step);
        folder.save_best(&self.mixture.layout, &self.best, step)?;
        if let Some(scorer) = self.best_scorer() {
            scorer.save(&folder.path().join("scorer.safetensors"))?;
        }
        let prompts = self.best_prompts()?;
        if let [prompt] = &prompts[..] {
            return prompt.save(&folder.path().join("prompt.safetensors"));
        }
        let folder = folder.path().join("prompts");
        for prompt in prompts {
            std::fs::create_dir_all(&folder).map_err(|source| Error::file("create", &folder, source))?;
            prompt.save(&folder.join(format!("{}.safetensors", file_stem(prompt.name()))))?;
        }
        Ok(())
    }

    /// What was said to the first validation examples of a task; all tasks share the room.
    pub(super) fn example_records(&self, task: usize, evaluation: &Evaluation) -> Result<Vec<ExampleRecord>> {
        let room = EXAMPLE_RECORDS.div_ceil(self.tasks.len());
        let answers = evaluation.answers.iter().zip(&evaluation.attention).take(room);
        answers
            .enumerate()
            .map(|(example, (prediction, attention))| {
                let mut ids = self.tasks[task].validation.source(example);
                ids.truncate(EXAMPLE_RECORD_TOKENS);
                let label = self.frozen.tokenizer.decode(&self.tasks[task].validation.target(example))?;
                Ok(ExampleRecord {
                    example,
                    source: self.frozen.tokenizer.decode(&ids)?,
                    prediction: prediction.clone(),
                    label: Some(label),
                    attention: attention.clone(),
                })
            })
            .collect()
    }
}

/// A task's name without what no file name may have.
fn file_stem(name: &str) -> String {
    name.chars().map(|c| if c.is_alphanumeric() || "-_.".contains(c) { c } else { '-' }).collect()
}
