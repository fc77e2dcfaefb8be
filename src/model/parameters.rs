use rand::{Rng, RngExt};

use super::Mlp;
use crate::scalar::Scalar;
use crate::{Error, Result};

/// The weights and biases of one [`Mlp`], in one flat array (see [`Mlp`] for the layout).
#[derive(Clone, Debug, PartialEq)]
pub struct Parameters<T> {
    mlp: Mlp,
    values: Vec<T>,
}

impl<T: Scalar> Parameters<T> {
    /// All zero.
    pub fn zeros(mlp: &Mlp) -> Self {
        Self { values: vec![T::ZERO; mlp.parameter_count()], mlp: mlp.clone() }
    }

    /// PyTorch's initialisation of `nn.Linear`: weights and biases uniform in `+-1 / sqrt(inputs)`; the biases of layers with
    /// batch normalisation 0, as in `nn.BatchNorm1d`.
    pub fn initialise(mlp: &Mlp, rng: &mut impl Rng) -> Self {
        let mut parameters = Self::zeros(mlp);
        for layer in 0..mlp.layers() {
            let bound = 1.0 / (mlp.widths()[layer] as f64).sqrt();
            let weights = mlp.weight_range(layer);
            let end = if mlp.batch_norm(layer).is_some() { weights.end } else { mlp.bias_range(layer).end };
            for value in &mut parameters.values[weights.start..end] {
                *value = T::from_f64(rng.random_range(-bound..bound));
            }
        }
        parameters
    }

    /// From a flat array.
    ///
    /// # Errors
    /// Another length than the network has parameters, or a value that is NaN or infinite.
    pub fn from_values(mlp: &Mlp, values: Vec<T>) -> Result<Self> {
        if values.len() != mlp.parameter_count() {
            let expected = format!("{} for widths {:?}", mlp.parameter_count(), mlp.widths());
            return Err(Error::invalid("parameters", format!("{} values", values.len()), expected));
        }
        if let Some(at) = values.iter().position(|v| !v.is_finite()) {
            return Err(Error::invalid("parameters", format!("{} at index {at}", values[at]), "finite numbers"));
        }
        Ok(Self { mlp: mlp.clone(), values })
    }

    /// The network these belong to.
    pub fn mlp(&self) -> &Mlp {
        &self.mlp
    }

    /// Layer `layer`'s weight, `[out, in]` row-major.
    pub fn weight(&self, layer: usize) -> &[T] {
        &self.values[self.mlp.weight_range(layer)]
    }

    /// Layer `layer`'s bias, `[out]`.
    pub fn bias(&self, layer: usize) -> &[T] {
        &self.values[self.mlp.bias_range(layer)]
    }

    /// All of them, layer by layer, weight before bias.
    pub fn values(&self) -> &[T] {
        &self.values
    }

    /// All of them, to change in place.
    pub fn values_mut(&mut self) -> &mut [T] {
        &mut self.values
    }

    /// The same numbers in another precision.
    pub fn cast<U: Scalar>(&self) -> Parameters<U> {
        let values = self.values.iter().map(|v| U::from_f64(v.to_f64())).collect();
        Parameters { mlp: self.mlp.clone(), values }
    }
}
