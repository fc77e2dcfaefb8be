//! The ends of products that Hopper's warpgroups have left as sums.

use super::driver::{Driver, Kernel};
use super::hopper::Raw;
use super::linear::Product;
use super::low_rank::{Applied, Corrections, check_corrections};
use super::{Arguments, CudaArena, CudaDevice, NOWHERE, narrow, pack, wide};
use crate::device::{self, Region};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Finish {
    corrections: Corrections,
    product: Product,
    raw: u64,
    packed: u64,
    parts: u32,
    unused: u32,
}

super::arguments! {
    Finish, 3376 => FinishForward FinishBackward FinishAdjoint;
}

/// Ends `output`, whose sums lie at `raw`, with the corrections, all of which one launch holds.
pub(super) fn finish<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    kernel: Kernel,
    product: Product,
    corrections: &device::Corrections<'_, f32>,
    (tasks, rows): (usize, usize),
    (raw, output): (Raw, Region),
) {
    check_corrections(arena, corrections, (tasks, rows), output);
    // Without corrections it does not matter whose the rows are, and they are taken by eights.
    let corrected = corrections.blocks.iter().any(|terms| !terms.is_empty());
    let (tasks, rows) = if corrected { (tasks, rows) } else { (1, output.rows) };
    let pieces = product.in_fours() && raw.offset % 4 == 0;
    let Applied { call, grid, most } = Applied::new(corrections, (tasks, rows), output, 0, pieces);
    let packed = if call.in_fours() { pack::produced(device, arena, output) } else { None };
    let (parts, width) = (raw.parts, output.width);
    let shapes =
        format_args!("{} rows of {width}, {rows} a task, in {parts} parts, with {most} correction rows", output.rows);
    let call = Finish {
        corrections: call,
        product,
        raw: wide(raw.offset),
        packed: packed.map_or(NOWHERE, wide),
        parts: narrow(parts),
        unused: 0,
    };
    device.launch(arena, kernel, grid, &call, shapes);
}
