//! From counters to what a kernel author learns from: bytes against the floor, multiply-adds per byte,
//! and the time that is predicted of an A100, an H100 and an H200: by the model of [`crate::model`] where time was kept, else
//! by a roofline. Predictions, not measurements.

use serde::{Deserialize, Serialize};

use crate::counters::Counters;
use crate::model::{self, Constants};
use crate::profile::{PROFILES, Profile};

/// Warp instructions that a multiprocessor issues in a cycle.
const ISSUES_PER_CYCLE: f64 = 4.0;
/// Bytes that a multiprocessor takes from the level-2 cache in a cycle.
const CACHE_BYTES_PER_CYCLE: f64 = 64.0;
/// Passes over shared memory that a multiprocessor makes in a cycle.
const WAVEFRONTS_PER_CYCLE: f64 = 1.0;

/// What bounds a kernel on a device, and the time that this bound predicts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Bound {
    /// The profile.
    pub profile: String,
    /// The name of the bound that takes most of the time.
    pub limit: String,
    /// Seconds of all launches counted. Where time was kept: by the model of [`crate::model`], launches in a graph; else each by
    /// its own bound alone, without what a launch costs.
    pub seconds: f64,
    /// The least and the most of it, where it rests on constants that nobody measured.
    #[serde(default)]
    pub range: [f64; 2],
    /// Whether the model was fitted to this device; `false` for the bound alone.
    #[serde(default)]
    pub fitted: bool,
    /// Blocks on a multiprocessor at once; 0 where the kernel does not fit.
    pub blocks_per_multiprocessor: u32,
    /// Whole waves of blocks, of all launches.
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
    /// The bounds on an A100, an H100 and an H200.
    pub bounds: Vec<Bound>,
}

impl Prediction {
    /// Predicts from the counters of one kernel, those of launches that are alike together; `registers` where they are known.
    pub fn of(alike: &[Counters], registers: Option<u32>) -> Self {
        let registers = registers.unwrap_or(64);
        let whole = Counters::sum(alike);
        let floor = floor_bytes(&whole);
        let multiply_adds = whole.tensor_multiply_adds + whole.single_multiply_adds;
        let bounds = PROFILES
            .iter()
            .filter(|profile| matches!(profile.name, "sm_80" | "sm_90" | "h200"))
            .map(|profile| Bound::of(profile, alike, registers))
            .collect();
        Self {
            kernel: whole.kernel.clone(),
            registers,
            moved_bytes: moved_bytes(&whole),
            floor_bytes: floor,
            multiply_adds_per_byte: multiply_adds as f64 / floor.max(1) as f64,
            bounds,
        }
    }
}

fn moved_bytes(counters: &Counters) -> u64 {
    counters.loads.moved_bytes() + counters.stores.moved_bytes()
}

fn floor_bytes(counters: &Counters) -> u64 {
    counters.loads.unique_bytes + counters.stores.unique_bytes
}

impl Bound {
    fn of(profile: &Profile, alike: &[Counters], registers: u32) -> Self {
        let mut bound = Self {
            profile: profile.name.to_string(),
            limit: "nothing".to_string(),
            seconds: 0.0,
            range: [0.0; 2],
            fitted: false,
            blocks_per_multiprocessor: 0,
            waves: 0,
        };
        let mut by_limit: Vec<(&str, f64)> = Vec::new();
        for counters in alike {
            let shared = counters.dynamic_shared + counters.static_shared;
            let fit = profile.occupancy(counters.block_threads, registers, shared);
            let at_once = u64::from(fit.max(1)) * u64::from(profile.multiprocessors);
            let launches = counters.launches.max(1);
            let blocks = counters.blocks.div_ceil(launches).max(1);
            bound.blocks_per_multiprocessor = fit;
            bound.waves += launches * blocks.div_ceil(at_once);
            let (limit, seconds) = if counters.working_blocks > 0 {
                let time = model::time(profile, &Constants::fitted(), counters, registers);
                let all = launches as f64;
                bound.range = [bound.range[0] + all * time.range[0], bound.range[1] + all * time.range[1]];
                bound.fitted = profile.fitted;
                (time.limit, all * time.seconds)
            } else {
                limits(profile, counters, blocks)
                    .into_iter()
                    .fold(("nothing", 0.0), |most, one| if one.1 > most.1 { one } else { most })
            };
            bound.seconds += seconds;
            match by_limit.iter_mut().find(|(known, _)| *known == limit) {
                Some((_, sum)) => *sum += seconds,
                None => by_limit.push((limit, seconds)),
            }
        }
        if let Some((limit, _)) = by_limit.iter().max_by(|a, b| a.1.total_cmp(&b.1)) {
            bound.limit = (*limit).to_string();
        }
        bound
    }
}

/// The seconds that each resource of a device needs for launches of `blocks` blocks each.
fn limits(profile: &Profile, counters: &Counters, blocks: u64) -> [(&'static str, f64); 5] {
    let multiprocessors = u64::from(profile.multiprocessors);
    // Blocks share what their multiprocessor has, so the fullest one decides: whole waves of a block each.
    let share = blocks as f64 / (blocks.div_ceil(multiprocessors) * multiprocessors) as f64;
    let cycles = f64::from(profile.clock_khz) * 1e3 * f64::from(profile.multiprocessors) * share;
    let passes = counters.shared_loads.wavefronts
        + counters.shared_stores.wavefronts
        + counters.matrix.wavefronts
        + counters.async_stores.wavefronts;
    [
        ("memory", floor_bytes(counters) as f64 / profile.bandwidth),
        ("cache", moved_bytes(counters) as f64 / (CACHE_BYTES_PER_CYCLE * cycles)),
        ("tensor cores", counters.tensor_multiply_adds as f64 / (profile.tensor_rate * share)),
        ("issue", counters.instructions() as f64 / (ISSUES_PER_CYCLE * cycles)),
        ("shared memory", passes as f64 / (WAVEFRONTS_PER_CYCLE * cycles)),
    ]
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
            .map(|bound| {
                let wide = bound.range[1] > bound.range[0] * 1.001;
                let range = if wide {
                    format!(" ({:.1} to {:.1})", bound.range[0] * 1e6, bound.range[1] * 1e6)
                } else {
                    String::new()
                };
                format!("{}: {:.1} us{range} {}", bound.profile, bound.seconds * 1e6, bound.limit)
            })
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
