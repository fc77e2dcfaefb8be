use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::batches::Batches;
use super::config::{Job, RunConfig};
use crate::checkpoint::{Checkpoint, Stage};
use crate::device::Device;
use crate::model::Parameters;
use crate::{Error, MetaLearner, MetaOptimizer, Result};

/// What one meta-step gave.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct StepReport {
    /// The number of this meta-step, from 1.
    pub step: u64,
    /// The mean query loss at the adapted parameters.
    pub loss: f64,
    /// The discriminator's, while it takes part.
    pub discriminator_loss: Option<f64>,
}

/// The course of a run: its learner, and where its meta-batches come from.
pub struct Session<D: Device<f32>, B: Batches> {
    config: RunConfig,
    batches: B,
    batch: B::Batch,
    /// Meta-step `n`, from 1, draws from stream `first_stream + n` of the seed.
    first_stream: u64,
    learner: MetaLearner<f32, D, B::Objective>,
}

/// The stream of a run's seed that its parameters are drawn from.
const INITIAL_STREAM: u64 = 0;

/// A stream of a run's random numbers.
pub(crate) fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

impl RunConfig {
    /// The parameters that the run begins with.
    pub fn initial_parameters(&self) -> Vec<Parameters<f32>> {
        let mut rng = stream(self.seed, INITIAL_STREAM);
        self.job.networks().iter().map(|(_, mlp)| Parameters::initialise(mlp, &mut rng)).collect()
    }

    /// The meta-optimizers that the run begins with.
    ///
    /// # Errors
    /// As [`RunConfig::check`].
    pub fn initial_phi(&self) -> Result<Vec<MetaOptimizer<f32>>> {
        self.check()?;
        let inner = self.job.inner();
        let phi = |((_, mlp), rate): (&(&str, &crate::model::Mlp), &f64)| {
            MetaOptimizer::uniform(inner.rates, mlp, inner.steps, *rate)
        };
        self.job.networks().iter().zip(&self.initial_rates).map(phi).collect()
    }

    /// Whether the discriminator takes part in meta-step `step`, counted from 0.
    pub fn adversarial_at(&self, step: u64) -> bool {
        matches!(&self.job, Job::Video(job) if job.objective.adversarial && step >= job.adversarial_from)
    }
}

impl<D: Device<f32>, B: Batches> Session<D, B> {
    /// A run from its beginning.
    ///
    /// # Errors
    /// A configuration that does not fit together, or too little memory.
    pub fn new(device: D, config: RunConfig, objective: B::Objective, batches: B) -> Result<Self> {
        let phi = config.initial_phi()?;
        let mut learner = MetaLearner::new(device, objective, config.shape, phi)?;
        for (network, parameters) in config.initial_parameters().iter().enumerate() {
            learner.set_parameters(network, parameters)?;
        }
        Ok(Self { config, batches, batch: B::Batch::default(), first_stream: 0, learner })
    }

    /// A run from a checkpoint of its own.
    ///
    /// # Errors
    /// As [`Session::new`], and a checkpoint that holds no optimizer state.
    pub fn resume(device: D, checkpoint: &Checkpoint, objective: B::Objective, batches: B) -> Result<Self> {
        let Stage::Training { optimizer } = &checkpoint.stage else {
            let expected = "a checkpoint written by train, which can be continued";
            return Err(Error::invalid("checkpoint", "an adapted one, without optimizer state", expected));
        };
        let config = checkpoint.config.clone();
        config.check()?;
        let mut learner = MetaLearner::new(device, objective, config.shape, checkpoint.phi.clone())?;
        for (network, parameters) in checkpoint.parameters.iter().enumerate() {
            learner.set_parameters(network, parameters)?;
        }
        learner.restore(optimizer, &checkpoint.phi)?;
        Ok(Self { config, batches, batch: B::Batch::default(), first_stream: 0, learner })
    }

    /// Begins with other parameters, one for each network.
    ///
    /// # Errors
    /// Parameters of another architecture.
    pub fn set_parameters(&mut self, parameters: &[Parameters<f32>]) -> Result<()> {
        parameters.iter().enumerate().try_for_each(|(network, p)| self.learner.set_parameters(network, p))
    }

    /// Draws from streams from this one on.
    pub(super) fn set_first_stream(&mut self, stream: u64) {
        self.first_stream = stream;
    }

    /// Meta-steps done.
    pub fn steps_done(&self) -> u64 {
        self.learner.steps_done()
    }

    /// The configuration.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The learner.
    pub fn learner(&self) -> &MetaLearner<f32, D, B::Objective> {
        &self.learner
    }

    /// One meta-step.
    ///
    /// # Errors
    /// A loss or a gradient that is not finite: the parameters are left as they were.
    pub fn step(&mut self) -> Result<StepReport> {
        let done = self.learner.steps_done();
        let plays = self.config.adversarial_at(done);
        self.learner.set_adversarial(plays);
        let mut rng = stream(self.config.seed, self.first_stream + done + 1);
        self.batches.draw(&mut rng, &mut self.batch)?;
        let losses = self.learner.run(self.batches.rows(&self.batch), &mut rng)?;
        let report = StepReport {
            step: done + 1,
            loss: losses.mean(),
            discriminator_loss: plays.then(|| losses.discriminator_mean()),
        };
        self.learner.update(&self.config.outer)?;
        Ok(report)
    }

    /// Everything that is needed to go on from here.
    pub fn checkpoint(&self) -> Checkpoint {
        let networks = self.config.job.networks().len();
        Checkpoint {
            config: self.config.clone(),
            parameters: (0..networks).map(|n| self.learner.parameters(n)).collect(),
            phi: (0..networks).map(|n| self.learner.phi(n).clone()).collect(),
            step: self.learner.steps_done(),
            stage: Stage::Training { optimizer: Box::new(self.learner.optimizer_state()) },
        }
    }
}
