//! The CUDA kernels and their launchers, emulated on the CPU.

mod device;

use innerloop::device::cuda::{CudaDevice, EmulatedDriver};
use libtest_mimic::{Arguments, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let trials = device::all::<CudaDevice<EmulatedDriver>>().into_iter().map(|(name, check)| {
        Trial::test(name, move || {
            check(&CudaDevice::emulated);
            Ok(())
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}
