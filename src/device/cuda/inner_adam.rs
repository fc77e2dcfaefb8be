//! The materialised form's inner step of Adam, its transpose and the gradient of its rates.

use super::driver::{Driver, Kernel};
use super::inner_update::{GradientRows, PerTask, Rates, launch_over, rate_gradient, rates_region, region};
use super::{Arguments, CudaArena, CudaDevice, NOTHING, blocks_of, wide};
use crate::device::{self, Linear};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
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
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AdamUpdate {
    gradient: GradientRows,
    from: PerTask,
    to: PerTask,
    moments: [PerTask; 2],
    new_moments: [PerTask; 2],
    rates: Rates,
    rule: AdamRule,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AdamMoved {
    moments: [PerTask; 2],
    output: PerTask,
    length: u64,
    rule: AdamRule,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ReverseAdam {
    gradient: GradientRows,
    cotangent: PerTask,
    moments: [PerTask; 2],
    moment_cotangents: [PerTask; 2],
    direction: PerTask,
    rates: Rates,
    rule: AdamRule,
    begun: u32,
    unused: u32,
}

super::arguments! {
    AdamUpdate, 192 => AdamUpdate;
    AdamMoved, 88 => AdamMoved;
    ReverseAdam, 200 => ReverseAdam;
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
    let call = AdamUpdate {
        gradient: GradientRows::new(op.tasks, op.rows, op.delta, op.values, (1.0, None)),
        from: (&op.from).into(),
        to: (&op.to).into(),
        moments: op.moments.map_or([PerTask::NOWHERE; 2], |moments| moments.each_ref().map(PerTask::from)),
        new_moments: op.new_moments.each_ref().map(PerTask::from),
        rates: (&op.rate).into(),
        rule: (&op.adam).into(),
    };
    launch_over(device, arena, Kernel::AdamUpdate, None, |call| &call.gradient, &call);
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
    let call = ReverseAdam {
        gradient: GradientRows::new(op.tasks, op.rows, op.delta, op.values, (1.0, None)),
        cotangent: (&op.weight_cotangent).into(),
        moments: op.moments.each_ref().map(PerTask::from),
        moment_cotangents: op.moment_cotangents.each_ref().map(PerTask::from),
        direction: (&op.direction).into(),
        rates: (&op.rate).into(),
        rule: (&op.adam).into(),
        begun: op.accumulate.into(),
        unused: 0,
    };
    launch_over(device, arena, Kernel::ReverseAdam, None, |call| &call.gradient, &call);
}
