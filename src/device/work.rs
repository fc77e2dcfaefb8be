//! What an operation cannot do without: flop and bytes, counted from its shapes alone.

use std::collections::BTreeSet;

use super::{
    AdamRateGradient, AdamUpdate, AdjointBackward, AdjointForward, AdversarialCurvature, AdversarialLoss, ColumnScale,
    ColumnScaleAdjoint, Corrections, Direction, Gate, GradientCheck, Gram, GramInner, InnerUpdate, Linear,
    LinearBackward, LinearForward, LowRank, Normalise, NormaliseAdjoint, NormaliseJacobian, OuterProduct, OuterStep,
    PixelCurvature, PixelLoss, Rate, RateTables, RateTablesGradient, Region, Resident, ReverseAdam, ReverseUpdate,
    SupervisedCurvature, SupervisedLoss,
};
use crate::model::Activation;
use crate::objective::Loss;
use crate::scalar::Scalar;

/// Flop and bytes of an operation, or of several.
///
/// Counted are the flop of products and sums: two for each multiply-add of a matrix product or an inner product, one for each
/// summand elsewhere. What is done once an element (biases, activations, their derivatives, losses, an optimizer's step) is
/// not: the bytes of such an operation take longer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Work {
    /// Flop of products with weights, of weights' gradients and of sums.
    pub flop: u64,
    /// Flop of the dual form's corrections: inner products of rows, and their application.
    pub correction_flop: u64,
    /// Bytes that are read and written, each operand once. Room that an operation uses in between is not counted.
    pub bytes: u64,
}

impl Work {
    /// Work of so many flop, that reads and writes so many numbers of type `T`.
    pub(super) fn new<T>(flop: usize, elements: usize) -> Self {
        Self { flop: flop as u64, correction_flop: 0, bytes: (elements * size_of::<T>()) as u64 }
    }

    /// As [`Work::new`], of corrections.
    fn corrections<T>(flop: usize, elements: usize) -> Self {
        Self { flop: 0, correction_flop: flop as u64, ..Self::new::<T>(0, elements) }
    }

    /// All flop.
    pub fn all_flop(&self) -> u64 {
        self.flop + self.correction_flop
    }
}

impl std::ops::Add for Work {
    type Output = Self;
    fn add(self, other: Self) -> Self {
        Self {
            flop: self.flop + other.flop,
            correction_flop: self.correction_flop + other.correction_flop,
            bytes: self.bytes + other.bytes,
        }
    }
}

/// An operation on numbers of type `T` that knows its work.
pub(super) trait Counted<T> {
    fn work(&self) -> Work;
}

/// How often the layer's numbers are there.
fn copies(layer: &Linear, tasks: usize) -> usize {
    if layer.is_shared() { 1 } else { tasks }
}

/// Elements of the weights, of all tasks.
fn weights(layer: &Linear, tasks: usize) -> usize {
    copies(layer, tasks) * layer.inputs * layer.outputs
}

/// Elements of weights and biases, of all tasks.
fn parameters(layer: &Linear, tasks: usize) -> usize {
    copies(layer, tasks) * (layer.inputs + 1) * layer.outputs
}

/// Flop of a product of that many rows with the weights, or of the weights' gradient from them.
fn product(layer: &Linear, rows: usize) -> usize {
    2 * rows * layer.inputs * layer.outputs
}

/// Elements of what is written, and read before when it is added to.
fn written(elements: usize, accumulate: bool) -> usize {
    if accumulate { 2 * elements } else { elements }
}

fn len(region: Option<Region>) -> usize {
    region.map_or(0, |region| region.len())
}

/// Elements of an activation's values, where its derivative depends on them.
fn slope(activation: Activation, values: usize) -> usize {
    if activation == Activation::Linear { 0 } else { values }
}

/// Elements of a gate's values, for output of that many blocks of that many elements.
fn gate(gate: &Gate<'_>, blocks: usize, block: usize) -> usize {
    let distinct: BTreeSet<_> = gate.blocks.iter().take(blocks).collect();
    slope(gate.activation, distinct.len() * block)
}

/// The same for the gate, if any, of an output that holds whole blocks of `rows` rows a task.
fn gate_below(below: Option<Gate<'_>>, tasks: usize, rows: usize, output: Region) -> usize {
    let blocks = output.rows / (tasks * rows);
    below.map_or(0, |below| gate(&below, blocks, tasks * rows * output.width))
}

/// Applying corrections: rows that several blocks share are read once.
fn applied<T>(corrections: &Corrections<'_>, rows: usize) -> Work {
    let mut seen = BTreeSet::new();
    let (mut flop, mut elements) = (0, 0);
    for term in corrections.blocks.iter().flatten() {
        flop += 2 * rows * term.rows.len();
        elements += rows * term.rows.rows;
        if seen.insert(term.rows.offset) {
            elements += term.rows.len();
        }
    }
    Work::corrections::<T>(flop, elements)
}

/// Elements of a rate of its own for each parameter.
fn rate<T>(rate: &Rate<T>) -> usize {
    match rate {
        Rate::Uniform(_) => 0,
        Rate::Single(rate) => rate.len(),
        Rate::PerParameter(layer) => parameters(layer, 1),
    }
}

impl<T: Scalar> Counted<T> for LinearForward<'_> {
    fn work(&self) -> Work {
        let elements = self.input.len() + parameters(&self.layer, self.tasks) + self.output.len();
        Work::new::<T>(product(&self.layer, self.input.rows), elements) + applied::<T>(&self.corrections, self.rows)
    }
}

impl<T: Scalar> Counted<T> for LinearBackward<'_> {
    fn work(&self) -> Work {
        let gate = gate_below(self.gate, self.tasks, self.rows, self.output);
        let elements = self.delta.len() + weights(&self.layer, self.tasks) + gate + self.output.len();
        Work::new::<T>(product(&self.layer, self.delta.rows), elements) + applied::<T>(&self.corrections, self.rows)
    }
}

/// The product with a direction; with its bias, where that has a part in it.
fn direction<T>(direction: Option<Direction>, tasks: usize, bias: bool) -> Work {
    direction.map_or(Work::default(), |Direction { layer, values }| {
        let numbers = if bias { parameters(&layer, tasks) } else { weights(&layer, tasks) };
        Work::new::<T>(product(&layer, values.rows), values.len() + numbers)
    })
}

impl<T: Scalar> Counted<T> for AdjointForward<'_> {
    fn work(&self) -> Work {
        let block = self.tasks * self.rows * self.layer.outputs;
        let mut elements = gate(&self.gate, self.gate.blocks.len(), block) + self.e_cotangent.len();
        if self.gate.activation.is_curved() {
            elements += self.delta.len() + self.z_cotangent.len();
        }
        let own = self.input.map_or(Work::default(), |(input, _)| {
            Work::new::<T>(product(&self.layer, input.rows), input.len() + weights(&self.layer, self.tasks))
        });
        own + Work::new::<T>(0, elements)
            + direction::<T>(self.direction, self.tasks, true)
            + applied::<T>(&self.corrections, self.rows)
    }
}

impl<T: Scalar> Counted<T> for AdjointBackward<'_> {
    fn work(&self) -> Work {
        let gate = gate_below(self.gate, self.tasks, self.rows, self.output);
        let output = written(self.output.len(), self.accumulate);
        let elements = self.z_cotangent.len() + weights(&self.layer, self.tasks) + gate + output;
        Work::new::<T>(product(&self.layer, self.z_cotangent.rows), elements)
            + direction::<T>(self.direction, self.tasks, false)
            + applied::<T>(&self.corrections, self.rows)
    }
}

impl<T: Scalar> Counted<T> for Gram<'_> {
    fn work(&self) -> Work {
        let y: usize = self.y.iter().map(Region::len).sum();
        let columns = self.y.iter().map(|y| y.rows).sum::<usize>() / self.tasks;
        let products = self.x.rows * columns;
        Work::corrections::<T>(2 * products * self.x.width, self.x.len() + y + written(products, self.accumulate))
    }
}

impl<T: Scalar> Counted<T> for GramInner {
    fn work(&self) -> Work {
        let flop = if self.right.is_some() { 2 } else { 1 } * self.left.len();
        Work::corrections::<T>(flop, self.left.len() + len(self.right) + 2 * self.output.len())
    }
}

impl<T: Scalar> Counted<T> for LowRank<'_> {
    fn work(&self) -> Work {
        let gate = gate_below(self.gate, self.tasks, self.rows, self.output);
        let elements = len(self.base) + gate + written(self.output.len(), self.accumulate);
        Work::new::<T>(0, elements) + applied::<T>(&self.corrections, self.rows)
    }
}

impl<T: Scalar> Counted<T> for ColumnScale {
    fn work(&self) -> Work {
        Work::new::<T>(0, self.from.len() + self.scale.len() + self.to.len())
    }
}

impl<T: Scalar> Counted<T> for ColumnScaleAdjoint<T> {
    fn work(&self) -> Work {
        let ColumnScale { from, scale, activation, to } = self.of;
        let elements = slope(activation, to.len()) + scale.len() + 2 * self.cotangent.len();
        let gradient = self
            .gradient
            .map_or(Work::default(), |gradient| Work::new::<T>(2 * from.len(), from.len() + 2 * gradient.len()));
        Work::new::<T>(0, elements) + gradient
    }
}

impl<T: Scalar> Counted<T> for Normalise {
    fn work(&self) -> Work {
        let elements = 2 * self.rows.len() + self.inverse.len() + self.shift.len() + self.output.len();
        Work::new::<T>(Self::FLOP * self.rows.len(), elements)
    }
}

impl<T: Scalar> Counted<T> for NormaliseJacobian {
    fn work(&self) -> Work {
        let to = written(self.to.len(), self.accumulate);
        let elements = self.normalised.len() + self.inverse.len() + self.from.len() + to;
        Work::new::<T>(Self::FLOP * self.from.len(), elements)
    }
}

impl<T: Scalar> Counted<T> for NormaliseAdjoint {
    fn work(&self) -> Work {
        let len = self.cotangent.len();
        let y_cotangent = if self.activation.is_curved() { len } else { 0 };
        // x, both deltas and the cotangent are read; the cotangents of u and e are written.
        let elements = 6 * len + self.inverse.len() + slope(self.activation, len) + y_cotangent;
        Work::new::<T>(Self::FLOP * len, elements)
    }
}

impl<T: Scalar> Counted<T> for RateTables {
    fn work(&self) -> Work {
        Work::new::<T>(0, self.of.rates.len() + len(self.of.bias) + self.tables.len())
    }
}

impl<T: Scalar> Counted<T> for RateTablesGradient {
    fn work(&self) -> Work {
        let tables = if self.of.bias.is_some() { self.tables.len() } else { 0 };
        Work::new::<T>(0, tables + self.of_tables.len() + self.gradient.len() + len(self.bias_gradient))
    }
}

impl<T: Scalar> Counted<T> for OuterProduct<'_, T> {
    fn work(&self) -> Work {
        let rows = self.terms.iter().map(|term| term.p.rows).sum();
        let operands: usize = self.terms.iter().map(|term| term.p.len() + term.q.len()).sum();
        let layer = written(parameters(&self.layer, self.tasks), self.accumulate);
        Work::new::<T>(product(&self.layer, rows), operands + layer)
    }
}

impl<T: Scalar> Counted<T> for InnerUpdate<T> {
    fn work(&self) -> Work {
        let layers = [Some(self.from), Some(self.to), self.velocity, self.new_velocity];
        let layers: usize = layers.iter().flatten().map(|layer| parameters(layer, self.tasks)).sum();
        let elements = self.delta.len() + self.values.len() + layers + rate(&self.rate);
        Work::new::<T>(product(&self.to, self.delta.rows), elements)
    }
}

impl<T: Scalar> Counted<T> for ReverseUpdate<T> {
    fn work(&self) -> Work {
        let all = parameters(&self.direction, self.tasks);
        let own = Work::new::<T>(0, all + written(all, self.accumulate) + rate(&self.rate));
        let gradient = self.rate_gradient.map_or(Work::default(), |gradient| {
            let velocity = self.velocity.map_or(0, |velocity| parameters(&velocity, self.tasks));
            Work::new::<T>(2 * all, velocity + 2 * gradient.len())
        });
        own + gradient
    }
}

impl<T: Scalar> Counted<T> for AdamUpdate<T> {
    fn work(&self) -> Work {
        let moments = written(2 * parameters(&self.to, self.tasks), self.moments.is_some());
        let weights = parameters(&self.from, self.tasks) + parameters(&self.to, self.tasks);
        let elements = self.delta.len() + self.values.len() + weights + moments + rate(&self.rate);
        Work::new::<T>(product(&self.to, self.delta.rows), elements)
    }
}

impl<T: Scalar> Counted<T> for AdamRateGradient<T> {
    fn work(&self) -> Work {
        let all = parameters(&self.moved, self.tasks);
        // The cotangent and two moments are read, `moved` written.
        Work::new::<T>(2 * all, 4 * all + 2 * self.rate_gradient.len())
    }
}

impl<T: Scalar> Counted<T> for ReverseAdam<T> {
    fn work(&self) -> Work {
        let all = parameters(&self.direction, self.tasks);
        // The cotangent of the weights and two moments are read, the direction is written.
        let weights = 4 * all + written(2 * all, self.accumulate);
        let elements = self.delta.len() + self.values.len() + weights + rate(&self.rate);
        Work::new::<T>(product(&self.direction, self.delta.rows), elements)
    }
}

impl<T: Scalar> Counted<T> for Resident<'_, T> {
    fn work(&self) -> Work {
        let (reads, writes) = self.access();
        let shared = reads.iter().chain(&writes).map(Region::len).sum::<usize>();
        // The room for the tasks' sums is used in between.
        let room: usize = [self.gradient, self.rate_gradient].into_iter().flatten().map(|[_, room]| room.len()).sum();
        let layers = (0..self.mlp.layers()).map(|layer| self.layer_flop(layer)).sum::<usize>();
        Work::new::<T>(self.tasks * layers, shared - room)
    }
}

impl<T: Scalar> Counted<T> for SupervisedLoss {
    fn work(&self) -> Work {
        let elements = self.prediction.len() + self.target.len() + len(self.delta) + len(self.task_loss);
        Work::new::<T>(0, elements)
    }
}

impl<T: Scalar> Counted<T> for SupervisedCurvature {
    fn work(&self) -> Work {
        let SupervisedLoss { loss, activation, prediction, target, .. } = self.at;
        // A square's second derivative depends on neither; the cross-entropy's on the targets' sum.
        let read = match loss {
            Loss::Mse => slope(activation, prediction.len()),
            Loss::BceWithLogits => prediction.len(),
            Loss::CrossEntropy => prediction.len() + target.len(),
        };
        Work::new::<T>(0, read + self.e_cotangent.len() + written(self.z_cotangent.len(), self.accumulate))
    }
}

impl<T: Scalar> Counted<T> for AdversarialLoss<T> {
    fn work(&self) -> Work {
        let losses = len(self.discriminator_loss) + len(self.generator_loss);
        Work::new::<T>(0, self.logits.len() + self.delta.len() + losses)
    }
}

impl<T: Scalar> Counted<T> for AdversarialCurvature<T> {
    fn work(&self) -> Work {
        let z = written(self.z_cotangent.len(), self.accumulate);
        Work::new::<T>(0, self.at.logits.len() + self.e_cotangent.len() + z)
    }
}

impl<T: Scalar> Counted<T> for PixelLoss<T> {
    fn work(&self) -> Work {
        let read = self.prediction.len() + self.target.len() + self.upstream.len();
        Work::new::<T>(0, read + self.delta.len() + 2 * len(self.task_loss))
    }
}

impl<T: Scalar> Counted<T> for PixelCurvature<T> {
    fn work(&self) -> Work {
        let read = slope(self.at.activation, self.at.prediction.len()) + self.at.upstream.len();
        let z = written(self.z_cotangent.len(), self.accumulate);
        Work::new::<T>(0, read + self.e_cotangent.len() + z)
    }
}

impl<T: Scalar> Counted<T> for GradientCheck {
    fn work(&self) -> Work {
        let gradients: usize = self.gradients.iter().flatten().map(Region::len).sum();
        Work::new::<T>(2 * gradients, self.operands().map(|region| region.len()).sum())
    }
}

impl<T: Scalar> Counted<T> for OuterStep {
    fn work(&self) -> Work {
        match self {
            Self::Sgd { parameters, gradient, .. } => Work::new::<T>(0, 2 * parameters.len() + gradient.len()),
            Self::Adam { parameters, gradient, first, second, .. } => {
                Work::new::<T>(0, 2 * (parameters.len() + first.len() + second.len()) + gradient.len())
            }
        }
    }
}
