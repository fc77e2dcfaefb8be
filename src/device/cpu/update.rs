//! The materialised form's inner update and its transpose.

use super::matrix::{Matrix, Onto};
use super::multiply::multiply_any;
use super::outer_product::add_rows;
use super::{Base, CpuArena, CpuDevice};
use crate::device::{InnerUpdate, Linear, Rate, Region, ReverseUpdate};
use crate::scalar::Scalar;

/// Elements of a weight that are copied and updated at a time.
const PIECE: usize = 1 << 15;

/// Weight and bias of one task, as one run of elements: they lie one after the other.
pub(super) fn task_range(layer: &Linear, task: usize) -> (usize, usize) {
    debug_assert_eq!(layer.bias, layer.weight + layer.inputs * layer.outputs);
    (layer.weight + task * layer.task_stride, (layer.inputs + 1) * layer.outputs)
}

/// All tasks' elements, for the overlap check.
pub(super) fn region(layer: &Linear, tasks: usize) -> Region {
    let (offset, len) = task_range(layer, 0);
    Region { offset, rows: 1, width: (tasks - 1) * layer.task_stride + len }
}

/// See [`InnerUpdate`].
pub(super) fn inner_update<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &InnerUpdate<T>) {
    let reads = [op.delta, op.values, region(&op.from, op.tasks)];
    let to = region(&op.to, op.tasks);
    let writes = [to, op.new_velocity.map_or(Region { width: 0, ..to }, |v| region(&v, op.tasks))];
    let base = arena.shared(&reads, &writes);
    let gradient = WeightGradient { tasks: op.tasks, rows: op.rows, delta: op.delta, values: op.values };
    device.run(op.tasks, |task| {
        let (from, len) = task_range(&op.from, task);
        let (to, _) = task_range(&op.to, task);
        // SAFETY: declared regions; each job writes its own task's weights.
        let (from, to) = unsafe { (base.slice(from, len), base.slice_mut(to, len)) };
        let Some(kept) = op.new_velocity else {
            // Nothing else needs the gradient: it goes straight into the weights, a piece that stays in the cache at a time.
            let Rate::Uniform(rate) = op.rate else { unreachable!("per-parameter rates keep the velocity") };
            let Linear { inputs, outputs, .. } = op.to;
            let step = (PIECE / inputs).max(1);
            for first in (0..outputs).step_by(step) {
                let last = outputs.min(first + step);
                let before = from[first * inputs..].as_ptr();
                gradient.add_weight(base, task, -rate, to.as_mut_ptr(), (first, last), Onto::Rows(before, inputs));
            }
            to[inputs * outputs..].copy_from_slice(&from[inputs * outputs..]);
            gradient.add_bias(base, task, -rate, to.as_mut_ptr());
            return;
        };
        // SAFETY: as above.
        let velocity = unsafe { base.slice_mut(task_range(&kept, task).0, len) };
        match op.velocity {
            Some(before) => {
                // SAFETY: an earlier step's velocity, which is only read.
                let before = unsafe { base.slice(task_range(&before, task).0, len) };
                velocity.iter_mut().zip(before).for_each(|(v, b)| *v = op.momentum * *b);
            }
            None => velocity.fill(T::ZERO),
        }
        gradient.add_weight(base, task, T::ONE, velocity.as_mut_ptr(), (0, op.to.outputs), Onto::Itself);
        gradient.add_bias(base, task, T::ONE, velocity.as_mut_ptr());
        pulp::Arch::new().dispatch(|| match op.rate {
            Rate::Uniform(rate) => {
                for ((t, f), v) in to.iter_mut().zip(from).zip(&*velocity) {
                    *t = *f - rate * *v;
                }
            }
            Rate::PerParameter(rates) => {
                // SAFETY: the rates are only read.
                let rates = unsafe { base.slice(task_range(&rates, 0).0, len) };
                for (((t, f), v), rate) in to.iter_mut().zip(from).zip(&*velocity).zip(rates) {
                    *t = *f - *rate * *v;
                }
            }
        });
    });
}

/// The rows that a layer's gradients are made of, task by task: `delta^T [a, 1]`.
pub(super) struct WeightGradient {
    pub tasks: usize,
    pub rows: usize,
    pub delta: Region,
    pub values: Region,
}

impl WeightGradient {
    /// `out = onto + scale * delta^T a`, the outputs `first..last` of a task's weight.
    pub fn add_weight<T: Scalar>(
        &self,
        base: Base<T>,
        task: usize,
        scale: T,
        out: *mut T,
        (first, last): (usize, usize),
        onto: Onto<T>,
    ) {
        let (inputs, outputs) = (self.values.width, self.delta.width);
        let per_block = self.tasks * self.rows;
        for block in 0..self.delta.rows / per_block {
            let row = block * per_block + task * self.rows;
            let delta = Matrix::rows(base.at(self.delta.offset + row * outputs + first).cast_const(), outputs);
            let values = Matrix::rows(base.at(self.values.offset + row * inputs).cast_const(), inputs);
            // SAFETY: declared regions; `out` is this job's own.
            unsafe {
                let out = out.add(first * inputs);
                let onto = if block > 0 { Onto::Itself } else { onto };
                multiply_any((last - first, self.rows, inputs), delta.transposed(), values, scale, (out, inputs), onto);
            }
        }
    }

    /// `out += scale * delta^T 1`, a task's bias; `out` begins with its weight.
    pub fn add_bias<T: Scalar>(&self, base: Base<T>, task: usize, scale: T, out: *mut T) {
        let (inputs, outputs) = (self.values.width, self.delta.width);
        let per_block = self.tasks * self.rows;
        // SAFETY: declared regions; `out` is this job's own.
        let bias = unsafe { std::slice::from_raw_parts_mut(out.add(inputs * outputs), outputs) };
        for block in 0..self.delta.rows / per_block {
            let rows = self.delta.rows(block * per_block + task * self.rows, self.rows);
            add_rows(base, &rows, 0, scale, bias);
        }
    }
}

/// See [`ReverseUpdate`].
pub(super) fn reverse_update<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &ReverseUpdate<T>) {
    if let (Some(gradient), Some(velocity)) = (op.rate_gradient, op.velocity) {
        rate_gradient(arena, op.tasks, (&op.weight_cotangent, &velocity), op.scale, gradient);
    }
    let base = arena.shared(&[region(&op.weight_cotangent, op.tasks)], &[region(&op.direction, op.tasks)]);
    device.run(op.tasks, |task| {
        let (cotangent, len) = task_range(&op.weight_cotangent, task);
        // SAFETY: declared regions; each job writes its own task's direction.
        let (cotangent, direction) =
            unsafe { (base.slice(cotangent, len), base.slice_mut(task_range(&op.direction, task).0, len)) };
        let momentum = if op.accumulate { op.momentum } else { T::ZERO };
        pulp::Arch::new().dispatch(|| {
            // SAFETY: the rates are only read.
            let rates = |rates: &Linear| unsafe { base.slice(task_range(rates, 0).0, len) };
            let pairs = direction.iter_mut().zip(cotangent);
            // Without momentum what is there counts for nothing, be it NaN.
            match (op.rate, momentum == T::ZERO) {
                (Rate::Uniform(rate), true) => pairs.for_each(|(d, c)| *d = -(rate * *c)),
                (Rate::Uniform(rate), false) => pairs.for_each(|(d, c)| *d = momentum * *d - rate * *c),
                (Rate::PerParameter(r), true) => pairs.zip(rates(&r)).for_each(|((d, c), r)| *d = -(*r * *c)),
                (Rate::PerParameter(r), false) => {
                    pairs.zip(rates(&r)).for_each(|((d, c), r)| *d = momentum * *d - *r * *c);
                }
            }
        });
    });
}

/// `gradient -= scale * <cotangent, moved>`, of one rate or of one for each parameter: task by task, so that the order of
/// the sum never changes.
pub(super) fn rate_gradient<T: Scalar>(
    arena: &mut CpuArena<T>,
    tasks: usize,
    (cotangent, moved): (&Linear, &Linear),
    scale: T,
    gradient: Region,
) {
    let base = arena.shared(&[region(cotangent, tasks), region(moved, tasks)], &[gradient]);
    for task in 0..tasks {
        let (cotangent, len) = task_range(cotangent, task);
        // SAFETY: declared regions; nothing else runs.
        let (cotangent, moved, gradient) = unsafe {
            (
                base.slice(cotangent, len),
                base.slice(task_range(moved, task).0, len),
                base.slice_mut(gradient.offset, gradient.len()),
            )
        };
        if let [gradient] = gradient {
            let dot: f64 = cotangent.iter().zip(moved).map(|(c, v)| c.to_f64() * v.to_f64()).sum();
            *gradient -= scale * T::from_f64(dot);
        } else {
            for i in 0..len {
                gradient[i] -= scale * cotangent[i] * moved[i];
            }
        }
    }
}
