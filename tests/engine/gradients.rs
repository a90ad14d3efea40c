//! Every trained tensor's gradient against central differences of the loss, in f64.
//!
//! The tolerance: with h = 1e-5 the differences' truncation is about h²/6 = 2e-11 times the third derivative (up to
//! some thousands, for scores run through two softmaxes), and a loss of about 5, summed to 1e-15 relative, divided by
//! 2h adds 1e-10. Gradients here have norms from 1e-2 up, so 5e-7 of the norm holds both (the worst seen is 6e-8), and a term left out or
//! scaled wrongly by one part in 10,000 does not pass.

use promptmix::backend::cpu::Cpu;
use promptmix::backend::{Mixing, Objective, Scorer};
use promptmix::pretrained::{Activation, T5Config};

use crate::random::Random;
use crate::setting::{Case, SCORERS, Setting, examples, small_config};

const STEP: f64 = 1e-5;
const TOLERANCE: f64 = 5e-7;

/// Ragged, a one-token source among them; short targets, so that cross attention is absorbed.
const SHORT: [(usize, usize); 4] = [(17, 1), (1, 2), (9, 1), (6, 1)];
/// Targets long enough for cross attention through projected keys and values.
const LONG: [(usize, usize); 3] = [(4, 9), (11, 10), (1, 7)];

fn architectures() -> [T5Config; 3] {
    [
        small_config(Activation::Relu, true, 2, 3),
        small_config(Activation::GatedGelu, false, 3, 1),
        small_config(Activation::GatedSilu, true, 1, 2),
    ]
}

/// The largest difference between `gradient` and central differences, as a part of the norm of its segment's gradient,
/// and where. Three random directions a segment, its largest entry, and two entries at random.
fn worst_disagreement(case: &Case<Cpu<f64>>, gradient: &[f64]) -> (f64, String) {
    let mut worst = (0.0, "nothing was compared".to_owned());
    let total = |values: &[f64]| case.loss(values).iter().sum::<f64>();
    let mut random = Random::new(99);
    let layout = &case.mixture.layout;
    for run in 0..case.runs {
        for segment in layout.segments().iter().filter(|segment| segment.trained) {
            let range = layout.range(segment.name, run).expect("a segment");
            let own = &gradient[range.clone()];
            let norm = own.iter().map(|g| g * g).sum::<f64>().sqrt();
            let largest =
                (0..own.len()).fold(0, |best, i| if own[i].abs() > own[best].abs() { i } else { best });
            let mut directions: Vec<Vec<f64>> = Vec::new();
            for _ in 0..3 {
                let direction = random.normals(own.len(), 1.0);
                let length = direction.iter().map(|d| d * d).sum::<f64>().sqrt();
                directions.push(direction.iter().map(|d| d / length).collect());
            }
            for entry in [largest, random.below(own.len()), random.below(own.len())] {
                directions.push((0..own.len()).map(|i| f64::from(u8::from(i == entry))).collect());
            }
            for direction in directions {
                let at = |step: f64| {
                    let mut values = case.values.clone();
                    for (value, d) in values[range.clone()].iter_mut().zip(&direction) {
                        *value += step * d;
                    }
                    total(&values)
                };
                let difference = (at(STEP) - at(-STEP)) / (2.0 * STEP);
                let along = own.iter().zip(&direction).map(|(g, d)| g * d).sum::<f64>();
                let error = (along - difference).abs() / norm;
                // A NaN, or a gradient of zero throughout, is as wrong as can be.
                let error = if error.is_finite() && norm > 1e-6 { error } else { f64::INFINITY };
                if error >= worst.0 {
                    worst = (
                        error,
                        format!("{} of run {run}: {along:e}, differences {difference:e}", segment.name),
                    );
                }
            }
        }
    }
    worst
}

fn check(what: &str, setting: &Setting) {
    check_objective(what, setting, Objective::default());
}

fn check_objective(what: &str, setting: &Setting, objective: Objective) {
    let mut case = setting.build::<f64>(1);
    case.batch = case.batch.with_objective(objective);
    let (loss, gradient) = case.gradient();
    let alone = case.loss(&case.values);
    assert_eq!(loss.per_run, alone, "{what}: the loss with and without its gradient");
    let (worst, place) = worst_disagreement(&case, &gradient);
    println!("{what}: worst {worst:.1e}, {place}");
    assert!(worst <= TOLERANCE, "{what}: {worst:e} of the norm in {place}");
}

/// Operations of scoring cross attention through the encoder's rows, and through keys and values, by their formulas.
fn cross_attention_operations(setting: &Setting) -> [usize; 2] {
    let config = setting.config();
    let (h, k, d) = (config.num_heads, config.d_kv, config.d_model);
    let lengths = setting.examples.iter().map(|e| (e.source.len() + setting.prompt_length, e.target.len()));
    lengths.fold([0, 0], |[absorbed, plain], (n, t)| {
        [absorbed + 2 * t * h * d * (n + k), plain + 2 * n * h * k * (d + t)]
    })
}

#[test]
fn label_smoothing_and_z_loss() {
    let architectures = architectures();
    for (index, objective) in [(0.2, 0.0), (0.0, 0.05), (0.1, 0.01)].into_iter().enumerate() {
        let (label_smoothing, z_loss) = objective;
        let config = architectures[index].clone();
        let setting = Setting::new(config.clone(), examples(4, &config, &SHORT));
        let objective = Objective { label_smoothing, z_loss };
        check_objective(&format!("{objective:?}"), &setting, objective);
        let plain = setting.build::<f64>(1).gradient();
        let mut smoothed = setting.build::<f64>(1);
        smoothed.batch = smoothed.batch.with_objective(objective);
        assert_ne!(plain, smoothed.gradient(), "{objective:?} changes what is learnt");
    }
}

#[test]
fn every_scorer_with_and_without_target_temperature_and_dropout() {
    let architectures = architectures();
    let mut case = 0;
    for scorer in SCORERS {
        for (learnt_temperature, without_target) in
            [(false, false), (true, false), (false, true), (true, true)]
        {
            // Uniform weights of frozen sources leave nothing to train.
            if scorer == Scorer::Uniform && (learnt_temperature || without_target) {
                continue;
            }
            // A constant mixture has no temperature.
            if scorer == Scorer::Constant && learnt_temperature {
                continue;
            }
            // Dot has nothing to train but the target and the temperature.
            if scorer == Scorer::Dot && without_target && !learnt_temperature {
                continue;
            }
            for dropout in [0.0, 0.2] {
                for (lengths, absorbed) in [(&SHORT[..], true), (&LONG[..], false)] {
                    let config = architectures[case % architectures.len()].clone();
                    case += 1;
                    let mut setting = Setting::new(config.clone(), examples(case as u64, &config, lengths));
                    setting.mixing.scorer = Some(scorer);
                    setting.mixing.without_target = without_target;
                    setting.learnt_temperature = learnt_temperature;
                    setting.dropout = (dropout, 3);
                    let [through_rows, projected] = cross_attention_operations(&setting);
                    assert_eq!(
                        through_rows <= projected,
                        absorbed,
                        "the lengths lie on their side of the switch"
                    );
                    check(
                        &format!(
                            "{scorer:?}, {:?}, learnt temperature {learnt_temperature}, without target \
                             {without_target}, dropout {dropout}, absorbed {absorbed}",
                            config.activation
                        ),
                        &setting,
                    );
                }
            }
        }
    }
}

#[test]
fn every_scorer_meets_every_architecture() {
    for config in architectures() {
        for scorer in SCORERS {
            let mut setting = Setting::new(config.clone(), examples(5, &config, &SHORT));
            setting.mixing.scorer = Some(scorer);
            setting.learnt_temperature = true;
            setting.dropout = (0.1, 8);
            check(&format!("{scorer:?} before {:?}", config.activation), &setting);
        }
    }
}

/// What inputs are standardized by takes part, and has no gradient of its own.
#[test]
fn standardized_inputs() {
    let architectures = architectures();
    for (index, scorer) in SCORERS.into_iter().filter(|scorer| scorer.reads_input()).enumerate() {
        let config = architectures[index % architectures.len()].clone();
        let mut setting = several_runs(&config, &SHORT);
        setting.mixing.scorer = Some(scorer);
        let plain = setting.build::<f64>(1).gradient().0.per_run;
        setting.standardized = true;
        check(&format!("{scorer:?}, standardized"), &setting);
        let case = setting.build::<f64>(1);
        let (loss, gradient) = case.gradient();
        assert_ne!(loss.per_run, plain, "{scorer:?}: the inputs change");
        for run in 0..setting.runs {
            for name in ["input_mean", "input_scale"] {
                let range = case.mixture.layout.range(name, run).expect("a segment");
                assert!(gradient[range].iter().all(|value| *value == 0.0), "{scorer:?}: {name} never moves");
            }
        }
    }
}

#[test]
fn a_plain_prompt() {
    for config in architectures() {
        for (lengths, dropout) in [(&SHORT[..], 0.0), (&LONG[..], 0.3)] {
            let mut setting = Setting::new(config.clone(), examples(6, &config, lengths));
            setting.mixing = Mixing::plain();
            setting.dropout = (dropout, 1);
            check(&format!("plain prompt, {:?}, dropout {dropout}", config.activation), &setting);
        }
    }
}

/// Three runs, two tasks each, in one batch.
fn several_runs(config: &T5Config, lengths: &[(usize, usize)]) -> Setting {
    let mut setting = Setting::new(config.clone(), examples(7, config, lengths));
    (setting.runs, setting.targets, setting.learnt_temperature) = (3, 2, true);
    setting.dropout = (0.1, 2);
    for (place, example) in setting.examples.iter_mut().enumerate() {
        (example.run, example.target_prompt) = (place as u32 * 3 / lengths.len() as u32, place as u32 % 2);
        example.index = place as u32 / 2;
    }
    setting
}

#[test]
fn several_target_prompts_of_several_runs_in_one_batch() {
    let config = small_config(Activation::GatedGelu, false, 2, 2);
    for scorer in SCORERS {
        let mut setting = several_runs(&config, &[(3, 1), (8, 2), (1, 1), (5, 3), (12, 1), (2, 2), (7, 1)]);
        setting.mixing.scorer = Some(scorer);
        check(&format!("three runs, two tasks, {scorer:?}"), &setting);
    }
}

#[test]
fn a_run_feels_nothing_of_its_neighbours_in_the_batch() {
    let config = small_config(Activation::Relu, true, 2, 2);
    let lengths = [(3, 1), (8, 2), (1, 1), (5, 3), (12, 1), (2, 2), (7, 1)];
    let mut case = several_runs(&config, &lengths).build::<f64>(1);
    let (loss, gradient) = case.gradient();
    let own = case.mixture.layout.len()..2 * case.mixture.layout.len();
    for (place, value) in case.values.iter_mut().enumerate() {
        if !own.contains(&place) {
            *value += 0.5;
        }
    }
    let (other_loss, other_gradient) = case.gradient();
    assert_eq!(loss.per_run[1], other_loss.per_run[1]);
    assert_ne!(loss.per_run[0], other_loss.per_run[0]);
    assert_eq!(gradient[own.clone()], other_gradient[own]);
    assert_ne!(gradient[0], other_gradient[0]);
}

#[test]
fn a_pool_that_padding_joins() {
    let config = small_config(Activation::Relu, true, 2, 2);
    let mut setting = Setting::new(config.clone(), examples(8, &config, &SHORT));
    let without = setting.build::<f64>(1).gradient();
    setting.pooled_padding = Some((10, 0));
    let with = setting.build::<f64>(1).gradient();
    assert_ne!(without.0.attention, with.0.attention, "padding changes the weights of short examples");
    let of_longest = 0..setting.sources + 1;
    assert_eq!(
        without.0.attention[of_longest.clone()],
        with.0.attention[of_longest],
        "and not of the longest"
    );
    check("padding in the pool", &setting);
}

#[test]
fn the_check_refuses_a_gradient_that_is_zero_or_nan_or_slightly_off() {
    let config = small_config(Activation::Relu, true, 1, 1);
    let mut setting = Setting::new(config.clone(), examples(9, &config, &SHORT));
    setting.learnt_temperature = true;
    let case = setting.build::<f64>(1);
    let (_, gradient) = case.gradient();
    assert!(worst_disagreement(&case, &gradient).0 <= TOLERANCE);
    for segment in case.mixture.layout.segments() {
        for damage in [|_: f64| 0.0, |_: f64| f64::NAN, |g: f64| 1.000_1 * g, |g: f64| -g] {
            let mut damaged = gradient.clone();
            damaged[segment.range.clone()].iter_mut().for_each(|g| *g = damage(*g));
            let (worst, _) = worst_disagreement(&case, &damaged);
            assert!(worst > TOLERANCE, "{}: {worst:e} passes", segment.name);
        }
    }
}
