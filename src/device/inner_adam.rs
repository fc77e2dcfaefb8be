//! The inner step of Adam, its transpose and the gradient of its rates, in the materialised form.

use super::{Linear, Rate, Region};
use crate::scalar::Scalar;

/// Adam's constants at one inner step (Kingma & Ba 2015, algorithm 1).
#[derive(Clone, Copy, Debug)]
pub struct Adam<T> {
    /// beta1 and beta2.
    pub decay: [T; 2],
    /// `1 - beta`, rounded once.
    pub rest: [T; 2],
    /// `1 / (1 - beta^step)`: what makes the moments unbiased.
    pub correction: [T; 2],
    /// Added to the root of the second moment; positive.
    pub epsilon: T,
}

impl<T: Scalar> Adam<T> {
    /// The constants of step `step`, counted from 1.
    pub fn at_step(betas: [f64; 2], epsilon: f64, step: usize) -> Self {
        let step = i32::try_from(step).unwrap_or(i32::MAX);
        Self {
            decay: betas.map(T::from_f64),
            rest: betas.map(|beta| T::from_f64(1.0 - beta)),
            correction: betas.map(|beta| T::from_f64(1.0 / (1.0 - beta.powi(step)))),
            epsilon: T::from_f64(epsilon),
        }
    }
}

/// Materialised form, one inner step of Adam, for each task and one layer. With `g = delta^T [a, 1]`:
///
/// ```text
/// m' = beta1 m + (1 - beta1) g          v' = beta2 v + (1 - beta2) g^2
/// to = from - rate * m^ / (sqrt(v^) + epsilon)      m^ = correction1 m',  v^ = correction2 v'
/// ```
#[derive(Clone, Copy, Debug)]
pub struct AdamUpdate<T> {
    /// T.
    pub tasks: usize,
    /// K.
    pub rows: usize,
    /// Blocks of width `outputs`: the gradient's rows.
    pub delta: Region,
    /// As many rows of width `inputs`.
    pub values: Region,
    /// The weights before, shared or per task.
    pub from: Linear,
    /// Written: the weights after, per task.
    pub to: Linear,
    /// The rate.
    pub rate: Rate<T>,
    /// The constants.
    pub adam: Adam<T>,
    /// m and v; both zero when absent.
    pub moments: Option<[Linear; 2]>,
    /// Written: m' and v'; may be `moments`, which are then renewed in place.
    pub new_moments: [Linear; 2],
}

/// The gradient of the rates of one inner step of Adam: `moved = m^ / (sqrt(v^) + epsilon)`, what the step subtracted before
/// the rate, and `rate_gradient -= scale * <weight_cotangent, moved>`.
#[derive(Clone, Copy, Debug)]
pub struct AdamRateGradient<T> {
    /// T.
    pub tasks: usize,
    /// The cotangent of the weights after the step, per task.
    pub weight_cotangent: Linear,
    /// The step's m' and v'.
    pub moments: [Linear; 2],
    /// The constants.
    pub adam: Adam<T>,
    /// Written, per task.
    pub moved: Linear,
    /// Added to: one element for a uniform rate, the layer's parameters (shared layout, weight then bias) otherwise.
    pub rate_gradient: Region,
    /// The factor of the rate's gradient.
    pub scale: T,
}

/// [`AdamUpdate`] backwards: from the cotangent of `to` those of m', v' and g. The gradient is computed anew from its rows.
///
/// ```text
/// moved       = m^ / (sqrt(v^) + epsilon)           pulled = -rate * weight_cotangent
/// cotangent m = [beta1 * that of the following step +] pulled * correction1 / (sqrt(v^) + epsilon)
/// cotangent v = [beta2 * that of the following step -] pulled * moved * correction2 / (2 sqrt(v^) (sqrt(v^) + epsilon))
/// direction   = (1 - beta1) * cotangent m + 2 (1 - beta2) g * cotangent v
/// ```
///
/// Where `v' = 0`, every gradient so far was 0; the step is differentiable there, with the second term 0.
#[derive(Clone, Copy, Debug)]
pub struct ReverseAdam<T> {
    /// T.
    pub tasks: usize,
    /// K.
    pub rows: usize,
    /// As in [`AdamUpdate`].
    pub delta: Region,
    /// As in [`AdamUpdate`].
    pub values: Region,
    /// The cotangent of the weights after the step, per task.
    pub weight_cotangent: Linear,
    /// The step's m' and v'.
    pub moments: [Linear; 2],
    /// Read and written: the cotangents of m and v, per task.
    pub moment_cotangents: [Linear; 2],
    /// Whether `moment_cotangents` hold those of the following step.
    pub accumulate: bool,
    /// The rate.
    pub rate: Rate<T>,
    /// The constants.
    pub adam: Adam<T>,
    /// Written: the cotangent of the gradient, per task.
    pub direction: Linear,
}
