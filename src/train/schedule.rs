//! The learning rate's course, as the factor that multiplies it.

use crate::config::LrScheduler;

/// The factor at `step` (from 0) of a run of `steps`, the first `warmup` of which climb from 0 along a line.
pub fn factor(schedule: LrScheduler, step: u64, warmup: u64, steps: u64) -> f64 {
    if step < warmup {
        return step as f64 / warmup as f64;
    }
    let left = steps.saturating_sub(warmup).max(1) as f64;
    let done = ((step - warmup) as f64 / left).min(1.0);
    match schedule {
        LrScheduler::Constant => 1.0,
        LrScheduler::Linear => 1.0 - done,
        LrScheduler::Cosine => 0.5 * (1.0 + (std::f64::consts::PI * done).cos()),
    }
}
