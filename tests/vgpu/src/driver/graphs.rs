//! Graphs that a program makes node by node. Nodes run in the order they were added, which every order of their dependencies
//! allows, one behind the other.

use std::ffi::c_void;

use super::launch::Launch;
use super::pitched::{Copy3, works_of};
use super::state::{Node, Work, state};
use super::{exported, give};
use crate::codes::*;

/// `CUDA_KERNEL_NODE_PARAMS_v2`; the first form ends before the last two.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct KernelNode {
    function: usize,
    grid: [u32; 3],
    block: [u32; 3],
    shared: u32,
    arguments: *const *const u8,
    extra: *const *const u8,
}

/// `CUDA_MEMSET_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct FillNode {
    start: u64,
    pitch: usize,
    value: u32,
    size: u32,
    width: usize,
    height: usize,
}

/// `CUDA_HOST_NODE_PARAMS`.
#[repr(C)]
#[derive(Clone, Copy)]
pub(crate) struct CallNode {
    function: usize,
    data: usize,
}

/// Adds work to a graph as one node.
fn add(to: *mut usize, graph: usize, works: Vec<Work>) -> Result<(), u32> {
    let mut state = state();
    let node = state.handle();
    let nodes = state.graphs.get_mut(&graph).ok_or(INVALID_VALUE)?;
    nodes.extend(works.into_iter().map(|work| Node::Work(0, work)));
    give(to, node)
}

fn kernel(to: *mut usize, graph: usize, node: *const KernelNode) -> Result<(), u32> {
    if node.is_null() {
        return Err(INVALID_VALUE);
    }
    // SAFETY: not null, and a CUDA_KERNEL_NODE_PARAMS by the C signature, of which the first form is all that is read.
    let node = unsafe { node.read_unaligned() };
    let launch = Launch {
        function: node.function,
        grid: node.grid,
        block: node.block,
        shared: node.shared,
        stream: 0,
        arguments: node.arguments,
        extra: node.extra,
        cooperative: false,
        cluster: None,
        dependent: false,
    };
    add(to, graph, vec![launch.work()?])
}

exported! {
    fn cuGraphCreate(to: *mut usize, _flags: u32) {
        let mut state = state();
        let graph = state.handle();
        state.graphs.insert(graph, Vec::new());
        give(to, graph)
    }
    fn cuGraphAddKernelNode(to: *mut usize, graph: usize, _before: *const usize, _count: usize, node: *const KernelNode) {
        kernel(to, graph, node)
    }
    fn cuGraphAddKernelNode_v2(to: *mut usize, graph: usize, _before: *const usize, _count: usize, node: *const KernelNode) {
        kernel(to, graph, node)
    }
    fn cuGraphAddMemcpyNode(
        to: *mut usize,
        graph: usize,
        _before: *const usize,
        _count: usize,
        copy: *const Copy3,
        _context: usize,
    ) {
        add(to, graph, works_of(copy)?)
    }
    fn cuGraphAddMemsetNode(
        to: *mut usize,
        graph: usize,
        _before: *const usize,
        _count: usize,
        node: *const FillNode,
        _context: usize,
    ) {
        if node.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: not null, and a CUDA_MEMSET_NODE_PARAMS by the C signature.
        let node = unsafe { node.read_unaligned() };
        let size = match node.size {
            1 | 2 | 4 => node.size as usize,
            _ => return Err(INVALID_VALUE),
        };
        let pattern = &node.value.to_le_bytes()[..size];
        let rows = (0..node.height).map(|row| Work::Fill {
            address: node.start + (row * node.pitch) as u64,
            pattern: pattern.to_vec(),
            count: node.width,
        });
        add(to, graph, rows.collect())
    }
    fn cuGraphAddHostNode(to: *mut usize, graph: usize, _before: *const usize, _count: usize, node: *const CallNode) {
        if node.is_null() {
            return Err(INVALID_VALUE);
        }
        // SAFETY: not null, and a CUDA_HOST_NODE_PARAMS by the C signature.
        let CallNode { function, data } = unsafe { node.read_unaligned() };
        add(to, graph, vec![Work::Call { function, data }])
    }
    fn cuGraphAddEmptyNode(to: *mut usize, graph: usize, _before: *const usize, _count: usize) {
        add(to, graph, Vec::new())
    }
    fn cuGraphAddDependencies_v2(
        graph: usize,
        _from: *const usize,
        _to: *const usize,
        _edges: *const c_void,
        _count: usize,
    ) {
        if state().graphs.contains_key(&graph) { Ok(()) } else { Err(INVALID_VALUE) }
    }
}
