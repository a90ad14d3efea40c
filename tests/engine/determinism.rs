//! The same bytes from the same command: twice, and with any number of threads.
//!
//! Which holds: on one machine type (the GEMM crate picks its kernels by the processor), loss and gradients do not
//! depend on the number of threads.

use promptmix::backend::cpu::Cpu;
use promptmix::pretrained::{Activation, T5Config};

use crate::setting::{Case, SCORERS, Setting, examples, small_config};

/// Loss, attention and gradient of a step in f32, bit by bit.
fn bytes(case: &mut Case<Cpu<f32>>, threads: usize) -> Vec<u64> {
    case.backend = Cpu::poisoning(Some(threads)).expect("threads");
    let (loss, gradient) = case.gradient();
    let numbers = loss.per_run.iter().chain(&loss.attention).chain(&gradient);
    let bits: Vec<u64> = numbers.map(|number| number.to_bits()).collect();
    assert!(gradient.iter().any(|&g| g != 0.0) && gradient.iter().all(|g| g.is_finite()));
    bits
}

fn same_for_any_threads(what: &str, setting: &Setting, threads: &[usize]) {
    let mut case = setting.build::<f32>(1);
    let one = bytes(&mut case, 1);
    assert_eq!(one, bytes(&mut case, 1), "{what}: a step done twice");
    for &threads in threads {
        let other = bytes(&mut case, threads);
        let differing = one.iter().zip(&other).filter(|(a, b)| a != b).count();
        println!("{what}: {threads} threads, {differing} of {} numbers differ", one.len());
        assert_eq!(differing, 0, "{what}: {threads} threads against one");
        assert_eq!(one.len(), other.len());
    }
}

/// t5-small's widths, with fewer layers and words.
fn t5_small_width() -> T5Config {
    let mut config = T5Config::new(2_500, 512, 64, 2_048, 2, 8);
    config.num_decoder_layers = 2;
    config
}

#[test]
fn small_models_of_every_kind() {
    for (activation, tied) in
        [(Activation::Relu, true), (Activation::GatedGelu, false), (Activation::GatedSilu, true)]
    {
        let config = small_config(activation, tied, 2, 3);
        for scorer in SCORERS {
            let lengths = [(17, 1), (1, 2), (40, 9), (6, 1), (3, 20)];
            let mut setting = Setting::new(config.clone(), examples(1, &config, &lengths));
            setting.mixing.scorer = Some(scorer);
            setting.dropout = (0.1, 4);
            same_for_any_threads(&format!("{activation:?} {scorer:?}"), &setting, &[2, 3]);
        }
    }
}

/// 177 encoder rows: one block whose products use every thread inside.
#[test]
fn one_block_with_threads_inside() {
    let config = t5_small_width();
    let lengths = [(40, 2), (1, 1), (77, 3), (19, 1)];
    let mut setting = Setting::new(config.clone(), examples(2, &config, &lengths));
    (setting.prompt_length, setting.bottleneck_dim, setting.dropout) = (10, 100, (0.1, 4));
    same_for_any_threads("177 rows", &setting, &[2, 3]);
}

/// 303 encoder rows: a block a thread; 34 target rows, which do not divide evenly among blocks.
#[test]
fn a_block_a_thread_at_t5_small_width() {
    let config = t5_small_width();
    let lengths = [(40, 2), (1, 1), (77, 3), (19, 1), (60, 13), (28, 14)];
    let mut setting = Setting::new(config.clone(), examples(3, &config, &lengths));
    (setting.prompt_length, setting.bottleneck_dim, setting.dropout) = (13, 100, (0.1, 4));
    same_for_any_threads("303 rows", &setting, &[2, 3]);
}

/// Row counts that a cut by threads would leave a nearly empty block of, whose products the GEMM crate sums in another
/// order: 17 and 33 targets in blocks of 16 or 17, and 193 encoder rows among many threads.
#[test]
fn rows_that_no_number_of_threads_divides() {
    let config = t5_small_width();
    for targets in [17, 33] {
        let lengths: Vec<(usize, usize)> = (0..targets).map(|b| (1 + b % 3, 1)).collect();
        let mut setting = Setting::new(config.clone(), examples(4, &config, &lengths));
        (setting.prompt_length, setting.bottleneck_dim) = (3, 20);
        same_for_any_threads(&format!("{targets} targets"), &setting, &[2, 3]);
    }
    // A narrow model with a long feed-forward, whose sums are cut into pieces; 193 rows on many threads.
    let mut config = T5Config::new(300, 40, 16, 1_300, 1, 2);
    config.num_decoder_layers = 1;
    let mut setting = Setting::new(config.clone(), examples(5, &config, &[(90, 2), (93, 1)]));
    setting.prompt_length = 5;
    same_for_any_threads("193 narrow rows", &setting, &[2, 3, 7, 16, 64]);
}

/// 708 encoder rows: two and three parts of whole examples, of unequal length, each through the encoder by itself; and more
/// threads than parts.
#[test]
fn parts_side_by_side_at_t5_small_width() {
    let config = t5_small_width();
    let lengths = [(190, 2), (3, 1), (77, 3), (120, 1), (60, 1), (28, 2), (139, 1)];
    let mut setting = Setting::new(config.clone(), examples(7, &config, &lengths));
    (setting.prompt_length, setting.bottleneck_dim, setting.dropout) = (13, 100, (0.1, 4));
    same_for_any_threads("708 rows", &setting, &[2, 3, 5]);
}

#[test]
fn more_rows_than_fit_one_block() {
    let config = small_config(Activation::Relu, true, 2, 1);
    let lengths: Vec<(usize, usize)> = (0..60).map(|b| (1 + 7 * b % 40, 1 + b % 3)).collect();
    let mut setting = Setting::new(config.clone(), examples(6, &config, &lengths));
    setting.dropout = (0.1, 2);
    same_for_any_threads("many rows", &setting, &[2, 3, 5]);
}
