use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::scalar::Scalar;
use crate::{Error, Result};

/// What follows a Linear layer, elementwise.
///
/// Derivatives are read off the activation's value `a` rather than off its argument `z`, so that `z` is never stored:
/// each of these functions allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Activation {
    /// `z`
    Linear,
    /// `max(z, 0)`; the derivative at 0 is 0.
    Relu,
    /// `z` above 0, `0.2 z` elsewhere; the derivative at 0 is 0.2.
    LeakyRelu,
    /// Hyperbolic tangent.
    Tanh,
    /// `1 / (1 + exp(-z))`
    Sigmoid,
}

impl Activation {
    const ALL: [(Self, &'static str); 5] = [
        (Self::Linear, "linear"),
        (Self::Relu, "relu"),
        (Self::LeakyRelu, "leaky_relu"),
        (Self::Tanh, "tanh"),
        (Self::Sigmoid, "sigmoid"),
    ];

    /// The value at `z`.
    #[inline(always)]
    pub fn apply<T: Scalar>(self, z: T) -> T {
        match self {
            Self::Linear => z,
            Self::Relu => {
                if z < T::ZERO {
                    T::ZERO
                } else {
                    z
                }
            }
            Self::LeakyRelu => {
                if z > T::ZERO {
                    z
                } else {
                    T::from_f64(0.2) * z
                }
            }
            Self::Tanh => z.tanh(),
            Self::Sigmoid => z.sigmoid(),
        }
    }

    /// The derivative where the value is `a`.
    #[inline(always)]
    pub fn derivative<T: Scalar>(self, a: T) -> T {
        match self {
            Self::Linear => T::ONE,
            Self::Relu => {
                if a > T::ZERO {
                    T::ONE
                } else {
                    T::ZERO
                }
            }
            Self::LeakyRelu => {
                if a > T::ZERO {
                    T::ONE
                } else {
                    T::from_f64(0.2)
                }
            }
            Self::Tanh => T::ONE - a * a,
            Self::Sigmoid => a * (T::ONE - a),
        }
    }

    /// The second derivative divided by the first, where the value is `a`.
    ///
    /// With `delta = e act'` this turns `e act''` into `delta * curvature`: `e` is not stored, nothing is divided.
    #[inline(always)]
    pub fn curvature<T: Scalar>(self, a: T) -> T {
        match self {
            Self::Linear | Self::Relu | Self::LeakyRelu => T::ZERO,
            Self::Tanh => -(a + a),
            Self::Sigmoid => T::ONE - (a + a),
        }
    }

    /// Whether the second derivative is anything but zero.
    pub fn is_curved(self) -> bool {
        matches!(self, Self::Tanh | Self::Sigmoid)
    }

    /// Reads a comma-separated list, such as `relu,relu,tanh`.
    ///
    /// # Errors
    /// An unknown name.
    pub fn parse_list(text: &str) -> Result<Vec<Self>> {
        text.split(',').map(str::parse).collect()
    }
}

impl fmt::Display for Activation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(Self::ALL.iter().find(|(a, _)| a == self).map_or("", |(_, name)| name))
    }
}

impl FromStr for Activation {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let text = text.trim();
        Self::ALL.iter().find(|(_, name)| *name == text).map(|(a, _)| *a).ok_or_else(|| {
            Error::invalid("activation", format!("{text:?}"), Self::ALL.map(|(_, name)| name).join(", "))
        })
    }
}
