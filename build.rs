//! Compiles `kernels/*.cu` to fatbins and writes the table of them that `backend/cuda/runtime/table.rs` includes; and writes what
//! kernels share with the host, in Rust for `backend/cuda/runtime/arguments.rs`, in C and as JSON for `backend/cuda/export.rs`.
//!
//! Without nvcc the build goes on, with a warning and an empty table: the program then trains on the CPU, and says so where there is a
//! GPU. cargo hides the warnings of dependencies; the feature `require-nvcc`, or `PROMPTMIX_REQUIRE_CUDA=1`, makes that an error.

#[path = "build/layout.rs"]
mod layout;
#[path = "build/nvcc.rs"]
mod nvcc;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=build");
    println!("cargo:rerun-if-changed=kernels");
    for variable in [
        "NVCC",
        "CUDA_HOME",
        "CUDA_PATH",
        "VIRTUAL_ENV",
        "CONDA_PREFIX",
        "NVCC_CCBIN",
        "DOCS_RS",
        "PROMPTMIX_REQUIRE_CUDA",
        "PROMPTMIX_CUDA_ARCHS",
        "PROMPTMIX_EMBED_PTX",
        "PROMPTMIX_CUDA_STRICT",
        "PROMPTMIX_COMMIT",
    ] {
        println!("cargo:rerun-if-env-changed={variable}");
    }
    // Documentation tests run on the virtual GPU where it is: not in the package that registries have.
    let project = PathBuf::from(std::env::var_os("CARGO_MANIFEST_DIR").unwrap_or_default());
    println!("cargo:rustc-check-cfg=cfg(virtual_gpu)");
    if project.join("tests/vgpu/Cargo.toml").is_file() {
        println!("cargo:rustc-cfg=virtual_gpu");
    } else if std::env::var_os("CARGO_FEATURE_CUDA").is_some() && std::env::var_os("DOCS_RS").is_none() {
        // rustdoc shows nothing of what a test that passes prints.
        println!(
            "cargo:warning=skipped: documentation tests that need a GPU, where there is none (a checkout has a virtual one)"
        );
    }
    println!("cargo:rustc-env=BUILT_FROM_COMMIT={}", commit(&project));
    if std::env::var_os("CARGO_FEATURE_CUDA").is_none() {
        return;
    }
    let out = PathBuf::from(std::env::var_os("OUT_DIR").unwrap_or_default());
    if let Err(message) = share(&project, &out) {
        eprintln!("{message}");
        std::process::exit(1);
    }
    let required = nvcc::is_required(|name| std::env::var_os(name));
    let table = match compile(&project, &out) {
        Ok(table) => table,
        Err(Failure { message, fatal }) if fatal || required => {
            eprintln!("{message}");
            std::process::exit(1);
        }
        Err(Failure { message, .. }) => {
            if std::env::var_os("DOCS_RS").is_none() {
                println!("cargo:warning=built without GPU kernels: {message}");
            }
            table("", &[], &[], &project)
        }
    };
    if let Err(error) = std::fs::write(out.join("kernels.rs"), table) {
        eprintln!("could not write the table of kernels: {error}");
        std::process::exit(1);
    }
}

/// What the program says that it was built from: `PROMPTMIX_COMMIT`, or in a release build of a checkout what git says of it. Other
/// builds would have to run this at every commit, and all that depends on it.
fn commit(project: &Path) -> String {
    if let Some(named) = std::env::var("PROMPTMIX_COMMIT").ok().filter(|named| !named.trim().is_empty()) {
        return named.split_whitespace().collect::<Vec<_>>().join(" ");
    }
    // A package that lies within another repository is none of its commits.
    if std::env::var("PROFILE").is_ok_and(|profile| profile != "release") || !project.join(".git").exists() {
        return "unknown".to_owned();
    }
    let git = |arguments: &[&str]| {
        let output = std::process::Command::new("git").args(arguments).current_dir(project).output().ok()?;
        let text =
            output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim().to_owned())?;
        Some(text)
    };
    for watched in ["HEAD", "index", "logs/HEAD"] {
        // A path that does not exist would have the build begin anew each time.
        if let Some(path) = git(&["rev-parse", "--git-path", watched])
            && project.join(&path).exists()
        {
            println!("cargo:rerun-if-changed={path}");
        }
    }
    println!("cargo:rerun-if-changed=src");
    println!("cargo:rerun-if-changed=Cargo.toml");
    let Some(head) = git(&["rev-parse", "HEAD"]).filter(|head| !head.is_empty()) else {
        return "unknown".to_owned();
    };
    let changes = git(&["status", "--porcelain", "--untracked-files=no"]);
    head + if changes.is_some_and(|changes| changes.is_empty()) { "" } else { " with changes" }
}

/// Writes what host and kernels share, which needs no nvcc.
fn share(project: &Path, out: &Path) -> Result<(), String> {
    let kernels = project.join("kernels");
    let shared = layout::Layout::of(&layout::read(&kernels)?)?;
    let text = |name: &str| {
        let path = kernels.join(name);
        std::fs::read_to_string(&path).map_err(|error| format!("could not read {}: {error}", path.display()))
    };
    let interface = shared.interface(&[&text("launch.h")?, &text("capi.h")?])?;
    let written = [
        ("layout.rs", shared.rust()?),
        ("promptmix.h", interface.header),
        ("promptmix.json", interface.json),
        ("abi.rs", format!("{:#x}", interface.abi)),
    ];
    for (name, text) in written {
        let path = out.join(name);
        std::fs::write(&path, text)
            .map_err(|error| format!("could not write {}: {error}", path.display()))?;
    }
    Ok(())
}

struct Failure {
    message: String,
    fatal: bool,
}

fn fatal(message: String) -> Failure {
    Failure { message, fatal: true }
}

fn compile(project: &Path, out: &Path) -> Result<String, Failure> {
    if std::env::var_os("DOCS_RS").is_some() {
        return Err(Failure { message: "documentation needs none".into(), fatal: false });
    }
    let (nvcc, version) = nvcc::find(project, |name| std::env::var_os(name))
        .map_err(|message| Failure { message, fatal: false })?;
    let architectures =
        nvcc::architectures(std::env::var("PROMPTMIX_CUDA_ARCHS").ok().as_deref()).map_err(fatal)?;
    let compiler = nvcc::Compiler {
        version,
        nvcc,
        architectures,
        every_ptx: std::env::var("PROMPTMIX_EMBED_PTX").is_ok_and(|value| value == "all"),
        strict: std::env::var("PROMPTMIX_CUDA_STRICT").is_ok_and(|value| value == "1"),
        host_compiler: std::env::var_os("NVCC_CCBIN"),
        // Beside the profiles' folders, so that they share it.
        cache: out.ancestors().nth(4).unwrap_or(out).join("kernels"),
    };
    let kernels = project.join("kernels");
    let sources = nvcc::files(&kernels, "cu").map_err(fatal)?;
    let headers = nvcc::files(&kernels, "cuh").map_err(fatal)?;
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let fatbins = compiler.fatbins(&sources, &headers, workers).map_err(fatal)?;
    let pairs: Vec<(String, PathBuf)> = sources
        .iter()
        .zip(fatbins)
        .map(|(source, fatbin)| {
            (source.file_stem().unwrap_or_default().to_string_lossy().into_owned(), fatbin)
        })
        .collect();
    Ok(table(&compiler.version, &compiler.architectures, &pairs, project))
}

fn table(version: &str, architectures: &[u32], fatbins: &[(String, PathBuf)], project: &Path) -> String {
    let (remedy, command) = (nvcc::remedy(project), nvcc::command(project));
    let mut text = format!(
        "/// What nvcc said of itself; empty if there was none.\npub const COMPILER: &str = {version:?};\n\
         /// Architectures that machine code was made for.\npub const ARCHITECTURES: &[u32] = &{architectures:?};\n\
         /// How a build gets kernels that has none.\npub(crate) const REMEDY: &str = {remedy:?};\n\
         /// The command for that.\n#[allow(dead_code)] // the command line alone says it\npub(crate) const BUILD_COMMAND: &str = {command:?};\n\
         /// The fatbin of each kernel file: its stem, and what `cuModuleLoadData` takes. Empty without nvcc.\n\
         pub static FATBINS: &[(&str, &[u8])] = &["
    );
    for (stem, path) in fatbins {
        let _ = write!(text, "\n    ({stem:?}, include_bytes!({path:?})),");
    }
    text.push_str("\n];\n");
    text
}
