//! What is minimised: supervised losses and the video GAN's.

mod loss;

pub use loss::Loss;

use serde::{Deserialize, Serialize};

/// The weights of the terms of the generator's loss:
/// `adversarial * mean softplus(-D(G(z))) + reconstruction * mean (G(z) - x)^2 + motion * mean (dG(z) - dx)^2`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct VideoWeights {
    /// Of the adversarial term.
    pub adversarial: f64,
    /// Of the mean squared error of the pixels.
    pub reconstruction: f64,
    /// Of the mean squared error of the differences of successive frames.
    pub motion: f64,
}
