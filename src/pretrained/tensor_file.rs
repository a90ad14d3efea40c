//! One file of named tensors, whatever wrote it: the bytes, where each tensor lies in them, and how to read it as f32.
//!
//! Not for the formats themselves: [`super::torch_pickle`] and the safetensors reader below fill in where things lie,
//! and every offset they give is checked against the file here before a byte is touched.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::fs::File;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::slice::HalfFloatSliceExt;
use memmap2::Mmap;
use safetensors::Dtype;

use super::entry::{ElementType, Entry, SMALL_FLOAT, instead};
use super::torch_pickle;
use crate::error::{Error, Result};
use crate::files;

/// The longest header of a safetensors file that is read, the format's own limit.
const SAFETENSORS_HEADER_BYTES: u64 = 100_000_000;
/// What to do about numbers that are of use only with the scales that they were divided by.
pub(super) const DEQUANTIZE: &str = "the weights are quantized, and are nothing without their scales: where they were quantized, dequantize the model \
     (`model.dequantize()` in transformers) and save it in f32, bf16 or f16";
/// Elements converted at a time; two bytes each, so a block stays in the first-level cache.
const BLOCK: usize = 2048;
/// Bytes that are shown at a time when a tensor is read: a multiple of every element's width, large against a page.
const VISITED_BYTES: usize = 2 << 20;
/// Mapped ranges below this are left to the system; above it their pages are handed back after they were read.
#[cfg(unix)]
const RELEASED_BYTES: usize = 64 << 10;

enum Bytes {
    Mapped(Mmap),
    Owned(Vec<u8>),
}

/// A file of named tensors, mapped into memory; a tensor's pages are read when it is.
///
/// The mapping ends when the value is dropped. A file that another process shortens while it is mapped ends this
/// process with SIGBUS; replacing it by renaming, as this crate writes files, is safe.
pub struct TensorFile {
    path: PathBuf,
    bytes: Bytes,
    entries: BTreeMap<String, Entry>,
    metadata: HashMap<String, String>,
}

impl std::fmt::Debug for TensorFile {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("TensorFile")
            .field("path", &self.path)
            .field("entries", &self.entries)
            .finish()
    }
}

impl TensorFile {
    /// Opens a safetensors file.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be opened, [`Error::Format`] if its header is broken or does not agree with its
    /// length.
    pub fn open_safetensors(path: &Path) -> Result<Self> {
        Self::safetensors(path.to_owned(), Bytes::map(path)?)
    }

    /// As [`TensorFile::open_safetensors`], from bytes that came from elsewhere; `path` only names them in errors.
    ///
    /// # Errors
    /// [`Error::Format`], as there.
    pub fn safetensors_from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        Self::safetensors(path.to_owned(), Bytes::Owned(bytes))
    }

    /// Opens what `torch.save` of PyTorch 1.6 or newer wrote: a dictionary of tensors, or one bare tensor, which gets
    /// the empty name. No code in the file is executed.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be opened, [`Error::Format`] if it is broken or older than PyTorch 1.6,
    /// [`Error::Unsupported`] if it holds Python objects other than tensors and dictionaries.
    pub fn open_torch(path: &Path) -> Result<Self> {
        Self::torch(path.to_owned(), Bytes::map(path)?)
    }

    /// As [`TensorFile::open_torch`], from bytes that came from elsewhere; `path` only names them in errors.
    ///
    /// # Errors
    /// [`Error::Format`] and [`Error::Unsupported`], as there.
    pub fn torch_from_bytes(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        Self::torch(path.to_owned(), Bytes::Owned(bytes))
    }

    fn safetensors(path: PathBuf, bytes: Bytes) -> Result<Self> {
        files::refuse_lfs_pointer(&path, bytes.as_slice())?;
        let (entries, metadata) = safetensors_entries(&path, bytes.as_slice())?;
        Ok(Self { path, bytes, entries, metadata })
    }

    fn torch(path: PathBuf, bytes: Bytes) -> Result<Self> {
        files::refuse_lfs_pointer(&path, bytes.as_slice())?;
        let entries = torch_pickle::entries(&path, bytes.as_slice())?;
        Ok(Self { path, bytes, entries, metadata: HashMap::new() })
    }

    /// Takes `prefix` away from the names that have it.
    pub(super) fn strip(&mut self, prefix: &str) {
        let entries = std::mem::take(&mut self.entries);
        let stripped = |name: String| name.strip_prefix(prefix).map_or(name.clone(), str::to_owned);
        self.entries = entries.into_iter().map(|(name, entry)| (stripped(name), entry)).collect();
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.entries.keys().map(String::as_str)
    }

    /// Whether a tensor of this name is there.
    pub fn contains(&self, name: &str) -> bool {
        self.entries.contains_key(name)
    }

    /// The shape of a tensor.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is none of this name.
    pub fn shape(&self, name: &str) -> Result<&[usize]> {
        Ok(&self.entry(name)?.shape)
    }

    /// The type in which a tensor is stored.
    ///
    /// # Errors
    /// [`Error::Tensor`] if there is none of this name.
    pub fn element_type(&self, name: &str) -> Result<ElementType> {
        Ok(self.entry(name)?.element)
    }

    /// The `__metadata__` of a safetensors file; empty for other formats.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// Reads a tensor of the expected shape, in row-major order.
    ///
    /// # Errors
    /// [`Error::Tensor`] if it is absent, has another shape, a type other than f32, bf16, f16 or f64, or holds a value that
    /// is not finite.
    pub fn tensor(&self, name: &str, expected_shape: &[usize]) -> Result<Vec<f32>> {
        // The length comes from the file's own, checked entry, never from the caller's claim alone.
        let entry = self.checked_entry(name, expected_shape)?;
        let mut values = vec![0.0; entry.shape.iter().product()];
        self.read_into(name, expected_shape, &mut values)?;
        Ok(values)
    }

    /// As [`TensorFile::tensor`], into `values` without an allocation of the tensor's size. After an error the
    /// content of `values` is unspecified.
    ///
    /// # Errors
    /// As [`TensorFile::tensor`], and [`Error::Tensor`] if `values` has another length than the tensor.
    pub fn read_into(&self, name: &str, expected_shape: &[usize], values: &mut [f32]) -> Result<()> {
        let entry = self.checked_entry(name, expected_shape)?;
        let elements: usize = entry.shape.iter().product();
        if values.len() != elements {
            return Err(Error::tensor(
                name,
                format!("room for {elements} elements"),
                format!("room for {}", values.len()),
                "",
            ));
        }
        let mut rest = values;
        let mut index = 0;
        self.visit(name, entry, |bytes| {
            let count = bytes.len() / entry.element.bytes().unwrap_or(1);
            let Some((chunk, after)) = std::mem::take(&mut rest).split_at_mut_checked(count) else {
                return Err(Error::tensor(name, format!("{elements} elements"), "more", ""));
            };
            rest = after;
            convert(entry.element, bytes, chunk);
            self.check_finite(name, chunk, index)?;
            index += count;
            Ok(())
        })
    }

    /// Shows `visit` a matrix of the expected shape in order, some whole rows at a time: about two megabytes of the file are held
    /// at a time where it stores the matrix row by row.
    ///
    /// # Errors
    /// As [`TensorFile::tensor`], and the first of `visit`.
    pub fn visit_rows(
        &self,
        name: &str,
        expected_shape: [usize; 2],
        visit: &mut dyn FnMut(&[f32]) -> Result<()>,
    ) -> Result<()> {
        let entry = self.checked_entry(name, &expected_shape)?;
        let width = expected_shape[1].max(1);
        let mut index = 0;
        // What a part of the file ends with may be the front of a row.
        let mut rows: Vec<f32> = Vec::new();
        self.visit(name, entry, |bytes| {
            let kept = rows.len();
            rows.resize(kept + bytes.len() / entry.element.bytes().unwrap_or(1), 0.0);
            convert(entry.element, bytes, &mut rows[kept..]);
            self.check_finite(name, &rows[kept..], index)?;
            index += rows.len() - kept;
            let whole = rows.len() / width * width;
            if whole > 0 {
                visit(&rows[..whole])?;
                rows.drain(..whole);
            }
            Ok(())
        })
    }

    /// Whether all of `values` are finite, the first of which has the index `first` in the tensor.
    fn check_finite(&self, name: &str, values: &[f32], first: usize) -> Result<()> {
        let Some(at) = values.iter().position(|value| !value.is_finite()) else { return Ok(()) };
        Err(Error::tensor(
            name,
            "finite values",
            format!("{} at index {} in {}", values[at], first + at, self.path.display()),
            "the file is damaged or its training diverged; fetch or export it again",
        ))
    }

    /// Shows `visit` the tensor's bytes in row-major order, a whole number of elements at a time, and hands each part's
    /// pages back to the system, so that a large tensor is never resident as a whole beside its copy.
    pub(super) fn visit(
        &self,
        name: &str,
        entry: &Entry,
        mut visit: impl FnMut(&[u8]) -> Result<()>,
    ) -> Result<()> {
        let data = self.data(name, entry)?;
        for (number, part) in data.chunks(VISITED_BYTES).enumerate() {
            visit(part)?;
            if let Cow::Borrowed(_) = data {
                let from = entry.bytes.start + number * VISITED_BYTES;
                self.bytes.release(from..from + part.len());
            }
        }
        self.bytes.release(entry.bytes.clone());
        Ok(())
    }

    pub(super) fn entry(&self, name: &str) -> Result<&Entry> {
        self.entries.get(name).ok_or_else(|| {
            Error::tensor(name, format!("a tensor of this name in {}", self.path.display()), "none", "")
        })
    }

    /// The tensor's bytes in row-major order, as stored; borrowed from the mapping where they lie in that order.
    pub(super) fn data(&self, name: &str, entry: &Entry) -> Result<Cow<'_, [u8]>> {
        let damaged = || {
            Error::tensor(
                name,
                format!("data inside {}", self.path.display()),
                "data past its end",
                "fetch the file again",
            )
        };
        let bytes = self.bytes.as_slice().get(entry.bytes.clone()).ok_or_else(damaged)?;
        match &entry.strides {
            None => Ok(Cow::Borrowed(bytes)),
            Some(strides) => {
                let width = entry.element.bytes().ok_or_else(damaged)?;
                gather(bytes, width, &entry.shape, strides).map(Cow::Owned).ok_or_else(damaged)
            }
        }
    }

    /// Hands the pages of a tensor back to the system; they are read again when next touched.
    pub(super) fn release(&self, entry: &Entry) {
        self.bytes.release(entry.bytes.clone());
    }

    pub(super) fn checked_entry(&self, name: &str, expected_shape: &[usize]) -> Result<&Entry> {
        let entry = self.entry(name)?;
        // Before the shape, which a quantized tensor may have another of.
        if entry.element.bytes().is_none() {
            return Err(Error::tensor(
                name,
                "elements of type f32, bf16, f16 or f64",
                format!("{} in {}", entry.element.name(), self.path.display()),
                if entry.element.is_of_quantized() {
                    DEQUANTIZE
                } else {
                    "convert the tensor to f32 and save it again"
                },
            ));
        }
        if entry.shape != expected_shape {
            return Err(Error::tensor(
                name,
                format!("shape {expected_shape:?}"),
                format!("shape {:?} in {}", entry.shape, self.path.display()),
                "check that the configuration and the weights belong together",
            ));
        }
        Ok(entry)
    }
}

impl Bytes {
    fn map(path: &Path) -> Result<Self> {
        // Asked before opening: to open a pipe would wait for its other end.
        let about = std::fs::metadata(path).map_err(|source| Error::file("open", path, source))?;
        files::refuse_stream(path)?;
        if about.is_dir() {
            return Err(Error::format(path, None, "a file", "a folder", "name a file in it"));
        }
        if about.len() == 0 {
            // An empty file cannot be mapped everywhere; the readers say what is wrong with it.
            return Ok(Self::Owned(Vec::new()));
        }
        let file = File::open(path).map_err(|source| Error::file("open", path, source))?;
        // SAFETY: the mapping is read-only and shared, and this value is its only owner. The bytes behind it change only
        // if another process rewrites the file in place, which the type's documentation tells users not to do; every
        // read copies plain bytes through bounds-checked slices, so no invariant of ours rests on their content.
        let mapping = unsafe { Mmap::map(&file) }.map_err(|source| Error::file("map", path, source))?;
        Ok(Self::Mapped(mapping))
    }

    fn as_slice(&self) -> &[u8] {
        match self {
            Self::Mapped(mapping) => mapping,
            Self::Owned(bytes) => bytes,
        }
    }

    /// Lets the system drop the pages of `range`, so that a model being read does not stay resident beside its copy.
    fn release(&self, range: Range<usize>) {
        #[cfg(unix)]
        if let Self::Mapped(mapping) = self
            && range.len() >= RELEASED_BYTES
            && range.end <= mapping.len()
        {
            // SAFETY: the mapping is a shared, read-only one of a file, for which MADV_DONTNEED only drops resident pages:
            // a later read, through a slice that is alive now too, faults the same bytes in from the file again.
            let advised = unsafe {
                mapping.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, range.start, range.len())
            };
            // Advice that the system does not take costs memory, not correctness.
            drop(advised);
        }
        #[cfg(not(unix))]
        drop(range);
    }
}

type Found = (BTreeMap<String, Entry>, HashMap<String, String>);

fn safetensors_entries(path: &Path, bytes: &[u8]) -> Result<Found> {
    let broken = |found: String| {
        Error::format(
            path,
            None,
            "a safetensors file",
            found,
            "the file is damaged or cut short; fetch it again, or, if a run wrote it, put back a copy or train again",
        )
    };
    let Some((length, rest)) = bytes.split_first_chunk::<8>() else {
        return Err(broken(instead(bytes)));
    };
    let length = u64::from_le_bytes(*length);
    let header = match usize::try_from(length) {
        Ok(length_) if length <= SAFETENSORS_HEADER_BYTES => rest.split_at_checked(length_),
        _ => None,
    };
    let Some((header, data)) = header else {
        let found = format!("a header of {length} bytes in a file of {} ({})", bytes.len(), instead(bytes));
        return Err(broken(found));
    };
    // The crate checks that the tensors follow one another without gaps and are as long as their shapes imply.
    let header: safetensors::tensor::Metadata =
        serde_json::from_slice(header).map_err(|error| broken(format!("a header with {error}")))?;
    if header.data_len() != data.len() {
        return Err(broken(format!(
            "a header that describes {} bytes of data before {} bytes",
            header.data_len(),
            data.len()
        )));
    }
    let start = bytes.len() - data.len();
    let mut entries = BTreeMap::new();
    for (name, info) in header.tensors() {
        let (from, to) = info.data_offsets;
        if from > to || to > data.len() {
            return Err(broken(format!("a tensor {name} past the end of the file")));
        }
        let entry = Entry {
            element: element_type(info.dtype),
            shape: info.shape.clone(),
            bytes: start + from..start + to,
            strides: None,
        };
        entries.insert(name, entry);
    }
    Ok((entries, header.metadata().clone().unwrap_or_default()))
}

fn element_type(dtype: Dtype) -> ElementType {
    match dtype {
        Dtype::F32 => ElementType::F32,
        Dtype::BF16 => ElementType::Bf16,
        Dtype::F16 => ElementType::F16,
        Dtype::F64 => ElementType::F64,
        Dtype::I64 => ElementType::Other("i64"),
        Dtype::I32 => ElementType::Other("i32"),
        Dtype::I16 => ElementType::Other("i16"),
        Dtype::I8 => ElementType::Other("i8"),
        Dtype::U64 => ElementType::Other("u64"),
        Dtype::U32 => ElementType::Other("u32"),
        Dtype::U16 => ElementType::Other("u16"),
        Dtype::U8 => ElementType::Other("u8"),
        Dtype::BOOL => ElementType::Other("bool"),
        Dtype::C64 => ElementType::Other("complex"),
        _ => ElementType::Other(SMALL_FLOAT),
    }
}

/// Converts row-major little-endian elements; `bytes` and `values` are of equal count by the entry's invariant.
fn convert(element: ElementType, bytes: &[u8], values: &mut [f32]) {
    match element {
        ElementType::F32 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_le_bytes(*bytes);
            }
        }
        ElementType::Bf16 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                *value = f32::from_bits(u32::from(u16::from_le_bytes(*bytes)) << 16);
            }
        }
        ElementType::F16 => {
            let mut block = [half::f16::ZERO; BLOCK];
            for (values, bytes) in values.chunks_mut(BLOCK).zip(bytes.chunks(2 * BLOCK)) {
                let block = &mut block[..values.len()];
                for (value, bytes) in block.iter_mut().zip(bytes.as_chunks().0) {
                    *value = half::f16::from_le_bytes(*bytes);
                }
                block.convert_to_f32_slice(values);
            }
        }
        ElementType::F64 => {
            for (value, bytes) in values.iter_mut().zip(bytes.as_chunks().0) {
                *value = f64::from_le_bytes(*bytes) as f32;
            }
        }
        ElementType::Other(_) => {}
    }
}

/// Copies a strided view into row-major order; `None` where an index falls outside `bytes`.
fn gather(bytes: &[u8], width: usize, shape: &[usize], strides: &[usize]) -> Option<Vec<u8>> {
    let elements = shape.iter().try_fold(1usize, |product, &size| product.checked_mul(size))?;
    // A view may repeat its storage (stride 0); such a one is refused, so the copy is never longer than the file.
    if elements.checked_mul(width)? > bytes.len() || shape.len() != strides.len() {
        return None;
    }
    let mut gathered = Vec::with_capacity(elements * width);
    let mut index = vec![0usize; shape.len()];
    for _ in 0..elements {
        let mut at = 0usize;
        for (&index, &stride) in index.iter().zip(strides) {
            at = at.checked_add(index.checked_mul(stride)?)?;
        }
        let from = at.checked_mul(width)?;
        gathered.extend_from_slice(bytes.get(from..from.checked_add(width)?)?);
        for (index, &size) in index.iter_mut().zip(shape).rev() {
            *index += 1;
            if *index < size {
                break;
            }
            *index = 0;
        }
    }
    Some(gathered)
}
