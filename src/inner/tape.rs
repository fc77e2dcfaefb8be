//! The rows of one network's passes: activations, deltas and their cotangents, for every inner step.

use crate::Scalar;
use crate::device::{ArenaPlan, Device, Region};
use crate::meta::{Algorithm, InnerConfig, RateKind, Shape, Side};
use crate::model::Mlp;
use crate::objective::Loss;

/// What one network does in the inner loop, as far as shapes go.
#[derive(Clone, Debug)]
pub struct NetworkSpec {
    pub mlp: Mlp,
    pub tasks: usize,
    /// Tasks of the whole meta-batch, of which these are a part: gradients are means over them.
    pub total_tasks: usize,
    pub steps: usize,
    /// Rows a task and block in an inner step.
    pub support_rows: usize,
    /// Rows a task and block in the query pass.
    pub query_rows: usize,
    /// Blocks of the forward pass. The network descends the gradient of the first that many backward blocks.
    pub forward_blocks: usize,
    /// For each block of the backward pass, the forward block it belongs to.
    pub gate_blocks: Vec<usize>,
    /// The layers from this one on move in the inner loop.
    pub first_moving: usize,
    /// Whether the layers before those that move see the same rows in every inner step, and so do the same once for all.
    pub steady: bool,
    /// The passes run backwards through the inner loop as well.
    pub second_order: bool,
    /// Whether the inner optimizer decays weights.
    pub decays: bool,
    /// What phi is.
    pub rates: RateKind,
    /// The gradient of phi is wanted.
    pub rate_gradient: bool,
    /// The query set is evaluated after every step, not only after the last.
    pub trace: bool,
    /// Query passes that are gone back from: after the last step, or after each.
    pub query_passes: usize,
    /// The weight of the query loss after 1, 2, ... steps; none where the last alone counts.
    pub query_weights: Vec<f64>,
    /// What the resident form is told of the inner loop beside the shapes; nothing where the objective is not a supervised
    /// loss.
    pub whole: Option<Whole>,
}

/// See [`NetworkSpec::whole`].
#[derive(Clone, Copy, Debug)]
pub struct Whole {
    pub loss: Loss,
    pub algorithm: Algorithm,
    pub momentum: f64,
    pub weight_decay: f64,
}

impl NetworkSpec {
    /// A network with one block all of whose layers move, for `tasks` of the meta-batch.
    pub fn new(mlp: &Mlp, inner: &InnerConfig, tasks: usize, shape: &Shape, trace: bool) -> Self {
        let goes_back = inner.algorithm.differentiates_query() && !trace;
        let multi_step = inner.multi_step && goes_back;
        Self {
            mlp: mlp.clone(),
            tasks,
            total_tasks: shape.tasks,
            steps: inner.steps,
            support_rows: inner.minibatch.unwrap_or(shape.shots),
            query_rows: shape.queries,
            forward_blocks: 1,
            gate_blocks: vec![0],
            first_moving: 0,
            steady: false,
            second_order: inner.algorithm.is_second_order() && goes_back,
            decays: inner.weight_decay != 0.0,
            rates: inner.rates,
            rate_gradient: inner.learn_rates && goes_back,
            trace,
            query_passes: if multi_step { inner.steps.max(1) } else { 1 },
            query_weights: vec![1.0 / inner.steps as f64; if multi_step { inner.steps } else { 0 }],
            whole: None,
        }
    }

    pub fn layers(&self) -> usize {
        self.mlp.layers()
    }

    pub fn backward_blocks(&self) -> usize {
        self.gate_blocks.len()
    }

    /// The backward blocks from this one on have a cotangent of dL/da at level `level`.
    pub fn first_e_block(&self, level: usize) -> usize {
        if level > self.first_moving { 0 } else { self.forward_blocks }
    }

    /// After how many steps there are query passes to go back from, the last first.
    pub fn queries(&self) -> impl Iterator<Item = Slot> + use<> {
        (self.steps + 1 - self.query_passes..=self.steps).rev().map(|after| Slot::Query { after })
    }

    /// Whether the way back begins anew from the query pass after that many steps.
    pub fn has_query(&self, after: usize) -> bool {
        after + self.query_passes > self.steps
    }

    /// The weight of a pass's loss in the meta-loss.
    pub fn weight(&self, slot: Slot) -> f64 {
        match slot {
            Slot::Query { after } if !self.query_weights.is_empty() => self.query_weights[after - 1],
            _ => 1.0,
        }
    }

    /// One task's share of a mean.
    pub fn task_weight(&self) -> f64 {
        1.0 / self.total_tasks as f64
    }

    /// Whether first-order MAML, too, walks back through the inner updates.
    pub fn reverses_updates(&self) -> bool {
        self.rate_gradient || self.decays
    }

    /// Whether the cotangents of the rows that an inner step descends are wanted.
    pub fn pulls_rows_back(&self) -> bool {
        self.rates.transforms_rows() && (self.second_order || self.rate_gradient)
    }

    /// Whether a layer's values get a cotangent from the rows that are descended: at the network's input only where
    /// something asks for it.
    pub fn has_values_cotangent(&self, layer: usize) -> bool {
        layer > 0 || self.rate_gradient || self.has_extra_blocks()
    }

    /// One layer's part of a flat array of parameters.
    pub fn layer_parameters(&self, flat: Region, layer: usize) -> Region {
        let range = self.mlp.weight_range(layer).start..self.mlp.bias_range(layer).end;
        flat.elements(range.start, range.len())
    }

    /// A side's width.
    pub fn width(&self, layer: usize, side: Side) -> usize {
        match side {
            Side::Delta => self.mlp.widths()[layer + 1],
            Side::Values => self.mlp.widths()[layer],
        }
    }

    /// Whether backward blocks exist beyond the descended ones; their gradient is needed down to the input.
    pub fn has_extra_blocks(&self) -> bool {
        self.backward_blocks() > self.forward_blocks
    }

    pub fn moves(&self, layer: usize) -> bool {
        layer >= self.first_moving
    }

    /// Whether an inner step leaves a layer's rows as the first has made them, and its cotangents add up to one.
    pub fn is_steady(&self, layer: usize) -> bool {
        self.steady && !self.moves(layer)
    }

    /// The value of the column that stands for a layer's bias: 0 where the bias comes after a batch normalisation, and so
    /// has no part in the product.
    pub fn bias_column<T: Scalar>(&self, layer: usize) -> T {
        if self.mlp.batch_norm(layer).is_some() { T::ZERO } else { T::ONE }
    }

    pub fn rows(&self, slot: Slot) -> usize {
        match slot {
            Slot::Step(_) => self.support_rows,
            Slot::Query { .. } => self.query_rows,
        }
    }
}

/// A pass of the inner loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Slot {
    /// Inner step `s`, at the weights after `s` steps.
    Step(usize),
    /// The query set, at the weights after that many steps.
    Query { after: usize },
}

impl Slot {
    /// Number of inner steps behind this pass's weights.
    pub fn history(self) -> usize {
        match self {
            Self::Step(s) => s,
            Self::Query { after } => after,
        }
    }
}

/// Rows of one width for all slots: the inner steps' one after the other, then the query's.
#[derive(Clone, Debug)]
pub(super) struct Store {
    steps: Region,
    slots: usize,
    query: Region,
    query_slots: usize,
}

impl Store {
    /// Slots, and rows in each: the steps', and the query's.
    pub fn new(plan: &mut ArenaPlan, steps: (usize, usize), query: (usize, usize), width: usize) -> Self {
        Self {
            steps: plan.take(steps.0 * steps.1, width),
            slots: steps.0,
            query: plan.take(query.0 * query.1, width),
            query_slots: query.0,
        }
    }

    /// For inner steps alone.
    pub fn of_steps(plan: &mut ArenaPlan, slots: usize, rows: usize, width: usize) -> Self {
        Self::new(plan, (slots, rows), (1, 0), width)
    }

    /// With fewer slots than steps, the steps take turns; and so do the query passes. Without any slot there is nothing.
    pub fn slot(&self, slot: Slot) -> Region {
        match slot {
            Slot::Step(s) => {
                let slots = self.slots.max(1);
                let rows = self.steps.rows / slots;
                self.steps.rows(s % slots * rows, rows)
            }
            Slot::Query { after } => {
                let rows = self.query.rows / self.query_slots;
                self.query.rows(after % self.query_slots * rows, rows)
            }
        }
    }
}

/// The regions; every one is in blocks (see [`crate::device`]).
#[derive(Clone, Debug)]
pub struct Tape {
    /// By level: the input, then each layer's activations. Forward blocks.
    values: Vec<Store>,
    /// By layer: dL/dz. Backward blocks.
    delta: Vec<Store>,
    /// By level: the cotangent of dL/da. Backward blocks; at level 0 the extra blocks only.
    e: Vec<Store>,
    /// By layer: the cotangent of z. Forward blocks.
    z: Vec<Store>,
    /// By layer and side: what the update takes, where phi transforms rows. Forward blocks; the steps only.
    descended: Vec<[Store; 2]>,
    forward_blocks: usize,
    backward_blocks: usize,
}

impl Tape {
    /// `value_slots` steps are kept of the rows, `cotangent_slots` of their cotangents.
    pub fn new(plan: &mut ArenaPlan, spec: &NetworkSpec, value_slots: usize, cotangent_slots: usize) -> Self {
        Self::with_top(plan, spec, value_slots, cotangent_slots, [value_slots, cotangent_slots])
    }

    /// The same where the last layer is folded: of its own rows the first step's alone.
    pub fn folded(plan: &mut ArenaPlan, spec: &NetworkSpec, value_slots: usize, cotangent_slots: usize) -> Self {
        Self::with_top(plan, spec, value_slots, cotangent_slots, [value_slots.min(1), 0])
    }

    /// With so many slots of the last layer's rows and of their cotangents.
    fn with_top(
        plan: &mut ArenaPlan,
        spec: &NetworkSpec,
        value_slots: usize,
        cotangent_slots: usize,
        [top_values, top_cotangents]: [usize; 2],
    ) -> Self {
        let (f, b) = (spec.forward_blocks, spec.backward_blocks());
        let (k, q) = (spec.tasks * spec.support_rows, spec.tasks * spec.query_rows);
        let widths = spec.mlp.widths();
        let mut e = Vec::new();
        for (level, width) in widths.iter().enumerate() {
            let blocks = b - spec.first_e_block(level);
            // Nothing refers to the top level after its step.
            let slots = if level == spec.layers() { top_cotangents.min(1) } else { cotangent_slots };
            e.push(Store::of_steps(plan, slots, blocks * k, *width));
        }
        let mut descended = Vec::new();
        for layer in (0..spec.layers()).filter(|_| spec.rates.transforms_rows()) {
            let rows = if spec.moves(layer) { f * k } else { 0 };
            descended.push(Side::BOTH.map(|side| Store::of_steps(plan, value_slots, rows, spec.width(layer, side))));
        }
        let mut passes = |level: usize, blocks: usize| {
            let slots = match level {
                _ if level == spec.layers() => top_values,
                _ if spec.steady && level <= spec.first_moving => value_slots.min(1),
                _ => value_slots,
            };
            Store::new(plan, (slots, blocks * k), (spec.query_passes, blocks * q), widths[level])
        };
        let values = (0..widths.len()).map(|level| passes(level, f)).collect();
        let delta = (1..widths.len()).map(|level| passes(level, b)).collect();
        let cotangents = |level: usize| match level {
            _ if level == spec.layers() => top_cotangents,
            _ if spec.is_steady(level - 1) => cotangent_slots.min(1),
            _ => cotangent_slots,
        };
        let z = |level: usize| Store::of_steps(plan, cotangents(level), f * k, widths[level]);
        Self {
            descended,
            values,
            delta,
            e,
            z: (1..widths.len()).map(z).collect(),
            forward_blocks: f,
            backward_blocks: b,
        }
    }

    pub fn values(&self, level: usize, slot: Slot) -> Region {
        self.values[level].slot(slot)
    }

    /// Forward block `block` of [`Tape::values`].
    pub fn values_block(&self, level: usize, slot: Slot, block: usize) -> Region {
        split(self.values(level, slot), self.forward_blocks, block, 1)
    }

    pub fn delta(&self, layer: usize, slot: Slot) -> Region {
        self.delta[layer].slot(slot)
    }

    /// The rows that a step's gradient is made of.
    pub fn gradient_rows(&self, layer: usize, slot: Slot, side: Side) -> Region {
        match side {
            Side::Delta => self.own(layer, slot),
            Side::Values => self.values(layer, slot),
        }
    }

    /// The rows that a step's update takes: the gradient's, unless phi transforms them.
    pub fn descended(&self, layer: usize, slot: Slot, side: Side) -> Region {
        match self.descended.get(layer) {
            Some(sides) => sides[side as usize].slot(slot),
            None => self.gradient_rows(layer, slot, side),
        }
    }

    /// Forward block `block` of [`Tape::descended`].
    pub fn descended_block(&self, layer: usize, slot: Slot, side: Side, block: usize) -> Region {
        split(self.descended(layer, slot, side), self.forward_blocks, block, 1)
    }

    /// The deltas of the network's own loss: those of the forward blocks.
    pub fn own(&self, layer: usize, slot: Slot) -> Region {
        split(self.delta(layer, slot), self.backward_blocks, 0, self.forward_blocks)
    }

    /// Backward block `block` of [`Tape::delta`].
    pub fn delta_block(&self, layer: usize, slot: Slot, block: usize) -> Region {
        split(self.delta(layer, slot), self.backward_blocks, block, 1)
    }

    pub fn e(&self, level: usize, slot: Slot) -> Region {
        self.e[level].slot(slot)
    }

    /// Block `block` of [`Tape::e`], counted from the first that exists.
    pub fn e_block(&self, level: usize, slot: Slot, block: usize, blocks: usize) -> Region {
        split(self.e(level, slot), blocks, block, 1)
    }

    /// The cotangent of z; for the query pass that is its delta.
    pub fn z(&self, layer: usize, slot: Slot) -> Region {
        match slot {
            Slot::Step(_) => self.z[layer].slot(slot),
            Slot::Query { .. } => self.own(layer, slot),
        }
    }

    /// Forward block `block` of [`Tape::z`].
    pub fn z_block(&self, layer: usize, slot: Slot, block: usize) -> Region {
        split(self.z(layer, slot), self.forward_blocks, block, 1)
    }

    /// Gives up all rows but the network's inputs.
    pub fn discard<T: Scalar, D: Device<T>>(&self, device: &D, arena: &mut D::Arena) {
        let made = self.values[1..].iter().chain(&self.delta).chain(&self.e).chain(&self.z);
        for store in made.chain(self.descended.iter().flatten()) {
            device.discard(arena, &[store.steps, store.query]);
        }
    }

    /// The rows of all inner steps at once: values, delta, e and z.
    pub fn all_values(&self, level: usize) -> Region {
        self.values[level].steps
    }
    pub fn all_delta(&self, layer: usize) -> Region {
        self.delta[layer].steps
    }
    pub fn all_e(&self, level: usize) -> Region {
        self.e[level].steps
    }
    pub fn all_z(&self, layer: usize) -> Region {
        self.z[layer].steps
    }
}

/// Blocks `first..first + count` of a region of `blocks`.
fn split(region: Region, blocks: usize, first: usize, count: usize) -> Region {
    let rows = region.rows / blocks;
    region.rows(first * rows, count * rows)
}
