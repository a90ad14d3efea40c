//! Number formats narrower than f64: rounding into them by every PTX rounding mode, and out of them.

/// A PTX rounding mode.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rounding {
    /// `.rn`: to nearest, ties to even.
    Nearest,
    /// `.rna`: to nearest, ties away from zero.
    NearestAway,
    /// `.rz`: towards zero.
    Zero,
    /// `.rm`: towards minus infinity.
    Down,
    /// `.rp`: towards plus infinity.
    Up,
}

/// A binary floating-point format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Bits of the exponent.
    pub exponent: u32,
    /// Bits of the fraction.
    pub fraction: u32,
    /// Whether the highest exponent stands for infinity and NaN (not so in e4m3).
    pub has_infinity: bool,
}

/// The bits of a number with the exclusive or of two signs; a NaN is the canonical one.
pub fn with_sign_of_both(magnitude: f32, a: f32, b: f32) -> u32 {
    if magnitude.is_nan() {
        0x7fff_ffff
    } else {
        magnitude.to_bits() | (a.to_bits() ^ b.to_bits()) & 0x8000_0000
    }
}

/// bfloat16.
pub const BF16: Format = Format { exponent: 8, fraction: 7, has_infinity: true };
/// IEEE half.
pub const F16: Format = Format { exponent: 5, fraction: 10, has_infinity: true };
/// IEEE single.
pub const F32: Format = Format { exponent: 8, fraction: 23, has_infinity: true };
/// Eight bits, four of exponent; its largest finite value is 448 and it has no infinity.
pub const E4M3: Format = Format { exponent: 4, fraction: 3, has_infinity: false };
/// Eight bits, five of exponent.
pub const E5M2: Format = Format { exponent: 5, fraction: 2, has_infinity: true };

impl Format {
    /// The canonical NaN, as PTX writes it.
    pub fn nan(self) -> u32 {
        (1u32 << (self.exponent + self.fraction)).wrapping_sub(1)
    }

    /// The sign bit.
    pub fn sign(self) -> u32 {
        1 << (self.exponent + self.fraction)
    }

    /// The bits of infinity; for a format without it, of NaN.
    pub fn infinity(self) -> u32 {
        if self.has_infinity { ((1 << self.exponent) - 1) << self.fraction } else { self.nan() }
    }

    /// The bits of the largest finite value.
    pub fn largest(self) -> u32 {
        self.infinity() - 1
    }

    /// Rounds a value into the format. With `finite`, overflow and infinity give the largest finite value.
    pub fn encode(self, value: f64, rounding: Rounding, finite: bool) -> u32 {
        if value.is_nan() {
            return self.nan();
        }
        let sign = if value.is_sign_negative() { self.sign() } else { 0 };
        let magnitude = value.abs();
        let overflow = |rounding| {
            let largest = match rounding {
                Rounding::Zero => true,
                Rounding::Down => sign == 0,
                Rounding::Up => sign != 0,
                _ => false,
            };
            sign | if largest || finite { self.largest() } else { self.infinity() }
        };
        if magnitude == f64::INFINITY {
            return sign | if finite { self.largest() } else { self.infinity() };
        }
        if magnitude == 0.0 {
            return sign;
        }
        let bias = (1 << (self.exponent - 1)) - 1;
        let bits = magnitude.to_bits();
        // Subnormal doubles lie far below every format here; their exponent field serves as it is.
        let exponent = ((bits >> 52) as i32) - 1023;
        let significand = (bits & ((1 << 52) - 1)) | (1 << 52);
        // The weight of the last kept bit.
        let last = exponent.max(1 - bias) - self.fraction as i32;
        let shift = last - (exponent - 52);
        let (kept, rest, half) = if shift <= 0 {
            (significand << -shift, 0, 1)
        } else if shift < 64 {
            (significand >> shift, significand & ((1u64 << shift) - 1), 1u64 << (shift - 1))
        } else {
            // Everything lies below the last kept bit.
            (0, 1, 2)
        };
        let up = match rounding {
            Rounding::Nearest => rest > half || rest == half && kept & 1 == 1,
            Rounding::NearestAway => rest >= half,
            Rounding::Zero => false,
            Rounding::Down => rest != 0 && sign != 0,
            Rounding::Up => rest != 0 && sign == 0,
        };
        let kept = kept + u64::from(up);
        // A carry moves into the exponent by itself, from subnormal to normal too.
        let field = (exponent.max(1 - bias) + bias) as u64;
        let packed = if kept < 1 << self.fraction { kept } else { ((field - 1) << self.fraction) + kept };
        if packed > u64::from(self.largest()) { overflow(rounding) } else { sign | packed as u32 }
    }

    /// The value of a pattern.
    pub fn decode(self, bits: u32) -> f64 {
        let negative = bits & self.sign() != 0;
        let magnitude = bits & (self.sign() - 1);
        let bias = (1 << (self.exponent - 1)) - 1;
        let value = if magnitude > self.largest() {
            if self.has_infinity && magnitude == self.infinity() { f64::INFINITY } else { f64::NAN }
        } else {
            let fraction = f64::from(magnitude & ((1 << self.fraction) - 1));
            let field = (magnitude >> self.fraction) as i32;
            let implied = if field == 0 { 0.0 } else { f64::from(1u32 << self.fraction) };
            (implied + fraction) * 2f64.powi(field.max(1) - bias - self.fraction as i32)
        };
        if negative { -value } else { value }
    }
}

/// The f32 of a bfloat16.
#[inline(always)]
pub fn from_bf16(bits: u32) -> f32 {
    f32::from_bits(bits << 16)
}

/// The bfloat16 of an f32, to nearest even; NaN becomes 0x7fff.
#[inline(always)]
pub fn to_bf16(value: f32) -> u32 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    if value.is_nan() { 0x7fff } else { rounded }
}

/// The f32 of a half.
#[inline(always)]
pub fn from_f16(bits: u32) -> f32 {
    let magnitude = bits & 0x7fff;
    // Scaling by 2^112 moves the exponent field over, for subnormals too.
    let value = f32::from_bits(magnitude << 13) * f32::from_bits(0x7780_0000);
    let value = if magnitude >= 0x7c00 { f32::from_bits(0x7f80_0000 | (magnitude << 13)) } else { value };
    f32::from_bits(value.to_bits() | ((bits & 0x8000) << 16))
}

/// The half of an f32, to nearest even; NaN becomes 0x7fff.
#[inline(always)]
pub fn to_f16(value: f32) -> u32 {
    F16.encode(f64::from(value), Rounding::Nearest, false)
}

/// The value that a tensor core reads from a tf32 operand: the low 13 bits do not count.
#[inline(always)]
pub fn read_tf32(bits: u32) -> f32 {
    f32::from_bits(bits & 0xffff_e000)
}

/// An f64 rounded into f32.
pub fn to_f32(value: f64, rounding: Rounding) -> f32 {
    if rounding == Rounding::Nearest {
        value as f32
    } else {
        f32::from_bits(F32.encode(value, rounding, false))
    }
}

/// A sum `high + low`, where `low` is what rounding lost, as one f64 whose last bit records that
/// something was lost: rounding it to f32 in any mode then gives what rounding the exact sum would.
fn to_odd(high: f64, low: f64) -> f64 {
    if low == 0.0 || !high.is_finite() || high.to_bits() & 1 == 1 {
        return high;
    }
    let away = (low > 0.0) == (high > 0.0);
    f64::from_bits(if high == 0.0 {
        low.to_bits()
    } else if away {
        high.to_bits() + 1
    } else {
        high.to_bits() - 1
    })
}

/// The exact rounding error of `a + b`.
fn sum_error(a: f64, b: f64, sum: f64) -> f64 {
    let b_part = sum - a;
    (a - (sum - b_part)) + (b - b_part)
}

/// `a * b + c` in f32 by a rounding mode, rounded once.
pub fn fma_f32(a: f32, b: f32, c: f32, rounding: Rounding) -> f32 {
    // A product of two f32 is exact in f64.
    let product = f64::from(a) * f64::from(b);
    let c = f64::from(c);
    let sum = product + c;
    if sum == 0.0 && product != 0.0 && rounding == Rounding::Down {
        return -0.0;
    }
    to_f32(to_odd(sum, sum_error(product, c, sum)), rounding)
}

/// Does one instruction of the CPU on f64 under a rounding mode of its control register.
macro_rules! under_mode {
    ($mode:expr, $instruction:literal, $into:ident $(, $name:ident = $value:expr)*) => {{
        let mut result: f64 = $into;
        #[cfg(target_arch = "x86_64")]
        {
            let bits: u32 = match $mode {
                Rounding::Nearest | Rounding::NearestAway => 0,
                Rounding::Down => 1,
                Rounding::Up => 2,
                Rounding::Zero => 3,
            };
            // All exceptions masked, and the rounding of the mode.
            let (control, mut before) = (0x1f80u32 | bits << 13, 0u32);
            // SAFETY: the two words are there, the control register is left as it was, and loading made sure that the CPU
            // has the instruction.
            unsafe {
                std::arch::asm!(
                    "stmxcsr [{before}]",
                    "ldmxcsr [{control}]",
                    $instruction,
                    "ldmxcsr [{before}]",
                    before = in(reg) &raw mut before,
                    control = in(reg) &raw const control,
                    into = inout(xmm_reg) result,
                    $($name = in(xmm_reg) $value,)*
                    options(nostack)
                );
            }
        }
        result
    }};
}

/// `a + b` in f64 by a rounding mode.
pub fn add_f64(a: f64, b: f64, rounding: Rounding) -> f64 {
    under_mode!(rounding, "addsd {into}, {b}", a, b = b)
}

/// `a * b` in f64 by a rounding mode.
pub fn mul_f64(a: f64, b: f64, rounding: Rounding) -> f64 {
    under_mode!(rounding, "mulsd {into}, {b}", a, b = b)
}

/// `a * b + c` in f64 by a rounding mode, rounded once.
pub fn fma_f64(a: f64, b: f64, c: f64, rounding: Rounding) -> f64 {
    under_mode!(rounding, "vfmadd213sd {into}, {b}, {c}", a, b = b, c = c)
}

/// `a / b` in f64 by a rounding mode.
pub fn div_f64(a: f64, b: f64, rounding: Rounding) -> f64 {
    under_mode!(rounding, "divsd {into}, {b}", a, b = b)
}

/// The square root in f64 by a rounding mode.
pub fn sqrt_f64(a: f64, rounding: Rounding) -> f64 {
    under_mode!(rounding, "sqrtsd {into}, {into}", a)
}

/// `a / b` in f32 by a rounding mode.
pub fn div_f32(a: f32, b: f32, rounding: Rounding) -> f32 {
    let (a, b) = (f64::from(a), f64::from(b));
    let quotient = a / b;
    let lost = (-quotient).mul_add(b, a) / b;
    to_f32(if quotient.is_finite() { to_odd(quotient, lost) } else { quotient }, rounding)
}

/// The square root in f32 by a rounding mode.
pub fn sqrt_f32(a: f32, rounding: Rounding) -> f32 {
    let a = f64::from(a);
    let root = a.sqrt();
    let lost = if root > 0.0 && root.is_finite() { (-root).mul_add(root, a) } else { 0.0 };
    to_f32(to_odd(root, lost), rounding)
}

/// Rounds to an integral value.
pub fn integral(value: f64, rounding: Rounding) -> f64 {
    match rounding {
        Rounding::Nearest => value.round_ties_even(),
        Rounding::NearestAway => value.round(),
        Rounding::Zero => value.trunc(),
        Rounding::Down => value.floor(),
        Rounding::Up => value.ceil(),
    }
}

/// A subnormal f32 becomes zero of its sign, as `.ftz` asks.
#[inline(always)]
pub fn flush(value: f32) -> f32 {
    if value.is_subnormal() { 0.0f32.copysign(value) } else { value }
}

/// 2 to the power of `x`, to within a part in 2^40 before it is rounded to f32; written so that lanes go side by side.
#[inline(always)]
pub fn power_of_two(x: f32) -> f32 {
    // Beyond these every result is infinite or zero.
    let wide = f64::from(x).clamp(-160.0, 136.0);
    // Adding 1.5 * 2^52 leaves the nearest whole number in the low bits.
    const SHIFT: f64 = 6_755_399_441_055_744.0;
    let shifted = wide + SHIFT;
    let part = (wide - (shifted - SHIFT)) * std::f64::consts::LN_2;
    // The series of e^part, of which the next term is below 0.35^11 / 11! = 2.4e-13.
    let mut sum = 1.0 / 3_628_800.0;
    for divisor in [362_880.0, 40_320.0, 5_040.0, 720.0, 120.0, 24.0, 6.0, 2.0, 1.0, 1.0] {
        sum = sum * part + 1.0 / divisor;
    }
    let scale = f64::from_bits(shifted.to_bits().wrapping_add(1023) << 52);
    if x.is_nan() { x } else { (sum * scale) as f32 }
}
