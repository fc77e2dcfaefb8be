//! The inner rates of one network where they stay on the device: what the dual form's corrections are made of, and the way back.

use super::Region;

/// Where the rates lie, and the rule of the steps that they are for: `v_s = momentum v_{s-1} + g_s + decay theta_s`, and
/// `theta_{s+1} = theta_s - rate_s v_s`, so that after `i` steps `theta_i = share_i theta_0 - sum_j c[i][j] g_j`, where columns of
/// `-c` and the share go by the same recursion, the former from 0 on with 1 for `g_j`, the latter from 1 on:
///
/// ```text
/// v_s = momentum v_{s-1} + decay x_s + g_s        x_{s+1} = x_s - rate_s v_s
/// ```
#[derive(Clone, Copy, Debug)]
pub struct InnerRates {
    /// S.
    pub steps: usize,
    /// L.
    pub layers: usize,
    /// Of the inner optimizer.
    pub momentum: f64,
    /// Of the weights.
    pub decay: f64,
    /// `[S, L]`, or one number for all steps and layers.
    pub rates: Region,
    /// The value of the column that stands for the bias, `[S, L]`; without them it is 1.
    pub bias: Option<Region>,
    /// The weights of the losses of the query passes, the last pass first: after `S` steps, `S - 1`, ... Without them there is but
    /// that after `S`, of weight 1.
    pub query_weights: Option<Region>,
}

impl InnerRates {
    /// Elements of one layer's `c`, `[S + 1, S]`.
    pub fn table(steps: usize) -> usize {
        (steps + 1) * steps
    }

    /// Query passes.
    pub fn queries(&self) -> usize {
        self.query_weights.map_or(1, |weights| weights.len())
    }

    /// Whether there is one rate for all steps and layers.
    pub fn is_single(&self) -> bool {
        self.rates.len() == 1
    }
}

/// Fills the factors of every layer's corrections: `-c`, the `S` values of the bias's column, 1, the `S + 1` shares, and for each
/// query pass, the last first, its weight times the row of `-c` after its steps.
#[derive(Clone, Copy, Debug)]
pub struct RateTables {
    /// Read.
    pub of: InnerRates,
    /// Written: `[L, RateTables::width(S, queries)]`.
    pub tables: Region,
}

impl RateTables {
    /// Numbers of one layer.
    pub fn width(steps: usize, queries: usize) -> usize {
        Self::queries(steps) + queries * steps
    }

    /// Where the bias's column begins among them.
    pub fn bias(steps: usize) -> usize {
        InnerRates::table(steps)
    }

    /// Where 1 lies.
    pub fn one(steps: usize) -> usize {
        Self::bias(steps) + steps
    }

    /// Where the shares begin.
    pub fn shares(steps: usize) -> usize {
        Self::one(steps) + 1
    }

    /// Where the rows of the query passes begin.
    pub fn queries(steps: usize) -> usize {
        Self::shares(steps) + steps + 1
    }
}

/// The gradient of the rates, from that of the tables. With b the bias's column, `dc` and `db` the two rows of a layer, `v` and `p`
/// those of the columns and of the share, and `k` what becomes of a change of `x` after step `s`:
///
/// ```text
/// rate_s:  sum over i > s of  k_i (sum over j <= s of  v_s[j] (dc[i][j] + b_j db[i][j])  -  p_s dshare[i])
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
    /// Of the shares, `[L, S + 1]`; without decay they do not depend on the rates.
    pub of_shares: Option<Region>,
    /// Layers before this one do not move, and have no gradient.
    pub first_moving: usize,
    /// Written: that of the rates.
    pub gradient: Region,
    /// Written: that of the bias's column, where there is one.
    pub bias_gradient: Option<Region>,
}
