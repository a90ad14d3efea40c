//! The demonstration: its generated rows, and a comparison of a few steps.

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use promptmix::demo::words::{
    ACT, AGENT, BEFORE, EVENT_ACT, EVENT_AGENT, EVENT_BEFORE, EVENT_LATER, LATER, NEGATIVE, POSITIVE,
};
use promptmix::demo::{
    Generated, GeneratedTask, Progress, Report, Rows, SOURCES, Settings, TARGET, compare, write_model,
};

const ROWS: Rows = Rows { train: 200, validation: 60, test: 100 };

fn tasks() -> impl Iterator<Item = GeneratedTask> {
    SOURCES.into_iter().chain([TARGET])
}

fn splits(generated: &Generated) -> [&[(String, usize)]; 3] {
    [&generated.train, &generated.validation, &generated.test]
}

#[test]
fn a_seed_gives_the_same_rows_and_another_seed_others() {
    for task in tasks() {
        let rows = task.generate(ROWS, 7).unwrap();
        assert_eq!(rows, task.generate(ROWS, 7).unwrap(), "{}", task.name);
        assert_ne!(rows, task.generate(ROWS, 8).unwrap(), "{}", task.name);
    }
}

#[test]
fn every_split_is_balanced_and_no_text_is_in_two() {
    for task in tasks() {
        let rows = task.generate(ROWS, 1).unwrap();
        let mut seen = HashSet::new();
        for (split, count) in splits(&rows).into_iter().zip([200, 60, 100]) {
            assert_eq!(split.len(), count);
            assert_eq!(split.iter().filter(|(_, label)| *label == 1).count(), count / 2, "{}", task.name);
            for (text, _) in split {
                assert!(seen.insert(text.clone()), "{}: {text:?} occurs twice", task.name);
            }
        }
    }
}

#[test]
fn the_words_of_a_sentence_tell_its_label() {
    for task in tasks() {
        let rows = task.generate(ROWS, 3).unwrap();
        for (text, label) in splits(&rows).concat() {
            assert_eq!(label_of(task.name, &text), label, "{}: {text:?}", task.name);
        }
    }
}

#[test]
fn lists_that_labels_hang_on_do_not_overlap_and_the_target_has_words_of_its_own() {
    let past = |acts: &[(&'static str, &'static str)]| acts.iter().map(|(past, _)| *past).collect::<Vec<_>>();
    for (one, other) in [
        (POSITIVE.to_vec(), NEGATIVE.to_vec()),
        ([BEFORE, EVENT_BEFORE].concat(), [LATER, EVENT_LATER].concat()),
        ([AGENT, BEFORE, LATER].concat(), [EVENT_AGENT, EVENT_BEFORE, EVENT_LATER].concat()),
        (past(ACT), past(EVENT_ACT)),
    ] {
        assert!(one.iter().all(|word| !other.contains(word)), "{one:?} and {other:?}");
    }
    assert!(ACT.iter().chain(EVENT_ACT).all(|(past, future)| past != future));
}

#[test]
fn more_rows_than_the_words_can_make_are_refused() {
    let rows = Rows { train: 1_000_000, validation: 2, test: 2 };
    let error = SOURCES[0].generate(rows, 1).unwrap_err().to_string();
    assert!(error.contains("ask for fewer"), "{error}");
}

#[test]
fn a_short_comparison_prints_every_part_and_a_complete_table() {
    let folder = tempfile::tempdir().unwrap();
    let mut progress = Counted::default();
    let report = compare(&tiny(), &model(), folder.path(), &mut progress).unwrap();

    let names =
        ["prompt tuning", "SPoT from ", "ATTEMPT", "ATTEMPT, random", "SPoT, best of six", "equal weights"];
    assert_eq!(report.rows.len(), names.len());
    for (row, name) in report.rows.iter().zip(names) {
        assert!(row.name.contains(name), "{} is not {name}", row.name);
        assert!(tiny().learning_rates.contains(&row.learning_rate));
        for accuracies in [&row.validation, &row.test] {
            assert_eq!(accuracies.len(), 2, "{name}");
            assert!(accuracies.iter().all(|value| (0.0..=1.0).contains(value)), "{name}: {accuracies:?}");
        }
    }
    assert_eq!(report.attention.len(), SOURCES.len() + 1);
    assert!((report.attention.iter().sum::<f64>() - 1.0).abs() <= 1e-5, "{:?}", report.attention);
    assert!(report.attention.iter().all(|weight| *weight > 0.0));
    assert!(report.entropy > 0.0 && report.entropy <= 7_f64.ln() + 1e-5, "{}", report.entropy);
    assert!(report.run.join("prompt.safetensors").is_file() && report.run.join("log.txt").is_file());
    assert!(report.source_prompts.iter().all(|path| path.is_file()));

    let text = report.to_string();
    for part in
        ["source prompts", "rows a class", "validation", "random sources", "mean attention", "entropy"]
    {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    for task in SOURCES {
        assert!(text.contains(task.name), "no {} in\n{text}", task.name);
    }
    assert!(!text.contains("NaN"), "{text}");
    let next = report.next_command();
    assert!(next.contains("promptmix train") && next.contains("prompt.safetensors"), "{next}");
    assert_eq!(progress.parts, ["source prompts", "target", "test rows"]);
    assert_eq!(progress.done, progress.promised);

    // Another comparison does not mix its files with these.
    let error = compare(&tiny(), &model(), folder.path(), &mut Counted::default()).unwrap_err().to_string();
    assert!(error.contains("name another folder"), "{error}");
}

#[test]
fn neither_the_workers_nor_the_test_rows_change_what_is_chosen() {
    let run = |workers, test| {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = tiny();
        settings.workers = Some(workers);
        settings.target_rows.test = test;
        compare(&settings, &model(), folder.path(), &mut Counted::default()).unwrap()
    };
    let (one, two, other_test) = (run(1, 12), run(2, 12), run(2, 40));
    assert_eq!((&one.rows, &one.attention, one.entropy), (&two.rows, &two.attention, two.entropy));
    let chosen = |report: &Report| {
        let rows = report.rows.iter();
        rows.map(|row| (row.name.clone(), row.learning_rate, row.validation.clone())).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&two), chosen(&other_test));
    assert_eq!(two.transfer, other_test.transfer);
}

#[test]
fn test_rows_are_never_among_those_that_are_learnt_from_or_chosen_by() {
    let folder = tempfile::tempdir().unwrap();
    compare(&tiny(), &model(), folder.path(), &mut Counted::default()).unwrap();
    let texts = |task: &GeneratedTask, split: &str| -> Vec<String> {
        let path = folder.path().join("data").join(task.name).join(split);
        let rows = std::fs::read_to_string(path).unwrap();
        let row = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        rows.lines().map(|line| row(line)["text"].as_str().unwrap().to_owned()).collect()
    };
    let test = texts(&TARGET, "test.jsonl");
    assert_eq!(test.len(), 12);
    for task in tasks() {
        for split in ["train.jsonl", "validation.jsonl"] {
            let seen = texts(&task, split);
            assert!(
                !seen.is_empty() && test.iter().all(|text| !seen.contains(text)),
                "{} {split}",
                task.name
            );
        }
    }
}

#[test]
fn the_model_that_comes_with_the_program_is_the_one_beside_its_sources() {
    let folder = tempfile::tempdir().unwrap();
    write_model(folder.path()).unwrap();
    for name in ["config.json", "tokenizer.json", "model.safetensors"] {
        let (written, source) = (std::fs::read(folder.path().join(name)), std::fs::read(model().join(name)));
        assert_eq!(written.unwrap(), source.unwrap(), "{name}");
    }
}

#[test]
fn the_command_leaves_a_folder_that_holds_files_alone() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("thesis.txt"), "mine").unwrap();
    let mut command = Command::new(env!("CARGO_BIN_EXE_promptmix"));
    let output = command.arg("demo").arg("--out").arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("--out") && error.contains("name another folder"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// A comparison of a few steps.
fn tiny() -> Settings {
    let mut settings = Settings::long();
    settings.seeds = vec![1, 2];
    settings.source_rows = Rows { train: 16, validation: 4, test: 2 };
    settings.target_rows = Rows { train: 16, validation: 8, test: 12 };
    settings.shots = 2;
    settings.source_steps = 2;
    settings.steps = 2;
    settings.validate_every = 1;
    settings.prompt_length = 4;
    settings.batch_size = 4;
    settings
}

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

/// Checks that a comparison does the steps that it promises.
#[derive(Default)]
struct Counted {
    parts: Vec<&'static str>,
    promised: u64,
    done: u64,
}

impl Progress for Counted {
    fn begin(&mut self, what: &'static str, steps: u64) {
        self.parts.push(what);
        self.promised += steps;
    }

    fn step(&mut self) {
        self.done += 1;
    }
}

/// The label by the task's question, from the words alone.
fn label_of(task: &str, text: &str) -> usize {
    let words: Vec<&str> = text.split(' ').collect();
    let opinions = opinions(&words);
    match task {
        "film" => {
            assert_eq!(opinions.len(), 1, "{text:?}");
            opinions[0]
        }
        "contrast" => {
            assert!(opinions.len() == 2 && opinions[0] != opinions[1], "{text:?} does not contrast");
            opinions[1]
        }
        "opinion" => usize::from(!opinions.is_empty()),
        "agreement" => {
            assert_eq!(opinions.len(), 2, "{text:?}");
            usize::from(opinions[0] == opinions[1])
        }
        "time" | "outlook" | "event" => {
            let later = words.contains(&"will");
            let past = BEFORE.iter().chain(EVENT_BEFORE).any(|time| text.contains(time));
            let future = LATER.iter().chain(EVENT_LATER).any(|time| text.contains(time));
            assert_eq!(past || future, task != "outlook", "{text:?}");
            assert!(!(past && later) && (!future || later), "{text:?} contradicts itself");
            usize::from(later)
        }
        other => panic!("no rule for {other}"),
    }
}

/// The sentiments of a sentence's opinions, in order.
fn opinions(words: &[&str]) -> Vec<usize> {
    let sentiment = |word: &&str| {
        let good = POSITIVE.contains(word);
        (good || NEGATIVE.contains(word)).then_some(usize::from(good))
    };
    words.iter().filter_map(sentiment).collect()
}
