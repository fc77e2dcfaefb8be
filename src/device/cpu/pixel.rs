//! Reconstruction, motion and texture terms on generated clips.

use super::matrix::with_activation;
use super::{CpuArena, CpuDevice};
use crate::device::operation::{Differences, Quadratic};
use crate::device::{PixelCurvature, PixelLoss, Region};
use crate::scalar::Scalar;

/// `factor * (d^T d v)[i]`, where d takes the differences and `start` is where the run that holds `i` begins.
#[inline(always)]
fn pull<T: Scalar>(v: &impl Fn(usize) -> T, d: &Differences, start: usize, i: usize) -> T {
    let (here, at) = (v(i), i - start);
    let mut sum = T::ZERO;
    if at >= d.distance {
        sum += here - v(i - d.distance);
    }
    if at + d.distance < d.period {
        sum += here - v(i + d.distance);
    }
    T::from_f64(d.factor) * sum
}

/// Hands `put` every index of a row and the gradient of the form at `v` there.
#[inline(always)]
fn gradient<T: Scalar>(form: &Quadratic, v: impl Fn(usize) -> T, mut put: impl FnMut(usize, T)) {
    let pixel = T::from_f64(form.pixel);
    let Quadratic { motion, texture: [across, along], .. } = form;
    let moves = motion.factor != 0.0;
    let smooth = |i| {
        let sum = pixel * v(i);
        if moves { sum + pull(&v, motion, 0, i) } else { sum }
    };
    if across.factor == 0.0 && along.factor == 0.0 {
        for i in 0..motion.period {
            let sum = smooth(i);
            put(i, sum + sum);
        }
        return;
    }
    for frame in (0..motion.period).step_by(across.period) {
        for line in (frame..frame + across.period).step_by(along.period) {
            for i in line..line + along.period {
                let sum = smooth(i) + pull(&v, across, frame, i) + pull(&v, along, line, i);
                put(i, sum + sum);
            }
        }
    }
}

/// The form's value at a row `v`.
fn value(form: &Quadratic, v: impl Fn(usize) -> f64) -> f64 {
    let width = form.motion.period;
    let mut sum = form.pixel * (0..width).map(|i| v(i) * v(i)).sum::<f64>();
    for d in [&form.motion, &form.texture[0], &form.texture[1]].into_iter().filter(|d| d.factor != 0.0) {
        let runs = (0..width).step_by(d.period);
        let squares =
            runs.flat_map(|start| start + d.distance..start + d.period).map(|i| (v(i) - v(i - d.distance)).powi(2));
        sum += d.factor * squares.sum::<f64>();
    }
    sum
}

/// See [`PixelLoss`].
pub(super) fn loss<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &PixelLoss<T>) {
    let nothing = Region { offset: 0, rows: 0, width: 0 };
    let reads = [op.prediction, op.target, op.upstream];
    let base = arena.shared(&reads, &[op.delta, op.task_loss.unwrap_or(nothing)]);
    let form = op.quadratic();
    let width = op.prediction.width;
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
                    with_activation!(op.activation, ACT => gradient(&form, |i| p[i] - x[i], |i, gradient| {
                        delta[i] = (up[i] + gradient) * ACT.derivative(p[i]);
                    }));
                });
                if op.task_loss.is_some() {
                    total += value(&form, |i| p[i].to_f64() - x[i].to_f64());
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
    let form = at.quadratic();
    let width = at.prediction.width;
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
                with_activation!(at.activation, ACT => gradient(&form, |i| e[i], |i, product| {
                    let part = (up[i] + product) * ACT.derivative(p[i]);
                    z[i] = if op.accumulate { z[i] + part } else { part };
                }));
            });
        }
    });
}
