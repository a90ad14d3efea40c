//! Operands of another shape: the same error as on the CPU, from every op.

use promptmix::backend::cpu::Cpu;
use promptmix::cuda::Precision;

use crate::device::device;
use crate::every_shape::{
    every_op_names_the_operand_that_does_not_fit, every_op_that_drops_asks_for_a_seed_a_run,
};

#[test]
fn an_operand_of_another_shape_is_the_same_error_as_on_the_cpu() {
    let cpu = Cpu::<f64>::poisoning(Some(1)).expect("threads");
    let expected = every_op_names_the_operand_that_does_not_fit(&cpu);
    for precision in [Precision::Bf16, Precision::F32] {
        let Some(device) = device(precision) else { return };
        let found = every_op_names_the_operand_that_does_not_fit(&device.cuda);
        assert_eq!(found.len(), expected.len());
        for (found, expected) in found.iter().zip(&expected) {
            assert_eq!(found, expected, "{precision:?}");
        }
    }
}

#[test]
fn dropout_without_a_seed_for_every_run_is_an_error() {
    let Some(device) = device(Precision::Bf16) else { return };
    every_op_that_drops_asks_for_a_seed_a_run(&device.cuda);
}
