//! Operands of another shape on the CPU.

use crate::every_shape::{
    every_op_names_the_operand_that_does_not_fit, every_op_that_drops_asks_for_a_seed_a_run,
};
use crate::operands::cpu;

#[test]
fn an_operand_of_another_shape_is_an_error_that_names_it() {
    every_op_names_the_operand_that_does_not_fit(&cpu());
}

#[test]
fn dropout_without_a_seed_for_every_run_is_an_error() {
    every_op_that_drops_asks_for_a_seed_a_run(&cpu());
}
