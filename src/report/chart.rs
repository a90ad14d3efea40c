//! Curves over steps.

use maud::{Markup, html};

use super::history::History;
use super::labels::{number, shortened, width};

const WIDTH: f64 = 480.0;
const PLOT_HEIGHT: f64 = 200.0;
/// Room for the last mark of the axis, which stands below its end.
const RIGHT: f64 = 24.0;
const FONT: f64 = 13.0;
const LEGEND_LINE: f64 = 18.0;
/// Points of a line at most: a pixel's width each is enough.
const MAX_POINTS: usize = 400;
/// Points that get a dot each: more would hide their line.
const MAX_DOTS: usize = 60;
/// Entries of the legend at most: as many as there are kinds of lines.
const MAX_NAMES: usize = COLOURS.len() * DASHES.len();
/// Letters of a name at most.
const MAX_LETTERS: usize = 40;
/// What is left free above and below the lines, as a part of what they span.
const MARGIN: f64 = 0.08;
/// The part of a curve that its moving mean spans.
const SMOOTHED_PART: usize = 20;
/// Colours that the colour-blind can tell apart (Okabe and Ito, 2008), dark enough for lines on white.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#444444"];
/// The same colours come again with another dash.
const DASHES: [&str; 6] = ["none", "7 3", "2 3", "14 4", "8 3 2 3", "8 3 2 3 2 3"];
/// The length of a line in the legend, which shows a whole period of each dash.
const SAMPLE: f64 = 28.0;

/// Lines over steps, with axes and a legend.
pub(super) struct Chart {
    title: &'static str,
    x_title: &'static str,
    lines: Vec<Line>,
    smoothed: bool,
    logarithmic: bool,
    dotted: bool,
}

struct Line {
    name: String,
    points: Vec<(f64, f64)>,
    /// The step that is marked.
    marked: Option<u64>,
}

/// An axis: where its values lie, and which of them have a mark.
struct Axis {
    low: f64,
    high: f64,
    ticks: Vec<f64>,
    /// Between two ticks.
    step: f64,
}

impl Chart {
    pub(super) fn new(title: &'static str, x_title: &'static str) -> Self {
        let lines = Vec::new();
        Self { title, x_title, lines, smoothed: false, logarithmic: false, dotted: false }
    }

    /// Adds a line for each run.
    pub(super) fn series(mut self, runs: &[History], values: impl Fn(&History) -> Vec<(u64, f64)>) -> Self {
        for run in runs {
            self.add(run.name.clone(), values(run), None);
        }
        self
    }

    /// Draws a moving mean over each line.
    pub(super) fn smoothed(mut self) -> Self {
        self.smoothed = true;
        self
    }

    /// Values on a logarithmic scale.
    pub(super) fn logarithmic(mut self) -> Self {
        self.logarithmic = true;
        self
    }

    /// For few values, each of which gets a dot.
    pub(super) fn dotted(mut self) -> Self {
        self.dotted = true;
        self
    }

    /// Adds a line; values that are not finite, or have no logarithm where one is needed, are left out, and a line without
    /// values altogether.
    pub(super) fn add(&mut self, name: String, points: Vec<(u64, f64)>, marked: Option<u64>) {
        let shown = |value: f64| value.is_finite() && (!self.logarithmic || value > 0.0);
        let points = points.into_iter().filter(|(_, value)| shown(*value));
        let scaled = |value: f64| if self.logarithmic { value.log10() } else { value };
        let points: Vec<(f64, f64)> = points.map(|(step, value)| (step as f64, scaled(value))).collect();
        if !points.is_empty() {
            self.lines.push(Line { name, points, marked });
        }
    }

    pub(super) fn svg(&self) -> Markup {
        let legend = self.legend();
        let top = 34.0 + LEGEND_LINE * legend.iter().map(|entry| entry.2 + 1.0).fold(0.0, f64::max);
        let height = top + PLOT_HEIGHT + 42.0;
        let steps = || self.lines.iter().flat_map(|line| &line.points).map(|point| point.0);
        let values = || self.lines.iter().flat_map(|line| &line.points).map(|point| point.1);
        let empty = steps().next().is_none();
        let x_axis = Axis::of_steps(steps());
        let y_axis = if self.logarithmic { Axis::decades(values()) } else { Axis::around(values()) };
        let marks: Vec<String> = y_axis.ticks.iter().map(|tick| self.mark(*tick, y_axis.step)).collect();
        let left = 14.0 + marks.iter().map(|mark| width(mark, FONT)).fold(30.0, f64::max);
        let x = |step: f64| left + x_axis.part(step) * (WIDTH - left - RIGHT);
        let y = |value: f64| top + (1.0 - y_axis.part(value)) * PLOT_HEIGHT;
        html! {
            svg viewBox=(format!("0 0 {WIDTH} {}", number(height))) width=(WIDTH) height=(number(height)) role="img"
                aria-label=(self.title) font-family="sans-serif" font-size=(FONT) fill="#222" {
                rect width="100%" height="100%" fill="white" {}
                text x="6" y="18" font-size="14" font-weight="bold" { (self.title) }
                @for (name, at, line, index) in &legend {
                    @let (at, line) = (*at, 34.0 + line * LEGEND_LINE);
                    @if *index < self.lines.len() {
                        line x1=(number(at)) x2=(number(at + SAMPLE)) y1=(number(line - 4.0)) y2=(number(line - 4.0))
                            stroke=(colour(*index)) stroke-dasharray=(dash(*index)) stroke-width="2.5" {}
                    }
                    // Letters that are wider than they were thought to be would run off the picture.
                    @let room = WIDTH - at - SAMPLE - 10.0;
                    @let squeezed = (width(name, FONT) > room).then(|| number(room));
                    text x=(number(at + SAMPLE + 4.0)) y=(number(line)) textLength=[squeezed.as_ref()]
                        lengthAdjust=[squeezed.as_ref().map(|_| "spacingAndGlyphs")] { (name) }
                }
                @for (tick, mark) in y_axis.ticks.iter().zip(&marks) {
                    line x1=(number(left)) x2=(WIDTH - RIGHT) y1=(number(y(*tick))) y2=(number(y(*tick)))
                        stroke="#e2e2e2" {}
                    text x=(number(left - 6.0)) y=(number(y(*tick) + 4.0)) text-anchor="end" fill="#555" { (mark) }
                }
                @for tick in &x_axis.ticks {
                    line x1=(number(x(*tick))) x2=(number(x(*tick))) y1=(top + PLOT_HEIGHT) y2=(top + PLOT_HEIGHT + 4.0)
                        stroke="#888" {}
                    text x=(number(x(*tick))) y=(top + PLOT_HEIGHT + 18.0) text-anchor="middle" fill="#555" {
                        (count(*tick))
                    }
                }
                line x1=(number(left)) x2=(WIDTH - RIGHT) y1=(top + PLOT_HEIGHT) y2=(top + PLOT_HEIGHT) stroke="#888" {}
                text x=(number((left + WIDTH - RIGHT) / 2.0)) y=(top + PLOT_HEIGHT + 36.0) text-anchor="middle" fill="#555" {
                    (self.x_title)
                }
                @if empty {
                    text x=(WIDTH / 2.0) y=(top + PLOT_HEIGHT / 2.0) text-anchor="middle" fill="#777" {
                        "nothing was logged yet"
                    }
                }
                @for (index, line) in self.lines.iter().enumerate() {
                    @let raw = thinned(&line.points, MAX_POINTS);
                    @let smooth = self.smoothed && line.points.len() > SMOOTHED_PART;
                    path d=(path(&raw, x, y)) fill="none" stroke=(colour(index)) stroke-dasharray=(dash(index))
                        stroke-linejoin="round" stroke-width=(if smooth { "1" } else { "2" })
                        opacity=(if smooth { "0.35" } else { "1" }) {}
                    @if smooth {
                        path d=(path(&thinned(&moving_mean(&line.points), MAX_POINTS), x, y)) fill="none"
                            stroke=(colour(index)) stroke-dasharray=(dash(index)) stroke-linejoin="round"
                            stroke-width="2" {}
                    }
                    @if self.dotted && line.points.len() <= MAX_DOTS {
                        @for (step, value) in &line.points {
                            @let best = line.marked == Some(*step as u64);
                            circle cx=(number(x(*step))) cy=(number(y(*value))) r=(if best { "5" } else { "2.5" })
                                fill=(if best { "white" } else { colour(index) }) stroke=(colour(index))
                                stroke-width="2" {
                                title { (line.name) ", step " (step) ": " (self.value(*value)) }
                            }
                        }
                    }
                }
            }
        }
    }

    /// Name, place along its line, line, and which curve it is of.
    fn legend(&self) -> Vec<(String, f64, f64, usize)> {
        if self.lines.len() < 2 && self.lines.first().is_none_or(|line| line.marked.is_none()) {
            return Vec::new();
        }
        let shown: Vec<String> = self.lines.iter().take(MAX_NAMES).map(|line| line.name.clone()).collect();
        let mut names: Vec<(String, usize)> = shortened(&shown, MAX_LETTERS).into_iter().zip(0..).collect();
        if self.lines.len() > MAX_NAMES {
            let more = self.lines.len() - MAX_NAMES;
            names.push((format!("and {more} more, in colours and dashes of the first"), self.lines.len()));
        }
        let (mut at, mut line) = (6.0, 0.0);
        let mut placed = Vec::with_capacity(names.len());
        for (name, index) in names {
            let width = SAMPLE + 18.0 + width(&name, FONT);
            if at > 6.0 && at + width > WIDTH {
                (at, line) = (6.0, line + 1.0);
            }
            placed.push((name, at, line, index));
            at += width;
        }
        placed
    }

    /// A value of a line as it was before any logarithm.
    fn value(&self, value: f64) -> String {
        if self.logarithmic { measure(10_f64.powf(value)) } else { measure(value) }
    }

    /// What stands at a tick, `step` from the next.
    fn mark(&self, tick: f64, step: f64) -> String {
        if self.logarithmic {
            let value = 10_f64.powf(tick);
            return if (1e-2..1e4).contains(&value) { measure(value) } else { format!("{value:.0e}") };
        }
        let digits = (-step.log10().floor()).max(0.0);
        if tick == 0.0 || tick.abs() < step * 1e-6 {
            "0".into()
        } else if digits > 6.0 || tick.abs() >= 1e5 {
            // As many digits as tell a tick from the next.
            let digits = (tick.abs().log10().floor() - step.log10().floor()).clamp(0.0, 15.0);
            format!("{tick:.*e}", digits as usize)
        } else {
            format!("{tick:.*}", digits as usize)
        }
    }
}

impl Axis {
    /// From the first of `steps` to the last, with ticks at whole ones.
    fn of_steps(steps: impl Iterator<Item = f64>) -> Self {
        let (mut low, mut high) = ends(steps);
        if low == high {
            (low, high) = (low - 1.0, high + 1.0);
        }
        let step = Self::tick_step(low, high).max(1.0);
        Self::new(low, high, step)
    }

    /// Around `values`, with a margin and up to round numbers; not below 0 where none is, nor beyond 1 where all lie between.
    fn around(values: impl Iterator<Item = f64>) -> Self {
        let (low, high) = ends(values);
        let size = low.abs().max(high.abs());
        let margin = match high - low {
            // Rounding is no difference to be shown.
            span if span > 1e-9 * size => MARGIN * span,
            _ if size > 0.0 => 0.1 * size,
            _ => 1.0,
        };
        let least = if low >= 0.0 { 0.0 } else { f64::NEG_INFINITY };
        let most = if low >= 0.0 && high <= 1.0 { 1.0 } else { f64::INFINITY };
        let (low, high) = ((low - margin).max(least), (high + margin).min(most));
        let step = Self::tick_step(low, high);
        Self::new((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step, step)
    }

    /// A round number, of which about five lie between `low` and `high`.
    fn tick_step(low: f64, high: f64) -> f64 {
        let rough = (high - low) / 5.0;
        let magnitude = 10_f64.powf(rough.log10().floor());
        let steps = [1.0, 2.0, 5.0, 10.0].map(|digit| digit * magnitude);
        steps.into_iter().find(|step| *step >= rough * 0.75).unwrap_or(rough)
    }

    fn new(low: f64, high: f64, step: f64) -> Self {
        let first = (low / step - 1e-9).ceil();
        let last = (high / step + 1e-9).floor();
        let ticks = (0..=(last - first).max(0.0) as usize).map(|index| (first + index as f64) * step);
        Self { low, high, ticks: ticks.collect(), step }
    }

    /// Whole powers of ten, of logarithms.
    fn decades(logarithms: impl Iterator<Item = f64>) -> Self {
        let mut logarithms = logarithms.peekable();
        if logarithms.peek().is_none() {
            return Self { low: 0.0, high: 1.0, ticks: Vec::new(), step: 1.0 };
        }
        let (low, high) = ends(logarithms);
        let (low, high) = (low.floor(), high.ceil().max(low.floor() + 1.0));
        let stride = ((high - low) / 6.0).ceil().max(1.0);
        let ticks = (0..=((high - low) / stride) as usize).map(|index| low + index as f64 * stride);
        Self { low, high, ticks: ticks.collect(), step: stride }
    }

    fn part(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

/// The least and the most of finite values; 0 and 1 of none.
fn ends(values: impl Iterator<Item = f64>) -> (f64, f64) {
    let ends = values
        .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
    if ends.0 > ends.1 { (0.0, 1.0) } else { ends }
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

fn dash(index: usize) -> &'static str {
    DASHES[index / COLOURS.len() % DASHES.len()]
}

/// Means of neighbours, so that at most `most` points are left.
fn thinned(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    let each = points.len().div_ceil(most).max(1);
    points.chunks(each).map(mean).collect()
}

/// The mean of each point and those around it.
fn moving_mean(points: &[(f64, f64)]) -> Vec<(f64, f64)> {
    let reach = (points.len() / SMOOTHED_PART / 2).max(1);
    let window = |index: usize| index.saturating_sub(reach)..(index + reach + 1).min(points.len());
    points.iter().enumerate().map(|(index, point)| (point.0, mean(&points[window(index)]).1)).collect()
}

fn mean(points: &[(f64, f64)]) -> (f64, f64) {
    let count = points.len().max(1) as f64;
    let sum = points.iter().fold((0.0, 0.0), |sum, point| (sum.0 + point.0, sum.1 + point.1));
    (sum.0 / count, sum.1 / count)
}

fn path(points: &[(f64, f64)], x: impl Fn(f64) -> f64, y: impl Fn(f64) -> f64) -> String {
    let mut path = String::new();
    for (index, (step, value)) in points.iter().enumerate() {
        let letter = if index == 0 { 'M' } else { 'L' };
        path.push_str(&format!("{letter}{} {}", number(x(*step)), number(y(*value))));
    }
    path
}

/// A value with as many digits as an eye needs.
fn measure(value: f64) -> String {
    if value == 0.0 {
        "0".into()
    } else if value.abs() >= 1e5 || value.abs() < 1e-3 {
        format!("{value:.1e}")
    } else if value.abs() < 0.1 {
        format!("{value:.4}").trim_end_matches('0').trim_end_matches('.').to_owned()
    } else {
        format!("{value:.3}").trim_end_matches('0').trim_end_matches('.').to_owned()
    }
}

/// A count of steps: `20k` for 20,000.
fn count(value: f64) -> String {
    match value.abs() {
        size if size >= 1e7 => format!("{}M", measure(value / 1e6)),
        size if size >= 1e4 => format!("{}k", measure(value / 1e3)),
        _ => number(value),
    }
}
