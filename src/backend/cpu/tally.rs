//! What a pass adds up of each run: its loss and the entropy of its attention.

use super::element::Element;
use super::mix::MixKept;
use super::optimizer::State;
use crate::backend::{Batch, Loss, Side, Tally};

pub(super) fn tally<E: Element>(batch: &Batch, loss: &Loss, mix: &MixKept<E>, state: &mut State<E>) {
    let per_example = mix.attention.len() / batch.examples();
    let mut pass = vec![Tally::default(); state.tallies.len()];
    for b in 0..batch.examples() {
        let tally = &mut pass[batch.run(b)];
        for row in batch.range(Side::Decoder, b) {
            tally.loss += batch.row_weights()[row] * loss.objective[row];
        }
        let weights = mix.attention[b * per_example..(b + 1) * per_example].iter().map(|a| a.widen());
        tally.entropy -= weights.filter(|&a| a > 0.0).map(|a| a * a.ln()).sum::<f64>();
    }
    for (tally, pass) in state.tallies.iter_mut().zip(pass) {
        tally.loss += pass.loss;
        tally.entropy += pass.entropy;
    }
}
