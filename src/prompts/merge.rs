//! One prompt of several: a weighted mean, by given weights or by likeness to another prompt (Vu et al., 2022).

use super::{MergedPart, Prompt, PromptMetadata};
use crate::count::counted;
use crate::error::{Error, Result};

/// The mean of `prompts`, each counted by its weight over the sum of all; row m of it is the mean of the rows m. Its metadata
/// keeps their names, tasks and origins, and the weights.
///
/// # Errors
/// [`Error::Setting`] if there is no prompt, their sizes or models differ, there are not as many weights, or they do not
/// sum to a number above 0.
pub fn merge(name: &str, prompts: &[Prompt], weights: &[f64]) -> Result<Prompt> {
    let Some(first) = prompts.first() else {
        return Err(Error::setting("prompts", "at least one", "none", ""));
    };
    let mut model = None;
    for prompt in prompts {
        prompt.check_fits(first.width(), model)?;
        model = model.or(prompt.metadata().model_sha256.as_deref());
        if prompt.length() != first.length() {
            return Err(Error::setting(
                format!("prompt {}", prompt.name()),
                format!("{}, as {} has", counted(first.length(), "row"), first.name()),
                prompt.length().to_string(),
                "prompts are merged row by row and must be of one length",
            ));
        }
    }
    let sum: f64 = weights.iter().sum();
    if weights.len() != prompts.len() || !sum.is_finite() || sum.abs() < 1e-12 {
        let found = weights.iter().map(ToString::to_string).collect::<Vec<_>>().join(",");
        let expected = format!("{} numbers with a finite sum that is not 0", prompts.len());
        return Err(Error::setting("--weights", expected, found, "give one a prompt"));
    }
    let mut mean = vec![0.0_f64; first.values().len()];
    for (prompt, weight) in prompts.iter().zip(weights) {
        for (mean, &value) in mean.iter_mut().zip(prompt.values()) {
            *mean += weight / sum * f64::from(value);
        }
    }
    let part = |(prompt, weight): (&Prompt, &f64)| MergedPart {
        name: prompt.name().to_owned(),
        weight: weight / sum,
        task: prompt.metadata().task.clone(),
        origin: prompt.metadata().origin.clone(),
    };
    let merged_from: Vec<MergedPart> = prompts.iter().zip(weights).map(part).collect();
    let parts: Vec<String> =
        merged_from.iter().map(|part| format!("{:.4} {}", part.weight, part.name)).collect();
    let metadata = PromptMetadata {
        model_sha256: model.map(str::to_owned),
        method: Some("merge".into()),
        origin: Some(format!("the mean of {}", parts.join(", "))),
        merged_from,
        ..PromptMetadata::default()
    };
    let values = mean.into_iter().map(|value| value as f32).collect();
    Prompt::new(name, values, first.length(), first.width(), metadata)
}

/// A weight for each prompt: its similarity to `target`, and none where it points away from it. Alike without a target,
/// or where none is like it.
pub fn weights_by_similarity(prompts: &[Prompt], target: Option<&Prompt>) -> Vec<f64> {
    let alike = vec![1.0; prompts.len()];
    let Some(target) = target else { return alike };
    let weights: Vec<f64> = prompts.iter().map(|prompt| similarity(prompt, target).max(0.0)).collect();
    if weights.iter().sum::<f64>() > 0.0 { weights } else { alike }
}

/// Cosine of the angle between two prompts' mean rows (Vu et al., 2022, section 4); 0 where one of them has none.
pub fn similarity(a: &Prompt, b: &Prompt) -> f64 {
    let mean_row = |prompt: &Prompt| {
        let mut mean = vec![0.0; prompt.width()];
        for row in prompt.values().chunks_exact(prompt.width()) {
            for (mean, &value) in mean.iter_mut().zip(row) {
                *mean += f64::from(value);
            }
        }
        mean
    };
    let (a, b) = (mean_row(a), mean_row(b));
    let dot = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let norms = (dot(&a, &a) * dot(&b, &b)).sqrt();
    if norms > 0.0 { dot(&a, &b) / norms } else { 0.0 }
}
