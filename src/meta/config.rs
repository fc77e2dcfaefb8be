use serde::{Deserialize, Deserializer, Serialize};

use super::{Algorithm, RateKind, Shape};
use crate::inner::{MAX_DUAL_STEPS, Strategy};
use crate::model::Mlp;
use crate::objective::{FrameShape, Loss, VideoWeights};
use crate::{Error, Result};

/// More inner steps than this are a slip of the pen, and would only ask for more memory than there is.
const MAX_STEPS: usize = 10_000;

/// The rule of the inner steps. Its state is zero when a task's inner loop begins.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum InnerOptimizer {
    /// Gradient descent: `v <- momentum v + g; theta <- theta - rate v`.
    Sgd {
        /// The share of v that stays; 0 for plain gradient descent.
        momentum: f64,
    },
    /// Adam with bias correction (Kingma & Ba 2015, algorithm 1); in the materialised form only.
    ///
    /// epsilon is added to the root of the second moment, as in the paper, PyTorch and `optax.adam(eps=epsilon)`. The
    /// meta-gradient is the exact derivative of that, also where all gradients of a parameter so far were 0 (a dead unit,
    /// an input that is 0): the step is differentiable there, with slope `rate * (1 - beta1) / (1 - beta1^s) / epsilon` for
    /// the gradient of step s. Automatic differentiation gives NaN there, as the root alone has no slope at 0; optax has
    /// `eps_root` against that, which changes the step.
    Adam {
        /// Decay of the first moment.
        beta1: f64,
        /// Decay of the second moment.
        beta2: f64,
        /// Added to the denominator.
        epsilon: f64,
    },
}

/// In the first checkpoints the momentum stands alone.
fn rule_or_momentum<'de, D: Deserializer<'de>>(stored: D) -> Result<InnerOptimizer, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Stored {
        Momentum(f64),
        Rule(InnerOptimizer),
    }
    Ok(match Stored::deserialize(stored)? {
        Stored::Momentum(momentum) => InnerOptimizer::Sgd { momentum },
        Stored::Rule(rule) => rule,
    })
}

impl InnerOptimizer {
    /// Adam with the usual constants: 0.9, 0.999 and 1e-8.
    pub const ADAM: Self = Self::Adam { beta1: 0.9, beta2: 0.999, epsilon: 1e-8 };

    /// The smallest epsilon whose square's inverse, with room to spare, is a number in single precision.
    const SMALLEST_EPSILON: f64 = 1e-16;

    /// Whether a step's change has the gradient's rank, so that the dual form can hold it.
    pub(crate) fn keeps_rank(self) -> bool {
        matches!(self, Self::Sgd { .. })
    }

    /// The momentum coefficient; 0 where there is none.
    pub(crate) fn momentum(self) -> f64 {
        match self {
            Self::Sgd { momentum } => momentum,
            Self::Adam { .. } => 0.0,
        }
    }

    fn check(self) -> Result<()> {
        let fraction = |what: &str, value: f64| {
            if value.is_finite() && (0.0..1.0).contains(&value) {
                return Ok(());
            }
            Err(Error::invalid(what, value.to_string(), "at least 0 and below 1"))
        };
        match self {
            Self::Sgd { momentum } => fraction("momentum", momentum),
            Self::Adam { beta1, beta2, epsilon } => {
                fraction("beta1", beta1)?;
                fraction("beta2", beta2)?;
                if !(epsilon.is_finite() && epsilon >= Self::SMALLEST_EPSILON) {
                    let expected = format!("a finite number of {:e} or above", Self::SMALLEST_EPSILON);
                    return Err(Error::invalid("epsilon", epsilon.to_string(), expected));
                }
                Ok(())
            }
        }
    }
}

/// Hidden units of a meta-optimizer's network at most: more are no low rank.
const MAX_RANK: usize = 4096;

/// The inner loop.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct InnerConfig {
    /// The algorithm.
    pub algorithm: Algorithm,
    /// Number of inner steps, S.
    pub steps: usize,
    /// The rule of the inner steps.
    #[serde(alias = "momentum", deserialize_with = "rule_or_momentum")]
    pub optimizer: InnerOptimizer,
    /// Weight decay of gradient descent, coupled to the gradient as in PyTorch's SGD: `v <- momentum v + g + weight_decay
    /// theta`. First-order MAML, which holds g constant, differentiates it.
    #[serde(default)]
    pub weight_decay: f64,
    /// Support rows an inner step sees, drawn anew for each; all of them when absent.
    pub minibatch: Option<usize>,
    /// What phi is.
    pub rates: RateKind,
    /// Whether the gradient of phi is computed.
    pub learn_rates: bool,
    /// Whether the meta-loss is a weighted sum of the query losses after each inner step (multi-step loss optimization,
    /// Antoniou et al. 2019, section 4): their mean, until [`crate::MetaLearner::set_query_weights`]. Means nothing to reptile.
    #[serde(default)]
    pub multi_step: bool,
    /// Whether the video GAN's generator is given other latents in each inner step (Clouâtre & Demers 2019, FIGR): see
    /// [`crate::VideoRows::support_z`].
    #[serde(default)]
    pub fresh_noise: bool,
    /// The representation of adapted weights; chosen by the cost model when absent.
    pub strategy: Option<Strategy>,
}

impl InnerConfig {
    /// `steps` plain SGD steps of `algorithm` over the whole support set, with fixed rates.
    pub fn new(algorithm: Algorithm, steps: usize) -> Self {
        Self {
            algorithm,
            steps,
            optimizer: InnerOptimizer::Sgd { momentum: 0.0 },
            weight_decay: 0.0,
            minibatch: None,
            rates: RateKind::PerLayerPerStep,
            learn_rates: false,
            multi_step: false,
            fresh_noise: false,
            strategy: None,
        }
    }

    /// Whether there are query losses after inner steps, to differentiate.
    pub(crate) fn has_losses_on_the_way(&self) -> bool {
        self.steps > 0 && self.algorithm.differentiates_query()
    }

    pub(crate) fn check_steps(steps: usize) -> Result<()> {
        if steps > MAX_STEPS {
            return Err(Error::invalid("inner steps", steps.to_string(), format!("at most {MAX_STEPS}")));
        }
        Ok(())
    }

    pub(super) fn check(&self, shots: usize) -> Result<()> {
        Self::check_steps(self.steps)?;
        if self.steps > MAX_DUAL_STEPS && self.strategy == Some(Strategy::Dual) {
            let expected = format!("at most {MAX_DUAL_STEPS} in the dual form; materialised (or auto) takes more");
            return Err(Error::invalid("inner steps", self.steps.to_string(), expected));
        }
        self.optimizer.check()?;
        if !(self.weight_decay.is_finite() && self.weight_decay >= 0.0) {
            return Err(Error::invalid("weight decay", self.weight_decay.to_string(), "a finite number, 0 or above"));
        }
        if !self.optimizer.keeps_rank() && (self.weight_decay > 0.0 || self.rates.transforms_rows()) {
            let problem = "adam with weight decay or a meta-optimizer that transforms rows";
            return Err(Error::invalid("inner optimizer", problem, "sgd, which they are made for"));
        }
        if let Some(rows) = self.minibatch
            && !(1..=shots).contains(&rows)
        {
            return Err(Error::invalid("minibatch", rows.to_string(), format!("1 to {shots}, the support rows")));
        }
        if let RateKind::Network { rank } = self.rates
            && !(1..=MAX_RANK).contains(&rank)
        {
            return Err(Error::invalid("rank", rank.to_string(), format!("1 to {MAX_RANK}")));
        }
        if self.multi_step && !self.has_losses_on_the_way() {
            let problem = format!("multi-step with {} and {} inner steps", self.algorithm, self.steps);
            let expected = "maml, fomaml or anil with at least one inner step: others have one query loss, or none";
            return Err(Error::invalid("meta-loss", problem, expected));
        }
        if self.rates.transforms_rows() && self.learn_rates && !self.algorithm.differentiates_query() {
            let expected =
                "maml, fomaml or anil, or a meta-optimizer that is not trained: reptile has no gradient for one";
            return Err(Error::invalid(
                "algorithm",
                format!("{} with a meta-optimizer to train", self.algorithm),
                expected,
            ));
        }
        if self.rates == RateKind::PerParameter && self.strategy == Some(Strategy::Dual) {
            let expected = "materialised (or auto): a rate for each parameter makes the update full rank, \
                            which the dual form cannot hold";
            return Err(Error::invalid("strategy", "dual with per-parameter rates (Meta-SGD)", expected));
        }
        if !self.optimizer.keeps_rank() && self.strategy == Some(Strategy::Dual) {
            let expected = "materialised (or auto): Adam divides the gradient element by element, which makes the update \
                            full rank, and the dual form cannot hold that";
            return Err(Error::invalid("strategy", "dual with Adam in the inner loop", expected));
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

impl SupervisedConfig {
    pub(super) fn check(&self, shape: &Shape) -> Result<()> {
        if self.inner.fresh_noise {
            return Err(Error::invalid("fresh noise", "given for a network without latents", "a video GAN, or none"));
        }
        self.inner.check(shape.shots)?;
        if !self.mlp.has_batch_norm() {
            return Ok(());
        }
        if self.inner.rates.transforms_rows() {
            let problem = format!("{:?} with batch normalisation", self.inner.rates);
            let expected = "shared, per-layer-per-step or per-parameter: rows that are transformed one by one are not \
                            those a normalisation over them was differentiated for";
            return Err(Error::invalid("meta-optimizer", problem, expected));
        }
        let rows = self.inner.minibatch.unwrap_or(shape.shots);
        if self.inner.steps > 0 && rows < 2 {
            let expected =
                "at least 2 with batch normalisation: a single row is its own mean, and nothing of it is left";
            return Err(Error::invalid("support rows of an inner step", rows.to_string(), expected));
        }
        Ok(())
    }
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
    /// How a frame's values lie; only the texture term needs to know.
    #[serde(default)]
    pub frame: Option<FrameShape>,
    /// The weights of the generator's loss.
    pub weights: VideoWeights,
    /// Whether the discriminator takes part. Without it only the other terms are trained.
    pub adversarial: bool,
    /// The inner loop; the same for both players, each with rates of its own.
    pub inner: InnerConfig,
}

impl VideoConfig {
    /// How a frame's values lie; as the channels of one pixel where that is not said.
    pub(crate) fn frame_shape(&self) -> FrameShape {
        let values = self.generator.outputs() / self.frames;
        self.frame.unwrap_or(FrameShape { height: 1, width: 1, channels: values })
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.generator.has_batch_norm() || self.discriminator.has_batch_norm() {
            let expected =
                "networks without: the discriminator's real and generated rows would each need a mean of their own";
            return Err(Error::invalid("batch normalisation", "given for a video GAN", expected));
        }
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
        if let Some(frame) = self.frame
            && frame.values() != Some(clip / self.frames)
        {
            let expected = format!("HEIGHTxWIDTHxCHANNELS of a frame of {} values", clip / self.frames);
            return Err(Error::invalid("frame shape", frame.to_string(), expected));
        }
        let VideoWeights { adversarial, reconstruction, motion, texture } = self.weights;
        if texture > 0.0 && self.frame.is_none() {
            let expected = "0, or the height, width and channels of a frame";
            return Err(Error::invalid("texture weight", texture.to_string(), expected));
        }
        let weights = [adversarial, reconstruction, motion, texture];
        if weights.iter().any(|w| !(w.is_finite() && *w >= 0.0)) {
            return Err(Error::invalid("loss weights", format!("{weights:?}"), "finite numbers, 0 or above"));
        }
        if self.inner.algorithm == Algorithm::Anil {
            // "The last layer" means nothing for two players: refused rather than run as MAML.
            return Err(Error::invalid("algorithm", "anil", "maml, fomaml or reptile for the video GAN"));
        }
        if self.inner.fresh_noise && self.inner.steps == 0 {
            return Err(Error::invalid("fresh noise", "given without inner steps", "at least one inner step"));
        }
        Ok(())
    }
}
