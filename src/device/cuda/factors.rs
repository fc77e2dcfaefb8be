//! What the planner takes for the speed of a GPU: times of an H100, of `benches/results/2026-11-26-gpu.md` and `-parts.md`. Another
//! GPU's are others, but mostly in proportion.

use super::driver::Driver;
use super::outer_product::MULTIPROCESSORS;
use super::{CudaDevice, MatrixPrecision, narrow};
use crate::device::{CostFactors, Resident};

/// Seconds of a flop of a product with shared weights, with the rows of many tasks: 30 and 50 Tflop/s in `f32` and `tf32`, whole
/// meta-steps told apart; in 16 bits what skinny rows reach of 764 Tflop/s, and of `mma` without warpgroups.
const F32: f64 = 1.0 / 33e12;
const TF32: f64 = 1.0 / 52e12;
const HALF: f64 = 1.0 / 500e12;
const HALF_BY_MMA: f64 = 1.0 / 200e12;
/// Of corrections, in 16 bits and 32: what 256 and 1024 tasks of 128-256-512-4096 take beside those products. Their rows' bytes bound it.
const LOW_RANK_HALF: f64 = 1.0 / 5.5e12;
const LOW_RANK: f64 = 1.0 / 3.5e12;
/// Of a task's own weights: flop by ordinary cores, and numbers at the copy's rate, less what one pass shares with another.
const PER_TASK: f64 = 1.0 / 15e12;
const ELEMENT: f64 = 6.3e-13;
/// Of the resident form with every multiprocessor full, and the blocks that one has.
const RESIDENT: f64 = 1.0 / 4.5e12;
const BLOCKS: usize = 2;
/// An operation: 0.7 ms of some 130 kernels are no work, with 64 tasks.
const OPERATION: f64 = 5.5e-6;

/// Of it that loops of narrow networks take, in kernels of their own: 318 us of 1460 with 4096 tasks, 30 of 84 with 25.
const NARROW: f64 = 0.3;

/// See [`Device::resident_share`](crate::device::Device::resident_share).
pub(super) fn resident_share(op: &Resident<'_, f32>) -> f64 {
    if narrow::fits(op) { NARROW } else { 1.0 }
}

/// See [`CostFactors`].
pub(super) fn factors<D: Driver>(device: &CudaDevice<D>) -> CostFactors {
    let (flop, low_rank) = match device.precision {
        MatrixPrecision::F32 => (F32, LOW_RANK),
        MatrixPrecision::Tf32 => (TF32, LOW_RANK),
        MatrixPrecision::F16 if device.warpgroups().is_some() => (HALF, LOW_RANK),
        MatrixPrecision::Bf16 if device.warpgroups().is_some() => (HALF, LOW_RANK_HALF),
        MatrixPrecision::F16 | MatrixPrecision::Bf16 => (HALF_BY_MMA, LOW_RANK),
    };
    CostFactors {
        low_rank: low_rank / flop,
        per_task: PER_TASK / flop,
        per_task_elements: ELEMENT / flop,
        resident: RESIDENT / flop,
        resident_elements: 0.0,
        operation: OPERATION / flop,
        resident_at_once: BLOCKS * MULTIPROCESSORS,
    }
}
