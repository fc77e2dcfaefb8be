//! The adversarial losses on the discriminator's logits: few numbers, so one thread.

use super::CpuArena;
use crate::device::{AdversarialCurvature, AdversarialLoss, Region};
use crate::scalar::Scalar;

/// Element of block `block`, task `task`, row `k` in blocks of width 1.
fn element(region: &Region, tasks: usize, rows: usize, block: usize, task: usize, k: usize) -> Region {
    region.rows((block * tasks + task) * rows + k, 1)
}

/// See [`AdversarialLoss`].
pub(super) fn loss<T: Scalar>(arena: &mut CpuArena<T>, op: &AdversarialLoss<T>) {
    let rows = op.logits.rows / (2 * op.tasks);
    let scale = T::from_f64(1.0 / rows as f64);
    for task in 0..op.tasks {
        let (mut discriminator, mut generator) = (0.0, 0.0);
        for k in 0..rows {
            let at = |region: &Region, block| element(region, op.tasks, rows, block, task, k);
            let (real, generated) = (arena.slice(at(&op.logits, 0))[0], arena.slice(at(&op.logits, 1))[0]);
            discriminator += (-real).softplus().to_f64() + generated.softplus().to_f64();
            generator += (-generated).softplus().to_f64();
            let (gate_real, gate_generated) = (op.activation.derivative(real), op.activation.derivative(generated));
            // sigmoid(x) - 1 = -sigmoid(-x), without cancellation.
            arena.slice_mut(at(&op.delta, 0))[0] = -scale * (-real).sigmoid() * gate_real;
            arena.slice_mut(at(&op.delta, 1))[0] = scale * generated.sigmoid() * gate_generated;
            arena.slice_mut(at(&op.delta, 2))[0] = -op.weight * scale * (-generated).sigmoid() * gate_generated;
        }
        if let Some(out) = op.discriminator_loss {
            arena.slice_mut(out)[task] = T::from_f64(discriminator / rows as f64);
        }
        if let Some(out) = op.generator_loss {
            arena.slice_mut(out)[task] = T::from_f64(op.weight.to_f64() * generator / rows as f64);
        }
    }
}

/// See [`AdversarialCurvature`].
pub(super) fn curvature<T: Scalar>(arena: &mut CpuArena<T>, op: &AdversarialCurvature<T>) {
    let at = &op.at;
    let rows = at.logits.rows / (2 * at.tasks);
    let scale = T::from_f64(1.0 / rows as f64);
    for task in 0..at.tasks {
        for k in 0..rows {
            let place = |region: &Region, block| element(region, at.tasks, rows, block, task, k);
            for block in 0..2 {
                let logit = arena.slice(place(&at.logits, block))[0];
                let mut e = arena.slice(place(&op.e_cotangent, block))[0];
                if block == 1 {
                    e += at.weight * arena.slice(place(&op.e_cotangent, 2))[0];
                }
                let second = logit.sigmoid() * (-logit).sigmoid();
                let part = scale * second * e * at.activation.derivative(logit);
                let z = &mut arena.slice_mut(place(&op.z_cotangent, block))[0];
                *z = if op.accumulate { *z + part } else { part };
            }
        }
    }
}
