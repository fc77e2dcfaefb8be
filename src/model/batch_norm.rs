use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// Batch normalisation of a layer over the rows of one task (Ioffe & Szegedy 2015, as in the code of Finn et al. 2017).
///
/// With `u = a W^T`, mean and biased variance of each column over the rows of a pass (the support rows of an inner step, or
/// the query rows: the latter see each other), the layer is `a' = act((u - mean) / sqrt(variance + epsilon) + b)`. There is no
/// factor, and there are no running averages. `b`, the layer's bias, is meta-learned; the inner loop leaves it as it is, as it
/// does in that code.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "f64", into = "f64")]
pub struct BatchNorm {
    epsilon: f64,
}

/// Never NaN.
impl Eq for BatchNorm {}

impl BatchNorm {
    /// The smallest epsilon whose root's inverse leaves single precision room for a column that does not vary.
    const SMALLEST_EPSILON: f64 = 1e-12;

    /// With `epsilon` added to the variance, in squared units of `u`.
    ///
    /// # Errors
    /// An epsilon below 1e-12, or not finite.
    pub fn new(epsilon: f64) -> Result<Self> {
        if !(epsilon.is_finite() && epsilon >= Self::SMALLEST_EPSILON) {
            let expected = format!("a finite number of {:e} or above", Self::SMALLEST_EPSILON);
            return Err(Error::invalid("epsilon of the batch normalisation", epsilon.to_string(), expected));
        }
        Ok(Self { epsilon })
    }

    /// What is added to the variance.
    pub fn epsilon(self) -> f64 {
        self.epsilon
    }
}

impl Default for BatchNorm {
    /// An epsilon of 0.001, as in the code of Finn et al. (2017).
    fn default() -> Self {
        Self { epsilon: 1e-3 }
    }
}

impl TryFrom<f64> for BatchNorm {
    type Error = Error;
    fn try_from(epsilon: f64) -> Result<Self> {
        Self::new(epsilon)
    }
}

impl From<BatchNorm> for f64 {
    fn from(norm: BatchNorm) -> Self {
        norm.epsilon
    }
}
