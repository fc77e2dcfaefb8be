//! What learned rates make of the dual form's corrections, and the way back.

use super::driver::{Driver, Kernel};
use super::{Arguments, CudaArena, CudaDevice, NOTHING, NOWHERE, blocks_of, narrow, wide};
use crate::device::{self, InnerRates, Region};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct RateTables {
    rates: u64,
    bias: u64,
    weights: u64,
    tables: u64,
    of_tables: u64,
    of_shares: u64,
    gradient: u64,
    bias_gradient: u64,
    momentum: f64,
    decay: f64,
    steps: u32,
    layers: u32,
    queries: u32,
    single: u32,
    first: u32,
    unused: u32,
}

super::arguments! {
    RateTables, 104 => RateTables RateTablesGradient;
}

fn place(region: Option<Region>) -> u64 {
    region.map_or(NOWHERE, |region| wide(region.offset))
}

/// What is read of them.
fn read(of: &InnerRates) -> [Region; 3] {
    [of.rates, of.bias.unwrap_or(NOTHING), of.query_weights.unwrap_or(NOTHING)]
}

impl RateTables {
    fn new(of: &InnerRates, tables: Region) -> Self {
        Self {
            rates: wide(of.rates.offset),
            bias: place(of.bias),
            weights: place(of.query_weights),
            tables: wide(tables.offset),
            of_tables: NOWHERE,
            of_shares: NOWHERE,
            gradient: NOWHERE,
            bias_gradient: NOWHERE,
            momentum: of.momentum,
            decay: of.decay,
            steps: narrow(of.steps),
            layers: narrow(of.layers),
            queries: narrow(of.queries()),
            single: of.is_single().into(),
            first: 0,
            unused: 0,
        }
    }
}

/// See [`device::RateTables`].
pub(super) fn tables<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, op: &device::RateTables) {
    arena.check(&read(&op.of), &[op.tables]);
    let grid = [blocks_of(op.tables.len()), 1, 1];
    let shapes = format_args!("{} steps of {} layers", op.of.steps, op.of.layers);
    device.launch(arena, Kernel::RateTables, grid, &RateTables::new(&op.of, op.tables), shapes);
}

/// See [`device::RateTablesGradient`].
pub(super) fn gradient<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, op: &device::RateTablesGradient) {
    let [rates, ..] = read(&op.of);
    let reads = [rates, op.tables, op.of_tables, op.of_shares.unwrap_or(NOTHING)];
    arena.check(&reads, &[op.gradient, op.bias_gradient.unwrap_or(NOTHING)]);
    let call = RateTables {
        of_tables: wide(op.of_tables.offset),
        of_shares: place(op.of_shares),
        gradient: wide(op.gradient.offset),
        bias_gradient: place(op.bias_gradient),
        first: narrow(op.first_moving),
        ..RateTables::new(&op.of, op.tables)
    };
    let shapes = format_args!("{} steps of {} layers", op.of.steps, op.of.layers);
    device.launch(arena, Kernel::RateTablesGradient, [1, 1, 1], &call, shapes);
}
