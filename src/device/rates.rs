//! The inner rates of one network where they stay on the device: what the dual form's corrections are made of, and the way back.

use super::Region;

/// Where the rates lie, and the rule of the steps that they are for: `v_s = momentum v_{s-1} + g_s`, and
/// `theta_{s+1} = theta_s - rate_s v_s`, so that after `i` steps `theta_i = theta_0 - sum_j c[i][j] g_j` with
///
/// ```text
/// c[i][j] = sum over s = j .. i-1 of  momentum^(s-j) rate_s
/// ```
#[derive(Clone, Copy, Debug)]
pub struct InnerRates {
    /// S.
    pub steps: usize,
    /// L.
    pub layers: usize,
    /// Of the inner optimizer.
    pub momentum: f64,
    /// `[S, L]`, or one number for all steps and layers.
    pub rates: Region,
    /// The value of the column that stands for the bias, `[S, L]`; without them it is 1.
    pub bias: Option<Region>,
}

impl InnerRates {
    /// Elements of one layer's `c`, `[S + 1, S]`.
    pub fn table(steps: usize) -> usize {
        (steps + 1) * steps
    }

    /// Whether there is one rate for all steps and layers.
    pub fn is_single(&self) -> bool {
        self.rates.len() == 1
    }
}

/// Fills the factors of every layer's corrections: `-c`, the `S` values of the bias's column, 1, and the last row of `-c` once
/// more.
#[derive(Clone, Copy, Debug)]
pub struct RateTables {
    /// Read.
    pub of: InnerRates,
    /// Written: `[L, RateTables::width(S)]`.
    pub tables: Region,
}

impl RateTables {
    /// Numbers of one layer.
    pub fn width(steps: usize) -> usize {
        InnerRates::table(steps) + steps + 1 + steps
    }
}

/// The gradient of the rates, from that of the tables. With b the bias's column, and `dc` and `db` the two rows of a layer:
///
/// ```text
/// rate_s:  sum over j <= s < i of  momentum^(s-j) (dc[i][j] + b_j db[i][j])
/// b_j:     sum over i > j of  c[i][j] db[i][j]
/// ```
#[derive(Clone, Copy, Debug)]
pub struct RateTablesGradient {
    /// Read.
    pub of: InnerRates,
    /// What [`RateTables`] has made of them.
    pub tables: Region,
    /// Of `c`, `[L, S (S + 1)]`; where there is a bias's column, two rows a layer, of which the second is what its gradient is made
    /// of.
    pub of_tables: Region,
    /// Layers before this one do not move, and have no gradient.
    pub first_moving: usize,
    /// Written: that of the rates.
    pub gradient: Region,
    /// Written: that of the bias's column, where there is one.
    pub bias_gradient: Option<Region>,
}
