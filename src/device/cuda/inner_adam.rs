//! The materialised form's inner step of Adam, its transpose and the gradient of its rates.

use super::driver::{Driver, Kernel};
use super::inner_update::{rate_gradient, rates, rates_region, region};
use super::linear::TILE;
use super::{Arguments, CudaArena, CudaDevice, NOTHING, NOWHERE, blocks_of, narrow, wide};
use crate::device::{self, Linear};

#[repr(C)]
struct PerTask {
    offset: u64,
    stride: u64,
}

impl PerTask {
    const NOWHERE: Self = Self { offset: NOWHERE, stride: 0 };
}

impl From<&Linear> for PerTask {
    fn from(layer: &Linear) -> Self {
        Self { offset: wide(layer.weight), stride: wide(layer.task_stride) }
    }
}

#[repr(C)]
struct AdamRule {
    decay: [f32; 2],
    rest: [f32; 2],
    correction: [f32; 2],
    epsilon: f32,
    unused: u32,
}

impl From<&device::Adam<f32>> for AdamRule {
    fn from(adam: &device::Adam<f32>) -> Self {
        let device::Adam { decay, rest, correction, epsilon } = *adam;
        Self { decay, rest, correction, epsilon, unused: 0 }
    }
}

#[repr(C)]
struct AdamUpdate {
    delta: u64,
    values: u64,
    from: PerTask,
    to: PerTask,
    moments: [PerTask; 2],
    new_moments: [PerTask; 2],
    rates: u64,
    rule: AdamRule,
    tasks: u32,
    rows: u32,
    blocks: u32,
    inputs: u32,
    outputs: u32,
    rate: f32,
}

#[repr(C)]
struct AdamMoved {
    moments: [PerTask; 2],
    output: PerTask,
    length: u64,
    rule: AdamRule,
}

#[repr(C)]
struct ReverseAdam {
    delta: u64,
    values: u64,
    cotangent: PerTask,
    moments: [PerTask; 2],
    moment_cotangents: [PerTask; 2],
    direction: PerTask,
    rates: u64,
    rule: AdamRule,
    tasks: u32,
    rows: u32,
    blocks: u32,
    inputs: u32,
    outputs: u32,
    rate: f32,
    begun: u32,
    unused: u32,
}

super::arguments! {
    AdamUpdate, 176 => AdamUpdate;
    AdamMoved, 88 => AdamMoved;
    ReverseAdam, 184 => ReverseAdam;
}

/// See [`device::AdamUpdate`].
pub(super) fn update<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &device::AdamUpdate<f32>) {
    let all = |layer: &Linear| region(layer, op.tasks);
    let [first, second] = op.new_moments.each_ref().map(all);
    // Each element is read and written by one thread, so that the moments may be renewed in place.
    let before = op.moments.map_or([NOTHING; 2], |moments| moments.each_ref().map(all));
    let before = if before == [first, second] { [NOTHING; 2] } else { before };
    let reads = [op.delta, op.values, all(&op.from), rates_region(&op.rate), before[0], before[1]];
    arena.check(&reads, &[all(&op.to), first, second]);
    let Linear { inputs, outputs, .. } = op.to;
    let blocks = op.delta.rows / (op.tasks * op.rows);
    let (rates, rate) = rates(&op.rate);
    let call = AdamUpdate {
        delta: wide(op.delta.offset),
        values: wide(op.values.offset),
        from: (&op.from).into(),
        to: (&op.to).into(),
        moments: op.moments.map_or([PerTask::NOWHERE; 2], |moments| moments.each_ref().map(PerTask::from)),
        new_moments: op.new_moments.each_ref().map(PerTask::from),
        rates,
        rule: (&op.adam).into(),
        tasks: narrow(op.tasks),
        rows: narrow(op.rows),
        blocks: narrow(blocks),
        inputs: narrow(inputs),
        outputs: narrow(outputs),
        rate,
    };
    let grid = [op.tasks * outputs.div_ceil(TILE), inputs.div_ceil(TILE), 1];
    let shapes = format_args!("{blocks} blocks of {} tasks x {} rows, {outputs} x {inputs}", op.tasks, op.rows);
    device.launch(arena, Kernel::AdamUpdate, grid, &call, shapes);
}

/// See [`device::AdamRateGradient`].
pub(super) fn rates_of_step<D: Driver>(
    device: &CudaDevice<D>,
    arena: &mut CudaArena<D>,
    op: &device::AdamRateGradient<f32>,
) {
    let [first, second] = op.moments.each_ref().map(|m| region(m, op.tasks));
    arena.check(&[first, second], &[region(&op.moved, op.tasks)]);
    let length = (op.moved.inputs + 1) * op.moved.outputs;
    let call = AdamMoved {
        moments: op.moments.each_ref().map(PerTask::from),
        output: (&op.moved).into(),
        length: wide(length),
        rule: (&op.adam).into(),
    };
    let shapes = format_args!("{} tasks of {length} parameters", op.tasks);
    device.launch(arena, Kernel::AdamMoved, [blocks_of(length), op.tasks, 1], &call, shapes);
    rate_gradient(device, arena, op.tasks, (&op.weight_cotangent, &op.moved), op.scale, op.rate_gradient);
}

/// See [`device::ReverseAdam`].
pub(super) fn reverse<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &device::ReverseAdam<f32>) {
    let all = |layer: &Linear| region(layer, op.tasks);
    let [first, second] = op.moments.each_ref().map(all);
    let reads = [op.delta, op.values, all(&op.weight_cotangent), first, second, rates_region(&op.rate)];
    let [first, second] = op.moment_cotangents.each_ref().map(all);
    arena.check(&reads, &[all(&op.direction), first, second]);
    let Linear { inputs, outputs, .. } = op.direction;
    let blocks = op.delta.rows / (op.tasks * op.rows);
    let (rates, rate) = rates(&op.rate);
    let call = ReverseAdam {
        delta: wide(op.delta.offset),
        values: wide(op.values.offset),
        cotangent: (&op.weight_cotangent).into(),
        moments: op.moments.each_ref().map(PerTask::from),
        moment_cotangents: op.moment_cotangents.each_ref().map(PerTask::from),
        direction: (&op.direction).into(),
        rates,
        rule: (&op.adam).into(),
        tasks: narrow(op.tasks),
        rows: narrow(op.rows),
        blocks: narrow(blocks),
        inputs: narrow(inputs),
        outputs: narrow(outputs),
        rate,
        begun: op.accumulate.into(),
        unused: 0,
    };
    let grid = [op.tasks * outputs.div_ceil(TILE), inputs.div_ceil(TILE), 1];
    let shapes = format_args!("{blocks} blocks of {} tasks x {} rows, {outputs} x {inputs}", op.tasks, op.rows);
    device.launch(arena, Kernel::ReverseAdam, grid, &call, shapes);
}
