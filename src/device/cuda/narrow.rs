//! Whole inner loops of networks with two narrow hidden layers and one output: a warp a task, or several where tasks are few.

use super::driver::{Driver, Kernel};
use super::outer_product::MULTIPROCESSORS;
use super::{Arguments, CudaArena, CudaDevice, NOWHERE, narrow, settle, wide};
use crate::device::{Region, Resident, ResidentGradient};
use crate::model::Activation;
use crate::objective::Loss;

/// Units of a hidden layer at most, and numbers that belong to a row of units: as in `kernels/narrow.cuh`.
pub(super) const WIDTH: usize = 40;
const ROW: usize = 6 * WIDTH;
/// Rows of a task and inputs at most: beyond, the general kernel has more threads for them.
const ROWS: usize = 16;
const INPUTS: usize = 8;
/// Tasks a block where there are many, as in `kernels/narrow.cu`.
const MANY_TASKS: usize = 4;
/// Tasks that are few: each has a multiprocessor for itself.
const FEW: usize = MULTIPROCESSORS;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct NarrowPass {
    x: u64,
    y: u64,
    inputs: u32,
    targets: u32,
    rows: u32,
    scale: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Narrow {
    parameters: u64,
    rates: u64,
    task_loss: u64,
    gradients: u64,
    support: NarrowPass,
    query: NarrowPass,
    slot: u32,
    upper_values: u32,
    deltas: u32,
    work: u32,
    rate: u32,
    cotangent: u32,
    ends: u32,
    shared: u32,
    kept: u32,
    length: u32,
    edges: u32,
    tasks: u32,
    steps: u32,
    inputs: u32,
    lower: u32,
    upper: u32,
    count: u32,
    exact: u32,
}

super::arguments! {
    Narrow, 168 => NarrowMany NarrowFew;
}

/// A task's memory, taken piece by piece from multiples of 16 bytes on.
#[derive(Debug, Default)]
pub(super) struct Room {
    len: usize,
}

impl Room {
    /// Where so many numbers begin.
    pub fn take(&mut self, count: usize) -> u32 {
        self.len += count.next_multiple_of(4);
        narrow(self.len - count.next_multiple_of(4))
    }

    pub fn length(&self) -> u32 {
        narrow(self.len)
    }
}

impl NarrowPass {
    /// `rows` a task of inputs and targets, for which there is room for `most`.
    pub fn new([x, y]: [Region; 2], rows: usize, most: usize, inputs: usize, room: &mut Room) -> Self {
        Self {
            x: wide(x.offset),
            y: wide(y.offset),
            inputs: room.take(most * inputs),
            targets: room.take(most),
            rows: narrow(rows),
            scale: 1.0 / rows as f32,
        }
    }
}

/// Whether the kernels do that, in some launch.
pub(super) fn fits(op: &Resident<'_, f32>) -> bool {
    let mlp = op.mlp;
    let widths = match *mlp.widths() {
        [inputs, lower, upper, 1] => inputs <= INPUTS && lower <= WIDTH && upper <= WIDTH,
        _ => false,
    };
    widths
        && *mlp.activations() == [Activation::Relu, Activation::Relu, Activation::Linear]
        && op.loss == Loss::Mse
        && op.kind != ResidentGradient::Displacement
        && op.first_moving == 0
        && op.momentum == 0.0
        && op.decay == 0.0
        && !op.per_parameter
        && (1..=ROWS).contains(&op.shots)
        && (1..=ROWS).contains(&op.queries)
        && op.rate_gradient.is_none()
        && op.adapted.is_none()
        && op.trace.is_none()
}

/// The call, for several warps a task or for one.
fn call(op: &Resident<'_, f32>, [gradient, gradients]: [Region; 2], several: bool) -> Narrow {
    let &[inputs, lower, upper, _] = op.mlp.widths() else { unreachable!("three layers") };
    let rows = op.shots.max(op.queries).next_multiple_of(2);
    let mut room = Room::default();
    let edges = (inputs + 3) * WIDTH;
    let upper_values = (edges + 1).next_multiple_of(4);
    let deltas = upper_values + rows * WIDTH;
    let slot = deltas + rows.next_multiple_of(4);
    room.take((op.steps + 1) * slot);
    let work = room.take(rows * ROW);
    let [support, query] = [(op.support, op.shots), (op.query, op.queries)]
        .map(|(regions, rows)| NarrowPass::new(regions, rows, rows.next_multiple_of(2), inputs, &mut room));
    let rate = room.take(3 * op.steps);
    // The middle weight's cotangent comes to lie over what is before.
    let before = room.len;
    room.take((WIDTH * WIDTH).saturating_sub(before));
    let cotangent = room.take(edges + 1);
    let ends = room.take(8 + rows);
    let mut middle = |wanted: bool, count: usize| room.take(if wanted { count * WIDTH * WIDTH } else { 0 });
    let (shared, kept) = (middle(several, 1), middle(several && op.is_exact(), op.steps));
    Narrow {
        parameters: wide(op.parameters.offset),
        rates: wide(op.rates.offset),
        task_loss: op.task_loss.map_or(NOWHERE, |region| wide(region.offset)),
        gradients: wide(gradients.offset),
        support,
        query,
        slot: narrow(slot),
        upper_values: narrow(upper_values),
        deltas: narrow(deltas),
        work,
        rate,
        cotangent,
        ends,
        shared,
        kept,
        length: room.length(),
        edges: narrow(edges),
        tasks: narrow(op.tasks),
        steps: narrow(op.steps),
        inputs: narrow(inputs),
        lower: narrow(lower),
        upper: narrow(upper),
        count: narrow(gradient.len()),
        exact: op.is_exact().into(),
    }
}

/// Carries the operation out, whose regions have been checked, if that is for these kernels; says whether it was.
pub(super) fn narrow_loop<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &Resident<'_, f32>) -> bool {
    let Some([to, gradients]) = op.gradient.filter(|_| fits(op)) else { return false };
    for (kernel, tasks, most) in [(Kernel::NarrowFew, 1, FEW), (Kernel::NarrowMany, MANY_TASKS, usize::MAX)] {
        let call = call(op, [to, gradients], kernel == Kernel::NarrowFew);
        let bytes = tasks * call.length as usize * size_of::<f32>();
        if op.tasks > most || bytes > device.driver.shared_bytes() {
            continue;
        }
        let blocks = op.tasks.div_ceil(tasks);
        let Resident { tasks, steps, shots, queries, .. } = op;
        let shapes = format_args!("{tasks} tasks, {steps} steps, {shots} and {queries} rows, {bytes} bytes a block");
        device.launch_with(arena, kernel, [blocks, 1, 1], narrow(bytes), &call, shapes);
        settle::sum_rows(device, arena, gradients.rows(0, blocks), op.scale, to);
        return true;
    }
    false
}
