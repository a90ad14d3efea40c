//! `promptmix bench kernels` on the virtual GPU and on the CPU, and `promptmix bench compare` of what they write.
#![cfg(all(feature = "cuda", feature = "cli"))]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use promptmix::pretrained::T5Config;
use serde_json::{Value, json};

#[path = "common/kernels.rs"]
mod kernels;
#[path = "common/program.rs"]
mod program;

/// Widths beside every tile's, lengths that differ, and head widths that the fast kernels take.
const TINY: &str = r#"
[[shape]]
name = "tiny"
examples = 3
source-lengths = [9, 4]
target-length = 2
prompt-length = 5
width = 72
heads = 2
head-width = 64
inner = 136
vocabulary = 100
sources = 2
bottleneck = 7
decoded = 3
"#;

const FAMILIES: [&str; 13] = [
    "linear",
    "gate",
    "projection",
    "encoder_attention",
    "feed_forward",
    "final_norm",
    "decoder_attention",
    "cross_attention",
    "loss",
    "embedding",
    "mixture",
    "adamw",
    "decode",
];

struct World {
    folder: tempfile::TempDir,
}

struct End {
    success: bool,
    out: String,
    said: String,
}

impl World {
    fn new() -> Self {
        let world = Self { folder: tempfile::tempdir().expect("a folder") };
        world.write("tiny.toml", TINY);
        world
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn write(&self, name: &str, text: &str) {
        fs::write(self.path(name), text).expect("written");
    }

    fn json(&self, name: &str) -> Value {
        serde_json::from_str(&fs::read_to_string(self.path(name)).expect("a file")).expect("JSON")
    }

    /// `bench` in the folder.
    fn run(&self, mut program: Command, arguments: &[&str]) -> End {
        let output =
            program.arg("bench").args(arguments).current_dir(self.folder.path()).output().expect("an end");
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        End { success: output.status.success(), out: text(&output.stdout), said: text(&output.stderr) }
    }

    /// On the virtual GPU, which keeps time.
    fn predicted(&self, arguments: &[&str]) -> End {
        let mut program = program::on_virtual_gpu();
        program.env("VGPU_TIMING", "1").env("VGPU_JSON", self.path("counters.json"));
        self.run(program, arguments)
    }

    fn refused(&self, arguments: &[&str], said: &str) {
        let end = self.run(program::promptmix(), arguments);
        assert!(!end.success && end.said.contains(said), "{arguments:?}: {said}: {}", end.said);
        assert!(end.out.is_empty(), "{}", end.out);
    }
}

/// p20, p50 and p80 of a kernel's cold and warm passes, which are in order.
fn percentiles(kernel: &Value, times: &str) -> Vec<f64> {
    let mut all = Vec::new();
    for passes in ["cold_us", "warm_us"] {
        let of = |name: &str| kernel[times][passes][name].as_f64().unwrap_or(f64::NAN);
        let found = ["p20", "p50", "p80"].map(of);
        let in_order = found[0] > 0.0 && found[0] <= found[1] && found[1] <= found[2];
        assert!(in_order && found[2].is_finite(), "{kernel}");
        all.extend(found);
    }
    all
}

fn list<'a>(report: &'a Value, name: &str) -> &'a Vec<Value> {
    report[name].as_array().expect(name)
}

fn names(report: &Value) -> Vec<&str> {
    list(report, "kernels").iter().map(|kernel| kernel["kernel"].as_str().expect("a name")).collect()
}

#[test]
fn every_family_is_predicted_on_the_virtual_gpu_with_counts_that_the_cpu_and_the_counters_confirm() {
    if !kernels::are_built() {
        return;
    }
    let world = World::new();
    let end =
        world.predicted(&["kernels", "--shapes", "tiny.toml", "--device", "cuda", "--json", "gpu.json"]);
    assert!(end.success, "{}\n{}", end.out, end.said);
    let report = world.json("gpu.json");
    assert_eq!(report["schema"], "promptmix bench kernels 1");
    assert_eq!(report["times"], "predicted");
    assert_eq!(report["shapes"][0]["source-lengths"], json!([9, 4]));

    // The environment, and what is not known of it.
    let environment = &report["environment"];
    assert_eq!(environment["device"], "Virtual GPU (sm_80, after A100)");
    assert_eq!(environment["version"], env!("CARGO_PKG_VERSION"));
    assert_eq!(environment["compiler"], promptmix::cuda::COMPILER);
    assert_eq!(environment["driver_cuda"], "13.0");
    assert_eq!(environment["multiprocessors"], 108);
    assert!(environment["commit"].as_str().is_some_and(|commit| !commit.is_empty()), "{environment}");
    // A machine of tests with a driver has NVML, which knows no virtual GPU.
    assert_eq!(environment["nvml"], Value::Null);
    let missing = environment["nvml_missing"].as_str().expect("a reason");
    assert!(missing.contains("was not found") || missing.contains("NVML knows no GPU"), "{missing}");
    let not_known = format!("clocks, power and temperature are not known: {missing}");
    assert!(end.out.contains(&not_known) && end.said.contains(&not_known), "{}", end.out);
    let ceilings = &report["ceilings"];
    assert_eq!(ceilings["product_tflop_per_s"], Value::Null);
    assert_eq!(ceilings["product"], "not measured: the GPU is virtual");
    // What the model takes a copy to reach of the data sheet's 2,039 GB/s.
    let copy = ceilings["copy_gb_per_s"].as_f64().expect("a rate");
    assert!((copy / 2039.0 - 0.9).abs() < 0.01, "{copy}");
    assert_eq!(ceilings["datasheet"], json!({ "tflop_per_s": 312.0, "gb_per_s": 2039.0 }));

    let found = names(&report);
    let families: BTreeSet<&str> = found.iter().map(|name| name.split('/').next().expect("one")).collect();
    assert_eq!(families, FAMILIES.into_iter().collect());
    assert_eq!(found.iter().collect::<BTreeSet<_>>().len(), found.len(), "each once");
    assert_eq!(found.iter().filter(|name| name.starts_with("linear/")).count(), 18);
    for family in
        FAMILIES.iter().filter(|family| !["linear", "embedding", "adamw", "decode", "loss"].contains(family))
    {
        for direction in ["forward", "backward"] {
            assert!(found.contains(&&*format!("{family}/{direction}")), "{family} {direction}: {found:?}");
        }
    }
    for kernel in list(&report, "kernels") {
        let times = percentiles(kernel, "predicted");
        assert!(kernel.get("measured").is_none(), "{kernel}");
        let number = |name: &str| kernel[name].as_f64().unwrap_or(f64::NAN);
        assert!((number("gb_per_s") * times[1] * 1e3 / number("bytes") - 1.0).abs() < 1e-9, "{kernel}");
        assert!((number("share_of_copy") * copy / number("gb_per_s") - 1.0).abs() < 1e-9, "{kernel}");
        assert!((number("share_of_datasheet_memory") * 2039.0 / number("gb_per_s") - 1.0).abs() < 1e-9);
        assert_eq!(kernel["share_of_product"], Value::Null);
        if number("operations") > 0.0 {
            let of = number("tflop_per_s") * times[1] * 1e6 / number("operations");
            assert!((of - 1.0).abs() < 1e-9, "{kernel}");
            assert!(
                (number("share_of_datasheet_product") * 312.0 / number("tflop_per_s") - 1.0).abs() < 1e-9
            );
        } else {
            assert_eq!(kernel["tflop_per_s"], Value::Null);
        }
        let name = kernel["kernel"].as_str().expect("a name");
        assert!(end.out.contains(name) && end.said.contains(&format!("  {name} ")), "{name}");
        assert_eq!(kernel.get("tile").is_some(), name.starts_with("linear/"), "{kernel}");
    }
    // Nothing of it is called measured.
    let heading = end.out.lines().find(|line| line.starts_with("shape ")).expect("a heading");
    assert!(heading.contains("predicted us") && !heading.contains("measured"), "{heading}");
    assert!(end.said.contains("shape 1 of 1, tiny, on Virtual GPU"), "{}", end.said);

    // The CPU counts as many operations wherever it has the op.
    let flags =
        ["kernels", "--shapes", "tiny.toml", "--device", "cpu", "--repeats", "3", "--json", "cpu.json"];
    let end = world.run(program::promptmix(), &flags);
    assert!(end.success, "{}", end.said);
    let cpu = world.json("cpu.json");
    assert_eq!(cpu["times"], "measured");
    let operations = |report: &Value, name: &str| {
        let found = list(report, "kernels").iter().find(|kernel| kernel["kernel"] == name);
        found.unwrap_or_else(|| panic!("no {name}"))["operations"].as_u64().expect("a count")
    };
    assert_eq!(list(&cpu, "kernels").len(), found.len() - 20, "all but linear and gate");
    let mut counted = 0;
    for name in names(&cpu) {
        assert_eq!(operations(&report, name), operations(&cpu, name), "{name}");
        counted += usize::from(operations(&cpu, name) > 0);
    }
    assert_eq!(counted, 14);
    list(&cpu, "kernels").iter().for_each(|kernel| drop(percentiles(kernel, "measured")));
    // The products one by one are those of the sublayers.
    for (whole, parts) in [
        ("projection/forward", &["encoder_qkv/project"][..]),
        ("projection/backward", &["encoder_qkv/norm_backward"]),
        ("feed_forward/forward", &["encoder_feed_forward_in/relu", "encoder_feed_forward_out/add"]),
        (
            "feed_forward/backward",
            &["encoder_feed_forward_out/relu_backward", "encoder_feed_forward_in/norm_backward"],
        ),
    ] {
        let sum: u64 = parts.iter().map(|part| operations(&report, &format!("linear/{part}"))).sum();
        assert_eq!(operations(&cpu, whole), sum, "{whole}");
    }

    // Bytes are the distinct ones that the virtual GPU saw a launch touch, but for some words that describe the batch.
    let counters = world.json("counters.json");
    for (name, launched) in [
        ("final_norm/forward", "final_norm_bf16"),
        ("final_norm/backward", "final_norm_backward"),
        ("gate/forward", "gate_bf16"),
        ("gate/backward", "gate_backward_bf16"),
        ("encoder_attention/forward", "attention_64"),
    ] {
        let of =
            list(&counters, "counters").iter().find(|kernel| kernel["kernel"] == launched).expect(launched);
        let number = |part: &str| of[part]["unique_bytes"].as_u64().expect("a count") as f64;
        let seen = (number("loads") + number("stores")) / of["launches"].as_f64().expect("a count");
        let kernel = list(&report, "kernels").iter().find(|kernel| kernel["kernel"] == name).expect(name);
        let bytes = kernel["bytes"].as_f64().expect("a count");
        assert!(seen >= bytes && seen - bytes <= 128.0, "{name}: {bytes} counted, {seen} seen");
    }

    // Peers beside, and what they lack.
    let spread = |of: f64| json!({ "p20": of, "p50": of + 1.0, "p80": of + 2.0 });
    let peers = json!({
        "schema": "promptmix kernel peers 1", "device": "Another GPU", "missing": ["flash-attn: not installed"],
        "kernels": [{ "shape": "tiny", "kernel": "final_norm/forward", "peer": "torch", "cold_us": spread(3.0), "warm_us": spread(2.0) }],
    });
    world.write("peers.json", &peers.to_string());
    let only = ["--only", "final_norm/forward", "--repeats", "1"];
    let flags = [
        "kernels",
        "--shapes",
        "tiny.toml",
        "--device",
        "cuda",
        "--peer",
        "peers.json",
        "--json",
        "one.json",
    ];
    let end = world.predicted(&[&flags[..], &only].concat());
    assert!(end.success, "{}", end.said);
    assert!(end.said.contains("no peer: flash-attn: not installed"), "{}", end.said);
    assert!(end.said.contains("the peers' times are of Another GPU, not of Virtual GPU"), "{}", end.said);
    let one = world.json("one.json");
    assert_eq!(names(&one), ["final_norm/forward"]);
    assert_eq!(one["kernels"][0]["peers"][0]["cold_us"]["p50"], 4.0);
    assert!(
        end.out
            .lines()
            .any(|line| line.trim_start().starts_with("torch ") && line.contains("4.00 (3.00..5.00)"))
    );
    // Times of the model are the same each time.
    let whole = list(&report, "kernels").iter().find(|kernel| kernel["kernel"] == "final_norm/forward");
    assert_eq!(one["kernels"][0]["predicted"], whole.expect("it")["predicted"]);

    // Without its time kept, events would tell the host's.
    let end = world.run(program::on_virtual_gpu(), &["kernels", "--shapes", "tiny.toml", "--device", "cuda"]);
    assert!(!end.success && end.said.contains("VGPU_TIMING: expected 1 on the virtual GPU"), "{}", end.said);
}

/// A report of three kernels, times of 10, 20 and 30 microseconds.
fn report() -> Value {
    let spread = |of: f64| json!({ "p20": of * 0.98, "p50": of, "p80": of * 1.02 });
    let kernel = |name: &str, of: f64| {
        json!({
            "shape": "tiny", "kernel": name, "operations": 100, "bytes": 200,
            "measured": { "cold_us": spread(of), "warm_us": spread(of / 2.0) },
            "tflop_per_s": 1.0, "gb_per_s": 1.0, "share_of_product": null, "share_of_copy": null,
            "share_of_datasheet_product": null, "share_of_datasheet_memory": null,
        })
    };
    let sample = |mhz: u32| json!({ "multiprocessor_mhz": mhz, "memory_mhz": 3201, "temperature_celsius": 40, "throttle_reasons": [] });
    json!({
        "schema": "promptmix bench kernels 1", "times": "measured", "repeats": 20,
        "environment": {
            "version": "0.1.0", "commit": "abc", "compiler": "nvcc", "architectures": [80], "device": "NVIDIA H200",
            "precision": "bf16", "driver_cuda": "13.0", "compute_capability": "9.0", "multiprocessors": 132,
            "nvml": {
                "driver": "580.1", "max_multiprocessor_mhz": 1980, "max_memory_mhz": 3201, "power_limit_watts": 700.0,
                "ecc": true, "before": sample(1980), "after": sample(1980),
            },
            "nvml_missing": null,
        },
        "ceilings": {
            "product_tflop_per_s": null, "product": "", "copy_gb_per_s": null, "copy": "", "datasheet": null,
        },
        "shapes": [], "kernels": [kernel("a/forward", 10.0), kernel("b/forward", 20.0), kernel("c/forward", 30.0)],
    })
}

#[test]
fn a_comparison_flags_what_differs_beyond_the_spread_and_says_what_else_does() {
    let world = World::new();
    let first = report();
    world.write("first.json", &first.to_string());
    let compare = |second: &Value| {
        world.write("second.json", &second.to_string());
        let end = world.run(program::promptmix(), &["compare", "first.json", "second.json"]);
        assert!(end.success, "{}", end.said);
        end.out
    };
    let line = |out: &str, name: &str| out.lines().find(|line| line.contains(name)).expect(name).to_owned();
    let verdicts = |line: &str| {
        let words: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
        [words[words.len() - 3].clone(), words[words.len() - 2].clone(), words[words.len() - 1].clone()]
    };

    let out = compare(&first);
    assert!(out.starts_with("shape ") && !out.contains("in the second"), "{out}");
    assert_eq!(verdicts(&line(&out, "a/forward")), ["1.000", "same", "same"]);
    assert!(
        out.ends_with("0 slower, 0 faster, 3 the same: beyond the spread from p20 to p80 of both\n"),
        "{out}"
    );

    // One slower where nothing is cached, one faster where all is, one gone and one new; another device at another clock.
    let mut second = first.clone();
    let set = |kernel: &mut Value, passes: &str, of: f64| {
        kernel["measured"][passes] = json!({ "p20": of * 0.98, "p50": of, "p80": of * 1.02 });
    };
    set(&mut second["kernels"][0], "cold_us", 15.0);
    set(&mut second["kernels"][1], "warm_us", 5.0);
    second["kernels"][1]["operations"] = json!(101);
    second["kernels"][2]["kernel"] = json!("d/forward");
    second["environment"]["device"] = json!("NVIDIA H100");
    second["environment"]["nvml"]["after"]["multiprocessor_mhz"] = json!(1200);
    let out = compare(&second);
    assert_eq!(verdicts(&line(&out, "a/forward")), ["1.500", "SLOWER", "same"]);
    assert!(
        line(&out, "b/forward").ends_with("1.000    same FASTER  other counts of operations or bytes"),
        "{out}"
    );
    assert!(out.contains("in the first file alone: tiny c/forward\n"), "{out}");
    assert!(out.contains("in the second file alone: tiny d/forward\n"), "{out}");
    assert!(out.contains("device: NVIDIA H200 in the first file, NVIDIA H100 in the second\n"), "{out}");
    assert!(
        out.contains("clocks: 1980 of 1980 MHz, memory 3201 MHz in the first file, 1200 of 1980 MHz"),
        "{out}"
    );
    assert!(out.contains("1 slower, 1 faster, 0 the same"), "{out}");

    // Just within the spread of both, and just beyond it.
    for (of, verdict) in [(10.40, "same"), (10.42, "SLOWER"), (9.62, "same"), (9.60, "FASTER")] {
        let mut second = first.clone();
        set(&mut second["kernels"][0], "cold_us", of);
        assert_eq!(verdicts(&line(&compare(&second), "a/forward"))[1], verdict, "{of}");
    }
    // Times of a model against times of a device.
    let mut second = first.clone();
    second["times"] = json!("predicted");
    for kernel in second["kernels"].as_array_mut().expect("a list") {
        let times = kernel.as_object_mut().expect("an object").remove("measured").expect("times");
        kernel["predicted"] = times;
    }
    assert!(compare(&second).contains("times: measured in the first file, predicted in the second\n"));
    // The same name for another shape.
    let shape = |examples: u32| {
        json!([{ "name": "tiny", "examples": examples, "source-lengths": [9], "target-length": 2, "prompt-length": 5, "width": 72,
            "heads": 2, "head-width": 64, "inner": 136, "vocabulary": 100, "sources": 2, "bottleneck": 7, "decoded": 3 }])
    };
    let (mut one, mut two) = (first.clone(), first.clone());
    (one["shapes"], two["shapes"]) = (shape(3), shape(4));
    world.write("first.json", &one.to_string());
    let out = compare(&two);
    assert!(
        out.contains("shape tiny: other sizes in each file; not compared") && !out.contains("a/forward"),
        "{out}"
    );
}

#[test]
fn what_is_no_measurement_is_refused() {
    let world = World::new();
    let good = report();
    world.write("good.json", &good.to_string());
    let broken = |path: &str, value: Value| {
        let mut report = report();
        *report.pointer_mut(path).expect(path) = value;
        report.to_string()
    };
    for (text, said) in [
        (broken("/schema", json!("promptmix bench tiles 1")), "found schema \"promptmix bench tiles 1\""),
        ("{}".into(), "expected JSON of schema \"promptmix bench kernels 1\", found no schema"),
        ("[1".into(), "bad.json: expected JSON of schema"),
        (broken("/times", json!("guessed")), "expected times \"measured\" or \"predicted\", found guessed"),
        (broken("/times", json!("predicted")), "expected predicted times of every kernel"),
        (
            broken("/kernels/0/measured/cold_us/p20", json!(99.0)),
            "p20 to p80 in order, found others for a/forward",
        ),
        (broken("/kernels/0/bytes", json!(-1)), "expected the fields of its schema"),
    ] {
        world.write("bad.json", &text);
        for files in [["good.json", "bad.json"], ["bad.json", "good.json"]] {
            world.refused(&["compare", files[0], files[1]], said);
        }
    }
    world.refused(&["compare", "good.json", "none.json"], "could not read none.json");
    // Peers' files have a schema of their own.
    world.refused(
        &["kernels", "--shapes", "tiny.toml", "--peer", "good.json"],
        "\"promptmix kernel peers 1\"",
    );
}

#[test]
fn shapes_and_flags_that_cannot_be_used_are_refused_with_what_was_expected() {
    let world = World::new();
    let with = |from: &str, to: &str| {
        assert!(TINY.contains(from), "{from}");
        TINY.replace(from, to)
    };
    for (text, said) in [
        (String::new(), "expected [[shape]] tables with name, examples"),
        ("shape = []".into(), "found no shape"),
        (with("width = 72\n", ""), "missing field `width`"),
        (with("width = 72\n", "width = 72\ndepth = 1\n"), "unknown field `depth`"),
        (with("examples = 3", "examples = \"three\""), "line 4: expected [[shape]] tables"),
        (with("examples = 3", "examples = -3"), "expected [[shape]] tables"),
        (
            with("examples = 3", "examples = 0"),
            "expected examples from 1 to 65536, found 0 in shape \"tiny\"",
        ),
        (with("width = 72", "width = 73"), "expected width a multiple of 8"),
        (with("head-width = 64", "head-width = 1024"), "expected head-width from 8 to 256, found 1024"),
        (with("[9, 4]", "[]"), "expected source-lengths of at least one number"),
        (with("[9, 4]", "[9, 0]"), "expected source-lengths from 1 to 1048576, found 0"),
        (with("\"tiny\"", "\"a name\""), "expected a name of letters, digits"),
        (TINY.repeat(2), "expected shapes of different names, found \"tiny\" twice"),
        (
            with("examples = 3", "examples = 65536").replace("[9, 4]", "[1048576]"),
            "expected operands of at most 2147483648 numbers",
        ),
    ] {
        world.write("bad.toml", &text);
        world.refused(&["kernels", "--shapes", "bad.toml", "--device", "cpu"], said);
    }
    world.refused(
        &["kernels", "--shapes", "t5-tiny"],
        "--shapes: expected t5-small, t5-base, t5-large, t5-3b, or",
    );
    world.refused(&["kernels", "--shapes", "none.toml"], "could not read none.toml");
    world.refused(
        &["kernels", "--shapes", "tiny.toml,tiny.toml"],
        "expected shapes of different names, found tiny twice",
    );
    world.refused(
        &["kernels", "--shapes", "tiny.toml", "--repeats", "0"],
        "--repeats: expected 1 to 30, found 0",
    );
    world.refused(&["kernels", "--shapes", "tiny.toml", "--only", "lines"], "--only: expected linear, gate");
    let only = ["kernels", "--shapes", "tiny.toml", "--device", "cpu", "--repeats", "1", "--only"];
    world.refused(
        &[&only[..], &["gate"]].concat(),
        "expected a kernel that this device has at these shapes, found gate",
    );
    world.refused(&[&only[..], &["loss/for"]].concat(), "found loss/for");
    fs::create_dir(world.path("folder")).expect("a folder");
    world.refused(&["kernels", "--shapes", "tiny.toml", "--json", "folder"], "expected a file to write");
    assert_eq!(fs::read_dir(world.folder.path()).expect("a folder").count(), 3, "nothing was left behind");
}

#[test]
fn shapes_of_released_models_are_theirs() {
    let text = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bench/presets.toml"));
    let presets: toml::Table = toml::from_str(&text.expect("the file")).expect("TOML");
    let shapes = presets["shape"].as_array().expect("a list");
    let models = [
        ("t5-small", T5Config::t5_small()),
        ("t5-base", T5Config::t5_base()),
        ("t5-large", T5Config::t5_large()),
        ("t5-3b", T5Config::t5_3b()),
    ];
    assert_eq!(shapes.len(), models.len());
    for (shape, (name, config)) in shapes.iter().zip(models) {
        let found = ["width", "heads", "head-width", "inner", "vocabulary"]
            .map(|key| shape[key].as_integer().expect("a number") as usize);
        let expected = [config.d_model, config.num_heads, config.d_kv, config.d_ff, config.vocab_size];
        assert_eq!((shape["name"].as_str(), found), (Some(name), expected));
    }
}
