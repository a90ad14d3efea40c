//! Embedding rows and the norms that frame a stack: `kernels/embedding.cu`, `kernels/norm.cu`.

use promptmix::backend::{Format, Readers, Side, SiteKind};

use crate::device::{Bounds, Case, Place, batch, dropout, follow, mask_of, narrowed, numbers, roundings};

/// Rows of a table among prompt rows, dropped; then a final norm over them, and back through both.
#[derive(Debug)]
struct Stack {
    lengths: Vec<(usize, usize)>,
    side: Side,
    width: usize,
    gain: bool,
    dropped: f64,
}

impl Case for Stack {
    fn run<B: Place>(&self, backend: &B) -> Vec<(&'static str, Vec<f64>)> {
        let Self { side, width, .. } = *self;
        let vocabulary = 50;
        let batch = batch(&self.lengths, 2, vocabulary);
        let rows = batch.rows(side);
        let dropout = dropout(self.dropped);
        let table = narrowed(&numbers(1, vocabulary * width, 1.0));
        let table = backend.weight(table, vocabulary, width, Readers::Lookup);
        let gain = backend.weight(narrowed(&numbers(2, width, 1.0)), 1, width, Readers::Lookup);
        let gain = self.gain.then_some(&gain);
        let mut x = backend.place(&numbers(3, rows * width, 1.0), width, Format::Residual);
        let mut r = backend.rows(rows, width, Format::Norm);
        let mask = mask_of(&dropout, side, SiteKind::Embedding);
        backend.embed(&table, side, &batch, mask, 1e-6, &mut x, &mut r);
        let mut h = backend.rows(rows, width, Format::Operand);
        let last = mask_of(&dropout, side, SiteKind::FinalNorm);
        backend.final_norm(&batch, side, &x, &r, gain, 0.125, last, &mut h);
        let d_h = backend.place(&numbers(4, rows * width, 1.0), width, Format::Float);
        let mut d_x = backend.rows(rows, width, Format::Residual);
        backend.final_norm_backward(&batch, side, &x, &r, gain, 0.125, last, &d_h, &mut d_x);
        let mut results = vec![
            ("x", backend.read(&x)),
            ("r", backend.read(&r)),
            ("h", backend.read(&h)),
            ("d_x", backend.read(&d_x)),
        ];
        if side == Side::Encoder {
            backend.embed_backward(&batch, mask, &mut d_x);
            let d_x = backend.read(&d_x);
            let prompt = (0..batch.examples()).flat_map(|b| {
                let first = batch.range(side, b).start;
                d_x[first * width..(first + batch.prompt_length()) * width].to_vec()
            });
            results.push(("d_x of prompt rows", prompt.collect()));
        }
        results
    }
}

fn stack(lengths: &[(usize, usize)], side: Side, width: usize, gain: bool, dropped: f64) {
    let case = Stack { lengths: lengths.to_vec(), side, width, gain, dropped };
    // bf16: h alone is rounded.
    follow(&case, Bounds { terms: width, bf16: roundings(2.0) });
}

#[test]
fn rows_and_norms() {
    for (width, dropped) in [(8, 0.0), (40, 0.2), (64, 0.1), (72, 0.1), (264, 0.2), (512, 0.1), (1_024, 0.0)]
    {
        stack(&[(1, 1), (29, 2), (64, 31), (7, 3)], Side::Encoder, width, false, dropped);
        stack(&[(1, 1), (29, 2), (64, 31), (7, 3)], Side::Decoder, width, true, dropped);
    }
    stack(&[(1, 1)], Side::Encoder, 40, false, 0.0);
    stack(&[(1, 1)], Side::Decoder, 40, true, 0.0);
}
