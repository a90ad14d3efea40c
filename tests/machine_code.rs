//! What ptxas makes of the kernels: on sm_80 the main loop of the product's large tile, instruction by instruction, and what
//! every kernel takes of a multiprocessor, on sm_80 or the architecture that it is for alone, against what its file says; on sm_80
//! and sm_90 a stage of attention; on sm_90a the main loop of products by warpgroups.

use std::path::{Path, PathBuf};
use std::process::Command;

use promptmix::cuda::FATBINS;
use vgpu::compiled::{Tools, compile};
use vgpu::profile::Profile;

#[path = "common/kernels.rs"]
mod kernels;

/// An instruction of a kernel: its place in bytes, its name with modifiers, and all of it.
#[derive(Clone, Debug)]
struct Instruction {
    place: u64,
    name: String,
    text: String,
}

/// The PTX that a fatbin holds uncompressed.
fn ptx(fatbin: &[u8]) -> String {
    let start = fatbin.windows(9).position(|window| window == b".version ").expect("PTX, uncompressed");
    let end =
        fatbin[start..].iter().position(|&byte| byte == 0).map_or(fatbin.len(), |length| start + length);
    String::from_utf8_lossy(&fatbin[start..end]).into_owned()
}

/// All PTX that a fatbin holds.
fn all_ptx(fatbin: &[u8]) -> Vec<String> {
    let starts = (0..fatbin.len()).filter(|&at| fatbin[at..].starts_with(b".version "));
    starts.map(|at| ptx(&fatbin[at..])).collect()
}

/// Runs a tool, whose helpers lie beside it, and gives what it printed.
fn run(tool: &Path, arguments: &[&str]) -> String {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let beside = tool.parent().map(PathBuf::from).into_iter().chain(std::env::split_paths(&path));
    let output = Command::new(tool)
        .args(arguments)
        .env("PATH", std::env::join_paths(beside).expect("a path"))
        .output()
        .expect("a tool that runs");
    assert!(output.status.success(), "{}: {}", tool.display(), String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The instructions of each kernel in what `cuobjdump -sass` prints.
fn kernels(sass: &str) -> Vec<(String, Vec<Instruction>)> {
    let mut kernels: Vec<(String, Vec<Instruction>)> = Vec::new();
    for line in sass.lines().map(str::trim_start) {
        if let Some(name) = line.strip_prefix("Function : ") {
            kernels.push((name.trim().to_owned(), Vec::new()));
        }
        let Some((place, rest)) = line.strip_prefix("/*").and_then(|line| line.split_once("*/")) else {
            continue;
        };
        let Some((text, _)) = rest.split_once(';') else { continue };
        let words = || text.split_whitespace();
        let name = words().find(|word| !word.starts_with('@')).unwrap_or_default().to_owned();
        let place = u64::from_str_radix(place, 16).expect("a place");
        kernels.last_mut().expect("a kernel").1.push(Instruction {
            place,
            name,
            text: text.trim().to_owned(),
        });
    }
    kernels
}

/// Where a branch or a call leads.
fn target(branch: &Instruction) -> Option<u64> {
    let target = branch.text.rsplit("0x").next()?;
    u64::from_str_radix(target.trim_end_matches(|c: char| !c.is_ascii_hexdigit()), 16).ok()
}

/// Every loop: from the target of a branch back to that branch.
fn loops(kernel: &[Instruction]) -> Vec<&[Instruction]> {
    let branches = kernel.iter().enumerate().filter(|(_, one)| one.name.starts_with("BRA"));
    let bodies = branches.filter_map(|(last, branch)| {
        let target = target(branch)?;
        (target < branch.place).then(|| {
            let first = kernel.partition_point(|one| one.place < target);
            &kernel[first..=last]
        })
    });
    bodies.collect()
}

/// The loop with the most tensor-core instructions of that name; of those that lie within each other, the outermost.
fn main_loop<'a>(kernel: &'a [Instruction], name: &str) -> &'a [Instruction] {
    loops(kernel).into_iter().max_by_key(|body| (count(body, name), body.len())).expect("a loop")
}

/// The loops with tensor-core instructions of that name that lie within no other, in the order of the code.
fn outer_loops<'a>(kernel: &'a [Instruction], name: &str) -> Vec<&'a [Instruction]> {
    let mut with = loops(kernel);
    with.retain(|body| count(body, name) > 0);
    with.sort_by_key(|body| (body[0].place, std::cmp::Reverse(body.len())));
    let mut outer: Vec<&[Instruction]> = Vec::new();
    for body in with {
        let after = outer.last().is_none_or(|last| last.last().is_some_and(|end| end.place < body[0].place));
        if after {
            outer.push(body);
        }
    }
    outer
}

fn count(body: &[Instruction], name: &str) -> usize {
    body.iter().filter(|one| one.name.split('.').next() == Some(name)).count()
}

/// The compiler's tools, where there are kernels to compile; says why not.
fn tools() -> Option<Tools> {
    if !kernels::are_built() {
        return None;
    }
    let tools = Tools::find(env!("CARGO_MANIFEST_DIR").as_ref());
    if tools.is_none() {
        assert!(std::env::var_os("CI").is_none(), "CI runs without ptxas and cuobjdump");
        eprintln!("skipped: ptxas and cuobjdump were not found; run scripts/install-cuda-compiler");
    }
    tools
}

/// What a kernel's file says that it takes on sm_80, or on the architecture that alone runs it.
#[derive(Debug)]
struct Stated {
    kernel: String,
    registers: u32,
    shared: u32,
    blocks: u32,
}

/// The statements about an architecture in the comment that a kernel file opens with.
fn stated(source: &str, architecture: &str) -> Vec<Stated> {
    let opening = source.lines().take_while(|line| line.starts_with("//"));
    let begins = format!("// On {architecture}");
    let lines = opening.skip_while(|line| !line.starts_with(&begins)).skip(1);
    let lines = lines.take_while(|line| line.starts_with("//   ")).flat_map(|line| line[2..].split(','));
    let words = lines.map(|one| one.split_whitespace().collect::<Vec<_>>()).filter(|words| !words.is_empty());
    words
        .map(|words| {
            let [kernel, registers, shared, blocks] = words[..] else { panic!("no statement: {words:?}") };
            let number = |word: &str| word.parse().unwrap_or_else(|_| panic!("no number: {word}"));
            Stated {
                kernel: kernel.to_owned(),
                registers: number(registers),
                shared: number(shared),
                blocks: number(blocks),
            }
        })
        .collect()
}

/// The threads that a kernel is compiled for, from its PTX.
fn threads(ptx: &str, kernel: &str) -> u32 {
    let entry = ptx.split(".entry ").find(|entry| entry.split('(').next().map(str::trim) == Some(kernel));
    let bound = entry.and_then(|entry| entry.split(".maxntid ").nth(1)).expect("launch bounds");
    bound
        .split(|c: char| !c.is_ascii_digit())
        .next()
        .and_then(|digits| digits.parse().ok())
        .expect("a number")
}

#[test]
fn every_kernel_takes_what_its_file_says() {
    let Some(tools) = tools() else { return };
    let mut checked = 0;
    for (file, fatbin) in FATBINS {
        let (device, architecture) =
            if file.ends_with("_hopper") { ("sm_90", "sm_90a") } else { ("sm_80", "sm_80") };
        let profile = Profile::by_name(device).expect("a profile");
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels").join(file).with_extension("cu");
        let stated = stated(&std::fs::read_to_string(&path).expect("a kernel file"), architecture);
        let ptx = ptx(fatbin);
        let names: Vec<&str> =
            ptx.split(".entry ").skip(1).filter_map(|entry| entry.split('(').next().map(str::trim)).collect();
        assert_eq!(stated.len(), names.len(), "{file}: as many statements as kernels, {names:?}");
        for compiled in compile(&tools, &ptx, &names, architecture).expect("machine code") {
            let name = &compiled.kernel;
            let says = stated.iter().find(|stated| stated.kernel == *name);
            let says = says.unwrap_or_else(|| panic!("{file}: nothing is said of {name}, {compiled:?}"));
            assert_eq!(says.registers, compiled.registers, "{name}: registers");
            // What is asked for at a launch comes on top of the static part.
            assert!(says.shared >= compiled.shared, "{name}: {} bytes are static", compiled.shared);
            let fit = profile.occupancy(threads(&ptx, name), compiled.registers, says.shared);
            assert_eq!(says.blocks, fit, "{name}: blocks a multiprocessor");
            assert_eq!((compiled.spill_stores, compiled.spill_loads), (0, 0), "{name}: spills");
            checked += 1;
        }
    }
    assert!(checked > 50, "{checked} kernels");
}

/// The SASS of some kernels of a file for an architecture.
fn disassembled(
    tools: &Tools,
    file: &str,
    names: &[&str],
    architecture: &str,
) -> Vec<(String, Vec<Instruction>)> {
    let (_, fatbin) = FATBINS.iter().find(|(known, _)| *known == file).expect("a kernel file");
    let folder = tempfile::tempdir().expect("a folder");
    let (source, binary) = (folder.path().join("kernels.ptx"), folder.path().join("kernels.cubin"));
    std::fs::write(&source, ptx(fatbin)).expect("a file");
    let text = |path: &Path| path.to_str().expect("a path").to_owned();
    let (to, from, architecture) = (text(&binary), text(&source), format!("-arch={architecture}"));
    let entries = names.iter().flat_map(|name| ["-e", name]);
    let arguments: Vec<&str> =
        [architecture.as_str()].into_iter().chain(entries).chain(["-o", &to, &from]).collect();
    run(&tools.ptxas, &arguments);
    kernels(&run(&tools.cuobjdump, &["-sass", &to]))
}

/// From compute capability 9.0 on a launch may begin before the one before it has ended: each kernel waits for it, once, and before it
/// touches memory that others write; and it reads nothing through the read-only cache, which knows of no such writer.
#[test]
fn every_kernel_waits_for_the_launches_before_it() {
    const TOUCH: [&str; 7] = ["ld.global", "st.global", "ld.v", "st.v", "cp.async", "red.", "atom."];
    let mut waiting = 0;
    for (file, fatbin) in FATBINS {
        let all = all_ptx(fatbin);
        let newest = all.iter().filter(|ptx| ptx.contains(".target sm_90"));
        for entry in newest.flat_map(|ptx| ptx.split(".entry ").skip(1)) {
            let (name, body) = entry.split_once('(').expect("a kernel");
            let body = body.split("\n}").next().expect("a body");
            let waits: Vec<usize> = body.match_indices("griddepcontrol.wait").map(|(at, _)| at).collect();
            assert_eq!(waits.len(), 1, "{name} of {file} waits so often");
            let first = TOUCH.iter().filter_map(|what| body.find(what)).min().unwrap_or(body.len());
            assert!(waits[0] < first, "{name} of {file} touches memory before it waits");
            assert!(!body.contains("ld.global.nc"), "{name} of {file} reads through the read-only cache");
            let begin = body.find("griddepcontrol.launch_dependents").expect("a kernel lets the next begin");
            assert!(waits[0] < begin, "{name} of {file} lets the next begin before it has waited");
            waiting += 1;
        }
        // Of older ones no code waits, and their launches are told nothing.
        for ptx in all.iter().filter(|ptx| ptx.contains(".target sm_80")) {
            assert!(!ptx.contains("griddepcontrol"), "{file} for compute capability 8.0");
        }
    }
    if waiting == 0 {
        println!("skipped: this build has no PTX of compute capability 9.0");
    }
}

/// A stage of attention without dropout is straight code, of few instructions, and as many blocks as its shared memory lets
/// through are on a multiprocessor at once.
#[test]
fn the_main_loops_of_attention() {
    let Some(tools) = tools() else { return };
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels/attention.cu");
    let stated = stated(&std::fs::read_to_string(path).expect("a kernel file"), "sm_80");
    let (_, fatbin) = FATBINS.iter().find(|(file, _)| *file == "attention").expect("attention");
    // Instructions of a stage of 64 keys or queries, the most of any of the kernel's loops, and blocks of a multiprocessor on sm_80 and
    // sm_90. A stage holds what masks the last of them, two instructions a score.
    for (name, most, stages, blocks) in
        [("attention_64", 640, 1, [3, 4]), ("attention_backward_64", 900, 2, [3, 3])]
    {
        for (architecture, blocks) in ["sm_80", "sm_90"].into_iter().zip(blocks) {
            let kernels = disassembled(&tools, "attention", &[name], architecture);
            let (_, all) = kernels.iter().find(|(known, _)| known == name).expect("the kernel");
            let bodies = outer_loops(all, "HMMA");
            assert_eq!(bodies.len(), stages, "{name} on {architecture}: loops with products");
            for body in bodies {
                // A loop within works on half of a stage, twice.
                let within =
                    loops(body).into_iter().filter(|one| one.len() < body.len() && count(one, "HMMA") > 0);
                let again: usize = within.map(<[Instruction]>::len).sum();
                let (instructions, products) = (body.len() + again, count(body, "HMMA"));
                eprintln!(
                    "{name} on {architecture}: {instructions} instructions a stage, {products} HMMA in its code"
                );
                assert!(products >= 48, "{name} on {architecture}: {products} HMMA are no stage");
                assert!(
                    instructions <= most,
                    "{name} on {architecture}: {instructions} instructions a stage"
                );
                for divergent in ["BSSY", "BSYNC", "WARPSYNC"] {
                    assert_eq!(count(body, divergent), 0, "{name} on {architecture}: {divergent}");
                }
                // The only calls that may be are how ptxas leaves a loop: over the branch back, to what stands after it.
                let calls = body.iter().filter(|one| one.name.starts_with("CALL"));
                for call in calls {
                    assert_eq!(
                        target(call),
                        Some(call.place + 32),
                        "{name} on {architecture}: {}",
                        call.text
                    );
                }
            }
            let ptx = ptx(fatbin);
            let compiled = compile(&tools, &ptx, &[name], architecture).expect("machine code");
            let compiled = compiled.iter().find(|compiled| compiled.kernel == name).expect("the kernel");
            let shared = stated.iter().find(|stated| stated.kernel == name).expect("a statement").shared;
            let profile = Profile::by_name(architecture).expect("a profile");
            let fit = profile.occupancy(128, compiled.registers, shared);
            assert_eq!(fit, blocks, "{name} on {architecture}: blocks with {} registers", compiled.registers);
            assert_eq!(
                (compiled.spill_stores, compiled.spill_loads),
                (0, 0),
                "{name} on {architecture}: spills"
            );
        }
    }
}

#[test]
fn the_main_loop_of_large_products() {
    let Some(tools) = tools() else { return };
    let names = ["gemm_forward_large", "gemm_backward_large"];
    let kernels = disassembled(&tools, "gemm", &names, "sm_80");
    for name in names {
        let (_, all) = kernels.iter().find(|(known, _)| known == name).expect("the kernel");
        let body = main_loop(all, "HMMA");
        let (products, loads) = (count(body, "HMMA"), count(body, "LDSM"));
        let share = products as f64 / body.len() as f64;
        eprintln!(
            "{name}: {} instructions in the main loop, {products} HMMA ({share:.3}), {loads} LDSM",
            body.len()
        );
        assert!(share >= 0.45, "{name}: HMMA is {share:.3} of the main loop");
        // A warp's tile of 64x64 in k-blocks of 32: 4 x 8 products of 16x8, twice for 16 in depth.
        assert!(products > 0 && products % 64 == 0, "{name}: {products} HMMA are no warp tile of 64x64");
        assert!(products >= 4 * loads, "{name}: a load feeds {products} / {loads} products");
        let fours =
            body.iter().filter(|one| one.name.starts_with("LDSM") && one.name.ends_with(".4")).count();
        assert_eq!(fours, loads, "{name}: every load is of four matrices");
        // Copies of so many later k-blocks may be under way when one is waited for: with it and the one that is worked
        // on, the stages.
        let waits = body.iter().filter(|one| one.name.starts_with("DEPBAR"));
        let under_way = waits.filter_map(|one| {
            let number = one.text.rsplit("0x").next()?;
            number.trim_matches(|c: char| !c.is_ascii_hexdigit()).parse::<usize>().ok()
        });
        let under_way = under_way.max().expect("a wait for copies");
        assert!(count(body, "LDGSTS") > 0 && under_way + 2 >= 3, "{name}: {} stages", under_way + 2);
        for one in all {
            let local = ["LDL", "STL"].contains(&one.name.split('.').next().unwrap_or_default());
            assert!(!local, "{name}: local memory: {}", one.text);
        }
        // A division of integers goes through a reciprocal, or a call.
        for one in body {
            let divides = ["MUFU", "I2F", "F2I", "CALL", "IDIV"]
                .contains(&one.name.split('.').next().unwrap_or_default());
            assert!(!divides, "{name}: {}", one.text);
        }
    }
}

/// A k-block of 64 is four products of 64x192 or 64x128 by 16, with next to nothing between them; registers go from the warps that copy
/// to those that multiply, and none spill.
#[test]
fn the_main_loop_of_products_by_warpgroups() {
    let Some(tools) = tools() else { return };
    let names = [
        "gemm_forward_hopper",
        "gemm_backward_hopper",
        "gemm_forward_hopper_128",
        "gemm_backward_hopper_128",
    ];
    let kernels = disassembled(&tools, "gemm_hopper", &names, "sm_90a");
    for name in names {
        let (_, all) = kernels.iter().find(|(known, _)| known == name).expect("the kernel");
        let body = main_loop(all, "HGMMA");
        // Those loops that lie within a loop over tiles are shorter.
        let least =
            loops(all).into_iter().filter(|body| count(body, "HGMMA") > 0).min_by_key(|body| body.len());
        let least = least.unwrap_or(body);
        eprintln!("{name}: {} instructions a k-block, {} HGMMA", least.len(), count(least, "HGMMA"));
        assert_eq!(count(least, "HGMMA"), 4, "{name}: products a k-block");
        assert_eq!(count(all, "HGMMA"), 4, "{name}: products of the whole kernel");
        assert!(least.len() <= 120, "{name}: {} instructions a k-block", least.len());
        assert_eq!(count(all, "USETMAXREG"), 2, "{name}: registers are passed on");
        assert!(count(all, "UTMALDG") >= 2, "{name}: tensor copies of both operands");
        for one in all {
            let local = ["LDL", "STL"].contains(&one.name.split('.').next().unwrap_or_default());
            assert!(!local, "{name}: local memory: {}", one.text);
        }
    }
}
