//! The driver as cudarc sees it: copies, launches, graphs, limits, errors.

#[path = "support/tools.rs"]
mod tools;

use cudarc::driver::{CudaContext, CudaStream, DriverError, LaunchConfig, PushKernelArg, sys};
use cudarc::nvrtc::Ptx;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use vgpu::check::Check;
use vgpu::{Calls, Change};

/// y = a x + y, one thread an element; `past` elements too many where a test wants that.
const SAXPY: &str = r#"
.version 9.0
.target sm_80
.address_size 64
.visible .entry saxpy(.param .u64 px, .param .u64 py, .param .f32 pa, .param .u32 pn)
.maxntid 256, 1, 1
{
    .reg .pred %p<2>;
    .reg .f32 %f<5>;
    .reg .b32 %r<6>;
    .reg .b64 %rd<8>;
    ld.param.u64 %rd1, [px];
    ld.param.u64 %rd2, [py];
    ld.param.f32 %f1, [pa];
    ld.param.u32 %r1, [pn];
    mov.u32 %r2, %ctaid.x;
    mov.u32 %r3, %ntid.x;
    mov.u32 %r4, %tid.x;
    mad.lo.s32 %r5, %r2, %r3, %r4;
    setp.ge.s32 %p1, %r5, %r1;
    @%p1 bra DONE;
    cvta.to.global.u64 %rd3, %rd1;
    mul.wide.s32 %rd4, %r5, 4;
    add.s64 %rd5, %rd3, %rd4;
    ld.global.f32 %f2, [%rd5];
    cvta.to.global.u64 %rd6, %rd2;
    add.s64 %rd7, %rd6, %rd4;
    ld.global.f32 %f3, [%rd7];
    fma.rn.f32 %f4, %f1, %f2, %f3;
    st.global.f32 [%rd7], %f4;
DONE:
    ret;
}
"#;

/// One process has one device, and an error sticks to all of it: tests take turns.
fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn context() -> Arc<CudaContext> {
    CudaContext::new(0).unwrap()
}

fn code(error: DriverError) -> u32 {
    error.0 as u32
}

/// Loads saxpy, runs it once for `n` elements told and `room` allocated, and gives what it wrote.
fn saxpy(stream: &Arc<CudaStream>, n: u32, room: usize) -> Result<Vec<f32>, DriverError> {
    let module = stream.context().load_module(Ptx::from_src(SAXPY)).unwrap();
    let function = module.load_function("saxpy").unwrap();
    let x: Vec<f32> = (0..room).map(|i| i as f32).collect();
    let x = stream.clone_htod(&x)?;
    let mut y = stream.clone_htod(&vec![1f32; room])?;
    let config =
        LaunchConfig { grid_dim: (n.div_ceil(256), 1, 1), block_dim: (256, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: saxpy takes x, y, a and n.
    unsafe { stream.launch_builder(&function).arg(&x).arg(&mut y).arg(&2f32).arg(&n).launch(config) }?;
    stream.synchronize()?;
    stream.clone_dtoh(&y)
}

#[test]
fn a_kernel_runs_through_cudarc() {
    let _turn = turn();
    let gpu = vgpu::load().unwrap();
    let context = context();
    let y = saxpy(&context.default_stream(), 1000, 1000).unwrap();
    assert_eq!(y[999], 2.0 * 999.0 + 1.0);
    assert_eq!(y.len(), 1000);
    let stream = context.new_stream().unwrap();
    assert_eq!(saxpy(&stream, 7, 7).unwrap(), [1.0, 3.0, 5.0, 7.0, 9.0, 11.0, 13.0]);
    gpu.finish();
}

#[test]
fn one_element_past_the_end_is_reported_and_sticks() {
    let _turn = turn();
    let gpu = vgpu::load().unwrap();
    if !gpu.is_virtual() {
        return;
    }
    let context = context();
    let stream = context.default_stream();
    let error = saxpy(&stream, 33, 32).unwrap_err();
    assert_eq!(code(error), 700);
    assert_eq!(code(stream.synchronize().unwrap_err()), 700, "the error sticks");
    let reports = gpu.take_reports();
    assert_eq!(reports.len(), 1, "{reports:?}");
    assert_eq!(reports[0].check, Check::OutOfBounds);
    assert_eq!((reports[0].block, reports[0].warp, reports[0].lane), ([0, 0, 0], 1, 0));
    gpu.change(&Change { forget_error: true, ..Change::default() });
    assert!(saxpy(&stream, 32, 32).is_ok());
}

#[test]
fn a_write_outside_the_declared_outputs_fails_the_launch_but_does_not_stick() {
    let _turn = turn();
    let gpu = vgpu::load().unwrap();
    if !gpu.is_virtual() {
        return;
    }
    let context = context();
    let stream = context.default_stream();
    gpu.change(&Change { outputs: Some(vec![(16, 16)]), ..Change::default() });
    assert_eq!(code(saxpy(&stream, 8, 8).unwrap_err()), 719);
    gpu.change(&Change { outputs: Some(Vec::new()), ..Change::default() });
    assert_eq!(gpu.take_reports()[0].check, Check::UndeclaredWrite);
    assert!(saxpy(&stream, 8, 8).is_ok());
}

#[test]
fn a_captured_graph_replays() {
    let _turn = turn();
    let gpu = vgpu::load().unwrap();
    let context = context();
    // SAFETY: the stream's order is all that this test relies on.
    unsafe { context.disable_event_tracking() };
    let stream = context.new_stream().unwrap();
    let module = context.load_module(Ptx::from_src(SAXPY)).unwrap();
    let function = module.load_function("saxpy").unwrap();
    let x = stream.clone_htod(&[1f32, 2.0]).unwrap();
    let mut y = stream.clone_htod(&[0f32, 0.0]).unwrap();
    let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
    stream.begin_capture(sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).unwrap();
    // SAFETY: as in `saxpy`.
    unsafe { stream.launch_builder(&function).arg(&x).arg(&mut y).arg(&3f32).arg(&2u32).launch(config) }
        .unwrap();
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    let graph = stream.end_capture(flags).unwrap().unwrap();
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [0.0, 0.0], "capturing runs nothing");
    let before = gpu.calls();
    graph.launch().unwrap();
    graph.launch().unwrap();
    assert_eq!(stream.clone_dtoh(&y).unwrap(), [6.0, 12.0]);
    if let (Some(before), Some(after)) = (before, gpu.calls()) {
        // What the graph holds is not asked for one by one.
        let expected = Calls { graphs: before.graphs + 2, downloads: before.downloads + 1, ..before };
        assert_eq!(Calls { waits: before.waits, ..after }, expected);
    }
    gpu.finish();
}

#[test]
fn capture_has_rules() {
    let _turn = turn();
    let gpu = vgpu::load().unwrap();
    let context = context();
    // SAFETY: as above.
    unsafe { context.disable_event_tracking() };
    let mode = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    let flags = sys::CUgraphInstantiate_flags::CUDA_GRAPH_INSTANTIATE_FLAG_AUTO_FREE_ON_LAUNCH;
    assert_eq!(code(context.default_stream().begin_capture(mode).unwrap_err()), 900, "the null stream");
    let stream = context.new_stream().unwrap();
    stream.begin_capture(mode).unwrap();
    assert_eq!(code(stream.synchronize().unwrap_err()), 900);
    assert_eq!(
        stream.end_capture(flags).map(|_| ()).map_err(code).unwrap_err(),
        901,
        "a broken capture gives no graph"
    );
    stream.begin_capture(mode).unwrap();
    assert_eq!(code(stream.alloc_zeros::<f32>(4).unwrap_err()), 900, "nothing is allocated in a capture");
    assert_eq!(stream.end_capture(flags).map(|_| ()).map_err(code).unwrap_err(), 901);
    // A stream that joined must be joined again.
    let other = context.new_stream().unwrap();
    stream.begin_capture(mode).unwrap();
    let event = context.new_event(None).unwrap();
    event.record(&stream).unwrap();
    other.wait(&event).unwrap();
    assert_eq!(stream.end_capture(flags).map(|_| ()).map_err(code).unwrap_err(), 904);
    gpu.finish();
}

#[test]
fn launches_have_the_limits_of_a_device() {
    let _turn = turn();
    let gpu = vgpu::load().unwrap();
    let context = context();
    let stream = context.default_stream();
    let function = context.load_module(Ptx::from_src(SAXPY)).unwrap().load_function("saxpy").unwrap();
    let x = stream.clone_htod(&[1f32]).unwrap();
    let mut y = stream.clone_htod(&[1f32]).unwrap();
    let mut launch = |grid: (u32, u32, u32), block: (u32, u32, u32), shared: u32| {
        let config = LaunchConfig { grid_dim: grid, block_dim: block, shared_mem_bytes: shared };
        // SAFETY: as in `saxpy`.
        let outcome = unsafe {
            stream.launch_builder(&function).arg(&x).arg(&mut y).arg(&3f32).arg(&1u32).launch(config)
        };
        outcome.map(|_| ()).map_err(code)
    };
    assert_eq!(launch((1, 1, 1), (32, 1, 1), 0), Ok(()));
    assert_eq!(launch((0, 1, 1), (32, 1, 1), 0), Err(1));
    assert_eq!(launch((1, 65_536, 1), (32, 1, 1), 0), Err(1));
    assert_eq!(launch((1, 1, 1), (512, 1, 1), 0), Err(1), "the launch bound is 256");
    assert_eq!(launch((1, 1, 1), (32, 1, 1), 49_153), Err(1), "more shared memory needs opting in");
    let attribute = sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
    function.set_attribute(attribute, 65_536).unwrap();
    assert_eq!(launch((1, 1, 1), (32, 1, 1), 65_536), Ok(()));
    assert!(function.set_attribute(attribute, 1 << 20).is_err());
    gpu.finish();
}

#[test]
fn modules_that_cannot_run_are_refused() {
    let _turn = turn();
    let gpu = vgpu::load().unwrap();
    let context = context();
    let refused = |text: &str| match context.load_module(Ptx::from_src(text)) {
        Ok(_) => 0,
        Err(error) => code(error),
    };
    assert_eq!(refused(&SAXPY.replace("fma.rn.f32", "frobnicate.f32")), 218);
    assert_eq!(refused(&SAXPY.replace("sm_80", "sm_100")), 209);
    assert_eq!(refused(&SAXPY.replace(".version 9.0", ".version 99.0")), 222);
    assert_eq!(refused("not PTX at all"), 218);
    let module = context.load_module(Ptx::from_src(SAXPY)).unwrap();
    assert_eq!(code(module.load_function("sexpy").unwrap_err()), 500);
    gpu.finish();
}

#[test]
fn freed_memory_is_gone_and_memory_is_limited() {
    let _turn = turn();
    let gpu = vgpu::load().unwrap();
    let context = context();
    let stream = context.default_stream();
    let (free, total) = context.mem_get_info().unwrap();
    let buffer = stream.alloc_zeros::<u8>(1 << 20).unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, free - (1 << 20));
    drop(buffer);
    stream.synchronize().unwrap();
    assert_eq!(context.mem_get_info().unwrap().0, free);
    // SAFETY: nothing is read.
    let too_much = unsafe { stream.alloc::<u8>(total + 1) };
    assert_eq!(too_much.map(|_| ()).map_err(code), Err(2));
    gpu.finish();
}

#[test]
fn events_measure_only_when_asked_to() {
    let _turn = turn();
    let gpu = vgpu::load().unwrap();
    let context = context();
    let stream = context.default_stream();
    let timed = Some(sys::CUevent_flags::CU_EVENT_DEFAULT);
    let (start, end) = (stream.record_event(timed).unwrap(), stream.record_event(timed).unwrap());
    assert!(start.elapsed_ms(&end).unwrap() >= 0.0);
    let (start, end) = (stream.record_event(None).unwrap(), stream.record_event(None).unwrap());
    assert!(start.elapsed_ms(&end).is_err(), "an event without timing has no time");
    gpu.finish();
}

#[test]
fn a_function_has_one_limit_of_shared_memory_however_often_it_is_loaded() {
    use sys::CUfunction_attribute_enum::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES as LIMIT;
    let _turn = turn();
    let gpu = vgpu::load().unwrap();
    let module = context().load_module(Ptx::from_src(SAXPY)).unwrap();
    let (first, second) = (module.load_function("saxpy").unwrap(), module.load_function("saxpy").unwrap());
    first.set_attribute(LIMIT, 64 << 10).unwrap();
    second.set_attribute(LIMIT, 50 << 10).unwrap();
    assert_eq!(first.get_attribute(LIMIT).unwrap(), 50 << 10, "asking for less takes it from all");
    gpu.finish();
}

#[test]
fn pinned_memory_belongs_to_its_copy_until_that_is_waited_for() {
    let _turn = turn();
    let gpu = vgpu::load().unwrap();
    if !gpu.is_virtual() {
        return;
    }
    let context = context();
    let stream = context.new_stream().unwrap();
    // As where one stream does all: then cudarc does not record the slice's own event.
    // SAFETY: everything here runs on one stream.
    unsafe { context.disable_event_tracking() };
    // SAFETY: written before it is read.
    let mut pinned = unsafe { context.alloc_pinned::<i32>(4) }.unwrap();
    let mut buffer = stream.alloc_zeros::<i32>(4).unwrap();
    let copied = context.new_event(None).unwrap();
    let mut send = |value: i32, waits: bool| {
        if waits {
            copied.synchronize()?;
        }
        pinned.as_mut_slice()?.fill(value);
        stream.memcpy_htod(&pinned, &mut buffer)?;
        copied.record(&stream)?;
        Ok::<_, DriverError>(())
    };
    (1..4).for_each(|value| send(value, true).unwrap());
    stream.synchronize().unwrap();
    send(4, false).unwrap();
    assert_eq!(send(5, false).map_err(code), Err(719), "the copy of 4 may not have been made yet");
    gpu.change(&Change { forget_error: true, ..Change::default() });
    gpu.finish();
}

/// A fatbin of the calibration kernels with SASS of sm_80 and PTX of two architectures; none without nvcc.
fn fatbin(name: &str, flags: &[&str]) -> Option<std::path::PathBuf> {
    let nvcc = tools::cuda_tool("nvcc").or_else(|| {
        assert!(
            std::env::var_os("CI").is_none(),
            "CI runs without nvcc; run scripts/install-cuda-compiler first"
        );
        eprintln!("skipped: no nvcc; run scripts/install-cuda-compiler");
        None
    })?;
    let out = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let output = std::process::Command::new(nvcc)
        .args(["-fatbin", "-std=c++17", "-gencode", "arch=compute_80,code=[sm_80,compute_80]"])
        .args(["-gencode", "arch=compute_90,code=compute_90"])
        .args(flags)
        .arg(std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/kernels/calibration.cu"))
        .arg("-o")
        .arg(&out)
        .output()
        .unwrap();
    assert!(output.status.success(), "nvcc: {}", String::from_utf8_lossy(&output.stderr));
    Some(out)
}

#[test]
fn a_fatbin_of_nvcc_is_loaded_from_its_ptx() {
    let _turn = turn();
    let gpu = vgpu::load().unwrap();
    let Some(path) = fatbin("calibration.fatbin", &["--compress-mode=none"]) else { return };
    let context = context();
    let stream = context.default_stream();
    // From a file, and from memory.
    let bytes = std::fs::read(&path).unwrap();
    for image in [Ptx::from_file(&path), Ptx::from_binary(bytes.clone())] {
        let function = context.load_module(image).unwrap().load_function("global_stride").unwrap();
        let input: Vec<f32> = (0..64).map(|at| at as f32).collect();
        let x = stream.clone_htod(&input).unwrap();
        let mut y = stream.alloc_zeros::<f32>(32).unwrap();
        let config = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (32, 1, 1), shared_mem_bytes: 0 };
        // SAFETY: the kernel takes two pointers and a stride, and 32 lanes two apart stay within 64 numbers.
        unsafe { stream.launch_builder(&function).arg(&x).arg(&mut y).arg(&2i32).launch(config) }.unwrap();
        let expected: Vec<f32> = (0..32).map(|lane| 2.0 * lane as f32).collect();
        assert_eq!(stream.clone_dtoh(&y).unwrap(), expected);
    }
    if gpu.is_virtual() {
        // A file that was cut off is refused, wherever it was cut.
        let cut = path.with_extension("cut");
        for length in [3, 15, 17, 100, bytes.len() / 2, bytes.len() - 1] {
            std::fs::write(&cut, &bytes[..length]).unwrap();
            assert!(context.load_module(Ptx::from_file(&cut)).is_err(), "{length} of {} bytes", bytes.len());
        }
    }
    gpu.finish();
}

#[test]
fn damaged_ptx_in_a_fatbin_is_refused_with_218() {
    let _turn = turn();
    let gpu = vgpu::load().unwrap();
    if !gpu.is_virtual() {
        return;
    }
    let context = context();
    // Zstandard and LZ4.
    for mode in ["size", "speed"] {
        let name = format!("compressed-{mode}.fatbin");
        let Some(path) = fatbin(&name, &[&format!("--compress-mode={mode}")]) else { return };
        let whole = std::fs::read(&path).unwrap();
        context.load_module(Ptx::from_binary(whole.clone())).unwrap().load_function("global_stride").unwrap();
        let damaged = |damage: &dyn Fn(&mut [u8])| {
            let mut bytes = whole.clone();
            let mut at = 16;
            while at < bytes.len() {
                let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
                let (is_ptx, end) = (word(at) & 0xffff == 1, at + word(at + 4) + word(at + 8));
                if is_ptx {
                    damage(&mut bytes[at..end]);
                }
                at = end;
            }
            context.load_module(Ptx::from_binary(bytes)).map(|_| ()).map_err(code)
        };
        assert_eq!(damaged(&|_| {}), Ok(()), "{mode}");
        // Larger than any text, shorter than it is, cut off, and compressed in no known way.
        assert_eq!(damaged(&|entry| entry[56..64].fill(0xff)), Err(218), "{mode}");
        assert_eq!(
            damaged(&|entry| entry[56..64].copy_from_slice(&[9, 0, 0, 0, 0, 0, 0, 0])),
            Err(218),
            "{mode}"
        );
        assert_eq!(damaged(&|entry| entry[16..20].copy_from_slice(&[9, 0, 0, 0])), Err(218), "{mode}");
        assert_eq!(damaged(&|entry| entry[41] = 0x10), Err(218), "{mode}");
        // Whatever byte is wrong, it is an error or another text.
        for at in (80..2000).step_by(61) {
            let _ = damaged(&|entry| entry[at.min(entry.len() - 1)] ^= 0x55);
        }
    }
    gpu.finish();
}

/// What a raw call of the driver answers.
fn done(code: sys::CUresult) {
    assert_eq!(code, sys::CUresult::CUDA_SUCCESS);
}

#[test]
fn functions_are_found_by_name_and_version() {
    let _turn = turn();
    let _gpu = vgpu::load().unwrap();
    let _context = context();
    let find = |name: &std::ffi::CStr, version: i32| {
        let (mut place, mut status) =
            (std::ptr::null_mut(), sys::CUdriverProcAddressQueryResult::CU_GET_PROC_ADDRESS_SUCCESS);
        // SAFETY: a name, and places for the answers.
        done(unsafe { sys::cuGetProcAddress_v2(name.as_ptr(), &mut place, version, 0, &mut status) });
        (place, status as u32)
    };
    let (allocate, status) = find(c"cuMemAlloc", 12_000);
    assert!(!allocate.is_null() && status == 0);
    // The same function, whichever version above the first with addresses of 64 bits asks.
    assert_eq!(find(c"cuMemAlloc", 13_000).0, allocate);
    let create = [11_000, 12_000, 13_000].map(|version| find(c"cuCtxCreate", version).0);
    assert!(create[0] != create[1] && create[1] != create[2] && create[0] != create[2]);
    for unknown in [c"cuNothing", c"malloc"] {
        let (place, status) = find(unknown, 13_000);
        assert!(place.is_null() && status == 1, "{unknown:?}");
    }
    let mut address = 0u64;
    // SAFETY: the function that the name means, with its own signature.
    let code = unsafe {
        let allocate: extern "C" fn(*mut u64, usize) -> u32 = std::mem::transmute(allocate);
        allocate(&mut address, 64)
    };
    assert_eq!(code, 0);
    // SAFETY: just allocated.
    done(unsafe { sys::cuMemFree_v2(address) });
}

#[test]
fn contexts_lie_above_each_other() {
    let _turn = turn();
    let _gpu = vgpu::load().unwrap();
    let context = context();
    let current = || {
        let mut out = std::ptr::null_mut();
        // SAFETY: a place for the answer.
        done(unsafe { sys::cuCtxGetCurrent(&mut out) });
        out
    };
    context.bind_to_thread().unwrap();
    let below = current();
    let mut popped = std::ptr::null_mut();
    // SAFETY: places for handles.
    unsafe {
        done(sys::cuCtxPushCurrent_v2(below));
        done(sys::cuCtxSetCurrent(std::ptr::null_mut()));
        assert_eq!(sys::cuCtxPopCurrent_v2(&mut popped), sys::CUresult::CUDA_ERROR_INVALID_CONTEXT);
        done(sys::cuCtxSetCurrent(below));
        done(sys::cuCtxPopCurrent_v2(&mut popped));
    }
    assert_eq!((popped, current()), (below, below));
}

#[test]
fn rows_are_copied_and_filled_apart() {
    let _turn = turn();
    let _gpu = vgpu::load().unwrap();
    let _context = context();
    let (mut address, mut pitch) = (0u64, 0usize);
    // SAFETY: places for the answers.
    done(unsafe { sys::cuMemAllocPitch_v2(&mut address, &mut pitch, 100, 4, 4) });
    assert!(pitch >= 100 && pitch % 128 == 0, "{pitch}");
    let source: Vec<u8> = (0..=255).collect();
    let mut back = [0u8; 12];
    // Three rows of four bytes from column 2 of row 1 of a host matrix of 16 columns to column 8 of row 1.
    let mut copy = sys::CUDA_MEMCPY2D_v2 {
        srcXInBytes: 2,
        srcY: 1,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        srcHost: source.as_ptr().cast(),
        srcDevice: 0,
        srcArray: std::ptr::null_mut(),
        srcPitch: 16,
        dstXInBytes: 8,
        dstY: 1,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        dstHost: std::ptr::null_mut(),
        dstDevice: address,
        dstArray: std::ptr::null_mut(),
        dstPitch: pitch,
        WidthInBytes: 4,
        Height: 3,
    };
    // SAFETY: all rows lie inside.
    done(unsafe { sys::cuMemcpy2D_v2(&copy) });
    let out = sys::CUDA_MEMCPY2D_v2 {
        srcXInBytes: 8,
        srcY: 1,
        srcMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_DEVICE,
        srcHost: std::ptr::null(),
        srcDevice: address,
        srcArray: std::ptr::null_mut(),
        srcPitch: pitch,
        dstXInBytes: 0,
        dstY: 0,
        dstMemoryType: sys::CUmemorytype::CU_MEMORYTYPE_HOST,
        dstHost: back.as_mut_ptr().cast(),
        dstDevice: 0,
        dstArray: std::ptr::null_mut(),
        dstPitch: 4,
        WidthInBytes: 4,
        Height: 3,
    };
    // SAFETY: as above.
    done(unsafe { sys::cuMemcpy2D_v2(&out) });
    assert_eq!(back, [18, 19, 20, 21, 34, 35, 36, 37, 50, 51, 52, 53]);
    // SAFETY: two rows of two bytes, inside.
    done(unsafe { sys::cuMemsetD2D8_v2(address + pitch as u64 + 9, pitch, 7, 2, 2) });
    // SAFETY: as above.
    done(unsafe { sys::cuMemcpy2D_v2(&out) });
    assert_eq!(back, [18, 7, 7, 21, 34, 7, 7, 37, 50, 51, 52, 53]);
    // A row past the last is refused.
    copy.dstY = 2;
    // SAFETY: the driver refuses what does not lie inside.
    assert_eq!(unsafe { sys::cuMemcpy2D_v2(&copy) }, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
    // SAFETY: allocated above.
    done(unsafe { sys::cuMemFree_v2(address) });
}

#[test]
fn an_address_tells_what_it_is_of() {
    let _turn = turn();
    let _gpu = vgpu::load().unwrap();
    let _context = context();
    use sys::CUpointer_attribute::{
        CU_POINTER_ATTRIBUTE_IS_MANAGED, CU_POINTER_ATTRIBUTE_MEMORY_TYPE, CU_POINTER_ATTRIBUTE_RANGE_SIZE,
    };
    let ask = |which, address: u64| {
        let mut value = 0u64;
        // SAFETY: room for the widest attribute.
        let code = unsafe { sys::cuPointerGetAttribute((&raw mut value).cast(), which, address) };
        (code, value)
    };
    let (mut device, mut managed) = (0u64, 0u64);
    let mut own = vec![0u8; 64];
    let own_address = own.as_mut_ptr() as u64;
    // SAFETY: places for addresses, and memory that stays as long as it is registered.
    unsafe {
        done(sys::cuMemAlloc_v2(&mut device, 100));
        done(sys::cuMemAllocManaged(&mut managed, 100, 1));
        done(sys::cuMemHostRegister_v2(own.as_mut_ptr().cast(), 64, 0));
        let twice = sys::cuMemHostRegister_v2(own.as_mut_ptr().add(8).cast(), 8, 0);
        assert_eq!(twice, sys::CUresult::CUDA_ERROR_HOST_MEMORY_ALREADY_REGISTERED);
    }
    let success = sys::CUresult::CUDA_SUCCESS;
    for (address, kind, is_managed, size) in
        [(device, 2, 0, 100), (managed, 2, 1, 100), (own_address, 1, 0, 64)]
    {
        assert_eq!(ask(CU_POINTER_ATTRIBUTE_MEMORY_TYPE, address), (success, kind));
        assert_eq!(ask(CU_POINTER_ATTRIBUTE_IS_MANAGED, address + 8), (success, is_managed));
        assert_eq!(ask(CU_POINTER_ATTRIBUTE_RANGE_SIZE, address + 8), (success, size));
    }
    // SAFETY: registered and allocated above.
    unsafe {
        done(sys::cuMemHostUnregister(own.as_mut_ptr().cast()));
        assert_eq!(
            sys::cuMemHostUnregister(own.as_mut_ptr().cast()),
            sys::CUresult::CUDA_ERROR_HOST_MEMORY_NOT_REGISTERED
        );
        done(sys::cuMemFree_v2(device));
        done(sys::cuMemFree_v2(managed));
    }
    let unknown = ask(CU_POINTER_ATTRIBUTE_MEMORY_TYPE, own_address).0;
    assert_eq!(unknown, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
}

/// Doubles the word at the address that it is given, by a function and a variable of another text.
const CALLER: &str = ".version 9.0\n.target sm_80\n.address_size 64\n\
    .extern .func (.param .b32 r) scale (.param .b32 n);\n.extern .global .align 4 .u32 factor;\n\
    .visible .entry apply(.param .u32 pad, .param .u64 p)\n{\n.reg .b32 %w<4>;\n.reg .b64 %d<3>;\n\
    ld.param.u64 %d1, [p];\nld.global.u32 %w1, [%d1];\n{\n.param .b32 a;\n.param .b32 r;\nst.param.b32 [a], %w1;\n\
    call.uni (r), scale, (a);\nld.param.b32 %w2, [r];\n}\nld.global.u32 %w3, [factor];\nadd.u32 %w2, %w2, %w3;\n\
    st.global.u32 [%d1], %w2;\nret;\n}\n";
const CALLED: &str = ".version 9.0\n.target sm_80\n.address_size 64\n.visible .global .align 4 .u32 factor = 3;\n\
    .visible .func (.param .b32 r) scale (.param .b32 n)\n{\n.reg .b32 %w<4>;\nld.param.b32 %w1, [n];\n\
    ld.global.u32 %w2, [factor];\nmul.lo.u32 %w1, %w1, %w2;\nst.param.b32 [r], %w1;\nret;\n}\n";

#[test]
fn texts_are_linked_loaded_as_a_library_and_launched_with_packed_arguments_and_in_graphs() {
    let _turn = turn();
    let _gpu = vgpu::load().unwrap();
    let context = context();
    let stream = context.default_stream();
    let (mut link, mut image, mut size) = (std::ptr::null_mut(), std::ptr::null_mut(), 0usize);
    let (mut library, mut kernel, mut function) =
        (std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut());
    let (mut word, mut at) = (5u32, 0u64);
    fn null<T>() -> *mut T {
        std::ptr::null_mut()
    }
    // SAFETY: texts that end in 0, places for all answers, and arguments laid out as the kernel's parameters.
    unsafe {
        done(sys::cuLinkCreate_v2(0, null(), null(), &mut link));
        for text in [CALLER, CALLED] {
            let text = std::ffi::CString::new(text).unwrap();
            let (data, size) = (text.as_ptr() as *mut std::ffi::c_void, text.as_bytes_with_nul().len());
            let kind = sys::CUjitInputType::CU_JIT_INPUT_PTX;
            done(sys::cuLinkAddData_v2(link, kind, data, size, c"part".as_ptr(), 0, null(), null()));
        }
        // Machine code has nothing that could be run here.
        let code = sys::cuLinkAddData_v2(
            link,
            sys::CUjitInputType::CU_JIT_INPUT_CUBIN,
            c"ELF".as_ptr() as *mut std::ffi::c_void,
            3,
            c"code".as_ptr(),
            0,
            null(),
            null(),
        );
        assert_eq!(code, sys::CUresult::CUDA_ERROR_NO_BINARY_FOR_GPU);
        done(sys::cuLinkComplete(link, &mut image, &mut size));
        done(sys::cuLibraryLoadData(&mut library, image, null(), null(), 0, null(), null(), 0));
        done(sys::cuLinkDestroy(link));
        done(sys::cuLibraryGetKernel(&mut kernel, library, c"apply".as_ptr()));
        done(sys::cuKernelGetFunction(&mut function, kernel));
        let (mut name, mut offset, mut bytes) = (std::ptr::null(), 0usize, 0usize);
        done(sys::cuKernelGetName(&mut name, kernel));
        assert_eq!(std::ffi::CStr::from_ptr(name), c"apply");
        done(sys::cuFuncGetParamInfo(function, 1, &mut offset, &mut bytes));
        assert_eq!((offset, bytes), (8, 8));
        done(sys::cuMemAlloc_v2(&mut at, 4));
        done(sys::cuMemcpyHtoD_v2(at, (&raw const word).cast(), 4));
        let mut buffer = [0u64, at];
        let mut sizes = [16usize, 8];
        let (key, end) = (|number: usize| number as *mut std::ffi::c_void, null());
        let mut extra = [key(1), buffer.as_mut_ptr().cast(), key(2), (&raw mut sizes[0]).cast(), end];
        let stream = stream.cu_stream();
        done(sys::cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, null(), extra.as_mut_ptr()));
        extra[3] = (&raw mut sizes[1]).cast();
        let short = sys::cuLaunchKernel(function, 1, 1, 1, 1, 1, 1, 0, stream, null(), extra.as_mut_ptr());
        assert_eq!(short, sys::CUresult::CUDA_ERROR_INVALID_VALUE);
        let (mut graph, mut node, mut whole) = (null(), null(), null());
        done(sys::cuGraphCreate(&mut graph, 0));
        let mut pad = 0u32;
        let mut arguments = [(&raw mut pad).cast::<std::ffi::c_void>(), (&raw mut at).cast()];
        let mut launch: sys::CUDA_KERNEL_NODE_PARAMS_v2 = std::mem::zeroed();
        launch.func = function;
        (launch.gridDimX, launch.gridDimY, launch.gridDimZ) = (1, 1, 1);
        (launch.blockDimX, launch.blockDimY, launch.blockDimZ) = (1, 1, 1);
        launch.kernelParams = arguments.as_mut_ptr();
        done(sys::cuGraphAddKernelNode_v2(&mut node, graph, null(), 0, &launch));
        done(sys::cuGraphInstantiateWithFlags(&mut whole, graph, 0));
        done(sys::cuGraphLaunch(whole, stream));
        done(sys::cuGraphLaunch(whole, stream));
        done(sys::cuMemcpyDtoH_v2((&raw mut word).cast(), at, 4));
        done(sys::cuMemFree_v2(at));
        done(sys::cuLibraryUnload(library));
    }
    // Three times 3 n + 3.
    assert_eq!(word, ((5 * 3 + 3) * 3 + 3) * 3 + 3);
}
