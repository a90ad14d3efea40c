//! Which module may use which: the arrows of the house, and no others.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// Everything may also use `choice`, `count`, `error`, `files` and `panics`.
const ARROWS: [(&str, &[&str]); 17] = [
    (
        "cli",
        &[
            "backend",
            "bench",
            "config",
            "data",
            "demo",
            "evaluate",
            "experiment",
            "metrics",
            "model",
            "pretrained",
            "prompts",
            "report",
            "tasks",
            "train",
            "verify",
        ],
    ),
    ("bench", &["backend"]),
    ("report", &["evaluate", "experiment", "prompts", "train"]),
    ("demo", &["backend", "config", "data", "evaluate", "experiment", "prompts", "train"]),
    ("experiment", &["backend", "config", "data", "evaluate", "model", "prompts", "train"]),
    ("train", &["backend", "config", "data", "evaluate", "model", "pretrained", "prompts", "tasks"]),
    ("evaluate", &["backend", "config", "data", "metrics", "model", "pretrained", "tasks"]),
    ("verify", &["backend", "model", "pretrained"]),
    ("model", &["backend", "pretrained"]),
    ("config", &["backend", "data"]),
    ("prompts", &["backend", "pretrained"]),
    ("data", &["metrics", "tasks"]),
    ("tasks", &["metrics"]),
    ("metrics", &[]),
    ("pretrained", &["backend"]),
    ("backend", &[]),
    ("error", &[]),
];

fn sources(folder: &Path, found: &mut Vec<(String, String)>, module: Option<&str>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        let stem = path.file_stem().expect("a name").to_string_lossy().into_owned();
        let module = module.map_or(stem, str::to_owned);
        if path.is_dir() {
            sources(&path, found, Some(&module));
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((module, fs::read_to_string(&path).expect("text")));
        }
    }
}

/// Every source file by its path within `src`, without the extension.
fn placed(folder: &Path, before: &[String], found: &mut Vec<(Vec<String>, String)>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry").path();
        let mut place = before.to_vec();
        place.push(path.file_stem().expect("a name").to_string_lossy().into_owned());
        if path.is_dir() {
            placed(&path, &place, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push((place, fs::read_to_string(&path).expect("text")));
        }
    }
}

/// The code of a file, without its tests and its comments.
fn code(text: &str) -> String {
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    code.lines().filter(|line| !line.trim_start().starts_with("//")).flat_map(|line| [line, "\n"]).collect()
}

/// Every path that a file names from `crate`, `self` or `super` on, the branches of a group in braces each as a path.
fn paths(text: &str) -> Vec<Vec<String>> {
    let code = code(text);
    let mut paths = Vec::new();
    for start in ["crate", "self", "super"] {
        for (at, _) in code.match_indices(&format!("{start}::")) {
            // Not the end of a longer name, and not the second `super` of a path.
            if !code[..at].ends_with(|c: char| c.is_alphanumeric() || c == '_' || c == ':') {
                branches(&code[at..], &[], &mut paths);
            }
        }
    }
    paths
}

/// Adds the paths that `text` begins with, after `before`, and gives back what follows them.
fn branches<'a>(text: &'a str, before: &[String], paths: &mut Vec<Vec<String>>) -> &'a str {
    let text = text.trim_start();
    if let Some(mut rest) = text.strip_prefix('{') {
        loop {
            rest = rest.trim_start();
            if let Some(rest) = rest.strip_prefix('}') {
                return rest;
            }
            let after = branches(rest, before, paths);
            // Past a comma, and past `as name`.
            match after.find([',', '}', ';']) {
                Some(at) if !after[at..].starts_with(';') => rest = after[at..].trim_start_matches(','),
                _ => return after,
            }
        }
    }
    let length = text.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len());
    let mut path = before.to_vec();
    path.extend((length > 0).then(|| text[..length].to_owned()));
    let rest = &text[length..];
    match rest.strip_prefix("::") {
        Some(rest) => branches(rest, &path, paths),
        None => {
            paths.push(path);
            rest
        }
    }
}

/// The modules that a file names after `crate::`.
fn used(text: &str) -> BTreeSet<String> {
    let of_crate = paths(text).into_iter().filter(|path| path[0] == "crate");
    let modules = of_crate.filter_map(|path| path.into_iter().nth(1));
    modules.filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase())).collect()
}

/// Which file of a module uses which: `files` are their paths within `src`, without the extension, and their texts. The face of a
/// module (`mod.rs`, or the file called as its folder) names all its files and is not among them; what it exports counts as the
/// file's that it is from.
fn edges(module: &str, files: &[(Vec<String>, String)]) -> BTreeMap<String, BTreeSet<String>> {
    let is_face = |path: &[String]| path.len() == 1 || path.last().is_some_and(|name| name == "mod");
    let names: BTreeSet<&String> = files
        .iter()
        .filter(|(path, _)| path.len() > 1 && path[1] != "mod")
        .map(|(path, _)| &path[1])
        .collect();
    let mut exported = BTreeMap::new();
    for (_, text) in files.iter().filter(|(path, _)| path.len() < 3 && is_face(path)) {
        for line in code(text).split(';').map(str::trim) {
            let Some(at) = line.find("use ").filter(|_| line.contains("pub")) else { continue };
            let mut found = Vec::new();
            branches(&line[at + 4..], &[], &mut found);
            for path in found.into_iter().filter(|path| path.len() > 1 && names.contains(&path[0])) {
                exported.insert(path[path.len() - 1].clone(), path[0].clone());
            }
        }
    }
    let mut edges: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for (place, text) in files.iter().filter(|(path, _)| path.len() > 1 && path[1] != "mod") {
        let own =
            if place.last().is_some_and(|name| name == "mod") { &place[..place.len() - 1] } else { place };
        for path in paths(text) {
            let mut whole = if path[0] == "crate" { Vec::new() } else { own.to_vec() };
            for name in path {
                match name.as_str() {
                    "crate" | "self" => {}
                    "super" => drop(whole.pop()),
                    _ => whole.push(name),
                }
            }
            if whole.len() < 2 || whole[0] != module {
                continue;
            }
            let to = if names.contains(&whole[1]) { Some(&whole[1]) } else { exported.get(&whole[1]) };
            if let Some(to) = to.filter(|to| **to != place[1]) {
                edges.entry(place[1].clone()).or_default().insert(to.clone());
            }
        }
    }
    edges
}

/// A way from a file back to itself, if there is one.
fn circle(edges: &BTreeMap<String, BTreeSet<String>>) -> Option<Vec<String>> {
    fn walk(
        edges: &BTreeMap<String, BTreeSet<String>>,
        way: &mut Vec<String>,
        done: &mut BTreeSet<String>,
    ) -> Option<Vec<String>> {
        let here = way.last().cloned().unwrap_or_default();
        for to in edges.get(&here).into_iter().flatten() {
            if let Some(at) = way.iter().position(|name| name == to) {
                return Some(way[at..].iter().chain([to]).cloned().collect());
            }
            if !done.contains(to) {
                way.push(to.clone());
                let found = walk(edges, way, done);
                if found.is_some() {
                    return found;
                }
                way.pop();
            }
        }
        done.insert(here);
        None
    }
    let mut done = BTreeSet::new();
    edges.keys().find_map(|from| walk(edges, &mut vec![from.clone()], &mut done))
}

#[test]
fn modules_use_only_what_the_house_lets_them_use() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found, None);
    assert!(found.len() > 40, "the sources were found");
    for (module, text) in found {
        if ["lib", "main", "choice", "count", "files", "panics"].contains(&module.as_str()) {
            continue;
        }
        let arrows = ARROWS.iter().find(|(from, _)| *from == module);
        let (_, allowed) = arrows.unwrap_or_else(|| panic!("module {module} has no arrows: add a row"));
        for to in used(&text) {
            let everywhere = ["", "choice", "count", "error", "files", "panics"].contains(&to.as_str());
            assert!(everywhere || to == module || allowed.contains(&to.as_str()), "{module} uses {to}");
        }
    }
}

#[test]
fn an_edge_in_the_wrong_direction_is_found() {
    let text = "use crate::model::T5;\nlet x = crate::train::task(&config);\n// crate::cli::run()";
    assert_eq!(used(text).into_iter().collect::<Vec<_>>(), ["model", "train"]);
}

#[test]
fn an_edge_within_a_group_is_found() {
    let text = "use crate::{\n    data::{self, Rows},\n    error::Result as Outcome,\n    model::{\n        step::{Pass, T5},\n    },\n    \
                verify, Error,\n};\nuse std::{fs, train};\nlet x = ($crate::tasks::named)(subcrate::cli);";
    assert_eq!(used(text).into_iter().collect::<Vec<_>>(), ["data", "error", "model", "tasks", "verify"]);
    let planted = text.replace("verify, Error", "verify, cli::{run}");
    assert!(used(&planted).contains("cli"), "the planted edge");
    assert_eq!(used("use crate::{a, b::c};").into_iter().collect::<Vec<_>>(), ["a", "b"]);
    // What only tests use is no edge of the module's.
    assert_eq!(used("fn f() {}\n#[cfg(test)]\nmod tests {\n    use crate::cli::run;\n}"), BTreeSet::new());
}

#[test]
fn files_of_a_module_do_not_use_one_another_in_a_circle() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    placed(&source, &[], &mut found);
    // The parts of a device's backend are one thing in many files.
    let modules = ARROWS.iter().map(|(module, _)| *module).filter(|module| *module != "backend");
    let mut edges_seen = 0;
    for module in modules {
        let files: Vec<_> = found.iter().filter(|(path, _)| path[0] == module).cloned().collect();
        let edges = edges(module, &files);
        edges_seen += edges.values().map(BTreeSet::len).sum::<usize>();
        if let Some(way) = circle(&edges) {
            panic!("in {module}: {}: what they share belongs in a file below them", way.join(" uses "));
        }
    }
    assert!(edges_seen > 100, "{edges_seen} edges: the sources were read");
}

/// The storeys of the CUDA backend, each with those that it may use.
const STOREYS: [(&str, &[&str]); 3] =
    [("runtime", &["runtime"]), ("ops", &["runtime", "ops"]), ("backend", &["runtime", "ops", "backend"])];

/// The storeys that a file of the CUDA backend names.
fn storeys(place: &[String], text: &str) -> BTreeSet<String> {
    let own = if place.last().is_some_and(|name| name == "mod") { &place[..place.len() - 1] } else { place };
    let mut found = BTreeSet::new();
    for path in paths(text) {
        let mut whole = if path[0] == "crate" { Vec::new() } else { own.to_vec() };
        for name in path {
            match name.as_str() {
                "crate" | "self" => {}
                "super" => drop(whole.pop()),
                _ => whole.push(name),
            }
        }
        if whole.len() > 2 && whole[..2] == ["backend", "cuda"] {
            found.insert(whole[2].clone());
        }
    }
    found
}

#[test]
fn each_storey_of_the_cuda_backend_uses_those_below_it_alone() {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut found = Vec::new();
    placed(&source, &[], &mut found);
    for (storey, allowed) in STOREYS {
        let files: Vec<_> = found
            .iter()
            .filter(|(path, _)| path.len() > 3 && path[..3] == ["backend", "cuda", storey])
            .collect();
        assert!(files.len() > 7, "the files of {storey} were found");
        for (place, text) in &files {
            for to in storeys(place, text) {
                assert!(allowed.contains(&to.as_str()), "{} uses {to}", place.join("/"));
            }
        }
        if storey == "backend" {
            continue; // One struct in many files.
        }
        let within: Vec<_> = files
            .iter()
            .map(|(place, text)| (place[2..].to_vec(), text.replace("crate::backend::cuda::", "crate::")))
            .collect();
        if let Some(way) = circle(&edges(storey, &within)) {
            panic!("in {storey}: {}: what they share belongs in a file below them", way.join(" uses "));
        }
    }
    let place = ["backend", "cuda", "runtime", "memory"].map(str::to_owned);
    let planted = "use super::super::ops::linear::Product;\nuse crate::backend::cuda::backend::{Cuda, Rows};";
    assert_eq!(storeys(&place, planted).into_iter().collect::<Vec<_>>(), ["backend", "ops"]);
}

#[test]
fn a_circle_of_files_is_found_through_any_of_its_names() {
    let file = |path: &str, text: &str| (path.split('/').map(str::to_owned).collect(), text.to_owned());
    let files = [
        file("data/mod", "mod index;\nmod lines;\nmod reader;\npub use reader::{LIMIT, Reader};"),
        file("data/index", "use super::lines::Lines;\nuse super::LIMIT;"),
        file("data/lines", "use crate::error::Result;"),
        file("data/reader", "fn f() { crate::data::lines::g() }"),
        file("data/reader/parts", "use super::super::lines::Lines;\nuse super::Reader;"),
    ];
    assert_eq!(circle(&edges("data", &files)), None);
    for planted in [
        "use super::{lines, index::RowIndex};",
        "let x = super::index::count(path);",
        "use crate::data::index;",
    ] {
        for place in [3, 4] {
            let mut files = files.clone();
            // Further down in the tree a file has further to go.
            let planted =
                if place == 4 { planted.replace("super::", "super::super::") } else { planted.to_owned() };
            files[place].1.push_str(&planted);
            let way = circle(&edges("data", &files)).expect(&planted);
            assert_eq!(way, ["index", "reader", "index"], "{planted}");
        }
    }
}

#[test]
fn unsafe_code_lies_only_where_it_must() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found, None);
    for (module, text) in found {
        let blocks = text.matches("unsafe {").count();
        assert!(blocks == 0 || ["backend", "pretrained"].contains(&module.as_str()), "unsafe in {module}");
        assert!(
            blocks <= text.matches("SAFETY:").count(),
            "an unsafe block without its argument in {module}"
        );
    }
}

/// A test that starts the program by itself would compute on a GPU that the machine happens to have.
#[test]
fn tests_start_the_program_in_one_place_alone() {
    let (mut found, mut folders) = (Vec::new(), vec![Path::new(env!("CARGO_MANIFEST_DIR")).join("tests")]);
    // In two parts, since this file is one of those that are read.
    let name = ["CARGO_BIN_EXE_", "promptmix"].concat();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).expect("a folder of tests") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs")
                && fs::read_to_string(&path).expect("text").contains(&name)
            {
                found.push(path);
            }
        }
    }
    assert!(found.len() == 1 && found[0].ends_with("tests/common/program.rs"), "{found:?}");
}
