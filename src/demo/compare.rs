//! The comparison: six source prompts, then every method on a few-shot target, and on one whose rows ask different questions.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use super::generate::{SOURCES, TARGET};
use super::questions::{QuestionsTask, Subject, THREE_QUESTIONS};
use super::report::Report;
use super::settings::{Settings, TargetSettings};
use super::sources::{data_folder, source_paths};
use super::table::{ATTEMPT, AttentionByKind, Row, Table};
use crate::backend::Scorer;
use crate::config::{Method, RunConfig};
use crate::error::{Error, Result};
use crate::experiment::{
    MethodResults, Place, Progress, Runner, Source, Sources, Study, StudyMethod, Target, TargetResults,
    Workers,
};

/// Generates the tasks, learns the source prompts and compares the methods, all in the folder `out`, with the T5 in
/// `model`. The test rows of a target are read only once every choice on it is made.
///
/// # Errors
/// If `out` holds generated data already or cannot be written, and those of training.
pub fn compare(settings: &Settings, model: &Path, out: &Path, progress: &mut dyn Progress) -> Result<Report> {
    compare_with(settings, &Workers::new(model, settings.workers)?, model, out, progress)
}

/// As [`compare`], with trainings that `runner` takes on the T5 in `model`; `settings.workers` has no effect.
///
/// # Errors
/// As [`compare`].
pub fn compare_with(
    settings: &Settings,
    runner: &dyn Runner,
    model: &Path,
    out: &Path,
    progress: &mut dyn Progress,
) -> Result<Report> {
    settings.check()?;
    let data = out.join("data");
    if data.exists() {
        return Err(Error::setting(
            "the folder of the demonstration",
            "one without data",
            format!("{}", data.display()),
            "name another folder, or remove this one",
        ));
    }
    let names = SOURCES.map(|task| task.name);
    let source_validation = settings.sources.train(runner, model, &names, out, progress)?;
    let declare = Declare { settings, model, out };
    let (few_shot, questions) = (declare.few_shot()?, declare.questions(&THREE_QUESTIONS)?);
    let mut on = |study: &Study| {
        let sources: Vec<PathBuf> = study.sources.iter().filter_map(|source| source.prompt.clone()).collect();
        study.compare_on(&study.targets[0], &sources, None, runner, out, progress)
    };
    let (few_shot, questions) = (on(&few_shot)?, on(&questions)?);
    let attempt = |results: &TargetResults| {
        let found = results.methods.iter().find(|method| method.name == ATTEMPT);
        found.cloned().ok_or_else(|| Error::unsupported("a demonstration", "it lacks ATTEMPT", ""))
    };
    let (of_few_shot, of_questions) = (attempt(&few_shot)?, attempt(&questions)?);
    let run = of_few_shot.chosen.first().map(|folder| out.join(folder)).unwrap_or_default();
    Ok(Report {
        settings: settings.clone(),
        sources: names.map(str::to_owned).to_vec(),
        source_validation,
        transfer: few_shot.sources.iter().map(|(_, validation)| *validation).collect(),
        few_shot: table(&few_shot),
        attention: of_few_shot.attention,
        run,
        questions: table(&questions),
        by_kind: AttentionByKind::new(
            THREE_QUESTIONS.prompts(),
            THREE_QUESTIONS.kinds.iter().map(|kind| kind.name.to_owned()).collect(),
            &of_questions.mixtures,
        ),
        source_prompts: source_paths(out, &names),
        model: model.to_owned(),
    })
}

pub(super) const PROMPT_TUNING: &str = "prompt tuning";
pub(super) const UNIFORM: &str = "control: equal weights";
pub(super) const CONSTANT: &str = "control: constant weights";
const AS_IS: &str = "{} as it is";
const SPOT: &str = "SPoT from {}";
const SPOT_EACH: &str = "control: SPoT, best of six sources";
const NOISE: &str = "control: ATTEMPT, random sources";

/// Each method with its sources. Where its weights are not attention's, they are 1/(S+1), or learnt ones that no input moves.
const METHODS: [(&str, Sources, Method, Scorer); 8] = [
    (PROMPT_TUNING, Sources::None, Method::PromptTuning, Scorer::Bottleneck),
    (AS_IS, Sources::Best, Method::Spot, Scorer::Bottleneck),
    (SPOT, Sources::Best, Method::Spot, Scorer::Bottleneck),
    (ATTEMPT, Sources::All, Method::Attempt, Scorer::Bottleneck),
    (NOISE, Sources::Random, Method::Attempt, Scorer::Bottleneck),
    (SPOT_EACH, Sources::Each, Method::Spot, Scorer::Bottleneck),
    (UNIFORM, Sources::All, Method::Attempt, Scorer::Uniform),
    (CONSTANT, Sources::All, Method::Attempt, Scorer::Constant),
];

/// The methods of a target, named after the source that is best as it is. Where SPoT from each source comes to that one too, it
/// is left out.
fn table(results: &TargetResults) -> Table {
    let best = results.best_source();
    let reported = results.methods.iter().filter(|method| method.source.as_deref() != best);
    let row = |method: &MethodResults| {
        let mut row = Row::from(method);
        row.name = match &method.source {
            Some(source) => format!("{} ({source})", row.name),
            None => row.name.replace("{}", best.unwrap_or_default()),
        };
        row
    };
    Table { rows: reported.map(row).collect() }
}

/// Writes a target's rows and declares what is compared on it.
struct Declare<'a> {
    settings: &'a Settings,
    model: &'a Path,
    out: &'a Path,
}

impl Declare<'_> {
    fn few_shot(&self) -> Result<Study> {
        let (settings, seed) = (&self.settings.target, self.settings.sources.seed);
        TARGET.write(&data_folder(self.out, TARGET.name), settings.rows, seed)?;
        let fixed = if self.settings.fixed_mixtures { &[UNIFORM, CONSTANT][..] } else { &[] };
        let methods = [&[PROMPT_TUNING, AS_IS, SPOT, ATTEMPT, NOISE, SPOT_EACH], fixed].concat();
        let shared = RunConfig {
            few_shot: Some(self.settings.shots),
            class_balanced: true,
            ..self.shared(TARGET.name, TARGET.labels)
        };
        Ok(self.study(TARGET.name, &SOURCES.map(|task| task.name), settings, shared, &methods))
    }

    fn questions(&self, task: &QuestionsTask) -> Result<Study> {
        let (settings, seed) = (&self.settings.questions, self.settings.sources.seed);
        task.write(&data_folder(self.out, task.name), settings.rows, seed, Subject::OfKind)?;
        let fixed = if self.settings.fixed_mixtures { &[CONSTANT, UNIFORM][..] } else { &[CONSTANT] };
        let methods = [&[PROMPT_TUNING, AS_IS, SPOT, ATTEMPT], fixed].concat();
        Ok(self.study(task.name, task.sources, settings, self.shared(task.name, task.labels), &methods))
    }

    /// Settings of every run on `target`.
    fn shared(&self, target: &str, labels: [&str; 2]) -> RunConfig {
        self.settings.sources.run(self.model, target, labels, data_folder(self.out, target))
    }

    /// The comparison on `target` of what `names` lists of [`METHODS`], with `shared` settings.
    fn study(
        &self,
        target: &str,
        sources: &[&str],
        settings: &TargetSettings,
        shared: RunConfig,
        names: &[&str],
    ) -> Study {
        let (steps, validate_every) = (Some(settings.steps), Some(settings.validate_every));
        let config = RunConfig { steps, validate_every, ..shared };
        let declared = |(name, sources, method, scorer): (&str, Sources, Method, Scorer)| StudyMethod {
            name: name.to_owned(),
            sources,
            has_pretrained_scorer: false,
            learning_rates: if name == AS_IS { Vec::new() } else { settings.learning_rates.clone() },
            config: RunConfig { method, scorer, ..config.clone() },
        };
        let of_name = |name: &&str| METHODS.into_iter().find(|(of, ..)| of == name).map(declared);
        let methods = names.iter().filter_map(of_name).collect();
        let source = |(name, prompt): (&&str, PathBuf)| Source {
            name: (*name).to_owned(),
            prompt: Some(prompt),
            config: RunConfig::default(),
        };
        let place = |&seed: &u64| Place::new(format!("seed-{seed}"), seed as usize, seed);
        Study {
            sources: sources.iter().zip(source_paths(self.out, sources)).map(source).collect(),
            scorer: None,
            targets: vec![Target { name: target.into(), published: BTreeMap::new(), config, methods }],
            places: settings.seeds.iter().map(place).collect(),
            against: ATTEMPT.into(),
        }
    }
}

/// Learns a prompt from `path`, or evaluates it as it is.
pub(super) fn from_source(config: RunConfig, path: &Path) -> RunConfig {
    RunConfig { method: Method::Spot, sources: vec![path.to_owned()], ..config }
}
