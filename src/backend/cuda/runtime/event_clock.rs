//! Work on a stream, timed by the device's own events: with nothing of its operands in the level-2 cache, and with everything.

use cudarc::driver::sys::{CUdevice_attribute_enum as Attribute, CUevent_flags};
use cudarc::driver::{CudaEvent, CudaSlice, DriverError};

use super::error::driver;
use super::kernels::Kernels;
use crate::error::{Error, Result};

/// Microseconds of some passes of the same work.
#[derive(Clone, Debug)]
pub struct Times {
    /// With nothing of the operands in the level-2 cache, in ascending order.
    pub cold_us: Vec<f64>,
    /// Right after a pass of the same, in ascending order.
    pub warm_us: Vec<f64>,
}

/// Times work on the stream of its kernels.
#[derive(Debug)]
pub struct EventClock<'k> {
    kernels: &'k Kernels,
    /// Twice the level-2 cache: filling it leaves nothing else there.
    flush: CudaSlice<u8>,
    flushes: usize,
}

fn fail(error: DriverError) -> Error {
    driver("time its work", error)
}

impl<'k> EventClock<'k> {
    /// On the stream of `kernels`. The cache is flushed so often before a launch that is timed: once leaves nothing in it, and the device
    /// is at the others while the host issues what is timed, which would otherwise count how slowly it does, some tens of microseconds
    /// for an op of several launches.
    ///
    /// # Errors
    /// What the driver says.
    pub fn new(kernels: &'k Kernels, flushes: usize) -> Result<Self> {
        let cache =
            kernels.context().attribute(Attribute::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE).map_err(fail)?;
        let flush =
            kernels.stream().alloc_zeros(2 * usize::try_from(cache).unwrap_or(0).max(1)).map_err(fail)?;
        Ok(Self { kernels, flush, flushes })
    }

    /// The kernels on whose stream it times.
    pub fn kernels(&self) -> &'k Kernels {
        self.kernels
    }

    /// Times `repeats` cold and as many warm passes of `work`, which launches on the stream and waits for nothing.
    ///
    /// # Errors
    /// What `work` fails with, and what the driver says.
    pub fn measure(&mut self, repeats: usize, mut work: impl FnMut() -> Result<()>) -> Result<Times> {
        let mut events = Vec::with_capacity(repeats);
        for _ in 0..repeats {
            for _ in 0..self.flushes {
                self.kernels.stream().memset_zeros(&mut self.flush).map_err(fail)?;
            }
            let begin = self.event()?;
            work()?;
            let between = self.event()?;
            work()?;
            let end = self.event()?;
            // What is asked for waits for the event: the next pass begins on an idle device.
            events.push([between.elapsed(&begin)?, end.elapsed(&between)?]);
        }
        let ascending = |which: usize| {
            let mut times: Vec<f64> = events.iter().map(|pair| pair[which]).collect();
            times.sort_by(f64::total_cmp);
            times
        };
        Ok(Times { cold_us: ascending(0), warm_us: ascending(1) })
    }

    fn event(&self) -> Result<Recorded> {
        let event = self.kernels.stream().record_event(Some(CUevent_flags::CU_EVENT_DEFAULT));
        event.map(Recorded).map_err(fail)
    }
}

/// An event on the stream.
struct Recorded(CudaEvent);

impl Recorded {
    /// Microseconds since `earlier`.
    fn elapsed(&self, earlier: &Self) -> Result<f64> {
        earlier.0.elapsed_ms(&self.0).map(|milliseconds| f64::from(milliseconds) * 1e3).map_err(fail)
    }
}
