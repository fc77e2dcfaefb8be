use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::meta::{InnerConfig, RateKind, Shape};
use crate::model::Mlp;
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

/// The cheaper form for these networks.
pub fn choose(mlps: &[Mlp], inner: &InnerConfig, shape: &Shape) -> Strategy {
    if inner.rates == RateKind::PerParameter {
        return Strategy::Materialised;
    }
    let _ = (mlps, shape);
    Strategy::Dual
}

/// How many lanes the tasks are spread over.
pub fn lanes(mlps: &[Mlp], inner: &InnerConfig, shape: &Shape, available: usize) -> usize {
    const SMALL: usize = 8_000_000;
    let rows = shape.tasks * inner.minibatch.unwrap_or(shape.shots).max(shape.queries);
    let largest = mlps.iter().map(|m| 2 * rows * m.weight_count() / m.layers()).max().unwrap_or(0);
    if largest > SMALL { 1 } else { available.min(shape.tasks) }
}
