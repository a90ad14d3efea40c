//! The GPU kernels, launched alone and timed by the device's own events.
//!
//!     cargo bench --bench cuda                     every kernel, at the shapes of a step of t5-base
//!     cargo bench --bench cuda -- linear           those of one op
//!
//! Random numbers; results are compared with sums in f64 before anything is timed; the level-2 cache is flushed before each
//! launch. Throughput is criterion's: elements are floating-point operations, bytes are what the launch must move at least
//! (every operand once). The last line of output is JSON: for each kernel the median in microseconds, and both counts.
//!
//! Without a GPU it says so and ends well. `PROMPTMIX_TEST_DEVICE=vgpu` runs small shapes on the virtual GPU, whose times mean
//! nothing: a test of the benches alone.

mod attention;
mod cross_attention;
mod decode;
mod embedding;
mod gpu;
mod linear;
mod loss;
mod mix;
mod norm;
mod optimizer;

use std::time::Duration;

use criterion::Criterion;
use gpu::Gpu;

fn main() {
    let gpu = match Gpu::open() {
        Ok(gpu) => gpu,
        Err(reason) => {
            println!("skipped: {reason}");
            return;
        }
    };
    let mut criterion = Criterion::default().warm_up_time(Duration::from_millis(500));
    if gpu.is_virtual() {
        let least = Duration::from_millis(1);
        criterion = criterion.warm_up_time(least).measurement_time(least).sample_size(10);
    }
    let mut criterion = criterion.configure_from_args();
    linear::benches(&gpu, &mut criterion);
    attention::benches(&gpu, &mut criterion);
    cross_attention::benches(&gpu, &mut criterion);
    norm::benches(&gpu, &mut criterion);
    embedding::benches(&gpu, &mut criterion);
    loss::benches(&gpu, &mut criterion);
    mix::benches(&gpu, &mut criterion);
    optimizer::benches(&gpu, &mut criterion);
    decode::benches(&gpu, &mut criterion);
    criterion.final_summary();
    println!("{}", gpu.figures());
}
