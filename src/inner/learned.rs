//! Rates that are learned on the device: nothing of a meta-step then waits for the host.

use super::coefficients::Rule;
use super::tape::NetworkSpec;
use crate::Scalar;
use crate::device::{ArenaPlan, Device, InnerRates, Region};
use crate::meta::{RateKind, rate_count};

/// Where the rates of one network lie, in phi's layout, and their gradient.
#[derive(Clone, Copy, Debug)]
pub struct Learned {
    pub rates: Region,
    pub gradient: Region,
}

impl Learned {
    /// Room for them.
    pub fn new(plan: &mut ArenaPlan, spec: &NetworkSpec) -> Self {
        let count = rate_count(spec.rates, &spec.mlp, spec.steps);
        Self { rates: plan.take(1, count), gradient: plan.take(1, count) }
    }

    /// The values of the bias's column, or their gradient, if there are any, and what comes before them.
    pub fn parts(spec: &NetworkSpec, flat: Region) -> (Region, Option<Region>) {
        if !spec.rates.transforms_rows() {
            return (flat, None);
        }
        let count = spec.steps * spec.layers();
        (flat.elements(0, count), Some(flat.elements(count, count)))
    }

    /// As the dual form takes them.
    pub(super) fn inner_rates(&self, spec: &NetworkSpec, rule: Rule, query_weights: Option<Region>) -> InnerRates {
        let (rates, bias) = Self::parts(spec, self.rates);
        let Rule { momentum, decay } = rule;
        InnerRates { steps: spec.steps, layers: spec.layers(), momentum, decay, rates, bias, query_weights }
    }

    /// Sums the gradients of all steps and layers to that of a single rate, if it is one; else they are where they are to be.
    pub fn gather_gradient<T: Scalar, D: Device<T>>(
        &self,
        spec: &NetworkSpec,
        device: &D,
        arena: &mut D::Arena,
        all: Region,
    ) {
        if Self::is_single(spec) {
            device.sum_rows(arena, Self::by_ones(all), T::ONE, self.gradient, false);
        }
    }

    /// As rows of one number.
    pub fn by_ones(region: Region) -> Region {
        Region { rows: region.len(), width: 1, ..region }
    }

    /// Whether there is one rate for all steps and layers.
    pub fn is_single(spec: &NetworkSpec) -> bool {
        spec.rates == RateKind::Shared
    }
}
