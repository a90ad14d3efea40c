//! Embedding rows and the norms that frame a stack: `kernels/embedding.cu`, with `kernels/norm.cu`.

use promptmix::Result;
use promptmix::backend::{
    Embedding, FinalNorm, FinalNormBackward, Format, Readers, Residual, Side, SiteKind,
};
use promptmix::cuda::embedding::{EmbeddedRows, Embedding as RawEmbedding};
use promptmix::cuda::{DropoutMask, Packed};

use crate::device::{
    Bounds, Case, Place, Raw, Results, batch, dropout, follow, mask_of, narrowed, numbers, partial_squares,
    roundings, sums,
};

/// Rows of a table among prompt rows, dropped; then a final norm over them, and back through both.
#[derive(Debug)]
struct Stack {
    lengths: Vec<(usize, usize)>,
    side: Side,
    width: usize,
    norm_weight: bool,
    dropped: f64,
}

impl Case for Stack {
    fn run<B: Place>(&self, backend: &B) -> Result<Results> {
        let Self { side, width, .. } = *self;
        let vocabulary = 50;
        let batch = batch(&self.lengths, 2, vocabulary);
        let rows = batch.rows(side);
        let dropout = dropout(self.dropped);
        let table = narrowed(&numbers(1, vocabulary * width, 1.0));
        let table = backend.weight(table, vocabulary, width, Readers::Lookup)?;
        let norm_weight = backend.weight(narrowed(&numbers(2, width, 1.0)), 1, width, Readers::Lookup)?;
        let norm_weight = self.norm_weight.then_some(&norm_weight);
        let x = backend.place(&numbers(3, rows * width, 1.0), width, Format::Residual)?;
        let mut input = Residual { x, r: backend.rows(rows, width, Format::Norm)? };
        let mask = mask_of(&dropout, side, SiteKind::Embedding);
        let batch = &batch;
        backend.embed(Embedding { table: &table, batch, side, mask, epsilon: 1e-6 }, &mut input)?;
        let mut h = backend.rows(rows, width, Format::Operand)?;
        let last = mask_of(&dropout, side, SiteKind::FinalNorm);
        let norm = || FinalNorm { batch, side, input: &input, norm_weight, scale: 0.125, mask: last };
        backend.final_norm(norm(), &mut h)?;
        let d_h = backend.place(&numbers(4, rows * width, 1.0), width, Format::Float)?;
        let mut d_x = backend.rows(rows, width, Format::Residual)?;
        backend.final_norm_backward(norm(), FinalNormBackward { d_h: &d_h, below: None }, &mut d_x)?;
        let mut results = vec![
            ("x", backend.read(&input.x)?),
            ("r", backend.read(&input.r)?),
            ("h", backend.read(&h)?),
            ("d_x", backend.read(&d_x)?),
        ];
        if side == Side::Encoder {
            backend.embed_backward(batch, mask, &mut d_x)?;
            let d_x = backend.read(&d_x)?;
            let prompt = (0..batch.examples()).flat_map(|b| {
                let first = batch.range(side, b).start;
                d_x[first * width..(first + batch.prompt_length()) * width].to_vec()
            });
            results.push(("d_x of prompt rows", prompt.collect()));
        }
        Ok(results)
    }
}

fn stack(lengths: &[(usize, usize)], side: Side, width: usize, norm_weight: bool, dropped: f64) {
    let case = Stack { lengths: lengths.to_vec(), side, width, norm_weight, dropped };
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

#[test]
fn embedding_on_buffers_of_ones_own() {
    let Some(raw) = Raw::new() else { return };
    let (kernels, vocabulary) = (raw.kernels(), 50);
    for (width, side) in [(8, Side::Encoder), (72, Side::Encoder), (264, Side::Decoder)] {
        let batch = batch(&[(1, 1), (29, 2), (7, 31)], 3, vocabulary);
        let packed = Packed::new(kernels.stream(), batch).expect("a batch");
        let described = packed.described();
        let (batch, rows) = (described.batch(), described.batch().rows(side));
        let table = numbers(1, vocabulary * width, 1.0);
        // Prompt rows are there already; token rows are poisoned.
        let mut expected = numbers(2, rows * width, 1.0);
        let mut x = expected.clone();
        for b in 0..batch.examples() {
            let range = batch.range(side, b);
            let (first, ids) = match side {
                Side::Encoder => (range.start + 3, batch.source(b)),
                Side::Decoder => (range.start, &batch.decoder_ids()[range]),
            };
            for (row, &id) in ids.iter().enumerate() {
                let to = (first + row) * width..(first + row + 1) * width;
                x[to.clone()].fill(f64::NAN);
                expected[to].copy_from_slice(&table[id as usize * width..(id as usize + 1) * width]);
            }
        }
        let (mut x, mut copy) = (raw.floats(&x), raw.poisoned_halves(rows * width));
        let mut partials = raw.poisoned_floats(rows * width.div_ceil(64));
        let table = raw.floats(&table);
        let embedding = RawEmbedding { rows: packed.rows(side), width, mask: DropoutMask::default() };
        let written = EmbeddedRows { x: &mut x, copy: Some(&mut copy), partials: &mut partials };
        embedding.forward(kernels, &table, written).expect("forward");
        assert_eq!(raw.read(&x), expected, "numbers that bf16 holds are copied as they are");
        assert_eq!(raw.read(&copy), expected);
        raw.holds("partials", &partials, &partial_squares(&expected, width), sums(64));

        let few = table.slice(0..width * 10);
        let written = EmbeddedRows { x: &mut x, copy: Some(&mut copy), partials: &mut partials };
        let refused = embedding.forward(kernels, &few, written).expect_err("ten rows").to_string();
        assert!(refused.contains("table: expected at least 50 rows"), "{refused}");
    }
}
