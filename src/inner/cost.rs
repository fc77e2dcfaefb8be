//! Counting what a meta-step does: floating-point operations and bytes, from the shapes alone.

use super::tape::{NetworkSpec, Slot};
use crate::device::{CostFactors, Normalise, NormaliseAdjoint, NormaliseJacobian};
use crate::meta::RateKind;

/// The work of one meta-step, by how fast a device can do it.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Cost {
    /// Flop in products with weights all tasks share: large matrices.
    pub shared: f64,
    /// Flop in the dual form's low-rank corrections: inner products of rows and their application.
    pub low_rank: f64,
    /// Flop in products with a task's own weights: a few rows each.
    pub per_task: f64,
    /// Elements of per-task weights read and written.
    pub per_task_elements: f64,
    /// Flop of the resident form, all of whose operands stay near the processor.
    pub resident: f64,
    /// Elements of parameters that the resident form reads and writes there.
    pub resident_elements: f64,
    /// Flop in sums over the rows of layers with batch normalisation, the same in both forms.
    pub normalisation: f64,
    /// Operations over all tasks, one after the other, about.
    pub operations: f64,
}

impl Cost {
    /// All floating-point operations.
    pub fn flop(&self) -> f64 {
        self.shared + self.low_rank + self.per_task + self.resident + self.normalisation
    }

    /// The estimate the planner compares, in units of one flop of a large shared product, on a device with these factors. Batch
    /// normalisation is left out: forms that have it pay the same.
    pub fn estimate(&self, factors: &CostFactors) -> f64 {
        self.shared
            + factors.low_rank * self.low_rank
            + factors.per_task * self.per_task
            + factors.per_task_elements * self.per_task_elements
            + factors.resident * self.resident
            + factors.resident_elements * self.resident_elements
            + factors.operation * self.operations
    }
}

impl std::ops::Add for Cost {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            shared: self.shared + other.shared,
            low_rank: self.low_rank + other.low_rank,
            per_task: self.per_task + other.per_task,
            per_task_elements: self.per_task_elements + other.per_task_elements,
            resident: self.resident + other.resident,
            resident_elements: self.resident_elements + other.resident_elements,
            normalisation: self.normalisation + other.normalisation,
            operations: self.operations + other.operations,
        }
    }
}

/// One layer's shape, and how its rows come.
struct Layer {
    inputs: f64,
    outputs: f64,
    weights: f64,
    /// Blocks of the passes: forward, backward (0 where the pass ends above), those with an e cotangent.
    forward: f64,
    backward: f64,
    cotangents: f64,
    moves: bool,
    /// Whether a downward adjoint product exists.
    down: f64,
}

impl Layer {
    fn new(spec: &NetworkSpec, index: usize) -> Self {
        let (inputs, outputs) = (spec.mlp.widths()[index] as f64, spec.mlp.widths()[index + 1] as f64);
        let (f, b) = (spec.forward_blocks, spec.backward_blocks());
        let backward = if index > spec.first_moving {
            b
        } else if index == 0 {
            b - f
        } else {
            0
        };
        Self {
            inputs,
            outputs,
            weights: inputs * outputs,
            forward: f as f64,
            backward: backward as f64,
            cotangents: (b - spec.first_e_block(index)) as f64,
            moves: spec.moves(index),
            // To the input only the generated block goes back.
            down: if index > 0 { f as f64 } else { (b - f) as f64 },
        }
    }
}

/// Rows of all tasks in one block of a pass.
fn rows(spec: &NetworkSpec, slot: Slot) -> f64 {
    (spec.tasks * spec.rows(slot)) as f64
}

/// What batch normalisation costs, in the forms that have it.
fn normalisation(spec: &NetworkSpec) -> Cost {
    let support = spec.steps as f64 * rows(spec, Slot::Step(0));
    let query = spec.query_passes as f64 * rows(spec, Slot::Query { after: spec.steps });
    let [forward, jacobian, adjoint] =
        [Normalise::FLOP, NormaliseJacobian::FLOP, NormaliseAdjoint::FLOP].map(|flop| flop as f64);
    let mut flop = 0.0;
    for layer in (0..spec.layers()).filter(|layer| spec.mlp.batch_norm(*layer).is_some()) {
        let moving = if spec.moves(layer) { support } else { 0.0 };
        let adjoint = if spec.second_order { jacobian * support + adjoint * moving } else { 0.0 };
        let width = spec.mlp.widths()[layer + 1] as f64;
        flop += width * (forward * (support + query) + jacobian * (moving + query) + adjoint);
    }
    Cost { normalisation: flop, ..Cost::default() }
}

/// What a phi that transforms rows costs, in the forms that have one.
fn transform(spec: &NetworkSpec) -> Cost {
    let RateKind::Network { rank } = spec.rates else { return Cost::default() };
    let rows = spec.steps as f64 * rows(spec, Slot::Step(0)) * spec.forward_blocks as f64;
    let widths: usize =
        (spec.first_moving..spec.layers()).map(|l| spec.mlp.widths()[l] + spec.mlp.widths()[l + 1]).sum();
    // Down and up again; back through both, with a gradient of each.
    let products = if spec.pulls_rows_back() { 6.0 } else { 2.0 };
    Cost { shared: products * 2.0 * rows * (rank * widths) as f64, ..Cost::default() }
}

/// Operations of the losses, of every pass and of the way back.
fn of_losses(spec: &NetworkSpec) -> f64 {
    spec.steps as f64 * if spec.second_order { 2.0 } else { 1.0 } + 2.0 * spec.query_passes as f64
}

/// The dual form's cost.
pub(super) fn dual(spec: &NetworkSpec) -> Cost {
    let ends = transform(spec) + normalisation(spec);
    let ends = Cost { operations: of_losses(spec), ..ends };
    (0..spec.layers()).map(|index| dual_layer(spec, index)).fold(ends, std::ops::Add::add)
}

/// One layer's.
fn dual_layer(spec: &NetworkSpec, index: usize) -> Cost {
    let (steps, support) = (spec.steps, rows(spec, Slot::Step(0)));
    let query = rows(spec, Slot::Query { after: steps });
    let queries = spec.query_passes as f64;
    let history = |s: usize| (s * spec.forward_blocks * spec.support_rows) as f64;
    let mut cost = Cost::default();
    let Layer { inputs, outputs, weights, forward, backward, cotangents, down, moves } = Layer::new(spec, index);
    let query_backward = if backward > 0.0 { backward } else { down };
    // Of rows that are the same in every step.
    let times = if spec.is_steady(index) { steps.min(1) } else { steps };
    let passes = times as f64 * support * (forward + backward) + queries * query * (forward + query_backward);
    cost.shared += 2.0 * weights * passes;
    // Both the inner products and their application touch every correction row once.
    let correction = |rows: f64, n: f64| if moves { 2.0 * rows * n * (inputs + outputs) } else { 0.0 };
    for s in 0..times {
        cost.low_rank += correction(support * (forward + backward), history(s));
    }
    for slot in spec.queries() {
        cost.low_rank += correction(query * (forward + query_backward), history(slot.history()));
    }
    let mut gradient_rows = queries * forward * query;
    if spec.second_order {
        for s in 0..times {
            let up = if moves { cotangents } else { 0.0 };
            cost.shared += 2.0 * weights * support * (up + down);
            cost.low_rank += correction(support * (up + down), history(s));
            if moves {
                let later_queries = spec.queries().filter(|slot| slot.history() > s).count();
                let later = (steps - 1 - s) as f64 * (forward + cotangents) * spec.support_rows as f64
                    + forward * (later_queries * spec.query_rows) as f64;
                cost.low_rank += 2.0 * support * forward * later * (inputs + outputs);
            }
        }
        gradient_rows += times as f64 * support * (forward + cotangents);
    }
    cost.shared += 2.0 * weights * gradient_rows;
    // A product and its inner products, each way and back; of the first step no inner products.
    let ways = (usize::from(forward > 0.0) + usize::from(backward > 0.0)) as f64;
    let back = if spec.second_order { usize::from(moves) as f64 + usize::from(down > 0.0) as f64 } else { 0.0 };
    let inner = if moves { steps.saturating_sub(1) as f64 } else { 0.0 };
    cost.operations += (ways + back) * (times as f64 + inner) + 4.0 * queries + 1.0;
    cost
}

/// The cost of the dual form whose last layer is folded.
pub(super) fn folded(spec: &NetworkSpec) -> Cost {
    let below = (0..spec.layers() - 1).map(|index| dual_layer(spec, index));
    let of_losses = Cost { operations: 4.0, ..normalisation(spec) };
    below.fold(of_losses + folded_end(spec), std::ops::Add::add)
}

/// The folded layer's.
fn folded_end(spec: &NetworkSpec) -> Cost {
    let Layer { inputs: m, outputs: n, .. } = Layer::new(spec, spec.layers() - 1);
    let steps = spec.steps as f64;
    let (support, query) = (rows(spec, Slot::Step(0)), rows(spec, Slot::Query { after: spec.steps }));
    let (k, kq) = (spec.support_rows as f64, spec.query_rows as f64);
    // With W0: both ways of the first step and of the query, and their sums; its square, and its product with the inner gradient.
    let with_weights = 3.0 * m * n * (support + query) + n * (support + query) + 2.0 * n * m * m + n * m;
    // With its square: images of residuals and of cotangents, and the sums of both.
    let with_square = m * m * support * (4.0 * steps - 1.0);
    let mut low_rank = 0.0;
    for s in 0..spec.steps {
        let (before, later) = (s as f64 * k, (steps - 1.0 - s as f64) * k);
        if s > 0 {
            low_rank += before * (4.0 * m + 2.0 * k) + k * m;
            low_rank += before * (4.0 * m + k + kq) - k * m;
        }
        low_rank += later * (4.0 * m + 2.0 * k + kq) + before * k + kq * kq + (k + 2.0 * kq) * m;
    }
    low_rank += k * (n + k) + steps * (kq * (m + k) + 2.0 * k * m + k);
    let of_query = steps * k * (4.0 * m + k + 1.0) - k * m + 2.0 * k * n + kq * k;
    Cost {
        shared: 2.0 * (with_weights + with_square),
        low_rank: 2.0 * (support * low_rank + query * of_query),
        operations: 17.0 * steps + 20.0,
        ..Cost::default()
    }
}

/// The materialised form's cost.
pub(super) fn materialised(spec: &NetworkSpec) -> Cost {
    let support = rows(spec, Slot::Step(0));
    let queries = spec.query_passes as f64;
    let query = queries * rows(spec, Slot::Query { after: spec.steps });
    let tasks = spec.tasks as f64;
    let mut cost = transform(spec) + normalisation(spec);
    cost.operations += of_losses(spec);
    for index in 0..spec.layers() {
        let Layer { weights, forward, backward, cotangents, down, moves, .. } = Layer::new(spec, index);
        let steps = if spec.is_steady(index) { spec.steps.min(1) } else { spec.steps } as f64;
        let query_backward = if backward > 0.0 { backward } else { down };
        let streamed = weights * tasks;
        let passes = steps * support * (forward + backward) + query * (forward + query_backward);
        cost.per_task += 2.0 * weights * passes;
        cost.per_task_elements += streamed * 2.0 * (steps + queries);
        if moves {
            // The update reads the weights and writes new ones.
            cost.per_task += 2.0 * weights * steps * support * forward;
            cost.per_task_elements += streamed * 2.0 * steps;
        }
        cost.per_task += 2.0 * weights * query * forward;
        cost.per_task_elements += streamed * 2.0 * queries;
        if spec.second_order {
            let up = if moves { cotangents + forward } else { 0.0 };
            cost.per_task += 2.0 * weights * steps * support * (up + 2.0 * down + forward + cotangents);
            // Weights and direction in both passes, the direction's renewal, the cotangent's update.
            cost.per_task_elements += streamed * steps * (4.0 + 2.0 + 2.0);
        }
        // Both ways and the update; back the update's, both ways, and the gradient.
        let back = if spec.second_order { 4.0 } else { 0.0 };
        cost.operations += steps * (3.0 + back) + 3.0 * queries + 1.0;
    }
    cost
}

/// The resident form's cost.
pub(super) fn resident(spec: &NetworkSpec) -> Cost {
    let flop = (0..spec.layers()).map(|layer| super::resident::outline::<f32>(spec).layer_flop(layer)).sum::<usize>();
    // Each product reads the weights or writes a gradient of them; beside the steps', as often again as one step's.
    let streams = if spec.second_order { 12 * (spec.steps + 1) } else { 5 * spec.steps + 12 };
    Cost {
        resident: (spec.tasks * flop) as f64,
        resident_elements: (spec.tasks * spec.mlp.parameter_count() * streams) as f64,
        operations: 1.0,
        ..Cost::default()
    }
}
