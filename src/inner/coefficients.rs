//! The inner optimizer as a recursion in one layer's numbers.
//!
//! `v_i = mu v_{i-1} + g_i + decay theta_i` and `theta_{i+1} = theta_i - rate_i v_i` are linear, so that
//! `theta_i = share_i theta_0 - sum_j c[i][j] g_j` and `v_i = p_i theta_0 + sum_j q[i][j] g_j`.

/// Momentum and weight decay.
#[derive(Clone, Copy, Debug)]
pub(super) struct Rule {
    pub momentum: f64,
    pub decay: f64,
}

/// The tables of one layer.
#[derive(Clone, Debug)]
pub(super) struct Coefficients {
    steps: usize,
    rates: Vec<f64>,
    /// `[steps + 1]`.
    pub share: Vec<f64>,
    /// `[steps + 1, steps]`.
    pub c: Vec<f64>,
    /// `[steps]` and `[steps, steps]`.
    p: Vec<f64>,
    q: Vec<f64>,
}

impl Coefficients {
    pub fn new(steps: usize) -> Self {
        Self {
            steps,
            rates: vec![0.0; steps],
            share: vec![1.0; steps + 1],
            c: vec![0.0; (steps + 1) * steps],
            p: vec![0.0; steps],
            q: vec![0.0; steps * steps],
        }
    }

    /// Fills the tables for these rates, one a step.
    pub fn set(&mut self, rule: Rule, rates: impl Iterator<Item = f64>) {
        let steps = self.steps;
        for (i, rate) in rates.take(steps).enumerate() {
            self.rates[i] = rate;
            let before = if i > 0 { self.p[i - 1] } else { 0.0 };
            self.p[i] = rule.momentum * before + rule.decay * self.share[i];
            self.share[i + 1] = self.share[i] - rate * self.p[i];
            for j in 0..steps {
                let before = if i > 0 { self.q[(i - 1) * steps + j] } else { 0.0 };
                let own = if i == j { 1.0 } else { 0.0 };
                let q = rule.momentum * before + own - rule.decay * self.c[i * steps + j];
                self.q[i * steps + j] = q;
                self.c[(i + 1) * steps + j] = self.c[i * steps + j] + rate * q;
            }
        }
    }

    /// The gradient of the rates from those of `c` and of the shares, laid as they are; both are used up, and `dq`, one
    /// number a step, is room.
    pub fn reverse(
        &self,
        rule: Rule,
        dc: &mut [f64],
        dshare: &mut [f64],
        dq: &mut [f64],
        mut rate: impl FnMut(usize, f64),
    ) {
        let steps = self.steps;
        let mut dp = 0.0;
        dq.fill(0.0);
        for i in (0..steps).rev() {
            let mut gradient = -dshare[i + 1] * self.p[i];
            dp -= self.rates[i] * dshare[i + 1];
            dshare[i] += dshare[i + 1] + rule.decay * dp;
            dp *= rule.momentum;
            for j in 0..=i {
                let after = dc[(i + 1) * steps + j];
                gradient += after * self.q[i * steps + j];
                dq[j] += self.rates[i] * after;
                dc[i * steps + j] += after - rule.decay * dq[j];
                dq[j] *= rule.momentum;
            }
            rate(i, gradient);
        }
    }
}
