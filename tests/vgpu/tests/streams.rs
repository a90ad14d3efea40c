//! Work on several streams, launches with attributes, and tensor maps, through the driver's own functions: what is ordered
//! passes, what is not is reported.

use std::ffi::c_void;
use std::ptr::null_mut;
use std::sync::{Mutex, MutexGuard, PoisonError};

use cudarc::driver::sys::{
    self as cu, CUdeviceptr, CUevent, CUfunction, CUlaunchAttribute, CUlaunchAttributeID,
    CUlaunchAttributeValue, CUlaunchConfig, CUmodule, CUresult, CUstream,
};
use vgpu::check::Check;
use vgpu::memory::{Concurrent, Stretch};
use vgpu::{Change, Gpu};

/// `fill` writes a number to 64 words, `add` adds it, `add_behind` waits for earlier grids first, `rank` writes each block's
/// rank in its cluster. `add_by_one` waits by one thread
/// and a barrier. `add_too_early` and `fill_too_early` read and write before they wait; `let_others` lets dependent grids
/// begin before it waits and adds.
const KERNELS: &str = "\
.version 8.0\n.target sm_90\n.address_size 64\n\
.visible .entry fill(.param .u64 p, .param .u32 v)\n{\n.reg .b32 %r<4>;\n.reg .b64 %d<4>;\nld.param.u64 %d1, [p];\n\
ld.param.u32 %r2, [v];\nmov.u32 %r1, %tid.x;\nadd.u32 %r2, %r2, %r1;\nmul.wide.u32 %d2, %r1, 4;\nadd.s64 %d1, %d1, %d2;\n\
st.global.u32 [%d1], %r2;\nret;\n}\n\
.visible .entry add(.param .u64 p, .param .u32 v)\n{\n.reg .b32 %r<4>;\n.reg .b64 %d<4>;\nld.param.u64 %d1, [p];\n\
ld.param.u32 %r2, [v];\nmov.u32 %r1, %tid.x;\nmul.wide.u32 %d2, %r1, 4;\nadd.s64 %d1, %d1, %d2;\n\
ld.global.u32 %r3, [%d1];\nadd.u32 %r3, %r3, %r2;\nst.global.u32 [%d1], %r3;\nret;\n}\n\
.visible .entry add_behind(.param .u64 p, .param .u32 v)\n{\n.reg .b32 %r<4>;\n.reg .b64 %d<4>;\nld.param.u64 %d1, [p];\n\
ld.param.u32 %r2, [v];\nmov.u32 %r1, %tid.x;\nmul.wide.u32 %d2, %r1, 4;\nadd.s64 %d1, %d1, %d2;\n\
griddepcontrol.wait;\nld.global.u32 %r3, [%d1];\nadd.u32 %r3, %r3, %r2;\nst.global.u32 [%d1], %r3;\n\
griddepcontrol.launch_dependents;\nret;\n}\n\
.visible .entry add_by_one(.param .u64 p, .param .u32 v)\n{\n.reg .b32 %r<4>;\n.reg .b64 %d<4>;\n.reg .pred %q;\n\
ld.param.u64 %d1, [p];\nld.param.u32 %r2, [v];\nmov.u32 %r1, %tid.x;\nmul.wide.u32 %d2, %r1, 4;\nadd.s64 %d1, %d1, %d2;\n\
setp.eq.u32 %q, %r1, 40;\n@%q griddepcontrol.wait;\nbar.sync 0;\n\
ld.global.u32 %r3, [%d1];\nadd.u32 %r3, %r3, %r2;\nst.global.u32 [%d1], %r3;\nret;\n}\n\
.visible .entry add_too_early(.param .u64 p, .param .u32 v)\n{\n.reg .b32 %r<4>;\n.reg .b64 %d<4>;\nld.param.u64 %d1, [p];\n\
ld.param.u32 %r2, [v];\nmov.u32 %r1, %tid.x;\nmul.wide.u32 %d2, %r1, 4;\nadd.s64 %d1, %d1, %d2;\n\
ld.global.u32 %r3, [%d1];\ngriddepcontrol.wait;\nadd.u32 %r3, %r3, %r2;\nst.global.u32 [%d1], %r3;\nret;\n}\n\
.visible .entry fill_too_early(.param .u64 p, .param .u32 v)\n{\n.reg .b32 %r<4>;\n.reg .b64 %d<4>;\nld.param.u64 %d1, [p];\n\
ld.param.u32 %r2, [v];\nmov.u32 %r1, %tid.x;\nadd.u32 %r2, %r2, %r1;\nmul.wide.u32 %d2, %r1, 4;\nadd.s64 %d1, %d1, %d2;\n\
st.global.u32 [%d1], %r2;\ngriddepcontrol.wait;\nret;\n}\n\
.visible .entry let_others(.param .u64 p, .param .u32 v)\n{\n.reg .b32 %r<4>;\n.reg .b64 %d<4>;\nld.param.u64 %d1, [p];\n\
ld.param.u32 %r2, [v];\nmov.u32 %r1, %tid.x;\nmul.wide.u32 %d2, %r1, 4;\nadd.s64 %d1, %d1, %d2;\n\
griddepcontrol.launch_dependents;\ngriddepcontrol.wait;\nld.global.u32 %r3, [%d1];\nadd.u32 %r3, %r3, %r2;\n\
st.global.u32 [%d1], %r3;\nret;\n}\n\
.visible .entry rank(.param .u64 p)\n{\n.reg .b32 %r<4>;\n.reg .b64 %d<4>;\nld.param.u64 %d1, [p];\n\
mov.u32 %r1, %ctaid.x;\nmov.u32 %r2, %cluster_ctarank;\nmul.wide.u32 %d2, %r1, 4;\nadd.s64 %d1, %d1, %d2;\n\
st.global.u32 [%d1], %r2;\nret;\n}\n";

const ROOM: usize = 256;

/// One process has one device: tests take turns.
struct Turn {
    gpu: Gpu,
    fill: CUfunction,
    add: CUfunction,
    add_behind: CUfunction,
    rank: CUfunction,
    module: CUmodule,
    _turn: MutexGuard<'static, ()>,
}

fn ok(result: CUresult) {
    assert_eq!(result, CUresult::CUDA_SUCCESS);
}

impl Turn {
    /// None on a real device, whose own judgement these tests are not about.
    fn take() -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        // SAFETY: tests take turns, and no other thread reads the environment before this.
        unsafe { std::env::set_var("VGPU_PROFILE", "sm_90") };
        let gpu = vgpu::load().unwrap();
        if !gpu.is_virtual() {
            return None;
        }
        let text = std::ffi::CString::new(KERNELS).unwrap();
        let (mut context, mut module) = (null_mut(), null_mut());
        // SAFETY: the driver's functions get what they are documented to take.
        unsafe {
            ok(cu::cuInit(0));
            ok(cu::cuDevicePrimaryCtxRetain(&mut context, 0));
            ok(cu::cuCtxSetCurrent(context));
            ok(cu::cuModuleLoadData(&mut module, text.as_ptr().cast()));
        }
        let function = |name| function(module, name);
        let (fill, add) = (function(c"fill"), function(c"add"));
        Some(Self {
            gpu,
            fill,
            add,
            add_behind: function(c"add_behind"),
            rank: function(c"rank"),
            module,
            _turn: turn,
        })
    }

    /// The checks that failed since the last call; whatever they left behind is forgotten.
    fn found(&self) -> Vec<Check> {
        // SAFETY: no arguments.
        unsafe { cu::cuCtxSynchronize() };
        self.gpu.change(&Change { forget_error: true, ..Change::default() });
        let mut found: Vec<Check> = self.gpu.take_reports().into_iter().map(|report| report.check).collect();
        found.sort_unstable();
        found.dedup();
        found
    }
}

fn function(module: CUmodule, name: &std::ffi::CStr) -> CUfunction {
    let mut function = null_mut();
    // SAFETY: the module is loaded, and the name ends in 0.
    ok(unsafe { cu::cuModuleGetFunction(&mut function, module, name.as_ptr()) });
    function
}

fn stream(flags: u32) -> CUstream {
    let mut stream = null_mut();
    // SAFETY: room for one handle.
    ok(unsafe { cu::cuStreamCreate(&mut stream, flags) });
    stream
}

const BLOCKING: u32 = 0;
const NON_BLOCKING: u32 = 1;

fn memory() -> CUdeviceptr {
    let mut address = 0;
    // SAFETY: room for one address.
    ok(unsafe { cu::cuMemAlloc_v2(&mut address, ROOM) });
    address
}

fn attribute(id: CUlaunchAttributeID, set: impl FnOnce(&mut CUlaunchAttributeValue)) -> CUlaunchAttribute {
    // SAFETY: a launch attribute is plain data, for which zeros are valid.
    let mut attribute: CUlaunchAttribute = unsafe { std::mem::zeroed() };
    attribute.id = id;
    set(&mut attribute.value);
    attribute
}

fn config(blocks: u32, stream: CUstream, attributes: &mut [CUlaunchAttribute]) -> CUlaunchConfig {
    CUlaunchConfig {
        gridDimX: blocks,
        gridDimY: 1,
        gridDimZ: 1,
        blockDimX: if blocks == 1 { 64 } else { 1 },
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: 0,
        hStream: stream,
        attrs: attributes.as_mut_ptr(),
        numAttrs: attributes.len() as u32,
    }
}

/// Launches a kernel of one block on an address and a number; a failed check is for the caller to find.
fn launch(function: CUfunction, stream: CUstream, address: CUdeviceptr, value: u32, dependent: bool) {
    let mut attributes =
        [attribute(CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, |value| {
            value.programmaticStreamSerializationAllowed = i32::from(dependent)
        })];
    let config = config(1, stream, &mut attributes);
    let mut arguments: [*mut c_void; 2] = [(&raw const address) as _, (&raw const value) as _];
    // SAFETY: the kernels take an address and a word.
    unsafe { cu::cuLaunchKernelEx(&config, function, arguments.as_mut_ptr(), null_mut()) };
}

fn event() -> CUevent {
    let mut event = null_mut();
    // SAFETY: room for one handle.
    ok(unsafe { cu::cuEventCreate(&mut event, 0) });
    event
}

/// `second` waits for what `first` has so far.
fn wait(first: CUstream, second: CUstream) {
    let event = event();
    // SAFETY: handles that were just made.
    unsafe {
        ok(cu::cuEventRecord(event, first));
        ok(cu::cuStreamWaitEvent(second, event, 0));
    }
}

#[test]
fn a_launch_on_one_stream_and_copy_and_free_on_another() {
    let Some(turn) = Turn::take() else { return };
    let (one, other) = (stream(NON_BLOCKING), stream(NON_BLOCKING));
    for ordered in [false, true] {
        let mut host = [0u8; ROOM];
        let mut address = 0;
        // SAFETY: the copy stays within both sides.
        unsafe {
            ok(cu::cuMemAllocAsync(&mut address, ROOM, one));
            launch(turn.fill, one, address, 7, false);
            if ordered {
                wait(one, other);
            }
            cu::cuMemcpyDtoHAsync_v2(host.as_mut_ptr().cast(), address, ROOM, other);
            cu::cuMemFreeAsync(address, other);
        }
        let reports = turn.gpu.take_reports();
        let names: Vec<&str> = reports.iter().map(|report| report.kernel.as_str()).collect();
        let expected: &[&str] = if ordered { &[] } else { &["a copy to the host", "a free"] };
        assert_eq!(names, expected, "{reports:?}");
        assert!(
            reports.iter().all(|report| report.check == Check::StreamRace && report.detail.contains("fill"))
        );
        turn.found();
    }
}

#[test]
fn a_kernel_meets_a_fill_of_another_stream() {
    let Some(turn) = Turn::take() else { return };
    let (one, other) = (stream(NON_BLOCKING), stream(NON_BLOCKING));
    let address = memory();
    for (ordered, found) in [(false, vec![Check::StreamRace]), (true, vec![])] {
        let gone = memory();
        // SAFETY: the fill stays within the allocation; of the other, which is freed, nothing is used.
        unsafe {
            ok(cu::cuMemsetD8Async(address, 1, ROOM, one));
            // What is known of memory that is freed is forgotten, and nothing else.
            ok(cu::cuMemFreeAsync(gone, one));
        }
        if ordered {
            wait(one, other);
        }
        launch(turn.add, other, address, 2, false);
        assert_eq!(turn.found(), found);
    }
}

/// What is found among many stretches is what looking at each of them finds.
#[test]
fn a_stretch_among_many_is_found_where_one_meets_it() {
    let (mut state, mut met, mut missed) = (1u64, 0, 0);
    let mut draw = |most: u64| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 33) % most
    };
    for _ in 0..2000 {
        let mut stretch = || Stretch { start: draw(200), bytes: 1 + draw(20) as usize, write: draw(2) == 1 };
        let (others, one): (Vec<Stretch>, Stretch) = ((0..6).map(|_| stretch()).collect(), stretch());
        let concurrent =
            Concurrent::new(vec![], others.iter().map(|other| (*other, "work".into())).collect());
        let expected = others.iter().any(|other| other.meets(&one));
        assert_eq!(concurrent.meets(&one).is_some(), expected, "{one:?} among {others:?}");
        *(if expected { &mut met } else { &mut missed }) += 1;
    }
    assert!(met > 400 && missed > 400, "{met} and {missed}");
}

#[test]
fn kernels_on_two_streams_need_an_event_between_them() {
    let Some(turn) = Turn::take() else { return };
    let (one, other) = (stream(NON_BLOCKING), stream(NON_BLOCKING));
    let address = memory();
    launch(turn.fill, one, address, 1, false);
    launch(turn.add, other, address, 2, false);
    assert_eq!(turn.found(), [Check::StreamRace]);
    launch(turn.fill, one, address, 3, false);
    wait(one, other);
    launch(turn.add, other, address, 4, false);
    assert_eq!(turn.found(), []);
    // The host's wait orders all that follows, and different memory needs no order.
    launch(turn.fill, one, address, 5, false);
    launch(turn.fill, other, memory(), 5, false);
    // SAFETY: a stream that was made above.
    ok(unsafe { cu::cuStreamSynchronize(one) });
    launch(turn.add, other, address, 6, false);
    assert_eq!(turn.found(), []);
}

#[test]
fn the_default_stream_waits_for_blocking_streams_alone() {
    let Some(turn) = Turn::take() else { return };
    for (flags, found) in [(BLOCKING, vec![]), (NON_BLOCKING, vec![Check::StreamRace])] {
        let (other, address) = (stream(flags), memory());
        launch(turn.fill, other, address, 1, false);
        launch(turn.add, null_mut(), address, 2, false);
        assert_eq!(turn.found(), found, "work on the default stream behind a stream of flags {flags}");
        launch(turn.fill, null_mut(), address, 9, false);
        launch(turn.add, other, address, 4, false);
        assert_eq!(turn.found(), found, "a stream of flags {flags} behind the default stream");
    }
}

#[test]
fn branches_of_a_graph_are_ordered_by_its_edges_alone() {
    let Some(turn) = Turn::take() else { return };
    for (joined, found) in [(true, vec![]), (false, vec![Check::StreamRace])] {
        let (one, other, address) = (stream(NON_BLOCKING), stream(NON_BLOCKING), memory());
        let (mut graph, mut executable) = (null_mut(), null_mut());
        // SAFETY: handles that were just made.
        unsafe {
            ok(cu::cuStreamBeginCapture_v2(one, cu::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED));
            launch(turn.fill, one, memory(), 1, false);
            wait(one, other);
            launch(turn.fill, other, address, 2, false);
            if joined {
                wait(other, one);
            }
            launch(turn.add, one, address, 3, false);
            wait(other, one);
            ok(cu::cuStreamEndCapture(one, &mut graph));
            ok(cu::cuGraphInstantiateWithFlags(&mut executable, graph, 0));
            cu::cuGraphLaunch(executable, one);
        }
        assert_eq!(turn.found(), found);
        // Behind the graph, its stream knows of all its branches.
        if joined {
            // SAFETY: as above.
            unsafe { cu::cuGraphLaunch(executable, one) };
            launch(turn.add, one, address, 4, false);
            assert_eq!(turn.found(), []);
        }
    }
}

#[test]
fn launches_that_may_begin_early_are_counted() {
    let Some(turn) = Turn::take() else { return };
    let (stream, address) = (stream(NON_BLOCKING), memory());
    turn.gpu.change(&Change { reset_counters: true, ..Change::default() });
    // The first depends on nothing, the plain ones wait for the end of all before them.
    for (function, dependent) in
        [(turn.fill, true), (turn.add_behind, true), (turn.add_behind, false), (turn.add_behind, true)]
    {
        launch(function, stream, address, 1, dependent);
    }
    assert_eq!(turn.found(), [Check::DependentTooEarly; 0]);
    let counters = turn.gpu.summary().expect("a summary").counters;
    let counted: Vec<_> =
        counters.iter().map(|one| (one.kernel.as_str(), one.launches, one.dependent_launches)).collect();
    assert_eq!(counted, [("fill", 1, 0), ("add_behind", 3, 2)]);
}

#[test]
fn a_dependent_launch_must_wait_before_it_reads() {
    let Some(turn) = Turn::take() else { return };
    let (stream, address) = (stream(NON_BLOCKING), memory());
    for (function, found) in [(turn.add_behind, vec![]), (turn.add, vec![Check::DependentTooEarly])] {
        launch(turn.fill, stream, address, 1, false);
        launch(function, stream, address, 2, true);
        assert_eq!(turn.found(), found);
        // In a graph likewise; its first launch depends on nothing.
        let (mut graph, mut executable) = (null_mut(), null_mut());
        // SAFETY: handles that were just made.
        unsafe {
            ok(cu::cuStreamBeginCapture_v2(stream, cu::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED));
            launch(turn.fill, stream, address, 1, true);
            launch(function, stream, address, 2, true);
            ok(cu::cuStreamEndCapture(stream, &mut graph));
            ok(cu::cuGraphInstantiateWithFlags(&mut executable, graph, 0));
            cu::cuGraphLaunch(executable, stream);
        }
        assert_eq!(turn.found(), found);
    }
}

/// What an order of execution makes of launches of which all but the first are dependent, on a stream and in a graph: word 5
/// of 64, each of which holds what a kernel made of its number.
fn word_behind(turn: &Turn, early: bool, in_graph: bool, launches: &[(CUfunction, u32)]) -> u32 {
    let (stream, address) = (stream(NON_BLOCKING), memory());
    let mut words = [0u32; ROOM / 4];
    turn.gpu.change(&Change { early: Some(early), ..Change::default() });
    // SAFETY: the fill stays within the allocation, and handles were just made.
    unsafe { ok(cu::cuMemsetD32Async(address, 1000, ROOM / 4, stream)) };
    let start = || {
        launches.iter().enumerate().for_each(|(place, &(function, value))| {
            launch(function, stream, address, value, place > 0);
        });
    };
    if in_graph {
        let (mut graph, mut executable) = (null_mut(), null_mut());
        // SAFETY: handles that were just made.
        unsafe {
            ok(cu::cuStreamBeginCapture_v2(stream, cu::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED));
            start();
            ok(cu::cuStreamEndCapture(stream, &mut graph));
            ok(cu::cuGraphInstantiateWithFlags(&mut executable, graph, 0));
            cu::cuGraphLaunch(executable, stream);
        }
    } else {
        start();
    }
    // SAFETY: the copy stays within both sides. A launch that a check failed has the copy fail first.
    unsafe {
        cu::cuStreamSynchronize(stream);
        ok(cu::cuMemcpyDtoH_v2(words.as_mut_ptr().cast(), address, ROOM));
    }
    turn.gpu.change(&Change { early: Some(false), ..Change::default() });
    let alike = |(at, &word): (usize, &u32)| [word, word.wrapping_sub(at as u32)].contains(&words[0]);
    assert!(words.iter().enumerate().all(alike), "{words:?}");
    words[5]
}

/// A dependent launch that begins before the grid before it: what waits stays right, what does not shows in the numbers.
#[test]
fn a_launch_that_begins_early_shows_in_its_numbers_what_it_does_before_its_wait() {
    let Some(turn) = Turn::take() else { return };
    let named = |name| function(turn.module, name);
    let (fill, late) = (turn.fill, turn.add_behind);
    let (by_one, peeks) = (named(c"add_by_one"), named(c"add_too_early"));
    let (overwritten, lets) = (named(c"fill_too_early"), named(c"let_others"));
    // Launches, word 5 by the order they were given in, by the early order, and whether today's check sees it in either.
    type Case<'a> = (&'a [(CUfunction, u32)], u32, u32, [bool; 2]);
    let cases: &[Case<'_>] = &[
        (&[(fill, 7), (late, 2)], 14, 14, [false, false]),
        (&[(fill, 7), (by_one, 2)], 14, 14, [false, false]),
        (
            &[(fill, 7), (late, 2), (lets, 3), (late, 4), (lets, 5), (lets, 6), (late, 7)],
            39,
            39,
            [false, false],
        ),
        // It adds to what was there before the fill.
        (&[(fill, 7), (peeks, 2)], 14, 1002, [true, false]),
        // The fill behind it in time overwrites it.
        (&[(fill, 7), (overwritten, 50)], 55, 12, [true, true]),
        // Behind a grid that lets it, it begins before the fill; behind one that does not, between the two.
        (&[(fill, 7), (lets, 2), (peeks, 3)], 17, 1003, [true, false]),
        (&[(fill, 7), (late, 2), (peeks, 3)], 17, 15, [true, true]),
    ];
    for (place, (launches, given, early, seen)) in cases.iter().enumerate() {
        for in_graph in [false, true] {
            for (begins, word, seen) in [(false, given, seen[0]), (true, early, seen[1])] {
                let found = word_behind(&turn, begins, in_graph, launches);
                assert_eq!(found, *word, "case {place}, early {begins}, graph {in_graph}");
                let expected: &[Check] = if seen { &[Check::DependentTooEarly] } else { &[] };
                assert_eq!(turn.found(), expected, "case {place}, early {begins}, graph {in_graph}");
            }
        }
    }
    // A launch that depends on nothing, one of another stream, and one behind a call that waits begin in their turn.
    turn.gpu.change(&Change { early: Some(true), ..Change::default() });
    let (one, other, address) = (stream(NON_BLOCKING), stream(NON_BLOCKING), memory());
    let word = || {
        let mut word = 0u32;
        // SAFETY: the copy stays within both sides.
        unsafe {
            ok(cu::cuCtxSynchronize());
            ok(cu::cuMemcpyDtoH_v2((&raw mut word).cast(), address, 4));
        }
        word
    };
    launch(fill, one, address, 1, false);
    launch(peeks, one, address, 2, false);
    assert_eq!(word(), 3, "no dependent launch");
    launch(fill, one, address, 10, false);
    wait(one, other);
    launch(peeks, other, address, 2, true);
    assert_eq!(word(), 12, "another stream");
    launch(fill, other, address, 20, false);
    // SAFETY: a stream that was made above.
    unsafe { ok(cu::cuStreamSynchronize(other)) };
    launch(peeks, other, address, 2, true);
    assert_eq!(word(), 22, "behind a wait of the host");
    turn.gpu.change(&Change { early: Some(false), ..Change::default() });
    assert_eq!(turn.found(), []);
}

/// Of a grid larger than the device, as many blocks begin early as fit; the others come in their turn.
#[test]
fn a_grid_that_begins_early_begins_with_what_fits() {
    let Some(turn) = Turn::take() else { return };
    const BLOCKS: u32 = 5000;
    let rank = turn.rank;
    let (stream, mut address) = (stream(NON_BLOCKING), 0);
    let mut words = vec![1u32; BLOCKS as usize];
    turn.gpu.change(&Change { early: Some(true), ..Change::default() });
    // SAFETY: the fills and copies stay within the allocation.
    unsafe {
        ok(cu::cuMemAlloc_v2(&mut address, 4 * words.len()));
        ok(cu::cuMemsetD32Async(address, 7, words.len(), stream));
    }
    launch(turn.fill, stream, memory(), 1, false);
    let mut attributes =
        [attribute(CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION, |value| {
            value.programmaticStreamSerializationAllowed = 1
        })];
    let config = config(BLOCKS, stream, &mut attributes);
    let mut arguments: [*mut c_void; 1] = [(&raw const address) as _];
    // SAFETY: the kernel takes an address and writes a word a block.
    unsafe {
        ok(cu::cuLaunchKernelEx(&config, rank, arguments.as_mut_ptr(), null_mut()));
        cu::cuStreamSynchronize(stream);
        ok(cu::cuMemcpyDtoH_v2(words.as_mut_ptr().cast(), address, 4 * words.len()));
    }
    turn.gpu.change(&Change { early: Some(false), ..Change::default() });
    assert!(words.iter().all(|&word| word == 0), "every block wrote");
    assert_eq!(turn.found(), [Check::DependentTooEarly], "it writes and never waits");
}

#[test]
fn clusters_are_attributes_of_a_launch() {
    let Some(turn) = Turn::take() else { return };
    let (stream, address) = (stream(BLOCKING), memory());
    let cluster = |x: u32| {
        attribute(CUlaunchAttributeID::CU_LAUNCH_ATTRIBUTE_CLUSTER_DIMENSION, |value| {
            value.clusterDim = cu::CUlaunchAttributeValue_union__bindgen_ty_1 { x, y: 1, z: 1 };
        })
    };
    let start = |blocks: u32, size: u32| {
        let mut attributes = [cluster(size)];
        let config = config(blocks, stream, &mut attributes);
        let mut arguments: [*mut c_void; 1] = [(&raw const address) as _];
        // SAFETY: the kernel takes an address and writes a word a block.
        unsafe { cu::cuLaunchKernelEx(&config, turn.rank, arguments.as_mut_ptr(), null_mut()) }
    };
    ok(start(8, 4));
    let mut ranks = [0u32; 8];
    // SAFETY: eight words were written.
    ok(unsafe { cu::cuMemcpyDtoH_v2(ranks.as_mut_ptr().cast(), address, 32) });
    assert_eq!(ranks, [0, 1, 2, 3, 0, 1, 2, 3]);
    let refused = CUresult::CUDA_ERROR_INVALID_CLUSTER_SIZE;
    assert_eq!(start(6, 4), refused, "clusters must divide the grid");
    assert_eq!(start(32, 16), refused, "more than eight blocks must be allowed first");
    let allow = cu::CUfunction_attribute::CU_FUNC_ATTRIBUTE_NON_PORTABLE_CLUSTER_SIZE_ALLOWED;
    // SAFETY: a function of a loaded module.
    ok(unsafe { cu::cuFuncSetAttribute(turn.rank, allow, 1) });
    ok(start(32, 16));
    // Blocks so large that one fills a multiprocessor: of eight, 15 clusters; of two, 66.
    for (size, most) in [(8, 15), (2, 66)] {
        let mut attributes = [cluster(size)];
        let config = CUlaunchConfig {
            blockDimX: 1024,
            sharedMemBytes: 40_000,
            ..config(128, stream, &mut attributes)
        };
        let mut count = 0;
        // SAFETY: room for one number.
        ok(unsafe { cu::cuOccupancyMaxActiveClusters(&mut count, turn.rank, &config) });
        assert_eq!(count / 2, most, "clusters of {size}, two blocks of 1,024 threads a multiprocessor");
    }
    assert_eq!(turn.found(), []);
}

#[test]
fn tensor_maps_have_the_limits_of_the_manual() {
    let Some(turn) = Turn::take() else { return };
    #[repr(align(64))]
    struct Place(cu::CUtensorMap);
    let address = memory();
    let encode = |address: u64, stride: u64, box_width: u32, swizzle| {
        // SAFETY: a map is plain data.
        let mut map = Place(unsafe { std::mem::zeroed() });
        let (sizes, strides, boxes, steps) = ([64u64, 2], [stride], [box_width, 2], [1u32, 1]);
        // SAFETY: two dimensions, of which all arrays tell.
        unsafe {
            cu::cuTensorMapEncodeTiled(
                &mut map.0,
                cu::CUtensorMapDataType::CU_TENSOR_MAP_DATA_TYPE_BFLOAT16,
                2,
                address as *mut c_void,
                sizes.as_ptr(),
                strides.as_ptr(),
                boxes.as_ptr(),
                steps.as_ptr(),
                cu::CUtensorMapInterleave::CU_TENSOR_MAP_INTERLEAVE_NONE,
                swizzle,
                cu::CUtensorMapL2promotion::CU_TENSOR_MAP_L2_PROMOTION_NONE,
                cu::CUtensorMapFloatOOBfill::CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE,
            )
        }
    };
    let (none, widest) = (
        cu::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_NONE,
        cu::CUtensorMapSwizzle::CU_TENSOR_MAP_SWIZZLE_128B,
    );
    ok(encode(address, 128, 64, widest));
    let refused = CUresult::CUDA_ERROR_INVALID_VALUE;
    assert_eq!(encode(address + 8, 128, 64, none), refused, "the address");
    assert_eq!(encode(address, 120, 64, none), refused, "the stride");
    assert_eq!(encode(address, 128, 257, none), refused, "the box");
    assert_eq!(encode(address, 128, 4, none), refused, "a row of 8 bytes");
    assert_eq!(encode(address, 128, 128, widest), refused, "a row wider than the span");
    assert_eq!(turn.found(), []);
}

/// With time kept, events tell the model's time: the same each time, what a stream was given added up, and of two streams the later.
#[test]
fn events_tell_the_time_of_the_model_where_it_is_kept() {
    let Some(turn) = Turn::take() else { return };
    let (one, other) = (stream(NON_BLOCKING), stream(NON_BLOCKING));
    let (address, elsewhere) = (memory(), memory());
    let recorded = |stream| {
        let event = event();
        // SAFETY: handles that were just made.
        ok(unsafe { cu::cuEventRecord(event, stream) });
        event
    };
    let between = |start, end| {
        let mut milliseconds = f32::NAN;
        // SAFETY: events that were recorded, and room for one number.
        ok(unsafe { cu::cuEventElapsedTime_v2(&mut milliseconds, start, end) });
        f64::from(milliseconds)
    };
    let fill = |stream| launch(turn.fill, stream, address, 1, false);
    turn.gpu.change(&Change { timing: Some(true), ..Change::default() });
    let of = |times: usize| {
        let start = recorded(one);
        (0..times).for_each(|_| fill(one));
        between(start, recorded(one))
    };
    let single = of(1);
    assert!(single > 1e-4 && single < 1e-2, "a launch by itself takes a microsecond or some: {single} ms");
    // Milliseconds of f32.
    let near = |found: f64, expected: f64| (found - expected).abs() <= 1e-6 * expected;
    assert!(near(of(1), single) && near(of(3), 3.0 * single), "{single}, {}", of(3));
    assert_eq!(of(0), 0.0);

    // Two streams side by side, joined: the longer one's time. Else the copy would add to it.
    let start = recorded(one);
    // SAFETY: handles that were made above.
    ok(unsafe { cu::cuStreamWaitEvent(other, start, 0) });
    (0..3).for_each(|_| fill(one));
    // SAFETY: the copy stays within the allocation.
    ok(unsafe { cu::cuMemcpyDtoDAsync_v2(elsewhere + 128, elsewhere, 64, other) });
    wait(other, one);
    assert!(near(between(start, recorded(one)), 3.0 * single));
    // A copy takes longer the more it copies.
    let copy = |bytes: usize| {
        let start = recorded(other);
        // SAFETY: the fill stays within the allocation.
        ok(unsafe { cu::cuMemsetD8Async(elsewhere, 0, bytes, other) });
        between(start, recorded(other))
    };
    assert!(copy(ROOM) > copy(1), "{} {}", copy(ROOM), copy(1));

    // A graph of the same: two kernels one behind the other.
    let (mut graph, mut executable) = (null_mut(), null_mut());
    // SAFETY: handles that were made above, and room for two more.
    unsafe {
        ok(cu::cuStreamBeginCapture_v2(one, cu::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_RELAXED));
        (0..2).for_each(|_| fill(one));
        ok(cu::cuStreamEndCapture(one, &mut graph));
        ok(cu::cuGraphInstantiateWithFlags(&mut executable, graph, 0));
    }
    let start = recorded(one);
    for _ in 0..2 {
        // SAFETY: a graph that was made above.
        ok(unsafe { cu::cuGraphLaunch(executable, one) });
    }
    assert!(near(between(start, recorded(one)), 4.0 * single));
    turn.gpu.change(&Change { timing: Some(false), ..Change::default() });
    assert_eq!(turn.found(), []);
}
