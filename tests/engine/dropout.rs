//! Dropout: the published generator, the promised share, one stream a mask, and masks that belong to an example
//! wherever it is packed.

use std::collections::HashSet;

use promptmix::backend::cpu::Cpu;
use promptmix::backend::{DropoutStep, Side, Site, SiteKind, philox};
use promptmix::pretrained::Activation;

use crate::setting::{Case, Setting, examples, small_config};

/// The vectors that the authors' Random123 library publishes for philox4x32 with ten rounds.
#[test]
fn philox_gives_the_published_answers() {
    assert_eq!(philox([0; 2], [0; 4]), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
    assert_eq!(philox([u32::MAX; 2], [u32::MAX; 4]), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    assert_eq!(
        philox([0xa409_3822, 0x299f_31d0], [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344]),
        [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1]
    );
}

fn site() -> Site {
    Site::new(Side::Decoder, SiteKind::FeedForward, 5)
}

#[test]
fn an_element_is_kept_exactly_when_its_word_reaches_the_threshold() {
    for probability in [0.1, 0.5, 0.25, 0.999, 1.0 / 65_536.0] {
        let (step, seed) = (7, 0x1234_5678_9abc_def0_u64);
        let dropout = DropoutStep::new(probability, step, &[1, seed]).expect("something is dropped");
        let mut row = vec![9.0; 301];
        dropout.row(site(), 1, 40, 11).fill(2.0, -1.0, &mut row);
        let key = [(seed >> 32) as u32 ^ seed as u32, site().0];
        for (column, &value) in row.iter().enumerate() {
            let block = philox(key, [step as u32, 40, 11, (column / 8) as u32]);
            let word = block[column % 8 / 2] >> (16 * (column % 2)) & 0xffff;
            let kept = f64::from(word) >= (probability * 65_536.0).round();
            assert_eq!(value, if kept { 2.0 } else { -1.0 }, "column {column} at {probability}");
        }
    }
}

#[test]
fn a_rows_mask_does_not_depend_on_its_length() {
    let dropout = DropoutStep::new(0.3, 1, &[5]).expect("something is dropped");
    let row = dropout.row(site(), 0, 3, 2);
    let mut longest = vec![0.0_f32; 200];
    row.fill(1.0, 0.0, &mut longest);
    for length in [1, 7, 8, 9, 63, 64, 65, 129] {
        let mut shorter = vec![0.5; length];
        row.fill(1.0, 0.0, &mut shorter);
        assert_eq!(shorter, longest[..length]);
    }
}

/// Five deviations of a binomial count: a right generator fails one seed in a million.
#[test]
fn the_kept_share_is_binomial() {
    for probability in [0.1, 0.5, 0.9] {
        let dropout = DropoutStep::new(probability, 2, &[77]).expect("something is dropped");
        assert_eq!(dropout.scale(), 1.0 / (1.0 - probability));
        let (rows, columns) = (1_000, 1_000);
        let mut kept = 0.0;
        let mut row = vec![0.0; columns];
        for index in 0..rows {
            dropout.row(site(), 0, index, 4).fill(1.0, 0.0, &mut row);
            kept += row.iter().sum::<f64>();
        }
        let count = f64::from(rows) * columns as f64;
        // The rate is what 16 bits hold of it.
        let rate = f64::from(dropout.threshold()) / 65_536.0;
        let deviation = (count * rate * (1.0 - rate)).sqrt();
        println!(
            "p {probability}: kept {kept} of {count}, {:+.2} deviations",
            (kept - count * (1.0 - rate)) / deviation
        );
        assert!((kept - count * (1.0 - rate)).abs() <= 5.0 * deviation);
    }
}

#[test]
fn no_two_masks_of_a_model_share_draws() {
    let kinds = [
        SiteKind::Embedding,
        SiteKind::SelfAttention,
        SiteKind::SelfAttentionOutput,
        SiteKind::CrossAttention,
        SiteKind::CrossAttentionOutput,
        SiteKind::FeedForward,
        SiteKind::FeedForwardOutput,
        SiteKind::FinalNorm,
    ];
    let mut seen = HashSet::new();
    // T5 11B: 24 layers of 128 heads.
    for side in [Side::Encoder, Side::Decoder] {
        for kind in kinds {
            for layer in 0..24 {
                for head in 0..128 {
                    let site = Site::new(side, kind, layer).head(head);
                    assert!(seen.insert(site.0), "{side:?} {kind:?} layer {layer} head {head}");
                }
            }
        }
    }
    // Nor do runs, steps, examples or rows.
    let dropout = |step, seeds: &[u64]| DropoutStep::new(0.5, step, seeds).expect("something is dropped");
    let mask = |dropout: &DropoutStep, site: Site, run, index, row| {
        let mut mask = vec![0_u8; 128];
        dropout.row(site, run, index, row).fill(1, 0, &mut mask);
        mask
    };
    let first = dropout(1, &[1, 2]);
    let masks: HashSet<Vec<u8>> = HashSet::from([
        mask(&first, site(), 0, 0, 0),
        mask(&first, site(), 1, 0, 0),
        mask(&first, site(), 0, 1, 0),
        mask(&first, site(), 0, 0, 1),
        mask(&first, site().head(1), 0, 0, 0),
        mask(&dropout(2, &[1, 2]), site(), 0, 0, 0),
    ]);
    assert_eq!(masks.len(), 6);
}

#[test]
fn rate_zero_drops_nothing() {
    assert_eq!(DropoutStep::new(0.0, 3, &[1]), None);
    let config = small_config(Activation::Relu, true, 2, 2);
    let mut setting = Setting::new(config.clone(), examples(1, &config, &[(5, 2), (9, 1)]));
    let without = setting.build::<f64>(1).gradient();
    setting.dropout = (0.1, 3);
    let with = setting.build::<f64>(1).gradient();
    assert_ne!(without.0.per_run, with.0.per_run, "dropout changes the loss");
    setting.dropout = (0.0, 3);
    assert_eq!(setting.build::<f64>(1).gradient(), without);
}

#[test]
fn evaluation_ignores_the_rate_and_steps_differ() {
    let config = small_config(Activation::GatedGelu, false, 2, 2);
    let mut setting = Setting::new(config.clone(), examples(1, &config, &[(5, 2), (9, 1)]));
    let loss = |setting: &Setting| {
        let case: Case<Cpu<f64>> = setting.build(1);
        case.loss(&case.values)
    };
    setting.dropout = (0.3, 1);
    let first = loss(&setting);
    assert_eq!(first, loss(&setting), "one step's masks are always the same");
    setting.dropout = (0.3, 2);
    assert_ne!(first, loss(&setting), "another step has others");
}

/// Over many steps the mean of the dropped loss's gradient stays near the undropped: kept elements are scaled up. An
/// unscaled mask of rate 0.1 would shrink the encoder's input by a tenth.
#[test]
fn kept_elements_make_up_for_dropped_ones() {
    let dropout = DropoutStep::new(0.1, 0, &[3]).expect("something is dropped");
    let mut row = vec![0.0; 100_000];
    dropout.row(site(), 0, 0, 0).fill(dropout.scale(), 0.0, &mut row);
    let mean = row.iter().sum::<f64>() / row.len() as f64;
    // Deviation of the mean: sqrt(p / (1 - p) / 100,000) = 0.00105.
    assert!((mean - 1.0).abs() <= 5.0 * 0.00105, "{mean}");
}

/// Loss and gradient of a batch are the sums of its examples', each alone with its own index; and an example's place in
/// the batch does not matter. f64: what is left is rounding, some 1e-15 of the largest gradient.
#[test]
fn masks_follow_the_example_wherever_it_is_packed() {
    for (activation, tied) in [(Activation::Relu, true), (Activation::GatedSilu, false)] {
        let config = small_config(activation, tied, 2, 3);
        let lengths = [(17, 1), (1, 2), (9, 4), (6, 1), (30, 2)];
        let mut setting = Setting::new(config.clone(), examples(2, &config, &lengths));
        (setting.runs, setting.learnt_temperature) = (2, true);
        setting.dropout = (0.2, 6);
        for (place, example) in setting.examples.iter_mut().enumerate() {
            (example.run, example.index) = (u32::from(place >= 3), 10 + place as u32);
        }
        let case: Case<Cpu<f64>> = setting.build(1);
        let tokens = case.label_tokens();
        let (together, gradient) = case.gradient();

        let mut summed = (vec![0.0; 2], vec![0.0; gradient.len()]);
        for example in &setting.examples {
            let (loss, part) = case.gradient_of(&setting.pack(std::slice::from_ref(example)), &tokens);
            summed.0.iter_mut().zip(loss.per_run).for_each(|(sum, part)| *sum += part);
            summed.1.iter_mut().zip(part).for_each(|(sum, part)| *sum += part);
        }
        close(&together.per_run, &summed.0, 1e-13);
        close(&gradient, &summed.1, 1e-12);

        let reversed: Vec<_> = [2, 1, 0, 4, 3].map(|place| setting.examples[place].clone()).into();
        let (loss, other) = case.gradient_of(&setting.pack(&reversed), &tokens);
        close(&together.per_run, &loss.per_run, 1e-13);
        close(&gradient, &other, 1e-12);

        // And the index is what carries the mask.
        let mut renamed = setting.examples.clone();
        renamed[0].index = 99;
        let (loss, _) = case.gradient_of(&setting.pack(&renamed), &tokens);
        assert_ne!(loss.per_run[0], together.per_run[0]);
        assert_eq!(loss.per_run[1], together.per_run[1]);
    }
}

fn close(actual: &[f64], expected: &[f64], tolerance: f64) {
    let comparison = promptmix::verify::compare(actual, expected);
    assert!(comparison.passes(promptmix::verify::Tolerance::OfLargest(tolerance)), "{comparison:?}");
}
