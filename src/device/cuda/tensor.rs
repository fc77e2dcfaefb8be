//! Which kernel carries a product out: on ordinary cores in f32, or on tensor cores, by tiles that fit the shape.

use super::driver::Kernel;
use super::linear::TILE;
use super::tiles::Index;
use crate::device::MatrixPrecision;

/// The tiles of `kernels/tensor.cuh`, rows and columns, from small to large.
const TILES: [(usize, usize); 3] = [(16, 64), (64, 64), (128, 128)];

/// Tiles of an output below which smaller ones are taken, so that every multiprocessor of a large GPU has one. Not timed.
const ENOUGH: usize = 128;

/// The kernels of one operation: in f32, and for each of [`TILES`] where there is one.
pub(super) struct Kernels {
    pub plain: Kernel,
    pub tensor: [Option<Kernel>; TILES.len()],
}

/// A kernel, and the tiles of its output in each dimension.
pub(super) struct Choice {
    pub kernel: Kernel,
    pub down: usize,
    pub across: usize,
}

impl Kernels {
    /// Those on tensor cores.
    pub fn on_tensor_cores(&self) -> impl Iterator<Item = Kernel> {
        self.tensor.iter().copied().flatten()
    }

    /// The kernel for one group's output of `rows` x `columns`: the one that was measured to be the fastest, or by rule. It
    /// follows from the shape alone, so that results do too.
    pub fn choose(&self, tiles: Option<&Index>, precision: MatrixPrecision, rows: usize, columns: usize) -> Choice {
        let tiled = |kernel, (tall, broad): (usize, usize)| Choice {
            kernel,
            down: rows.div_ceil(tall),
            across: columns.div_ceil(broad),
        };
        if precision == MatrixPrecision::F32 {
            return tiled(self.plain, (TILE, TILE));
        }
        let measured = tiles.and_then(|tiles| tiles.kernel(self.plain, precision, rows, columns));
        let mut best = None;
        for (kernel, tile) in self.tensor.iter().zip(TILES) {
            let Some(kernel) = *kernel else { continue };
            let choice = tiled(kernel, tile);
            if measured == Some(kernel) {
                return choice;
            }
            // A larger tile only where its rows are mostly there.
            let fits = rows > tile.0 / 2 && choice.down * choice.across >= ENOUGH;
            if best.is_none() || fits {
                best = Some(choice);
            }
        }
        best.unwrap_or_else(|| tiled(self.plain, (TILE, TILE)))
    }
}

/// The precision as kernels take it: `Rounding` in `kernels/tensor.cuh`.
pub(super) fn operands(precision: MatrixPrecision) -> u32 {
    match precision {
        MatrixPrecision::F32 => 0,
        MatrixPrecision::Tf32 => 1,
        MatrixPrecision::Bf16 => 2,
        MatrixPrecision::F16 => 3,
    }
}
