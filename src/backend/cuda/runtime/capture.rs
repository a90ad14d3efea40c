//! Streams that work is captured from into a graph.

use std::sync::Arc;

use cudarc::driver::sys::{CUresult, CUstreamCaptureStatus};
use cudarc::driver::{CudaContext, CudaStream, DriverError};

use crate::error::{Error, Result};

/// Whether work on the stream goes into a graph.
pub(super) fn is_capturing(stream: &CudaStream) -> bool {
    // Where the driver will not say, the launch itself gets to know.
    stream.capture_status().is_ok_and(|status| status != CUstreamCaptureStatus::CU_STREAM_CAPTURE_STATUS_NONE)
}

/// Fails within a capture, with what was found there, before the driver breaks the capture over it.
pub(super) fn refuse_capture(stream: &CudaStream, action: &str, found: &str, advice: &str) -> Result<()> {
    if is_capturing(stream) {
        return Err(Error::device(format!("{action} within a capture"), found, advice));
    }
    Ok(())
}

/// Fails within a capture, of an `action` that allocates or copies from the host.
pub(crate) fn check_not_capturing(stream: &CudaStream, action: &str) -> Result<()> {
    let found = "a graph can hold launches alone";
    refuse_capture(stream, action, found, "do this before CudaStream::begin_capture, or after end_capture")
}

/// A stream of a `CudaContext` of its own that has failed. cudarc reports a context's error before it asks the driver for anything, so
/// that waits and records on this stream reach no driver; and a wait that fails leaves the error there for the next.
pub(super) fn unordered(stream: &CudaStream) -> std::result::Result<Arc<CudaStream>, DriverError> {
    let context = CudaContext::new(stream.context().ordinal())?;
    context.record_err::<()>(Err(DriverError(CUresult::CUDA_ERROR_NOT_PERMITTED)));
    // The new one has become the thread's.
    stream.context().bind_to_thread()?;
    Ok(context.default_stream())
}
