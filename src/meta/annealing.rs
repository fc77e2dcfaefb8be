//! What changes in the course of a run: the order of the derivative, and which query losses the meta-loss is made of.

use super::learner::MetaLearner;
use super::objective::Objective;
use super::{Algorithm, InnerConfig};
use crate::device::Device;
use crate::{Error, Result, Scalar};

impl<T: Scalar, D: Device<T>, O: Objective> MetaLearner<T, D, O> {
    /// Goes on with another algorithm (derivative-order annealing, Antoniou et al. 2019): parameters, phi and the optimizer's
    /// state stay as they are. Allocates anew when the algorithm is another than before.
    ///
    /// # Errors
    /// As [`MetaLearner::new`].
    pub fn set_algorithm(&mut self, algorithm: Algorithm) -> Result<()>
    where
        D: Clone,
    {
        self.go_on_with(InnerConfig { algorithm, ..self.objective.inner().clone() })
    }

    /// Goes on with or without a [multi-step meta-loss](InnerConfig::multi_step), as [`MetaLearner::set_algorithm`] does.
    ///
    /// # Errors
    /// As [`MetaLearner::new`].
    pub fn set_multi_step(&mut self, multi_step: bool) -> Result<()>
    where
        D: Clone,
    {
        self.go_on_with(InnerConfig { multi_step, ..self.objective.inner().clone() })
    }

    fn go_on_with(&mut self, inner: InnerConfig) -> Result<()>
    where
        D: Clone,
    {
        if *self.objective.inner() == inner {
            return Ok(());
        }
        let networks = 0..self.phi.len();
        let phi: Vec<_> = networks.clone().map(|network| self.phi(network)).collect();
        let mut objective = self.objective.clone();
        *objective.inner_mut() = inner;
        let trace = self.lanes[0].shape.trace;
        let mut other = Self::build(self.device.clone(), objective, self.shape, phi.clone(), trace)?;
        for network in networks {
            other.set_parameters(network, &self.parameters(network))?;
        }
        other.restore(&self.optimizer_state(), &phi)?;
        *self = other;
        Ok(())
    }

    /// Sets the weights of the query losses after 1, 2, ... inner steps in the meta-loss of the coming runs; at first it is
    /// their mean. The losses that [`MetaLearner::run`] returns are those after the last step all the same.
    ///
    /// # Errors
    /// Another number of weights than inner steps, a weight that is negative or not finite, or a learner whose
    /// [`InnerConfig::multi_step`] is off.
    pub fn set_query_weights(&mut self, weights: &[f64]) -> Result<()> {
        let inner = self.objective.inner();
        if !inner.multi_step {
            return Err(Error::invalid("query weights", "given", "none: the meta-loss is not a multi-step one"));
        }
        if weights.len() != inner.steps || weights.iter().any(|w| !(w.is_finite() && *w >= 0.0)) {
            let expected = format!("{} finite numbers, 0 or above: one for each inner step", inner.steps);
            return Err(Error::invalid("query weights", format!("{weights:?}"), expected));
        }
        for lane in &mut self.lanes {
            O::networks_mut(&mut lane.inner).for_each(|net| net.set_query_weights(weights));
        }
        Ok(())
    }
}
