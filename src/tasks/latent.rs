//! The generator's input row: noise, then what it is told of the clip.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use super::condition::{Condition, Given, first_frame};
use super::source::ClipTasks;
use crate::video::ClipFormat;
use crate::{Error, Result};

/// The make-up of the generator's input row.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Latent {
    /// Values of standard normal noise, first in the row.
    pub noise: usize,
    /// The condition, after the noise.
    pub condition: Condition,
}

impl Latent {
    /// The most values in a row.
    const MAX_WIDTH: usize = 1 << 24;

    /// Values in a row: the noise and the condition.
    pub fn width(&self) -> usize {
        self.noise.saturating_add(self.condition.width())
    }

    /// Checks that the row has at least one value and not absurdly many.
    ///
    /// # Errors
    /// Naming the field at fault.
    pub fn validate(&self) -> Result<()> {
        self.condition.validate()?;
        match self.width() {
            0 => Err(Error::invalid("latent", "has neither noise nor a condition", "at least one value")),
            width if width > Self::MAX_WIDTH => Err(Error::invalid(
                "latent",
                format!("has {width} values"),
                format!("at most {} values", Self::MAX_WIDTH),
            )),
            _ => Ok(()),
        }
    }

    /// Draws a row's noise anew and leaves its condition as it is.
    ///
    /// # Panics
    /// If `row` is too short.
    pub fn renew_noise(&self, rng: &mut ChaCha8Rng, row: &mut [f32]) {
        fill_normal(rng, &mut row[..self.noise]);
    }

    /// Writes the row for a clip of `source` to `out` (`width()` values): standard normal noise from `rng`, then the condition.
    /// `values`: the clip's own, F*H*W*C in [-1, 1]. Allocates nothing.
    ///
    /// # Panics
    /// If `values` or `out` is too short, or the source tells other conditions.
    pub fn write(
        &self,
        rng: &mut ChaCha8Rng,
        source: &dyn ClipTasks,
        (task, clip): (usize, usize),
        values: &[f32],
        out: &mut [f32],
    ) {
        self.renew_noise(rng, out);
        let condition = &mut out[self.noise..self.width()];
        match self.condition {
            Condition::None => {}
            Condition::FirstFrame { height, width } => {
                first_frame(values, &source.format(), (height, width), condition);
            }
            _ => source.condition_into(task, clip, condition),
        }
    }

    /// Writes the row for what a user gives to `out`: noise of 0, then the condition. `format`: that of the clips.
    ///
    /// # Errors
    /// As [`Condition::encode`].
    ///
    /// # Panics
    /// As [`Condition::encode`].
    pub fn write_given(&self, given: Given<'_>, format: &ClipFormat, out: &mut [f32]) -> Result<()> {
        out[..self.noise].fill(0.0);
        self.condition.encode(given, format, &mut out[self.noise..])
    }
}

/// Standard normal numbers by the method of Box and Muller, two at a time.
fn fill_normal(rng: &mut ChaCha8Rng, out: &mut [f32]) {
    for pair in out.chunks_mut(2) {
        // 1 - u lies in (0, 1], so that its logarithm is finite.
        let radius = (-2.0 * (1.0 - rng.random::<f64>()).ln()).sqrt();
        let (sin, cos) = (std::f64::consts::TAU * rng.random::<f64>()).sin_cos();
        for (value, part) in pair.iter_mut().zip([cos, sin]) {
            *value = (radius * part) as f32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tasks::MovingShapes;
    use rand::SeedableRng;

    #[test]
    fn noise_is_standard_normal_and_the_condition_follows() {
        let format = ClipFormat::new(2, 2, 2, 1).unwrap();
        let latent = Latent { noise: 20_001, condition: Condition::FirstFrame { height: 1, width: 2 } };
        let source = MovingShapes::new(format, 0, 1, 1).unwrap();
        let clip = [0.5, -1.0, 0.0, 1.0, 9.0, 9.0, 9.0, 9.0];
        let mut row = vec![0.0; latent.width()];
        latent.write(&mut ChaCha8Rng::seed_from_u64(3), &source, (0, 0), &clip, &mut row);
        assert_eq!(row[latent.noise..], [0.25, 0.0]);
        let noise = &row[..latent.noise];
        let moment = |power: i32| noise.iter().map(|v| f64::from(*v).powi(power)).sum::<f64>() / noise.len() as f64;
        assert!(moment(1).abs() < 0.03 && (moment(2) - 1.0).abs() < 0.04 && (moment(4) - 3.0).abs() < 0.3);
    }

    #[test]
    fn widths_are_checked() {
        let latent = |noise, height, width| Latent { noise, condition: Condition::FirstFrame { height, width } };
        assert!(latent(0, 4, 4).validate().is_ok());
        assert!(Latent { noise: 1, condition: Condition::None }.validate().is_ok());
        assert!(Latent { noise: 0, condition: Condition::None }.validate().is_err());
        assert!(latent(5, 0, 4).validate().is_err());
        assert!(latent(5, usize::MAX, 4).validate().is_err());
    }
}
