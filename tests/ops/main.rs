//! Each op of the CPU backend, in f32, against its equation written out in f64 loops, on awkward sizes.

#[path = "../common/mismatch.rs"]
mod every_shape;

#[path = "../common/random.rs"]
mod random;

mod operands;

mod attention;
mod cross_attention;
mod exponential;
mod linear;
mod loss;
mod mismatch;
mod mix;
mod norm;
