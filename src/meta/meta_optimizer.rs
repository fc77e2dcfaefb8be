use serde::{Deserialize, Serialize};

use crate::inner::Rates;
use crate::model::Mlp;
use crate::{Error, Result, Scalar};

/// What the inner learning rates are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RateKind {
    /// One number for all layers and steps.
    Shared,
    /// `[steps, layers]` (LSLR, Antoniou et al. 2019).
    PerLayerPerStep,
    /// One for each parameter (Meta-SGD, Li et al. 2017).
    PerParameter,
}

/// The meta-optimizer's parameters phi for one network: its inner learning rates.
#[derive(Clone, Debug, PartialEq)]
pub struct MetaOptimizer<T> {
    kind: RateKind,
    layers: usize,
    values: Vec<T>,
}

impl<T: Scalar> MetaOptimizer<T> {
    /// Every rate equal to `rate`.
    ///
    /// # Errors
    /// A rate that is not finite.
    pub fn uniform(kind: RateKind, mlp: &Mlp, steps: usize, rate: f64) -> Result<Self> {
        Self::from_values(kind, mlp, steps, vec![T::from_f64(rate); Self::count(kind, mlp, steps)])
    }

    /// From the values, in the order of the kind: one; `[steps, layers]`; or the network's flat layout.
    ///
    /// # Errors
    /// Another number of values than the kind has, or one that is not finite.
    pub fn from_values(kind: RateKind, mlp: &Mlp, steps: usize, values: Vec<T>) -> Result<Self> {
        let count = Self::count(kind, mlp, steps);
        if values.len() != count {
            let expected = format!("{count} for {steps} steps of {} layers", mlp.layers());
            return Err(Error::invalid("rates", format!("{} values", values.len()), expected));
        }
        if let Some(value) = values.iter().find(|v| !v.is_finite()) {
            return Err(Error::invalid("rates", value.to_string(), "finite numbers"));
        }
        Ok(Self { kind, layers: mlp.layers(), values })
    }

    fn count(kind: RateKind, mlp: &Mlp, steps: usize) -> usize {
        match kind {
            RateKind::Shared => 1,
            RateKind::PerLayerPerStep => steps * mlp.layers(),
            RateKind::PerParameter => mlp.parameter_count(),
        }
    }

    /// What the rates are.
    pub fn kind(&self) -> RateKind {
        self.kind
    }

    /// The rates.
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// The rates, to change.
    pub fn values_mut(&mut self) -> &mut [T] {
        &mut self.values
    }

    /// The same phi for another number of steps: steps beyond those it was learned for use the last one's rates.
    #[must_use]
    pub fn with_steps(&self, steps: usize) -> Self {
        let mut values = self.values.clone();
        if self.kind == RateKind::PerLayerPerStep && !values.is_empty() {
            let last = values[values.len() - self.layers..].to_vec();
            values.truncate(steps * self.layers);
            while values.len() < steps * self.layers {
                values.extend_from_slice(&last);
            }
        }
        Self { values, ..self.clone() }
    }

    /// The rates as the inner loop takes them.
    pub(crate) fn expand(&self, steps: usize, into: &mut Rates<T>) {
        match (self.kind, into) {
            (RateKind::PerParameter, Rates::PerParameter(out)) => out.clone_from(&self.values),
            (RateKind::Shared, Rates::PerLayerPerStep(out)) => {
                out.clear();
                out.resize(steps * self.layers, self.values[0]);
            }
            (_, Rates::PerLayerPerStep(out)) => out.clone_from(&self.values),
            (_, Rates::PerParameter(_)) => unreachable!("the kind of rates is fixed when the learner is made"),
        }
    }

    /// The inner loop's gradient in phi's own layout.
    pub(crate) fn reduce(&self, gradient: &[T], into: &mut [T]) {
        match self.kind {
            RateKind::Shared => into[0] = gradient.iter().copied().sum(),
            _ => into.copy_from_slice(gradient),
        }
    }
}
