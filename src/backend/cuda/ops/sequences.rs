//! Sequences and pairs of them as launches take them, of fixed lengths or refilled: `kernels/sequences.cu`.

use std::sync::Arc;

use cudarc::driver::{CudaSlice, CudaStream, DevicePtr, result};

use super::descriptor::{Room, describe, write_lengths};
use super::packing::{Described, Packed, PackedRows, Words};
use crate::backend::cuda::runtime::arguments::batch::Descriptor;
use crate::backend::cuda::runtime::arguments::sequences::{SequencesArguments, THREADS};
use crate::backend::cuda::runtime::capture::check_not_capturing;
use crate::backend::cuda::runtime::error::driver;
use crate::backend::cuda::runtime::kernels::{Kernel, Kernels};
use crate::backend::{Batch, Example, Side};
use crate::error::{Error, Result};

/// A description that is written again for other lengths, by copies and launches on one stream.
#[derive(Debug)]
struct Refill {
    data: CudaSlice<i32>,
    /// What stays as it is, beside lengths of nought.
    words: Vec<i32>,
    common: Descriptor,
    batch: Batch,
    room: Room,
    first_tiles: CudaSlice<i32>,
    refused: CudaSlice<i32>,
    stream: Arc<CudaStream>,
}

impl Refill {
    /// Of `batch`, which has the capacity. Its examples have no rows at first, on the sides that change.
    fn new(stream: &Arc<CudaStream>, batch: Batch, lengths: [Vec<usize>; 2]) -> Result<Self> {
        check_not_capturing(stream, "describe sequences")?;
        let fail = |error| driver("describe sequences on the GPU", error);
        let (description, room) = (describe(&batch), Room::of(&batch));
        let (mut words, common) = (description.data, description.common);
        write_lengths(&mut words, &common, room, &lengths);
        Ok(Self {
            data: stream.clone_htod(&words).map_err(fail)?,
            words,
            common,
            first_tiles: stream.alloc_zeros(2 * (batch.examples() + 1)).map_err(fail)?,
            refused: stream.alloc_zeros(1).map_err(fail)?,
            batch,
            room,
            stream: stream.clone(),
        })
    }

    fn described(&self) -> Described<'_> {
        Described::new(&self.batch, Words::Refilled(&self.data), self.common, self.room.all_tiles())
    }

    /// Fails unless they are as many as the examples, and all rows have room.
    fn check(&self, what: &str, lengths: &[usize], capacity: usize) -> Result<()> {
        let (examples, rows) =
            (self.batch.examples(), lengths.iter().fold(0_usize, |sum, &n| sum.saturating_add(n)));
        if lengths.len() == examples && rows <= capacity {
            return Ok(());
        }
        let expected = format!("{examples} lengths of at most {capacity} rows together");
        let advice = "an example that is not there has the length 0; a larger capacity takes more rows";
        Err(Error::tensor(what, expected, format!("{} lengths of {rows} rows", lengths.len()), advice))
    }

    /// Copies the description of other lengths.
    fn update(&self, lengths: &[Vec<usize>; 2]) -> Result<()> {
        check_not_capturing(&self.stream, "copy lengths from the host")?;
        let mut words = self.words.clone();
        write_lengths(&mut words, &self.common, self.room, lengths);
        let context = self.stream.context();
        let (to, _guard) = self.data.device_ptr(&self.stream);
        context
            .bind_to_thread()
            // SAFETY: the slice has as many numbers, only work on its own stream uses it, and memory that is not pinned may go when
            // the call returns.
            .and_then(|()| unsafe { result::memcpy_htod_async(to, &words, self.stream.cu_stream()) })
            .map_err(|error| driver("copy lengths to the GPU", error))
    }

    /// Launches what writes the description from cumulative lengths on the device.
    fn update_on_device(
        &self,
        kernels: &Kernels,
        targets: (&str, &dyn DevicePtr<i32>),
        sources: Option<(&str, &dyn DevicePtr<i32>)>,
    ) -> Result<()> {
        let (mut operands, examples) = (kernels.operands(), self.batch.examples());
        let batch = self.described().read(&mut operands)?;
        let arguments = SequencesArguments {
            batch,
            data: batch.data,
            targets: operands.read(targets.0, targets.1, examples + 1)?,
            sources: match sources {
                Some((what, sources)) => operands.read(what, sources, examples + 1)?,
                None => 0,
            },
            first_tiles: operands.read("the first tiles", &self.first_tiles, 2 * (examples + 1))?,
            refused: operands.read("what was refused", &self.refused, 1)?,
            target_capacity: self.room.rows[1] as i32,
            source_capacity: self.room.rows[0] as i32,
            target_tiles: self.room.tiles[1] as i32,
            source_tiles: self.room.tiles[0] as i32,
        };
        let most = self.room.rows.into_iter().chain(self.room.tiles).max().unwrap_or(0);
        let blocks = most.div_ceil(THREADS) as u32;
        for (name, grid) in [("sequence_offsets", [2, 1, 1]), ("sequence_rows", [blocks, 2, 1])] {
            let kernel = Kernel { file: "sequences", name };
            // SAFETY: cumulative lengths are one more than examples, and the kernels write within the room that they are told, which
            // is the description's, whatever the lengths.
            unsafe { kernels.launch(kernel, grid, THREADS as u32, 0, &arguments, &operands)? };
        }
        Ok(())
    }

    /// Waits, and fails if lengths on the device did not fit since it was last asked.
    fn refused(&self) -> Result<()> {
        check_not_capturing(&self.stream, "ask after lengths")?;
        let fail = |error| driver("ask after lengths", error);
        let mut found = [0_i32];
        let (at, _guard) = self.refused.device_ptr(&self.stream);
        self.stream.context().bind_to_thread().map_err(fail)?;
        // SAFETY: one number there and here; the array outlives the copy, which is waited for, and only work on this stream uses the
        // slice.
        unsafe { result::memcpy_dtoh_async(&mut found, at, self.stream.cu_stream()) }.map_err(fail)?;
        self.stream.synchronize().map_err(fail)?;
        if found == [0] {
            return Ok(());
        }
        // SAFETY: as above, and nothing has to live for it.
        unsafe { result::memset_d8_async(at, 0, size_of::<i32>(), self.stream.cu_stream()) }.map_err(fail)?;
        let [sources, targets] = self.room.rows;
        Err(Error::tensor(
            "the cumulative lengths on the device",
            format!("numbers that begin at 0, never fall, and end by {targets} (sources: {sources})"),
            "others, whose rows beyond the capacity were left out",
            "",
        ))
    }
}

/// A batch of so many examples with room for so many rows a side.
fn roomy(examples: usize, prompt_length: usize, [sources, targets]: [usize; 2]) -> Result<Batch> {
    if examples == 0 || targets < examples || sources < examples || sources.max(targets) > MAX_ROWS {
        let expected = format!("an example or more, and a row for each, up to {MAX_ROWS}");
        let found = format!("{examples} examples, {targets} rows (sources: {sources})");
        return Err(Error::tensor("the capacity", expected, found, ""));
    }
    let batch = pack((0..examples).map(|_| (1, 1)), prompt_length)?;
    Ok(batch.with_capacity(sources, targets, targets))
}

/// Examples of so many (targets, sources), numbered in order: dropout draws for each by its number.
fn pack(lengths: impl Iterator<Item = (usize, usize)>, prompt_length: usize) -> Result<Batch> {
    let example = |(index, (targets, sources))| Example {
        source: vec![0; sources],
        target: vec![0; targets],
        index: index as u32,
        ..Example::default()
    };
    Batch::pack(&lengths.enumerate().map(example).collect::<Vec<_>>(), prompt_length, 0, 1)
}

/// So that every number of a description is an i32.
const MAX_ROWS: usize = 1 << 24;

/// Lengths that stay, or those that are refilled.
#[derive(Debug)]
enum Lengths {
    Fixed(Box<Packed>),
    Refill(Box<Refill>),
}

impl Lengths {
    fn described(&self) -> Described<'_> {
        match self {
            Self::Fixed(packed) => packed.described(),
            Self::Refill(refill) => refill.described(),
        }
    }

    fn refill(&self) -> Result<&Refill> {
        match self {
            Self::Refill(refill) => Ok(refill),
            Self::Fixed(_) => {
                let advice = "make them by with_capacity";
                Err(Error::tensor("the sequences", "room for other lengths", "fixed ones", advice))
            }
        }
    }
}

/// Sequences packed end to end, described on the device: rows without token ids.
///
/// Dropout draws for a sequence by its number in the batch, from 0 on, so that no two drop alike; those without rows count.
///
/// A row attends to its own sequence alone. With q = 0 it gets the mean of v there, here of 1 and 3:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use half::bf16;
/// use promptmix::backend::Heads;
/// use promptmix::cuda::attention::{Attention, AttentionInput};
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::{Kernels, Sequences};
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let sequences = Sequences::new(stream, &[2, 1])?;
/// // q, k and v of three rows.
/// let row = |v: f32| [[0.0; 8], [1.0; 8], [v; 8]].concat();
/// let qkv: Vec<bf16> = [1.0, 3.0, 8.0].into_iter().flat_map(row).map(bf16::from_f32).collect();
/// let qkv = stream.clone_htod(&qkv)?;
/// let mut o = stream.clone_htod(&[bf16::NAN; 3 * 8])?;
/// let mut log_sum_exp = stream.clone_htod(&[f32::NAN; 3])?;
/// Attention::of_itself(sequences.rows(), Heads { count: 1, width: 8 }).forward(
///     &kernels,
///     AttentionInput::Packed(&qkv),
///     &mut o,
///     &mut log_sum_exp,
/// )?;
/// assert_eq!(stream.clone_dtoh(&o)?[0].to_f32(), 2.0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct Sequences(Lengths);

impl Sequences {
    /// Sequences of the given lengths, uploaded on `stream`. Where a launch does not care how rows are cut up, one of
    /// all rows will do.
    ///
    /// # Errors
    /// No sequence, or an empty one; what the driver says.
    pub fn new(stream: &Arc<CudaStream>, lengths: &[usize]) -> Result<Self> {
        if lengths.is_empty() || lengths.contains(&0) {
            let expected = "at least one sequence, of at least one row each";
            return Err(Error::tensor("lengths", expected, format!("{lengths:?}"), ""));
        }
        let batch = pack(lengths.iter().map(|&length| (length, 1)), 1)?;
        Packed::new(stream, batch).map(|packed| Self(Lengths::Fixed(Box::new(packed))))
    }

    /// Room for `examples` sequences of `rows` rows in all, which are filled on `stream`, again and again; empty until then. So one
    /// captured graph serves batches of any lengths: matrices have `rows` rows, and what lies after the last sequence is left alone.
    ///
    /// Launches over these rows belong on `stream`; others are refused.
    ///
    /// ```
    /// # fn main() -> Result<(), Box<dyn std::error::Error>> {
    /// # promptmix::example_gpu!();
    /// use half::bf16;
    /// use promptmix::backend::Heads;
    /// use promptmix::cuda::attention::{Attention, AttentionInput};
    /// use promptmix::cuda::cudarc::driver::CudaContext;
    /// use promptmix::cuda::{Kernels, Sequences};
    ///
    /// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
    /// let stream = kernels.stream();
    /// let sequences = Sequences::with_capacity(stream, 2, 3)?;
    /// let row = |v: f32| [[0.0; 8], [1.0; 8], [v; 8]].concat();
    /// let qkv: Vec<bf16> = [1.0, 3.0, 8.0].into_iter().flat_map(row).map(bf16::from_f32).collect();
    /// let qkv = stream.clone_htod(&qkv)?;
    /// let mut o = stream.clone_htod(&[bf16::NAN; 3 * 8])?;
    /// let mut log_sum_exp = stream.clone_htod(&[f32::NAN; 3])?;
    /// let attention = Attention::of_itself(sequences.rows(), Heads { count: 1, width: 8 });
    /// // One sequence of three rows, and none of the second; then two rows and one, from a buffer of the device.
    /// sequences.update(&[3, 0])?;
    /// attention.forward(&kernels, AttentionInput::Packed(&qkv), &mut o, &mut log_sum_exp)?;
    /// assert_eq!(stream.clone_dtoh(&o)?[0].to_f32(), 4.0);
    /// let cu_seqlens = stream.clone_htod(&[0, 2, 3])?;
    /// sequences.update_on_device(&kernels, &cu_seqlens)?;
    /// attention.forward(&kernels, AttentionInput::Packed(&qkv), &mut o, &mut log_sum_exp)?;
    /// assert_eq!(stream.clone_dtoh(&o)?[0].to_f32(), 2.0);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// No sequence, fewer rows than sequences, or more than 16,777,216; what the driver says.
    pub fn with_capacity(stream: &Arc<CudaStream>, examples: usize, rows: usize) -> Result<Self> {
        let batch = roomy(examples, 1, [2 * examples, rows])?;
        let refill = Refill::new(stream, batch, [vec![2; examples], vec![0; examples]])?;
        Ok(Self(Lengths::Refill(Box::new(refill))))
    }

    /// Fills the room with sequences of these lengths, as many as there are, of which some may be 0. Launches that were issued
    /// before still see those before.
    ///
    /// # Errors
    /// Fixed lengths; others than the capacity has room for; a capture, whose replays would all copy these lengths; what the driver says.
    pub fn update(&self, lengths: &[usize]) -> Result<()> {
        let refill = self.0.refill()?;
        refill.check("lengths", lengths, self.count())?;
        refill.update(&[vec![2; lengths.len()], lengths.to_vec()])
    }

    /// Launches what fills the room from `cu_seqlens` \[B + 1\] on the device, cumulative lengths from 0 on: two small kernels, which
    /// a capture may hold.
    ///
    /// What it finds there cannot be an error of this call. Numbers that do not begin at 0, fall or exceed the capacity do no harm: rows
    /// beyond the capacity are left out, and [`Sequences::refused`] says so.
    ///
    /// # Errors
    /// Fixed lengths, another length, another stream than that of the sequences, and what the driver says.
    pub fn update_on_device(&self, kernels: &Kernels, cu_seqlens: &dyn DevicePtr<i32>) -> Result<()> {
        self.0.refill()?.update_on_device(kernels, ("cu_seqlens", cu_seqlens), None)
    }

    /// Waits for the stream, and fails if lengths on the device did not fit since this was last asked.
    ///
    /// # Errors
    /// Fixed lengths; lengths that did not fit; a capture; what the driver says.
    pub fn refused(&self) -> Result<()> {
        self.0.refill()?.refused()
    }

    /// How many rows all sequences have, or have room for.
    pub fn count(&self) -> usize {
        self.rows().count()
    }

    /// The rows, as ops take them.
    pub fn rows(&self) -> PackedRows<'_> {
        self.0.described().rows(Side::Decoder)
    }
}

/// Targets and the sources that they attend to, example by example, each side packed end to end, described on the device.
///
/// A target attends to the sources of its own example alone. With q = 0 it gets the mean of their v, here of 1 and 3:
///
/// ```
/// # fn main() -> Result<(), Box<dyn std::error::Error>> {
/// # promptmix::example_gpu!();
/// use half::bf16;
/// use promptmix::backend::{Heads, Side};
/// use promptmix::cuda::attention::{Attention, AttentionInput, Columns};
/// use promptmix::cuda::cudarc::driver::CudaContext;
/// use promptmix::cuda::{Kernels, PairedSequences};
///
/// let kernels = Kernels::new(CudaContext::new(0)?.new_stream()?)?;
/// let stream = kernels.stream();
/// let pairs = PairedSequences::new(stream, &[(1, 2), (1, 1)])?;
/// let v: Vec<bf16> = [[1.0; 8], [3.0; 8], [8.0; 8]].concat().into_iter().map(bf16::from_f32).collect();
/// let (q, k) = (stream.clone_htod(&[bf16::ZERO; 2 * 8])?, stream.clone_htod(&[bf16::ONE; 3 * 8])?);
/// let v = stream.clone_htod(&v)?;
/// let mut o = stream.clone_htod(&[bf16::NAN; 2 * 8])?;
/// let mut log_sum_exp = stream.clone_htod(&[f32::NAN; 2])?;
/// let (queries, keys) = (pairs.described().rows(Side::Decoder), pairs.described().rows(Side::Encoder));
/// let attention = Attention::new(queries, keys, Heads { count: 1, width: 8 });
/// let [q, k, v] = [&q, &k, &v].map(|matrix| Columns { matrix, first: 0, stride: 8 });
/// attention.forward(&kernels, AttentionInput::Apart { q, k, v }, &mut o, &mut log_sum_exp)?;
/// assert_eq!(stream.clone_dtoh(&o)?[0].to_f32(), 2.0);
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct PairedSequences(Lengths);

impl PairedSequences {
    /// Examples of the given lengths, targets before sources, uploaded on `stream`.
    ///
    /// # Errors
    /// No example, or an empty side; what the driver says.
    pub fn new(stream: &Arc<CudaStream>, lengths: &[(usize, usize)]) -> Result<Self> {
        if lengths.is_empty() || lengths.iter().any(|&(targets, sources)| targets == 0 || sources == 0) {
            let expected = "at least one example, of at least one target and one source row each";
            return Err(Error::tensor("lengths", expected, format!("{lengths:?}"), ""));
        }
        let batch = pack(lengths.iter().copied(), 0)?;
        Packed::new(stream, batch).map(|packed| Self(Lengths::Fixed(Box::new(packed))))
    }

    /// Room for so many examples of `targets` and `sources` rows in all, which are filled on `stream`, again and again; empty until then.
    /// As [`Sequences::with_capacity`]. The targets of an example without sources attend to nothing: their o is NaN, their gradient too,
    /// unless there are none.
    ///
    /// # Errors
    /// As [`Sequences::with_capacity`].
    pub fn with_capacity(
        stream: &Arc<CudaStream>,
        examples: usize,
        targets: usize,
        sources: usize,
    ) -> Result<Self> {
        let batch = roomy(examples, 0, [sources, targets])?;
        let refill = Refill::new(stream, batch, [vec![0; examples], vec![0; examples]])?;
        Ok(Self(Lengths::Refill(Box::new(refill))))
    }

    /// Fills the room with examples of these lengths, targets before sources; as [`Sequences::update`].
    ///
    /// # Errors
    /// As [`Sequences::update`].
    pub fn update(&self, lengths: &[(usize, usize)]) -> Result<()> {
        let refill = self.0.refill()?;
        let (targets, sources): (Vec<usize>, Vec<usize>) = lengths.iter().copied().unzip();
        refill.check("the targets' lengths", &targets, self.targets())?;
        refill.check("the sources' lengths", &sources, self.sources())?;
        refill.update(&[sources, targets])
    }

    /// As [`Sequences::update_on_device`], from the cumulative lengths of both sides.
    ///
    /// # Errors
    /// As [`Sequences::update_on_device`].
    pub fn update_on_device(
        &self,
        kernels: &Kernels,
        targets: &dyn DevicePtr<i32>,
        sources: &dyn DevicePtr<i32>,
    ) -> Result<()> {
        let sides = (("the targets' cu_seqlens", targets), Some(("the sources' cu_seqlens", sources)));
        self.0.refill()?.update_on_device(kernels, sides.0, sides.1)
    }

    /// As [`Sequences::refused`].
    ///
    /// # Errors
    /// As [`Sequences::refused`].
    pub fn refused(&self) -> Result<()> {
        self.0.refill()?.refused()
    }

    /// Both sides, as ops take them.
    pub fn described(&self) -> Described<'_> {
        self.0.described()
    }

    /// R: source rows of all examples, or those that there is room for.
    pub fn sources(&self) -> usize {
        self.0.described().rows(Side::Encoder).count()
    }

    /// T: target rows of all examples, or those that there is room for.
    pub fn targets(&self) -> usize {
        self.0.described().rows(Side::Decoder).count()
    }
}
