//! Supervised losses with their first and second derivatives.

use super::{Base, CpuArena, CpuDevice};
use crate::device::{Region, SupervisedCurvature, SupervisedLoss};
use crate::model::Activation;
use crate::objective::Loss;
use crate::scalar::Scalar;

/// Rows of one task.
unsafe fn task_slice<'a, T: Scalar>(base: Base<T>, region: &Region, tasks: usize, task: usize) -> &'a [T] {
    let len = region.len() / tasks;
    // SAFETY: the caller declared the region.
    unsafe { base.slice(region.offset + task * len, len) }
}

unsafe fn task_slice_mut<'a, T: Scalar>(base: Base<T>, region: &Region, tasks: usize, task: usize) -> &'a mut [T] {
    let len = region.len() / tasks;
    // SAFETY: the caller declared the region, and owns this task.
    unsafe { base.slice_mut(region.offset + task * len, len) }
}

/// dL/dz of a loss that goes element by element, a mean over `count` of them.
#[inline(always)]
pub(super) fn delta_by_element<T: Scalar>(
    loss: Loss,
    act: Activation,
    count: f64,
    (p, y): (&[T], &[T]),
    delta: &mut [T],
) {
    if loss == Loss::Mse {
        let scale = T::from_f64(2.0 / count);
        for i in 0..p.len() {
            delta[i] = scale * (p[i] - y[i]) * act.derivative(p[i]);
        }
    } else {
        let scale = T::from_f64(1.0 / count);
        for i in 0..p.len() {
            delta[i] = scale * (p[i].sigmoid() - y[i]) * act.derivative(p[i]);
        }
    }
}

/// `z += act'(p) L''(p) e` of such a loss.
#[inline(always)]
pub(super) fn curvature_by_element<T: Scalar>(
    loss: Loss,
    act: Activation,
    count: f64,
    (p, e): (&[T], &[T]),
    z: &mut [T],
) {
    if loss == Loss::Mse {
        let scale = T::from_f64(2.0 / count);
        for i in 0..p.len() {
            z[i] += scale * e[i] * act.derivative(p[i]);
        }
    } else {
        let scale = T::from_f64(1.0 / count);
        for i in 0..p.len() {
            let s = p[i].sigmoid();
            z[i] += scale * s * (T::ONE - s) * e[i] * act.derivative(p[i]);
        }
    }
}

/// A summand of a task's loss that goes element by element.
#[inline(always)]
pub(super) fn term<T: Scalar>(loss: Loss, p: T, y: T) -> T {
    if loss == Loss::Mse { (p - y) * (p - y) } else { p.softplus() - y * p }
}

/// See [`SupervisedLoss`].
pub(super) fn loss<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &SupervisedLoss) {
    let nothing = Region { offset: 0, rows: 0, width: 0 };
    let writes = [op.delta.unwrap_or(nothing), op.task_loss.unwrap_or(nothing)];
    let base = arena.shared(&[op.prediction, op.target], &writes);
    let (outputs, act) = (op.prediction.width, op.activation);
    device.run_ranges(op.tasks, 4 * op.prediction.len() / op.tasks, |first, last| {
        for task in first..last {
            // SAFETY: declared regions; each job writes its own tasks.
            let (p, y) = unsafe {
                (task_slice(base, &op.prediction, op.tasks, task), task_slice(base, &op.target, op.tasks, task))
            };
            let count = p.len() as f64;
            let rows = count / outputs as f64;
            if let Some(delta) = op.delta {
                // SAFETY: as above.
                let delta = unsafe { task_slice_mut(base, &delta, op.tasks, task) };
                pulp::Arch::new().dispatch(|| match op.loss {
                    Loss::Mse | Loss::BceWithLogits => delta_by_element(op.loss, act, count, (p, y), delta),
                    Loss::CrossEntropy => {
                        let scale = T::from_f64(1.0 / rows);
                        for ((p, y), delta) in p.chunks(outputs).zip(y.chunks(outputs)).zip(delta.chunks_mut(outputs)) {
                            let (top, total) = softmax_parts(p);
                            let mass: T = y.iter().copied().sum();
                            for i in 0..outputs {
                                let q = (p[i] - top).exp() / total;
                                delta[i] = scale * (q * mass - y[i]) * act.derivative(p[i]);
                            }
                        }
                    }
                });
            }
            if let Some(task_loss) = op.task_loss {
                let value = match op.loss {
                    Loss::Mse | Loss::BceWithLogits => sum(p, y, |p, y| term(op.loss, p, y)) / count,
                    Loss::CrossEntropy => {
                        let mut total = 0.0;
                        for (p, y) in p.chunks(outputs).zip(y.chunks(outputs)) {
                            let (top, mass) = softmax_parts(p);
                            let log = top + mass.ln();
                            total += sum(p, y, |p, y| y * (log - p));
                        }
                        total / rows
                    }
                };
                // SAFETY: as above.
                unsafe { *base.at(task_loss.offset + task) = T::from_f64(value) };
            }
        }
    });
}

/// The maximum of the logits and the sum of their exponentials relative to it.
fn softmax_parts<T: Scalar>(logits: &[T]) -> (T, T) {
    let top = logits.iter().copied().fold(logits[0], |a, b| b.max(a));
    (top, logits.iter().map(|p| (*p - top).exp()).sum())
}

/// The sum in double precision, over 16 partial sums.
fn sum<T: Scalar>(p: &[T], y: &[T], term: impl Fn(T, T) -> T) -> f64 {
    let mut sums = [0.0; 16];
    for (p, y) in p.chunks(16).zip(y.chunks(16)) {
        for ((s, p), y) in sums.iter_mut().zip(p).zip(y) {
            *s += term(*p, *y).to_f64();
        }
    }
    sums.iter().sum()
}

/// See [`SupervisedCurvature`].
pub(super) fn curvature<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &SupervisedCurvature) {
    let at = &op.at;
    let base = arena.shared(&[at.prediction, at.target, op.e_cotangent], &[op.z_cotangent]);
    let (outputs, act) = (at.prediction.width, at.activation);
    device.run_ranges(at.tasks, 4 * at.prediction.len() / at.tasks, |first, last| {
        for task in first..last {
            // SAFETY: declared regions; each job writes its own tasks.
            let (p, y, e, z) = unsafe {
                (
                    task_slice(base, &at.prediction, at.tasks, task),
                    task_slice(base, &at.target, at.tasks, task),
                    task_slice(base, &op.e_cotangent, at.tasks, task),
                    task_slice_mut(base, &op.z_cotangent, at.tasks, task),
                )
            };
            if !op.accumulate {
                z.fill(T::ZERO);
            }
            let count = p.len() as f64;
            let rows = count / outputs as f64;
            pulp::Arch::new().dispatch(|| match at.loss {
                Loss::Mse | Loss::BceWithLogits => curvature_by_element(at.loss, act, count, (p, e), z),
                Loss::CrossEntropy => {
                    let scale = T::from_f64(1.0 / rows);
                    for row in 0..p.len() / outputs {
                        let range = row * outputs..(row + 1) * outputs;
                        let (p, e, z) = (&p[range.clone()], &e[range.clone()], &mut z[range.clone()]);
                        let mass: T = y[range].iter().copied().sum();
                        let (top, total) = softmax_parts(p);
                        let inner = p.iter().zip(e).map(|(p, e)| (*p - top).exp() / total * *e).sum::<T>();
                        for i in 0..outputs {
                            let q = (p[i] - top).exp() / total;
                            z[i] += scale * mass * q * (e[i] - inner) * act.derivative(p[i]);
                        }
                    }
                }
            });
        }
    });
}
