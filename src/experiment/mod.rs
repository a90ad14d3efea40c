//! Comparisons of ways to learn: many small trainings, rates chosen by validation rows alone, test rows read once.
//!
//! A [`Grid`] trains every [`Entry`] at each of its learning rates in every [`Place`], each in a run folder of its own, so that
//! a comparison that was interrupted goes on where it was. [`Grid::choose`] takes an entry's rate by the mean validation over
//! the places, and [`Grid::test`] reads the test rows of the entries that are to be reported. A [`Study`] is a file that declares
//! such grids; a [`Sweep`] and [`FewShotRuns`] are lists of trainings. A [`Runner`] takes the trainings.

mod comparison;
mod few_shot;
mod grid;
mod progress;
mod runner;
mod statistics;
mod study;
mod sweep;
mod workers;

pub use comparison::{Comparison, MethodResults, Plan, TargetResults};
pub use few_shot::{Draw, FewShotRuns};
pub use grid::{Cell, Configure, Entry, Grid, Place, Tested};
pub use progress::Progress;
pub(crate) use runner::complete;
pub use runner::{Evaluated, EvaluationJob, Runner, Together, Training};
pub(crate) use statistics::first_best;
pub use statistics::{Paired, Spread, mean, standard_deviation};
pub use study::{Source, Sources, Study, StudyMethod, Target};
pub use sweep::{Sweep, SweptRun};
pub use workers::{Ticks, Workers};
