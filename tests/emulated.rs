//! The CUDA kernels and their launchers, emulated on the CPU.

mod device;

use std::ffi::c_void;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use innerloop::Result;
use innerloop::device::cuda::{CudaDevice, Driver, EmulatedDriver, EmulatedMemory, Kernel};
use innerloop::device::{Device, Region};
use libtest_mimic::{Arguments, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let checks = device::all::<CudaDevice<EmulatedDriver>>().into_iter().map(|(name, check)| {
        Trial::test(name, move || {
            check(&CudaDevice::emulated);
            Ok(())
        })
    });
    let mut trials: Vec<Trial> = checks.collect();
    trials.push(Trial::test("failures_are_told", || {
        failures_are_told();
        Ok(())
    }));
    libtest_mimic::run(&arguments, trials).exit();
}

/// Refuses the launch of one kernel, and counts the calls.
#[derive(Clone)]
struct Refusing {
    driver: EmulatedDriver,
    kernel: Kernel,
    calls: Arc<AtomicUsize>,
}

impl Driver for Refusing {
    type Memory = EmulatedMemory;

    fn name(&self) -> String {
        "cuda:9".into()
    }
    fn allocate(&self, elements: usize) -> Result<EmulatedMemory> {
        self.driver.allocate(elements)
    }
    fn write(&self, memory: &mut EmulatedMemory, offset: usize, from: &[f32]) -> Result<(), String> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.driver.write(memory, offset, from)
    }
    fn read(&self, memory: &EmulatedMemory, offset: usize, to: &mut [f32]) -> Result<(), String> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.driver.read(memory, offset, to)
    }
    unsafe fn launch(
        &self,
        memory: &EmulatedMemory,
        kernel: Kernel,
        grid: [u32; 3],
        arguments: *const c_void,
    ) -> Result<(), String> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        if kernel == self.kernel {
            return Err("CUDA_ERROR_LAUNCH_FAILED (unspecified launch failure)".into());
        }
        // SAFETY: the caller's promise.
        unsafe { self.driver.launch(memory, kernel, grid, arguments) }
    }
}

/// The first failure names the device, the kernel, its grid and its shapes; nothing is tried after it until it was told.
fn failures_are_told() {
    let calls = Arc::new(AtomicUsize::new(0));
    let driver = Refusing { driver: EmulatedDriver::new(0), kernel: Kernel::SumRows, calls: calls.clone() };
    let device = CudaDevice::with_driver(driver);
    let mut arena = device.arena(700).unwrap();
    let (from, to) = (Region { offset: 0, rows: 3, width: 150 }, Region { offset: 450, rows: 1, width: 150 });
    device.fill(&mut arena, from, 1.0);
    device.sum_rows(&mut arena, from, 1.0, to, false);
    device.fill(&mut arena, to, 2.0);
    assert_eq!(calls.load(Ordering::Relaxed), 2, "work went on after a failure");
    let message = device.check().unwrap_err().to_string();
    for part in ["cuda:9", "kernel sum_rows", "grid of 2 x 1 x 1", "3 rows of 150", "CUDA_ERROR_LAUNCH_FAILED"] {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    assert!(!message.contains('\n'), "{message}");
    device.check().unwrap();
    device.fill(&mut arena, to, 2.0);
    let mut values = [0.0; 150];
    device.download(&arena, to, &mut values);
    device.check().unwrap();
    assert_eq!(values, [2.0; 150]);
}
