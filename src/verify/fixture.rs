//! A fixture folder: a small T5 beside the numbers that PyTorch got from it.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use safetensors::{Dtype, SafeTensors};

use crate::backend::Example;
use crate::error::{Error, Result};
use crate::files;

/// `attempt.json`: the mixture that the numbers belong to.
#[derive(Clone, Debug, serde::Deserialize)]
pub struct Attempt {
    /// S.
    pub n_sources: usize,
    /// M.
    pub prompt_len: usize,
    /// Q.
    pub rank: usize,
    /// What scores were divided by.
    pub temperature: f64,
    /// Epsilon of the scorer's LayerNorm.
    pub ln_eps: f64,
    /// Whether padding was kept out of the pool.
    pub pool_mask: bool,
}

/// A tensor of a fixture, widened.
#[derive(Clone, Debug)]
pub struct Expected {
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its values, row-major.
    pub values: Vec<f64>,
}

/// The numbers of a fixture folder.
#[derive(Debug)]
pub struct Fixture {
    /// The mixture.
    pub attempt: Attempt,
    path: PathBuf,
    tensors: BTreeMap<String, Expected>,
}

impl Fixture {
    /// Reads `attempt.json` and `fixture.safetensors` in `folder`.
    ///
    /// # Errors
    /// If either is missing or malformed.
    pub fn open(folder: &Path) -> Result<Self> {
        let read = |name: &str| {
            let path = folder.join(name);
            files::refuse_stream(&path)?;
            let bytes = std::fs::read(&path).map_err(|source| Error::file("read", &path, source))?;
            Ok((path, bytes))
        };
        let (attempt_path, json) = read("attempt.json")?;
        let attempt = serde_json::from_slice(&json).map_err(|error| {
            let line = Some(error.line() as u64);
            Error::format(&attempt_path, line, "the mixture of a fixture", error.to_string(), "")
        })?;
        let (path, bytes) = read("fixture.safetensors")?;
        let malformed =
            |found: String| Error::format(&path, None, "a safetensors file", found, "copy it again");
        let file = SafeTensors::deserialize(&bytes).map_err(|error| malformed(error.to_string()))?;
        let mut tensors = BTreeMap::new();
        for (name, view) in file.tensors() {
            let values = match view.dtype() {
                Dtype::F32 => view
                    .data()
                    .as_chunks::<4>()
                    .0
                    .iter()
                    .map(|&bytes| f64::from(f32::from_le_bytes(bytes)))
                    .collect(),
                Dtype::I64 => view
                    .data()
                    .as_chunks::<8>()
                    .0
                    .iter()
                    .map(|&bytes| i64::from_le_bytes(bytes) as f64)
                    .collect(),
                other => return Err(malformed(format!("{name} of type {other:?}"))),
            };
            tensors.insert(name, Expected { shape: view.shape().to_vec(), values });
        }
        Ok(Self { attempt, path, tensors })
    }

    /// Every tensor's name, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// The tensor called `name`.
    ///
    /// # Errors
    /// [`Error::Format`] if there is none.
    pub fn tensor(&self, name: &str) -> Result<&Expected> {
        self.tensors.get(name).ok_or_else(|| {
            Error::format(
                &self.path,
                None,
                format!("a tensor called {name}"),
                "none",
                "make the fixture again",
            )
        })
    }

    /// A matrix of whole numbers, row by row.
    fn integers(&self, name: &str) -> Result<Vec<Vec<i64>>> {
        let tensor = self.tensor(name)?;
        match tensor.shape[..] {
            [_, columns] if columns > 0 => Ok(tensor
                .values
                .chunks_exact(columns)
                .map(|row| row.iter().map(|&value| value as i64).collect())
                .collect()),
            _ => Err(Error::tensor(name, "a matrix", format!("shape {:?}", tensor.shape), "")),
        }
    }

    /// The examples, padding and ignored labels left out.
    ///
    /// # Errors
    /// If the inputs are missing or not matrices of one height.
    pub fn examples(&self) -> Result<Vec<Example>> {
        let (ids, masks, labels) =
            (self.integers("in.ids")?, self.integers("in.mask")?, self.integers("in.labels")?);
        let examples = ids.iter().zip(&masks).zip(&labels).enumerate();
        Ok(examples
            .map(|(index, ((ids, mask), labels))| Example {
                source: ids.iter().zip(mask).filter(|(_, m)| **m != 0).map(|(&id, _)| id as u32).collect(),
                target: labels.iter().filter(|&&label| label >= 0).map(|&label| label as u32).collect(),
                index: index as u32,
                ..Example::default()
            })
            .collect())
    }

    /// Columns of the padded source ids.
    ///
    /// # Errors
    /// If they are missing or no matrix.
    pub fn padded_width(&self) -> Result<usize> {
        Ok(self.integers("in.ids")?.first().map_or(0, Vec::len))
    }

    /// What greedy decoding said after the start token, per example, cut after `end_of_sequence`.
    ///
    /// # Errors
    /// If it is missing or no matrix.
    pub fn greedy(&self, end_of_sequence: u32) -> Result<Vec<Vec<u32>>> {
        let rows = self.integers("out.greedy")?;
        Ok(rows
            .iter()
            .map(|row| {
                let said = row.iter().skip(1).map(|&id| id as u32).collect::<Vec<_>>();
                let end = said.iter().position(|&id| id == end_of_sequence).map_or(said.len(), |end| end + 1);
                said[..end].to_vec()
            })
            .collect())
    }
}
