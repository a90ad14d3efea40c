//! A NaN in any weight, source or parameter that the pass reads shows in its loss: no max, softmax or ReLU hides it.

use promptmix::Result;
use promptmix::backend::cpu::Cpu;
use promptmix::backend::{MixOps, OptimizerOps, OptimizerStep};
use promptmix::pretrained::{Activation, T5Config};

use crate::random::Random;
use crate::setting::{Case, SCORERS, Setting, examples, small_config};

/// 53 label rows before 61 words: enough for every bucket of the position bias to be met.
fn setting(config: &T5Config) -> Setting {
    let mut setting = Setting::new(config.clone(), examples(1, config, &[(17, 1), (1, 12), (20, 2)]));
    setting.learnt_temperature = true;
    setting
}

fn loss(setting: &Setting) -> f64 {
    let case: Case<Cpu<f32>> = setting.build(1);
    let (with_gradient, _) = case.gradient();
    let loss = case.loss(&case.values)[0];
    assert_eq!(loss.is_nan(), with_gradient.per_run[0].is_nan());
    loss
}

#[test]
fn in_any_weight() {
    for (activation, tied) in
        [(Activation::Relu, true), (Activation::GatedGelu, false), (Activation::GatedSilu, true)]
    {
        let config = small_config(activation, tied, 2, 2);
        let mut setting = setting(&config);
        assert!(loss(&setting).is_finite());
        let mut random = Random::new(4);
        for (name, shape) in config.tensors() {
            let length: usize = shape.iter().product();
            let index = match name.as_str() {
                // Of the embedding, a row that is read: the first source token's.
                "shared.weight" => setting.examples[0].source[0] as usize * config.d_model + 3,
                // The decoder meets all buckets of its own half and the encoder all of both.
                _ => random.below(length),
            };
            setting.tensors.poisoned = Some((name.clone(), index));
            assert!(loss(&setting).is_nan(), "{activation:?}: a NaN at {index} of {name} is hidden");
        }
    }
}

/// A padding row that only the pool reads: it is no token of source or decoder, and the head is another matrix.
#[test]
fn in_a_row_that_only_the_pool_reads() {
    let config = small_config(Activation::Relu, false, 1, 1);
    let mut setting = setting(&config);
    let padding = (2..60).find(|&id| {
        setting.examples.iter().all(|example| !example.source.contains(&id) && !example.target.contains(&id))
    });
    let padding = padding.expect("an unused token");
    setting.pooled_padding = Some((50, padding));
    let clean = loss(&setting);
    for column in [0, 12] {
        setting.tensors.poisoned = Some(("shared.weight".into(), padding as usize * config.d_model + column));
        setting.pooled_padding = None;
        assert!(loss(&setting).is_finite(), "nothing else reads the row");
        setting.pooled_padding = Some((50, padding));
        assert!(loss(&setting).is_nan(), "a NaN in column {column} is hidden by the max; without it {clean}");
    }
}

#[test]
fn in_any_parameter_or_source() -> Result<()> {
    let config = small_config(Activation::Relu, true, 1, 1);
    for scorer in SCORERS {
        let mut setting = setting(&config);
        setting.mixing.scorer = Some(scorer);
        setting.standardized = scorer.reads_input();
        let mut case: Case<Cpu<f32>> = setting.build(1);
        let clean = case.values.clone();
        for segment in case.mixture.layout.segments() {
            for index in [segment.range.start, segment.range.end - 1] {
                let mut values = clean.clone();
                values[index] = f64::NAN;
                let loss = case.loss(&values)[0];
                assert!(loss.is_nan(), "{scorer:?}: a NaN in {} gives {loss}", segment.name);
            }
        }
        let length = setting.sources * setting.prompt_length * config.d_model;
        for index in [0, length / 2, length - 1] {
            let mut sources: Vec<f32> = (0..length).map(|place| (place as f32 * 0.7).sin()).collect();
            let (count, length) = (setting.sources, setting.prompt_length);
            let put =
                |sources: &[f32]| case.backend.sources(sources, count, length, config.d_model).map(Some);
            case.mixture.sources = put(&sources)?;
            assert!(case.loss(&clean)[0].is_finite());
            sources[index] = f32::NAN;
            case.mixture.sources = put(&sources)?;
            let loss = case.loss(&clean)[0];
            assert!(loss.is_nan(), "{scorer:?}: a NaN at {index} of the sources gives {loss}");
        }
    }
    Ok(())
}

/// One run's NaN stays its own: its update is skipped and reported, the other run's is applied.
#[test]
fn a_gradient_that_is_not_finite_leaves_its_run_alone_as_it_was() -> Result<()> {
    let config = small_config(Activation::Relu, true, 1, 1);
    let mut setting = setting(&config);
    setting.runs = 2;
    setting.examples[2].run = 1;
    let case: Case<Cpu<f32>> = setting.build(1);
    let (_, gradient) = case.gradient();
    let half = case.mixture.layout.len();
    for damage in [f64::NAN, f64::INFINITY] {
        let mut state = case.backend.state(&case.mixture.layout, &case.values, 2)?;
        let mut damaged = gradient.clone();
        damaged[half - 1] = damage;
        case.backend.write_gradient(&mut state, &damaged)?;
        case.backend.optimizer_step(&mut state, &[OptimizerStep::new(0.3, 0.1); 2])?;
        let reports = case.backend.reports(&mut state)?.remove(0);
        assert_eq!([reports[0].applied, reports[1].applied], [false, true]);
        assert_eq!(case.backend.updates(&state)?, [0, 1]);
        let [values, first, _] = case.backend.read_state(&state)?;
        assert_eq!(values[..half], case.values[..half]);
        assert!(first[..half].iter().all(|&moment| moment == 0.0));
        assert_ne!(values[half..], case.values[half..]);
        assert!(values.iter().all(|value| value.is_finite()));
    }
    Ok(())
}
