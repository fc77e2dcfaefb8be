//! The products with shared weights on Hopper.

use super::driver::{Driver, Kernel, TensorMap, WrittenMatrices};
use super::linear::Product;
use super::outer_product::MULTIPROCESSORS;
use super::pack::{self, packed};
use super::{Arguments, CudaArena, CudaDevice, NOWHERE, narrow, wide};
use crate::device::{MatrixPrecision, Region};

/// Which products with shared weights go to Hopper's warpgroups, on a device that has them and in `bf16` or `f16`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Warpgroups {
    /// None.
    Never,
    /// All but the smallest: of 20 Mflop or more, and no side of fewer than 32.
    #[default]
    Large,
    /// All, by the largest tile that the output fills, to test the kernels. An arena has six times its size.
    Always,
}

/// Operations from which on a product is large.
const LARGE_FLOP: usize = 20_000_000;
/// Rows, columns and length of the sums from which on it is.
const LARGE_SIDE: usize = 32;

/// Numbers of a stage.
const PANEL: usize = super::driver::PANEL as usize;
/// Parts of the inner dimension, at most.
const MOST_PARTS: usize = 8;

/// A tile of `kernels/hopper.cuh`.
struct Tile {
    columns: usize,
    rows: usize,
    /// Blocks that a multiprocessor holds.
    blocks: usize,
    /// Blocks of a cluster, each of which copies its share of the rows to all.
    team: usize,
}

/// From small to large.
const TILES: [Tile; 5] = [
    Tile { columns: 64, rows: 64, blocks: 2, team: 1 },
    Tile { columns: 64, rows: 160, blocks: 1, team: 1 },
    Tile { columns: 128, rows: 128, blocks: 1, team: 2 },
    Tile { columns: 128, rows: 160, blocks: 1, team: 1 },
    Tile { columns: 128, rows: 256, blocks: 1, team: 2 },
];

/// Operations that a multiprocessor's tensor cores do a clock, bytes a clock that are copied to one, and that one's outputs take;
/// bytes a clock that the second-level cache gives to all of them, and takes; clocks that the blocks of a cluster wait for one
/// another. Fitted to 80 measurements on an H100, 9% off on average.
const FLOP_PER_CLOCK: usize = 3580;
const COPIED_PER_CLOCK: usize = 60;
const LEFT_PER_CLOCK: usize = 65;
const GIVEN_PER_CLOCK: usize = 5650;
const TAKEN_PER_CLOCK: usize = 3600;
const TEAM: usize = 700;

impl Tile {
    /// Of whole clusters.
    fn count(&self, output: Region) -> usize {
        output.rows.div_ceil(self.rows) * output.width.div_ceil(self.columns * self.team) * self.team
    }

    /// Rows that one block of a cluster copies.
    fn share(&self) -> u32 {
        narrow(self.rows / self.team)
    }

    /// Whole clusters, as many as the device holds or fewer.
    fn grid<D: Driver>(&self, device: &CudaDevice<D>, output: Region, parts: usize) -> [usize; 3] {
        let held = device.warpgroups().unwrap_or(0) as usize * self.blocks / self.team;
        [(self.count(output) * parts / self.team).min(held.max(1)) * self.team, 1, 1]
    }

    /// Clocks that a product takes by these tiles, its inner dimension in so many parts, but for what is the same for all: those of
    /// the busiest multiprocessor or of the copies of all tiles; and of the sums, which are written, and read once more where there
    /// are parts.
    fn clocks(&self, output: Region, inner: usize, parts: usize) -> usize {
        let (count, stages) = (self.count(output), inner.div_ceil(PANEL));
        let rounds = (count * parts).div_ceil(MULTIPROCESSORS);
        let line = size_of::<u16>() * PANEL;
        let flop = 2 * PANEL * self.rows * self.columns;
        let stage = (flop / FLOP_PER_CLOCK).max(line * (self.rows + self.columns) / COPIED_PER_CLOCK);
        let given = count * stages * line * (self.rows / self.team + self.columns) / GIVEN_PER_CLOCK;
        let passes = if parts > 1 { 2 * parts } else { 1 };
        let sums = passes * output.len() * size_of::<f32>() / TAKEN_PER_CLOCK;
        let end = self.rows * self.columns * size_of::<f32>() / LEFT_PER_CLOCK;
        let waits = if self.team > 1 { TEAM } else { 0 };
        (rounds * stages.div_ceil(parts) * stage).max(given) + sums + rounds * (end + waits)
    }
}

/// How a product is carried out.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    tile: usize,
    /// Parts of the inner dimension.
    pub parts: usize,
}

/// Where the sums of each part go, for another kernel to end.
#[derive(Clone, Copy, Debug)]
pub(super) struct Raw {
    pub offset: usize,
    pub parts: usize,
}

/// The kernels of one operation, for each of [`TILES`].
pub(super) type Kernels = [Kernel; TILES.len()];

pub(super) const FORWARD: Kernels = [
    Kernel::HopperForward64x64,
    Kernel::HopperForward64x160,
    Kernel::HopperForward128x128,
    Kernel::HopperForward128x160,
    Kernel::HopperForward128x256,
];
pub(super) const BACKWARD: Kernels = [
    Kernel::HopperBackward64x64,
    Kernel::HopperBackward64x160,
    Kernel::HopperBackward128x128,
    Kernel::HopperBackward128x160,
    Kernel::HopperBackward128x256,
];
pub(super) const ADJOINT: Kernels = [
    Kernel::HopperAdjoint64x64,
    Kernel::HopperAdjoint64x160,
    Kernel::HopperAdjoint128x128,
    Kernel::HopperAdjoint128x160,
    Kernel::HopperAdjoint128x256,
];

/// Threads a block and bytes of shared memory, for each of [`TILES`].
const BLOCKS: [(u32, u32); TILES.len()] =
    [(256, 99_408), (256, 214_112), (384, 230_480), (384, 218_192), (384, 230_464)];

/// Those of a kernel of this file, or of one for sums over rows.
pub(super) fn block_of(kernel: Kernel) -> Option<(u32, u32)> {
    [FORWARD, BACKWARD, ADJOINT]
        .iter()
        .find_map(|kernels| kernels.iter().position(|k| *k == kernel))
        .map(|tile| BLOCKS[tile])
        .or_else(|| super::hopper_outer::block_of(kernel))
        .or_else(|| super::hopper_copied::block_of(kernel))
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct HopperProduct {
    weight: TensorMap,
    rows: TensorMap,
    numbers: TensorMap,
    copy: TensorMap,
    product: Product,
    raw: u64,
    parts: u32,
    leaves: u32,
    /// Up to a multiple of 64 bytes.
    unused: [u32; 12],
}

impl HopperProduct {
    /// Of one part, that leaves nothing.
    fn new([weight, rows]: [TensorMap; 2], product: &Product) -> Self {
        let (numbers, copy) = (TensorMap::default(), TensorMap::default());
        let (product, raw, parts, leaves, unused) = (*product, NOWHERE, 1, 0, [0; 12]);
        Self { weight, rows, numbers, copy, product, raw, parts, leaves, unused }
    }
}

/// `Leaves` in `kernels/hopper.cu`.
const LEAVES_NUMBERS: u32 = 1;
const LEAVES_TILES: u32 = 2;
const LEAVES_COPY: u32 = 4;

super::arguments! {
    HopperProduct, 768 =>
        HopperForward64x64 HopperForward64x160 HopperForward128x128 HopperForward128x160 HopperForward128x256
        HopperBackward64x64 HopperBackward64x160 HopperBackward128x128 HopperBackward128x160 HopperBackward128x256
        HopperAdjoint64x64 HopperAdjoint64x160 HopperAdjoint128x128 HopperAdjoint128x160 HopperAdjoint128x256;
}

/// How warpgroups would multiply `rows` with `weight` into `output`, if that is for them. With room for the sums of several parts
/// the inner dimension is cut where there are too few tiles.
pub(super) fn plan<D: Driver>(
    device: &CudaDevice<D>,
    (weight, rows): (Region, Region),
    output: Region,
    room: usize,
) -> Option<Plan> {
    device.warpgroups()?;
    let always = device.warpgroups == Warpgroups::Always;
    let (flop, inner) = (2 * output.rows * weight.len(), rows.width);
    let sides = [output.rows, output.width, inner];
    let large = flop >= LARGE_FLOP && sides.iter().all(|side| *side >= LARGE_SIDE);
    if rows.is_empty() || !(always || large) {
        return None;
    }
    let stages = inner.div_ceil(PANEL);
    let fits = |parts: usize| parts == 1 || (parts <= stages && parts * output.len() <= room);
    if always {
        let fills = |tile: &Tile| output.rows > tile.rows / 2 && output.width > tile.columns / 2;
        let tile = TILES.iter().rposition(fills).unwrap_or(0);
        return Some(Plan { tile, parts: if fits(2) { 2 } else { 1 } });
    }
    let plans = (0..TILES.len()).flat_map(|tile| (1..=MOST_PARTS).map(move |parts| Plan { tile, parts }));
    plans.filter(|plan| fits(plan.parts)).min_by_key(|plan| TILES[plan.tile].clocks(output, inner, plan.parts))
}

/// Multiplies `rows` with `weight` into `output`, or leaves the sums at `raw`; says whether there was room for the operands. What it
/// reads beside their copies, and writes, has been checked.
#[allow(clippy::too_many_arguments)]
pub(super) fn multiply<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    kernels: &Kernels,
    plan: Plan,
    call: &Product,
    (weight, rows): (Region, Region),
    (output, raw): (Region, Option<Raw>),
    (reads, writes): (&[Region], &[Region]),
    shapes: std::fmt::Arguments<'_>,
) -> bool {
    if device.warpgroups().is_none() {
        return false;
    }
    let tile = &TILES[plan.tile];
    let Some(operands) = packed(device, arena, weight, rows, tile.share()) else { return false };
    let parts = raw.map_or(1, |raw| raw.parts);
    let offset = raw.map_or(output.offset, |raw| raw.offset);
    let mut call = HopperProduct {
        raw: raw.map_or(NOWHERE, |raw| wide(raw.offset)),
        parts: narrow(parts),
        leaves: LEAVES_NUMBERS,
        ..HopperProduct::new([operands.weight, operands.rows], call)
    };
    if offset.is_multiple_of(4) && output.width.is_multiple_of(4) {
        call.numbers = written(device, arena, output, (offset, parts), MatrixPrecision::F32);
        call.leaves |= LEAVES_TILES;
    }
    if raw.is_none()
        && let Some(offset) = pack::produced_beside(device, arena, output, operands.place)
    {
        call.copy = written(device, arena, output, (offset, 1), device.precision);
        call.leaves |= LEAVES_COPY;
    }
    arena.keep_to_writing(reads, writes);
    device.launch(arena, kernels[plan.tile], tile.grid(device, output, parts), &call, shapes);
    true
}

/// A product without corrections of which all operands and the output, behind them, are in 16 bits; says whether there was room.
pub(super) fn multiply_rounded<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    call: &Product,
    operands: (Region, Region),
    (bias, output): (Region, Region),
) -> bool {
    let Some(plan) = plan(device, operands, output, 0) else { return false };
    let tile = &TILES[plan.tile];
    let room = output.rows * output.width.next_multiple_of(8) / 2;
    let Some((maps, offset)) = pack::both_kept(device, arena, operands, tile.share(), room) else { return false };
    let copy = written(device, arena, output, (offset, 1), device.precision);
    let call = HopperProduct { copy, leaves: LEAVES_COPY, ..HopperProduct::new(maps, call) };
    arena.keep_to([bias].iter());
    let shapes = format_args!("{} rows of {}, {}, and no more", output.rows, output.width, device.precision);
    device.launch(arena, FORWARD[plan.tile], tile.grid(device, output, 1), &call, shapes);
    true
}

/// Describes what a product writes to the copy engine.
fn written<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    Region { rows, width, .. }: Region,
    (offset, count): (usize, usize),
    precision: MatrixPrecision,
) -> TensorMap {
    let mut map = TensorMap::default();
    device.attempt(format_args!("the description of {rows} rows of {width} to be written"), || {
        map = device.driver.written_map(&arena.memory, WrittenMatrices { offset, count, rows, width, precision })?;
        Ok(())
    });
    map
}

impl<D: Driver> CudaDevice<D> {
    /// The same device with other products for Hopper's warpgroups; [`Warpgroups::Large`] at first.
    #[must_use]
    pub fn with_warpgroups(self, warpgroups: Warpgroups) -> Self {
        Self { warpgroups, ..self }
    }

    /// Its multiprocessors, if any of its products go to their warpgroups.
    pub(super) fn warpgroups(&self) -> Option<u32> {
        let rounded = matches!(self.precision, MatrixPrecision::Bf16 | MatrixPrecision::F16);
        self.driver.warpgroups().filter(|_| rounded && self.warpgroups != Warpgroups::Never)
    }

    /// Numbers of 32 bits behind an arena of `elements`, for copies of what warpgroups multiply.
    ///
    /// Parameters lie there four times (with gradients and two moments), a product's rows too (with deltas and both cotangents):
    /// an eighth holds a copy in half the bits of all that there can be at once.
    pub(super) fn room_for_packed(&self, elements: usize) -> usize {
        match self.warpgroups() {
            None => 0,
            Some(_) if self.warpgroups == Warpgroups::Always => 4 * elements,
            Some(_) => elements / 8 + self.room_for_kept(elements),
        }
    }

    /// Of that room, what is for the steps' rows, in half the bits: no more than three in four of all numbers are such.
    pub(super) fn room_for_kept(&self, elements: usize) -> usize {
        match self.warpgroups() {
            None => 0,
            Some(_) if self.warpgroups == Warpgroups::Always => 2 * elements,
            Some(_) => elements * 3 / 8,
        }
    }
}
