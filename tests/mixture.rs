//! The mixture as a user meets it: weights that follow the input, what is said of them, and fixed mixtures beside them.
#![cfg(feature = "cli")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;

use promptmix::config::RunConfig;
use promptmix::demo::{Rows, Subject, TWO_QUESTIONS};
use promptmix::evaluate::AttentionSpread;
use promptmix::pretrained::{T5Config, TensorFile, Tokenizer};
use promptmix::prompts::{Prompt, PromptMetadata};
use rand_chacha::ChaCha8Rng;
use rand_chacha::rand_core::{RngCore, SeedableRng};

#[path = "common/program.rs"]
mod program;

const LENGTH: usize = 4;
const WIDTH: usize = 256;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

fn promptmix(arguments: &[&str]) -> Output {
    program::promptmix().args(arguments).output().expect("the binary runs")
}

/// Rows that ask two questions, and two source prompts of random numbers.
struct Setting {
    folder: tempfile::TempDir,
}

impl Setting {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let rows = Rows { train: 64, validation: 32, test: 8 };
        TWO_QUESTIONS.write(&folder.path().join("data"), rows, 1, Subject::OfKind).expect("rows");
        for (seed, name) in ["film", "outlook"].into_iter().enumerate() {
            let mut random = ChaCha8Rng::seed_from_u64(seed as u64);
            // Of the size of the model's embedding rows.
            let values =
                (0..LENGTH * WIDTH).map(|_| (random.next_u32() as f32 / u32::MAX as f32 - 0.5) * 40.0);
            let prompt = Prompt::new(name, values.collect(), LENGTH, WIDTH, PromptMetadata::default());
            prompt
                .expect("a prompt")
                .save(&folder.path().join(format!("{name}.safetensors")))
                .expect("saved");
        }
        Self { folder }
    }

    fn path(&self, name: &str) -> String {
        self.folder.path().join(name).display().to_string()
    }

    fn flags(&self, data: &str, out: &str, more: &[&str]) -> Vec<String> {
        let (data, model) = (self.path(data), model().display().to_string());
        let sources = format!("{},{}", self.path("film.safetensors"), self.path("outlook.safetensors"));
        let out = self.path(out);
        let own = [
            "train",
            "--model",
            &model,
            "--template",
            "{text}",
            "--labels",
            "negative,positive",
            "--data",
            &data,
            "--sources",
            &sources,
            "--prompt-length",
            "4",
            "--batch-size",
            "8",
            "--decoding",
            "labels",
            "--threads",
            "1",
            "--out",
            &out,
        ];
        own.iter().chain(more).map(|flag| (*flag).to_owned()).collect()
    }

    fn train(&self, data: &str, out: &str, more: &[&str]) -> Output {
        let flags = self.flags(data, out, more);
        promptmix(&flags.iter().map(String::as_str).collect::<Vec<_>>())
    }

    /// What training says on its way.
    fn trained(&self, out: &str, more: &[&str]) -> String {
        self.trained_on("data", out, more)
    }

    fn trained_on(&self, data: &str, out: &str, more: &[&str]) -> String {
        let output = self.train(data, out, more);
        let said = String::from_utf8(output.stderr).expect("text");
        assert!(output.status.success(), "{more:?}: {said}");
        said
    }

    /// The last validation of a run's log.
    fn validation(&self, out: &str) -> serde_json::Value {
        let log = fs::read_to_string(self.folder.path().join(out).join("log.jsonl")).expect("a log");
        let line = log.lines().rfind(|line| line.contains("attention_std")).expect("a validation");
        serde_json::from_str(line).expect("JSON")
    }

    fn largest_deviation(&self, out: &str) -> f64 {
        let deviations = self.validation(out)["attention_std"].as_array().expect("deviations").clone();
        assert_eq!(deviations.len(), 3);
        deviations.iter().map(|value| value.as_f64().expect("a number")).fold(0.0, f64::max)
    }

    /// Against the pooled inputs of the training rows, each by itself: their mean, and one over the standard deviation or a
    /// tenth of the columns' root mean square.
    fn check_statistics(&self, mean: &[f32], scale: &[f32]) {
        let config = T5Config::read(&model().join("config.json")).expect("a configuration");
        let tokenizer = Tokenizer::open(&model(), &config).expect("a tokenizer");
        let path = model().join("model.safetensors");
        let file = TensorFile::open_safetensors(&path).expect("a file");
        let table = file.tensor("shared.weight", &[4096, WIDTH]).expect("the embedding");
        let rows = fs::read_to_string(self.folder.path().join("data/train.jsonl")).expect("rows");
        let pooled: Vec<Vec<f64>> = rows
            .lines()
            .map(|row| {
                let row: serde_json::Value = serde_json::from_str(row).expect("JSON");
                let ids = tokenizer.encode(row["text"].as_str().expect("text")).expect("ids");
                let most = |column: usize| {
                    let values = ids.iter().map(|&id| table[id as usize * WIDTH + column]);
                    f64::from(values.fold(f32::NEG_INFINITY, f32::max))
                };
                (0..WIDTH).map(most).collect()
            })
            .collect();
        let count = pooled.len() as f64;
        let moment = |column: usize, of: &dyn Fn(f64) -> f64| {
            pooled.iter().map(|row| of(row[column])).sum::<f64>() / count
        };
        let means: Vec<f64> = (0..WIDTH).map(|column| moment(column, &|value| value)).collect();
        let variance: Vec<f64> =
            (0..WIDTH).map(|column| moment(column, &|value| (value - means[column]).powi(2))).collect();
        let least = 0.1 * (variance.iter().sum::<f64>() / WIDTH as f64).sqrt();
        assert!(least > 0.0);
        for column in 0..WIDTH {
            let expected = 1.0 / variance[column].sqrt().max(least);
            // Both are kept in f32.
            let close =
                |found: f32, expected: f64| (f64::from(found) - expected).abs() <= 1e-6 * expected.abs();
            assert!(
                close(mean[column], means[column]),
                "column {column}: {} {}",
                mean[column],
                means[column]
            );
            assert!(close(scale[column], expected), "column {column}: {} {expected}", scale[column]);
        }
    }

    fn tensor(&self, file: &str, name: &str, shape: &[usize]) -> Vec<f32> {
        let path = self.folder.path().join(file);
        TensorFile::open_safetensors(&path).expect("a file").tensor(name, shape).expect("a tensor")
    }
}

/// The constant mixture that published rates come to, and the default that does not.
#[test]
fn weights_follow_the_input_by_default_and_not_at_the_papers_rates() {
    let setting = Setting::new();
    let said = setting.trained("tuned", &["--steps", "60", "--validate-every", "60", "--seed", "1"]);
    assert!(!said.contains("the same for every example"), "{said}");
    assert!(said.contains("attention film 0.") && said.contains("target 0."), "{said}");
    assert!(said.contains("another largest source for "), "{said}");
    let tuned = setting.largest_deviation("tuned");
    let said = setting
        .trained("paper", &["--steps", "60", "--validate-every", "60", "--seed", "1", "--preset", "paper"]);
    let paper = setting.largest_deviation("paper");
    println!("standard deviation {tuned} by default, {paper} at the paper's rates");
    assert!(tuned > 0.02 && paper < 0.005, "{tuned} and {paper}");
    assert!(said.contains("warning: the mixture is the same for every example"), "{said}");
    assert!(said.contains("--preset tuned") && said.contains("--standardize-inputs"), "{said}");
    assert!(said.contains("--scorer-learning-rate below 0.1"), "{said}");
}

#[test]
fn a_remedy_is_nothing_that_the_run_has() {
    let warning = |keys: &str| {
        let keys: toml::Table = keys.parse().expect("settings");
        let config = RunConfig::default().with(&keys).expect("settings");
        AttentionSpread::of_means(vec![0.5, 0.5], vec![0.0, 0.0], 0.0).constant_warning(&config)
    };
    let (tuned, paper, own) =
        (warning(""), warning("preset = \"paper\""), warning("standardize-inputs = false"));
    assert!(tuned.contains(". Train for more steps; "), "{tuned}");
    assert!(paper.contains("--preset tuned") && paper.contains("or for more steps"), "{paper}");
    assert!(own.contains("with --standardize-inputs, or") && !own.contains("--preset"), "{own}");
    let rate = warning("scorer-learning-rate = 0.5");
    assert!(rate.contains("below 0.5") && !rate.contains("standardize"), "{rate}");
    let frozen = warning("freeze-scorer = true");
    assert!(frozen.contains("without --freeze-scorer") && !frozen.contains("steps"), "{frozen}");
    let still = warning("scorer-learning-rate = 0.0");
    assert!(still.contains("above 0") && !still.contains("steps"), "{still}");
}

#[test]
fn what_is_said_of_a_mixture_has_its_sources_names() {
    let setting = Setting::new();
    setting.trained("run", &["--steps", "4", "--validate-every", "2"]);
    let run = setting.path("run");
    let validation = setting.validation("run");
    assert_eq!(validation["prompts"], serde_json::json!(["film", "outlook", "target"]));
    let output = promptmix(&["evaluate", "--run", &run, "--threads", "1"]);
    let text = String::from_utf8(output.stdout).expect("text");
    for part in [" ± ", "  film\n", "  outlook\n", "  target\n", "the largest source is "] {
        assert!(text.contains(part), "no {part:?} in {text}");
    }
    let output = promptmix(&["evaluate", "--run", &run, "--threads", "1", "--json"]);
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).expect("JSON");
    assert_eq!(json["prompts"], validation["prompts"]);
    for key in ["attention", "attention_std"] {
        assert_eq!(json[key].as_array().map(Vec::len), Some(3), "{key}");
    }
    assert!(json["attention_minority"].is_number());
    let events: Vec<u8> = fs::read_dir(&run)
        .expect("a folder")
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().contains("tfevents"))
        .flat_map(|entry| fs::read(entry.path()).expect("a file"))
        .collect();
    let events = String::from_utf8_lossy(&events);
    for tag in ["attention/film", "attention/outlook", "attention/target", "attention_std/film"] {
        assert!(events.contains(tag), "no {tag}");
    }
    assert!(!events.contains("source_1"));
}

/// Weights are told by name, so no two prompts of a mixture may share one.
#[test]
fn a_source_called_target_is_told_from_the_target_prompt() {
    let setting = Setting::new();
    fs::copy(setting.path("film.safetensors"), setting.path("target.safetensors")).expect("copied");
    let flags = setting.flags("data", "run", &["--steps", "1"]);
    let flags: Vec<String> =
        flags.iter().map(|flag| flag.replace("film.safetensors", "target.safetensors")).collect();
    assert!(promptmix(&flags.iter().map(String::as_str).collect::<Vec<_>>()).status.success());
    assert_eq!(
        setting.validation("run")["prompts"],
        serde_json::json!(["target (source)", "outlook", "target"])
    );
    let (run, rows) = (setting.path("run"), setting.path("data/test.jsonl"));
    let output = promptmix(&["predict", "--run", &run, "--input", &rows, "--explain", "--threads", "1"]);
    let said = String::from_utf8(output.stdout).expect("text");
    for line in said.lines() {
        let line: serde_json::Value = serde_json::from_str(line).expect("JSON");
        let weights: Vec<f64> = line["attention"]
            .as_object()
            .expect("weights")
            .values()
            .filter_map(serde_json::Value::as_f64)
            .collect();
        assert!(weights.len() == 3 && (weights.iter().sum::<f64>() - 1.0).abs() < 1e-5, "{weights:?}");
    }
}

#[test]
#[cfg(feature = "report")]
fn a_report_says_how_weights_differ_and_warns_of_a_constant_mixture() {
    let setting = Setting::new();
    setting.trained("run", &["--steps", "1", "--scorer-learning-rate", "0"]);
    let (run, out) = (setting.path("run"), setting.path("report"));
    assert!(promptmix(&["report", &run, "--out", &out]).status.success());
    let page = fs::read_to_string(Path::new(&out).join("report.html")).expect("a page");
    assert!(page.contains("mean and standard deviation: film 0."), "the spread by name");
    assert_eq!(page.contains("the same for every example"), setting.largest_deviation("run") < 0.005);
}

/// One logit a prompt: they move, no input moves the weights, and the run goes on bit for bit.
#[test]
fn a_constant_mixture_learns_a_number_a_prompt() {
    let setting = Setting::new();
    let flags = ["--scorer", "constant", "--steps", "6", "--validate-every", "3"];
    let said = setting.trained("constant", &flags);
    assert!(said.contains(&format!("{} numbers train", LENGTH * WIDTH + 3)), "{said}");
    assert!(!said.contains("warning: the mixture"), "it was asked for: {said}");
    assert_eq!(setting.largest_deviation("constant"), 0.0);
    let logits = setting.tensor("constant/best.safetensors", "logits", &[3]);
    assert!(logits.iter().all(|value| *value != 0.0 && value.is_finite()), "{logits:?}");
    let weights = setting.validation("constant")["attention"].clone();
    assert_ne!(weights[0], weights[1]);

    let (run, changed) = (setting.path("constant"), setting.path("changed"));
    let output = promptmix(&["prompts", "remove", "--run", &run, "--source", "film", "--out", &changed]);
    let error = String::from_utf8(output.stderr).expect("text");
    assert!(!output.status.success() && error.contains("a logit for each"), "{error}");
}

/// What inputs are standardized by is a part of the scorer, and goes where it goes.
#[test]
fn a_scorer_takes_its_inputs_mean_and_scale_along() {
    let setting = Setting::new();
    setting.trained("first", &["--steps", "2"]);
    let mean = setting.tensor("first/scorer.safetensors", "input_mean", &[WIDTH]);
    assert!(mean.iter().all(|value| value.is_finite()) && mean.iter().any(|value| *value > 0.0));
    let scale = setting.tensor("first/scorer.safetensors", "input_scale", &[WIDTH]);
    assert!(scale.iter().all(|value| value.is_finite() && *value > 0.0));
    assert_eq!(setting.tensor("first/best.safetensors", "input_scale", &[WIDTH]), scale, "it never moves");
    setting.check_statistics(&mean, &scale);
    assert_eq!(setting.tensor("first/best.safetensors", "input_mean", &[WIDTH]), mean, "it never moves");
    let first = setting.path("first");
    // Another task's rows have another mean, but the scorer was trained with this one.
    let other = setting.path("other.jsonl");
    fs::write(
        &other,
        "{\"text\": \"one bad word\", \"label\": 0}\n{\"text\": \"a good one\", \"label\": 1}\n",
    )
    .unwrap();
    fs::create_dir(setting.path("short")).unwrap();
    for name in ["train.jsonl", "validation.jsonl"] {
        fs::copy(&other, Path::new(&setting.path("short")).join(name)).unwrap();
    }
    setting.trained_on("short", "second", &["--steps", "1", "--initial-scorer", &first]);
    assert_eq!(setting.tensor("second/best.safetensors", "input_mean", &[WIDTH]), mean);
    assert_eq!(setting.tensor("second/best.safetensors", "input_scale", &[WIDTH]), scale);
    setting.trained_on("short", "alone", &["--steps", "1"]);
    assert_ne!(setting.tensor("alone/best.safetensors", "input_mean", &[WIDTH]), mean);
    // A scorer that was trained on inputs as they are goes on with them.
    setting.trained("paper", &["--preset", "paper", "--steps", "1"]);
    let paper = setting.path("paper");
    setting.trained("third", &["--steps", "1", "--initial-scorer", &paper]);
    for (name, expected) in [("input_mean", 0.0), ("input_scale", 1.0)] {
        let values = setting.tensor("third/best.safetensors", name, &[WIDTH]);
        assert!(values.iter().all(|value| *value == expected), "{name}");
    }
}

/// The same numbers mix in another way at another temperature and on other inputs; what is said is a remedy.
#[test]
fn a_scorer_that_is_used_otherwise_than_it_was_trained_is_told_of() {
    let setting = Setting::new();
    setting.trained("first", &["--steps", "2", "--temperature", "8"]);
    setting.trained("learnt", &["--steps", "2", "--temperature", "8", "--learn-temperature"]);
    let of = |name: &str| {
        ["--steps".to_owned(), "1".to_owned(), "--initial-scorer".to_owned(), setting.path(name)]
    };
    let start = |out: &str, scorer: &str, more: &[&str]| {
        let flags = of(scorer);
        let flags: Vec<&str> = flags.iter().map(String::as_str).chain(more.iter().copied()).collect();
        setting.trained(out, &flags)
    };
    let said = start("a", "first", &[]);
    assert!(said.contains("was trained with temperature 8, and scores are divided by 695.8"), "{said}");
    assert!(said.contains("--temperature 8 gives the mixture"), "{said}");
    let said = start("b", "first", &["--temperature", "8", "--preset", "paper"]);
    assert!(said.contains("was trained on standardized inputs, and inputs are as they are here"), "{said}");
    assert!(!said.contains("was trained with temperature"), "{said}");
    let said = start("c", "first", &["--temperature", "8", "--preset", "paper", "--standardize-inputs"]);
    assert!(!said.contains("was trained"), "{said}");
    let said = start("d", "learnt", &[]);
    let (_, remedy) = said.split_once(" here: --temperature ").expect("a remedy");
    let (temperature, _) = remedy.split_once(' ').expect("a number");
    assert!((temperature.parse::<f64>().expect("a number") - 8.0).abs() < 0.5, "{said}");
    let said = start("e", "learnt", &["--temperature", temperature]);
    assert!(!said.contains("was trained"), "{said}");
    let said = start("f", "learnt", &["--learn-temperature"]);
    assert!(!said.contains("was trained"), "it goes on where it was: {said}");
    // A scorer without weights leaves none to start from.
    setting.trained("dot", &["--steps", "1", "--scorer", "dot"]);
    let flags = of("dot");
    let output = setting.train("data", "g", &flags.iter().map(String::as_str).collect::<Vec<_>>());
    let error = String::from_utf8(output.stderr).expect("text");
    assert!(!output.status.success() && error.contains("a folder without scorer.safetensors"), "{error}");
}

#[test]
fn flags_that_a_scorer_cannot_follow_are_refused() {
    let setting = Setting::new();
    for (flags, named) in [
        (&["--scorer", "uniform", "--standardize-inputs"][..], "--standardize-inputs"),
        (&["--scorer", "constant", "--center-inputs"], "--standardize-inputs"),
        (&["--scorer", "constant", "--learn-temperature"], "--learn-temperature"),
        (&["--scorer", "uniform", "--learn-temperature"], "--learn-temperature"),
    ] {
        let output = setting.train("data", "refused", flags);
        let error = String::from_utf8(output.stderr).expect("text");
        assert!(!output.status.success() && error.contains(named), "{flags:?}: {error}");
        assert!(error.contains("a scorer that reads the input"), "{error}");
    }
}

#[test]
fn a_spread_is_over_examples_and_leaves_the_target_prompt_out_of_the_largest() {
    let rows = vec![vec![0.5, 0.1, 0.4], vec![0.2, 0.3, 0.5], vec![0.4, 0.2, 0.4], vec![0.3, 0.1, 0.6]];
    let spread = AttentionSpread::new(&rows, 2);
    for (found, expected) in spread.mean.iter().zip([0.35, 0.175, 0.475]) {
        assert!((found - expected).abs() < 1e-12);
    }
    // numpy.std of the columns.
    for (found, expected) in
        spread.standard_deviation.iter().zip([0.111_803_398_9, 0.082_915_619_8, 0.082_915_619_8])
    {
        assert!((found - expected).abs() < 1e-9, "{found}");
    }
    assert_eq!((spread.commonest, spread.minority), (Some(0), 0.25));
    assert!(!spread.is_constant());
    assert!(AttentionSpread::new(&[vec![0.5, 0.5], vec![0.501, 0.499]], 1).is_constant());
    let none = AttentionSpread::new(&[Vec::new()], 0);
    assert!(none.mean.is_empty() && !none.is_constant() && none.commonest.is_none());
}
