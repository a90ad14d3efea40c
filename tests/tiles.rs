//! Which tile a product takes: every one gives the same product, the table of measurements decides where it has the shape, and what
//! is no table is refused.

use std::path::Path;

use cudarc::driver::sys::CUdevice_attribute;
use promptmix::cuda::linear::{Epilogue, Linear, TileConfig, TileShape, TileTable};
use promptmix::cuda::tile_search::{Candidate, LayerProduct, ProductShape, TileSearch};
use promptmix::cuda::{Sequences, devices};

#[path = "common/launching.rs"]
mod launching;

use launching::{Program, program};

impl Program {
    fn table(&self, lines: &[&str]) -> TileTable {
        let device = devices().expect("devices").remove(0).name;
        let lines: Vec<String> = lines.iter().map(|line| format!("{device},2026-11-27,{line}\n")).collect();
        TileTable::parse(Path::new("a table"), &format!("{}\n{}", TileTable::HEADER, lines.concat()))
            .expect("a table")
    }
}

const CAPABILITY_MAJOR: CUdevice_attribute = CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR;
const LARGE: TileConfig = TileConfig { shape: TileShape::Large, split_k: 1 };
const MEDIUM: TileConfig = TileConfig { shape: TileShape::Medium, split_k: 1 };
const SMALL: TileConfig = TileConfig { shape: TileShape::Small, split_k: 1 };

#[test]
fn every_tile_and_split_gives_the_product_that_sums_by_hand_give() {
    let Some(program) = program() else { return };
    // Columns and rows beside every tile's, and a depth that splits in four.
    let (rows, out, input) = (131, 136, 1_032);
    let sequences = Sequences::new(&program.stream, &[rows]).expect("a sequence");
    let ((a, a_device), (w, weight)) = (program.numbers(rows * input, 1), program.numbers(out * input, 77));
    let expected: Vec<f64> = (0..rows * out)
        .map(|i| (0..input).map(|k| a[i / out * input + k] * w[i % out * input + k]).sum())
        .collect();
    let largest = expected.iter().fold(0.0_f64, |most, value| most.max(value.abs()));
    let [forward, backward] = Linear::candidates(&program.kernels, rows, out, input).expect("candidates");
    // 128 and 80 wide tiles in up to eight parts, of two groups of warps in up to four.
    assert!(forward.contains(&TileConfig { shape: TileShape::Large, split_k: 8 }), "{forward:?}");
    assert!(forward.contains(&TileConfig { shape: TileShape::Small, split_k: 4 }), "{forward:?}");
    let hopper = program.kernels.context().attribute(CAPABILITY_MAJOR).expect("a device") == 9;
    for shape in TileShape::ALL {
        let is_tried = backward.iter().any(|config| config.shape == shape);
        // The depth backward is too little for four blocks of a cluster.
        let of_every_device = matches!(shape, TileShape::Large | TileShape::Medium | TileShape::Small);
        assert_eq!(is_tried, of_every_device || hopper && shape != TileShape::ThinHopper, "{shape:?}");
        let is_tried = forward.iter().any(|config| config.shape == shape);
        assert_eq!(is_tried, of_every_device || hopper, "{shape:?}");
    }
    for config in forward {
        let mut linear = Linear::with_tiles(&program.kernels, sequences.rows(), out, input, [config, LARGE])
            .expect("tiles");
        assert_eq!(linear.tiles(), [config, LARGE]);
        let mut z = program.stream.clone_htod(&vec![f32::NAN; rows * out]).expect("an upload");
        linear
            .forward(&program.kernels, &a_device, &weight, Epilogue::Float { z: &mut z })
            .expect("a launch");
        let found = program.stream.clone_dtoh(&z).expect("z");
        // Sums of f32 whose terms are below 1: half a rounding of the largest partial sum for each term.
        let bound = input as f64 * largest * f64::from(f32::EPSILON);
        for (i, (found, expected)) in found.iter().zip(&expected).enumerate() {
            assert!((f64::from(*found) - expected).abs() <= bound, "{config}: {i}: {found}, not {expected}");
        }
    }
}

#[test]
fn a_search_launches_every_candidate_of_each_product_of_a_layer_and_compares_them() {
    let Some(program) = program() else { return };
    let mut search = TileSearch::new(&program.kernels).expect("a search");
    for product in [
        LayerProduct::Project,
        LayerProduct::Relu,
        LayerProduct::Add,
        LayerProduct::ReluBackward,
        LayerProduct::NormBackward,
        LayerProduct::Plain,
    ] {
        let shape = ProductShape { product, rows: 70, n: 72, k: 520 };
        let measured = search.measure(shape, 2).expect("a measurement");
        let [forward, backward] = Linear::candidates(&program.kernels, 70, 72, 520).expect("candidates");
        let [_, reversed] = Linear::candidates(&program.kernels, 70, 520, 72).expect("candidates");
        assert!(forward.len() > 3 && backward.len() < forward.len());
        let expected = if product.is_backward() { reversed } else { forward };
        let found: Vec<TileConfig> = measured.iter().map(|candidate| candidate.config).collect();
        assert_eq!(found, expected, "{product:?}");
        for candidate in &measured {
            assert!(candidate.apart <= Candidate::MAX_APART, "{product:?}: {candidate:?}");
            assert_eq!([candidate.cold_us.len(), candidate.warm_us.len()], [2, 2]);
            assert!(candidate.microseconds() > 0.0 && candidate.expected_cycles > 0, "{candidate:?}");
        }
        // Other orders of a sum of 520 are other sums somewhere, where it is not rounded to bf16.
        let is_float = matches!(product, LayerProduct::Add | LayerProduct::NormBackward);
        assert!(!is_float || measured.iter().any(|candidate| candidate.apart > 0.0), "{product:?}");
    }
}

#[test]
fn a_table_decides_for_its_device_direction_and_shape_and_rows_near_it() {
    let Some(program) = program() else { return };
    let table = program.table(&[
        "forward,100,136,1032,80x128,1,5.0",
        "forward,160,136,1032,64x64,3,5.0",
        "backward,100,1032,136,64x64,1,5.0",
    ]);
    assert_eq!(table.len(), 3);
    let tiles = |table: &TileTable, rows: usize, out: usize, input: usize| {
        let sequences = Sequences::new(&program.stream, &[rows]).expect("a sequence");
        let linear = Linear::with_table(&program.kernels, sequences.rows(), out, input, table);
        linear.expect("a product").tiles()
    };
    assert_eq!(tiles(&table, 100, 136, 1_032), [MEDIUM, SMALL]);
    assert_eq!(tiles(&table, 81, 136, 1_032), [MEDIUM, SMALL]);
    let nearer = TileConfig { shape: TileShape::Small, split_k: 3 };
    assert_eq!(tiles(&table, 150, 136, 1_032)[0], nearer);
    let sequences = Sequences::new(&program.stream, &[100]).expect("a sequence");
    let usual = |rows, out, input| tiles(&TileTable::default(), rows, out, input);
    let built_in = Linear::new(&program.kernels, sequences.rows(), 136, 1_032).expect("a product").tiles();
    assert_eq!(built_in, usual(100, 136, 1_032));
    assert!(usual(100, 136, 1_032)[0] != MEDIUM, "the table's entry is another choice than the usual one");
    // A quarter off, another width, and the other direction's sizes are other shapes.
    for (rows, out, input) in [(80, 136, 1_032), (100, 144, 1_032), (100, 1_032, 136)] {
        assert_eq!(tiles(&table, rows, out, input), usual(rows, out, input), "{rows} {out} {input}");
    }
    // The same lines of another device.
    let text = format!("{}\nNo such GPU,2026-11-27,forward,100,136,1032,80x128,1,5.0\n", TileTable::HEADER);
    let other = TileTable::parse(Path::new("a table"), &text).expect("a table");
    assert_eq!(tiles(&other, 100, 136, 1_032), usual(100, 136, 1_032));
    // Parts that such a depth has no work for.
    let deep = program.table(&["forward,100,136,264,128x128,8,5.0"]);
    assert_eq!(tiles(&deep, 100, 136, 264), usual(100, 136, 264));
}

#[test]
fn what_is_no_table_is_refused_with_its_line() {
    let header = TileTable::HEADER;
    for (text, said) in [
        (String::new(), "line 1: expected \"device,measured"),
        ("device,tile\n".into(), "line 1: expected \"device,measured"),
        (format!("# a comment\n{header}\nA,B,forward,1,8,8,128x128,1\n"), "line 3: expected nine fields"),
        (format!("{header}\nA,B,sideways,1,8,8,128x128,1,1\n"), "line 2: expected forward or backward"),
        (
            format!("{header}\nA,B,forward,0,8,8,128x128,1,1\n"),
            "expected a number of at least 1, found \"0\"",
        ),
        (
            format!("{header}\nA,B,forward,1,8,8,8x8,1,1\n"),
            "expected 128x128, 80x128, 64x64, 128x192, 128x128 cluster or 64x64 cluster, found \"8x8\"",
        ),
        (format!("{header}\nA,B,forward,1,8,8,64x64,1,NaN\n"), "expected microseconds, found \"NaN\""),
        (
            format!("{header}\nA,B,forward,1,8,8,64x64,1,1\nA,C,forward,1,8,8,64x64,2,1\n"),
            "line 3: expected each shape of a device once",
        ),
    ] {
        let error = TileTable::parse(Path::new("t.csv"), &text).expect_err(said).to_string();
        assert!(error.contains("t.csv") && error.contains(said), "{said}: {error}");
    }
    let missing = TileTable::read(Path::new("no/such/table.csv")).expect_err("no file").to_string();
    assert!(missing.contains("no/such/table.csv"), "{missing}");
}

#[test]
fn the_table_of_this_build_is_read_whole() {
    let text = include_str!("../src/backend/cuda/ops/tiles.csv");
    let table = TileTable::parse(Path::new("tiles.csv"), text).expect("a table");
    let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty()).count();
    assert_eq!(table.len() + 1, lines);
    assert_eq!(&table, TileTable::built_in());
    assert_eq!(table.is_empty(), lines == 1);
}

#[test]
fn a_tile_that_the_device_has_no_kernel_of_is_refused() {
    let Some(program) = program() else { return };
    if program.kernels.context().attribute(CAPABILITY_MAJOR).expect("a device") == 9 {
        return;
    }
    let sequences = Sequences::new(&program.stream, &[9]).expect("a sequence");
    let tile = TileConfig { shape: TileShape::Hopper, split_k: 1 };
    let linear = Linear::with_tiles(&program.kernels, sequences.rows(), 64, 128, [LARGE, tile]);
    let error = linear.expect_err("another device").to_string();
    assert!(error.contains("a product in tiles of 128x192") && error.contains("they need 9.0"), "{error}");
}

#[test]
fn a_split_that_is_too_deep_is_refused() {
    let Some(program) = program() else { return };
    let sequences = Sequences::new(&program.stream, &[9]).expect("a sequence");
    let two = TileConfig { shape: TileShape::Small, split_k: 2 };
    let none = TileConfig { split_k: 0, ..LARGE };
    for (config, said) in [
        (two, "a product in tiles of 64x64: expected split-K of 1 for a depth of 128, found 2"),
        (none, "a product in tiles of 128x128: expected split-K of 1 for a depth of 128, found 0"),
    ] {
        let linear = Linear::with_tiles(&program.kernels, sequences.rows(), 64, 128, [config, LARGE]);
        let error = linear.expect_err(said).to_string();
        assert!(error.contains(said), "{error}");
    }
}
