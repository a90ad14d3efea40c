//! The comparison: six source prompts, then every method on a few-shot target, and on one whose rows ask different questions.

use std::path::{Path, PathBuf};

use super::generate::{SOURCES, TARGET};
use super::questions::{QuestionsTask, Subject, THREE_QUESTIONS};
use super::report::Report;
use super::settings::Settings;
use super::sources::{data_folder, source_paths, write_noise};
use super::table::{ATTEMPT, AttentionByKind, Row, Table};
use crate::backend::Scorer;
use crate::config::{Method, RunConfig};
use crate::error::{Error, Result};
use crate::experiment::{Entry, Grid, Place, Progress, Runner, Workers, first_best, mean};

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
    let comparison = Comparison { settings, runner, model, out };
    let names = SOURCES.map(|task| task.name);
    let source_validation = settings.sources.train(runner, model, &names, out, progress)?;
    let few_shot = comparison.few_shot(progress)?;
    let questions = comparison.questions(&THREE_QUESTIONS, progress)?;
    Ok(Report {
        settings: settings.clone(),
        sources: names.map(str::to_owned).to_vec(),
        source_validation,
        transfer: few_shot.transfer,
        few_shot: few_shot.table,
        attention: few_shot.attention,
        run: few_shot.run,
        questions: questions.0,
        by_kind: questions.1,
        source_prompts: source_paths(out, &names),
        model: model.to_owned(),
    })
}

struct Comparison<'a> {
    settings: &'a Settings,
    runner: &'a dyn Runner,
    model: &'a Path,
    out: &'a Path,
}

/// What came of the first target.
struct FewShot {
    transfer: Vec<f64>,
    table: Table,
    attention: Vec<f64>,
    run: PathBuf,
}

impl Comparison<'_> {
    fn few_shot(&self, progress: &mut dyn Progress) -> Result<FewShot> {
        let (settings, out) = (&self.settings.target, self.out);
        let data = data_folder(out, TARGET.name);
        TARGET.write(&data, settings.rows, self.settings.sources.seed)?;
        let names = SOURCES.map(|task| task.name);
        let sources = source_paths(out, &names);
        let noise = |seed: u64| -> Vec<PathBuf> {
            let folder = out.join("noise").join(seed.to_string());
            names.iter().map(|name| folder.join(format!("{name}.safetensors"))).collect()
        };
        for &seed in &settings.seeds {
            write_noise(&sources, &noise(seed), seed)?;
        }
        let base = |place: &Place, rate: f64| RunConfig {
            steps: Some(settings.steps),
            validate_every: Some(settings.validate_every),
            few_shot: Some(self.settings.shots),
            class_balanced: true,
            learning_rate: rate,
            seed: place.seed,
            ..self.settings.sources.run(self.model, TARGET.name, TARGET.labels, data.clone())
        };
        let places = places(&settings.seeds);
        let mut grid = Grid::new(self.runner, &places);
        let runs = out.join("runs");
        let spot = |source: usize| format!("SPoT from {}", names[source]);
        let as_is = |source: usize| format!("{} as it is", names[source]);
        let mut untrained = Vec::new();
        let mut trained = vec![
            prompt_tuning(&settings.learning_rates, &base),
            attempt(&settings.learning_rates, &base, &sources),
        ];
        for (source, path) in sources.iter().enumerate() {
            let start = |place: &Place, rate: f64| from_source(base(place, rate), path);
            untrained.push(Entry::new(as_is(source), &[], start));
            trained.push(Entry::new(spot(source), &settings.learning_rates, start));
        }
        trained.push(Entry::new(NOISE, &settings.learning_rates, |place, rate| RunConfig {
            sources: noise(place.seed),
            ..base(place, rate)
        }));
        if self.settings.fixed_mixtures {
            trained.extend(fixed_mixtures(&settings.learning_rates, &base, &sources));
        }
        grid.train("sources as they are", &runs, untrained, progress)?;
        grid.train("few-shot target", &runs, trained, progress)?;

        let means = |name: &dyn Fn(usize) -> String| -> Vec<f64> {
            (0..names.len()).map(|source| mean(&grid.validation(&name(source)))).collect()
        };
        let transfer = means(&as_is);
        let closest = first_best(&transfer);
        let best_spot = first_best(&means(&spot));
        let mut reported =
            vec![PROMPT_TUNING.to_owned(), as_is(closest), spot(closest), ATTEMPT.to_owned(), NOISE.into()];
        if best_spot != closest {
            reported.push(spot(best_spot));
        }
        if self.settings.fixed_mixtures {
            reported.extend([UNIFORM.to_owned(), CONSTANT.to_owned()]);
        }
        let tested = grid.test("few-shot target: test rows", &reported, progress)?;
        let mut table = Table { rows: tested.iter().map(Row::from).collect() };
        if let Some(row) =
            table.rows.iter_mut().find(|row| row.name == spot(best_spot) && best_spot != closest)
        {
            row.name = format!("control: SPoT, best of six sources ({})", names[best_spot]);
        }
        let attention = tested.iter().find(|tested| tested.name == ATTEMPT);
        let rows: Vec<&Vec<f64>> =
            attention.iter().flat_map(|tested| tested.attention().into_iter().flatten()).collect();
        Ok(FewShot {
            transfer,
            table,
            attention: (0..=names.len())
                .map(|prompt| rows.iter().map(|row| row[prompt]).sum::<f64>() / rows.len().max(1) as f64)
                .collect(),
            run: grid.choose(ATTEMPT)[0].folder.clone().unwrap_or_default(),
        })
    }

    fn questions(
        &self,
        task: &QuestionsTask,
        progress: &mut dyn Progress,
    ) -> Result<(Table, AttentionByKind)> {
        let (settings, out) = (&self.settings.questions, self.out);
        let data = data_folder(out, task.name);
        task.write(&data, settings.rows, self.settings.sources.seed, Subject::OfKind)?;
        let sources = source_paths(out, task.sources);
        let base = |place: &Place, rate: f64| RunConfig {
            steps: Some(settings.steps),
            validate_every: Some(settings.validate_every),
            learning_rate: rate,
            seed: place.seed,
            ..self.settings.sources.run(self.model, task.name, task.labels, data.clone())
        };
        let places = places(&settings.seeds);
        let mut grid = Grid::new(self.runner, &places);
        let runs = out.join("runs").join(task.name);
        let as_is = |source: usize| format!("{} as it is", task.sources[source]);
        let untrained = sources.iter().enumerate().map(|(source, path)| {
            Entry::new(as_is(source), &[], |place, rate| from_source(base(place, rate), path))
        });
        grid.train("sources as they are", &runs, untrained.collect(), progress)?;
        let transfer: Vec<f64> =
            (0..sources.len()).map(|source| mean(&grid.validation(&as_is(source)))).collect();
        let closest = first_best(&transfer);
        let spot = format!("SPoT from {}", task.sources[closest]);
        let rates = &settings.learning_rates;
        let (start, base) = (sources[closest].clone(), &base);
        let mut trained = vec![
            prompt_tuning(rates, base),
            Entry::new(&spot, rates, move |place, rate| from_source(base(place, rate), &start)),
            attempt(rates, base, &sources),
        ];
        let [uniform, constant] = fixed_mixtures(rates, base, &sources);
        trained.push(constant);
        let mut reported = vec![
            PROMPT_TUNING.to_owned(),
            as_is(closest),
            spot.clone(),
            ATTEMPT.to_owned(),
            CONSTANT.to_owned(),
        ];
        if self.settings.fixed_mixtures {
            trained.push(uniform);
            reported.push(UNIFORM.to_owned());
        }
        grid.train("target of three questions", &runs, trained, progress)?;
        let tested = grid.test("target of three questions: test rows", &reported, progress)?;
        let table = Table { rows: tested.iter().map(Row::from).collect() };
        let attention = tested.iter().find(|tested| tested.name == ATTEMPT);
        let by_kind = AttentionByKind::new(
            task.prompts(),
            task.kinds.iter().map(|kind| kind.name.to_owned()).collect(),
            &attention.map(|tested| tested.attention()).unwrap_or_default(),
        );
        Ok((table, by_kind))
    }
}

pub(super) const PROMPT_TUNING: &str = "prompt tuning";
pub(super) const UNIFORM: &str = "control: equal weights";
pub(super) const CONSTANT: &str = "control: constant weights";
const NOISE: &str = "control: ATTEMPT, random sources";

fn places(seeds: &[u64]) -> Vec<Place> {
    seeds.iter().map(|&seed| Place::new(format!("seed-{seed}"), 0, seed)).collect()
}

/// Learns a prompt from `path`, or evaluates it as it is.
pub(super) fn from_source(config: RunConfig, path: &Path) -> RunConfig {
    RunConfig { method: Method::Spot, sources: vec![path.to_owned()], ..config }
}

pub(super) fn prompt_tuning<'a>(rates: &[f64], base: &'a impl Fn(&Place, f64) -> RunConfig) -> Entry<'a> {
    Entry::new(PROMPT_TUNING, rates, |place, rate| RunConfig {
        method: Method::PromptTuning,
        ..base(place, rate)
    })
}

pub(super) fn attempt<'a>(
    rates: &[f64],
    base: &'a impl Fn(&Place, f64) -> RunConfig,
    sources: &'a [PathBuf],
) -> Entry<'a> {
    Entry::new(ATTEMPT, rates, |place, rate| RunConfig { sources: sources.to_vec(), ..base(place, rate) })
}

/// ATTEMPT without attention: weights of 1/(S+1), and learnt ones that no input moves.
pub(super) fn fixed_mixtures<'a>(
    rates: &[f64],
    base: &'a impl Fn(&Place, f64) -> RunConfig,
    sources: &'a [PathBuf],
) -> [Entry<'a>; 2] {
    [(UNIFORM, Scorer::Uniform), (CONSTANT, Scorer::Constant)].map(|(name, scorer)| {
        Entry::new(name, rates, move |place, rate| RunConfig {
            scorer,
            sources: sources.to_vec(),
            ..base(place, rate)
        })
    })
}
