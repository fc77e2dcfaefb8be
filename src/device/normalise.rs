//! Batch normalisation of a layer over the rows of each task, its Jacobian, and the adjoint of the latter.
//!
//! For each task and column `x(u) = (u - mean u) / sqrt(variance u + epsilon)` over the task's K rows, with the biased variance;
//! `1 / sqrt(variance u + epsilon)` is called the inverse. The Jacobian of x is symmetric:
//! `J v = inverse * (v - mean(v) - x * mean(v x))`. Regions named rows are `[T * K, width]`.

use super::Region;
use crate::model::Activation;

/// `x = x(u)`, `output = act(x + shift)`.
#[derive(Clone, Copy, Debug)]
pub struct Normalise {
    /// T.
    pub tasks: usize,
    /// Added to the variance.
    pub epsilon: f64,
    /// Rows: read as u, written as x.
    pub rows: Region,
    /// Written, `[T, width]`.
    pub inverse: Region,
    /// One row.
    pub shift: Region,
    /// act.
    pub activation: Activation,
    /// Written: rows.
    pub output: Region,
}

/// `to (+)= J from`.
#[derive(Clone, Copy, Debug)]
pub struct NormaliseJacobian {
    /// T.
    pub tasks: usize,
    /// x: rows.
    pub normalised: Region,
    /// `[T, width]`.
    pub inverse: Region,
    /// Rows.
    pub from: Region,
    /// Written, or added to: rows.
    pub to: Region,
    /// Whether to add.
    pub accumulate: bool,
}

/// The adjoint of a backward pass through a normalised layer, `delta_y = e act'(a)`, `delta_u = J(u) delta_y`. With the
/// cotangent g of `delta_u`, and `h = J g`:
///
/// ```text
/// u_cotangent = d/du <g, J(u) delta_y> = -inverse * (x mean(g delta_u) + h mean(delta_y x) + delta_u mean(g x))
/// y_cotangent = h * delta_y * act''(a) / act'(a)
/// e_cotangent = h * act'(a)
/// ```
#[derive(Clone, Copy, Debug)]
pub struct NormaliseAdjoint {
    /// T.
    pub tasks: usize,
    /// x: rows.
    pub normalised: Region,
    /// `[T, width]`.
    pub inverse: Region,
    /// The layer's activation.
    pub activation: Activation,
    /// a: rows.
    pub values: Region,
    /// Rows.
    pub y_delta: Region,
    /// Rows.
    pub u_delta: Region,
    /// g: rows.
    pub cotangent: Region,
    /// Written: rows.
    pub u_cotangent: Region,
    /// Written, when the activation is curved: rows.
    pub y_cotangent: Region,
    /// Written: rows.
    pub e_cotangent: Region,
}

// Flop an element in sums over rows: one for each summand, two for each product that is summed.
impl Normalise {
    /// The mean and the variance.
    pub(crate) const FLOP: usize = 3;
}

impl NormaliseJacobian {
    /// Two means.
    pub(crate) const FLOP: usize = 3;
}

impl NormaliseAdjoint {
    /// Four means.
    pub(crate) const FLOP: usize = 7;
}
