//! README.md and docs/: their commands run or are at least accepted, what they name exists, and the README is one page.
//!
//! A page's commands run in order in a folder of its own, where `t5-small` and `t5-base` are small models and `data` holds a few
//! generated rows. `<!-- not run: REASON -->` before a block says that more is needed; its commands are parsed. `<!-- run in: the
//! repository -->` has a block run there, and `<!-- run on: the virtual GPU -->` there and on the virtual GPU. A TOML block that begins with a comment of a file's name is that file. What a block of
//! the language `text` holds is output.
#![cfg(all(feature = "cli", feature = "cuda", feature = "hub", feature = "report", unix))]

#[path = "common/kernels.rs"]
mod kernels;
#[path = "docs/page.rs"]
mod page;
#[path = "common/program.rs"]
mod program;
#[path = "common/small_model.rs"]
mod small_model;
#[path = "docs/world.rs"]
mod world;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use page::{Page, flags, pages, root};
use world::World;

/// Commands that run too long for a test.
const NEVER_RUN: [&str; 1] = ["demo"];

fn help(words: &[&str]) -> String {
    let output = program::promptmix().args(words).arg("--help").output();
    String::from_utf8(output.expect("the binary runs").stdout).expect("text")
}

/// The subcommands that help lists under `words`.
fn subcommands(words: &[&str]) -> Vec<String> {
    let help = help(words);
    let Some((_, rest)) = help.split_once("Commands:\n") else { return Vec::new() };
    let names = rest.lines().take_while(|line| !line.is_empty()).filter_map(|line| line.split(' ').nth(2));
    names.filter(|name| *name != "help").map(str::to_owned).collect()
}

/// Runs what can run of a page and parses the rest: what went wrong, and the subcommands that ran.
fn follow(page: &Page) -> (Vec<String>, BTreeSet<String>) {
    let (mut wrong, mut ran) = (Vec::new(), BTreeSet::new());
    let world = World::new(page);
    for block in &page.blocks {
        if let Some((name, text)) = block.file() {
            world.write(&name, &text);
        }
        for command in block.commands() {
            let place = format!("{}:{}: {}", page.name, command.line, command.text);
            let arguments = match command.arguments() {
                Ok(Some(arguments)) => arguments,
                Ok(None) => continue,
                Err(error) => {
                    wrong.push(format!("{place}\n{error}"));
                    continue;
                }
            };
            if let Err(error) = promptmix::cli::check(arguments.iter().map(String::as_str)) {
                wrong.push(format!("{place}\n{error}"));
            } else if arguments[0] == "kernels" && promptmix::cuda::FATBINS.is_empty() {
                eprintln!("skipped: {place}: this build has no kernels");
                ran.insert(arguments[0].clone());
            } else if block.not_run.is_none() && !block.on_gpu {
                let folder = if block.in_repository { root() } else { world.folder() };
                match world.run(&arguments, &folder) {
                    Ok(()) => ran.extend(arguments.first().cloned()),
                    Err(error) => wrong.push(format!("{place}\n{error}")),
                }
            }
        }
    }
    (wrong, ran)
}

#[test]
fn every_command_of_the_pages_runs_or_is_accepted() {
    let pages = pages();
    let (left, done) = (Mutex::new(pages.iter()), Mutex::new((Vec::new(), BTreeSet::new())));
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                loop {
                    let Some(page) = left.lock().expect("no panic").next() else { return };
                    let (wrong, ran) = follow(page);
                    let mut done = done.lock().expect("no panic");
                    done.0.extend(wrong);
                    done.1.extend(ran);
                }
            });
        }
    });
    let (wrong, ran) = done.into_inner().expect("no panic");
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
    let expected = subcommands(&[]).into_iter().filter(|name| !NEVER_RUN.contains(&&name[..]));
    assert_eq!(ran, expected.collect(), "every command is run somewhere");
}

/// The quick start is one: three lines, a script that is there and two commands that take the GPU by themselves.
#[test]
fn blocks_for_a_gpu_run_on_the_virtual_one_and_say_that_they_take_it() {
    let (mut blocks, mut computed) = (0, 0);
    for page in pages() {
        for block in page.blocks.iter().filter(|block| block.on_gpu) {
            blocks += 1;
            if page.name == "README.md" {
                assert_eq!(
                    block.lines.iter().filter(|line| !line.trim().is_empty()).count(),
                    3,
                    "a quick start"
                );
                assert!(root().join(&block.lines[0]).is_file(), "{} is there", block.lines[0]);
            }
            for command in block.commands() {
                let arguments = command.arguments().expect("a command").expect("of promptmix");
                promptmix::cli::check(arguments.iter().map(String::as_str)).expect("one that is accepted");
                if !kernels::are_built() {
                    continue;
                }
                let place = format!("{}:{}: {}", page.name, command.line, command.text);
                let mut program = program::on_virtual_gpu();
                let end = program.args(&arguments).current_dir(root()).output().expect("an end");
                let (out, said) =
                    (String::from_utf8_lossy(&end.stdout), String::from_utf8_lossy(&end.stderr));
                assert!(end.status.success(), "{place}\n{out}\n{said}");
                if arguments[0] == "info" {
                    assert!(out.contains("cuda:0 Virtual GPU"), "{place}\n{out}");
                } else {
                    assert!(said.starts_with("computing on cuda:0"), "{place}\n{said}");
                    computed += 1;
                }
            }
        }
    }
    assert!(blocks > 0, "the README has a quick start for a GPU");
    assert!(computed > 0 || promptmix::cuda::FATBINS.is_empty());
}

/// The table of docs/gpu.md has the variables that the build and the program read, and no others.
#[test]
fn the_page_of_gpus_lists_every_variable_that_is_read() {
    let named = |text: &str| -> BTreeSet<String> {
        let starts = text.match_indices("PROMPTMIX_");
        let name = |(at, _): (usize, &str)| {
            text[at..]
                .chars()
                .take_while(|c| c.is_ascii_uppercase() || c.is_ascii_digit() || *c == '_')
                .collect()
        };
        starts.map(name).collect()
    };
    let page = std::fs::read_to_string(root().join("docs/gpu.md")).expect("the page");
    let (_, table) = page.split_once("| variable | effect |\n").expect("its table");
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    let listed: BTreeSet<String> =
        rows.clone().flat_map(|row| named(row.split('|').nth(1).unwrap_or(""))).collect();
    // The header for C has names of its own that begin so, of which the ABI's stands in quotes too.
    let read_in = |text: &str| -> BTreeSet<String> {
        let quoted = |name: &String| name != "PROMPTMIX_ABI" && text.contains(&format!("\"{name}\""));
        named(text).into_iter().filter(quoted).collect()
    };
    let mut read = read_in(&std::fs::read_to_string(root().join("build.rs")).expect("build.rs"));
    let mut folders = vec![root().join("build"), root().join("src")];
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                folders.push(path);
            } else if let Ok(text) = std::fs::read_to_string(&path) {
                read.extend(read_in(&text));
            }
        }
    }
    assert!(read.len() > 3, "{read:?}");
    assert_eq!(listed, read);
    // Those of others that the build asks cargo to watch are in it too.
    let build = std::fs::read_to_string(root().join("build.rs")).expect("build.rs");
    let (_, watched) = build.split_once("for variable in [").expect("a list");
    let table: String = rows.collect();
    for name in watched.split(']').next().expect("its end").split('"').skip(1).step_by(2) {
        assert!(name == "DOCS_RS" || table.contains(&format!("`{name}")), "{name} is not in the table");
    }
}

#[test]
fn links_lead_to_pages_headings_and_files_that_exist() {
    let mut pages = pages();
    pages.extend(["CHANGELOG.md", "CONTRIBUTING.md"].map(|name| Page::read(&root().join(name))));
    let mut wrong = Vec::new();
    let mut links = 0;
    for page in &pages {
        for link in page.links().filter(|link| !link.contains("://")) {
            links += 1;
            let (path, heading) = link.split_once('#').unwrap_or((&link, ""));
            let folder = page.path.parent().expect("a folder");
            let path = if path.is_empty() { page.path.clone() } else { folder.join(path) };
            if !path.exists() {
                wrong.push(format!("{}: no {link}", page.name));
            } else if !heading.is_empty() {
                let linked = Page::read(&path);
                if !linked.headings().any(|known| known == heading) {
                    wrong.push(format!("{}: no heading for {link}", page.name));
                }
            }
        }
    }
    assert!(links > 50, "{links} links were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn files_and_flags_that_the_text_names_exist() {
    let mut known: BTreeSet<String> = BTreeSet::new();
    for command in subcommands(&[]) {
        known.extend(flags(&help(&[&command])));
        for below in subcommands(&[&command]) {
            known.extend(flags(&help(&[&command, &below])));
        }
    }
    // Of cargo and of scripts.
    let others = [
        "--locked",
        "--open",
        "--path",
        "--features",
        "--release",
        "--all-targets",
        "--example",
        "--test",
        "--bench",
    ];
    known.extend(others.map(str::to_owned));
    let mut wrong = Vec::new();
    let mut files = 0;
    for page in pages() {
        for span in page.code_spans() {
            for flag in flags(&span).into_iter().filter(|flag| !known.contains(flag)) {
                wrong.push(format!("{}: no {flag} in `{span}`", page.name));
            }
            // That page names files of other repositories.
            let own = page.name != "docs/tasks.md";
            for path in span.split_whitespace().filter(|word| own && is_of_the_repository(word)) {
                files += 1;
                if !root().join(path).exists() {
                    wrong.push(format!("{}: no {path}", page.name));
                }
            }
        }
    }
    assert!(files > 50, "{files} files were found");
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// Whether a word of code is a path from the root of the repository.
fn is_of_the_repository(word: &str) -> bool {
    let folders = [
        ".ci", "benches", "build", "demo", "docs", "examples", "fuzz", "kernels", "scripts", "src",
        "studies", "tests",
    ];
    let plain = word.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-./".contains(&byte));
    plain && word.split_once('/').is_some_and(|(folder, _)| folders.contains(&folder))
}

#[test]
fn the_readme_is_one_page_and_names_the_demo_first_and_the_tests() {
    let text = std::fs::read_to_string(root().join("README.md")).expect("the README");
    let lines = text.lines().count();
    assert!(lines <= 100, "{lines} lines");
    assert!(text.lines().any(|line| line == "scripts/test"), ".ci/run takes the tests' command from here");
    let readme = Page::read(&root().join("README.md"));
    let first = readme.blocks.iter().flat_map(page::Block::commands).next().expect("a command");
    assert_eq!(first.text, "cargo run --release -- demo");
}

#[test]
fn the_page_of_commands_has_a_section_for_each_with_flags_that_it_has() {
    let page = Page::read(&root().join("docs/cli.md"));
    let sections: BTreeMap<String, String> = page.sections().collect();
    let commands = subcommands(&[]);
    assert_eq!(sections.keys().cloned().collect::<BTreeSet<_>>(), commands.iter().cloned().collect());
    for command in &commands {
        let text = &sections[command];
        assert!(text.contains(&format!("promptmix {command}")), "{command} has an example");
        let help: String = match &command[..] {
            "bench" => help(&["bench", "step"]),
            "kernels" => help(&["kernels", "export"]),
            _ => help(&[command]),
        };
        let known = flags(&help);
        let unknown: Vec<_> = flags(text).into_iter().filter(|flag| !known.contains(flag)).collect();
        assert!(unknown.is_empty() || command == "prompts", "{command} has no {unknown:?}");
    }
    for below in subcommands(&["prompts"]) {
        assert!(sections["prompts"].contains(&format!("`{below}`")), "prompts {below}");
    }
}

#[test]
fn the_table_of_modules_is_what_the_test_of_the_architecture_allows() {
    let test = std::fs::read_to_string(root().join("tests/architecture.rs")).expect("the test");
    let (_, arrows) = test.split_once("const ARROWS").expect("the arrows");
    let (arrows, _) = arrows.split_once("\n];").expect("their end");
    let quoted = |text: &str| text.split('"').skip(1).step_by(2).map(str::to_owned).collect::<Vec<_>>();
    let allowed: BTreeMap<String, Vec<String>> = arrows
        .split_once(" = ")
        .expect("a value")
        .1
        .split('(')
        .map(quoted)
        .filter_map(|names| Some((names.first()?.clone(), names[1..].to_vec())))
        .collect();
    assert!(allowed.len() > 10, "{allowed:?}");
    let page = std::fs::read_to_string(root().join("docs/architecture.md")).expect("the page");
    let (_, table) = page.split_once("| module | uses |\n|---|---|\n").expect("the table");
    let rows = table.lines().take_while(|line| line.starts_with('|'));
    let said: BTreeMap<String, Vec<String>> = rows
        .map(|row| {
            let cells: Vec<&str> = row.split('|').map(str::trim).collect();
            (cells[1].trim_matches('`').to_owned(), cells[2].split_whitespace().map(str::to_owned).collect())
        })
        .collect();
    assert_eq!(said, allowed);
}

/// A path for messages.
fn shown(path: &Path) -> String {
    path.strip_prefix(root()).map_or_else(|_| path.to_owned(), PathBuf::from).display().to_string()
}
