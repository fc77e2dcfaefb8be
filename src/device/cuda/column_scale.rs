//! A factor for each column, with an activation, and its transpose.

use super::driver::{COLUMNS, Driver, Kernel};
use super::{Arguments, CudaArena, CudaDevice, NOTHING, NOWHERE, activation_code, blocks_of, narrow, wide};
use crate::device;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ColumnScale {
    from: u64,
    scale: u64,
    to: u64,
    cotangent: u64,
    gradient: u64,
    rows: u32,
    width: u32,
    activation: u32,
    weight: f32,
}

super::arguments! {
    ColumnScale, 56 => ColumnScale ColumnScaleAdjoint;
}

impl ColumnScale {
    fn new(op: &device::ColumnScale) -> Self {
        assert_eq!((op.from.len(), op.from.width), (op.to.len(), op.scale.len()));
        Self {
            from: wide(op.from.offset),
            scale: wide(op.scale.offset),
            to: wide(op.to.offset),
            cotangent: NOWHERE,
            gradient: NOWHERE,
            rows: narrow(op.from.rows),
            width: narrow(op.from.width),
            activation: activation_code(op.activation),
            weight: 0.0,
        }
    }
}

/// See [`device::ColumnScale`].
pub(super) fn forward<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &device::ColumnScale) {
    arena.check(&[op.from, op.scale], &[op.to]);
    let grid = [op.from.rows, blocks_of(op.from.width), 1];
    let shapes = format_args!("{} rows of {}", op.from.rows, op.from.width);
    device.launch(arena, Kernel::ColumnScale, grid, &ColumnScale::new(op), shapes);
}

/// See [`device::ColumnScaleAdjoint`].
pub(super) fn adjoint<D: Driver>(
    device: &CudaDevice<D>,
    arena: &mut CudaArena<D>,
    op: &device::ColumnScaleAdjoint<f32>,
) {
    let device::ColumnScale { from, scale, to, .. } = op.of;
    arena.check(&[from, scale, to], &[op.cotangent, op.gradient.unwrap_or(NOTHING)]);
    let call = ColumnScale {
        cotangent: wide(op.cotangent.offset),
        gradient: op.gradient.map_or(NOWHERE, |gradient| wide(gradient.offset)),
        weight: op.weight,
        ..ColumnScale::new(&op.of)
    };
    let shapes = format_args!("{} rows of {}", from.rows, from.width);
    device.launch(arena, Kernel::ColumnScaleAdjoint, [from.width.div_ceil(COLUMNS), 1, 1], &call, shapes);
}
