//! Losses with their first and second derivatives.

use std::mem::offset_of;

use super::driver::{Driver, Kernel};
use super::tensor::operands;
use super::{
    Arguments, CudaArena, CudaDevice, NOTHING, NOWHERE, activation_code, blocks_of, ended, narrow, pack, spans_of, wide,
};
use crate::device::operation;
use crate::device::{
    AdversarialCurvature, AdversarialLoss, PixelCurvature, PixelLoss, Region, SupervisedCurvature, SupervisedLoss,
};
use crate::objective::Loss;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Supervised {
    prediction: u64,
    target: u64,
    e: u64,
    output: u64,
    rows: u32,
    outputs: u32,
    tasks: u32,
    loss: u32,
    activation: u32,
    begun: u32,
    scale: f32,
    operands: u32,
    packed: u64,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Adversarial {
    logits: u64,
    delta: u64,
    e: u64,
    z: u64,
    discriminator_loss: u64,
    generator_loss: u64,
    tasks: u32,
    rows: u32,
    activation: u32,
    begun: u32,
    weight: f32,
    scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Differences {
    factor: f64,
    period: u32,
    distance: u32,
}

impl From<operation::Differences> for Differences {
    fn from(d: operation::Differences) -> Self {
        Self { factor: d.factor, period: narrow(d.period), distance: narrow(d.distance) }
    }
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Pixel {
    prediction: u64,
    target: u64,
    upstream: u64,
    e: u64,
    output: u64,
    reconstruction: f64,
    differences: [Differences; 3],
    rows: u32,
    width: u32,
    activation: u32,
    begun: u32,
    packed: u64,
    operands: u32,
    unused: u32,
}

super::arguments! {
    Supervised, 72 =>
        ElementwiseDelta ElementwiseCurvature CrossEntropyDelta CrossEntropyCurvature SupervisedLoss;
    Adversarial, 72 => AdversarialLoss AdversarialCurvature;
    Pixel, 128 => PixelDelta PixelCurvature PixelLoss;
}

/// Rows a block takes in the cross-entropy kernels: a warp each.
const WARPS: usize = 4;

fn or_nowhere(region: Option<Region>) -> u64 {
    region.map_or(NOWHERE, |region| wide(region.offset))
}

/// The loss as kernels take it: `Loss` in `kernels/loss.cuh`.
pub(super) fn loss_code(loss: Loss) -> u32 {
    match loss {
        Loss::Mse => 0,
        Loss::BceWithLogits => 1,
        Loss::CrossEntropy => 2,
    }
}

/// 1 / (the elements that a task's loss is a mean of).
pub(super) fn scale(op: &SupervisedLoss) -> f32 {
    let rows = op.prediction.rows / op.tasks;
    let count = if op.loss == Loss::CrossEntropy { rows } else { rows * op.prediction.width };
    (1.0 / count as f64) as f32
}

impl Supervised {
    /// The same, which leaves a copy of its output as well if a product to come takes it.
    fn copied<D: Driver>(
        self,
        device: &CudaDevice<D>,
        arena: &CudaArena<D>,
        op: &SupervisedLoss,
        output: Region,
    ) -> Self {
        let packed = if op.loss == Loss::CrossEntropy { None } else { pack::produced(device, arena, output) };
        Self { packed: packed.map_or(NOWHERE, wide), operands: operands(device.precision), ..self }
    }

    fn new(op: &SupervisedLoss) -> Self {
        Self {
            prediction: wide(op.prediction.offset),
            target: wide(op.target.offset),
            e: NOWHERE,
            output: NOWHERE,
            rows: narrow(op.prediction.rows),
            outputs: narrow(op.prediction.width),
            tasks: narrow(op.tasks),
            loss: loss_code(op.loss),
            activation: activation_code(op.activation),
            begun: 0,
            scale: scale(op),
            operands: 0,
            packed: NOWHERE,
        }
    }

    /// Launches the kernel for sums over elements, or the one for the cross-entropy.
    fn launch<D: Driver>(
        &self,
        device: &CudaDevice<D>,
        arena: &CudaArena<D>,
        op: &SupervisedLoss,
        kernels: [Kernel; 2],
    ) {
        let [elementwise, by_rows] = kernels;
        let (kernel, grid) = match op.loss {
            Loss::CrossEntropy => (by_rows, op.prediction.rows.div_ceil(WARPS)),
            _ => (elementwise, spans_of(op.prediction.len())),
        };
        let shapes = format_args!("{} rows of {}, {}", op.prediction.rows, op.prediction.width, op.loss);
        device.launch(arena, kernel, [grid, 1, 1], self, shapes);
    }
}

/// See [`SupervisedLoss`].
pub(super) fn supervised<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &SupervisedLoss) {
    let call = Supervised::new(op);
    if let Some(delta) = op.delta
        && !ended::with_delta(arena, op, delta)
    {
        arena.flush();
        arena.admit(&[op.prediction, op.target], &[delta]);
        arena.keep_to_writing(&[op.prediction, op.target], &[delta]);
        let call = Supervised { output: wide(delta.offset), ..call }.copied(device, arena, op, delta);
        call.launch(device, arena, op, [Kernel::ElementwiseDelta, Kernel::CrossEntropyDelta]);
        if op.loss != Loss::CrossEntropy {
            arena.may_leave_out(offset_of!(Supervised, output), delta);
        }
    }
    if let Some(task_loss) = op.task_loss
        && !ended::with_task_losses(arena, op, task_loss)
    {
        arena.check(&[op.prediction, op.target], &[task_loss]);
        task_losses(device, arena, op);
    }
}

/// Of a supervised loss the task losses.
pub(super) fn task_losses<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, op: &SupervisedLoss) {
    let call = Supervised { output: or_nowhere(op.task_loss), ..Supervised::new(op) };
    let shapes = format_args!("{} rows of {}, {}", op.prediction.rows, op.prediction.width, op.loss);
    device.launch(arena, Kernel::SupervisedLoss, [op.tasks, 1, 1], &call, shapes);
}

/// See [`SupervisedCurvature`].
pub(super) fn supervised_curvature<D: Driver>(
    device: &CudaDevice<D>,
    arena: &mut CudaArena<D>,
    op: &SupervisedCurvature,
) {
    if ended::with_curvature(arena, op) {
        return;
    }
    arena.check(&[op.at.prediction, op.at.target, op.e_cotangent], &[op.z_cotangent]);
    let call = Supervised {
        e: wide(op.e_cotangent.offset),
        output: wide(op.z_cotangent.offset),
        begun: op.accumulate.into(),
        ..Supervised::new(&op.at)
    };
    let call = call.copied(device, arena, &op.at, op.z_cotangent);
    call.launch(device, arena, &op.at, [Kernel::ElementwiseCurvature, Kernel::CrossEntropyCurvature]);
}

impl Adversarial {
    fn new(op: &AdversarialLoss<f32>) -> Self {
        let rows = op.logits.rows / (2 * op.tasks);
        Self {
            logits: wide(op.logits.offset),
            delta: wide(op.delta.offset),
            e: NOWHERE,
            z: NOWHERE,
            discriminator_loss: or_nowhere(op.discriminator_loss),
            generator_loss: or_nowhere(op.generator_loss),
            tasks: narrow(op.tasks),
            rows: narrow(rows),
            activation: activation_code(op.activation),
            begun: 0,
            weight: op.weight,
            scale: (1.0 / rows as f64) as f32,
        }
    }
}

/// See [`AdversarialLoss`].
pub(super) fn adversarial<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &AdversarialLoss<f32>) {
    let losses = [op.discriminator_loss, op.generator_loss].map(|loss| loss.unwrap_or(NOTHING));
    arena.check(&[op.logits], &[op.delta, losses[0], losses[1]]);
    let call = Adversarial::new(op);
    let shapes = format_args!("{} tasks x {} rows", op.tasks, call.rows);
    device.launch(arena, Kernel::AdversarialLoss, [op.tasks, 1, 1], &call, shapes);
}

/// See [`AdversarialCurvature`].
pub(super) fn adversarial_curvature<D: Driver>(
    device: &CudaDevice<D>,
    arena: &mut CudaArena<D>,
    op: &AdversarialCurvature<f32>,
) {
    arena.check(&[op.at.logits, op.e_cotangent], &[op.z_cotangent]);
    let call = Adversarial {
        e: wide(op.e_cotangent.offset),
        z: wide(op.z_cotangent.offset),
        begun: op.accumulate.into(),
        ..Adversarial::new(&op.at)
    };
    let grid = [blocks_of(op.at.logits.rows), 1, 1];
    let shapes = format_args!("{} logits", op.at.logits.rows);
    device.launch(arena, Kernel::AdversarialCurvature, grid, &call, shapes);
}

impl Pixel {
    fn new(op: &PixelLoss<f32>) -> Self {
        let form = op.quadratic();
        Self {
            prediction: wide(op.prediction.offset),
            target: wide(op.target.offset),
            upstream: wide(op.upstream.offset),
            e: NOWHERE,
            output: NOWHERE,
            reconstruction: form.pixel,
            differences: [form.motion, form.texture[0], form.texture[1]].map(Differences::from),
            rows: narrow(op.prediction.rows / op.tasks),
            width: narrow(op.prediction.width),
            activation: activation_code(op.activation),
            begun: 0,
            packed: NOWHERE,
            operands: 0,
            unused: 0,
        }
    }

    /// To `output`, with a copy as well if a product to come takes it.
    fn to<D: Driver>(self, device: &CudaDevice<D>, arena: &CudaArena<D>, output: Region) -> Self {
        let packed = pack::produced(device, arena, output).map_or(NOWHERE, wide);
        Self { output: wide(output.offset), packed, operands: operands(device.precision), ..self }
    }

    /// Launches a kernel with a thread for each element.
    fn launch<D: Driver>(&self, device: &CudaDevice<D>, arena: &CudaArena<D>, kernel: Kernel, rows: usize) {
        let (width, frame) = (self.width as usize, self.differences[0].distance);
        let shapes = format_args!("{rows} clips of {width}, frames of {frame}");
        device.launch(arena, kernel, [rows, blocks_of(width), 1], self, shapes);
    }
}

/// See [`PixelLoss`].
pub(super) fn pixel<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &PixelLoss<f32>) {
    let reads = [op.prediction, op.target, op.upstream];
    arena.check(&reads, &[op.delta]);
    let call = Pixel::new(op);
    call.to(device, arena, op.delta).launch(device, arena, Kernel::PixelDelta, op.prediction.rows);
    if let Some(task_loss) = op.task_loss {
        arena.check(&reads, &[op.delta, task_loss]);
        let call = Pixel { output: wide(task_loss.offset), ..call };
        let shapes = format_args!("{} tasks x {} clips of {}", op.tasks, call.rows, call.width);
        device.launch(arena, Kernel::PixelLoss, [op.tasks, 1, 1], &call, shapes);
    }
}

/// See [`PixelCurvature`].
pub(super) fn pixel_curvature<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &PixelCurvature<f32>) {
    arena.check(&[op.at.prediction, op.at.upstream, op.e_cotangent], &[op.z_cotangent]);
    let call = Pixel { e: wide(op.e_cotangent.offset), begun: op.accumulate.into(), ..Pixel::new(&op.at) };
    call.to(device, arena, op.z_cotangent).launch(device, arena, Kernel::PixelCurvature, op.at.prediction.rows);
}
