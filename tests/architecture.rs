//! Which module may use which: the arrows of the house, and no others.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

/// Everything may also use `choice`, `error`, `files` and `panics`.
const ARROWS: [(&str, &[&str]); 16] = [
    (
        "cli",
        &[
            "backend",
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
    ("report", &["evaluate", "experiment", "prompts", "train"]),
    ("demo", &["backend", "config", "data", "experiment", "prompts", "train"]),
    ("experiment", &["backend", "config", "data", "evaluate", "model", "train"]),
    ("train", &["backend", "config", "data", "evaluate", "model", "pretrained", "prompts", "tasks"]),
    ("evaluate", &["backend", "config", "data", "metrics", "model", "pretrained", "tasks"]),
    ("verify", &["backend", "model", "pretrained"]),
    ("model", &["backend", "pretrained"]),
    ("config", &["backend", "data"]),
    ("prompts", &["backend", "pretrained"]),
    ("data", &["metrics", "tasks"]),
    ("tasks", &["metrics"]),
    ("metrics", &[]),
    ("pretrained", &[]),
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

/// The modules that a file names behind `crate::`.
fn used(text: &str) -> BTreeSet<String> {
    let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
    let mut modules = BTreeSet::new();
    for line in code {
        for (_, rest) in line.match_indices("crate::").map(|(at, found)| line.split_at(at + found.len())) {
            let name: String = rest.chars().take_while(|c| c.is_ascii_lowercase() || *c == '_').collect();
            modules.insert(name);
        }
    }
    modules
}

#[test]
fn modules_use_only_what_the_house_lets_them_use() {
    let mut found = Vec::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"), &mut found, None);
    assert!(found.len() > 40, "the sources were found");
    for (module, text) in found {
        if ["lib", "main", "choice", "files", "panics"].contains(&module.as_str()) {
            continue;
        }
        let arrows = ARROWS.iter().find(|(from, _)| *from == module);
        let (_, allowed) = arrows.unwrap_or_else(|| panic!("module {module} has no arrows: add a row"));
        for to in used(&text) {
            let everywhere = ["", "choice", "error", "files", "panics"].contains(&to.as_str());
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
