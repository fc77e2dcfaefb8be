use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// What a GPU rounds the operands of large matrix products to, to the nearest with ties to even, as it multiplies them.
///
/// It is about products with weights that all tasks share and about the meta-gradient's sum over the rows of all tasks.
/// Whatever is stored stays `f32` (weights, activations, gradients, the outer optimizer's state), sums are `f32`, and so is
/// everything else: corrections, losses, biases, and products with a task's own weights.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum MatrixPrecision {
    /// Not rounded: 24 bits, on ordinary cores.
    #[default]
    F32,
    /// 11 bits and the range of `f32`, on tensor cores.
    Tf32,
    /// 8 bits and the range of `f32`, on tensor cores.
    Bf16,
    /// 11 bits, from 6e-8 (with fewer bits below 6.1e-5) to 65504, on tensor cores.
    F16,
}

impl MatrixPrecision {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::F32, Self::Tf32, Self::Bf16, Self::F16];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::Tf32 => "tf32",
            Self::Bf16 => "bf16",
            Self::F16 => "f16",
        }
    }
}

impl fmt::Display for MatrixPrecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for MatrixPrecision {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let found = Self::ALL.into_iter().find(|precision| precision.name() == text);
        found.ok_or_else(|| Error::invalid("precision", format!("{text:?}"), "f32, tf32, bf16 or f16"))
    }
}

#[cfg(test)]
mod tests {
    use super::MatrixPrecision;

    #[test]
    fn reads_what_it_writes_and_refuses_the_rest() {
        for precision in MatrixPrecision::ALL {
            assert_eq!(precision.to_string().parse::<MatrixPrecision>().unwrap(), precision);
        }
        for text in ["f64", "BF16", "fp16", ""] {
            let message = text.parse::<MatrixPrecision>().unwrap_err().to_string();
            assert!(message.contains(&format!("{text:?}")) && message.contains("bf16"), "{message}");
        }
    }
}
