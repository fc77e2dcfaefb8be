use serde::{Deserialize, Serialize};

use crate::{Error, Result};

/// The rule of the outer optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OuterKind {
    /// Plain gradient descent.
    Sgd,
    /// Adam (Kingma & Ba 2015).
    Adam {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the denominator.
        epsilon: f64,
    },
}

/// How the outer learning rate changes over the run.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Schedule {
    /// It stays.
    Constant,
    /// `floor + (1 - floor) * (1 + cos(pi * step / steps)) / 2`, as a fraction of the rate.
    Cosine {
        /// Length of the run, in meta-steps.
        steps: u64,
        /// The fraction at the end.
        floor: f64,
    },
    /// `floor + (1 - floor) * (1 - step / steps)`, as a fraction of the rate (Reptile's, Nichol et al. 2018, with floor 0).
    Linear {
        /// Length of the run, in meta-steps.
        steps: u64,
        /// The fraction at the end.
        floor: f64,
    },
}

/// The outer optimizer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct OuterConfig {
    /// The rule.
    pub kind: OuterKind,
    /// The learning rate of the parameters.
    pub learning_rate: f64,
    /// Whether the parameters are trained; otherwise phi alone is.
    #[serde(default = "yes")]
    pub trains_parameters: bool,
    /// The learning rate of phi's rates, which are trained in their logarithm; used when their gradient is computed.
    pub phi_learning_rate: f64,
    /// The learning rate of phi's factors, where it transforms rows.
    #[serde(default = "default_factor_rate")]
    pub phi_factor_learning_rate: f64,
    /// The learning rate of phi's weights, where it is a network.
    #[serde(default = "default_weight_rate")]
    pub phi_weight_learning_rate: f64,
    /// The schedule of all rates.
    pub schedule: Schedule,
    /// The largest norm that the gradient of a network, or of its phi's weights, may have; longer ones are scaled down to it.
    pub clip: Option<f64>,
}

fn yes() -> bool {
    true
}

fn default_factor_rate() -> f64 {
    0.01
}

fn default_weight_rate() -> f64 {
    3e-4
}

impl OuterConfig {
    /// Adam with the usual constants and a constant rate.
    pub fn adam(learning_rate: f64) -> Self {
        Self {
            kind: OuterKind::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 },
            learning_rate,
            trains_parameters: true,
            phi_learning_rate: 0.01,
            phi_factor_learning_rate: default_factor_rate(),
            phi_weight_learning_rate: default_weight_rate(),
            schedule: Schedule::Constant,
            clip: None,
        }
    }

    /// Gradient descent with a constant rate.
    pub fn sgd(learning_rate: f64) -> Self {
        Self { kind: OuterKind::Sgd, ..Self::adam(learning_rate) }
    }

    /// The fraction of the learning rates that step `step`, counted from 0, uses.
    pub fn factor(&self, step: u64) -> f64 {
        let progress = |steps: u64| (step as f64 / steps.max(1) as f64).min(1.0);
        match self.schedule {
            Schedule::Constant => 1.0,
            Schedule::Cosine { steps, floor } => {
                floor + (1.0 - floor) * 0.5 * (1.0 + (std::f64::consts::PI * progress(steps)).cos())
            }
            Schedule::Linear { steps, floor } => floor + (1.0 - floor) * (1.0 - progress(steps)),
        }
    }

    /// # Errors
    /// A rate or bound that is negative or not finite.
    pub fn check(&self) -> Result<()> {
        let positive = |field: &str, value: f64| {
            if value.is_finite() && value > 0.0 {
                Ok(())
            } else {
                Err(Error::invalid(field, value.to_string(), "a positive number"))
            }
        };
        positive("outer learning rate", self.learning_rate)?;
        positive("phi learning rate", self.phi_learning_rate)?;
        positive("phi factor learning rate", self.phi_factor_learning_rate)?;
        positive("phi weight learning rate", self.phi_weight_learning_rate)?;
        self.clip.map_or(Ok(()), |clip| positive("clip", clip))
    }
}

/// Adam's or SGD's change of a small vector on the host; `moments` are those of Adam.
///
/// Returns what is to be subtracted from element `i` for gradient `g`.
pub(super) fn host_change(kind: OuterKind, rate: f64, step: u64, g: f64, moments: &mut (f64, f64)) -> f64 {
    match kind {
        OuterKind::Sgd => rate * g,
        OuterKind::Adam { beta1, beta2, epsilon } => {
            moments.0 = beta1 * moments.0 + (1.0 - beta1) * g;
            moments.1 = beta2 * moments.1 + (1.0 - beta2) * g * g;
            let correction = |beta: f64| 1.0 - beta.powi(step.min(i32::MAX as u64) as i32);
            rate * (moments.0 / correction(beta1)) / ((moments.1 / correction(beta2)).sqrt() + epsilon)
        }
    }
}
