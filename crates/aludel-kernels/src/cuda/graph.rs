//! Makes a graph of operations, which a stream is given by one call: with [`super::driver`], [`super::products`] and [`super::collective`] the only file of
//! this folder with `unsafe`.
//!
//! In: operations, each after the one before. Out: the same as a graph of the driver's: kernels as nodes of their own, which can be told other things
//! later; everything else as what a stream that writes it down makes of it.
#![expect(unsafe_code, reason = "graphs are the driver's")]

use std::ffi::c_void;
use std::sync::Arc;

use cudarc::driver::{CudaContext, CudaStream, DriverError, result, sys};

use super::CudaError;
use super::driver::{driver, submit};
use super::operation::{Argument, Grid, Operation};

/// Operations as the driver has them.
#[derive(Debug)]
pub(super) struct Graph {
    /// What the nodes were told last; kernels that they are of stay loaded by it.
    operations: Vec<Operation>,
    nodes: Vec<sys::CUgraphNode>,
    drawn: Drawn,
    executable: sys::CUgraphExec,
}

// SAFETY: a graph may be used by any thread, by one at a time, and all its uses take it by `&mut`, or are a launch under the lock of the queue that owns it.
unsafe impl Send for Graph {}

/// A graph that is only a description.
#[derive(Debug)]
struct Drawn {
    graph: sys::CUgraph,
    context: Arc<CudaContext>,
}

impl Graph {
    /// A graph of operations, or they again where the driver makes none. `writer` is a stream of the calling thread's device that nobody else uses.
    pub(super) fn of(writer: &CudaStream, operations: Vec<Operation>) -> Result<Self, Vec<Operation>> {
        match Self::made(writer, &operations) {
            Ok((nodes, drawn, executable)) => Ok(Self { operations, nodes, drawn, executable }),
            Err(_) => Err(operations),
        }
    }

    fn made(
        writer: &CudaStream,
        operations: &[Operation],
    ) -> Result<(Vec<sys::CUgraphNode>, Drawn, sys::CUgraphExec), CudaError> {
        let failed = driver("make a graph");
        let drawn = Drawn::empty(writer).map_err(&failed)?;
        let mut nodes: Vec<sys::CUgraphNode> = Vec::with_capacity(operations.len());
        for operation in operations {
            let before = nodes.last().copied();
            nodes.push(match operation {
                Operation::Launch { kernel, grid, arguments } => {
                    let mut places = Argument::places(arguments);
                    let told = told(kernel.raw(), *grid, &mut places);
                    drawn.add_kernel(before, &told).map_err(&failed)?
                }
                other => drawn.add(before, &written(writer, other)?).map_err(&failed)?,
            });
        }
        let mut executable = std::ptr::null_mut();
        // SAFETY: the graph was made above, and the handle is written before it is read.
        unsafe { sys::cuGraphInstantiateWithFlags(&raw mut executable, drawn.graph, 0).result() }
            .map_err(&failed)?;
        Ok((nodes, drawn, executable))
    }

    /// What it was told last.
    pub(super) fn operations(&self) -> &[Operation] {
        &self.operations
    }

    /// Whether the operations differ from its own by no more than what kernels are told.
    pub(super) fn has_form_of(&self, operations: &[Operation]) -> bool {
        let mut pairs = self.operations.iter().zip(operations);
        self.operations.len() == operations.len() && pairs.all(|(own, other)| own.has_form_of(other))
    }

    /// Takes operations of its own form, and says how many were told something else; gives them back where the driver refuses, and is of no use then.
    pub(super) fn update(&mut self, operations: Vec<Operation>) -> Result<u64, Vec<Operation>> {
        let mut updates = 0;
        for ((node, own), other) in self.nodes.iter().zip(&self.operations).zip(&operations) {
            let (
                Operation::Launch { grid: own_grid, arguments: own, .. },
                Operation::Launch { kernel, grid, arguments },
            ) = (own, other)
            else {
                continue;
            };
            if (own_grid, own) != (grid, arguments) {
                let mut places = Argument::places(arguments);
                let told = told(kernel.raw(), *grid, &mut places);
                // SAFETY: the node is a kernel's and of this graph; the parameters live on until the call returns, which copies them.
                let updated = unsafe {
                    sys::cuGraphExecKernelNodeSetParams_v2(self.executable, *node, &raw const told).result()
                };
                if updated.is_err() {
                    return Err(operations);
                }
                updates += 1;
            }
        }
        self.operations = operations;
        Ok(updates)
    }

    /// Submits it to the stream that its operations are for; not waited for.
    pub(super) fn launch(&self, stream: &CudaStream) -> Result<(), CudaError> {
        // SAFETY: its operations are those that the stream would be told one by one, on blocks that are given back in the stream's order.
        unsafe { result::graph::launch(self.executable, stream.cu_stream()) }
            .map_err(driver("launch a graph"))
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        if self.drawn.context.bind_to_thread().is_ok() {
            // SAFETY: made by `Graph::of`, and destroyed once; the driver lets launches that are under way end.
            let _ = unsafe { result::graph::exec_destroy(self.executable) };
        }
    }
}

impl Drawn {
    fn empty(stream: &CudaStream) -> Result<Self, DriverError> {
        let mut graph = std::ptr::null_mut();
        // SAFETY: the handle is written before it is read.
        unsafe { sys::cuGraphCreate(&raw mut graph, 0).result()? };
        Ok(Self { graph, context: Arc::clone(stream.context()) })
    }

    /// Adds a kernel after a node.
    fn add_kernel(
        &self,
        before: Option<sys::CUgraphNode>,
        told: &sys::CUDA_KERNEL_NODE_PARAMS,
    ) -> Result<sys::CUgraphNode, DriverError> {
        let mut node = std::ptr::null_mut();
        let (before, count) = (before.as_slice().as_ptr(), before.as_slice().len());
        // SAFETY: the node before is of this graph, and the parameters live on until the call returns, which copies them.
        unsafe { sys::cuGraphAddKernelNode_v2(&raw mut node, self.graph, before, count, told).result()? };
        Ok(node)
    }

    /// Adds a graph as a part after a node; it is copied.
    fn add(&self, before: Option<sys::CUgraphNode>, part: &Self) -> Result<sys::CUgraphNode, DriverError> {
        let mut node = std::ptr::null_mut();
        let (before, count) = (before.as_slice().as_ptr(), before.as_slice().len());
        // SAFETY: the node before is of this graph, and the part is another.
        unsafe {
            sys::cuGraphAddChildGraphNode(&raw mut node, self.graph, before, count, part.graph).result()?;
        }
        Ok(node)
    }
}

impl Drop for Drawn {
    fn drop(&mut self) {
        if self.context.bind_to_thread().is_ok() {
            // SAFETY: made by `Drawn::empty` or `written`, and destroyed once.
            let _ = unsafe { result::graph::destroy(self.graph) };
        }
    }
}

/// An operation as a stream writes it down instead of doing it.
fn written(writer: &CudaStream, operation: &Operation) -> Result<Drawn, CudaError> {
    let failed = driver("write an operation down");
    let only_here = sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL;
    // SAFETY: nothing else is submitted to the writer, and nothing is done: the graph that the writing ends with has the operation once.
    let (submitted, graph) = unsafe {
        result::stream::begin_capture(writer.cu_stream(), only_here).map_err(&failed)?;
        let submitted = submit(writer, operation);
        (submitted, result::stream::end_capture(writer.cu_stream()).map_err(&failed)?)
    };
    let drawn = Drawn { graph, context: Arc::clone(writer.context()) };
    submitted.map(|()| drawn)
}

/// What a node of a kernel is told. The places are read by the driver alone, as long as it is used.
fn told(kernel: sys::CUfunction, grid: Grid, places: &mut [*mut c_void]) -> sys::CUDA_KERNEL_NODE_PARAMS {
    let Grid { blocks: [x, y, z], threads, shared } = grid;
    sys::CUDA_KERNEL_NODE_PARAMS {
        func: kernel,
        gridDimX: x,
        gridDimY: y,
        gridDimZ: z,
        blockDimX: threads,
        blockDimY: 1,
        blockDimZ: 1,
        sharedMemBytes: shared,
        kernelParams: places.as_mut_ptr(),
        extra: std::ptr::null_mut(),
        kern: std::ptr::null_mut(),
        ctx: std::ptr::null_mut(),
    }
}
