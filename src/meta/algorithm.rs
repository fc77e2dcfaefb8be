use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What is done in the inner loop and what the outer optimizer is given.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Algorithm {
    /// The exact second-order gradient of the query loss through all inner steps (Finn et al. 2017).
    Maml,
    /// The query gradient at the adapted parameters, with the inner gradients held constant (Finn et al. 2017).
    #[serde(rename = "fomaml")]
    FirstOrderMaml,
    /// Only the last layer moves in the inner loop; second order (Raghu et al. 2020).
    Anil,
    /// The mean displacement of the inner loop, negated (Nichol et al. 2018).
    Reptile,
}

impl Algorithm {
    const ALL: [(Self, &'static str); 4] =
        [(Self::Maml, "maml"), (Self::FirstOrderMaml, "fomaml"), (Self::Anil, "anil"), (Self::Reptile, "reptile")];

    /// Whether the gradient passes through the inner steps' own gradients.
    pub fn is_second_order(self) -> bool {
        matches!(self, Self::Maml | Self::Anil)
    }

    /// Whether the query loss is differentiated at all.
    pub fn differentiates_query(self) -> bool {
        self != Self::Reptile
    }
}

impl fmt::Display for Algorithm {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(a, _)| a == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Algorithm {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        Self::ALL
            .iter()
            .find(|(_, name)| *name == text.trim())
            .map(|(a, _)| *a)
            .ok_or_else(|| Error::invalid("algorithm", format!("{text:?}"), Self::ALL.map(|(_, name)| name).join(", ")))
    }
}
