//! Setting a run up: its sources, the mixture that it trains, and the numbers that it starts from.

use super::initial::{self, Start};
use crate::backend::{Backend, Group, Mixing, StateLayout};
use crate::config::{Method, RunConfig};
use crate::error::{Error, Result};
use crate::model::{Frozen, Mixture};
use crate::prompts::{Prompt, SavedScorer};
use crate::tasks::Task;

/// Epsilon of the scorer's LayerNorm.
const LAYER_NORM_EPSILON: f64 = 1e-5;

/// The source prompts of `config`, which must fit the model and have its prompt length.
pub(super) fn load_sources<B: Backend>(frozen: &Frozen<'_, B>, config: &RunConfig) -> Result<Vec<Prompt>> {
    let width = frozen.model.config().d_model;
    let sources = if config.sources.is_empty() {
        Vec::new()
    } else {
        crate::prompts::load_sources(&config.sources, width)?
    };
    for (source, path) in sources.iter().zip(&config.sources) {
        source.check_fits(width, Some(&frozen.model_hash))?;
        if source.length() != config.prompt_length {
            return Err(Error::setting(
                "--prompt-length",
                format!("{}, the length of {}", source.length(), path.display()),
                config.prompt_length.to_string(),
                "sources and target prompt are mixed row by row and must be of one length",
            ));
        }
    }
    Ok(sources)
}

/// The mixture that `config` describes, of `targets` tasks, its sources on the device.
pub(super) fn mixture<B: Backend>(
    frozen: &Frozen<'_, B>,
    config: &RunConfig,
    sources: &[Prompt],
    targets: usize,
) -> Result<Mixture<B>> {
    let width = frozen.model.config().d_model;
    let mixes = config.method == Method::Attempt;
    let mixing = Mixing {
        scorer: mixes.then_some(config.scorer),
        temperature: initial::temperature(config, width),
        without_target: mixes && config.without_target(),
        layer_norm_epsilon: LAYER_NORM_EPSILON,
    };
    let layout = StateLayout::new(
        &mixing,
        targets,
        config.prompt_length,
        width,
        config.rank,
        mixes && config.learn_temperature,
    )
    .freezing(|segment| {
        let norm = segment.name.starts_with("norm_") && !config.trains_layer_norm();
        norm || (config.freeze_scorer && segment.group == Group::Scorer)
    });
    let on_device = if mixes {
        let values: Vec<f32> = sources.iter().flat_map(|source| source.values()).copied().collect();
        Some(frozen.backend.sources(&values, sources.len(), config.prompt_length, width))
    } else {
        None
    };
    Ok(Mixture { mixing, sources: on_device, source_count: if mixes { sources.len() } else { 0 }, layout })
}

/// The flat state that the run starts from.
pub(super) fn initial_values<B: Backend>(
    frozen: &Frozen<'_, B>,
    config: &RunConfig,
    tasks: &[Task],
    layout: &StateLayout,
    sources: &[Prompt],
) -> Result<Vec<f64>> {
    let width = frozen.model.config().d_model;
    let initial_prompt = match &config.initial_prompt {
        Some(path) => {
            let prompt = Prompt::load(path)?;
            prompt.check_fits(width, Some(&frozen.model_hash))?;
            if prompt.length() != config.prompt_length {
                return Err(Error::setting(
                    "--initial-prompt",
                    format!("a prompt of {} rows", config.prompt_length),
                    format!("{} rows in {}", prompt.length(), path.display()),
                    "set --prompt-length to match",
                ));
            }
            Some(prompt)
        }
        None => None,
    };
    let mut labels: Vec<String> = Vec::new();
    for label in tasks.iter().flat_map(|task| task.labels().unwrap_or_default()) {
        if !labels.contains(&label) {
            labels.push(label);
        }
    }
    let mut label_ids = Vec::new();
    for label in labels {
        label_ids.extend(frozen.tokenizer.encode_without_eos(&label)?);
    }
    let start = Start {
        embedding: &|row| frozen.backend.weight_row(frozen.model.embedding(), row),
        vocabulary: frozen.model.config().vocab_size.min(frozen.tokenizer.text_ids()),
        label_ids: &label_ids,
        sources,
        initial_prompt: initial_prompt.as_ref(),
    };
    let mut values = initial::state(config, layout, &start)?;
    if let Some(path) = &config.initial_scorer {
        let scorer = SavedScorer::load(path)?;
        start_scorer(&scorer, &frozen.model_hash, layout, &mut values)?;
    }
    Ok(values)
}

/// Puts a trained scorer's numbers into the state.
fn start_scorer(
    scorer: &SavedScorer,
    model_hash: &str,
    layout: &StateLayout,
    values: &mut [f64],
) -> Result<()> {
    if let Some(trained) = scorer.model_sha256.as_deref().filter(|trained| *trained != model_hash) {
        return Err(Error::setting(
            "--initial-scorer",
            format!("a scorer that was trained with this model, {model_hash}"),
            format!("one of {trained}"),
            "a scorer is of use only to the model it was trained with",
        ));
    }
    for segment in layout.segments().iter().filter(|segment| segment.group != Group::Prompt) {
        let Some(saved) = scorer.segment(segment.name, &segment.shape)? else {
            // The norm and the temperature have a start that does without.
            if ["norm_weight", "norm_bias", "log_temperature"].contains(&segment.name) {
                continue;
            }
            let found: Vec<&str> = scorer.segments.keys().map(String::as_str).collect();
            return Err(Error::setting(
                "--initial-scorer",
                format!("a scorer with {}", segment.name),
                format!("one with {}", found.join(", ")),
                "give the --scorer that it was trained with",
            ));
        };
        for (value, &saved) in values[segment.range.clone()].iter_mut().zip(saved) {
            *value = f64::from(saved);
        }
    }
    Ok(())
}
