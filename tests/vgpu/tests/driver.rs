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
fn compressed_ptx_in_a_fatbin_is_refused_with_209() {
    let _turn = turn();
    let gpu = vgpu::load().unwrap();
    if !gpu.is_virtual() {
        return;
    }
    let Some(path) = fatbin("compressed.fatbin", &["--compress-mode=size"]) else { return };
    let error = context().load_module(Ptx::from_file(&path)).map(|_| ()).unwrap_err();
    assert_eq!(code(error), 209);
    gpu.finish();
}
