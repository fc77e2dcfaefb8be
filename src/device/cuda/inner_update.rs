//! The materialised form's inner step and its transpose.

use super::driver::{Driver, Kernel};
use super::linear::TILE;
use super::{Arguments, CudaArena, CudaDevice, NOTHING, NOWHERE, blocks_of, narrow, reduction, wide};
use crate::device::{self, Linear, Rate, Region};

#[repr(C)]
struct InnerUpdate {
    delta: u64,
    values: u64,
    from: u64,
    to: u64,
    velocity: u64,
    new_velocity: u64,
    from_stride: u64,
    to_stride: u64,
    velocity_stride: u64,
    new_velocity_stride: u64,
    rates: u64,
    tasks: u32,
    rows: u32,
    blocks: u32,
    inputs: u32,
    outputs: u32,
    rate: f32,
    momentum: f32,
    unused: u32,
}

#[repr(C)]
struct ReverseUpdate {
    cotangent: u64,
    direction: u64,
    rates: u64,
    cotangent_stride: u64,
    direction_stride: u64,
    length: u64,
    tasks: u32,
    begun: u32,
    rate: f32,
    momentum: f32,
}

#[repr(C)]
struct RateGradient {
    cotangent: u64,
    velocity: u64,
    output: u64,
    cotangent_stride: u64,
    velocity_stride: u64,
    length: u64,
    tasks: u32,
    scale: f32,
}

super::arguments! {
    InnerUpdate, 120 => InnerUpdate;
    ReverseUpdate, 64 => ReverseUpdate;
    RateGradient, 56 => RateGradient;
}

/// All parameters of a layer, for all tasks; the bias lies right behind the weight.
pub(super) fn region(layer: &Linear, tasks: usize) -> Region {
    let Linear { weight, bias, task_stride, inputs, outputs } = *layer;
    assert_eq!(bias, weight + inputs * outputs, "the bias must lie right behind the weight");
    let last = if layer.is_shared() { 0 } else { tasks - 1 };
    Region { offset: weight, rows: 1, width: last * task_stride + (inputs + 1) * outputs }
}

/// The place of rates for each parameter, or one rate for all.
pub(super) fn rates(rate: &Rate<f32>) -> (u64, f32) {
    match rate {
        Rate::Uniform(rate) => (NOWHERE, *rate),
        Rate::PerParameter(rates) => (wide(rates.weight), 0.0),
    }
}

/// What is read of a rate.
pub(super) fn rates_region(rate: &Rate<f32>) -> Region {
    if let Rate::PerParameter(rates) = rate { region(rates, 1) } else { NOTHING }
}

/// Where an array of parameters begins, and its stride.
fn place(layer: Option<&Linear>) -> (u64, u64) {
    layer.map_or((NOWHERE, 0), |layer| (wide(layer.weight), wide(layer.task_stride)))
}

/// See [`device::InnerUpdate`].
pub(super) fn inner_update<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &device::InnerUpdate<f32>) {
    let to = region(&op.to, op.tasks);
    let before = op.velocity.map_or(NOTHING, |v| region(&v, op.tasks));
    let kept = op.new_velocity.map_or(NOTHING, |v| region(&v, op.tasks));
    arena.check(&[op.delta, op.values, region(&op.from, op.tasks), before, rates_region(&op.rate)], &[to, kept]);
    let Linear { inputs, outputs, .. } = op.to;
    let blocks = op.delta.rows / (op.tasks * op.rows);
    let (rates, rate) = rates(&op.rate);
    let (from, from_stride) = place(Some(&op.from));
    let (to, to_stride) = place(Some(&op.to));
    let (velocity, velocity_stride) = place(op.velocity.as_ref());
    let (new_velocity, new_velocity_stride) = place(op.new_velocity.as_ref());
    let call = InnerUpdate {
        delta: wide(op.delta.offset),
        values: wide(op.values.offset),
        from,
        to,
        velocity,
        new_velocity,
        from_stride,
        to_stride,
        velocity_stride,
        new_velocity_stride,
        rates,
        tasks: narrow(op.tasks),
        rows: narrow(op.rows),
        blocks: narrow(blocks),
        inputs: narrow(inputs),
        outputs: narrow(outputs),
        rate,
        momentum: op.momentum,
        unused: 0,
    };
    let grid = [op.tasks * outputs.div_ceil(TILE), inputs.div_ceil(TILE), 1];
    let shapes = format_args!("{blocks} blocks of {} tasks x {} rows, {outputs} x {inputs}", op.tasks, op.rows);
    device.launch(arena, Kernel::InnerUpdate, grid, &call, shapes);
}

/// See [`device::ReverseUpdate`].
pub(super) fn reverse_update<D: Driver>(
    device: &CudaDevice<D>,
    arena: &mut CudaArena<D>,
    op: &device::ReverseUpdate<f32>,
) {
    if let (Some(gradient), Some(velocity)) = (op.rate_gradient, &op.velocity) {
        rate_gradient(device, arena, op.tasks, (&op.weight_cotangent, velocity), op.scale, gradient);
    }
    arena.check(&[region(&op.weight_cotangent, op.tasks), rates_region(&op.rate)], &[region(&op.direction, op.tasks)]);
    let length = (op.direction.inputs + 1) * op.direction.outputs;
    let (rates, rate) = rates(&op.rate);
    let call = ReverseUpdate {
        cotangent: wide(op.weight_cotangent.weight),
        direction: wide(op.direction.weight),
        rates,
        cotangent_stride: wide(op.weight_cotangent.task_stride),
        direction_stride: wide(op.direction.task_stride),
        length: wide(length),
        tasks: narrow(op.tasks),
        begun: (op.accumulate && op.momentum != 0.0).into(),
        rate,
        momentum: op.momentum,
    };
    let shapes = format_args!("{} tasks of {length} parameters", op.tasks);
    device.launch(arena, Kernel::ReverseUpdate, [blocks_of(length), op.tasks, 1], &call, shapes);
}

/// `gradient -= scale * sum over the tasks of cotangent * velocity`, of one rate or of one for each parameter.
pub(super) fn rate_gradient<D: Driver>(
    device: &CudaDevice<D>,
    arena: &mut CudaArena<D>,
    tasks: usize,
    (cotangent, velocity): (&Linear, &Linear),
    scale: f32,
    gradient: Region,
) {
    arena.check(&[region(cotangent, tasks), region(velocity, tasks)], &[gradient]);
    let length = gradient.len();
    if length == 1 {
        reduction::add_dot(device, arena, (cotangent, velocity), tasks, -scale, gradient);
        return;
    }
    let call = RateGradient {
        cotangent: wide(cotangent.weight),
        velocity: wide(velocity.weight),
        output: wide(gradient.offset),
        cotangent_stride: wide(cotangent.task_stride),
        velocity_stride: wide(velocity.task_stride),
        length: wide(length),
        tasks: narrow(tasks),
        scale,
    };
    let shapes = format_args!("{tasks} tasks of {length} parameters");
    device.launch(arena, Kernel::RateGradient, [blocks_of(length), 1, 1], &call, shapes);
}
