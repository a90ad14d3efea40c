//! The PTX in what modules are loaded from: text, fatbins, and what the compiler wraps them in.

use std::io::Read;

use super::state::State;
use crate::codes::*;

/// The first bytes of a fatbin.
const FATBIN: u32 = 0xba55_ed50;
/// The first bytes of what the compiler's start-up code hands on.
const WRAPPER: u32 = 0x4662_43b1;
/// A wrapper of this version names the fatbins that were linked, and not a file.
const LINKED: u32 = 2;
/// More text than any program has: a damaged size is not to take the memory of the host.
const MAX_TEXT: usize = 1 << 30;

/// Why there is no PTX: the driver's error number, and words.
type Refusal = (u32, String);

fn no_image(why: &str) -> Refusal {
    (NO_BINARY_FOR_GPU, why.to_string())
}

/// What `__cudaRegisterFatBinary` is given, and the driver by CUDA's own runtime.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct Wrapper {
    magic: u32,
    version: u32,
    data: *const u8,
    /// Fatbins that were linked with `-rdc=true`, up to a null pointer, where the version says so.
    linked: *const *const u8,
}

/// The PTX of an image as `cuModuleLoadData` gets it: text, a fatbin that holds text, or a wrapper of fatbins.
///
/// # Safety
/// `image` points to PTX text that ends in 0, to a whole fatbin or cubin, or to a wrapper of those.
pub(super) unsafe fn ptx_of_image(image: *const u8, state: &State) -> Result<String, Refusal> {
    // SAFETY: every image has at least four bytes; PTX begins with a comment or a directive.
    let magic = unsafe { image.cast::<u32>().read_unaligned() };
    match magic.to_le() {
        // SAFETY: an image with these first bytes is a wrapper, by the caller's promise.
        WRAPPER => unsafe { ptx_of_wrapper(image.cast::<Wrapper>().read_unaligned(), state) },
        FATBIN => {
            // SAFETY: a fatbin's header is 16 bytes and says how many follow.
            let whole = unsafe {
                let header = std::slice::from_raw_parts(image, 16);
                let size = u64::from_le_bytes(header[8..16].try_into().unwrap_or_default());
                std::slice::from_raw_parts(image, 16 + usize::try_from(size.min(1 << 32)).unwrap_or(0))
            };
            ptx_of_fatbin(whole, state.device.profile.capability)
        }
        magic if magic.to_le_bytes() == *b"\x7fELF" => {
            Err(no_image("a cubin cannot be run here; load PTX instead"))
        }
        _ => {
            // SAFETY: text that ends in 0, by the caller's promise.
            let text = unsafe { std::ffi::CStr::from_ptr(image.cast()) };
            text.to_str().map(str::to_string).map_err(|_| (INVALID_PTX, "PTX that is not text".to_string()))
        }
    }
}

/// The PTX of a wrapper: its fatbin's, or, where the compiler linked several, theirs behind each other. The linker
/// leaves machine code alone in the wrapper's own fatbin.
///
/// # Safety
/// The wrapper is the compiler's.
unsafe fn ptx_of_wrapper(wrapper: Wrapper, state: &State) -> Result<String, Refusal> {
    let mut text = String::new();
    if wrapper.version == LINKED && !wrapper.linked.is_null() {
        let mut next = wrapper.linked;
        // SAFETY: the list of the compiler ends in a null pointer, and what it lists are whole fatbins.
        unsafe {
            while !(*next).is_null() {
                text.push_str(&ptx_of_image(*next, state)?);
                text.push('\n');
                next = next.add(1);
            }
        }
    }
    if !text.is_empty() {
        return Ok(text);
    }
    if wrapper.data.is_null() {
        return Err((INVALID_VALUE, "no image".to_string()));
    }
    // SAFETY: the fatbin of a wrapper of the compiler.
    unsafe { ptx_of_image(wrapper.data, state) }
}

/// The PTX of the newest architecture in a fatbin that a device can run.
pub(super) fn ptx_of_fatbin(whole: &[u8], capability: (u32, u32)) -> Result<String, Refusal> {
    const PTX: u16 = 1;
    let mut best: Option<Entry<'_>> = None;
    // Kinds and architectures that cannot be run, for the message.
    let mut others: Vec<String> = Vec::new();
    let mut at = 16;
    while let Some(entry) = Entry::at(whole, at) {
        if entry.kind != PTX {
            others.push(format!("machine code of sm_{}", entry.architecture));
        } else if entry.architecture > capability.0 * 10 + capability.1 {
            others.push(format!("PTX of compute_{}", entry.architecture));
        } else if best.as_ref().is_none_or(|known| entry.architecture > known.architecture) {
            best = Some(entry);
        }
        at = entry.end;
    }
    match best {
        Some(entry) => entry.text(),
        None if others.is_empty() => Err(no_image("the fatbin holds no PTX")),
        None => Err(no_image(&format!(
            "the fatbin holds no PTX that sm_{}{} can run, but {}",
            capability.0,
            capability.1,
            others.join(", ")
        ))),
    }
}

/// An image in a fatbin.
#[derive(Clone, Copy)]
struct Entry<'a> {
    kind: u16,
    architecture: u32,
    flags: u64,
    /// Bytes of the image when it is not compressed; 0 where nothing is said.
    size: usize,
    payload: &'a [u8],
    /// Where the next one begins.
    end: usize,
}

impl<'a> Entry<'a> {
    /// Reads the header at a place; none where the fatbin ends, or makes no sense.
    fn at(whole: &'a [u8], at: usize) -> Option<Self> {
        const HEADER: usize = 64;
        let header = whole.get(at..at.checked_add(HEADER)?)?;
        let word = |at: usize| header[at..at + 4].try_into().map(u32::from_le_bytes).unwrap_or(0);
        let long = |at: usize| header[at..at + 8].try_into().map(u64::from_le_bytes).unwrap_or(0);
        let begin = at.checked_add(usize::try_from(word(4)).ok().filter(|length| *length >= 16)?)?;
        let end = begin.checked_add(usize::try_from(long(8)).ok()?)?;
        let payload = whole.get(begin..end)?;
        // What is compressed ends before the padding.
        let packed = word(16) as usize;
        let payload = if packed == 0 { payload } else { payload.get(..packed)? };
        let (kind, size) = (word(0) as u16, usize::try_from(long(56)).ok()?);
        Some(Self { kind, architecture: word(28), flags: long(40), size, payload, end })
    }

    /// The text of PTX, decompressed.
    fn text(&self) -> Result<String, Refusal> {
        // Flags of the compressions that nvcc uses: LZ4 up to CUDA 12, Zstandard since.
        const LZ4: u64 = 0x2000;
        const ZSTANDARD: u64 = 0x8000;
        const ANY: u64 = 0xf000;
        let broken =
            |why: &str| (INVALID_PTX, format!("the PTX of the fatbin cannot be decompressed: {why}"));
        if self.flags & ANY != 0 && self.size > MAX_TEXT {
            return Err(broken("it claims to be larger than any"));
        }
        let mut unpacked = Vec::new();
        let bytes = match self.flags & ANY {
            0 => self.payload,
            LZ4 => {
                unpacked.resize(self.size, 0);
                let count = lz4_flex::block::decompress_into(self.payload, &mut unpacked)
                    .map_err(|error| broken(&error.to_string()))?;
                unpacked.truncate(count);
                &unpacked
            }
            ZSTANDARD => {
                ruzstd::decoding::StreamingDecoder::new(self.payload)
                    .map_err(|error| broken(&error.to_string()))?
                    .take(self.size as u64 + 1)
                    .read_to_end(&mut unpacked)
                    .map_err(|error| broken(&error.to_string()))?;
                &unpacked
            }
            _ => return Err(broken("in a way that is not known; build with nvcc --compress-mode=none")),
        };
        if self.flags & ANY != 0 && bytes.len() != self.size {
            return Err(broken("it is not as long as it says"));
        }
        let end = bytes.iter().position(|&byte| byte == 0).unwrap_or(bytes.len());
        Ok(String::from_utf8_lossy(&bytes[..end]).into_owned())
    }
}
