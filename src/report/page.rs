//! The page: everything in one file, nothing fetched.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::groups::Group;
use super::heat_map::{colour, ink, shown};
use super::history::{History, json, text};
use super::labels::shortened;
use crate::evaluate::Spread;

/// A picture, with what a reader should know to read it.
pub(super) struct Figure {
    /// The name of its files.
    pub(super) name: &'static str,
    pub(super) caption: String,
    pub(super) svg: Markup,
}

/// Examples on the page, of all runs together.
pub(super) const MAX_EXAMPLES: usize = 96;
/// Letters of a prompt's name above its weights.
const MAX_LETTERS: usize = 18;

const STYLE: &str = "
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; }
h1 { font-size: 1.5rem; margin: .5rem 0 0; overflow-wrap: anywhere; }
h3 { font-size: 1rem; margin: 1.2rem 0 .4rem; overflow-wrap: anywhere; }
h2 { font-size: 1.15rem; margin: 2.2rem 0 .6rem; border-bottom: 1px solid #ddd; padding-bottom: .2rem; }
p { margin: .3rem 0 .8rem; color: #444; }
nav a { display: inline-block; padding: .5rem .9rem .5rem 0; color: #0059a0; }
.figures { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 400px), 1fr)); gap: 1rem; }
figure { margin: 0; border: 1px solid #e4e4e4; border-radius: 6px; padding: .5rem; min-width: 0; }
figure svg { width: 100%; height: auto; display: block; }
figure svg text { font-family: system-ui, sans-serif; }
figcaption { font-size: .85rem; color: #555; padding: .4rem .2rem 0; }
.wide { overflow-x: auto; }
.wide svg { width: auto; max-width: none; }
.table { overflow-x: auto; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }
th, td { text-align: left; padding: .35rem .7rem; border-bottom: 1px solid #eee; vertical-align: top; }
thead th { border-bottom: 2px solid #ccc; background: #fff; }
td.number, th.number { text-align: right; white-space: nowrap; }
td.name { min-width: 14rem; }
td small { color: #666; white-space: normal; display: block; }
td.differs { font-weight: bold; }
td.cell { text-align: center; min-width: 3.2rem; border: 2px solid #fff; }
.examples td.text { min-width: 15rem; overflow-wrap: anywhere; }
.settings td { overflow-wrap: anywhere; min-width: 7rem; }
footer { margin: 3rem 0 1rem; font-size: .85rem; color: #666; }
@media (max-width: 640px) {
  .cards, .cards tbody { display: block; }
  .cards thead { display: none; }
  .cards tr { display: flex; flex-wrap: wrap; border-bottom: 1px solid #ccc; padding: .5rem 0; }
  .cards td, .cards td.number { border: 0; padding: .2rem .9rem .2rem 0; text-align: left; }
  .cards td::before { content: attr(data-label); display: block; font-size: .72rem; opacity: .75; }
  .cards td { overflow-wrap: anywhere; }
  .cards td.name, .cards td.text { flex-basis: 100%; }
  .cards td.cell { padding: .2rem .5rem; border: 1px solid #fff; }
  figure { padding: .5rem 0; border-width: 1px 0; border-radius: 0; }
}
@media print { nav { display: none; } figure { break-inside: avoid; } }
";

/// The whole page.
pub(super) fn html(runs: &[History], groups: &[Group<'_>], figures: &[Figure]) -> Markup {
    let title = match runs {
        [run] => run.name.clone(),
        runs => format!("{} runs", runs.len()),
    };
    let of =
        |names: &'static [&'static str]| figures.iter().filter(move |figure| names.contains(&figure.name));
    let has_attention = of(&["attention"]).next().is_some();
    let has_examples = runs.iter().any(|run| !run.examples.is_empty());
    let has_similarity = of(&["similarity"]).next().is_some();
    html! {
        (DOCTYPE)
        html lang="en" {
            head {
                meta charset="utf-8";
                meta name="viewport" content="width=device-width, initial-scale=1";
                title { "promptmix: " (title) }
                style { (PreEscaped(STYLE)) }
            }
            body {
                h1 { (title) }
                nav {
                    a href="#results" { "Results" }
                    a href="#curves" { "Curves" }
                    @if has_attention { a href="#attention" { "Attention" } }
                    @if has_examples { a href="#examples" { "Examples" } }
                    @if has_similarity { a href="#similarity" { "Similarity" } }
                    a href="#settings" { "Settings" }
                }
                h2 id="results" { "Results" }
                (repeated(groups))
                (results(runs))
                h2 id="curves" { "Curves" }
                div.figures {
                    @for figure in of(&["loss", "metrics", "attention-by-step", "gradient", "learning-rate"]) {
                        figure { (figure.svg) figcaption { (figure.caption) } }
                    }
                }
                @if has_attention {
                    h2 id="attention" { "Attention" }
                    @for figure in of(&["attention", "attention-by-run"]) {
                        figure { div.wide { (figure.svg) } figcaption { (figure.caption) } }
                    }
                }
                @if has_examples {
                    h2 id="examples" { "Examples" }
                    (examples(runs))
                }
                @if has_similarity {
                    h2 id="similarity" { "Prompt similarity" }
                    @for figure in of(&["similarity"]) {
                        figure { div.wide { (figure.svg) } figcaption { (figure.caption) } }
                    }
                }
                h2 id="settings" { "Settings" }
                (settings(runs))
                footer { "Written by promptmix " (env!("CARGO_PKG_VERSION")) "." }
            }
        }
    }
}

/// Means and deviations of runs that differ in their seeds alone; nothing where there are none.
fn repeated(groups: &[Group<'_>]) -> Markup {
    let repeated: Vec<&Group<'_>> = groups.iter().filter(|group| group.runs.len() > 1).collect();
    if repeated.is_empty() {
        return html! {};
    }
    html! {
        h3 { "Over seeds" }
        div.table { table.cards {
            thead { tr {
                th { "runs" } th.number { "count" } th { "task" } th { "method" }
                th.number { "best validation" } th.number { "test" } th.number { "numbers trained" }
            } }
            tbody {
                @for group in repeated {
                    @let first = group.runs[0];
                    tr {
                        td.name data-label="runs" title=(names(group)) { (breakable(&group.name)) }
                        td.number data-label="count" { (group.runs.len()) }
                        td data-label="task" { (breakable(&first.saved.config.task)) }
                        td data-label="method" { (text(&json(&first.saved.config.method))) }
                        td.number data-label="best validation" { (validation_spread(group)) }
                        td.number data-label="test" { (test_spread(group)) }
                        td.number data-label="numbers trained" { (trained(first)) }
                    }
                }
            }
        } }
        p {
            "Mean and standard deviation, of a sample, over runs whose settings differ in seed and data-seed alone."
        }
        h3 { "Every run" }
    }
}

fn names(group: &Group<'_>) -> String {
    group.runs.iter().map(|run| run.name.as_str()).collect::<Vec<_>>().join(", ")
}

/// Metrics of a group's best validations.
fn validation_spread(group: &Group<'_>) -> Markup {
    let metrics = group.runs.iter().map(|run| run.metrics()).find(|metrics| !metrics.is_empty());
    let metrics = metrics.unwrap_or_default();
    let mean = (metrics.len() > 1).then(|| "mean".to_owned());
    spreads(group, metrics.iter().cloned().chain(mean), |run, metric| {
        let best = run.best()?;
        let found = best.metric(metric);
        if metric == "mean" { found.or(Some(best.mean)) } else { found }
    })
}

/// Metrics of a group on test rows. Numbers that others than the best states or another decoding gave are left out.
fn test_spread(group: &Group<'_>) -> Markup {
    let sound = |run: &History| run.test.as_ref().is_some_and(|test| test.remark.is_none());
    let with = group.runs.iter().find(|run| sound(run));
    let metrics = with.and_then(|run| run.test.as_ref()).map(|test| test.metrics.clone()).unwrap_or_default();
    spreads(group, metrics.into_iter().map(|(name, _)| name), |run, metric| {
        let test = run.test.as_ref().filter(|_| sound(run))?;
        test.metrics.iter().find(|(name, _)| name == metric)?.1
    })
}

/// A line a metric: mean ± standard deviation, and of how many runs where some lack it.
fn spreads(
    group: &Group<'_>,
    metrics: impl Iterator<Item = String>,
    value: impl Fn(&History, &str) -> Option<f64>,
) -> Markup {
    let lines: Vec<(String, Option<(Spread, usize)>)> = metrics
        .map(|metric| {
            let spread = group.spread(|run| value(run, &metric).filter(|value| value.is_finite()));
            (metric, spread)
        })
        .collect();
    html! {
        @if lines.is_empty() { "–" }
        @for (index, (metric, spread)) in lines.iter().enumerate() {
            @if index > 0 { br; }
            (metric) " "
            @match spread {
                None => "undefined",
                Some((Spread { mean, .. }, 1)) => { (format!("{mean:.4}")) " (1 run)" }
                Some((Spread { mean, deviation, .. }, count)) => {
                    (format!("{mean:.4} ± {deviation:.4}"))
                    @if *count < group.runs.len() { (format!(" ({count} runs)")) }
                }
            }
        }
    }
}

fn results(runs: &[History]) -> Markup {
    let is_shared = runs.iter().any(|run| run.steps.iter().any(|step| step.sharing_runs > 1));
    let has_test = runs.iter().any(|run| run.test.is_some());
    html! {
        div.table { table.cards {
            thead { tr {
                th { "run" } th { "task" } th { "method" }
                th.number { "best validation" } th.number { "test" } th.number { "at step" } th.number { "steps" }
                th.number { "numbers trained" } th.number { "last loss" } th.number { "ms a step" }
                th.number { "no label" }
            } }
            tbody {
                @for run in runs {
                    @let best = run.best();
                    tr {
                        td.name data-label="run" { (breakable(&run.name)) }
                        td data-label="task" { (breakable(&run.saved.config.task)) }
                        td data-label="method" { (text(&json(&run.saved.config.method))) }
                        td.number data-label="best validation" { @match best {
                            None => "none yet",
                            Some(best) => {
                                (values(&best.metrics))
                                @if best.metrics.len() > 1 { br; "mean " (format!("{:.4}", best.mean)) }
                            }
                        } }
                        td.number data-label="test" { @match &run.test {
                            None => "–",
                            Some(test) => {
                                (values(&test.metrics))
                                @if let Some(remark) = &test.remark { small { (remark) } }
                            }
                        } }
                        td.number data-label="at step" { (best.map_or("–".into(), |best| best.step.to_string())) }
                        td.number data-label="steps" { (run.steps.last().map_or(0, |step| step.step)) }
                        td.number data-label="numbers trained" { (trained(run)) }
                        td.number data-label="last loss" {
                            (run.steps.last().map_or("–".into(), |step| format!("{:.4}", step.loss)))
                        }
                        td.number data-label="ms a step" { (median_milliseconds(run)) }
                        td.number data-label="no label" {
                            (best.map_or("–".into(), |best| best.invalid.to_string()))
                            @if let Some(invalid) = run.test.as_ref().and_then(|test| test.invalid) {
                                br; "test " (invalid)
                            }
                        }
                    }
                }
            }
        } }
        p {
            "“No label” counts answers at the best step that are none of the task’s labels."
            @if !has_test { " Test rows come in here when promptmix evaluate --split test has evaluated them." }
            @if is_shared {
                " Where a step is “for” several runs, they shared its batch: the time is that of all of them together."
            }
        }
    }
}

/// A name that may go on in the next line after a part of it.
fn breakable(name: &str) -> Markup {
    html! {
        @for part in name.split_inclusive(['/', ',', '_']) { (part) wbr; }
    }
}

/// A line a metric.
fn values(metrics: &[(String, Option<f64>)]) -> Markup {
    html! {
        @for (index, (metric, value)) in metrics.iter().enumerate() {
            @if index > 0 { br; }
            (metric) " " (value.map_or("undefined".into(), |value| format!("{value:.4}")))
        }
    }
}

/// How many numbers a run trains, with its thousands apart.
fn trained(run: &History) -> String {
    let Some(numbers) = run.trained else { return "–".into() };
    let digits = numbers.to_string();
    let groups: Vec<&str> = (0..digits.len().div_ceil(3))
        .rev()
        .map(|group| &digits[digits.len().saturating_sub(3 * group + 3)..digits.len() - 3 * group])
        .collect();
    groups.join(",")
}

/// The median time of a step, and of how many runs that step was.
fn median_milliseconds(run: &History) -> String {
    let mut times: Vec<(f64, usize)> =
        run.steps.iter().map(|step| (step.milliseconds, step.sharing_runs)).collect();
    times.sort_by(|one, other| one.0.total_cmp(&other.0));
    match times.get(times.len() / 2) {
        None => "–".into(),
        Some((time, 0 | 1)) => format!("{time:.0}"),
        Some((time, runs)) => format!("{time:.0} for {runs} runs"),
    }
}

fn examples(runs: &[History]) -> Markup {
    let each = MAX_EXAMPLES / runs.len().max(1);
    html! {
        p {
            "The first validation rows as answered at the best step"
            @if runs.iter().flat_map(|run| &run.examples).any(|example| example.label.is_some()) {
                ", beside the label of each; an answer that differs from it is bold"
            }
            @if runs.iter().any(History::explains) {
                ", and the weight that each prompt had in the row’s mixture: a row of weights sums to 1"
            }
            "."
        }
        @for run in runs.iter().filter(|run| !run.examples.is_empty()) {
            @let prompts = shortened(&run.columns(), MAX_LETTERS);
            @let has_labels = run.examples.iter().any(|example| example.label.is_some());
            @if runs.len() > 1 { h3 { (run.name) } }
            @if let Some(spread) = run.attention_spread() { p { (spread) } }
            div.table { table.examples.cards {
                thead { tr {
                    th { "text" } th { "answer" }
                    @if has_labels { th { "label" } }
                    @for (name, short) in run.columns().iter().zip(&prompts) { th title=(name) { (short) } }
                } }
                tbody {
                    @for example in run.examples.iter().take(each.max(4)) {
                        tr {
                            td.text { (example.source) }
                            @let differs = example.label.as_ref().is_some_and(|label| *label != example.prediction);
                            td class=[differs.then_some("differs")] data-label="answer" { (example.prediction) }
                            @if has_labels { td data-label="label" { (example.label.as_deref().unwrap_or("–")) } }
                            @for (weight, name) in example.attention.iter().zip(&prompts) {
                                td.cell data-label=(name) style=(format!(
                                    "background:{};color:{}", colour(*weight), ink(Some(*weight))
                                )) { (shown(Some(*weight))) }
                            }
                        }
                    }
                }
            } }
        }
    }
}

/// What all runs share once, and what differs a column a run.
fn settings(runs: &[History]) -> Markup {
    let configs: Vec<serde_json::Map<String, Value>> = runs
        .iter()
        .map(|run| match serde_json::to_value(&run.saved.config) {
            Ok(Value::Object(fields)) => fields,
            _ => serde_json::Map::new(),
        })
        .collect();
    let keys: Vec<&String> = configs.first().map(|config| config.keys().collect()).unwrap_or_default();
    let (shared, differing): (Vec<&String>, Vec<&String>) = keys
        .into_iter()
        .partition(|key| configs.iter().all(|config| config.get(*key) == configs[0].get(*key)));
    html! {
        @if !differing.is_empty() {
            p { "What differs between the runs:" }
            div.table { table.settings {
                thead { tr { th { "setting" } @for run in runs { th { (run.name) } } } }
                tbody { @for key in differing { tr {
                    th { (key) }
                    @for config in &configs { td { (config.get(key).map_or_else(String::new, text)) } }
                } } }
            } }
            p { "What they share:" }
        }
        div.table { table.settings {
            tbody {
                @for key in shared {
                    tr { th { (key) } td { (configs[0].get(key).map_or_else(String::new, text)) } }
                }
                @for run in runs.iter().take(1) {
                    tr { th { "model SHA-256" } td { (run.saved.model_hash) } }
                    tr { th { "promptmix" } td { (run.saved.promptmix) } }
                }
            }
        } }
    }
}
