//! The number formats the CPU computes in: f32 for work, f64 to check gradients by finite differences.

use std::fmt::Debug;

use num_traits::Float;

/// A number format of the CPU backend.
pub trait Element: Float + Default + Debug + Send + Sync + 'static {
    /// Rounds to this format.
    fn from_f64(value: f64) -> Self;
    /// Rounds to this format; exact for f64.
    fn from_f32(value: f32) -> Self;
    /// Turns a whole matrix into this format; free for f32.
    fn from_f32_vec(values: Vec<f32>) -> Vec<Self> {
        values.into_iter().map(Self::from_f32).collect()
    }
    /// Widens; exact.
    fn widen(self) -> f64;
    /// e^self by a straight line of arithmetic, so that a loop over it vectorises. NaN stays NaN.
    fn exponential(self) -> Self;
}

impl Element for f32 {
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value as f32
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        value
    }

    fn from_f32_vec(values: Vec<f32>) -> Vec<Self> {
        values
    }

    #[inline(always)]
    fn widen(self) -> f64 {
        f64::from(self)
    }

    /// Splits x = n·ln 2 + f with |f| <= ln(2)/2 and takes the Taylor series of e^f to its seventh power: the next term
    /// is below 6e-9, a tenth of a unit in the last place. Below -86.6 it stays at 2.5e-38.
    #[inline(always)]
    fn exponential(self) -> Self {
        const ROUND: f32 = 12_582_912.0; // 1.5 · 2^23: adding it leaves the nearest integer in the low bits
        const LN_2_HIGH: f32 = 0.693_359_4; // 355/512: products with |n| <= 128 are exact
        const LN_2_LOW: f32 = -2.121_944_4e-4;
        let x = if self < -86.6 { -86.6 } else { self };
        // e^89 is beyond the largest number, and so becomes infinite below.
        let x = if x > 89.0 { 89.0 } else { x };
        let shifted = x.mul_add(std::f32::consts::LOG2_E, ROUND);
        let n = shifted - ROUND;
        let f = n.mul_add(-LN_2_LOW, n.mul_add(-LN_2_HIGH, x));
        let mut series = 1.0_f32 / 5_040.0;
        for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
            series = series.mul_add(f, coefficient);
        }
        // 2^(n - 1): 2^128 is not a number of this format, while 2 · 2^127 may come out as one with a series below 1.
        let exponent = (shifted.to_bits() as i32).wrapping_sub(ROUND.to_bits() as i32);
        let power = f32::from_bits((exponent.wrapping_add(126) << 23) as u32);
        (series + series) * power
    }
}

impl Element for f64 {
    #[inline(always)]
    fn from_f64(value: f64) -> Self {
        value
    }

    #[inline(always)]
    fn from_f32(value: f32) -> Self {
        Self::from(value)
    }

    #[inline(always)]
    fn widen(self) -> f64 {
        self
    }

    #[inline(always)]
    fn exponential(self) -> Self {
        self.exp()
    }
}
