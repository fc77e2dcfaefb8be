//! Batch normalisation over the rows of each task, its Jacobian, and the adjoint of the latter.

use super::matrix::with_activation;
use super::{Base, CpuArena, CpuDevice};
use crate::device::{Normalise, NormaliseAdjoint, NormaliseJacobian, Region};
use crate::scalar::Scalar;

/// Columns at most that are summed over at once.
const COLUMNS: usize = 64;

/// One number a column.
type Sums<T> = [T; COLUMNS];

/// Some columns of one task's rows.
#[derive(Clone, Copy)]
struct Piece {
    task: usize,
    rows: usize,
    from: usize,
    columns: usize,
}

impl Piece {
    /// Row `k` of a region of the tasks' rows, or of one that has a single row a task.
    ///
    /// # Safety
    /// A declared region.
    #[inline(always)]
    unsafe fn row<'a, T: Scalar>(&self, base: Base<T>, region: &Region, rows: usize, k: usize) -> &'a [T] {
        // SAFETY: the caller's promise.
        unsafe { base.slice(region.offset + (self.task * rows + k) * region.width + self.from, self.columns) }
    }

    /// The same, to change.
    ///
    /// # Safety
    /// A declared written region; pieces are disjoint.
    #[inline(always)]
    unsafe fn row_mut<'a, T: Scalar>(&self, base: Base<T>, region: &Region, rows: usize, k: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { base.slice_mut(region.offset + (self.task * rows + k) * region.width + self.from, self.columns) }
    }

    /// The means over the rows of `summand(k, column)`, from the first row to the last.
    #[inline(always)]
    fn means<T: Scalar>(&self, summand: impl Fn(usize, usize) -> T) -> Sums<T> {
        let mut sums = [T::ZERO; COLUMNS];
        for k in 0..self.rows {
            for (column, sum) in sums[..self.columns].iter_mut().enumerate() {
                *sum += summand(k, column);
            }
        }
        let count = T::from_f64(self.rows as f64);
        sums[..self.columns].iter_mut().for_each(|sum| *sum = *sum / count);
        sums
    }
}

/// Does `job` for pieces that make up the rows `region` of all tasks.
fn for_pieces(device: &CpuDevice, tasks: usize, region: &Region, cost: usize, job: impl Fn(Piece) + Sync) {
    let (rows, chunks) = (region.rows / tasks, region.width.div_ceil(COLUMNS));
    device.run_ranges(tasks * chunks, cost * rows * region.width.min(COLUMNS), |first, last| {
        pulp::Arch::new().dispatch(|| {
            for (task, from) in (first..last).map(|piece| (piece / chunks, piece % chunks * COLUMNS)) {
                job(Piece { task, rows, from, columns: COLUMNS.min(region.width - from) });
            }
        });
    });
}

/// See [`Normalise`].
pub(super) fn forward<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &Normalise) {
    assert_eq!((op.rows.len(), op.rows.width, op.inverse.rows), (op.output.len(), op.shift.len(), op.tasks));
    let base = arena.shared(&[op.shift], &[op.rows, op.inverse, op.output]);
    let epsilon = T::from_f64(op.epsilon);
    for_pieces(device, op.tasks, &op.rows, 8, |piece| {
        // SAFETY: declared regions; each job writes its own piece.
        let row = |k| unsafe { piece.row_mut(base, &op.rows, piece.rows, k) };
        // SAFETY: as above; all tasks share the shift.
        let (shift, inverse) = unsafe {
            (base.slice(op.shift.offset + piece.from, piece.columns), piece.row_mut(base, &op.inverse, 1, 0))
        };
        let means = piece.means(|k, column| row(k)[column]);
        (0..piece.rows).for_each(|k| row(k).iter_mut().zip(&means).for_each(|(u, mean)| *u -= *mean));
        let variances = piece.means(|k, column| row(k)[column] * row(k)[column]);
        inverse.iter_mut().zip(&variances).for_each(|(i, variance)| *i = T::ONE / (*variance + epsilon).sqrt());
        for k in 0..piece.rows {
            // SAFETY: as above.
            let output = unsafe { piece.row_mut(base, &op.output, piece.rows, k) };
            row(k).iter_mut().zip(&*inverse).for_each(|(u, inverse)| *u *= *inverse);
            with_activation!(op.activation, ACT => for ((o, x), b) in output.iter_mut().zip(row(k)).zip(shift) {
                *o = ACT.apply(*x + *b);
            });
        }
    });
}

/// See [`NormaliseJacobian`].
pub(super) fn jacobian<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &NormaliseJacobian) {
    assert_eq!((op.from.len(), op.inverse.rows), (op.to.len(), op.tasks));
    let base = arena.shared(&[op.normalised, op.inverse, op.from], &[op.to]);
    for_pieces(device, op.tasks, &op.from, 8, |piece| {
        // SAFETY: declared regions that are only read.
        let [x, v] =
            [&op.normalised, &op.from].map(|region| move |k| unsafe { piece.row(base, region, piece.rows, k) });
        // SAFETY: as above.
        let inverse = unsafe { piece.row(base, &op.inverse, 1, 0) };
        let mean = piece.means(|k, column| v(k)[column]);
        let along = piece.means(|k, column| v(k)[column] * x(k)[column]);
        for k in 0..piece.rows {
            // SAFETY: each job writes its own piece.
            let to = unsafe { piece.row_mut(base, &op.to, piece.rows, k) };
            let (x, v) = (x(k), v(k));
            for (column, to) in to.iter_mut().enumerate() {
                let product = inverse[column] * (v[column] - mean[column] - x[column] * along[column]);
                *to = if op.accumulate { *to + product } else { product };
            }
        }
    });
}

/// See [`NormaliseAdjoint`].
pub(super) fn adjoint<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &NormaliseAdjoint) {
    assert_eq!((op.cotangent.len(), op.inverse.rows), (op.e_cotangent.len(), op.tasks));
    let curved = op.activation.is_curved();
    let reads = [op.normalised, op.inverse, op.values, op.y_delta, op.u_delta, op.cotangent];
    let writes = [op.u_cotangent, op.e_cotangent, op.y_cotangent];
    let base = arena.shared(&reads, &writes[..if curved { 3 } else { 2 }]);
    for_pieces(device, op.tasks, &op.cotangent, 20, |piece| {
        let reads = [&op.normalised, &op.values, &op.y_delta, &op.u_delta, &op.cotangent];
        // SAFETY: declared regions that are only read.
        let [x, a, y_delta, u_delta, g] =
            reads.map(|region| move |k| unsafe { piece.row(base, region, piece.rows, k) });
        // SAFETY: each job writes its own piece.
        let write = |region, k| unsafe { piece.row_mut(base, region, piece.rows, k) };
        // SAFETY: as above.
        let inverse = unsafe { piece.row(base, &op.inverse, 1, 0) };
        let g_mean = piece.means(|k, column| g(k)[column]);
        let g_x = piece.means(|k, column| g(k)[column] * x(k)[column]);
        let y_delta_x = piece.means(|k, column| y_delta(k)[column] * x(k)[column]);
        let g_u_delta = piece.means(|k, column| g(k)[column] * u_delta(k)[column]);
        for k in 0..piece.rows {
            let (e, u) = (write(&op.e_cotangent, k), write(&op.u_cotangent, k));
            let (x, a, y_delta, u_delta, g) = (x(k), a(k), y_delta(k), u_delta(k), g(k));
            for column in 0..piece.columns {
                let h = inverse[column] * (g[column] - g_mean[column] - x[column] * g_x[column]);
                let turned = x[column] * g_u_delta[column] + h * y_delta_x[column] + u_delta[column] * g_x[column];
                u[column] = -inverse[column] * turned;
                e[column] = h;
            }
            with_activation!(op.activation, ACT => {
                if ACT.is_curved() {
                    for (column, y) in write(&op.y_cotangent, k).iter_mut().enumerate() {
                        *y = e[column] * y_delta[column] * ACT.curvature(a[column]);
                    }
                }
                e.iter_mut().zip(a).for_each(|(e, a)| *e *= ACT.derivative(*a));
            });
        }
    });
}
