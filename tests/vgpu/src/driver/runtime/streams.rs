//! Streams, events, capture and graphs: the driver's, under the runtime's names.

use std::ffi::{c_int, c_void};

use super::super::{modules, streams};
use super::{of_driver, runtime, same};

same! {
    fn cudaStreamCreateWithFlags(to: *mut usize, flags: u32) = streams::cuStreamCreate;
    fn cudaStreamCreateWithPriority(to: *mut usize, flags: u32, priority: c_int) = streams::cuStreamCreateWithPriority;
    fn cudaStreamDestroy(stream: usize) = streams::cuStreamDestroy_v2;
    fn cudaStreamSynchronize(stream: usize) = streams::cuStreamSynchronize;
    fn cudaStreamQuery(stream: usize) = streams::cuStreamQuery;
    fn cudaStreamWaitEvent(stream: usize, event: usize, flags: u32) = streams::cuStreamWaitEvent;
    fn cudaStreamGetFlags(stream: usize, to: *mut u32) = streams::cuStreamGetFlags;
    fn cudaStreamGetPriority(stream: usize, to: *mut c_int) = streams::cuStreamGetPriority;
    fn cudaStreamGetId(stream: usize, to: *mut u64) = streams::cuStreamGetId;
    fn cudaStreamGetDevice(stream: usize, to: *mut c_int) = streams::cuStreamGetDevice;
    fn cudaStreamAddCallback(stream: usize, function: usize, data: usize, flags: u32) = streams::cuStreamAddCallback;
    fn cudaLaunchHostFunc(stream: usize, function: usize, data: usize) = modules::cuLaunchHostFunc;
    fn cudaStreamBeginCapture(stream: usize, mode: c_int) = streams::cuStreamBeginCapture_v2;
    fn cudaStreamEndCapture(stream: usize, to: *mut usize) = streams::cuStreamEndCapture;
    fn cudaStreamIsCapturing(stream: usize, to: *mut c_int) = streams::cuStreamIsCapturing;
    fn cudaThreadExchangeStreamCaptureMode(mode: *mut c_int) = streams::cuThreadExchangeStreamCaptureMode;
    fn cudaStreamGetCaptureInfo(
        stream: usize,
        status: *mut c_int,
        id: *mut u64,
        graph: *mut usize,
        nodes: *mut *const usize,
        edges: *mut *const u8,
        count: *mut usize,
    ) = streams::cuStreamGetCaptureInfo_v3;
    fn cudaStreamSetAttribute(stream: usize, which: u32, value: *const u8) = streams::cuStreamSetAttribute;
    fn cudaEventCreateWithFlags(to: *mut usize, flags: u32) = streams::cuEventCreate;
    fn cudaEventDestroy(event: usize) = streams::cuEventDestroy_v2;
    fn cudaEventRecord(event: usize, stream: usize) = streams::cuEventRecord;
    fn cudaEventRecordWithFlags(event: usize, stream: usize, flags: u32) = streams::cuEventRecordWithFlags;
    fn cudaEventQuery(event: usize) = streams::cuEventQuery;
    fn cudaEventSynchronize(event: usize) = streams::cuEventSynchronize;
    fn cudaEventElapsedTime(to: *mut f32, start: usize, end: usize) = streams::cuEventElapsedTime;
    fn cudaGraphInstantiate(to: *mut usize, graph: usize, flags: u64) = streams::cuGraphInstantiateWithFlags;
    fn cudaGraphInstantiateWithFlags(to: *mut usize, graph: usize, flags: u64) = streams::cuGraphInstantiateWithFlags;
    fn cudaGraphGetNodes(graph: usize, nodes: *mut usize, count: *mut usize) = streams::cuGraphGetNodes;
    fn cudaGraphLaunch(executable: usize, stream: usize) = streams::cuGraphLaunch;
    fn cudaGraphUpload(executable: usize, stream: usize) = streams::cuGraphUpload;
    fn cudaGraphDestroy(graph: usize) = streams::cuGraphDestroy;
    fn cudaGraphExecDestroy(executable: usize) = streams::cuGraphExecDestroy;
}

runtime! {
    fn cudaStreamCreate(to: *mut usize) {
        // SAFETY: the same contract.
        of_driver(unsafe { streams::cuStreamCreate(to, 0) })
    }
    fn cudaEventCreate(to: *mut usize) {
        // SAFETY: the same contract.
        of_driver(unsafe { streams::cuEventCreate(to, 0) })
    }
    fn cudaStreamAttachMemAsync(_stream: usize, _address: *mut c_void, _bytes: usize, _flags: u32) {
        Ok(())
    }
}
