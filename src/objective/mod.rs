//! What is minimised: supervised losses and the video GAN's.

mod loss;

pub use loss::Loss;

use std::fmt;

use serde::{Deserialize, Serialize};

/// The weights of the terms of the generator's loss. With `v = G(z) - x`:
///
/// ```text
/// adversarial * mean softplus(-D(G(z))) + reconstruction * mean v^2 + motion * mean (d_t v)^2
///     + texture * (mean (d_x v)^2 + mean (d_y v)^2)
/// ```
///
/// where d_t is the difference of successive frames, and d_x and d_y those of neighbouring pixels of a frame, side by side
/// and one above the other, each channel by itself. A mean over no differences at all is 0.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct VideoWeights {
    /// Of the adversarial term.
    pub adversarial: f64,
    /// Of the mean squared error of the pixels.
    pub reconstruction: f64,
    /// Of the mean squared error of the differences of successive frames.
    pub motion: f64,
    /// Of the mean squared error of the spatial gradients.
    #[serde(default)]
    pub texture: f64,
}

/// How the values of a frame lie: row by row, the channels of a pixel side by side.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FrameShape {
    /// Height in pixels.
    pub height: usize,
    /// Width in pixels.
    pub width: usize,
    /// Values a pixel.
    pub channels: usize,
}

impl FrameShape {
    /// Values in a frame; none when there are more than can be counted.
    pub fn values(&self) -> Option<usize> {
        self.height.checked_mul(self.width)?.checked_mul(self.channels)
    }
}

impl fmt::Display for FrameShape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}", self.height, self.width, self.channels)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_from_before_the_texture_term_are_read() {
        let old = r#"{"adversarial":0.5,"reconstruction":1.0,"motion":0.25}"#;
        let weights = VideoWeights { adversarial: 0.5, reconstruction: 1.0, motion: 0.25, texture: 0.0 };
        assert_eq!(serde_json::from_str::<VideoWeights>(old).unwrap(), weights);
    }
}
