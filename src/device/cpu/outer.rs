//! What a step of the outer optimizer takes.

use super::elementwise::add_scaled;
use super::{CpuArena, CpuDevice};
use crate::device::{Finding, GradientCheck, OuterStep, Region};
use crate::scalar::Scalar;

/// Sum of squares in double precision, over 64 partial sums.
fn squared_norm<T: Scalar>(values: &[T]) -> f64 {
    let mut sums = [0.0f64; 64];
    let (chunks, rest) = values.as_chunks::<64>();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value.to_f64() * value.to_f64();
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|v| v.to_f64() * v.to_f64()).sum::<f64>()
}

/// See [`GradientCheck`].
pub(super) fn gradient_check<T: Scalar>(arena: &mut CpuArena<T>, op: &GradientCheck) {
    let finite = |region: &Region| arena.slice(*region).iter().all(|loss| loss.is_finite());
    let mut well = op.losses.iter().flatten().all(finite);
    for (place, gradient) in op.gradients.iter().enumerate() {
        let Some(gradient) = gradient else { continue };
        let norm = squared_norm(arena.slice(*gradient)).sqrt();
        well &= T::from_f64(norm).is_finite();
        let factor = op.clip_of(place).filter(|clip| norm > *clip).map_or(1.0, |clip| clip / norm);
        let at = op.findings.elements(1 + 2 * place, 2);
        arena.slice_mut(at).copy_from_slice(&[factor, norm].map(T::from_f64));
    }
    if !well {
        arena.slice_mut(op.findings)[0] = T::ONE;
    }
}

/// What a gradient is to be multiplied by; nothing where nothing may change.
fn factor<T: Scalar>(arena: &CpuArena<T>, finding: Finding) -> Option<T> {
    let [flag, factor] =
        [finding.flag(), finding.factor()].map(|offset| arena.slice(Region { offset, rows: 1, width: 1 })[0]);
    (flag == T::ZERO).then_some(factor)
}

/// See [`OuterStep`].
pub(super) fn outer_step<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &OuterStep) {
    match *op {
        OuterStep::Sgd { in_logarithm, parameters, gradient, rate, finding } => {
            let Some(factor) = factor(arena, finding) else { return };
            if !in_logarithm {
                return add_scaled(device, arena, gradient, T::from_f64(-rate) * factor, parameters);
            }
            for at in 0..parameters.len() {
                let one = |region: Region| region.elements(at, 1);
                let g = arena.slice(one(gradient))[0] * factor;
                let p = &mut arena.slice_mut(one(parameters))[0];
                *p *= (-(T::from_f64(rate) * g * *p)).exp();
            }
        }
        OuterStep::Adam { in_logarithm, parameters, gradient, first, second, rate, finding, betas, epsilon, step } => {
            let Some(factor) = factor(arena, finding) else { return };
            let base = arena.shared(&[gradient], &[parameters, first, second]);
            let correction = |beta: f64| 1.0 - beta.powi(step.min(i32::MAX as u64) as i32);
            let rate = T::from_f64(rate / correction(betas.0));
            let second_scale = T::from_f64(1.0 / correction(betas.1));
            let epsilon = T::from_f64(epsilon);
            let (beta1, beta2) = (T::from_f64(betas.0), T::from_f64(betas.1));
            let (rest1, rest2) = (T::from_f64(1.0 - betas.0), T::from_f64(1.0 - betas.1));
            device.run_ranges(parameters.len(), 4, |from, to| {
                // SAFETY: each job writes its own elements.
                let (p, g, m, v) = unsafe {
                    (
                        base.slice_mut(parameters.offset + from, to - from),
                        base.slice(gradient.offset + from, to - from),
                        base.slice_mut(first.offset + from, to - from),
                        base.slice_mut(second.offset + from, to - from),
                    )
                };
                if in_logarithm {
                    for i in 0..p.len() {
                        let g = g[i] * factor * p[i];
                        m[i] = beta1 * m[i] + rest1 * g;
                        v[i] = beta2 * v[i] + rest2 * g * g;
                        p[i] *= (-(rate * m[i] / ((v[i] * second_scale).sqrt() + epsilon))).exp();
                    }
                    return;
                }
                pulp::Arch::new().dispatch(|| {
                    for i in 0..p.len() {
                        let g = g[i] * factor;
                        m[i] = beta1 * m[i] + rest1 * g;
                        v[i] = beta2 * v[i] + rest2 * g * g;
                        p[i] -= rate * m[i] / ((v[i] * second_scale).sqrt() + epsilon);
                    }
                });
            });
        }
    }
}
