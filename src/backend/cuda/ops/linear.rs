//! Products with frozen weights: `kernels/gemm.cu`, and where the device has compute capability 9.0 `kernels/gemm_hopper.cu` and
//! `kernels/gemm_thin_hopper.cu`.

use cudarc::driver::{CudaSlice, DevicePtr, DevicePtrMut};

use super::cut::{Cut, Kind, candidates};
use super::packing::{DropoutMask, PackedRows, Words};
pub use super::tiles::{TileConfig, TileShape, TileTable};
use super::{GemmArguments, NORM_COLUMNS, WIDTH_MULTIPLE, check_width, copy_of, side_number};
use crate::backend::Scope;
use crate::backend::cuda::runtime::arguments::gemm::Epilogue as Follows;
use crate::backend::cuda::runtime::arguments::gemm_hopper::{self as hopper, GemmHopperArguments};
use crate::backend::cuda::runtime::capture::check_not_capturing;
use crate::backend::cuda::runtime::devices;
use crate::backend::cuda::runtime::error::driver;
use crate::backend::cuda::runtime::kernels::{Kernel, Kernels};
use crate::backend::cuda::runtime::operands::{Operands, Precision, ReadOperand, WriteOperand, check_stream};
use crate::backend::cuda::runtime::tensor_map::tensor_map;
use crate::error::{Error, Result};

/// The norm of the rows that a product reads, which it applies.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    /// \[rows, ceil(width / 64)\] in f32: the sums of squares of 64 columns each.
    pub partials: &'a dyn DevicePtr<f32>,
    /// Added to the mean square: r = 1 / sqrt(sum / width + epsilon).
    pub epsilon: f32,
}

/// What a product does with its result z = a W^T \[rows, out\], or backward with z = a W \[rows, in\]; n is its width. Matrices are in
/// the format of a, bf16 or to verify f32, where nothing else is said.
pub enum Epilogue<'a> {
    /// z as it is. Both ways.
    Plain {
        /// \[rows, n\].
        z: &'a mut dyn WriteOperand,
    },
    /// z in f32, as logits are wanted. Forward.
    Float {
        /// \[rows, n\] in f32.
        z: &'a mut dyn DevicePtrMut<f32>,
    },
    /// z · r: a projection of normalised rows, the norm's weight being folded into W. Forward.
    Project {
        /// Of a, over its width.
        norm: Norm<'a>,
        /// \[rows, n\].
        z: &'a mut dyn WriteOperand,
    },
    /// a_next = mask(max(z · r, 0)). Forward.
    Relu {
        /// Of a, over its width.
        norm: Norm<'a>,
        /// Dropout of the result.
        mask: DropoutMask<'a>,
        /// \[rows, n\].
        z: &'a mut dyn WriteOperand,
        /// \[rows, n / 8\]: a bit an element, set where it is positive and not dropped, for backward.
        bits: &'a mut dyn DevicePtrMut<u8>,
    },
    /// x_next = x + mask(z): the end of a sublayer. Forward.
    Add {
        /// Dropout of z.
        mask: DropoutMask<'a>,
        /// \[rows, n\] in f32.
        x: &'a dyn DevicePtr<f32>,
        /// \[rows, n\] in f32.
        x_next: &'a mut dyn DevicePtrMut<f32>,
        /// The same in bf16, which products read.
        copy: Option<&'a mut dyn WriteOperand>,
        /// \[rows, ceil(n / 64)\] in f32, which make the next norm.
        partials_next: &'a mut dyn DevicePtrMut<f32>,
    },
    /// dz = mask(z) where the forward pass set the bit, 0 elsewhere. Backward.
    ReluBackward {
        /// Dropout of the forward pass's result.
        mask: DropoutMask<'a>,
        /// \[rows, n / 8\], of [`Epilogue::Relu`].
        bits: &'a dyn DevicePtr<u8>,
        /// \[rows, n\].
        dz: &'a mut dyn WriteOperand,
    },
    /// d_x += r · z - r² · (inner / n) · x: backward through a projection and its norm. Backward; the one whose rows may be a
    /// scope's, `a` having as many rows as the scope and all else as many as the side.
    NormBackward(NormBackward<'a>),
    /// d_h += z in f32. Backward.
    Accumulate {
        /// \[rows, n\] in f32.
        d_h: &'a mut dyn DevicePtrMut<f32>,
    },
    /// z, and <z, y> of each row over 64 columns at a time. Backward.
    Delta {
        /// \[rows, n\] in bf16.
        y: &'a dyn ReadOperand,
        /// \[rows, n\] in bf16.
        z: &'a mut dyn WriteOperand,
        /// \[rows, ceil(n / 64)\] in f32.
        inner: &'a mut dyn DevicePtrMut<f32>,
    },
}

/// Operands of [`Epilogue::NormBackward`].
pub struct NormBackward<'a> {
    /// \[rows, n\], which the projection read: in f32, or its bf16 copy, which is less to read.
    pub x: &'a dyn ReadOperand,
    /// Of x, over n.
    pub norm: Norm<'a>,
    /// \[rows of a, parts\] in f32, whose sum over the parts is <dz, z> of the row.
    pub inner: &'a dyn DevicePtr<f32>,
    /// \[rows, n\] in f32.
    pub d_x: &'a mut dyn DevicePtrMut<f32>,
    /// The same in bf16, which products read.
    pub copy: Option<&'a mut dyn WriteOperand>,
    /// `below` \[rows, n\] in the format of x, and \[rows, ceil(n / 64)\] for the parts of <d_x, x - below>, where the feed-forward that
    /// made x of below wants them.
    pub inner_next: Option<(&'a dyn ReadOperand, &'a mut dyn DevicePtrMut<f32>)>,
}

impl<'e> Epilogue<'e> {
    /// Its number, and whether it is of a forward product and of a backward one.
    fn kind(&self) -> (Follows, bool, bool) {
        match self {
            Self::Plain { .. } => (Follows::Plain, true, true),
            Self::Float { .. } => (Follows::Float, true, false),
            Self::Project { .. } => (Follows::Project, true, false),
            Self::Relu { .. } => (Follows::Relu, true, false),
            Self::Add { .. } => (Follows::Add, true, false),
            Self::ReluBackward { .. } => (Follows::ReluBackward, false, true),
            Self::NormBackward(_) => (Follows::NormBackward, false, true),
            Self::Accumulate { .. } => (Follows::Accumulate, false, true),
            Self::Delta { .. } => (Follows::Delta, false, true),
        }
    }

    /// Adds its operands to a launch of `rows` whose products have n columns and whose rows have k.
    fn read<'a>(
        self,
        operands: &mut Operands<'a>,
        rows: PackedRows<'_>,
        precision: Precision,
        [n, k]: [usize; 2],
    ) -> Result<GemmArguments>
    where
        'e: 'a,
    {
        let (count, all) = (rows.count(), rows.all());
        let (numbers, parts) = (all * n, n.div_ceil(NORM_COLUMNS));
        let mut arguments = GemmArguments::default();
        let of_norm = |operands: &mut Operands<'a>, norm: Norm<'a>, width: usize| {
            let length = all * width.div_ceil(NORM_COLUMNS);
            Ok::<_, Error>((operands.read("the norm's partial sums", norm.partials, length)?, norm.epsilon))
        };
        match self {
            Self::Plain { z } => arguments.out = operands.matrix_mut("z", z, precision, numbers)?,
            Self::Float { z } => arguments.out = operands.write("z", z, numbers)?,
            Self::Project { norm, z } => {
                (arguments.partials, arguments.epsilon) = of_norm(operands, norm, k)?;
                arguments.out = operands.matrix_mut("z", z, precision, numbers)?;
            }
            Self::Relu { norm, mask, z, bits } => {
                (arguments.partials, arguments.epsilon) = of_norm(operands, norm, k)?;
                arguments.mask = mask.read(operands)?;
                arguments.out = operands.matrix_mut("z", z, precision, numbers)?;
                arguments.bits = operands.write("bits", bits, numbers / 8)?;
            }
            Self::Add { mask, x, x_next, copy, partials_next } => {
                arguments.mask = mask.read(operands)?;
                arguments.x = operands.read("x", x, numbers)?;
                arguments.x_next = operands.write("x_next", x_next, numbers)?;
                arguments.copy = copy_of(operands, copy, numbers)?;
                arguments.partials_next = operands.write("partials_next", partials_next, all * parts)?;
            }
            Self::ReluBackward { mask, bits, dz } => {
                arguments.mask = mask.read(operands)?;
                arguments.bits = operands.read("bits", bits, numbers / 8)?;
                arguments.out = operands.matrix_mut("dz", dz, precision, numbers)?;
            }
            Self::NormBackward(of) => {
                let inner_parts = of.inner.len() / count.max(1);
                (arguments.partials, arguments.epsilon) = of_norm(operands, of.norm, n)?;
                let x = of.x.read(operands, "x", numbers)?;
                *if of.x.precision() == Precision::Bf16 { &mut arguments.y } else { &mut arguments.x } = x;
                arguments.inner = operands.read("inner", of.inner, count * inner_parts.max(1))?;
                arguments.inner_parts = inner_parts as i32;
                arguments.x_next = operands.write("d_x", of.d_x, numbers)?;
                arguments.copy = copy_of(operands, of.copy, numbers)?;
                if let Some((below, inner_next)) = of.inner_next {
                    arguments.below = operands.matrix("below", below, of.x.precision(), numbers)?;
                    arguments.inner_next = operands.write("inner_next", inner_next, all * parts)?;
                }
            }
            Self::Accumulate { d_h } => arguments.x_next = operands.write("d_h", d_h, numbers)?,
            Self::Delta { y, z, inner } => {
                arguments.y = operands.matrix("y", y, precision, numbers)?;
                arguments.out = operands.matrix_mut("z", z, precision, numbers)?;
                arguments.inner_next = operands.write("inner", inner, all * parts)?;
            }
        }
        Ok(arguments)
    }
}

/// A product of packed rows with a weight that is stored once, as \[out, in\], and read both ways.
///
/// It costs 2·rows·in·out operations. It moves its rows once for every 64 or 128 columns of the result, the weight
/// once for every 64, 80 or 128 rows, and what its epilogue reads and writes once.
pub struct Product<'a> {
    /// Which rows.
    pub rows: PackedRows<'a>,
    /// \[rows, in\], or backward \[rows, out\], in bf16 or to verify in f32.
    pub a: &'a dyn ReadOperand,
    /// \[out, in\], in the format of a.
    pub weight: &'a dyn ReadOperand,
    /// out and in, multiples of 8; out may be anything for [`Epilogue::Float`].
    pub shape: [usize; 2],
    /// Whether the weight is read the other way.
    pub backward: bool,
}

/// What a product that is cut along its depth works in.
pub(crate) struct Workspace<'a> {
    /// As many numbers as its [`Cut`] says.
    pub(crate) parts: &'a mut dyn DevicePtrMut<f32>,
    /// As many zeros as its [`Cut`] says, which it leaves at zero.
    pub(crate) counters: Option<Words<'a>>,
}

impl Product<'_> {
    /// Columns of the result, and of a.
    pub(crate) fn sizes(&self) -> [usize; 2] {
        let [out, input] = self.shape;
        if self.backward { [input, out] } else { [out, input] }
    }

    /// Launches it as `cut` says, which was made for its rows and sizes.
    ///
    /// # Errors
    /// A length, width, format or epilogue that does not fit, and what the driver says.
    pub(crate) fn launch(
        &self,
        kernels: &Kernels,
        cut: &Cut,
        workspace: Workspace<'_>,
        epilogue: Epilogue<'_>,
    ) -> Result<()> {
        let ([n, k], (follows, forward, backward)) = (self.sizes(), epilogue.kind());
        check_width(k)?;
        if follows != Follows::Float && !n.is_multiple_of(WIDTH_MULTIPLE) {
            let expected = format!("a multiple of {WIDTH_MULTIPLE} columns");
            return Err(Error::tensor("a product", expected, n.to_string(), ""));
        }
        if !(if self.backward { backward } else { forward }) {
            let way = if self.backward { "backward" } else { "forward" };
            return Err(Error::tensor(
                "the epilogue",
                format!("one of a {way} product"),
                format!("{follows:?}"),
                "",
            ));
        }
        if self.rows.scope() == Scope::Prompt && follows != Follows::NormBackward {
            return Err(Error::tensor("a product", "all rows of a side", "its prompt rows", ""));
        }
        let precision = cut.precision();
        let mut operands = kernels.operands();
        let arguments = GemmArguments {
            batch: self.rows.read(&mut operands)?,
            a: operands.matrix("the rows that are multiplied", self.a, precision, self.rows.count() * k)?,
            weight: operands.matrix("weight", self.weight, precision, n * k)?,
            workspace: match cut.workspace() {
                0 => 0,
                _ => operands.write("workspace", workspace.parts, cut.workspace())?,
            },
            counters: match workspace.counters {
                Some(counters) if cut.counters() > 0 => counters.read(&mut operands, "counters")?,
                _ => 0,
            },
            side: side_number(self.rows.side()),
            scope: i32::from(self.rows.scope() == Scope::Prompt),
            n: n as i32,
            k: k as i32,
            a_stride: k as i32,
            epilogue: follows as i32,
            ..epilogue.read(&mut operands, self.rows, precision, [n, k])?
        };
        let (name, grid, threads, shared) = cut.launch(self.backward, follows);
        let kernel = Kernel { file: cut.kind().file(), name };
        if let Some([of_a, of_weight]) = cut.boxes(self.backward).filter(|_| !grid.contains(&0)) {
            let (stored, rows) = (if self.backward { [k, n] } else { [n, k] }, self.rows.count());
            let arguments = GemmHopperArguments {
                a: tensor_map(arguments.a, [rows, k], [of_a, hopper::DEPTH])?,
                weight: tensor_map(arguments.weight, stored, [of_weight, hopper::DEPTH])?,
                of: arguments,
                rows: rows as i32,
                ..GemmHopperArguments::default()
            };
            let cluster = if cut.kind() == Kind::ThinHopper { [1, 1, grid[2]] } else { [1; 3] };
            // SAFETY: as below; the maps are of those operands, whose rows, as many as were checked, copies do not leave.
            return unsafe {
                kernels.launch_clusters(kernel, grid, cluster, threads, shared, &arguments, &operands)
            };
        }
        // SAFETY: all operands were checked against n, k and the rows, workspace and counters are of the cut's sizes, and rows
        // beyond the batch's exit.
        unsafe { kernels.launch(kernel, grid, threads, shared, &arguments, &operands) }
    }
}

/// Products of packed rows with weights of one shape, and the memory in which split-K sums their parts: launches of one `Linear` belong
/// on the stream of the kernels that it was made with; others are refused.
///
/// A row of ones gives the sums of the weight's rows:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use half::bf16;
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::linear::{Epilogue, Linear};
/// use promptmix::cuda::{Kernels, Sequences};
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let (out, input) = (8, 16);
/// let sequences = Sequences::new(stream, &[2])?;
/// // Every number of the weight's row i is i.
/// let numbers: Vec<bf16> = (0..out * input).map(|n| bf16::from_f32((n / input) as f32)).collect();
/// let weight = stream.clone_htod(&numbers)?;
/// let a = stream.clone_htod(&vec![bf16::ONE; 2 * input])?;
/// let mut z = stream.clone_htod(&vec![f32::NAN; 2 * out])?;
/// let mut linear = Linear::new(&kernels, sequences.rows(), out, input)?;
/// linear.forward(&kernels, &a, &weight, Epilogue::Float { z: &mut z })?;
/// assert_eq!(stream.clone_dtoh(&z)?[out + 3], 16.0 * 3.0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Linear<'a> {
    rows: PackedRows<'a>,
    shape: [usize; 2],
    cuts: [Cut; 2],
    workspace: [CudaSlice<f32>; 2],
    counters: CudaSlice<i32>,
}

impl<'a> Linear<'a> {
    /// Products of `rows` with weights of `out` rows of `input` numbers, both multiples of 8, in bf16.
    ///
    /// # Errors
    /// A width that does not fit, and what the driver says.
    pub fn new(kernels: &Kernels, rows: PackedRows<'a>, out: usize, input: usize) -> Result<Self> {
        Self::with_table(kernels, rows, out, input, TileTable::built_in())
    }

    /// As [`Linear::new`], with the tiles of another table of measurements.
    ///
    /// # Errors
    /// As [`Linear::new`].
    pub fn with_table(
        kernels: &Kernels,
        rows: PackedRows<'a>,
        out: usize,
        input: usize,
        table: &TileTable,
    ) -> Result<Self> {
        let device = devices::info(kernels.context())?;
        Self::cut(kernels, rows, out, input, |backward, sizes| {
            Ok(Cut::new(Precision::Bf16, &device, table, backward, sizes))
        })
    }

    /// As [`Linear::new`], with these tiles forward and backward. The result is the same but for the order of its sums.
    ///
    /// # Errors
    /// As [`Linear::new`]; a tile that the device has no kernel of; a split-K that is beyond the depth.
    pub fn with_tiles(
        kernels: &Kernels,
        rows: PackedRows<'a>,
        out: usize,
        input: usize,
        tiles: [TileConfig; 2],
    ) -> Result<Self> {
        let device = devices::info(kernels.context())?;
        Self::cut(kernels, rows, out, input, |backward, sizes| {
            Cut::forced(tiles[usize::from(backward)], &device, sizes)
        })
    }

    /// The tiles that are worth trying forward and backward for such a product on the device of `kernels`.
    ///
    /// # Errors
    /// What the driver says.
    pub fn candidates(
        kernels: &Kernels,
        rows: usize,
        out: usize,
        input: usize,
    ) -> Result<[Vec<TileConfig>; 2]> {
        let device = devices::info(kernels.context())?;
        Ok([[out, input], [input, out]].map(|[n, k]| candidates(&device, [rows, n, k])))
    }

    fn cut(
        kernels: &Kernels,
        rows: PackedRows<'a>,
        out: usize,
        input: usize,
        cut: impl Fn(bool, [usize; 3]) -> Result<Cut>,
    ) -> Result<Self> {
        check_width(out)?;
        check_width(input)?;
        check_not_capturing(kernels.stream(), "make a Linear")?;
        let (stream, fail) = (kernels.stream(), |error| driver("prepare a product", error));
        let cuts = [cut(false, [rows.count(), out, input])?, cut(true, [rows.count(), input, out])?];
        let room = |cut: &Cut| stream.alloc_zeros::<f32>(cut.workspace().max(1)).map_err(fail);
        let workspace = [room(&cuts[0])?, room(&cuts[1])?];
        let most = cuts.iter().map(Cut::counters).max().unwrap_or(0).max(1);
        Ok(Self {
            rows,
            shape: [out, input],
            cuts,
            workspace,
            counters: stream.alloc_zeros(most).map_err(fail)?,
        })
    }

    /// The tiles that it takes, forward and backward.
    pub fn tiles(&self) -> [TileConfig; 2] {
        let of = |cut: &Cut| cut.config().unwrap_or(TileConfig { shape: TileShape::Large, split_k: 1 });
        [of(&self.cuts[0]), of(&self.cuts[1])]
    }

    /// Launches a W^T: `a` \[rows, in\] and `weight` \[out, in\] in bf16.
    ///
    /// # Errors
    /// A length, width or epilogue that does not fit, and what the driver says.
    pub fn forward(
        &mut self,
        kernels: &Kernels,
        a: &dyn ReadOperand,
        weight: &dyn ReadOperand,
        epilogue: Epilogue<'_>,
    ) -> Result<()> {
        self.launch(kernels, a, weight, false, epilogue)
    }

    /// Launches a W: `a` \[rows, out\] and the same stored weight.
    ///
    /// # Errors
    /// As [`Linear::forward`].
    pub fn backward(
        &mut self,
        kernels: &Kernels,
        a: &dyn ReadOperand,
        weight: &dyn ReadOperand,
        epilogue: Epilogue<'_>,
    ) -> Result<()> {
        self.launch(kernels, a, weight, true, epilogue)
    }

    fn launch(
        &mut self,
        kernels: &Kernels,
        a: &dyn ReadOperand,
        weight: &dyn ReadOperand,
        backward: bool,
        epilogue: Epilogue<'_>,
    ) -> Result<()> {
        check_stream("a Linear with its workspace", self.counters.stream(), kernels.stream())?;
        let way = usize::from(backward);
        let workspace =
            Workspace { parts: &mut self.workspace[way], counters: Some(Words::Slice(&self.counters)) };
        let product = Product { rows: self.rows, a, weight, shape: self.shape, backward };
        product.launch(kernels, &self.cuts[way], workspace, epilogue)
    }
}
