//! The kernels for programs in other languages: images for their loaders, and the interface as a C header and as JSON.

use super::runtime::kernels::HOPPER;
use super::{ARCHITECTURES, FATBINS};
use crate::error::{Error, Result};

/// A number of all that [`HEADER`] declares: header, kernels and library that belong together have the same.
pub const ABI: u32 = include!(concat!(env!("OUT_DIR"), "/abi.rs"));
/// `promptmix.h`, for C11 and C++17: argument structs made from the kernels' files, launch rules, and the functions of the library
/// that the feature `capi` builds.
pub const HEADER: &str = include_str!(concat!(env!("OUT_DIR"), "/promptmix.h"));
/// Constants, enums, structs with the places of their fields, and kernels, as JSON.
pub const DESCRIPTION: &str = include_str!(concat!(env!("OUT_DIR"), "/promptmix.json"));

/// Which of a fatbin's images.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Architecture {
    /// All, in the fatbin itself.
    All,
    /// The machine code of `sm_N`.
    Machine(u32),
    /// The PTX of `compute_N`, which a driver compiles.
    Ptx(u32),
}

impl std::str::FromStr for Architecture {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        let number = |prefix: &str| name.strip_prefix(prefix)?.parse().ok();
        match (name, number("sm_"), number("compute_")) {
            ("all", ..) => Ok(Self::All),
            (_, Some(number), _) => Ok(Self::Machine(number)),
            (_, _, Some(number)) => Ok(Self::Ptx(number)),
            _ => Err(Error::setting("--arch", "all, sm_N or compute_N", name, "")),
        }
    }
}

/// A kernel file's image for `cuModuleLoadData`.
#[derive(Clone, Copy, Debug)]
pub struct Image {
    /// The stem of the kernel file.
    pub stem: &'static str,
    /// `fatbin`, `cubin` or `ptx`.
    pub extension: &'static str,
    /// Its content. PTX is text, and a loader wants a 0 after it.
    pub bytes: &'static [u8],
}

/// The images of all kernel files; those for compute capability 9.0 alone, `..._hopper`, only where they have such an image.
///
/// ```
/// use promptmix::cuda::export::{Architecture, images};
///
/// # if promptmix::cuda::FATBINS.is_empty() { return; }
/// let images = images(Architecture::Ptx(80)).expect("every build has PTX of compute_80");
/// assert!(images.iter().any(|image| image.stem == "attention" && image.extension == "ptx"));
/// ```
///
/// # Errors
/// [`Error::Unsupported`] if this build has no kernels, or none of that architecture.
pub fn images(of: Architecture) -> Result<Vec<Image>> {
    if FATBINS.is_empty() {
        return Err(Error::unsupported(
            "the export of kernels",
            "this program was built without nvcc and holds none",
            "install the CUDA toolkit (or run scripts/install-cuda-compiler in the sources) and build again",
        ));
    }
    let image_of = |&(stem, fatbin): &(&'static str, &'static [u8])| {
        let extension = match of {
            Architecture::All => "fatbin",
            Architecture::Machine(_) => "cubin",
            Architecture::Ptx(_) => "ptx",
        };
        match image(fatbin, of) {
            Some(bytes) => Some(Ok(Image { stem, extension, bytes })),
            None if stem.ends_with(HOPPER) => None,
            None => Some(Err(missing(of))),
        }
    };
    FATBINS.iter().filter_map(image_of).collect()
}

fn missing(of: Architecture) -> Error {
    let machine = ARCHITECTURES.iter().map(|number| format!("sm_{number}"));
    let all: Vec<String> = machine.chain(["PTX of compute_80".to_owned()]).collect();
    let what = match of {
        Architecture::All => "all".to_owned(),
        Architecture::Machine(number) => format!("sm_{number}"),
        Architecture::Ptx(number) => format!("compute_{number}"),
    };
    Error::unsupported(
        format!("--arch {what}"),
        format!("this build has {}", all.join(", ")),
        "take one of them, or build with that number in PROMPTMIX_CUDA_ARCHS",
    )
}

const PTX: u16 = 1;
const MACHINE: u16 = 2;
const MAGIC: u32 = 0xBA55_ED50;

/// An image of a fatbin that is not compressed, as [`FATBINS`] are not: a header of 16 bytes, and images after headers of their own.
/// `None` where there is none of that architecture.
pub fn image(fatbin: &[u8], of: Architecture) -> Option<&[u8]> {
    let half = |from: &[u8], at: usize| Some(u16::from_le_bytes(from.get(at..at + 2)?.try_into().ok()?));
    let word = |from: &[u8], at: usize| Some(u32::from_le_bytes(from.get(at..at + 4)?.try_into().ok()?));
    let long = |from: &[u8], at: usize| {
        let bytes = from.get(at..at + 8)?.try_into().ok()?;
        usize::try_from(u64::from_le_bytes(bytes)).ok()
    };
    let (kind, architecture) = match of {
        Architecture::All => return Some(fatbin),
        Architecture::Machine(number) => (MACHINE, number),
        Architecture::Ptx(number) => (PTX, number),
    };
    if word(fatbin, 0)? != MAGIC {
        return None;
    }
    let mut rest = fatbin.get(usize::from(half(fatbin, 6)?)..)?;
    while !rest.is_empty() {
        let (header, length) = (usize::try_from(word(rest, 4)?).ok()?, long(rest, 8)?);
        let end = header.checked_add(length).filter(|end| *end > 0)?;
        if half(rest, 0)? == kind && word(rest, 28)? == architecture {
            let bytes = rest.get(header..end)?;
            // Text is padded with zeros.
            let text = bytes.iter().position(|&byte| byte == 0).filter(|_| kind == PTX);
            return bytes.get(..text.unwrap_or(bytes.len()));
        }
        rest = rest.get(end..)?;
    }
    None
}
