//! The kernels for programs in C, C++ and Python: the header, the images, the functions of the library, and the examples.
#![cfg(unix)]

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::path::Path;
use std::process::Command;

use promptmix::cuda::FATBINS;
use promptmix::cuda::export::{ABI, Architecture, DESCRIPTION, HEADER, image, images};
use serde_json::Value;
use vgpu::compiled::Tools;

mod c;
#[path = "../common/kernels.rs"]
mod kernels;
#[cfg(feature = "cli")]
#[path = "../common/program.rs"]
mod program;
mod rules;

/// The argument structs as the build makes them for Rust, once more.
#[allow(dead_code, missing_docs)] // their layout alone is asked for, and the files of the kernels document them
mod arguments {
    pub trait Arguments {}
    include!(concat!(env!("OUT_DIR"), "/layout.rs"));
}

/// The structs of the functions for C, as the library has them.
#[allow(dead_code)] // their layout alone is asked for
#[path = "../../src/backend/cuda/capi/interface.rs"]
mod interface;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn description() -> Value {
    serde_json::from_str(DESCRIPTION).expect("JSON")
}

#[test]
fn the_header_compiles_without_warnings_in_c_and_in_cpp() {
    let folder = c::folder();
    for (compiler, standard, name) in [("gcc", "c11", "one.c"), ("g++", "c++17", "one.cpp")] {
        let Some(compiler) = c::compiler(compiler) else { continue };
        let text = "#include \"promptmix.h\"\n#include \"promptmix.h\"\nint main(void) { size_t count; promptmix_kernel_list(&count); return count > 50 && PROMPTMIX_ABI ? 0 : 1; }\n";
        let source = folder.path().join(name);
        std::fs::write(&source, text).expect("written");
        c::run(&mut Command::new(compiler.program(folder.path(), &source, standard, &[])));
    }
    assert!(HEADER.contains(&format!("#define PROMPTMIX_ABI {ABI:#010x}u")), "the header's number");
}

/// The batch that a test of the library describes as well: its places, and then the array.
#[test]
fn a_batch_is_described_in_c_as_by_hand() {
    let Some(compiler) = c::compiler("gcc") else { return };
    let folder = c::folder();
    let source = root().join("tests/export/descriptor.c");
    let printed = c::run(&mut Command::new(compiler.program(folder.path(), &source, "c11", &[])));
    let by_hand = include_str!("../../src/backend/cuda/ops/descriptor_by_hand.txt");
    let expected = by_hand.lines().filter_map(|line| line.split_once(':'));
    let expected: Vec<&str> = expected.flat_map(|(_, numbers)| numbers.split_whitespace()).collect();
    assert!(expected.len() > 100, "the file was read");
    assert_eq!(printed.split_whitespace().collect::<Vec<_>>(), expected);
}

macro_rules! layout {
    ($c:literal, $rust:ty: $($field:ident),*) => {
        ($c, size_of::<$rust>(), align_of::<$rust>(), vec![$((stringify!($field), std::mem::offset_of!($rust, $field))),*])
    };
}

#[test]
fn structs_lie_in_c_as_they_do_in_rust() {
    let mut structs: Vec<_> = arguments::STRUCTS
        .iter()
        .map(|(name, size, alignment, fields)| (*name, *size, *alignment, fields.to_vec()))
        .collect();
    assert!(structs.len() > 15, "{} structs", structs.len());
    structs.extend([
        layout!("promptmix_attention", interface::Attention: sequences, q, k, v, bias, o, log_sum_exp, q_stride, kv_stride, heads,
            width, max_distance, causal, precision, softmax_scale),
        layout!("promptmix_attention_gradient", interface::AttentionGradient: d_o, delta, d_q, d_k, d_v),
        layout!("promptmix_adamw_settings", interface::AdamWSettings: learning_rate, weight_decay, beta1, beta2, epsilon,
            max_grad_norm),
        layout!("promptmix_adamw_report", interface::AdamWReport: gradient_norm, applied, padding),
    ]);
    // The description says the same of those that the kernels take.
    let described = description();
    assert_eq!(described["structs"].as_object().expect("structs").len(), arguments::STRUCTS.len());
    let mut expected = String::new();
    for (place, (name, size, alignment, fields)) in structs.iter().enumerate() {
        let _ = writeln!(expected, "{name} {size} {alignment}");
        for (field, offset) in fields {
            let _ = writeln!(expected, "{field} {offset}");
        }
        if place < arguments::STRUCTS.len() {
            let of = &described["structs"][name];
            assert_eq!(
                (of["bytes"].as_u64(), of["alignment"].as_u64()),
                (Some(*size as u64), Some(*alignment as u64))
            );
            let of_each = of["fields"].as_array().expect("fields").iter();
            let of_each: Vec<_> = of_each
                .map(|field| (field["name"].as_str().unwrap(), field["offset"].as_u64().unwrap() as usize))
                .collect();
            assert_eq!(&of_each, fields, "{name}");
        }
    }
    let folder = c::folder();
    for (compiler, standard, extension) in [("gcc", "c11", "c"), ("g++", "c++17", "cpp")] {
        let Some(compiler) = c::compiler(compiler) else { continue };
        let mut text = String::from("#include <stdio.h>\n#include \"promptmix.h\"\nint main(void) {\n");
        let align = if extension == "c" { "_Alignof" } else { "alignof" };
        for (name, _, _, fields) in &structs {
            let _ = writeln!(text, "printf(\"{name} %zu %zu\\n\", sizeof({name}), (size_t){align}({name}));");
            for (field, _) in fields {
                let _ = writeln!(text, "printf(\"{field} %zu\\n\", offsetof({name}, {field}));");
            }
        }
        text.push_str("return 0;\n}\n");
        let source = folder.path().join(format!("structs.{extension}"));
        std::fs::write(&source, text).expect("written");
        let program = compiler.program(folder.path(), &source, standard, &[]);
        assert_eq!(c::run(&mut Command::new(program)), expected);
    }
}

/// Each kernel of a PTX and the bytes of its argument.
fn entries(ptx: &[u8]) -> Vec<(String, u64)> {
    let text = String::from_utf8_lossy(ptx).into_owned();
    let entry = |entry: &str| {
        let (name, rest) = entry.split_once('(').expect("parameters");
        let (_, bytes) = rest.split_once(')').expect("their end").0.split_once('[').expect("a struct");
        (name.trim().to_owned(), bytes.trim().trim_end_matches(']').parse().expect("bytes"))
    };
    text.split(".entry ").skip(1).map(entry).collect()
}

#[test]
fn every_kernel_of_the_build_is_described_with_the_bytes_that_it_takes() {
    if !kernels::are_built() {
        return;
    }
    let described: BTreeMap<(String, String), u64> = description()["kernels"]
        .as_array()
        .expect("kernels")
        .iter()
        .map(|of| {
            let text = |key: &str| of[key].as_str().expect("text").to_owned();
            ((text("file"), text("name")), of["bytes"].as_u64().expect("bytes"))
        })
        .collect();
    // Of a file for compute capability 9.0 alone there is PTX of that.
    let of_hopper =
        FATBINS.iter().filter(|(stem, _)| stem.ends_with("_hopper")).flat_map(|(stem, fatbin)| {
            let ptx = image(fatbin, Architecture::Ptx(90)).expect("PTX of compute_90a");
            entries(ptx).into_iter().map(|(name, bytes)| (((*stem).to_owned(), name), bytes))
        });
    let built: BTreeMap<(String, String), u64> = images(Architecture::Ptx(80))
        .expect("PTX")
        .iter()
        .flat_map(|image| {
            entries(image.bytes).into_iter().map(|(name, bytes)| ((image.stem.to_owned(), name), bytes))
        })
        .chain(of_hopper)
        .collect();
    assert!(built.len() > 60, "{} kernels", built.len());
    assert_eq!(described, built);
    for (file, name) in described.keys() {
        // What has no rule is said to have none.
        let has_none = name == "tally" || file.ends_with("_hopper");
        let is_named = HEADER.contains(&format!("{name:?}")) || has_none;
        assert!(
            is_named && HEADER.matches(&format!("{name}\"")).count() + usize::from(has_none) > 1
                || is_row_kernel(name),
            "{name} has a rule"
        );
    }
}

/// Whether the rule for kernels with a warp a row names it.
fn is_row_kernel(name: &str) -> bool {
    let (_, text) = HEADER.split_once("// Kernels with a warp a row").expect("the rule");
    let (names, _) = text.split_once("static inline").expect("its code");
    names.split(|c: char| !c.is_ascii_alphanumeric() && c != '_').any(|word| word == name)
}

#[test]
fn images_of_an_architecture_are_those_that_ptxas_made() {
    if !kernels::are_built() {
        return;
    }
    let (_, fatbin) = FATBINS.iter().find(|(stem, _)| *stem == "decode").expect("a kernel file");
    let ptx = image(fatbin, Architecture::Ptx(80)).expect("PTX");
    assert!(ptx.trim_ascii_start().starts_with(b".version") && !ptx.contains(&0), "text");
    assert!(image(fatbin, Architecture::Machine(75)).is_none(), "no such machine code");
    let error = images(Architecture::Machine(75)).expect_err("none").to_string();
    assert!(
        error.contains("--arch sm_75 is not supported") && error.contains("PTX of compute_80"),
        "{error}"
    );
    // Of a file that ends anywhere, what is there is whole or there is none, and no panic.
    for end in (0..fatbin.len().min(200)).chain([fatbin.len() - 1]) {
        let found = image(&fatbin[..end], Architecture::Ptx(80));
        assert!(found.is_none_or(|found| found == ptx), "{end} bytes");
        assert!(end >= 200 || found.is_none(), "{end} bytes");
    }
    let Some(tools) = Tools::find(root()) else {
        assert!(std::env::var_os("CI").is_none(), "CI runs without ptxas");
        eprintln!("skipped: ptxas and fatbinary were not found");
        return;
    };
    let folder = tempfile::tempdir().expect("a folder");
    let path = |name: &str| folder.path().join(name);
    std::fs::write(path("one.ptx"), ptx).expect("written");
    let paths = tools.folders();
    let tool = |name: &str| {
        let found = std::env::split_paths(&paths).map(|folder| folder.join(name)).find(|path| path.is_file());
        Command::new(found.unwrap_or_else(|| panic!("no {name} beside the compiler")))
    };
    let mut fatbinary = tool("fatbinary");
    fatbinary.args(["-64", "--compress=false"]).arg(format!("--create={}", path("all.fatbin").display()));
    for number in [80, 90] {
        let cubin = path(&format!("{number}.cubin"));
        c::run(tool("ptxas").arg(format!("-arch=sm_{number}")).arg(path("one.ptx")).arg("-o").arg(&cubin));
        fatbinary.arg(format!("--image3=kind=elf,sm={number},file={}", cubin.display()));
    }
    c::run(&mut fatbinary);
    let whole = std::fs::read(path("all.fatbin")).expect("a fatbin");
    let mut seen = BTreeSet::new();
    for number in [80, 90] {
        let cubin = std::fs::read(path(&format!("{number}.cubin"))).expect("a cubin");
        let found = image(&whole, Architecture::Machine(number)).expect("machine code");
        // The fatbin rounds its images up to eight bytes.
        assert!(found.starts_with(&cubin) && found.len() < cubin.len() + 8, "sm_{number}");
        seen.insert(found.to_vec());
    }
    assert_eq!(seen.len(), 2, "two different ones");
}

#[cfg(feature = "cli")]
#[test]
fn the_command_writes_images_header_and_description() {
    if !kernels::are_built() {
        return;
    }
    let folder = tempfile::tempdir().expect("a folder");
    let out = folder.path().join("made/here");
    let export = |arch: &str| {
        let mut command = program::promptmix();
        command.args(["kernels", "export"]).arg(&out).args(["--arch", arch]);
        command
    };
    let said = c::run(&mut export("all"));
    assert!(
        said.contains(&format!("{} kernel files of all", FATBINS.len())) && said.contains("ABI"),
        "{said}"
    );
    assert_eq!(std::fs::read_to_string(out.join("promptmix.h")).expect("the header"), HEADER);
    for (stem, bytes) in FATBINS {
        assert_eq!(std::fs::read(out.join(format!("{stem}.fatbin"))).expect("a fatbin"), *bytes, "{stem}");
    }
    let text = std::fs::read(out.join("promptmix.json")).expect("the description");
    let written: Value = serde_json::from_slice(&text).expect("JSON");
    assert_eq!(written["abi"], ABI);
    assert_eq!(written["structs"], description()["structs"]);
    assert_eq!(written["files"].as_array().expect("files").len(), FATBINS.len());
    c::run(&mut export("compute_80"));
    let ptx = std::fs::read(out.join("attention.ptx")).expect("PTX");
    assert!(!entries(&ptx).is_empty() && !ptx.contains(&0), "text alone");
    for (arch, says) in [
        ("sm_75", "--arch sm_75 is not supported"),
        ("volta", "--arch: expected all, sm_N or compute_N, found volta"),
    ] {
        let output = export(arch).output().expect("it runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success() && said.contains(says), "{said}");
    }
}

/// A folder as the command writes it.
fn exported() -> tempfile::TempDir {
    let folder = c::folder();
    for image in images(Architecture::All).expect("kernels") {
        std::fs::write(folder.path().join(format!("{}.fatbin", image.stem)), image.bytes).expect("written");
    }
    std::fs::write(folder.path().join("promptmix.json"), DESCRIPTION).expect("written");
    folder
}

#[test]
fn the_example_in_c_computes_what_it_does_by_hand() {
    if !kernels::are_built() {
        return;
    }
    let Some(compiler) = c::compiler("gcc") else { return };
    let (folder, driver, library) = (exported(), c::driver(), c::library());
    let at = |folder: &Path| format!("-L{}", folder.display());
    let libraries = [&at(library)[..], "-lpromptmix", &at(driver.path()), "-lcuda", "-lm"];
    let source = root().join("examples/c/attention.c");
    let program = compiler.program(folder.path(), &source, "c11", &libraries);
    let paths = std::env::join_paths([library, driver.path()]).expect("paths");
    let printed = c::run(Command::new(program).arg(folder.path()).env("LD_LIBRARY_PATH", paths));
    for line in
        ["o: off by", "log_sum_exp: off by", "d_qkv: off by", "o of the fatbin: off by", "all as by hand"]
    {
        assert!(printed.contains(line), "{printed}");
    }
    assert!(printed.contains("refused: tensor q: expected a head width up to 128"), "{printed}");
}

/// Python, with a library to load; none, with a printed reason, without it.
fn python(folder: &Path, driver: &Path) -> Option<Command> {
    if !Command::new("python3").arg("--version").output().is_ok_and(|output| output.status.success()) {
        eprintln!("skipped: there is no python3");
        return None;
    }
    let mut python = Command::new("python3");
    // -B leaves no compiled files beside the sources.
    python
        .arg("-B")
        .current_dir(folder)
        .env("LD_LIBRARY_PATH", driver)
        .env("PYTHONPATH", root().join("examples/python"));
    Some(python)
}

#[test]
fn the_example_in_python_computes_what_it_does_by_hand() {
    if !kernels::are_built() {
        return;
    }
    let (folder, driver) = (exported(), c::driver());
    let Some(mut python) = python(folder.path(), driver.path()) else { return };
    let library = c::library().join("libpromptmix.so");
    let script = root().join("examples/python/attention.py");
    let printed = c::run(python.arg(script).arg(library).arg(folder.path()));
    let lines = [
        "o: off",
        "d_q: off",
        "d_k: off",
        "d_v: off",
        "z: off",
        "d_a: off",
        "loss: off",
        "d_hidden: off",
        "a step: off",
    ];
    for line in lines.into_iter().chain(["refused: tensor q: expected an address", "all as by hand"]) {
        assert!(printed.lines().any(|printed| printed.starts_with(line)), "{line} in:\n{printed}");
    }
}

#[test]
fn what_c_gets_wrong_is_a_code_and_a_text_and_no_crash() {
    if !kernels::are_built() {
        return;
    }
    let (folder, driver) = (exported(), c::driver());
    let Some(mut python) = python(folder.path(), driver.path()) else { return };
    let script = root().join("tests/export/mistakes.py");
    let printed = c::run(python.arg(script).arg(c::library().join("libpromptmix.so")).arg(folder.path()));
    let expected = [
        "2 PROMPTMIX_ABI: expected",
        "1 the thread's current context: expected a CUDA context, found none",
        "1 kernels: expected a pointer, found null",
        "1 cu_seqlens_q: expected 0, and then rising ends, one a sequence, found [0, 5, 3]",
        "1 cu_seqlens_q: expected 0, and then rising ends, one a sequence, found [1, 5, 9]",
        "1 batch: expected a number from 0 on, found -1",
        "1 sequences: expected a pointer, found null",
        "1 q: expected a pointer, found null",
        "1 q_stride: expected a number from 0 on, found -16",
        "1 tensor q: expected 16 columns of a row",
        "1 precision: expected 0 for bf16 or 1 for f32, found 7",
        "1 causal: expected 0 or 1, found 2",
        "1 softmax_scale: expected a finite number above zero, found 0",
        "1 tensor q: expected a head width up to 128",
        "1 tensor width: expected a multiple of 8, found 12",
        "1 labels: expected words below 20, found 20",
        "1 room: expected at least 64 reports, found 1",
        "the context that was current still is",
        "a context of the caller's own",
    ];
    let found: Vec<&str> = printed.lines().collect();
    assert_eq!(found.len(), expected.len(), "{printed}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "expected {expected}, found {found}");
    }
}
