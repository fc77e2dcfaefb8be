//! Copies in 16 bits, behind an arena, of what Hopper's kernels multiply.
//!
//! The copy engine moves numbers as they are, so they have to be rounded before. A layer's weights are copied once and serve every
//! product until something is written to them: that is a meta-step. The rows of a product are copied for it alone, and the next
//! product's take their place.

use std::sync::PoisonError;

use super::driver::{Driver, Kernel, PANEL, PackedMatrix, TensorMap};
use super::tensor::operands;
use super::{Arguments, CudaArena, CudaDevice, blocks_of, narrow, wide};
use crate::device::{MatrixPrecision, Region};

/// Numbers of 16 bits that are written at once; rows begin at multiples of them.
const PIECE: usize = 8;

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

super::arguments! {
    Pack, 32 => Pack;
}

/// A copy of a region.
#[derive(Clone, Copy, Debug)]
struct Packed {
    region: Region,
    /// Where the copy begins, in numbers of 32 bits.
    offset: usize,
    precision: MatrixPrecision,
    map: TensorMap,
    /// Nothing was written to the region since.
    fresh: bool,
}

impl Packed {
    fn end(&self) -> usize {
        self.offset + packed_len(self.region)
    }

    /// Where the copy of `rows` begins, if they are some of the region's and it is fresh.
    fn holds(&self, rows: Region, precision: MatrixPrecision) -> Option<usize> {
        let Region { offset, width, .. } = self.region;
        let inside = rows.width == width && rows.offset >= offset && (rows.offset - offset).is_multiple_of(width);
        let within = inside && rows.offset + rows.len() <= offset + self.region.len();
        (within && self.fresh && self.precision == precision).then(|| self.offset + (rows.offset - offset) / 2)
    }
}

/// The room behind an arena, and what lies there: weights from its beginning on, behind them one product's rows, and at its end
/// rows that the kernel which made them has copied too.
#[derive(Debug, Default)]
pub(super) struct Pool {
    start: usize,
    room: usize,
    weights: Vec<Packed>,
    /// The end of the weights.
    end: usize,
    /// The last two.
    produced: [Option<Packed>; 2],
    /// Rows that were copied for a product, so that whoever makes them the next time copies them too.
    wanted: Vec<Region>,
}

/// What a region takes when it is copied, in numbers of 32 bits.
fn packed_len(region: Region) -> usize {
    region.rows * region.width.div_ceil(PIECE) * (PIECE / 2)
}

impl Pool {
    /// Room for `room` numbers of 32 bits from `start` on, a multiple of 4.
    pub fn new(start: usize, room: usize) -> Self {
        Self { start, room, ..Self::default() }
    }

    /// Where it is, offset and length.
    pub fn place(&self) -> (usize, usize) {
        (self.start, self.room)
    }

    /// Room that an operation may use for itself: all behind the weights.
    pub fn rest(&mut self) -> (usize, usize) {
        self.produced = [None; 2];
        (self.start + self.end, self.room - self.end)
    }

    /// Copies of what is about to be written are of no use any more.
    pub fn written(&mut self, writes: &[Region]) {
        for packed in self.weights.iter_mut().chain(self.produced.iter_mut().flatten()) {
            packed.fresh &= !writes.iter().any(|write| write.overlaps(&packed.region));
        }
    }

    /// The copy of a region that is kept.
    fn kept(&self, region: Region, precision: MatrixPrecision) -> Option<usize> {
        self.weights.iter().position(|kept| kept.region == region && kept.precision == precision)
    }

    /// Forgets produced copies that lie before `end`.
    fn make_room(&mut self, end: usize) {
        for produced in &mut self.produced {
            *produced = produced.take().filter(|packed| packed.offset >= end);
        }
    }
}

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
    let end = pool.end + if pool.kept(weight, precision).is_some() { 0 } else { packed_len(weight) };
    if end + packed_len(rows) > pool.room {
        return None;
    }
    let map = keep(device, arena, pool, weight)?.map;
    if let Some(at) = pool.produced.iter().flatten().find_map(|packed| packed.holds(rows, precision)) {
        let place = (at, at + packed_len(rows));
        return Some(Operands { weight: map, rows: describe(device, arena, rows, at, tall)?, place });
    }
    let offset = pool.start + end;
    let place = (offset, offset + packed_len(rows));
    pool.make_room(place.1);
    let rows_map = describe(device, arena, rows, offset, tall)?;
    pack(device, arena, rows, offset);
    if rows.width.is_multiple_of(PIECE) && !pool.wanted.contains(&rows) {
        pool.wanted.push(rows);
    }
    Some(Operands { weight: map, rows: rows_map, place })
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
    let new = [weight, rows].into_iter().filter(|region| pool.kept(*region, device.precision).is_none());
    let needed: usize = new.map(packed_len).sum();
    if pool.end + needed + behind > pool.room {
        return None;
    }
    let weight = keep(device, arena, pool, weight)?.map;
    let kept = keep(device, arena, pool, rows)?;
    pool.produced = [None; 2];
    Some(([weight, describe(device, arena, rows, kept.offset, tall)?], pool.start + pool.end))
}

/// A copy of `region`, for which there is room, that holds until something is written to it.
fn keep<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, pool: &mut Pool, region: Region) -> Option<Packed> {
    let precision = device.precision;
    let index = match pool.kept(region, precision) {
        Some(index) => index,
        None => {
            let offset = pool.start + pool.end;
            let map = describe(device, arena, region, offset, PANEL)?;
            pool.weights.push(Packed { region, offset, precision, map, fresh: false });
            pool.end += packed_len(region);
            pool.make_room(pool.start + pool.end);
            pool.weights.len() - 1
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
    let made = Packed { region, offset, precision: device.precision, map: TensorMap::default(), fresh: true };
    pool.produced = [kept, Some(made)];
    Some(offset)
}

/// Describes the copy of a region to the copy engine.
fn describe<D: Driver>(
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
