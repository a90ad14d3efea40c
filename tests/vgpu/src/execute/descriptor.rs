//! Descriptors of matrices in shared memory, as `wgmma` takes them: the table "Matrix descriptor" of the PTX manual, and
//! the layouts of its section on shared memory.
//!
//! In units of 16 bytes, which are eight 16-bit elements, a matrix is made of atoms of eight by `span / 16` units:
//!
//! * k innermost: unit `h` of row `m` lies at `(m % 8) span + (m / 8) stride`, plus 16 `h` within a span. Without a
//!   permutation a span is one unit, and units of a row are `leading` apart.
//! * rows innermost: unit `g` (rows 8 g to 8 g + 7) at depth `k` lies at `(g % s) 16 + (g / s) leading + (k % 8) span +
//!   (k / 8) stride` with `s = span / 16`. Without a permutation the two strides change roles.

/// A decoded descriptor.
#[derive(Clone, Copy, Debug)]
pub(super) struct Descriptor {
    start: u64,
    leading: u64,
    stride: u64,
    base: u64,
    /// Bytes within which units are permuted; 16 for none.
    pub span: u64,
}

/// Bits that belong to no field.
const RESERVED: u64 = 0b11 << 14 | 0b11 << 30 | 0b111 << 46 | 0x3ff << 52;

impl Descriptor {
    /// Reads the fields.
    ///
    /// # Errors
    /// Bits outside them, or an atom that begins where it cannot.
    pub fn decode(bits: u64) -> Result<Self, String> {
        if bits & RESERVED != 0 {
            return Err(format!(
                "the descriptor 0x{bits:016x} has bits outside its fields: 0x{:x}",
                bits & RESERVED
            ));
        }
        let field = |shift: u32| (bits >> shift & 0x3fff) << 4;
        let span = match bits >> 62 {
            0 => 16,
            1 => 128,
            2 => 64,
            _ => 32,
        };
        let out = Self { start: field(0), leading: field(16), stride: field(32), base: bits >> 49 & 7, span };
        let repeat = 8 * span;
        if span > 16 && out.base == 0 && out.start % repeat >= span {
            return Err(format!(
                "the matrix begins at shared address {}, not in the first row of an atom of {repeat} bytes, and the base offset is 0",
                out.start
            ));
        }
        Ok(out)
    }

    /// Where unit `half` of a row lies, k innermost.
    pub fn along_k(&self, row: usize, half: usize) -> u64 {
        let step = if self.span == 16 { self.leading } else { 16 };
        let (row, half) = (row as u64, half as u64);
        self.permuted(self.start + row % 8 * self.span + row / 8 * self.stride + half * step)
    }

    /// Where the unit of eight rows at a depth lies, rows innermost.
    pub fn along_rows(&self, group: usize, k: usize) -> u64 {
        let (group, k) = (group as u64, k as u64);
        if self.span == 16 {
            return self.start + group * self.stride + k % 8 * 16 + k / 8 * self.leading;
        }
        let units = self.span / 16;
        let offset =
            group % units * 16 + group / units * self.leading + k % 8 * self.span + k / 8 * self.stride;
        self.permuted(self.start + offset)
    }

    fn permuted(&self, address: u64) -> u64 {
        if self.span == 16 {
            return address;
        }
        let phase = (address >> 7).wrapping_sub(self.base) & (self.span / 16 - 1);
        address ^ phase << 4
    }
}
