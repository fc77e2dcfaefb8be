//! Checks that hold a device of single precision to the CPU in double precision: the same list for a real GPU and for the
//! emulated one.
//!
//! Every operation runs on fresh random numbers in an arena where NaN lies between the regions and in everything that is to
//! be written. Afterwards what was written must agree, everything else must be as it was, and other orders of execution
//! (or other runs) must give the same bits.

pub mod arrays;
pub mod chains;
pub mod corrections;
#[path = "../fixtures/golden.rs"]
pub mod golden;
pub mod gradients;
pub mod inner_adam;
pub mod learning;
pub mod losses;
pub mod normalise;
pub mod products;
pub mod resident;
pub mod run;
pub mod scene;
pub mod warpgroups;

use innerloop::device::{Device, MatrixPrecision};

/// A device for each seed of the order in which threads run.
pub type Make<'a, D> = &'a (dyn Fn(u64) -> D + Sync);

/// A check over a device.
pub type Check<D> = fn(Make<'_, D>);

/// A check over a device that rounds the operands of large matrix products to this precision.
pub type TensorCheck<D> = fn(Make<'_, D>, MatrixPrecision);

/// Those of tensor cores, by name and precision.
pub fn on_tensor_cores<D: Device<f32> + Clone + 'static>() -> Vec<(String, MatrixPrecision, TensorCheck<D>)> {
    let checks: [(&str, TensorCheck<D>); 7] = [
        ("linear_forward", products::linear_forward),
        ("linear_backward", products::linear_backward),
        ("adjoint_forward", products::adjoint_forward),
        ("adjoint_backward", products::adjoint_backward),
        ("outer_product", gradients::outer_product),
        ("golden_problems", learning::golden_rounded),
        ("folded", learning::folded_in),
    ];
    let precisions = [MatrixPrecision::Tf32, MatrixPrecision::Bf16, MatrixPrecision::F16];
    let each = checks.into_iter().flat_map(|check| precisions.map(|precision| (check, precision)));
    let alone: (&str, TensorCheck<D>) = ("narrow_loops", resident::narrow_loops);
    let each = each.chain([(alone, MatrixPrecision::Tf32)]);
    each.map(|((name, check), precision)| (format!("{name}_{precision}"), precision, check)).collect()
}

/// Those of Hopper's warpgroups, by name and precision.
pub fn on_warpgroups<D: Device<f32> + Clone + 'static>() -> Vec<(String, MatrixPrecision, TensorCheck<D>)> {
    let checks: [(&str, TensorCheck<D>); 8] = [
        ("forward", warpgroups::forward),
        ("copies", warpgroups::copies),
        ("backward", warpgroups::backward),
        ("adjoint", warpgroups::adjoint),
        ("ended_forward", warpgroups::ended_forward),
        ("ended_backward", warpgroups::ended_backward),
        ("ended_adjoint", warpgroups::ended_adjoint),
        ("outer_product", gradients::outer_product_on_warpgroups),
    ];
    let precisions = [MatrixPrecision::Bf16, MatrixPrecision::F16];
    let each = checks.into_iter().flat_map(|check| precisions.map(|precision| (check, precision)));
    // In the precision that has corrections and inner products on tensor cores too.
    let alone: [(&str, TensorCheck<D>); 7] = [
        ("gram", chains::gram),
        ("chain_forward", chains::forward),
        ("chain_backward", chains::backward),
        ("chain_adjoint", chains::adjoint),
        ("chain_meta_steps", chains::meta_steps),
        ("golden_problems", learning::golden_rounded),
        ("folded", learning::folded_in),
    ];
    let each = each.chain(alone.map(|check| (check, MatrixPrecision::Bf16)));
    each.map(|((name, check), precision)| (format!("warpgroups_{name}_{precision}"), precision, check)).collect()
}

/// All others, by name.
pub fn all<D: Device<f32> + Clone + Send + 'static>() -> Vec<(&'static str, Check<D>)> {
    vec![
        ("linear_forward", |make| products::linear_forward(make, MatrixPrecision::F32)),
        ("linear_backward", |make| products::linear_backward(make, MatrixPrecision::F32)),
        ("adjoint_forward", |make| products::adjoint_forward(make, MatrixPrecision::F32)),
        ("adjoint_backward", |make| products::adjoint_backward(make, MatrixPrecision::F32)),
        ("gram", corrections::gram::<D>),
        ("gram_inner", corrections::gram_inner::<D>),
        ("rate_tables", corrections::rate_tables::<D>),
        ("many_corrections", corrections::many_corrections::<D>),
        ("gated_corrections", corrections::gated_corrections::<D>),
        ("low_rank", corrections::low_rank::<D>),
        ("low_rank_of_rows", corrections::low_rank_of_rows::<D>),
        ("column_scale", arrays::column_scale::<D>),
        ("normalise", normalise::normalise::<D>),
        ("outer_product", |make| gradients::outer_product(make, MatrixPrecision::F32)),
        ("inner_update", gradients::inner_update::<D>),
        ("reverse_update", gradients::reverse_update::<D>),
        ("adam_update", inner_adam::adam_update::<D>),
        ("adam_rate_gradient", inner_adam::adam_rate_gradient::<D>),
        ("reverse_adam", inner_adam::reverse_adam::<D>),
        ("resident", resident::resident::<D>),
        ("narrow_loops", |make| resident::narrow_loops(make, MatrixPrecision::F32)),
        ("supervised_loss", losses::supervised_loss::<D>),
        ("supervised_curvature", losses::supervised_curvature::<D>),
        ("adversarial", losses::adversarial::<D>),
        ("pixel", losses::pixel::<D>),
        ("plain_arrays", arrays::plain_arrays::<D>),
        ("gather", arrays::gather::<D>),
        ("sum_rows", arrays::sum_rows::<D>),
        ("gradient_check", arrays::gradient_check::<D>),
        ("outer_step", arrays::outer_step::<D>),
        ("golden_problems_dual", learning::golden_dual::<D>),
        ("golden_problems_materialised", learning::golden_materialised::<D>),
        ("golden_problems_resident", learning::golden_resident::<D>),
        ("golden_problems_folded", learning::golden_folded::<D>),
        ("golden_problems_explained", learning::golden_explained::<D>),
        ("supervised_training", learning::supervised_training::<D>),
        ("video_training", learning::video_training::<D>),
        ("adapted_and_traced", learning::adapted_and_traced::<D>),
        ("sinusoid_run", run::sinusoid_run::<D>),
        ("video_run", run::video_run::<D>),
    ]
}
