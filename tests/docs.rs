//! README.md and docs/: their commands run or are at least accepted, what they name exists, and the README is one page.
//!
//! A page's commands run in order in a folder of its own, where `t5-small` and `t5-base` are small models and `data` holds a few
//! generated rows. `<!-- not run: REASON -->` before a block says that more is needed; its commands are parsed. `<!-- run in: the
//! repository -->` has a block run there. A TOML block that begins with a comment of a file's name is that file. What a block of
//! the language `text` holds is output.
#![cfg(all(feature = "cli", feature = "hub", feature = "report", unix))]

#[path = "docs/page.rs"]
mod page;
#[path = "docs/world.rs"]
mod world;
#[path = "common/program.rs"]
mod program;
#[path = "common/small_model.rs"]
mod small_model;

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
            } else if block.not_run.is_none() {
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
