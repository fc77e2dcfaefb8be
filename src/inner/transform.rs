//! The stage between a step's gradient and its update, of a phi that transforms rows: `delta' = f(delta)`, `a' = g(a)`,
//! and its transpose, with the gradient of phi's weights.
//!
//! It knows nothing of how the adapted weights are represented: a form descends the rows that this writes, and says which
//! cotangents they have.

use super::tape::{NetworkSpec, Slot, Store, Tape};
use crate::Scalar;
use crate::device::{
    AdjointBackward, ArenaPlan, ColumnScale, ColumnScaleAdjoint, Corrections, Device, GramView, Linear, LinearBackward,
    LinearForward, OuterProduct, OuterTerm, Region, Term,
};
use crate::meta::{PhiLayout, RateKind, Side, SideLayout};
use crate::model::Activation;

/// The network's hidden activation: with no biases it keeps to any scale of its inputs.
const HIDDEN: Activation = Activation::LeakyRelu;

/// See the module.
pub(super) struct Transform<T> {
    layout: PhiLayout,
    rank: Option<usize>,
    /// phi's weights, flat, and their gradient: a mean over the tasks.
    pub weights: Region,
    pub gradient: Region,
    /// By layer and side.
    sides: Vec<[SideRows; 2]>,
    /// The identity, `[K, K]`: the coefficients of rows that are added as they are.
    identity: Region,
    ones: Vec<T>,
    /// Network: what it adds to the rows of one layer's side.
    added: Region,
    /// The biases that do not exist, and room for what would be their gradient.
    no_bias: Region,
    no_bias_gradient: Region,
}

/// The rows of one layer's side.
struct SideRows {
    /// The cotangent of the transformed rows, then of the gradient's own: forward blocks.
    cotangent: Region,
    /// Network: `x down^T + down_bias`, what the activation makes of it, and the cotangent of either.
    hidden: Store,
    active: Store,
    hidden_cotangent: Region,
}

impl<T: Scalar> Transform<T> {
    /// Nothing where phi does not transform rows. `slots` steps are kept.
    pub fn new(plan: &mut ArenaPlan, spec: &NetworkSpec, slots: usize) -> Option<Self> {
        let rank = match spec.rates {
            RateKind::Shared | RateKind::PerLayerPerStep | RateKind::PerParameter => return None,
            RateKind::RowColumn => None,
            RateKind::Network { rank } => Some(rank),
        };
        let layout = PhiLayout::new(spec.rates, &spec.mlp, spec.steps);
        let (k, rows) = (spec.support_rows, spec.forward_blocks * spec.tasks * spec.support_rows);
        let backwards = |moves: bool| if moves && spec.pulls_rows_back() { rows } else { 0 };
        let sides = (0..spec.layers())
            .map(|layer| {
                let moves = spec.moves(layer);
                let hidden_rows = if moves && rank.is_some() { rows } else { 0 };
                Side::BOTH.map(|side| SideRows {
                    cotangent: plan.take(backwards(moves), spec.width(layer, side)),
                    hidden: Store::of_steps(plan, slots, hidden_rows, rank.unwrap_or(0)),
                    active: Store::of_steps(plan, slots, hidden_rows, rank.unwrap_or(0)),
                    hidden_cotangent: plan.take(backwards(moves), rank.unwrap_or(0)),
                })
            })
            .collect();
        let widest = spec.mlp.widths().iter().copied().max().unwrap_or(0).max(rank.unwrap_or(0));
        let mut ones = vec![T::ZERO; k * k];
        ones.iter_mut().step_by(k + 1).for_each(|one| *one = T::ONE);
        Some(Self {
            rank,
            weights: plan.take(1, layout.len()),
            gradient: plan.take(1, if spec.rate_gradient { layout.len() } else { 0 }),
            sides,
            identity: plan.take(k, k),
            added: plan.take(if rank.is_some() { rows } else { 0 }, widest),
            ones,
            no_bias: plan.take(1, widest),
            no_bias_gradient: plan.take(1, widest),
            layout,
        })
    }

    /// Before the first step of a run.
    pub fn begin<D: Device<T>>(&self, device: &D, arena: &mut D::Arena) {
        device.upload(arena, self.identity, &self.ones);
        device.fill(arena, self.no_bias, T::ZERO);
        device.fill(arena, self.gradient, T::ZERO);
    }

    /// Where the cotangents of a step's rows go.
    pub fn cotangent(&self, layer: usize, side: Side) -> Region {
        self.sides[layer][side as usize].cotangent
    }

    /// A single 1, for corrections whose coefficients are their scales.
    pub fn one(&self) -> GramView {
        GramView { offset: self.identity.offset, task_stride: 0, row_stride: 0, column_stride: 0 }
    }

    /// For each block, the correction that adds the cotangent of the gradient's own rows; `one` is where 1 lies among the
    /// scales.
    pub fn pulled_back(&self, spec: &NetworkSpec, layer: usize, side: Side, one: usize) -> Vec<Vec<Term>> {
        let k = spec.support_rows;
        let gram = GramView { offset: self.identity.offset, task_stride: 0, row_stride: k, column_stride: 1 };
        let exists = side == Side::Delta || spec.has_values_cotangent(layer);
        let term = |block| {
            let rows = self.cotangent(layer, side).rows(block * spec.tasks * k, spec.tasks * k);
            Term { gram, bias: None, scale: one, rows }
        };
        (0..spec.forward_blocks).map(|block| if exists { vec![term(block)] } else { Vec::new() }).collect()
    }

    fn linear(&self, flat: Region, weight: &std::ops::Range<usize>, bias: usize, inputs: usize) -> Linear {
        let weight_offset = flat.offset + weight.start;
        Linear { weight: weight_offset, bias, task_stride: 0, inputs, outputs: weight.len() / inputs }
    }

    /// The lower and the upper layer of a side's network; in `flat`, which lacks the biases that do not exist.
    fn layers(&self, at: &SideLayout, flat: Region, lacking: Region, width: usize, rank: usize) -> [Linear; 2] {
        let bias = |range: &Option<std::ops::Range<usize>>| {
            range.as_ref().map_or(lacking.offset, |range| flat.offset + range.start)
        };
        [self.linear(flat, &at.down, bias(&at.down_bias), width), self.linear(flat, &at.up, bias(&at.up_bias), rank)]
    }

    fn factors(&self, range: &std::ops::Range<usize>, spec: &NetworkSpec, step: usize, of: Region) -> Region {
        let width = range.len() / spec.steps;
        of.elements(range.start + step * width, width)
    }

    /// Writes the rows that the update of step `step` takes.
    pub fn forward<D: Device<T>>(
        &self,
        spec: &NetworkSpec,
        tape: &Tape,
        device: &D,
        arena: &mut D::Arena,
        step: usize,
    ) {
        let slot = Slot::Step(step);
        for layer in spec.first_moving..spec.layers() {
            for side in Side::BOTH {
                let (from, to) = (tape.gradient_rows(layer, slot, side), tape.descended(layer, slot, side));
                let at = self.layout.of(layer, side);
                device.column_scale(arena, &self.scaled(spec, at, step, from, to));
                let Some(rank) = self.rank else { continue };
                let [down, up] = self.layers(at, self.weights, self.no_bias, from.width, rank);
                let activation = self.activation(spec, layer, side, step);
                device.linear_forward(arena, &linear_forward(spec, from, down, activation.from));
                device.column_scale(arena, &activation);
                let added = Region { rows: to.rows, width: to.width, ..self.added };
                device.linear_forward(arena, &linear_forward(spec, activation.to, up, added));
                device.add_scaled(arena, added, T::ONE, to);
            }
        }
    }

    /// The rows times their units' factors.
    fn scaled(&self, spec: &NetworkSpec, at: &SideLayout, step: usize, from: Region, to: Region) -> ColumnScale {
        let scale = self.factors(&at.factors, spec, step, self.weights);
        ColumnScale { from, scale, activation: Activation::Linear, to }
    }

    /// The hidden units of a side's network.
    fn activation(&self, spec: &NetworkSpec, layer: usize, side: Side, step: usize) -> ColumnScale {
        let rows = &self.sides[layer][side as usize];
        let scale = self.factors(&self.layout.of(layer, side).scale, spec, step, self.weights);
        let (from, to) = (rows.hidden.slot(Slot::Step(step)), rows.active.slot(Slot::Step(step)));
        ColumnScale { from, scale, activation: HIDDEN, to }
    }

    /// Turns the cotangent of a step's transformed rows into that of the gradient's own, and adds to phi's gradient.
    #[allow(clippy::too_many_arguments)]
    pub fn pull_back<D: Device<T>>(
        &self,
        spec: &NetworkSpec,
        tape: &Tape,
        device: &D,
        arena: &mut D::Arena,
        layer: usize,
        side: Side,
        step: usize,
    ) {
        let slot = Slot::Step(step);
        let (from, to) = (tape.gradient_rows(layer, slot, side), tape.descended(layer, slot, side));
        let (at, rows) = (self.layout.of(layer, side), &self.sides[layer][side as usize]);
        let weight = T::from_f64(spec.task_weight());
        let gradient = |range| spec.rate_gradient.then(|| self.factors(range, spec, step, self.gradient));
        let scaled = |device: &D, arena: &mut D::Arena| {
            let (of, gradient) = (self.scaled(spec, at, step, from, to), gradient(&at.factors));
            device.column_scale_adjoint(arena, &ColumnScaleAdjoint { of, cotangent: rows.cotangent, gradient, weight });
        };
        let Some(rank) = self.rank else { return scaled(device, arena) };
        let [down, up] = self.layers(at, self.weights, self.no_bias, from.width, rank);
        let of = self.activation(spec, layer, side, step);
        let learns = |device: &D, arena: &mut D::Arena, which: usize, p: Region, q: Region| {
            if spec.rate_gradient {
                let layer = self.layers(at, self.gradient, self.no_bias_gradient, from.width, rank)[which];
                let bias = if side == Side::Values { T::ONE } else { T::ZERO };
                let terms = [OuterTerm { p, q, bias, blocks: 1, scale: weight, share: None }];
                let operation = OuterProduct { tasks: spec.tasks, terms: &terms, layer, accumulate: true };
                device.outer_product(arena, &operation);
            }
        };
        learns(device, arena, 1, rows.cotangent, of.to);
        let operation = LinearBackward {
            tasks: spec.tasks,
            rows: spec.support_rows,
            delta: rows.cotangent,
            layer: up,
            corrections: Corrections::NONE,
            gate: None,
            output: rows.hidden_cotangent,
        };
        device.linear_backward(arena, &operation);
        let (cotangent, gradient) = (rows.hidden_cotangent, gradient(&at.scale));
        device.column_scale_adjoint(arena, &ColumnScaleAdjoint { of, cotangent, gradient, weight });
        learns(device, arena, 0, rows.hidden_cotangent, from);
        scaled(device, arena);
        if spec.second_order {
            let operation = AdjointBackward {
                tasks: spec.tasks,
                rows: spec.support_rows,
                z_cotangent: rows.hidden_cotangent,
                layer: down,
                direction: None,
                corrections: Corrections::NONE,
                gate: None,
                output: rows.cotangent,
                accumulate: true,
            };
            device.adjoint_backward(arena, &operation);
        }
    }
}

fn linear_forward<'a>(spec: &NetworkSpec, input: Region, layer: Linear, output: Region) -> LinearForward<'a> {
    LinearForward {
        tasks: spec.tasks,
        rows: spec.support_rows,
        input,
        layer,
        corrections: Corrections::NONE,
        activation: Activation::Linear,
        output,
    }
}
