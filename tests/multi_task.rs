//! Several tasks in one run: a target prompt each, one scorer; scorers that go from run to run; few-shot draws.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use promptmix::backend::cpu::Cpu;
use promptmix::config::{Decoding, Method, PromptInit, RunConfig, Sampling};
use promptmix::data::{Batches, Split};
use promptmix::evaluate::Spread;
use promptmix::experiment::{FewShotRuns, Together};
use promptmix::model::Frozen;
use promptmix::prompts::{Prompt, SavedScorer};
use promptmix::train::{
    Predictor, Request, RunFolder, Silent, TrainedRun, Trainer, change_sources, resume, tasks,
};

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

/// Folders `sst2` and `rte` below one, with so many training rows.
fn data(sst2: usize, rte: usize) -> tempfile::TempDir {
    let root = tempfile::tempdir().expect("a temporary folder");
    let rows =
        |count: usize, row: &dyn Fn(usize) -> String| (0..count).map(row).collect::<Vec<_>>().join("\n");
    let words = ["bad", "good"];
    let sentence =
        |i: usize| format!("{{\"sentence\": \"a {} film {i}\", \"label\": {}}}", words[i % 2], i % 2);
    let pair = |i: usize| {
        format!(
            "{{\"sentence1\": \"it was {i}\", \"sentence2\": \"a {} day\", \"label\": {}}}",
            words[i % 2],
            i % 2
        )
    };
    for (task, train, row) in [("sst2", sst2, &sentence as &dyn Fn(usize) -> String), ("rte", rte, &pair)] {
        let folder = root.path().join(task);
        fs::create_dir(&folder).expect("made");
        for (file, count) in [("train", train), ("validation", 8), ("test", 6)] {
            fs::write(folder.join(format!("{file}.jsonl")), rows(count, row)).expect("written");
        }
    }
    root
}

fn config(data: &Path) -> RunConfig {
    let mut config = RunConfig::default();
    config.model = model().display().to_string();
    config.task = "sst2,rte".into();
    config.data = data.to_owned();
    config.method = Method::PromptTuning;
    config.prompt_length = 6;
    config.batch_size = 8;
    config.steps = Some(4);
    config.validate_every = Some(2);
    config.decoding = Decoding::Labels;
    config.warmup_steps = Some(0);
    config
}

/// Two sources, trained for a step each.
fn sources(frozen: &Frozen<'_, Cpu<f32>>, data: &Path, folder: &Path) -> Vec<PathBuf> {
    [1, 2]
        .map(|seed| {
            let mut config = config(data);
            (config.task, config.data) = ("sst2".into(), data.join("sst2"));
            (config.seed, config.steps) = (seed, Some(1));
            let mut trainer = Trainer::new(frozen, &config, &mut Silent).expect("a run");
            trainer.run(None, &mut Silent).expect("a step");
            let path = folder.join(format!("source{seed}.safetensors"));
            trainer.best_prompt().expect("a prompt").expect("a target").save(&path).expect("saved");
            path
        })
        .into()
}

fn attempt(data: &Path, sources: Vec<PathBuf>) -> RunConfig {
    let mut config = config(data);
    config.method = Method::Attempt;
    config.sources = sources;
    config.bottleneck_dim = 5;
    config
}

// Order

/// How many of each task `epochs` epochs read, and how often each example came.
fn counted(sizes: &[usize], shares: &[f64], epochs: u64) -> (Vec<usize>, BTreeMap<u32, usize>) {
    let mut batches = Batches::mixed(sizes, shares, 4, 9).expect("batches");
    let steps = batches.steps_per_epoch() * epochs;
    let mut tasks = vec![0; sizes.len()];
    let mut examples = BTreeMap::new();
    for batch in batches.clone().take(steps as usize) {
        for index in batch.indices {
            tasks[batches.locate(index).0] += 1;
            *examples.entry(index).or_insert(0) += 1;
        }
    }
    // A resumed run reads what the unbroken one would have read.
    let unbroken: Vec<_> = batches.clone().take(steps as usize + 3).collect();
    batches.seek(steps);
    assert_eq!(batches.next(), Some(unbroken[steps as usize].clone()));
    (tasks, examples)
}

#[test]
fn proportional_sampling_reads_every_row_once_an_epoch_in_mixed_batches() {
    let (tasks, examples) = counted(&[30, 10], &[30.0, 10.0], 1);
    assert_eq!(tasks, [30, 10]);
    assert!(examples.len() == 40 && examples.values().all(|&times| times == 1));
    let one: Vec<_> = Batches::new(40, 4, 9).expect("batches").take(10).collect();
    let mixed: Vec<_> = Batches::mixed(&[30, 10], &[3.0, 1.0], 4, 9).expect("batches").take(10).collect();
    assert_eq!(one, mixed, "as if they were one task's");
    let batches = Batches::mixed(&[30, 10], &[3.0, 1.0], 4, 9).expect("batches");
    let has_both = |indices: &[u32]| {
        let of = |index: &u32| batches.locate(*index).0;
        indices.iter().map(of).any(|task| task == 0) && indices.iter().map(of).any(|task| task == 1)
    };
    assert!(batches.clone().take(10).filter(|batch| has_both(&batch.indices)).count() >= 4);
    assert_eq!((batches.locate(0), batches.locate(29), batches.locate(30)), ((0, 0), (0, 29), (1, 0)));
}

#[test]
fn equal_and_tempered_sampling_draw_by_their_shares_and_leave_no_row_out() {
    let (tasks, examples) = counted(&[30, 10], &[1.0, 1.0], 3);
    assert_eq!(tasks, [60, 60]);
    // 60 reads of 30 rows, and of 10 rows: every row of a task as often as any other.
    assert!(examples.iter().all(|(&index, &times)| times == if index < 30 { 2 } else { 6 }), "{examples:?}");

    let mut config = RunConfig::default();
    config.sampling = Sampling::Temperature;
    let shares = config.shares(&[900, 100]);
    assert_eq!(shares, [30.0, 10.0], "the square root, at the default temperature of 2");
    assert_eq!(counted(&[900, 100], &shares, 1).0, [750, 250]);
    config.sampling = Sampling::Equal;
    assert_eq!(config.shares(&[900, 100]), [1.0, 1.0]);
    config.sampling = Sampling::Proportional;
    assert_eq!(config.shares(&[900, 100]), [900.0, 100.0]);
    // Every task is there, however small its share, and no number is lost to rounding.
    assert_eq!(counted(&[997, 2, 2], &[1.0, 1e-9, 1.0], 1).0.iter().sum::<usize>(), 1001);
    assert_eq!(counted(&[997, 2, 2], &[1.0, 1e-9, 1.0], 1).0[1], 1);
    Batches::mixed(&[3, 0], &[1.0, 1.0], 4, 1).expect_err("a task without examples");
    Batches::mixed(&[3, 3], &[1.0, 0.0], 4, 1).expect_err("a task that is never drawn");
    Batches::mixed(&[3, 3], &[1.0], 4, 1).expect_err("a share too few");
}

// Runs

#[test]
fn each_task_trains_its_own_prompt_and_all_share_one_scorer() {
    let (data, prompts) = (data(12, 12), tempfile::tempdir().expect("folder"));
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let config = attempt(data.path(), sources(&frozen, data.path(), prompts.path()));
    let mut trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    assert_eq!(trainer.trained(), 2 * 6 * 256 + 2 * 5 * 256 + 2 * 256, "two prompts, one scorer");
    let layout = trainer.mixture().layout.clone();
    let targets = [0, 1].map(|target| layout.target_prompt(0, target).expect("a target"));
    assert_eq!(layout.target_prompt(0, 2), None, "there is no third");
    let start = trainer.parameters().expect("parameters");
    assert_eq!(start[targets[0].clone()], start[targets[1].clone()], "they start alike");
    trainer.step().expect("a step");
    let after = trainer.parameters().expect("parameters");
    assert_ne!(after[targets[0].clone()], start[targets[0].clone()]);
    assert_ne!(after[targets[1].clone()], start[targets[1].clone()]);
    assert_ne!(after[targets[0].clone()], after[targets[1].clone()], "each learns from its own rows");

    let record = trainer.validate(&mut Silent).expect("a validation");
    let names: Vec<&str> = record.metrics.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["sst2 accuracy", "rte accuracy"]);
    assert_eq!(record.tasks.len(), 2);
    let mean = (record.tasks[0].mean + record.tasks[1].mean) / 2.0;
    assert!((record.mean - mean).abs() < 1e-12, "the best is chosen by the mean over the tasks");
    assert!((record.spread.mean.iter().sum::<f64>() - 1.0).abs() < 1e-5 && record.spread.mean.len() == 3);
}

#[test]
fn a_batch_of_one_task_leaves_the_other_prompt_as_it_is() {
    // Batches of 1: the first step sees one task alone.
    let data = data(12, 12);
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let mut config = config(data.path());
    config.batch_size = 1;
    config.weight_decay = Some(0.0);
    let mut trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    let layout = trainer.mixture().layout.clone();
    let start = trainer.parameters().expect("parameters");
    trainer.step().expect("a step");
    let after = trainer.parameters().expect("parameters");
    let moved = [0, 1].map(|target| {
        let range = layout.target_prompt(0, target).expect("a target");
        start[range.clone()] != after[range]
    });
    assert_eq!(moved.iter().filter(|&&moved| moved).count(), 1, "{moved:?}");
}

#[test]
fn a_run_on_several_tasks_leaves_a_prompt_a_task_and_answers_as_each() {
    let (data, runs) = (data(12, 12), tempfile::tempdir().expect("folder"));
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let mut config = attempt(data.path(), sources(&frozen, data.path(), runs.path()));
    config.sampling = Sampling::Equal;
    let out = runs.path().join("run");
    let mut folder = RunFolder::create(&out, &config, &frozen.model_hash).expect("a folder");
    let mut trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    trainer.run(Some(&mut folder), &mut Silent).expect("four steps");
    drop(folder);
    let best = trainer.best_prompts().expect("prompts");
    for (task, prompt) in ["sst2", "rte"].into_iter().zip(&best) {
        let saved = Prompt::load(&out.join(format!("prompts/{task}.safetensors"))).expect(task);
        assert_eq!(saved.values(), prompt.values());
        assert_eq!(saved.metadata().task.as_deref(), Some(task));
        assert_eq!(saved.metadata().metric.as_ref().map(|(name, _)| name.as_str()), Some("accuracy"));
    }
    assert!(!out.join("prompt.safetensors").exists());

    let saved = RunFolder::saved(&out).expect("settings");
    let mut run = TrainedRun::open(&frozen, &out, &saved).expect("the run");
    for (index, task) in ["sst2", "rte"].into_iter().enumerate() {
        run.select(task).expect("one of its tasks");
        let folder = data.path().join(task);
        let again = run.evaluate(&folder, Split::Test, Decoding::Labels, &mut |_, _| {}).expect("evaluated");
        let here = trainer.evaluate_task(index, Split::Test, None, &mut |_| {}).expect("evaluated");
        assert_eq!((again.answers, again.attention), (here.answers, here.attention), "{task}");
    }
    let error = run.select("cola").expect_err("not a task of it").to_string();
    assert!(error.contains("sst2, rte"), "{error}");

    // Resuming a multi-task run goes on where it was: it is done.
    let mut again = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    resume(&mut again, &out).expect("a checkpoint");
    assert_eq!(
        (again.step_count(), again.parameters().expect("parameters")),
        (4, trainer.parameters().expect("parameters"))
    );
}

/// A folder of one task's rows in the place of one with a folder a task is answered with what to write instead.
#[test]
fn the_rows_of_one_task_are_not_taken_for_those_of_all() {
    let data = data(8, 8);
    let cpu = Cpu::<f32>::new(Some(1)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let mut config = config(data.path());
    config.data = data.path().join("sst2");
    let said = Trainer::new(&frozen, &config, &mut Silent).map(drop).unwrap_err().to_string();
    for part in
        ["a folder for each of the tasks, sst2, rte", "none for sst2", "train.jsonl", "--task sst2 --data"]
    {
        assert!(said.contains(part), "{part}: {said}");
    }
}

#[test]
fn tasks_of_a_run_are_known_and_different() {
    let mut config = RunConfig::default();
    config.task = "sst2, rte".into();
    let names: Vec<String> = tasks(&config).expect("tasks").into_iter().map(|task| task.name).collect();
    assert_eq!(names, ["sst2", "rte"]);
    config.task = "sst2,sst2".into();
    assert!(tasks(&config).expect_err("twice").to_string().contains("sst2 twice"));
    config.task = "sst2,".into();
    tasks(&config).expect_err("an empty name");
    config.task = "sst2,rte".into();
    config.method = Method::PromptTuning;
    config.labels = Some("no,yes".into());
    assert!(config.check().expect_err("labels of which?").to_string().contains("TOML"));
}

// Scorers and sources as modules

#[test]
fn a_pretrained_scorer_starts_another_run() {
    let (data, runs) = (data(12, 12), tempfile::tempdir().expect("folder"));
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let mut config = attempt(data.path(), sources(&frozen, data.path(), runs.path()));
    config.pretrain_scorer = true;
    let out = runs.path().join("scorer");
    let mut folder = RunFolder::create(&out, &config, &frozen.model_hash).expect("a folder");
    let mut trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    assert_eq!(trainer.trained(), 2 * 5 * 256 + 2 * 256, "the scorer alone");
    trainer.run(Some(&mut folder), &mut Silent).expect("four steps");
    assert!(!out.join("prompt.safetensors").exists() && !out.join("prompts").exists());

    config.pretrain_scorer = false;
    (config.task, config.data) = ("rte".into(), data.path().join("rte"));
    config.initial_scorer = Some(out.clone());
    let started = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    let layout = started.mixture().layout.clone();
    let saved = SavedScorer::load(&out).expect("a scorer");
    for name in ["w_down", "w_up", "norm_weight", "norm_bias"] {
        let segment = layout.segment(name).expect(name);
        let expected = saved.segment(name, &segment.shape).expect("its shape").expect(name);
        let values: Vec<f32> = started.parameters().expect("parameters")[segment.range.clone()]
            .iter()
            .map(|&value| value as f32)
            .collect();
        assert_eq!(values, expected, "{name}");
    }
    config.bottleneck_dim = 6;
    let error = Trainer::new(&frozen, &config, &mut Silent).err().expect("another rank").to_string();
    assert!(error.contains("--bottleneck-dim"), "{error}");
    config.bottleneck_dim = 5;
    let mut stranger = saved.clone();
    stranger.model_sha256 = Some("cd".repeat(32));
    let path = runs.path().join("stranger.safetensors");
    stranger.save(&path).expect("saved");
    config.initial_scorer = Some(path);
    let error = Trainer::new(&frozen, &config, &mut Silent).err().expect("another model").to_string();
    assert!(error.contains("cdcdcd"), "{error}");
    config.method = Method::PromptTuning;
    config.sources.clear();
    assert!(config.check().expect_err("nothing scores").to_string().contains("--initial-scorer"));
}

#[test]
fn a_source_goes_into_a_trained_run_and_out_again_without_training() {
    let (data, runs) = (data(12, 12), tempfile::tempdir().expect("folder"));
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let both = sources(&frozen, data.path(), runs.path());
    let mut config = attempt(data.path(), both[..1].to_vec());
    (config.task, config.data) = ("sst2".into(), data.path().join("sst2"));
    let out = runs.path().join("run");
    let mut folder = RunFolder::create(&out, &config, &frozen.model_hash).expect("a folder");
    let mut trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    trainer.run(Some(&mut folder), &mut Silent).expect("four steps");
    let attention = |folder: &Path| {
        let predictor = Predictor::open(&frozen, &[folder], None).expect("a run");
        let said = predictor.predict(&[Request::new(0, "sst2 sentence: good")]).expect("an answer");
        (said[0].answer.clone(), said[0].attention.clone())
    };
    let (more, less) = (runs.path().join("more"), runs.path().join("less"));
    assert_eq!(change_sources(&out, &more, &both).expect("added"), ["source1", "source2"]);
    let before = attention(&out);
    let with = attention(&more);
    assert_eq!((before.1.len(), with.1.len()), (2, 3));
    assert!((with.1.iter().sum::<f64>() - 1.0).abs() < 1e-5);
    // Softmax: what a prompt gets against another does not depend on a third.
    let odds = |row: &[f64], a: usize, b: usize| row[a] / row[b];
    let (old, new) = (odds(&before.1, 0, 1), odds(&with.1, 0, 2));
    assert!((old - new).abs() < 1e-4 * old, "{old} and {new}");
    change_sources(&more, &less, &both[..1]).expect("removed");
    assert_eq!(attention(&less), before, "as if it had never been there");

    let error = change_sources(&out, &runs.path().join("none"), &[]).expect_err("no source").to_string();
    assert!(error.contains("at least one"), "{error}");
    change_sources(&out, &less, &both).expect_err("the folder holds a run");
    let mut about = Prompt::load(&both[0]).expect("a prompt").metadata().clone();
    about.model_sha256 = Some("ef".repeat(32));
    let stranger = runs.path().join("stranger.safetensors");
    Prompt::load(&both[0]).expect("a prompt").with_metadata(about).save(&stranger).expect("saved");
    let refused = runs.path().join("refused");
    let error =
        change_sources(&out, &refused, &[both[0].clone(), stranger]).expect_err("its model").to_string();
    assert!(error.contains("efefef"), "{error}");
    assert!(!refused.exists(), "nothing is left of what was refused");
}

// Few-shot

#[test]
fn few_shot_runs_differ_in_their_rows_alone_and_are_summed_up() {
    let (data, runs) = (data(40, 12), tempfile::tempdir().expect("folder"));
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let mut config = config(data.path());
    (config.task, config.data) = ("sst2".into(), data.path().join("sst2"));
    config.few_shot = Some(4);
    config.class_balanced = true;
    config.steps = Some(2);
    assert_eq!(config.draw_seeds(), [42, 43, 44, 45, 46], "five draws unless a data seed is given");
    config.draws = 3;
    let out = runs.path().join("few");
    let done =
        FewShotRuns::run(&Together::new(&frozen, 2), &config, &out, false, &mut Silent).expect("three runs");
    let seeds: Vec<u64> = done.draws.iter().map(|draw| draw.data_seed).collect();
    assert_eq!(seeds, [42, 43, 44]);
    for draw in &done.draws {
        assert_eq!(
            (&draw.outcome.rows[..], draw.outcome.steps, draw.learning_rate),
            (&[8][..], 2, 0.3),
            "4 rows of 2 classes"
        );
        let saved = RunFolder::saved(&out.join(&draw.folder)).expect("a run of its own");
        assert_eq!((saved.config.data_seed, saved.config.seed), (Some(draw.data_seed), 42));
        assert_eq!(draw.test.len(), 1);
    }
    let names: Vec<&str> = done.summary.iter().map(|spread| spread.name.as_str()).collect();
    assert_eq!(names, ["validation", "test accuracy"]);
    let validations: Vec<f64> = done.draws.iter().map(|draw| draw.outcome.best).collect();
    assert_eq!(done.summary[0], Spread::new("validation", &validations));
    assert_eq!(FewShotRuns::saved(&out).expect("read").expect("there"), done);
    let prompts: Vec<Vec<f32>> = done
        .draws
        .iter()
        .map(|draw| {
            Prompt::load(&out.join(&draw.folder).join("prompt.safetensors")).expect("one").into_values()
        })
        .collect();
    assert!(prompts[0] != prompts[1] && prompts[1] != prompts[2], "other rows, another prompt");

    FewShotRuns::run(&Together::new(&frozen, 2), &config, &out, false, &mut Silent)
        .expect_err("the folder is taken");
    fs::remove_dir_all(out.join("draw-44")).expect("as if it had been broken off");
    let resumed =
        FewShotRuns::run(&Together::new(&frozen, 3), &config, &out, true, &mut Silent).expect("resumed");
    assert_eq!(resumed, done, "and the same");
    config.data_seed = Some(7);
    assert!(config.draw_seeds().is_empty(), "one draw is one run");
}

#[test]
fn the_deviation_is_that_of_a_sample() {
    let spread = Spread::new("x", &[2.0, 4.0, 4.0, 4.0, 5.0, 5.0, 7.0, 9.0]);
    assert!((spread.mean - 5.0).abs() < 1e-12);
    // Squares of the distances from 5: 9 + 1 + 1 + 1 + 0 + 0 + 4 + 16 = 32, over 7.
    assert!((spread.deviation - (32.0_f64 / 7.0).sqrt()).abs() < 1e-12);
    assert_eq!(Spread::new("x", &[3.0]).deviation, 0.0);
}

#[test]
fn at_most_so_many_training_rows_of_each_task_are_read() {
    let data = data(40, 12);
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let mut config = config(data.path());
    config.training_rows = Some(15);
    let trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
    assert_eq!(trainer.training_rows(), [15, 12]);
}

/// Labels that two tasks have in common are one start row each, as for one task.
#[test]
fn labels_that_tasks_share_stand_once_in_the_first_prompt() {
    let root = data(8, 8);
    let folder = root.path().join("yelp_polarity");
    fs::create_dir(&folder).expect("made");
    let row = |i: usize| format!("{{\"text\": \"a day {i}\", \"label\": {}}}\n", i % 2);
    for file in ["train", "validation", "test"] {
        fs::write(folder.join(format!("{file}.jsonl")), (0..8).map(row).collect::<String>())
            .expect("written");
    }
    let cpu = Cpu::<f32>::new(Some(1)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let start = |task: &str, data: PathBuf| {
        let mut config = config(root.path());
        (config.task, config.data) = (task.into(), data);
        config.prompt_init = Some(PromptInit::Labels);
        let trainer = Trainer::new(&frozen, &config, &mut Silent).expect("a run");
        trainer.parameters().expect("parameters")
    };
    let alone = start("sst2", root.path().join("sst2"));
    let both = start("sst2,yelp_polarity", root.path().to_owned());
    assert_eq!(both, [alone.clone(), alone].concat());
}
