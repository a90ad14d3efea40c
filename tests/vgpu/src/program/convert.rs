//! `cvt` and `cvt.pack` in all their forms. The common ones are lane operations; the rest go lane by lane.

use super::arithmetic::rounding;
use super::lanes::{Brain, Half, LaneOp, lane_op};
use crate::number::{self, BF16, E4M3, E5M2, F16, Rounding};

/// A type that `cvt` knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scalar {
    /// Unsigned, by bits.
    Unsigned(u32),
    /// Signed, by bits.
    Signed(u32),
    /// bf16
    Brain,
    /// f16
    Half,
    /// tf32
    Tf32,
    /// f32
    Single,
    /// f64
    Double,
    /// e4m3
    E4M3,
    /// e5m2
    E5M2,
}

impl Scalar {
    /// The scalar of a type name, and how many of it the type packs.
    pub fn parse(name: &str) -> Option<(Self, usize)> {
        Some(match name {
            "u8" | "b8" => (Self::Unsigned(8), 1),
            "u16" | "b16" => (Self::Unsigned(16), 1),
            "u32" | "b32" => (Self::Unsigned(32), 1),
            "u64" | "b64" => (Self::Unsigned(64), 1),
            "s8" => (Self::Signed(8), 1),
            "s16" => (Self::Signed(16), 1),
            "s32" => (Self::Signed(32), 1),
            "s64" => (Self::Signed(64), 1),
            "bf16" => (Self::Brain, 1),
            "f16" => (Self::Half, 1),
            "tf32" => (Self::Tf32, 1),
            "f32" => (Self::Single, 1),
            "f64" => (Self::Double, 1),
            "bf16x2" => (Self::Brain, 2),
            "f16x2" => (Self::Half, 2),
            "e4m3x2" => (Self::E4M3, 2),
            "e5m2x2" => (Self::E5M2, 2),
            _ => return None,
        })
    }

    /// Bits of one value.
    pub fn bits(self) -> u32 {
        match self {
            Self::Unsigned(bits) | Self::Signed(bits) => bits,
            Self::Brain | Self::Half => 16,
            Self::Tf32 | Self::Single => 32,
            Self::Double => 64,
            Self::E4M3 | Self::E5M2 => 8,
        }
    }

    fn is_integer(self) -> bool {
        matches!(self, Self::Unsigned(_) | Self::Signed(_))
    }
}

/// A conversion, done lane by lane.
#[derive(Clone, Debug)]
pub struct Conversion {
    /// Type of the result and how many are packed.
    pub to: (Scalar, usize),
    /// Type of the source and how many are packed.
    pub from: (Scalar, usize),
    /// The rounding mode; none leaves integral rounding out.
    pub rounding: Rounding,
    /// Round to an integral value, though the result is a float.
    pub integral: bool,
    /// `.sat`
    pub saturate: bool,
    /// `.satfinite`
    pub finite: bool,
    /// `.relu`
    pub relu: bool,
    /// `.ftz`
    pub flush: bool,
    /// The destination slot.
    pub destination: u32,
    /// Source slots: two where two f32 are packed, highest first.
    pub sources: Vec<u32>,
}

impl Conversion {
    /// Reads the opcode; the slots are left for the caller to fill.
    pub fn parse(opcode: &str) -> Option<Self> {
        let parts: Vec<&str> = opcode.split('.').collect();
        let (from, to) = (parts.last()?, parts.get(parts.len().checked_sub(2)?)?);
        let known = [
            "cvt",
            "rn",
            "rz",
            "rm",
            "rp",
            "rna",
            "rni",
            "rzi",
            "rmi",
            "rpi",
            "ftz",
            "sat",
            "satfinite",
            "relu",
        ];
        if parts[..parts.len() - 2].iter().any(|part| !known.contains(part)) {
            return None;
        }
        let has = |word: &str| parts.contains(&word);
        let (to, from) = (Scalar::parse(to)?, Scalar::parse(from)?);
        let fits = match (to.1, from.1) {
            (1, 1) => true,
            (2, 1) => from.0 == Scalar::Single,
            (2, 2) => matches!(from.0, Scalar::E4M3 | Scalar::E5M2) || from.0 == Scalar::Half,
            _ => false,
        };
        fits.then(|| Self {
            to,
            from,
            rounding: rounding(&parts),
            integral: ["rni", "rzi", "rmi", "rpi"].iter().any(|word| has(word)),
            saturate: has("sat"),
            finite: has("satfinite"),
            relu: has("relu"),
            flush: has("ftz"),
            destination: 0,
            sources: Vec::new(),
        })
    }

    /// Whether the destination is a 64-bit register, by its type alone.
    pub fn convert(&self, sources: &[u64]) -> u64 {
        if self.to.1 == 2 {
            let width = self.to.0.bits();
            let (high, low) = match (self.from.1, sources) {
                (1, [high, low]) => (*high, *low),
                (_, [both]) => (both >> self.from.0.bits(), *both),
                _ => (0, 0),
            };
            return self.one(high) << width | self.one(low);
        }
        self.one(sources.first().copied().unwrap_or(0))
    }

    fn one(&self, source: u64) -> u64 {
        let narrow = |bits: u32| source & (u64::MAX >> (64 - bits));
        if self.from.0.is_integer() {
            let value = match self.from.0 {
                Scalar::Signed(bits) => i128::from((source << (64 - bits)) as i64 >> (64 - bits)),
                other => i128::from(narrow(other.bits())),
            };
            return self.integer_to(value);
        }
        let mut value = match self.from.0 {
            Scalar::Brain => BF16.decode(narrow(16) as u32),
            Scalar::Half => F16.decode(narrow(16) as u32),
            Scalar::E4M3 => E4M3.decode(narrow(8) as u32),
            Scalar::E5M2 => E5M2.decode(narrow(8) as u32),
            Scalar::Double => f64::from_bits(source),
            _ => f64::from(f32::from_bits(source as u32)),
        };
        if self.flush && self.from.0 == Scalar::Single {
            value = f64::from(number::flush(value as f32));
        }
        if self.to.0.is_integer() {
            return self.to_integer(value);
        }
        if self.integral {
            value = number::integral(value, self.rounding);
        }
        if self.saturate {
            value = if value > 0.0 { value.min(1.0) } else { 0.0 };
        }
        if self.relu && value <= 0.0 {
            value = 0.0;
        }
        self.to_float(value)
    }

    fn integer_to(&self, value: i128) -> u64 {
        match self.to.0 {
            Scalar::Unsigned(bits) => {
                let limit = (1i128 << bits) - 1;
                let value = if self.saturate { value.clamp(0, limit) } else { value };
                (value & limit) as u64
            }
            Scalar::Signed(bits) => {
                let limit = 1i128 << (bits - 1);
                let value = if self.saturate { value.clamp(-limit, limit - 1) } else { value };
                // Extended to the width of the register, whatever that is.
                ((value << (128 - bits)) >> (128 - bits)) as u64
            }
            Scalar::Double => {
                let near = value as f64;
                let value = match self.rounding {
                    Rounding::Down if near as i128 > value => near.next_down(),
                    Rounding::Up if (near as i128) < value => near.next_up(),
                    Rounding::Zero if (near as i128).abs() > value.abs() => {
                        if near > 0.0 {
                            near.next_down()
                        } else {
                            near.next_up()
                        }
                    }
                    _ => near,
                };
                value.to_bits()
            }
            // 64-bit integers may round on the way to f64: keep a sticky last bit.
            _ => {
                let near = value as f64;
                let lost = value - near as i128;
                let value = if lost == 0 || near.to_bits() & 1 == 1 {
                    near
                } else if (lost > 0) == (value > 0) {
                    f64::from_bits(near.to_bits() + 1)
                } else {
                    f64::from_bits(near.to_bits() - 1)
                };
                self.to_float(value)
            }
        }
    }

    fn to_integer(&self, value: f64) -> u64 {
        let rounded = number::integral(value, self.rounding);
        // Out of range clamps, with or without .sat; NaN is zero, or the lowest bit pattern of 64 bits.
        match self.to.0 {
            Scalar::Unsigned(64) if value.is_nan() => 1 << 63,
            Scalar::Signed(64) if value.is_nan() => 1 << 63,
            Scalar::Unsigned(bits) => (rounded as i128).clamp(0, (1i128 << bits) - 1) as u64,
            Scalar::Signed(bits) => {
                (rounded as i128).clamp(-(1i128 << (bits - 1)), (1i128 << (bits - 1)) - 1) as i64 as u64
            }
            _ => 0,
        }
    }

    fn to_float(&self, value: f64) -> u64 {
        let bits = match self.to.0 {
            Scalar::Double => return value.to_bits(),
            Scalar::Brain => BF16.encode(value, self.rounding, self.finite),
            Scalar::Half => F16.encode(value, self.rounding, self.finite),
            Scalar::E4M3 => E4M3.encode(value, self.rounding, true),
            Scalar::E5M2 => E5M2.encode(value, self.rounding, true),
            Scalar::Tf32 => {
                // tf32 is f32 with 10 bits of fraction.
                let format = number::Format { exponent: 8, fraction: 10, has_infinity: true };
                if value.is_nan() {
                    0x7fff_ffff
                } else {
                    format.encode(value, self.rounding, self.finite) << 13
                }
            }
            _ => {
                let value = number::to_f32(value, self.rounding);
                let value = if self.flush { number::flush(value) } else { value };
                if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }
            }
        };
        u64::from(bits)
    }
}

/// The lane operation of a conversion, where it has one.
pub fn lookup(opcode: &str) -> Option<LaneOp> {
    Some(match opcode {
        "cvt.rn.bf16.f32" => lane_op!(|a: f32| -> Brain { Brain(a) }),
        "cvt.rn.f16.f32" => lane_op!(|a: f32| -> Half { Half(a) }),
        "cvt.f32.bf16" => lane_op!(|a: Brain| -> f32 { a.0 }),
        "cvt.f32.f16" => lane_op!(|a: Half| -> f32 { a.0 }),
        "cvt.rn.bf16x2.f32" => {
            lane_op!(|a: f32, b: f32| -> u32 { number::to_bf16(a) << 16 | number::to_bf16(b) })
        }
        "cvt.rn.f16x2.f32" => {
            lane_op!(|a: f32, b: f32| -> u32 { number::to_f16(a) << 16 | number::to_f16(b) })
        }
        "cvt.rn.f32.s32" => lane_op!(|a: i32| -> f32 { a as f32 }),
        "cvt.rn.f32.u32" => lane_op!(|a: u32| -> f32 { a as f32 }),
        "cvt.rn.f32.s64" => lane_op!(|a: i64| -> f32 { a as f32 }),
        "cvt.rn.f32.u64" => lane_op!(|a: u64| -> f32 { a as f32 }),
        "cvt.rzi.s32.f32" => lane_op!(|a: f32| -> i32 { a as i32 }),
        "cvt.rzi.u32.f32" => lane_op!(|a: f32| -> u32 { a as u32 }),
        "cvt.rni.s32.f32" => lane_op!(|a: f32| -> i32 { a.round_ties_even() as i32 }),
        "cvt.rni.f32.f32" => lane_op!(|a: f32| -> f32 { a.round_ties_even() }),
        "cvt.rzi.f32.f32" => lane_op!(|a: f32| -> f32 { a.trunc() }),
        "cvt.rmi.f32.f32" => lane_op!(|a: f32| -> f32 { a.floor() }),
        "cvt.rpi.f32.f32" => lane_op!(|a: f32| -> f32 { a.ceil() }),
        "cvt.f64.f32" => lane_op!(|a: f32| -> f64 { f64::from(a) }),
        "cvt.rn.f32.f64" => lane_op!(|a: f64| -> f32 { a as f32 }),
        "cvt.u32.u64" | "cvt.s32.u64" | "cvt.u32.s64" | "cvt.s32.s64" => {
            lane_op!(|a: u64| -> u32 { a as u32 })
        }
        "cvt.u16.u64" | "cvt.u16.s64" | "cvt.s16.s64" | "cvt.s16.u64" => {
            lane_op!(|a: u64| -> u16 { a as u16 })
        }
        "cvt.u64.u32" | "cvt.s64.u32" => lane_op!(|a: u32| -> u64 { u64::from(a) }),
        "cvt.s64.s32" | "cvt.u64.s32" => lane_op!(|a: i32| -> i64 { i64::from(a) }),
        "cvt.u32.u16" | "cvt.s32.u16" => lane_op!(|a: u16| -> u32 { u32::from(a) }),
        "cvt.s32.s16" | "cvt.u32.s16" => lane_op!(|a: i16| -> i32 { i32::from(a) }),
        "cvt.u16.u32" | "cvt.u16.s32" => lane_op!(|a: u16| -> u16 { a }),
        "cvt.s16.s32" | "cvt.s16.u32" => lane_op!(|a: i16| -> i16 { a }),
        "cvt.u32.u8" | "cvt.s32.u8" | "cvt.u16.u8" | "cvt.s16.u8" => {
            lane_op!(|a: u8| -> u32 { u32::from(a) })
        }
        "cvt.s32.s8" | "cvt.s16.s8" => lane_op!(|a: i8| -> i32 { i32::from(a) }),
        "cvt.u64.u16" | "cvt.s64.u16" => lane_op!(|a: u16| -> u64 { u64::from(a) }),
        "cvt.s64.s16" => lane_op!(|a: i16| -> i64 { i64::from(a) }),
        "cvt.u64.u8" => lane_op!(|a: u8| -> u64 { u64::from(a) }),
        _ => return None,
    })
}
