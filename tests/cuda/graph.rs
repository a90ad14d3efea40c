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

/// Loss, attention and parameters after each of some steps, and how many graphs were launched.
fn steps(graphs: bool, setting: &Setting, count: u64) -> Option<(Vec<StepLoss>, Vec<f64>, u64, [u64; 2])> {
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
    let counts = [recorder.replays(), recorder.buckets() as u64];
    Some((losses, values, cuda.operations(), counts))
}

#[test]
fn a_graph_gives_what_launches_give_bit_for_bit() {
    for (activation, dropout) in [(Activation::Relu, 0.1), (Activation::GatedGelu, 0.0)] {
        let config = config(activation, true);
        let start = [(5, 2), (4, 1), (9, 3), (6, 1)];
        let mut setting = Setting::new(config.clone(), crate::setting::examples(5, &config, &start));
        setting.mixing.scorer = Some(Scorer::Bottleneck);
        setting.dropout = (dropout, 0);
        let Some((eager, eager_values, eager_operations, [none, _])) = steps(false, &setting, 20) else {
            return;
        };
        let Some((replayed, values, operations, [replays, buckets])) = steps(true, &setting, 20) else {
            return;
        };
        assert_eq!((none, replays, buckets), (0, 19, 1), "the first batch of the bucket runs as it is");
        assert!(eager.iter().all(|step| step.per_run[0].is_finite() && step.per_run[0] > 0.0));
        assert!(eager.windows(2).all(|pair| pair[0] != pair[1]), "every batch has another loss");
        assert_eq!(operations, eager_operations);
        assert_eq!(replayed, eager);
        assert_eq!(values, eager_values);
    }
}
