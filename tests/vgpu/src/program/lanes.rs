//! Registers as vectors of 32 lanes, and how a scalar expression becomes an operation on them.
//!
//! On x86-64 [`lane_op!`] compiles an expression for AVX2 with FMA, and loading a program fails where the CPU
//! lacks them ([`cpu_suffices`]); other architectures get what the compiler makes of it by itself. An operation
//! computes all lanes and keeps those of the mask, so it may have no side effects and no input that traps.

use crate::ptx::Class;

/// Lanes of a warp.
pub const LANES: usize = 32;
/// The mask of all lanes.
pub const FULL: u32 = u32::MAX;

/// A register of up to 32 bits in every lane. Narrow values leave the upper bits unspecified.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Words(pub [u32; LANES]);

/// A 64-bit register in every lane.
#[derive(Clone, Copy, Debug)]
#[repr(align(64))]
pub struct Longs(pub [u64; LANES]);

/// All registers of a warp.
#[derive(Clone, Debug, Default)]
pub struct Registers {
    /// 8 to 32 bits.
    pub words: Vec<Words>,
    /// 64 bits.
    pub longs: Vec<Longs>,
    /// One bit a lane.
    pub predicates: Vec<u32>,
}

/// Which registers an operation reads and writes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Slots {
    /// The destination.
    pub destination: u32,
    /// The sources.
    pub sources: [u32; 4],
}

/// A pure operation on registers.
pub type Run = unsafe fn(&mut Registers, u32, &Slots);

/// An operation and its operand types.
#[derive(Clone, Copy)]
pub struct LaneOp {
    /// The code.
    pub run: Run,
    /// Type of the destination.
    pub destination: Kind,
    /// Types of the sources.
    pub sources: &'static [Kind],
}

/// Whether this CPU can run what [`lane_op!`] compiles.
pub fn cpu_suffices() -> bool {
    #[cfg(target_arch = "x86_64")]
    return std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma");
    #[cfg(not(target_arch = "x86_64"))]
    return true;
}

/// The type of an operand as far as operands are concerned: its class and its bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The register file.
    pub class: Class,
    /// Bits that count.
    pub bits: u32,
}

/// A type that a lane can hold.
pub trait Lane: Copy {
    /// Its class and bits.
    const KIND: Kind;
    /// One value a lane.
    type Array: Copy;
    /// Reads a register.
    fn load(registers: &Registers, slot: u32) -> Self::Array;
    /// One lane of it.
    fn get(array: &Self::Array, lane: usize) -> Self;
    /// An array to fill.
    fn blank() -> Self::Array;
    /// Sets one lane.
    fn put(array: &mut Self::Array, lane: usize, value: Self);
    /// Writes the lanes of the mask to a register.
    fn store(array: &Self::Array, registers: &mut Registers, slot: u32, mask: u32);
}

/// Copies the lanes of a mask.
#[inline(always)]
pub fn merge<T: Copy>(into: &mut [T; LANES], from: &[T; LANES], mask: u32) {
    if mask == FULL {
        *into = *from;
    } else {
        for lane in 0..LANES {
            if mask >> lane & 1 != 0 {
                into[lane] = from[lane];
            }
        }
    }
}

macro_rules! word_lane {
    ($($type:ty, $bits:expr, |$from:ident| $decode:expr, |$to:ident| $encode:expr;)*) => {$(
        impl Lane for $type {
            const KIND: Kind = Kind { class: Class::Word, bits: $bits };
            type Array = [u32; LANES];
            #[inline(always)]
            fn load(registers: &Registers, slot: u32) -> Self::Array {
                registers.words[slot as usize].0
            }
            #[inline(always)]
            fn get(array: &Self::Array, lane: usize) -> Self {
                let $from = array[lane];
                $decode
            }
            #[inline(always)]
            fn blank() -> Self::Array {
                [0; LANES]
            }
            #[inline(always)]
            fn put(array: &mut Self::Array, lane: usize, $to: Self) {
                array[lane] = $encode;
            }
            #[inline(always)]
            fn store(array: &Self::Array, registers: &mut Registers, slot: u32, mask: u32) {
                merge(&mut registers.words[slot as usize].0, array, mask);
            }
        }
    )*};
}

macro_rules! long_lane {
    ($($type:ty, |$from:ident| $decode:expr, |$to:ident| $encode:expr;)*) => {$(
        impl Lane for $type {
            const KIND: Kind = Kind { class: Class::Long, bits: 64 };
            type Array = [u64; LANES];
            #[inline(always)]
            fn load(registers: &Registers, slot: u32) -> Self::Array {
                registers.longs[slot as usize].0
            }
            #[inline(always)]
            fn get(array: &Self::Array, lane: usize) -> Self {
                let $from = array[lane];
                $decode
            }
            #[inline(always)]
            fn blank() -> Self::Array {
                [0; LANES]
            }
            #[inline(always)]
            fn put(array: &mut Self::Array, lane: usize, $to: Self) {
                array[lane] = $encode;
            }
            #[inline(always)]
            fn store(array: &Self::Array, registers: &mut Registers, slot: u32, mask: u32) {
                merge(&mut registers.longs[slot as usize].0, array, mask);
            }
        }
    )*};
}

/// A bfloat16, computed with as f32.
#[derive(Clone, Copy, Debug)]
pub struct Brain(pub f32);
/// A half, computed with as f32.
#[derive(Clone, Copy, Debug)]
pub struct Half(pub f32);

word_lane! {
    u32, 32, |x| x, |x| x;
    i32, 32, |x| x as i32, |x| x as u32;
    u16, 16, |x| x as u16, |x| u32::from(x);
    i16, 16, |x| x as i16, |x| i32::from(x) as u32;
    u8, 8, |x| x as u8, |x| u32::from(x);
    i8, 8, |x| x as i8, |x| i32::from(x) as u32;
    // The NaN that arithmetic gives on a device.
    f32, 32, |x| f32::from_bits(x), |x| if x.is_nan() { 0x7fff_ffff } else { x.to_bits() };
    Brain, 16, |x| Brain(crate::number::from_bf16(x & 0xffff)), |x| crate::number::to_bf16(x.0);
    Half, 16, |x| Half(crate::number::from_f16(x & 0xffff)), |x| crate::number::to_f16(x.0);
}
long_lane! {
    u64, |x| x, |x| x;
    i64, |x| x as i64, |x| x as u64;
    f64, |x| f64::from_bits(x), |x| x.to_bits();
}

impl Lane for bool {
    const KIND: Kind = Kind { class: Class::Predicate, bits: 1 };
    type Array = [u32; LANES];
    #[inline(always)]
    fn load(registers: &Registers, slot: u32) -> Self::Array {
        let mask = registers.predicates[slot as usize];
        std::array::from_fn(|lane| mask >> lane & 1)
    }
    #[inline(always)]
    fn get(array: &Self::Array, lane: usize) -> Self {
        array[lane] != 0
    }
    #[inline(always)]
    fn blank() -> Self::Array {
        [0; LANES]
    }
    #[inline(always)]
    fn put(array: &mut Self::Array, lane: usize, value: Self) {
        array[lane] = u32::from(value);
    }
    #[inline(always)]
    fn store(array: &Self::Array, registers: &mut Registers, slot: u32, mask: u32) {
        let mut bits = 0;
        for (lane, bit) in array.iter().enumerate() {
            bits |= bit << lane;
        }
        let into = &mut registers.predicates[slot as usize];
        *into = (*into & !mask) | (bits & mask);
    }
}

/// Makes a [`LaneOp`] of an expression over typed lanes.
macro_rules! lane_op {
    (|$($name:ident: $type:ty),*| -> $result:ty $body:block) => {{
        use $crate::program::lanes::{Kind, LANES, Lane, LaneOp, Registers, Slots};
        #[inline(always)]
        fn body(registers: &mut Registers, mask: u32, slots: &Slots) {
            let mut source = 0;
            $(
                let $name = <$type as Lane>::load(registers, slots.sources[source]);
                source += 1;
            )*
            let _ = source;
            let mut out = <$result as Lane>::blank();
            for lane in 0..LANES {
                $( let $name = <$type as Lane>::get(&$name, lane); )*
                <$result as Lane>::put(&mut out, lane, $body);
            }
            <$result as Lane>::store(&out, registers, slots.destination, mask);
        }
        #[cfg_attr(target_arch = "x86_64", target_feature(enable = "avx2,fma"))]
        fn run(registers: &mut Registers, mask: u32, slots: &Slots) {
            body(registers, mask, slots);
        }
        const SOURCES: &[Kind] = &[$(<$type as Lane>::KIND),*];
        LaneOp { run, destination: <$result as Lane>::KIND, sources: SOURCES }
    }};
}
pub(crate) use lane_op;
