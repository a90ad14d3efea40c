//! A page of Markdown, as far as these tests read it.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// The repository.
pub fn root() -> PathBuf {
    env!("CARGO_MANIFEST_DIR").into()
}

/// A page.
pub struct Page {
    pub path: PathBuf,
    pub name: String,
    /// Its blocks of code.
    pub blocks: Vec<Block>,
    /// Its lines outside them.
    text: Vec<String>,
    whole: String,
}

/// A block of code.
#[derive(Default)]
pub struct Block {
    /// What its fence says it is; nothing where it is indented.
    pub language: String,
    /// Why its commands are not run.
    pub not_run: Option<String>,
    /// Whether they run in the repository.
    pub in_repository: bool,
    /// Whether they run on the virtual GPU.
    pub on_gpu: bool,
    /// The number of its first line.
    first: usize,
    pub lines: Vec<String>,
}

/// A command line, joined where it is continued.
pub struct CommandLine {
    pub line: usize,
    pub text: String,
}

/// README.md and the pages of docs/.
pub fn pages() -> Vec<Page> {
    let entries = fs::read_dir(root().join("docs")).expect("docs/");
    let mut paths: Vec<PathBuf> = entries.map(|entry| entry.expect("an entry").path()).collect();
    paths.retain(|path| path.extension().is_some_and(|extension| extension == "md"));
    paths.push(root().join("README.md"));
    paths.sort();
    assert!(paths.len() > 12, "{paths:?}");
    paths.iter().map(|path| Page::read(path)).collect()
}

impl Page {
    pub fn read(path: &Path) -> Self {
        let whole = fs::read_to_string(path).expect("a page");
        let (mut blocks, mut text) = (Vec::<Block>::new(), Vec::new());
        // A block is open while there is one, with the fence that ends it or none where it is indented.
        let mut open: Option<(Block, Option<usize>)> = None;
        let mut marks: Vec<String> = Vec::new();
        let mut blank = true;
        for (number, line) in (1..).zip(whole.lines()) {
            let content = line.trim_start();
            let indent = line.len() - content.len();
            if let Some((block, fence)) = &mut open {
                let ends = match fence {
                    Some(_) => content == "```",
                    None => indent < 4 && !content.is_empty(),
                };
                let fence = *fence;
                if !ends {
                    block.lines.push(line.get(fence.unwrap_or(4)..).unwrap_or("").to_owned());
                    continue;
                }
                blocks.extend(open.take().map(|(block, _)| block));
                if fence.is_some() {
                    blank = false;
                    continue;
                }
            }
            let begun = |language: &str, first, marks: &mut Vec<String>| {
                let mark =
                    |prefix: &str| marks.iter().find_map(|mark| mark.strip_prefix(prefix)).map(str::to_owned);
                let block = Block {
                    language: language.to_owned(),
                    not_run: mark("not run: "),
                    in_repository: mark("run in: the repository").is_some(),
                    on_gpu: mark("run on: the virtual GPU").is_some(),
                    first,
                    lines: Vec::new(),
                };
                marks.clear();
                block
            };
            if let Some(language) = content.strip_prefix("```") {
                open = Some((begun(language, number + 1, &mut marks), Some(indent)));
            } else if indent >= 4 && blank {
                let mut block = begun("", number, &mut marks);
                block.lines.push(line[4..].to_owned());
                open = Some((block, None));
            } else if let Some(mark) =
                content.strip_prefix("<!-- ").and_then(|mark| mark.strip_suffix(" -->"))
            {
                marks.push(mark.to_owned());
            } else {
                if !content.is_empty() {
                    marks.clear();
                }
                text.push(line.to_owned());
            }
            blank = content.is_empty() || content.starts_with("<!--");
        }
        assert!(
            open.as_ref().is_none_or(|(_, fence)| fence.is_none()),
            "{}: a fence is not closed",
            path.display()
        );
        blocks.extend(open.map(|(block, _)| block));
        Self { name: super::shown(path), path: path.to_owned(), blocks, text, whole }
    }

    /// Where its links lead.
    pub fn links(&self) -> impl Iterator<Item = String> {
        let text = self.text.join("\n");
        let links: Vec<String> = text
            .match_indices("](")
            .filter_map(|(at, found)| text[at + found.len()..].split_once(')'))
            .map(|(link, _)| link.to_owned())
            .collect();
        links.into_iter()
    }

    /// Its headings, as links name them.
    pub fn headings(&self) -> impl Iterator<Item = String> {
        let titles = self.text.iter().filter(|line| line.starts_with('#'));
        titles.map(|line| {
            let title = line.trim_start_matches('#').trim().to_lowercase();
            let kept = title.chars().filter(|c| c.is_alphanumeric() || " -_".contains(*c));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
    }

    /// What stands between single backticks outside blocks.
    pub fn code_spans(&self) -> Vec<String> {
        let text = self.text.join("\n");
        text.split('`').skip(1).step_by(2).map(|span| span.replace('\n', " ")).collect()
    }

    /// Its parts under headings of the second level, blocks included.
    pub fn sections(&self) -> impl Iterator<Item = (String, String)> {
        let parts = self.whole.split("\n## ").skip(1).filter_map(|part| part.split_once('\n'));
        parts.map(|(title, text)| (title.to_owned(), text.to_owned()))
    }
}

impl Block {
    /// The file that it is, by a first line `# NAME.toml`.
    pub fn file(&self) -> Option<(String, String)> {
        let name = self.lines.first()?.strip_prefix("# ")?;
        (name.ends_with(".toml") && !name.contains(' ')).then(|| (name.to_owned(), self.lines.join("\n")))
    }

    /// Its command lines.
    pub fn commands(&self) -> Vec<CommandLine> {
        match &self.language[..] {
            "" | "sh" => {}
            "text" | "toml" | "rust" => return Vec::new(),
            other => panic!("a block of {other}: may it hold commands?"),
        }
        let mut commands: Vec<CommandLine> = Vec::new();
        let mut continued = false;
        for (line, text) in (self.first..).zip(&self.lines) {
            let (text, continues) = match text.trim_end().strip_suffix('\\') {
                Some(text) => (text.trim(), true),
                None => (text.trim(), false),
            };
            match commands.last_mut() {
                Some(last) if continued => last.text = format!("{} {text}", last.text),
                _ => commands.push(CommandLine { line, text: text.to_owned() }),
            }
            continued = continues;
        }
        commands.retain(|command| {
            ["promptmix ", "cargo ", "mpirun "].iter().any(|start| command.text.starts_with(start))
        });
        commands
    }
}

impl CommandLine {
    /// The arguments of promptmix; none where it is another program, whose named targets exist.
    pub fn arguments(&self) -> Result<Option<Vec<String>>, String> {
        let words = words(&self.text)?;
        let after = |word: &str| {
            let at = words.iter().position(|other| other == word || other.ends_with(&format!("/{word}")))?;
            Some(words[at + 1..].to_vec())
        };
        if words[0] != "cargo" {
            return Ok(after("promptmix"));
        }
        for pair in words.windows(2).take_while(|pair| pair[0] != "--") {
            let [flag, name] = pair else { continue };
            let exists = |places: &[String]| places.iter().any(|place| root().join(place).exists());
            let known = match &flag[..] {
                "--test" => exists(&[format!("tests/{name}.rs"), format!("tests/{name}/main.rs")]),
                "--bench" => exists(&[format!("benches/{name}/main.rs")]),
                "--example" => exists(&[format!("examples/{name}.rs"), format!("examples/{name}/main.rs")]),
                "-p" => exists(&[format!("tests/{name}/Cargo.toml")]),
                _ => true,
            };
            if !known {
                return Err(format!("no {flag} {name}"));
            }
        }
        let own = !words.iter().any(|word| word == "-p" || word == "--example");
        Ok(match &words[1][..] {
            "run" if own => after("--"),
            "run" => after("promptmix"),
            _ => None,
        })
    }
}

/// The words of a command line as a shell has them: quotes, and a comment at its end.
fn words(text: &str) -> Result<Vec<String>, String> {
    let (mut words, mut word, mut quote) = (Vec::new(), None::<String>, None);
    for c in text.chars() {
        match (quote, c) {
            (Some(open), c) if c == open => quote = None,
            (Some(_), c) => word.get_or_insert_default().push(c),
            (None, '\'' | '"') => {
                quote = Some(c);
                word.get_or_insert_default();
            }
            (None, '#') if word.is_none() => break,
            (None, ' ') => words.extend(word.take()),
            (None, '|' | '>' | '<' | '&' | ';' | '$') => return Err(format!("{c} needs a shell")),
            (None, c) => word.get_or_insert_default().push(c),
        }
    }
    words.extend(word);
    if quote.is_some() { Err("a quote is not closed".into()) } else { Ok(words) }
}

/// Flags that a text names.
pub fn flags(text: &str) -> BTreeSet<String> {
    let starts = text.match_indices("--").filter(|(at, _)| {
        let before = text[..*at].chars().next_back();
        before.is_none_or(|c| !c.is_alphanumeric() && c != '-')
    });
    let names = starts.map(|(at, _)| {
        let name = text[at + 2..].chars().take_while(|c| c.is_ascii_alphanumeric() || *c == '-');
        name.collect::<String>()
    });
    names
        .filter(|name| name.starts_with(|c: char| c.is_ascii_lowercase()))
        .map(|name| format!("--{name}"))
        .collect()
}
