use std::ffi::c_void;
use std::mem::MaybeUninit;

use cudarc::driver::sys::{self, CUdeviceptr, CUgraph, CUgraphExec, CUgraphNode, CUmemorytype};
use cudarc::driver::{CudaEvent, CudaSlice, DevicePtr, DriverError, PinnedHostSlice, result};

use super::driver::{GraphStep, GraphWork, block_of};
use super::gpu::{GpuDriver, words};

/// A CUDA graph, a chain of its steps, and its rooms.
///
/// What goes in is copied to the GPU beforehand, on a stream of its own, while earlier work goes on; in the graph it is
/// copied from there.
pub struct GpuGraph {
    handles: Handles,
    nodes: Vec<CUgraphNode>,
    /// With room for one number at least, as the next two: these are the lengths that are wanted.
    rooms: [usize; 2],
    staging: PinnedHostSlice<f32>,
    staged: CudaSlice<f32>,
    results: PinnedHostSlice<f32>,
    /// The copy of what goes in has been, and the graph.
    copied: CudaEvent,
    done: CudaEvent,
    /// Whether the last replay has not been waited for.
    pending: bool,
}

/// The graph, and what is launched of it.
struct Handles {
    graph: CUgraph,
    executable: CUgraphExec,
}

// SAFETY: handles of the driver, which may be used from any thread that has bound the context, one at a time.
unsafe impl Send for GpuGraph {}

impl Drop for GpuGraph {
    /// The host's memory that copies of a replay still use goes with it.
    fn drop(&mut self) {
        // An error means that the context is gone, and the copies with it.
        let _ = self.wait();
    }
}

impl Drop for Handles {
    fn drop(&mut self) {
        // SAFETY: made by `GpuDriver::make_graph`, null if that broke off, and not used any more; the driver keeps what
        // still runs. An error here means that the context is gone, and they with it.
        unsafe {
            if !self.executable.is_null() {
                let _ = sys::cuGraphExecDestroy(self.executable);
            }
            if !self.graph.is_null() {
                let _ = sys::cuGraphDestroy(self.graph);
            }
        }
    }
}

const BYTES: usize = size_of::<f32>();

/// A copy of `len` numbers.
fn copy_of(from: CUdeviceptr, to: Result<CUdeviceptr, *mut c_void>, len: usize) -> sys::CUDA_MEMCPY3D {
    // SAFETY: a structure of numbers and pointers, for which zero says "not there".
    let mut copy: sys::CUDA_MEMCPY3D = unsafe { MaybeUninit::zeroed().assume_init() };
    copy.srcMemoryType = CUmemorytype::CU_MEMORYTYPE_DEVICE;
    copy.srcDevice = from;
    match to {
        Ok(device) => {
            copy.dstMemoryType = CUmemorytype::CU_MEMORYTYPE_DEVICE;
            copy.dstDevice = device;
        }
        Err(host) => {
            copy.dstMemoryType = CUmemorytype::CU_MEMORYTYPE_HOST;
            copy.dstHost = host;
        }
    }
    copy.WidthInBytes = len * BYTES;
    (copy.Height, copy.Depth) = (1, 1);
    copy
}

impl GpuDriver {
    /// Calls `work` with a launch's parameters.
    fn with_parameters<R>(
        &self,
        memory: &CudaSlice<f32>,
        step: &GraphStep<'_>,
        work: impl FnOnce(&sys::CUDA_KERNEL_NODE_PARAMS) -> R,
    ) -> Option<R> {
        let GraphWork::Launch { kernel, grid, shared } = step.work else { return None };
        let (mut arena, _guard) = memory.device_ptr(&self.stream);
        let mut parameters: [*mut c_void; 2] =
            [std::ptr::from_mut(&mut arena).cast(), step.arguments.as_ptr().cast_mut().cast()];
        // SAFETY: a structure of numbers and pointers, for which zero says "not there".
        let mut node: sys::CUDA_KERNEL_NODE_PARAMS = unsafe { MaybeUninit::zeroed().assume_init() };
        node.func = self.module.functions[kernel as usize];
        [node.gridDimX, node.gridDimY, node.gridDimZ] = grid;
        let (threads, shared) = block_of(kernel, shared);
        [node.blockDimX, node.blockDimY, node.blockDimZ] = [threads, 1, 1];
        node.sharedMemBytes = shared;
        node.kernelParams = parameters.as_mut_ptr();
        Some(work(&node))
    }

    /// See [`super::Driver::graph`].
    pub(super) unsafe fn make_graph(
        &self,
        memory: &CudaSlice<f32>,
        steps: &[GraphStep<'_>],
    ) -> Result<GpuGraph, DriverError> {
        let context = &self.module.context;
        context.bind_to_thread()?;
        let rooms = GraphStep::rooms(steps);
        let [staging, results] = rooms.map(|len| {
            // SAFETY: written before it is read: the staging by the caller, before a replay, the results by the replay.
            unsafe { context.alloc_pinned_with_flags::<f32>(len.max(1), 0) }
        });
        let (staging, mut results) = (staging?, results?);
        let staged = self.stream.alloc_zeros::<f32>(staging.len())?;
        let mut handles = Handles { graph: std::ptr::null_mut(), executable: std::ptr::null_mut() };
        // SAFETY: writes the handle.
        unsafe { sys::cuGraphCreate(&mut handles.graph, 0) }.result()?;
        let (arena, _guard) = memory.device_ptr(&self.stream);
        let (source, _staged_guard) = staged.device_ptr(&self.stream);
        let host = results.as_mut_ptr()?;
        let mut nodes: Vec<CUgraphNode> = Vec::with_capacity(steps.len());
        for step in steps {
            let (graph, mut node) = (handles.graph, std::ptr::null_mut());
            let after = nodes.last().map_or(std::ptr::null(), std::ptr::from_ref);
            let count = usize::from(!nodes.is_empty());
            let added = match step.work {
                GraphWork::Launch { .. } => self
                    .with_parameters(memory, step, |parameters| {
                        // SAFETY: the caller's promise; the driver copies the parameters.
                        unsafe { sys::cuGraphAddKernelNode_v2(&mut node, graph, after, count, parameters) }
                    })
                    .unwrap_or(sys::CUresult::CUDA_ERROR_INVALID_VALUE),
                GraphWork::Write { from, offset, len } => {
                    let copy = copy_of(source + (from * BYTES) as u64, Ok(arena + (offset * BYTES) as u64), len);
                    // SAFETY: from this graph's room to the memory, as the caller promises.
                    unsafe { sys::cuGraphAddMemcpyNode(&mut node, graph, after, count, &copy, context.cu_ctx()) }
                }
                GraphWork::Read { offset, to, len } => {
                    // SAFETY: inside the room, whose size was taken from the steps.
                    let to = unsafe { host.add(to) }.cast::<c_void>();
                    let copy = copy_of(arena + (offset * BYTES) as u64, Err(to), len);
                    // SAFETY: from the memory to this graph's room.
                    unsafe { sys::cuGraphAddMemcpyNode(&mut node, graph, after, count, &copy, context.cu_ctx()) }
                }
            };
            added.result()?;
            nodes.push(node);
        }
        // SAFETY: a whole graph.
        unsafe { sys::cuGraphInstantiateWithFlags(&mut handles.executable, handles.graph, 0) }.result()?;
        // The room on the GPU was filled with zeros on this stream, and is written on another.
        self.stream.synchronize()?;
        let [copied, done] = [context.new_event(None)?, context.new_event(None)?];
        drop((_guard, _staged_guard));
        Ok(GpuGraph { handles, nodes, rooms, staging, staged, results, copied, done, pending: false })
    }

    /// See [`super::Driver::change`].
    pub(super) unsafe fn change_graph(
        &self,
        memory: &CudaSlice<f32>,
        graph: &mut GpuGraph,
        index: usize,
        step: &GraphStep<'_>,
    ) -> Result<(), DriverError> {
        self.module.context.bind_to_thread()?;
        let changed = self.with_parameters(memory, step, |parameters| {
            // SAFETY: a launch of the same kernel, with the caller's promise; the driver copies the parameters.
            unsafe { sys::cuGraphExecKernelNodeSetParams_v2(graph.handles.executable, graph.nodes[index], parameters) }
        });
        changed.unwrap_or(sys::CUresult::CUDA_ERROR_INVALID_VALUE).result()
    }

    /// See [`super::Driver::replay`].
    pub(super) unsafe fn replay_graph(&self, graph: &mut GpuGraph) -> Result<(), DriverError> {
        self.module.context.bind_to_thread()?;
        let from = graph.staging.as_slice()?;
        let (to, _guard) = graph.staged.device_ptr(&self.copies);
        // SAFETY: page-locked, as long, and left alone until `done`.
        unsafe { result::memcpy_htod_async(to, from, self.copies.cu_stream()) }?;
        graph.copied.record(&self.copies)?;
        self.stream.wait(&graph.copied)?;
        // SAFETY: the caller's promise.
        unsafe { sys::cuGraphLaunch(graph.handles.executable, self.stream.cu_stream()) }.result()?;
        graph.pending = true;
        graph.done.record(&self.stream)
    }
}

impl GpuGraph {
    fn wait(&mut self) -> Result<(), String> {
        if std::mem::take(&mut self.pending) {
            self.done.synchronize().map_err(words)?;
        }
        Ok(())
    }

    /// See [`super::Driver::staging`].
    pub(super) fn staging(&mut self) -> Result<&mut [f32], String> {
        self.wait()?;
        Ok(&mut self.staging.as_mut_slice().map_err(words)?[..self.rooms[0]])
    }

    /// See [`super::Driver::results`].
    pub(super) fn results(&mut self) -> Result<&[f32], String> {
        self.wait()?;
        Ok(&self.results.as_slice().map_err(words)?[..self.rooms[1]])
    }
}
