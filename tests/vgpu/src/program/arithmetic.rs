//! What the arithmetic, logic, comparison and bit-field opcodes compute, one line an opcode.
//!
//! [`lookup`] takes an opcode without `.ftz` and `.sat`, which loading composes around it.

use super::floating::{double, half, pair, single, two_singles};
use super::lanes::{Brain, Half, LaneOp, lane_op};
use crate::number::Rounding;

/// Splits an opcode at its dots.
pub fn parts(opcode: &str) -> Vec<&str> {
    opcode.split('.').collect()
}

/// The rounding mode among the modifiers, to nearest when none is stated.
pub fn rounding(parts: &[&str]) -> Rounding {
    for part in parts {
        match *part {
            "rz" | "rzi" => return Rounding::Zero,
            "rm" | "rmi" => return Rounding::Down,
            "rp" | "rpi" => return Rounding::Up,
            "rna" => return Rounding::NearestAway,
            _ => {}
        }
    }
    Rounding::Nearest
}

/// The operation of an opcode, if it is a pure one on registers.
pub fn lookup(opcode: &str) -> Option<LaneOp> {
    let parts = parts(opcode);
    let (&name, &kind) = (parts.first()?, parts.last()?);
    let rounding = rounding(&parts);
    let has = |word: &str| parts.contains(&word);
    // A modifier that no line below asks for would be passed over.
    let float = matches!(kind, "f16" | "bf16" | "f16x2" | "bf16x2" | "f32" | "f32x2" | "f64");
    if float && !matches!(name, "set" | "setp" | "selp" | "slct" | "testp") {
        let known = |part: &str| {
            matches!(
                part,
                "rn" | "rz" | "rm" | "rp" | "approx" | "full" | "NaN" | "relu" | "xorsign" | "abs" | "ftz"
            )
        };
        let modifiers = parts.get(1..parts.len() - 1).unwrap_or_default();
        let signs = [modifiers.contains(&"xorsign"), modifiers.contains(&"abs")];
        let fits = kind == "f32" && signs == [true; 2] && matches!(name, "min" | "max");
        if !modifiers.iter().all(|part| known(part)) || signs.contains(&true) && !fits {
            return None;
        }
    }
    match kind {
        "pred" => logic(name, "b1"),
        "f32x2" => two_singles(name, &parts),
        "b16" | "b32" | "b64"
            if !matches!(name, "prmt" | "cvt" | "shf" | "lop3" | "selp" | "bfi" | "bfe" | "bmsk" | "fns") =>
        {
            if matches!(name, "brev" | "popc" | "clz") {
                integer(&parts)
            } else {
                logic(name, kind)
            }
        }
        "f32" => match name {
            "set" | "slct" | "selp" | "testp" => compare(&parts),
            _ => single(name, &parts, rounding),
        },
        "f64" => match name {
            "set" | "slct" | "selp" | "testp" => compare(&parts),
            _ => double(name, &parts, rounding),
        },
        "bf16" | "f16" if name != "set" && name != "selp" => half(name, kind, has("relu"), has("NaN")),
        "bf16x2" | "f16x2" if name != "set" => pair(name, kind, has("relu"), has("NaN")),
        _ => match name {
            "setp" | "set" | "selp" | "slct" => compare(&parts),
            _ => integer(&parts).or_else(|| fields(&parts)),
        },
    }
    .filter(|_| name != "setp")
}

fn logic(name: &str, kind: &str) -> Option<LaneOp> {
    macro_rules! bits {
        ($type:ty) => {
            match name {
                "and" => lane_op!(|a: $type, b: $type| -> $type { a & b }),
                "or" => lane_op!(|a: $type, b: $type| -> $type { a | b }),
                "xor" => lane_op!(|a: $type, b: $type| -> $type { a ^ b }),
                "not" => lane_op!(|a: $type| -> $type { !a }),
                "mov" => lane_op!(|a: $type| -> $type { a }),
                _ => return None,
            }
        };
    }
    macro_rules! shifts {
        ($type:ty) => {
            match name {
                "shl" => lane_op!(|a: $type, b: u32| -> $type { a.checked_shl(b).unwrap_or(0) }),
                "shr" => lane_op!(|a: $type, b: u32| -> $type { a.checked_shr(b).unwrap_or(0) }),
                "cnot" => lane_op!(|a: $type| -> $type { <$type>::from(a == 0) }),
                _ => bits!($type),
            }
        };
    }
    Some(match kind {
        "b1" => bits!(bool),
        "b16" => shifts!(u16),
        "b32" => shifts!(u32),
        _ => shifts!(u64),
    })
}

fn integer(parts: &[&str]) -> Option<LaneOp> {
    let (&name, &kind) = (parts.first()?, parts.last()?);
    let has = |word: &str| parts.contains(&word);
    macro_rules! family {
        ($type:ty, $unsigned:ty, $wide:ty, $bits:expr) => {
            match name {
                "add" if has("sat") => lane_op!(|a: $type, b: $type| -> $type { a.saturating_add(b) }),
                "sub" if has("sat") => lane_op!(|a: $type, b: $type| -> $type { a.saturating_sub(b) }),
                "add" => lane_op!(|a: $type, b: $type| -> $type { a.wrapping_add(b) }),
                "sub" => lane_op!(|a: $type, b: $type| -> $type { a.wrapping_sub(b) }),
                "mul" if has("lo") => lane_op!(|a: $type, b: $type| -> $type { a.wrapping_mul(b) }),
                "mul" if has("hi") => lane_op!(|a: $type, b: $type| -> $type {
                    ((a as $wide).wrapping_mul(b as $wide) >> $bits) as $type
                }),
                "mad" if has("lo") => {
                    lane_op!(|a: $type, b: $type, c: $type| -> $type { a.wrapping_mul(b).wrapping_add(c) })
                }
                "mad" if has("hi") && has("sat") => lane_op!(|a: $type, b: $type, c: $type| -> $type {
                    (((a as $wide).wrapping_mul(b as $wide) >> $bits) as $type).saturating_add(c)
                }),
                "mad" if has("hi") => lane_op!(|a: $type, b: $type, c: $type| -> $type {
                    (((a as $wide).wrapping_mul(b as $wide) >> $bits) as $type).wrapping_add(c)
                }),
                "div" => {
                    lane_op!(|a: $type, b: $type| -> $type { if b == 0 { !0 } else { a.wrapping_div(b) } })
                }
                "rem" => {
                    lane_op!(|a: $type, b: $type| -> $type { if b == 0 { a } else { a.wrapping_rem(b) } })
                }
                "min" => lane_op!(|a: $type, b: $type| -> $type { if a < b { a } else { b } }),
                "max" => lane_op!(|a: $type, b: $type| -> $type { if a > b { a } else { b } }),
                "neg" => lane_op!(|a: $type| -> $type { a.wrapping_neg() }),
                "sad" => lane_op!(|a: $type, b: $type, c: $unsigned| -> $unsigned {
                    c.wrapping_add((if a < b { b.wrapping_sub(a) } else { a.wrapping_sub(b) }) as $unsigned)
                }),
                "shr" => lane_op!(|a: $type, b: u32| -> $type {
                    // Past the width, a signed value leaves its sign and an unsigned one nothing.
                    if b < $bits { a >> b } else { (a >> ($bits - 1)) >> 1 }
                }),
                "shl" => lane_op!(|a: $type, b: u32| -> $type { a.checked_shl(b).unwrap_or(0) }),
                "mov" => lane_op!(|a: $type| -> $type { a }),
                "popc" => lane_op!(|a: $unsigned| -> u32 { a.count_ones() }),
                "clz" => lane_op!(|a: $unsigned| -> u32 { a.leading_zeros() }),
                "brev" => lane_op!(|a: $unsigned| -> $unsigned { a.reverse_bits() }),
                _ => return None,
            }
        };
    }
    if has("relu") || kind.ends_with("16x2") {
        return packed(&parts.join("."));
    }
    if name == "mul" && has("wide") {
        return Some(match kind {
            "s16" => lane_op!(|a: i16, b: i16| -> i32 { i32::from(a) * i32::from(b) }),
            "u16" => lane_op!(|a: u16, b: u16| -> u32 { u32::from(a) * u32::from(b) }),
            "s32" => lane_op!(|a: i32, b: i32| -> i64 { i64::from(a) * i64::from(b) }),
            "u32" => lane_op!(|a: u32, b: u32| -> u64 { u64::from(a) * u64::from(b) }),
            _ => return None,
        });
    }
    if name == "mad" && has("wide") {
        return Some(match kind {
            "s16" => {
                lane_op!(|a: i16, b: i16, c: i32| -> i32 { (i32::from(a) * i32::from(b)).wrapping_add(c) })
            }
            "u16" => {
                lane_op!(|a: u16, b: u16, c: u32| -> u32 { (u32::from(a) * u32::from(b)).wrapping_add(c) })
            }
            "s32" => {
                lane_op!(|a: i32, b: i32, c: i64| -> i64 { (i64::from(a) * i64::from(b)).wrapping_add(c) })
            }
            "u32" => {
                lane_op!(|a: u32, b: u32, c: u64| -> u64 { (u64::from(a) * u64::from(b)).wrapping_add(c) })
            }
            _ => return None,
        });
    }
    if name == "abs" {
        return Some(match kind {
            "s16" => lane_op!(|a: i16| -> i16 { a.wrapping_abs() }),
            "s32" => lane_op!(|a: i32| -> i32 { a.wrapping_abs() }),
            "s64" => lane_op!(|a: i64| -> i64 { a.wrapping_abs() }),
            _ => return None,
        });
    }
    Some(match kind {
        "u16" | "b16" => family!(u16, u16, u32, 16),
        "s16" => family!(i16, u16, i32, 16),
        "u32" | "b32" => family!(u32, u32, u64, 32),
        "s32" => family!(i32, u32, i64, 32),
        "u64" | "b64" => family!(u64, u64, u128, 64),
        "s64" => family!(i64, u64, i128, 64),
        _ => return None,
    })
}

/// Integers two a register, and those that fall no lower than 0.
fn packed(opcode: &str) -> Option<LaneOp> {
    macro_rules! each {
        ($type:ty, |$a:ident, $b:ident| $value:expr) => {
            lane_op!(|a: u32, b: u32| -> u32 {
                let one = |shift: u32| {
                    let ($a, $b) = ((a >> shift) as $type, (b >> shift) as $type);
                    u32::from($value as u16) << shift
                };
                one(0) | one(16)
            })
        };
    }
    Some(match opcode {
        "min.relu.s32" => lane_op!(|a: i32, b: i32| -> i32 { a.min(b).max(0) }),
        "max.relu.s32" => lane_op!(|a: i32, b: i32| -> i32 { a.max(b).max(0) }),
        "add.s16x2" | "add.u16x2" => each!(u16, |x, y| x.wrapping_add(y)),
        "min.s16x2" => each!(i16, |x, y| x.min(y)),
        "max.s16x2" => each!(i16, |x, y| x.max(y)),
        "min.relu.s16x2" => each!(i16, |x, y| x.min(y).max(0)),
        "max.relu.s16x2" => each!(i16, |x, y| x.max(y).max(0)),
        "min.u16x2" => each!(u16, |x, y| x.min(y)),
        "max.u16x2" => each!(u16, |x, y| x.max(y)),
        _ => return None,
    })
}

fn fields(parts: &[&str]) -> Option<LaneOp> {
    let (&name, &kind) = (parts.first()?, parts.last()?);
    let has = |word: &str| parts.contains(&word);
    let joined = parts.join(".");
    if let Some(op) = match joined.as_str() {
        "mul24.lo.s32" => {
            Some(lane_op!(|a: i32, b: i32| -> i32 { ((a << 8) >> 8).wrapping_mul((b << 8) >> 8) }))
        }
        "mul24.lo.u32" => {
            Some(lane_op!(|a: u32, b: u32| -> u32 { (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff) }))
        }
        "mul24.hi.s32" => Some(lane_op!(|a: i32, b: i32| -> i32 {
            ((i64::from((a << 8) >> 8) * i64::from((b << 8) >> 8)) >> 16) as i32
        })),
        "mul24.hi.u32" => Some(lane_op!(|a: u32, b: u32| -> u32 {
            ((u64::from(a & 0xff_ffff) * u64::from(b & 0xff_ffff)) >> 16) as u32
        })),
        "mad24.lo.s32" => Some(lane_op!(|a: i32, b: i32, c: i32| -> i32 {
            ((a << 8) >> 8).wrapping_mul((b << 8) >> 8).wrapping_add(c)
        })),
        "mad24.lo.u32" => Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 {
            (a & 0xff_ffff).wrapping_mul(b & 0xff_ffff).wrapping_add(c)
        })),
        "bfe.u32" => {
            Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { extract(u64::from(a), b, c, 32, false) as u32 }))
        }
        "bfe.s32" => Some(lane_op!(|a: i32, b: u32, c: u32| -> u32 {
            extract(i64::from(a) as u64, b, c, 32, true) as u32
        })),
        "bfe.u64" => Some(lane_op!(|a: u64, b: u32, c: u32| -> u64 { extract(a, b, c, 64, false) })),
        "bfe.s64" => Some(lane_op!(|a: u64, b: u32, c: u32| -> u64 { extract(a, b, c, 64, true) })),
        "bfi.b32" => Some(lane_op!(|a: u32, b: u32, c: u32, d: u32| -> u32 {
            insert(u64::from(a), u64::from(b), c, d, 32) as u32
        })),
        "bfi.b64" => Some(lane_op!(|a: u64, b: u64, c: u32, d: u32| -> u64 { insert(a, b, c, d, 64) })),
        "bmsk.clamp.b32" => Some(lane_op!(|a: u32, b: u32| -> u32 {
            if a >= 32 { 0 } else { (((1u64 << b.min(32 - a)) - 1) << a) as u32 }
        })),
        "bmsk.wrap.b32" => {
            Some(lane_op!(|a: u32, b: u32| -> u32 { (((1u64 << (b & 31)) - 1) << (a & 31)) as u32 }))
        }
        "szext.clamp.s32" => Some(lane_op!(|a: i32, b: u32| -> i32 {
            if b == 0 {
                0
            } else if b >= 32 {
                a
            } else {
                (a << (32 - b)) >> (32 - b)
            }
        })),
        "szext.wrap.s32" => Some(lane_op!(|a: i32, b: u32| -> i32 {
            let b = b & 31;
            if b == 0 { 0 } else { (a << (32 - b)) >> (32 - b) }
        })),
        "szext.clamp.u32" => {
            Some(lane_op!(|a: u32, b: u32| -> u32 { if b >= 32 { a } else { a & ((1u32 << b) - 1) } }))
        }
        "szext.wrap.u32" => Some(lane_op!(|a: u32, b: u32| -> u32 { a & ((1u32 << (b & 31)) - 1) })),
        "bfind.u32" => Some(lane_op!(|a: u32| -> u32 { 31u32.wrapping_sub(a.leading_zeros()) })),
        "bfind.s32" => Some(lane_op!(|a: i32| -> u32 {
            31u32.wrapping_sub((if a < 0 { !a } else { a }).leading_zeros())
        })),
        "bfind.u64" => Some(lane_op!(|a: u64| -> u32 { 63u32.wrapping_sub(a.leading_zeros()) })),
        "bfind.s64" => Some(lane_op!(|a: i64| -> u32 {
            63u32.wrapping_sub((if a < 0 { !a } else { a }).leading_zeros())
        })),
        "bfind.shiftamt.u32" => {
            Some(lane_op!(|a: u32| -> u32 { if a == 0 { u32::MAX } else { a.leading_zeros() } }))
        }
        "bfind.shiftamt.s32" => Some(lane_op!(|a: i32| -> u32 {
            let a = if a < 0 { !a } else { a };
            if a == 0 { u32::MAX } else { a.leading_zeros() }
        })),
        "shf.l.clamp.b32" => {
            Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { ((join(a, b) << c.min(32)) >> 32) as u32 }))
        }
        "shf.l.wrap.b32" => {
            Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { ((join(a, b) << (c & 31)) >> 32) as u32 }))
        }
        "shf.r.clamp.b32" => {
            Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { (join(a, b) >> c.min(32)) as u32 }))
        }
        "shf.r.wrap.b32" => {
            Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { (join(a, b) >> (c & 31)) as u32 }))
        }
        "lop3.b32" => Some(lane_op!(|a: u32, b: u32, c: u32, table: u32| -> u32 { lop3(a, b, c, table) })),
        "dp4a.s32.s32" => Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { dot4(a, b, c, true, true) })),
        "dp4a.u32.u32" => Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { dot4(a, b, c, false, false) })),
        "dp4a.s32.u32" => Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { dot4(a, b, c, true, false) })),
        "dp4a.u32.s32" => Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { dot4(a, b, c, false, true) })),
        "bfind.shiftamt.u64" => {
            Some(lane_op!(|a: u64| -> u32 { if a == 0 { u32::MAX } else { a.leading_zeros() } }))
        }
        "bfind.shiftamt.s64" => Some(lane_op!(|a: i64| -> u32 {
            let a = if a < 0 { !a } else { a };
            if a == 0 { u32::MAX } else { a.leading_zeros() }
        })),
        "fns.b32" => Some(lane_op!(|mask: u32, base: u32, n: i32| -> u32 { nth_set(mask, base, n) })),
        "dp2a.lo.s32.s32" => Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { dot2(a, b, c, true, true) })),
        "dp2a.hi.s32.s32" => {
            Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { dot2(a, b >> 16, c, true, true) }))
        }
        "dp2a.lo.u32.u32" => Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { dot2(a, b, c, false, false) })),
        "dp2a.hi.u32.u32" => {
            Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { dot2(a, b >> 16, c, false, false) }))
        }
        "dp2a.lo.s32.u32" => Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { dot2(a, b, c, true, false) })),
        "dp2a.hi.s32.u32" => {
            Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { dot2(a, b >> 16, c, true, false) }))
        }
        "dp2a.lo.u32.s32" => Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { dot2(a, b, c, false, true) })),
        "dp2a.hi.u32.s32" => {
            Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 { dot2(a, b >> 16, c, false, true) }))
        }
        // Of the instructions on four bytes, the two that nvcc writes for its intrinsics.
        "vabsdiff4.u32.u32.u32" => Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 {
            let _ = c;
            join_bytes(distances(a, b))
        })),
        "vabsdiff4.u32.u32.u32.add" => Some(lane_op!(|a: u32, b: u32, c: u32| -> u32 {
            distances(a, b).iter().fold(c, |sum, &byte| sum.wrapping_add(byte))
        })),
        "cvt.pack.sat.u16.s32" => {
            Some(lane_op!(|a: i32, b: i32| -> u32 { within(a, 0, 65_535) << 16 | within(b, 0, 65_535) }))
        }
        "cvt.pack.sat.s16.s32" => Some(lane_op!(|a: i32, b: i32| -> u32 {
            within(a, -32_768, 32_767) << 16 | within(b, -32_768, 32_767) & 0xffff
        })),
        "cvt.pack.sat.u8.s32.b32" => Some(lane_op!(|a: i32, b: i32, c: u32| -> u32 {
            c << 16 | within(a, 0, 255) << 8 | within(b, 0, 255)
        })),
        "cvt.pack.sat.s8.s32.b32" => Some(lane_op!(|a: i32, b: i32, c: u32| -> u32 {
            c << 16 | (within(a, -128, 127) & 0xff) << 8 | within(b, -128, 127) & 0xff
        })),
        _ => None,
    } {
        return Some(op);
    }
    match (name, kind) {
        ("prmt", _) => Some(match parts.get(2).copied() {
            None => lane_op!(|a: u32, b: u32, c: u32| -> u32 { permute(a, b, c) }),
            Some("f4e") => lane_op!(|a: u32, b: u32, c: u32| -> u32 { (join(a, b) >> (8 * (c & 3))) as u32 }),
            Some("b4e") => lane_op!(|a: u32, b: u32, c: u32| -> u32 {
                let c = c & 3;
                permute(a, b, c | ((c + 7) & 7) << 4 | ((c + 6) & 7) << 8 | ((c + 5) & 7) << 12)
            }),
            Some("rc8") => lane_op!(|a: u32, b: u32, c: u32| -> u32 { permute(a, b, (c & 3) * 0x1111) }),
            Some("ecl") => lane_op!(|a: u32, b: u32, c: u32| -> u32 {
                let c = c & 3;
                permute(a, b, c | c.max(1) << 4 | c.max(2) << 8 | 3 << 12)
            }),
            Some("ecr") => lane_op!(|a: u32, b: u32, c: u32| -> u32 {
                let c = c & 3;
                permute(a, b, c.min(1) << 4 | c.min(2) << 8 | c << 12)
            }),
            Some("rc16") => lane_op!(|a: u32, b: u32, c: u32| -> u32 {
                permute(a, b, if c & 1 == 0 { 0x1010 } else { 0x3232 })
            }),
            _ => return None,
        }),
        // The byte forms of a selection are those of the wider types.
        ("selp", _) => compare(parts),
        _ if has("b8") => None,
        _ => None,
    }
}

#[inline(always)]
fn join(low: u32, high: u32) -> u64 {
    u64::from(high) << 32 | u64::from(low)
}

#[inline(always)]
fn extract(value: u64, start: u32, length: u32, bits: u32, signed: bool) -> u64 {
    let (start, length) = (start & 0xff, length & 0xff);
    if length == 0 {
        return 0;
    }
    let sign = if signed { value >> (start.saturating_add(length) - 1).min(bits - 1) & 1 } else { 0 };
    let field = if start < bits { value >> start } else { 0 };
    // Bits beyond the value's own width are copies of the sign.
    let kept = length.min(bits.saturating_sub(start));
    let mask = if kept >= 64 { u64::MAX } else { (1u64 << kept) - 1 };
    if sign != 0 { (field & mask) | !mask } else { field & mask }
}

#[inline(always)]
fn insert(from: u64, into: u64, start: u32, length: u32, bits: u32) -> u64 {
    let (start, length) = (start & 0xff, length & 0xff);
    if start >= bits || length == 0 {
        return into;
    }
    let length = length.min(bits - start);
    let mask = if length >= 64 { u64::MAX } else { ((1u64 << length) - 1) << start };
    (into & !mask) | ((from << start) & mask)
}

#[inline(always)]
fn permute(a: u32, b: u32, control: u32) -> u32 {
    let bytes = join(a, b);
    let mut out = 0;
    for position in 0..4 {
        let select = control >> (4 * position);
        let byte = (bytes >> (8 * (select & 7))) as u32 & 0xff;
        let byte = if select & 8 != 0 { if byte & 0x80 != 0 { 0xff } else { 0 } } else { byte };
        out |= byte << (8 * position);
    }
    out
}

#[inline(always)]
fn lop3(a: u32, b: u32, c: u32, table: u32) -> u32 {
    let mut out = 0;
    for row in 0..8u32 {
        let take = 0u32.wrapping_sub(table >> row & 1);
        let a = if row & 4 != 0 { a } else { !a };
        let b = if row & 2 != 0 { b } else { !b };
        let c = if row & 1 != 0 { c } else { !c };
        out |= take & a & b & c;
    }
    out
}

/// The position of the n-th set bit from a base upwards, or downwards for a negative n; -1 for none.
#[inline(always)]
fn nth_set(mask: u32, base: u32, n: i32) -> u32 {
    let base = base & 31;
    if n == 0 {
        return if mask >> base & 1 != 0 { base } else { u32::MAX };
    }
    let mut left = n.unsigned_abs();
    let mut found = u32::MAX;
    for step in 0..32 {
        let at = if n > 0 { base.wrapping_add(step) } else { base.wrapping_sub(step) };
        let hit = at < 32 && mask >> (at & 31) & 1 != 0 && left > 0;
        left -= u32::from(hit);
        if hit && left == 0 {
            found = at;
        }
    }
    found
}

#[inline(always)]
fn dot4(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let byte = |value: u32, at: u32, signed: bool| {
        let byte = (value >> (8 * at)) as u8;
        if signed { i32::from(byte as i8) } else { i32::from(byte) }
    };
    (0..4).fold(c, |sum, at| sum.wrapping_add((byte(a, at, a_signed) * byte(b, at, b_signed)) as u32))
}

#[inline(always)]
fn dot2(a: u32, b: u32, c: u32, a_signed: bool, b_signed: bool) -> u32 {
    let product = |at: u32| {
        let (half, byte) = ((a >> (16 * at)) as u16, (b >> (8 * at)) as u8);
        let half = if a_signed { i32::from(half as i16) } else { i32::from(half) };
        let byte = if b_signed { i32::from(byte as i8) } else { i32::from(byte) };
        half * byte
    };
    c.wrapping_add(product(0) as u32).wrapping_add(product(1) as u32)
}

/// How far each byte lies from the other's.
#[inline(always)]
fn distances(a: u32, b: u32) -> [u32; 4] {
    std::array::from_fn(|at| (a >> (8 * at) & 0xff).abs_diff(b >> (8 * at) & 0xff))
}

#[inline(always)]
fn join_bytes(bytes: [u32; 4]) -> u32 {
    bytes[0] | bytes[1] << 8 | bytes[2] << 16 | bytes[3] << 24
}

#[inline(always)]
fn within(value: i32, least: i32, most: i32) -> u32 {
    value.clamp(least, most) as u32
}

/// Whether two numbers cannot be compared.
#[inline(always)]
fn unordered(a: f64, b: f64) -> bool {
    a.is_nan() || b.is_nan()
}

/// `setp` without its combination with another predicate, which loading composes; `set`, `selp`,
/// `slct` and `testp`.
pub fn compare(parts: &[&str]) -> Option<LaneOp> {
    let (&name, &kind) = (parts.first()?, parts.last()?);
    if name == "selp" {
        return Some(match kind {
            "b16" | "u16" | "s16" | "f16" | "bf16" => {
                lane_op!(|a: u16, b: u16, c: bool| -> u16 { if c { a } else { b } })
            }
            "b64" | "u64" | "s64" | "f64" => {
                lane_op!(|a: u64, b: u64, c: bool| -> u64 { if c { a } else { b } })
            }
            "b32" | "u32" | "s32" | "f32" => {
                lane_op!(|a: u32, b: u32, c: bool| -> u32 { if c { a } else { b } })
            }
            _ => return None,
        });
    }
    if name == "slct" {
        let wide = matches!(parts.get(parts.len() - 2).copied()?, "b64" | "u64" | "s64" | "f64");
        return Some(match (wide, kind) {
            (false, "s32") => lane_op!(|a: u32, b: u32, c: i32| -> u32 { if c >= 0 { a } else { b } }),
            (true, "s32") => lane_op!(|a: u64, b: u64, c: i32| -> u64 { if c >= 0 { a } else { b } }),
            (false, "f32") => lane_op!(|a: u32, b: u32, c: f32| -> u32 { if c >= 0.0 { a } else { b } }),
            (true, "f32") => lane_op!(|a: u64, b: u64, c: f32| -> u64 { if c >= 0.0 { a } else { b } }),
            _ => return None,
        });
    }
    if name == "testp" {
        macro_rules! family {
            ($type:ty) => {
                match *parts.get(1)? {
                    "finite" => lane_op!(|a: $type| -> bool { a.is_finite() }),
                    "infinite" => lane_op!(|a: $type| -> bool { a.is_infinite() }),
                    "number" => lane_op!(|a: $type| -> bool { !a.is_nan() }),
                    "notanumber" => lane_op!(|a: $type| -> bool { a.is_nan() }),
                    "normal" => lane_op!(|a: $type| -> bool { a.is_normal() }),
                    "subnormal" => lane_op!(|a: $type| -> bool { a.is_subnormal() }),
                    _ => return None,
                }
            };
        }
        return Some(if kind == "f64" { family!(f64) } else { family!(f32) });
    }
    let relation = *parts.get(1)?;
    macro_rules! integers {
        ($type:ty) => {
            match relation {
                "eq" => lane_op!(|a: $type, b: $type| -> bool { a == b }),
                "ne" => lane_op!(|a: $type, b: $type| -> bool { a != b }),
                "lt" | "lo" => lane_op!(|a: $type, b: $type| -> bool { a < b }),
                "le" | "ls" => lane_op!(|a: $type, b: $type| -> bool { a <= b }),
                "gt" | "hi" => lane_op!(|a: $type, b: $type| -> bool { a > b }),
                "ge" | "hs" => lane_op!(|a: $type, b: $type| -> bool { a >= b }),
                _ => return None,
            }
        };
    }
    macro_rules! floats {
        ($type:ty, |$v:ident| $value:expr) => {{
            #[inline(always)]
            fn value($v: $type) -> f64 {
                $value
            }
            match relation {
                "eq" => lane_op!(|a: $type, b: $type| -> bool { value(a) == value(b) }),
                "ne" => lane_op!(|a: $type, b: $type| -> bool { value(a) < value(b) || value(a) > value(b) }),
                "lt" => lane_op!(|a: $type, b: $type| -> bool { value(a) < value(b) }),
                "le" => lane_op!(|a: $type, b: $type| -> bool { value(a) <= value(b) }),
                "gt" => lane_op!(|a: $type, b: $type| -> bool { value(a) > value(b) }),
                "ge" => lane_op!(|a: $type, b: $type| -> bool { value(a) >= value(b) }),
                "equ" => {
                    lane_op!(|a: $type, b: $type| -> bool { !(value(a) < value(b) || value(a) > value(b)) })
                }
                "neu" => lane_op!(|a: $type, b: $type| -> bool { value(a) != value(b) }),
                "ltu" => lane_op!(|a: $type, b: $type| -> bool {
                    value(a) < value(b) || unordered(value(a), value(b))
                }),
                "leu" => lane_op!(|a: $type, b: $type| -> bool {
                    value(a) <= value(b) || unordered(value(a), value(b))
                }),
                "gtu" => lane_op!(|a: $type, b: $type| -> bool {
                    value(a) > value(b) || unordered(value(a), value(b))
                }),
                "geu" => lane_op!(|a: $type, b: $type| -> bool {
                    value(a) >= value(b) || unordered(value(a), value(b))
                }),
                "num" => lane_op!(|a: $type, b: $type| -> bool { !value(a).is_nan() && !value(b).is_nan() }),
                "nan" => lane_op!(|a: $type, b: $type| -> bool { value(a).is_nan() || value(b).is_nan() }),
                _ => return None,
            }
        }};
    }
    Some(match kind {
        "u16" | "b16" => integers!(u16),
        "s16" => integers!(i16),
        "u32" | "b32" => integers!(u32),
        "s32" => integers!(i32),
        "u64" | "b64" => integers!(u64),
        "s64" => integers!(i64),
        "f32" => floats!(f32, |v| f64::from(v)),
        "f64" => floats!(f64, |v| v),
        "bf16" => floats!(Brain, |v| f64::from(v.0)),
        "f16" => floats!(Half, |v| f64::from(v.0)),
        _ => return None,
    })
}
