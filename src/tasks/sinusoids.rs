//! Sinusoid regression, the small problem of Finn, Abbeel & Levine (2017).

use std::f32::consts::PI;

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::{Error, Result, SupervisedBatch};

/// The family of tasks `y = amplitude * sin(x - phase)`; by default amplitude in [0.1, 5], phase in [0, pi] and x in
/// [-5, 5], all uniform.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Sinusoids {
    /// Lowest and highest amplitude.
    pub amplitude: (f32, f32),
    /// Lowest and highest phase, in radians.
    pub phase: (f32, f32),
    /// Lowest and highest x.
    pub x: (f32, f32),
}

/// One task: `y = amplitude * sin(x - phase)`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Sinusoid {
    /// The wave's height.
    pub amplitude: f32,
    /// The wave's shift, in radians.
    pub phase: f32,
}

impl Sinusoid {
    /// The task's answer at `x`.
    pub fn at(&self, x: f32) -> f32 {
        self.amplitude * (x - self.phase).sin()
    }
}

impl Default for Sinusoids {
    fn default() -> Self {
        Self { amplitude: (0.1, 5.0), phase: (0.0, PI), x: (-5.0, 5.0) }
    }
}

impl Sinusoids {
    /// Checks that each range is finite and not reversed.
    ///
    /// # Errors
    /// Naming the range that is not.
    pub fn validate(&self) -> Result<()> {
        for (field, (low, high)) in [("amplitude", self.amplitude), ("phase", self.phase), ("x", self.x)] {
            // The span too must be finite, or no uniform number can be drawn.
            if !(low <= high && (high - low).is_finite()) {
                return Err(Error::invalid(
                    format!("sinusoids {field}"),
                    format!("is {low} to {high}"),
                    "a finite range, its lower end first",
                ));
            }
        }
        Ok(())
    }

    /// One task.
    ///
    /// # Errors
    /// As [`Sinusoids::validate`].
    pub fn task(&self, rng: &mut ChaCha8Rng) -> Result<Sinusoid> {
        self.validate()?;
        Ok(self.any_task(rng))
    }

    /// Draws `tasks` fresh tasks and `rows` points of each: `x` and `y` are [tasks, rows, 1], row-major, f32 or f64.
    ///
    /// # Errors
    /// As [`Sinusoids::validate`], or if the length of `x` or `y` is not tasks*rows.
    pub fn draw<T: From<f32>>(
        &self,
        rng: &mut ChaCha8Rng,
        tasks: usize,
        rows: usize,
        x: &mut [T],
        y: &mut [T],
    ) -> Result<()> {
        self.validate()?;
        for (field, length) in [("x", x.len()), ("y", y.len())] {
            if Some(length) != tasks.checked_mul(rows) {
                return Err(Error::invalid(
                    field,
                    format!("has {length} values"),
                    format!("{tasks} tasks of {rows} rows"),
                ));
            }
        }
        for task in 0..tasks {
            let wave = self.any_task(rng);
            let rows = task * rows..(task + 1) * rows;
            self.points(rng, &wave, &mut x[rows.clone()], &mut y[rows]);
        }
        Ok(())
    }

    /// Draws a meta-batch: `tasks` fresh tasks with `shots` support and `queries` query points each; one input, one output.
    ///
    /// # Errors
    /// As [`Sinusoids::validate`].
    pub fn draw_batch<T: From<f32> + Clone>(
        &self,
        rng: &mut ChaCha8Rng,
        tasks: usize,
        shots: usize,
        queries: usize,
        batch: &mut SupervisedBatch<T>,
    ) -> Result<()> {
        self.validate()?;
        for (rows, arrays) in
            [(shots, [&mut batch.support_x, &mut batch.support_y]), (queries, [&mut batch.query_x, &mut batch.query_y])]
        {
            for array in arrays {
                array.resize(tasks * rows, T::from(0.0));
            }
        }
        for task in 0..tasks {
            let wave = self.any_task(rng);
            let (support, query) = (task * shots..(task + 1) * shots, task * queries..(task + 1) * queries);
            self.points(rng, &wave, &mut batch.support_x[support.clone()], &mut batch.support_y[support]);
            self.points(rng, &wave, &mut batch.query_x[query.clone()], &mut batch.query_y[query]);
        }
        Ok(())
    }

    fn any_task(&self, rng: &mut ChaCha8Rng) -> Sinusoid {
        Sinusoid {
            amplitude: rng.random_range(self.amplitude.0..=self.amplitude.1),
            phase: rng.random_range(self.phase.0..=self.phase.1),
        }
    }

    fn points<T: From<f32>>(&self, rng: &mut ChaCha8Rng, wave: &Sinusoid, x: &mut [T], y: &mut [T]) {
        for (x, y) in x.iter_mut().zip(y) {
            let at = rng.random_range(self.x.0..=self.x.1);
            (*x, *y) = (T::from(at), T::from(wave.at(at)));
        }
    }
}
