//! Integers on their way to the device: copied by themselves or, for captured work, asynchronously out of pinned memory.

use std::cell::RefCell;
use std::rc::Rc;
use std::sync::Arc;

use cudarc::driver::{CudaEvent, CudaStream, PinnedHostSlice};

use super::error::driver;
use super::memory::Buffer;
use crate::backend::ops::check_length;
use crate::error::Result;

/// 32-bit numbers in device memory, which several share.
#[derive(Clone, Debug)]
pub(crate) struct Numbers(Rc<RefCell<Buffer<i32>>>);

impl Numbers {
    /// These.
    pub(crate) fn new(buffer: Buffer<i32>) -> Self {
        Self(Rc::new(RefCell::new(buffer)))
    }

    /// Where number `at` lies.
    pub(crate) fn address(&self, at: usize) -> u64 {
        self.0.borrow().address() + (at * size_of::<i32>()) as u64
    }
}

/// Pinned memory, and when the last copy out of it is done. The slice's own event says nothing: it is recorded only by
/// contexts that track events, which the backend's does not.
#[derive(Debug)]
pub(crate) struct Staging {
    stream: Arc<CudaStream>,
    pinned: PinnedHostSlice<i32>,
    copied: CudaEvent,
}

impl Staging {
    /// Room for `length` numbers.
    pub(crate) fn new(stream: &Arc<CudaStream>, length: usize) -> Result<Self> {
        let context = stream.context();
        let fail = |error| driver("pin memory of the host", error);
        // SAFETY: every number is written before it is copied from.
        let pinned = unsafe { context.alloc_pinned::<i32>(length) }.map_err(fail)?;
        Ok(Self { stream: stream.clone(), pinned, copied: context.new_event(None).map_err(fail)? })
    }

    /// Writes `words` once the copy before is done, and issues theirs to `numbers`.
    pub(crate) fn send(&mut self, words: &[i32], numbers: &Numbers) -> Result<()> {
        check_length("the parameters of captured work", self.pinned.len(), words.len())?;
        let wait = |error| driver("wait for a copy", error);
        self.copied.synchronize().map_err(wait)?;
        self.pinned.as_mut_slice().map_err(wait)?.copy_from_slice(words);
        let mut buffer = numbers.0.borrow_mut();
        let copied = self.stream.memcpy_htod(&self.pinned, &mut *buffer);
        let copied = copied.and_then(|()| self.copied.record(&self.stream));
        copied.map_err(|error| driver("copy to the GPU", error))
    }
}

impl Drop for Staging {
    fn drop(&mut self) {
        // Pinned memory goes only when nothing reads it; what failed here has failed the work before it as well.
        let _ = self.copied.synchronize();
    }
}
