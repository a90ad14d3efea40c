//! What a pass adds up of each run: its loss and the entropy of its attention.

use super::Cpu;
use super::element::Element;
use super::mix::MixSaved;
use super::optimizer::State;
use crate::backend::ops::{check_length, check_runs};
use crate::backend::{Batch, Loss, Side, StatisticsOps, StepStatistics};
use crate::error::Result;

impl<E: Element> StatisticsOps for Cpu<E> {
    fn add_statistics(
        &self,
        batch: &Batch,
        loss: &Loss,
        mix: &MixSaved<E>,
        state: &mut State<E>,
    ) -> Result<()> {
        check_runs("the tally", batch, &state.layout, state.statistics.len())?;
        check_length("the loss", batch.labels().len(), loss.objective.len())?;
        mix.check_examples(batch)?;
        let per_example = mix.attention.len() / batch.examples();
        let mut pass = vec![StepStatistics::default(); state.statistics.len()];
        for b in 0..batch.examples() {
            let sums = &mut pass[batch.run(b)];
            for row in batch.range(Side::Decoder, b) {
                sums.loss += batch.row_weights()[row] * loss.objective[row];
            }
            let weights = mix.attention[b * per_example..(b + 1) * per_example].iter().map(|a| a.widen());
            sums.entropy -= weights.filter(|&a| a > 0.0).map(|a| a * a.ln()).sum::<f64>();
        }
        for (sums, pass) in state.statistics.iter_mut().zip(pass) {
            sums.loss += pass.loss;
            sums.entropy += pass.entropy;
        }
        Ok(())
    }
}
