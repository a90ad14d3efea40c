//! The shapes that kernels are measured at: those of released models, or a file's.

use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::backend::{Batch, Example, Heads};
use crate::error::{Error, Result};
use crate::files;

/// A batch of a model, as kernels see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct Shape {
    /// What it is called in tables and files.
    pub(crate) name: String,
    /// B.
    pub(crate) examples: usize,
    /// Source tokens of the examples, in turn.
    pub(crate) source_lengths: Vec<usize>,
    /// Target tokens of every example.
    pub(crate) target_length: usize,
    /// M.
    pub(crate) prompt_length: usize,
    /// D.
    pub(crate) width: usize,
    /// H.
    pub(crate) heads: usize,
    /// K.
    pub(crate) head_width: usize,
    /// F.
    pub(crate) inner: usize,
    /// V.
    pub(crate) vocabulary: usize,
    /// S.
    pub(crate) sources: usize,
    /// Q.
    pub(crate) bottleneck: usize,
    /// Tokens that were decoded before the decoding step that is measured.
    pub(crate) decoded: usize,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    shape: Vec<Shape>,
}

/// The shapes of released models.
const PRESETS: &str = include_str!("presets.toml");
const EXPECTED: &str = "[[shape]] tables with name, examples, source-lengths, target-length, prompt-length, width, heads, head-width, \
                        inner, vocabulary, sources, bottleneck and decoded";
const ADVICE: &str = "src/bench/presets.toml has those of released models";
/// The most numbers of one operand: several times those of the largest model here, and what hosts and devices have room for.
const MAX_NUMBERS: u128 = 1 << 31;

/// The shapes that `named` names: a preset, or the TOML file at that path.
///
/// # Errors
/// [`Error::Setting`] for a name that is none; [`Error::File`] and [`Error::Format`] for a file that cannot be read or holds no shapes.
pub(crate) fn shapes(named: &str) -> Result<Vec<Shape>> {
    let presets = parse(Path::new("src/bench/presets.toml"), PRESETS)?;
    if let Some(preset) = presets.iter().find(|preset| preset.name == named) {
        return Ok(vec![preset.clone()]);
    }
    let path = Path::new(named);
    if path.extension().is_none() && !path.exists() {
        let names: Vec<&str> = presets.iter().map(|preset| preset.name.as_str()).collect();
        let expected = format!("{}, or a TOML file of shapes", names.join(", "));
        return Err(Error::setting("--shapes", expected, named, ADVICE));
    }
    let text = std::fs::read_to_string(path).map_err(|source| Error::file("read", path, source))?;
    files::refuse_lfs_pointer(path, text.as_bytes())?;
    parse(path, &text)
}

fn parse(path: &Path, text: &str) -> Result<Vec<Shape>> {
    let file: File = toml::from_str(text).map_err(|error| {
        let before = error.span().and_then(|span| text.get(..span.start));
        let line = before.map(|before| before.matches('\n').count() as u64 + 1);
        Error::format(path, line, EXPECTED, error.message(), ADVICE)
    })?;
    if file.shape.is_empty() {
        return Err(Error::format(path, None, EXPECTED, "no shape", ADVICE));
    }
    for (at, shape) in file.shape.iter().enumerate() {
        if file.shape[..at].iter().any(|other| other.name == shape.name) {
            let found = format!("{:?} twice", shape.name);
            return Err(Error::format(path, None, "shapes of different names", found, ""));
        }
        shape.check(path)?;
    }
    Ok(file.shape)
}

impl Shape {
    fn check(&self, path: &Path) -> Result<()> {
        let refuse = |expected: String, found: String| {
            Err(Error::format(path, None, expected, format!("{found} in shape {:?}", self.name), ADVICE))
        };
        let is_plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if self.name.is_empty() || !self.name.chars().all(is_plain) {
            return refuse("a name of letters, digits, '-', '_' and '.'".into(), format!("{:?}", self.name));
        }
        let lengths = self.source_lengths.iter().map(|&length| ("source-lengths", length));
        let bounds = [
            ("examples", self.examples, 1, 1 << 16),
            ("target-length", self.target_length, 1, 1 << 12),
            ("prompt-length", self.prompt_length, 1, 1 << 16),
            ("width", self.width, 8, 1 << 16),
            ("heads", self.heads, 1, 1 << 12),
            ("head-width", self.head_width, 8, 256),
            ("inner", self.inner, 8, 1 << 20),
            ("vocabulary", self.vocabulary, 2, 1 << 24),
            ("sources", self.sources, 1, 64),
            ("bottleneck", self.bottleneck, 1, 1 << 16),
            ("decoded", self.decoded, 0, 1 << 12),
        ];
        let bounded = lengths.map(|(name, length)| (name, length, 1, 1 << 20)).chain(bounds);
        for (name, found, least, most) in bounded {
            if !(least..=most).contains(&found) {
                return refuse(format!("{name} from {least} to {most}"), found.to_string());
            }
        }
        if self.source_lengths.is_empty() {
            return refuse("source-lengths of at least one number".into(), "none".into());
        }
        for (name, found) in [("width", self.width), ("head-width", self.head_width), ("inner", self.inner)] {
            if !found.is_multiple_of(8) {
                return refuse(
                    format!("{name} a multiple of 8, as the GPU's kernels need"),
                    found.to_string(),
                );
            }
        }
        let rows = self.lengths().map(|length| (length + self.prompt_length) as u128).sum::<u128>();
        let widest = self.width.max(2 * self.inner).max(3 * self.heads * self.head_width) as u128;
        let largest = (rows * widest).max((self.vocabulary * self.width) as u128);
        if largest > MAX_NUMBERS {
            return refuse(format!("operands of at most {MAX_NUMBERS} numbers"), largest.to_string());
        }
        Ok(())
    }

    fn lengths(&self) -> impl Iterator<Item = usize> {
        self.source_lengths.iter().copied().cycle().take(self.examples)
    }

    /// H and K.
    pub(crate) fn heads(&self) -> Heads {
        Heads { count: self.heads, width: self.head_width }
    }

    /// Its batch. No two tokens of an example are alike where the vocabulary has enough, so that nothing is looked up twice.
    pub(crate) fn batch(&self) -> Result<Batch> {
        let mut next = 0;
        let mut ids = |count: usize| -> Vec<u32> {
            let own = (next..next + count).map(|i| (i * 7_919 % self.vocabulary) as u32).collect();
            next += count;
            own
        };
        let example = |(index, length)| Example {
            source: ids(length),
            target: ids(self.target_length),
            index: index as u32,
            ..Example::default()
        };
        let examples: Vec<Example> = self.lengths().enumerate().map(example).collect();
        Batch::pack(&examples, self.prompt_length, 0, self.vocabulary)
    }
}
