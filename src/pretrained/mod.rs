//! Reading a pretrained T5: its configuration, its weights whatever file holds them, and its tokenizer.
//!
//! Not for computing with it: the model and its folded norms are built elsewhere from what [`Checkpoint`] reads.

mod added_tokens;
mod byte_tokenizer;
mod charsmap;
mod checkpoint;
mod config;
mod entry;
mod hub;
mod sentencepiece;
mod tensor_file;
mod tokenizer;
mod torch_pickle;

use std::fs::File;
use std::io::Read;
use std::path::Path;

pub use checkpoint::Checkpoint;
pub use config::{Activation, ModelType, T5Config};
pub use entry::ElementType;
pub use hub::{FoundData, find_data, is_hub_id, locate, locate_data};
pub use tensor_file::TensorFile;
pub use tokenizer::{Token, TokenKind, Tokenizer};

use crate::error::{Error, Result};
use crate::files;

/// The whole of a file that is known to be small; a larger one is refused before it fills the memory.
pub(crate) fn small_file(path: &Path, most: u64) -> Result<Vec<u8>> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // Asked before opening: to open a pipe would wait for its other end.
        if !std::fs::metadata(path)?.is_file() {
            return Err(std::io::Error::new(std::io::ErrorKind::InvalidInput, "it is not a file"));
        }
        File::open(path)?.take(most + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    let bytes = read().map_err(|source| Error::file("read", path, source))?;
    if bytes.len() as u64 > most {
        return Err(Error::format(path, None, format!("at most {most} bytes"), "more", ""));
    }
    files::refuse_lfs_pointer(path, &bytes)?;
    Ok(bytes)
}
