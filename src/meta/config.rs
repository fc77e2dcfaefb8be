use serde::{Deserialize, Serialize};

use super::{Algorithm, RateKind};
use crate::inner::{MAX_DUAL_STEPS, Strategy};
use crate::model::Mlp;
use crate::objective::{Loss, VideoWeights};
use crate::{Error, Result};

/// More inner steps than this are a slip of the pen, and would only ask for more memory than there is.
const MAX_STEPS: usize = 10_000;

/// The inner loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InnerConfig {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Number of inner steps, S.
    pub steps: usize,
    /// Momentum of the inner SGD: `v <- momentum v + g; theta <- theta - rate v`.
    pub momentum: f64,
    /// Support rows an inner step sees, drawn anew for each; all of them when absent.
    pub minibatch: Option<usize>,
    /// What the rates are.
    pub rates: RateKind,
    /// Whether the gradient of the rates is computed.
    pub learn_rates: bool,
    /// The representation of adapted weights; chosen by the cost model when absent.
    pub strategy: Option<Strategy>,
}

impl InnerConfig {
    /// `steps` plain SGD steps of `algorithm` over the whole support set, with fixed rates.
    pub fn new(algorithm: Algorithm, steps: usize) -> Self {
        Self {
            algorithm,
            steps,
            momentum: 0.0,
            minibatch: None,
            rates: RateKind::PerLayerPerStep,
            learn_rates: false,
            strategy: None,
        }
    }

    pub(super) fn check(&self, shots: usize) -> Result<()> {
        if self.steps > MAX_STEPS {
            return Err(Error::invalid("inner steps", self.steps.to_string(), format!("at most {MAX_STEPS}")));
        }
        if self.steps > MAX_DUAL_STEPS && self.strategy == Some(Strategy::Dual) {
            let expected = format!("at most {MAX_DUAL_STEPS} in the dual form; materialised (or auto) takes more");
            return Err(Error::invalid("inner steps", self.steps.to_string(), expected));
        }
        if !(self.momentum.is_finite() && (0.0..1.0).contains(&self.momentum)) {
            return Err(Error::invalid("momentum", self.momentum.to_string(), "at least 0 and below 1"));
        }
        if let Some(rows) = self.minibatch
            && !(1..=shots).contains(&rows)
        {
            return Err(Error::invalid("minibatch", rows.to_string(), format!("1 to {shots}, the support rows")));
        }
        if self.rates == RateKind::PerParameter && self.strategy == Some(Strategy::Dual) {
            let expected = "materialised (or auto): a rate for each parameter makes the update full rank, \
                            which the dual form cannot hold";
            return Err(Error::invalid("strategy", "dual with per-parameter rates (Meta-SGD)", expected));
        }
        Ok(())
    }
}

/// Supervised meta-learning of one network.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SupervisedConfig {
    /// The network.
    pub mlp: Mlp,
    /// Its loss.
    pub loss: Loss,
    /// The inner loop.
    pub inner: InnerConfig,
}

/// Meta-learning of the video GAN.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct VideoConfig {
    /// From noise and condition to a clip.
    pub generator: Mlp,
    /// From a clip to a logit.
    pub discriminator: Mlp,
    /// Frames in a clip.
    pub frames: usize,
    /// The weights of the generator's loss.
    pub weights: VideoWeights,
    /// Whether the discriminator takes part. Without it only reconstruction and motion are trained.
    pub adversarial: bool,
    /// The inner loop; the same for both players, each with rates of its own.
    pub inner: InnerConfig,
}

impl VideoConfig {
    pub(super) fn check(&self) -> Result<()> {
        let clip = self.generator.outputs();
        if self.frames == 0 || !clip.is_multiple_of(self.frames) {
            let problem = format!("{} for clips of {clip} values", self.frames);
            return Err(Error::invalid("frames", problem, "a divisor of the generator's outputs"));
        }
        if self.discriminator.inputs() != clip || self.discriminator.outputs() != 1 {
            let problem = format!("{} to {}", self.discriminator.inputs(), self.discriminator.outputs());
            let expected = format!("{clip} (the generator's outputs) to 1");
            return Err(Error::invalid("discriminator widths", problem, expected));
        }
        let weights = [self.weights.adversarial, self.weights.reconstruction, self.weights.motion];
        if weights.iter().any(|w| !(w.is_finite() && *w >= 0.0)) {
            return Err(Error::invalid("loss weights", format!("{weights:?}"), "finite numbers, 0 or above"));
        }
        if self.inner.algorithm == Algorithm::Anil {
            // "The last layer" means nothing for two players: refused rather than run as MAML.
            return Err(Error::invalid("algorithm", "anil", "maml, fomaml or reptile for the video GAN"));
        }
        if self.inner.rates == RateKind::PerParameter {
            let expected = "per_layer_per_step or one rate for the video GAN";
            return Err(Error::invalid("rates", "per_parameter", expected));
        }
        Ok(())
    }
}
