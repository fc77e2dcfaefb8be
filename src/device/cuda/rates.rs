//! What learned rates make of the dual form's corrections, and the way back.

use super::driver::{Driver, Kernel};
use super::{Arguments, CudaArena, CudaDevice, NOTHING, NOWHERE, blocks_of, narrow, wide};
use crate::device::{self, InnerRates};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RateTables {
    rates: u64,
    bias: u64,
    tables: u64,
    of_tables: u64,
    gradient: u64,
    bias_gradient: u64,
    momentum: f64,
    steps: u32,
    layers: u32,
    single: u32,
    first: u32,
}

super::arguments! {
    RateTables, 72 => RateTables RateTablesGradient;
}

impl RateTables {
    fn new(of: &InnerRates, tables: device::Region) -> Self {
        Self {
            rates: wide(of.rates.offset),
            bias: of.bias.map_or(NOWHERE, |bias| wide(bias.offset)),
            tables: wide(tables.offset),
            of_tables: NOWHERE,
            gradient: NOWHERE,
            bias_gradient: NOWHERE,
            momentum: of.momentum,
            steps: narrow(of.steps),
            layers: narrow(of.layers),
            single: of.is_single().into(),
            first: 0,
        }
    }
}

/// See [`device::RateTables`].
pub(super) fn tables<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, op: &device::RateTables) {
    arena.check(&[op.of.rates, op.of.bias.unwrap_or(NOTHING)], &[op.tables]);
    let grid = [blocks_of(op.tables.len()), 1, 1];
    let shapes = format_args!("{} steps of {} layers", op.of.steps, op.of.layers);
    device.launch(arena, Kernel::RateTables, grid, &RateTables::new(&op.of, op.tables), shapes);
}

/// See [`device::RateTablesGradient`].
pub(super) fn gradient<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, op: &device::RateTablesGradient) {
    arena.check(&[op.tables, op.of_tables], &[op.gradient, op.bias_gradient.unwrap_or(NOTHING)]);
    let call = RateTables {
        of_tables: wide(op.of_tables.offset),
        gradient: wide(op.gradient.offset),
        bias_gradient: op.bias_gradient.map_or(NOWHERE, |gradient| wide(gradient.offset)),
        first: narrow(op.first_moving),
        ..RateTables::new(&op.of, op.tables)
    };
    let shapes = format_args!("{} steps of {} layers", op.of.steps, op.of.layers);
    device.launch(arena, Kernel::RateTablesGradient, [1, 1, 1], &call, shapes);
}
