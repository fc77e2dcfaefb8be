//! What the generator is told of the clip it should make.

mod audio;
mod beside;
mod labels;
mod text;

use std::path::Path;

use serde::{Deserialize, Serialize};

pub use labels::Labels;

pub(super) use beside::files_beside;

use crate::video::{ClipFormat, read_vector, shrink_to_gray};
use crate::{Error, Result};

/// What the generator is told of the clip it should make: the kind, and what its values are made by.
///
/// A label belongs to a task; a vector, a text and a sound are read from a file beside the clip: for `walk.gif`, or a folder of
/// pictures `walk`, from `walk.npy`, `walk.txt` or `walk.wav`. Where the clip itself is `walk.npy`, its vector is
/// `walk.condition.npy`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Condition {
    /// Nothing.
    #[default]
    None,
    /// The clip's first frame in gray, shrunk to `height` x `width` by area averaging; values in [-1, 1].
    FirstFrame {
        /// Height in pixels, at least 1.
        height: usize,
        /// Width in pixels, at least 1.
        width: usize,
    },
    /// The label of the clip's task, one-hot: a value for each label, 1 for the task's own, 0 for the others.
    Label(Labels),
    /// The values of a NumPy array beside the clip, in C order: an embedding made elsewhere.
    Vector {
        /// How many values, at least 1.
        width: usize,
    },
    /// A text beside the clip, as a hashed bag of its character n-grams (Weinberger et al. 2009).
    ///
    /// The text in lower case, runs of white space made one space, a space in front and behind. Each run of 3, 4 or 5 of its
    /// characters adds +1 or -1 to one of `width` values, which are then divided by their Euclidean norm. Which value and which
    /// sign follows from h, the run's UTF-8 bytes hashed by 64-bit FNV-1a and then by the output function of SplitMix64: its top
    /// bit is the sign (1 is minus), its other 63 bits modulo `width` the place.
    Text {
        /// How many values, at least 1.
        width: usize,
    },
    /// A sound beside the clip, a WAV file (PCM of 8, 16, 24 or 32 bits, or 32-bit float), as log-mel features: `bands` values
    /// for each of `segments` equal parts of the sound.
    ///
    /// Channels are averaged; windows of 25 ms (Hann) every 10 ms; the power spectrum through `bands` triangles, equally spaced
    /// between 0 and 8000 Hz on the mel scale `2595 log10(1 + f / 700)`, at whatever rate the sound has (above half that rate
    /// there is silence). 0 dB is a sine of full scale in the middle of a band. Values are decibels, averaged over the windows of
    /// a segment and scaled: 1 is 0 dB, -1 is -80 dB, below which nothing is told apart.
    Audio {
        /// Mel bands, 1 to 64.
        bands: usize,
        /// Parts of the sound, at least 1; a run takes as many as a clip has frames.
        segments: usize,
    },
}

/// A condition as a user gives it.
#[derive(Clone, Copy, Debug)]
pub enum Given<'a> {
    /// A clip, F*H*W*C values in [-1, 1], or its first frame alone.
    Frame(&'a [f32]),
    /// A label.
    Label(&'a str),
    /// A `.npy` file.
    Vector(&'a Path),
    /// A text.
    Text(&'a str),
    /// A `.wav` file.
    Audio(&'a Path),
}

impl Given<'_> {
    fn kind(&self) -> &'static str {
        match self {
            Self::Frame(_) => "a picture",
            Self::Label(_) => "a label",
            Self::Vector(_) => "a vector",
            Self::Text(_) => "a text",
            Self::Audio(_) => "a sound",
        }
    }
}

impl Condition {
    /// The most mel bands: with more, the lowest would be narrower than the spectrum's resolution.
    const MAX_BANDS: usize = 64;

    /// Values.
    pub fn width(&self) -> usize {
        match self {
            Self::None => 0,
            Self::FirstFrame { height, width } => height.saturating_mul(*width),
            Self::Label(labels) => labels.names().len(),
            Self::Vector { width } | Self::Text { width } => *width,
            Self::Audio { bands, segments } => bands.saturating_mul(*segments),
        }
    }

    /// Whether it is told beside the clip, and cannot be made from the clip itself.
    pub fn is_beside_clip(&self) -> bool {
        !matches!(self, Self::None | Self::FirstFrame { .. })
    }

    /// The condition of vectors as wide as the one beside the clip at `clip`.
    ///
    /// # Errors
    /// If there is none, or it cannot be read.
    pub fn vector_like_that_of(clip: &Path) -> Result<Self> {
        let path = beside::existing(clip, "npy", "vector")?;
        Ok(Self::Vector { width: read_vector(&path)?.len() })
    }

    /// Checks the extents.
    ///
    /// # Errors
    /// Naming what is wrong.
    pub fn validate(&self) -> Result<()> {
        let wrong = |problem: String, expected: &str| Err(Error::invalid("condition", problem, expected));
        match self {
            Self::FirstFrame { height, width } if *height == 0 || *width == 0 => {
                wrong(format!("is a first frame of {height} x {width}"), "at least 1 x 1")
            }
            Self::Label(labels) => labels.validate(),
            Self::Vector { width: 0 } | Self::Text { width: 0 } => wrong("has width 0".into(), "at least 1"),
            Self::Audio { bands, .. } if !(1..=Self::MAX_BANDS).contains(bands) => {
                wrong(format!("has {bands} mel bands"), "1 to 64")
            }
            Self::Audio { segments: 0, .. } => wrong("has 0 segments of sound".into(), "at least 1"),
            _ => Ok(()),
        }
    }

    /// What has to be given, in words, with the option that gives it.
    pub fn wanted(&self) -> String {
        match self {
            Self::None => "no condition: the generator was trained with none".to_owned(),
            Self::FirstFrame { .. } => "a picture (--from or --image), which the generator goes on from".to_owned(),
            Self::Label(labels) => format!("a label (--label): {}", labels.listed()),
            Self::Vector { width } => format!("a .npy file of {width} values (--vector)"),
            Self::Text { .. } => "a text (--text)".to_owned(),
            Self::Audio { .. } => "a .wav file (--audio)".to_owned(),
        }
    }

    /// Writes the condition's values for what is given to `out` (`width()` values). `format`: that of the clips.
    ///
    /// # Errors
    /// Something of another kind, an unknown label, a text without characters, a file that cannot be read or does not fit.
    ///
    /// # Panics
    /// If `out` or a given clip is too short.
    pub fn encode(&self, given: Given<'_>, format: &ClipFormat, out: &mut [f32]) -> Result<()> {
        match (self, given) {
            (Self::FirstFrame { height, width }, Given::Frame(clip)) => {
                first_frame(clip, format, (*height, *width), out);
            }
            (Self::Label(labels), Given::Label(label)) => {
                out.fill(0.0);
                out[labels.index(label)?] = 1.0;
            }
            (Self::Vector { width }, Given::Vector(path)) => {
                let values = read_vector(path)?;
                if values.len() != *width {
                    let remedy = format!("all vectors of a run have one width, here {width}");
                    return Err(Error::file(path, format!("holds {} values", values.len()), remedy));
                }
                out.copy_from_slice(&values);
            }
            (Self::Text { .. }, Given::Text(text)) => text::hash(text, out)?,
            (Self::Audio { bands, segments }, Given::Audio(path)) => {
                out.copy_from_slice(&audio::log_mel(path, *bands, *segments)?);
            }
            (_, given) => return Err(Error::invalid("condition", format!("{} is given", given.kind()), self.wanted())),
        }
        Ok(())
    }

    /// The values that the file beside a clip tells, `width()` of them; none for conditions that no file tells.
    ///
    /// # Errors
    /// If the file is missing (it is named), cannot be read or does not fit.
    pub(super) fn read_beside(&self, clip: &Path, format: &ClipFormat) -> Result<Vec<f32>> {
        let mut out = vec![0.0; self.width()];
        match self {
            Self::None | Self::FirstFrame { .. } | Self::Label(_) => out.clear(),
            Self::Vector { .. } => {
                self.encode(Given::Vector(&beside::existing(clip, "npy", "vector")?), format, &mut out)?;
            }
            Self::Text { .. } => {
                let path = beside::existing(clip, "txt", "text")?;
                let text = std::fs::read_to_string(&path).map_err(|e| Error::io(&path, "read as UTF-8", e))?;
                let encoded = self.encode(Given::Text(&text), format, &mut out);
                encoded.map_err(|_| Error::file(&path, "holds no characters", "write what the clip shows"))?;
            }
            Self::Audio { .. } => {
                self.encode(Given::Audio(&beside::existing(clip, "wav", "sound")?), format, &mut out)?;
            }
        }
        Ok(out)
    }
}

/// Writes a clip's first frame in gray, shrunk to `size`.
pub(super) fn first_frame(clip: &[f32], format: &ClipFormat, size: (usize, usize), out: &mut [f32]) {
    let frame = &clip[..format.frame_values()];
    shrink_to_gray(frame, (format.height, format.width), format.channels, size, out);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kinds_of_older_checkpoints_are_read_and_written_as_ever() {
        for (condition, json) in [
            (Condition::None, r#""none""#),
            (Condition::FirstFrame { height: 3, width: 4 }, r#"{"first_frame":{"height":3,"width":4}}"#),
        ] {
            assert_eq!(serde_json::to_string(&condition).unwrap(), json);
            assert_eq!(serde_json::from_str::<Condition>(json).unwrap(), condition);
        }
    }

    #[test]
    fn what_is_given_has_to_be_what_is_wanted() {
        let format = ClipFormat::new(1, 1, 1, 1).unwrap();
        let labels = Labels::of_tasks(["walk".to_owned(), "run".to_owned()]);
        let conditions = [
            (Condition::None, "none"),
            (Condition::FirstFrame { height: 1, width: 1 }, "--image"),
            (Condition::Label(labels), "\"run\", \"walk\""),
            (Condition::Vector { width: 2 }, "--vector"),
            (Condition::Text { width: 2 }, "--text"),
            (Condition::Audio { bands: 1, segments: 2 }, "--audio"),
        ];
        for (index, (condition, wanted)) in conditions.iter().enumerate() {
            condition.validate().unwrap();
            let given = if index == 4 { Given::Label("walk") } else { Given::Text("walk") };
            let text = condition.encode(given, &format, &mut [0.0; 2]).unwrap_err().to_string();
            assert!(text.contains(wanted) && text.contains(given.kind()), "{text}");
        }
    }

    #[test]
    fn extents_are_checked() {
        for condition in [
            Condition::FirstFrame { height: 0, width: 2 },
            Condition::Vector { width: 0 },
            Condition::Text { width: 0 },
            Condition::Audio { bands: 0, segments: 1 },
            Condition::Audio { bands: 65, segments: 1 },
            Condition::Audio { bands: 8, segments: 0 },
            Condition::Label(Labels::of_tasks([])),
        ] {
            assert!(condition.validate().is_err(), "{condition:?}");
        }
    }
}
