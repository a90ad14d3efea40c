//! What is copied to a device before a piece of work: the batch descriptor, the step's dropout and the optimizer's settings.

use std::cell::{Cell, RefCell};
use std::rc::Rc;

use super::Cuda;
use crate::backend::cuda::ops::descriptor::{Description, describe};
use crate::backend::cuda::ops::optimizer::schedule_words;
use crate::backend::cuda::ops::packing::{Described, DropoutMask, Words, dropout_words};
use crate::backend::cuda::runtime::arguments::batch::Descriptor;
use crate::backend::cuda::runtime::staging::{Numbers, Staging};
use crate::backend::{Batch, Mask, MicroBatch, OptimizerStep};
use crate::error::{Error, Result};

/// A parameter that was copied to the device, and where it lies there.
#[derive(Debug)]
pub(super) struct DeviceParameter<T> {
    what: T,
    numbers: Numbers,
    at: usize,
}

impl<T: PartialEq + Clone> DeviceParameter<T> {
    /// Where the device has `what`, which is copied there as `words` unless it has it.
    fn address(
        known: &RefCell<Option<Self>>,
        cuda: &Cuda,
        what: &T,
        name: &str,
        words: impl FnOnce(&T) -> Vec<i32>,
    ) -> Result<u64> {
        let mut known = known.borrow_mut();
        if let Some(known) = known.as_ref().filter(|known| known.what == *what) {
            return Ok(known.numbers.address(known.at));
        }
        cuda.expect_known(name)?;
        let numbers = cuda.numbers_of(&words(what))?;
        let parameter = known.insert(Self { what: what.clone(), numbers, at: 0 });
        Ok(parameter.numbers.address(0))
    }
}

/// A batch's descriptor on the device.
#[derive(Debug)]
pub(super) struct DeviceBatch {
    /// The descriptor, from the first on; maybe more after it.
    numbers: Numbers,
    id: u64,
    common: Descriptor,
    tiles: [usize; 3],
}

/// Descriptors that stay on the device: the batch at hand, and those that share its encoder rows.
const KEPT_BATCHES: usize = 4;

/// The whole input of one bucket's captured work, at fixed places of one buffer that captured graphs read.
#[derive(Debug)]
pub(super) struct Input {
    described: Rc<DeviceBatch>,
    numbers: Numbers,
    dropout: usize,
    schedule: usize,
    /// Written in turn, each only when the copy out of it is done: the host prepares one while the device works.
    staging: [Staging; 2],
    turn: Cell<usize>,
}

/// A micro-batch's description with the words of its whole input, and where in them dropout and schedule begin.
fn words(batch: &Batch, micro: &MicroBatch<'_>) -> (Description, usize, usize) {
    let mut description = describe(batch);
    let words = &mut description.data;
    let dropout = words.len();
    words.extend(micro.dropout.iter().flat_map(|step| dropout_words(step)));
    // f64 numbers follow.
    words.resize(words.len().next_multiple_of(2), 0);
    let schedule = words.len();
    words.extend(micro.last.iter().flat_map(|steps| schedule_words(steps)));
    (description, dropout, schedule)
}

impl Input {
    /// Room for the input of batches of the capacity of `batch`.
    pub(super) fn new(cuda: &Cuda, batch: &Batch, micro: &MicroBatch<'_>) -> Result<Self> {
        let (Description { data, common, tiles }, dropout, schedule) = words(batch, micro);
        let numbers = Numbers::new(cuda.allocate(data.len())?);
        let staging = || Staging::new(cuda.kernels().stream(), data.len());
        Ok(Self {
            described: Rc::new(DeviceBatch { numbers: numbers.clone(), id: batch.id(), common, tiles }),
            numbers,
            dropout,
            schedule,
            staging: [staging()?, staging()?],
            turn: Cell::new(0),
        })
    }

    /// Sends what `micro` is, packed as `batch`, once the work before it has read its own input. Waits only for a copy
    /// of two times before.
    pub(super) fn send(&mut self, batch: &Batch, micro: &MicroBatch<'_>) -> Result<()> {
        let (Description { data, common, .. }, ..) = words(batch, micro);
        // The captured launches hold it.
        debug_assert_eq!(
            bytemuck::bytes_of(&common),
            bytemuck::bytes_of(&self.described.common),
            "common to a bucket"
        );
        let turn = self.turn.replace(1 - self.turn.get());
        self.staging[turn].send(&data, &self.numbers)
    }

    /// Lets ops find what was sent.
    pub(super) fn announce(&self, cuda: &Cuda, micro: &MicroBatch<'_>) {
        cuda.keep(&self.described);
        if let Some(step) = micro.dropout {
            let parameter =
                DeviceParameter { what: step.clone(), numbers: self.numbers.clone(), at: self.dropout };
            cuda.dropout.replace(Some(parameter));
        }
        if let Some(steps) = micro.last {
            let parameter =
                DeviceParameter { what: steps.to_vec(), numbers: self.numbers.clone(), at: self.schedule };
            cuda.schedule.replace(Some(parameter));
        }
    }

    /// Takes back what [`Input::announce`] said, which was never sent.
    pub(super) fn retract(&self, cuda: &Cuda) {
        cuda.batches.borrow_mut().retain(|known| known.id != self.described.id);
        cuda.dropout.replace(None);
        cuda.schedule.replace(None);
    }
}

impl Cuda {
    fn numbers_of(&self, values: &[i32]) -> Result<Numbers> {
        let mut buffer = self.allocate(values.len())?;
        self.upload(values, &mut buffer)?;
        Ok(Numbers::new(buffer))
    }

    /// `batch` with its descriptor, uploaded unless the device has it.
    pub(super) fn described<'a>(&self, batch: &'a Batch) -> Result<Described<'a>> {
        let known = self.batches.borrow().iter().find(|known| known.id == batch.id()).cloned();
        let known = match known {
            Some(known) => known,
            None => {
                self.expect_known("a batch")?;
                let Description { data, common, tiles } = describe(batch);
                let numbers = self.numbers_of(&data)?;
                let made = Rc::new(DeviceBatch { numbers, id: batch.id(), common, tiles });
                self.keep(&made);
                made
            }
        };
        Ok(Described::new(batch, Words::Saved(known.numbers.address(0)), known.common, known.tiles))
    }

    /// One site's mask of a step; the step's numbers are uploaded unless the device has them.
    pub(super) fn mask(&self, mask: Mask<'_>) -> Result<DropoutMask<'static>> {
        let Some((step, site)) = mask else { return Ok(DropoutMask::default()) };
        let step = DeviceParameter::address(&self.dropout, self, step, "dropout", dropout_words)?;
        Ok(DropoutMask::new(Words::Saved(step), site))
    }

    /// The settings of an optimizer step, one of `steps` a run, uploaded unless the device has them.
    pub(super) fn schedule_words(&self, steps: &[OptimizerStep]) -> Result<Words<'static>> {
        let words = |steps: &Vec<OptimizerStep>| schedule_words(steps);
        DeviceParameter::address(&self.schedule, self, &steps.to_vec(), "a schedule", words).map(Words::Saved)
    }

    /// Keeps a descriptor, in the place of the oldest, unless it is there.
    fn keep(&self, described: &Rc<DeviceBatch>) {
        let mut batches = self.batches.borrow_mut();
        batches.retain(|known| known.id != described.id);
        if batches.len() == KEPT_BATCHES {
            batches.pop_front();
        }
        batches.push_back(described.clone());
    }

    /// Fails within captured work, whose input is all copied beforehand.
    fn expect_known(&self, what: &str) -> Result<()> {
        if self.arena.borrow().is_none() {
            return Ok(());
        }
        let found = format!("it uses {what} that was not uploaded before");
        Err(Error::device("capture work", found, "this is a defect of promptmix: report it"))
    }
}
