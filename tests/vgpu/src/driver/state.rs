//! What the driver keeps: contexts, streams, events, graphs, modules, and the rules of capture.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::early::KeptBack;
use super::extension::Calls;
use super::libraries::Link;
use super::model_time::ModelTime;
use super::order::{Clock, Order};
use crate::check::Report;
use crate::codes::*;
use crate::device::{Device, Module};
use crate::execute::Shape;
use crate::program::Program;

/// A piece of work that a stream carries out or a graph keeps.
#[derive(Clone)]
pub enum Work {
    /// A kernel.
    Launch { program: Arc<Program>, shape: Shape, arguments: Vec<u8> },
    /// Fills memory with a pattern of 1, 2 or 4 bytes.
    Fill { address: u64, pattern: Vec<u8>, count: usize },
    /// From the host.
    Upload { to: u64, from: usize, bytes: usize },
    /// To the host.
    Download { to: usize, from: u64, bytes: usize },
    /// Within the device.
    Copy { to: u64, from: u64, bytes: usize },
    /// Within the host.
    Between { to: usize, from: usize, bytes: usize },
    /// A function of the host.
    Call { function: usize, data: usize },
}

/// What a graph keeps, in the order it was captured: work of the streams that were captured, and what orders them.
#[derive(Clone)]
pub enum Node {
    /// Work of a stream.
    Work(usize, Work),
    /// An event is recorded on a stream.
    Record(usize, usize),
    /// A stream waits for an event.
    Wait(usize, usize),
}

/// A capture under way.
pub struct Capture {
    pub origin: usize,
    pub thread: usize,
    pub relaxed: bool,
    pub work: Vec<Node>,
    pub broken: bool,
    /// Streams that joined, and whether they have work that the origin has not waited for.
    pub joined: HashMap<usize, bool>,
}

/// An event.
#[derive(Clone, Default)]
pub struct Event {
    pub timed: bool,
    pub recorded: Option<Instant>,
    /// The stream it was recorded on, and how many copies out of pinned memory came before.
    pub behind: Option<(usize, u64)>,
    /// The capture it was recorded in, with the stream.
    pub captured: Option<(usize, usize)>,
    /// What came before it.
    pub clock: Clock,
    /// When that is done by the model, in seconds.
    pub done: f64,
}

/// What a copy out of pinned memory is still to read, for all that the program knows: nothing has waited for the copy yet.
/// Copies are carried out at once here; on a device they come whenever the stream gets to them.
pub struct Reading {
    pub stream: usize,
    pub from: usize,
    /// What was there when the copy was asked for.
    pub bytes: Vec<u8>,
    /// Which of all copies it is.
    pub order: u64,
}

impl Reading {
    /// Whether the host has written there since.
    fn is_overwritten(&self) -> bool {
        // SAFETY: pinned memory is freed only by `free_host`, which ends every reading of it first.
        let now = unsafe { std::slice::from_raw_parts(self.from as *const u8, self.bytes.len()) };
        now != self.bytes
    }
}

/// A function of a module.
#[derive(Clone)]
pub struct Function {
    pub program: Arc<Program>,
    /// The module it was asked for of.
    pub module: usize,
    pub shared_limit: u32,
    /// Whether clusters may be larger than every device runs them.
    pub non_portable: bool,
}

/// The driver's state.
pub struct State {
    pub device: Device,
    pub profile_problem: Option<String>,
    /// How many devices there are; all are alike, and a process has contexts on one of them at a time.
    pub devices: i32,
    /// The one that contexts are on.
    pub ordinal: i32,
    pub primary_references: u32,
    pub contexts: Vec<usize>,
    pub sticky: u32,
    pub streams: HashMap<usize, u32>,
    /// Captures by number, and the stream's capture.
    pub captures: HashMap<usize, Capture>,
    pub capturing: HashMap<usize, usize>,
    pub events: HashMap<usize, Event>,
    pub modules: HashMap<usize, Module>,
    pub functions: HashMap<usize, Function>,
    pub graphs: HashMap<usize, Vec<Node>>,
    pub executables: HashMap<usize, Vec<Node>>,
    pub pools: HashMap<usize, HashMap<u32, u64>>,
    /// Host memory that the device reaches, by its start.
    pub pinned: HashMap<usize, usize>,
    /// What of it is managed, and what the program allocated itself.
    pub managed: HashSet<usize>,
    pub registered: HashSet<usize>,
    /// Names that were given to the program, by function.
    pub names: HashMap<usize, CString>,
    /// What linkers were given.
    pub links: HashMap<usize, Link>,
    /// Launches that are kept back.
    pub kept: KeptBack,
    /// What orders work on different streams.
    pub order: Order,
    /// When what each stream was given is done, where time is kept.
    pub model_time: ModelTime,
    pub readings: Vec<Reading>,
    /// Copies out of pinned memory so far.
    pub copies: u64,
    /// Reports by the thread whose launch they are of.
    pub reports: Vec<(usize, Report)>,
    pub failed_launches: u64,
    /// What each thread asked for.
    calls: HashMap<usize, Calls>,
    next: usize,
}

/// The handle of the default pool.
pub const DEFAULT_POOL: usize = 0x6000;
/// The handle of the first device's primary context. Those of the others follow it.
const PRIMARY: usize = 0x1000;
/// Most devices that there may be.
const MAX_DEVICES: u64 = 64;

/// The handle of a device's primary context.
pub fn primary(ordinal: i32) -> usize {
    PRIMARY + ordinal as usize
}

/// The device whose primary context a handle is.
pub fn device_of_primary(context: usize) -> Option<i32> {
    (PRIMARY..PRIMARY + MAX_DEVICES as usize).contains(&context).then(|| (context - PRIMARY) as i32)
}

/// The state, for one caller at a time.
pub fn state() -> MutexGuard<'static, State> {
    static STATE: OnceLock<Mutex<State>> = OnceLock::new();
    STATE.get_or_init(|| Mutex::new(State::new())).lock().unwrap_or_else(PoisonError::into_inner)
}

/// Held while work runs, so that one launch is judged at a time.
pub fn running() -> MutexGuard<'static, ()> {
    static RUNNING: Mutex<()> = Mutex::new(());
    RUNNING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The calling thread.
pub fn this_thread() -> usize {
    // SAFETY: pthread_self has no preconditions.
    unsafe { libc::pthread_self() as usize }
}

impl State {
    fn new() -> Self {
        let (profile, profile_problem) = match Device::profile_from_environment() {
            Ok(profile) => (profile, None),
            Err(problem) => (&crate::profile::PROFILES[0], Some(problem)),
        };
        Self {
            device: Device::new(profile),
            profile_problem,
            devices: crate::device::number("VGPU_DEVICES").map_or(1, |count| count.min(MAX_DEVICES) as i32),
            ordinal: 0,
            primary_references: 0,
            contexts: Vec::new(),
            sticky: 0,
            streams: HashMap::new(),
            captures: HashMap::new(),
            capturing: HashMap::new(),
            events: HashMap::new(),
            modules: HashMap::new(),
            functions: HashMap::new(),
            graphs: HashMap::new(),
            executables: HashMap::new(),
            pools: HashMap::from([(DEFAULT_POOL, HashMap::new())]),
            pinned: HashMap::new(),
            managed: HashSet::new(),
            registered: HashSet::new(),
            names: HashMap::new(),
            links: HashMap::new(),
            kept: KeptBack::default(),
            order: Order::default(),
            model_time: ModelTime::default(),
            readings: Vec::new(),
            copies: 0,
            reports: Vec::new(),
            failed_launches: 0,
            calls: HashMap::new(),
            next: 0x1_0000,
        }
    }

    /// A handle that was not given before.
    pub fn handle(&mut self) -> usize {
        self.next += 16;
        self.next
    }

    /// Takes a device for a context; another one must have none.
    pub fn open(&mut self, ordinal: i32) -> Result<(), u32> {
        let free = self.primary_references == 0 && self.contexts.is_empty();
        if !free && self.ordinal != ordinal {
            return Err(DEVICE_UNAVAILABLE);
        }
        self.ordinal = ordinal;
        Ok(())
    }

    /// The count of this thread's calls.
    pub fn calls(&mut self) -> &mut Calls {
        self.calls.entry(this_thread()).or_default()
    }

    /// Ends the readings that are `done`. Memory that the host wrote to while a copy was still to read it is an error that
    /// stays: on a device the copy may have read the new numbers.
    pub fn settle(&mut self, done: impl Fn(&Reading) -> bool) -> Result<(), u32> {
        for reading in self.readings.iter().filter(|reading| reading.is_overwritten()) {
            eprintln!(
                "vgpu: {} bytes of pinned memory were written to before the copy out of them was waited for",
                reading.bytes.len()
            );
            self.sticky = LAUNCH_FAILED;
        }
        self.readings.retain(|reading| !reading.is_overwritten() && !done(reading));
        if self.sticky == 0 { Ok(()) } else { Err(self.sticky) }
    }

    /// Whether an address of the host is in pinned memory.
    pub fn is_pinned(&self, address: usize) -> bool {
        self.pinned.iter().any(|(&start, &length)| (start..start + length).contains(&address))
    }

    /// Notes what a copy reads, where that is pinned.
    pub fn reads(&mut self, stream: usize, from: usize, bytes: usize) -> Result<(), u32> {
        self.settle(|_| false)?;
        if !self.is_pinned(from) {
            return Ok(());
        }
        // SAFETY: the host side is the caller's promise, as with a real driver.
        let bytes = unsafe { std::slice::from_raw_parts(from as *const u8, bytes) }.to_vec();
        self.readings.push(Reading { stream, from, bytes, order: self.copies });
        self.copies += 1;
        Ok(())
    }

    /// Frees the memory that starts at an address; none where none does.
    pub fn free(&mut self, address: u64) -> Option<()> {
        let bytes = self.device.memory.free(address)?;
        self.order.forget(address, bytes);
        Some(())
    }

    /// What comes before the next work on a stream.
    pub fn before(&mut self, stream: usize) -> Clock {
        let streams = &self.streams;
        let blocking =
            |stream: usize| stream == 2 || streams.get(&stream).is_some_and(|flags| flags & 1 == 0);
        self.order.before(stream, blocking)
    }

    /// The host waits for a stream.
    pub fn wait_for(&mut self, stream: usize) {
        let clock = self.before(stream);
        self.order.wait(&clock);
    }

    /// Whether a stream handle is one: the null stream, the two special ones, or one that was created.
    pub fn has_stream(&self, stream: usize) -> bool {
        stream <= 2 || self.streams.contains_key(&stream)
    }

    /// Refuses what may not happen while this thread captures, and breaks the capture by it.
    pub fn not_while_capturing(&mut self, code: u32) -> Result<(), u32> {
        let thread = this_thread();
        let mut found = false;
        for capture in self.captures.values_mut() {
            if capture.thread == thread && !capture.relaxed {
                capture.broken = true;
                found = true;
            }
        }
        if found { Err(code) } else { Ok(()) }
    }

    /// Keeps work for a graph where its stream captures; gives it back where it is to run.
    pub fn record(&mut self, stream: usize, work: Work) -> Result<Option<Work>, u32> {
        if !self.has_stream(stream) {
            return Err(INVALID_HANDLE);
        }
        let Some(&id) = self.capturing.get(&stream) else {
            // Work on the null stream would wait for blocking streams that capture.
            let blocking = |stream: &usize| self.streams.get(stream).is_some_and(|flags| flags & 1 == 0);
            if stream == 0 && self.capturing.keys().any(blocking) {
                self.captures.values_mut().for_each(|capture| capture.broken = true);
                return Err(CAPTURE_IMPLICIT);
            }
            return if self.sticky != 0 { Err(self.sticky) } else { Ok(Some(work)) };
        };
        let Some(capture) = self.captures.get_mut(&id) else { return Err(ILLEGAL_STATE) };
        if capture.broken {
            return Err(CAPTURE_INVALIDATED);
        }
        if stream != capture.origin {
            capture.joined.insert(stream, true);
        }
        capture.work.push(Node::Work(stream, work));
        Ok(None)
    }
}
