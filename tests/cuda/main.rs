//! The CUDA backend against the CPU's, on the virtual GPU or a real one.

#[path = "../common/mismatch.rs"]
mod every_shape;
#[path = "../common/kernels.rs"]
mod kernels;
#[path = "../../examples/embed_layer/layer.rs"]
mod layer_of_example;
#[path = "../common/random.rs"]
mod random;
#[path = "../common/setting.rs"]
mod setting;

mod absorbed;
mod answer;
mod attention;
mod attention_with_product;
mod cross_attention;
mod decode;
mod device;
mod embedding;
mod fixtures;
mod graph;
mod hopper;
mod layer;
mod linear;
mod loss;
mod memory;
mod mismatch;
mod mix;
mod model;
mod norm;
mod optimizer;
mod raw;
mod rows;
mod tally;
mod training;
