//! From counters to what a kernel author learns from: bytes against the floor, multiply-adds per byte,
//! and the time that a roofline predicts on an A100 and an H100. Predictions, not measurements.

use serde::{Deserialize, Serialize};

use crate::counters::Counters;
use crate::profile::{PROFILES, Profile};

/// Warp instructions that a multiprocessor issues in a cycle.
const ISSUES_PER_CYCLE: f64 = 4.0;
/// Passes over shared memory that a multiprocessor makes in a cycle.
const WAVEFRONTS_PER_CYCLE: f64 = 1.0;

/// What bounds a kernel on a device, and the time that this bound predicts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// The profile.
    pub profile: String,
    /// The name of the bound.
    pub limit: String,
    /// Seconds of all launches counted, without launch overhead.
    pub seconds: f64,
    /// Blocks on a multiprocessor at once; 0 where the kernel does not fit.
    pub blocks_per_multiprocessor: u32,
    /// Whole waves of blocks of one launch.
    pub waves: u64,
}

/// Predictions of one kernel.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Prediction {
    /// The kernel.
    pub kernel: String,
    /// Registers of a thread: from ptxas where it was asked, else estimated from the PTX.
    pub registers: u32,
    /// Bytes moved between memory and multiprocessors, whole sectors each.
    pub moved_bytes: u64,
    /// Distinct bytes touched, counted per launch: the least that could be moved.
    pub floor_bytes: u64,
    /// Multiply-adds of tensor cores and f32 units for every byte of the floor.
    pub multiply_adds_per_byte: f64,
    /// The bounds on an A100 and an H100.
    pub bounds: Vec<Bound>,
}

impl Prediction {
    /// Predicts from counters; `registers` where they are known.
    pub fn of(counters: &Counters, registers: Option<u32>) -> Self {
        let registers = registers.unwrap_or(64);
        let moved = counters.loads.moved_bytes() + counters.stores.moved_bytes();
        let floor = counters.loads.unique_bytes + counters.stores.unique_bytes;
        let multiply_adds = counters.tensor_multiply_adds + counters.single_multiply_adds;
        let bounds = PROFILES
            .iter()
            .filter(|profile| matches!(profile.name, "sm_80" | "sm_90"))
            .map(|profile| Bound::of(profile, counters, registers, floor))
            .collect();
        Self {
            kernel: counters.kernel.clone(),
            registers,
            moved_bytes: moved,
            floor_bytes: floor,
            multiply_adds_per_byte: multiply_adds as f64 / floor.max(1) as f64,
            bounds,
        }
    }
}

impl Bound {
    fn of(profile: &Profile, counters: &Counters, registers: u32, floor: u64) -> Self {
        let shared = counters.dynamic_shared + counters.static_shared;
        let fit = profile.occupancy(counters.block_threads, registers, shared);
        let at_once = u64::from(fit.max(1)) * u64::from(profile.multiprocessors);
        let blocks = counters.blocks.div_ceil(counters.launches.max(1)).max(1);
        let waves = blocks.div_ceil(at_once);
        // Work is done by whole waves: a last wave that is not full takes as long as a full one.
        let fullness = blocks as f64 / (waves * at_once.min(blocks.max(1)).max(1)) as f64;
        let spread =
            (blocks.min(u64::from(profile.multiprocessors))) as f64 / f64::from(profile.multiprocessors);
        let share = fullness.min(1.0) * spread;
        let cycles = f64::from(profile.clock_khz) * 1e3 * f64::from(profile.multiprocessors) * share;
        let passes = counters.shared_loads.wavefronts
            + counters.shared_stores.wavefronts
            + counters.matrix.wavefronts
            + counters.async_stores.wavefronts;
        let limits = [
            ("memory", floor as f64 / profile.bandwidth),
            ("tensor cores", counters.tensor_multiply_adds as f64 / (profile.tensor_rate * share)),
            ("issue", counters.instructions() as f64 / (ISSUES_PER_CYCLE * cycles)),
            ("shared memory", passes as f64 / (WAVEFRONTS_PER_CYCLE * cycles)),
        ];
        let (limit, seconds) =
            limits.into_iter().fold(("nothing", 0.0), |most, one| if one.1 > most.1 { one } else { most });
        Self {
            profile: profile.name.to_string(),
            limit: limit.to_string(),
            seconds,
            blocks_per_multiprocessor: fit,
            waves,
        }
    }
}

/// The counters and predictions as a table for people.
pub fn table(counters: &[Counters], predictions: &[Prediction]) -> String {
    let mut out = format!(
        "{:<32} {:>8} {:>9} {:>9} {:>10} {:>10} {:>6} {:>8} {:>7} {:>5}  {}\n",
        "kernel",
        "launches",
        "blocks",
        "Minstr",
        "moved MB",
        "floor MB",
        "sec/rq",
        "conflict",
        "MAC/B",
        "regs",
        "bound (predicted)"
    );
    for (counters, prediction) in counters.iter().zip(predictions) {
        let requests = counters.loads.requests + counters.stores.requests;
        let sectors = counters.loads.sectors + counters.stores.sectors;
        let bounds: Vec<String> = prediction
            .bounds
            .iter()
            .map(|bound| format!("{}: {:.1} us {}", bound.profile, bound.seconds * 1e6, bound.limit))
            .collect();
        out += &format!(
            "{:<32} {:>8} {:>9} {:>9.2} {:>10.3} {:>10.3} {:>6.2} {:>8} {:>7.1} {:>5}  {}\n",
            counters.kernel,
            counters.launches,
            counters.blocks,
            counters.instructions() as f64 / 1e6,
            prediction.moved_bytes as f64 / 1e6,
            prediction.floor_bytes as f64 / 1e6,
            sectors as f64 / requests.max(1) as f64,
            counters.shared_conflicts(),
            prediction.multiply_adds_per_byte,
            prediction.registers,
            bounds.join(", "),
        );
        if counters.blocks_run < counters.blocks {
            out += &format!(
                "{:<32} sampled: {} of {} blocks were run and the counters scaled\n",
                "", counters.blocks_run, counters.blocks
            );
        }
    }
    out
}
