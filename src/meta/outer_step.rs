//! The outer optimizer's step, and its state.

use super::learner::{Losses, MetaLearner};
use super::objective::Objective;
use super::outer::host_change;
use super::{MetaOptimizer, OuterConfig, OuterKind};
use crate::device::{CHECKED_GRADIENTS, CHECKED_RATES, Device, Finding, GradientCheck, OuterStep, Region};
use crate::inner::Learned;
use crate::model::Parameters;
use crate::{Error, Result, Scalar};

/// What an outer optimizer remembers.
#[derive(Clone, Debug, PartialEq)]
pub struct OptimizerState<T> {
    /// First and second moments of each network.
    pub networks: Vec<[Parameters<T>; 2]>,
    /// First and second moments of each network's phi.
    pub phi: Vec<Vec<(f64, f64)>>,
    /// Steps that each network took part in.
    pub steps_of: Vec<u64>,
    /// Steps taken in all.
    pub steps: u64,
}

/// One step of the outer optimizer, as far as the device takes it.
pub(super) struct OuterWork<'a> {
    config: &'a OuterConfig,
    /// The schedule's share of the learning rates.
    scale: f64,
    /// Whether phi's weights move.
    learns: bool,
    /// The number of this step, for each network.
    steps_of: [u64; NETWORKS],
    /// How many of phi's weights are factors.
    factors: [usize; NETWORKS],
    moments: &'a [[Region; 2]],
    weight_moments: &'a [[Region; 2]],
    rate_moments: &'a [[Region; 2]],
    /// Rates that are learned on the device.
    rates: [Option<Learned>; NETWORKS],
    findings: Region,
}

/// Networks of an objective at most, and gradients of each: of its parameters, and of its phi's weights. Behind them come those
/// of the rates.
pub(super) const NETWORKS: usize = 2;
const PARTS: [&str; 2] = ["gradient", "gradient of phi"];
const RATES: &str = "gradient of the rates";
const FIRST_RATES: usize = NETWORKS * PARTS.len();
const _: () = assert!(FIRST_RATES == CHECKED_GRADIENTS - CHECKED_RATES && NETWORKS == CHECKED_RATES);

impl OuterWork<'_> {
    /// The networks' regions that take part, parameters and gradient of either part.
    fn changed<T: Scalar, O: Objective>(&self, inner: &O::Loop<T>, network: usize) -> [Option<[Region; 2]>; 2] {
        if !O::plays(inner, network) {
            return [None; 2];
        }
        let net = O::network(inner, network);
        let parameters = self.config.trains_parameters.then_some([net.parameters, net.gradient]);
        [parameters, net.phi_weights().filter(|_| self.learns)]
    }

    /// Checks the gradients, and `losses`, and changes the parameters and phi's weights if all is well.
    pub fn carry_out<T: Scalar, D: Device<T>, O: Objective>(
        &self,
        device: &D,
        arena: &mut D::Arena,
        inner: &O::Loop<T>,
        losses: [Option<Region>; 2],
    ) {
        let mut gradients = [None; CHECKED_GRADIENTS];
        let place = |network: usize, part: usize| network * PARTS.len() + part;
        for network in 0..self.moments.len() {
            for (part, regions) in self.changed::<T, O>(inner, network).into_iter().enumerate() {
                gradients[place(network, part)] = regions.map(|[_, gradient]| gradient);
            }
            let learned = self.rates[network].filter(|_| O::plays(inner, network));
            gradients[FIRST_RATES + network] = learned.map(|learned| learned.gradient);
        }
        let (findings, config) = (self.findings, self.config);
        device.gradient_check(arena, &GradientCheck { losses, gradients, clip: config.clip, findings });
        for network in 0..self.moments.len() {
            let step = self.steps_of[network];
            let change = |[parameters, gradient]: [Region; 2], [first, second]: [Region; 2], rate, place| {
                let (rate, finding) = (rate * self.scale, Finding { findings, gradient: place });
                let in_logarithm = place >= FIRST_RATES;
                match config.kind {
                    OuterKind::Sgd => OuterStep::Sgd { in_logarithm, parameters, gradient, rate, finding },
                    OuterKind::Adam { beta1, beta2, epsilon } => OuterStep::Adam {
                        in_logarithm,
                        parameters,
                        gradient,
                        first,
                        second,
                        rate,
                        finding,
                        betas: (beta1, beta2),
                        epsilon,
                        step,
                    },
                }
            };
            let [parameters, weights] = self.changed::<T, O>(inner, network);
            if let Some(regions) = parameters {
                let place = place(network, 0);
                device.outer_step(arena, &change(regions, self.moments[network], config.learning_rate, place));
            }
            if let Some(learned) = self.rates[network].filter(|_| O::plays(inner, network)) {
                let (regions, moments) = ([learned.rates, learned.gradient], self.rate_moments[network]);
                let place = FIRST_RATES + network;
                device.outer_step(arena, &change(regions, moments, config.phi_learning_rate, place));
            }
            let Some(weights) = weights else { continue };
            let factors = self.factors[network];
            let rates = [config.phi_factor_learning_rate, config.phi_weight_learning_rate];
            for (part, rate) in [0..factors, factors..weights[0].len()].into_iter().zip(rates) {
                let of = |region: Region| region.elements(part.start, part.len());
                let moments = self.weight_moments[network].map(of);
                device.outer_step(arena, &change(weights.map(of), moments, rate, place(network, 1)));
            }
        }
    }
}

/// What [`OuterWork`] found to be wrong, if anything: what, and its value.
pub(super) fn fault<T: Scalar>(findings: &[T]) -> Option<(&'static str, f64)> {
    let wrong = findings[0] != T::ZERO;
    let norms = findings[1..].chunks(2).map(|finding| finding[1].to_f64());
    // A norm that was not taken is 0.
    let mut named = norms.zip(PARTS.iter().cycle().take(FIRST_RATES).chain([&RATES; CHECKED_RATES]));
    wrong.then(|| named.find(|(norm, _)| !norm.is_finite()).map_or(("loss", f64::NAN), |(norm, what)| (*what, norm)))
}

impl<T: Scalar> Losses<T> {
    /// The first that is not finite: which kind, and its value.
    pub(super) fn fault(&self) -> Option<(&'static str, f64)> {
        [("loss", &self.task), ("discriminator loss", &self.discriminator)]
            .into_iter()
            .find_map(|(what, losses)| losses.iter().find(|loss| !loss.is_finite()).map(|loss| (what, loss.to_f64())))
    }
}

impl<T: Scalar, D: Device<T>, O: Objective> MetaLearner<T, D, O> {
    /// Whether phi is learned.
    pub(super) fn learns(&self) -> bool {
        self.objective.inner().learn_rates && self.objective.inner().algorithm.differentiates_query()
    }

    /// Whether its rates are learned by the host, and not by the device.
    pub(super) fn host_learns(&self) -> bool {
        self.learns() && self.rate_moments.is_empty()
    }

    /// That the gradient a configuration asks for is computed.
    pub(super) fn check_trains(&self, config: &OuterConfig) -> Result<()> {
        if config.trains_parameters && !O::network(&self.lanes[0].inner, 0).wants_gradient {
            let expected = "MetaLearner::set_trains_parameters(true) before the run, or phi alone to be trained";
            return Err(Error::invalid("gradient of the parameters", "not computed", expected));
        }
        Ok(())
    }

    /// The coming step.
    pub(super) fn outer_work<'a>(&'a self, config: &'a OuterConfig) -> OuterWork<'a> {
        let of = |count: &dyn Fn(usize) -> u64| {
            std::array::from_fn(|network| if network < self.phi.len() { count(network) } else { 0 })
        };
        OuterWork {
            config,
            scale: config.factor(self.steps_done),
            learns: self.learns(),
            steps_of: of(&|network| self.steps_of[network] + 1),
            factors: of(&|network| self.phi[network].factor_count() as u64).map(|count| count as usize),
            moments: &self.moments,
            weight_moments: &self.weight_moments,
            rate_moments: &self.rate_moments,
            rates: self.learned,
            findings: self.findings,
        }
    }

    /// One step of the outer optimizer with the gradient of the last [`MetaLearner::run`].
    ///
    /// phi's rates move in their logarithm, so that they stay positive and the learning rate is relative to them.
    ///
    /// # Errors
    /// A loss or a gradient that is not finite, or the parameters' gradient not computed
    /// ([`MetaLearner::set_trains_parameters`]) but asked for: the parameters are left as they were. Or a device that failed.
    pub fn update(&mut self, config: &OuterConfig) -> Result<()> {
        let step = self.steps_done + 1;
        let diverged = |(what, value)| Err(Error::Diverged { what, value, step });
        if let Some(fault) = self.losses.fault() {
            return diverged(fault);
        }
        self.check_trains(config)?;
        if let Some(value) = self.phi_gradient.iter().flatten().find(|g| !g.is_finite()) {
            return diverged((RATES, value.to_f64()));
        }
        let mut graph = std::mem::take(&mut self.update_graph);
        let mut lanes = std::mem::take(&mut self.lanes);
        let (work, first) = (self.outer_work(config), &mut lanes[0]);
        self.device.submit(&mut first.arena, &mut graph, &[self.findings], |device, arena| {
            work.carry_out::<T, D, O>(device, arena, &first.inner, [None; 2]);
        });
        let scale = work.scale;
        self.lanes = lanes;
        let fault = fault(self.device.results(&mut graph));
        self.update_graph = graph;
        self.device.check()?;
        if let Some(fault) = fault {
            self.forget_fault();
            return diverged(fault);
        }
        for network in 0..self.phi.len() {
            if !O::plays(&self.lanes[0].inner, network) {
                continue;
            }
            self.steps_of[network] += 1;
            if self.host_learns() {
                let (rate, step) = (config.phi_learning_rate * scale, self.steps_of[network]);
                let gradient = &self.phi_gradient[network];
                let values = self.phi[network].rates_mut().iter_mut();
                for ((value, gradient), moments) in values.zip(gradient).zip(&mut self.phi_moments[network]) {
                    let logarithmic = gradient.to_f64() * value.to_f64();
                    let change = host_change(config.kind, rate, step, logarithmic, moments);
                    *value = T::from_f64(value.to_f64() * (-change).exp());
                }
            }
        }
        self.broadcast();
        self.steps_done = step;
        self.device.check()
    }

    /// Lets steps change parameters again, after one that went wrong.
    pub(super) fn forget_fault(&mut self) {
        self.device.fill(&mut self.lanes[0].arena, self.findings.elements(0, 1), T::ZERO);
    }

    /// The first lane's parameters and phi, to the others.
    fn broadcast(&mut self) {
        let Some((first, rest)) = self.lanes.split_first_mut() else { return };
        if rest.is_empty() {
            return;
        }
        for network in 0..self.phi.len() {
            let of = |inner: &O::Loop<T>| {
                let network = O::network(inner, network);
                [Some(network.parameters), network.phi_weights().map(|regions| regions[0])]
            };
            for (i, region) in of(&first.inner).into_iter().enumerate() {
                let Some(region) = region else { continue };
                let host = &mut self.host[..region.len()];
                self.device.download(&first.arena, region, host);
                for lane in &mut *rest {
                    if let Some(to) = of(&lane.inner)[i] {
                        self.device.upload(&mut lane.arena, to, host);
                    }
                }
            }
        }
    }

    /// The outer optimizer's state: Adam's moments of each network, those of phi, and the number of steps.
    pub fn optimizer_state(&self) -> OptimizerState<T> {
        let read = |(network, regions): (usize, &[Region; 2])| regions.map(|region| self.read(network, region));
        let networks = self.moments.iter().enumerate().map(read).collect();
        let weights = |regions: &[Region; 2]| {
            let [first, second] = regions.map(|region| {
                let mut moment = vec![T::ZERO; region.len()];
                self.device.download(&self.lanes[0].arena, region, &mut moment);
                moment
            });
            first.into_iter().zip(second).map(|(m, v)| (m.to_f64(), v.to_f64()))
        };
        let mut phi = self.phi_moments.clone();
        phi.iter_mut().zip(&self.rate_moments).for_each(|(phi, regions)| *phi = weights(regions).collect());
        phi.iter_mut().zip(&self.weight_moments).for_each(|(phi, regions)| phi.extend(weights(regions)));
        OptimizerState { networks, phi, steps_of: self.steps_of.clone(), steps: self.steps_done }
    }

    /// Continues from a state and from phi.
    ///
    /// # Errors
    /// A state of other networks or another phi.
    pub fn restore(&mut self, state: &OptimizerState<T>, phi: &[MetaOptimizer<T>]) -> Result<()> {
        let fits = state.networks.len() == self.moments.len()
            && state.networks.iter().zip(&self.moments).all(|(n, m)| n[0].values().len() == m[0].len())
            && state.steps_of.len() == self.steps_of.len()
            && state.phi.iter().map(Vec::len).eq(self.phi.iter().map(|p| p.values().len()))
            && phi
                .iter()
                .map(|p| (p.kind(), p.values().len()))
                .eq(self.phi.iter().map(|p| (p.kind(), p.values().len())));
        if !fits {
            return Err(Error::invalid("optimizer state", "another architecture", "the state of these networks"));
        }
        for (moments, regions) in state.networks.iter().zip(&self.moments) {
            for (moment, region) in moments.iter().zip(regions) {
                self.device.upload(&mut self.lanes[0].arena, *region, moment.values());
            }
        }
        let mut rates_of = self.rate_moments.iter();
        let arena = &mut self.lanes[0].arena;
        let mut upload = |regions: Option<[Region; 2]>, moments: &[(f64, f64)]| {
            let [first, second]: [Vec<T>; 2] = [0, 1]
                .map(|which| moments.iter().map(|(m, v)| T::from_f64(if which == 0 { *m } else { *v })).collect());
            for (region, moments) in regions.iter().flatten().zip([first, second]) {
                self.device.upload(arena, *region, &moments);
            }
        };
        for ((state, own), regions) in state.phi.iter().zip(&mut self.phi_moments).zip(&self.weight_moments) {
            let (rates, weights) = state.split_at(own.len());
            own.copy_from_slice(rates);
            upload(rates_of.next().copied(), rates);
            upload(Some(*regions), weights);
        }
        self.phi = phi.to_vec();
        self.upload_phi();
        self.steps_of.clone_from(&state.steps_of);
        self.steps_done = state.steps;
        Ok(())
    }
}
