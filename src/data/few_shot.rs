//! Few-shot learning: a small set of training rows, drawn by its own seed.

use serde::{Deserialize, Serialize};

use super::batches::{generator, permutation};
use super::splits::Part;
use crate::count::counted;
use crate::error::{Error, Result};
use crate::tasks::Task;

/// How many rows to learn from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct FewShot {
    /// Rows in all, or of each class if `class_balanced`.
    pub shots: usize,
    /// Draw `shots` rows of every class.
    #[serde(default)]
    pub class_balanced: bool,
    /// Seed of the draw, apart from the training seed.
    pub seed: u64,
}

impl FewShot {
    /// Draws rows of `part`. Rows without a gold label are not drawn. The same seed and rows give the same draw.
    ///
    /// # Errors
    /// [`Error::Setting`] if there are fewer rows than asked for, or balance is asked of a task without classes; and those
    /// of reading the rows.
    pub fn draw(&self, part: &Part, task: &Task) -> Result<Part> {
        let classes = match (self.class_balanced, task.class_count()) {
            (false, _) => 1,
            (true, Some(classes)) => classes as usize,
            (true, None) => {
                return Err(Error::setting(
                    "class-balanced",
                    "a task with classes",
                    format!("{}, which has free answers", task.name),
                    "leave the flag out",
                ));
            }
        };
        if self.shots == 0 {
            return Err(Error::setting("few-shot", "at least 1 row", "0", ""));
        }
        let mut rows: Vec<Vec<u32>> = vec![vec![]; classes];
        let mut number = 0_u32;
        for row in part.rows_for(task)? {
            let row = row?;
            let position = match part.chosen() {
                Some(chosen) => chosen.get(number as usize).copied().unwrap_or(number),
                None => number,
            };
            number = number.checked_add(1).ok_or_else(|| {
                Error::format(part.path(), None, "at most 4294967295 rows", "more", "split the file")
            })?;
            if task.class_count().is_some() {
                let Some(class) = task.class_of(&row)? else { continue };
                rows[if self.class_balanced { class as usize } else { 0 }].push(position);
            } else {
                rows[0].push(position);
            }
        }
        let labels = task.labels().unwrap_or_default();
        let mut drawn = Vec::with_capacity(self.shots.saturating_mul(classes).min(number as usize));
        for (class, rows) in rows.iter().enumerate() {
            if rows.len() < self.shots {
                let of = match (self.class_balanced, labels.get(class)) {
                    (true, Some(label)) => format!(" of class {label:?}"),
                    _ => String::new(),
                };
                return Err(Error::setting(
                    "few-shot",
                    format!("at most {}{of} in {}", counted(rows.len(), "row"), part.origin()),
                    self.shots.to_string(),
                    "ask for fewer",
                ));
            }
            let order = permutation(rows.len(), &mut generator(b"few-shot draw", self.seed, class as u64));
            drawn.extend(order[..self.shots].iter().map(|index| rows[*index as usize]));
        }
        Ok(part.choosing(drawn))
    }
}
