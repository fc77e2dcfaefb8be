use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::driver::{Driver, Kernel, emulated};
use crate::{Error, Result};

unsafe extern "C" {
    fn emulate_allocate(bytes: usize) -> *mut c_void;
    fn emulate_free(memory: *mut c_void, bytes: usize);
}

/// Runs the CUDA kernels on the CPU, one thread after the other, looking for mistakes: missing and divergent barriers,
/// shared memory that is read before it is written, accesses outside the arena (see `kernels/emulation/`).
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

impl Driver for EmulatedDriver {
    type Memory = EmulatedMemory;

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
        Ok(EmulatedMemory { start, elements })
    }

    fn write(&self, memory: &mut EmulatedMemory, offset: usize, from: &[f32]) -> Result<(), String> {
        assert!(offset + from.len() <= memory.elements, "{offset}+{} of {}", from.len(), memory.elements);
        // SAFETY: inside the memory, which is borrowed exclusively.
        unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), memory.start.add(offset), from.len()) };
        Ok(())
    }

    fn read(&self, memory: &EmulatedMemory, offset: usize, to: &mut [f32]) -> Result<(), String> {
        assert!(offset + to.len() <= memory.elements, "{offset}+{} of {}", to.len(), memory.elements);
        // SAFETY: inside the memory, which no kernel writes meanwhile.
        unsafe { std::ptr::copy_nonoverlapping(memory.start.add(offset), to.as_mut_ptr(), to.len()) };
        Ok(())
    }

    unsafe fn launch(
        &self,
        memory: &EmulatedMemory,
        kernel: Kernel,
        grid: [u32; 3],
        arguments: *const c_void,
    ) -> Result<(), String> {
        let launch = self.launches.fetch_add(1, Ordering::Relaxed);
        let seed = self.seed.wrapping_add(launch.wrapping_mul(0x9e37_79b9_7f4a_7c15));
        // SAFETY: the caller's promise.
        unsafe { emulated::entry(kernel)(memory.start, arguments, grid.as_ptr(), seed) };
        Ok(())
    }
}
