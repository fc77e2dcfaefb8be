use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// A supervised loss, a mean for each task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Loss {
    /// Mean over rows and outputs of `(p - y)^2`.
    Mse,
    /// Mean over rows and outputs of the binary cross-entropy, from logits.
    BceWithLogits,
    /// Mean over rows of the cross-entropy of the softmax, from logits; targets are probabilities (one-hot, say).
    CrossEntropy,
}

impl Loss {
    const ALL: [(Self, &'static str); 3] =
        [(Self::Mse, "mse"), (Self::BceWithLogits, "bce_with_logits"), (Self::CrossEntropy, "cross_entropy")];
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(l, _)| l == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Loss {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .iter()
            .find(|(_, name)| *name == text.trim())
            .map(|(l, _)| *l)
            .ok_or_else(|| Error::invalid("loss", format!("{text:?}"), Self::ALL.map(|(_, name)| name).join(", ")))
    }
}
