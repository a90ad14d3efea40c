//! A table of coloured cells.

use maud::{Markup, html};

use super::{cut, number};

const CELL: f64 = 46.0;
const CELL_HEIGHT: f64 = 26.0;
/// Width of a letter, about.
const LETTER: f64 = 6.6;
/// Letters of a name at most.
const MOST_LETTERS: usize = 34;
/// Blue for the most, and orange for below 0.
const MOST: [f64; 3] = [8.0, 81.0, 156.0];
const LEAST: [f64; 3] = [217.0, 95.0, 2.0];

/// Rows of cells with their names. A cell may be empty.
pub(super) struct HeatMap {
    title: &'static str,
    columns: Vec<String>,
    rows: Vec<(String, Vec<Option<f64>>)>,
}

impl HeatMap {
    pub(super) fn new(
        title: &'static str,
        columns: Vec<String>,
        rows: Vec<(String, Vec<Option<f64>>)>,
    ) -> Self {
        Self { title, columns, rows }
    }

    pub(super) fn svg(&self) -> Markup {
        let letters = |name: &String| name.chars().count().min(MOST_LETTERS) as f64;
        let left = 14.0 + LETTER * self.rows.iter().map(|(name, _)| letters(name)).fold(0.0, f64::max);
        // Column names climb at 45 degrees.
        let slant = std::f64::consts::FRAC_1_SQRT_2 * LETTER;
        let above = 14.0 + slant * self.columns.iter().map(letters).fold(0.0, f64::max);
        let behind = slant * self.columns.last().map_or(0.0, letters);
        let top = 26.0 + above;
        let width = (left + CELL * self.columns.len() as f64 + behind.max(10.0)).max(260.0);
        let height = top + CELL_HEIGHT * self.rows.len() as f64 + 10.0;
        html! {
            svg viewBox=(format!("0 0 {} {}", number(width), number(height))) width=(number(width))
                height=(number(height)) role="img" aria-label=(self.title) font-family="sans-serif" font-size="12"
                fill="#222" {
                rect width="100%" height="100%" fill="white" {}
                text x="6" y="18" font-size="14" font-weight="bold" { (self.title) }
                @for (index, name) in self.columns.iter().enumerate() {
                    @let (x, y) = (left + CELL * (index as f64 + 0.5), top - 7.0);
                    text x=(number(x)) y=(number(y)) transform=(format!("rotate(-45 {} {})", number(x), number(y))) {
                        (cut(name, MOST_LETTERS)) title { (name) }
                    }
                }
                @for (index, (name, cells)) in self.rows.iter().enumerate() {
                    @let y = top + CELL_HEIGHT * index as f64;
                    text x=(number(left - 6.0)) y=(number(y + 17.0)) text-anchor="end" {
                        (cut(name, MOST_LETTERS)) title { (name) }
                    }
                    @for (column, cell) in cells.iter().enumerate() {
                        @let x = left + CELL * column as f64;
                        rect x=(number(x)) y=(number(y)) width=(CELL - 2.0) height=(CELL_HEIGHT - 2.0) rx="2"
                            fill=(cell.map_or("#f4f4f4".into(), colour)) {
                            title { (name) ", " (self.columns[column]) ": " (shown(*cell)) }
                        }
                        text x=(number(x + CELL / 2.0 - 1.0)) y=(number(y + 16.5)) text-anchor="middle" font-size="11"
                            fill=(ink(*cell)) pointer-events="none" { (shown(*cell)) }
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
