//! From counters to time: what a launch takes on a device, by a model whose few constants are fitted to measured kernels.
//!
//! A launch takes `t0 + f distinct + sqrt((rounds s path)^2 + max(sqrt(issue^2 + tensor^2 + shared^2) imbalance, memory, cache)^2)`:
//! `path` is what its blocks take if each ran alone ([`Counters::path_cycles`]) and `distinct` the instructions that they fetch,
//! which later blocks find in the caches; `rounds` is how often the fullest multiprocessor is filled; the rest is what throughput costs. `t0`, `s` and `f` are fitted;
//! the other constants are listed in [`ASSUMED`] and below with their sources.
//!
//! Instructions are added, as all warps of a multiprocessor wait for the same ones before they have work to hide the wait with. The
//! path and the throughput hide each other in part: both alone would be too short, their sum too long. Of the forms that were
//! tried (the largest of all, sums, and roots of other powers) this is the one with every group within 15 % when it is left out of
//! the fit and every step within 10 %; the largest of all, for one, is 23 % long for small steps.

use std::sync::OnceLock;

use serde::{Deserialize, Serialize};

use crate::counters::Counters;
pub use crate::execute::LATENCIES;
use crate::profile::Profile;

/// Warp instructions that a multiprocessor issues in a cycle.
const ISSUES: f64 = 4.0;
/// Passes over shared memory in a cycle.
const PASSES: f64 = 1.0;
/// What of the rate of `wgmma` `mma.sync` reaches on devices that have both: 1,280 of 2,048 multiply-adds a cycle, measured.
const WARP_TENSOR_SHARE: f64 = 0.625;
/// What of the bandwidth of the data sheet a copy reaches: 4.3 of 4.8 TB/s, measured on an H200.
const MEMORY_SHARE: f64 = 0.9;
/// Bytes that the level-2 cache gives a multiprocessor in a cycle, over all of them: 5.5 TB/s at 132 x 1.755 GHz, measured.
const CACHE_BYTES: f64 = 23.7;
/// What a profiler adds to a launch, in seconds: 0.41 ms over 467 launches.
const PROFILER: f64 = 0.9e-6;

/// A constant that nobody measured here, with what it may be.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Assumed {
    /// What it is.
    pub name: &'static str,
    /// What is taken.
    pub value: f64,
    /// The least and the most that is likely.
    pub range: [f64; 2],
    /// Where it comes from.
    pub source: &'static str,
}

/// Constants of the throughput that were measured on an H200 alone, or not at all; those of other devices are taken to be alike.
pub const THROUGHPUT: [Assumed; 5] = [
    Assumed {
        name: "warp instructions a multiprocessor issues in a cycle",
        value: ISSUES,
        range: [4.0, 4.0],
        source: "NVIDIA Hopper Architecture In-Depth, developer.nvidia.com/blog/nvidia-hopper-architecture-in-depth: four schedulers",
    },
    Assumed {
        name: "passes over shared memory in a cycle",
        value: PASSES,
        range: [1.0, 1.0],
        source: "CUDA C++ Programming Guide, docs.nvidia.com/cuda/cuda-c-programming-guide: 32 banks of four bytes",
    },
    Assumed {
        name: "share of the tensor rate that mma.sync reaches on 9.0",
        value: WARP_TENSOR_SHARE,
        range: [0.58, 0.68],
        source: "measured here on an H200; arxiv.org/abs/2402.13499 has 0.62 for an H800. On other devices 1 is taken, not measured",
    },
    Assumed {
        name: "share of the data sheet's bandwidth that kernels reach",
        value: MEMORY_SHARE,
        range: [0.85, 0.94],
        source: "measured here on an H200; not measured on other devices",
    },
    Assumed {
        name: "bytes a cycle that the level-2 cache gives a multiprocessor",
        value: CACHE_BYTES,
        range: [20.0, 34.0],
        source: "measured here on an H200 (23.7); arxiv.org/abs/2402.13499 has 30 to 34 for an H800",
    },
];

/// Constants behind predictions of `wgmma`, clusters and dependent launches, which therefore come as a range.
pub const ASSUMED: [Assumed; 4] = [
    Assumed {
        name: "share of the data sheet's tensor rate that wgmma reaches",
        value: 0.92,
        range: [0.82, 0.97],
        source: "arxiv.org/abs/2402.13499: one instruction alone, 0.96 on zeros, 0.88 on random data; whole products 0.77",
    },
    Assumed {
        name: "bytes a cycle that bulk copies bring to a multiprocessor while all of them copy",
        value: 39.0,
        range: [30.0, 46.0],
        source: "arxiv.org/abs/2402.13499: 30 to 34 on an H800; products of an H100 in public repositories: 39 to 46",
    },
    Assumed {
        name: "cycles of a barrier of a cluster",
        value: 250.0,
        range: [150.0, 400.0],
        source: "arxiv.org/abs/2402.13499: round trips of distributed shared memory, 180 to 213 cycles; and an arrival",
    },
    Assumed {
        name: "share of a launch's own cost that is left where it may begin before the grids before it have ended",
        value: 0.45,
        range: [0.2, 1.0],
        source: "github.com/ggml-org/llama.cpp/pull/22522: decoding 5 to 13 % faster; github.com/openxla/xla/pull/38544: 0 to 2 %",
    },
];

/// The fitted constants.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Constants {
    /// Seconds of a launch by itself, under the profiler.
    pub launch: f64,
    /// Cycles of the device for a cycle of the path.
    pub path: f64,
    /// Cycles for every distinct instruction of a block.
    pub fetch: f64,
}

/// Launches of one kind within a measured group.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Launches {
    /// How often in a step.
    pub often: f64,
    /// Registers of a thread, by ptxas for the device.
    pub registers: u32,
    /// What was counted, of one launch or several alike.
    pub counters: Counters,
}

/// Kernels whose time was measured together.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Group {
    /// Their name.
    pub name: String,
    /// Microseconds in a step.
    pub measured_us: f64,
    /// Their launches.
    pub launches: Vec<Launches>,
}

/// A whole step that was measured and is in no fit.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Step {
    /// Its name.
    pub name: String,
    /// Milliseconds that were measured.
    pub measured_ms: f64,
    /// Its launches, in graphs; those of all groups where there are none.
    #[serde(default)]
    pub launches: Vec<Launches>,
}

impl Step {
    /// Milliseconds that the model says.
    pub fn predict_ms(&self, profile: &Profile, constants: &Constants) -> f64 {
        let of = |one: &Launches| one.often * time(profile, constants, &one.counters, one.registers).seconds;
        let sum: f64 = if self.launches.is_empty() {
            measured().groups.iter().flat_map(|group| &group.launches).map(of).sum()
        } else {
            self.launches.iter().map(of).sum()
        };
        sum * 1e3
    }
}

/// What was measured on one device.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Measured {
    /// The profile.
    pub profile: String,
    /// What, how and when.
    pub source: String,
    /// The groups.
    pub groups: Vec<Group>,
    /// Whole steps, to check the model against what it was not fitted to.
    #[serde(default)]
    pub steps: Vec<Step>,
}

/// What was measured, as the data file has it.
pub fn measured() -> &'static Measured {
    static MEASURED: OnceLock<Measured> = OnceLock::new();
    MEASURED.get_or_init(|| {
        // The file is part of the crate, and a test reads it.
        serde_json::from_str(include_str!("../data/measured.json")).unwrap_or(Measured {
            profile: String::new(),
            source: String::new(),
            groups: Vec::new(),
            steps: Vec::new(),
        })
    })
}

/// A time, what bounds it, and the range that unmeasured constants leave.
#[derive(Clone, Debug, PartialEq)]
pub struct Time {
    /// Seconds of one launch in a graph.
    pub seconds: f64,
    /// The least and the most of it.
    pub range: [f64; 2],
    /// What bounds it.
    pub limit: &'static str,
}

impl Constants {
    /// Those that fit all groups best.
    pub fn fitted() -> Self {
        static FITTED: OnceLock<Constants> = OnceLock::new();
        *FITTED.get_or_init(|| {
            let groups: Vec<&Group> = measured().groups.iter().collect();
            Self::fit(&groups)
        })
    }

    /// Those that fit some groups best: least squares of the logarithm of the ratio, over a grid that is refined twice.
    pub fn fit(groups: &[&Group]) -> Self {
        let Some(profile) = Profile::by_name(&measured().profile) else {
            return Self { launch: 2.1e-6, path: 1.0, fetch: 1.0 };
        };
        let loss = |constants: &Self| -> f64 {
            let ratio = |group: &&Group| group.predict(profile, constants) * 1e6 / group.measured_us;
            groups.iter().map(|group| ratio(group).ln().powi(2)).sum()
        };
        let mut best = Self { launch: 2.1e-6, path: 1.0, fetch: 1.0 };
        let mut spread = [2.0f64, 3.0, 6.0];
        for _ in 0..4 {
            let middle = best;
            let mut least = loss(&best);
            let steps = |spread: f64| (-6..=6).map(move |step| spread.powf(f64::from(step) / 6.0));
            for launch in steps(spread[0]) {
                for path in steps(spread[1]) {
                    for fetch in steps(spread[2]) {
                        let one = Self {
                            // At least 0.6 us beside what the profiler adds, and at most what an empty kernel was seen to take.
                            // The fit ends at the first; without it, it takes 0.5 us, and all else moves by 2 % at most.
                            launch: (middle.launch * launch).clamp(1.5e-6, 2.6e-6),
                            path: middle.path * path,
                            fetch: middle.fetch * fetch,
                        };
                        let found = loss(&one);
                        if found < least {
                            (least, best) = (found, one);
                        }
                    }
                }
            }
            spread = spread.map(f64::sqrt);
        }
        best
    }
}

impl Group {
    /// Seconds that the model says.
    pub fn predict(&self, profile: &Profile, constants: &Constants) -> f64 {
        let each = self.launches.iter();
        each.map(|one| {
            one.often * (time(profile, constants, &one.counters, one.registers).seconds + PROFILER)
        })
        .sum()
    }
}

/// The time of one of some launches that are alike.
pub fn time(profile: &Profile, constants: &Constants, counters: &Counters, registers: u32) -> Time {
    let launches = counters.launches.max(1) as f64;
    let multiprocessors = f64::from(profile.multiprocessors);
    let blocks = counters.blocks as f64 / launches;
    // Where time was not kept, all blocks count as working, and the path is unknown.
    let timed = counters.working_blocks > 0;
    let working = if timed { counters.working_blocks as f64 / launches } else { blocks }.max(1.0);
    let per = (working / multiprocessors).ceil();
    let shared = counters.dynamic_shared + counters.static_shared;
    let resident = f64::from(profile.occupancy(counters.block_threads, registers, shared).max(1));
    let rounds = (per / resident).max(1.0);
    let imbalance = per * multiprocessors / working;
    let each = |sum: u64| sum as f64 / launches / multiprocessors;
    let of_block = |sum: u64| if timed { sum as f64 / counters.working_blocks as f64 } else { 0.0 };
    let path = rounds * constants.path * of_block(counters.path_cycles);
    let fetch = constants.fetch * of_block(counters.distinct_instructions);
    let clock = f64::from(profile.sustained_khz) * 1e3;
    let warp_share = if profile.capability.0 == 9 { WARP_TENSOR_SHARE } else { 1.0 };
    // Multiply-adds a cycle and multiprocessor, of mma.sync and of wgmma.
    let rate = profile.tensor_rate / (f64::from(profile.clock_khz) * 1e3 * multiprocessors);
    let of_warps = counters.tensor_multiply_adds.saturating_sub(counters.warpgroup_multiply_adds);
    let passes = counters.shared_loads.wavefronts
        + counters.shared_stores.wavefronts
        + counters.matrix.wavefronts
        + counters.async_stores.wavefronts
        + (counters.warpgroup_shared_bytes + counters.bulk_in_bytes + counters.bulk_out_bytes) / 128;
    let by = |share: f64, bulk: f64, scale: f64| {
        let issue = each(counters.instructions()) / ISSUES;
        let tensor =
            each(of_warps) / (rate * warp_share) + each(counters.warpgroup_multiply_adds) / (rate * share);
        let shared = each(passes) / PASSES;
        let throughput = (issue.powi(2) + tensor.powi(2) + shared.powi(2)).sqrt() * imbalance;
        let largest = [("issue", issue), ("tensor cores", tensor), ("shared memory", shared)]
            .into_iter()
            .fold(("issue", 0.0), |most, one| if one.1 > most.1 { one } else { most });
        let floor = (counters.loads.unique_bytes + counters.stores.unique_bytes) as f64 / launches;
        let moved = (counters.loads.moved_bytes() + counters.stores.moved_bytes()) as f64 / launches;
        let copied = each(counters.bulk_in_bytes) / bulk;
        let bound = most([
            (largest.0, throughput / clock),
            ("memory", floor / (profile.bandwidth * MEMORY_SHARE)),
            ("cache", moved / (CACHE_BYTES * multiprocessors * clock)),
            ("bulk copies", copied / clock),
        ]);
        let (path, fetch) = (path * scale / clock, fetch * scale / clock);
        let (limit, _) = most([bound, ("waiting", path), ("instruction fetch", fetch)]);
        (limit, fetch + path.hypot(bound.1))
    };
    let [tensor, bulk, _, behind] = ASSUMED;
    let dependent =
        if profile.capability.0 >= 9 { counters.dependent_launches as f64 / launches } else { 0.0 };
    let launch = |left: f64| (constants.launch - PROFILER) * (1.0 - dependent * (1.0 - left));
    let (limit, seconds) = by(tensor.value, bulk.value, 1.0);
    // Waits for copies and clusters are as uncertain as the rates.
    let unmeasured = counters.warpgroup_multiply_adds + counters.bulk_in_bytes + counters.peer_bytes > 0;
    let [least, longest] = if unmeasured {
        [by(tensor.range[1], bulk.range[1], 0.8).1, by(tensor.range[0], bulk.range[0], 1.25).1]
    } else {
        [seconds; 2]
    };
    let range = [least + launch(behind.range[0]), longest + launch(behind.range[1])];
    Time { seconds: seconds + launch(behind.value), range, limit }
}

/// The largest of some times, with its name.
fn most<const N: usize>(times: [(&'static str, f64); N]) -> (&'static str, f64) {
    times.into_iter().fold(("nothing", 0.0), |most, one| if one.1 > most.1 { one } else { most })
}

/// Seconds that the device takes to read or write so many bytes of its memory by a copy or a fill.
pub fn moving(profile: &Profile, constants: &Constants, bytes: usize) -> f64 {
    constants.launch - PROFILER + bytes as f64 / (profile.bandwidth * MEMORY_SHARE)
}

/// The steps that were measured: name, milliseconds measured, milliseconds of the model.
pub fn steps() -> Vec<(&'static str, f64, f64)> {
    let Some(profile) = Profile::by_name(&measured().profile) else { return Vec::new() };
    let constants = Constants::fitted();
    let each = measured().steps.iter();
    each.map(|step| (step.name.as_str(), step.measured_ms, step.predict_ms(profile, &constants))).collect()
}

/// One line of the table of the fit.
#[derive(Clone, Debug)]
pub struct Fitted {
    /// The group.
    pub name: String,
    /// Microseconds that were measured.
    pub measured_us: f64,
    /// What the model says of it, fitted with it.
    pub model_us: f64,
    /// What the model says of it, fitted without it.
    pub left_out_us: f64,
}

/// The model against what was measured, with each group in the fit and left out of it.
pub fn leave_one_out() -> Vec<Fitted> {
    let Some(profile) = Profile::by_name(&measured().profile) else { return Vec::new() };
    let groups = &measured().groups;
    let constants = Constants::fitted();
    groups
        .iter()
        .enumerate()
        .map(|(out, group)| {
            let others: Vec<&Group> = groups
                .iter()
                .enumerate()
                .filter(|(index, _)| *index != out)
                .map(|(_, group)| group)
                .collect();
            Fitted {
                name: group.name.clone(),
                measured_us: group.measured_us,
                model_us: group.predict(profile, &constants) * 1e6,
                left_out_us: group.predict(profile, &Constants::fit(&others)) * 1e6,
            }
        })
        .collect()
}
