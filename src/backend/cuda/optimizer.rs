//! AdamW.

use super::*;

/// Trained state of some runs, with gradient and moments.
#[derive(Debug)]
pub struct State;
impl State {
    pub(super) fn new(_cuda: &Cuda, _layout: &StateLayout, _values: &[f64], _runs: usize) -> Self {
        Self
    }
    pub(super) fn read(&self, _cuda: &Cuda) -> [Vec<f64>; 3] {
        Default::default()
    }
    pub(super) fn write(&mut self, _cuda: &Cuda, _values: [&[f64]; 3], _updates: &[u64]) -> Result<()> {
        Err(failure::absent())
    }
    pub(super) fn updates(&self, _cuda: &Cuda) -> Vec<u64> {
        Vec::new()
    }
    pub(super) fn read_gradient(&self, _cuda: &Cuda) -> Vec<f64> {
        Vec::new()
    }
    pub(super) fn write_gradient(&mut self, _cuda: &Cuda, _values: &[f64]) -> Result<()> {
        Err(failure::absent())
    }
    pub(super) fn zero_gradient(&mut self, _cuda: &Cuda) -> Result<()> {
        Err(failure::absent())
    }
    pub(super) fn schedule(&mut self, _cuda: &Cuda, _steps: &[OptimizerStep]) -> Result<()> {
        Err(failure::absent())
    }
    pub(super) fn reports(&self, _cuda: &Cuda) -> Vec<OptimizerReport> {
        Vec::new()
    }
}

impl Cuda {
    #[allow(clippy::too_many_arguments)]
    pub(super) fn launch_optimizer(&self, state: &mut State) -> Result<()> {
        let _ = state;
        Err(failure::absent())
    }
}
