//! What passes take: a clock for each device, and the spread of what it says.

use std::time::Instant;

use serde::{Deserialize, Serialize};

#[cfg(feature = "cuda")]
use crate::backend::cuda::{EventClock, Times};
use crate::error::Result;

/// The fifth, the half and four fifths of passes, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Spread {
    pub(crate) p20: f64,
    pub(crate) p50: f64,
    pub(crate) p80: f64,
}

/// Passes of the same work: with nothing of its operands in the cache, and right after the same.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Passes {
    pub(crate) cold_us: Spread,
    pub(crate) warm_us: Spread,
}

impl Spread {
    /// Of times in ascending order, of which there is at least one: each the nearest that was seen.
    pub(crate) fn of(ascending: &[f64]) -> Self {
        let last = ascending.len().saturating_sub(1) as f64;
        let at = |part: f64| ascending.get((last * part).round() as usize).copied().unwrap_or(f64::NAN);
        Self { p20: at(0.2), p50: at(0.5), p80: at(0.8) }
    }

    /// Whether the times of both may be of the same work on the same device: their middle three fifths meet.
    pub(crate) fn meets(&self, other: &Self) -> bool {
        self.p20 <= other.p80 && other.p20 <= self.p80
    }

    /// Whether it can be one.
    pub(crate) fn is_ordered(&self) -> bool {
        self.p20 >= 0.0 && self.p20 <= self.p50 && self.p50 <= self.p80 && self.p80.is_finite()
    }
}

/// Times work on a device.
pub(crate) trait Stopwatch {
    /// Times `repeats` cold and as many warm passes of `work`, which issues to the device and waits for nothing.
    fn passes(&mut self, repeats: usize, work: &mut dyn FnMut() -> Result<()>) -> Result<Passes>;
}

#[cfg(feature = "cuda")]
impl Stopwatch for EventClock<'_> {
    fn passes(&mut self, repeats: usize, work: &mut dyn FnMut() -> Result<()>) -> Result<Passes> {
        self.measure(repeats, work).map(|times| Passes::from(&times))
    }
}

#[cfg(feature = "cuda")]
impl From<&Times> for Passes {
    fn from(times: &Times) -> Self {
        Self { cold_us: Spread::of(&times.cold_us), warm_us: Spread::of(&times.warm_us) }
    }
}

/// The clock of the host, for a device that is done when an op returns.
pub(crate) struct HostClock {
    /// Larger than the caches of most processors: writing it leaves nothing else there.
    flush: Vec<u64>,
}

impl HostClock {
    pub(crate) fn new() -> Self {
        Self { flush: vec![0; 1 << 24] }
    }
}

impl Stopwatch for HostClock {
    fn passes(&mut self, repeats: usize, work: &mut dyn FnMut() -> Result<()>) -> Result<Passes> {
        let (mut cold, mut warm) = (Vec::new(), Vec::new());
        for pass in 0..repeats {
            std::hint::black_box(&mut self.flush).fill(pass as u64);
            for times in [&mut cold, &mut warm] {
                let started = Instant::now();
                work()?;
                times.push(started.elapsed().as_secs_f64() * 1e6);
            }
        }
        cold.sort_by(f64::total_cmp);
        warm.sort_by(f64::total_cmp);
        Ok(Passes { cold_us: Spread::of(&cold), warm_us: Spread::of(&warm) })
    }
}
