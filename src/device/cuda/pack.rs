//! Copies in 16 bits, behind an arena, of what Hopper's kernels multiply.
//!
//! The copy engine moves numbers as they are, so they have to be rounded before. A layer's weights are copied once and serve every
//! product until something is written to them: that is a meta-step. The rows of a product are copied for it alone, and the next
//! product's take their place.

use std::sync::PoisonError;

use super::driver::{Driver, Kernel, PackedMatrix, TensorMap};
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
#[derive(Debug)]
struct Packed {
    region: Region,
    /// Where the copy begins, in numbers of 32 bits.
    offset: usize,
    precision: MatrixPrecision,
    map: TensorMap,
    /// Nothing was written to the region since.
    fresh: bool,
}

/// The room behind an arena, and what lies there: weights, and behind them one product's rows.
#[derive(Debug, Default)]
pub(super) struct Pool {
    start: usize,
    room: usize,
    weights: Vec<Packed>,
    /// The end of the weights.
    end: usize,
}

/// What a region takes when it is copied, in numbers of 32 bits.
fn packed_len(region: Region) -> usize {
    region.rows * region.width.div_ceil(PIECE) * (PIECE / 2)
}

impl Pool {
    /// Room for `room` numbers of 32 bits from `start` on, a multiple of 4.
    pub fn new(start: usize, room: usize) -> Self {
        Self { start, room, weights: Vec::new(), end: 0 }
    }

    /// Where it is, offset and length.
    pub fn place(&self) -> (usize, usize) {
        (self.start, self.room)
    }

    /// The room behind the weights, for what serves one operation: offset and length.
    pub fn rest(&self) -> (usize, usize) {
        (self.start + self.end, self.room - self.end)
    }

    /// Copies of what is about to be written are of no use any more.
    pub fn written(&mut self, writes: &[Region]) {
        for packed in &mut self.weights {
            packed.fresh &= !writes.iter().any(|write| write.overlaps(&packed.region));
        }
    }
}

/// Copies of a product's weights and rows, in the device's precision; none where the room does not suffice, which depends on the
/// shapes and on the products before it alone, or after a failure.
pub(super) fn packed<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    weight: Region,
    rows: Region,
) -> Option<[TensorMap; 2]> {
    let pool = &mut *arena.pool.lock().unwrap_or_else(PoisonError::into_inner);
    let precision = device.precision;
    let known = pool.weights.iter().position(|w| w.region == weight && w.precision == precision);
    let end = pool.end + if known.is_some() { 0 } else { packed_len(weight) };
    if end + packed_len(rows) > pool.room {
        return None;
    }
    let index = match known {
        Some(index) => index,
        None => {
            let offset = pool.start + pool.end;
            let map = describe(device, arena, weight, offset)?;
            pool.weights.push(Packed { region: weight, offset, precision, map, fresh: false });
            pool.end = end;
            pool.weights.len() - 1
        }
    };
    let entry = &mut pool.weights[index];
    if !std::mem::replace(&mut entry.fresh, true) {
        pack(device, arena, weight, entry.offset);
    }
    let (map, offset) = (entry.map, pool.start + end);
    let rows_map = describe(device, arena, rows, offset)?;
    pack(device, arena, rows, offset);
    Some([map, rows_map])
}

/// Describes the copy of a region to the copy engine.
fn describe<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    region: Region,
    offset: usize,
) -> Option<TensorMap> {
    let Region { rows, width, .. } = region;
    let pitch = width.next_multiple_of(PIECE);
    let matrix = PackedMatrix { offset, rows, width, pitch, bf16: device.precision == MatrixPrecision::Bf16 };
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
