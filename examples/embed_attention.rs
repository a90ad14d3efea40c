//! One kernel in a program of one's own: self attention with relative position bias over packed sequences, on cudarc's
//! buffers, without the rest of promptmix; then the fatbin it comes from, through cudarc's own loader.
//!
//!     cargo run --release --example embed_attention

use cudarc::driver::CudaContext;
use cudarc::driver::sys::CUfunction_attribute_enum as Attribute;
use cudarc::nvrtc::Ptx;
use half::bf16;
use promptmix::backend::Heads;
use promptmix::cuda::attention::{Attention, AttentionInput};
use promptmix::cuda::{FATBINS, Kernels, Sequences, devices};

const HEADS: Heads = Heads { count: 2, width: 64 };
const LENGTHS: [usize; 3] = [5, 70, 31];
const MAX_DISTANCE: usize = 8;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if devices()?.is_empty() {
        return Err("no GPU was found".into());
    }
    let context = CudaContext::new(0)?;
    let stream = context.new_stream()?;
    let kernels = Kernels::new(stream.clone())?;

    let sequences = Sequences::new(&stream, &LENGTHS)?;
    let (rows, total) = (sequences.count(), HEADS.total());
    let number = |i: usize| ((i * 2_654_435_761) % 1_009) as f32 / 504.5 - 1.0;
    let numbers: Vec<bf16> = (0..rows * 3 * total).map(|i| bf16::from_f32(number(i))).collect();
    let biases: Vec<f32> = (0..HEADS.count * (2 * MAX_DISTANCE + 1)).map(number).collect();
    let (qkv, bias) = (stream.clone_htod(&numbers)?, stream.clone_htod(&biases)?);
    let mut o = stream.alloc_zeros::<bf16>(rows * total)?;
    let mut log_sum_exp = stream.alloc_zeros::<f32>(rows * HEADS.count)?;
    let attention =
        Attention { bias: Some((&bias, MAX_DISTANCE)), ..Attention::of_itself(sequences.rows(), HEADS) };
    attention.forward(&kernels, AttentionInput::Packed(&qkv), &mut o, &mut log_sum_exp)?;
    let o = stream.clone_dtoh(&o)?;
    stream.synchronize()?;

    // The first sequence's first row by hand, for the first head.
    let at = |row: usize, part: usize, column: usize| numbers[(row * 3 + part) * total + column].to_f32();
    let scores = (0..LENGTHS[0]).map(|key| {
        let product: f32 = (0..HEADS.width).map(|column| at(0, 0, column) * at(key, 1, column)).sum();
        product + biases[MAX_DISTANCE + key.min(MAX_DISTANCE)]
    });
    let weights: Vec<f32> = scores.map(f32::exp).collect();
    let sum: f32 = weights.iter().sum();
    let by_hand = |column: usize| -> f32 {
        weights.iter().enumerate().map(|(key, weight)| weight * at(key, 2, column)).sum::<f32>() / sum
    };
    let worst =
        (0..HEADS.width).map(|column| (o[column].to_f32() - by_hand(column)).abs()).fold(0.0, f32::max);
    println!("{rows} rows, {} heads of {}: {worst:.1e} off the sum by hand", HEADS.count, HEADS.width);
    if worst.is_nan() || worst > 0.02 {
        return Err("the kernel and the sum by hand disagree".into());
    }

    // The same kernels as bytes, for any other loader.
    let (_, fatbin) = FATBINS.iter().find(|(file, _)| *file == "attention").ok_or("no attention kernels")?;
    let function = context.load_module(Ptx::from_binary(fatbin.to_vec()))?.load_function("attention_64")?;
    let registers = function.get_attribute(Attribute::CU_FUNC_ATTRIBUTE_NUM_REGS)?;
    println!("attention_64 of a fatbin of {} bytes has {registers} registers a thread", fatbin.len());
    Ok(())
}
