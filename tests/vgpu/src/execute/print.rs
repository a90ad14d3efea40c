//! `vprintf`: what a kernel prints comes on the program's standard output, through C's buffer, as a device has it.

use std::ffi::CString;

use super::access::lanes_of;
use super::block::Room;
use super::warp::{Next, Warp, space_of};
use crate::check::Check;
use crate::program::{LOCAL_WINDOW, SHARED_WINDOW};
use crate::ptx::Space;

/// Bytes of a text at which it is cut.
const LONGEST: usize = 1 << 12;

impl Warp {
    /// Reads bytes at a generic address, without checks; none where they are not all there.
    fn peek<const N: usize>(&self, room: &Room<'_>, lane: usize, address: u64) -> Option<[u8; N]> {
        let mut out = [0; N];
        let from = match space_of(address) {
            Space::Local => {
                let start = lane * room.launch.program.local + (address - LOCAL_WINDOW) as usize;
                self.local.get(start..start + N)?
            }
            Space::Shared => {
                let (block, offset) = room.cluster.split(address - SHARED_WINDOW);
                let start = block * room.cluster.stride + offset as usize;
                room.shared.data.get(start..start + N)?
            }
            _ => {
                let memory = room.launch.memory;
                let allocation = memory.get(memory.find(address, N)?)?;
                return allocation.read(address, &mut out).then_some(out);
            }
        };
        out.copy_from_slice(from);
        Some(out)
    }

    /// A text that ends in 0.
    fn text(&self, room: &Room<'_>, lane: usize, address: u64) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        while out.len() < LONGEST {
            match self.peek::<1>(room, lane, address + out.len() as u64)? {
                [0] => break,
                [byte] => out.push(byte),
            }
        }
        Some(out)
    }

    /// Prints for each lane, one after the other.
    #[cold]
    pub(super) fn print(
        &mut self,
        room: &mut Room<'_>,
        me: usize,
        at: usize,
        mask: u32,
        [count, format, values]: [u32; 3],
    ) -> Next {
        for lane in lanes_of(mask) {
            let format = self.registers.longs[format as usize].0[lane];
            let values = self.registers.longs[values as usize].0[lane];
            let printed = self.text(room, lane, format).and_then(|format| {
                let mut place = values;
                let mut taken = 0;
                let text = formatted(&format, |wanted| {
                    taken += 1;
                    let size = if wanted == Wanted::Word { 4 } else { 8 };
                    place = place.next_multiple_of(size);
                    let here = place;
                    place += size;
                    match wanted {
                        Wanted::Word => {
                            let word = self.peek(room, lane, here)?;
                            Some(Value::Number(u64::from(u32::from_le_bytes(word))))
                        }
                        Wanted::Long => Some(Value::Number(u64::from_le_bytes(self.peek(room, lane, here)?))),
                        Wanted::Text => {
                            let address = u64::from_le_bytes(self.peek(room, lane, here)?);
                            Some(Value::Text(self.text(room, lane, address)?))
                        }
                    }
                })?;
                Some((text, taken))
            });
            let Some((text, taken)) = printed else {
                room.report(Check::OutOfBounds, at, me, lane, || {
                    "the format or a value of printf lies where nothing is allocated".to_string()
                });
                return Next::Fault;
            };
            put(text);
            self.registers.words[count as usize].0[lane] = taken;
        }
        Next::Continue
    }
}

/// Writes on C's standard output, so that it keeps its order with what the program prints itself.
fn put(mut text: Vec<u8>) {
    text.retain(|&byte| byte != 0);
    if let Ok(text) = CString::new(text) {
        // SAFETY: a format of one text, and the text.
        unsafe { libc::printf(c"%s".as_ptr(), text.as_ptr()) };
    }
}

/// What a conversion takes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Wanted {
    /// 4 bytes.
    Word,
    /// 8 bytes.
    Long,
    /// The address of a text.
    Text,
}

/// What it was given.
enum Value {
    /// Bits of a number.
    Number(u64),
    /// A text.
    Text(Vec<u8>),
}

/// The text of a format, whose values `take` gives one after the other; none where it has none.
fn formatted(format: &[u8], mut take: impl FnMut(Wanted) -> Option<Value>) -> Option<Vec<u8>> {
    let mut out = Vec::new();
    let mut at = 0;
    while at < format.len() {
        if format[at] != b'%' {
            out.push(format[at]);
            at += 1;
            continue;
        }
        let start = at;
        at += 1;
        // Flags, width and precision, of which those that are `*` come from the values.
        let mut spec = b"%".to_vec();
        while let Some(byte) = format.get(at).filter(|byte| b"-+ #0123456789.*".contains(byte)) {
            match byte {
                b'*' => {
                    let Value::Number(width) = take(Wanted::Word)? else { return None };
                    spec.extend((width as i32).to_string().bytes());
                }
                byte => spec.push(*byte),
            }
            at += 1;
        }
        let lengths = format[at..].iter().take_while(|byte| b"hlLqjzt".contains(byte)).count();
        let length = &format[at..at + lengths];
        at += lengths;
        let Some(&conversion) = format.get(at) else {
            out.extend(&format[start..]);
            break;
        };
        at += 1;
        let long = length.iter().any(|byte| b"lqjzt".contains(byte));
        match conversion {
            b'%' => out.push(b'%'),
            b'd' | b'i' | b'u' | b'x' | b'X' | b'o' | b'c' => {
                let wanted = if long { Wanted::Long } else { Wanted::Word };
                let Value::Number(bits) = take(wanted)? else { return None };
                let bits = match (long, conversion, length) {
                    (true, ..) => bits,
                    (_, b'd' | b'i', b"hh") => bits as i8 as u64,
                    (_, b'd' | b'i', b"h") => bits as i16 as u64,
                    (_, b'd' | b'i', _) => bits as i32 as u64,
                    (_, _, b"hh") => bits & 0xff,
                    (_, _, b"h") => bits & 0xffff,
                    _ => bits,
                };
                if conversion != b'c' {
                    spec.extend(b"ll");
                }
                spec.push(conversion);
                out.extend(by_c(spec, |room, size, spec| {
                    // SAFETY: room of the size, and a format of one number of 64 bits, or a character.
                    unsafe { libc::snprintf(room, size, spec, bits) }
                }));
            }
            b'f' | b'F' | b'e' | b'E' | b'g' | b'G' | b'a' | b'A' => {
                let Value::Number(bits) = take(Wanted::Long)? else { return None };
                spec.push(conversion);
                out.extend(by_c(spec, |room, size, spec| {
                    // SAFETY: room of the size, and a format of one f64.
                    unsafe { libc::snprintf(room, size, spec, f64::from_bits(bits)) }
                }));
            }
            b'p' => {
                let Value::Number(bits) = take(Wanted::Long)? else { return None };
                out.extend(format!("0x{bits:x}").bytes());
            }
            b's' => {
                let Value::Text(text) = take(Wanted::Text)? else { return None };
                let text = CString::new(text).ok()?;
                spec.push(b's');
                out.extend(by_c(spec, |room, size, spec| {
                    // SAFETY: room of the size, and a format of one text.
                    unsafe { libc::snprintf(room, size, spec, text.as_ptr()) }
                }));
            }
            // What is no conversion is printed as it stands.
            _ => out.extend(&format[start..at]),
        }
    }
    Some(out)
}

/// What C makes of one conversion.
fn by_c(spec: Vec<u8>, go: impl Fn(*mut libc::c_char, usize, *const libc::c_char) -> libc::c_int) -> Vec<u8> {
    let Ok(spec) = CString::new(spec) else { return Vec::new() };
    let mut room = vec![0u8; LONGEST];
    let written = go(room.as_mut_ptr().cast(), room.len(), spec.as_ptr());
    room.truncate(usize::try_from(written).unwrap_or(0).min(LONGEST - 1));
    room
}
