//! The materialised form's inner step and its transpose.

use super::driver::{Driver, Kernel};
use super::linear::TILE;
use super::{Arguments, CudaArena, CudaDevice, NOTHING, NOWHERE, blocks_of, narrow, reduction, spans_of, thin, wide};
use crate::device::{self, Linear, Rate, Region};

/// An array of a layer's parameters: where the first task's begin, and how far it is to the next task's.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct PerTask {
    offset: u64,
    stride: u64,
}

impl PerTask {
    /// No array.
    pub const NOWHERE: Self = Self { offset: NOWHERE, stride: 0 };
}

impl From<&Linear> for PerTask {
    fn from(layer: &Linear) -> Self {
        Self { offset: wide(layer.weight), stride: wide(layer.task_stride) }
    }
}

impl From<&Option<Linear>> for PerTask {
    fn from(layer: &Option<Linear>) -> Self {
        layer.as_ref().map_or(Self::NOWHERE, Self::from)
    }
}

/// One rate, or its place, or that of one for each parameter.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Rates {
    place: u64,
    all: f32,
    single: u32,
}

impl From<&Rate<f32>> for Rates {
    fn from(rate: &Rate<f32>) -> Self {
        let (place, all, single) = match rate {
            Rate::Uniform(rate) => (NOWHERE, *rate, true),
            Rate::Single(rate) => (wide(rate.offset), 0.0, true),
            Rate::PerParameter(rates) => (wide(rates.weight), 0.0, false),
        };
        Self { place, all, single: single.into() }
    }
}

/// The rows that a layer's gradients are made of, task by task.
#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct GradientRows {
    delta: u64,
    values: u64,
    tasks: u32,
    rows: u32,
    blocks: u32,
    inputs: u32,
    outputs: u32,
    bias: f32,
    bias_factor: u64,
}

impl GradientRows {
    /// `rows` rows a task in every block of `delta` and `values`; then the value of the column that stands for the bias, and a factor
    /// of it.
    pub fn new(
        tasks: usize,
        rows: usize,
        delta: Region,
        values: Region,
        (bias, factor): (f32, Option<Region>),
    ) -> Self {
        Self {
            delta: wide(delta.offset),
            values: wide(values.offset),
            tasks: narrow(tasks),
            rows: narrow(rows),
            blocks: narrow(delta.rows / (tasks * rows)),
            inputs: narrow(values.width),
            outputs: narrow(delta.width),
            bias,
            bias_factor: factor.map_or(NOWHERE, |factor| wide(factor.offset)),
        }
    }
}

/// Launches a kernel that goes through the gradients which these rows make; where they are few, its twin for that.
pub(super) fn launch_over<D: Driver, A: Arguments>(
    device: &CudaDevice<D>,
    arena: &mut CudaArena<D>,
    kernel: Kernel,
    few: Option<thin::Kernels>,
    gradient: impl Fn(&A) -> &GradientRows,
    call: &A,
) {
    let GradientRows { tasks, rows, blocks, inputs, outputs, .. } = *gradient(call);
    let tiles = |width: u32| (width as usize).div_ceil(TILE);
    let shapes = format_args!("{blocks} blocks of {tasks} tasks x {rows} rows, {outputs} x {inputs}");
    let (kernel, grid) = match few.and_then(|few| thin::choose(few, blocks as usize * rows as usize)) {
        Some(kernel) => (kernel, thin::gradient_grid(tasks as usize, inputs as usize, outputs as usize)),
        None => (kernel, [tasks as usize * tiles(outputs), tiles(inputs), 1]),
    };
    device.launch(arena, kernel, grid, call, shapes);
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct InnerUpdate {
    gradient: GradientRows,
    from: PerTask,
    to: PerTask,
    velocity: PerTask,
    new_velocity: PerTask,
    rates: Rates,
    momentum: f32,
    decay: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ReverseUpdate {
    cotangent: PerTask,
    direction: PerTask,
    rates: Rates,
    length: u64,
    momentum: f32,
    begun: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RateGradient {
    cotangent: PerTask,
    velocity: PerTask,
    output: u64,
    length: u64,
    tasks: u32,
    scale: f32,
}

super::arguments! {
    InnerUpdate, 136 => InnerUpdate ThinInnerUpdate ThinInnerUpdate16;
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

/// What is read of a rate.
pub(super) fn rates_region(rate: &Rate<f32>) -> Region {
    match rate {
        Rate::Uniform(_) => NOTHING,
        Rate::Single(rate) => *rate,
        Rate::PerParameter(rates) => region(rates, 1),
    }
}

/// See [`device::InnerUpdate`].
pub(super) fn inner_update<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &device::InnerUpdate<f32>) {
    let to = region(&op.to, op.tasks);
    let before = op.velocity.map_or(NOTHING, |v| region(&v, op.tasks));
    let kept = op.new_velocity.map_or(NOTHING, |v| region(&v, op.tasks));
    let factor = op.bias_factor.unwrap_or(NOTHING);
    let reads = [op.delta, op.values, region(&op.from, op.tasks), before, rates_region(&op.rate), factor];
    arena.check(&reads, &[to, kept]);
    let call = InnerUpdate {
        gradient: GradientRows::new(op.tasks, op.rows, op.delta, op.values, (op.bias, op.bias_factor)),
        from: (&op.from).into(),
        to: (&op.to).into(),
        velocity: (&op.velocity).into(),
        new_velocity: (&op.new_velocity).into(),
        rates: (&op.rate).into(),
        momentum: op.momentum,
        decay: op.decay,
    };
    launch_over(device, arena, Kernel::InnerUpdate, Some(thin::INNER_UPDATE), |call| &call.gradient, &call);
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
    let call = ReverseUpdate {
        cotangent: (&op.weight_cotangent).into(),
        direction: (&op.direction).into(),
        rates: (&op.rate).into(),
        length: wide(length),
        momentum: op.momentum,
        begun: (op.accumulate && op.momentum != 0.0).into(),
    };
    let shapes = format_args!("{} tasks of {length} parameters", op.tasks);
    device.launch(arena, Kernel::ReverseUpdate, [spans_of(length), op.tasks, 1], &call, shapes);
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
        cotangent: cotangent.into(),
        velocity: velocity.into(),
        output: wide(gradient.offset),
        length: wide(length),
        tasks: narrow(tasks),
        scale,
    };
    let shapes = format_args!("{tasks} tasks of {length} parameters");
    device.launch(arena, Kernel::RateGradient, [blocks_of(length), 1, 1], &call, shapes);
}
