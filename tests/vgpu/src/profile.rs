//! The devices that can be imitated: what programs ask of them, and what their launches allow.

use serde::Serialize;

/// Where figures of a profile come from.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Source {
    /// Which figures.
    pub of: &'static str,
    /// The document, or what was done.
    pub title: &'static str,
    /// Its public address; empty for what was measured here or assumed.
    pub link: &'static str,
}

const fn source(of: &'static str, title: &'static str, link: &'static str) -> Source {
    Source { of, title, link }
}

const LIMITS: Source = source(
    "threads, blocks and shared memory of a multiprocessor",
    "CUDA C++ Programming Guide, compute capabilities",
    "https://docs.nvidia.com/cuda/cuda-c-programming-guide/",
);
const HOPPER: Source = source(
    "multiprocessors, level-2 cache, bus",
    "NVIDIA Hopper Architecture In-Depth",
    "https://developer.nvidia.com/blog/nvidia-hopper-architecture-in-depth/",
);
const HOPPER_LAYOUT: Source = source(
    "processing clusters: clusters of eight reach 120 of 132 multiprocessors of an H100; the sizes are one layout that agrees",
    "Add SM->GPC mapping query and ubench tool",
    "https://github.com/accel-sim/gpu-app-collection/pull/87",
);
const NO_LAYOUT: Source = source(
    "processing clusters",
    "assumed: the multiprocessors dealt out evenly in pairs; nobody measured them here",
    "",
);
const NOT_FITTED: Source = source(
    "time",
    "not fitted: nothing was measured on this device, and the sustained clock is the data sheet's",
    "",
);

/// A device, by what matters to a program and to the predictions.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Profile {
    /// `sm_80` and so on.
    pub name: &'static str,
    /// What `cuDeviceGetName` answers.
    pub title: &'static str,
    /// Compute capability.
    pub capability: (u32, u32),
    /// Multiprocessors.
    pub multiprocessors: u32,
    /// Threads of a multiprocessor.
    pub threads_per_multiprocessor: u32,
    /// Blocks of a multiprocessor.
    pub blocks_per_multiprocessor: u32,
    /// Shared memory of a multiprocessor, in bytes.
    pub shared_per_multiprocessor: u32,
    /// Shared memory that a block may opt into, in bytes.
    pub shared_per_block_optin: u32,
    /// Multiprocessors of each processing cluster, within which clusters of blocks are placed; empty where there are none.
    pub processing_clusters: &'static [u32],
    /// Level-2 cache, in bytes.
    pub l2_bytes: u32,
    /// Clock, in kHz, at which the rates below hold.
    pub clock_khz: u32,
    /// The clock that long work runs at, in kHz, where it was measured; else the same.
    pub sustained_khz: u32,
    /// Whether the time model was fitted to measurements of this device.
    pub fitted: bool,
    /// Memory clock, in kHz.
    pub memory_clock_khz: u32,
    /// Width of the memory bus, in bits.
    pub memory_bus_bits: u32,
    /// Bandwidth of memory, in bytes a second.
    pub bandwidth: f64,
    /// Dense bf16 tensor-core multiply-adds a second.
    pub tensor_rate: f64,
    /// f32 multiply-adds a second.
    pub single_rate: f64,
    /// Where all this comes from.
    pub sources: &'static [Source],
}

/// Registers of a multiprocessor.
pub const REGISTERS: u32 = 65_536;
/// Shared memory of a block without opting in.
pub const SHARED_DEFAULT: u32 = 49_152;
/// Shared memory that the system keeps for itself in every block.
pub const SHARED_RESERVED: u32 = 1_024;
/// The newest PTX version that the driver takes: CUDA 13.0 brought 9.0, 13.5 brings 9.5.
pub const NEWEST_PTX: (u32, u32) = (9, 5);

/// The profiles, the default first.
pub const PROFILES: [Profile; 6] = [
    // Rates from the A100 SXM4 80 GB data sheet: 312 TFLOP/s bf16, 19.5 f32, 2,039 GB/s.
    Profile {
        name: "sm_80",
        title: "Virtual GPU (sm_80, after A100)",
        capability: (8, 0),
        multiprocessors: 108,
        threads_per_multiprocessor: 2048,
        blocks_per_multiprocessor: 32,
        shared_per_multiprocessor: 167_936,
        shared_per_block_optin: 166_912,
        processing_clusters: &[],
        l2_bytes: 40 << 20,
        clock_khz: 1_410_000,
        sustained_khz: 1_410_000,
        fitted: false,
        memory_clock_khz: 1_593_000,
        memory_bus_bits: 5120,
        bandwidth: 2.039e12,
        tensor_rate: 156e12,
        single_rate: 9.75e12,
        sources: &[
            source(
                "rates, bandwidth, clocks",
                "NVIDIA A100 Tensor Core GPU data sheet, 80 GB SXM",
                "https://www.nvidia.com/en-us/data-center/a100/",
            ),
            LIMITS,
            NOT_FITTED,
        ],
    },
    // L4: 121 TFLOP/s bf16, 30.3 f32, 300 GB/s.
    Profile {
        name: "sm_89",
        title: "Virtual GPU (sm_89, after L4)",
        capability: (8, 9),
        multiprocessors: 58,
        threads_per_multiprocessor: 1536,
        blocks_per_multiprocessor: 24,
        shared_per_multiprocessor: 102_400,
        shared_per_block_optin: 101_376,
        processing_clusters: &[],
        l2_bytes: 48 << 20,
        clock_khz: 2_040_000,
        sustained_khz: 2_040_000,
        fitted: false,
        memory_clock_khz: 6_251_000,
        memory_bus_bits: 192,
        bandwidth: 0.3e12,
        tensor_rate: 60.5e12,
        single_rate: 15.1e12,
        sources: &[
            source(
                "rates, bandwidth, clocks",
                "NVIDIA L4 Tensor Core GPU data sheet",
                "https://www.nvidia.com/en-us/data-center/l4/",
            ),
            LIMITS,
            NOT_FITTED,
        ],
    },
    // Clusters of eight blocks of a multiprocessor each reach 120 of 132 multiprocessors; how an H100 is cut beyond that differs
    // from one to the next.
    // H100 SXM5: 989 TFLOP/s bf16, 67 f32, 3,350 GB/s.
    Profile {
        name: "sm_90",
        title: "Virtual GPU (sm_90, after H100)",
        capability: (9, 0),
        multiprocessors: 132,
        threads_per_multiprocessor: 2048,
        blocks_per_multiprocessor: 32,
        shared_per_multiprocessor: 233_472,
        shared_per_block_optin: 232_448,
        processing_clusters: &[18, 18, 18, 16, 16, 16, 16, 14],
        l2_bytes: 50 << 20,
        clock_khz: 1_980_000,
        sustained_khz: 1_980_000,
        fitted: false,
        memory_clock_khz: 2_619_000,
        memory_bus_bits: 5120,
        bandwidth: 3.35e12,
        tensor_rate: 494.5e12,
        single_rate: 33.5e12,
        sources: &[
            source(
                "rates, bandwidth, clocks",
                "NVIDIA H100 Tensor Core GPU data sheet, SXM",
                "https://www.nvidia.com/en-us/data-center/h100/",
            ),
            HOPPER,
            HOPPER_LAYOUT,
            LIMITS,
            NOT_FITTED,
        ],
    },
    // H200 SXM: an H100 with 4,800 GB/s; 1,755 MHz is what it was measured to hold under ncu.
    Profile {
        name: "h200",
        title: "Virtual GPU (h200, after H200)",
        capability: (9, 0),
        multiprocessors: 132,
        threads_per_multiprocessor: 2048,
        blocks_per_multiprocessor: 32,
        shared_per_multiprocessor: 233_472,
        shared_per_block_optin: 232_448,
        processing_clusters: &[18, 18, 18, 16, 16, 16, 16, 14],
        l2_bytes: 50 << 20,
        clock_khz: 1_830_000,
        sustained_khz: 1_755_000,
        fitted: true,
        memory_clock_khz: 3_201_000,
        memory_bus_bits: 6144,
        bandwidth: 4.8e12,
        tensor_rate: 494.5e12,
        single_rate: 33.5e12,
        sources: &[
            source(
                "rates, bandwidth",
                "NVIDIA H200 Tensor Core GPU data sheet, SXM",
                "https://www.nvidia.com/en-us/data-center/h200/",
            ),
            HOPPER,
            HOPPER_LAYOUT,
            LIMITS,
            source("time, sustained clock", "measured on an H200: data/measured.json", ""),
        ],
    },
    // B200: 2,250 TFLOP/s bf16, 80 f32, 8,000 GB/s. Its tensor memory is not modelled, its older instructions are.
    Profile {
        name: "sm_100",
        title: "Virtual GPU (sm_100, after B200)",
        capability: (10, 0),
        multiprocessors: 148,
        threads_per_multiprocessor: 2048,
        blocks_per_multiprocessor: 32,
        shared_per_multiprocessor: 233_472,
        shared_per_block_optin: 232_448,
        processing_clusters: &[20, 20, 18, 18, 18, 18, 18, 18],
        l2_bytes: 126 << 20,
        clock_khz: 1_965_000,
        sustained_khz: 1_965_000,
        fitted: false,
        memory_clock_khz: 3_996_000,
        memory_bus_bits: 8192,
        bandwidth: 8.0e12,
        tensor_rate: 1125e12,
        single_rate: 40e12,
        sources: &[
            source(
                "rates, bandwidth, clocks",
                "NVIDIA HGX B200 specifications",
                "https://www.nvidia.com/en-us/data-center/hgx/",
            ),
            source(
                "shared memory, registers, level-2 cache",
                "Blackwell Tuning Guide",
                "https://docs.nvidia.com/cuda/blackwell-tuning-guide/",
            ),
            NO_LAYOUT,
            LIMITS,
            NOT_FITTED,
        ],
    },
    // RTX 5090: 209.5 TFLOP/s bf16 with f32 accumulation, 104.8 f32, 1,792 GB/s.
    Profile {
        name: "sm_120",
        title: "Virtual GPU (sm_120, after RTX 5090)",
        capability: (12, 0),
        multiprocessors: 170,
        threads_per_multiprocessor: 1536,
        blocks_per_multiprocessor: 24,
        shared_per_multiprocessor: 102_400,
        shared_per_block_optin: 101_376,
        processing_clusters: &[22, 22, 22, 22, 22, 20, 20, 20],
        l2_bytes: 96 << 20,
        clock_khz: 2_407_000,
        sustained_khz: 2_407_000,
        fitted: false,
        memory_clock_khz: 14_001_000,
        memory_bus_bits: 512,
        bandwidth: 1.792e12,
        tensor_rate: 104.8e12,
        single_rate: 52.4e12,
        sources: &[
            source(
                "rates, bandwidth, clocks, level-2 cache",
                "NVIDIA RTX Blackwell GPU Architecture",
                "https://images.nvidia.com/aem-dam/Solutions/geforce/blackwell/nvidia-rtx-blackwell-gpu-architecture.pdf",
            ),
            NO_LAYOUT,
            LIMITS,
            NOT_FITTED,
        ],
    },
];

impl Profile {
    /// The profile of a name.
    pub fn by_name(name: &str) -> Option<&'static Self> {
        PROFILES.iter().find(|profile| profile.name == name)
    }

    /// The architecture for which ptxas compiles: that of code for one architecture alone where `target` is such.
    pub fn architecture(&self, target: &str) -> String {
        let own = self.capability.0 * 10 + self.capability.1;
        format!("sm_{own}{}", if target.ends_with('a') { "a" } else { "" })
    }

    /// Blocks that fit on a multiprocessor at once, by threads, registers and shared memory.
    pub fn occupancy(&self, threads: u32, registers: u32, shared: u32) -> u32 {
        if threads == 0 || threads > 1024 {
            return 0;
        }
        let warps = threads.div_ceil(32);
        // Registers are given to a warp in units of 256.
        let per_warp = (registers.max(1) * 32).next_multiple_of(256);
        let by_registers = REGISTERS / per_warp / warps;
        let by_shared = self.shared_per_multiprocessor / (shared + SHARED_RESERVED).next_multiple_of(128);
        let by_threads = self.threads_per_multiprocessor / (warps * 32);
        by_registers.min(by_shared).min(by_threads).min(self.blocks_per_multiprocessor)
    }

    /// Clusters of some blocks that run at once, with `fit` blocks on a multiprocessor.
    pub fn clusters(&self, blocks: u32, fit: u32) -> u32 {
        self.processing_clusters.iter().map(|count| count * fit / blocks.max(1)).sum()
    }

    /// Whether code for a target such as `sm_80` or `sm_90a` runs here, from its PTX.
    pub fn runs(&self, target: &str) -> bool {
        let digits: String = target.chars().filter(char::is_ascii_digit).collect();
        let Ok(number) = digits.parse::<u32>() else { return false };
        let own = self.capability.0 * 10 + self.capability.1;
        // Code for an `a` or `f` target runs on that architecture alone.
        if target.ends_with(['a', 'f']) { number == own } else { number <= own }
    }

    /// `cuDeviceGetAttribute`, by number; none for what is not known.
    pub fn attribute(&self, attribute: u32) -> Option<i32> {
        Some(match attribute {
            1 => 1024,
            2 | 3 => 1024,
            4 => 64,
            5 => i32::MAX,
            6 | 7 => 65_535,
            8 => SHARED_DEFAULT as i32,
            9 => 65_536,
            10 => 32,
            11 => i32::MAX,
            12 | 82 => REGISTERS as i32,
            13 => self.clock_khz as i32,
            14 => 512,
            // Clusters, and tensor maps.
            120 | 127 => i32::from(self.capability.0 >= 9),
            15 | 31 | 40 | 41 | 83 | 84 | 89 | 90 | 95 | 99 | 100 | 115 => 1,
            16 => self.multiprocessors as i32,
            17 | 18 | 20 => 0,
            36 => self.memory_clock_khz as i32,
            37 => self.memory_bus_bits as i32,
            38 => self.l2_bytes as i32,
            39 => self.threads_per_multiprocessor as i32,
            75 => self.capability.0 as i32,
            76 => self.capability.1 as i32,
            78..=80 => 1,
            81 => self.shared_per_multiprocessor as i32,
            97 => self.shared_per_block_optin as i32,
            106 => self.blocks_per_multiprocessor as i32,
            108 => (self.l2_bytes / 2) as i32,
            111 => SHARED_RESERVED as i32,
            0..=150 => 0,
            _ => return None,
        })
    }
}
