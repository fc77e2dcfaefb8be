use super::batches::Tasks;
use super::config::{Job, RunConfig};
use super::trainer::{StepReport, Trainer, TrainingConfig, initial_parameters, initial_phi};
use crate::checkpoint::{Checkpoint, Stage};
use crate::device::Device;
use crate::model::Parameters;
use crate::{Algorithm, Error, MetaLearner, MetaOptimizer, Objective, Result};

/// The course of a run: its training, and what it follows from.
pub struct Session<O: Objective, S: Tasks<O>, D: Device<f32>> {
    config: RunConfig,
    trainer: Trainer<O, S, D>,
}

impl RunConfig {
    /// The parameters that the run begins with.
    pub fn initial_parameters(&self) -> Vec<Parameters<f32>> {
        initial_parameters(self.job.networks().iter().map(|(_, mlp)| *mlp), self.seed)
    }

    /// The meta-optimizers that the run begins with.
    ///
    /// # Errors
    /// As [`RunConfig::check`].
    pub fn initial_phi(&self) -> Result<Vec<MetaOptimizer<f32>>> {
        self.check()?;
        initial_phi(&self.job.networks(), self.job.inner(), &self.initial_rates, self.seed)
    }

    /// The algorithm of meta-step `step`, counted from 0.
    pub fn algorithm_at(&self, step: u64) -> Algorithm {
        if step < self.first_order { Algorithm::FirstOrderMaml } else { self.job.inner().algorithm }
    }

    /// The weights of the query losses after 1, 2, ... inner steps in meta-step `step`, counted from 0; nothing when the last
    /// alone counts.
    pub fn query_weights_at(&self, step: u64) -> Option<Vec<f64>> {
        let inner_steps = self.job.inner().steps;
        (step < self.multi_step).then(|| {
            let early = (1.0 - step as f64 / self.multi_step as f64) / inner_steps as f64;
            let mut weights = vec![early; inner_steps];
            if let Some(last) = weights.last_mut() {
                *last = 1.0 - early * (inner_steps - 1) as f64;
            }
            weights
        })
    }

    /// Whether the discriminator takes part in meta-step `step`, counted from 0.
    pub fn adversarial_at(&self, step: u64) -> bool {
        matches!(&self.job, Job::Video(job) if job.objective.adversarial && step >= job.adversarial_from)
    }

    /// What a trainer is told.
    fn training(&self) -> TrainingConfig {
        TrainingConfig {
            shape: self.shape,
            inner_rates: self.initial_rates.clone(),
            outer: self.outer,
            seed: self.seed,
            adversarial_from: match &self.job {
                Job::Video(job) => job.adversarial_from,
                Job::Sinusoid(_) => 0,
            },
        }
    }
}

impl<O: Objective, S: Tasks<O>, D: Device<f32> + Clone> Session<O, S, D> {
    /// A run from its beginning.
    ///
    /// # Errors
    /// A configuration that does not fit together, or too little memory.
    pub fn new(device: D, config: RunConfig, objective: O, tasks: S) -> Result<Self> {
        let phi = config.initial_phi()?;
        let mut trainer = Trainer::assemble(device, objective, config.training(), tasks, phi)?;
        trainer.set_parameters(&config.initial_parameters())?;
        Ok(Self { config, trainer })
    }

    /// A run from a checkpoint of its own.
    ///
    /// # Errors
    /// As [`Session::new`], and a checkpoint that holds no optimizer state.
    pub fn resume(device: D, checkpoint: &Checkpoint, objective: O, tasks: S) -> Result<Self> {
        let Stage::Training { optimizer } = &checkpoint.stage else {
            let expected = "a checkpoint written by train, which can be continued";
            return Err(Error::invalid("checkpoint", "an adapted one, without optimizer state", expected));
        };
        let config = checkpoint.config.clone();
        config.check()?;
        let mut trainer = Trainer::assemble(device, objective, config.training(), tasks, checkpoint.phi.clone())?;
        trainer.set_parameters(&checkpoint.parameters)?;
        trainer.learner_mut().restore(optimizer, &checkpoint.phi)?;
        Ok(Self { config, trainer })
    }

    /// Begins with other parameters, one for each network.
    ///
    /// # Errors
    /// Parameters of another architecture.
    pub fn set_parameters(&mut self, parameters: &[Parameters<f32>]) -> Result<()> {
        self.trainer.set_parameters(parameters)
    }

    /// Draws from streams from this one on.
    pub(super) fn set_first_stream(&mut self, stream: u64) {
        self.trainer.set_first_stream(stream);
    }

    /// Meta-steps done.
    pub fn steps_done(&self) -> u64 {
        self.trainer.steps_done()
    }

    /// The configuration.
    pub fn config(&self) -> &RunConfig {
        &self.config
    }

    /// The learner.
    pub fn learner(&self) -> &MetaLearner<f32, D, O> {
        self.trainer.learner()
    }

    /// One meta-step.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step(&mut self) -> Result<StepReport> {
        let algorithm = self.config.algorithm_at(self.steps_done());
        let weights = self.config.query_weights_at(self.steps_done());
        let learner = self.trainer.learner_mut();
        learner.set_algorithm(algorithm)?;
        learner.set_multi_step(weights.is_some())?;
        if let Some(weights) = weights {
            learner.set_query_weights(&weights)?;
        }
        self.trainer.step()
    }

    /// Everything that is needed to go on from here.
    pub fn checkpoint(&self) -> Checkpoint {
        let networks = self.config.job.networks().len();
        Checkpoint {
            config: self.config.clone(),
            parameters: (0..networks).map(|n| self.learner().parameters(n)).collect(),
            phi: (0..networks).map(|n| self.learner().phi(n)).collect(),
            step: self.learner().steps_done(),
            stage: Stage::Training { optimizer: Box::new(self.learner().optimizer_state()) },
        }
    }
}
