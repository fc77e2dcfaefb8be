//! The way back through a group's inner steps (dual form, section "The adjoint form").

use super::lanes::{Grid, Term};
use super::lanes_loss::MOST;
use super::matrix::with_activation;
use super::resident::{Group, Layer, gate};
use crate::device::resident::before;
use crate::model::Activation;
use crate::scalar::Scalar;

impl<T: Scalar> Group<'_, T> {
    /// How far the steps moved the parameters.
    pub fn displacement(&self) {
        let count = self.op.mlp.parameter_count();
        let moved = self.at(self.places.cotangent, count);
        let adapted = self.at(self.places.weights(self.op.steps), count);
        for ((moved, adapted), shared) in moved.chunks_mut(T::LANES).zip(adapted.chunks(T::LANES)).zip(self.shared()) {
            moved.iter_mut().zip(adapted).for_each(|(moved, adapted)| *moved = *adapted - *shared);
        }
    }

    /// From the cotangent of the weights after a step to that of its gradient, and to the gradient of the rates.
    pub fn reverse(&self, step: usize) {
        let op = self.op;
        for layer in op.first_moving..op.mlp.layers() {
            self.rate_gradient(layer, step);
            let (cotangent, direction) =
                (self.part(self.places.cotangent, layer), self.part(self.places.direction, layer));
            let momentum = if step + 1 == op.steps { T::ZERO } else { op.momentum };
            self.subtract(layer, step, momentum, cotangent, direction);
            if op.decay != T::ZERO {
                pulp::Arch::new()
                    .dispatch(|| cotangent.iter_mut().zip(direction).for_each(|(c, d)| *c += op.decay * *d));
            }
        }
    }

    /// The group's row of the room for gradients of the rates.
    #[allow(clippy::mut_from_ref)]
    pub fn rate_sums(&self) -> Option<&mut [T]> {
        let [_, rows] = self.op.rate_gradient?;
        // SAFETY: a declared region; each group writes its own row.
        Some(unsafe { self.base.slice_mut(rows.offset + self.index * rows.width, rows.width) })
    }

    /// `<cotangent, v>` of a layer, summed over the group's tasks.
    fn rate_gradient(&self, layer: usize, step: usize) {
        let (op, range) = (self.op, self.layers(layer));
        let (Some(sums), Some(velocity)) = (self.rate_sums(), self.places.velocity(step)) else { return };
        let products = self.part(self.places.cotangent, layer).chunks(T::LANES);
        let products = products.zip(self.part(velocity, layer).chunks(T::LANES));
        pulp::Arch::new().dispatch(|| {
            let mut total = [0.0; MOST];
            for (i, (cotangent, velocity)) in products.enumerate() {
                let mut inner = [0.0; MOST];
                for ((inner, c), v) in inner.iter_mut().zip(cotangent).zip(velocity) {
                    *inner = c.to_f64() * v.to_f64();
                }
                if op.per_parameter {
                    let inner = T::from_f64(inner[..self.tasks].iter().sum());
                    sums[range.start + i] += inner;
                }
                total.iter_mut().zip(inner).for_each(|(total, inner)| *total += inner);
            }
            if !op.per_parameter {
                sums[step * op.mlp.layers() + layer] = T::from_f64(total[..self.tasks].iter().sum());
            }
        });
    }

    /// The cotangent of the weights before a step, from that of its gradient .
    pub fn adjoint(&self, step: usize) {
        let (op, pass) = (self.op, self.places.step(step));
        let (mlp, places) = (op.mlp, &self.places);
        let (layers, rows) = (mlp.layers(), pass.rows);
        let e = |level: usize| places.e + rows * before(mlp, level);
        let z = |layer: usize| places.z + rows * before(mlp, layer + 1);
        let curved = |layer: usize| layer >= op.first_moving && mlp.activations()[layer].is_curved();
        for index in op.first_moving..layers {
            let (layer, direction) = (self.layer(places.weights(step), index), self.layer(places.direction, index));
            let Layer { inputs, outputs, .. } = layer;
            let up = |place, layer: Layer| Term {
                left: Self::grid(place, inputs),
                right: layer.weight.transposed(),
                depth: inputs,
            };
            let terms = [up(pass.level(mlp, index), direction), up(if index > 0 { e(index) } else { 0 }, layer)];
            let count = if index > op.first_moving { 2 } else { 1 };
            let bias = Grid::one_row(1 + direction.bias);
            self.multiply((rows, outputs), &terms[..count], T::ONE, Some(bias), Self::grid(e(index + 1), outputs));
            let e = self.at(e(index + 1), rows * outputs);
            let values = self.level(&pass, index + 1);
            if curved(index) {
                let delta = self.at(pass.delta(mlp, index), rows * outputs);
                bend(mlp.activations()[index], values, [e, delta], self.at(z(index), rows * outputs));
            }
            gate(mlp.activations()[index], values, e);
        }
        let outputs = rows * mlp.outputs();
        let top = self.at(z(layers - 1), outputs);
        if !curved(layers - 1) {
            top.fill(T::ZERO);
        }
        self.loss(&pass).curvature(self.output(&pass), self.targets(&pass), self.at(e(layers), outputs), top);
        for index in (0..layers).rev() {
            let cotangent = self.layer(places.cotangent, index);
            let pairs =
                [(z(index), pass.level(mlp, index)), (pass.delta(mlp, index), if index > 0 { e(index) } else { 0 })];
            let count = if index > op.first_moving { 2 } else { 1 };
            self.gradient(&pass, &pairs[..count], T::ONE, Some(cotangent), cotangent);
            if index == 0 {
                break;
            }
            let (layer, direction) = (self.layer(places.weights(step), index), self.layer(places.direction, index));
            let Layer { inputs, outputs, .. } = layer;
            let down =
                |place, layer: Layer| Term { left: Self::grid(place, outputs), right: layer.weight, depth: outputs };
            let terms = [down(z(index), layer), down(pass.delta(mlp, index), direction)];
            let count = if index >= op.first_moving { 2 } else { 1 };
            // The gate is of this part alone: what is there already is added to it afterwards. e is done with.
            let begun = curved(index - 1);
            let out = if begun { e(index) } else { z(index - 1) };
            self.multiply((rows, inputs), &terms[..count], T::ONE, None, Self::grid(out, inputs));
            let part = self.at(out, rows * inputs);
            gate(mlp.activations()[index - 1], self.level(&pass, index), part);
            if begun {
                self.at(z(index - 1), rows * inputs).iter_mut().zip(part).for_each(|(z, part)| *z += *part);
            }
        }
    }
}

/// `z = g delta act'' / act'`.
fn bend<T: Scalar>(activation: Activation, values: &[T], [g, delta]: [&[T]; 2], z: &mut [T]) {
    pulp::Arch::new().dispatch(|| {
        with_activation!(activation, ACT => for (((z, g), d), v) in z.iter_mut().zip(g).zip(delta).zip(values) {
            *z = *g * *d * ACT.curvature(*v);
        });
    });
}
