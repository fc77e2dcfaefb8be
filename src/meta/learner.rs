use std::ops::Range;

use rand::{Rng, RngExt};
use serde::{Deserialize, Serialize};

use super::ahead::Ahead;
use super::layout::{LaidOut, check_memory};
use super::objective::{LaneShape, Objective};
use super::outer_step::NETWORKS;
use super::{MetaOptimizer, RateKind};
use crate::device::{Device, Region};
use crate::inner::{Cost, Learned, Nearby, Rates, Strategy};
use crate::model::Parameters;
use crate::{Error, Result, Scalar};

/// The shape of a meta-batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shape {
    /// Tasks, T.
    pub tasks: usize,
    /// Support rows a task, K.
    pub shots: usize,
    /// Query rows a task, Kq.
    pub queries: usize,
}

/// The query losses at the adapted parameters.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Losses<T> {
    /// Of each task: the loss, or the generator's loss.
    pub task: Vec<T>,
    /// Of each task: the discriminator's loss; empty without a discriminator.
    pub discriminator: Vec<T>,
}

impl<T: Scalar> Losses<T> {
    /// The mean over the tasks.
    pub fn mean(&self) -> f64 {
        mean(&self.task)
    }

    /// Takes those of some of `all` tasks: the task losses, then the discriminator's if there is one.
    pub(super) fn take(&mut self, tasks: Range<usize>, all: usize, results: &[T]) {
        let (task, discriminator) = results.split_at(tasks.len());
        self.task[tasks.clone()].copy_from_slice(task);
        if !discriminator.is_empty() {
            self.discriminator.resize(all, T::ZERO);
            self.discriminator[tasks].copy_from_slice(discriminator);
        }
    }

    /// The discriminator's, a mean over the tasks; NaN without one.
    pub fn discriminator_mean(&self) -> f64 {
        mean(&self.discriminator)
    }
}

fn mean<T: Scalar>(values: &[T]) -> f64 {
    values.iter().map(|v| v.to_f64()).sum::<f64>() / values.len() as f64
}

/// What adaptation does to the query set, step by step.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Trace<T> {
    /// `[steps + 1]`: the losses after 0, 1, ... steps.
    pub losses: Vec<Losses<T>>,
    /// `[steps + 1]`: the network's (or the generator's) outputs, `[tasks, queries, outputs]` each.
    pub outputs: Vec<Vec<T>>,
}

/// One lane: some of the tasks, with memory of their own.
pub(super) struct Lane<T: Scalar, D: Device<T>, O: Objective> {
    pub(super) shape: LaneShape,
    pub(super) arena: D::Arena,
    pub(super) inner: O::Loop<T>,
    pub(super) indices: Vec<u32>,
    /// The inner loop, kept to be replayed.
    pub(super) graph: D::Graph,
}

/// Meta-learning of an objective on a device: holds the shared parameters, phi and the outer optimizer's state, and
/// carries out meta-steps.
///
/// After the first meta-step nothing is allocated (but for the `gemm` crate's packing room). On the CPU small networks run in lanes, a part of the tasks on each
/// thread; large ones use all threads in every operation.
pub struct MetaLearner<T: Scalar, D: Device<T>, O: Objective> {
    pub(super) device: D,
    pub(super) objective: O,
    pub(super) shape: Shape,
    pub(super) strategy: Strategy,
    pub(super) planned: Strategy,
    pub(super) cost: Cost,
    /// Of each form that is possible.
    pub(super) costs: [Option<Cost>; Strategy::ALL.len()],
    pub(super) estimates: [Option<f64>; Strategy::ALL.len()],
    pub(super) bytes: usize,
    pub(super) lanes: Vec<Lane<T, D, O>>,
    pub(super) phi: Vec<MetaOptimizer<T>>,
    pub(super) rates: Vec<Rates<T>>,
    /// The gradient of the rates in the inner loop's layout, and in phi's.
    pub(super) rate_gradient: Vec<Vec<T>>,
    pub(super) phi_gradient: Vec<Vec<T>>,
    pub(super) phi_moments: Vec<Vec<(f64, f64)>>,
    /// Adam's moments of each network, and of the weights of its phi, in the first lane's arena.
    pub(super) moments: Vec<[Region; 2]>,
    pub(super) weight_moments: Vec<[Region; 2]>,
    /// The same of phi's rates, where the device learns them; else the host does, with `phi_moments`.
    pub(super) rate_moments: Vec<[Region; 2]>,
    /// Where those rates lie.
    pub(super) learned: [Option<Learned>; NETWORKS],
    /// Outer steps in all, and those that each network took part in.
    pub(super) steps_done: u64,
    pub(super) steps_of: Vec<u64>,
    pub(super) losses: Losses<T>,
    pub(super) host: Vec<T>,
    /// What the outer optimizer's step finds beforehand, in the first lane's arena.
    pub(super) findings: Region,
    /// The outer optimizer's step alone, kept to be replayed.
    pub(super) update_graph: D::Graph,
    pub(super) ahead: Ahead<D::Graph>,
    /// Whether rows of a meta-batch are on the device.
    pub(super) loaded: bool,
    /// Whether those that the last run has made are there.
    pub(super) has_rows: bool,
}

impl<T: Scalar, D: Device<T>, O: Objective> MetaLearner<T, D, O> {
    /// A learner for meta-batches of `shape`, with parameters all zero until [`MetaLearner::set_parameters`]; `phi` has
    /// one meta-optimizer for each network.
    ///
    /// # Errors
    /// A configuration that does not fit together, or too little memory.
    pub fn new(device: D, objective: O, shape: Shape, phi: Vec<MetaOptimizer<T>>) -> Result<Self> {
        Self::build(device, objective, shape, phi, false)
    }

    /// A learner that only adapts, and evaluates the query set after every inner step: see [`MetaLearner::trace`].
    ///
    /// # Errors
    /// As [`MetaLearner::new`].
    pub fn tracer(device: D, objective: O, shape: Shape, phi: Vec<MetaOptimizer<T>>) -> Result<Self> {
        Self::build(device, objective, shape, phi, true)
    }

    pub(super) fn build(
        device: D,
        objective: O,
        shape: Shape,
        phi: Vec<MetaOptimizer<T>>,
        trace: bool,
    ) -> Result<Self> {
        if shape.tasks == 0 || shape.shots == 0 || shape.queries == 0 {
            return Err(Error::invalid("shape", format!("{shape:?}"), "at least one task, support row and query row"));
        }
        objective.check(&shape)?;
        let inner = objective.inner().clone();
        let networks = objective.networks();
        if phi.len() != networks.len() || phi.iter().any(|p| p.kind() != inner.rates) {
            let expected = format!("{} of kind {:?}, one for each network", networks.len(), inner.rates);
            return Err(Error::invalid("phi", format!("{} meta-optimizers", phi.len()), expected));
        }
        let fit = |(phi, (role, mlp)): (&MetaOptimizer<T>, &(&str, &crate::model::Mlp))| {
            MetaOptimizer::from_values(inner.rates, mlp, inner.steps, phi.values().to_vec()).map_err(|e| match e {
                Error::Invalid { problem, expected, .. } => Error::invalid(format!("{role} rates"), problem, expected),
                other => other,
            })
        };
        let phi: Vec<_> = phi.iter().zip(&networks).map(fit).collect::<Result<_>>()?;
        let mlps: Vec<_> = networks.iter().map(|(_, mlp)| (*mlp).clone()).collect();
        let whole = LaneShape { tasks: 0..shape.tasks, shape, strategy: Strategy::Dual, trace };
        let specs = objective.specs(&whole);
        let nearby = Nearby::of(&device, &specs);
        let planned = crate::inner::choose::<T>(&specs, &inner, &nearby);
        let strategy = match inner.strategy {
            // What only adapts does not go back through its last layer.
            Some(Strategy::Folded) if trace => Strategy::Dual,
            asked => asked.unwrap_or(planned),
        };
        if strategy == Strategy::Folded {
            crate::inner::check_folded(&specs, &inner)?;
        }
        if strategy == Strategy::Resident {
            crate::inner::check_resident::<T>(&specs, &inner, &nearby)?;
        }
        let is_possible = |form| crate::inner::is_possible::<T>(form, &specs, &inner, &nearby);
        let costs = Strategy::ALL.map(|form| is_possible(form).then(|| crate::inner::cost_of(&specs, form)));
        let cost = crate::inner::cost_of(&specs, strategy);
        let estimates = Strategy::ALL
            .map(|form| costs[form as usize].map(|cost| crate::inner::estimate(&cost, form, shape.tasks, &nearby)));
        let laid_out = |tasks| LaidOut::new(&objective, Shape { tasks, ..shape }, &phi, strategy, trace, &device);
        let whole = laid_out(shape.tasks);
        let bytes = whole.bytes();
        check_memory(&device, shape.tasks, bytes, |tasks| laid_out(tasks).bytes())?;
        let LaidOut { lanes, moments, weight_moments, rate_moments, findings } = whole;
        let of = |network| O::network::<T>(&lanes[0].1, network).learned;
        let learned = std::array::from_fn(|network| of(network).filter(|_| network < rate_moments.len()));
        let lanes = (lanes.into_iter())
            .map(|(shape, built, elements)| {
                let rows = inner.minibatch.map_or(0, |rows| rows * inner.steps * shape.tasks.len());
                Ok(Lane {
                    shape,
                    arena: device.arena(elements)?,
                    inner: built,
                    indices: vec![0; rows],
                    graph: D::Graph::default(),
                })
            })
            .collect::<Result<Vec<_>>>()?;
        let rates: Vec<_> = match inner.rates {
            _ if !rate_moments.is_empty() => mlps.iter().map(|_| Rates::Learned).collect(),
            RateKind::PerParameter => mlps.iter().map(|_| Rates::PerParameter(Vec::new())).collect(),
            _ => mlps.iter().map(|_| Rates::PerLayerPerStep { rates: Vec::new(), bias: Vec::new() }).collect(),
        };
        let inner_len = |mlp: &crate::model::Mlp| match inner.rates {
            RateKind::Shared => inner.steps * mlp.layers(),
            kind => super::rate_count(kind, mlp, inner.steps),
        };
        let largest = mlps.iter().map(crate::model::Mlp::parameter_count).chain(phi.iter().map(|p| p.weights().len()));
        let mut learner = Self {
            rate_gradient: mlps.iter().map(|mlp| vec![T::ZERO; inner_len(mlp)]).collect(),
            phi_gradient: phi.iter().map(|p| vec![T::ZERO; p.rate_count()]).collect(),
            phi_moments: phi.iter().map(|p| vec![(0.0, 0.0); p.rate_count()]).collect(),
            host: vec![T::ZERO; largest.max().unwrap_or(0)],
            losses: Losses { task: vec![T::ZERO; shape.tasks], discriminator: Vec::new() },
            device,
            objective,
            shape,
            strategy,
            planned,
            cost,
            costs,
            estimates,
            bytes,
            lanes,
            phi,
            rates,
            moments,
            weight_moments,
            rate_moments,
            learned,
            steps_done: 0,
            steps_of: vec![0; mlps.len()],
            findings,
            update_graph: D::Graph::default(),
            ahead: Ahead::default(),
            loaded: false,
            has_rows: false,
        };
        learner.upload_phi();
        Ok(learner)
    }

    /// phi's weights, to every lane, and its rates where they are learned there.
    pub(super) fn upload_phi(&mut self) {
        let learned = self.learned;
        for lane in &mut self.lanes {
            for (network, phi) in self.phi.iter().enumerate() {
                if let Some([weights, _]) = O::network(&lane.inner, network).phi_weights() {
                    self.device.upload(&mut lane.arena, weights, phi.weights());
                }
                if let Some(learned) = learned[network] {
                    self.device.upload(&mut lane.arena, learned.rates, phi.rates());
                }
            }
        }
    }

    /// The form the inner loop runs in.
    pub fn strategy(&self) -> Strategy {
        self.strategy
    }

    /// What a meta-step costs, without the outer optimizer.
    pub fn cost(&self) -> Cost {
        self.cost
    }

    /// What a meta-step would cost in that form; nothing where the planner would not take it whatever it costs.
    pub fn cost_in(&self, strategy: Strategy) -> Option<Cost> {
        self.costs[strategy as usize]
    }

    /// What the planner compares it by, on this device: flop of large products that would take as long.
    pub fn estimate_in(&self, strategy: Strategy) -> Option<f64> {
        self.estimates[strategy as usize]
    }

    /// Parts of the meta-batch that run at once, each on a thread of its own; 1 where operations over all tasks take the
    /// whole device.
    pub fn lanes(&self) -> usize {
        self.lanes.len()
    }

    /// The form the planner would take.
    pub fn planned(&self) -> Strategy {
        self.planned
    }

    /// Bytes of device memory the learner holds.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    /// The shape of the meta-batches.
    pub fn shape(&self) -> Shape {
        self.shape
    }

    /// Meta-steps applied by [`MetaLearner::update`].
    pub fn steps_done(&self) -> u64 {
        self.steps_done
    }

    /// Sets one network's shared parameters (0: the network or the generator, 1: the discriminator).
    ///
    /// # Errors
    /// Parameters of another architecture, or a network the objective has not.
    pub fn set_parameters(&mut self, network: usize, parameters: &Parameters<T>) -> Result<()> {
        let networks = self.objective.networks();
        let Some((role, mlp)) = networks.get(network) else {
            return Err(Error::invalid("network", network.to_string(), format!("below {}", networks.len())));
        };
        if parameters.mlp() != *mlp {
            let (problem, expected) = (parameters.mlp().summary(), mlp.summary());
            return Err(Error::invalid(format!("{role} parameters"), problem, expected));
        }
        for lane in &mut self.lanes {
            let region = O::network(&lane.inner, network).parameters;
            self.device.upload(&mut lane.arena, region, parameters.values());
        }
        self.device.check()
    }

    /// A copy of one network's shared parameters.
    pub fn parameters(&self, network: usize) -> Parameters<T> {
        self.read(network, O::network(&self.lanes[0].inner, network).parameters)
    }

    /// A copy of the meta-gradient of one network, after a [`MetaLearner::run`] that computes it.
    pub fn gradient(&self, network: usize) -> Parameters<T> {
        self.read(network, O::network(&self.lanes[0].inner, network).gradient)
    }

    pub(super) fn read(&self, network: usize, region: Region) -> Parameters<T> {
        let mut parameters = Parameters::zeros(self.objective.networks()[network].1);
        self.device.download(&self.lanes[0].arena, region, parameters.values_mut());
        parameters
    }

    /// Whether the video GAN's discriminator takes part in the coming runs; at first it does. While it does not, the
    /// adversarial term is left out, and the discriminator, its rates and its optimizer state stay as they are.
    pub fn set_adversarial(&mut self, plays: bool) {
        for lane in &mut self.lanes {
            O::set_adversarial(&mut lane.inner, plays);
            for network in (0..self.phi.len()).filter(|n| !O::plays(&lane.inner, *n)) {
                self.device.fill(&mut lane.arena, O::network(&lane.inner, network).gradient, T::ZERO);
            }
        }
    }

    /// Whether the coming runs compute the meta-gradient of the parameters; at first they do. Without it phi alone can be
    /// trained, at less cost. Reptile, which trains nothing else, computes it all the same.
    pub fn set_trains_parameters(&mut self, trains: bool) {
        for lane in &mut self.lanes {
            O::networks_mut(&mut lane.inner).for_each(|net| net.wants_gradient = trains);
        }
    }

    /// A copy of one network's meta-optimizer.
    pub fn phi(&self, network: usize) -> MetaOptimizer<T> {
        let (mut phi, lane) = (self.phi[network].clone(), &self.lanes[0]);
        if let Some(learned) = self.learned[network] {
            self.device.download(&lane.arena, learned.rates, phi.rates_mut());
        }
        if let Some([weights, _]) = O::network(&lane.inner, network).phi_weights() {
            self.device.download(&lane.arena, weights, phi.weights_mut());
        }
        phi
    }

    /// A copy of the gradient of one network's phi, in phi's own order; zeros when it is not learned.
    pub fn phi_gradient(&self, network: usize) -> Vec<T> {
        let (mut gradient, lane) = (self.phi_gradient[network].clone(), &self.lanes[0]);
        if let Some(learned) = self.learned[network] {
            self.device.download(&lane.arena, learned.gradient, &mut gradient);
        }
        let rates = gradient.len();
        gradient.resize(self.phi[network].values().len(), T::ZERO);
        if let Some([_, region]) = O::network(&lane.inner, network).phi_weights().filter(|r| !r[1].is_empty()) {
            self.device.download(&lane.arena, region, &mut gradient[rates..]);
        }
        gradient
    }

    /// Adapts to every task of the batch and computes the meta-gradient; returns the query losses at the adapted
    /// parameters. `rng` draws minibatches, if the inner loop uses them.
    ///
    /// # Errors
    /// Rows that do not fit the shape, or a device that failed.
    pub fn run(&mut self, rows: O::Rows<'_, T>, rng: &mut impl Rng) -> Result<&Losses<T>> {
        self.run_on(Some(rows), rng)
    }

    /// [`MetaLearner::run`] on the rows of the last run or meta-step, which are still on the device: nothing is copied there.
    ///
    /// # Errors
    /// As [`MetaLearner::run`]; no rows there, or noise that is fresh in every run.
    pub fn run_again(&mut self, rng: &mut impl Rng) -> Result<&Losses<T>> {
        self.run_on(None, rng)
    }

    pub(super) fn run_on(&mut self, rows: Option<O::Rows<'_, T>>, rng: &mut impl Rng) -> Result<&Losses<T>> {
        self.prepare(rows, rng)?;
        self.has_rows = true;
        let learned = self.learned;
        let learn = self.objective.inner().learn_rates && self.rate_moments.is_empty();
        let rates = &self.rates;
        self.device.for_each_lane(&mut self.lanes, |device, lane| {
            let Lane { shape, arena, inner, indices, graph } = lane;
            device.submit(arena, graph, &O::losses(inner).of_tasks(), |device, arena| {
                O::run(inner, device, arena, rates, rows, shape, indices);
                learned_gradients::<T, D, O>(device, arena, inner, &learned);
            });
        });
        self.collect_losses();
        self.reduce_gradients();
        if learn {
            for (network, gradient) in self.rate_gradient.iter_mut().enumerate() {
                gradient.fill(T::ZERO);
                for lane in &mut self.lanes {
                    let net = O::network(&lane.inner, network);
                    if net.has_rate_gradient() && O::plays(&lane.inner, network) {
                        net.rate_gradient(&self.device, &mut lane.arena, gradient);
                    }
                }
                self.phi[network].reduce(gradient, &mut self.phi_gradient[network]);
            }
        }
        self.device.check()?;
        Ok(&self.losses)
    }

    /// What a run takes beside the rows: minibatches, and the rates.
    pub(super) fn prepare(&mut self, rows: Option<O::Rows<'_, T>>, rng: &mut impl Rng) -> Result<()> {
        match rows {
            Some(rows) => self.objective.check_rows(&self.shape, rows)?,
            None if !self.loaded => {
                return Err(Error::invalid("rows", "none on the device", "MetaLearner::run before"));
            }
            None if self.objective.inner().fresh_noise => {
                return Err(Error::invalid("rows", "fresh noise", "MetaLearner::run, with noise of its own"));
            }
            None => {}
        }
        self.loaded = true;
        let (steps, shots) = (self.objective.inner().steps, self.shape.shots);
        // Step by step over the whole meta-batch, so that the draws do not depend on the number of lanes.
        for step in 0..steps {
            for lane in &mut self.lanes {
                let rows = lane.indices.len() / steps;
                draw_minibatches(&mut lane.indices[step * rows..][..rows], lane.shape.tasks.len(), shots, rng);
            }
        }
        if self.rate_moments.is_empty() {
            self.phi.iter().zip(&mut self.rates).for_each(|(phi, rates)| phi.expand(rates));
        }
        Ok(())
    }

    fn collect_losses(&mut self) {
        for lane in &mut self.lanes {
            let tasks = lane.shape.tasks.clone();
            self.losses.take(tasks, self.shape.tasks, self.device.results(&mut lane.graph));
        }
    }

    /// Adds the lanes' gradients to the first one's, in their order.
    fn reduce_gradients(&mut self) {
        let Some((first, rest)) = self.lanes.split_first_mut() else { return };
        for network in 0..self.phi.len() {
            let of = |inner: &O::Loop<T>| {
                let network = O::network(inner, network);
                [Some(network.gradient), network.phi_weights().map(|regions| regions[1])]
            };
            for lane in &mut *rest {
                for (to, from) in of(&first.inner).into_iter().flatten().zip(of(&lane.inner).into_iter().flatten()) {
                    let host = &mut self.host[..from.len()];
                    self.device.download(&lane.arena, from, host);
                    self.device.add_host(&mut first.arena, to, host);
                }
            }
        }
    }
}

/// The gradients of rates that are learned on the device, of the networks that took part.
pub(super) fn learned_gradients<T: Scalar, D: Device<T>, O: Objective>(
    device: &D,
    arena: &mut D::Arena,
    inner: &O::Loop<T>,
    learned: &[Option<Learned>],
) {
    for network in (0..learned.len()).filter(|n| learned[*n].is_some() && O::plays(inner, *n)) {
        O::network(inner, network).learned_gradient(device, arena);
    }
}

/// For each task, some of the support rows, each at most once (Fisher-Yates, as far as needed).
fn draw_minibatches(indices: &mut [u32], tasks: usize, shots: usize, rng: &mut impl Rng) {
    if indices.is_empty() {
        return;
    }
    let rows = indices.len() / tasks;
    for (task, chosen) in indices.chunks_mut(rows).enumerate() {
        let first = (task * shots) as u32;
        for k in 0..rows {
            // Draw the next of the rows not chosen yet: shift the draw past the chosen ones, in order.
            let mut draw = rng.random_range(0..(shots - k) as u32);
            chosen[..k].sort_unstable();
            for c in &chosen[..k] {
                if draw >= *c - first {
                    draw += 1;
                }
            }
            chosen[k] = first + draw;
        }
    }
}
