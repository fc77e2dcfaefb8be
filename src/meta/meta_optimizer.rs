use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::phi_layout::{Beginning, PhiLayout};
use crate::inner::Rates;
use crate::model::Mlp;
use crate::{Error, Result, Scalar};

/// What phi is: the inner learning rates, and what becomes of a gradient before it is descended.
///
/// A layer's gradient is `delta^T [a, 1]`. The kinds that transform rows keep its rank: they descend
/// `delta'^T [a', b]` with a rate and a value b of the bias's column for each layer and step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateKind {
    /// One number for all layers and steps.
    Shared,
    /// `[steps, layers]` (LSLR, Antoniou et al. 2019).
    PerLayerPerStep,
    /// One for each parameter (Meta-SGD, Li et al. 2017).
    PerParameter,
    /// A rate for each output unit times one for each input unit, by layer and step: `delta' = delta diag(r)`,
    /// `a' = a diag(c)`, and b is the bias's c (the diagonal case of Park & Oliva 2019, Meta-Curvature).
    RowColumn,
    /// The factors of [`RateKind::RowColumn`] and a small residual network on the rows of each side, by layer (after Mitchell
    /// et al. 2022, MEND): `x' = factors * x + leaky_relu(scale * (x down^T + down_bias)) up^T + up_bias`, with factors and
    /// scales for each step, and biases on the values' side only, so that the map of the deltas is positively homogeneous. It
    /// begins as the identity: `up` begins with zero.
    Network {
        /// Hidden units.
        rank: usize,
    },
}

impl RateKind {
    /// Whether rows are transformed before they are descended.
    pub fn transforms_rows(self) -> bool {
        matches!(self, Self::RowColumn | Self::Network { .. })
    }
}

/// The meta-optimizer's parameters phi for one network.
#[derive(Clone, Debug, PartialEq)]
pub struct MetaOptimizer<T> {
    kind: RateKind,
    mlp: Mlp,
    steps: usize,
    /// The rates, then the weights of a kind that transforms rows.
    values: Vec<T>,
}

impl<T: Scalar> MetaOptimizer<T> {
    /// Every rate equal to `rate`; row-column rates begin with factors of one.
    ///
    /// # Errors
    /// A rate that is not finite, or a network: its weights are drawn, see [`MetaOptimizer::initialise`].
    pub fn uniform(kind: RateKind, mlp: &Mlp, steps: usize, rate: f64) -> Result<Self> {
        if let RateKind::Network { .. } = kind {
            return Err(Error::invalid("meta-optimizer", "a network with uniform weights", "one that is initialised"));
        }
        Self::begin(kind, mlp, steps, rate, |_| 0.0)
    }

    /// As training begins: every rate equal to `rate`, the weights of a network drawn so that it is the identity.
    ///
    /// # Errors
    /// A rate that is not finite, or a rank of 0.
    pub fn initialise(kind: RateKind, mlp: &Mlp, steps: usize, rate: f64, rng: &mut impl Rng) -> Result<Self> {
        Self::begin(kind, mlp, steps, rate, |bound| rng.random_range(-bound..bound))
    }

    fn begin(kind: RateKind, mlp: &Mlp, steps: usize, rate: f64, mut draw: impl FnMut(f64) -> f64) -> Result<Self> {
        let mut values = vec![T::from_f64(rate); rate_count(kind, mlp, steps)];
        if kind.transforms_rows() {
            let bias = values.len() / 2..;
            values[bias].fill(T::ONE);
        }
        for tensor in PhiLayout::new(kind, mlp, steps).tensors() {
            values.extend(tensor.range.clone().map(|_| match tensor.begins {
                Beginning::Zero => T::ZERO,
                Beginning::One => T::ONE,
                Beginning::Uniform(bound) => T::from_f64(draw(bound)),
            }));
        }
        Self::from_values(kind, mlp, steps, values)
    }

    /// From the values, in the order of the kind: one; `[steps, layers]`; the network's flat layout; or, where rows are
    /// transformed, the rates `[steps, layers]`, the values of the bias's column `[steps, layers]` and the weights: layer by
    /// layer, the deltas' side before the values', `factors` `[steps, width]`; then of a network, in the same order, `down`,
    /// `down_bias`, `scale`, `up` and `up_bias`.
    ///
    /// # Errors
    /// Another number of values than the kind has, or one that is not finite.
    pub fn from_values(kind: RateKind, mlp: &Mlp, steps: usize, values: Vec<T>) -> Result<Self> {
        if kind == (RateKind::Network { rank: 0 }) {
            return Err(Error::invalid("meta-optimizer", "a network of rank 0", "a rank of at least 1"));
        }
        let count = rate_count(kind, mlp, steps) + PhiLayout::new(kind, mlp, steps).len();
        if values.len() != count {
            let expected = format!("{count} for {steps} steps of {} layers", mlp.layers());
            return Err(Error::invalid("rates", format!("{} values", values.len()), expected));
        }
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            return Err(Error::invalid("rates", value.to_string(), "finite numbers"));
        }
        Ok(Self { kind, mlp: mlp.clone(), steps, values })
    }

    /// What phi is.
    pub fn kind(&self) -> RateKind {
        self.kind
    }

    /// The shape of [`MetaOptimizer::values`] in files.
    pub(crate) fn shape(&self) -> Vec<usize> {
        match self.kind {
            RateKind::PerLayerPerStep => vec![self.steps, self.mlp.layers()],
            _ => vec![self.values.len()],
        }
    }

    /// All of it, in the order of [`MetaOptimizer::from_values`].
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// All of it, to change.
    pub fn values_mut(&mut self) -> &mut [T] {
        &mut self.values
    }

    /// How many of the values are rates, which are positive and trained in their logarithm; the others are weights.
    pub(crate) fn rate_count(&self) -> usize {
        rate_count(self.kind, &self.mlp, self.steps)
    }

    /// How many of the weights are factors of units; they come first.
    pub(crate) fn factor_count(&self) -> usize {
        if !self.kind.transforms_rows() {
            return 0;
        }
        let widths = self.mlp.widths();
        self.steps * widths.windows(2).map(|pair| pair[0] + pair[1]).sum::<usize>()
    }

    /// The rates alone.
    pub(crate) fn rates(&self) -> &[T] {
        &self.values[..self.rate_count()]
    }

    /// The rates alone, to change.
    pub(crate) fn rates_mut(&mut self) -> &mut [T] {
        let count = self.rate_count();
        &mut self.values[..count]
    }

    /// What follows the rates: the weights of a kind that transforms rows.
    pub(crate) fn weights(&self) -> &[T] {
        &self.values[self.rate_count()..]
    }

    /// The weights, to change.
    pub(crate) fn weights_mut(&mut self) -> &mut [T] {
        let count = self.rate_count();
        &mut self.values[count..]
    }

    /// The same phi for another number of steps: steps beyond those it was learned for do as the last one.
    #[must_use]
    pub fn with_steps(&self, steps: usize) -> Self {
        let (from, layers) = (self.steps, self.mlp.layers());
        let mut values = Vec::new();
        let rates = &self.values[..self.rate_count()];
        match self.kind {
            RateKind::Shared | RateKind::PerParameter => values.extend_from_slice(rates),
            _ => rates.chunks(from.max(1) * layers).for_each(|part| per_step(&mut values, part, from, steps)),
        }
        let weights = self.weights();
        for tensor in PhiLayout::new(self.kind, &self.mlp, from).tensors() {
            let part = &weights[tensor.range.clone()];
            if tensor.per_step { per_step(&mut values, part, from, steps) } else { values.extend_from_slice(part) }
        }
        Self { values, steps, ..self.clone() }
    }

    /// The rates as the inner loop takes them.
    pub(crate) fn expand(&self, into: &mut Rates<T>) {
        let count = self.steps * self.mlp.layers();
        match (self.kind, into) {
            (RateKind::PerParameter, Rates::PerParameter(out)) => out.clone_from(&self.values),
            (kind, Rates::PerLayerPerStep { rates, bias }) => {
                rates.clear();
                bias.clear();
                if kind == RateKind::Shared {
                    rates.resize(count, self.values[0]);
                } else {
                    rates.extend_from_slice(&self.values[..count]);
                }
                if kind.transforms_rows() {
                    bias.extend_from_slice(&self.values[count..2 * count]);
                } else {
                    bias.resize(count, T::ONE);
                }
            }
            (_, Rates::PerParameter(_) | Rates::Learned) => {
                unreachable!("the kind of rates is fixed when the learner is made")
            }
        }
    }

    /// The inner loop's gradient of the rates in phi's own layout.
    pub(crate) fn reduce(&self, gradient: &[T], into: &mut [T]) {
        match self.kind {
            RateKind::Shared => into[0] = gradient.iter().copied().sum(),
            _ => into.copy_from_slice(gradient),
        }
    }
}

/// How many rates the kind has.
pub(crate) fn rate_count(kind: RateKind, mlp: &Mlp, steps: usize) -> usize {
    match kind {
        RateKind::Shared => 1,
        RateKind::PerLayerPerStep => steps * mlp.layers(),
        RateKind::PerParameter => mlp.parameter_count(),
        RateKind::RowColumn | RateKind::Network { .. } => 2 * steps * mlp.layers(),
    }
}

/// Appends the steps of `part`, `[from, .]`, to `values`: the first `to`, or all of them and the last one over again.
fn per_step<T: Scalar>(values: &mut Vec<T>, part: &[T], from: usize, to: usize) {
    if from == 0 {
        return;
    }
    let width = part.len() / from;
    for step in 0..to {
        let step = step.min(from - 1);
        values.extend_from_slice(&part[step * width..(step + 1) * width]);
    }
}
