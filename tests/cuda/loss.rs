//! Head and cross entropy: `kernels/loss.cu`.

use promptmix::backend::{Format, Readers, Side};

use crate::device::{Bounds, Case, Place, batch, follow, matrix, numbers, roundings};

#[derive(Debug)]
struct CrossEntropy {
    targets: Vec<usize>,
    width: usize,
    vocabulary: usize,
}

impl Case for CrossEntropy {
    fn run<B: Place>(&self, backend: &B) -> Vec<(&'static str, Vec<f64>)> {
        let Self { width, vocabulary, .. } = *self;
        let lengths: Vec<(usize, usize)> = self.targets.iter().map(|&t| (1, t)).collect();
        let batch = batch(&lengths, 1, vocabulary);
        let rows = batch.rows(Side::Decoder);
        let batch = batch.weighted((0..rows).map(|row| 0.5 + 0.25 * row as f64).collect());
        let head = matrix(1, vocabulary, width).iter().map(|value| 2.0 * value).collect();
        let head = backend.weight(head, vocabulary, width, Readers::Lookup);
        let hidden = backend.place(&numbers(2, rows * width, 1.0), width, Format::Operand);
        let mut d_hidden = backend.rows(rows, width, Format::Float);
        let kept = backend.loss(&batch, &hidden, &head, Some(&mut d_hidden));
        let loss = backend.read_loss(&kept);
        let without = backend.read_loss(&backend.loss(&batch, &hidden, &head, None));
        assert_eq!(loss, without, "a gradient changes no loss");
        let logits = backend.read(&backend.logits(&batch, &hidden, &head));
        let greedy = loss.greedy.iter().map(|&id| f64::from(id) + 1.0).collect();
        vec![
            ("-log p", loss.negative_log_likelihood),
            ("greedy + 1", greedy),
            ("d_hidden", backend.read(&d_hidden)),
            ("logits", logits),
        ]
    }
}

#[test]
fn vocabularies_beside_a_tile() {
    for vocabulary in [2, 31, 33, 63, 65, 127, 129, 1_000] {
        let case = CrossEntropy { targets: vec![1, 3, 2, 40], width: 40, vocabulary };
        // bf16: d_logits are rounded once.
        follow(&case, Bounds { terms: vocabulary.max(40), bf16: roundings(4.0) });
    }
    let case = CrossEntropy { targets: vec![1], width: 8, vocabulary: 17 };
    follow(&case, Bounds { terms: 17, bf16: roundings(4.0) });
}

#[test]
fn t5_vocabulary_at_t5_small_width() {
    let case = CrossEntropy { targets: vec![2, 3], width: 512, vocabulary: 32_128 };
    follow(&case, Bounds { terms: 512, bf16: roundings(4.0) });
}
