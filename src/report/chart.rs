//! Curves over steps.

use maud::{Markup, html};

use super::history::History;
use super::{cut, number};

const WIDTH: f64 = 480.0;
const PLOT_HEIGHT: f64 = 200.0;
const LEFT: f64 = 52.0;
const RIGHT: f64 = 14.0;
const LEGEND_LINE: f64 = 18.0;
/// Points of a line at most: a pixel's width each is enough.
const MOST_POINTS: usize = 400;
/// Points that get a dot each: more would hide their line.
const MOST_DOTS: usize = 60;
/// Entries of the legend at most.
const MOST_NAMES: usize = 12;
/// The part of a curve that its moving mean spans.
const SMOOTHED_PART: usize = 20;
/// Colours that the colour-blind can tell apart (Okabe and Ito, 2008), dark enough for lines on white.
const COLOURS: [&str; 7] = ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#b8860b", "#56b4e9", "#444444"];
/// The same colours come again with another dash.
const DASHES: [&str; 3] = ["none", "6 3", "2 3"];

/// Lines over steps, with axes and a legend.
pub(super) struct Chart {
    title: &'static str,
    x_title: &'static str,
    lines: Vec<Line>,
    smoothed: bool,
    logarithmic: bool,
    unit_interval: bool,
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
}

impl Chart {
    pub(super) fn new(title: &'static str, x_title: &'static str) -> Self {
        let lines = Vec::new();
        Self { title, x_title, lines, smoothed: false, logarithmic: false, unit_interval: false }
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

    /// For few values, each of which gets a dot: the axis spans at least 0 to 1 if all lie there.
    pub(super) fn unit_interval(mut self) -> Self {
        self.unit_interval = true;
        self
    }

    /// Adds a line; values that are not finite, or have no logarithm where one is needed, are left out.
    pub(super) fn add(&mut self, name: String, points: Vec<(u64, f64)>, marked: Option<u64>) {
        let shown = |value: f64| value.is_finite() && (!self.logarithmic || value > 0.0);
        let points = points.into_iter().filter(|(_, value)| shown(*value));
        let scaled = |value: f64| if self.logarithmic { value.log10() } else { value };
        let points: Vec<(f64, f64)> = points.map(|(step, value)| (step as f64, scaled(value))).collect();
        self.lines.push(Line { name, points, marked });
    }

    pub(super) fn svg(&self) -> Markup {
        let legend = self.legend();
        let top = 34.0 + LEGEND_LINE * legend.iter().map(|entry| entry.2 + 1.0).fold(0.0, f64::max);
        let height = top + PLOT_HEIGHT + 42.0;
        let steps = || self.lines.iter().flat_map(|line| &line.points).map(|point| point.0);
        let values = || self.lines.iter().flat_map(|line| &line.points).map(|point| point.1);
        let empty = steps().next().is_none();
        let x_axis = Axis::new(steps(), true);
        let in_unit = self.unit_interval && values().all(|value| (0.0..=1.0).contains(&value));
        let unit = [0.0, 1.0].into_iter().filter(|_| in_unit);
        let y_axis =
            if self.logarithmic { Axis::decades(values()) } else { Axis::new(values().chain(unit), false) };
        let x = |step: f64| LEFT + x_axis.part(step) * (WIDTH - LEFT - RIGHT);
        let y = |value: f64| top + (1.0 - y_axis.part(value)) * PLOT_HEIGHT;
        html! {
            svg viewBox=(format!("0 0 {WIDTH} {}", number(height))) width=(WIDTH) height=(number(height)) role="img"
                aria-label=(self.title) font-family="sans-serif" font-size="13" fill="#222" {
                rect width="100%" height="100%" fill="white" {}
                text x="6" y="18" font-size="14" font-weight="bold" { (self.title) }
                @for (name, at, line, index) in &legend {
                    @let (at, line) = (*at, 34.0 + line * LEGEND_LINE);
                    @if *index < self.lines.len() {
                        line x1=(number(at)) x2=(number(at + 16.0)) y1=(number(line - 4.0)) y2=(number(line - 4.0))
                            stroke=(colour(*index)) stroke-dasharray=(dash(*index)) stroke-width="2.5" {}
                    }
                    text x=(number(at + 20.0)) y=(number(line)) { (name) }
                }
                @for tick in &y_axis.ticks {
                    line x1=(LEFT) x2=(WIDTH - RIGHT) y1=(number(y(*tick))) y2=(number(y(*tick))) stroke="#e2e2e2" {}
                    text x=(LEFT - 6.0) y=(number(y(*tick) + 4.0)) text-anchor="end" fill="#555" {
                        (self.tick(*tick))
                    }
                }
                @for tick in &x_axis.ticks {
                    line x1=(number(x(*tick))) x2=(number(x(*tick))) y1=(top + PLOT_HEIGHT) y2=(top + PLOT_HEIGHT + 4.0)
                        stroke="#888" {}
                    text x=(number(x(*tick))) y=(top + PLOT_HEIGHT + 18.0) text-anchor="middle" fill="#555" {
                        (count(*tick))
                    }
                }
                line x1=(LEFT) x2=(WIDTH - RIGHT) y1=(top + PLOT_HEIGHT) y2=(top + PLOT_HEIGHT) stroke="#888" {}
                text x=((LEFT + WIDTH - RIGHT) / 2.0) y=(top + PLOT_HEIGHT + 36.0) text-anchor="middle" fill="#555" {
                    (self.x_title)
                }
                @if empty {
                    text x=(WIDTH / 2.0) y=(top + PLOT_HEIGHT / 2.0) text-anchor="middle" fill="#777" {
                        "nothing was logged yet"
                    }
                }
                @for (index, line) in self.lines.iter().enumerate() {
                    @let raw = thinned(&line.points, MOST_POINTS);
                    @let smooth = self.smoothed && line.points.len() > 2 * SMOOTHED_PART;
                    path d=(path(&raw, x, y)) fill="none" stroke=(colour(index)) stroke-dasharray=(dash(index))
                        stroke-linejoin="round" stroke-width=(if smooth { "1" } else { "2" })
                        opacity=(if smooth { "0.35" } else { "1" }) {}
                    @if smooth {
                        path d=(path(&thinned(&moving_mean(&line.points), MOST_POINTS), x, y)) fill="none"
                            stroke=(colour(index)) stroke-dasharray=(dash(index)) stroke-linejoin="round"
                            stroke-width="2" {}
                    }
                    @if self.unit_interval && line.points.len() <= MOST_DOTS {
                        @for (step, value) in &line.points {
                            @let best = line.marked == Some(*step as u64);
                            circle cx=(number(x(*step))) cy=(number(y(*value))) r=(if best { "5" } else { "2.5" })
                                fill=(if best { "white" } else { colour(index) }) stroke=(colour(index))
                                stroke-width="2" {
                                title { (line.name) ", step " (step) ": " (self.tick(*value)) }
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
        let mut names: Vec<(String, usize)> = self
            .lines
            .iter()
            .take(MOST_NAMES)
            .enumerate()
            .map(|(index, line)| (cut(&line.name, 40), index))
            .collect();
        if self.lines.len() > MOST_NAMES {
            names.push((format!("and {} more", self.lines.len() - MOST_NAMES), self.lines.len()));
        }
        let (mut at, mut line) = (6.0, 0.0);
        let mut placed = Vec::with_capacity(names.len());
        for (name, index) in names {
            let width = 34.0 + 6.8 * name.chars().count() as f64;
            if at > 6.0 && at + width > WIDTH {
                (at, line) = (6.0, line + 1.0);
            }
            placed.push((name, at, line, index));
            at += width;
        }
        placed
    }

    fn tick(&self, value: f64) -> String {
        if !self.logarithmic {
            return measure(value);
        }
        let value = 10_f64.powf(value);
        if (1e-2..1e4).contains(&value) { measure(value) } else { format!("{value:.0e}") }
    }
}

impl Axis {
    /// From the least to the most of `values`, widened to round numbers but for steps.
    fn new(values: impl Iterator<Item = f64>, whole: bool) -> Self {
        let (mut low, mut high) = values
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            (low, high) = (0.0, 1.0);
        }
        if low == high {
            (low, high) = if whole {
                (low - 1.0, high + 1.0)
            } else {
                (low - low.abs().max(1e-9) * 0.1, high + high.abs().max(1e-9) * 0.1)
            };
        }
        let rough = (high - low) / 5.0;
        let magnitude = 10_f64.powf(rough.log10().floor());
        let mut step = [1.0, 2.0, 5.0, 10.0]
            .map(|digit| digit * magnitude)
            .into_iter()
            .find(|step| *step >= rough * 0.75)
            .unwrap_or(rough);
        if whole {
            step = step.max(1.0);
        } else {
            (low, high) = ((low / step + 1e-9).floor() * step, (high / step - 1e-9).ceil() * step);
        }
        let first = (low / step - 1e-9).ceil();
        let last = (high / step + 1e-9).floor();
        let ticks = (0..=(last - first).max(0.0) as usize).map(|index| (first + index as f64) * step);
        Self { low, high, ticks: ticks.collect() }
    }

    /// Whole powers of ten, of logarithms.
    fn decades(logarithms: impl Iterator<Item = f64>) -> Self {
        let (low, high) = logarithms
            .fold((f64::INFINITY, f64::NEG_INFINITY), |(low, high), value| (low.min(value), high.max(value)));
        if low > high {
            return Self { low: 0.0, high: 1.0, ticks: Vec::new() };
        }
        let (low, high) = (low.floor(), high.ceil().max(low.floor() + 1.0));
        let stride = ((high - low) / 6.0).ceil().max(1.0);
        let ticks = (0..=((high - low) / stride) as usize).map(|index| low + index as f64 * stride);
        Self { low, high, ticks: ticks.collect() }
    }

    fn part(&self, value: f64) -> f64 {
        (value - self.low) / (self.high - self.low)
    }
}

fn colour(index: usize) -> &'static str {
    COLOURS[index % COLOURS.len()]
}

fn dash(index: usize) -> &'static str {
    DASHES[index / COLOURS.len() % DASHES.len()]
}

/// Means of neighbours, so that at most `most` points are left.
fn thinned(points: &[(f64, f64)], most: usize) -> Vec<(f64, f64)> {
    let stretch = points.len().div_ceil(most).max(1);
    points.chunks(stretch).map(mean).collect()
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
    if value.abs() >= 10_000.0 { format!("{}k", measure(value / 1000.0)) } else { number(value) }
}
