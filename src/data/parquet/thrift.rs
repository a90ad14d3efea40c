//! Steps over a struct in Thrift's compact protocol, in which Parquet writes footers and page headers: whether it is one, within the
//! bytes that it has. The parquet crate steps over as many elements of a list as the list claims, of which some take no bytes.

use std::io::{Read, copy, sink};

/// Structs and lists within each other at most.
const DEPTH: usize = 32;

/// Where a struct is read. Each method gives `None` where there is nothing of the kind.
pub(super) struct Thrift<R> {
    input: R,
    /// Elements of lists that may still come: each takes a byte.
    elements: u64,
}

/// The type of a field or an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Kind(u8);

/// What a field of a known number must be. The crate reads such fields as what they should be, whatever type they say.
#[derive(Clone, Copy, Debug)]
pub(super) enum Shape {
    /// Truth value.
    Bool,
    /// 32 bits.
    I32,
    /// 64 bits.
    I64,
    /// Bytes after their number.
    Binary,
    /// A struct, by its fields' shapes from number 1 on; others it may have are not known.
    Struct(&'static [Shape]),
}

impl Shape {
    /// That of field `number` among `shapes`.
    pub(super) fn of(shapes: &'static [Self], number: i64) -> Option<Self> {
        shapes.get(usize::try_from(number.checked_sub(1)?).ok()?).copied()
    }

    fn fits(self, kind: Kind) -> bool {
        match self {
            Self::Bool => matches!(kind.0, 1 | 2),
            Self::I32 => kind.0 == 5,
            Self::I64 => kind.0 == 6,
            Self::Binary => kind.0 == 8,
            Self::Struct(_) => kind.0 == 12,
        }
    }
}

impl<R: Read> Thrift<R> {
    /// Of `input`, whose structs have at most so many `bytes`.
    pub(super) fn new(input: R, bytes: u64) -> Self {
        Self { input, elements: bytes }
    }

    fn byte(&mut self) -> Option<u8> {
        let mut byte = [0];
        self.input.read_exact(&mut byte).ok()?;
        Some(byte[0])
    }

    /// A number, seven bits a byte.
    pub(super) fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            value |= u64::from(byte & 0x7f) << shift;
            if byte & 0x80 == 0 {
                return Some(value);
            }
        }
        None
    }

    /// A signed number: zigzag.
    pub(super) fn signed(&mut self) -> Option<i64> {
        let value = self.varint()?;
        Some((value >> 1) as i64 ^ -((value & 1) as i64))
    }

    /// Type and number of a struct's next field after that of number `last`; `Some(None)` at the struct's end.
    pub(super) fn field(&mut self, last: i64) -> Option<Option<(Kind, i64)>> {
        let byte = self.byte()?;
        let (difference, kind) = (i64::from(byte >> 4), Kind(byte & 15));
        Some(match (difference, kind) {
            (_, Kind(0)) => None,
            (0, kind) => Some((kind, self.signed()?)),
            (difference, kind) => Some((kind, last.checked_add(difference)?)),
        })
    }

    /// A number of the shape I32 in a field of type `kind`.
    pub(super) fn i32(&mut self, kind: Kind) -> Option<i64> {
        if Shape::I32.fits(kind) { self.signed() } else { None }
    }

    /// Steps over the value of a field that is of this shape, if its number is known.
    pub(super) fn skip(&mut self, kind: Kind, shape: Option<Shape>) -> Option<()> {
        if shape.is_some_and(|shape| !shape.fits(kind)) {
            return None;
        }
        if let Some(Shape::Struct(fields)) = shape {
            let mut number = 0;
            while let Some((kind, next)) = self.field(number)? {
                number = next;
                self.skip(kind, Shape::of(fields, number))?;
            }
            return Some(());
        }
        // A truth value is a part of its field's type.
        if matches!(kind, Kind(1 | 2)) { Some(()) } else { self.skip_within(kind, DEPTH) }
    }

    /// Steps over a struct.
    pub(super) fn skip_struct(&mut self) -> Option<()> {
        self.skip_within(Kind(12), DEPTH)
    }

    fn skip_within(&mut self, kind: Kind, depth: usize) -> Option<()> {
        let depth = depth.checked_sub(1)?;
        match kind.0 {
            3 => self.skip_bytes(1),
            4..=6 => self.varint().map(drop),
            7 => self.skip_bytes(8),
            8 => {
                let length = self.varint()?;
                self.skip_bytes(length)
            }
            9 | 10 => {
                let byte = self.byte()?;
                let count = if byte >> 4 == 15 { self.varint()? } else { u64::from(byte >> 4) };
                self.elements = self.elements.checked_sub(count)?;
                (0..count).try_for_each(|_| self.skip_within(Kind(byte & 15), depth))
            }
            12 => {
                let mut number = 0;
                while let Some((kind, next)) = self.field(number)? {
                    number = next;
                    if !matches!(kind, Kind(1 | 2)) {
                        self.skip_within(kind, depth)?;
                    }
                }
                Some(())
            }
            // Neither footers nor page headers have maps, or lists of truth values.
            _ => None,
        }
    }

    fn skip_bytes(&mut self, count: u64) -> Option<()> {
        let skipped = copy(&mut self.input.by_ref().take(count), &mut sink()).ok()?;
        (skipped == count).then_some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn skips(bytes: &[u8]) -> bool {
        Thrift::new(bytes, bytes.len() as u64).skip_struct().is_some()
    }

    #[test]
    fn a_struct_is_stepped_over_and_claims_are_not_believed() {
        // Field 1: 5; field 2: two bytes; field 3: true; field 4: a list of two structs; field 20: a double.
        let whole =
            [0x15, 10, 0x18, 2, 7, 7, 0x11, 0x19, 0x2c, 0x15, 2, 0, 0, 0x07, 40, 0, 0, 0, 0, 0, 0, 0, 0, 0];
        assert!(skips(&whole));
        for length in 0..whole.len() {
            assert!(!skips(&whole[..length]), "{length}");
        }
        // A list of a billion numbers, and of a billion truth values.
        for kind in [0xf5, 0xf1] {
            assert!(!skips(&[0x19, kind, 0x80, 0x94, 0xeb, 0xdc, 0x03, 0, 0]));
        }
        // Lists within lists without end.
        assert!(!skips(&[[0x19].as_slice(), &[0x19; 100]].concat()));
        assert!(!skips(&[0x18, 0xff, 0xff, 0xff, 0xff, 0x7f, 0]));
        let mut number = Thrift::new(&[0xff; 11][..], 11);
        assert_eq!(number.varint(), None);
        assert_eq!(Thrift::new(&[0x03][..], 1).signed(), Some(-2));
    }
}
