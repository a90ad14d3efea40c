//! What events tell where time is kept: the model's time of the work before them, not the host's.

use std::collections::HashMap;

use super::state::{State, Work};
use crate::counters::Counters;
use crate::device::registers_of;
use crate::model::{Constants, moving, time};
use crate::program::Program;

/// When each stream is done with the work that it was given, in seconds of the model. What two streams do between the events that
/// order them overlaps whole, as if each had the device to itself.
#[derive(Default)]
pub struct ModelTime {
    done: HashMap<usize, f64>,
}

impl ModelTime {
    /// When the work of a stream is done.
    pub fn of(&self, stream: usize) -> f64 {
        self.done.get(&stream).copied().unwrap_or(0.0)
    }

    /// The next work of a stream begins no sooner than at `until`.
    pub fn wait(&mut self, stream: usize, until: f64) {
        let done = self.done.entry(stream).or_default();
        *done = done.max(until);
    }

    fn advance(&mut self, stream: usize, seconds: f64) {
        *self.done.entry(stream).or_default() += seconds;
    }
}

impl State {
    /// A kernel has run on a stream.
    pub fn has_launched(&mut self, stream: usize, program: &Program, counters: &Counters) {
        if self.device.settings.timing {
            let of = time(self.device.profile, &Constants::fitted(), counters, registers_of(program)).seconds;
            self.model_time.advance(stream, of);
        }
    }

    /// Work of the driver's own was done on a stream. Copies from and to the host take no time: the model knows no bus.
    pub fn has_moved(&mut self, stream: usize, work: &Work) {
        let bytes = match work {
            Work::Fill { pattern, count, .. } => pattern.len() * count,
            Work::Copy { bytes, .. } => 2 * bytes,
            _ => return,
        };
        if self.device.settings.timing {
            let seconds = moving(self.device.profile, &Constants::fitted(), bytes);
            self.model_time.advance(stream, seconds);
        }
    }
}
