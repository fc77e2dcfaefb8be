use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::cost::{self, Cost};
use super::tape::NetworkSpec;
use super::{folded_layer, resident};
use crate::device::{CostFactors, Device};
use crate::meta::{InnerConfig, RateKind};
use crate::{Error, Result, Scalar};

/// How adapted weights are represented in the inner loop. All give the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The shared weights plus a low-rank history of rows; no per-task weight is ever stored.
    Dual,
    /// Every task has a copy of the weights.
    Materialised,
    /// Every task has a copy of everything, and stays near the processor from the first step to the last of the way back; for
    /// small networks.
    Resident,
    /// The dual form, and of a linear last layer under a mean square nothing as wide as its output but the first step's rows and the query's; for
    /// exact MAML with outputs wider than the layer before.
    Folded,
}

impl Strategy {
    /// Every form, in the order of their discriminants.
    pub const ALL: [Self; 4] = [Self::Dual, Self::Materialised, Self::Resident, Self::Folded];
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dual => "dual",
            Self::Materialised => "materialised",
            Self::Resident => "resident",
            Self::Folded => "folded",
        })
    }
}

impl FromStr for Strategy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "dual" => Ok(Self::Dual),
            "materialised" => Ok(Self::Materialised),
            "resident" => Ok(Self::Resident),
            "folded" => Ok(Self::Folded),
            _ => Err(Error::invalid("strategy", format!("{text:?}"), "dual, materialised, resident or folded")),
        }
    }
}

/// The dual form keeps a list of all earlier steps for each step: beyond this many the lists alone outgrow everything.
pub const MAX_DUAL_STEPS: usize = 1000;

/// What a device can do for the resident form.
#[derive(Clone, Copy, Debug)]
pub struct Nearby {
    /// Bytes a task may take.
    pub bytes: usize,
    /// Tasks that take as long as one.
    pub tasks: usize,
    /// Processors that work at once.
    pub processors: usize,
    /// How long each kind of work takes it.
    pub factors: CostFactors,
}

impl Nearby {
    /// Of a device, for these networks.
    pub fn of<T: Scalar, D: Device<T>>(device: &D, specs: &[NetworkSpec]) -> Self {
        let mut factors = device.cost_factors();
        factors.resident *= device.resident_share(&resident::outline(&specs[0]));
        Self { bytes: device.resident_bytes(), tasks: device.resident_tasks(), processors: device.lanes(), factors }
    }

    /// How much longer the resident form takes than one whose tasks fill the device, because there are too few for that.
    fn idle(&self, tasks: usize) -> f64 {
        let rounds = tasks.div_ceil(self.tasks).div_ceil(self.processors);
        let at_once = self.factors.resident_at_once;
        let places = tasks.next_multiple_of(at_once) as f64 / tasks as f64;
        (rounds * self.tasks * self.processors.min(tasks)) as f64 / tasks as f64 * places
    }
}

/// Whether the planner may take that form.
pub fn is_possible<T: Scalar>(strategy: Strategy, specs: &[NetworkSpec], inner: &InnerConfig, nearby: &Nearby) -> bool {
    let full_rank = inner.rates == RateKind::PerParameter || !inner.optimizer.keeps_rank();
    match strategy {
        Strategy::Dual => !(full_rank || inner.steps > MAX_DUAL_STEPS),
        Strategy::Materialised => true,
        Strategy::Resident => resident::check::<T>(specs, inner, nearby).is_ok(),
        Strategy::Folded => folded_layer::check(specs, inner).is_ok(),
    }
}

/// The cheapest form for these networks, by [`Cost::estimate`].
pub fn choose<T: Scalar>(specs: &[NetworkSpec], inner: &InnerConfig, nearby: &Nearby) -> Strategy {
    let of = |strategy: Strategy| {
        if !is_possible::<T>(strategy, specs, inner, nearby) {
            return f64::INFINITY;
        }
        estimate(&cost_of(specs, strategy), strategy, specs[0].tasks, nearby)
    };
    let cheaper = |best, other| if of(other) < of(best) { other } else { best };
    Strategy::ALL.into_iter().reduce(cheaper).unwrap_or(Strategy::Materialised)
}

/// What the planner compares: [`Cost::estimate`], and what stands idle in the resident form.
pub fn estimate(cost: &Cost, strategy: Strategy, tasks: usize, nearby: &Nearby) -> f64 {
    let idle = if strategy == Strategy::Resident { nearby.idle(tasks) } else { 1.0 };
    Cost { operations: 0.0, ..*cost }.estimate(&nearby.factors) * idle + cost.operations * nearby.factors.operation
}

/// What a meta-step costs in that form.
pub fn cost_of(specs: &[NetworkSpec], strategy: Strategy) -> Cost {
    specs
        .iter()
        .map(|spec| match strategy {
            Strategy::Dual => cost::dual(spec),
            Strategy::Materialised => cost::materialised(spec),
            Strategy::Resident => cost::resident(spec),
            Strategy::Folded => cost::folded(spec),
        })
        .fold(Cost::default(), std::ops::Add::add)
}

/// How many lanes the tasks are spread over: as many as can run at once when an operation over all tasks is too short to
/// be worth waking threads for, otherwise one.
pub fn lanes(specs: &[NetworkSpec], available: usize) -> usize {
    /// Flop of an operation that takes about as long as waking the threads a hundred times.
    const SMALL: usize = 8_000_000;
    let flop = |s: &NetworkSpec| {
        let rows = s.tasks * s.support_rows.max(s.query_rows) * s.forward_blocks;
        2 * rows * s.mlp.weight_count() / s.mlp.layers()
    };
    let tasks = specs.iter().map(|s| s.tasks).min().unwrap_or(1);
    if specs.iter().any(|s| flop(s) > SMALL) { 1 } else { available.min(tasks) }
}
