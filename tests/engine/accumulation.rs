//! Gradient accumulation: micro-batches that share the step's label tokens add up to the large batch.

use promptmix::Result;
use promptmix::backend::OptimizerOps;
use promptmix::backend::cpu::{Cpu, Element};
use promptmix::pretrained::Activation;
use promptmix::verify::{Tolerance, compare};

use crate::setting::{Case, Setting, examples, small_config};

fn micro_batches_add_up<E: Element>(tolerance: f64) -> Result<()> {
    let config = small_config(Activation::GatedGelu, false, 2, 2);
    let lengths = [(17, 1), (1, 3), (9, 1), (6, 2), (30, 1), (2, 5), (12, 1)];
    let mut setting = Setting::new(config.clone(), examples(1, &config, &lengths));
    (setting.runs, setting.targets, setting.learnt_temperature) = (2, 2, true);
    setting.dropout = (0.1, 5);
    for (place, example) in setting.examples.iter_mut().enumerate() {
        (example.run, example.target_prompt) = (u32::from(place > 3), place as u32 % 2);
        example.index = place as u32 % 4;
    }
    let case: Case<Cpu<E>> = setting.build(2);
    let tokens = case.label_tokens();
    assert_eq!(tokens, [7, 7]);
    let (large, gradient) = case.gradient();

    // Unequal micro-batches; the first run's examples are spread over two of them, the second's over two.
    let mut state = case.backend.state(&case.mixture.layout, &case.values, 2)?;
    let mut losses = vec![0.0; 2];
    for micro in [0..3, 3..5, 5..7] {
        let batch = setting.pack(&setting.examples[micro]);
        let dropout = case.dropout.as_ref();
        let (loss, _) = case.model.loss_and_gradient(
            &case.backend,
            &case.mixture,
            &mut state,
            &batch,
            &tokens,
            dropout,
        )?;
        losses.iter_mut().zip(loss.per_run).for_each(|(sum, part)| *sum += part);
    }
    for (what, actual, expected, tolerance) in [
        ("loss", &losses, &large.per_run, tolerance),
        ("gradient", &case.backend.read_gradient(&state)?, &gradient, 10.0 * tolerance),
    ] {
        let comparison = compare(actual, expected);
        println!("{what}: {:.1e} of the largest", comparison.worst_relative);
        assert!(comparison.passes(Tolerance::OfLargest(tolerance)), "{what}: {comparison:?}");
    }
    // A micro-batch of its own, with its own mean, is not part of the large batch's.
    let first = setting.pack(&setting.examples[..3]);
    let own = [first.label_tokens(0), 0];
    let (loss, _) = case.gradient_of(&first, &own);
    assert!((loss.per_run[0] - large.per_run[0]).abs() > 1e-3);

    case.backend.begin_step(&mut state)?;
    assert!(case.backend.read_gradient(&state)?.iter().all(|&g| g == 0.0));
    Ok(())
}

/// A few dozen roundings of 6e-8; gradients sum over more rows.
#[test]
fn in_f32() -> Result<()> {
    micro_batches_add_up::<f32>(2e-6)
}

#[test]
fn in_f64() -> Result<()> {
    micro_batches_add_up::<f64>(1e-13)
}
