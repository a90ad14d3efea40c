//! A table of coloured cells.

use maud::{Markup, html};

use super::labels::{number, shortened, width};

const CELL: f64 = 48.0;
const CELL_HEIGHT: f64 = 26.0;
/// With the spread below the value.
const SPREAD_HEIGHT: f64 = 38.0;
const FONT: f64 = 12.0;
const TITLE_FONT: f64 = 14.0;
/// Letters of a name at most, unless it takes more to tell names apart.
const MAX_LETTERS: usize = 34;
/// Blue for the most, and orange for below 0.
const MOST: [f64; 3] = [8.0, 81.0, 156.0];
const LEAST: [f64; 3] = [217.0, 95.0, 2.0];

/// A value, and its standard deviation over repetitions where there are some.
#[derive(Clone, Copy)]
pub(super) struct Cell {
    pub(super) value: f64,
    pub(super) deviation: Option<f64>,
}

impl Cell {
    /// A value of its own.
    pub(super) fn of(value: f64) -> Self {
        Self { value, deviation: None }
    }
}

/// Rows of cells with their names. A cell may be empty.
pub(super) struct HeatMap {
    title: &'static str,
    columns: Vec<String>,
    rows: Vec<(String, Vec<Option<Cell>>)>,
}

impl HeatMap {
    pub(super) fn new(
        title: &'static str,
        columns: Vec<String>,
        rows: Vec<(String, Vec<Option<Cell>>)>,
    ) -> Self {
        Self { title, columns, rows }
    }

    pub(super) fn svg(&self) -> Markup {
        let full: Vec<String> = self.rows.iter().map(|(name, _)| name.clone()).collect();
        let (names, columns) = (shortened(&full, MAX_LETTERS), shortened(&self.columns, MAX_LETTERS));
        let wide = |name: &String| width(name, FONT);
        let left = 14.0 + names.iter().map(wide).fold(0.0, f64::max);
        // Column names climb at 45 degrees.
        let slant = std::f64::consts::FRAC_1_SQRT_2;
        let above = 20.0 + slant * columns.iter().map(wide).fold(0.0, f64::max);
        let end = |(index, name): (usize, &String)| CELL * (index as f64 + 0.5) + slant * wide(name);
        let after = columns.iter().enumerate().map(end).fold(0.0, f64::max);
        let top = 26.0 + above;
        let has_spread =
            self.rows.iter().flat_map(|(_, cells)| cells).flatten().any(|cell| cell.deviation.is_some());
        let tall = if has_spread { SPREAD_HEIGHT } else { CELL_HEIGHT };
        let cells = CELL * self.columns.len() as f64;
        let wide = (left + after.max(cells) + 10.0).max(12.0 + width(self.title, TITLE_FONT) * 1.1);
        let height = top + tall * self.rows.len() as f64 + 10.0;
        html! {
            svg viewBox=(format!("0 0 {} {}", number(wide), number(height))) width=(number(wide))
                height=(number(height)) role="img" aria-label=(self.title) font-family="sans-serif" font-size=(FONT)
                fill="#222" {
                rect width="100%" height="100%" fill="white" {}
                text x="6" y="18" font-size=(TITLE_FONT) font-weight="bold" { (self.title) }
                @for (index, name) in columns.iter().enumerate() {
                    @let (x, y) = (left + CELL * (index as f64 + 0.5), top - 7.0);
                    text x=(number(x)) y=(number(y)) transform=(format!("rotate(-45 {} {})", number(x), number(y))) {
                        (name) title { (self.columns[index]) }
                    }
                }
                @for (index, (full, cells)) in self.rows.iter().enumerate() {
                    @let y = top + tall * index as f64;
                    text x=(number(left - 6.0)) y=(number(y + tall / 2.0 + 3.0)) text-anchor="end" {
                        (names[index]) title { (full) }
                    }
                    @for (column, cell) in cells.iter().enumerate() {
                        @let x = left + CELL * column as f64;
                        @let middle = number(x + CELL / 2.0 - 1.0);
                        @let value = cell.map(|cell| cell.value);
                        rect x=(number(x)) y=(number(y)) width=(CELL - 2.0) height=(tall - 2.0) rx="2"
                            fill=(value.map_or("#f4f4f4".into(), colour)) {
                            title { (full) ", " (self.columns[column]) ": " (shown(value))
                                @if let Some(deviation) = cell.and_then(|cell| cell.deviation) { " ± " (shown(Some(deviation))) } }
                        }
                        @if let Some(deviation) = cell.and_then(|cell| cell.deviation) {
                            text x=(middle) y=(number(y + 15.0)) text-anchor="middle" font-size="11" fill=(ink(value))
                                pointer-events="none" { (shown(value)) }
                            text x=(middle) y=(number(y + 29.0)) text-anchor="middle" font-size="10" fill=(ink(value))
                                pointer-events="none" { "±" (shown(Some(deviation))) }
                        } @else {
                            text x=(middle) y=(number(y + tall / 2.0 + 3.0)) text-anchor="middle" font-size="11"
                                fill=(ink(value)) pointer-events="none" { (shown(value)) }
                        }
                    }
                }
            }
        }
    }
}

/// White for 0, blue for 1, orange for -1.
pub(super) fn colour(value: f64) -> String {
    let far = if value < 0.0 { LEAST } else { MOST };
    let part = value.abs().clamp(0.0, 1.0).sqrt();
    let mix = far.map(|far| (250.0 + (far - 250.0) * part).round() as u8);
    format!("#{:02x}{:02x}{:02x}", mix[0], mix[1], mix[2])
}

/// A colour that can be read on [`colour`].
pub(super) fn ink(value: Option<f64>) -> &'static str {
    if value.is_some_and(|value| value.abs() > 0.3) { "#ffffff" } else { "#222222" }
}

pub(super) fn shown(value: Option<f64>) -> String {
    value.map_or_else(|| "–".to_owned(), |value| format!("{value:.2}"))
}
