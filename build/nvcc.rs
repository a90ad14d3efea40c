//! Finding nvcc and calling it, with a cache keyed on content. Uses the standard library alone: `build.rs` includes this
//! file, and so does tests/nvcc.rs.

use std::collections::hash_map::DefaultHasher;
use std::ffi::OsString;
use std::fmt::Write as _;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// The architectures that machine code is made for; newer ones compile the PTX of the lowest themselves.
pub const ARCHITECTURES: [u32; 6] = [80, 86, 89, 90, 100, 120];

/// What the name of a kernel file ends in that is for compute capability 9.0 alone, and its architecture: no other device runs
/// any of its code.
const HOPPER: (&str, u32) = ("_hopper", 90);

/// What ptxas says where it ignores `setmaxnreg`, which takes registers from warps that copy for those that multiply.
const IGNORED: [&str; 2] = ["(C7508)", "(C7510)"];

/// The oldest release that knows all of them.
pub const OLDEST: (u32, u32) = (12, 8);

/// Where nvcc was looked for, and how to get it: what a user must read who has none.
pub fn advice(project: &Path, searched: &[PathBuf]) -> String {
    let mut places = String::new();
    for path in searched {
        let _ = write!(places, "{}{}", if places.is_empty() { "" } else { ", " }, path.display());
    }
    format!(
        "nvcc was not found in NVCC, CUDA_HOME, CUDA_PATH, PATH, /usr/local/cuda or a Python or conda environment ({places}): {}",
        remedy(project)
    )
}

/// How to get an nvcc that fits, and kernels with it.
pub fn remedy(project: &Path) -> String {
    format!("run `{}`, or install the CUDA toolkit (12.8 or newer) and build again", command(project))
}

/// What installs the compiler and builds again: in a checkout by its script, which packages do not have.
pub fn command(project: &Path) -> &'static str {
    if project.join("scripts/install-cuda-compiler").is_file() {
        return "scripts/install-cuda-compiler && cargo build --release";
    }
    "pip install nvidia-cuda-nvcc nvidia-cuda-crt nvidia-cuda-runtime nvidia-nvvm nvidia-cuda-cccl && cargo install promptmix \
     --force --features require-nvcc"
}

/// Whether a build without nvcc is to fail: the feature `require-nvcc`, or `PROMPTMIX_REQUIRE_CUDA=1`. Not for documentation.
pub fn is_required(variable: impl Fn(&str) -> Option<OsString>) -> bool {
    let by_feature = variable("CARGO_FEATURE_REQUIRE_NVCC").is_some() && variable("DOCS_RS").is_none();
    by_feature || variable("PROMPTMIX_REQUIRE_CUDA").is_some_and(|value| value == "1")
}

/// Where nvcc may be, the likeliest first: `NVCC`, `CUDA_HOME`, `CUDA_PATH`, `PATH`, /usr/local/cuda, then Python and conda environments
/// (`VIRTUAL_ENV`, `CONDA_PREFIX`, or `.cuda` in `project`), in their `bin` as conda has it and in `nvidia/cuNN` of their packages as
/// pip has it, the newest first. `variable` reads the environment.
fn candidates(project: &Path, variable: impl Fn(&str) -> Option<OsString>) -> Vec<PathBuf> {
    let mut candidates: Vec<PathBuf> = Vec::new();
    candidates.extend(variable("NVCC").filter(|value| !value.is_empty()).map(PathBuf::from));
    for home in ["CUDA_HOME", "CUDA_PATH"] {
        candidates.extend(
            variable(home).filter(|value| !value.is_empty()).map(|home| PathBuf::from(home).join("bin/nvcc")),
        );
    }
    if let Some(path) = variable("PATH") {
        candidates.extend(std::env::split_paths(&path).map(|folder| folder.join("nvcc")));
    }
    candidates.push("/usr/local/cuda/bin/nvcc".into());
    let environments =
        [variable("VIRTUAL_ENV"), variable("CONDA_PREFIX"), Some(project.join(".cuda").into_os_string())];
    for environment in environments.into_iter().flatten().filter(|value| !value.is_empty()) {
        let environment = Path::new(&environment);
        candidates.push(environment.join("bin/nvcc"));
        for python in inside(&environment.join("lib")) {
            let mut toolkits: Vec<(u32, PathBuf)> = inside(&python.join("site-packages/nvidia"))
                .into_iter()
                .filter_map(|folder| {
                    let release = folder.file_name()?.to_str()?.strip_prefix("cu")?.parse().ok()?;
                    Some((release, folder))
                })
                .collect();
            toolkits.sort();
            candidates.extend(toolkits.into_iter().rev().map(|(_, folder)| folder.join("bin/nvcc")));
        }
    }
    candidates
}

/// What lies in a folder, in order; nothing where there is no such folder.
fn inside(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    paths.sort();
    paths
}

/// Finds the first nvcc, in the order of `candidates`, that runs and is not too old: its path, and what it says of itself.
///
/// # Errors
/// What a user must read who has none.
pub fn find(
    project: &Path,
    variable: impl Fn(&str) -> Option<OsString>,
) -> Result<(PathBuf, String), String> {
    let candidates = candidates(project, variable);
    let mut refused = String::new();
    for path in candidates.iter().filter(|path| path.is_file()) {
        match version(path) {
            Ok(version) if release(&version) >= Some(OLDEST) => return Ok((path.clone(), version)),
            Ok(version) => {
                let _ = write!(refused, "{} is too old ({version}); ", path.display());
            }
            Err(error) => {
                let _ = write!(refused, "{}; ", error.trim());
            }
        }
    }
    if !refused.is_empty() {
        return Err(format!("no nvcc of CUDA 12.8 or newer: {refused}{}", remedy(project)));
    }
    let is_of_system = |path: &PathBuf| path.starts_with("/usr/bin") || path.starts_with("/bin");
    let searched: Vec<PathBuf> = candidates.into_iter().filter(|path| !is_of_system(path)).collect();
    Err(advice(project, &searched))
}

/// The release that nvcc's line names: `release 13.0` is 13 and 0.
fn release(version: &str) -> Option<(u32, u32)> {
    let (_, release) = version.split_once("release ")?;
    let (major, rest) = release.split_once('.')?;
    let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
    Some((major.parse().ok()?, rest[..digits].parse().ok()?))
}

/// What nvcc says of itself, its last line of release and build.
///
/// # Errors
/// If it cannot be run.
pub fn version(nvcc: &Path) -> Result<String, String> {
    let output = Command::new(nvcc)
        .arg("--version")
        .output()
        .map_err(|error| format!("{} could not be run: {error}", nvcc.display()))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let release = text.lines().find(|line| line.contains("release"));
    release.map(|line| line.trim().to_owned()).ok_or_else(|| {
        format!(
            "{} --version did not name a release: {}",
            nvcc.display(),
            String::from_utf8_lossy(&output.stderr)
        )
    })
}

/// The architectures to make machine code for, from the value of `PROMPTMIX_CUDA_ARCHS`: numbers with commas between
/// them, `ptx` for none, nothing for all.
///
/// # Errors
/// What is wrong with the value.
pub fn architectures(value: Option<&str>) -> Result<Vec<u32>, String> {
    match value.map(str::trim) {
        None | Some("") => Ok(ARCHITECTURES.to_vec()),
        Some("ptx") => Ok(Vec::new()),
        Some(list) => list
            .split(',')
            .map(|number| match number.trim().parse::<u32>() {
                Ok(number) if number >= 80 => Ok(number),
                _ => Err(format!("PROMPTMIX_CUDA_ARCHS: expected numbers from 80 on with commas between them, or ptx, found {list}")),
            })
            .collect(),
    }
}

/// How to compile.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// The compiler.
    pub nvcc: PathBuf,
    /// What it says of itself.
    pub version: String,
    /// Architectures of machine code; PTX of the lowest that is known comes with it, and where there are none that of 90 too. A file for
    /// Hopper has PTX of 90a, and machine code of that where 90 is among them.
    pub architectures: Vec<u32>,
    /// Embed the PTX of every architecture: for tests.
    pub every_ptx: bool,
    /// A kernel that spills registers is an error, and so is one whose `setmaxnreg` ptxas ignored.
    pub strict: bool,
    /// The host compiler, if not nvcc's own choice.
    pub host_compiler: Option<OsString>,
    /// Where compiled kernels are kept, by content.
    pub cache: PathBuf,
}

impl Compiler {
    fn flags(&self, stem: &str) -> Vec<String> {
        let mut flags: Vec<String> =
            ["-fatbin", "-O3", "-std=c++17", "--compress-mode=none"].map(str::to_owned).to_vec();
        // For reports that name source lines. Beside machine code it would make a fatbin three times as large.
        if self.architectures.is_empty() || self.every_ptx {
            flags.push("-lineinfo".to_owned());
        }
        let (suffix, hopper) = HOPPER;
        let is_hopper = stem.ends_with(suffix);
        let lowest = if is_hopper { format!("{hopper}a") } else { ARCHITECTURES[0].to_string() };
        flags.push(format!("-gencode=arch=compute_{lowest},code=compute_{lowest}"));
        if self.architectures.is_empty() && !is_hopper {
            // From here on kernels differ: they wait for the launches before them.
            flags.push(format!("-gencode=arch=compute_{hopper},code=compute_{hopper}"));
        }
        let runs = |architecture: &&u32| !is_hopper || **architecture == hopper;
        for architecture in self.architectures.iter().filter(runs) {
            let architecture = if is_hopper { lowest.clone() } else { architecture.to_string() };
            flags.push(format!("-gencode=arch=compute_{architecture},code=sm_{architecture}"));
            if self.every_ptx && architecture != lowest {
                flags.push(format!("-gencode=arch=compute_{architecture},code=compute_{architecture}"));
            }
        }
        if self.strict {
            flags.push("-Xptxas=--warn-on-spills,--warning-as-error".to_owned());
        }
        if let Some(host) = &self.host_compiler {
            flags.push(format!("-ccbin={}", host.to_string_lossy()));
        }
        flags
    }

    /// The fatbin of `source`, from the cache where content of sources, headers, flags and compiler are what they were.
    ///
    /// # Errors
    /// What nvcc said.
    pub fn fatbin(&self, source: &Path, headers: &[PathBuf]) -> Result<PathBuf, String> {
        let stem = source.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        let flags = self.flags(&stem);
        let mut hasher = DefaultHasher::new();
        (&self.version, &flags).hash(&mut hasher);
        for path in headers.iter().map(PathBuf::as_path).chain([source]) {
            path.file_name().hash(&mut hasher);
            std::fs::read(path)
                .map_err(|error| format!("could not read {}: {error}", path.display()))?
                .hash(&mut hasher);
        }
        std::fs::create_dir_all(&self.cache)
            .map_err(|error| format!("could not create {}: {error}", self.cache.display()))?;
        let cached = self.cache.join(format!("{stem}-{:016x}.fatbin", hasher.finish()));
        if cached.is_file() {
            return Ok(cached);
        }
        let fresh = cached.with_extension(format!("{}.new", std::process::id()));
        let output = Command::new(&self.nvcc)
            .args(&flags)
            .arg(source)
            .arg("-o")
            .arg(&fresh)
            .output()
            .map_err(|error| format!("{} could not be run: {error}", self.nvcc.display()))?;
        let said = [output.stdout, output.stderr].concat();
        let said = String::from_utf8_lossy(&said);
        // ptxas calls it information, so that no flag makes an error of it.
        let ignored = self.strict && IGNORED.iter().any(|code| said.contains(code));
        if !output.status.success() || ignored {
            let _ = std::fs::remove_file(&fresh);
            return Err(format!("nvcc failed on {}:\n{said}", source.display()));
        }
        std::fs::rename(&fresh, &cached)
            .map_err(|error| format!("could not move {} into place: {error}", fresh.display()))?;
        Ok(cached)
    }

    /// The fatbins of all `sources`, compiled `workers` at a time, in the order of the sources.
    ///
    /// # Errors
    /// The first failure.
    pub fn fatbins(
        &self,
        sources: &[PathBuf],
        headers: &[PathBuf],
        workers: usize,
    ) -> Result<Vec<PathBuf>, String> {
        let next = Mutex::new(0);
        let results: Vec<Mutex<Option<Result<PathBuf, String>>>> =
            sources.iter().map(|_| Mutex::new(None)).collect();
        std::thread::scope(|scope| {
            for _ in 0..workers.clamp(1, sources.len().max(1)) {
                scope.spawn(|| {
                    loop {
                        let index = {
                            let Ok(mut next) = next.lock() else { return };
                            *next += 1;
                            *next - 1
                        };
                        let Some(source) = sources.get(index) else { return };
                        if let Ok(mut result) = results[index].lock() {
                            *result = Some(self.fatbin(source, headers));
                        }
                    }
                });
            }
        });
        results
            .into_iter()
            .map(|result| {
                let inner = result.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
                inner.unwrap_or_else(|| Err("a compilation did not end".to_owned()))
            })
            .collect()
    }
}

/// Files of `folder` that end in `extension`, in order.
///
/// # Errors
/// If the folder cannot be read.
pub fn files(folder: &Path, extension: &str) -> Result<Vec<PathBuf>, String> {
    let entries =
        std::fs::read_dir(folder).map_err(|error| format!("could not read {}: {error}", folder.display()))?;
    let mut paths: Vec<PathBuf> = entries
        .flatten()
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|found| found == extension))
        .collect();
    paths.sort();
    Ok(paths)
}
