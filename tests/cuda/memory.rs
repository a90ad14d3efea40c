//! The memory of a step is known before anything is allocated for it.

use promptmix::backend::{Backend, Side};
use promptmix::cuda::Precision;
use promptmix::model::StepShape;
use promptmix::pretrained::Activation;

use crate::device::device;
use crate::model::config;
use crate::setting::{Setting, examples};

#[test]
fn a_step_takes_what_was_foreseen() {
    for (activation, precision) in [
        (Activation::Relu, Precision::Bf16),
        (Activation::GatedGelu, Precision::Bf16),
        (Activation::Relu, Precision::F32),
    ] {
        let mut config = config(activation, true);
        // Layers and rows enough that what is not planned for, which does not grow with them, is small beside the rest.
        (config.num_layers, config.num_decoder_layers) = (5, 4);
        let lengths = [(40, 2), (90, 3), (61, 1), (120, 2)];
        let setting = Setting::new(config.clone(), examples(9, &config, &lengths));
        let Some(device) = device(precision) else { return };
        let case = setting.build_on(device.cuda);
        let before = case.backend.allocated_bytes();
        case.gradient();
        let taken = case.backend.allocated_bytes() - before;
        let shape = StepShape {
            examples: case.batch.examples(),
            encoder_rows: case.batch.rows(Side::Encoder),
            decoder_rows: case.batch.rows(Side::Decoder),
        };
        let planned = case.model.step_bytes(&case.backend, shape);
        let ratio = planned as f64 / taken as f64;
        eprintln!("{activation:?} {precision:?}: {planned} planned, {taken} taken: {ratio:.3}");
        assert!((0.85..1.25).contains(&ratio), "{planned} bytes planned, {taken} taken");
    }
}

#[test]
fn a_batch_that_will_not_fit_is_refused_with_one_that_does() {
    let config = config(Activation::Relu, true);
    let setting = Setting::new(config.clone(), examples(9, &config, &[(4, 1)]));
    let Some(device) = device(Precision::Bf16) else { return };
    let case = setting.build_on(device.cuda);
    let (model, cuda) = (&case.model, &case.backend);
    let shape = |examples| StepShape::of(examples, 5, 20, 2);
    let free = model.step_bytes(cuda, shape(10)) / 8 * 9;
    model.foresee(cuda, free, 10, shape).expect("ten fit");
    let refused = model.foresee(cuda, free, 11, shape).expect_err("eleven do not").to_string();
    assert!(refused.contains("--batch-size 10 fits"), "{refused}");
    let refused = model.foresee(cuda, 1_000, 4, shape).expect_err("nothing fits").to_string();
    assert!(refused.contains("--max-source-length"), "{refused}");
    assert!(cuda.free_bytes().expect("a device's memory") > 1 << 20);
}
