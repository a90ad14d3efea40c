//! `vgpu run`: starts any CUDA program on the virtual GPU.

use std::ffi::OsString;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};

use vgpu::compiled::{FOLDER_VARIABLE, Tools};

const USAGE: &str = "\
Runs a CUDA program on the virtual GPU and prints failed checks and counters at its end.

usage: vgpu run [options] [--] PROGRAM [ARGUMENTS...]
       vgpu profiles    prints what the predictions know of each device, as JSON
       vgpu fit         prints the time model beside the measurements that it is fitted to, each also left out of the fit

  --profile NAME       sm_80 (default), sm_89, sm_90, h200, sm_100 or sm_120
  --json FILE          write checks, counters and predictions to FILE
  --sample-blocks N    run at most N blocks of every launch, spread evenly, and scale the counters;
                       what the kernels compute is then incomplete
  --no-ptxas           do not compile the kernels that ran for the table of registers and spills
  --no-timing          do not follow the time of warps: predictions are then bounds of throughput alone
  --no-checks          run faster: no checks, no memory counters
  --seed N             order of blocks and warps; 0 is the natural one (default 1)
  --threads N          worker threads (default: all cores)
  --timeout SECONDS    longest time of one launch (default 300)

Exit code: the program's own; 101 when a check failed; 2 when the options are wrong.
";

/// What the command line asks for.
#[derive(Default)]
struct Options {
    settings: Vec<(&'static str, OsString)>,
    program: Vec<OsString>,
    no_ptxas: bool,
    no_timing: bool,
}

fn main() -> ExitCode {
    let arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if matches!(arguments.first().and_then(|word| word.to_str()), None | Some("-h" | "--help" | "help")) {
        print!("{USAGE}");
        return ExitCode::SUCCESS;
    }
    if arguments == ["profiles"] {
        println!("{}", serde_json::json!(vgpu::profile::PROFILES));
        return ExitCode::SUCCESS;
    }
    if arguments == ["fit"] {
        print!("{}", fit());
        return ExitCode::SUCCESS;
    }
    match parse(arguments).and_then(run) {
        Ok(never) => match never {},
        Err(message) => {
            eprintln!("error: {message}");
            ExitCode::from(2)
        }
    }
}

/// The table of the fit.
fn fit() -> String {
    let measured = vgpu::model::measured();
    let constants = vgpu::model::Constants::fitted();
    let mut out = format!(
        "{}\nfitted: a launch {:.2} us under the profiler, {:.2} cycles for a cycle of the path, {:.2} for each distinct instruction\n\n\
         {:<28} {:>9} {:>9} {:>7} {:>9} {:>7}\n",
        measured.source,
        constants.launch * 1e6,
        constants.path,
        constants.fetch,
        "group",
        "measured",
        "model us",
        "off by",
        "left out",
        "off by"
    );
    let off = |model: f64, measured: f64| 100.0 * (model / measured - 1.0);
    let (mut whole, mut model) = (0.0, 0.0);
    for line in vgpu::model::leave_one_out() {
        whole += line.measured_us;
        model += line.model_us;
        out += &format!(
            "{:<28} {:>9.0} {:>9.0} {:>5.0} % {:>9.0} {:>5.0} %\n",
            line.name,
            line.measured_us,
            line.model_us,
            off(line.model_us, line.measured_us),
            line.left_out_us,
            off(line.left_out_us, line.measured_us)
        );
    }
    out += &format!(
        "{:<28} {:>9.0} {:>9.0} {:>5.0} %\n\n{:<40} {:>9} {:>9} {:>7}\n",
        "sum",
        whole,
        model,
        off(model, whole),
        "steps that are in no fit, in graphs",
        "measured",
        "model ms",
        "off by"
    );
    for (name, measured, model) in vgpu::model::steps() {
        out += &format!("{name:<40} {measured:>9.2} {model:>9.2} {:>5.0} %\n", off(model, measured));
    }
    out += "\nassumed, not measured here or on an H200 alone; the least and the most that is likely, and where it comes from:\n";
    use vgpu::model::{ASSUMED, LATENCIES, THROUGHPUT};
    for one in ASSUMED.iter().chain(&THROUGHPUT).chain(&LATENCIES) {
        out += &format!(
            "  {} = {} ({} to {}): {}\n",
            one.name, one.value, one.range[0], one.range[1], one.source
        );
    }
    out
}

fn parse(arguments: Vec<OsString>) -> Result<Options, String> {
    let mut words = arguments.into_iter();
    if words.next().as_deref() != Some("run".as_ref()) {
        return Err("the commands are `vgpu run PROGRAM` and `vgpu profiles`; see vgpu --help".to_string());
    }
    let mut options = Options::default();
    while let Some(word) = words.next() {
        let name = word.to_str().unwrap_or("");
        if !name.starts_with("--") {
            options.program.push(word);
            break;
        }
        let mut value = || words.next().ok_or(format!("{name} needs a value"));
        let number = |value: OsString| match value.to_str().map(str::parse::<u64>) {
            Some(Ok(_)) => Ok(value),
            _ => Err(format!("{name} needs a number, not {}", value.to_string_lossy())),
        };
        match name {
            "--" => break,
            "--profile" => options.settings.push(("VGPU_PROFILE", value()?)),
            "--json" => {
                let path = PathBuf::from(value()?);
                // The program may change its folder before it ends.
                let path =
                    std::path::absolute(&path).map_err(|error| format!("{}: {error}", path.display()))?;
                options.settings.push(("VGPU_JSON", path.into()));
            }
            "--sample-blocks" => options.settings.push(("VGPU_SAMPLE_BLOCKS", number(value()?)?)),
            "--no-ptxas" => options.no_ptxas = true,
            "--no-timing" => options.no_timing = true,
            "--no-checks" => options.settings.push(("VGPU_CHECKS", "0".into())),
            "--seed" => options.settings.push(("VGPU_SEED", number(value()?)?)),
            "--threads" => options.settings.push(("VGPU_THREADS", number(value()?)?)),
            "--timeout" => options.settings.push(("VGPU_TIMEOUT", number(value()?)?)),
            _ => return Err(format!("{name} is no option; see vgpu --help")),
        }
    }
    options.program.extend(words);
    if let Some((_, profile)) = options.settings.iter().find(|(name, _)| *name == "VGPU_PROFILE") {
        let known: Vec<&str> = vgpu::profile::PROFILES.iter().map(|profile| profile.name).collect();
        if !profile.to_str().is_some_and(|name| known.contains(&name)) {
            return Err(format!(
                "{} is no profile; known are {}",
                profile.to_string_lossy(),
                known.join(", ")
            ));
        }
    }
    if options.program.is_empty() {
        return Err("no program to run; see vgpu --help".to_string());
    }
    Ok(options)
}

/// Replaces this process by the program, with the virtual GPU in the place of libcuda.
fn run(options: Options) -> Result<std::convert::Infallible, String> {
    let library = vgpu::find_library().map_err(|error| error.to_string())?;
    // The library's own name is libcuda.so; CUDA's runtime and Python's packages open libcuda.so.1.
    let mut folders = numbered(&library)?.into_os_string();
    if let Some(others) = std::env::var_os("LD_LIBRARY_PATH").filter(|others| !others.is_empty()) {
        folders.push(":");
        folders.push(others);
    }
    let mut preload = library.into_os_string();
    if let Some(others) = std::env::var_os("LD_PRELOAD").filter(|others| !others.is_empty()) {
        preload.push(":");
        preload.push(others);
    }
    let mut command = Command::new(&options.program[0]);
    command
        .args(&options.program[1..])
        .env("LD_PRELOAD", preload)
        .env("LD_LIBRARY_PATH", folders)
        .env("VGPU_TABLE", "1");
    let start = std::env::current_exe().unwrap_or_default();
    match Tools::find(&start) {
        Some(tools) if !options.no_ptxas => command.env(FOLDER_VARIABLE, tools.folders()),
        _ => command.env_remove(FOLDER_VARIABLE),
    };
    if !options.no_timing {
        command.env("VGPU_TIMING", "1");
    }
    // A program of this project's tests must not look for another device.
    command.env("PROMPTMIX_TEST_DEVICE", "vgpu").envs(options.settings);
    let error = command.exec();
    Err(format!("{}: {error}", options.program[0].to_string_lossy()))
}

/// What programs call the driver, and the runtime where they are linked with the shared one.
const NAMES: [&str; 2] = ["libcuda.so.1", "libcudart.so.13"];

/// A folder beside the library in which it is called by these names.
fn numbered(library: &Path) -> Result<PathBuf, String> {
    let library = library.canonicalize().map_err(|error| format!("{}: {error}", library.display()))?;
    let folder = library.with_file_name("vgpu-libcuda");
    for name in NAMES {
        let link = folder.join(name);
        let fails = |error: std::io::Error| {
            format!("{}: {error}; it must be a link to {}", link.display(), library.display())
        };
        std::fs::create_dir_all(&folder).map_err(fails)?;
        let target = Path::new("..").join(library.file_name().unwrap_or_default());
        match std::os::unix::fs::symlink(target, &link) {
            // Another run may have made it.
            Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => return Err(fails(error)),
            _ if link.canonicalize().is_ok_and(|found| found == library) => {}
            _ => return Err(format!("{} is no link to {}; remove it", link.display(), library.display())),
        }
    }
    Ok(folder)
}
