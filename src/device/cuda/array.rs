//! Plain loops over regions.

use super::driver::{Driver, Kernel};
use super::tensor::operands;
use super::{Arguments, CudaArena, CudaDevice, NOWHERE, blocks_of, narrow, pack, settle, spans_of, wide};
use crate::device::Region;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Fill {
    to: u64,
    length: u64,
    value: f32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Copy {
    from: u64,
    to: u64,
    length: u64,
    packed: u64,
    operands: u32,
    unused: u32,
}

/// Rows of one launch of [`gather`].
const INDICES: usize = 512;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Gather {
    from: u64,
    to: u64,
    width: u32,
    unused: u32,
    index: [u32; INDICES],
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct AddScaled {
    from: u64,
    to: u64,
    length: u64,
    scale: f32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct SumRows {
    from: u64,
    to: u64,
    width: u64,
    rows: u32,
    scale: f32,
    begun: u32,
    unused: u32,
}

impl SumRows {
    /// `to (+)= scale * the sum of the rows of from`
    pub fn new(from: Region, scale: f32, to: Region, accumulate: bool) -> Self {
        Self {
            from: wide(from.offset),
            to: wide(to.offset),
            width: wide(from.width),
            rows: narrow(from.rows),
            scale,
            begun: accumulate.into(),
            unused: 0,
        }
    }
}

super::arguments! {
    Fill, 24 => Fill;
    Copy, 40 => Copy;
    Gather, 2072 => Gather;
    AddScaled, 32 => AddScaled;
    SumRows, 40 => SumRows SumTallRows;
}

/// See [`crate::device::Device::fill`].
pub(super) fn fill<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, to: Region, value: f32) {
    arena.check(&[], &[to]);
    let call = Fill { to: wide(to.offset), length: wide(to.len()), value, unused: 0 };
    device.launch(arena, Kernel::Fill, [spans_of(to.len()), 1, 1], &call, format_args!("{} numbers", to.len()));
}

/// See [`crate::device::Device::copy`].
pub(super) fn copy<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, from: Region, to: Region) {
    assert_eq!(from.len(), to.len());
    arena.check(&[from], &[to]);
    // What is one row is none of a product's.
    let packed = if to.rows > 1 { pack::produced(device, arena, to) } else { None };
    let call = Copy {
        from: wide(from.offset),
        to: wide(to.offset),
        length: wide(to.len()),
        packed: packed.map_or(NOWHERE, wide),
        operands: operands(device.precision),
        unused: 0,
    };
    device.launch(arena, Kernel::Copy, [spans_of(to.len()), 1, 1], &call, format_args!("{} numbers", to.len()));
}

/// See [`crate::device::Device::gather`]. The indices travel with the launch, so nothing is allocated or waited for.
pub(super) fn gather<D: Driver>(
    device: &CudaDevice<D>,
    arena: &mut CudaArena<D>,
    from: Region,
    indices: &[u32],
    to: Region,
) {
    assert_eq!((indices.len(), from.width), (to.rows, to.width));
    assert!(indices.iter().all(|i| (*i as usize) < from.rows), "a row beyond the {} there are", from.rows);
    arena.check(&[from], &[to]);
    for (i, part) in indices.chunks(INDICES).enumerate() {
        let first = to.offset + i * INDICES * to.width;
        let mut index = [0; INDICES];
        index[..part.len()].copy_from_slice(part);
        let call = Gather { from: wide(from.offset), to: wide(first), width: narrow(to.width), unused: 0, index };
        let shapes = format_args!("{} of {} rows of {}", part.len(), from.rows, to.width);
        device.launch(arena, Kernel::Gather, [part.len(), blocks_of(to.width), 1], &call, shapes);
    }
}

/// Columns a block of `sum_tall_rows` sums: `TALL_COLUMNS` in `kernels/sums.cuh`.
pub(super) const TALL_COLUMNS: usize = 32;

/// Rows from which on, and columns up to which, threads share the rows of a column: beyond, the columns fill a GPU. With fewer
/// columns they always do, as in `settle.rs`, so that the sums are the same.
const TALL: [usize; 2] = [32, 1 << 15];

/// See [`crate::device::Device::sum_rows`].
pub(super) fn sum_rows<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    from: Region,
    scale: f32,
    to: Region,
    accumulate: bool,
) {
    assert_eq!(from.width, to.len());
    arena.check(&[from], &[to]);
    let call = SumRows::new(from, scale, to, accumulate);
    let tall = from.width <= settle::MOST || (from.rows >= TALL[0] && from.width <= TALL[1]);
    let (kernel, blocks) = if tall {
        (Kernel::SumTallRows, from.width.div_ceil(TALL_COLUMNS))
    } else {
        (Kernel::SumRows, blocks_of(from.width))
    };
    let shapes = format_args!("{} rows of {}", from.rows, from.width);
    device.launch(arena, kernel, [blocks, 1, 1], &call, shapes);
}

/// See [`crate::device::Device::add_scaled`].
pub(super) fn add_scaled<D: Driver>(
    device: &CudaDevice<D>,
    arena: &mut CudaArena<D>,
    from: Region,
    scale: f32,
    to: Region,
) {
    assert_eq!(from.len(), to.len());
    arena.check(&[from], &[to]);
    let call = AddScaled { from: wide(from.offset), to: wide(to.offset), length: wide(to.len()), scale, unused: 0 };
    device.launch(arena, Kernel::AddScaled, [spans_of(to.len()), 1, 1], &call, format_args!("{} numbers", to.len()));
}
