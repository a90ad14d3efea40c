//! Products of small tiles: what a tensor core computes, in order of k with one rounding a step.
//!
//! With AVX2 and FMA a tile is eight rows of sums in registers; elsewhere plain loops give the same bits.

use crate::number::{from_bf16, from_f16};
use crate::program::{LANES, TensorFormat};

/// A tile of sums: 16 rows of 8 columns.
pub type Tile = [[f32; 8]; 16];
/// The left factor: 16 rows of up to 16 columns.
pub type Left = [[f32; 16]; 16];
/// The right factor: up to 16 rows of 8 columns.
pub type Right = [[f32; 8]; 16];

/// `c += a b`, of which `a` has `depth` columns and `b` as many rows.
pub fn multiply_add_tile(depth: usize, a: &Left, b: &Right, c: &mut Tile) {
    #[cfg(target_arch = "x86_64")]
    if is_fast() {
        // SAFETY: `is_fast` found every feature that the function needs.
        return unsafe { fast::multiply_add(depth.min(16), a, b, c) };
    }
    for (row, sums) in a.iter().zip(c.iter_mut()) {
        for (&left, right) in row.iter().zip(b).take(depth) {
            for (sum, &right) in sums.iter_mut().zip(right) {
                *sum = left.mul_add(right, *sum);
            }
        }
    }
}

/// The two sixteen-bit numbers of a word as f32.
#[inline(always)]
pub fn halves(format: TensorFormat, word: u32) -> [f32; 2] {
    match format {
        TensorFormat::Brain => [from_bf16(word & 0xffff), f32::from_bits(word & 0xffff_0000)],
        _ => [from_f16(word & 0xffff), from_f16(word >> 16)],
    }
}

/// `d = a b + c` of 16-bit numbers with f32 sums on registers as they are, for fragments of m16n8k8 and m16n8k16.
/// None where the CPU has no fast form.
#[inline]
pub fn product(
    format: TensorFormat,
    a: &[&[u32; LANES]],
    b: &[&[u32; LANES]],
    c: [&[u32; LANES]; 4],
) -> Option<[[u32; LANES]; 4]> {
    #[cfg(target_arch = "x86_64")]
    if is_fast() && format != TensorFormat::Tf32 {
        // SAFETY: `is_fast` found every feature that the function needs.
        return Some(unsafe {
            match format {
                TensorFormat::Brain => fast::product::<true>(a, b, c),
                _ => fast::product::<false>(a, b, c),
            }
        });
    }
    let _ = (format, a, b, c);
    None
}

/// The left factor as two halves of eight rows.
pub type Block = [[[f32; 16]; 8]; 2];

/// `d = a b + c` for sixteen rows, eight columns and sixteen depths, with `c` and `d` as fragments of m16n8k16.
#[inline]
pub fn fragment_product(a: &Block, b: &Right, c: [&[u32; LANES]; 4]) -> [[u32; LANES]; 4] {
    #[cfg(target_arch = "x86_64")]
    if is_fast() {
        // SAFETY: `is_fast` found every feature that the function needs.
        return unsafe { fast::fragment_product(a, b, c, 16) };
    }
    let mut out = [[0; LANES]; 4];
    for (register, words) in out.iter_mut().enumerate() {
        for (lane, word) in words.iter_mut().enumerate() {
            let (row, column) = (lane / 4, 2 * (lane % 4) + register % 2);
            let start = f32::from_bits(c[register][lane]);
            let left = &a[register / 2][row];
            let sum = left.iter().zip(b).fold(start, |sum, (left, right)| left.mul_add(right[column], sum));
            *word = if sum.is_nan() { 0x7fff_ffff } else { sum.to_bits() };
        }
    }
    out
}

/// Eight 16-bit numbers as f32: bf16, or else f16.
#[inline]
pub fn widened(brain: bool, bytes: &[u8; 16]) -> [f32; 8] {
    #[cfg(target_arch = "x86_64")]
    if is_fast() {
        // SAFETY: `is_fast` found every feature that the function needs.
        return unsafe { fast::widened(brain, bytes) };
    }
    std::array::from_fn(|index| {
        let bits = u32::from(u16::from_le_bytes([bytes[2 * index], bytes[2 * index + 1]]));
        if brain { from_bf16(bits) } else { from_f16(bits) }
    })
}

/// The same of many at once.
#[inline]
pub fn widen(brain: bool, from: &[[u8; 16]], into: &mut [[f32; 8]]) {
    #[cfg(target_arch = "x86_64")]
    if is_fast() {
        // SAFETY: `is_fast` found every feature that the function needs.
        return unsafe { fast::widen_all(brain, from, into) };
    }
    into.iter_mut().zip(from).for_each(|(into, bytes)| *into = widened(brain, bytes));
}

/// The same of eight columns, turned into eight rows.
#[inline]
pub fn widened_and_turned(brain: bool, columns: &[[u8; 16]; 8]) -> [[f32; 8]; 8] {
    #[cfg(target_arch = "x86_64")]
    if is_fast() {
        // SAFETY: `is_fast` found every feature that the function needs.
        return unsafe { fast::widened_and_turned(brain, columns) };
    }
    let columns = columns.map(|column| widened(brain, &column));
    std::array::from_fn(|row| columns.map(|column| column[row]))
}

/// Eight rows of eight 16-bit elements, turned over. A row is in the words of four lanes.
#[inline]
pub fn turned(register: &[u32; LANES]) -> [u32; LANES] {
    #[cfg(target_arch = "x86_64")]
    return fast::turned(register);
    #[cfg(not(target_arch = "x86_64"))]
    std::array::from_fn(|lane| {
        let element =
            |row: usize, column: usize| register[row * 4 + column / 2] >> (16 * (column % 2)) & 0xffff;
        let (row, column) = (lane / 4, 2 * (lane % 4));
        element(column, row) | element(column + 1, row) << 16
    })
}

/// Whether the CPU has what the fast forms need.
#[cfg(target_arch = "x86_64")]
fn is_fast() -> bool {
    std::is_x86_feature_detected!("avx2")
        && std::is_x86_feature_detected!("fma")
        && std::is_x86_feature_detected!("f16c")
}

#[cfg(target_arch = "x86_64")]
mod fast {
    use std::arch::x86_64::*;

    use super::{Block, LANES, Left, Right, Tile};

    /// Eight numbers, loaded or stored.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn load(from: &[f32; 8]) -> __m256 {
        // SAFETY: the array has eight numbers, and the load asks for no alignment.
        unsafe { _mm256_loadu_ps(from.as_ptr()) }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn store(into: &mut [f32; 8], value: __m256) {
        // SAFETY: as in `load`.
        unsafe { _mm256_storeu_ps(into.as_mut_ptr(), value) }
    }

    /// Eight words of a register from a lane on.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn words(register: &[u32; LANES], first: usize) -> __m256 {
        let part = &register[first..first + 8];
        // SAFETY: the slice has eight words, and the load asks for no alignment.
        unsafe { _mm256_loadu_ps(part.as_ptr().cast()) }
    }

    /// The eight 16-bit numbers of four words, widened.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn widen<const BRAIN: bool>(register: &[u32; LANES], first: usize) -> __m256 {
        let part = &register[first..first + 4];
        // SAFETY: the slice has four words, and the load asks for no alignment.
        let packed = unsafe { _mm_loadu_si128(part.as_ptr().cast()) };
        if BRAIN {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(packed)))
        } else {
            _mm256_cvtph_ps(packed)
        }
    }

    /// Turns eight rows into eight columns.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn transpose(rows: [__m256; 8]) -> [__m256; 8] {
        let [r0, r1, r2, r3, r4, r5, r6, r7] = rows;
        let (p0, p1) = (_mm256_unpacklo_ps(r0, r1), _mm256_unpackhi_ps(r0, r1));
        let (p2, p3) = (_mm256_unpacklo_ps(r2, r3), _mm256_unpackhi_ps(r2, r3));
        let (p4, p5) = (_mm256_unpacklo_ps(r4, r5), _mm256_unpackhi_ps(r4, r5));
        let (p6, p7) = (_mm256_unpacklo_ps(r6, r7), _mm256_unpackhi_ps(r6, r7));
        let q0 = _mm256_shuffle_ps::<0x44>(p0, p2);
        let q1 = _mm256_shuffle_ps::<0xee>(p0, p2);
        let q2 = _mm256_shuffle_ps::<0x44>(p1, p3);
        let q3 = _mm256_shuffle_ps::<0xee>(p1, p3);
        let q4 = _mm256_shuffle_ps::<0x44>(p4, p6);
        let q5 = _mm256_shuffle_ps::<0xee>(p4, p6);
        let q6 = _mm256_shuffle_ps::<0x44>(p5, p7);
        let q7 = _mm256_shuffle_ps::<0xee>(p5, p7);
        [
            _mm256_permute2f128_ps::<0x20>(q0, q4),
            _mm256_permute2f128_ps::<0x20>(q1, q5),
            _mm256_permute2f128_ps::<0x20>(q2, q6),
            _mm256_permute2f128_ps::<0x20>(q3, q7),
            _mm256_permute2f128_ps::<0x31>(q0, q4),
            _mm256_permute2f128_ps::<0x31>(q1, q5),
            _mm256_permute2f128_ps::<0x31>(q2, q6),
            _mm256_permute2f128_ps::<0x31>(q3, q7),
        ]
    }

    /// Every x86-64 CPU has what this needs.
    #[inline]
    pub fn turned(register: &[u32; LANES]) -> [u32; LANES] {
        let mut out = [0; LANES];
        // SAFETY: SSE2 belongs to x86-64; both arrays have eight times sixteen bytes, and neither the loads nor
        // the stores ask for alignment.
        unsafe {
            let row = |index: usize| _mm_loadu_si128(register.as_ptr().add(4 * index).cast());
            let pair = |index: usize| {
                let (a, b) = (row(index), row(index + 1));
                (_mm_unpacklo_epi16(a, b), _mm_unpackhi_epi16(a, b))
            };
            let ((a0, a1), (b0, b1), (c0, c1), (d0, d1)) = (pair(0), pair(2), pair(4), pair(6));
            let mut put = |index: usize, value: __m128i| {
                _mm_storeu_si128(out.as_mut_ptr().add(4 * index).cast(), value);
            };
            for (first, [a, b, c, d]) in [(0, [a0, b0, c0, d0]), (4, [a1, b1, c1, d1])] {
                let (low, high) = (_mm_unpacklo_epi32(a, b), _mm_unpackhi_epi32(a, b));
                let (low_after, high_after) = (_mm_unpacklo_epi32(c, d), _mm_unpackhi_epi32(c, d));
                put(first, _mm_unpacklo_epi64(low, low_after));
                put(first + 1, _mm_unpackhi_epi64(low, low_after));
                put(first + 2, _mm_unpacklo_epi64(high, high_after));
                put(first + 3, _mm_unpackhi_epi64(high, high_after));
            }
        }
        out
    }

    /// Eight rows of sums, each of which goes by k on its own: eight chains that do not wait for each other.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn accumulate(depth: usize, a: &[[f32; 16]; 8], b: &Right, sums: &mut [__m256; 8]) {
        let [mut s0, mut s1, mut s2, mut s3, mut s4, mut s5, mut s6, mut s7] = *sums;
        for k in 0..depth.min(16) {
            let right = load(&b[k]);
            s0 = _mm256_fmadd_ps(_mm256_set1_ps(a[0][k]), right, s0);
            s1 = _mm256_fmadd_ps(_mm256_set1_ps(a[1][k]), right, s1);
            s2 = _mm256_fmadd_ps(_mm256_set1_ps(a[2][k]), right, s2);
            s3 = _mm256_fmadd_ps(_mm256_set1_ps(a[3][k]), right, s3);
            s4 = _mm256_fmadd_ps(_mm256_set1_ps(a[4][k]), right, s4);
            s5 = _mm256_fmadd_ps(_mm256_set1_ps(a[5][k]), right, s5);
            s6 = _mm256_fmadd_ps(_mm256_set1_ps(a[6][k]), right, s6);
            s7 = _mm256_fmadd_ps(_mm256_set1_ps(a[7][k]), right, s7);
        }
        *sums = [s0, s1, s2, s3, s4, s5, s6, s7];
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn multiply_add(depth: usize, a: &Left, b: &Right, c: &mut Tile) {
        let (a, _) = a.as_chunks::<8>();
        let (c, _) = c.as_chunks_mut::<8>();
        for (a, c) in a.iter().zip(c) {
            let mut sums = [_mm256_setzero_ps(); 8];
            for (sum, row) in sums.iter_mut().zip(c.iter()) {
                *sum = load(row);
            }
            accumulate(depth, a, b, &mut sums);
            for (sum, row) in sums.iter().zip(c.iter_mut()) {
                store(row, *sum);
            }
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    pub fn product<const BRAIN: bool>(
        a: &[&[u32; LANES]],
        b: &[&[u32; LANES]],
        c: [&[u32; LANES]; 4],
    ) -> [[u32; LANES]; 4] {
        let mut right: Right = [[0.0; 8]; 16];
        for (register, rows) in b.iter().zip(right.as_chunks_mut::<8>().0) {
            let mut columns = [_mm256_setzero_ps(); 8];
            for (column, value) in columns.iter_mut().enumerate() {
                *value = widen::<BRAIN>(register, column * 4);
            }
            for (row, value) in rows.iter_mut().zip(transpose(columns)) {
                store(row, value);
            }
        }
        let mut left: Block = [[[0f32; 16]; 8]; 2];
        for (half, rows) in left.iter_mut().enumerate() {
            for (row, values) in rows.iter_mut().enumerate() {
                let (parts, _) = values.as_chunks_mut::<8>();
                for (part, into) in parts.iter_mut().enumerate().take(b.len()) {
                    store(into, widen::<BRAIN>(a[half + 2 * part], row * 4));
                }
            }
        }
        fragment_product(&left, &right, c, b.len() * 8)
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    pub fn fragment_product(a: &Block, b: &Right, c: [&[u32; LANES]; 4], depth: usize) -> [[u32; LANES]; 4] {
        let mut out = [[0u32; LANES]; 4];
        for half in 0..2 {
            // Two registers hold the even and the odd columns; four lanes are a row.
            let mut sums = [_mm256_setzero_ps(); 8];
            for (pair, sums) in sums.as_chunks_mut::<2>().0.iter_mut().enumerate() {
                let (even, odd) = (words(c[2 * half], pair * 8), words(c[2 * half + 1], pair * 8));
                let (low, high) = (_mm256_unpacklo_ps(even, odd), _mm256_unpackhi_ps(even, odd));
                *sums =
                    [_mm256_permute2f128_ps::<0x20>(low, high), _mm256_permute2f128_ps::<0x31>(low, high)];
            }
            accumulate(depth, &a[half], b, &mut sums);
            for (pair, sums) in sums.as_chunks::<2>().0.iter().enumerate() {
                let low = _mm256_permute2f128_ps::<0x20>(sums[0], sums[1]);
                let high = _mm256_permute2f128_ps::<0x31>(sums[0], sums[1]);
                let even = _mm256_shuffle_ps::<0x88>(low, high);
                let odd = _mm256_shuffle_ps::<0xdd>(low, high);
                for (register, value) in [(2 * half, even), (2 * half + 1, odd)] {
                    // The NaN that a device gives.
                    let number = _mm256_cmp_ps::<_CMP_UNORD_Q>(value, value);
                    let nan = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fff_ffff));
                    let value = _mm256_blendv_ps(value, nan, number);
                    let into = &mut out[register][pair * 8..pair * 8 + 8];
                    // SAFETY: the slice has eight words, and the store asks for no alignment.
                    unsafe { _mm256_storeu_ps(into.as_mut_ptr().cast(), value) };
                }
            }
        }
        out
    }

    /// Eight 16-bit numbers, widened.
    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    fn widen_bytes(brain: bool, bytes: &[u8; 16]) -> __m256 {
        // SAFETY: the array has sixteen bytes, and the load asks for no alignment.
        let packed = unsafe { _mm_loadu_si128(bytes.as_ptr().cast()) };
        if brain {
            _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(packed)))
        } else {
            _mm256_cvtph_ps(packed)
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    pub fn widened(brain: bool, bytes: &[u8; 16]) -> [f32; 8] {
        let mut out = [0.0; 8];
        store(&mut out, widen_bytes(brain, bytes));
        out
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    pub fn widen_all(brain: bool, from: &[[u8; 16]], into: &mut [[f32; 8]]) {
        for (into, bytes) in into.iter_mut().zip(from) {
            store(into, widen_bytes(brain, bytes));
        }
    }

    #[target_feature(enable = "avx2,fma,f16c")]
    #[inline]
    pub fn widened_and_turned(brain: bool, columns: &[[u8; 16]; 8]) -> [[f32; 8]; 8] {
        let mut values = [_mm256_setzero_ps(); 8];
        for (value, bytes) in values.iter_mut().zip(columns) {
            *value = widen_bytes(brain, bytes);
        }
        let mut out = [[0.0; 8]; 8];
        for (row, value) in out.iter_mut().zip(transpose(values)) {
            store(row, value);
        }
        out
    }
}
