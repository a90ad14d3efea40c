//! `--device auto`, the default: a GPU that can be used is taken, one that cannot is spoken of, and what has begun goes on on what it began
//! on. The GPU is the virtual one.
#![cfg(all(feature = "cuda", feature = "cli", unix))]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

#[path = "common/kernels.rs"]
mod kernels;
#[path = "../src/cli/pci.rs"]
mod pci;
#[path = "common/program.rs"]
mod program;
#[path = "common/small_model.rs"]
mod small_model;

use serde_json::{Value, json};

/// A small model, data, and a file of settings for a run of two steps.
struct Setting(tempfile::TempDir);

impl Setting {
    fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        small_model::write(&folder.path().join("model"));
        for (split, rows) in [("train", 8), ("validation", 4), ("test", 4)] {
            let row = |i: usize| {
                format!("{{\"sentence\": \"a {} film {i}\", \"label\": {}}}\n", ["bad", "good"][i % 2], i % 2)
            };
            let rows: String = (0..rows).map(row).collect();
            fs::write(folder.path().join(format!("{split}.jsonl")), rows).expect("written");
        }
        let setting = Self(folder);
        setting.write("run.toml", "");
        setting
    }

    fn write(&self, name: &str, more: &str) {
        let text = format!(
            "model = \"model\"\ntask = \"sst2\"\nlabels = \"negative,positive\"\ndata = \".\"\nmethod = \"prompt-tuning\"\n\
             prompt-length = 2\nbatch-size = 4\nsteps = 2\nvalidate-every = 1\ndecoding = \"labels\"\n{more}"
        );
        fs::write(self.0.path().join(name), text).expect("written");
    }

    /// What `words` come to in the folder: their end, and what they say on standard error.
    fn end(&self, mut command: Command, words: &str) -> (Output, String) {
        let end = command.args(words.split_whitespace()).current_dir(self.0.path()).output().expect("an end");
        let said = String::from_utf8_lossy(&end.stderr).into_owned();
        assert!(!said.contains("panicked"), "{words}: {said}");
        (end, said)
    }

    fn success(&self, command: Command, words: &str) -> String {
        let (end, said) = self.end(command, words);
        assert!(end.status.success(), "{words}: {said}");
        said
    }

    fn error(&self, command: Command, words: &str) -> String {
        let (end, said) = self.end(command, words);
        assert_eq!(end.status.code(), Some(1), "{words}: {said}");
        said
    }

    fn manifest(&self, run: &str) -> Value {
        let json = fs::read(self.0.path().join(run).join("run.json")).expect("a run");
        serde_json::from_slice(&json).expect("JSON")
    }

    fn trained_on(&self, run: &str) -> Value {
        self.manifest(run)["trained-on"].clone()
    }

    fn bytes(&self, file: &str) -> Vec<u8> {
        fs::read(self.0.path().join(file)).expect(file)
    }
}

const TAKEN: &str = "computing on cuda:0, Virtual GPU";
const NOT_TAKEN: &str = "computing on the CPU, not on a GPU: ";

fn on_gpu() -> Value {
    json!({ "device": "cuda", "precision": "bf16" })
}

fn on_cpu() -> Value {
    json!({ "device": "cpu", "precision": "f32" })
}

#[test]
fn every_command_that_computes_takes_a_gpu_by_itself() {
    for words in [
        &["train"][..],
        &["sweep"],
        &["compare"],
        &["evaluate"],
        &["predict"],
        &["verify"],
        &["demo"],
        &["bench", "step"],
        &["prompts", "similar"],
    ] {
        let help = program::promptmix().args(words).arg("--help").output().expect("help").stdout;
        let help = String::from_utf8(help).expect("text");
        let (_, device) = help.split_once("--device <DEVICE>").expect("the flag");
        let default = device.split_once("[default: ").map(|(_, rest)| rest.split(']').next());
        assert_eq!(default, Some(Some("auto")), "{words:?}");
    }
}

#[test]
fn a_gpu_is_taken_with_one_line_unless_the_cpu_is_asked_for_or_no_gpu_is_to_be_seen() {
    if !kernels::are_built() {
        return;
    }
    let setting = Setting::new();
    let said = setting.success(program::on_virtual_gpu(), "train --config run.toml --out gpu");
    assert_eq!(said.matches("computing on").count(), 1, "{said}");
    let line = said.lines().next().expect("a line");
    assert!(line.starts_with(TAKEN) && line.contains("in bf16") && line.contains("--device cpu"), "{said}");
    assert_eq!(setting.trained_on("gpu"), on_gpu());

    let said = setting.success(program::promptmix(), "train --config run.toml --device cpu --out cpu");
    assert!(!said.contains("computing on"), "{said}");
    assert_eq!(setting.trained_on("cpu"), on_cpu());
    let hidden = |list: &str, out: &str| {
        let mut command = program::on_virtual_gpu();
        command.env("CUDA_VISIBLE_DEVICES", list);
        let said = setting.success(command, &format!("train --config run.toml --out {out}"));
        assert!(!said.contains("computing on"), "{list:?}: {said}");
        assert_eq!(setting.trained_on(out), on_cpu(), "{list:?}");
        // The CPU's numbers, however it came to it.
        let file = |run: &str| setting.bytes(&format!("{run}/last.safetensors"));
        assert!(file(out) == file("cpu"), "{list:?}");
    };
    hidden("", "none");
    hidden("-1", "minus-one");
    let said = setting.success(program::on_virtual_gpu(), "evaluate --run cpu --device cpu");
    assert!(!said.contains("computing on"), "{said}");
    let said = setting.success(program::on_virtual_gpu(), "evaluate --run cpu --precision f32 --threads 1");
    assert!(said.starts_with(TAKEN) && said.contains("in f32"), "{said}");
    assert!(said.contains("--threads has no effect on a GPU"), "{said}");
}

#[test]
fn a_gpu_that_cannot_be_used_is_one_line_with_the_reason_and_what_would_help() {
    if !kernels::are_built() {
        return;
    }
    let setting = Setting::new();
    let words = "bench step --dims model/config.json --batch-size 1 --source-lengths 4 --target-length 1 --repeats 1 --no-product";
    for (variable, value, reason, remedy) in [
        ("VGPU_DRIVER", "12080", "the driver speaks CUDA 12.8", "update the NVIDIA driver"),
        ("VGPU_CAPABILITY", "75", "the kernels need 8.0 or newer", "--device cpu"),
    ] {
        let mut command = program::on_virtual_gpu();
        command.env(variable, value);
        let said = setting.success(command, words);
        assert!(said.starts_with(NOT_TAKEN) && said.lines().count() == 1, "{variable}: {said}");
        assert!(said.contains(reason) && said.contains(remedy), "{variable}: {said}");
    }
    // No GPU, no word; but where the machine itself has one that its driver does not find.
    let mut command = program::on_virtual_gpu();
    command.env("VGPU_DEVICES", "0");
    let said = setting.success(command, words);
    if pci::nvidia_gpus(Path::new(pci::BUS)) == 0 {
        assert_eq!(said, "");
    } else {
        assert!(said.starts_with(NOT_TAKEN) && said.contains("the driver finds no GPU"), "{said}");
    }
    // A GPU that fits and has no room is an error, not a reason to go on a hundred times slower.
    let mut command = program::on_virtual_gpu();
    command.env("VGPU_MEMORY", "1000");
    let said = setting.error(command, words);
    assert!(said.contains("GPU could not"), "{said}");
    // What only a GPU can do is not done by the CPU.
    let said = setting.error(program::promptmix(), &format!("{words} --precision bf16"));
    assert!(said.contains("--precision") && said.contains("no GPU is taken"), "{said}");
}

#[test]
fn a_run_goes_on_on_what_it_began_on_unless_a_flag_moves_it() {
    if !kernels::are_built() {
        return;
    }
    let setting = Setting::new();
    let (gpu, cpu) = (program::on_virtual_gpu, program::promptmix);
    setting.success(gpu(), "train --config run.toml --out run");
    let before = setting.bytes("run/last.safetensors");
    // A run of the GPU does not go on on the CPU by itself.
    let said = setting.error(cpu(), "train --resume --steps 3 --out run");
    assert!(said.contains("a GPU, on which run began, in bf16") && said.contains("--device cpu"), "{said}");
    assert!(setting.bytes("run/last.safetensors") == before, "nothing was done");
    let said = setting.success(gpu(), "train --resume --steps 3 --out run");
    assert!(said.starts_with(TAKEN) && !said.contains("unbroken"), "{said}");
    for (device, out) in [("cuda", "forced"), ("cpu", "moved")] {
        setting.success(gpu(), &format!("train --config run.toml --out {out}"));
        setting.success(gpu(), &format!("train --resume --steps 3 --device {device} --out {out}"));
    }
    let last = |run: &str| setting.bytes(&format!("{run}/last.safetensors"));
    assert!(last("run") == last("forced"), "the GPU's numbers");
    assert!(last("run") != last("moved"), "the CPU's are others");
    // Moved by a flag, which is said and recorded.
    let said = setting.success(cpu(), "train --resume --steps 4 --device cpu --out run");
    assert!(said.contains("was trained on cuda in bf16 and goes on on cpu in f32"), "{said}");
    assert_eq!(setting.trained_on("run"), on_cpu());
    let said = setting.success(gpu(), "train --resume --steps 5 --out run");
    assert!(said.starts_with("computing on the CPU, on which run began, not on cuda:0"), "{said}");
    assert_eq!(setting.trained_on("run"), on_cpu());
    // The number format is gone on with as well.
    setting.success(gpu(), "train --config run.toml --precision f32 --out exact");
    let said = setting.success(gpu(), "train --resume --steps 3 --out exact");
    assert!(said.contains("in f32") && !said.contains("unbroken"), "{said}");
}

#[test]
fn a_run_that_does_not_say_what_it_began_on_goes_on_on_the_cpu() {
    if !kernels::are_built() {
        return;
    }
    let setting = Setting::new();
    let cut = |out: &str, devices: fn() -> Command| {
        setting.success(program::promptmix(), &format!("train --config run.toml --out {out}"));
        let mut saved = setting.manifest(out);
        saved.as_object_mut().expect("an object").remove("trained-on").expect("it is recorded");
        fs::write(setting.0.path().join(out).join("run.json"), saved.to_string()).expect("written");
        setting.success(devices(), &format!("train --resume --steps 4 --out {out}"));
        assert_eq!(setting.trained_on(out), on_cpu());
        setting.bytes(&format!("{out}/last.safetensors"))
    };
    assert!(cut("with", program::on_virtual_gpu) == cut("without", program::promptmix), "the CPU's numbers");
}

#[test]
fn sweeps_studies_and_few_shot_runs_go_on_on_what_they_began_on() {
    if !kernels::are_built() {
        return;
    }
    let setting = Setting::new();
    let (gpu, cpu) = (program::on_virtual_gpu, program::promptmix);
    setting.write("one.toml", "[sweep]\nseed = [1]\n");
    setting.write("two.toml", "[sweep]\nseed = [1, 2]\n");
    setting.success(cpu(), "sweep one.toml --out sweep");
    let said = setting.success(gpu(), "sweep two.toml --out sweep");
    assert!(said.contains("computing on the CPU, on which sweep/"), "{said}");
    assert_eq!(setting.trained_on("sweep/seed-2"), on_cpu());
    // Runs of both: no default fits them.
    setting.write("three.toml", "[sweep]\nseed = [1, 2, 3]\n");
    let said = setting.success(gpu(), "sweep three.toml --device cuda --out sweep");
    assert!(said.contains("was trained on cpu in f32 and goes on on cuda in bf16"), "{said}");
    assert_eq!(setting.trained_on("sweep/seed-3"), on_gpu());
    assert_eq!(setting.trained_on("sweep/seed-1"), on_cpu(), "it took no step there");
    let said = setting.error(gpu(), "sweep three.toml --out sweep");
    assert!(said.contains("runs that all began on one device") && said.contains("--device cuda"), "{said}");

    let study = "[study]\nseeds = [1]\nlearning-rates = [0.3]\n[[study.target]]\nname = \"films\"\n[[study.method]]\nname = \"prompt tuning\"\n";
    setting.write("study.toml", study);
    let said = setting.success(gpu(), "compare study.toml --out study");
    assert!(said.starts_with(TAKEN), "{said}");
    let said = setting.error(cpu(), "compare study.toml --out study");
    assert!(said.contains("a GPU, on which study/") && said.contains("--device cpu"), "{said}");

    let few = "train --config run.toml --few-shot 2 --class-balanced --draws 2";
    let said = setting.success(gpu(), &format!("{few} --out few"));
    assert!(said.starts_with(TAKEN), "{said}");
    assert_eq!(setting.trained_on("few/draw-42"), on_gpu());
    let said = setting.error(cpu(), "train --resume --out few");
    assert!(said.contains("a GPU, on which few/draw-42 began"), "{said}");
}

#[test]
fn a_settings_file_that_names_a_device_is_told_of_the_flag() {
    let setting = Setting::new();
    for key in ["device", "precision"] {
        setting.write("named.toml", &format!("{key} = \"cuda\"\n"));
        let said = setting.error(program::promptmix(), "train --config named.toml --out named");
        assert!(said.contains("line 11") && said.contains(&format!("--{key}")), "{said}");
    }
}

#[test]
fn info_ends_with_the_command_to_type_next() {
    let next = |mut command: Command| {
        let output = command.args(["info", "--product-size", "0"]).output().expect("an end").stdout;
        let text = String::from_utf8(output).expect("text");
        text.lines()
            .last()
            .and_then(|line| line.strip_prefix("next      "))
            .expect("its last line")
            .to_owned()
    };
    assert_eq!(next(program::promptmix()), "promptmix demo --out demo-run");
    let with = |variable: &str, value: &str| {
        let mut command = program::on_virtual_gpu();
        command.env(variable, value);
        next(command)
    };
    if promptmix::cuda::FATBINS.is_empty() {
        // In a checkout the script is there.
        let command = with("VGPU_DEVICES", "1");
        assert!(command.starts_with("scripts/install-cuda-compiler && cargo build"), "{command}");
        return;
    }
    let command = with("VGPU_DEVICES", "1");
    assert!(command.starts_with("promptmix demo --out demo-run") && command.contains("cuda:0"), "{command}");
    let command = with("VGPU_DRIVER", "12080");
    assert!(command.starts_with("promptmix info") && command.contains("driver"), "{command}");
    let command = with("VGPU_CAPABILITY", "75");
    assert!(command.starts_with("promptmix demo --out demo-run") && command.contains("CPU"), "{command}");
}

#[test]
fn gpus_are_found_on_the_bus_without_a_driver() {
    let bus = tempfile::tempdir().expect("a folder");
    let device = |name: &str, vendor: &str, class: &str| {
        let folder = bus.path().join(name);
        fs::create_dir(&folder).expect("made");
        fs::write(folder.join("vendor"), format!("{vendor}\n")).expect("written");
        fs::write(folder.join("class"), format!("{class}\n")).expect("written");
    };
    assert_eq!(pci::nvidia_gpus(&bus.path().join("none")), 0);
    // A display of another vendor, NVIDIA's sound and its switch.
    device("0000:00:02.0", "0x8086", "0x030000");
    device("0000:01:00.1", "0x10de", "0x040300");
    device("0000:02:00.0", "0x10de", "0x068000");
    fs::create_dir(bus.path().join("0000:03:00.0")).expect("one that says nothing");
    assert_eq!(pci::nvidia_gpus(bus.path()), 0);
    device("0000:04:00.0", "0x10de", "0x030200");
    device("0000:05:00.0", "0x10de", "0x030000");
    assert_eq!(pci::nvidia_gpus(bus.path()), 2);
}
