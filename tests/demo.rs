//! The demonstration: its generated rows, and a comparison of a few steps.

use std::collections::HashSet;
use std::path::Path;

use promptmix::backend::cpu::Cpu;
use promptmix::demo::words::{
    ACT, AGENT, BEFORE, EVENT_ACT, EVENT_AGENT, EVENT_BEFORE, EVENT_LATER, FILM, FOOD, LATER, NEGATIVE,
    POSITIVE, SHOW, SPORT, STAY, TRAVEL,
};
use promptmix::demo::{
    AttentionByKind, Generated, GeneratedTask, Progress, QuestionsTask, Report, Rows, SOURCES, Settings,
    StudySettings, Subject, TARGET, THREE_QUESTIONS, TWO_QUESTIONS, Table, compare, is_bundled_model, study,
    write_model,
};
use promptmix::experiment::{Together, Workers};
use promptmix::model::Frozen;

#[cfg(feature = "cuda")]
#[path = "common/kernels.rs"]
mod kernels;
#[path = "common/program.rs"]
mod program;
#[cfg(feature = "cuda")]
#[path = "common/small_model.rs"]
mod small_model;

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

/// A subject tells a row's kind and nothing else does; sentiment and tense tell its label by the kind's question.
#[test]
fn rows_of_several_questions_are_balanced_and_their_words_tell_kind_and_label() {
    for task in [TWO_QUESTIONS, THREE_QUESTIONS] {
        let count = task.kinds.len();
        let rows = Rows { train: 60 * count, validation: 20 * count, test: 40 * count };
        let splits = task.generate(rows, 4, Subject::OfKind).unwrap();
        assert_eq!(splits, task.generate(rows, 4, Subject::OfKind).unwrap(), "{}", task.name);
        assert_ne!(splits, task.generate(rows, 5, Subject::OfKind).unwrap(), "{}", task.name);
        let mut seen = HashSet::new();
        for (split, each) in splits.iter().zip([60, 20, 40]) {
            for kind in 0..count {
                let own = || split.iter().filter(|row| row.kind == kind);
                assert_eq!(own().count(), each);
                assert_eq!(own().filter(|row| row.label == 1).count(), each / 2);
            }
            for row in split {
                assert!(seen.insert(row.text.clone()), "{:?} occurs twice", row.text);
                assert_eq!(kind_of(&task, &row.text), task.kinds[row.kind].name, "{:?}", row.text);
                let label = label_of(task.kinds[row.kind].name, &row.text);
                assert_eq!(label, row.label, "{:?}", row.text);
            }
        }
    }
}

#[test]
fn shuffled_subjects_say_nothing_of_the_kind() {
    let rows = Rows { train: 600, validation: 2, test: 2 };
    let [train, ..] = TWO_QUESTIONS.generate(rows, 1, Subject::Shuffled).unwrap();
    let own =
        train.iter().filter(|row| kind_of(&TWO_QUESTIONS, &row.text) == TWO_QUESTIONS.kinds[row.kind].name);
    // Binomial over 600 rows: a standard deviation of 12 around 300.
    assert!((240..360).contains(&own.count()));
}

/// Sources speak of other things, so that no sentence of such a target occurs among their rows.
#[test]
fn subjects_of_several_questions_are_in_no_source() {
    let own = [SHOW, TRAVEL, SPORT].concat();
    let distinct: HashSet<&str> = own.iter().copied().collect();
    assert_eq!(distinct.len(), own.len());
    assert!([FILM, FOOD, STAY].concat().iter().all(|word| !own.contains(word)));
    for task in SOURCES {
        for (text, _) in splits(&task.generate(ROWS, 1).unwrap()).concat() {
            assert!(text.split(' ').all(|word| !own.contains(&word)), "{}: {text:?}", task.name);
        }
    }
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
    let report = compare(&tiny(), &workers(), model(), folder.path(), &mut progress).unwrap();

    let few_shot = [
        "prompt tuning",
        " as it is",
        "SPoT from ",
        "ATTEMPT",
        "control: ATTEMPT, random",
        "control: constant weights",
        "control: equal weights",
    ];
    let questions = [
        "prompt tuning",
        " as it is",
        "SPoT from ",
        "ATTEMPT",
        "control: constant weights",
        "control: equal weights",
    ];
    check_table(&report.few_shot, &few_shot, &tiny().target.learning_rates);
    check_table(&report.questions, &questions, &tiny().questions.learning_rates);
    assert_eq!(report.attention.len(), SOURCES.len() + 1);
    assert!((report.attention.iter().sum::<f64>() - 1.0).abs() <= 1e-5, "{:?}", report.attention);
    check_kinds(&report.by_kind, &THREE_QUESTIONS);
    assert!(report.run.join("prompt.safetensors").is_file() && report.run.join("log.txt").is_file());
    assert!(report.source_prompts.iter().all(|path| path.is_file()));

    let text = report.to_string();
    for part in
        ["source prompts", "rows a class", "validation", "random sources", "mean attention", "kind of row"]
    {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    for name in SOURCES.iter().map(|task| task.name).chain(THREE_QUESTIONS.kinds.iter().map(|kind| kind.name))
    {
        assert!(text.contains(name), "no {name} in\n{text}");
    }
    assert!(!text.contains("NaN"), "{text}");
    let next = report.next_command();
    assert!(next.contains("promptmix train") && next.contains("prompt.safetensors"), "{next}");
    assert_eq!(progress.parts[0], "source prompts");
    assert_eq!(progress.done, progress.promised);

    // Another comparison does not mix its files with these.
    let mut other = tiny();
    other.sources.steps = 3;
    let error =
        compare(&other, &workers(), model(), folder.path(), &mut Counted::default()).unwrap_err().to_string();
    assert!(error.contains("other settings") && error.contains("name another folder"), "{error}");
}

/// What a GPU does with the demonstration's trainings, here on the CPU: it takes them in shared batches.
#[test]
fn trainings_that_share_batches_find_what_trainings_side_by_side_find() {
    let (one, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let settings = tinier();
    let apart = compare(&settings, &workers(), model(), one.path(), &mut Counted::default()).unwrap();
    let cpu = Cpu::<f32>::new(Some(2)).unwrap();
    let frozen = Frozen::load(&cpu, model()).unwrap();
    let together = Together::new(&frozen, 8);
    let mut progress = Counted::default();
    let together = compare(&settings, &together, model(), other.path(), &mut progress).unwrap();
    assert_eq!(progress.done, progress.promised);
    assert_eq!((&apart.few_shot, &apart.questions), (&together.few_shot, &together.questions));
    assert_eq!((apart.transfer, apart.attention), (together.transfer, together.attention));
}

#[cfg(feature = "cuda")]
#[test]
fn a_comparison_on_a_gpu_is_complete_and_its_runs_say_where_they_were_trained() {
    if !kernels::are_built() {
        return;
    }
    let gpu = vgpu::load().unwrap();
    let folder = tempfile::tempdir().unwrap();
    let model = folder.path().join("model");
    small_model::write(&model);
    let settings = tinier();
    let cuda = promptmix::cuda::Cuda::new(0, promptmix::cuda::Precision::Bf16).unwrap();
    let frozen = Frozen::load(&cuda, &model).unwrap();
    let together = Together::new(&frozen, 8);
    let out = folder.path().join("out");
    let report = compare(&settings, &together, &model, &out, &mut Counted::default()).unwrap();
    for (table, rates) in [(&report.few_shot, [0.3]), (&report.questions, [0.3])] {
        assert!(table.rows.len() >= 5, "{table:?}");
        for row in &table.rows {
            assert!(row.learning_rate.is_none_or(|rate| rates.contains(&rate)), "{row:?}");
            assert!(row.test.iter().all(|value| (0.0..=1.0).contains(value)), "{row:?}");
        }
    }
    assert!((report.attention.iter().sum::<f64>() - 1.0).abs() <= 1e-5, "{:?}", report.attention);
    let devices = promptmix::train::trained_on(&out).unwrap();
    let [(_, on)] = &devices[..] else { panic!("one device: {devices:?}") };
    assert_eq!(on.to_string(), "cuda in bf16");
    drop(frozen);
    drop(cuda);
    gpu.finish();
}

#[test]
fn neither_the_workers_nor_the_test_rows_change_what_is_chosen() {
    let run = |workers, test| {
        let folder = tempfile::tempdir().unwrap();
        let mut settings = tiny();
        settings.target.rows.test = test;
        settings.questions.rows.test = test;
        let workers = Workers::new(model(), Some(workers)).unwrap();
        compare(&settings, &workers, model(), folder.path(), &mut Counted::default()).unwrap()
    };
    let (one, two, other_test) = (run(1, 12), run(2, 12), run(2, 40));
    let found = |report: &Report| {
        let Report { few_shot, questions, attention, by_kind, .. } = report.clone();
        (few_shot, questions, attention, by_kind)
    };
    assert_eq!(found(&one), found(&two));
    let chosen = |report: &Report| {
        let rows = report.few_shot.rows.iter().chain(&report.questions.rows);
        rows.map(|row| (row.name.clone(), row.learning_rate, row.validation.clone())).collect::<Vec<_>>()
    };
    assert_eq!(chosen(&two), chosen(&other_test));
    assert_eq!(two.transfer, other_test.transfer);
}

#[test]
fn test_rows_are_never_among_those_that_are_learnt_from_or_chosen_by() {
    let folder = tempfile::tempdir().unwrap();
    compare(&tiny(), &workers(), model(), folder.path(), &mut Counted::default()).unwrap();
    let texts = |task: &str, split: &str| -> Vec<String> {
        let path = folder.path().join("data").join(task).join(split);
        let rows = std::fs::read_to_string(path).unwrap();
        let row = |line: &str| serde_json::from_str::<serde_json::Value>(line).unwrap();
        rows.lines().map(|line| row(line)["text"].as_str().unwrap().to_owned()).collect()
    };
    for target in [TARGET.name, THREE_QUESTIONS.name] {
        let test = texts(target, "test.jsonl");
        assert_eq!(test.len(), 12);
        for task in SOURCES.iter().map(|task| task.name).chain([TARGET.name, THREE_QUESTIONS.name]) {
            for split in ["train.jsonl", "validation.jsonl"] {
                let seen = texts(task, split);
                assert!(!seen.is_empty() && test.iter().all(|text| !seen.contains(text)), "{task} {split}");
            }
        }
    }
}

/// Interrupted anywhere, and once more when all of it is done.
#[test]
fn a_comparison_goes_on_where_it_was_and_finds_the_same() {
    struct Ending(u64);
    impl Progress for Ending {
        fn begin(&mut self, _: &str, _: u64) {}
        fn step(&mut self) {
            self.0 = self.0.saturating_sub(1);
        }
        fn ends(&mut self) -> bool {
            self.0 == 0
        }
    }
    let (whole, cut) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let expected =
        compare(&tinier(), &workers(), model(), whole.path(), &mut Counted::default()).unwrap().to_string();
    for steps in [5, 40] {
        let error =
            compare(&tinier(), &workers(), model(), cut.path(), &mut Ending(steps)).unwrap_err().to_string();
        assert!(error.contains("the same command goes on from there"), "{error}");
    }
    for _ in 0..2 {
        let report = compare(&tinier(), &workers(), model(), cut.path(), &mut Counted::default()).unwrap();
        assert_eq!(report.to_string(), expected);
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
    let mut command = program::promptmix();
    let output = command.arg("demo").arg("--out").arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(error.contains("--out") && error.contains("name another folder"), "{error}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

    // Nor is a model of the user's own written over, which lies where a demonstration's would.
    std::fs::remove_file(folder.path().join("thesis.txt")).unwrap();
    let config = folder.path().join("model/config.json");
    std::fs::create_dir(folder.path().join("model")).unwrap();
    std::fs::write(&config, "mine").unwrap();
    let mut command = program::promptmix();
    let output = command.arg("demo").arg("--out").arg(folder.path()).output().unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert_eq!(std::fs::read_to_string(&config).unwrap(), "mine");

    // An empty folder called model makes no demonstration's folder of a user's own.
    std::fs::remove_file(config).unwrap();
    let is_bundled = || is_bundled_model(&folder.path().join("model"));
    assert!(is_bundled(), "a demonstration that ended before its first file goes on");
    for name in ["thesis.txt", "model/weights.bin"] {
        let mine = folder.path().join(name);
        std::fs::write(&mine, "mine").unwrap();
        assert!(!is_bundled(), "{name}");
        let mut command = program::promptmix();
        let output = command.arg("demo").arg("--out").arg(folder.path()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{name}");
        std::fs::remove_file(mine).unwrap();
    }
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

#[test]
fn a_flag_that_is_refused_leaves_the_folder_free() {
    let folder = tempfile::tempdir().unwrap();
    let output = program::promptmix()
        .args(["demo", "--device", "cpu", "--threads", "0", "--out"])
        .arg(folder.path())
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8(output.stderr).unwrap().contains("--threads"));
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
}

/// A comparison of a few steps.
fn tiny() -> Settings {
    let mut settings = Settings::long();
    settings.sources.rows = Rows { train: 16, validation: 4, test: 2 };
    (settings.sources.steps, settings.sources.prompt_length, settings.sources.batch_size) = (2, 4, 4);
    for target in [&mut settings.target, &mut settings.questions] {
        target.seeds = vec![1, 2];
        target.rows = Rows { train: 16, validation: 8, test: 12 };
        (target.steps, target.validate_every) = (2, 1);
    }
    settings.shots = 2;
    settings
}

/// As [`tiny`], with one rate and without the controls.
fn tinier() -> Settings {
    let mut settings = tiny();
    (settings.target.learning_rates, settings.questions.learning_rates) = (vec![0.3], vec![0.3]);
    settings.fixed_mixtures = false;
    settings
}

/// A study of a few steps.
fn tiny_study() -> StudySettings {
    let mut settings = StudySettings::default();
    settings.sources = tiny().sources;
    (settings.data_seeds, settings.seeds) = (vec![1, 2], vec![1, 2]);
    settings.rows = Rows { train: 16, validation: 8, test: 12 };
    (settings.steps, settings.validate_every) = (2, 1);
    settings
}

fn check_table(table: &Table, names: &[&str], rates: &[f64]) {
    // A second SPoT where another source than the closest did better on validation rows.
    let rows = table.rows.iter().filter(|row| !row.name.starts_with("control: SPoT")).collect::<Vec<_>>();
    assert_eq!(rows.len(), names.len(), "{rows:?}");
    for (row, name) in rows.iter().zip(names) {
        assert!(row.name.contains(name), "{} is not {name}", row.name);
        match row.learning_rate {
            Some(rate) => assert!(rates.contains(&rate) && row.trained > 0, "{name}"),
            None => assert!(name.contains("as it is") && row.trained == 0, "{name}"),
        }
        for accuracies in [&row.validation, &row.test] {
            assert_eq!(accuracies.len(), 2, "{name}");
            assert!(accuracies.iter().all(|value| (0.0..=1.0).contains(value)), "{name}: {accuracies:?}");
        }
    }
}

fn check_kinds(by_kind: &AttentionByKind, task: &QuestionsTask) {
    assert_eq!(by_kind.prompts.len(), task.sources.len() + 1);
    assert_eq!(by_kind.attention.len(), task.kinds.len());
    for weights in &by_kind.attention {
        assert_eq!(weights.len(), by_kind.prompts.len());
        assert!((weights.iter().sum::<f64>() - 1.0).abs() <= 1e-5, "{weights:?}");
    }
    assert_ne!(by_kind.attention[0], by_kind.attention[1], "weights follow the input");
}

/// Interrupted anywhere, a study goes on: a run that is cut short, one that is gone, and one that is whole.
#[test]
fn a_study_goes_on_where_it_was_and_finds_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let mut progress = Counted::default();
    let report = study(&tiny_study(), &workers(), model(), folder.path(), &mut progress).unwrap();
    assert_eq!(progress.done, progress.promised);
    assert_eq!(report.table.rows.len(), 8);
    assert!(report.table.rows.iter().all(|row| row.test.len() == 4));
    assert_eq!((report.routing.len(), report.bounds.len(), report.controls.len()), (4, 2, 3));
    check_kinds(&report.by_kind, &TWO_QUESTIONS);
    let numbers = |name: &str| report.table.row(name).unwrap().trained;
    assert_eq!(numbers("ATTEMPT"), 4 * 256 + 2 * 100 * 256 + 2 * 256);
    assert!(numbers("prompt tuning, as many numbers") >= numbers("ATTEMPT"));
    assert_eq!(numbers("control: constant weights"), 4 * 256 + 5);
    let text = report.to_string();
    for part in
        ["criteria", "as it should", "weighted sum", "oracle", "without film and contrast", "shuffled"]
    {
        assert!(text.contains(part), "no {part} in\n{text}");
    }
    assert!(!text.contains("NaN"), "{text}");

    let runs = folder.path().join("runs");
    std::fs::remove_dir_all(runs.join("attempt-rate-0.3-data-1-seed-1")).unwrap();
    std::fs::remove_file(runs.join("attempt-rate-1-data-1-seed-2/best.safetensors")).unwrap();
    std::fs::remove_dir_all(folder.path().join("data")).unwrap();
    let again = study(&tiny_study(), &workers(), model(), folder.path(), &mut Counted::default()).unwrap();
    assert_eq!(again, report);

    let mut other = tiny_study();
    other.steps = 3;
    let error =
        study(&other, &workers(), model(), folder.path(), &mut Counted::default()).unwrap_err().to_string();
    assert!(error.contains("other settings") && error.contains("name another folder"), "{error}");
}

fn model() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/demo"))
}

/// A worker a core.
fn workers() -> Workers<'static> {
    Workers::new(model(), None).unwrap()
}

/// Checks that a comparison does the steps that it promises.
#[derive(Default)]
struct Counted {
    parts: Vec<String>,
    promised: u64,
    done: u64,
}

impl Progress for Counted {
    fn begin(&mut self, what: &str, steps: u64) {
        self.parts.push(what.to_owned());
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
        // The last remark, of one or of two.
        "sentiment" => *opinions.last().unwrap(),
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

/// The kind of a row of several questions, by its subjects.
fn kind_of(task: &QuestionsTask, text: &str) -> &'static str {
    let subjects = [("sentiment", SHOW), ("outlook", TRAVEL), ("agreement", SPORT)];
    let named = |words: &[&str]| text.split(' ').filter(|word| words.contains(word)).count();
    let kinds: Vec<&str> =
        subjects.into_iter().filter(|(_, words)| named(words) > 0).map(|(kind, _)| kind).collect();
    assert_eq!(kinds.len(), 1, "{text:?}");
    assert!(task.kinds.iter().any(|kind| kind.name == kinds[0]), "{text:?}");
    kinds[0]
}
