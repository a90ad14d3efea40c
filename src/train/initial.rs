//! Where training starts: the target prompt and the scorer before the first step.

use std::path::{Path, PathBuf};

use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

use crate::backend::StateLayout;
use crate::config::{Method, PromptInit, RunConfig};
use crate::error::{Error, Result};
use crate::prompts::{self, Prompt, PromptMetadata};

/// Rows of the embedding that vocabulary initialisation draws from: the most frequent pieces.
const VOCABULARY_ROWS: usize = 5_000;
/// Ids below this are padding, end of sequence and unknown.
const FIRST_PIECE: usize = 3;
/// Standard deviation of the scorer's weights.
const SCORER_DEVIATION: f64 = 0.01;

/// What the start is made from.
pub struct Start<'a> {
    /// A row of E, \[V, D\].
    pub embedding: &'a dyn Fn(usize) -> Result<Vec<f32>>,
    /// V.
    pub vocabulary: usize,
    /// Token ids of the task's label words, for [`PromptInit::Labels`].
    pub label_ids: &'a [u32],
    /// The source prompts.
    pub sources: &'a [Prompt],
    /// The prompt of `--initial-prompt`.
    pub initial_prompt: Option<&'a Prompt>,
}

/// The flat state of one run: `layout.targets` target prompts that start alike, and the scorer.
///
/// # Errors
/// [`Error::Setting`] if the settings ask for a start that the sources cannot give; those of reading the embedding.
pub fn state(config: &RunConfig, layout: &StateLayout, start: &Start<'_>) -> Result<Vec<f64>> {
    let mut random = ChaCha8Rng::seed_from_u64(config.seed);
    let prompt = target_prompt(config, layout, start, &mut random)?;
    let mut values = vec![0.0; layout.len()];
    for segment in layout.segments() {
        let values = &mut values[segment.range.clone()];
        match segment.name {
            "target_prompts" => {
                for target in values.chunks_exact_mut(prompt.len()) {
                    target.copy_from_slice(&prompt);
                }
            }
            // The inputs' mean and scale are taken of the training rows, by whoever has them.
            "norm_weight" | "input_scale" => values.fill(1.0),
            "norm_bias" | "logits" | "input_mean" => values.fill(0.0),
            "log_temperature" => values.fill(temperature(config, layout.width).ln()),
            _ => values.iter_mut().for_each(|value| *value = SCORER_DEVIATION * normal(&mut random)),
        }
    }
    Ok(values)
}

/// What scores are divided by, or where a learnt temperature starts: D·e unless set.
pub fn temperature(config: &RunConfig, width: usize) -> f64 {
    config.temperature.unwrap_or(width as f64 * std::f64::consts::E)
}

fn target_prompt(
    config: &RunConfig,
    layout: &StateLayout,
    start: &Start<'_>,
    random: &mut ChaCha8Rng,
) -> Result<Vec<f64>> {
    let (length, width) = (layout.prompt_length, layout.width);
    let widened = |values: &[f32]| values.iter().map(|&value| f64::from(value)).collect::<Vec<f64>>();
    match config.prompt_init() {
        PromptInit::Normal => Ok((0..length * width).map(|_| normal(random)).collect()),
        PromptInit::Uniform => Ok((0..length * width).map(|_| uniform(random) - 0.5).collect()),
        PromptInit::Vocabulary => vocabulary_rows(length, start, random),
        PromptInit::Labels => {
            if start.label_ids.is_empty() {
                return Err(Error::setting(
                    "--prompt-init",
                    "a task with labels",
                    "labels, for a task of free answers",
                    "use vocabulary",
                ));
            }
            let ids: Vec<u32> = start.label_ids.iter().copied().take(length).collect();
            let mut rows = embedding_rows(start, ids.iter().map(|&id| id as usize))?;
            rows.extend(vocabulary_rows(length - ids.len(), start, random)?);
            Ok(rows)
        }
        PromptInit::Prompt => match (config.method, start.initial_prompt, start.sources) {
            (Method::Spot, target, sources @ [_, _, ..]) => {
                let weights = prompts::weights_by_similarity(sources, target);
                Ok(widened(prompts::merge("start", sources, &weights)?.values()))
            }
            (Method::Spot, _, [source, ..]) | (_, Some(source), _) | (_, None, [source, ..]) => {
                Ok(widened(source.values()))
            }
            (_, None, []) => Err(Error::setting(
                "--prompt-init",
                "a prompt to start from",
                "none",
                "name it with --initial-prompt",
            )),
        },
    }
}

/// Distinct rows of the embedding, drawn from its first rows.
fn vocabulary_rows(count: usize, start: &Start<'_>, random: &mut ChaCha8Rng) -> Result<Vec<f64>> {
    let last = VOCABULARY_ROWS.min(start.vocabulary);
    let mut rows: Vec<usize> = (FIRST_PIECE.min(last)..last).collect();
    if rows.len() < count {
        return Err(Error::setting(
            "--prompt-length",
            format!("at most {} with vocabulary rows", rows.len()),
            count.to_string(),
            "use --prompt-init normal",
        ));
    }
    // The front of a Fisher-Yates shuffle.
    for drawn in 0..count {
        let other = drawn + (random.next_u64() % (rows.len() - drawn) as u64) as usize;
        rows.swap(drawn, other);
    }
    embedding_rows(start, rows[..count].iter().copied())
}

fn embedding_rows(start: &Start<'_>, rows: impl Iterator<Item = usize>) -> Result<Vec<f64>> {
    let mut values = Vec::new();
    for row in rows {
        values.extend((start.embedding)(row)?.into_iter().map(f64::from));
    }
    Ok(values)
}

/// Uniform in \[0, 1).
fn uniform(random: &mut ChaCha8Rng) -> f64 {
    (random.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
}

/// Standard normal, by Box and Muller.
fn normal(random: &mut ChaCha8Rng) -> f64 {
    let radius = (-2.0 * (1.0 - uniform(random)).ln()).sqrt();
    radius * (std::f64::consts::TAU * uniform(random)).cos()
}

/// Writes into `folder`, for each of the prompts in `sources` under its name, a random one whose rows have the norms of its rows.
pub(crate) fn write_random_like<'a>(
    sources: impl Iterator<Item = (String, &'a PathBuf)>,
    folder: &Path,
    seed: u64,
) -> Result<Vec<PathBuf>> {
    std::fs::create_dir_all(folder).map_err(|source| Error::file("create", folder, source))?;
    let mut random = ChaCha8Rng::seed_from_u64(seed);
    let norm = |row: &[f64]| row.iter().map(|value| value * value).sum::<f64>().sqrt();
    let write = |(name, path): (String, &PathBuf)| {
        let source = Prompt::load(path)?;
        let mut values = Vec::with_capacity(source.values().len());
        for row in source.values().chunks_exact(source.width()) {
            let row: Vec<f64> = row.iter().map(|&value| f64::from(value)).collect();
            let noise: Vec<f64> = row.iter().map(|_| normal(&mut random)).collect();
            let scale = norm(&row) / norm(&noise);
            values.extend(noise.iter().map(|value| (value * scale) as f32));
        }
        let model_sha256 = source.metadata().model_sha256.clone();
        let metadata = PromptMetadata { model_sha256, ..PromptMetadata::default() };
        let path = folder.join(format!("{name}.safetensors"));
        Prompt::new(&name, values, source.length(), source.width(), metadata)?.save(&path)?;
        Ok(path)
    };
    sources.map(write).collect()
}
