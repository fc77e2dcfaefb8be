use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::cost::{self, Cost};
use super::tape::NetworkSpec;
use crate::meta::{InnerConfig, RateKind};
use crate::{Error, Result};

/// How adapted weights are represented in the inner loop. Both give the same numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Strategy {
    /// The shared weights plus a low-rank history of rows; no per-task weight is ever stored.
    Dual,
    /// Every task has a copy of the weights.
    Materialised,
}

impl fmt::Display for Strategy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Dual => "dual",
            Self::Materialised => "materialised",
        })
    }
}

impl FromStr for Strategy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        match text {
            "dual" => Ok(Self::Dual),
            "materialised" => Ok(Self::Materialised),
            _ => Err(Error::invalid("strategy", format!("{text:?}"), "dual or materialised")),
        }
    }
}

/// The dual form keeps a list of all earlier steps for each step: beyond this many the lists alone outgrow everything.
pub const MAX_DUAL_STEPS: usize = 1000;

/// Whether the planner may take that form.
pub fn is_possible(strategy: Strategy, inner: &InnerConfig) -> bool {
    let full_rank = inner.rates == RateKind::PerParameter || !inner.optimizer.keeps_rank();
    strategy == Strategy::Materialised || !(full_rank || inner.steps > MAX_DUAL_STEPS)
}

/// The cheaper form for these networks, by [`Cost::estimate`].
pub fn choose(specs: &[NetworkSpec], inner: &InnerConfig) -> Strategy {
    let estimate = |strategy| cost_of(specs, strategy).estimate();
    let dual = is_possible(Strategy::Dual, inner) && estimate(Strategy::Dual) <= estimate(Strategy::Materialised);
    if dual { Strategy::Dual } else { Strategy::Materialised }
}

/// What a meta-step costs in that form.
pub fn cost_of(specs: &[NetworkSpec], strategy: Strategy) -> Cost {
    specs
        .iter()
        .map(|spec| match strategy {
            Strategy::Dual => cost::dual(spec),
            Strategy::Materialised => cost::materialised(spec),
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
