//! Batch normalisation over the rows of each task, its Jacobian, and the adjoint of the latter.

use super::driver::{COLUMNS, Driver, Kernel};
use super::{Arguments, CudaArena, CudaDevice, activation_code, narrow, wide};
use crate::device::{self, Region};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Normalise {
    rows: u64,
    inverse: u64,
    shift: u64,
    output: u64,
    count: u32,
    width: u32,
    activation: u32,
    epsilon: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct NormaliseJacobian {
    normalised: u64,
    inverse: u64,
    from: u64,
    to: u64,
    count: u32,
    width: u32,
    accumulate: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct NormaliseAdjoint {
    normalised: u64,
    inverse: u64,
    values: u64,
    y_delta: u64,
    u_delta: u64,
    cotangent: u64,
    u_cotangent: u64,
    y_cotangent: u64,
    e_cotangent: u64,
    count: u32,
    width: u32,
    activation: u32,
    curved: u32,
}

super::arguments! {
    Normalise, 48 => Normalise;
    NormaliseJacobian, 48 => NormaliseJacobian;
    NormaliseAdjoint, 88 => NormaliseAdjoint;
}

/// Launches a kernel over the columns of all tasks' rows.
fn launch<D: Driver, A: Arguments>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    kernel: Kernel,
    (tasks, rows): (usize, Region),
    call: &A,
) {
    let grid = [tasks, rows.width.div_ceil(COLUMNS), 1];
    let shapes = format_args!("{tasks} tasks, {} rows of {} in all", rows.rows, rows.width);
    device.launch(arena, kernel, grid, call, shapes);
}

/// See [`device::Normalise`].
pub(super) fn forward<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &device::Normalise) {
    assert_eq!((op.rows.len(), op.rows.width, op.inverse.rows), (op.output.len(), op.shift.len(), op.tasks));
    arena.check(&[op.shift], &[op.rows, op.inverse, op.output]);
    let call = Normalise {
        rows: wide(op.rows.offset),
        inverse: wide(op.inverse.offset),
        shift: wide(op.shift.offset),
        output: wide(op.output.offset),
        count: narrow(op.rows.rows / op.tasks),
        width: narrow(op.rows.width),
        activation: activation_code(op.activation),
        epsilon: op.epsilon as f32,
    };
    launch(device, arena, Kernel::Normalise, (op.tasks, op.rows), &call);
}

/// See [`device::NormaliseJacobian`].
pub(super) fn jacobian<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &device::NormaliseJacobian) {
    assert_eq!((op.from.len(), op.inverse.rows), (op.to.len(), op.tasks));
    arena.check(&[op.normalised, op.inverse, op.from], &[op.to]);
    let call = NormaliseJacobian {
        normalised: wide(op.normalised.offset),
        inverse: wide(op.inverse.offset),
        from: wide(op.from.offset),
        to: wide(op.to.offset),
        count: narrow(op.from.rows / op.tasks),
        width: narrow(op.from.width),
        accumulate: u32::from(op.accumulate),
        unused: 0,
    };
    launch(device, arena, Kernel::NormaliseJacobian, (op.tasks, op.from), &call);
}

/// See [`device::NormaliseAdjoint`].
pub(super) fn adjoint<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &device::NormaliseAdjoint) {
    assert_eq!((op.cotangent.len(), op.inverse.rows), (op.e_cotangent.len(), op.tasks));
    let curved = op.activation.is_curved();
    let reads = [op.normalised, op.inverse, op.values, op.y_delta, op.u_delta, op.cotangent];
    let writes = [op.u_cotangent, op.e_cotangent, op.y_cotangent];
    arena.check(&reads, &writes[..if curved { 3 } else { 2 }]);
    let call = NormaliseAdjoint {
        normalised: wide(op.normalised.offset),
        inverse: wide(op.inverse.offset),
        values: wide(op.values.offset),
        y_delta: wide(op.y_delta.offset),
        u_delta: wide(op.u_delta.offset),
        cotangent: wide(op.cotangent.offset),
        u_cotangent: wide(op.u_cotangent.offset),
        y_cotangent: wide(op.y_cotangent.offset),
        e_cotangent: wide(op.e_cotangent.offset),
        count: narrow(op.cotangent.rows / op.tasks),
        width: narrow(op.cotangent.width),
        activation: activation_code(op.activation),
        curved: u32::from(curved),
    };
    launch(device, arena, Kernel::NormaliseAdjoint, (op.tasks, op.cotangent), &call);
}
