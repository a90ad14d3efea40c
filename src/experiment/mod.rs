//! Comparisons of ways to learn: many small trainings, rates chosen by validation rows alone, test rows read once.
//!
//! A [`Grid`] trains every [`Entry`] at all that it may choose from in every [`Place`], each in a run folder of its own, so that a
//! comparison that was interrupted goes on where it was. [`Entry::choose`] takes a [`Candidate`] by the mean validation over the
//! places, and [`Grid::test`] reads the test rows of the entries that are to be reported. A [`Study`] declares such grids
//! on targets, as a file or as the program does; a [`Sweep`] is a list of trainings, and [`FewShotRuns`] is one over draws. A
//! [`Runner`] takes the trainings.

mod comparison;
mod few_shot;
mod grid;
mod inputs;
mod progress;
mod runner;
mod study;
mod study_file;
mod sweep;
mod workers;

#[cfg(feature = "cli")]
pub(crate) use comparison::RESULTS;
pub use comparison::{Comparison, TargetResults};
pub use few_shot::{Draw, FewShotRuns};
pub use grid::{Candidate, Entry, Grid, MethodResults, Place};
pub use progress::Progress;
pub(crate) use runner::train_all;
pub use runner::{EvaluationJob, Results, Runner, Together, Training};
pub use study::{Source, Sources, Study, StudyMethod, Target};
pub use sweep::{Sweep, SweptRun};
pub use workers::Workers;

/// A writer of tab-separated values; cells that hold tabs, quotes or ends of lines are quoted.
fn tab_separated<W: std::io::Write>(to: W) -> csv::Writer<W> {
    csv::WriterBuilder::new().delimiter(b'\t').from_writer(to)
}
