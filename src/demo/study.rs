//! The study of the mixture: ATTEMPT against every simpler use of the same sources, on a target whose rows ask two questions.
//!
//! Everything that could be tuned to a result is fixed here: the generator and its seeds, rows, steps, and how many rates each
//! method may choose from on validation rows.

use std::fmt;
use std::path::{Path, PathBuf};

use super::generate::Rows;
use super::methods::{CONSTANT, PROMPT_TUNING, UNIFORM};
use super::questions::{QuestionsTask, Subject, TWO_QUESTIONS};
use super::sources::{SourceSettings, data_folder, source_paths};
use super::table::{ATTEMPT, AttentionByKind, Row, Table};
use crate::backend::Scorer;
use crate::config::{Method, RunConfig};
use crate::data::Split;
use crate::error::Result;
use crate::evaluate::{Paired, first_best, mean};
use crate::experiment::{Entry, EvaluationJob, Grid, MethodResults, Place, Progress, Runner};
use crate::train::complete;

const MANY_NUMBERS: &str = "prompt tuning, as many numbers";
const SPOT_SUM: &str = "SPoT from the weighted sum";
const SPOT_BEST: &str = "SPoT from the best source";
const AS_IS: &str = "the best source as it is";
const SHUFFLED: &str = "subjects shuffled between rows";

/// What the study does.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StudySettings {
    /// The target.
    pub target: QuestionsTask,
    /// How the source prompts are learnt.
    pub sources: SourceSettings,
    /// Seeds of the generator: each gives a data set of its own.
    pub data_seeds: Vec<u64>,
    /// Seeds of initialisation, order and dropout: one training of each method, rate and data set a seed.
    pub seeds: Vec<u64>,
    /// Rows of each data set.
    pub rows: Rows,
    /// Steps of each training.
    pub steps: u64,
    /// Steps between two validations.
    pub validate_every: u64,
    /// Learning rates of the prompt that every method tries.
    pub learning_rates: Vec<f64>,
}

impl Default for StudySettings {
    fn default() -> Self {
        Self {
            target: TWO_QUESTIONS,
            sources: SourceSettings::default(),
            data_seeds: vec![1, 2, 3],
            seeds: vec![1, 2, 3, 4, 5],
            rows: Rows { train: 240, validation: 120, test: 400 },
            steps: 300,
            validate_every: 50,
            learning_rates: vec![0.3, 1.0],
        }
    }
}

/// What the study found.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct StudyReport {
    /// The methods.
    pub table: Table,
    /// What could be reached: the related source as it is for each kind of row, by an oracle, and a prompt for each kind.
    pub bounds: Vec<(String, Vec<f64>)>,
    /// ATTEMPT's mean mixture of each kind of row.
    pub by_kind: AttentionByKind,
    /// How each of ATTEMPT's runs routed its test rows.
    pub routing: Vec<Routing>,
    /// What is left of ATTEMPT's lead over constant weights where it should fall, and both methods' test accuracy.
    pub controls: Vec<(String, Vec<f64>, Vec<f64>)>,
}

/// Which source one run used for each kind of row.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub struct Routing {
    /// The run's place.
    pub place: String,
    /// The source that is the largest most often, a kind each; the target prompt is not counted.
    pub modes: Vec<String>,
    /// The share of the kind's rows for which it is.
    pub holds: Vec<f64>,
    /// Whether it is a source that asks the kind's question.
    pub related: Vec<bool>,
    /// The largest difference between kinds in the mean weight of a source.
    pub difference: f64,
}

impl Routing {
    /// Whether kinds have different modes, all related, each on 90 % of its rows, and the mixture is not constant.
    pub fn is_right(&self) -> bool {
        let differ = (1..self.modes.len()).all(|kind| !self.modes[..kind].contains(&self.modes[kind]));
        differ
            && self.related.iter().all(|related| *related)
            && self.holds.iter().all(|share| *share >= 0.9)
            && self.difference > 0.05
    }
}

/// Runs the study in the folder `out`, with trainings that `runner` takes on the T5 in `model`, or goes on with one that was
/// interrupted there.
///
/// # Errors
/// If `out` holds a study of other settings or cannot be written, and those of training.
pub fn study(
    settings: &StudySettings,
    runner: &dyn Runner,
    model: &Path,
    out: &Path,
    progress: &mut dyn Progress,
) -> Result<StudyReport> {
    settings.sources.train(runner, model, settings.target.sources, out, progress)?;
    let places: Vec<Place> = (0..settings.data_seeds.len())
        .flat_map(|data| settings.seeds.iter().map(move |&seed| (data, seed)))
        .map(|(data, seed)| Place::new(format!("data-{}-seed-{seed}", settings.data_seeds[data]), data, seed))
        .collect();
    Study { settings, runner, model, out, places, sources: source_paths(out, settings.target.sources) }
        .run(progress)
}

struct Study<'a> {
    settings: &'a StudySettings,
    runner: &'a dyn Runner,
    model: &'a Path,
    out: &'a Path,
    places: Vec<Place>,
    sources: Vec<PathBuf>,
}

impl Study<'_> {
    fn run(&self, progress: &mut dyn Progress) -> Result<StudyReport> {
        let (settings, task) = (self.settings, &self.settings.target);
        let rates = &settings.learning_rates;
        for (data, &seed) in settings.data_seeds.iter().enumerate() {
            task.write(&self.data(data, ""), settings.rows, seed, Subject::OfKind)?;
            task.write(&self.data(data, "-shuffled"), settings.rows, seed, Subject::Shuffled)?;
            for kind in 0..task.kinds.len() {
                task.write_kind(&self.data(data, &format!("-kind-{kind}")), settings.rows, seed, kind)?;
            }
        }
        let runs = self.out.join("runs");

        // Validation rows say which source serves each data set best, and which each kind of row.
        let by_source = self.validate_sources(progress)?;
        let best: Vec<usize> = by_source
            .iter()
            .map(|sources| first_best(&sources.iter().map(|kinds| mean(kinds)).collect::<Vec<_>>()))
            .collect();
        let of_kind = |data: usize, kind: usize| {
            first_best(&by_source[data].iter().map(|kinds| kinds[kind]).collect::<Vec<_>>())
        };

        let base = |place: &Place| self.config(place, "");
        let start = |place: &Place| from_source(base(place), &self.sources[best[place.data]]);
        let with = |name: &str, config: &dyn Fn(&Place) -> RunConfig| self.entry(name, rates, config);
        let mixed = |scorer: Scorer, place: &Place| RunConfig {
            scorer,
            sources: self.sources.clone(),
            ..base(place)
        };
        let untuned = |prompt_length: usize, place: &Place| RunConfig {
            method: Method::PromptTuning,
            prompt_length,
            ..base(place)
        };
        let (length, many) = (settings.sources.prompt_length, self.as_many_rows());
        let grid = Grid { runner: self.runner, places: &self.places };
        let entries = vec![
            with(ATTEMPT, &|place| mixed(Scorer::Bottleneck, place)),
            with(CONSTANT, &|place| mixed(Scorer::Constant, place)),
            with(UNIFORM, &|place| mixed(Scorer::Uniform, place)),
            with(PROMPT_TUNING, &|place| untuned(length, place)),
            with(MANY_NUMBERS, &|place| untuned(many, place)),
            with(SPOT_BEST, &start),
        ];
        let methods = grid.train("methods", &runs, entries, progress)?;
        let chosen = |name: &str| methods.iter().find(|entry| entry.name == name).map(Entry::choose);

        // The weights of the sum are the sources' similarity to the prompt that prompt tuning learnt in the same place.
        let learnt = chosen(PROMPT_TUNING).into_iter().flat_map(|chosen| &chosen.folders);
        let mut embeddings = learnt.map(|run| run.join("prompt.safetensors"));
        let sum = self.places.iter().map(|place| RunConfig {
            method: Method::Spot,
            sources: self.sources.clone(),
            initial_prompt: embeddings.next(),
            ..base(place)
        });
        let mut entries =
            vec![Entry::new(SPOT_SUM, rates, [(None, sum.collect())]), self.entry(AS_IS, &[], &start)];
        for kind in 0..task.kinds.len() {
            entries.push(with(&format!("a prompt for kind {kind}"), &|place| {
                let config = self.config(place, &format!("-kind-{kind}"));
                from_source(config, &self.sources[of_kind(place.data, kind)])
            }));
        }
        let mut controls = vec![(SHUFFLED.to_owned(), self.sources.clone())];
        for kind in task.kinds {
            let without = task.sources.iter().zip(&self.sources);
            let without = without.filter(|(name, _)| !kind.related.contains(name));
            let sources = without.map(|(_, path)| path.clone()).collect();
            controls.push((format!("without {}", kind.related_among(task.sources).join(" and ")), sources));
        }
        let rate = [chosen(ATTEMPT).and_then(|chosen| chosen.rate).unwrap_or(rates[0])];
        for (name, sources) in &controls {
            let variant = if name == SHUFFLED { "-shuffled" } else { "" };
            for (method, scorer) in [(ATTEMPT, Scorer::Bottleneck), (CONSTANT, Scorer::Constant)] {
                entries.push(self.entry(&format!("{name}: {method}"), &rate, &|place| RunConfig {
                    scorer,
                    sources: sources.clone(),
                    ..self.config(place, variant)
                }));
            }
        }
        let others = grid.train("the weighted sum, bounds and controls", &runs, entries, progress)?;

        // Every choice is made: now the test rows.
        let (simple, others) = others.split_at(2);
        let (of_kinds, of_controls) = others.split_at(task.kinds.len());
        let tested = grid.test("test rows of methods", &[&methods, simple].concat(), progress)?;
        let of_kinds = grid.test("test rows of a prompt a kind", of_kinds, progress)?;
        let controlled = grid.test("test rows of controls", of_controls, progress)?;
        let oracle = self.test_oracle(&of_kind, progress)?;

        let attempt = &tested[0];
        Ok(StudyReport {
            table: Table { rows: tested.iter().map(Row::from).collect() },
            bounds: vec![
                ("routing by an oracle, sources as they are".into(), oracle),
                ("a prompt a kind, from its source".into(), average(&of_kinds)),
            ],
            by_kind: AttentionByKind::new(
                task.prompts(),
                task.kinds.iter().map(|kind| kind.name.to_owned()).collect(),
                &attempt.mixtures,
            ),
            routing: self
                .places
                .iter()
                .zip(&attempt.mixtures)
                .map(|(place, rows)| routing(task, &place.name, rows))
                .collect(),
            controls: controls
                .into_iter()
                .zip(controlled.chunks_exact(2))
                .map(|((name, _), pair)| (name, pair[0].test.clone(), pair[1].test.clone()))
                .collect(),
        })
    }

    fn data(&self, data: usize, variant: &str) -> PathBuf {
        let seed = self.settings.data_seeds[data];
        data_folder(self.out, &format!("{}-{seed}{variant}", self.settings.target.name))
    }

    /// An entry whose settings are `config`'s.
    fn entry(&self, name: &str, rates: &[f64], config: &dyn Fn(&Place) -> RunConfig) -> Entry {
        Entry::new(name, rates, [(None, self.places.iter().map(config).collect())])
    }

    fn config(&self, place: &Place, variant: &str) -> RunConfig {
        let (settings, task) = (self.settings, &self.settings.target);
        let data = self.data(place.data, variant);
        RunConfig {
            steps: Some(settings.steps),
            validate_every: Some(settings.validate_every),
            seed: place.seed,
            ..settings.sources.run(self.model, task.name, task.labels, data)
        }
    }

    /// Prompt rows that come to at least as many numbers as ATTEMPT trains.
    fn as_many_rows(&self) -> usize {
        let config = RunConfig::default();
        let length = self.settings.sources.prompt_length;
        // M·D + 2·Q·D + 2·D over D.
        length + 2 * config.bottleneck_dim + 2
    }

    /// The accuracy of each source as it is on each kind of each data set's validation rows: data set, source, kind.
    fn validate_sources(&self, progress: &mut dyn Progress) -> Result<Vec<Vec<Vec<f64>>>> {
        let jobs: Vec<(usize, usize)> = (0..self.settings.data_seeds.len())
            .flat_map(|data| (0..self.sources.len()).map(move |source| (data, source)))
            .collect();
        let accuracies = self.evaluate_sources("sources as they are", &jobs, Split::Validation, progress)?;
        Ok(accuracies.chunks(self.sources.len()).map(<[_]>::to_vec).collect())
    }

    /// The accuracy of an oracle that answers each kind of test row with the source that is best on its validation rows, a
    /// place each.
    fn test_oracle(
        &self,
        of_kind: &(impl Fn(usize, usize) -> usize + Sync),
        progress: &mut dyn Progress,
    ) -> Result<Vec<f64>> {
        let (kinds, sets) = (self.settings.target.kinds.len(), self.settings.data_seeds.len());
        let jobs: Vec<(usize, usize)> =
            (0..sets).flat_map(|data| (0..kinds).map(move |kind| (data, of_kind(data, kind)))).collect();
        let accuracies = self.evaluate_sources("test rows of the oracle", &jobs, Split::Test, progress)?;
        let of_set = |data: usize| {
            mean(&(0..kinds).map(|kind| accuracies[data * kinds + kind][kind]).collect::<Vec<_>>())
        };
        Ok(self.places.iter().map(|place| of_set(place.data)).collect())
    }

    /// The accuracy on each kind of rows of sources as they are.
    fn evaluate_sources(
        &self,
        what: &'static str,
        jobs: &[(usize, usize)],
        split: Split,
        progress: &mut dyn Progress,
    ) -> Result<Vec<Vec<f64>>> {
        let (settings, task) = (self.settings, &self.settings.target);
        let config = |source: usize, data: usize| {
            from_source(self.config(&Place::new("", data, settings.seeds[0]), ""), &self.sources[source])
        };
        let runs: Vec<EvaluationJob> = jobs
            .iter()
            .map(|&(data, source)| EvaluationJob { config: config(source, data), folder: None, split })
            .collect();
        progress.begin(what, jobs.len() as u64);
        let evaluated = self.runner.evaluate(&runs, progress)?;
        let accuracies = jobs.iter().zip(evaluated).map(|(&(data, _), evaluated)| {
            let answers = &complete(evaluated)?[0].1.answers;
            let rows = task.generate(settings.rows, settings.data_seeds[data], Subject::OfKind)?;
            let rows = &rows[if split == Split::Test { 2 } else { 1 }];
            let accuracy = |kind: usize| {
                let own = rows.iter().zip(answers).filter(|(row, _)| row.kind == kind);
                let right = own.map(|(row, answer)| f64::from(u8::from(answer == task.labels[row.label])));
                mean(&right.collect::<Vec<_>>())
            };
            Ok((0..task.kinds.len()).map(accuracy).collect())
        });
        accuracies.collect()
    }
}

/// The mean over entries, place by place.
fn average(tested: &[MethodResults]) -> Vec<f64> {
    let places = tested.first().map_or(0, |first| first.test.len());
    (0..places).map(|place| mean(&tested.iter().map(|one| one.test[place]).collect::<Vec<_>>())).collect()
}

/// Which source is the largest for the rows of each kind, which take turns.
fn routing(task: &QuestionsTask, place: &str, rows: &[Vec<f64>]) -> Routing {
    let (kinds, sources) = (task.kinds.len(), task.sources.len());
    let mut routing = Routing {
        place: place.to_owned(),
        modes: Vec::new(),
        holds: Vec::new(),
        related: Vec::new(),
        difference: 0.0,
    };
    let mut means: Vec<Vec<f64>> = Vec::new();
    for (index, kind) in task.kinds.iter().enumerate() {
        let own: Vec<&Vec<f64>> = rows.iter().skip(index).step_by(kinds).collect();
        let mut times = vec![0.0; sources];
        own.iter().for_each(|row| times[first_best(&row[..sources])] += 1.0);
        let mode = first_best(&times);
        routing.modes.push(task.sources[mode].to_owned());
        routing.holds.push(times[mode] / own.len().max(1) as f64);
        routing.related.push(kind.related.contains(&task.sources[mode]));
        let weight = |source: usize| mean(&own.iter().map(|row| row[source]).collect::<Vec<_>>());
        means.push((0..sources).map(weight).collect());
    }
    for source in 0..sources {
        let weights = || means.iter().map(|mean| mean[source]);
        let (low, high) =
            weights().fold((f64::INFINITY, 0.0_f64), |(low, high), w| (low.min(w), high.max(w)));
        routing.difference = routing.difference.max(high - low);
    }
    routing
}

impl fmt::Display for StudyReport {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.table.fmt(formatter)?;
        writeln!(formatter, "\nbounds, on the test rows")?;
        for (name, accuracy) in &self.bounds {
            writeln!(formatter, "  {name:<44} {:.3}", mean(accuracy))?;
        }
        writeln!(formatter, "\nATTEMPT's mean attention by kind of row, on the test rows\n")?;
        self.by_kind.fmt(formatter)?;
        writeln!(
            formatter,
            "\nthe largest source of each kind's rows, and the share of rows for which it is"
        )?;
        for routing in &self.routing {
            write!(formatter, "  {:<16}", routing.place)?;
            for ((kind, mode), share) in self.by_kind.kinds.iter().zip(&routing.modes).zip(&routing.holds) {
                write!(formatter, " {kind}: {mode} {share:.2} ")?;
            }
            let verdict = if routing.is_right() { "as it should" } else { "NOT as it should" };
            writeln!(formatter, " difference {:.2}, {verdict}", routing.difference)?;
        }
        writeln!(formatter, "\nwhere the lead should fall: ATTEMPT, constant weights, and the lead (95 %)")?;
        for (name, attempt, constant) in &self.controls {
            let Paired { mean: lead, interval: [low, high], .. } = Paired::new(attempt, constant);
            writeln!(
                formatter,
                "  {name:<44} {:.3}  {:.3}  {lead:+.3} ({low:+.3} to {high:+.3})",
                mean(attempt),
                mean(constant)
            )?;
        }
        writeln!(formatter, "\ncriteria")?;
        for (criterion, holds) in self.criteria() {
            writeln!(formatter, "  {} {criterion}", if holds { "met   " } else { "MISSED" })?;
        }
        Ok(())
    }
}

impl StudyReport {
    /// What the study was to show, fixed before it ran, and whether it does: ATTEMPT's test mean is at least 0.95; it is ahead of
    /// each simpler method by 0.04 or by half of that method's errors, with the 95 % interval of paired differences above
    /// 0; and every run routes as it should.
    pub fn criteria(&self) -> Vec<(String, bool)> {
        let ours = self.table.row(ATTEMPT).map_or(f64::NAN, |row| mean(&row.test));
        let mut criteria = vec![(format!("ATTEMPT's test mean {ours:.3} is at least 0.95"), ours >= 0.95)];
        for row in self.table.rows.iter().filter(|row| row.name != ATTEMPT && row.name != AS_IS) {
            let Some(ahead) = self.table.ahead_of(row) else { continue };
            let wanted = (0.5 * (1.0 - mean(&row.test))).min(0.04);
            let holds = ahead.mean >= wanted && ahead.interval[0] > 0.0;
            let [low, high] = ahead.interval;
            let (name, mean) = (&row.name, ahead.mean);
            criteria.push((
                format!("ahead of {name} by {mean:.3} ({low:.3} to {high:.3}), at least {wanted:.3}"),
                holds,
            ));
        }
        for (name, attempt, constant) in &self.controls {
            let [low, high] = Paired::new(attempt, constant).interval;
            criteria.push((format!("{name}: no lead left ({low:+.3} to {high:+.3})"), low <= 0.0));
        }
        let right = self.routing.iter().filter(|routing| routing.is_right()).count();
        criteria.push((
            format!("{right} of {} runs route each kind to a related source of its own", self.routing.len()),
            right == self.routing.len(),
        ));
        criteria
    }
}

/// Learns a prompt from `path`, or evaluates it as it is.
fn from_source(config: RunConfig, path: &Path) -> RunConfig {
    RunConfig { method: Method::Spot, sources: vec![path.to_owned()], ..config }
}
