//! Where the weights of a phi that transforms rows lie in one flat array.

use std::ops::Range;

use super::RateKind;
use crate::model::Mlp;

/// Which rows: a gradient's deltas, or the values that it multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Side {
    /// dL/dz, as wide as the layer's outputs.
    Delta,
    /// The layer's inputs.
    Values,
}

impl Side {
    /// Both.
    pub const BOTH: [Self; 2] = [Self::Delta, Self::Values];
}

/// One array of phi's weights.
#[derive(Clone, Debug, PartialEq)]
pub struct PhiTensor {
    /// Its name in files, such as `0.delta.down`.
    pub name: String,
    /// Its shape.
    pub shape: Vec<usize>,
    /// Its elements in the flat array.
    pub range: Range<usize>,
    /// Whether its first dimension counts the inner steps.
    pub per_step: bool,
    /// What its elements begin with.
    pub begins: Beginning,
}

/// What weights begin with.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Beginning {
    Zero,
    One,
    /// Uniform in plus and minus this bound.
    Uniform(f64),
}

/// The arrays of one layer's side; which of them exist depends on the kind.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SideLayout {
    /// A factor for each unit, `[steps, width]`.
    pub factors: Range<usize>,
    /// Network: `[rank, width]`, and its bias `[rank]` (values only).
    pub down: Range<usize>,
    pub down_bias: Option<Range<usize>>,
    /// Network: `[steps, rank]`.
    pub scale: Range<usize>,
    /// Network: `[width, rank]`, and its bias `[width]` (values only).
    pub up: Range<usize>,
    pub up_bias: Option<Range<usize>>,
}

/// The layout of the weights of one network's phi: the factors of all layers, then the networks of all layers; the deltas'
/// side of a layer before the values'.
#[derive(Clone, Debug, PartialEq)]
pub struct PhiLayout {
    tensors: Vec<PhiTensor>,
    sides: Vec<[SideLayout; 2]>,
}

impl PhiLayout {
    /// Nothing for a phi that does not transform rows.
    pub fn new(kind: RateKind, mlp: &Mlp, steps: usize) -> Self {
        let sides = vec![Default::default(); mlp.layers()];
        let mut layout = Self { tensors: Vec::new(), sides };
        let of_layer = |layer: usize| {
            [(Side::Delta, "delta", mlp.widths()[layer + 1]), (Side::Values, "values", mlp.widths()[layer])]
        };
        let all = || (0..mlp.layers()).flat_map(|l| of_layer(l).map(|(side, name, width)| (l, side, name, width)));
        if kind.transforms_rows() {
            for (layer, side, name, width) in all() {
                let shape = [steps, width];
                let factors = layout.add(format!("{layer}.{name}.factors"), &shape, true, Beginning::One);
                layout.sides[layer][side as usize].factors = factors;
            }
        }
        if let RateKind::Network { rank } = kind {
            for (layer, side, name, width) in all() {
                layout.network(layer, side, name, [width, rank, steps]);
            }
        }
        layout
    }

    fn add(&mut self, name: String, shape: &[usize], per_step: bool, begins: Beginning) -> Range<usize> {
        let range = self.len()..self.len() + shape.iter().product::<usize>();
        self.tensors.push(PhiTensor { name, shape: shape.to_vec(), range: range.clone(), per_step, begins });
        range
    }

    fn network(&mut self, layer: usize, side: Side, name: &str, [width, rank, steps]: [usize; 3]) {
        let mut add = |what: &str, shape: &[usize], per_step, begins| {
            self.add(format!("{layer}.{name}.{what}"), shape, per_step, begins)
        };
        let bound = Beginning::Uniform(1.0 / (width as f64).sqrt());
        // The deltas' scale is the loss's: without biases the map of the deltas keeps to any scale.
        let biased = side == Side::Values;
        let down = add("down", &[rank, width], false, bound);
        let down_bias = biased.then(|| add("down_bias", &[rank], false, bound));
        let scale = add("scale", &[steps, rank], true, Beginning::One);
        let up = add("up", &[width, rank], false, Beginning::Zero);
        let up_bias = biased.then(|| add("up_bias", &[width], false, Beginning::Zero));
        let of = &mut self.sides[layer][side as usize];
        *of = SideLayout { factors: of.factors.clone(), down, down_bias, scale, up, up_bias };
    }

    /// Number of weights.
    pub fn len(&self) -> usize {
        self.tensors.last().map_or(0, |tensor| tensor.range.end)
    }

    /// The arrays, in order.
    pub fn tensors(&self) -> &[PhiTensor] {
        &self.tensors
    }

    /// One layer's side.
    pub fn of(&self, layer: usize, side: Side) -> &SideLayout {
        &self.sides[layer][side as usize]
    }
}
