//! The layers with batch normalisation: what happens between a layer's product u and its activation, in every form.
//!
//! In such a layer u takes the place that z has elsewhere: the tape's delta is dL/du, its z cotangent that of u, so that the
//! weight's gradient is an outer product as ever. dL/dy, with y what the activation is applied to, is kept here. The layer's
//! bias shifts y; no inner step moves it, and its meta-gradient is the sum of the cotangents of y over all passes.

use super::tape::{NetworkSpec, Slot, Store, Tape};
use crate::Scalar;
use crate::device::{ArenaPlan, Device, Normalise, NormaliseAdjoint, NormaliseJacobian, Region};
use crate::model::BatchNorm;

/// See the module.
pub(super) struct Normalised {
    layers: Vec<Option<Layer>>,
    /// What takes the bias's place in the product: zeros.
    pub no_bias: Region,
    /// The cotangent of dL/du of the layer at hand.
    cotangent: Region,
}

struct Layer {
    norm: BatchNorm,
    /// x, and the inverse of its denominator.
    rows: Store,
    inverse: Store,
    /// dL/dy.
    delta: Store,
    /// The cotangent of y, in the step at hand.
    y: Region,
    /// The meta-gradient of the shift, as far as the way back has come.
    gradient: Region,
}

impl Normalised {
    /// Nothing where no layer has a batch normalisation.
    pub fn new(plan: &mut ArenaPlan, spec: &NetworkSpec) -> Option<Self> {
        if !spec.mlp.has_batch_norm() {
            return None;
        }
        // Only what is gone back through is kept longer than for a step, or for a query pass.
        let slots = if spec.second_order { spec.steps } else { spec.steps.min(1) };
        let (support, query) = (spec.tasks * spec.support_rows, spec.tasks * spec.query_rows);
        let adjoint = if spec.second_order { support } else { 0 };
        let layers: Vec<_> = (0..spec.layers())
            .map(|layer| {
                let (norm, width) = (spec.mlp.batch_norm(layer)?, spec.mlp.widths()[layer + 1]);
                Some(Layer {
                    norm,
                    rows: Store::new(plan, (slots, support), (1, query), width),
                    inverse: Store::new(plan, (slots, spec.tasks), (1, spec.tasks), width),
                    delta: Store::new(plan, (slots, support), (1, query), width),
                    y: plan.take(adjoint, width),
                    gradient: plan.take(1, width),
                })
            })
            .collect();
        let widest = layers.iter().flatten().map(|layer| layer.gradient.width).max().unwrap_or(0);
        Some(Self { layers, no_bias: plan.take(1, widest), cotangent: plan.take(adjoint, widest) })
    }

    /// Before the first pass of a run.
    pub fn begin<T: Scalar, D: Device<T>>(&self, device: &D, arena: &mut D::Arena) {
        device.fill(arena, self.no_bias, T::ZERO);
    }

    fn layer(&self, layer: usize) -> Option<&Layer> {
        self.layers[layer].as_ref()
    }

    /// Where the product of a layer goes, if it is normalised.
    pub fn rows(&self, layer: usize, slot: Slot) -> Option<Region> {
        Some(self.layer(layer)?.rows.slot(slot))
    }

    /// Where dL/dy of a layer goes, if it is normalised.
    pub fn delta(&self, layer: usize, slot: Slot) -> Option<Region> {
        Some(self.layer(layer)?.delta.slot(slot))
    }

    /// Where the cotangent of dL/du of a layer goes, if it is normalised.
    pub fn cotangent(&self, layer: usize) -> Option<Region> {
        let Region { rows, width, .. } = self.layer(layer)?.y;
        Some(Region { rows, width, ..self.cotangent })
    }

    /// Where the cotangent of y of a layer goes, if it is normalised.
    pub fn y(&self, layer: usize) -> Option<Region> {
        Some(self.layer(layer)?.y)
    }

    /// From a layer's product to its values.
    pub fn forward<T: Scalar, D: Device<T>>(
        &self,
        (spec, tape): (&NetworkSpec, &Tape),
        device: &D,
        arena: &mut D::Arena,
        layer: usize,
        slot: Slot,
        shift: Region,
    ) {
        let Some(own) = self.layer(layer) else { return };
        let operation = Normalise {
            tasks: spec.tasks,
            epsilon: own.norm.epsilon(),
            rows: own.rows.slot(slot),
            inverse: own.inverse.slot(slot),
            shift,
            activation: spec.mlp.activations()[layer],
            output: tape.values(layer + 1, slot),
        };
        device.normalise(arena, &operation);
    }

    /// From a layer's dL/dy to its dL/du.
    pub fn backward<T: Scalar, D: Device<T>>(
        &self,
        (spec, tape): (&NetworkSpec, &Tape),
        device: &D,
        arena: &mut D::Arena,
        layer: usize,
        slot: Slot,
    ) {
        let Some(own) = self.layer(layer) else { return };
        let operation = NormaliseJacobian {
            tasks: spec.tasks,
            normalised: own.rows.slot(slot),
            inverse: own.inverse.slot(slot),
            from: own.delta.slot(slot),
            to: tape.delta(layer, slot),
            accumulate: false,
        };
        device.normalise_jacobian(arena, &operation);
    }

    /// The query's part of the shifts' gradient, after its backward pass; the first one after the last step.
    pub fn begin_adjoint<T: Scalar, D: Device<T>>(
        &self,
        spec: &NetworkSpec,
        device: &D,
        arena: &mut D::Arena,
        query: Slot,
    ) {
        for own in self.layers.iter().flatten() {
            let scale = T::from_f64(spec.weight(query) * spec.task_weight());
            let accumulate = query.history() < spec.steps;
            device.sum_rows(arena, own.delta.slot(query), scale, own.gradient, accumulate);
        }
    }

    /// The upward pass from the cotangent of dL/du of a layer on.
    pub fn adjoint_up<T: Scalar, D: Device<T>>(
        &self,
        (spec, tape): (&NetworkSpec, &Tape),
        device: &D,
        arena: &mut D::Arena,
        layer: usize,
        slot: Slot,
    ) {
        let (Some(own), Some(cotangent)) = (self.layer(layer), self.cotangent(layer)) else { return };
        let operation = NormaliseAdjoint {
            tasks: spec.tasks,
            normalised: own.rows.slot(slot),
            inverse: own.inverse.slot(slot),
            activation: spec.mlp.activations()[layer],
            values: tape.values(layer + 1, slot),
            y_delta: own.delta.slot(slot),
            u_delta: tape.delta(layer, slot),
            cotangent,
            u_cotangent: tape.z(layer, slot),
            y_cotangent: own.y,
            e_cotangent: tape.e(layer + 1, slot),
        };
        device.normalise_adjoint(arena, &operation);
    }

    /// The downward pass from the cotangent of y of a layer to that of u, with the step's part of the shift's gradient.
    pub fn adjoint_down<T: Scalar, D: Device<T>>(
        &self,
        (spec, tape): (&NetworkSpec, &Tape),
        device: &D,
        arena: &mut D::Arena,
        layer: usize,
        slot: Slot,
    ) {
        let Some(own) = self.layer(layer) else { return };
        device.sum_rows(arena, own.y, T::from_f64(spec.task_weight()), own.gradient, true);
        let operation = NormaliseJacobian {
            tasks: spec.tasks,
            normalised: own.rows.slot(slot),
            inverse: own.inverse.slot(slot),
            from: own.y,
            to: tape.z(layer, slot),
            // The upward pass has left its part where the layer moves.
            accumulate: spec.moves(layer),
        };
        device.normalise_jacobian(arena, &operation);
    }

    /// The shifts' places in a flat array of the network's parameters, with their gradients.
    pub fn shifts(&self, spec: &NetworkSpec, flat: Region) -> impl Iterator<Item = (Region, Region)> {
        self.layers.iter().enumerate().filter_map(move |(layer, own)| {
            let range = spec.mlp.bias_range(layer);
            Some((flat.elements(range.start, range.len()), own.as_ref()?.gradient))
        })
    }
}
