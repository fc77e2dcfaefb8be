//! The loops of `narrow.rs` in tf32 on tensor cores, a warp a task.

use super::driver::{Driver, Kernel};
use super::narrow::{NarrowPass, Room, WIDTH, fits};
use super::outer_product::MULTIPROCESSORS;
use super::{Arguments, CudaArena, CudaDevice, NOWHERE, narrow, settle, wide};
use crate::device::{MatrixPrecision, Region, Resident};

/// Rows of a pass, tasks a block, and numbers from unit to unit of what is turned: as in `kernels/narrow_mma.cu`
/// and `kernels/narrow_mma.cuh`.
const ROWS: usize = 16;
const TURNED_UNIT: usize = 20;
const LANES: usize = 32;
const TASKS: usize = 4;
/// Fewer tasks than that have several warps each, in f32.
const LEAST: usize = MULTIPROCESSORS + 1;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct NarrowMma {
    parameters: u64,
    rates: u64,
    task_loss: u64,
    gradients: u64,
    support: NarrowPass,
    query: NarrowPass,
    slot: u32,
    deltas: u32,
    active: u32,
    rate: u32,
    cotangent: u32,
    weight: u32,
    moved_weight: u32,
    turned: u32,
    length: u32,
    edges: u32,
    tasks: u32,
    steps: u32,
    inputs: u32,
    lower: u32,
    upper: u32,
    count: u32,
    exact: u32,
    unused: u32,
}

super::arguments! {
    NarrowMma, 168 => NarrowMma;
}

fn call(op: &Resident<'_, f32>, [gradient, gradients]: [Region; 2]) -> NarrowMma {
    let &[inputs, lower, upper, _] = op.mlp.widths() else { unreachable!("three layers") };
    let mut room = Room::default();
    let edges = (inputs + 3) * WIDTH;
    let deltas = (edges + 1).next_multiple_of(4);
    let active = deltas + ROWS;
    let slot = active + LANES;
    room.take((op.steps + 1) * slot);
    let [support, query] = [(op.support, op.shots), (op.query, op.queries)]
        .map(|(regions, rows)| NarrowPass::new(regions, rows, ROWS, inputs, &mut room));
    let rate = room.take(3 * op.steps);
    let cotangent = room.take(edges + 1);
    let [weight, moved_weight] = [(); 2].map(|()| room.take(WIDTH * WIDTH));
    let turned = room.take(WIDTH * TURNED_UNIT);
    NarrowMma {
        parameters: wide(op.parameters.offset),
        rates: wide(op.rates.offset),
        task_loss: op.task_loss.map_or(NOWHERE, |region| wide(region.offset)),
        gradients: wide(gradients.offset),
        support,
        query,
        slot: narrow(slot),
        deltas: narrow(deltas),
        active: narrow(active),
        rate,
        cotangent,
        weight,
        moved_weight,
        turned,
        length: room.length(),
        edges: narrow(edges),
        tasks: narrow(op.tasks),
        steps: narrow(op.steps),
        inputs: narrow(inputs),
        lower: narrow(lower),
        upper: narrow(upper),
        count: narrow(gradient.len()),
        exact: op.is_exact().into(),
        unused: 0,
    }
}

/// Carries the operation out, whose regions have been checked, if that is for these kernels; says whether it was.
pub(super) fn narrow_loop<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &Resident<'_, f32>) -> bool {
    let rounds = device.precision != MatrixPrecision::F32 && op.tasks >= LEAST;
    let Some([to, gradients]) = op.gradient.filter(|_| rounds && fits(op)) else { return false };
    let call = call(op, [to, gradients]);
    let bytes = TASKS * call.length as usize * size_of::<f32>();
    if bytes > device.driver.shared_bytes() {
        return false;
    }
    let blocks = op.tasks.div_ceil(TASKS);
    let Resident { tasks, steps, shots, queries, .. } = op;
    let shapes = format_args!("{tasks} tasks, {steps} steps, {shots} and {queries} rows, tf32, {bytes} bytes a block");
    device.launch_with(arena, Kernel::NarrowMma, [blocks, 1, 1], narrow(bytes), &call, shapes);
    settle::sum_rows(device, arena, gradients.rows(0, blocks), op.scale, to);
    true
}
