use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::driver::{
    ArgumentPiece, Driver, GraphStep, GraphWork, Kernel, PackedMatrix, TensorMap, WRITTEN, WrittenMatrices, block_of,
    emulated,
};
use crate::{Error, Result};

unsafe extern "C" {
    fn emulate_allocate(bytes: usize) -> *mut c_void;
    fn emulate_free(memory: *mut c_void, bytes: usize);
    #[cfg(sanitize_emulation)]
    fn emulate_allow(memory: *mut c_void, bytes: usize, allowed: bool);
}

/// Runs the CUDA kernels on the CPU, one thread after the other, looking for mistakes: missing and divergent barriers,
/// shared memory that is read before it is written, accesses outside the arena (see `kernels/emulation/`). Built with
/// `INNERLOOP_EMULATE_SANITIZE=1` it checks every access against the regions that the operation named, and looks for
/// undefined behaviour.
///
/// This is a test tool, not a backend: it is thousands of times slower than [`crate::device::cpu::CpuDevice`]. Where it
/// finds a mistake that is none of numbers, it ends the program with a message.
#[derive(Clone, Debug)]
pub struct EmulatedDriver {
    seed: u64,
    launches: Arc<AtomicU64>,
}

impl EmulatedDriver {
    /// The order in which blocks and threads run is drawn from `seed`; right kernels give the same numbers for any.
    pub fn new(seed: u64) -> Self {
        Self { seed, launches: Arc::default() }
    }
}

/// Host memory between two pages that cannot be touched.
#[derive(Debug)]
pub struct EmulatedMemory {
    start: *mut f32,
    elements: usize,
    #[cfg(sanitize_emulation)]
    kept: std::sync::Mutex<Kept>,
}

/// The numbers that may be accessed now.
#[cfg(sanitize_emulation)]
#[derive(Debug, Default)]
struct Kept {
    regions: Vec<(usize, usize)>,
    /// The launch or copy that they were for has been.
    over: bool,
}

#[cfg(sanitize_emulation)]
impl EmulatedMemory {
    fn kept(&self) -> std::sync::MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn allow(&self, (offset, len): (usize, usize), allowed: bool) {
        // SAFETY: `CudaArena::check` has checked that they lie inside; nothing is read or written.
        unsafe { emulate_allow(self.start.add(offset).cast(), len * size_of::<f32>(), allowed) };
    }
}

impl EmulatedMemory {
    /// # Safety
    /// Nobody else uses the numbers meanwhile.
    unsafe fn write(&self, offset: usize, from: &[f32]) {
        assert!(offset + from.len() <= self.elements, "{offset}+{} of {}", from.len(), self.elements);
        #[cfg(sanitize_emulation)]
        (self.kept().over = true);
        // SAFETY: inside the memory; and the caller's promise.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), self.start.add(offset), from.len()) };
    }
}

// SAFETY: plain memory, which the driver's methods borrow like a vector.
unsafe impl Send for EmulatedMemory {}
// SAFETY: as above; a launch writes it under the contract of `Driver::launch`.
unsafe impl Sync for EmulatedMemory {}

impl Drop for EmulatedMemory {
    fn drop(&mut self) {
        // SAFETY: allocated by `emulate_allocate` with this size, and not used any more.
        unsafe { emulate_free(self.start.cast(), self.elements * size_of::<f32>()) };
    }
}

/// A graph, as it was made and changed since.
#[derive(Debug)]
pub struct EmulatedGraph {
    steps: Vec<EmulatedStep>,
    staging: Vec<f32>,
    results: Vec<f32>,
}

#[derive(Debug)]
struct EmulatedStep {
    work: GraphWork,
    arguments: Vec<ArgumentPiece>,
    regions: Vec<(usize, usize)>,
}

impl Driver for EmulatedDriver {
    type Memory = EmulatedMemory;
    type Graph = EmulatedGraph;

    fn name(&self) -> String {
        "emulated CUDA".into()
    }

    fn allocate(&self, elements: usize) -> Result<EmulatedMemory> {
        let bytes = elements * size_of::<f32>();
        // SAFETY: no more than a request to the operating system.
        let start = unsafe { emulate_allocate(bytes) }.cast::<f32>();
        if start.is_null() {
            return Err(Error::invalid("memory", format!("{bytes} bytes cannot be had"), "a smaller problem"));
        }
        Ok(EmulatedMemory {
            start,
            elements,
            #[cfg(sanitize_emulation)]
            kept: Default::default(),
        })
    }

    #[cfg(sanitize_emulation)]
    fn keep_to(memory: &EmulatedMemory, regions: impl Iterator<Item = (usize, usize)>) {
        let mut kept = memory.kept();
        if std::mem::take(&mut kept.over) {
            kept.regions.drain(..).for_each(|region| memory.allow(region, false));
        }
        kept.regions.extend(regions);
        // All anew: where two share a granule of 8 bytes, forbidding one has touched the other.
        kept.regions.iter().for_each(|region| memory.allow(*region, true));
    }

    fn write(&self, memory: &mut EmulatedMemory, offset: usize, from: &[f32]) -> Result<(), String> {
        // SAFETY: the memory is borrowed exclusively.
        unsafe { memory.write(offset, from) };
        Ok(())
    }

    fn read(&self, memory: &EmulatedMemory, offset: usize, to: &mut [f32]) -> Result<(), String> {
        assert!(offset + to.len() <= memory.elements, "{offset}+{} of {}", to.len(), memory.elements);
        #[cfg(sanitize_emulation)]
        (memory.kept().over = true);
        // SAFETY: inside the memory, which no kernel writes meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(memory.start.add(offset), to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    /// An H100's.
    fn shared_bytes(&self) -> usize {
        227 << 10
    }

    /// Of Hopper; few, so that a block has several tiles.
    fn warpgroups(&self) -> Option<u32> {
        Some(3)
    }

    fn tensor_map(&self, memory: &EmulatedMemory, matrix: PackedMatrix) -> Result<TensorMap, String> {
        let PackedMatrix { offset, rows, width, pitch, tall, .. } = matrix;
        if offset % 4 != 0 || pitch % 8 != 0 || pitch < width || offset + rows * pitch / 2 > memory.elements {
            return Err(format!("{matrix:?} in {} numbers", memory.elements));
        }
        let mut map = TensorMap::default();
        // SAFETY: inside the memory, as was just checked.
        let base = unsafe { memory.start.add(offset) };
        map.0[..6].copy_from_slice(&[base as u64, rows as u64, width as u64, pitch as u64, tall.into(), 2]);
        Ok(map)
    }

    fn written_map(&self, memory: &EmulatedMemory, matrices: WrittenMatrices) -> Result<TensorMap, String> {
        let WrittenMatrices { offset, count, rows, width, .. } = matrices;
        let [bytes, pitch] = matrices.bytes();
        if offset % 4 != 0 || offset + (count * rows * pitch).div_ceil(4) > memory.elements {
            return Err(format!("{matrices:?} in {} numbers", memory.elements));
        }
        let mut map = TensorMap::default();
        // SAFETY: inside the memory, as was just checked.
        let base = unsafe { memory.start.add(offset) };
        let words = [base as u64, rows as u64, width as u64, (pitch / bytes) as u64, WRITTEN.into(), bytes as u64];
        map.0[..6].copy_from_slice(&words);
        Ok(map)
    }

    unsafe fn launch(
        &self,
        memory: &EmulatedMemory,
        kernel: Kernel,
        grid: [u32; 3],
        shared: u32,
        arguments: *const c_void,
    ) -> Result<(), String> {
        #[cfg(sanitize_emulation)]
        (memory.kept().over = true);
        let launch = self.launches.fetch_add(1, Ordering::Relaxed);
        let seed = self.seed.wrapping_add(launch.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        let (threads, shared) = block_of(kernel, shared);
        let launched = emulated::Launched { grid, threads, shared };
        // SAFETY: the caller's promise.
        unsafe { emulated::entry(kernel)(memory.start, arguments, &raw const launched, seed) };
        Ok(())
    }

    unsafe fn graph(&self, _: &EmulatedMemory, steps: &[GraphStep<'_>]) -> Result<EmulatedGraph, String> {
        let empty = |step: &GraphStep<'_>| {
            matches!(step.work, GraphWork::Write { len: 0, .. } | GraphWork::Read { len: 0, .. })
        };
        if steps.iter().any(empty) {
            return Err("a copy of nothing, which a GPU refuses".into());
        }
        let kept = |step: &GraphStep<'_>| EmulatedStep {
            work: step.work,
            arguments: step.arguments.to_vec(),
            regions: step.regions.to_vec(),
        };
        let [staging, results] = GraphStep::rooms(steps).map(|len| vec![f32::NAN; len]);
        Ok(EmulatedGraph { steps: steps.iter().map(kept).collect(), staging, results })
    }

    unsafe fn change(
        &self,
        _: &EmulatedMemory,
        graph: &mut EmulatedGraph,
        index: usize,
        step: &GraphStep<'_>,
    ) -> Result<(), String> {
        assert_eq!(graph.steps[index].work, step.work, "step {index} became another one");
        graph.steps[index].arguments.copy_from_slice(step.arguments);
        Ok(())
    }

    fn staging<'g>(&self, graph: &'g mut EmulatedGraph) -> Result<&'g mut [f32], String> {
        Ok(&mut graph.staging)
    }

    unsafe fn replay(&self, memory: &EmulatedMemory, graph: &mut EmulatedGraph) -> Result<(), String> {
        graph.results.fill(f32::NAN);
        for EmulatedStep { work, arguments, regions } in &graph.steps {
            if !regions.is_empty() {
                Self::keep_to(memory, regions.iter().copied());
            }
            match *work {
                // SAFETY: the caller's promise.
                GraphWork::Launch { kernel, grid, shared } => unsafe {
                    self.launch(memory, kernel, grid, shared, arguments.as_ptr().cast())?;
                },
                GraphWork::Write { from, offset, len } => {
                    // SAFETY: the caller's promise: the memory is a running meta-step's alone.
                    unsafe { memory.write(offset, &graph.staging[from..from + len]) };
                }
                GraphWork::Read { offset, to, len } => self.read(memory, offset, &mut graph.results[to..to + len])?,
            }
        }
        // What is not written anew is found out.
        graph.staging.fill(f32::NAN);
        Ok(())
    }

    fn results<'g>(&self, graph: &'g mut EmulatedGraph) -> Result<&'g [f32], String> {
        Ok(&graph.results)
    }
}
