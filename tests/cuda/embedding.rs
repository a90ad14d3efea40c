//! Embedding rows and the norms that frame a stack: `kernels/embedding.cu`, with `kernels/norm.cu`.

use promptmix::Result;
use promptmix::backend::{
    Embedding, FinalNorm, FinalNormBackward, Format, Mix, Mixing, PromptRows, Readers, Residual, Side,
    SiteKind, StateLayout,
};
use promptmix::cuda::embedding::{EmbeddedRows, Embedding as RawEmbedding};
use promptmix::cuda::{DropoutMask, Packed};

use crate::device::{
    Bounds, Case, Place, Raw, Results, batch, dropout, follow, mask_of, narrowed, numbers, partial_squares,
    roundings, sums,
};

/// Rows of a table after rows of a plain prompt, dropped; then a final norm over them, and back through both.
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
        let mut input = Residual::new(backend, rows, width)?;
        let mask = mask_of(&dropout, side, SiteKind::Embedding);
        let (batch, epsilon) = (&batch, 1e-6);
        if side == Side::Encoder {
            let mixing = Mixing::plain();
            let layout = StateLayout::new(&mixing, 1, batch.prompt_length(), width, 0, false);
            let state = backend.state(&layout, &numbers(3, layout.len(), 1.0), 1)?;
            let output = PromptRows { input: &mut input, mask, epsilon };
            backend.mix(&Mix { mixing: &mixing, sources: None, batch }, &table, &state, output)?;
        }
        backend.embed(Embedding { table: &table, batch, side, mask, epsilon }, &mut input)?;
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
        // Prompt rows are there already and stay; token rows are poisoned.
        let mut expected = numbers(2, rows * width, 1.0);
        let parts = width.div_ceil(64);
        let (mut x, mut sums_before) = (expected.clone(), vec![0.25; rows * parts]);
        for b in 0..batch.examples() {
            let range = batch.range(side, b);
            let (first, ids) = match side {
                Side::Encoder => (range.start + 3, batch.source(b)),
                Side::Decoder => (range.start, &batch.decoder_ids()[range]),
            };
            for (row, &id) in ids.iter().enumerate() {
                let to = (first + row) * width..(first + row + 1) * width;
                x[to.clone()].fill(f64::NAN);
                sums_before[(first + row) * parts..(first + row + 1) * parts].fill(f64::NAN);
                expected[to].copy_from_slice(&table[id as usize * width..(id as usize + 1) * width]);
            }
        }
        let (mut x, mut copy) = (raw.floats(&x), raw.halves(&x));
        let mut partials = raw.floats(&sums_before);
        let (read_table, table) = (table.clone(), raw.floats(&table));
        let embedding = RawEmbedding { rows: packed.rows(side), width, mask: DropoutMask::default() };
        let written = EmbeddedRows { x: &mut x, copy: Some(&mut copy), partials: &mut partials };
        embedding.forward(kernels, &table, written).expect("forward");
        assert_eq!(raw.read(&x), expected, "numbers that bf16 holds are copied as they are");
        assert_eq!(raw.read(&copy), expected);
        let squares = partial_squares(&expected, width).into_iter().zip(&sums_before);
        let squares: Vec<f64> =
            squares.map(|(sum, before)| if before.is_nan() { sum } else { *before }).collect();
        raw.holds("partials", &partials, &squares, sums(64));

        // Ids of one's own; one that the table does not have is its last.
        if side == Side::Decoder {
            let ids: Vec<u32> =
                (0..rows as u32).map(|row| [7 * row % 50, 50, u32::MAX][row as usize % 3]).collect();
            let expected: Vec<f64> = ids
                .iter()
                .flat_map(|&id| {
                    let row = (id as usize).min(vocabulary - 1);
                    read_table[row * width..(row + 1) * width].to_vec()
                })
                .collect();
            let ids = kernels.stream().clone_htod(&ids).expect("ids");
            let (mut x, mut copy) =
                (raw.floats(&vec![f64::NAN; rows * width]), raw.poisoned_halves(rows * width));
            let mut partials = raw.floats(&vec![f64::NAN; rows * parts]);
            let written = EmbeddedRows { x: &mut x, copy: Some(&mut copy), partials: &mut partials };
            embedding.forward_of(kernels, &table, &ids, written).expect("forward");
            assert_eq!(raw.read(&x), expected);
            assert_eq!(raw.read(&copy), expected);
            raw.holds("partials", &partials, &partial_squares(&expected, width), sums(64));
            let written = EmbeddedRows { x: &mut x, copy: Some(&mut copy), partials: &mut partials };
            let refused = embedding.forward_of(kernels, &table, &ids.slice(0..rows - 1), written);
            assert!(refused.expect_err("an id too few").to_string().contains("ids"));
        }

        let few = table.slice(0..width * 10);
        let written = EmbeddedRows { x: &mut x, copy: Some(&mut copy), partials: &mut partials };
        let refused = embedding.forward(kernels, &few, written).expect_err("ten rows").to_string();
        assert!(refused.contains("table: expected at least 50 rows"), "{refused}");
    }
}
