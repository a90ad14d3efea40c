//! Functions beyond CUDA's, by which tests and `vgpu run` talk to the library that they loaded.

use std::ffi::{CStr, CString, c_char};
use std::sync::{Arc, Once};

use serde::{Deserialize, Serialize};

use super::state::{Work, state, this_thread};
use super::{early, exported};
use crate::check::Report;
use crate::compiled::{self, Compiled, Tools};
use crate::device::{WaitingLine, registers_of};
use crate::prediction::Prediction;
use crate::program::Program;

/// Settings that a test changes while it runs.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Change {
    /// Turns checks and memory counters on or off.
    pub checks: Option<bool>,
    /// Turns the time of warps, and the model's time between events, on or off.
    #[serde(default)]
    pub timing: Option<bool>,
    /// Turns launches that begin before the grids before them on or off.
    #[serde(default)]
    pub early: Option<bool>,
    /// Sets the seed of the order of blocks and warps.
    pub seed: Option<u64>,
    /// Sets where kernels may write: address and bytes. An empty list means anywhere.
    pub outputs: Option<Vec<(u64, u64)>>,
    /// Forgets an error that sticks.
    pub forget_error: bool,
    /// Starts counting anew.
    pub reset_counters: bool,
}

/// What a thread has asked of the driver outside of captures.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Calls {
    /// Kernels launched one by one.
    pub launches: u64,
    /// Graphs launched.
    pub graphs: u64,
    /// Copies from the host.
    pub uploads: u64,
    /// Copies to the host.
    pub downloads: u64,
    /// Fills, and copies within the device.
    pub fills: u64,
    /// Waits for a stream or the context, calls that wait by themselves among them; not those for an event.
    pub waits: u64,
}

impl Calls {
    pub(super) fn count(&mut self, work: &Work) {
        *match work {
            Work::Launch { .. } => &mut self.launches,
            Work::Upload { .. } => &mut self.uploads,
            Work::Download { .. } => &mut self.downloads,
            Work::Fill { .. } | Work::Copy { .. } | Work::Between { .. } | Work::Call { .. } => {
                &mut self.fills
            }
        } += 1;
    }
}

/// What the library says of itself at the end of a program.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Summary {
    /// The profile.
    pub profile: String,
    /// Which of the devices the process had contexts on.
    #[serde(default)]
    pub ordinal: i32,
    /// The seed of the order of blocks and warps.
    pub seed: u64,
    /// Whether checks were on.
    pub checks: bool,
    /// The failed checks that nobody claimed.
    pub reports: Vec<Report>,
    /// The counters of every kernel.
    pub counters: Vec<crate::counters::Counters>,
    /// The same, those of launches that are alike together.
    #[serde(default)]
    pub alike: Vec<Vec<crate::counters::Counters>>,
    /// Predictions from the counters.
    pub predictions: Vec<Prediction>,
    /// Where warps waited longest, kernel by kernel; empty where time is not kept.
    #[serde(default)]
    pub waits: Vec<WaitingLine>,
    /// What the real compiler makes of the kernels that ran; empty where it was not asked.
    pub compiled: Vec<Compiled>,
}

fn give_text(text: String) -> *mut c_char {
    CString::new(text).map_or(std::ptr::null_mut(), CString::into_raw)
}

/// The summary as it stands. The registers of kernels that are not among `compiled` are estimated.
fn summary(compiled: Vec<Compiled>) -> Summary {
    let state = state();
    let counters = state.device.counters();
    let registers = |program: &Arc<Program>| {
        let known = compiled.iter().find(|compiled| compiled.kernel == program.name);
        known.map_or_else(|| registers_of(program), |compiled| compiled.registers)
    };
    let kernels = state.device.kernels().iter();
    let alike = state.device.counters_of_alike();
    let predictions =
        alike.zip(kernels).map(|(alike, program)| Prediction::of(alike, Some(registers(program)))).collect();
    let waits =
        state.device.kernels().iter().flat_map(|program| state.device.longest_waits(program, 3)).collect();
    Summary {
        profile: state.device.profile.name.to_string(),
        ordinal: state.ordinal,
        seed: state.device.settings.seed,
        checks: state.device.settings.checks,
        reports: state.reports.iter().map(|(_, report)| report.clone()).collect(),
        counters,
        alike: state.device.counters_of_alike().map(<[_]>::to_vec).collect(),
        predictions,
        waits,
        compiled,
    }
}

/// Asks the real compiler of the kernels that ran, if `vgpu run` found it; what it cannot do is said and left out.
fn compile() -> Vec<Compiled> {
    if std::env::var_os(compiled::FOLDER_VARIABLE).is_none() {
        return Vec::new();
    }
    let Some(tools) = Tools::find("/".as_ref()) else {
        eprintln!("vgpu: {} lists no folders with ptxas and cuobjdump", compiled::FOLDER_VARIABLE);
        return Vec::new();
    };
    let (kernels, target) = {
        let state = state();
        (state.device.kernels().to_vec(), state.device.profile)
    };
    let mut out: Vec<Compiled> = Vec::new();
    let mut left: Vec<&Arc<Program>> = kernels.iter().collect();
    while let Some(first) = left.first() {
        // Kernels of one module are compiled together.
        let (text, architecture) = (first.text.clone(), target.architecture(&first.target));
        let (now, later): (Vec<_>, Vec<_>) = left.into_iter().partition(|one| Arc::ptr_eq(&one.text, &text));
        let names: Vec<&str> = now.iter().map(|program| program.name.as_str()).collect();
        match compiled::compile(&tools, &text, &names, &architecture) {
            Ok(found) => out.extend(found),
            Err(error) => eprintln!("vgpu: {error}"),
        }
        left = later;
    }
    // In the order of the counters.
    out.sort_by_key(|one| kernels.iter().position(|program| program.name == one.kernel));
    out
}

/// At the end of the process, unclaimed reports fail it, and `vgpu run` gets its table.
pub fn watch_exit() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        // SAFETY: atexit takes a function without arguments.
        unsafe { libc::atexit(at_exit) };
    });
}

extern "C" fn at_exit() {
    let outcome = std::panic::catch_unwind(|| {
        early::before_call("exit");
        let table = std::env::var_os("VGPU_TABLE").is_some();
        let summary = summary(if table { compile() } else { Vec::new() });
        if let Some(path) = std::env::var_os("VGPU_JSON") {
            let text = serde_json::to_string_pretty(&summary).unwrap_or_default();
            let fresh = std::path::PathBuf::from(&path).with_extension("json.new");
            let written = std::fs::write(&fresh, text).and_then(|()| std::fs::rename(&fresh, &path));
            if let Err(error) = written {
                eprintln!("vgpu: the counters cannot be written to {}: {error}", path.to_string_lossy());
            }
        }
        if table {
            eprintln!(
                "vgpu: profile {}, checks {}, seed {}",
                summary.profile,
                if summary.checks { "on" } else { "off" },
                summary.seed
            );
            eprint!("{}", crate::prediction::table(&summary.counters, &summary.predictions));
            if !summary.compiled.is_empty() {
                let profile = state().device.profile;
                eprint!("{}", compiled::table(&summary.compiled, &summary.counters, profile));
            }
            if !summary.waits.is_empty() {
                eprintln!("where warps wait longest, by themselves, and the share of all their waiting:");
                for wait in &summary.waits {
                    let place = format!("{}:{}", wait.file, wait.line);
                    eprintln!(
                        "{:<32} {:>5.1} %  {:<40} {}",
                        wait.kernel,
                        wait.share * 100.0,
                        wait.opcode,
                        place
                    );
                }
                eprintln!(
                    "times are predicted: for an H200 by a model fitted to measurements of one, for others by the same model, not fitted"
                );
            }
        }
        let count = summary.reports.len();
        if count > 0 {
            eprintln!("vgpu: {count} failed checks:");
            eprint!("{}", crate::device::describe(&summary.reports));
        } else if table && summary.checks {
            eprintln!("vgpu: no check failed");
        }
        count
    });
    if !matches!(outcome, Ok(0)) {
        // SAFETY: writes out what C's streams still hold, and ends the process at once, which is allowed in an exit handler.
        unsafe {
            libc::fflush(std::ptr::null_mut());
            libc::_exit(101);
        }
    }
}

#[unsafe(no_mangle)]
extern "C" fn vgpu_build_id() -> *const c_char {
    const ID: &CStr = match CStr::from_bytes_with_nul(concat!(env!("VGPU_BUILD_ID"), "\0").as_bytes()) {
        Ok(id) => id,
        Err(_) => c"unknown",
    };
    ID.as_ptr()
}

/// The failed checks of the calling thread's launches, as JSON, which are thereby claimed.
#[unsafe(no_mangle)]
extern "C" fn vgpu_take_reports() -> *mut c_char {
    early::before_call("vgpu_take_reports");
    let mut state = state();
    let thread = this_thread();
    let (mine, others) =
        std::mem::take(&mut state.reports).into_iter().partition(|(owner, _)| *owner == thread);
    state.reports = others;
    let mine: Vec<(usize, Report)> = mine;
    let mine: Vec<Report> = mine.into_iter().map(|(_, report)| report).collect();
    give_text(serde_json::to_string(&mine).unwrap_or_default())
}

/// Everything counted so far, as JSON.
#[unsafe(no_mangle)]
extern "C" fn vgpu_summary() -> *mut c_char {
    early::before_call("vgpu_summary");
    give_text(serde_json::to_string(&summary(Vec::new())).unwrap_or_default())
}

/// What the calling thread has asked of the driver so far, as JSON.
#[unsafe(no_mangle)]
extern "C" fn vgpu_calls() -> *mut c_char {
    let calls = *state().calls();
    give_text(serde_json::to_string(&calls).unwrap_or_default())
}

/// Gives back a text of these functions.
#[unsafe(no_mangle)]
unsafe extern "C" fn vgpu_free_text(text: *mut c_char) {
    if !text.is_null() {
        // SAFETY: made by CString::into_raw above, and given back once.
        drop(unsafe { CString::from_raw(text) });
    }
}

exported! {
    fn vgpu_change(text: *const c_char) {
        if text.is_null() {
            return Err(1);
        }
        // SAFETY: not null, and ends in 0 by this function's contract.
        let text = unsafe { CStr::from_ptr(text) };
        let change: Change = serde_json::from_slice(text.to_bytes()).map_err(|_| 1u32)?;
        let mut state = state();
        let settings = &mut state.device.settings;
        if let Some(checks) = change.checks {
            settings.checks = checks;
        }
        if let Some(timing) = change.timing {
            settings.timing = timing;
        }
        if let Some(early) = change.early {
            settings.early = early;
        }
        if let Some(seed) = change.seed {
            settings.seed = seed;
        }
        if let Some(outputs) = change.outputs {
            settings.outputs = if outputs.is_empty() { None } else { Some(outputs) };
        }
        if change.forget_error {
            state.sticky = 0;
        }
        if change.reset_counters {
            state.device.reset_counters();
        }
        Ok(())
    }
}
