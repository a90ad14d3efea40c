//! How the build finds nvcc and calls it: with scripts in temporary folders in its place.
#![cfg(unix)]

#[path = "../build/nvcc.rs"]
mod nvcc;
#[path = "common/script.rs"]
mod script;

use std::collections::HashMap;
use std::ffi::OsString;
use std::fs;
use std::path::{Path, PathBuf};

use tempfile::TempDir;

/// What a compiler of 13.0 says of itself.
const SAYS: &str = "nvcc: NVIDIA (R) Cuda compiler driver\nCuda compilation tools, release 13.0, V13.0.88";

fn folder() -> TempDir {
    tempfile::tempdir().expect("a folder")
}

/// A file at `path` that does what `commands` say.
fn program(path: &Path, commands: &str) {
    script::write(path, &format!("#!/bin/sh\n{commands}\n"));
}

/// A compiler of a release at `path`, which does nothing else than to name it.
fn compiler_of(release: &str, path: PathBuf) -> PathBuf {
    program(&path, &format!("echo '{}'", SAYS.replace("13.0,", &format!("{release},"))));
    path
}

/// One of 13.0.
fn compiler(path: PathBuf) -> PathBuf {
    compiler_of("13.0", path)
}

/// Finds nvcc where the environment is `variables` and nothing else.
fn find(project: &Path, variables: &HashMap<&str, OsString>) -> Result<PathBuf, String> {
    nvcc::find(project, |name| variables.get(name).cloned()).map(|(path, _)| path)
}

#[test]
fn each_place_is_looked_at_before_those_that_follow_it() {
    let root = folder();
    let of = |name: &str| root.path().join(name);
    let environment = "lib/python3.12/site-packages/nvidia/cu13/bin/nvcc";
    let project = of("project");
    let paths = std::env::join_paths([of("empty"), of("path"), of("later")]).expect("a PATH");
    // In the order of the documentation. /usr/local/cuda, which lies before the environments, is this machine's own.
    let places: [(&str, OsString, PathBuf); 10] = [
        ("NVCC", of("own/my-nvcc").into(), of("own/my-nvcc")),
        ("CUDA_HOME", of("home").into(), of("home/bin/nvcc")),
        ("CUDA_PATH", of("toolkit").into(), of("toolkit/bin/nvcc")),
        ("PATH", paths, of("path/nvcc")),
        ("VIRTUAL_ENV", of("venv").into(), of("venv/bin/nvcc")),
        ("VIRTUAL_ENV", of("venv").into(), of("venv").join(environment)),
        ("CONDA_PREFIX", of("conda").into(), of("conda/bin/nvcc")),
        ("CONDA_PREFIX", of("conda").into(), of("conda").join(environment)),
        ("", OsString::new(), project.join(".cuda/bin/nvcc")),
        ("", OsString::new(), project.join(".cuda").join(environment)),
    ];
    compiler(of("later/nvcc"));
    let mut variables = HashMap::new();
    for (variable, value, path) in &places {
        compiler(path.clone());
        variables.insert(*variable, value.clone());
    }
    for (place, (variable, _, path)) in places.iter().enumerate() {
        let of_machine = PathBuf::from("/usr/local/cuda/bin/nvcc");
        let expected = if place > 3 && of_machine.is_file() { &of_machine } else { path };
        assert_eq!(find(&project, &variables).as_ref(), Ok(expected), "{variable} comes first");
        // Named but not there, it is passed over; so it is where the variable is empty.
        fs::remove_file(path).expect("removed");
        if *variable == "PATH" {
            assert_eq!(find(&project, &variables), Ok(of("later/nvcc")), "PATH's folders in their order");
            fs::remove_file(of("later/nvcc")).expect("removed");
        }
        if place % 2 == 0 && place < 4 {
            variables.insert(*variable, OsString::new());
        }
    }
}

#[test]
fn of_several_pythons_the_first_by_name_that_has_a_compiler_is_taken() {
    let root = folder();
    let of =
        |python: &str| root.path().join(".cuda/lib").join(python).join("site-packages/nvidia/cu13/bin/nvcc");
    fs::create_dir_all(root.path().join(".cuda/lib/python3.10")).expect("made");
    let expected = compiler(of("python3.11"));
    compiler(of("python3.12"));
    // Of several toolkits in one environment the newest.
    let toolkits = expected.ancestors().nth(3).expect("nvidia's folder").to_owned();
    compiler(toolkits.join("cu9/bin/nvcc"));
    compiler(toolkits.join("cudnn/bin/nvcc"));
    if !Path::new("/usr/local/cuda/bin/nvcc").is_file() {
        assert_eq!(find(root.path(), &HashMap::new()), Ok(expected));
        let newest = compiler(toolkits.join("cu14/bin/nvcc"));
        assert_eq!(find(root.path(), &HashMap::new()), Ok(newest));
    }
}

#[test]
fn a_compiler_that_is_too_old_or_does_not_run_is_passed_over_and_named_where_it_is_the_only_one() {
    let root = folder();
    let of = |name: &str| root.path().join(name);
    let old = compiler_of("11.5", of("path/nvcc"));
    program(&of("home/bin/nvcc"), "echo 'libnvvm is missing' >&2; exit 1");
    let mut variables =
        HashMap::from([("CUDA_HOME", of("home").into_os_string()), ("PATH", of("path").into_os_string())]);
    if !Path::new("/usr/local/cuda/bin/nvcc").is_file() {
        let said = find(root.path(), &variables).expect_err("none that fits");
        for part in ["CUDA 12.8 or newer", "libnvvm is missing", &old.display().to_string(), "release 11.5"] {
            assert!(said.contains(part), "{part} in {said}");
        }
        assert!(said.contains("pip install") && said.contains("require-nvcc"), "{said}");
    }
    variables.insert("VIRTUAL_ENV", of("venv").into());
    for (release, is_taken) in
        [("12.7", false), ("9.9", false), ("12.8", true), ("12.10", true), ("20.0", true)]
    {
        let path = compiler_of(release, of("path/nvcc"));
        let next = compiler(of("venv/bin/nvcc"));
        let of_machine = Path::new("/usr/local/cuda/bin/nvcc").is_file();
        let found = find(root.path(), &variables).expect("one");
        assert!(found == if is_taken { path } else { next } || of_machine, "{release}: {}", found.display());
    }
}

#[test]
fn a_build_without_a_compiler_fails_by_the_feature_or_the_variable_and_never_for_documentation() {
    let is_required = |set: &[(&str, &str)]| {
        nvcc::is_required(|name| set.iter().find(|(set, _)| *set == name).map(|(_, value)| value.into()))
    };
    let feature = ("CARGO_FEATURE_REQUIRE_NVCC", "1");
    assert!(!is_required(&[]) && !is_required(&[("CARGO_FEATURE_CUDA", "1")]));
    assert!(is_required(&[feature]));
    assert!(!is_required(&[feature, ("DOCS_RS", "1")]));
    assert!(is_required(&[("PROMPTMIX_REQUIRE_CUDA", "1")]));
    assert!(!is_required(&[("PROMPTMIX_REQUIRE_CUDA", "0")]));
}

#[test]
fn a_folder_called_nvcc_is_no_compiler() {
    let root = folder();
    fs::create_dir_all(root.path().join("home/bin/nvcc")).expect("made");
    let real = compiler(root.path().join("path/nvcc"));
    let variables = HashMap::from([
        ("CUDA_HOME", root.path().join("home").into_os_string()),
        ("PATH", root.path().join("path").into_os_string()),
    ]);
    assert_eq!(find(root.path(), &variables), Ok(real));
}

#[test]
fn who_has_no_compiler_reads_where_it_was_looked_for_and_how_to_get_it() {
    let root = folder();
    let path = std::env::join_paths([Path::new("/usr/bin"), &root.path().join("tools")]).expect("a PATH");
    let variables = HashMap::from([("NVCC", root.path().join("gone").into_os_string()), ("PATH", path)]);
    let advice = match find(root.path(), &variables) {
        Err(advice) => advice,
        // This machine has one where every machine is looked at.
        Ok(found) => {
            assert!(["/usr/bin/nvcc", "/usr/local/cuda/bin/nvcc"].map(Path::new).contains(&found.as_path()));
            return;
        }
    };
    // The system's own folders tell nobody anything.
    let expected = [
        root.path().join("gone"),
        root.path().join("tools/nvcc"),
        "/usr/local/cuda/bin/nvcc".into(),
        root.path().join(".cuda/bin/nvcc"),
    ];
    let places: Vec<String> = expected.iter().map(|path| path.display().to_string()).collect();
    assert!(advice.contains(&format!("({})", places.join(", "))), "{advice}");
    for variable in
        ["NVCC", "CUDA_HOME", "CUDA_PATH", "PATH", "/usr/local/cuda", "Python or conda environment"]
    {
        assert!(advice.contains(variable), "{variable} in {advice}");
    }
    // Where there is no script that installs one, as in a package.
    let (_, install) = advice.split_once("`pip install ").expect("a command");
    let (command, after) = install.split_once('`').expect("a command's end");
    let (packages, build) = command.split_once(" && ").expect("two commands");
    assert_eq!(build, "cargo install promptmix --force --features require-nvcc");
    let script =
        fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts/install-cuda-compiler"));
    let script = script.expect("the script that installs the compiler");
    for package in packages.split_whitespace() {
        assert!(script.contains(&format!("\"{package}==")), "{package} is what the script installs too");
    }
    assert!(after.contains("CUDA toolkit") && after.contains("build again"), "{advice}");
    // In a checkout the script is named.
    fs::create_dir(root.path().join("scripts")).expect("made");
    fs::write(root.path().join("scripts/install-cuda-compiler"), "").expect("written");
    let advice = find(root.path(), &variables).expect_err("no compiler");
    assert!(advice.contains("`scripts/install-cuda-compiler && cargo build --release`"), "{advice}");
    assert!(!advice.contains("pip"), "{advice}");
}

#[test]
fn the_version_is_the_line_that_names_the_release() {
    let root = folder();
    let path = root.path().join("nvcc");
    program(&path, &format!("[ \"$1\" = --version ] && printf '{}\\n'", SAYS.replace('\n', "\\n  ")));
    assert_eq!(nvcc::version(&path).as_deref(), Ok("Cuda compilation tools, release 13.0, V13.0.88"));
}

#[test]
fn what_is_no_compiler_is_refused_with_what_it_said() {
    let root = folder();
    let path = root.path().join("nvcc");
    program(&path, "echo 'libnvvm is missing' >&2; exit 1");
    let error = nvcc::version(&path).expect_err("no release");
    assert!(error.contains("did not name a release") && error.contains("libnvvm is missing"), "{error}");
    assert!(error.contains(&path.display().to_string()), "{error}");
    let gone = root.path().join("gone");
    let error = nvcc::version(&gone).expect_err("nothing to run");
    assert!(error.contains("could not be run") && error.contains(&gone.display().to_string()), "{error}");
}

#[test]
fn architectures_are_numbers_from_80_on_or_ptx() {
    assert_eq!(
        nvcc::architectures(None).as_deref(),
        Ok(&nvcc::ARCHITECTURES[..]),
        "all where nothing is said"
    );
    assert_eq!(nvcc::architectures(Some(" ")).as_deref(), Ok(&nvcc::ARCHITECTURES[..]));
    assert_eq!(nvcc::architectures(Some("ptx")), Ok(Vec::new()));
    assert_eq!(nvcc::architectures(Some(" 90 , 120")), Ok(vec![90, 120]));
    for refused in ["75", "sm_90", "90,", "90 100", "PTX", "90,ptx", "-80", "99999999999"] {
        let error = nvcc::architectures(Some(refused)).expect_err(refused);
        assert!(error.starts_with("PROMPTMIX_CUDA_ARCHS: ") && error.ends_with(refused), "{error}");
    }
}

/// A project with two kernels, a header, and a compiler that counts its calls and writes its arguments as the fatbin.
struct Kernels {
    root: TempDir,
}

impl Kernels {
    fn new() -> Self {
        let kernels = Self { root: folder() };
        kernels.compiles("echo \"$@\" >\"$out\"");
        for (name, text) in [("b.cu", "b"), ("a.cu", "a"), ("rows.cuh", "rows"), ("notes.md", "no kernel")] {
            kernels.write(name, text);
        }
        kernels
    }

    fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::create_dir_all(self.path("kernels")).expect("made");
        fs::write(self.path("kernels").join(name), text).expect("written");
    }

    /// Makes the compiler do `script` after it has counted the call; `$out` is where it is to write.
    fn compiles(&self, script: &str) {
        let calls = self.path("calls");
        let script = format!("for out in \"$@\"; do :; done\necho call >>'{}'\n{script}", calls.display());
        program(&self.path("nvcc"), &script);
    }

    fn compiler(&self) -> nvcc::Compiler {
        nvcc::Compiler {
            nvcc: self.path("nvcc"),
            version: "release 13.0".to_owned(),
            architectures: vec![80, 90],
            every_ptx: false,
            strict: false,
            host_compiler: None,
            cache: self.path("cache"),
        }
    }

    fn files(&self, extension: &str) -> Vec<PathBuf> {
        nvcc::files(&self.path("kernels"), extension).expect("the folder")
    }

    fn compile(&self, compiler: &nvcc::Compiler) -> Result<Vec<PathBuf>, String> {
        compiler.fatbins(&self.files("cu"), &self.files("cuh"), 2)
    }

    /// Calls of the compiler since the last time.
    fn calls(&self) -> usize {
        let calls = fs::read_to_string(self.path("calls")).unwrap_or_default().lines().count();
        let _ = fs::remove_file(self.path("calls"));
        calls
    }
}

#[test]
fn fatbins_come_in_the_order_of_their_sources_and_are_made_once() {
    let kernels = Kernels::new();
    let names: Vec<_> =
        kernels.files("cu").iter().map(|path| path.file_name().expect("a name").to_owned()).collect();
    assert_eq!(names, ["a.cu", "b.cu"]);
    let fatbins = kernels.compile(&kernels.compiler()).expect("compiled");
    assert_eq!(kernels.calls(), 2);
    for (fatbin, source) in fatbins.iter().zip(["a", "b"]) {
        let arguments = fs::read_to_string(fatbin).expect("what the compiler wrote");
        let own = kernels.path("kernels").join(source).with_extension("cu");
        assert!(arguments.contains(&own.display().to_string()), "{arguments}");
        let stem = fatbin.file_stem().expect("a name").to_string_lossy().into_owned();
        assert!(stem.starts_with(&format!("{source}-")), "{stem}");
    }
    assert_eq!(kernels.compile(&kernels.compiler()), Ok(fatbins), "the same from the cache");
    assert_eq!(kernels.calls(), 0);
    let cached = fs::read_dir(kernels.path("cache")).expect("the cache").count();
    assert_eq!(cached, 2, "nothing else is left in the cache");
}

#[test]
fn a_changed_source_is_compiled_anew_and_a_changed_header_compiles_all_anew() {
    let kernels = Kernels::new();
    let first = kernels.compile(&kernels.compiler()).expect("compiled");
    kernels.calls();
    kernels.write("a.cu", "a, changed");
    let second = kernels.compile(&kernels.compiler()).expect("compiled");
    assert_eq!(kernels.calls(), 1);
    assert!(first[0] != second[0] && first[1] == second[1]);
    kernels.write("rows.cuh", "rows, changed");
    let third = kernels.compile(&kernels.compiler()).expect("compiled");
    assert_eq!(kernels.calls(), 2);
    assert!(second[0] != third[0] && second[1] != third[1]);
    // A header more counts, and so does its name.
    kernels.write("mask.cuh", "");
    kernels.compile(&kernels.compiler()).expect("compiled");
    assert_eq!(kernels.calls(), 2);
    fs::rename(kernels.path("kernels/mask.cuh"), kernels.path("kernels/masks.cuh")).expect("renamed");
    kernels.compile(&kernels.compiler()).expect("compiled");
    assert_eq!(kernels.calls(), 2);
    // What was there before is found again.
    fs::remove_file(kernels.path("kernels/masks.cuh")).expect("removed");
    kernels.write("rows.cuh", "rows");
    kernels.write("a.cu", "a");
    assert_eq!(kernels.compile(&kernels.compiler()), Ok(first));
    assert_eq!(kernels.calls(), 0);
}

#[test]
fn another_compiler_or_another_flag_compiles_anew() {
    let kernels = Kernels::new();
    let base = kernels.compiler();
    let first = kernels.compile(&base).expect("compiled");
    kernels.calls();
    let others = [
        nvcc::Compiler { version: "release 13.1".to_owned(), ..base.clone() },
        nvcc::Compiler { architectures: vec![80], ..base.clone() },
        nvcc::Compiler { every_ptx: true, ..base.clone() },
        nvcc::Compiler { strict: true, ..base.clone() },
        nvcc::Compiler { host_compiler: Some("g++-13".into()), ..base.clone() },
    ];
    let mut seen = first;
    for other in others {
        let fatbins = kernels.compile(&other).expect("compiled");
        assert_eq!(kernels.calls(), 2, "{other:?}");
        assert!(fatbins.iter().all(|fatbin| !seen.contains(fatbin)), "{other:?}");
        seen.extend(fatbins);
    }
    // Where the compiler lies does not count: what it says of itself does.
    fs::rename(kernels.path("nvcc"), kernels.path("moved")).expect("moved");
    let moved = nvcc::Compiler { nvcc: kernels.path("moved"), ..base };
    kernels.compile(&moved).expect("from the cache");
    assert_eq!(kernels.calls(), 0);
}

#[test]
fn the_compiler_is_told_architectures_ptx_and_what_else_was_asked_for() {
    let kernels = Kernels::new();
    let arguments = |compiler: nvcc::Compiler| {
        let fatbins = kernels.compile(&compiler).expect("compiled");
        let text = fs::read_to_string(&fatbins[0]).expect("what the compiler wrote");
        text.split_whitespace().map(str::to_owned).collect::<Vec<_>>()
    };
    let has = |arguments: &[String], wanted: &str| arguments.iter().any(|argument| argument == wanted);
    let base = arguments(kernels.compiler());
    for wanted in [
        "-fatbin",
        "-gencode=arch=compute_80,code=compute_80",
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90",
    ] {
        assert!(has(&base, wanted), "{wanted} in {base:?}");
    }
    assert!(!has(&base, "-gencode=arch=compute_90,code=compute_90"), "PTX of the lowest alone: {base:?}");
    assert!(!has(&base, "-lineinfo"), "{base:?}");
    let ptx = arguments(nvcc::Compiler { architectures: Vec::new(), ..kernels.compiler() });
    assert!(has(&ptx, "-gencode=arch=compute_80,code=compute_80") && has(&ptx, "-lineinfo"), "{ptx:?}");
    assert!(has(&ptx, "-gencode=arch=compute_90,code=compute_90"), "kernels differ from there on: {ptx:?}");
    assert!(!ptx.iter().any(|argument| argument.contains("code=sm_")), "no machine code: {ptx:?}");
    let every = arguments(nvcc::Compiler { every_ptx: true, ..kernels.compiler() });
    assert!(has(&every, "-gencode=arch=compute_90,code=compute_90"), "{every:?}");
    let strict = arguments(nvcc::Compiler { strict: true, ..kernels.compiler() });
    assert!(has(&strict, "-Xptxas=--warn-on-spills,--warning-as-error"), "{strict:?}");
    let host = arguments(nvcc::Compiler { host_compiler: Some("g++-13".into()), ..kernels.compiler() });
    assert!(has(&host, "-ccbin=g++-13"), "{host:?}");
}

#[test]
fn a_file_for_hopper_has_code_of_that_architecture_alone() {
    let kernels = Kernels::new();
    kernels.write("a_hopper.cu", "a");
    let targets = |compiler: nvcc::Compiler| {
        let fatbin = compiler.fatbin(&kernels.path("kernels/a_hopper.cu"), &[]).expect("compiled");
        let text = fs::read_to_string(fatbin).expect("what the compiler wrote");
        let words = text.split_whitespace().filter_map(|word| word.strip_prefix("-gencode=arch="));
        words.map(str::to_owned).collect::<Vec<_>>()
    };
    let ptx = "compute_90a,code=compute_90a";
    assert_eq!(targets(kernels.compiler()), [ptx, "compute_90a,code=sm_90a"]);
    let others = nvcc::Compiler { architectures: vec![80, 100], every_ptx: true, ..kernels.compiler() };
    assert_eq!(targets(others), [ptx], "PTX, which a device of another architecture does not take");
    assert_eq!(targets(nvcc::Compiler { architectures: Vec::new(), ..kernels.compiler() }), [ptx]);
}

#[test]
fn registers_that_ptxas_does_not_pass_on_are_an_error_where_it_is_strict() {
    let kernels = Kernels::new();
    kernels.compiles("echo whole >\"$out\"; echo \"ptxas info : (C7508) 'setmaxnreg' ignored\" >&2");
    let strict = nvcc::Compiler { strict: true, ..kernels.compiler() };
    let error = kernels.compile(&strict).expect_err("ignored");
    assert!(error.contains("a.cu") && error.contains("'setmaxnreg' ignored"), "{error}");
    assert_eq!(fs::read_dir(kernels.path("cache")).expect("the cache").count(), 0);
    kernels.compile(&kernels.compiler()).expect("compiled");
}

#[test]
fn a_kernel_that_does_not_compile_leaves_nothing_in_the_cache() {
    let kernels = Kernels::new();
    kernels.compiles("echo half >\"$out\"; echo 'expected a semicolon' >&2; exit 2");
    let error = kernels.compile(&kernels.compiler()).expect_err("no fatbin");
    assert!(error.contains("a.cu") && error.contains("expected a semicolon"), "{error}");
    assert_eq!(fs::read_dir(kernels.path("cache")).expect("the cache").count(), 0);
    kernels.compiles("echo whole >\"$out\"");
    let fatbins = kernels.compile(&kernels.compiler()).expect("compiled");
    assert_eq!(fs::read_to_string(&fatbins[0]).expect("a fatbin"), "whole\n");
    // A folder without kernels has none; one that is not there is named.
    let gone = kernels.path("gone");
    let error = nvcc::files(&gone, "cu").expect_err("no folder");
    assert!(error.contains(&gone.display().to_string()), "{error}");
}
