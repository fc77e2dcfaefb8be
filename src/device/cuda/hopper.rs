//! The products with shared weights on Hopper.

use super::driver::{Driver, Kernel, TensorMap};
use super::linear::Product;
use super::pack::packed;
use super::{Arguments, CudaArena, CudaDevice};
use crate::device::{MatrixPrecision, Region};

/// Which products with shared weights go to Hopper's warpgroups, on a device that has them and in `bf16` or `f16`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Warpgroups {
    /// None.
    Never,
    /// All but the smallest: of 20 Mflop or more, and no side of fewer than 32.
    #[default]
    Large,
    /// All, by the largest tile that the rows fill, to test the kernels. An arena has five times its size.
    Always,
}

/// Operations from which on a product is large.
const LARGE_FLOP: usize = 20_000_000;
/// Rows, columns and length of the sums from which on it is.
const LARGE_SIDE: usize = 32;

/// A tile of `kernels/hopper.cuh`.
struct Tile {
    columns: usize,
    rows: usize,
    /// Blocks that a multiprocessor holds.
    blocks: usize,
    /// Clocks of a multiprocessor for 64 of the inner dimension: those of its tensor cores, or of copies at 64 bytes a clock.
    stage: usize,
}

/// From small to large.
const TILES: [Tile; 3] = [
    Tile { columns: 64, rows: 64, blocks: 2, stage: 256 },
    Tile { columns: 128, rows: 128, blocks: 1, stage: 512 },
    Tile { columns: 128, rows: 256, blocks: 1, stage: 1024 },
];

impl Tile {
    fn count(&self, output: Region) -> usize {
        output.rows.div_ceil(self.rows) * output.width.div_ceil(self.columns)
    }

    /// Clocks that a product takes by these tiles, on so many multiprocessors: their rounds, each with its sums, an output that
    /// is read and written at 16 bytes a clock, and what it takes to begin and to end.
    fn clocks(&self, output: Region, inner: usize, multiprocessors: usize) -> usize {
        let rounds = self.count(output).div_ceil(multiprocessors);
        rounds * (inner.div_ceil(64) * self.stage + self.rows * self.columns / 2 + 1000)
    }
}

/// The kernels of one operation, for each of [`TILES`].
pub(super) type Kernels = [Kernel; TILES.len()];

pub(super) const FORWARD: Kernels =
    [Kernel::HopperForward64x64, Kernel::HopperForward128x128, Kernel::HopperForward128x256];
pub(super) const BACKWARD: Kernels =
    [Kernel::HopperBackward64x64, Kernel::HopperBackward128x128, Kernel::HopperBackward128x256];
pub(super) const ADJOINT: Kernels =
    [Kernel::HopperAdjoint64x64, Kernel::HopperAdjoint128x128, Kernel::HopperAdjoint128x256];

/// Threads a block and bytes of shared memory, for each of [`TILES`].
#[cfg(feature = "cuda")]
const BLOCKS: [(u32, u32); TILES.len()] = [(256, 109_664), (384, 218_208), (384, 218_176)];

/// Those of a kernel of this file, or of `hopper_outer`.
#[cfg(feature = "cuda")]
pub(super) fn block_of(kernel: Kernel) -> Option<(u32, u32)> {
    [FORWARD, BACKWARD, ADJOINT]
        .iter()
        .find_map(|kernels| kernels.iter().position(|k| *k == kernel))
        .map(|tile| BLOCKS[tile])
        .or_else(|| super::hopper_outer::block_of(kernel))
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct HopperProduct {
    weight: TensorMap,
    rows: TensorMap,
    product: Product,
}

super::arguments! {
    HopperProduct, 448 =>
        HopperForward64x64 HopperForward128x128 HopperForward128x256
        HopperBackward64x64 HopperBackward128x128 HopperBackward128x256
        HopperAdjoint64x64 HopperAdjoint128x128 HopperAdjoint128x256;
}

/// Multiplies `rows` with `weight` into `output`, if that is for warpgroups; says whether it was.
pub(super) fn multiply<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    kernels: &Kernels,
    call: &Product,
    (weight, rows): (Region, Region),
    output: Region,
    shapes: std::fmt::Arguments<'_>,
) -> bool {
    let Some(multiprocessors) = device.warpgroups() else { return false };
    let always = device.warpgroups == Warpgroups::Always;
    let (flop, inner) = (2 * output.rows * weight.len(), rows.width);
    let sides = [output.rows, output.width, inner];
    let large = flop >= LARGE_FLOP && sides.iter().all(|side| *side >= LARGE_SIDE);
    if rows.is_empty() || !(always || large) {
        return false;
    }
    let multiprocessors = multiprocessors as usize;
    let index = if always {
        TILES.iter().rposition(|tile| output.rows > tile.rows / 2).unwrap_or(0)
    } else {
        (0..TILES.len()).min_by_key(|index| TILES[*index].clocks(output, inner, multiprocessors)).unwrap_or(0)
    };
    let Some([weight, rows]) = packed(device, arena, weight, rows) else { return false };
    let tile = &TILES[index];
    let blocks = tile.count(output).min(multiprocessors * tile.blocks);
    device.launch(arena, kernels[index], [blocks, 1, 1], &HopperProduct { weight, rows, product: *call }, shapes);
    true
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
            Some(_) => elements / 8,
        }
    }
}
