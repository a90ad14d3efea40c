//! What the real compiler makes of a kernel: registers, spills and shared memory as `ptxas -v` has them, and
//! instructions as `cuobjdump` shows them. Only kernels that ran are asked for, when a program ends.

use std::collections::HashMap;
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use serde::{Deserialize, Serialize};

use crate::counters::Counters;
use crate::profile::Profile;

/// Lists the folders of the tools.
pub const FOLDER_VARIABLE: &str = "VGPU_CUDA_BIN";

/// A kernel as ptxas leaves it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compiled {
    /// The kernel.
    pub kernel: String,
    /// The architecture that it was compiled for, such as `sm_80`.
    pub target: String,
    /// Registers of a thread.
    pub registers: u32,
    /// Bytes of local memory of a thread, spills included.
    pub stack: u32,
    /// Bytes that a thread stores when it runs out of registers.
    pub spill_stores: u32,
    /// Bytes that it loads back.
    pub spill_loads: u32,
    /// Bytes of static shared memory of a block.
    pub shared: u32,
    /// Machine instructions, without the padding behind the last.
    pub instructions: u32,
    /// Tensor-core instructions (`HMMA`) among them.
    pub tensor: u32,
    /// Asynchronous copies into shared memory (`LDGSTS`) among them.
    pub async_copies: u32,
}

/// Why the compiler could not be asked.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CompileError {
    /// A tool or a temporary file is not to be had.
    #[error("{}: {error}; {FOLDER_VARIABLE} lists folders with ptxas and cuobjdump", path.display())]
    File {
        /// The tool or file.
        path: PathBuf,
        /// What the system says.
        error: std::io::Error,
    },
    /// A tool does not like what it got.
    #[error("{tool} for {target} failed: {message}")]
    Tool {
        /// The tool.
        tool: &'static str,
        /// The architecture.
        target: String,
        /// The first line that it printed.
        message: String,
    },
}

/// The tools of the CUDA compiler that are asked.
#[derive(Clone, Debug)]
pub struct Tools {
    /// The assembler.
    pub ptxas: PathBuf,
    /// The disassembler. It calls nvdisasm, which lies beside it or on `PATH`.
    pub cuobjdump: PathBuf,
}

impl Tools {
    /// Each from the first folder that has it: those that `VGPU_CUDA_BIN` lists, `bin` of `CUDA_HOME` and `CUDA_PATH`,
    /// those of `PATH`, and where this project's script installs them above `start`. None where one is missing.
    pub fn find(start: &Path) -> Option<Self> {
        let listed = |name: &str| std::env::var_os(name).map(|list| std::env::split_paths(&list).collect());
        let mut folders: Vec<PathBuf> = listed(FOLDER_VARIABLE).unwrap_or_default();
        let homes = ["CUDA_HOME", "CUDA_PATH"].iter().filter_map(std::env::var_os);
        folders.extend(homes.map(|home| Path::new(&home).join("bin")));
        folders.extend(listed("PATH").unwrap_or_default());
        for above in start.ancestors() {
            let Ok(entries) = std::fs::read_dir(above.join(".cuda/lib")) else { continue };
            folders.extend(entries.flatten().map(|entry| entry.path().join("site-packages/nvidia/cu13/bin")));
        }
        let find = |name: &str| folders.iter().map(|folder| folder.join(name)).find(|path| path.is_file());
        Some(Self { ptxas: find("ptxas")?, cuobjdump: find("cuobjdump")? })
    }

    /// Their folders, as `VGPU_CUDA_BIN` takes them.
    pub fn folders(&self) -> OsString {
        let folders = [&self.ptxas, &self.cuobjdump].map(|tool| tool.parent().unwrap_or(tool));
        // Folders that came from such a list can be listed again.
        std::env::join_paths(folders).unwrap_or_default()
    }
}

/// Compiles kernels of one PTX text for an architecture.
///
/// # Errors
/// A tool that is missing, fails, or says what is not understood; a temporary file that cannot be written.
pub fn compile(
    tools: &Tools,
    text: &str,
    kernels: &[&str],
    target: &str,
) -> Result<Vec<Compiled>, CompileError> {
    let scratch = Scratch::new()?;
    let (source, binary) = (scratch.0.join("kernels.ptx"), scratch.0.join("kernels.cubin"));
    std::fs::write(&source, text).map_err(|error| CompileError::File { path: source.clone(), error })?;
    let mut ptxas = Command::new(&tools.ptxas);
    ptxas.arg("-v").arg(format!("-arch={target}")).arg("-o").arg(&binary).arg(&source);
    for kernel in kernels {
        ptxas.arg("-e").arg(kernel);
    }
    let said = run("ptxas", target, &mut ptxas)?;
    let mut out = facts(&String::from_utf8_lossy(&said.stderr), target);
    let mut dump = Command::new(&tools.cuobjdump);
    let mut path: Vec<PathBuf> = tools.cuobjdump.parent().map(Path::to_path_buf).into_iter().collect();
    path.extend(std::env::var_os("PATH").iter().flat_map(std::env::split_paths));
    dump.arg("-sass").arg(&binary);
    if let Ok(path) = std::env::join_paths(path) {
        dump.env("PATH", path);
    }
    let said = run("cuobjdump", target, &mut dump)?;
    count(&String::from_utf8_lossy(&said.stdout), &mut out);
    Ok(out)
}

fn run(tool: &'static str, target: &str, command: &mut Command) -> Result<Output, CompileError> {
    // The tools are no programs to run on the virtual GPU.
    command.env_remove("LD_PRELOAD");
    let path = PathBuf::from(command.get_program());
    let output = command.output().map_err(|error| CompileError::File { path, error })?;
    if output.status.success() {
        return Ok(output);
    }
    let said = [output.stderr, output.stdout].concat();
    let said = String::from_utf8_lossy(&said);
    let message = said.lines().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").to_string();
    Err(CompileError::Tool { tool, target: target.to_string(), message })
}

/// A temporary folder, gone when dropped.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Result<Self, CompileError> {
        static COUNT: std::sync::atomic::AtomicU32 = std::sync::atomic::AtomicU32::new(0);
        let count = COUNT.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("vgpu-{}-{count}", std::process::id()));
        match std::fs::create_dir(&path) {
            Ok(()) => Ok(Self(path)),
            Err(error) => Err(CompileError::File { path, error }),
        }
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is left to whoever clears temporary files.
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What `ptxas -v` prints of its kernels.
fn facts(text: &str, target: &str) -> Vec<Compiled> {
    let mut out: Vec<Compiled> = Vec::new();
    let mut of_kernel = false;
    for line in text.lines() {
        if let Some((_, rest)) = line.split_once("Compiling entry function '")
            && let Some((kernel, _)) = rest.split_once('\'')
        {
            let target = target.to_string();
            out.push(Compiled { kernel: kernel.to_string(), target, ..Compiled::default() });
        }
        if let Some((_, name)) = line.split_once("Function properties for ") {
            // Functions that a kernel calls have properties too.
            of_kernel = out.last().is_some_and(|last| last.kernel == name.trim());
        }
        let Some(last) = out.last_mut() else { continue };
        if of_kernel && line.contains("bytes stack frame") {
            last.stack = before(line, " bytes stack frame");
            last.spill_stores = before(line, " bytes spill stores");
            last.spill_loads = before(line, " bytes spill loads");
        }
        if of_kernel && line.contains(" registers") {
            last.registers = before(line, " registers");
            last.shared = before(line, " bytes smem");
        }
    }
    out
}

/// The number that stands before some words; 0 where they do not occur.
fn before(line: &str, words: &str) -> u32 {
    let Some((start, _)) = line.split_once(words) else { return 0 };
    let digits = start.rsplit(|mark: char| !mark.is_ascii_digit()).next().unwrap_or_default();
    digits.parse().unwrap_or(0)
}

/// Counts instructions in what `cuobjdump -sass` prints.
fn count(text: &str, kernels: &mut [Compiled]) {
    let mut current: Option<&mut Compiled> = None;
    for line in text.lines() {
        let line = line.trim_start();
        if let Some(name) = line.strip_prefix("Function : ") {
            current = kernels.iter_mut().find(|kernel| kernel.kernel == name.trim());
            continue;
        }
        // An instruction follows the comment with its place; a second line holds only code in a comment.
        let Some((_, rest)) = line.strip_prefix("/*").and_then(|line| line.split_once("*/")) else {
            continue;
        };
        let mut words = rest.split_whitespace();
        let Some(mut word) = words.next() else { continue };
        if word.starts_with('@') {
            word = words.next().unwrap_or_default();
        }
        let name = word.split(['.', ';']).next().unwrap_or_default();
        let Some(kernel) = &mut current else { continue };
        kernel.instructions += u32::from(!name.is_empty() && name != "NOP");
        kernel.tensor += u32::from(matches!(name, "HMMA" | "HGMMA"));
        kernel.async_copies += u32::from(name == "LDGSTS");
    }
}

/// The facts as a table for people, with the blocks that fit on a multiprocessor by them.
pub fn table(compiled: &[Compiled], counters: &[Counters], profile: &Profile) -> String {
    let mut out = format!(
        "{:<32} {:>6} {:>9} {:>5} {:>12} {:>11} {:>7} {:>6} {:>6} {:>9}\n",
        "kernel (compiled by ptxas)",
        "for",
        "registers",
        "stack",
        "spill stores",
        "spill loads",
        "instrs",
        "HMMA",
        "LDGSTS",
        "blocks/SM"
    );
    let by_name: HashMap<&str, &Counters> =
        counters.iter().map(|counters| (counters.kernel.as_str(), counters)).collect();
    for one in compiled {
        let blocks = by_name.get(one.kernel.as_str()).map_or(0, |counters| {
            profile.occupancy(counters.block_threads, one.registers, one.shared + counters.dynamic_shared)
        });
        out += &format!(
            "{:<32} {:>6} {:>9} {:>5} {:>12} {:>11} {:>7} {:>6} {:>6} {:>9}\n",
            one.kernel,
            one.target,
            one.registers,
            one.stack,
            one.spill_stores,
            one.spill_loads,
            one.instructions,
            one.tensor,
            one.async_copies,
            blocks
        );
    }
    out
}
