//! Reconstruction and motion terms on generated clips.

use super::matrix::with_activation;
use super::{CpuArena, CpuDevice};
use crate::device::{PixelCurvature, PixelLoss, Region};
use crate::scalar::Scalar;

/// The two terms' factors, for one task: of a squared pixel and of a squared frame difference.
fn factors<T: Scalar>(op: &PixelLoss<T>) -> (f64, f64) {
    let count = (op.prediction.len() / op.tasks) as f64;
    let rows = (op.prediction.rows / op.tasks) as f64;
    let frame = (op.prediction.width / op.frames) as f64;
    let differences = rows * (op.frames - 1) as f64 * frame;
    let motion = if op.frames > 1 { op.motion.to_f64() / differences } else { 0.0 };
    (op.reconstruction.to_f64() / count, motion)
}

/// `out[i] = 2 (rec * v[i] + mot * (d^T d v)[i])` for one clip, where d takes differences of successive frames.
#[inline(always)]
fn quadratic<T: Scalar>(v: impl Fn(usize) -> T, width: usize, frame: usize, (rec, mot): (T, T), i: usize) -> T {
    let here = v(i);
    let mut difference = T::ZERO;
    if mot != T::ZERO {
        if i >= frame {
            difference += here - v(i - frame);
        }
        if i + frame < width {
            difference += here - v(i + frame);
        }
    }
    let sum = rec * here + mot * difference;
    sum + sum
}

/// See [`PixelLoss`].
pub(super) fn loss<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &PixelLoss<T>) {
    let nothing = Region { offset: 0, rows: 0, width: 0 };
    let reads = [op.prediction, op.target, op.upstream];
    let base = arena.shared(&reads, &[op.delta, op.task_loss.unwrap_or(nothing)]);
    let (rec, mot) = factors(op);
    let scales = (T::from_f64(rec), T::from_f64(mot));
    let width = op.prediction.width;
    let frame = width / op.frames;
    let rows = op.prediction.rows / op.tasks;
    device.run_ranges(op.tasks, 8 * rows * width, |first, last| {
        for task in first..last {
            let mut total = 0.0;
            for row in task * rows..(task + 1) * rows {
                let start = row * width;
                // SAFETY: declared regions; each job writes its own tasks.
                let (p, x, up, delta) = unsafe {
                    (
                        base.slice(op.prediction.offset + start, width),
                        base.slice(op.target.offset + start, width),
                        base.slice(op.upstream.offset + start, width),
                        base.slice_mut(op.delta.offset + start, width),
                    )
                };
                pulp::Arch::new().dispatch(|| {
                    with_activation!(op.activation, ACT => for i in 0..width {
                        let gradient = quadratic(|i| p[i] - x[i], width, frame, scales, i);
                        delta[i] = (up[i] + gradient) * ACT.derivative(p[i]);
                    });
                });
                if op.task_loss.is_some() {
                    let squared = |d: T| d.to_f64() * d.to_f64();
                    total += rec * (0..width).map(|i| squared(p[i] - x[i])).sum::<f64>();
                    if mot != 0.0 {
                        let d = |i: usize| (p[i] - x[i]) - (p[i - frame] - x[i - frame]);
                        total += mot * (frame..width).map(|i| squared(d(i))).sum::<f64>();
                    }
                }
            }
            if let Some(out) = op.task_loss {
                // SAFETY: as above.
                unsafe { *base.at(out.offset + task) += T::from_f64(total) };
            }
        }
    });
}

/// See [`PixelCurvature`].
pub(super) fn curvature<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &PixelCurvature<T>) {
    let at = &op.at;
    let base = arena.shared(&[at.prediction, at.upstream, op.e_cotangent], &[op.z_cotangent]);
    let (rec, mot) = factors(at);
    let scales = (T::from_f64(rec), T::from_f64(mot));
    let width = at.prediction.width;
    let frame = width / at.frames;
    device.run_ranges(at.prediction.rows, 8 * width, |first, last| {
        for row in first..last {
            let start = row * width;
            // SAFETY: declared regions; each job writes its own rows.
            let (p, e, up, z) = unsafe {
                (
                    base.slice(at.prediction.offset + start, width),
                    base.slice(op.e_cotangent.offset + start, width),
                    base.slice(at.upstream.offset + start, width),
                    base.slice_mut(op.z_cotangent.offset + start, width),
                )
            };
            pulp::Arch::new().dispatch(|| {
                with_activation!(at.activation, ACT => for i in 0..width {
                    let part = (up[i] + quadratic(|i| e[i], width, frame, scales, i)) * ACT.derivative(p[i]);
                    z[i] = if op.accumulate { z[i] + part } else { part };
                });
            });
        }
    });
}
