//! C and C++ compilers, and programs on the virtual GPU.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use promptmix::cuda::export::HEADER;

/// A compiler of this machine.
pub struct Compiler(&'static str);

/// None, with a printed reason, where there is no such compiler.
pub fn compiler(name: &'static str) -> Option<Compiler> {
    let found = Command::new(name).arg("--version").output().is_ok_and(|output| output.status.success());
    if !found {
        eprintln!("skipped: there is no {name}");
    }
    found.then_some(Compiler(name))
}

/// A folder that holds `promptmix.h`.
pub fn folder() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    std::fs::write(folder.path().join("promptmix.h"), HEADER).expect("written");
    folder
}

impl Compiler {
    /// Compiles and links a program with every warning an error.
    pub fn program(&self, folder: &Path, source: &Path, standard: &str, libraries: &[&str]) -> PathBuf {
        let program =
            folder.join(format!("{}-{standard}", source.file_stem().expect("a name").to_string_lossy()));
        let mut command = Command::new(self.0);
        command.arg(format!("-std={standard}")).args(["-O1", "-Wall", "-Wextra", "-Werror"]);
        command.arg("-I").arg(folder).arg(source).arg("-o").arg(&program).args(libraries);
        run(&mut command);
        program
    }
}

/// Runs a command that must succeed: what it printed.
#[track_caller]
pub fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let (printed, said) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{printed}{said}", output.status);
    printed.into_owned()
}

/// The folder of `libpromptmix.so`, built with the functions for C. It is the crate's library in another form, in the folder of all
/// builds, so that its dependencies are there.
pub fn library() -> &'static Path {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT.get_or_init(|| {
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("the folder of builds");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["rustc", "--locked", "--lib", "--crate-type", "cdylib", "--no-default-features"]);
        cargo.args(["--features", "capi", "--target-dir"]).arg(target).current_dir(super::root());
        run(&mut cargo);
        target.join("debug")
    })
}

/// A folder in which programs find the virtual GPU as the driver's library.
pub fn driver() -> tempfile::TempDir {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let library = vgpu::find_library().expect("the virtual GPU");
    for name in ["libcuda.so", "libcuda.so.1"] {
        std::os::unix::fs::symlink(&library, folder.path().join(name)).expect("a link");
    }
    folder
}
