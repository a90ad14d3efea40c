//! Counters calibrated on kernels whose answer is known by hand.

use crate::bench::{Bench, Draw};
use vgpu::counters::Counters;
use vgpu::device::Arguments;
use vgpu::prediction::{Prediction, table};

fn count(kernel: &str, shared: u32, make: impl Fn(&mut Bench) -> Arguments) -> Option<Counters> {
    let mut bench = Bench::new("calibration", &[])?;
    let arguments = make(&mut bench);
    Some(bench.clean(kernel, [1, 1, 1], [32, 1, 1], shared, &arguments).counters)
}

fn tile(bench: &mut Bench) -> Arguments {
    let input = Draw(1).floats(1024);
    let (x, y) = (bench.upload(&input), bench.empty(4096));
    Arguments::new().pointer(x).pointer(y)
}

#[test]
fn transposes_conflict_as_their_layout_says() {
    // 32 reads of 32 lanes: a column of rows 32 apart lies on one bank, 31 passes too many each.
    let Some(counters) = count("turn_plain", 0, tile) else { return };
    assert_eq!((counters.shared_loads.requests, counters.shared_loads.conflicts), (32, 32 * 31));
    assert_eq!((counters.shared_stores.requests, counters.shared_stores.conflicts), (32, 0));
    for kernel in ["turn_padded", "turn_swizzled"] {
        let Some(counters) = count(kernel, 0, tile) else { return };
        assert_eq!(counters.shared_loads.wavefronts, 32, "{kernel}");
        assert_eq!(counters.shared_conflicts(), 0, "{kernel}");
    }
}

#[test]
fn a_stride_of_two_words_conflicts_twice() {
    let Some(counters) = count("shared_stride_two", 0, |bench| Arguments::new().pointer(bench.empty(128)))
    else {
        return;
    };
    assert_eq!((counters.shared_loads.wavefronts, counters.shared_loads.conflicts), (2, 1));
    assert_eq!(counters.shared_stores.conflicts, 0);
}

#[test]
fn global_strides_cost_their_sectors() {
    // 32 lanes of 4 bytes: 128 bytes are 4 sectors; at stride 2 they span 8, at stride 32 every lane has its own.
    for (stride, sectors) in [(1, 4), (2, 8), (32, 32)] {
        let counted = count("global_stride", 0, |bench| {
            let (x, y) = (bench.upload(&vec![1f32; 1024]), bench.empty(128));
            Arguments::new().pointer(x).pointer(y).int(stride)
        });
        let Some(counters) = counted else { return };
        assert_eq!((counters.loads.requests, counters.loads.sectors), (1, sectors), "stride {stride}");
        assert_eq!((counters.loads.bytes, counters.loads.unique_bytes), (128, 128), "stride {stride}");
        assert_eq!((counters.stores.requests, counters.stores.sectors), (1, 4), "stride {stride}");
    }
}

#[test]
fn sixteen_bytes_a_lane_are_sixteen_full_sectors() {
    let counted = count("global_vector", 0, |bench| {
        let (x, y) = (bench.upload(&vec![1f32; 128]), bench.empty(512));
        Arguments::new().pointer(x).pointer(y)
    });
    let Some(counters) = counted else { return };
    assert_eq!((counters.loads.requests, counters.loads.sectors, counters.loads.unique_bytes), (1, 16, 512));
    assert_eq!(counters.loads.moved_bytes(), counters.loads.unique_bytes);
}

#[test]
fn ldmatrix_conflicts_as_its_pitch_says() {
    // Four matrices, a pass each. Rows 128 bytes apart all start on bank 0: 8 passes each. Rows of 16 or 144
    // bytes cover all banks.
    for (pitch, wavefronts) in [(16, 4), (128, 32), (144, 4), (64, 16)] {
        let counted = count("matrix_rows", 32 * pitch, |bench| {
            Arguments::new().pointer(bench.empty(128)).int(pitch as i32)
        });
        let Some(counters) = counted else { return };
        assert_eq!(counters.matrix.requests, 1);
        assert_eq!(
            (counters.matrix.wavefronts, counters.matrix.conflicts),
            (wavefronts, wavefronts - 4),
            "{pitch}"
        );
    }
}

#[test]
fn a_branch_that_parts_the_lanes_is_counted() {
    let counted = count("part_ways", 0, |bench| {
        let mut input: Vec<i32> = (0..32).collect();
        input[0] = 2;
        let (x, y) = (bench.upload(&input), bench.empty(256));
        Arguments::new().pointer(x).pointer(y)
    });
    let Some(counters) = counted else { return };
    assert!(counters.divergent_branches >= 1);
    assert!(counters.lanes < counters.instructions() * 32);
}

#[test]
fn a_sample_is_scaled_to_all_blocks() {
    let Some(mut bench) = Bench::new("gemm", &[]) else { return };
    let (m, n, k) = (512usize, 512usize, 64usize);
    let mut draw = Draw(1);
    let (a, b, bias) = (draw.brains(m * k), draw.brains(n * k), draw.floats(n));
    let (pa, pb, pbias, pc) =
        (bench.upload(&a), bench.upload(&b), bench.upload(&bias), bench.empty(m * n * 2));
    let arguments = Arguments::new().pointer(pa).pointer(pb).pointer(pc).pointer(pbias);
    let arguments = arguments.int(m as i32).int(n as i32).int(k as i32);
    let whole = bench.clean("gemm", [4, 4, 1], [256, 1, 1], 65_536, &arguments).counters;
    assert_eq!(whole.tensor_multiply_adds, (m * n * k) as u64);
    bench.device.settings.sample_blocks = Some(4);
    let sample = bench.clean("gemm", [4, 4, 1], [256, 1, 1], 65_536, &arguments).counters;
    assert_eq!((sample.blocks, sample.blocks_run), (16, 4));
    assert_eq!(sample.tensor_multiply_adds, whole.tensor_multiply_adds);
    assert_eq!(sample.classes, whole.classes, "all blocks do the same here");
    let prediction = Prediction::of(std::slice::from_ref(&whole), None);
    assert_eq!(prediction.bounds.len(), 3);
    // Each launch has its own bound: 16 blocks leave most multiprocessors idle, whatever others of the kernel do.
    let full = Counters { blocks: 108 * 16, ..whole.clone() };
    let both = Prediction::of(&[whole.clone(), full.clone()], None);
    let of = |one: &Counters| Prediction::of(std::slice::from_ref(one), None).bounds[0].seconds;
    assert!(of(&whole) > 1.5 * of(&full), "an A100 has 108 multiprocessors");
    assert!((both.bounds[0].seconds - of(&whole) - of(&full)).abs() < 1e-15);
    assert!(table(&[whole], &[prediction]).contains("gemm"));
}
