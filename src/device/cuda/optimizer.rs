//! The outer optimizer.

use super::driver::{Driver, Kernel};
use super::{Arguments, CudaArena, CudaDevice, NOTHING, narrow, reduction, settle, spans_of, wide};
use crate::device::{Finding, GradientCheck, OuterStep, Region};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct CheckGradient {
    partials: u64,
    losses: [u64; 2],
    flag: u64,
    finding: u64,
    clip: f64,
    loss_count: [u32; 2],
    count: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Sgd {
    parameters: u64,
    gradient: u64,
    length: u64,
    flag: u64,
    factor: u64,
    rate: f32,
    in_logarithm: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Adam {
    parameters: u64,
    gradient: u64,
    first: u64,
    second: u64,
    length: u64,
    flag: u64,
    factor: u64,
    rate: f32,
    second_scale: f32,
    epsilon: f32,
    beta1: f32,
    beta2: f32,
    rest1: f32,
    rest2: f32,
    in_logarithm: u32,
}

super::arguments! {
    CheckGradient, 64 => CheckGradient;
    Sgd, 48 => Sgd;
    Adam, 88 => Adam;
}

impl CheckGradient {
    /// With `count` partial sums of the squares of a gradient, and its place among those that are checked.
    pub fn new<D: Driver>(arena: &CudaArena<D>, op: &GradientCheck, place: usize, count: usize) -> Self {
        let losses = op.losses.map(|losses| losses.unwrap_or(NOTHING));
        let finding = Finding { findings: op.findings, gradient: place };
        Self {
            partials: wide(arena.partials()),
            losses: losses.map(|losses| wide(losses.offset)),
            flag: wide(finding.flag()),
            finding: wide(finding.factor()),
            clip: op.clip_of(place).unwrap_or(f64::INFINITY),
            loss_count: losses.map(|losses| narrow(losses.len())),
            count: narrow(count),
            unused: 0,
        }
    }
}

impl Adam {
    /// That step, if it is one of Adam.
    pub fn new(op: &OuterStep) -> Option<Self> {
        let OuterStep::Adam { in_logarithm, parameters, gradient, first, second, rate, finding, betas, epsilon, step } =
            *op
        else {
            return None;
        };
        let correction = |beta: f64| 1.0 - beta.powi(step.min(i32::MAX as u64) as i32);
        Some(Self {
            parameters: wide(parameters.offset),
            gradient: wide(gradient.offset),
            first: wide(first.offset),
            second: wide(second.offset),
            length: wide(parameters.len()),
            flag: wide(finding.flag()),
            factor: wide(finding.factor()),
            rate: (rate / correction(betas.0)) as f32,
            second_scale: (1.0 / correction(betas.1)) as f32,
            epsilon: epsilon as f32,
            beta1: betas.0 as f32,
            beta2: betas.1 as f32,
            rest1: (1.0 - betas.0) as f32,
            rest2: (1.0 - betas.1) as f32,
            in_logarithm: in_logarithm.into(),
        })
    }
}

/// See [`GradientCheck`].
pub(super) fn gradient_check<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, op: &GradientCheck) {
    if settle::with_check(arena, op) {
        return;
    }
    let [first, second] = op.losses.map(|losses| losses.unwrap_or(NOTHING));
    let [a, b, c, d, e, f] = op.gradients.map(|gradient| gradient.unwrap_or(NOTHING));
    arena.check(&[first, second, a, b, c, d, e, f], &[op.findings]);
    let check = |place: usize, gradient: Region| {
        let at = (gradient.offset, 0);
        let count = if gradient.is_empty() { 0 } else { reduction::dot(device, arena, at, at, gradient.len(), 1) };
        let call = CheckGradient::new(arena, op, place, count);
        let shapes = format_args!("{} numbers", gradient.len());
        device.launch(arena, Kernel::CheckGradient, [1, 1, 1], &call, shapes);
    };
    // Losses are checked along with a gradient, and without any by themselves.
    if op.gradients.iter().all(Option::is_none) {
        check(0, NOTHING);
    }
    for (place, gradient) in op.gradients.iter().enumerate() {
        if let Some(gradient) = gradient {
            check(place, *gradient);
        }
    }
}

/// See [`OuterStep`].
pub(super) fn outer_step<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &OuterStep) {
    if settle::with_step(arena, op) {
        return;
    }
    match *op {
        OuterStep::Sgd { in_logarithm, parameters, gradient, rate, finding } => {
            arena.check(&[gradient, finding.findings], &[parameters]);
            let call = Sgd {
                parameters: wide(parameters.offset),
                gradient: wide(gradient.offset),
                length: wide(parameters.len()),
                flag: wide(finding.flag()),
                factor: wide(finding.factor()),
                rate: rate as f32,
                in_logarithm: in_logarithm.into(),
            };
            let shapes = format_args!("{} parameters", parameters.len());
            device.launch(arena, Kernel::Sgd, [spans_of(parameters.len()), 1, 1], &call, shapes);
        }
        OuterStep::Adam { parameters, gradient, first, second, finding, .. } => {
            arena.check(&[gradient, finding.findings], &[parameters, first, second]);
            let Some(call) = Adam::new(op) else { return };
            let shapes = format_args!("{} parameters", parameters.len());
            device.launch(arena, Kernel::Adam, [spans_of(parameters.len()), 1, 1], &call, shapes);
        }
    }
}
