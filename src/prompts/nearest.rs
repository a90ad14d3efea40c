//! The words of the vocabulary that a prompt's rows are nearest to (Lester et al., 2021, section 7).

use super::Prompt;
use crate::backend::cpu::Cpu;
use crate::error::{Error, Result};
use crate::pretrained::Checkpoint;

/// Neighbors of a row at most.
const MAX_NEIGHBORS: usize = 1_000;

/// A row of the embedding.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Neighbor {
    /// Its id in the vocabulary.
    pub id: u32,
    /// The cosine of the angle between it and the prompt's row; 0 where one of them is 0.
    pub similarity: f64,
}

/// The `top` rows of the model's embedding that are nearest to each of the first `rows` rows of `prompt` by cosine similarity,
/// the nearest first, of equals the one of the smaller id. Similarities are computed in f64. The embedding is read once and
/// never held as a whole.
///
/// # Errors
/// [`Error::Setting`] if the prompt is of another width or has fewer rows, or for no rows or neighbors, or more than 1,000
/// neighbors; those of reading the embedding.
pub fn nearest(
    checkpoint: &Checkpoint,
    cpu: &Cpu<f32>,
    prompt: &Prompt,
    rows: usize,
    top: usize,
) -> Result<Vec<Vec<Neighbor>>> {
    let width = checkpoint.config().d_model;
    prompt.check_fits(width, None)?;
    if rows == 0 || rows > prompt.length() {
        let expected = format!("1 to {}, as the prompt has rows", prompt.length());
        return Err(Error::setting("--rows", expected, rows.to_string(), ""));
    }
    if top == 0 || top > MAX_NEIGHBORS {
        return Err(Error::setting("--top", format!("1 to {MAX_NEIGHBORS}"), top.to_string(), ""));
    }
    let own = &prompt.values()[..rows * width];
    let own_squares: Vec<f64> = own.chunks_exact(width).map(|row| dot(row, row)).collect();
    // A sum of f32 is off by this share of the product of the norms at most.
    let margin = width as f64 * f64::from(f32::EPSILON);
    let mut found: Vec<Vec<Neighbor>> = vec![Vec::with_capacity(top + 1); rows];
    let mut first = 0;
    checkpoint.visit_embedding(&mut |words| {
        let count = words.len() / width;
        let products = cpu.row_products(own, words, width);
        let squares: Vec<f64> = words.chunks_exact(width).map(|word| dot(word, word)).collect();
        let each =
            own.chunks_exact(width).zip(&own_squares).zip(products.chunks_exact(count)).zip(&mut found);
        for (((row, own_square), products), found) in each {
            for (index, (&product, square)) in products.iter().zip(&squares).enumerate() {
                // One root of both: of equal rows it is their square itself.
                let norms = (own_square * square).sqrt();
                let least = if found.len() == top { found[top - 1].similarity } else { f64::NEG_INFINITY };
                // Only what may be among the nearest is worth f64; a product that is not finite may be.
                if product.is_finite() && f64::from(product) < (least - margin) * norms {
                    continue;
                }
                let word = &words[index * width..][..width];
                let similarity = if norms > 0.0 { dot(row, word) / norms } else { 0.0 };
                let place = found.partition_point(|other| other.similarity >= similarity);
                if place < top {
                    found.insert(place, Neighbor { id: (first + index) as u32, similarity });
                    found.truncate(top);
                }
            }
        }
        first += count;
        Ok(())
    })?;
    Ok(found)
}

fn dot(a: &[f32], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum()
}
