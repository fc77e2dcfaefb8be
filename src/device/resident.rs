//! The whole inner loop of a small network as one operation.

use super::Region;
use crate::model::Mlp;
use crate::objective::Loss;
use crate::scalar::Scalar;

/// What a meta-step makes of the inner loop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResidentGradient {
    /// The query loss's gradient, through all steps.
    Exact,
    /// The same with the steps' own gradients held constant.
    FirstOrder,
    /// How far the steps moved the parameters, negated.
    Displacement,
}

/// For each task: the inner steps from the shared parameters on, the query loss after the last, and the gradient back through
/// the steps, all in memory of the task's own that is kept near the processor.
///
/// A step is `v <- momentum v + g + decay theta; theta <- theta - rate v`. What is asked for is written, the rest is not
/// computed. Sums over tasks go in an order that depends on their number alone.
#[derive(Clone, Copy, Debug)]
pub struct Resident<'a, T> {
    /// The network.
    pub mlp: &'a Mlp,
    /// Its loss, a mean for each task.
    pub loss: Loss,
    /// T.
    pub tasks: usize,
    /// K, rows a task in every step.
    pub shots: usize,
    /// Kq.
    pub queries: usize,
    /// S.
    pub steps: usize,
    /// The layers from this one on move in the steps.
    pub first_moving: usize,
    /// What `gradient` is of.
    pub kind: ResidentGradient,
    /// The momentum coefficient.
    pub momentum: T,
    /// The weight decay.
    pub decay: T,
    /// theta, flat.
    pub parameters: Region,
    /// `[S, layers]`, or one a parameter (see `per_parameter`).
    pub rates: Region,
    /// Whether each parameter has a rate of its own, for all steps.
    pub per_parameter: bool,
    /// Inputs `[T * K, inputs]` and targets `[T * K, outputs]`.
    pub support: [Region; 2],
    /// Inputs `[T * Kq, inputs]` and targets `[T * Kq, outputs]`.
    pub query: [Region; 2],
    /// The factor of the sums over tasks.
    pub scale: T,
    /// Written, when asked for: the query loss of each task, `[1, T]`.
    pub task_loss: Option<Region>,
    /// Written, when asked for, by way of the room `[T, P]` that is the second: the sum over the tasks, flat.
    pub gradient: Option<[Region; 2]>,
    /// The same of the rates, in their layout; not of a displacement.
    pub rate_gradient: Option<[Region; 2]>,
    /// Written, when asked for: each task's parameters after the last step, `[T, P]`.
    pub adapted: Option<Region>,
    /// Written, when asked for: the query losses `[S + 1, T]` and outputs `[(S + 1) * T * Kq, outputs]` after 0, 1, ... steps.
    pub trace: Option<[Region; 2]>,
}

impl<T: Scalar> Resident<'_, T> {
    /// Bytes that one task takes, with rows that are padded as a GPU wants them.
    pub fn task_bytes(&self) -> usize {
        Places::new(self, padded).len * size_of::<T>()
    }

    /// Flop of one task's products with a layer's weights, and of the weights' gradients.
    pub(crate) fn layer_flop(&self, layer: usize) -> usize {
        let (steps, moves, lower) = (self.steps, layer >= self.first_moving, layer > self.first_moving);
        let count = |condition: bool, products: usize| if condition { products } else { 0 };
        // Forwards; the deltas below and the step; back up through both, down again, and the cotangent.
        let step = 1 + count(lower, 1) + count(moves, 1);
        let (up, down) = (count(moves, 1) + count(lower, 1), count(layer > 0, 1 + count(moves, 1)));
        let back = count(self.is_exact(), up + down + 1 + count(lower, 1));
        let query = count(self.task_loss.is_some() || self.goes_back(), 1)
            + count(self.goes_back(), 1 + count(layer > 0, 1))
            + count(self.trace.is_some(), steps + 1);
        let weights = self.mlp.widths()[layer] * self.mlp.widths()[layer + 1];
        2 * weights * (steps * self.shots * (step + back) + self.queries * query)
    }

    /// Whether the query loss is differentiated.
    pub(super) fn goes_back(&self) -> bool {
        self.kind != ResidentGradient::Displacement && (self.gradient.is_some() || self.rate_gradient.is_some())
    }

    /// Whether the way back leads through the steps' own gradients.
    pub(super) fn is_exact(&self) -> bool {
        self.kind == ResidentGradient::Exact && self.goes_back()
    }

    /// Whether the way back leads through the steps at all.
    pub(super) fn reverses_steps(&self) -> bool {
        self.goes_back() && (self.is_exact() || self.rate_gradient.is_some() || self.decay != T::ZERO)
    }

    /// Whether a step's v has to be written down.
    pub(super) fn keeps_velocity(&self) -> bool {
        let zero = T::ZERO;
        self.momentum != zero || self.decay != zero || self.per_parameter || self.rate_gradient.is_some()
    }

    /// What is read, and what is written.
    pub(super) fn access(&self) -> ([Region; 6], [Region; 8]) {
        let nothing = Region { offset: 0, rows: 0, width: 0 };
        let pair = |regions: Option<[Region; 2]>| regions.unwrap_or([nothing; 2]);
        let ([support_x, support_y], [query_x, query_y]) = (self.support, self.query);
        let [gradient, gradients] = pair(self.gradient);
        let [rate_gradient, rate_gradients] = pair(self.rate_gradient);
        let [losses, outputs] = pair(self.trace);
        let [task_loss, adapted] = [self.task_loss, self.adapted].map(|region| region.unwrap_or(nothing));
        (
            [self.parameters, self.rates, support_x, support_y, query_x, query_y],
            [gradient, gradients, rate_gradient, rate_gradients, losses, outputs, task_loss, adapted],
        )
    }
}

/// Numbers from row to row where a row is an odd number of pieces of four, so that neighbours' pieces lie in other banks.
pub(super) fn padded(width: usize) -> usize {
    4 * (width.div_ceil(4) | 1)
}

/// One task's rows of one pass: where they begin in the task's memory.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pass {
    /// How many.
    pub rows: usize,
    pub inputs: usize,
    pub targets: usize,
    /// Activations, layer by layer.
    pub values: usize,
    /// dL/dz, layer by layer.
    pub deltas: usize,
}

impl Pass {
    /// Where what goes into layer `level` begins; the output, beyond the last one.
    pub fn level(&self, mlp: &Mlp, level: usize) -> usize {
        if level == 0 { self.inputs } else { self.values + self.rows * before(mlp, level) }
    }

    /// Where the layer's dL/dz begins.
    pub fn delta(&self, mlp: &Mlp, layer: usize) -> usize {
        self.deltas + self.rows * before(mlp, layer + 1)
    }
}

/// The widths of the levels between the input and this one.
pub(super) fn before(mlp: &Mlp, level: usize) -> usize {
    mlp.widths()[1..level].iter().sum()
}

/// Where everything lies in one task's memory, in numbers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Places {
    /// Copies of the parameters, and of what the steps subtract before the rate; of each, slots that the steps take turns in.
    pub weights: usize,
    pub weight_slots: usize,
    pub velocities: usize,
    pub velocity_slots: usize,
    /// Numbers of a copy.
    pub parameters: usize,
    /// The first step's rows; how many slots there are for the steps', and numbers of each, half of them deltas.
    pub support: Pass,
    pub slots: usize,
    pub slot: usize,
    /// The query's rows.
    pub query: Pass,
    /// The cotangents of dL/da from level 1 on, and of z, layer by layer; in place of the query's levels.
    pub e: usize,
    pub z: usize,
    /// The cotangents of the weights and of a step's gradient.
    pub cotangent: usize,
    pub direction: usize,
    /// How much there is.
    pub len: usize,
}

impl Places {
    /// A row of so many numbers takes `row` of them.
    pub fn new<T: Scalar>(op: &Resident<'_, T>, row: impl Fn(usize) -> usize) -> Self {
        let mlp = op.mlp;
        let parameters = mlp.widths().windows(2).map(|pair| pair[1] * row(pair[0]) + row(pair[1])).sum();
        let all: usize = mlp.widths()[1..].iter().map(|width| row(*width)).sum();
        let exact = op.is_exact();
        let slots = if exact { op.steps.max(1) } else { 1 };
        let weight_slots = if exact { op.steps + 1 } else { 1 };
        let velocity_slots = match (op.keeps_velocity(), op.rate_gradient.is_some()) {
            (false, _) => 0,
            (true, false) => op.steps.min(1),
            (true, true) => op.steps,
        };
        let mut len = 0;
        let mut take = |count: usize| {
            len += count;
            len - count
        };
        let mut pass = |rows: usize, levels: usize| Pass {
            rows,
            inputs: take(rows * row(mlp.inputs())),
            targets: take(rows * row(mlp.outputs())),
            values: take(levels * all),
            deltas: 0,
        };
        let support = pass(op.shots, slots * 2 * op.shots);
        // The cotangents lie where the query's levels were, which are done with by then.
        let cotangents = if exact { op.shots } else { 0 };
        let query = pass(op.queries, 2 * op.queries.max(cotangents));
        let moved = usize::from(op.goes_back() || op.kind == ResidentGradient::Displacement);
        let mut this = Self {
            weights: take(weight_slots * parameters),
            weight_slots,
            velocities: take(velocity_slots * parameters),
            velocity_slots,
            parameters,
            support,
            slots,
            slot: 2 * op.shots * all,
            query: Pass { deltas: query.values + op.queries * all, ..query },
            e: query.values,
            z: query.values + cotangents * all,
            cotangent: take(moved * parameters),
            direction: take(usize::from(op.reverses_steps()) * parameters),
            len: 0,
        };
        this.len = len;
        this
    }

    /// The weights after so many steps.
    pub fn weights(&self, steps: usize) -> usize {
        self.weights + steps % self.weight_slots * self.parameters
    }

    /// What step `step` subtracts, before the rate; nothing where that is not written down.
    pub fn velocity(&self, step: usize) -> Option<usize> {
        (self.velocity_slots > 0).then(|| self.velocities + step % self.velocity_slots * self.parameters)
    }

    /// The rows of step `step`.
    pub fn step(&self, step: usize) -> Pass {
        let values = self.support.values + step % self.slots * self.slot;
        Pass { values, deltas: values + self.slot / 2, ..self.support }
    }
}
