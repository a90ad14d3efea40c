//! Pictures and tables of runs: one HTML page that needs nothing else, and its figures as SVG and PNG beside it.
//!
//! Everything is read from run folders; no model is loaded. Not for judging a run: that is evaluation.

mod chart;
mod heat_map;
mod history;
mod page;
mod raster;

use std::io::Write;
use std::path::{Path, PathBuf};

use maud::Markup;

use self::chart::Chart;
use self::heat_map::HeatMap;
use self::history::{History, name_apart};
use crate::error::{Error, Result};
use crate::files;

/// What the mixture's own part is called.
const TARGET: &str = "own target";

/// A picture, with what a reader should know to read it.
struct Figure {
    /// The name of its files.
    name: &'static str,
    caption: String,
    svg: Markup,
}

/// Reads the runs in `folders` and writes `report.html` and its figures, each as SVG and PNG, into the folder `out`.
/// Returns the page's path.
///
/// # Errors
/// If a folder holds no run or a damaged log, or `out` cannot be written.
pub fn write(folders: &[PathBuf], out: &Path) -> Result<PathBuf> {
    if folders.is_empty() {
        return Err(Error::setting("runs", "at least one run folder", "none", ""));
    }
    let mut runs = folders.iter().map(|folder| History::read(folder)).collect::<Result<Vec<_>>>()?;
    name_apart(&mut runs);
    let figures = figures(&runs);
    std::fs::create_dir_all(out).map_err(|source| Error::file("create", out, source))?;
    for figure in figures.iter().chain(&[examples_figure(&runs)]).filter(|figure| !figure.caption.is_empty())
    {
        let svg = standalone(&figure.svg);
        files::replace(&out.join(format!("{}.svg", figure.name)), |file| file.write_all(svg.as_bytes()))?;
        let png = raster::png(&svg)?;
        files::replace(&out.join(format!("{}.png", figure.name)), |file| file.write_all(&png))?;
    }
    let path = out.join("report.html");
    let page = page::html(&runs, &figures).into_string();
    files::replace(&path, |file| file.write_all(page.as_bytes()))?;
    Ok(path)
}

/// The pictures of the page, in its order.
fn figures(runs: &[History]) -> Vec<Figure> {
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
            caption: "What validation measured; the ring marks the best step, whose prompt is kept.".into(),
            svg: metrics_chart(runs).svg(),
        },
    ];
    if let Some(chart) = attention_chart(runs) {
        figures.push(Figure {
            name: "attention-by-step",
            caption: "The mixture's weights, averaged over the validation rows.".into(),
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
    figures.push(Figure {
        name: "learning-rate",
        caption: "The prompt's learning rate: warm-up, then the schedule.".into(),
        svg: Chart::new("Learning rate", "step")
            .series(runs, |run| run.curve(|step| Some(step.learning_rate)))
            .svg(),
    });
    figures.extend(attention_figure(runs));
    figures.extend(similarity_figure(runs));
    figures
}

fn metrics_chart(runs: &[History]) -> Chart {
    let mut chart = Chart::new("Validation", "step").unit_interval();
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
    let mut chart = Chart::new("Attention by step", "step").unit_interval();
    for (index, name) in names.into_iter().enumerate() {
        let points = run.validations.iter();
        let points =
            points.filter_map(|validation| Some((validation.step, *validation.attention.get(index)?)));
        chart.add(name, points.collect(), None);
    }
    Some(chart)
}

/// Targets x sources: every run's mixture at its best step.
fn attention_figure(runs: &[History]) -> Option<Figure> {
    let mixing: Vec<&History> =
        runs.iter().filter(|run| run.best().is_some_and(|best| !best.attention.is_empty())).collect();
    let columns = columns(&mixing);
    let rows = mixing.iter().map(|run| {
        let weights = run.best().map(|best| best.attention.as_slice()).unwrap_or_default();
        (run.name.clone(), run.by_column(weights, &columns))
    });
    let rows: Vec<_> = rows.collect();
    (!rows.is_empty()).then(|| Figure {
        name: "attention",
        caption: format!(
            "Rows are targets, columns what each mixes: the mean weight over the validation rows at the best step. A row \
             sums to 1; equal weights would be {:.2}. The target prompt is added once more on top of its weight.",
            1.0 / columns.len().max(1) as f64
        ),
        svg: HeatMap::new("Attention: targets and sources", columns, rows).svg(),
    })
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
            rows.push((name, run.by_column(&example.attention, &columns)));
        }
    }
    rows.truncate(page::MOST_EXAMPLES);
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
        if let Some(prompt) = &run.target_prompt {
            prompts.push((format!("{} (learnt)", run.name), prompt));
        }
    }
    let width = prompts.first().map_or(0, |(_, prompt)| prompt.width());
    prompts.retain(|(_, prompt)| prompt.width() == width);
    if prompts.len() < 2 {
        return None;
    }
    let rows = prompts.iter().map(|(name, prompt)| {
        let cells = prompts.iter().map(|(_, other)| Some(crate::train::similarity(prompt, other))).collect();
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

/// A coordinate, to a hundredth.
fn number(value: f64) -> String {
    let text = format!("{value:.2}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
}

/// `text`, or its beginning and an ellipsis if it has more than `most` letters.
fn cut(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        None => text.to_owned(),
        Some(_) => text.chars().take(most.saturating_sub(1)).chain(['…']).collect(),
    }
}
