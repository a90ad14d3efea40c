//! The CPU backend's ops and its whole step, at the shapes of a step of t5-small: 8 examples of 128 source tokens after a
//! prompt of 100, 8 target tokens.
//!
//!     cargo bench --bench cpu                      every op
//!     cargo bench --bench cpu -- feed_forward      those of one name
//!
//! Random numbers. Before an op is timed, its f32 results are compared with those of the same op in f64, which the tests
//! compare with plain equations. Throughput is criterion's: elements are the floating-point operations of products; ops
//! without any show what they read and write in bytes.

mod attention;
mod cross_attention;
mod decode;
mod linear;
mod loss;
mod mix;
mod norm;
mod operands;
mod optimizer;
mod step;

use std::time::Duration;

use criterion::Criterion;

fn main() {
    let warm_up = Duration::from_millis(500);
    let mut criterion =
        Criterion::default().sample_size(20).warm_up_time(warm_up).measurement_time(Duration::from_secs(2));
    criterion = criterion.configure_from_args();
    linear::benches(&mut criterion);
    attention::benches(&mut criterion);
    cross_attention::benches(&mut criterion);
    norm::benches(&mut criterion);
    mix::benches(&mut criterion);
    loss::benches(&mut criterion);
    optimizer::benches(&mut criterion);
    decode::benches(&mut criterion);
    step::benches(&mut criterion);
    criterion.final_summary();
}
