//! Every tile that a product may take, launched and timed on the device: what the table of measured tiles is made from.

use cudarc::driver::{CudaSlice, DeviceRepr, DriverError};
use half::bf16;

use super::NORM_COLUMNS;
use super::cut::{Cut, candidates};
use super::feed_forward::Gate;
use super::linear::{Epilogue, Linear, Norm, NormBackward, TileConfig, TileShape, TileTable};
use super::packing::DropoutMask;
use super::sequences::Sequences;
use crate::backend::cuda::runtime::devices::{self, DeviceInfo};
use crate::backend::cuda::runtime::error::driver;
use crate::backend::cuda::runtime::event_clock::{EventClock, Times};
use crate::backend::cuda::runtime::kernels::Kernels;
use crate::backend::cuda::runtime::operands::Precision;
use crate::backend::{Activation, philox};
use crate::error::{Error, Result};

/// A product of a T5 layer, with the epilogue that it has there. The number of columns is n, the depth k.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerProduct {
    /// Forward, the query, key and value projection or the query of cross attention: [`Epilogue::Project`].
    Project,
    /// Forward, the first product of a feed-forward with ReLU: [`Epilogue::Relu`].
    Relu,
    /// Forward, the product that ends a sublayer: [`Epilogue::Add`].
    Add,
    /// Backward through [`LayerProduct::Relu`]'s successor: [`Epilogue::ReluBackward`].
    ReluBackward,
    /// Backward through a projection and its norm: [`Epilogue::NormBackward`].
    NormBackward,
    /// Backward through an output projection: [`Epilogue::Plain`].
    Plain,
}

impl LayerProduct {
    /// Whether the weight is read the other way, a W.
    pub fn is_backward(self) -> bool {
        matches!(self, Self::ReluBackward | Self::NormBackward | Self::Plain)
    }
}

/// A product and its sizes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProductShape {
    /// Which product of a layer.
    pub product: LayerProduct,
    /// Rows that are multiplied.
    pub rows: usize,
    /// Columns of the result, a multiple of 8.
    pub n: usize,
    /// Depth of the sums, a multiple of 8.
    pub k: usize,
}

impl ProductShape {
    /// Floating-point operations.
    pub fn operations(self) -> usize {
        2 * self.rows * self.n * self.k
    }

    /// Bytes of its operands, each read and written once, in bf16.
    pub fn bytes(self) -> usize {
        let Self { product, rows, n, k } = self;
        let partials = |width: usize| 4 * rows * width.div_ceil(NORM_COLUMNS);
        let epilogue = match product {
            LayerProduct::Project => partials(k) + 2 * rows * n,
            LayerProduct::Relu => partials(k) + 2 * rows * n + rows * n / 8,
            // x, then x_next with its copy.
            LayerProduct::Add => (4 + 4 + 2) * rows * n + partials(n),
            LayerProduct::ReluBackward => rows * n / 8 + 2 * rows * n,
            // x in bf16, then d_x as it was and as it is, with its copy.
            LayerProduct::NormBackward => (2 + 8 + 2) * rows * n + partials(n) + 4 * rows,
            LayerProduct::Plain => 2 * rows * n,
        };
        2 * (rows * k + n * k) + epilogue
    }
}

/// One tile of one product, timed.
#[derive(Clone, Debug)]
pub struct Candidate {
    /// The tile.
    pub config: TileConfig,
    /// Cycles that the choice without measurements expects of it.
    pub expected_cycles: usize,
    /// Microseconds of each launch with nothing of its operands in the level-2 cache, in ascending order.
    pub cold_us: Vec<f64>,
    /// Microseconds of each launch right after one of the same, in ascending order.
    pub warm_us: Vec<f64>,
    /// How far the result is from the first candidate's, as a part of that one's largest entry: NaN where one is not finite or
    /// all are zero.
    pub apart: f64,
}

impl Candidate {
    /// Two results of the same sums in other orders, each rounded to bf16 once, may be a step of bf16 apart.
    pub const MAX_APART: f64 = 1.0 / 128.0;

    /// What candidates are ranked by: the mean of a cold and a warm launch's median in microseconds. In a step the weight comes from
    /// memory and the rows from the cache.
    pub fn microseconds(&self) -> f64 {
        f64::midpoint(median(&self.cold_us), median(&self.warm_us))
    }
}

fn median(ascending: &[f64]) -> f64 {
    ascending.get(ascending.len() / 2).copied().unwrap_or(f64::NAN)
}

/// Numbers of a result that are compared, at its beginning, in the middle and at its end.
const COMPARED: usize = 1 << 15;
const EPSILON: f32 = 1e-6;

/// Times every tile for products, one after the other.
#[derive(Debug)]
pub struct TileSearch<'k> {
    kernels: &'k Kernels,
    device: DeviceInfo,
    clock: EventClock<'k>,
}

/// Operands of a product and its result, on the device.
struct OnDevice {
    a: CudaSlice<bf16>,
    weight: CudaSlice<bf16>,
    /// \[rows, n\]: the residual stream, or what a product adds to.
    x: CudaSlice<f32>,
    x_copy: CudaSlice<bf16>,
    /// \[rows, n\] in f32 where the result is, otherwise one number.
    float: CudaSlice<f32>,
    /// \[rows, n\]: the result, or its copy.
    z: CudaSlice<bf16>,
    partials: CudaSlice<f32>,
    partials_next: CudaSlice<f32>,
    inner: CudaSlice<f32>,
    bits: CudaSlice<u8>,
}

fn fail(error: DriverError) -> Error {
    driver("time a product", error)
}

impl<'k> TileSearch<'k> {
    /// On the stream of `kernels`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(kernels: &'k Kernels) -> Result<Self> {
        let clock = EventClock::new(kernels, 1)?;
        Ok(Self { kernels, device: devices::info(kernels.context())?, clock })
    }

    /// The tile that the product takes by `table`.
    pub fn choice(&self, table: &TileTable, shape: ProductShape) -> Option<TileConfig> {
        let sizes = [shape.rows, shape.n, shape.k];
        Cut::new(Precision::Bf16, &self.device, table, shape.product.is_backward(), sizes).config()
    }

    /// Launches the product with each tile, compares the results, and times `repeats` cold and as many warm launches of each.
    ///
    /// # Errors
    /// A width that does not fit, no memory, and what the driver says.
    pub fn measure(&mut self, shape: ProductShape, repeats: usize) -> Result<Vec<Candidate>> {
        let ProductShape { product, rows, n, k } = shape;
        let sequences = Sequences::new(self.kernels.stream(), &[rows])?;
        let [out, input] = if product.is_backward() { [k, n] } else { [n, k] };
        let mut on_device = OnDevice::new(self.kernels, shape)?;
        let (mut measured, mut first) = (Vec::new(), None);
        for config in candidates(&self.device, [rows, n, k]) {
            // The other direction is not launched, and its depth may be too little for this tile.
            let other = TileConfig { shape: TileShape::Large, split_k: 1 };
            let tiles = if product.is_backward() { [other, config] } else { [config, other] };
            let mut linear = Linear::with_tiles(self.kernels, sequences.rows(), out, input, tiles)?;
            on_device.clear(self.kernels, product)?;
            on_device.launch(self.kernels, &mut linear, product)?;
            let result = on_device.result(self.kernels, product)?;
            let apart = apart(&result, first.get_or_insert_with(|| result.clone()));
            let kernels = self.kernels;
            let Times { cold_us, warm_us } =
                self.clock.measure(repeats, || on_device.launch(kernels, &mut linear, product))?;
            let expected_cycles = Cut::forced(config, &self.device, [rows, n, k])?.cycles(&self.device, k);
            measured.push(Candidate { config, expected_cycles, cold_us, warm_us, apart });
        }
        Ok(measured)
    }
}

/// Times a product of a layer with the tile that it takes by `table`, `repeats` cold and as many warm launches; the tile comes with them.
///
/// # Errors
/// A width that does not fit, a result that is not finite or all zeros, no memory, and what the driver says.
pub fn time_product(
    clock: &mut EventClock<'_>,
    table: &TileTable,
    shape: ProductShape,
    repeats: usize,
) -> Result<(Times, TileConfig)> {
    let ProductShape { product, rows, n, k } = shape;
    let kernels = clock.kernels();
    let sequences = Sequences::new(kernels.stream(), &[rows])?;
    let [out, input] = if product.is_backward() { [k, n] } else { [n, k] };
    let mut linear = Linear::with_table(kernels, sequences.rows(), out, input, table)?;
    let tile = linear.tiles()[usize::from(product.is_backward())];
    let mut on_device = OnDevice::new(kernels, shape)?;
    on_device.clear(kernels, product)?;
    on_device.launch(kernels, &mut linear, product)?;
    let result = on_device.result(kernels, product)?;
    if apart(&result, &result).is_nan() {
        let found = format!("numbers that are not finite, or zeros alone, in tiles of {tile}");
        return Err(Error::device("multiply", found, "run promptmix verify on this device"));
    }
    Ok((clock.measure(repeats, || on_device.launch(kernels, &mut linear, product))?, tile))
}

/// Times the gate of a gated feed-forward, gelu, over `rows` rows of `width`, forward or backward.
///
/// # Errors
/// As [`time_product`].
pub fn time_gate(
    clock: &mut EventClock<'_>,
    [rows, width]: [usize; 2],
    backward: bool,
    repeats: usize,
) -> Result<Times> {
    let kernels = clock.kernels();
    let sequences = Sequences::new(kernels.stream(), &[rows])?;
    let (activation, mask) = (Activation::GatedGelu, DropoutMask::default());
    let gate = Gate { rows: sequences.rows(), width, activation, mask };
    let numbers = Numbers::new(kernels);
    let (z, d) = (numbers.halves(2 * rows * width, 0)?, numbers.halves(rows * width, 7)?);
    // a, or dz.
    let mut written = numbers.halves(if backward { 2 * rows * width } else { rows * width }, 0)?;
    let mut inner = numbers.floats(rows)?;
    clock.measure(repeats, || match backward {
        false => gate.forward(kernels, &z, &mut written),
        true => gate.backward(kernels, &z, &d, &mut written, &mut inner),
    })
}

/// The largest difference as a part of the largest entry expected; NaN if there is nothing to compare.
fn apart(found: &[f32], expected: &[f32]) -> f64 {
    let largest = expected.iter().fold(0.0_f64, |most, value| most.max(f64::from(value.abs())));
    let pairs =
        || found.iter().zip(expected).map(|(found, expected)| (f64::from(*found), f64::from(*expected)));
    if largest == 0.0
        || found.len() != expected.len()
        || !pairs().all(|(x, y)| x.is_finite() && y.is_finite())
    {
        return f64::NAN;
    }
    pairs().fold(0.0, |most: f64, (found, expected)| most.max((found - expected).abs())) / largest
}

/// Random numbers between -1 and 1 for operands.
pub(super) struct Numbers<'k> {
    kernels: &'k Kernels,
    /// Random bits that repeat after a prime number of words, so that no two rows are alike.
    words: Vec<u32>,
}

impl<'k> Numbers<'k> {
    pub(super) fn new(kernels: &'k Kernels) -> Self {
        let words = (0..16_384).flat_map(|i| philox([1, 0], [i, 0, 0, 0])).take(65_521).collect();
        Self { kernels, words }
    }

    fn number(word: &u32) -> f32 {
        *word as i32 as f32 / (1u32 << 31) as f32
    }

    pub(super) fn floats(&self, count: usize) -> Result<CudaSlice<f32>> {
        let values: Vec<f32> = self.words.iter().map(Self::number).cycle().take(count.max(1)).collect();
        self.kernels.stream().clone_htod(&values).map_err(fail)
    }

    /// Those after the first `skip`.
    pub(super) fn halves(&self, count: usize, skip: usize) -> Result<CudaSlice<bf16>> {
        let of = |word| bf16::from_f32(Self::number(word));
        let values: Vec<bf16> = self.words.iter().map(of).cycle().skip(skip).take(count.max(1)).collect();
        self.kernels.stream().clone_htod(&values).map_err(fail)
    }
}

impl OnDevice {
    fn new(kernels: &Kernels, ProductShape { product, rows, n, k }: ProductShape) -> Result<Self> {
        let stream = kernels.stream();
        let numbers = Numbers::new(kernels);
        let parts = |width: usize| rows * width.div_ceil(NORM_COLUMNS);
        let is_float = matches!(product, LayerProduct::Add | LayerProduct::NormBackward);
        let has_bits = matches!(product, LayerProduct::Relu | LayerProduct::ReluBackward);
        let bytes = if has_bits { rows * n / 8 } else { 1 };
        let bits: Vec<u8> = numbers.words.iter().map(|word| *word as u8).cycle().take(bytes).collect();
        // Sums of squares are positive: those of columns that are uniform between -1 and 1.
        let squares = |count: usize| stream.clone_htod(&vec![NORM_COLUMNS as f32 / 3.0; count]).map_err(fail);
        Ok(Self {
            a: numbers.halves(rows * k, 0)?,
            weight: numbers.halves(n * k, 7)?,
            x: numbers.floats(if product == LayerProduct::Add { rows * n } else { 1 })?,
            x_copy: numbers.halves(if product == LayerProduct::NormBackward { rows * n } else { 1 }, 0)?,
            float: numbers.floats(if is_float { rows * n } else { 1 })?,
            z: numbers.halves(rows * n, 0)?,
            // Of the rows that are multiplied, or backward of the projection's input.
            partials: squares(parts(if product.is_backward() { n } else { k }))?,
            partials_next: squares(parts(n))?,
            inner: numbers.floats(rows)?,
            bits: stream.clone_htod(&bits).map_err(fail)?,
        })
    }

    /// NaN where the result will be, or zeros where it is added to what is there.
    fn clear(&mut self, kernels: &Kernels, product: LayerProduct) -> Result<()> {
        fn poison<T: DeviceRepr + Clone>(kernels: &Kernels, slice: &mut CudaSlice<T>, nan: T) -> Result<()> {
            let values = vec![nan; slice.len()];
            kernels.stream().memcpy_htod(&values, slice).map_err(fail)
        }
        poison(kernels, &mut self.z, bf16::NAN)?;
        match product {
            LayerProduct::NormBackward => kernels.stream().memset_zeros(&mut self.float).map_err(fail),
            _ => poison(kernels, &mut self.float, f32::NAN),
        }
    }

    fn launch(&mut self, kernels: &Kernels, linear: &mut Linear<'_>, product: LayerProduct) -> Result<()> {
        let (norm, mask) = (Norm { partials: &self.partials, epsilon: EPSILON }, DropoutMask::default());
        let z = &mut self.z;
        let epilogue = match product {
            LayerProduct::Project => Epilogue::Project { norm, z },
            LayerProduct::Relu => Epilogue::Relu { norm, mask, z, bits: &mut self.bits },
            LayerProduct::Add => Epilogue::Add {
                mask,
                x: &self.x,
                x_next: &mut self.float,
                copy: Some(z),
                partials_next: &mut self.partials_next,
            },
            LayerProduct::ReluBackward => Epilogue::ReluBackward { mask, bits: &self.bits, dz: z },
            LayerProduct::NormBackward => Epilogue::NormBackward(NormBackward {
                x: &self.x_copy,
                norm,
                inner: &self.inner,
                d_x: &mut self.float,
                copy: Some(z),
                inner_next: None,
            }),
            LayerProduct::Plain => Epilogue::Plain { z },
        };
        if product.is_backward() {
            linear.backward(kernels, &self.a, &self.weight, epilogue)
        } else {
            linear.forward(kernels, &self.a, &self.weight, epilogue)
        }
    }

    /// The beginning, the middle and the end of what the product wrote.
    fn result(&self, kernels: &Kernels, product: LayerProduct) -> Result<Vec<f32>> {
        fn windows<T: DeviceRepr + Clone + Default + Into<f32>>(
            kernels: &Kernels,
            slice: &CudaSlice<T>,
        ) -> Result<Vec<f32>> {
            let length = slice.len().min(COMPARED);
            let starts = [0, (slice.len() - length) / 2, slice.len() - length];
            let mut values = Vec::new();
            for start in starts {
                let copied =
                    kernels.stream().clone_dtoh(&slice.slice(start..start + length)).map_err(fail)?;
                values.extend(copied.into_iter().map(Into::into));
            }
            Ok(values)
        }
        match product {
            LayerProduct::Add | LayerProduct::NormBackward => windows(kernels, &self.float),
            _ => windows(kernels, &self.z),
        }
    }
}
