//! What `torch.save` writes.

use std::collections::BTreeMap;
use std::path::Path;

use super::tensor_file::Entry;
use crate::error::{Error, Result};

pub(super) fn entries(_path: &Path, _bytes: &[u8]) -> Result<BTreeMap<String, Entry>> {
    Err(Error::unsupported(
        "pytorch_model.bin",
        "its reader is not in this build",
        "convert it to safetensors",
    ))
}
