//! Whole steps of small random models against the CPU's in f64: every activation, scorer and setting.

use promptmix::backend::{Device as _, Scorer};
use promptmix::cuda::{Cuda, Precision};
use promptmix::pretrained::{Activation, T5Config};
use promptmix::verify::{Tolerance, compare};

use crate::device::device;
use crate::setting::{Setting, examples, small_config};

/// V 72, D 40, K 8, H 3, F 56: no two alike, all multiples of what the kernels need.
pub fn config(activation: Activation, tied: bool) -> T5Config {
    let mut config = small_config(activation, tied, 2, 2);
    (config.vocab_size, config.d_model, config.d_kv, config.d_ff) = (72, 40, 8, 56);
    config
}

fn check(what: &str, setting: &Setting) {
    let (loss, gradient) = setting.build::<f64>(2).gradient();
    for precision in [Precision::F32, Precision::Bf16] {
        let Some(device) = device(precision) else { return };
        let case = setting.build_on(device.cuda);
        let (found_loss, found) = case.gradient();
        let again = case.gradient();
        assert_eq!(
            case.loss(&case.values),
            found_loss.per_run,
            "{what} {precision:?}: keeping changes nothing"
        );
        case.backend.synchronize().unwrap_or_else(|error| panic!("{what} {precision:?}: {error}"));
        assert!(again == (found_loss.clone(), found.clone()), "{what} {precision:?}: the same step twice");
        // f32: about 2,000 terms after one another, each off by half a place. bf16: a small model of two layers is not
        // PyTorch's fixture, so the bounds are wide here; the fixtures hold the narrow ones.
        let (of_loss, of_gradient) = match precision {
            Precision::F32 => (1e-5, Tolerance::OfLargest(2e-5)),
            _ => (2e-2, Tolerance::Cosine(2e-2)),
        };
        let loss = compare(&found_loss.per_run, &loss.per_run);
        assert!(loss.passes(Tolerance::OfLargest(of_loss)), "{what} {precision:?}: loss {loss:?}");
        let gradient = compare(&found, &gradient);
        assert!(gradient.passes(of_gradient), "{what} {precision:?}: gradient {gradient:?}");
    }
}

#[test]
fn every_activation_and_scorer() {
    for (activation, tied) in
        [(Activation::Relu, true), (Activation::GatedGelu, false), (Activation::GatedSilu, true)]
    {
        let config = config(activation, tied);
        let lengths = [(7, 2), (1, 1), (30, 3), (12, 9)];
        for (scorer, dropped) in [
            (Scorer::Bottleneck, 0.1),
            (Scorer::Linear, 0.0),
            (Scorer::Dot, 0.1),
            (Scorer::Token, 0.0),
            (Scorer::Uniform, 0.1),
            (Scorer::Constant, 0.1),
        ] {
            let mut setting = Setting::new(config.clone(), examples(1, &config, &lengths));
            setting.mixing.scorer = Some(scorer);
            setting.standardized = scorer == Scorer::Bottleneck;
            setting.dropout = (dropped, 4);
            check(&format!("{activation:?} {scorer:?} dropout {dropped}"), &setting);
        }
    }
}

#[test]
fn several_runs_and_target_prompts_in_one_batch() {
    let config = config(Activation::GatedGelu, false);
    let lengths = [(7, 2), (1, 1), (30, 3), (12, 9), (5, 1)];
    let mut setting = Setting::new(config.clone(), examples(2, &config, &lengths));
    (setting.runs, setting.targets, setting.learnt_temperature) = (2, 2, true);
    for (number, example) in setting.examples.iter_mut().enumerate() {
        (example.run, example.target_prompt) = (u32::from(number > 2), number as u32 % 2);
    }
    (setting.dropout, setting.pooled_padding) = ((0.1, 3), Some((20, 0)));
    check("two runs of two targets", &setting);
    setting.mixing.without_target = true;
    check("two runs without targets", &setting);
}

#[test]
fn prompt_tuning_without_a_mixture() {
    let config = config(Activation::Relu, true);
    let mut setting = Setting::new(config.clone(), examples(3, &config, &[(7, 2), (40, 1)]));
    setting.mixing.scorer = None;
    setting.dropout = (0.1, 3);
    check("prompt tuning", &setting);
}

/// Eight runs of four examples share one pass: an eighth of the launches, and every run's own numbers.
#[test]
fn eight_runs_together_issue_an_eighth_of_the_launches() {
    let config = config(Activation::Relu, true);
    let lengths: Vec<(usize, usize)> = (0..32).map(|b| (3 + 5 * b % 17, 1 + b % 2)).collect();
    let mut setting = Setting::new(config.clone(), examples(4, &config, &lengths));
    setting.runs = 8;
    for (number, example) in setting.examples.iter_mut().enumerate() {
        (example.run, example.index) = (number as u32 / 4, number as u32 % 4);
    }
    let Some(device) = device(Precision::F32) else { return };
    let case = setting.build_on(device.cuda);
    // Loading launches nothing, so that these are a step's.
    let (loss, gradient) = case.gradient();
    let together = case.backend.kernels().launches();
    let length = case.mixture.layout.len();
    let mut alone_launches = 0;
    for run in 0..8 {
        let mut alone = Setting { runs: 1, ..setting.clone() };
        alone.examples = setting.examples[4 * run..4 * run + 4].to_vec();
        alone.examples.iter_mut().for_each(|example| example.run = 0);
        let mut alone = alone.build_on(Cuda::poisoning(0, Precision::F32).expect("a device"));
        let range = run * length..(run + 1) * length;
        alone.values = case.values[range.clone()].to_vec();
        let (alone_loss, alone_gradient) = alone.gradient();
        alone_launches += alone.backend.kernels().launches();
        // The same sums, cut up by other numbers of rows.
        let bound = Tolerance::OfLargest(2e-6);
        let comparison = compare(&gradient[range], &alone_gradient);
        assert!(comparison.passes(bound), "the gradient of run {run}: {comparison:?}");
        let comparison = compare(&loss.per_run[run..=run], &alone_loss.per_run);
        assert!(comparison.passes(bound), "the loss of run {run}: {comparison:?}");
    }
    eprintln!("{together} launches together, {alone_launches} alone");
    assert!(together as f64 <= 0.15 * alone_launches as f64, "{together} launches of {alone_launches}");
}
