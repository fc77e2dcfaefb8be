//! The plain loops over flat arrays.

use super::{CpuArena, CpuDevice};
use crate::device::{OuterStep, Region};
use crate::scalar::Scalar;

/// See [`crate::device::Device::sum_rows`].
pub(super) fn sum_rows<T: Scalar>(
    device: &CpuDevice,
    arena: &mut CpuArena<T>,
    from: Region,
    scale: T,
    to: Region,
    accumulate: bool,
) {
    let base = arena.shared(&[from], &[to]);
    device.run_ranges(from.width, from.rows, |first, last| {
        // SAFETY: each job writes its own columns.
        let out = unsafe { base.slice_mut(to.offset + first, last - first) };
        if !accumulate {
            out.fill(T::ZERO);
        }
        for row in 0..from.rows {
            // SAFETY: a declared region that is only read.
            let row = unsafe { base.slice(from.offset + row * from.width + first, last - first) };
            out.iter_mut().zip(row).for_each(|(o, r)| *o += scale * *r);
        }
    });
}

/// See [`crate::device::Device::add_scaled`].
pub(super) fn add_scaled<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, from: Region, scale: T, to: Region) {
    assert_eq!(from.len(), to.len());
    let base = arena.shared(&[from], &[to]);
    device.run_ranges(from.len(), 1, |first, last| {
        // SAFETY: each job writes its own elements.
        let (out, from) =
            unsafe { (base.slice_mut(to.offset + first, last - first), base.slice(from.offset + first, last - first)) };
        out.iter_mut().zip(from).for_each(|(o, f)| *o += scale * *f);
    });
}

/// Sum of squares in double precision, over 64 partial sums.
pub(super) fn squared_norm<T: Scalar>(values: &[T]) -> f64 {
    let mut sums = [0.0f64; 64];
    let (chunks, rest) = values.as_chunks::<64>();
    for chunk in chunks {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum += value.to_f64() * value.to_f64();
        }
    }
    sums.iter().sum::<f64>() + rest.iter().map(|v| v.to_f64() * v.to_f64()).sum::<f64>()
}

/// See [`OuterStep`].
pub(super) fn outer_step<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &OuterStep) {
    match *op {
        OuterStep::Sgd { parameters, gradient, rate, factor } => {
            add_scaled(device, arena, gradient, T::from_f64(-rate * factor), parameters);
        }
        OuterStep::Adam { parameters, gradient, first, second, rate, factor, betas, epsilon, step } => {
            let base = arena.shared(&[gradient], &[parameters, first, second]);
            let correction = |beta: f64| 1.0 - beta.powi(step.min(i32::MAX as u64) as i32);
            let rate = T::from_f64(rate / correction(betas.0));
            let second_scale = T::from_f64(1.0 / correction(betas.1));
            let (factor, epsilon) = (T::from_f64(factor), T::from_f64(epsilon));
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
