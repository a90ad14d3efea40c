//! Setting a run up: its sources, the mixture that it trains, and the numbers that it starts from.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use super::RunManifest;
use super::initial::{self, Start};
use super::log::Monitor;
use super::task_data::TaskData;
use crate::backend::{Backend, Group, Mixing, Scorer, StateLayout};
use crate::config::{Method, RunConfig};
use crate::count::counted;
use crate::error::{Error, Result};
use crate::model::{Frozen, Mixture};
use crate::prompts::{Prompt, SavedScorer};

/// Rows at most that the inputs' mean is taken over: it is then off by a thirtieth of their standard deviation.
const STATISTICS_ROWS: usize = 1_000;
/// A column that varies less than this share of the columns' root mean square is scaled as if it varied by so much: what a
/// column of few rows happens to do is not made as large as the others.
const LEAST_DEVIATION: f64 = 0.1;
/// What the target prompt is called among those that are mixed.
pub(crate) const TARGET: &str = "target";
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

/// The sources that a trained run mixes, those that it was trained with; none of a run without a mixture, which needs them no
/// more. `config` has the settings of `saved` with their paths as they are found now; `flag` named the run.
pub(super) fn sources_of<B: Backend>(
    frozen: &Frozen<'_, B>,
    saved: &RunManifest,
    config: &RunConfig,
    flag: &str,
) -> Result<Vec<Prompt>> {
    if config.method != Method::Attempt {
        return Ok(Vec::new());
    }
    let sources = load_sources(frozen, config)?;
    saved.check_sources(&sources, &config.sources, flag)?;
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
        config.bottleneck_dim,
        mixes && config.learn_temperature,
    );
    let layout = if mixes && config.scorer == Scorer::Constant {
        layout.with_logits(sources.len() + usize::from(!config.without_target()))
    } else {
        layout
    };
    let layout = if config.standardizes_inputs() { layout.with_standardized_inputs() } else { layout };
    let layout = layout.freezing(|segment| {
        let norm = segment.name.starts_with("norm_") && !config.trains_layer_norm();
        norm || (config.freeze_scorer && segment.group == Group::Scorer)
    });
    let on_device = if mixes {
        let values: Vec<f32> = sources.iter().flat_map(|source| source.values()).copied().collect();
        Some(frozen.backend.sources(&values, sources.len(), config.prompt_length, width)?)
    } else {
        None
    };
    Ok(Mixture { mixing, sources: on_device, source_count: if mixes { sources.len() } else { 0 }, layout })
}

/// What the mixture's weights belong to, in their order and each by a name of its own: the sources, then `target`; nothing without
/// a mixture.
pub(super) fn prompt_names<B: Backend>(config: &RunConfig, mixture: &Mixture<B>) -> Vec<String> {
    if mixture.source_count == 0 {
        return Vec::new();
    }
    let mut names = super::source_names(&config.sources);
    if !mixture.mixing.without_target {
        // Nothing keeps a user from calling a source so.
        names.iter_mut().filter(|name| *name == TARGET).for_each(|name| name.push_str(" (source)"));
        names.push(TARGET.to_owned());
    }
    names
}

/// The flat state that the run starts from. `monitor` hears of a scorer that is used otherwise than it was trained.
pub(super) fn initial_values<B: Backend>(
    frozen: &Frozen<'_, B>,
    config: &RunConfig,
    tasks: &[TaskData],
    layout: &StateLayout,
    sources: &[Prompt],
    monitor: &mut dyn Monitor,
) -> Result<Vec<f64>> {
    let width = frozen.model.config().d_model;
    let initial_prompt = match &config.initial_prompt {
        Some(path) => {
            let prompt = Prompt::load(path)?;
            prompt.check_fits(width, Some(&frozen.model_hash))?;
            if prompt.length() != config.prompt_length {
                return Err(Error::setting(
                    "--initial-prompt",
                    format!("a prompt of {}", counted(config.prompt_length, "row")),
                    format!("{} in {}", counted(prompt.length(), "row"), path.display()),
                    "set --prompt-length to match",
                ));
            }
            Some(prompt)
        }
        None => None,
    };
    let mut labels: Vec<String> = Vec::new();
    for label in tasks.iter().flat_map(|data| data.task.labels().unwrap_or_default()) {
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
    if let (Some(mean), Some(scale)) = (layout.range("input_mean", 0), layout.range("input_scale", 0)) {
        let statistics = input_statistics(frozen, config, tasks)?;
        values[mean].copy_from_slice(&statistics.mean);
        values[scale].copy_from_slice(&statistics.scale());
    }
    if let Some(path) = &config.initial_scorer {
        let scorer = SavedScorer::load(path)?;
        start_scorer(&scorer, &frozen.model_hash, layout, &mut values)?;
        for (trained, here, remedy) in other_use(&scorer, config, layout) {
            let path = path.display();
            monitor.note(&format!(
                "warning: the scorer in {path} was trained {trained}, and {here}: {remedy} gives the mixture that it learnt"
            ));
        }
    }
    Ok(values)
}

/// What a trained scorer finds otherwise in a run of `config` than in its training, so that the same numbers mix in another
/// way: how it was trained, how it is used, and the flag that uses it as it was trained.
fn other_use(
    scorer: &SavedScorer,
    config: &RunConfig,
    layout: &StateLayout,
) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    let learnt = scorer.segments.get("log_temperature").and_then(|(_, values)| values.first());
    // A learnt one goes on where it learns here too.
    let trained = match learnt {
        Some(_) if layout.segment("log_temperature").is_some() => None,
        Some(logarithm) => Some(f64::from(logarithm.exp())),
        None => scorer.temperature,
    };
    let used = initial::temperature(config, layout.width);
    if let Some(trained) = trained.filter(|trained| (trained / used - 1.0).abs() > 1e-5) {
        found.push((
            format!("with temperature {}", trained as f32),
            format!("scores are divided by {} here", used as f32),
            format!("--temperature {}", trained as f32),
        ));
    }
    if scorer.segments.contains_key("input_mean") && layout.segment("input_mean").is_none() {
        found.push((
            "on standardized inputs".to_owned(),
            "inputs are as they are here".to_owned(),
            "--standardize-inputs".to_owned(),
        ));
    }
    found
}

/// What the columns of the pooled inputs x_b do over training rows.
struct InputStatistics {
    /// \[D\].
    mean: Vec<f64>,
    /// \[D\].
    variance: Vec<f64>,
}

impl InputStatistics {
    /// What centered inputs are multiplied by, \[D\]: one over the standard deviation, which is taken for at least
    /// [`LEAST_DEVIATION`] of the columns' root mean square. One where nothing varies.
    fn scale(&self) -> Vec<f64> {
        let mean_variance = self.variance.iter().sum::<f64>() / self.variance.len().max(1) as f64;
        let least = LEAST_DEVIATION * mean_variance.sqrt();
        let scale = |variance: &f64| 1.0 / variance.sqrt().max(least);
        if least > 0.0 { self.variance.iter().map(scale).collect() } else { vec![1.0; self.variance.len()] }
    }
}

/// Mean and variance of the pooled inputs over the training rows of all tasks: over every row, or over so many that are
/// spread evenly.
fn input_statistics<B: Backend>(
    frozen: &Frozen<'_, B>,
    config: &RunConfig,
    tasks: &[TaskData],
) -> Result<InputStatistics> {
    let (backend, model) = (frozen.backend, &frozen.model);
    let width = model.config().d_model;
    let padding = config.pools_padding().then(|| model.config().pad_token_id);
    let rows: usize = tasks.iter().map(|data| data.training.len()).sum();
    let stride = rows.div_ceil(STATISTICS_ROWS).max(1);
    let mut table: HashMap<u32, Vec<f32>> = HashMap::new();
    let mut statistics = InputStatistics { mean: vec![0.0; width], variance: vec![0.0; width] };
    let sources = tasks.iter().flat_map(|data| (0..data.training.len()).map(|row| data.training.source(row)));
    let mut count = 0.0;
    for source in sources.step_by(stride) {
        let padding = padding.filter(|_| source.len() < config.max_source_length);
        let mut pooled = vec![f32::NEG_INFINITY; width];
        for id in source.into_iter().chain(padding) {
            let row = match table.entry(id) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(backend.weight_row(model.embedding(), id as usize)?),
            };
            pooled.iter_mut().zip(row).for_each(|(most, value)| *most = most.max(*value));
        }
        // Welford's: no difference of two large sums.
        count += 1.0;
        let columns = statistics.mean.iter_mut().zip(&mut statistics.variance);
        for ((mean, squares), value) in columns.zip(pooled) {
            let difference = f64::from(value) - *mean;
            *mean += difference / count;
            *squares += difference * (f64::from(value) - *mean);
        }
    }
    statistics.variance.iter_mut().for_each(|squares| *squares /= f64::max(count, 1.0));
    Ok(statistics)
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
            // It was trained on inputs as they are, or only centered ones.
            if segment.name.starts_with("input_") {
                values[segment.range.clone()].fill(if segment.name == "input_mean" { 0.0 } else { 1.0 });
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
