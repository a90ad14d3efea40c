//! Several runs in one batch: each gets the numbers that it gets alone.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::Instant;

use promptmix::Error;
use promptmix::backend::cpu::Cpu;
use promptmix::config::{Decoding, Method, RunConfig, read_sweep};
use promptmix::experiment::{FewShotRuns, Progress, Sweep, SweptRun, Together, Training};
use promptmix::model::Frozen;
use promptmix::prompts::Prompt;
use promptmix::train::{
    Member, Monitor, Outcome, Silent, StepRecord, Trainer, ValidationRecord, run_together,
};

#[cfg(all(feature = "cuda", feature = "cli", unix))]
#[path = "common/kernels.rs"]
mod kernels;
#[path = "common/program.rs"]
mod program;

fn model() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("demo")
}

/// Two tasks of one word each, as data folders.
fn data(folder: &Path) -> [PathBuf; 2] {
    let words = [["bad", "good"], ["cold", "warm"]];
    ["film", "day"].map(|task| {
        let pair = words[usize::from(task == "day")];
        let path = folder.join(task);
        fs::create_dir(&path).expect("a folder");
        for (file, rows) in [("train", 16), ("validation", 4)] {
            let row = |i: usize| {
                format!("{{\"sentence\": \"a {} {task} number {i}\", \"label\": {}}}\n", pair[i % 2], i % 2)
            };
            let rows: String = (0..rows).map(row).collect();
            fs::write(path.join(format!("{file}.jsonl")), rows).expect("written");
        }
        path
    })
}

fn config(data: &Path) -> RunConfig {
    let mut config = RunConfig::default();
    config.model = model().display().to_string();
    config.task = "sst2".into();
    config.labels = Some("negative,positive".into());
    config.data = data.to_owned();
    config.method = Method::PromptTuning;
    config.prompt_length = 4;
    config.batch_size = 4;
    config.bottleneck_dim = 8;
    config.steps = Some(100);
    config.validate_every = Some(100);
    config.decoding = Decoding::Labels;
    config.dropout = Some(0.1);
    config
}

fn sources(frozen: &Frozen<'_, Cpu<f32>>, data: &Path, folder: &Path) -> Vec<PathBuf> {
    let source = |seed: u64| {
        let mut config = config(data);
        (config.seed, config.steps) = (seed, Some(2));
        let mut trainer = Trainer::new(frozen, &config, &mut Silent).expect("a run");
        trainer.run(None, &mut Silent).expect("two steps");
        let path = folder.join(format!("source{seed}.safetensors"));
        let prompt = trainer.best_prompt().expect("a prompt").expect("a target");
        prompt.save(&path).expect("saved");
        path
    };
    [1, 2].map(source).into()
}

/// Counts what it hears.
#[derive(Default)]
struct Heard {
    run: Option<usize>,
    steps: Vec<(usize, StepRecord)>,
    validations: usize,
}

impl Monitor for Heard {
    fn of_run(&mut self, name: Option<&str>) {
        self.run = name.map(|name| name.trim_start_matches("run").parse().expect("the name of a member"));
    }
    fn step(&mut self, record: &StepRecord) {
        self.steps.push((self.run.expect("of one run"), record.clone()));
    }
    fn validated(&mut self, _: &ValidationRecord) {
        self.validations += 1;
    }
    fn note(&mut self, text: &str) {
        panic!("not expected: {text}");
    }
}

fn members<'a>(frozen: &'a Frozen<'a, Cpu<f32>>, configs: &[RunConfig]) -> Vec<Member<'a, Cpu<f32>>> {
    let member = |(index, config): (usize, &RunConfig)| Member {
        name: format!("run{index}"),
        trainer: Trainer::new(frozen, config, &mut Silent).expect("a run"),
        folder: None,
    };
    configs.iter().enumerate().map(member).collect()
}

/// Eight few-shot runs, 2 tasks x 2 seeds x 2 rates, of ATTEMPT with a learnt scorer, clip and dropout.
fn eight(frozen: &Frozen<'_, Cpu<f32>>, folder: &Path) -> Vec<RunConfig> {
    let data = data(folder);
    let sources = sources(frozen, &data[0], folder);
    let mut configs = Vec::new();
    for task in &data {
        for seed in [1, 2] {
            for rate in [0.1, 0.3] {
                let mut config = config(task);
                (config.method, config.sources) = (Method::Attempt, sources.clone());
                (config.seed, config.learning_rate) = (seed, rate);
                configs.push(config);
            }
        }
    }
    configs
}

#[test]
fn eight_runs_in_one_batch_equal_eight_alone_after_a_hundred_steps() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let configs = eight(&frozen, folder.path());

    let started = Instant::now();
    let mut heard = Heard::default();
    let mut together = members(&frozen, &configs);
    let outcomes = run_together(&frozen, &mut together, 8, &mut heard).expect("a device");
    let seconds_together = started.elapsed().as_secs_f64();
    assert_eq!((heard.steps.len(), heard.validations), (800, 8));
    assert!(heard.steps.iter().all(|(_, record)| record.sharing_runs == 8), "the time is that of eight");

    let started = Instant::now();
    let (mut equal_bits, mut numbers, mut worst) = (0, 0, 0.0_f64);
    for (index, config) in configs.iter().enumerate() {
        let mut alone = Trainer::new(&frozen, config, &mut Silent).expect("a run");
        let mut losses = Vec::new();
        while alone.steps_left() > 0 {
            losses.push(alone.step().expect("a finite step"));
        }
        let own: Vec<&StepRecord> =
            heard.steps.iter().filter(|(run, _)| *run == index).map(|(_, record)| record).collect();
        assert_eq!(own.len(), losses.len());
        for (alone, together) in losses.iter().zip(&own) {
            assert_eq!(alone.learning_rate, together.learning_rate);
            assert_eq!(alone.sharing_runs, 1);
            let bound = 1e-5 * alone.loss.abs().max(1e-2);
            assert!(
                (alone.loss - together.loss).abs() <= bound,
                "run {index}: {} alone, {} together at step {}",
                alone.loss,
                together.loss,
                alone.step
            );
        }
        let (expected, actual) = (
            alone.parameters().expect("parameters"),
            together[index].trainer.parameters().expect("parameters"),
        );
        let largest = expected.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
        for (a, b) in expected.iter().zip(&actual) {
            numbers += 1;
            equal_bits += usize::from(a.to_bits() == b.to_bits());
            worst = worst.max((a - b).abs() / largest);
        }
        assert_eq!(outcomes[index].as_ref().expect("an outcome").steps, 100);
    }
    println!(
        "{equal_bits} of {numbers} numbers equal bit for bit; largest difference {worst:.1e} of a run's largest number; \
         {seconds_together:.2} s together (validation included), {:.2} s alone",
        started.elapsed().as_secs_f64()
    );
    // A hundred updates of f32 roundings, each at most 6e-8 of a number.
    assert!(worst <= 1e-5, "{worst:.1e}");
}

#[test]
fn a_run_that_ends_early_or_fails_does_not_touch_the_others() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let data = data(folder.path());
    let with = |seed: u64, steps: u64| {
        let mut config = config(&data[0]);
        (config.seed, config.steps, config.validate_every) = (seed, Some(steps), Some(4));
        config
    };
    let mut patient = with(1, 12);
    (patient.learning_rate, patient.validate_every, patient.patience) = (0.0, Some(1), Some(2));
    let mut exploding = with(2, 12);
    (exploding.learning_rate, exploding.weight_decay) = (1e6, Some(1.0));
    exploding.warmup_steps = Some(0);
    let configs = [patient, with(3, 5), exploding, with(4, 12)];
    let mut stack = members(&frozen, &configs);
    let mut heard = Heard::default();
    let outcomes = run_together(&frozen, &mut stack, 8, &mut heard).expect("a device");
    // The patient one ends after its third step, the exploding one at its second or so.
    let last = |run: usize| heard.steps.iter().rfind(|(of, _)| *of == run).expect("a step").1.sharing_runs;
    assert_eq!((heard.steps[0].1.sharing_runs, last(3)), (4, 1));
    let ended = outcomes[0].as_ref().expect("patience is no failure");
    assert_eq!((ended.steps, ended.stopped_early), (3, true));
    // It says as much of what was not finite as alone.
    let mut alone = Trainer::new(&frozen, &configs[2], &mut Silent).expect("a run");
    match (&outcomes[2], alone.run(None, &mut Silent)) {
        (
            Err(Error::NonFinite { step, tensor, advice }),
            Err(Error::NonFinite { step: step_alone, tensor: tensor_alone, advice: advice_alone }),
        ) => assert_eq!(
            (step, tensor, advice),
            (&step_alone, &format!("{tensor_alone} of run run2"), &advice_alone)
        ),
        other => panic!("expected two stops on numbers that are not finite, found {other:?}"),
    }
    for index in [1, 3] {
        let mut alone = Trainer::new(&frozen, &configs[index], &mut Silent).expect("a run");
        let outcome = alone.run(None, &mut Silent).expect("a run alone");
        assert_eq!(outcomes[index].as_ref().expect("an outcome"), &outcome);
        let differences = alone
            .parameters()
            .expect("parameters")
            .into_iter()
            .zip(stack[index].trainer.parameters().expect("parameters"));
        let worst = differences.map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
        assert!(worst <= 1e-4, "run {index} differs by {worst:.1e}");
    }
}

/// An end that comes between two checkpoints loses no step: the runs then come to what they come to without it.
#[test]
fn runs_that_share_a_batch_go_on_from_the_step_that_they_ended_after() {
    /// Asks for an end after so many steps of all runs.
    struct EndsAfter(usize);
    impl Progress for EndsAfter {
        fn step(&mut self) {
            self.0 = self.0.saturating_sub(1);
        }
        fn ends(&mut self) -> bool {
            self.0 == 0
        }
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(1)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let data = data(folder.path());
    let together = Together::new(&frozen, 2);
    let run = |out: &str, progress: &mut dyn Progress| {
        let training = |(index, data): (usize, &PathBuf)| {
            let mut config = config(data);
            (config.seed, config.steps, config.validate_every) = (index as u64, Some(6), Some(6));
            Training::new(format!("run{index}"), config, folder.path().join(out).join(index.to_string()))
        };
        let trainings: Vec<Training> = data.iter().enumerate().map(training).collect();
        Sweep::run(&together, "sweep", &trainings, progress)
    };
    let prompts = |out: &str| {
        ["0", "1"].map(|run| {
            let path = folder.path().join(out).join(run).join("prompt.safetensors");
            Prompt::load(&path).expect("a prompt").sha256()
        })
    };
    run("whole", &mut Silent).expect("six steps");
    let ended = run("ended", &mut EndsAfter(6)).expect_err("an end").to_string();
    assert!(ended.contains("step 3 of 6"), "{ended}");
    let sweep = run("ended", &mut Silent).expect("three steps more");
    assert!(sweep.runs.iter().all(|run| run.outcome.as_ref().is_ok_and(|outcome| outcome.steps == 6)));
    let [one, other] = prompts("whole");
    assert_ne!(one, other);
    assert_eq!(prompts("ended"), [one, other]);
}

/// Who asks for an end while the rows of a run are read need not wait for its steps, nor for the other runs' rows.
#[test]
fn an_end_that_is_asked_for_comes_before_runs_begin() {
    struct Ends;
    impl Progress for Ends {
        fn begin(&mut self, _: &str, _: u64) {}
        fn step(&mut self) {
            panic!("no step is to be taken");
        }
        fn ends(&mut self) -> bool {
            true
        }
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(1)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let config = config(&data(folder.path())[0]);
    let out = folder.path().join("out");
    let training = |name: &str| Training::new(name, config.clone(), out.join(name));
    let together = Together::new(&frozen, 2);
    let ended =
        Sweep::run(&together, "sweep", &["one", "other"].map(training), &mut Ends).expect_err("an end");
    assert!(ended.to_string().contains("0 of 2 runs of this stage"), "{ended}");
    assert!(!out.exists(), "nothing was begun");

    let mut few = config.clone();
    (few.few_shot, few.draws) = (Some(2), 2);
    let ended = FewShotRuns::run(&together, &few, &out, false, &mut Ends).expect_err("an end");
    assert!(ended.to_string().contains("the same command begins anew"), "{ended}");
    assert!(!out.exists(), "nothing was begun");
}

#[test]
fn runs_that_cannot_share_a_batch_still_run() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let cpu = Cpu::<f32>::new(Some(2)).expect("threads");
    let frozen = Frozen::load(&cpu, &model()).expect("the bundled model");
    let data = data(folder.path());
    let mut configs = vec![config(&data[0]); 4];
    for (index, config) in configs.iter_mut().enumerate() {
        (config.seed, config.steps, config.validate_every) = (index as u64, Some(2), None);
        // A batch has prompts of one length.
        config.prompt_length = if index % 2 == 0 { 4 } else { 6 };
    }
    let mut heard = Heard::default();
    let outcomes = run_together(&frozen, &mut members(&frozen, &configs), 8, &mut heard).expect("a device");
    assert!(outcomes.iter().all(|outcome| outcome.as_ref().is_ok_and(|outcome| outcome.steps == 2)));
    let order: Vec<usize> = heard.steps.iter().map(|(run, _)| *run).collect();
    assert_eq!(order, [0, 2, 0, 2, 1, 3, 1, 3], "those of one length go together");
}

#[test]
fn a_file_of_runs_gives_every_combination_and_names_what_is_wrong() {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let path = folder.path().join("sweep.toml");
    let read = |text: &str| {
        fs::write(&path, text).expect("written");
        read_sweep(&path)
    };
    let runs = read(
        "model = \"m\"\nsteps = 5\n[sweep]\nlearning-rate = [0.1, 0.3]\nseed = [1, 2]\n\
         task = [{ task = \"rte\", data = \"data/rte\" }, { task = \"cb\", data = \"data/cb\", steps = 7 }]\n",
    )
    .expect("runs");
    let names: Vec<&str> = runs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names.len(), 8);
    assert_eq!(names[0], "learning-rate-0.1-seed-1-rte");
    let (_, last) = &runs[7];
    assert_eq!((last.learning_rate, last.seed, last.task.as_str(), last.steps), (0.3, 2, "cb", Some(7)));
    assert_eq!((last.data.as_path(), runs[0].1.steps), (Path::new("data/cb"), Some(5)));

    // Entries of one name that differ in another key are named by all of them.
    let runs = read(
        "model = \"m\"\n[sweep]\ntask = [{ task = \"rte\", data = \"a\" }, { task = \"rte\", data = \"b\" }, { task = \"cb\", data = \"b\" }]\n",
    )
    .expect("runs");
    let names: Vec<&str> = runs.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["data-a-task-rte", "data-b-task-rte", "cb"]);

    for (text, said) in [
        ("steps = 5\n", "`sweep`"),
        ("[sweep]\nseed = 3\n", "sweep.seed"),
        ("[sweep]\nseed = []\n", "sweep.seed"),
        ("[sweep]\nsede = [1, 2]\n", "`seed`"),
        (
            "stesp = 3\n[sweep]\nseed = [1]\n",
            "line 1: expected a setting, found `stesp` (did you mean `steps`?)",
        ),
        ("[sweep]\nseed = [1, 1]\n", "`seed-1` twice"),
        (
            "[sweep]\nlearning-rate = [1, 1.0]\n",
            "`learning-rate-1` and `learning-rate-1.0`, which are the same run",
        ),
        (
            "[sweep]\nseed = [3, 4]\ntask = [{ task = \"rte\", seed = 1 }, { task = \"cb\" }]\n",
            "`seed` in sweep.seed and in sweep.task",
        ),
        (
            "[sweep]\nsteps = [3]\ntask = [{ task = \"rte\", steps = 1 }]\n",
            "`steps` in sweep.steps and in sweep.task",
        ),
        ("[sweep]\nseed = [\"one\"]\n", "in `seed`"),
        ("steps = \"5\"\n[sweep]\nseed = [1]\n", "in `steps`"),
        ("[sweep\n", "line 1"),
    ] {
        let message = read(text).expect_err("a bad file").to_string();
        assert!(message.contains(said) && message.contains("sweep.toml"), "{text:?}: {message}");
    }
}

/// By hand: 0.5 and 0.7 have the mean 0.6 and, over one less than there are, the deviation 0.2 / √2.
#[test]
fn the_table_has_mean_and_deviation_over_seeds() {
    let run = |name: &str, seed: u64, rate: f64, best: f64, test: Option<f64>| {
        let mut config = RunConfig::default();
        (config.seed, config.learning_rate) = (seed, rate);
        let outcome = Outcome {
            steps: 9,
            best,
            undefined: Vec::new(),
            best_step: 3,
            trained: 1,
            rows: vec![8],
            stopped_early: false,
        };
        SweptRun {
            name: name.into(),
            config,
            outcome: Ok(outcome),
            test: vec![("accuracy".to_owned(), test)],
        }
    };
    let failed = SweptRun {
        outcome: Err(promptmix::Error::unsupported("a run", "what fails", "")),
        ..run("d", 3, 0.1, 0.0, None)
    };
    let mut sweep = Sweep {
        runs: vec![
            run("a", 1, 0.1, 0.5, Some(0.25)),
            run("b", 1, 0.3, 0.9, None),
            run("c", 2, 0.1, 0.7, Some(0.75)),
            failed,
        ],
    };
    let said = sweep.to_string();
    assert!(said.contains("0.5000 after step 3 of 9; test"), "{said}");
    let Ok(outcome) = &mut sweep.runs[0].outcome else { panic!("a run that was trained") };
    outcome.undefined = vec!["pearson".into(), "spearman".into()];
    let said = sweep.to_string();
    assert!(
        said.contains("0.5000 after step 3 of 9 (pearson and spearman undefined, which counts as 0); test"),
        "{said}"
    );
    let lines = |sweep: &Sweep| {
        let mut table = Vec::new();
        sweep.write_table(&mut table).expect("written");
        let table = String::from_utf8(table).expect("text");
        table.lines().map(|line| line.replace('\t', " ")).collect::<Vec<_>>()
    };
    let of_all = lines(&sweep);
    assert_eq!(
        of_all[0],
        "run task method learning-rate seed steps taken best step validation test accuracy validation: mean validation: standard \
         deviation test accuracy: mean test accuracy: standard deviation runs"
    );
    assert_eq!(of_all[1], "a  attempt 0.1 1 9 3 0.500000 0.250000 0.600000 0.141421 0.500000 0.353553 2");
    assert_eq!(of_all[2], "c  attempt 0.1 2 9 3 0.700000 0.750000 0.600000 0.141421 0.500000 0.353553 2");
    assert_eq!(of_all[3], "b  attempt 0.3 1 9 3 0.900000  0.900000    1", "no test rows, no numbers");
    let said = sweep.to_string();
    assert!(
        said.contains("d  failed: ") && said.contains("(2 runs)"),
        "a run that failed is none of them: {said}"
    );
    sweep.runs[0].config.labels = Some("a \"quoted\"\tlabel".into());
    let line = &lines(&sweep)[1];
    assert!(line.contains(r#" "a ""quoted"" label" "#), "a cell with tab and quotes is one cell: {line}");
}

/// A small GPU takes fewer runs at a time than it was asked to, says so, and takes all of them to their end.
#[cfg(all(feature = "cuda", feature = "cli", unix))]
#[test]
fn a_gpu_takes_as_many_runs_into_a_batch_as_its_memory_holds() {
    if !kernels::are_built() {
        return;
    }
    let folder = tempfile::tempdir().expect("a temporary folder");
    let folder = folder.path();
    let text = format!(
        "model = {:?}\ntask = \"sst2\"\nlabels = \"negative,positive\"\ndata = {:?}\nmethod = \"prompt-tuning\"\n\
         prompt-length = 20\nbatch-size = 8\nsteps = 1\ndecoding = \"labels\"\n[sweep]\nseed = [1, 2, 3, 4]\n",
        model(),
        data(folder)[0]
    );
    fs::write(folder.join("sweep.toml"), text).expect("written");
    let library = vgpu::find_library().expect("the virtual GPU's library");
    let sweep = |megabytes: usize| {
        let out = folder.join(megabytes.to_string());
        let end = program::promptmix()
            .args(["sweep", "sweep.toml", "--device", "cuda", "--out"])
            .arg(&out)
            .current_dir(folder)
            .env("LD_PRELOAD", &library)
            .env("VGPU_MEMORY", (megabytes * 1_000_000).to_string())
            .output()
            .expect("an end");
        let said = String::from_utf8_lossy(&end.stderr).into_owned();
        assert!(end.status.success(), "{said}");
        let results = fs::read_to_string(out.join("results.tsv")).expect("results");
        assert_eq!(results.lines().count(), 1 + 4, "{results}");
        said
    };
    assert!(!sweep(500).contains("share a batch"), "all four fit");
    // Enough for the steps of two runs beside the weights, and too little for those of three.
    let said = sweep(45);
    assert!(said.contains("2 of 4 runs share a batch"), "{said}");
}
