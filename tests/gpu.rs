//! The CUDA kernels on a real GPU. Without one every test is reported as ignored, with the reason.

mod device;

use innerloop::device::cuda::{CudaDevice, GpuDriver};
use libtest_mimic::{Arguments, Completion, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let gpu = CudaDevice::new(0).map_err(|error| error.to_string());
    let trials = device::all::<CudaDevice<GpuDriver>>().into_iter().map(|(name, check)| {
        let gpu = gpu.clone();
        Trial::ignorable_test(name, move || match gpu {
            Err(reason) => Ok(Completion::ignored_with(reason)),
            Ok(gpu) => {
                check(&|_| gpu.clone());
                Ok(Completion::Completed)
            }
        })
    });
    libtest_mimic::run(&arguments, trials.collect()).exit();
}
