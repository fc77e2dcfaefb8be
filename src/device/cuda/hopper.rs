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
    /// Large ones: of 2 Gflop or more, or of so many weights that half their bytes saves more than a launch takes. An estimate,
    /// not timed.
    #[default]
    Large,
    /// All, by the largest tile that the rows fill, to test the kernels. An arena has six times its size.
    Always,
}

/// Operations from which on a product is large.
const LARGE_FLOP: usize = 2_000_000_000;
/// Weights from which on it is.
const LARGE_WEIGHTS: usize = 8 << 20;

/// A tile of `kernels/hopper.cuh`.
struct Tile {
    columns: usize,
    rows: usize,
    /// Blocks that a multiprocessor holds.
    blocks: usize,
}

/// From small to large.
const TILES: [Tile; 3] = [
    Tile { columns: 64, rows: 64, blocks: 2 },
    Tile { columns: 128, rows: 128, blocks: 1 },
    Tile { columns: 128, rows: 256, blocks: 1 },
];

/// Tiles of an output below which smaller ones are taken, so that every multiprocessor has one.
const ENOUGH: usize = 128;

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
    let flop = 2 * output.rows * weight.len();
    if rows.is_empty() || !(always || flop >= LARGE_FLOP || weight.len() >= LARGE_WEIGHTS) {
        return false;
    }
    let count = |tile: &Tile| output.rows.div_ceil(tile.rows) * output.width.div_ceil(tile.columns);
    let fits = |tile: &Tile| output.rows > tile.rows / 2 && (always || count(tile) >= ENOUGH);
    let index = TILES.iter().rposition(fits).unwrap_or(0);
    let Some([weight, rows]) = packed(device, arena, weight, rows) else { return false };
    let tile = &TILES[index];
    let blocks = count(tile).min(multiprocessors as usize * tile.blocks);
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
