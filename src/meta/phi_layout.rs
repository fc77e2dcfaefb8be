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
    /// Row-column rates: a factor for each unit, `[steps, width]`.
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

/// The layout of the weights of one network's phi, layer by layer, the deltas' side before the values'.
#[derive(Clone, Debug, PartialEq)]
pub struct PhiLayout {
    tensors: Vec<PhiTensor>,
    sides: Vec<[SideLayout; 2]>,
}

impl PhiLayout {
    /// Nothing for a phi that does not transform rows.
    pub fn new(kind: RateKind, mlp: &Mlp, steps: usize) -> Self {
        let mut layout = Self { tensors: Vec::new(), sides: Vec::new() };
        for layer in 0..mlp.layers() {
            let widths = [mlp.widths()[layer + 1], mlp.widths()[layer]];
            let sides = [(Side::Delta, "delta"), (Side::Values, "values")];
            let of = |(width, (side, name)): (usize, (Side, &str))| {
                layout.side(kind, &format!("{layer}.{name}"), side, width, steps)
            };
            let mut both = widths.into_iter().zip(sides).map(of);
            let both = [both.next().unwrap_or_default(), both.next().unwrap_or_default()];
            layout.sides.push(both);
        }
        layout
    }

    fn side(&mut self, kind: RateKind, name: &str, side: Side, width: usize, steps: usize) -> SideLayout {
        let mut add = |what: &str, shape: &[usize], per_step, begins| {
            let start = self.len();
            let range = start..start + shape.iter().product::<usize>();
            let name = format!("{name}.{what}");
            self.tensors.push(PhiTensor { name, shape: shape.to_vec(), range: range.clone(), per_step, begins });
            range
        };
        match kind {
            RateKind::Shared | RateKind::PerLayerPerStep | RateKind::PerParameter => SideLayout::default(),
            RateKind::RowColumn => {
                SideLayout { factors: add("factors", &[steps, width], true, Beginning::One), ..SideLayout::default() }
            }
            RateKind::Network { rank } => {
                let bound = Beginning::Uniform(1.0 / (width as f64).sqrt());
                // The deltas' scale is the loss's: without biases the map of the deltas keeps to any scale.
                let biased = side == Side::Values;
                SideLayout {
                    down: add("down", &[rank, width], false, bound),
                    down_bias: biased.then(|| add("down_bias", &[rank], false, bound)),
                    scale: add("scale", &[steps, rank], true, Beginning::One),
                    up: add("up", &[width, rank], false, Beginning::Zero),
                    up_bias: biased.then(|| add("up_bias", &[width], false, Beginning::Zero)),
                    ..SideLayout::default()
                }
            }
        }
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
