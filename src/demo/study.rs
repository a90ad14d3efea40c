//! The study of the mixture: ATTEMPT against every simpler use of the same sources, on a target whose rows ask two questions.
//!
//! Everything that could be tuned to a result is fixed here: the generator and its seeds, rows, steps, and how many rates each
//! method may choose from on validation rows.

use super::generate::Rows;
use super::questions::{QuestionsTask, TWO_QUESTIONS};

/// What the study does.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct StudySettings {
    /// The target.
    pub target: QuestionsTask,
    /// Seeds of the generator: each gives a data set of its own.
    pub data_seeds: Vec<u64>,
    /// Seeds of initialisation, order and dropout: one training of each method, rate and data set a seed.
    pub seeds: Vec<u64>,
    /// Rows of each data set.
    pub rows: Rows,
    /// Steps of each training.
    pub steps: u64,
    /// Steps between two validations.
    pub validate_every: u64,
    /// Learning rates of the prompt that every method tries.
    pub learning_rates: Vec<f64>,
    /// M.
    pub prompt_length: usize,
    /// Examples a batch.
    pub batch_size: usize,
    /// Trainings at a time; one a core for `None`.
    pub workers: Option<usize>,
}

impl Default for StudySettings {
    fn default() -> Self {
        Self {
            target: TWO_QUESTIONS,
            data_seeds: vec![1, 2, 3],
            seeds: vec![1, 2, 3, 4, 5],
            rows: Rows { train: 240, validation: 120, test: 400 },
            steps: 300,
            validate_every: 50,
            learning_rates: vec![0.3, 1.0],
            prompt_length: 10,
            batch_size: 16,
            workers: None,
        }
    }
}
