//! The materialised form's inner step of Adam, its transpose and the gradient of its rates.

use super::update::{WeightGradient, rate_gradient, rate_region, read, region, write};
use super::{Base, CpuArena, CpuDevice};
use crate::device::{Adam, AdamRateGradient, AdamUpdate, Linear, Rate, ReverseAdam};
use crate::scalar::Scalar;

impl<T: Scalar> Adam<T> {
    /// The root of the unbiased second moment, and what the step subtracts before the rate.
    fn moved(&self, first: T, second: T) -> (T, T) {
        let root = (second * self.correction[1]).sqrt();
        (root, first * self.correction[0] / (root + self.epsilon))
    }
}

/// The rate of each parameter of a layer; one element where it is the same for all.
///
/// # Safety
/// As [`Base::slice`].
unsafe fn rates<T: Scalar>(base: Base<T>, rate: &Rate<T>) -> &[T] {
    match rate {
        Rate::Uniform(rate) => std::slice::from_ref(rate),
        // SAFETY: the caller's promise.
        Rate::Single(region) => unsafe { base.slice(region.offset, 1) },
        // SAFETY: the caller's promise.
        Rate::PerParameter(layer) => unsafe { read(base, layer, 0) },
    }
}

/// See [`AdamUpdate`]. The gradient is summed up where the new weights are to be, and replaced by them.
pub(super) fn update<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &AdamUpdate<T>) {
    let all = |layer: &Linear| region(layer, op.tasks);
    let reads = [op.delta, op.values, all(&op.from), rate_region(&op.rate)];
    let [first, second] = op.new_moments;
    let base = arena.shared(&reads, &[all(&op.to), all(&first), all(&second)]);
    let gradient = WeightGradient { tasks: op.tasks, rows: op.rows, delta: op.delta, values: op.values };
    let Adam { decay, rest, .. } = op.adam;
    device.run(op.tasks, |task| {
        // SAFETY: declared regions; each job writes its own task's.
        let (from, rates) = unsafe { (read(base, &op.from, task), rates(base, &op.rate)) };
        // SAFETY: as above.
        let (to, m, v) = unsafe { (write(base, &op.to, task), write(base, &first, task), write(base, &second, task)) };
        match &op.moments {
            None => {
                m.fill(T::ZERO);
                v.fill(T::ZERO);
            }
            Some([before, _]) if before.weight == first.weight => {}
            Some([before_m, before_v]) => {
                // SAFETY: an earlier step's moments, which are only read.
                unsafe {
                    m.copy_from_slice(read(base, before_m, task));
                    v.copy_from_slice(read(base, before_v, task));
                }
            }
        }
        gradient.write(base, task, to);
        let mut step = |i: usize, rate: T| {
            let g = to[i];
            m[i] = decay[0] * m[i] + rest[0] * g;
            v[i] = decay[1] * v[i] + rest[1] * g * g;
            to[i] = from[i] - rate * op.adam.moved(m[i], v[i]).1;
        };
        match rates {
            [rate] => (0..from.len()).for_each(|i| step(i, *rate)),
            rates => (0..from.len()).for_each(|i| step(i, rates[i])),
        }
    });
}

/// See [`AdamRateGradient`].
pub(super) fn rates_of_step<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &AdamRateGradient<T>) {
    let base = arena.shared(&op.moments.map(|m| region(&m, op.tasks)), &[region(&op.moved, op.tasks)]);
    device.run(op.tasks, |task| {
        let [m, v] = &op.moments;
        // SAFETY: declared regions; each job writes its own task's.
        let (m, v, moved) = unsafe { (read(base, m, task), read(base, v, task), write(base, &op.moved, task)) };
        moved.iter_mut().zip(m).zip(v).for_each(|((moved, m), v)| *moved = op.adam.moved(*m, *v).1);
    });
    rate_gradient(arena, op.tasks, (&op.weight_cotangent, &op.moved), op.scale, op.rate_gradient);
}

/// See [`ReverseAdam`]. The gradient is summed up where the direction is to be.
pub(super) fn reverse<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &ReverseAdam<T>) {
    let all = |layer: &Linear| region(layer, op.tasks);
    let [first, second] = &op.moments;
    let reads = [op.delta, op.values, all(&op.weight_cotangent), all(first), all(second), rate_region(&op.rate)];
    let [first_cotangent, second_cotangent] = &op.moment_cotangents;
    let base = arena.shared(&reads, &[all(&op.direction), all(first_cotangent), all(second_cotangent)]);
    let gradient = WeightGradient { tasks: op.tasks, rows: op.rows, delta: op.delta, values: op.values };
    let Adam { decay, rest, correction, epsilon } = op.adam;
    let two = T::from_f64(2.0);
    device.run(op.tasks, |task| {
        // SAFETY: declared regions; each job writes its own task's.
        let (cotangent, m, v) =
            unsafe { (read(base, &op.weight_cotangent, task), read(base, first, task), read(base, second, task)) };
        // SAFETY: as above.
        let (direction, of_m, of_v) = unsafe {
            (write(base, &op.direction, task), write(base, first_cotangent, task), write(base, second_cotangent, task))
        };
        // SAFETY: as above.
        let rates = unsafe { rates(base, &op.rate) };
        if !op.accumulate {
            of_m.fill(T::ZERO);
            of_v.fill(T::ZERO);
        }
        gradient.write(base, task, direction);
        let mut step = |i: usize, rate: T| {
            let (root, moved) = op.adam.moved(m[i], v[i]);
            let pulled = -(rate * cotangent[i]) / (root + epsilon);
            of_m[i] = decay[0] * of_m[i] + pulled * correction[0];
            let by_root = if root > T::ZERO { pulled * moved * correction[1] / (two * root) } else { T::ZERO };
            of_v[i] = decay[1] * of_v[i] - by_root;
            direction[i] = rest[0] * of_m[i] + two * rest[1] * direction[i] * of_v[i];
        };
        match rates {
            [rate] => (0..m.len()).for_each(|i| step(i, *rate)),
            rates => (0..m.len()).for_each(|i| step(i, rates[i])),
        }
    });
}
