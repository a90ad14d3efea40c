//! What the floating-point opcodes compute, one line an opcode.

use super::lanes::{Brain, Half, LaneOp, lane_op};
use crate::number::{self, BF16, F16, Format, Rounding};

/// The smaller, as PTX has it: a number beats NaN, and -0 lies below +0.
#[inline(always)]
pub(super) fn least(a: f32, b: f32) -> f32 {
    let smaller = if a < b || a == b && a.is_sign_negative() { a } else { b };
    if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else {
        smaller
    }
}

#[inline(always)]
pub(super) fn greatest(a: f32, b: f32) -> f32 {
    -least(-a, -b)
}

#[inline(always)]
pub(super) fn least_f64(a: f64, b: f64) -> f64 {
    let smaller = if a < b || a == b && a.is_sign_negative() { a } else { b };
    if a.is_nan() {
        b
    } else if b.is_nan() {
        a
    } else {
        smaller
    }
}

pub(super) fn single(name: &str, parts: &[&str], rounding: Rounding) -> Option<LaneOp> {
    let has = |word: &str| parts.contains(&word);
    macro_rules! rounded {
        (|$($a:ident),*| $near:expr, $exact:expr) => {
            match rounding {
                Rounding::Nearest => lane_op!(|$($a: f32),*| -> f32 { $near }),
                Rounding::Zero => lane_op!(|$($a: f32),*| -> f32 { $exact(Rounding::Zero) }),
                Rounding::Down => lane_op!(|$($a: f32),*| -> f32 { $exact(Rounding::Down) }),
                Rounding::Up => lane_op!(|$($a: f32),*| -> f32 { $exact(Rounding::Up) }),
                Rounding::NearestAway => return None,
            }
        };
    }
    Some(match name {
        "add" => rounded!(|a, b| a + b, |mode| number::fma_f32(a, 1.0, b, mode)),
        "sub" => rounded!(|a, b| a - b, |mode| number::fma_f32(a, 1.0, -b, mode)),
        "mul" => rounded!(|a, b| a * b, |mode| number::to_f32(f64::from(a) * f64::from(b), mode)),
        "fma" | "mad" => rounded!(|a, b, c| a.mul_add(b, c), |mode| number::fma_f32(a, b, c, mode)),
        "div" if has("approx") || has("full") => lane_op!(|a: f32, b: f32| -> f32 { a / b }),
        "div" => rounded!(|a, b| a / b, |mode| number::div_f32(a, b, mode)),
        "rcp" if has("approx") => lane_op!(|a: f32| -> f32 { 1.0 / a }),
        "rcp" => rounded!(|a| 1.0 / a, |mode| number::div_f32(1.0, a, mode)),
        "sqrt" if has("approx") => lane_op!(|a: f32| -> f32 { a.sqrt() }),
        "sqrt" => rounded!(|a| a.sqrt(), |mode| number::sqrt_f32(a, mode)),
        "rsqrt" => lane_op!(|a: f32| -> f32 { (1.0 / f64::from(a).sqrt()) as f32 }),
        "ex2" => lane_op!(|a: f32| -> f32 { number::power_of_two(a) }),
        "lg2" => lane_op!(|a: f32| -> f32 { a.log2() }),
        "sin" => lane_op!(|a: f32| -> f32 { a.sin() }),
        "cos" => lane_op!(|a: f32| -> f32 { a.cos() }),
        "tanh" => lane_op!(|a: f32| -> f32 { a.tanh() }),
        "abs" => lane_op!(|a: u32| -> u32 { a & 0x7fff_ffff }),
        "neg" => lane_op!(|a: u32| -> u32 { a ^ 0x8000_0000 }),
        "mov" => lane_op!(|a: u32| -> u32 { a }),
        "copysign" => lane_op!(|a: u32, b: u32| -> u32 { (a & 0x8000_0000) | (b & 0x7fff_ffff) }),
        "min" if has("xorsign") && has("NaN") => lane_op!(|a: f32, b: f32| -> u32 {
            number::with_sign_of_both(
                if a.is_nan() || b.is_nan() { f32::NAN } else { a.abs().min(b.abs()) },
                a,
                b,
            )
        }),
        "max" if has("xorsign") && has("NaN") => lane_op!(|a: f32, b: f32| -> u32 {
            number::with_sign_of_both(
                if a.is_nan() || b.is_nan() { f32::NAN } else { a.abs().max(b.abs()) },
                a,
                b,
            )
        }),
        "min" if has("xorsign") => {
            lane_op!(|a: f32, b: f32| -> u32 { number::with_sign_of_both(least(a.abs(), b.abs()), a, b) })
        }
        "max" if has("xorsign") => {
            lane_op!(|a: f32, b: f32| -> u32 { number::with_sign_of_both(greatest(a.abs(), b.abs()), a, b) })
        }
        "min" if has("NaN") => {
            lane_op!(|a: f32, b: f32| -> f32 {
                if a.is_nan() || b.is_nan() { f32::NAN } else { least(a, b) }
            })
        }
        "max" if has("NaN") => {
            lane_op!(|a: f32, b: f32| -> f32 {
                if a.is_nan() || b.is_nan() { f32::NAN } else { greatest(a, b) }
            })
        }
        "min" => lane_op!(|a: f32, b: f32| -> f32 { least(a, b) }),
        "max" => lane_op!(|a: f32, b: f32| -> f32 { greatest(a, b) }),
        // Parts of composed opcodes; no PTX spells these.
        "flush" => lane_op!(|a: u32| -> u32 { number::flush(f32::from_bits(a)).to_bits() }),
        "saturate" => lane_op!(|a: f32| -> f32 { if a > 0.0 { if a < 1.0 { a } else { 1.0 } } else { 0.0 } }),
        _ => return None,
    })
}

pub(super) fn double(name: &str, parts: &[&str], rounding: Rounding) -> Option<LaneOp> {
    let has = |word: &str| parts.contains(&word);
    macro_rules! rounded {
        (|$($a:ident),*| $near:expr, $exact:expr) => {
            match rounding {
                Rounding::Nearest => lane_op!(|$($a: f64),*| -> f64 { $near }),
                Rounding::Zero => lane_op!(|$($a: f64),*| -> f64 { $exact(Rounding::Zero) }),
                Rounding::Down => lane_op!(|$($a: f64),*| -> f64 { $exact(Rounding::Down) }),
                Rounding::Up => lane_op!(|$($a: f64),*| -> f64 { $exact(Rounding::Up) }),
                Rounding::NearestAway => return None,
            }
        };
    }
    Some(match name {
        "add" => rounded!(|a, b| a + b, |mode| number::add_f64(a, b, mode)),
        "sub" => rounded!(|a, b| a - b, |mode| number::add_f64(a, -b, mode)),
        "mul" => rounded!(|a, b| a * b, |mode| number::mul_f64(a, b, mode)),
        "fma" | "mad" => rounded!(|a, b, c| a.mul_add(b, c), |mode| number::fma_f64(a, b, c, mode)),
        "div" => rounded!(|a, b| a / b, |mode| number::div_f64(a, b, mode)),
        "rcp" if has("approx") => lane_op!(|a: f64| -> f64 { 1.0 / a }),
        "rcp" => rounded!(|a| 1.0 / a, |mode| number::div_f64(1.0, a, mode)),
        "sqrt" => rounded!(|a| a.sqrt(), |mode| number::sqrt_f64(a, mode)),
        "rsqrt" if has("approx") => lane_op!(|a: f64| -> f64 { 1.0 / a.sqrt() }),
        "abs" => lane_op!(|a: u64| -> u64 { a & !(1 << 63) }),
        "neg" => lane_op!(|a: u64| -> u64 { a ^ (1 << 63) }),
        "mov" => lane_op!(|a: u64| -> u64 { a }),
        "copysign" => lane_op!(|a: u64, b: u64| -> u64 { (a & (1 << 63)) | (b & !(1 << 63)) }),
        "min" => lane_op!(|a: f64, b: f64| -> f64 { least_f64(a, b) }),
        "max" => lane_op!(|a: f64, b: f64| -> f64 { -least_f64(-a, -b) }),
        "saturate" => lane_op!(|a: f64| -> f64 { if a > 0.0 { if a < 1.0 { a } else { 1.0 } } else { 0.0 } }),
        _ => return None,
    })
}

/// A narrow product and sum, rounded once.
#[inline(always)]
fn narrow_fma(a: f32, b: f32, c: f32, format: Format) -> f32 {
    // Rounding to odd in f32's 24 bits, then to 8 or 11: f32::mul_add rounds to nearest, so go by f64,
    // whose 53 bits hold the product exactly.
    let product = f64::from(a) * f64::from(b);
    let sum = product + f64::from(c);
    let b_part = sum - product;
    let lost = (product - (sum - b_part)) + (f64::from(c) - b_part);
    let sum = if lost != 0.0 && sum.is_finite() && sum != 0.0 && sum.to_bits() & 1 == 0 {
        f64::from_bits(if (lost > 0.0) == (sum > 0.0) { sum.to_bits() + 1 } else { sum.to_bits() - 1 })
    } else {
        sum
    };
    format.decode(format.encode(sum, Rounding::Nearest, false)) as f32
}

#[inline(always)]
fn relu(value: f32) -> f32 {
    if value.is_nan() || value > 0.0 { value } else { 0.0 }
}

/// Between 0 and 1, and 0 for NaN.
#[inline(always)]
fn unit(value: f32) -> f32 {
    if value > 0.0 { value.min(1.0) } else { 0.0 }
}

/// Two f32 in a 64-bit register, rounded to nearest.
pub(super) fn two_singles(name: &str, parts: &[&str]) -> Option<LaneOp> {
    #[inline(always)]
    fn each(a: u64, b: u64, c: u64, op: impl Fn(f32, f32, f32) -> f32) -> u64 {
        let one = |shift: u32| {
            let part = |value: u64| f32::from_bits((value >> shift) as u32);
            let value = op(part(a), part(b), part(c));
            u64::from(if value.is_nan() { 0x7fff_ffff } else { value.to_bits() }) << shift
        };
        one(0) | one(32)
    }
    if parts.iter().any(|part| matches!(*part, "rz" | "rm" | "rp" | "ftz" | "sat")) {
        return None;
    }
    Some(match name {
        "add" => lane_op!(|a: u64, b: u64| -> u64 { each(a, b, 0, |a, b, _| a + b) }),
        "sub" => lane_op!(|a: u64, b: u64| -> u64 { each(a, b, 0, |a, b, _| a - b) }),
        "mul" => lane_op!(|a: u64, b: u64| -> u64 { each(a, b, 0, |a, b, _| a * b) }),
        "fma" => lane_op!(|a: u64, b: u64, c: u64| -> u64 { each(a, b, c, |a, b, c| a.mul_add(b, c)) }),
        _ => return None,
    })
}

pub(super) fn half(name: &str, kind: &str, with_relu: bool, with_nan: bool) -> Option<LaneOp> {
    macro_rules! family {
        ($type:ident, $format:expr) => {
            match name {
                "add" => lane_op!(|a: $type, b: $type| -> $type { $type(a.0 + b.0) }),
                "sub" => lane_op!(|a: $type, b: $type| -> $type { $type(a.0 - b.0) }),
                "mul" => lane_op!(|a: $type, b: $type| -> $type { $type(a.0 * b.0) }),
                "fma" if with_relu => lane_op!(|a: $type, b: $type, c: $type| -> $type {
                    $type(relu(narrow_fma(a.0, b.0, c.0, $format)))
                }),
                "fma" => lane_op!(|a: $type, b: $type, c: $type| -> $type {
                    $type(narrow_fma(a.0, b.0, c.0, $format))
                }),
                "min" if with_nan => lane_op!(|a: $type, b: $type| -> $type {
                    $type(if a.0.is_nan() || b.0.is_nan() { f32::NAN } else { least(a.0, b.0) })
                }),
                "max" if with_nan => lane_op!(|a: $type, b: $type| -> $type {
                    $type(if a.0.is_nan() || b.0.is_nan() { f32::NAN } else { greatest(a.0, b.0) })
                }),
                "min" => lane_op!(|a: $type, b: $type| -> $type { $type(least(a.0, b.0)) }),
                "max" => lane_op!(|a: $type, b: $type| -> $type { $type(greatest(a.0, b.0)) }),
                "neg" => lane_op!(|a: u16| -> u16 { a ^ 0x8000 }),
                "abs" => lane_op!(|a: u16| -> u16 { a & 0x7fff }),
                "ex2" => lane_op!(|a: $type| -> $type { $type(a.0.exp2()) }),
                "tanh" => lane_op!(|a: $type| -> $type { $type(a.0.tanh()) }),
                "mov" => lane_op!(|a: u16| -> u16 { a }),
                // Parts of composed opcodes, of f16 alone.
                "flush" => lane_op!(|a: u16| -> u16 { if a & 0x7c00 == 0 { a & 0x8000 } else { a } }),
                "saturate" => lane_op!(|a: $type| -> $type { $type(unit(a.0)) }),
                _ => return None,
            }
        };
    }
    Some(if kind == "bf16" { family!(Brain, BF16) } else { family!(Half, F16) })
}

pub(super) fn pair(name: &str, kind: &str, with_relu: bool, with_nan: bool) -> Option<LaneOp> {
    macro_rules! family {
        ($format:expr, $decode:path, $encode:path) => {{
            #[inline(always)]
            fn two(a: u32, b: u32, op: impl Fn(f32, f32) -> f32) -> u32 {
                let low = $encode(op($decode(a & 0xffff), $decode(b & 0xffff)));
                let high = $encode(op($decode(a >> 16), $decode(b >> 16)));
                low | high << 16
            }
            #[inline(always)]
            fn three(a: u32, b: u32, c: u32, with_relu: bool) -> u32 {
                let one = |shift: u32| {
                    let part = |value: u32| $decode(value >> shift & 0xffff);
                    let value = narrow_fma(part(a), part(b), part(c), $format);
                    $encode(if with_relu { relu(value) } else { value })
                };
                one(0) | one(16) << 16
            }
            match name {
                "add" => lane_op!(|a: u32, b: u32| -> u32 { two(a, b, |x, y| x + y) }),
                "sub" => lane_op!(|a: u32, b: u32| -> u32 { two(a, b, |x, y| x - y) }),
                "mul" => lane_op!(|a: u32, b: u32| -> u32 { two(a, b, |x, y| x * y) }),
                "fma" if with_relu => lane_op!(|a: u32, b: u32, c: u32| -> u32 { three(a, b, c, true) }),
                "fma" => lane_op!(|a: u32, b: u32, c: u32| -> u32 { three(a, b, c, false) }),
                "min" if with_nan => lane_op!(|a: u32, b: u32| -> u32 {
                    two(a, b, |x, y| if x.is_nan() || y.is_nan() { f32::NAN } else { least(x, y) })
                }),
                "max" if with_nan => lane_op!(|a: u32, b: u32| -> u32 {
                    two(a, b, |x, y| if x.is_nan() || y.is_nan() { f32::NAN } else { greatest(x, y) })
                }),
                "min" => lane_op!(|a: u32, b: u32| -> u32 { two(a, b, least) }),
                "max" => lane_op!(|a: u32, b: u32| -> u32 { two(a, b, greatest) }),
                "neg" => lane_op!(|a: u32| -> u32 { a ^ 0x8000_8000 }),
                "abs" => lane_op!(|a: u32| -> u32 { a & 0x7fff_7fff }),
                "ex2" => lane_op!(|a: u32| -> u32 { two(a, a, |x, _| x.exp2()) }),
                "tanh" => lane_op!(|a: u32| -> u32 { two(a, a, |x, _| x.tanh()) }),
                "flush" => lane_op!(|a: u32| -> u32 {
                    let one = |half: u32| if half & 0x7c00 == 0 { half & 0x8000 } else { half };
                    one(a & 0xffff) | one(a >> 16) << 16
                }),
                "saturate" => lane_op!(|a: u32| -> u32 { two(a, a, |x, _| unit(x)) }),
                _ => return None,
            }
        }};
    }
    Some(if kind == "bf16x2" {
        family!(BF16, number::from_bf16, number::to_bf16)
    } else {
        family!(F16, number::from_f16, number::to_f16)
    })
}
