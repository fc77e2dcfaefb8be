//! The CUDA kernels on a real GPU. Without one every test is reported as ignored, with the reason.

mod device;

use innerloop::device::MatrixPrecision;
use innerloop::device::cuda::{CudaDevice, GpuDriver, Warpgroups};
use libtest_mimic::{Arguments, Completion, Trial};

fn main() {
    let arguments = Arguments::from_args();
    let gpu = CudaDevice::new(0).map_err(|error| error.to_string());
    let trial = |name: &str, check: Box<dyn Fn(CudaDevice<GpuDriver>) + Send>| {
        let gpu = gpu.clone();
        Trial::ignorable_test(name, move || match gpu {
            Err(reason) => Ok(Completion::ignored_with(reason)),
            Ok(gpu) => {
                check(gpu);
                Ok(Completion::Completed)
            }
        })
    };
    let checks = device::all::<CudaDevice<GpuDriver>>().into_iter();
    let mut trials: Vec<Trial> =
        checks.map(|(name, check)| trial(name, Box::new(move |gpu| check(&|_| gpu.clone())))).collect();
    trials.extend(device::on_tensor_cores::<CudaDevice<GpuDriver>>().into_iter().map(|(name, precision, check)| {
        trial(&name, Box::new(move |gpu| check(&|_| gpu.clone().with_precision(precision), precision)))
    }));
    // On a GPU without them these are the tests above once more.
    trials.extend(device::on_warpgroups::<CudaDevice<GpuDriver>>().into_iter().map(|(name, precision, check)| {
        let make = move |gpu: CudaDevice<GpuDriver>| gpu.with_precision(precision).with_warpgroups(Warpgroups::Always);
        trial(&name, Box::new(move |gpu| check(&|_| make(gpu.clone()), precision)))
    }));
    let many = |gpu: CudaDevice<GpuDriver>| {
        let gpu = gpu.with_precision(MatrixPrecision::Bf16).with_warpgroups(Warpgroups::Always);
        device::gradients::outer_product_of_many_rows(&|_| gpu.clone(), (100_000, (2816, 1536)));
    };
    trials.push(trial("warpgroups_outer_product_of_many_rows_bf16", Box::new(many)));
    libtest_mimic::run(&arguments, trials).exit();
}
