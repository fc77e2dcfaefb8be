//! One network in the inner loop, whatever form its adapted weights take.

use super::Strategy;
use super::change::LowRankChange;
use super::dual::Dual;
use super::learned::Learned;
use super::materialised::Materialised;
use super::normalised::Normalised;
use super::resident::ResidentForm;
use super::tape::{NetworkSpec, Slot, Tape};
use super::transform::Transform;
use crate::Scalar;
use crate::device::{ArenaPlan, Device, Gate, Linear, Region};
use crate::meta::{InnerConfig, Side};
use crate::model::Activation;

/// The inner learning rates of one network.
#[derive(Clone, Debug, PartialEq)]
pub enum Rates<T> {
    /// For each step and layer.
    PerLayerPerStep {
        /// `[steps, layers]`.
        rates: Vec<T>,
        /// The value of the column that stands for the bias, `[steps, layers]`: 1, unless phi transforms rows.
        bias: Vec<T>,
    },
    /// One a parameter, in the network's flat layout.
    PerParameter(Vec<T>),
    /// Those that are learned on the device: [`Network::learned`].
    Learned,
}

/// One lane's tasks, row-major: what goes into the network, then what is to come out. Empty where they are on the device
/// from the last run.
#[derive(Clone, Copy)]
pub struct LoopRows<'a, T> {
    /// Inputs and targets, `[T, shots, .]`.
    pub support: [&'a [T]; 2],
    /// Inputs and targets, `[T, queries, .]`.
    pub query: [&'a [T]; 2],
    /// With minibatches: the support rows of each step, task by task, counted within this lane.
    pub indices: &'a [u32],
    /// Where each step has support inputs of its own: how many numbers they lie apart, for as many steps; otherwise 0.
    pub steps_apart: usize,
}

impl<T: Scalar> LoopRows<'_, T> {
    /// What a run without rows of its own takes: those of the last one.
    pub fn of_last_run(indices: &[u32]) -> LoopRows<'_, T> {
        LoopRows { support: [&[]; 2], query: [&[]; 2], indices, steps_apart: 0 }
    }

    /// Uploads `from` for the first step, from whose rows the others copy it: all steps descend on the same rows. Nothing is
    /// done where they are on the device from the last run.
    pub(super) fn load_steps<D: Device<T>>(
        device: &D,
        arena: &mut D::Arena,
        from: &[T],
        region_of: impl Fn(usize) -> Region,
        steps: usize,
    ) {
        if from.is_empty() || steps == 0 {
            return;
        }
        device.upload(arena, region_of(0), from);
        // Steps that nothing goes back through share their rows.
        for to in (1..steps).map(&region_of).filter(|to| *to != region_of(0)) {
            device.copy(arena, region_of(0), to);
        }
    }

    /// Uploads `from`, unless it is on the device from the last run.
    pub(super) fn load<D: Device<T>>(device: &D, arena: &mut D::Arena, from: &[T], to: Region) {
        if !from.is_empty() {
            device.upload(arena, to, from);
        }
    }
}

/// How the adapted weights are represented.
pub(super) enum Form<T> {
    Dual(Box<Dual<T>>),
    Materialised(Box<Materialised<T>>),
    Resident(Box<ResidentForm<T>>),
}

/// What the passes of the resident form would be: it has none of its own.
const WHOLE: &str = "the resident form is carried out as one operation";

/// One network: its shared parameters, the rows of its passes, and its form.
pub struct Network<T> {
    pub spec: NetworkSpec,
    pub tape: Tape,
    /// The shared parameters, flat.
    pub parameters: Region,
    /// The meta-gradient, flat.
    pub gradient: Region,
    /// Whether [`Network::meta_gradient`] computes it.
    pub wants_gradient: bool,
    /// Rates that are learned there, in forms where the host has no hand in them.
    pub learned: Option<Learned>,
    transform: Option<Transform<T>>,
    normalised: Option<Normalised>,
    form: Form<T>,
}

impl<T: Scalar> Network<T> {
    /// Lays the network out.
    pub fn new(plan: &mut ArenaPlan, spec: NetworkSpec, strategy: Strategy, inner: &InnerConfig) -> Self {
        let parameters = plan.take(1, spec.mlp.parameter_count());
        let gradient = plan.take(1, spec.mlp.parameter_count());
        let adjoint = spec.second_order;
        let (slots, cotangents) = match strategy {
            Strategy::Dual | Strategy::Folded => (spec.steps, if adjoint { spec.steps } else { 0 }),
            Strategy::Materialised if adjoint || spec.pulls_rows_back() => (spec.steps, usize::from(adjoint)),
            Strategy::Materialised => (1, 0),
            Strategy::Resident => (0, 0),
        };
        let tape = match strategy {
            Strategy::Resident => Tape::new(plan, &NetworkSpec { query_rows: 0, ..spec.clone() }, slots, cotangents),
            Strategy::Folded => Tape::folded(plan, &spec, slots, cotangents),
            _ => Tape::new(plan, &spec, slots, cotangents),
        };
        let transform = Transform::new(plan, &spec, slots);
        let normalised = Normalised::new(plan, &spec);
        let form = match strategy {
            Strategy::Dual | Strategy::Folded => {
                let folds = strategy == Strategy::Folded;
                let form = Dual::new(plan, &spec, &tape, transform.as_ref(), (inner, folds));
                Form::Dual(Box::new(form))
            }
            Strategy::Materialised => {
                let form = Materialised::new(plan, &spec, transform.as_ref(), inner);
                Form::Materialised(Box::new(form))
            }
            Strategy::Resident => Form::Resident(Box::new(ResidentForm::new(plan, &spec))),
        };
        let learned = match &form {
            _ if !spec.rate_gradient || spec.steps == 0 => None,
            Form::Dual(_) => Some(Learned::new(plan, &spec)),
            Form::Materialised(form) => Some(form.place_learned(plan, &spec)),
            Form::Resident(form) => Some(form.learned(plan, &spec)),
        };
        Self { spec, tape, parameters, gradient, wants_gradient: true, learned, transform, normalised, form }
    }

    /// The form that does the whole loop at once, if this is it.
    pub fn resident(&self) -> Option<&ResidentForm<T>> {
        match &self.form {
            Form::Resident(form) => Some(form),
            _ => None,
        }
    }

    /// Whether a pass makes the network's outputs; where the last layer is folded, only the first step's and the query's do.
    pub fn makes_outputs(&self, slot: Slot) -> bool {
        !self.is_folded() || !matches!(slot, Slot::Step(1..))
    }

    /// Whether the last layer is folded.
    pub fn is_folded(&self) -> bool {
        matches!(&self.form, Form::Dual(dual) if dual.folded.is_some())
    }

    /// Takes the weights of the query losses after 1, 2, ... steps; where there is but one, it keeps its own.
    pub fn set_query_weights(&mut self, weights: &[f64]) {
        let own = &mut self.spec.query_weights;
        own.iter_mut().zip(weights).for_each(|(own, weight)| *own = *weight);
    }

    /// Takes the rates for the coming meta-step.
    pub fn set_rates<D: Device<T>>(&mut self, device: &D, arena: &mut D::Arena, rates: &Rates<T>) {
        if let Some(transform) = &self.transform {
            transform.begin(device, arena);
        }
        if let Some(normalised) = &self.normalised {
            normalised.begin(device, arena);
        }
        match &mut self.form {
            Form::Dual(dual) => {
                dual.set_rates(&self.spec, device, arena, (rates, self.learned.as_ref()), self.parameters);
            }
            Form::Materialised(form) => {
                form.begin(&self.spec, device, arena, (rates, self.learned.as_ref()), self.parameters);
            }
            Form::Resident(form) => form.set_rates(&self.spec, device, arena, rates, self.learned.as_ref()),
        }
    }

    /// The weights of a phi that transforms rows, flat, and their gradient.
    pub fn phi_weights(&self) -> Option<[Region; 2]> {
        self.transform.as_ref().map(|transform| [transform.weights, transform.gradient])
    }

    /// Where a layer's shared weights lie in a flat array that begins at `offset`.
    pub fn layer_at(spec: &NetworkSpec, offset: usize, task_stride: usize, layer: usize) -> Linear {
        Linear {
            weight: offset + spec.mlp.weight_range(layer).start,
            bias: offset + spec.mlp.bias_range(layer).start,
            task_stride,
            inputs: spec.mlp.widths()[layer],
            outputs: spec.mlp.widths()[layer + 1],
        }
    }

    /// The shared weights of a layer, as its product takes them.
    pub(super) fn shared_layer(&self, layer: usize) -> Linear {
        let shared = Self::layer_at(&self.spec, self.parameters.offset, 0, layer);
        match &self.normalised {
            Some(normalised) if self.spec.mlp.batch_norm(layer).is_some() => {
                Linear { bias: normalised.no_bias.offset, ..shared }
            }
            _ => shared,
        }
    }

    /// What becomes of a layer's product, and where: its activation, unless a batch normalisation comes before it.
    pub(super) fn product(&self, layer: usize, slot: Slot) -> (Activation, Region) {
        match self.normalised.as_ref().and_then(|normalised| normalised.rows(layer, slot)) {
            Some(rows) => (Activation::Linear, rows),
            None => (self.spec.mlp.activations()[layer], self.tape.values(layer + 1, slot)),
        }
    }

    /// Where the upward adjoint pass through a layer's product leads.
    pub(super) fn product_cotangent(&self, layer: usize, slot: Slot) -> Region {
        let normalised = self.normalised.as_ref().and_then(|normalised| normalised.cotangent(layer));
        normalised.unwrap_or_else(|| self.tape.e(layer + 1, slot))
    }

    /// All layers, from the values at level 0.
    pub fn forward<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, slot: Slot) {
        let there = |layer| self.spec.is_steady(layer) && matches!(slot, Slot::Step(1..));
        for layer in (0..self.spec.layers()).filter(|layer| !there(*layer)) {
            match &self.form {
                Form::Dual(dual) => dual.forward(self, device, arena, layer, slot),
                Form::Materialised(form) => form.forward(self, device, arena, layer, slot),
                Form::Resident(_) => unreachable!("{WHOLE}"),
            }
            if let Some(normalised) = &self.normalised {
                let range = self.spec.mlp.bias_range(layer);
                let shift = self.parameters.elements(range.start, range.len());
                normalised.forward((&self.spec, &self.tape), device, arena, layer, slot, shift);
            }
        }
    }

    /// The deltas below the top one, which the loss has written. In an inner step the pass ends at the lowest layer that
    /// moves; in the query pass at the lowest of all.
    pub fn backward<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, slot: Slot) {
        let last = match slot {
            Slot::Step(_) => self.spec.first_moving,
            Slot::Query { .. } => 0,
        };
        for layer in (last + 1..self.spec.layers()).rev() {
            let gate = self.gate_below(layer, slot);
            let normalised = self.normalised.as_ref();
            let output = normalised.and_then(|normalised| normalised.delta(layer - 1, slot));
            let (delta, output) =
                (self.tape.delta(layer, slot), output.unwrap_or_else(|| self.tape.delta(layer - 1, slot)));
            let blocks = (0, self.spec.backward_blocks());
            self.input_gradient(device, arena, layer, slot, blocks, delta, Some(gate), output);
            if let Some(normalised) = normalised {
                normalised.backward((&self.spec, &self.tape), device, arena, layer - 1, slot);
            }
        }
    }

    /// The gradient at the network's input of backward block `block`, to `output`.
    pub fn backward_to_input<D: Device<T>>(
        &self,
        device: &D,
        arena: &mut D::Arena,
        slot: Slot,
        block: usize,
        output: Region,
    ) {
        let delta = self.tape.delta_block(0, slot, block);
        self.input_gradient(device, arena, 0, slot, (block, block + 1), delta, None, output);
    }

    #[allow(clippy::too_many_arguments)]
    fn input_gradient<D: Device<T>>(
        &self,
        device: &D,
        arena: &mut D::Arena,
        layer: usize,
        slot: Slot,
        blocks: (usize, usize),
        delta: Region,
        gate: Option<Gate<'_>>,
        output: Region,
    ) {
        match &self.form {
            Form::Dual(dual) => dual.backward(self, device, arena, layer, slot, blocks, delta, gate, output),
            Form::Materialised(form) => form.backward(self, device, arena, layer, slot, delta, gate, output),
            Form::Resident(_) => unreachable!("{WHOLE}"),
        }
    }

    /// The activation between layers `layer - 1` and `layer`.
    fn gate_below(&self, layer: usize, slot: Slot) -> Gate<'_> {
        Gate {
            activation: self.spec.mlp.activations()[layer - 1],
            values: self.tape.values(layer, slot),
            blocks: &self.spec.gate_blocks,
        }
    }

    /// One step of the inner optimizer.
    pub fn update<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, step: usize) {
        if let Some(transform) = &self.transform {
            transform.forward(&self.spec, &self.tape, device, arena, step);
        }
        match &self.form {
            // The rows are the update.
            Form::Dual(_) => {}
            Form::Materialised(form) => form.update(self, device, arena, step),
            Form::Resident(_) => unreachable!("{WHOLE}"),
        }
    }

    /// Begins the way back, or joins it after that many steps: the query's gradient becomes the cotangent of the weights
    /// adapted so far, or adds to it.
    pub fn begin_adjoint<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, after: usize) {
        if let Some(normalised) = &self.normalised {
            normalised.begin_adjoint(&self.spec, device, arena, Slot::Query { after });
        }
        match &self.form {
            Form::Dual(dual) => dual.begin_adjoint(self, device, arena, after),
            Form::Materialised(form) => form.begin_adjoint(self, device, arena, after),
            Form::Resident(_) => unreachable!("{WHOLE}"),
        }
    }

    /// The adjoint pass upwards through step `step`. The extra blocks' cotangent at level 0 has been written if there are any.
    pub fn adjoint_up<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, step: usize) {
        self.reverse_update(device, arena, step);
        for layer in self.spec.first_moving..self.spec.layers() {
            let slot = Slot::Step(step);
            let (activation, values) = self.product(layer, slot);
            let gate = Gate { activation, values, blocks: &self.spec.gate_blocks };
            match &self.form {
                Form::Dual(dual) => dual.adjoint_up(self, device, arena, layer, step, gate),
                Form::Materialised(form) => form.adjoint_up(self, device, arena, layer, step, gate),
                Form::Resident(_) => unreachable!("{WHOLE}"),
            }
            if let Some(normalised) = &self.normalised {
                normalised.adjoint_up((&self.spec, &self.tape), device, arena, layer, slot);
            }
        }
    }

    /// Whether the upward pass has left a part of the cotangent of what layer `layer`'s activation is applied to, for the
    /// downward pass to add to.
    pub fn z_begun(&self, layer: usize) -> bool {
        self.spec.moves(layer) && self.spec.mlp.activations()[layer].is_curved()
    }

    /// The adjoint pass downwards through step `step`, from the top layer's z cotangent on.
    pub fn adjoint_down<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, step: usize) {
        let slot = Slot::Step(step);
        let gone = |layer| self.spec.is_steady(layer) && step > 0;
        for layer in (1..self.spec.layers()).rev().filter(|layer| !gone(*layer)) {
            let gate = Gate { blocks: IDENTITY, ..self.gate_below(layer, slot) };
            let normalised = self.normalised.as_ref();
            let output = normalised.and_then(|normalised| normalised.y(layer - 1));
            let (z, output) = (self.tape.z(layer, slot), output.unwrap_or_else(|| self.tape.z(layer - 1, slot)));
            let blocks = (0, self.spec.forward_blocks);
            self.adjoint_backward(device, arena, layer, step, blocks, z, Some(gate), output);
            if let Some(normalised) = normalised {
                normalised.adjoint_down((&self.spec, &self.tape), device, arena, layer - 1, slot);
            }
        }
        match &self.form {
            Form::Dual(dual) => dual.finish_step(self, device, arena, step),
            Form::Materialised(form) => form.finish_step(self, device, arena, step),
            Form::Resident(_) => unreachable!("{WHOLE}"),
        }
    }

    /// The cotangent at the input of forward block `block`, to `output`; after [`Network::adjoint_down`].
    pub fn adjoint_to_input<D: Device<T>>(
        &self,
        device: &D,
        arena: &mut D::Arena,
        step: usize,
        block: usize,
        output: Region,
    ) {
        let z = self.tape.z_block(0, Slot::Step(step), block);
        self.adjoint_backward(device, arena, 0, step, (block, block + 1), z, None, output);
    }

    #[allow(clippy::too_many_arguments)]
    fn adjoint_backward<D: Device<T>>(
        &self,
        device: &D,
        arena: &mut D::Arena,
        layer: usize,
        step: usize,
        blocks: (usize, usize),
        z: Region,
        gate: Option<Gate<'_>>,
        output: Region,
    ) {
        // Cotangents of steady rows add up from the last step on.
        let added_to =
            |below: usize| self.spec.is_steady(below) && !self.spec.is_steady(layer) && step + 1 < self.spec.steps;
        let accumulate = layer > 0 && (self.z_begun(layer - 1) || added_to(layer - 1));
        match &self.form {
            Form::Dual(dual) => {
                dual.adjoint_down(self, device, arena, layer, step, blocks, z, gate, output, accumulate);
            }
            Form::Materialised(form) => {
                form.adjoint_down(self, device, arena, layer, step, blocks, z, gate, output, accumulate);
            }
            Form::Resident(_) => unreachable!("{WHOLE}"),
        }
    }

    /// The meta-gradient of exact or first-order MAML, a mean over `total_tasks`, to [`Network::gradient`], where it is wanted.
    pub fn meta_gradient<D: Device<T>>(&self, device: &D, arena: &mut D::Arena) {
        if !self.wants_gradient {
            return;
        }
        match &self.form {
            Form::Dual(dual) => dual.meta_gradient(self, device, arena),
            Form::Materialised(form) => form.meta_gradient(self, device, arena),
            Form::Resident(_) => unreachable!("{WHOLE}"),
        }
        for (shift, gradient) in self.shifts(self.gradient) {
            device.copy(arena, gradient, shift);
        }
    }

    /// Reptile's: the mean over the tasks of how far the inner loop moved, negated, to [`Network::gradient`].
    pub fn displacement<D: Device<T>>(&self, device: &D, arena: &mut D::Arena) {
        match &self.form {
            Form::Dual(dual) => dual.displacement(self, device, arena),
            Form::Materialised(form) => form.displacement(self, device, arena),
            Form::Resident(_) => unreachable!("{WHOLE}"),
        }
        for (shift, _) in self.shifts(self.gradient) {
            device.fill(arena, shift, T::ZERO);
        }
    }

    /// From the cotangent of the weights after step `step` to those of the rows its gradient is made of, and to the gradient
    /// of phi. This alone is what first-order MAML, which holds the inner gradients constant, does of a step.
    pub fn reverse_update<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, step: usize) {
        if let Form::Materialised(form) = &self.form {
            form.reverse_update(self, device, arena, step);
        }
        let Some(transform) = self.transform.as_ref().filter(|_| self.spec.pulls_rows_back()) else { return };
        for layer in self.spec.first_moving..self.spec.layers() {
            for side in Side::BOTH.into_iter().filter(|s| *s == Side::Delta || self.spec.has_values_cotangent(layer)) {
                let output = transform.cotangent(layer, side);
                match &self.form {
                    Form::Dual(dual) => {
                        dual.descended_cotangent(self, device, arena, (layer, side), step, output);
                    }
                    Form::Materialised(form) => {
                        form.descended_cotangent(self, device, arena, (layer, side), step, output);
                    }
                    Form::Resident(_) => unreachable!("{WHOLE}"),
                }
                transform.pull_back(&self.spec, &self.tape, device, arena, layer, side, step);
            }
        }
    }

    /// Whether [`Network::rate_gradient`] has anything to give.
    pub fn has_rate_gradient(&self) -> bool {
        self.spec.rate_gradient
    }

    /// The gradient of the rates, in the rates' own layout, added to `out`.
    pub fn rate_gradient<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, out: &mut [T]) {
        match &self.form {
            Form::Dual(dual) => dual.rate_gradient(self, device, arena, out),
            Form::Materialised(form) => form.rate_gradient(device, arena, out),
            Form::Resident(form) => form.rate_gradient(device, arena, out),
        }
    }

    /// The same of rates that are learned on the device, to where their gradient lies.
    pub fn learned_gradient<D: Device<T>>(&self, device: &D, arena: &mut D::Arena) {
        let Some(learned) = &self.learned else { return };
        match &self.form {
            Form::Dual(dual) => dual.learned_gradient(self, device, arena, learned),
            Form::Materialised(form) => learned.gather_gradient(&self.spec, device, arena, form.rate_gradient),
            Form::Resident(form) => learned.gather_gradient(&self.spec, device, arena, form.rate_gradient),
        }
    }

    /// What the steps have made of one task's parameters; nothing in forms that do not hold it.
    pub fn change<D: Device<T>>(&self, device: &D, arena: &D::Arena, task: usize) -> Option<LowRankChange<T>> {
        match &self.form {
            Form::Dual(dual) => Some(dual.change(self, device, arena, task)),
            Form::Materialised(_) | Form::Resident(_) => None,
        }
    }

    /// Gives up the rows of all passes: nothing is asked of them any more.
    pub fn discard_rows<D: Device<T>>(&self, device: &D, arena: &mut D::Arena) {
        self.tape.discard(device, arena);
    }

    /// The adapted parameters of one task after all steps, to `out` in the flat layout.
    pub fn adapted<D: Device<T>>(&self, device: &D, arena: &mut D::Arena, task: usize, out: &mut [T]) {
        match &self.form {
            Form::Dual(dual) => dual.adapted(self, device, arena, task, out),
            Form::Materialised(form) => form.adapted(self, device, arena, task, out),
            Form::Resident(form) => form.adapted(self, device, arena, task, out),
        }
        for (shift, _) in self.shifts(self.parameters) {
            let at = shift.offset - self.parameters.offset;
            device.download(arena, shift, &mut out[at..at + shift.len()]);
        }
    }

    /// What shifts a layer after its batch normalisation, in a flat array, with its gradient so far.
    fn shifts(&self, flat: Region) -> impl Iterator<Item = (Region, Region)> {
        self.normalised.iter().flat_map(move |normalised| normalised.shifts(&self.spec, flat))
    }
}

/// Blocks that gate themselves.
pub(super) const IDENTITY: &[usize] = &[0, 1, 2, 3];
