//! The page: everything in one file, nothing fetched.

use maud::{DOCTYPE, Markup, PreEscaped, html};
use serde_json::Value;

use super::heat_map::{colour, ink, shown};
use super::history::History;
use super::{Figure, cut};

/// Examples on the page, of all runs together.
pub(super) const MOST_EXAMPLES: usize = 96;

const STYLE: &str = "
:root { color-scheme: light; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1180px; padding: 1rem; font: 16px/1.5 system-ui, sans-serif; color: #222; background: #fff; }
h1 { font-size: 1.5rem; margin: .5rem 0 0; overflow-wrap: anywhere; }
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
  .cards td.text { flex-basis: 100%; }
  .cards td.cell { padding: .2rem .5rem; border: 1px solid #fff; }
  figure { padding: .5rem 0; border-width: 1px 0; border-radius: 0; }
}
@media print { nav { display: none; } figure { break-inside: avoid; } }
";

/// The whole page.
pub(super) fn html(runs: &[History], figures: &[Figure]) -> Markup {
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
                (results(runs))
                h2 id="curves" { "Curves" }
                div.figures {
                    @for figure in of(&["loss", "metrics", "attention-by-step", "gradient", "learning-rate"]) {
                        figure { (figure.svg) figcaption { (figure.caption) } }
                    }
                }
                @if has_attention {
                    h2 id="attention" { "Attention" }
                    @for figure in of(&["attention"]) {
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

fn results(runs: &[History]) -> Markup {
    html! {
        div.table { table.cards {
            thead { tr {
                th { "run" } th { "task" } th { "method" }
                th.number { "best validation" } th.number { "at step" } th.number { "steps" }
                th.number { "last loss" } th.number { "ms a step" } th.number { "no label" }
            } }
            tbody {
                @for run in runs {
                    @let best = run.best();
                    tr {
                        td data-label="run" { (run.name) }
                        td data-label="task" { (run.saved.config.task) }
                        td data-label="method" {
                            (text(&serde_json::to_value(run.saved.config.method).unwrap_or_default()))
                        }
                        td.number data-label="best validation" { @match best {
                            None => "none yet",
                            Some(best) => {
                                @for (index, (metric, value)) in best.metrics.iter().enumerate() {
                                    @if index > 0 { br; }
                                    (metric) " " (value.map_or("undefined".into(), |value| format!("{value:.4}")))
                                }
                                @if best.metrics.len() > 1 { br; "mean " (format!("{:.4}", best.mean)) }
                            }
                        } }
                        td.number data-label="at step" { (best.map_or("–".into(), |best| best.step.to_string())) }
                        td.number data-label="steps" { (run.steps.last().map_or(0, |step| step.step)) }
                        td.number data-label="last loss" {
                            (run.steps.last().map_or("–".into(), |step| format!("{:.4}", step.loss)))
                        }
                        td.number data-label="ms a step" { (median_milliseconds(run)) }
                        td.number data-label="no label" { (best.map_or("–".into(), |best| best.invalid.to_string())) }
                    }
                }
            }
        } }
        p { "“No label” counts answers at the best step that are none of the task’s labels." }
    }
}

fn median_milliseconds(run: &History) -> String {
    let mut times: Vec<f64> = run.steps.iter().map(|step| step.milliseconds).collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).map_or("–".into(), |time| format!("{time:.0}"))
}

fn examples(runs: &[History]) -> Markup {
    let each = MOST_EXAMPLES / runs.len().max(1);
    html! {
        p {
            "The first validation rows as answered at the best step"
            @if runs.iter().any(History::explains) {
                ", and the weight that each prompt had in the row’s mixture: a row of weights sums to 1"
            }
            "."
        }
        @for run in runs.iter().filter(|run| !run.examples.is_empty()) {
            @if runs.len() > 1 { h3 { (run.name) } }
            @if let Some(spread) = run.attention_spread() { p { (spread) } }
            div.table { table.examples.cards {
                thead { tr {
                    th { "text" } th { "answer" }
                    @for name in run.columns() { th title=(name) { (cut(&name, 18)) } }
                } }
                tbody {
                    @for example in run.examples.iter().take(each.max(4)) {
                        tr {
                            td.text { (example.source) }
                            td data-label="answer" { (example.prediction) }
                            @for (weight, name) in example.attention.iter().zip(run.columns()) {
                                td.cell data-label=(cut(&name, 18)) style=(format!(
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

/// A setting as a reader would write it.
fn text(value: &Value) -> String {
    match value {
        Value::Null => "default".into(),
        Value::String(text) if text.is_empty() => "none".into(),
        Value::String(text) => text.clone(),
        Value::Array(values) if values.is_empty() => "none".into(),
        Value::Array(values) => values.iter().map(text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}
