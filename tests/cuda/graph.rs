//! One captured graph serves every batch of its bucket and gives, bit for bit, what launches one by one give.

use promptmix::backend::{Backend, Batch, DropoutStep, OptimizerStep, Scorer};
use promptmix::cuda::{Cuda, Precision};
use promptmix::model::{StepLoss, label_weights};
use promptmix::pretrained::Activation;

use crate::device::device;
use crate::model::config;
use crate::random::Random;
use crate::setting::{Case, Setting, example};

/// Batches of four examples whose rows all fall into one bucket, each of other lengths and other tokens.
fn batches(case: &Case<Cuda>, setting: &Setting, count: u64) -> Vec<Batch> {
    let mut random = Random::new(77);
    (0..count)
        .map(|number| {
            let examples: Vec<_> = (0..4)
                .map(|b| {
                    let (source, target) = (4 + random.below(6), 1 + random.below(3));
                    example(&mut random, setting.config(), source, target, (4 * number + b) as u32)
                })
                .collect();
            let batch = setting.pack(&examples);
            batch.weighted(label_weights(&batch, &[batch.label_tokens(0)]))
        })
        .inspect(|batch| assert_eq!(batch.examples(), case.batch.examples()))
        .collect()
}

/// What some steps came to.
struct Steps {
    losses: Vec<StepLoss>,
    /// Parameters behind the last.
    values: Vec<f64>,
    operations: u64,
    replays: u64,
    buckets: usize,
}

fn steps(graphs: bool, setting: &Setting, count: u64) -> Option<Steps> {
    let device = device(Precision::Bf16)?;
    device.cuda.set_graphs(graphs);
    let case = setting.build_on(device.cuda);
    let cuda = &case.backend;
    let mut state = cuda.state(&case.mixture.layout, &case.values, 1);
    let mut recorder = promptmix::cuda::Recorder::default();
    let mut losses = Vec::new();
    for (step, batch) in batches(&case, setting, count).iter().enumerate() {
        let dropout = DropoutStep::new(setting.dropout.0, step as u64, &[9]);
        cuda.zero_gradient(&mut state);
        let issued = cuda.record(&mut recorder, batch, dropout.as_ref(), |batch| {
            case.model.issue(cuda, &case.mixture, &mut state, batch, dropout.as_ref()).0
        });
        losses.push(issued.read(cuda, batch, 1));
        cuda.schedule(&mut state, &[OptimizerStep::new(0.05, 0.02)]);
        cuda.optimizer_step(&mut state);
        assert!(cuda.optimizer_reports(&state)[0].applied, "step {step}");
    }
    cuda.health().expect("a healthy device");
    let [values, ..] = cuda.read_state(&state);
    let (replays, buckets) = (recorder.replays(), recorder.buckets());
    Some(Steps { losses, values, operations: cuda.operations(), replays, buckets })
}

#[test]
fn a_graph_gives_what_launches_give_bit_for_bit() {
    for (activation, dropout) in [(Activation::Relu, 0.1), (Activation::GatedGelu, 0.0)] {
        let config = config(activation, true);
        let start = [(5, 2), (4, 1), (9, 3), (6, 1)];
        let mut setting = Setting::new(config.clone(), crate::setting::examples(5, &config, &start));
        setting.mixing.scorer = Some(Scorer::Bottleneck);
        setting.dropout = (dropout, 0);
        let Some(eager) = steps(false, &setting, 20) else { return };
        let Some(replayed) = steps(true, &setting, 20) else { return };
        assert_eq!(eager.replays, 0);
        assert_eq!(
            (replayed.replays, replayed.buckets),
            (19, 1),
            "the first batch of the bucket runs as it is"
        );
        assert!(eager.losses.iter().all(|step| step.per_run[0].is_finite() && step.per_run[0] > 0.0));
        assert!(eager.losses.windows(2).all(|pair| pair[0] != pair[1]), "every batch has another loss");
        assert_eq!(replayed.operations, eager.operations);
        assert_eq!(replayed.losses, eager.losses);
        assert_eq!(replayed.values, eager.values);
    }
}
