//! What is done with few rows a task, and with a matrix of every task's own: which kernels, over which grid.

use std::fmt;

use super::driver::{Driver, Kernel, THREADS};
use super::linear::Product;
use super::{CudaArena, CudaDevice};

/// Numbers of a row of a matrix that a warp takes at once: `STRIP` in `kernels/thin.cuh`.
const STRIP: usize = 128;
/// Outputs of a block: `ALONG` in `kernels/thin.cu`.
const ALONG: usize = 64;
/// Rows of a gradient that a block takes: `THIN_OUTPUTS` in `kernels/thin_gradient.cuh`.
const OUTPUTS: usize = THREADS as usize;

/// The kernels of one operation, for up to 8 rows a task (`FEW` in `kernels/thin.cuh`) and for up to 16 (`SOME`).
pub(super) type Kernels = [(usize, Kernel); 2];

pub(super) const INNER_UPDATE: Kernels = [(8, Kernel::ThinInnerUpdate), (16, Kernel::ThinInnerUpdate16)];
pub(super) const OUTER_PRODUCT: Kernels = [(8, Kernel::ThinOuterProduct), (16, Kernel::ThinOuterProduct16)];

/// The kernel for so many rows a task, if they are few.
pub(super) fn choose(kernels: Kernels, rows: usize) -> Option<Kernel> {
    kernels.into_iter().find(|(most, _)| rows <= *most).map(|(_, kernel)| kernel)
}

/// The grid of the kernels that go through the gradients of every task.
pub(super) fn gradient_grid(tasks: usize, inputs: usize, outputs: usize) -> [usize; 3] {
    [tasks * outputs.div_ceil(OUTPUTS) * inputs.div_ceil(STRIP), 1, 1]
}

/// Carries out the product of the kernel `plain` where every group has weights of its own and few rows. Says whether it did.
pub(super) fn multiply<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    plain: Kernel,
    call: &Product,
    shapes: fmt::Arguments<'_>,
) -> bool {
    let (kernels, columns): (Kernels, usize) = match plain {
        Kernel::LinearForward => ([(8, Kernel::ThinForward), (16, Kernel::ThinForward16)], ALONG),
        Kernel::LinearBackward => ([(8, Kernel::ThinBackward), (16, Kernel::ThinBackward16)], STRIP),
        Kernel::AdjointForward => ([(8, Kernel::ThinAdjoint), (16, Kernel::ThinAdjoint16)], ALONG),
        _ => return false,
    };
    let Some(kernel) = choose(kernels, call.rows_of_group()) else { return false };
    device.launch(arena, kernel, [call.groups() * call.width().div_ceil(columns), 1, 1], call, shapes);
    true
}
