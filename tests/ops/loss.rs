//! The head and its cross entropy: log_sum_exp(h · E_v) - h · E_label, and weight·(sum_v p_v E_v - E_label).

use promptmix::backend::{Backend, Format};

use crate::operands::{add_scaled, bound, close, cpu, dot, labelled, narrowed, numbers, rows, softmax};
use crate::random::Random;

fn check(count: usize, vocabulary: usize, width: usize) {
    let cpu = cpu();
    let mut random = Random::new(9);
    // Logits of deviation about 3, so that a softmax is neither flat nor one word.
    let hidden = numbers(1, count * width, 3.0 * (width as f64).powf(-0.5));
    let head = numbers(2, vocabulary * width, 1.0);
    // The first and the last word of the vocabulary are labels too.
    let labels: Vec<u32> = (0..count)
        .map(|row| match row {
            0 => vocabulary as u32 - 1,
            1 => 0,
            _ => random.below(vocabulary) as u32,
        })
        .collect();
    let weights: Vec<f64> =
        (0..count).map(|row| if row % 5 == 4 { 0.0 } else { f64::from(random.uniform() as f32) }).collect();
    let (mut negative, mut d_hidden, mut greedy) = (Vec::new(), vec![0.0; count * width], Vec::new());
    for (row, &label) in labels.iter().enumerate() {
        let embedding = |v: usize| &head[v * width..(v + 1) * width];
        let mut p: Vec<f64> =
            (0..vocabulary).map(|v| dot(&hidden[row * width..(row + 1) * width], embedding(v))).collect();
        let of_label = p[label as usize];
        greedy.push((0..vocabulary).fold(0, |best, v| if p[v] > p[best] { v } else { best }) as u32);
        negative.push(softmax(&mut p) - of_label);
        let d_row = &mut d_hidden[row * width..(row + 1) * width];
        for (v, p) in p.iter().enumerate() {
            add_scaled(d_row, weights[row] * p, embedding(v));
        }
        add_scaled(d_row, -weights[row], embedding(label as usize));
    }

    let head = cpu.weight(narrowed(&head), vocabulary, width, promptmix::backend::Readers::Many);
    let hidden = rows(&cpu, &hidden, width);
    let what = format!("{count} rows, {vocabulary} words, D {width}");
    let mut d_rows = cpu.rows(count, width, Format::Float);
    let batch = labelled(&labels, &weights, vocabulary);
    let loss = cpu.loss(&batch, &hidden, &head, Some(&mut d_rows));
    // The log-sum-exp sums positive terms; what rounds is a logit's sum of D terms and the sixteen lanes over V.
    let bound = bound(width + vocabulary / 16);
    close(&format!("loss of {what}"), &loss.negative_log_likelihood, &negative, bound);
    close(&format!("d_hidden of {what}"), &cpu.read(&d_rows), &d_hidden, bound);
    assert_eq!(loss.greedy, greedy, "{what}");
    let without = cpu.loss(&batch, &hidden, &head, None);
    assert_eq!(without, loss, "{what}: the same loss without a gradient");
}

#[test]
fn rows_words_and_widths_that_nothing_divides() {
    for (count, vocabulary, width) in [
        (1, 7, 9),
        (7, 8, 1),
        (8, 63, 65),
        (9, 65, 13),
        (63, 129, 8),
        (1, 1_023, 7),
        (2, 1_024, 9),
        (3, 1_025, 13),
        (65, 2_100, 63),
    ] {
        check(count, vocabulary, width);
    }
}

/// 255, 256 and 257 label rows: around the rows that share one pass over the vocabulary.
#[test]
fn more_label_rows_than_share_a_pass() {
    for count in [255, 256, 257] {
        check(count, 1_100, 5);
    }
}

#[test]
fn a_vocabulary_of_one_word_costs_nothing() {
    let cpu = cpu();
    let head = cpu.weight(vec![1.0, -2.0, 3.0], 1, 3, promptmix::backend::Readers::Many);
    let mut d_hidden = cpu.rows(2, 3, Format::Float);
    let batch = labelled(&[0, 0], &[1.0, 1.0], 1);
    let loss = cpu.loss(&batch, &rows(&cpu, &numbers(1, 6, 1.0), 3), &head, Some(&mut d_hidden));
    assert_eq!(loss.negative_log_likelihood, [0.0, 0.0]);
    assert_eq!(cpu.read(&d_hidden), [0.0; 6]);
}

/// Equal logits: the lowest word is said, within a stretch of the vocabulary and across stretches, wherever the lanes
/// of a vector fall.
#[test]
fn ties_go_to_the_lowest_word() {
    let (cpu, vocabulary, width) = (cpu(), 3_000, 3);
    let batch = labelled(&[7], &[1.0], vocabulary);
    for tied in [[5, 6], [17, 900], [1_023, 1_024], [40, 2_999], [2_500, 2_980]] {
        let mut head = numbers(1, vocabulary * width, 0.1);
        for word in tied {
            head[word * width..(word + 1) * width].copy_from_slice(&[2.0, 2.0, 2.0]);
        }
        let head = cpu.weight(narrowed(&head), vocabulary, width, promptmix::backend::Readers::Many);
        let loss = cpu.loss(&batch, &rows(&cpu, &[1.0; 3], width), &head, None);
        assert_eq!(loss.greedy, [tied[0] as u32]);
    }
    let zeros =
        cpu.weight(vec![0.0; vocabulary * width], vocabulary, width, promptmix::backend::Readers::Many);
    assert_eq!(cpu.loss(&batch, &rows(&cpu, &[1.0; 3], width), &zeros, None).greedy, [0]);
}

/// e^x overflows f32 from 88.7 on, and underflows below -87: logits beyond both must not.
#[test]
fn large_logits_neither_overflow_nor_vanish() {
    let cpu = cpu();
    let head = cpu.weight(vec![300.0, 299.0, -300.0, 0.0], 4, 1, promptmix::backend::Readers::Many);
    for label in 0..4 {
        let batch = labelled(&[label], &[1.0], 4);
        let loss = cpu.loss(&batch, &rows(&cpu, &[1.0], 1), &head, None).negative_log_likelihood[0];
        let expected = (1.0 + (-1.0_f64).exp()).ln() + [0.0, 1.0, 600.0, 300.0][label as usize];
        // A unit in the last place of 300 is 3e-5.
        assert!((loss - expected).abs() <= 6e-5, "label {label}: {loss} instead of {expected}");
    }
}
