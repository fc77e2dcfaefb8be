//! What a clip is: its shape and its values.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The most values a clip may have: 64 Mi (256 MiB as f32), far beyond what a multilayer perceptron can generate.
const MAX_VALUES: usize = 1 << 26;

/// The shape of a clip: F frames of H x W pixels with C channels.
///
/// Written and parsed as `FxHxWxC`, e.g. `8x16x16x1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "Unchecked")]
pub struct ClipFormat {
    /// Frames in a clip, F, at least 1.
    pub frames: usize,
    /// Height of a frame in pixels, H, at least 1.
    pub height: usize,
    /// Width of a frame in pixels, W, at least 1.
    pub width: usize,
    /// Values a pixel, C: 1 (gray) or 3 (RGB).
    pub channels: usize,
}

#[derive(Deserialize)]
struct Unchecked {
    frames: usize,
    height: usize,
    width: usize,
    channels: usize,
}

impl TryFrom<Unchecked> for ClipFormat {
    type Error = Error;

    fn try_from(raw: Unchecked) -> Result<Self> {
        Self::new(raw.frames, raw.height, raw.width, raw.channels)
    }
}

impl ClipFormat {
    /// A checked format.
    ///
    /// # Errors
    /// If an extent is 0, if `channels` is neither 1 nor 3, or if a clip would have more than 67,108,864 values.
    pub fn new(frames: usize, height: usize, width: usize, channels: usize) -> Result<Self> {
        let format = Self { frames, height, width, channels };
        format.validate()?;
        Ok(format)
    }

    /// Checks what [`ClipFormat::new`] checks, for a format put together field by field.
    ///
    /// # Errors
    /// As [`ClipFormat::new`].
    pub fn validate(&self) -> Result<()> {
        for (field, extent) in [("frames", self.frames), ("height", self.height), ("width", self.width)] {
            if extent == 0 {
                return Err(Error::invalid(field, "is 0", "at least 1"));
            }
        }
        if !matches!(self.channels, 1 | 3) {
            return Err(Error::invalid("channels", format!("is {}", self.channels), "1 (gray) or 3 (RGB)"));
        }
        let values = [self.height, self.width, self.channels]
            .iter()
            .try_fold(self.frames, |product, &extent| product.checked_mul(extent));
        match values {
            Some(values) if values <= MAX_VALUES => Ok(()),
            _ => Err(Error::invalid("clip format", format!("{self} is too large"), "at most 67108864 values a clip")),
        }
    }

    /// Values in a frame: H*W*C.
    pub fn frame_values(&self) -> usize {
        self.height * self.width * self.channels
    }

    /// Values in a clip: F*H*W*C.
    pub fn values(&self) -> usize {
        self.frames * self.frame_values()
    }
}

impl fmt::Display for ClipFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}x{}x{}x{}", self.frames, self.height, self.width, self.channels)
    }
}

impl FromStr for ClipFormat {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let extents: Option<Vec<usize>> = text.split('x').map(|part| part.trim().parse().ok()).collect();
        match extents.as_deref() {
            Some(&[frames, height, width, channels]) => Self::new(frames, height, width, channels),
            _ => {
                Err(Error::invalid("clip format", format!("{text:?}"), "FRAMESxHEIGHTxWIDTHxCHANNELS, e.g. 8x16x16x1"))
            }
        }
    }
}

/// A clip and its shape.
#[derive(Clone, Debug, PartialEq)]
pub struct Clip {
    /// The clip's shape.
    pub format: ClipFormat,
    /// F*H*W*C values in [-1, 1].
    pub values: Vec<f32>,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_round_trip_and_are_checked() {
        let format = ClipFormat::new(8, 16, 24, 3).unwrap();
        assert_eq!(format.values(), 8 * 16 * 24 * 3);
        assert_eq!(format.to_string().parse::<ClipFormat>().unwrap(), format);
        let json = serde_json::to_string(&format).unwrap();
        assert_eq!(serde_json::from_str::<ClipFormat>(&json).unwrap(), format);
        assert!(serde_json::from_str::<ClipFormat>(&json.replace(":3", ":2")).is_err());
        for bad in ["", "8x16x16", "8x16x16x2", "0x16x16x1", "8x0x16x1", "8x16x0x1", "8x16x16x1x1", "ax1x1x1"] {
            assert!(bad.parse::<ClipFormat>().is_err(), "{bad}");
        }
        assert!(ClipFormat::new(usize::MAX, usize::MAX, 2, 3).is_err());
        assert!(ClipFormat::new(1 << 20, 64, 2, 1).is_err());
    }
}
