//! A device: memory, loaded modules, launches with their limits, reports and counters.
//!
//! This is what the driver's C functions wrap, and what tests of the virtual GPU itself use directly.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use crate::check::Report;
use crate::codes::{
    COOPERATIVE_LAUNCH_TOO_LARGE, INVALID_CLUSTER_SIZE, INVALID_VALUE, LAUNCH_OUT_OF_RESOURCES,
};
use crate::counters::Counters;
use crate::execute::{self, Begun, Early, MAX_BLOCKS, Outcome, Settings, Shape};
use crate::memory::{Concurrent, Memory, StreamBit, View};
use crate::profile::{NEWEST_PTX, PROFILES, Profile, REGISTERS, SHARED_DEFAULT};
use crate::program::{LoadError, Program, load};
use crate::ptx::{self, PtxError, Space, addresses, inline, parse};

/// Why a module cannot be loaded.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ModuleError {
    /// The text is not PTX.
    #[error(transparent)]
    Ptx(#[from] PtxError),
    /// A kernel uses what is not known.
    #[error(transparent)]
    Load(#[from] LoadError),
    /// The text is newer than the driver.
    #[error("PTX version {}.{} is newer than {}.{}, the newest that is known", .0.0, .0.1, NEWEST_PTX.0, NEWEST_PTX.1)]
    Version((u32, u32)),
    /// The text is for another architecture.
    #[error("PTX for {target} does not run on {profile}")]
    Target {
        /// The target.
        target: String,
        /// The profile.
        profile: &'static str,
    },
    /// A variable's initial value names what has no address in memory.
    #[error(
        "the initial value of {name} is the address of {of}, which is neither a variable in memory nor a function with a body"
    )]
    Address {
        /// The variable.
        name: String,
        /// What it points to.
        of: String,
    },
    /// A variable cannot be placed.
    #[error("the variable {name} of {size} bytes does not fit into device memory")]
    Variable {
        /// Its name.
        name: String,
        /// Its size.
        size: usize,
    },
}

/// A loaded module.
pub struct Module {
    /// Its kernels.
    pub kernels: HashMap<String, Arc<Program>>,
    /// Addresses and sizes of its global and constant variables.
    pub variables: HashMap<String, (u64, usize)>,
    /// Kernels that cannot be run, and why; a module of which none can is not loaded.
    pub refused: HashMap<String, ModuleError>,
}

/// A line of the source where warps waited.
#[derive(Clone, Debug, PartialEq, serde::Serialize, serde::Deserialize)]
pub struct WaitingLine {
    /// The kernel.
    pub kernel: String,
    /// The source file.
    pub file: String,
    /// The line in it.
    pub line: u32,
    /// The opcode that was waited for longest.
    pub opcode: String,
    /// Its share of all the kernel's waits.
    pub share: f64,
}

/// Why a launch is refused, with the error that a device gives.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{kernel}: {message}")]
pub struct LaunchError {
    /// The kernel.
    pub kernel: String,
    /// What was asked, and what the limit is.
    pub message: String,
    /// `CUDA_ERROR_*` by number.
    pub code: u32,
}

/// A device.
pub struct Device {
    /// What it imitates.
    pub profile: &'static Profile,
    /// Its memory.
    pub memory: Memory,
    /// How launches run.
    pub settings: Settings,
    /// By kernel, launches that are alike added up.
    counters: HashMap<String, Vec<Counters>>,
    /// Kernels that ran, in the order of their first launch.
    ran: Vec<Arc<Program>>,
    /// By kernel and instruction: cycles that warps waited for it.
    waits: HashMap<String, Vec<u64>>,
    /// Where the blocks of a cooperative grid count who has come to its barrier.
    workspace: Option<u64>,
    /// What `malloc` of kernels takes memory from, once a kernel does.
    heap: Option<u64>,
    /// Bytes of that.
    pub heap_bytes: usize,
    /// The kernels of texts that were loaded before, for those that load one over and over.
    known: HashMap<Arc<str>, HashMap<String, Arc<Program>>>,
}

/// Bytes of the heap of kernels where the program sets no limit, as on a device.
pub const HEAP: usize = 8 << 20;
/// Texts whose kernels are kept.
const MAX_KNOWN: usize = 64;

/// Everything that one launch needs, taken from the device so that it can run without it.
pub struct Prepared {
    program: Arc<Program>,
    shape: Shape,
    arguments: Vec<u8>,
    view: View,
    settings: Settings,
    /// Clusters that the device runs at once.
    resident: u64,
    /// Where a cooperative grid keeps its barrier.
    workspace: u64,
    /// Where `malloc` takes memory from, and its bytes.
    heap: (u64, usize),
}

impl Prepared {
    /// The number of the launch.
    pub fn epoch(&self) -> u16 {
        self.view.epoch
    }

    /// Says of which stream it is, what may run at the same time, and which launches it may overtake.
    pub fn order(&mut self, stream: StreamBit, concurrent: Concurrent, unfinished: Option<u16>) {
        self.view.stream = stream;
        self.view.concurrent = concurrent;
        self.view.unfinished = unfinished;
    }

    /// Runs the launch.
    pub fn run(&self) -> Outcome {
        self.run_from(None)
    }

    fn run_from(&self, early: Option<&Early>) -> Outcome {
        let shape = Shape { workspace: self.workspace, heap: self.heap, ..self.shape.clone() };
        execute::run_from(&self.program, &shape, &self.arguments, &self.view, &self.settings, early)
    }

    /// Whether launches begin early where they may.
    pub fn keeps_early(&self) -> bool {
        self.settings.early
    }

    /// Whether it can stand still on its way. The blocks of a cooperative launch wait for each other, which the earlier
    /// grids leave no room for.
    pub fn may_begin_early(&self) -> bool {
        !self.shape.cooperative
    }

    /// Runs as many blocks as the device runs at once up to `griddepcontrol.wait`, where they stand still.
    ///
    /// # Errors
    /// The system has no thread for it.
    pub fn begin_early(self) -> std::io::Result<Begun> {
        Begun::new(self.resident, move |early| self.run_from(Some(early)))
    }
}

/// Reads a positive number from the environment.
pub(crate) fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.trim().parse().ok()
}

impl Settings {
    /// The defaults, changed by `VGPU_CHECKS`, `VGPU_SEED`, `VGPU_THREADS`, `VGPU_SAMPLE_BLOCKS`, `VGPU_TIMING`,
    /// `VGPU_EARLY` and `VGPU_TIMEOUT` (seconds).
    pub fn from_environment(profile: &Profile) -> Self {
        let available = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            checks: number("VGPU_CHECKS") != Some(0),
            seed: number("VGPU_SEED").unwrap_or(1),
            workers: number("VGPU_THREADS").map_or(available, |threads| threads as usize).max(1),
            sample_blocks: number("VGPU_SAMPLE_BLOCKS").filter(|&blocks| blocks > 0),
            timeout: Duration::from_secs(number("VGPU_TIMEOUT").unwrap_or(300)),
            multiprocessors: profile.multiprocessors,
            timing: number("VGPU_TIMING") == Some(1),
            early: number("VGPU_EARLY") == Some(1),
            outputs: None,
        }
    }
}

impl Device {
    /// A device of a profile with the settings of the environment.
    pub fn new(profile: &'static Profile) -> Self {
        let memory = number("VGPU_MEMORY").unwrap_or(16 << 30);
        Self {
            profile,
            memory: Memory::new(memory),
            settings: Settings::from_environment(profile),
            counters: HashMap::new(),
            ran: Vec::new(),
            waits: HashMap::new(),
            workspace: None,
            heap: None,
            heap_bytes: HEAP,
            known: HashMap::new(),
        }
    }

    /// The profile that `VGPU_PROFILE` names, or the first.
    ///
    /// # Errors
    /// A name that is no profile.
    pub fn profile_from_environment() -> Result<&'static Profile, String> {
        match std::env::var("VGPU_PROFILE") {
            Err(_) => Ok(&PROFILES[0]),
            Ok(name) => Profile::by_name(&name).ok_or_else(|| {
                let known: Vec<&str> = PROFILES.iter().map(|profile| profile.name).collect();
                format!("VGPU_PROFILE={name} is no profile; known are {}", known.join(", "))
            }),
        }
    }

    /// Loads a PTX text.
    ///
    /// # Errors
    /// What is wrong with the text, or what of it is not known.
    pub fn load(&mut self, text: &str) -> Result<Module, ModuleError> {
        if let Some(kernels) = self.known.get(text) {
            return Ok(Module {
                kernels: kernels.clone(),
                variables: HashMap::new(),
                refused: HashMap::new(),
            });
        }
        let parsed = parse(text)?;
        if parsed.version > NEWEST_PTX {
            return Err(ModuleError::Version(parsed.version));
        }
        if !self.profile.runs(&parsed.target) {
            return Err(ModuleError::Target { target: parsed.target, profile: self.profile.name });
        }
        let files = Arc::new(parsed.files.clone());
        let text: Arc<str> = Arc::from(text);
        let mut symbols: HashMap<String, (Space, u64)> = HashMap::new();
        let mut variables = HashMap::new();
        let mut dynamic_shared = Vec::new();
        let mut shared_end = 0u64;
        let defined: HashSet<&str> = (parsed.variables.iter())
            .filter(|variable| !variable.external)
            .map(|variable| variable.name.as_str())
            .collect();
        for variable in &parsed.variables {
            match variable.space {
                // Of texts that were linked, one defines what the others declare.
                _ if variable.external && defined.contains(variable.name.as_str()) => {}
                Space::Shared if variable.size == 0 => {
                    dynamic_shared.push((variable.name.clone(), variable.align));
                }
                Space::Shared => {
                    shared_end = shared_end.next_multiple_of(variable.align.max(1) as u64);
                    symbols.insert(variable.name.clone(), (Space::Shared, shared_end));
                    shared_end += variable.size as u64;
                    symbols.insert(format!("{}#end", variable.name), (Space::Shared, shared_end));
                }
                _ => {
                    let size = variable.size.max(1);
                    let allocated = if variable.managed {
                        self.memory.allocate_managed(size)
                    } else {
                        self.memory.allocate(size)
                    };
                    let address = allocated
                        .ok_or_else(|| ModuleError::Variable { name: variable.name.clone(), size })?;
                    // Module variables start as zero where the text gives no value.
                    let mut initial = variable.initial.clone();
                    initial.resize(size, 0);
                    if let Some(allocation) = self.memory.find(address) {
                        allocation.write(address, &initial);
                        allocation.mark_written(address, size);
                    }
                    symbols.insert(variable.name.clone(), (variable.space, address));
                    variables.insert(variable.name.clone(), (address, variable.size));
                }
            }
        }
        let functions = addresses(&parsed);
        // Functions have addresses to be compared, and lie nowhere.
        symbols
            .extend(functions.iter().map(|(name, &address)| (name.to_string(), (Space::Generic, address))));
        for variable in parsed.variables.iter().filter(|variable| !variable.addresses.is_empty()) {
            let Some((address, _)) = variables.get(&variable.name) else { continue };
            for (at, name, offset) in &variable.addresses {
                let target = variables
                    .get(name)
                    .map(|(address, _)| address)
                    .or_else(|| functions.get(name.as_str()))
                    .ok_or_else(|| ModuleError::Address { name: variable.name.clone(), of: name.clone() })?;
                let value = target.wrapping_add(*offset as u64);
                if let Some(allocation) = self.memory.find(*address) {
                    allocation.write(address + *at as u64, &value.to_le_bytes());
                }
            }
        }
        let (mut kernels, mut refused) = (HashMap::new(), HashMap::new());
        for function in parsed.functions.iter().filter(|function| function.is_entry && function.has_body) {
            let program = inline(&parsed, function)
                .map_err(ModuleError::from)
                .and_then(|whole| Ok(load(&whole, files.clone(), &symbols, &dynamic_shared)?));
            match program {
                Ok(mut program) => {
                    program.text = text.clone();
                    program.target.clone_from(&parsed.target);
                    kernels.insert(function.name.clone(), Arc::new(program));
                }
                Err(error) => drop(refused.insert(function.name.clone(), error)),
            }
        }
        // One kernel of many that cannot be run is told of when somebody wants it.
        if kernels.is_empty()
            && let Some(error) = first_of(&parsed, &refused)
        {
            return Err(error);
        }
        // The addresses of a module's own variables are part of its kernels.
        if variables.is_empty() && refused.is_empty() {
            if self.known.len() == MAX_KNOWN {
                self.known.clear();
            }
            self.known.insert(text, kernels.clone());
        }
        Ok(Module { kernels, variables, refused })
    }

    /// Checks a launch against the device's limits.
    ///
    /// # Errors
    /// The limit that is exceeded.
    pub fn check_limits(
        &self,
        program: &Program,
        shape: &Shape,
        shared_limit: u32,
    ) -> Result<(), LaunchError> {
        let fail = |code, message: String| Err(LaunchError { kernel: program.name.clone(), message, code });
        let [x, y, z] = shape.block;
        if shape.grid.contains(&0) || shape.block.contains(&0) {
            return fail(
                INVALID_VALUE,
                format!("grid {:?} and block {:?} must not be 0", shape.grid, shape.block),
            );
        }
        if shape.grid[0] > i32::MAX as u32 || shape.grid[1] > 65_535 || shape.grid[2] > 65_535 {
            return fail(INVALID_VALUE, format!("grid {:?} exceeds 2^31-1, 65535, 65535", shape.grid));
        }
        let threads = u64::from(x) * u64::from(y) * u64::from(z);
        if x > 1024 || y > 1024 || z > 64 || threads > 1024 {
            return fail(
                INVALID_VALUE,
                format!("block {:?} exceeds 1024, 1024, 64 or 1024 in all", shape.block),
            );
        }
        let threads = threads as u32;
        if program.max_threads != 0 && threads > program.max_threads {
            return fail(
                INVALID_VALUE,
                format!("{threads} threads exceed the kernel's launch bound of {}", program.max_threads),
            );
        }
        if program.required_threads != [0; 3] && program.required_threads != shape.block {
            return fail(
                INVALID_VALUE,
                format!("the kernel demands blocks of {:?}", program.required_threads),
            );
        }
        let shared = program.static_shared as u64 + u64::from(shape.dynamic_shared);
        if shared > u64::from(shared_limit.max(SHARED_DEFAULT))
            || shared > u64::from(self.profile.shared_per_block_optin)
        {
            return fail(
                INVALID_VALUE,
                format!(
                    "{shared} bytes of shared memory exceed {}; set MAX_DYNAMIC_SHARED_SIZE_BYTES for up to {}",
                    shared_limit.max(SHARED_DEFAULT).min(self.profile.shared_per_block_optin),
                    self.profile.shared_per_block_optin
                ),
            );
        }
        let registers = registers_of(program);
        if registers * threads.next_multiple_of(32) > REGISTERS {
            return fail(
                LAUNCH_OUT_OF_RESOURCES,
                format!(
                    "{threads} threads of about {registers} registers exceed the {REGISTERS} of a multiprocessor"
                ),
            );
        }
        self.check_cluster(program, shape).or_else(|message| fail(INVALID_CLUSTER_SIZE, message))?;
        if shape.cooperative {
            let fit = self.profile.occupancy(threads, registers, shared as u32);
            let most = u64::from(fit) * u64::from(self.profile.multiprocessors);
            if shape.blocks() > most {
                return fail(
                    COOPERATIVE_LAUNCH_TOO_LARGE,
                    format!("{} blocks cannot all run at once; {most} can", shape.blocks()),
                );
            }
        }
        Ok(())
    }

    fn check_cluster(&self, program: &Program, shape: &Shape) -> Result<(), String> {
        let size = shape.cluster_blocks();
        if let Some(demanded) = program.cluster
            && demanded != shape.cluster
        {
            return Err(format!("the kernel demands clusters of {demanded:?}, not {:?}", shape.cluster));
        }
        if size == 1 {
            return Ok(());
        }
        if self.profile.capability.0 < 9 {
            return Err(format!("{} has no clusters", self.profile.name));
        }
        if size == 0 || size > MAX_BLOCKS {
            return Err(format!("a cluster of {size} blocks; 1 to {MAX_BLOCKS} are allowed"));
        }
        if program.max_cluster > 0 && size > program.max_cluster {
            return Err(format!("a cluster of {size} blocks exceeds the kernel's {}", program.max_cluster));
        }
        for axis in 0..3 {
            let (grid, cluster) = (shape.grid[axis], shape.cluster[axis]);
            if grid % cluster != 0 {
                return Err(format!(
                    "clusters of {cluster} blocks do not divide a grid of {grid} in direction {axis}"
                ));
            }
        }
        let shared = program.static_shared as u32 + shape.dynamic_shared;
        let fit = self.profile.occupancy(shape.threads(), registers_of(program), shared);
        if self.profile.clusters(size, fit) == 0 {
            return Err(format!("a cluster of {size} such blocks does not fit on the device"));
        }
        Ok(())
    }

    /// Takes everything that a launch needs.
    pub fn prepare(&mut self, program: &Arc<Program>, shape: &Shape, arguments: &[u8]) -> Prepared {
        let shared = program.static_shared as u32 + shape.dynamic_shared;
        let fit = self.profile.occupancy(shape.threads(), registers_of(program), shared);
        let resident = match shape.cluster_blocks() {
            0 | 1 => u64::from(fit) * u64::from(self.profile.multiprocessors),
            size => u64::from(self.profile.clusters(size, fit)),
        };
        let workspace = if shape.cooperative { self.workspace() } else { 0 };
        let heap = if execute::allocates(program) { self.heap() } else { (0, 0) };
        Prepared {
            workspace,
            heap,
            program: program.clone(),
            shape: shape.clone(),
            arguments: arguments.to_vec(),
            view: self.memory.view(),
            settings: self.settings.clone(),
            resident,
        }
    }

    /// Memory for the barrier of a cooperative grid: its size and a counter, which the library of cooperative groups knows.
    fn workspace(&mut self) -> u64 {
        const BYTES: usize = 64;
        if self.workspace.is_none_or(|address| self.memory.find(address).is_none()) {
            self.workspace = self.memory.allocate(BYTES);
        }
        let Some(address) = self.workspace else { return 0 };
        if let Some(allocation) = self.memory.find(address) {
            let mut bytes = [0; BYTES];
            bytes[..4].copy_from_slice(&(BYTES as u32).to_le_bytes());
            allocation.write(address, &bytes);
            allocation.mark_written(address, BYTES);
        }
        address
    }

    /// The heap of kernels, and its bytes.
    fn heap(&mut self) -> (u64, usize) {
        if self.heap.is_none() {
            self.heap = self.memory.allocate(self.heap_bytes);
        }
        let size = |address| self.memory.find(address).map_or(0, |allocation| allocation.size);
        self.heap.map_or((0, 0), |address| (address, size(address)))
    }

    /// Adds up where a launch waited.
    pub fn count_waits(&mut self, program: &Arc<Program>, waits: &[u64]) {
        let known = self.waits.entry(program.name.clone()).or_default();
        known.resize(known.len().max(waits.len()), 0);
        known.iter_mut().zip(waits).for_each(|(known, wait)| *known += wait);
    }

    /// The lines where warps of a kernel waited longest, with the share of all its waits; empty where time is not kept.
    pub fn longest_waits(&self, program: &Program, most: usize) -> Vec<WaitingLine> {
        let Some(waits) = self.waits.get(&program.name) else { return Vec::new() };
        let whole = waits.iter().sum::<u64>().max(1) as f64;
        let mut lines: HashMap<(u32, u32), (u64, u64, usize)> = HashMap::new();
        for (at, (&wait, note)) in waits.iter().zip(&program.notes).enumerate() {
            let line = lines.entry((note.location.file, note.location.line)).or_insert((0, 0, at));
            line.0 += wait;
            if wait > line.1 {
                (line.1, line.2) = (wait, at);
            }
        }
        let mut out: Vec<WaitingLine> = lines
            .into_iter()
            .map(|((file, line), (cycles, _, at))| WaitingLine {
                kernel: program.name.clone(),
                file: program.file(file).to_string(),
                line,
                opcode: program.notes[at].opcode.to_string(),
                share: cycles as f64 / whole,
            })
            .collect();
        out.sort_by(|a, b| b.share.total_cmp(&a.share).then(a.line.cmp(&b.line)));
        out.truncate(most);
        out
    }

    /// Adds up what a launch counted.
    pub fn count(&mut self, program: &Arc<Program>, counters: &Counters) {
        let Some(known) = self.counters.get_mut(&counters.kernel) else {
            self.ran.push(program.clone());
            self.counters.insert(counters.kernel.clone(), vec![counters.clone()]);
            return;
        };
        match known.iter_mut().find(|sum| sum.is_like(counters)) {
            Some(sum) => sum.add(counters),
            None => known.push(counters.clone()),
        }
    }

    /// The counters of all kernels, in the order of their first launch.
    pub fn counters(&self) -> Vec<Counters> {
        self.counters_of_alike().map(Counters::sum).collect()
    }

    /// The counters of each kernel, in the same order, those of launches that are alike together.
    pub fn counters_of_alike(&self) -> impl Iterator<Item = &[Counters]> {
        self.ran.iter().filter_map(|program| self.counters.get(&program.name)).map(Vec::as_slice)
    }

    /// The kernels that ran, in the order of [`Device::counters`].
    pub fn kernels(&self) -> &[Arc<Program>] {
        &self.ran
    }

    /// Starts counting anew.
    pub fn reset_counters(&mut self) {
        self.counters.clear();
        self.ran.clear();
        self.waits.clear();
    }

    /// Checks, runs and counts a launch. The arguments are laid out as the kernel's parameters; [`Arguments`]
    /// does that.
    ///
    /// # Errors
    /// A launch that the device would refuse.
    pub fn launch(
        &mut self,
        program: &Arc<Program>,
        shape: &Shape,
        arguments: &[u8],
    ) -> Result<Outcome, LaunchError> {
        self.check_limits(program, shape, self.profile.shared_per_block_optin)?;
        let outcome = self.prepare(program, shape, arguments).run();
        self.count(program, &outcome.counters);
        self.count_waits(program, &outcome.waits);
        Ok(outcome)
    }

    /// Allocates and fills device memory; none when it is full.
    pub fn upload(&mut self, bytes: &[u8]) -> Option<u64> {
        let address = self.memory.allocate(bytes.len().max(1))?;
        let allocation = self.memory.find(address)?;
        allocation.write(address, bytes);
        allocation.mark_written(address, bytes.len());
        Some(address)
    }

    /// Reads device memory; none when it is not all allocated.
    pub fn download(&self, address: u64, bytes: usize) -> Option<Vec<u8>> {
        let mut out = vec![0; bytes];
        self.memory.find(address)?.read(address, &mut out).then_some(out)
    }
}

/// Why the first kernel of a text that cannot be run cannot.
fn first_of(parsed: &ptx::Module, refused: &HashMap<String, ModuleError>) -> Option<ModuleError> {
    parsed.functions.iter().find_map(|function| refused.get(&function.name)).cloned()
}

/// Registers of a thread: what is known of the kernel, within what its launch bounds leave.
pub fn registers_of(program: &Program) -> u32 {
    let mut most = 255;
    if program.max_threads > 0 {
        let blocks = program.min_blocks.max(1);
        // ptxas keeps within the bound by spilling.
        most = (REGISTERS / (program.max_threads.next_multiple_of(32) * blocks)).clamp(16, 255) / 8 * 8;
    }
    program.estimated_registers.min(most.max(16))
}

/// Kernel arguments, laid out one by one.
#[derive(Clone, Debug, Default)]
pub struct Arguments(Vec<u8>);

impl Arguments {
    /// None yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds one of up to 8 bytes, aligned to its size.
    #[must_use]
    pub fn and(mut self, bytes: &[u8]) -> Self {
        while !self.0.len().is_multiple_of(bytes.len().max(1)) {
            self.0.push(0);
        }
        self.0.extend_from_slice(bytes);
        self
    }

    /// Adds an address.
    #[must_use]
    pub fn pointer(self, address: u64) -> Self {
        self.and(&address.to_le_bytes())
    }

    /// Adds an i32.
    #[must_use]
    pub fn int(self, value: i32) -> Self {
        self.and(&value.to_le_bytes())
    }

    /// Adds an f32.
    #[must_use]
    pub fn float(self, value: f32) -> Self {
        self.and(&value.to_le_bytes())
    }

    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

/// The failed checks of an outcome as one text, a line each.
pub fn describe(reports: &[Report]) -> String {
    reports.iter().map(|report| format!("{report}\n")).collect()
}
