//! AdamW over the trained numbers of t5-base, of one run and of eight.

use criterion::Criterion;
use cudarc::driver::CudaSlice;
use promptmix::backend::{Mixing, OptimizerStep, Scorer, StateLayout};
use promptmix::cuda::optimizer::{AdamW, StepOperands};

use crate::gpu::{Cost, Gpu, numbers};

pub fn benches(gpu: &Gpu, criterion: &mut Criterion) {
    for runs in [1, 8] {
        let kernels = gpu.kernels();
        let mixing = Mixing { scorer: Some(Scorer::Bottleneck), ..Mixing::plain() };
        let layout = StateLayout::new(&mixing, 1, gpu.size(100, 30), gpu.size(768, 72), 100, false);
        let count = runs * layout.len();
        gpu.say("optimizer", &[("runs", runs), ("numbers", count)]);
        let mut optimizer = AdamW::new(kernels, layout.segments(), runs).expect("segments");
        // Equal rates and no clip, so that one formula checks them all.
        let step = OptimizerStep::new(0.1, 0.1);
        optimizer.schedule(kernels, &vec![step; runs]).expect("a schedule");
        let (values, gradient) = (numbers(1, count, 1.0), numbers(2, count, 0.1));
        let gradient_device = gpu.floats(&gradient);
        let [mut values_device, mut first, mut second] =
            [values.clone(), vec![0.0; count], vec![0.0; count]].map(|values| gpu.floats(&values));
        let mut update = |values: &mut CudaSlice<f32>| {
            let gradient = &gradient_device;
            let of = StepOperands { values, gradient, first_moment: &mut first, second_moment: &mut second };
            optimizer.step(kernels, of).expect("a launch");
        };
        update(&mut values_device);
        // The first update moves every number by its rate against the gradient's sign.
        gpu.check("adamw", &values_device, (16, 0.0), |i| {
            let g = gradient[i];
            values[i] - 0.1 * g / (g.abs() + step.epsilon)
        });
        let cost = Cost { operations: 14 * count, bytes: 28 * count };
        gpu.measure(criterion, "optimizer", &format!("{runs}"), cost, || update(&mut values_device));
    }
}
