use std::ops::ControlFlow;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::batches::Tasks;
use crate::device::Device;
use crate::meta::sealed::Build;
use crate::model::{Mlp, Parameters};
use crate::{
    Error, InnerConfig, MetaLearner, MetaOptimizer, Objective, OuterConfig, Result, Shape, SupervisedConfig,
    SupervisedRows,
};

/// How an objective is meta-trained.
#[derive(Clone, Debug, PartialEq)]
pub struct TrainingConfig {
    /// The shape of the meta-batches.
    pub shape: Shape,
    /// The inner learning rate each network begins with: one, or the generator's and the discriminator's.
    pub inner_rates: Vec<f64>,
    /// The outer optimizer.
    pub outer: OuterConfig,
    /// Where all random numbers come from.
    pub seed: u64,
    /// The discriminator, if there is one, takes part from this meta-step on, counted from 0.
    pub adversarial_from: u64,
}

impl TrainingConfig {
    /// With Adam at 1e-3, seed 0, and both players from the beginning.
    pub fn new(shape: Shape, inner_rates: &[f64]) -> Self {
        let inner_rates = inner_rates.to_vec();
        Self { shape, inner_rates, outer: OuterConfig::adam(1e-3), seed: 0, adversarial_from: 0 }
    }
}

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

/// Meta-training: a learner, the tasks it learns from, and the outer optimizer.
pub struct Trainer<O: Objective, S: Tasks<O>, D: Device<f32>> {
    device: D,
    objective: O,
    config: TrainingConfig,
    tasks: S,
    batch: O::Batch,
    /// Which stream the batch was drawn from, if it is for the coming meta-step, and where that has come to.
    drawn: Option<(u64, ChaCha8Rng)>,
    /// Meta-step `n`, from 1, draws from stream `first_stream + n` of the seed.
    first_stream: u64,
    learner: MetaLearner<f32, D, O>,
}

/// The stream of a run's seed that its parameters are drawn from.
const INITIAL_STREAM: u64 = 0;
/// The one that phi's weights are drawn from: far from those of the meta-steps.
const PHI_STREAM: u64 = 1 << 42;

/// A stream of a run's random numbers.
pub(crate) fn stream(seed: u64, stream: u64) -> ChaCha8Rng {
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    rng.set_stream(stream);
    rng
}

/// The parameters that networks begin with.
pub(super) fn initial_parameters<'a>(networks: impl Iterator<Item = &'a Mlp>, seed: u64) -> Vec<Parameters<f32>> {
    let mut rng = stream(seed, INITIAL_STREAM);
    networks.map(|mlp| Parameters::initialise(mlp, &mut rng)).collect()
}

/// The meta-optimizers that training begins with: one for each network, with its rate.
pub(super) fn initial_phi(
    networks: &[(&str, &Mlp)],
    inner: &InnerConfig,
    rates: &[f64],
    seed: u64,
) -> Result<Vec<MetaOptimizer<f32>>> {
    let mut rng = stream(seed, PHI_STREAM);
    (networks.iter().zip(rates))
        .map(|((_, mlp), rate)| MetaOptimizer::initialise(inner.rates, mlp, inner.steps, *rate, &mut rng))
        .collect()
}

impl<O: Objective, S: Tasks<O>, D: Device<f32> + Clone> Trainer<O, S, D> {
    /// Networks with PyTorch's initialisation, and the rates of the configuration.
    ///
    /// # Errors
    /// A configuration that does not fit together, or too little memory.
    pub fn new(device: D, objective: O, config: TrainingConfig, tasks: S) -> Result<Self> {
        config.outer.check()?;
        let networks = objective.networks();
        if config.inner_rates.len() != networks.len() {
            let expected = format!("{}, one for each network", networks.len());
            return Err(Error::invalid("inner rates", format!("{} values", config.inner_rates.len()), expected));
        }
        let phi = initial_phi(&networks, objective.inner(), &config.inner_rates, config.seed)?;
        let parameters = initial_parameters(networks.iter().map(|(_, mlp)| *mlp), config.seed);
        let mut trainer = Self::assemble(device, objective, config, tasks, phi)?;
        trainer.set_parameters(&parameters)?;
        Ok(trainer)
    }

    /// With this phi, and parameters that are yet to be set.
    pub(super) fn assemble(
        device: D,
        objective: O,
        config: TrainingConfig,
        tasks: S,
        phi: Vec<MetaOptimizer<f32>>,
    ) -> Result<Self> {
        let learner = MetaLearner::new(device.clone(), objective.clone(), config.shape, phi)?;
        Ok(Self { device, objective, config, tasks, batch: O::Batch::default(), drawn: None, first_stream: 0, learner })
    }

    /// Begins with, or goes on from, other parameters, one for each network.
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

    /// The learner: parameters, phi, the form it runs in.
    pub fn learner(&self) -> &MetaLearner<f32, D, O> {
        &self.learner
    }

    pub(super) fn learner_mut(&mut self) -> &mut MetaLearner<f32, D, O> {
        &mut self.learner
    }

    /// Meta-steps done.
    pub fn steps_done(&self) -> u64 {
        self.learner.steps_done()
    }

    /// One meta-step.
    ///
    /// # Errors
    /// Rows that cannot be had or do not fit the shape, or a loss or gradient that is not finite: the parameters are left as
    /// they were.
    pub fn step(&mut self) -> Result<StepReport> {
        let done = self.learner.steps_done();
        let plays = done >= self.config.adversarial_from;
        self.learner.set_adversarial(plays);
        self.learner.set_trains_parameters(self.config.outer.trains_parameters);
        let number = self.first_stream + done + 1;
        let mut rng = match self.drawn.take() {
            Some((drawn, rng)) if drawn == number => rng,
            _ => self.draw(number)?,
        };
        self.learner.submit(<O as Build>::rows(&self.batch), &self.config.outer, &mut rng)?;
        if self.learner.may_submit() > 1 {
            // While the device works. What goes wrong is told by the next step, which tries again.
            self.drawn = self.draw(number + 1).ok().map(|rng| (number + 1, rng));
        }
        let losses = self.learner.wait()?;
        let discriminator_loss = (plays && !losses.discriminator.is_empty()).then(|| losses.discriminator_mean());
        Ok(StepReport { step: done + 1, loss: losses.mean(), discriminator_loss })
    }

    /// Draws a batch from a stream; returns where the stream has come to.
    fn draw(&mut self, number: u64) -> Result<ChaCha8Rng> {
        let mut rng = stream(self.config.seed, number);
        O::clear(&mut self.batch);
        self.tasks.draw(&mut rng, &mut self.batch)?;
        Ok(rng)
    }

    /// `steps` meta-steps, or fewer if `after_step`, which is called after each, breaks off.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn train(&mut self, steps: u64, mut after_step: impl FnMut(&StepReport) -> ControlFlow<()>) -> Result<()> {
        for _ in 0..steps {
            if after_step(&self.step()?).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl<S: Tasks<SupervisedConfig>, D: Device<f32> + Clone> Trainer<SupervisedConfig, S, D> {
    /// Adapts to a new task: the parameters after the inner loop on its rows, `x` `[rows, inputs]` and `y` `[rows, outputs]`.
    /// [`crate::forward`] predicts with them.
    ///
    /// # Errors
    /// Rows that do not fit the network, or each other.
    pub fn adapt(&self, x: &[f32], y: &[f32]) -> Result<Parameters<f32>> {
        let shots = x.len() / self.objective.mlp.inputs();
        let shape = Shape { tasks: 1, shots, queries: shots };
        let phi = vec![self.learner.phi(0)];
        let mut learner = MetaLearner::tracer(self.device.clone(), self.objective.clone(), shape, phi)?;
        learner.set_parameters(0, &self.learner.parameters(0))?;
        let rows = SupervisedRows { support_x: x, support_y: y, query_x: x, query_y: y };
        learner.run(rows, &mut stream(self.config.seed, self.first_stream))?;
        learner.adapted(0, 0)
    }
}
