//! Copies in 16 bits, behind an arena, of what Hopper's kernels multiply.
//!
//! The copy engine moves numbers as they are, so they have to be rounded before. A layer's weights are copied once and serve every
//! product until something is written to them: that is a meta-step. The rows of a product are copied for it alone, and the next
//! product's take their place. The steps' rows, which later steps' corrections and inner products read again and again, are
//! copied to bf16 too, each to a place of its own: half the bytes, and operands for tensor cores.

use std::sync::PoisonError;

use super::driver::{Driver, Kernel, PANEL, PackedMatrix, TensorMap};
use super::pool::{Layout, PIECE, Packed, Pool, packed_len};
use super::tensor::operands;
use super::{Arguments, CudaArena, CudaDevice, Warpgroups, blocks_of, narrow, wide};
use crate::device::{MatrixPrecision, Region};

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Pack {
    from: u64,
    to: u64,
    rows: u32,
    width: u32,
    operands: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct PackFragments {
    from: u64,
    to: u64,
    columns: u32,
    inner: u32,
    column_stride: u32,
    inner_stride: u32,
}

super::arguments! {
    Pack, 32 => Pack;
    PackFragments, 32 => PackFragments;
}

/// Rows at least that wide are kept in 16 bits for corrections and inner products.
const WIDE: usize = 64;

/// Copies of a product's operands.
#[derive(Clone, Copy, Debug)]
pub(super) struct Operands {
    pub weight: TensorMap,
    /// By tiles of as many rows as was asked for.
    pub rows: TensorMap,
    /// Where the rows lie, first and end.
    pub place: (usize, usize),
}

/// Copies of a product's weights and rows, in the device's precision; none where the room does not suffice, which depends on the
/// shapes and on the products before it alone, or after a failure.
pub(super) fn packed<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    weight: Region,
    rows: Region,
    tall: u32,
) -> Option<Operands> {
    let pool = &mut *arena.pool.lock().unwrap_or_else(PoisonError::into_inner);
    let precision = device.precision;
    let end = pool.end + if pool.weight(weight, precision).is_some() { 0 } else { packed_len(weight) };
    if end + packed_len(rows) > pool.room {
        return None;
    }
    let map = copy_weights(device, arena, pool, weight)?.map;
    let copies = pool.produced.iter().flatten().chain(&pool.kept);
    let fresh = copies.filter_map(|packed| packed.holds(rows, precision)).next();
    let run = if fresh.is_none() { pool.run(rows, precision) } else { None };
    // Copies with places of their own will be asked for again.
    for kept in &mut pool.kept[run.clone().unwrap_or(0..0)] {
        if !std::mem::replace(&mut kept.fresh, true) {
            pack(device, arena, kept.region, kept.offset);
        }
    }
    let place = match fresh.or(run.map(|run| pool.kept[run.start].offset)) {
        Some(offset) => offset,
        None => {
            // What is copied once more gets a place of its own, if one is left: it may stay as it is from then on.
            let again = pool.wanted.contains(&rows);
            let kept = if again { pool.keep(rows, precision).map(|kept| kept.offset) } else { None };
            let offset = kept.unwrap_or(pool.start + end);
            if kept.is_none() {
                pool.make_room(offset + packed_len(rows));
            }
            pack(device, arena, rows, offset);
            if rows.width.is_multiple_of(PIECE) && !again {
                pool.wanted.push(rows);
            }
            offset
        }
    };
    let rows_map = describe(device, arena, rows, place, tall)?;
    Some(Operands { weight: map, rows: rows_map, place: (place, place + packed_len(rows)) })
}

/// Copies of both that hold until they are written to, and where the room behind them begins, if there are `behind` numbers of 32 bits.
pub(super) fn both_kept<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    (weight, rows): (Region, Region),
    tall: u32,
    behind: usize,
) -> Option<([TensorMap; 2], usize)> {
    let pool = &mut *arena.pool.lock().unwrap_or_else(PoisonError::into_inner);
    let new = [weight, rows].into_iter().filter(|region| pool.weight(*region, device.precision).is_none());
    let needed: usize = new.map(packed_len).sum();
    if pool.end + needed + behind > pool.room {
        return None;
    }
    let weight = copy_weights(device, arena, pool, weight)?.map;
    let kept = copy_weights(device, arena, pool, rows)?;
    pool.produced = [None; 2];
    Some(([weight, describe(device, arena, rows, kept.offset, tall)?], pool.start + pool.end))
}

/// A copy of `region`, for which there is room, that holds until something is written to it.
fn copy_weights<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    pool: &mut Pool,
    region: Region,
) -> Option<Packed> {
    let precision = device.precision;
    let index = match pool.weight(region, precision) {
        Some(index) => index,
        None => {
            let offset = pool.start + pool.end;
            let map = describe(device, arena, region, offset, PANEL)?;
            pool.append(region, precision, Layout::Rows, map)
        }
    };
    let entry = &mut pool.weights[index];
    if !std::mem::replace(&mut entry.fresh, true) {
        pack(device, arena, region, entry.offset);
    }
    Some(*entry)
}

/// Where the kernel that is about to make `region` is to leave a copy as well: only if some of its rows were copied for a product
/// before, and there is room.
pub(super) fn produced<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, region: Region) -> Option<usize> {
    produced_beside(device, arena, region, (0, 0))
}

/// The same, nothing of it in `read`, from the first to the end, which that kernel reads.
pub(super) fn produced_beside<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    region: Region,
    read: (usize, usize),
) -> Option<usize> {
    let pool = &mut *arena.pool.lock().unwrap_or_else(PoisonError::into_inner);
    if !pool.made.contains(&region) {
        pool.made.push(region);
    }
    if let Some(kept) = pool.kept.iter_mut().find(|kept| kept.region == region && kept.precision == device.precision) {
        kept.fresh = true;
        return Some(kept.offset);
    }
    if !pool.wanted.iter().any(|rows| rows.width == region.width && rows.overlaps(&region)) {
        return None;
    }
    let (len, bottom, top) = (packed_len(region), pool.start + pool.end, pool.start + pool.room);
    let last = pool.produced[1];
    // At the end, unless the copy before lies there: then before that one.
    let offset = match last {
        Some(last) if last.end() + len > top => last.offset.checked_sub(len)?,
        _ => top.checked_sub(len)?,
    };
    if offset < bottom || (offset < read.1 && read.0 < offset + len) {
        return None;
    }
    let overlaps = |packed: &Packed| packed.offset < offset + len && offset < packed.end();
    let kept = last.filter(|packed| !overlaps(packed));
    let made = Packed {
        region,
        offset,
        precision: device.precision,
        layout: Layout::Rows,
        map: TensorMap::default(),
        fresh: true,
    };
    pool.produced = [kept, Some(made)];
    Some(offset)
}

/// Whether the steps' rows that are as wide as these are kept.
fn may_keep<D: Driver>(device: &CudaDevice<D>, rows: Region) -> bool {
    let least = if device.warpgroups == Warpgroups::Always { PIECE } else { WIDE };
    // Coefficients can be smaller than what f16 holds.
    let on = device.warpgroups().is_some() && device.precision == MatrixPrecision::Bf16;
    on && rows.width >= least && rows.width.is_multiple_of(PIECE)
}

/// Where copies of the steps' rows begin, all as wide, to `copies`; they are made if they are not there. Only in bf16, and where there
/// is room for all; says whether. Each has its place from the first time on, so that it depends on the shapes and on the
/// operations before alone.
pub(super) fn kept<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    rows: impl Iterator<Item = Region>,
    copies: &mut [usize],
) -> bool {
    let mut any = false;
    for (rows, copy) in rows.zip(copies) {
        let Some(offset) = Some(rows).filter(|rows| may_keep(device, *rows)).and_then(|rows| keep(device, arena, rows))
        else {
            return false;
        };
        (*copy, any) = (offset, true);
    }
    any
}

/// What is copied where a copy of the steps' rows is asked for.
pub(super) fn copied_with<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, rows: Region) -> Region {
    let pool = &*arena.pool.lock().unwrap_or_else(PoisonError::into_inner);
    pool.whole(rows, device.precision)
}

fn keep<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, rows: Region) -> Option<usize> {
    let count = place(device, arena, rows)?;
    if count == rows.rows { first_copy(device, arena, rows).map(|(_, offset)| offset) } else { None }
}

/// Gives the first of some rows a place of their own to be copied to, if there is room, and returns how many of the rows have it
/// together.
fn place<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, rows: Region) -> Option<usize> {
    let precision = device.precision;
    let pool = &mut *arena.pool.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, count)) = pool.first(rows, precision) {
        return Some(count);
    }
    // All of what is made at once, if there is room, so that whoever makes it the next time leaves the copy.
    let whole = pool.whole(rows.rows(0, 1), precision);
    let whole = if whole.rows == 1 { rows } else { whole };
    let new = pool.keep(whole, precision).is_some() || pool.keep(rows, precision).is_some();
    pool.kept.last_mut().filter(|_| new)?.fresh = false;
    pool.first(rows, precision).map(|(_, count)| count)
}

/// The same of rows that are kept as the steps' are.
pub(super) fn keep_first<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, rows: Region) -> Option<usize> {
    if may_keep(device, rows) { place(device, arena, rows) } else { None }
}

/// The copy that the first of some rows have, which is made if it is not there: how many of the rows it holds, and where they begin.
pub(super) fn first_copy<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    rows: Region,
) -> Option<(usize, usize)> {
    let (count, offset, stale) = {
        let pool = &mut *arena.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let (index, count) = pool.first(rows, device.precision)?;
        let kept = &mut pool.kept[index];
        let stale = (!std::mem::replace(&mut kept.fresh, true)).then_some((kept.region, kept.offset));
        (count, kept.covers(rows.rows(0, 1), device.precision)?, stale)
    };
    if let Some((region, to)) = stale {
        pack(device, arena, region, to);
    }
    Some((count, offset))
}

/// Whether the steps' rows have a copy that is as they are, or will be when what was put off is done.
pub(super) fn is_kept<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, rows: Region) -> bool {
    let pool = &*arena.pool.lock().unwrap_or_else(PoisonError::into_inner);
    pool.kept.iter().any(|kept| kept.holds(rows, device.precision).is_some())
}

/// Whether a layer's weights have a place for that layout already.
pub(super) fn has_fragments<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    weight: Region,
    backward: bool,
) -> bool {
    let pool = &*arena.pool.lock().unwrap_or_else(PoisonError::into_inner);
    pool.laid(weight, device.precision, Layout::Fragments { backward }).is_some()
}

/// Where a copy of a layer's weights in that layout begins, of which both sides are multiples of 16; none where there is no room.
pub(super) fn fragments<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    weight: Region,
    backward: bool,
) -> Option<usize> {
    let (precision, layout) = (device.precision, Layout::Fragments { backward });
    let (offset, fresh) = {
        let pool = &mut *arena.pool.lock().unwrap_or_else(PoisonError::into_inner);
        let index = match pool.laid(weight, precision, layout) {
            Some(index) => index,
            None if pool.end + packed_len(weight) > pool.room => return None,
            None => pool.append(weight, precision, layout, TensorMap::default()),
        };
        let entry = &mut pool.weights[index];
        (entry.offset, std::mem::replace(&mut entry.fresh, true))
    };
    if !fresh {
        let Region { rows, width, .. } = weight;
        let [(columns, column_stride), (inner, inner_stride)] =
            if backward { [(width, 1), (rows, width)] } else { [(rows, width), (width, 1)] };
        let call = PackFragments {
            from: wide(weight.offset),
            to: wide(offset),
            columns: narrow(columns),
            inner: narrow(inner),
            column_stride: narrow(column_stride),
            inner_stride: narrow(inner_stride),
        };
        arena.keep_to([weight].iter());
        let shapes = format_args!("weights of {inner} to {columns}, {precision}");
        device.launch(arena, Kernel::PackFragments, [blocks_of(weight.len() / PIECE), 1, 1], &call, shapes);
    }
    Some(offset)
}

/// Describes the copy of a region to the copy engine.
pub(super) fn describe<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    region: Region,
    offset: usize,
    tall: u32,
) -> Option<TensorMap> {
    let Region { rows, width, .. } = region;
    let pitch = width.next_multiple_of(PIECE);
    let matrix = PackedMatrix { offset, rows, width, pitch, bf16: device.precision == MatrixPrecision::Bf16, tall };
    let mut map = None;
    device.attempt(format_args!("the description of {rows} rows of {width}, {}", device.precision), || {
        map = Some(device.driver.tensor_map(&arena.memory, matrix)?);
        Ok(())
    });
    map
}

fn pack<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, region: Region, to: usize) {
    let Region { rows, width, .. } = region;
    arena.keep_to([region].iter());
    let call = Pack {
        from: wide(region.offset),
        to: wide(to),
        rows: narrow(rows),
        width: narrow(width),
        operands: operands(device.precision),
        unused: 0,
    };
    let shapes = format_args!("{rows} rows of {width}, {}", device.precision);
    device.launch(arena, Kernel::Pack, [blocks_of(rows * width.div_ceil(PIECE)), 1, 1], &call, shapes);
}
