//! Pictures and tables of runs: one HTML page that needs nothing else, and its figures as SVG and PNG beside it.
//!
//! Everything is read from run folders; no model is loaded. Not for evaluating a run: that is evaluation.

mod chart;
mod groups;
mod heat_map;
mod history;
mod labels;
mod page;
mod raster;

use std::io::Write;
use std::path::{Path, PathBuf};

use maud::Markup;

use self::chart::Chart;
use self::groups::{Group, groups};
use self::heat_map::{Cell, HeatMap};
use self::history::{History, TARGET, name_apart};
use self::page::Figure;
use crate::error::{Error, Result};
use crate::files;
use crate::train::{FoundRun, runs_beneath};

/// Reads the runs in `folders`, each a run folder or one with run folders at most three levels beneath it, and writes
/// `report.html` and its figures, each as SVG and PNG, into the folder `out`. Returns the page's path.
///
/// Runs whose settings differ in their seeds alone are shown by mean and standard deviation too.
///
/// # Errors
/// If a folder holds no run or a damaged log, or `out` cannot be written.
pub fn write(folders: &[PathBuf], out: &Path) -> Result<PathBuf> {
    if folders.is_empty() {
        return Err(Error::setting("runs", "at least one run folder", "none", ""));
    }
    let mut runs = Vec::new();
    for folder in folders {
        for found in runs_beneath(folder)? {
            let name = if found.path == *folder || folders.len() == 1 {
                found.name
            } else {
                format!("{}/{}", own_name(folder), found.name)
            };
            runs.push(History::read(FoundRun { name, ..found })?);
        }
    }
    name_apart(&mut runs);
    let groups = groups(&runs);
    let figures = figures(&runs, &groups);
    std::fs::create_dir_all(out).map_err(|source| Error::file("create", out, source))?;
    for figure in figures.iter().chain(&[examples_figure(&runs)]).filter(|figure| !figure.caption.is_empty())
    {
        let svg = standalone(&figure.svg);
        files::replace(&out.join(format!("{}.svg", figure.name)), |file| file.write_all(svg.as_bytes()))?;
        let png = raster::png(&svg)?;
        files::replace(&out.join(format!("{}.png", figure.name)), |file| file.write_all(&png))?;
    }
    let path = out.join("report.html");
    let page = page::html(&runs, &groups, &figures).into_string();
    files::replace(&path, |file| file.write_all(page.as_bytes()))?;
    Ok(path)
}

/// The name of a folder, however it was given.
fn own_name(folder: &Path) -> String {
    let whole = folder.canonicalize().unwrap_or_else(|_| folder.to_owned());
    whole.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// The pictures of the page, in its order.
fn figures(runs: &[History], groups: &[Group<'_>]) -> Vec<Figure> {
    let mut figures = vec![
        Figure {
            name: "loss",
            caption:
                "Mean cross entropy over the label tokens of each step; the strong line is its moving mean."
                    .into(),
            svg: Chart::new("Training loss", "step")
                .series(runs, |run| run.curve(|step| Some(step.loss)))
                .smoothed()
                .svg(),
        },
        Figure {
            name: "metrics",
            caption: format!(
                "What validation measured{}; the ring marks the best step, whose prompt is kept. The axis spans the values and \
                 need not begin at 0.",
                measured(runs)
            ),
            svg: metrics_chart(runs).svg(),
        },
    ];
    if let Some(chart) = attention_chart(runs) {
        figures.push(Figure {
            name: "attention-by-step",
            caption: "The mixture's weights, averaged over the validation rows. The axis spans the values and need not begin \
                      at 0."
                .into(),
            svg: chart.svg(),
        });
    }
    figures.push(Figure {
        name: "gradient",
        caption: "L2 norm of the gradient before the clip, on a logarithmic scale.".into(),
        svg: Chart::new("Gradient norm", "step")
            .logarithmic()
            .series(runs, |run| run.curve(|step| Some(step.gradient_norm)))
            .smoothed()
            .svg(),
    });
    figures.push(learning_rate_figure(runs));
    figures.extend(attention_figures(runs, groups));
    figures.extend(similarity_figure(runs));
    figures
}

/// Rates at most that far apart share a linear scale.
const LINEAR_RANGE: f64 = 8.0;

/// The learning rate of one part of one or more runs, by step.
struct Rate<'a> {
    /// The part.
    of: &'static str,
    points: Vec<(u64, f64)>,
    runs: Vec<&'a History>,
}

impl Rate<'_> {
    fn peak(&self) -> f64 {
        self.points.iter().map(|point| point.1).fold(0.0, f64::max)
    }
}

/// The rate of what trains: prompt, scorer, or both where their rates differ. Runs of equal rates share a line.
fn learning_rate_figure(runs: &[History]) -> Figure {
    let mut rates: Vec<Rate<'_>> = Vec::new();
    for run in runs {
        let prompt = run.curve(|step| Some(step.learning_rate));
        let scorer = run.curve(|step| step.scorer_learning_rate);
        // Logs of older versions do not have the scorer's.
        let trains_scorer = run.saved.trains_scorer() && !scorer.is_empty();
        let curves = match (run.saved.trains_prompt(), trains_scorer) {
            (true, true) if prompt == scorer => vec![("prompt and scorer", prompt)],
            (true, true) => vec![("prompt", prompt), ("scorer", scorer)],
            (false, true) => vec![("scorer", scorer)],
            (true, false) => vec![("prompt", prompt)],
            (false, false) => Vec::new(),
        };
        for (of, points) in curves {
            match rates.iter_mut().find(|other| other.of == of && other.points == points) {
                Some(rate) => rate.runs.push(run),
                None => rates.push(Rate { of, points, runs: vec![run] }),
            }
        }
    }
    let mut parts: Vec<&str> = Vec::new();
    for rate in &rates {
        if !parts.contains(&rate.of) {
            parts.push(rate.of);
        }
    }
    let peaks: Vec<f64> = rates.iter().map(Rate::peak).filter(|peak| *peak > 0.0).collect();
    let least = peaks.iter().copied().fold(f64::INFINITY, f64::min);
    let most = peaks.iter().copied().fold(0.0, f64::max);
    let mut chart = Chart::new("Learning rate", "step");
    let is_logarithmic = most > LINEAR_RANGE * least;
    if is_logarithmic {
        chart = chart.logarithmic();
    }
    for (name, rate) in rate_names(&rates, runs.len()).into_iter().zip(rates) {
        chart.add(name, rate.points, None);
    }
    let of_what = match &parts[..] {
        ["scorer"] => "The scorer's learning rate; no prompt trains.".to_owned(),
        ["prompt"] => "The prompt's learning rate.".to_owned(),
        ["prompt and scorer"] => "The learning rate of prompt and scorer.".to_owned(),
        [] => "Nothing trains at a rate that the log knows.".to_owned(),
        _ => "The learning rates of what trains.".to_owned(),
    };
    let scale = if is_logarithmic { " The scale is logarithmic and leaves out 0." } else { "" };
    let caption = format!("{of_what} Warm-up, then the schedule.{scale}");
    Figure { name: "learning-rate", caption, svg: chart.svg() }
}

/// The names of the lines of `rates`, of so many runs in all.
fn rate_names(rates: &[Rate<'_>], runs: usize) -> Vec<String> {
    let name = |rate: &Rate<'_>| match rate.runs.len() {
        all if all == runs => rate.of.to_owned(),
        _ => format!("{}: {}", groups::name(&rate.runs), rate.of),
    };
    let names: Vec<String> = rates.iter().map(name).collect();
    let is_twice = |name: &String| names.iter().filter(|other| *other == name).count() > 1;
    // Runs that are called alike together may have several rates.
    let told_apart = |(name, rate): (&String, &Rate<'_>)| match is_twice(name) {
        true => {
            let steps = rate.points.last().map_or(0, |point| point.0);
            format!("{name}, at most {:.1e}, {steps} steps", rate.peak())
        }
        false => name.clone(),
    };
    names.iter().zip(rates).map(told_apart).collect()
}

/// The names of all metrics, for a caption.
fn measured(runs: &[History]) -> String {
    let mut names: Vec<String> = Vec::new();
    for name in runs.iter().flat_map(History::metrics) {
        if !names.contains(&name) {
            names.push(name);
        }
    }
    if names.is_empty() { String::new() } else { format!(": {}", names.join(", ")) }
}

fn metrics_chart(runs: &[History]) -> Chart {
    let mut chart = Chart::new("Validation", "step").dotted();
    for run in runs {
        for metric in run.metrics() {
            let name = if runs.len() == 1 { metric.clone() } else { format!("{}: {metric}", run.name) };
            let points = run.validations.iter();
            let points = points.filter_map(|validation| Some((validation.step, validation.metric(&metric)?)));
            chart.add(name, points.collect(), run.best().map(|best| best.step));
        }
    }
    chart
}

/// One run's mixture as it moves; with several runs there would be too many lines.
fn attention_chart(runs: &[History]) -> Option<Chart> {
    let [run] = runs else { return None };
    let names = run.columns();
    if names.is_empty() {
        return None;
    }
    let mut chart = Chart::new("Attention by step", "step").dotted();
    for (index, name) in names.into_iter().enumerate() {
        let points = run.validations.iter();
        let points =
            points.filter_map(|validation| Some((validation.step, *validation.spread.mean.get(index)?)));
        chart.add(name, points.collect(), None);
    }
    Some(chart)
}

/// Targets x sources: the mixtures at the best steps, averaged over runs that differ in their seeds alone; and where there are
/// such runs, each run's own.
fn attention_figures(runs: &[History], groups: &[Group<'_>]) -> Vec<Figure> {
    let mixing: Vec<&History> =
        runs.iter().filter(|run| run.best().is_some_and(|best| !best.spread.mean.is_empty())).collect();
    if mixing.is_empty() {
        return Vec::new();
    }
    let columns = columns(&mixing);
    let singles: Vec<Group<'_>> =
        mixing.iter().map(|run| Group { name: run.name.clone(), runs: vec![run] }).collect();
    let mixed_of = |group: &Group<'_>| group.runs.iter().filter(|run| !run.attention().is_empty()).count();
    let repeated = groups.iter().map(mixed_of).max().unwrap_or(0) > 1;
    let about = about_weights(&mixing);
    let map = |groups: &[Group<'_>], title| {
        let rows = groups.iter().flat_map(|group| attention_rows(group, groups.len(), &columns)).collect();
        HeatMap::new(title, columns.clone(), rows).svg()
    };
    let mut figures = Vec::new();
    if repeated {
        let counts: Vec<usize> = groups.iter().map(mixed_of).filter(|count| *count > 1).collect();
        let (least, most) =
            (counts.iter().min().copied().unwrap_or(0), counts.iter().max().copied().unwrap_or(0));
        let count = if least == most { format!("{most}") } else { format!("{least} to {most}") };
        figures.push(Figure {
            name: "attention",
            caption: format!(
                "Rows are targets, columns what each mixes: the mean weight over the validation rows at the best step, \
                 averaged over {count} runs that differ in their seeds alone, ± its standard deviation over those runs. {about}"
            ),
            svg: map(groups, "Attention: targets and sources, mean over seeds"),
        });
    }
    figures.push(Figure {
        name: if repeated { "attention-by-run" } else { "attention" },
        caption: format!(
            "Rows are targets, columns what each mixes: the mean weight over the validation rows at the best step. {about}"
        ),
        svg: map(&singles, if repeated { "Attention: every run" } else { "Attention: targets and sources" }),
    });
    figures
}

/// A row of a heat map for each task of a group: what its runs mix.
fn attention_rows(group: &Group<'_>, groups: usize, columns: &[String]) -> Vec<(String, Vec<Option<Cell>>)> {
    let mut tasks: Vec<Option<&str>> = Vec::new();
    for (task, _) in group.runs.iter().flat_map(|run| run.attention()) {
        if !tasks.contains(&task) {
            tasks.push(task);
        }
    }
    let row = |task: Option<&str>| {
        let weights: Vec<Vec<Option<f64>>> = group
            .runs
            .iter()
            .filter_map(|run| {
                let own = run.attention().into_iter().find(|(other, _)| *other == task)?;
                Some(run.by_column(own.1, columns))
            })
            .collect();
        let cell = |column: usize| {
            let values: Vec<f64> = weights.iter().filter_map(|weights| weights[column]).collect();
            let spread = crate::evaluate::Spread::new("", &values);
            let deviation = (values.len() > 1).then_some(spread.deviation);
            (!values.is_empty()).then_some(Cell { value: spread.mean, deviation })
        };
        let name = match task {
            None => group.name.clone(),
            Some(task) if groups == 1 => task.to_owned(),
            Some(task) => format!("{}: {task}", group.name),
        };
        (name, (0..columns.len()).map(cell).collect())
    };
    tasks.into_iter().map(row).collect()
}

/// What equal weights would be in rows of these runs, and what becomes of the target prompt.
fn about_weights(mixing: &[&History]) -> String {
    let mut counts: Vec<usize> = mixing.iter().map(|run| run.columns().len()).collect();
    counts.sort_unstable();
    counts.dedup();
    let equal = match &counts[..] {
        [count] => format!("equal weights would be {:.2}", 1.0 / *count as f64),
        counts => {
            let each = counts.iter().map(|count| format!("{:.2} in a row of {count}", 1.0 / *count as f64));
            format!("equal weights would be {}", each.collect::<Vec<_>>().join(", "))
        }
    };
    let added = match mixing.iter().filter(|run| run.saved.trains_prompt()).count() {
        0 => "",
        with if with == mixing.len() => " The target prompt is added once more on top of its weight.",
        _ => {
            " A target prompt is added once more on top of its weight; rows without one mix their sources alone."
        }
    };
    format!("A row sums to 1; {equal}.{added}")
}

/// The union of what the runs mix, in order, their own targets last.
fn columns(runs: &[&History]) -> Vec<String> {
    let mut columns: Vec<String> = Vec::new();
    for name in runs.iter().flat_map(|run| run.columns()) {
        if !columns.contains(&name) {
            columns.push(name);
        }
    }
    columns.sort_by_key(|name| name == TARGET);
    columns
}

/// The mixture of single examples; without a caption if there are none.
fn examples_figure(runs: &[History]) -> Figure {
    let shown: Vec<&History> = runs.iter().filter(|run| run.explains()).collect();
    let columns = columns(&shown);
    let mut rows = Vec::new();
    for run in &shown {
        for example in &run.examples {
            let name = if runs.len() == 1 { String::new() } else { format!("{}: ", run.name) };
            let name = format!("{name}{}", example.source);
            let cells = run.by_column(&example.attention, &columns);
            rows.push((name, cells.into_iter().map(|weight| weight.map(Cell::of)).collect()));
        }
    }
    rows.truncate(page::MAX_EXAMPLES);
    let caption = if rows.is_empty() { String::new() } else { "Attention of single examples".to_owned() };
    Figure {
        name: "examples",
        svg: HeatMap::new("Attention of single examples", columns, rows).svg(),
        caption,
    }
}

/// Cosine similarity between the mean rows of all prompts at hand.
fn similarity_figure(runs: &[History]) -> Option<Figure> {
    let mut prompts: Vec<(String, &crate::prompts::Prompt)> = Vec::new();
    for (name, prompt) in runs.iter().flat_map(|run| &run.source_prompts) {
        if prompts.iter().all(|(known, other)| known != name && other.values() != prompt.values()) {
            prompts.push((name.clone(), prompt));
        }
    }
    for run in runs {
        for (task, prompt) in &run.target_prompts {
            let name = task.as_deref().unwrap_or(&run.name);
            prompts.push((format!("{name} (learnt)"), prompt));
        }
    }
    let width = prompts.first().map_or(0, |(_, prompt)| prompt.width());
    prompts.retain(|(_, prompt)| prompt.width() == width);
    if prompts.len() < 2 {
        return None;
    }
    let rows = prompts.iter().map(|(name, prompt)| {
        let similarity = |other| Some(Cell::of(crate::train::similarity(prompt, other)));
        let cells = prompts.iter().map(|(_, other)| similarity(other)).collect();
        (name.clone(), cells)
    });
    let rows = rows.collect();
    let columns = prompts.iter().map(|(name, _)| name.clone()).collect();
    Some(Figure {
        name: "similarity",
        caption: "Cosine of the angle between the prompts' mean rows: 1 for the same direction, 0 for none in common, \
                  orange below 0."
            .into(),
        svg: HeatMap::new("Prompt similarity", columns, rows).svg(),
    })
}

/// A picture as a file of its own.
fn standalone(svg: &Markup) -> String {
    svg.0.replacen("<svg ", "<svg xmlns=\"http://www.w3.org/2000/svg\" ", 1)
}
