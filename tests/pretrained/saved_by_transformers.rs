//! Checkpoints as transformers 4 and 5 save them: the output matrix, its scale, the loss and the hash.
//!
//! `tests/fixtures/checkpoints.json`, written by `scripts/peers/checkpoints.py`, holds the configurations and losses of real
//! transformers; the weights follow the formula that the script has too.

use std::path::Path;

use promptmix::backend::cpu::Cpu;
use promptmix::backend::{Batch, Example, Mixing, OptimizerOps, StateLayout};
use promptmix::model::{Mixture, Pass, T5};
use promptmix::pretrained::{Checkpoint, T5Config};
use safetensors::Dtype;
use serde::Deserialize;
use tempfile::tempdir;

use crate::tiny_checkpoint::{Tensors, safetensors_bytes};

const PROMPT_ROWS: usize = 3;
const EXAMPLES: [(&[u32], &[u32]); 2] = [(&[5, 17, 23, 9, 1], &[31, 12, 1]), (&[38, 6, 1], &[7, 1])];
const HEAD: &str = "lm_head.weight";
/// The losses were computed in f64 but for T5's norms, which transformers takes in f32 whatever the model's type is: each
/// is off by some 2^-24 of its value, and a dozen of them follow one another.
const TOLERANCE: f64 = 1e-5;

#[derive(Clone, Deserialize)]
struct RunManifest {
    kind: String,
    head: String,
    saved_by: String,
    loss: f64,
    stored: Vec<String>,
    config: serde_json::Value,
}

fn saved() -> Vec<RunManifest> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/checkpoints.json");
    serde_json::from_slice(&std::fs::read(path).expect("the table")).expect("a table")
}

/// As `values` in the script.
fn values(name: &str, shape: &[usize]) -> Vec<f32> {
    let seed =
        name.bytes().fold(2_166_136_261_u32, |seed, byte| (seed ^ u32::from(byte)).wrapping_mul(16_777_619));
    let count: usize = shape.iter().product();
    (0..count as u32)
        .map(|index| {
            let mixed = index.wrapping_mul(2_654_435_761).wrapping_add(seed).wrapping_mul(2_246_822_519);
            let byte = (mixed >> 24) as f32 / 256.0;
            match name {
                _ if shape.len() == 1 => byte + 0.5,
                "shared.weight" | "prompt" => 4.0 * byte - 2.0,
                _ => byte - 0.5,
            }
        })
        .collect()
}

impl RunManifest {
    fn major(&self) -> &str {
        self.saved_by.split('.').next().expect("a version")
    }

    fn name(&self) -> String {
        format!("{} {} by {}", self.kind, self.head, self.saved_by)
    }

    fn tensors(&self) -> Tensors {
        let config = T5Config::from_json(Path::new("config.json"), self.config.to_string().as_bytes());
        let config = config.unwrap_or_else(|error| panic!("{}: {error}", self.name()));
        let embedding = [config.vocab_size, config.d_model];
        let mut tensors: Tensors = config
            .tensors()
            .into_iter()
            .filter(|(name, _)| !["shared.weight", HEAD].contains(&name.as_str()))
            .map(|(name, shape)| {
                let values = values(&name, &shape);
                (name, (shape, values))
            })
            .collect();
        for name in &self.stored {
            let content = if name == HEAD && self.head == "own" { HEAD } else { "shared.weight" };
            tensors.insert(name.clone(), (embedding.to_vec(), values(content, &embedding)));
        }
        tensors
    }

    fn write(&self, folder: &Path) {
        std::fs::write(folder.join("config.json"), self.config.to_string()).expect("written");
        let weights = safetensors_bytes(&self.tensors(), Dtype::F32);
        std::fs::write(folder.join("model.safetensors"), weights).expect("written");
    }

    fn hash(&self) -> String {
        let folder = tempdir().expect("folder");
        self.write(folder.path());
        let checkpoint = Checkpoint::open(folder.path()).expect("opens");
        checkpoint.sha256().expect("a hash").to_owned()
    }
}

/// The mean cross entropy after the fixed soft prompt.
fn loss(checkpoint: &Checkpoint) -> f64 {
    let backend = Cpu::<f64>::poisoning(Some(1)).expect("a thread");
    let model = T5::load(&backend, checkpoint).expect("a model");
    let config = checkpoint.config();
    let mixing = Mixing { scorer: None, temperature: 1.0, without_target: false, layer_norm_epsilon: 1e-5 };
    let layout = StateLayout::new(&mixing, 1, PROMPT_ROWS, config.d_model, 1, false);
    let prompt: Vec<f64> =
        values("prompt", &[PROMPT_ROWS, config.d_model]).into_iter().map(f64::from).collect();
    let mixture = Mixture { mixing, sources: None, source_count: 0, layout };
    let state = backend.state(&mixture.layout, &prompt, 1).expect("a state");
    let examples = EXAMPLES.map(|(source, target)| Example {
        source: source.to_vec(),
        target: target.to_vec(),
        ..Example::default()
    });
    let batch = Batch::pack(&examples, PROMPT_ROWS, config.decoder_start_token_id, config.vocab_size);
    let batch = batch.expect("a batch");
    let tokens = [batch.label_tokens(0)];
    let loss = model.loss(&backend, &mixture, &state, &batch, &tokens, Pass::evaluation());
    loss.expect("a loss").per_run[0]
}

#[test]
fn every_kind_as_either_version_saves_it_has_transformers_loss() {
    let saved = saved();
    for saved in &saved {
        let folder = tempdir().expect("folder");
        saved.write(folder.path());
        let checkpoint = Checkpoint::open(folder.path()).expect("opens");
        let found = loss(&checkpoint);
        assert!((found - saved.loss).abs() <= TOLERANCE, "{}: {found}, not {}", saved.name(), saved.loss);
        assert_eq!(checkpoint.output_is_tied(), saved.head != "own", "{}", saved.name());
        assert_eq!(checkpoint.warnings(), [""; 0], "{}", saved.name());
    }
    // The table tells the cases apart: a scale forgotten or added moves the loss by far more than the tolerance.
    let of = |kind: &str, head: &str| {
        saved.iter().find(|saved| saved.kind == kind && saved.head == head).expect("in the table").loss
    };
    assert!((of("v1.1", "tied") - of("v1.1", "copy")).abs() > 1.0);
    assert!((of("v1.0", "own") - of("v1.0 scaled", "own")).abs() > 0.1);
}

#[test]
fn one_model_saved_by_both_versions_has_one_hash() {
    let saved = saved();
    let (four, five): (Vec<&RunManifest>, Vec<&RunManifest>) =
        saved.iter().partition(|saved| saved.major() == "4");
    assert_eq!(four.len(), 11);
    for old in four {
        let new = five.iter().find(|new| new.kind == old.kind && new.head == old.head).expect("saved again");
        // Transformers 5 has no scale for mT5: a tied one is another model there, and gives another loss.
        let same = (old.loss - new.loss).abs() <= TOLERANCE;
        assert_eq!(same, (old.kind.as_str(), old.head.as_str()) != ("mt5", "tied"));
        assert_eq!(old.hash() == new.hash(), same, "{}", old.name());
    }
}

#[test]
fn a_hash_is_what_it_was_and_a_new_combination_has_its_own() {
    // Of the releases that knew transformers 4 alone; recorded runs and prompts carry these.
    for (kind, head, hash) in [
        ("v1.0", "tied", "715dd113bab3a6cd1db07c3b648c8fdbdeed8213a293de9398167a34735da55b"),
        ("v1.0", "own", "c17d8d0a35b491396249d8a634376d18eafa50284d438fccbcd7fa065a00f491"),
        ("v1.0", "copy", "27f72bf0600a9f26c29c90660b68a74f8d56912c703de29d6b9f4be4459f1abc"),
    ] {
        let saved = saved().into_iter().find(|saved| saved.kind == kind && saved.head == head);
        assert_eq!(saved.expect("in the table").hash(), hash, "{kind} {head}");
    }
    let hashes: std::collections::BTreeSet<String> = saved()
        .iter()
        .filter(|saved| saved.kind.starts_with("v1.0") && saved.major() == "5")
        .map(RunManifest::hash)
        .collect();
    assert_eq!(hashes.len(), 4, "tied, own, copy and scaled are four models");
}
