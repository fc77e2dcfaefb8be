//! The outer optimizer's step, and its state.

use super::learner::MetaLearner;
use super::objective::Objective;
use super::outer::host_change;
use super::{MetaOptimizer, OuterConfig, OuterKind};
use crate::device::{Device, OuterStep, Region};
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

impl<T: Scalar, D: Device<T>, O: Objective> MetaLearner<T, D, O> {
    /// One step of the outer optimizer with the gradient of the last [`MetaLearner::run`].
    ///
    /// phi's rates move in their logarithm, so that they stay positive and the learning rate is relative to them.
    ///
    /// # Errors
    /// A loss or a gradient that is not finite, or the parameters' gradient not computed
    /// ([`MetaLearner::set_trains_parameters`]) but asked for: the parameters are left as they were. Or a device that failed.
    pub fn update(&mut self, config: &OuterConfig) -> Result<()> {
        let step = self.steps_done + 1;
        let diverged = |what, value| Err(Error::Diverged { what, value, step });
        for (what, losses) in [("loss", &self.losses.task), ("discriminator loss", &self.losses.discriminator)] {
            if let Some(value) = losses.iter().find(|loss| !loss.is_finite()) {
                return diverged(what, value.to_f64());
            }
        }
        let learns = self.objective.inner().learn_rates && self.objective.inner().algorithm.differentiates_query();
        let norm = |region: Region| self.device.squared_norm(&self.lanes[0].arena, region).sqrt();
        // What the norms' bound makes of the gradients: of each network, and of its phi's weights.
        let mut factors = [[1.0; 2]; 2];
        for (network, factors) in factors.iter_mut().enumerate().take(self.phi.len()) {
            let net = O::network(&self.lanes[0].inner, network);
            let weights = net.phi_weights().filter(|_| learns).map(|[_, gradient]| ("gradient of phi", gradient));
            if config.trains_parameters && !net.wants_gradient {
                let expected = "MetaLearner::set_trains_parameters(true) before the run, or phi alone to be trained";
                return Err(Error::invalid("gradient of the parameters", "not computed", expected));
            }
            let parameters = config.trains_parameters.then_some(("gradient", net.gradient));
            for (factor, gradient) in factors.iter_mut().zip([parameters, weights]) {
                let Some((what, gradient)) = gradient else { continue };
                let norm = norm(gradient);
                if !norm.is_finite() {
                    return diverged(what, norm);
                }
                if let Some(clip) = config.clip
                    && norm > clip
                {
                    *factor = clip / norm;
                }
            }
        }
        if let Some(value) = self.phi_gradient.iter().flatten().find(|g| !g.is_finite()) {
            return diverged("gradient of the rates", value.to_f64());
        }
        let scale = config.factor(self.steps_done);
        for (network, [factor, weight_factor]) in factors.into_iter().enumerate().take(self.phi.len()) {
            if !O::plays(&self.lanes[0].inner, network) {
                continue;
            }
            self.steps_of[network] += 1;
            let step = self.steps_of[network];
            let first = &mut self.lanes[0];
            let net = O::network(&first.inner, network);
            let change =
                |[parameters, gradient]: [Region; 2], [first, second]: [Region; 2], rate, factor| match config.kind {
                    OuterKind::Sgd => OuterStep::Sgd { parameters, gradient, rate, factor },
                    OuterKind::Adam { beta1, beta2, epsilon } => {
                        let betas = (beta1, beta2);
                        OuterStep::Adam { parameters, gradient, first, second, rate, factor, betas, epsilon, step }
                    }
                };
            if config.trains_parameters {
                let rate = config.learning_rate * scale;
                let step = change([net.parameters, net.gradient], self.moments[network], rate, factor);
                self.device.outer_step(&mut first.arena, &step);
            }
            if let Some(weights) = net.phi_weights().filter(|_| learns) {
                let factors = self.phi[network].factor_count();
                let rates = [config.phi_factor_learning_rate, config.phi_weight_learning_rate];
                for (part, rate) in [0..factors, factors..weights[0].len()].into_iter().zip(rates) {
                    let of = |region: Region| region.elements(part.start, part.len());
                    let moments = self.weight_moments[network].map(of);
                    let step = change(weights.map(of), moments, rate * scale, weight_factor);
                    self.device.outer_step(&mut first.arena, &step);
                }
            }
            if learns {
                let rate = config.phi_learning_rate * scale;
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
        for ((state, own), regions) in state.phi.iter().zip(&mut self.phi_moments).zip(&self.weight_moments) {
            let (rates, weights) = state.split_at(own.len());
            own.copy_from_slice(rates);
            let [first, second]: [Vec<T>; 2] = [0, 1]
                .map(|which| weights.iter().map(|(m, v)| T::from_f64(if which == 0 { *m } else { *v })).collect());
            self.device.upload(&mut self.lanes[0].arena, regions[0], &first);
            self.device.upload(&mut self.lanes[0].arena, regions[1], &second);
        }
        self.phi = phi.to_vec();
        self.upload_phi();
        self.steps_of.clone_from(&state.steps_of);
        self.steps_done = state.steps;
        Ok(())
    }
}
