//! The outer optimizer.

use super::driver::{Driver, Kernel};
use super::{Arguments, CudaArena, CudaDevice, array, blocks_of, wide};
use crate::device::OuterStep;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Adam {
    parameters: u64,
    gradient: u64,
    first: u64,
    second: u64,
    length: u64,
    rate: f32,
    second_scale: f32,
    factor: f32,
    epsilon: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
}

super::arguments! {
    Adam, 72 => Adam;
}

/// See [`OuterStep`].
pub(super) fn outer_step<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &OuterStep) {
    match *op {
        OuterStep::Sgd { parameters, gradient, rate, factor } => {
            array::add_scaled(device, arena, gradient, (-rate * factor) as f32, parameters);
        }
        OuterStep::Adam { parameters, gradient, first, second, rate, factor, betas, epsilon, step } => {
            arena.check(&[gradient], &[parameters, first, second]);
            let correction = |beta: f64| 1.0 - beta.powi(step.min(i32::MAX as u64) as i32);
            let call = Adam {
                parameters: wide(parameters.offset),
                gradient: wide(gradient.offset),
                first: wide(first.offset),
                second: wide(second.offset),
                length: wide(parameters.len()),
                rate: (rate / correction(betas.0)) as f32,
                second_scale: (1.0 / correction(betas.1)) as f32,
                factor: factor as f32,
                epsilon: epsilon as f32,
                beta1: betas.0 as f32,
                beta2: betas.1 as f32,
                rest1: (1.0 - betas.0) as f32,
                rest2: (1.0 - betas.1) as f32,
            };
            let shapes = format_args!("{} parameters", parameters.len());
            device.launch(arena, Kernel::Adam, [blocks_of(parameters.len()), 1, 1], &call, shapes);
        }
    }
}
