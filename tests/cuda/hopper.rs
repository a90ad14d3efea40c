//! Products by warpgroups and tensor copies, `kernels/gemm_hopper.cu` and `kernels/gemm_thin_hopper.cu`, against those that run on
//! every device, `kernels/gemm.cu`: the same operands, and the same result but for the order of sums.

use cudarc::driver::{CudaSlice, DeviceRepr};
use half::bf16;
use promptmix::backend::{DropoutStep, Side, Site, SiteKind};
use promptmix::cuda::linear::{Epilogue, Linear, Norm, NormBackward, TileConfig, TileShape};
use promptmix::cuda::{DeviceDropout, DropoutMask, ReadOperand, Sequences};
use promptmix::verify::{Tolerance, compare};

use crate::device::{Raw, matrix, numbers, partial_squares, roundings, sums};

const EVERY_DEVICE: TileConfig = TileConfig { shape: TileShape::Large, split_k: 1 };
const HOPPER: [TileConfig; 2] = [
    TileConfig { shape: TileShape::Hopper, split_k: 1 },
    TileConfig { shape: TileShape::HopperNarrow, split_k: 1 },
];
const THIN: [TileConfig; 2] = [
    TileConfig { shape: TileShape::ThinHopper, split_k: 4 },
    TileConfig { shape: TileShape::ThinHopper, split_k: 8 },
];
/// Set in a process that runs a test again on a virtual GPU of compute capability 9.0.
const AGAIN: &str = "PROMPTMIX_TEST_ON_HOPPER";

/// A device that has the kernels. Where the virtual GPU is another, the test that calls runs again as a process of its own, which may
/// choose; then, and in a build without kernels, there is none.
fn hopper(test: &str) -> Option<Raw> {
    let raw = Raw::new()?;
    if raw.capability() == (9, 0) {
        return Some(raw);
    }
    if !raw.is_virtual() {
        eprintln!("skipped: the GPU has not compute capability 9.0");
        return None;
    }
    let said = again(&[&format!("hopper::{test}"), "--exact", "--nocapture"], false);
    assert!(said.contains("1 passed"), "on the profile h200:\n{said}");
    None
}

/// Runs tests of this program as a process of its own on a virtual GPU of compute capability 9.0, if asked for with launches that begin
/// before those before them; what it says.
fn again(which: &[&str], early: bool) -> String {
    assert!(std::env::var_os(AGAIN).is_none(), "the profile h200 has compute capability 9.0");
    let program = std::env::current_exe().expect("this program");
    let mut command = std::process::Command::new(program);
    command.args(which).env(AGAIN, "1").env("VGPU_PROFILE", "h200");
    let output = command.env("VGPU_EARLY", if early { "1" } else { "0" }).output().expect("a process");
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    assert!(output.status.success(), "on the profile h200:\n{said}");
    said
}

/// What a product leaves: a name, the numbers, and how far they may be from another's.
type Left = Vec<(&'static str, Vec<f64>, Tolerance)>;

/// A weight \[out, in\], rows on either side of it, and what epilogues ask for.
struct Operands<'r> {
    raw: &'r Raw,
    sequences: Sequences,
    /// Rows that there are.
    real: usize,
    out: usize,
    input: usize,
    weight: CudaSlice<bf16>,
    /// \[rows, in\] and \[rows, out\]: what is multiplied forward and backward.
    sides: [CudaSlice<bf16>; 2],
    /// The same in f32, and other numbers: residual rows.
    floats: [CudaSlice<f32>; 2],
    partials: CudaSlice<f32>,
    inner: CudaSlice<f32>,
    bits: CudaSlice<u8>,
    dropout: DeviceDropout,
}

impl<'r> Operands<'r> {
    /// Room for `after` rows more than there are: those to be multiplied hold NaN, and nobody has written the others.
    fn new(raw: &'r Raw, lengths: &[usize], after: usize, out: usize, input: usize) -> Self {
        let stream = raw.kernels().stream();
        let real: usize = lengths.iter().sum();
        let sequences =
            Sequences::with_capacity(stream, lengths.len(), real + after).expect("room for sequences");
        sequences.update(lengths).expect("sequences that fit");
        let rows = sequences.count();
        assert_eq!(rows, real + after);
        let multiplied = |mut values: Vec<f64>, width: usize| {
            values[real * width..].fill(f64::NAN);
            raw.halves(&values)
        };
        let weight: Vec<f64> = matrix(1, out, input).into_iter().map(f64::from).collect();
        let (x, dz) = (numbers(2, rows * input, 1.0), numbers(3, rows * out, 1.0));
        let pattern: Vec<u8> = (0..rows * input / 8).map(|i| (i * 37 % 256) as u8).collect();
        let step = DropoutStep::new(0.25, 5, &[77]).expect("a probability above 0");
        let written = |values: &[f64]| raw.partly_written(values, values.len() / rows * real);
        Self {
            raw,
            out,
            input,
            weight: raw.halves(&weight),
            floats: [written(&x), written(&numbers(4, rows * out, 1.0))],
            partials: written(&partial_squares(&x, input)),
            inner: written(&numbers(5, rows * 3, 1.0)),
            bits: stream.clone_htod(&pattern).expect("an upload"),
            sides: [multiplied(x, input), multiplied(dz, out)],
            real,
            dropout: DeviceDropout::new(stream, &step).expect("an upload"),
            sequences,
        }
    }

    /// Every epilogue of both directions, into memory that holds NaN.
    fn run(&self, tile: TileConfig) -> Left {
        let mut left = Left::new();
        let (raw, rows) = (self.raw, self.sequences.count());
        let mut linear =
            Linear::with_tiles(raw.kernels(), self.sequences.rows(), self.out, self.input, [tile; 2])
                .expect("tiles of the device");
        let site = Site::new(Side::Encoder, SiteKind::FeedForward, 1);
        for mask in [DropoutMask::default(), self.dropout.mask(site)] {
            self.forward(&mut linear, rows, mask, &mut left);
            self.backward(&mut linear, rows, mask, &mut left);
        }
        left
    }

    /// What it holds of the rows that there are.
    fn read<T: DeviceRepr + Clone + Default + Into<f64>>(&self, slice: &CudaSlice<T>) -> Vec<f64> {
        let mut values = self.raw.read(slice);
        values.truncate(values.len() / self.sequences.count() * self.real);
        values
    }

    fn forward(&self, linear: &mut Linear<'_>, rows: usize, mask: DropoutMask<'_>, left: &mut Left) {
        let (raw, kernels, count) = (self.raw, self.raw.kernels(), rows * self.out);
        // Each may be half a step of bf16, a 2^-8 part of a number just above a power of two, off the sum, whose order differs.
        let (exact, one) = (sums(self.input), roundings(2.1));
        let norm = Norm { partials: &self.partials, epsilon: 1e-6 };
        let mut launch = |epilogue: Epilogue<'_>| {
            linear.forward(kernels, &self.sides[0], &self.weight, epilogue).expect("forward");
        };
        let mut z = raw.poisoned_floats(count);
        launch(Epilogue::Float { z: &mut z });
        left.push(("float", self.read(&z), exact));
        let mut z = raw.poisoned_halves(count);
        launch(Epilogue::Plain { z: &mut z });
        left.push(("plain", self.read(&z), one));
        let mut z = raw.poisoned_halves(count);
        launch(Epilogue::Project { norm, z: &mut z });
        left.push(("project", self.read(&z), one));
        let mut z = raw.poisoned_halves(count);
        let mut bits = kernels.stream().clone_htod(&vec![0xAA_u8; count / 8]).expect("an upload");
        launch(Epilogue::Relu { norm, mask, z: &mut z, bits: &mut bits });
        let z = self.read(&z);
        let bits = kernels.stream().clone_dtoh(&bits).expect("a download");
        for (i, z) in z.iter().enumerate() {
            assert_eq!(bits[i / 8] >> (i % 8) & 1 == 1, *z > 0.0, "bit {i} of {z}");
        }
        left.push(("relu", z, one));
        let (mut x_next, mut copy) = (raw.poisoned_floats(count), raw.poisoned_halves(count));
        let mut partials_next = raw.poisoned_floats(rows * self.out.div_ceil(64));
        launch(Epilogue::Add {
            mask,
            x: &self.floats[1],
            x_next: &mut x_next,
            copy: Some(&mut copy),
            partials_next: &mut partials_next,
        });
        left.push(("x_next", self.read(&x_next), exact));
        left.push(("copy of x_next", self.read(&copy), one));
        left.push(("squares of x_next", self.read(&partials_next), sums(self.input + 64)));
    }

    fn backward(&self, linear: &mut Linear<'_>, rows: usize, mask: DropoutMask<'_>, left: &mut Left) {
        let (raw, kernels, count) = (self.raw, self.raw.kernels(), rows * self.input);
        let parts = rows * self.input.div_ceil(64);
        let (exact, one) = (sums(self.out), roundings(2.1));
        let mut launch = |epilogue: Epilogue<'_>| {
            linear.backward(kernels, &self.sides[1], &self.weight, epilogue).expect("backward");
        };
        let mut z = raw.poisoned_halves(count);
        launch(Epilogue::Plain { z: &mut z });
        left.push(("plain, backward", self.read(&z), one));
        let (mut z, mut inner) = (raw.poisoned_halves(count), raw.poisoned_floats(parts));
        launch(Epilogue::Delta { y: &self.sides[0], z: &mut z, inner: &mut inner });
        left.push(("delta's z", self.read(&z), one));
        // Of 64 rounded numbers each, a rounding of any of which may fall the other way.
        left.push(("delta", self.read(&inner), one));
        let mut dz = raw.poisoned_halves(count);
        launch(Epilogue::ReluBackward { mask, bits: &self.bits, dz: &mut dz });
        left.push(("relu, backward", self.read(&dz), one));
        let start = || raw.floats(&numbers(6, count, 1.0));
        let mut d_h = start();
        launch(Epilogue::Accumulate { d_h: &mut d_h });
        left.push(("accumulate", self.read(&d_h), exact));
        let below = numbers(7, count, 1.0);
        let (below, below_copy) = (raw.floats(&below), raw.halves(&below));
        let formats: [[&dyn ReadOperand; 2]; 2] = [[&self.floats[0], &below], [&self.sides[0], &below_copy]];
        let norm = Norm { partials: &self.partials, epsilon: 1e-6 };
        for ([x, below], wanted) in [(formats[0], true), (formats[1], false), (formats[1], true)] {
            let (mut d_x, mut copy) = (start(), raw.poisoned_halves(count));
            let mut inner_next = raw.poisoned_floats(parts);
            launch(Epilogue::NormBackward(NormBackward {
                x,
                norm,
                inner: &self.inner,
                d_x: &mut d_x,
                copy: Some(&mut copy),
                inner_next: wanted.then_some((below, &mut inner_next as _)),
            }));
            left.push(("d_x", self.read(&d_x), exact));
            left.push(("copy of d_x", self.read(&copy), one));
            if wanted {
                left.push(("inner of d_x", self.read(&inner_next), sums(self.out + 64)));
            }
        }
    }
}

fn follow(raw: &Raw, tile: TileConfig, lengths: &[usize], after: usize, [out, input]: [usize; 2]) {
    let operands = Operands::new(raw, lengths, after, out, input);
    raw.order(1);
    let (expected, found) = (operands.run(EVERY_DEVICE), operands.run(tile));
    raw.order(1234);
    let again = operands.run(tile);
    for (((name, expected, tolerance), (_, found, _)), (_, again, _)) in
        expected.iter().zip(&found).zip(&again)
    {
        let what = format!("{tile}: {name} of {lengths:?} rows, a weight of {out} x {input}");
        let comparison = compare(found, expected);
        assert!(comparison.passes(*tolerance), "{what}: {comparison:?}, wanted {tolerance}");
        assert!(found == again, "{what}: other bits in another order of blocks");
    }
}

/// Beside each edge of a tile: rows, columns and depth.
#[test]
fn ragged_products_of_warpgroups_follow_those_of_every_device() {
    let Some(raw) = hopper("ragged_products_of_warpgroups_follow_those_of_every_device") else { return };
    for tile in HOPPER {
        follow(&raw, tile, &[1], 0, [8, 8]);
        follow(&raw, tile, &[31, 2], 0, [200, 72]);
        follow(&raw, tile, &[64, 65], 0, [136, 264]);
        // A captured graph is for the largest batch of its bucket: rows after the others' hold anything.
        follow(&raw, tile, &[64, 6], 90, [200, 72]);
    }
}

/// The products of the encoders of t5-small, t5-base and t5-large.
#[test]
fn products_of_models_by_warpgroups_follow_those_of_every_device() {
    let Some(raw) = hopper("products_of_models_by_warpgroups_follow_those_of_every_device") else { return };
    let [wide, narrow] = HOPPER;
    follow(&raw, wide, &[37], 0, [1_536, 512]);
    follow(&raw, wide, &[129], 0, [768, 768]);
    follow(&raw, wide, &[17], 0, [1_024, 4_096]);
    follow(&raw, narrow, &[129], 0, [512, 512]);
    follow(&raw, narrow, &[17], 0, [1_024, 4_096]);
}

/// More tiles than multiprocessors: a block takes several, and its ring of stages goes on from one to the next.
#[test]
fn a_block_of_several_tiles_follows_one_tile_a_block() {
    let Some(raw) = hopper("a_block_of_several_tiles_follows_one_tile_a_block") else { return };
    for tile in HOPPER {
        follow(&raw, tile, &[130], 0, [12_808, 72]);
        follow(&raw, tile, &[130], 0, [136, 12_808]);
    }
}

/// Beside each edge of a tile; a depth of as many k-blocks as parts, of several each, and of more than there are stages.
#[test]
fn products_of_clusters_follow_those_of_every_device() {
    let Some(raw) = hopper("products_of_clusters_follow_those_of_every_device") else { return };
    for tile in THIN {
        follow(&raw, tile, &[1], 0, [512, 456]);
        follow(&raw, tile, &[31, 2], 0, [456, 584]);
        // A captured graph is for the largest batch of its bucket: rows after the others' hold anything.
        follow(&raw, tile, &[60, 6], 90, [520, 1_032]);
    }
    follow(&raw, THIN[0], &[17], 0, [264, 2_056]);
    follow(&raw, THIN[1], &[17], 0, [3_592, 456]);
}

#[test]
fn a_depth_that_leaves_a_block_of_a_cluster_without_work_is_refused() {
    let Some(raw) = hopper("a_depth_that_leaves_a_block_of_a_cluster_without_work_is_refused") else {
        return;
    };
    let sequences = Sequences::new(raw.kernels().stream(), &[3]).expect("a sequence");
    let refused = |tile, input| {
        Linear::with_tiles(raw.kernels(), sequences.rows(), 512, input, [tile; 2])
            .expect_err("too few")
            .to_string()
    };
    let [four, eight] = THIN;
    let (both, none) = (refused(eight, 448), refused(four, 192));
    assert!(both.contains("split-K of [4] for a depth of 448"), "{both}");
    assert!(none.contains("expected a depth of more than 192, found 192"), "{none}");
}

/// Cross attention has kernels of clusters, which pass what those of every device pass; and all of them follow PyTorch.
#[test]
fn cross_attention_by_clusters_is_right_too() {
    let Some(raw) = Raw::new() else { return };
    if raw.is_virtual() && raw.capability() != (9, 0) {
        let said = again(&["cross_attention::", "fixtures::a_model_that_is_wide_enough_for_clusters"], false);
        assert!(said.contains("11 passed"), "on the profile h200:\n{said}");
    }
}

/// Attention has kernels by warpgroups, which pass what those of every device pass.
#[test]
fn attention_by_warpgroups_is_right_too() {
    let Some(raw) = Raw::new() else { return };
    if raw.is_virtual() && raw.capability() != (9, 0) {
        let said = again(&["attention::", "--skip", "cross_attention::"], false);
        assert!(said.contains("6 passed"), "on the profile h200:\n{said}");
    }
}

/// Short self attention has kernels of clusters with the product beside it, which give what the two give.
#[test]
fn attention_with_the_product_beside_it_is_right_too() {
    let Some(raw) = Raw::new() else { return };
    if raw.is_virtual() && raw.capability() != (9, 0) {
        let said = again(&["attention_with_product::"], false);
        assert!(said.contains("4 passed"), "on the profile h200:\n{said}");
    }
}

/// Each kernel waits for the launches before it, so that a launch may begin while they run: with all that come before the wait first,
/// the numbers are PyTorch's.
#[test]
fn launches_that_begin_early_change_nothing() {
    let Some(raw) = Raw::new() else { return };
    if raw.is_virtual() && raw.capability() != (9, 0) {
        let said = again(&["fixtures::launches_in_a_row_follow_pytorch_too", "--exact"], true);
        assert!(said.contains("1 passed"), "on the profile h200:\n{said}");
    }
}
