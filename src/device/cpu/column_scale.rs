//! A factor for each column, with an activation, and its transpose.

use super::matrix::with_activation;
use super::{CpuArena, CpuDevice};
use crate::device::{ColumnScale, ColumnScaleAdjoint};
use crate::scalar::Scalar;

/// See [`ColumnScale`].
pub(super) fn forward<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &ColumnScale) {
    let ColumnScale { from, scale, activation, to } = *op;
    assert_eq!((from.len(), from.width), (to.len(), scale.len()));
    let base = arena.shared(&[from, scale], &[to]);
    device.run_ranges(from.rows, 2 * from.width, |first, last| {
        // SAFETY: declared regions; each job writes its own rows.
        let factors = unsafe { base.slice(scale.offset, from.width) };
        for row in first..last {
            // SAFETY: as above.
            let (from, to) = unsafe {
                let at = row * from.width;
                (base.slice(from.offset + at, from.width), base.slice_mut(to.offset + at, from.width))
            };
            with_activation!(activation, ACT => for ((t, f), s) in to.iter_mut().zip(from).zip(factors) {
                *t = ACT.apply(*f * *s);
            });
        }
    });
}

/// See [`ColumnScaleAdjoint`].
pub(super) fn adjoint<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &ColumnScaleAdjoint<T>) {
    let ColumnScale { from, scale, activation, to } = op.of;
    assert_eq!((from.len(), from.width), (op.cotangent.len(), scale.len()));
    let gradient = op.gradient.unwrap_or(crate::device::Region { offset: 0, rows: 0, width: 0 });
    let base = arena.shared(&[from, scale, to], &[op.cotangent, gradient]);
    // By columns, each from the first row to the last, so that sums do not depend on the number of threads.
    device.run_ranges(from.width, 4 * from.rows, |first, last| {
        let width = last - first;
        // SAFETY: declared regions; each job writes its own columns.
        let factors = unsafe { base.slice(scale.offset + first, width) };
        for row in 0..from.rows {
            let at = row * from.width + first;
            // SAFETY: as above.
            let (from, to, cotangent) = unsafe {
                (
                    base.slice(from.offset + at, width),
                    base.slice(to.offset + at, width),
                    base.slice_mut(op.cotangent.offset + at, width),
                )
            };
            with_activation!(activation, ACT => for (c, t) in cotangent.iter_mut().zip(to) {
                *c *= ACT.derivative(*t);
            });
            if op.gradient.is_some() {
                // SAFETY: as above.
                let gradient = unsafe { base.slice_mut(gradient.offset + first, width) };
                for ((g, c), f) in gradient.iter_mut().zip(&*cotangent).zip(from) {
                    *g += op.weight * *c * *f;
                }
            }
            cotangent.iter_mut().zip(factors).for_each(|(c, s)| *c *= *s);
        }
    });
}
