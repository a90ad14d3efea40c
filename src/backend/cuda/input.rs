//! What a device is told before a piece of work: integers, copied by themselves or, for recorded work, in one asynchronous
//! copy out of pinned memory.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use cudarc::driver::{CudaEvent, PinnedHostSlice};

use super::arguments::optimizer::Settings;
use super::batch::{DeviceBatch, describe};
use super::dropout;
use super::failure::driver;
use super::memory::{Buffer, address};
use super::{Cuda, failure};
use crate::backend::{Batch, MicroBatch, OptimizerStep};
use crate::error::{Error, Result};

/// 32-bit numbers in device memory.
#[derive(Debug)]
pub(super) struct Numbers(RefCell<Buffer<i32>>);

impl Numbers {
    /// Room for `length`.
    fn room(cuda: &Cuda, length: usize) -> Result<Rc<Self>> {
        let buffer = cuda.allocate(length);
        if buffer.is_empty() {
            return Err(failure::absent());
        }
        Ok(Rc::new(Self(RefCell::new(buffer))))
    }

    /// These.
    pub(super) fn of(cuda: &Cuda, values: &[i32]) -> Result<Rc<Self>> {
        let numbers = Self::room(cuda, values.len())?;
        cuda.upload(values, &mut numbers.0.borrow_mut())?;
        Ok(numbers)
    }

    /// Where number `at` lies.
    pub(super) fn address(&self, cuda: &Cuda, at: usize) -> Result<u64> {
        Ok(address(&self.0.borrow().view()?, cuda.kernels().stream()) + (at * size_of::<i32>()) as u64)
    }
}

/// Something that the device was told, and where it keeps it.
#[derive(Debug)]
pub(super) struct Told<T> {
    what: T,
    numbers: Rc<Numbers>,
    at: usize,
}

impl<T: PartialEq + Clone> Told<T> {
    /// Where the device has `what`, which is copied there as `words` unless it has it.
    pub(super) fn address(
        known: &RefCell<Option<Self>>,
        cuda: &Cuda,
        what: &T,
        name: &str,
        words: impl FnOnce(&T) -> Vec<i32>,
    ) -> Result<u64> {
        let mut known = known.borrow_mut();
        if known.as_ref().is_none_or(|known| known.what != *what) {
            cuda.expect_told(name)?;
            *known = Some(Self { what: what.clone(), numbers: Numbers::of(cuda, &words(what))?, at: 0 });
        }
        known.as_ref().map_or(Ok(0), |known| known.numbers.address(cuda, known.at))
    }
}

/// The settings of each run, as the optimizer's kernels read them.
pub(super) fn settings(steps: &[OptimizerStep]) -> Vec<Settings> {
    let of = |step: &OptimizerStep| Settings {
        prompt_rate: step.prompt_learning_rate,
        scorer_rate: step.scorer_learning_rate,
        weight_decay: step.weight_decay,
        beta1: step.beta1,
        beta2: step.beta2,
        epsilon: step.epsilon,
        clip_norm: step.clip_norm,
    };
    steps.iter().map(of).collect()
}

/// The same in words.
pub(super) fn schedule_words(steps: &[OptimizerStep]) -> Vec<i32> {
    bytemuck::cast_slice(&settings(steps)).to_vec()
}

/// All that recorded work of one bucket is told: the batch descriptor, the step's dropout and the optimizer's settings,
/// at fixed places of one buffer that captured graphs read.
#[derive(Debug)]
pub(super) struct Input {
    described: Rc<DeviceBatch>,
    numbers: Rc<Numbers>,
    dropout: usize,
    schedule: usize,
    /// Written in turn, each only when the copy out of it is done: the host prepares one while the device works.
    staging: [Staging; 2],
    turn: Cell<usize>,
}

/// Pinned memory, and when the last copy out of it is done. The slice's own event says nothing: it is recorded only by
/// contexts that track events, which this one does not.
#[derive(Debug)]
struct Staging {
    pinned: PinnedHostSlice<i32>,
    copied: CudaEvent,
}

impl Staging {
    /// Room for `length` numbers.
    fn new(cuda: &Cuda, length: usize) -> Result<Self> {
        let context = cuda.kernels().context();
        let fail = |error| driver("pin memory of the host", error);
        // SAFETY: every number is written before it is copied from.
        let pinned = unsafe { context.alloc_pinned::<i32>(length) }.map_err(fail)?;
        Ok(Self { pinned, copied: context.new_event(None).map_err(fail)? })
    }

    /// Writes `words` once the copy before is done, and issues theirs to `numbers`.
    fn send(&mut self, cuda: &Cuda, words: &[i32], numbers: &Numbers) -> Result<()> {
        super::memory::check_length("what recorded work is told", self.pinned.len(), words.len())?;
        let wait = |error| driver("wait for a copy", error);
        self.copied.synchronize().map_err(wait)?;
        self.pinned.as_mut_slice().map_err(wait)?.copy_from_slice(words);
        let stream = cuda.kernels().stream();
        let mut buffer = numbers.0.borrow_mut();
        let mut view = buffer.view_mut()?;
        let copied = stream.memcpy_htod(&self.pinned, &mut view).and_then(|()| self.copied.record(stream));
        copied.map_err(|error| driver("copy to the GPU", error))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Pinned memory goes only when nothing reads it; what failed here has failed the work before it as well.
        let _ = self.copied.synchronize();
    }
}

/// The words that a device is told of a micro-batch, and where in them dropout and schedule begin.
fn words(batch: &Batch, micro: &MicroBatch<'_>) -> (Vec<i32>, [usize; 3], usize, usize) {
    let (mut words, tiles) = describe(batch);
    let dropout = words.len();
    words.extend(micro.dropout.iter().flat_map(|step| dropout::words(step)));
    // f64 numbers follow.
    words.resize(words.len().next_multiple_of(2), 0);
    let schedule = words.len();
    words.extend(micro.last.iter().flat_map(|steps| schedule_words(steps)));
    (words, tiles, dropout, schedule)
}

impl Input {
    /// Room for what batches of the capacity of `batch` are told.
    pub(super) fn new(cuda: &Cuda, batch: &Batch, micro: &MicroBatch<'_>) -> Result<Self> {
        let (words, tiles, dropout, schedule) = words(batch, micro);
        let numbers = Numbers::room(cuda, words.len())?;
        Ok(Self {
            described: DeviceBatch::new(batch, numbers.clone(), tiles),
            numbers,
            dropout,
            schedule,
            staging: [Staging::new(cuda, words.len())?, Staging::new(cuda, words.len())?],
            turn: Cell::new(0),
        })
    }

    /// Sends what `micro` is, packed as `batch`, once the work before it has read what it was told. Waits only for a copy
    /// of two times before.
    pub(super) fn send(&mut self, cuda: &Cuda, batch: &Batch, micro: &MicroBatch<'_>) -> Result<()> {
        let (words, ..) = words(batch, micro);
        let turn = self.turn.replace(1 - self.turn.get());
        self.staging[turn].send(cuda, &words, &self.numbers)
    }

    /// Lets ops find what was sent.
    pub(super) fn tell(&self, cuda: &Cuda, micro: &MicroBatch<'_>) {
        cuda.keep(&self.described);
        if let Some(step) = micro.dropout {
            let told = Told { what: step.clone(), numbers: self.numbers.clone(), at: self.dropout };
            cuda.dropout.replace(Some(told));
        }
        if let Some(steps) = micro.last {
            let told = Told { what: steps.to_vec(), numbers: self.numbers.clone(), at: self.schedule };
            cuda.schedule.replace(Some(told));
        }
    }

    /// Takes back what [`Input::tell`] said, which was never sent.
    pub(super) fn retract(&self, cuda: &Cuda) {
        cuda.forget(&self.described);
        cuda.dropout.replace(None);
        cuda.schedule.replace(None);
    }
}

impl Cuda {
    /// Fails within recorded work, which is told everything beforehand.
    pub(super) fn expect_told(&self, what: &str) -> Result<()> {
        if self.arena.borrow().is_none() {
            return Ok(());
        }
        let found = format!("it uses {what} that the device was not told of before");
        Err(Error::device("record work", found, "this is a defect of promptmix: report it"))
    }
}
