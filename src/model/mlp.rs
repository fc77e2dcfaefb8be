use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::{Activation, BatchNorm};
use crate::{Error, Result};

/// The shape of a multilayer perceptron: its widths and activations, without its numbers.
///
/// Layer `l` maps `widths[l]` inputs to `widths[l + 1]` outputs: `a' = act(a W^T + b)`, with `W` `[out, in]` as in
/// PyTorch. All parameters of a network lie in one flat array: for each layer its weight, row-major, then its bias. Hidden
/// layers may have a [`BatchNorm`] before their activation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct Mlp {
    widths: Vec<usize>,
    activations: Vec<Activation>,
    /// One a layer; empty where no layer has one.
    batch_norms: Vec<Option<BatchNorm>>,
    /// Where each layer's weight begins in the flat array; one more entry holds the total.
    offsets: Vec<usize>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Unchecked {
    widths: Vec<usize>,
    activations: Vec<Activation>,
    /// Each layer's epsilon, 0 for none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    batch_norm: Vec<f64>,
}

impl TryFrom<Unchecked> for Mlp {
    type Error = Error;
    fn try_from(raw: Unchecked) -> Result<Self> {
        Self::new(&raw.widths, &raw.activations)?.with_epsilons(&raw.batch_norm)
    }
}

impl From<Mlp> for Unchecked {
    fn from(mlp: Mlp) -> Self {
        let epsilon = |norm: &Option<BatchNorm>| norm.map_or(0.0, f64::from);
        let batch_norm = mlp.batch_norms.iter().map(epsilon).collect();
        Self { widths: mlp.widths, activations: mlp.activations, batch_norm }
    }
}

impl Mlp {
    /// A network with these widths (inputs, hidden..., outputs) and one activation a layer.
    ///
    /// # Errors
    /// Fewer than two widths, a width of 0, too many parameters to address, or another number of activations than of
    /// layers.
    pub fn new(widths: &[usize], activations: &[Activation]) -> Result<Self> {
        if widths.len() < 2 || widths.contains(&0) {
            return Err(Error::invalid("widths", format!("{widths:?}"), "two or more widths, each at least 1"));
        }
        if activations.len() != widths.len() - 1 {
            let problem = format!("{} for {} layers", activations.len(), widths.len() - 1);
            return Err(Error::invalid("activations", problem, "one for each layer"));
        }
        let mut offsets = vec![0usize];
        for pair in widths.windows(2) {
            let next = pair[0]
                .checked_add(1)
                .and_then(|inputs| inputs.checked_mul(pair[1]))
                .and_then(|layer| layer.checked_add(offsets[offsets.len() - 1]))
                .filter(|total| *total <= isize::MAX as usize / 64)
                .ok_or_else(|| Error::invalid("widths", format!("{widths:?}"), "a network that fits into memory"))?;
            offsets.push(next);
        }
        Ok(Self { widths: widths.to_vec(), activations: activations.to_vec(), batch_norms: Vec::new(), offsets })
    }

    /// The same with batch normalisation in every hidden layer.
    ///
    /// # Errors
    /// There is no hidden layer.
    pub fn with_batch_norm(self, norm: BatchNorm) -> Result<Self> {
        let hidden = self.layers() - 1;
        if hidden == 0 {
            return Err(Error::invalid("batch normalisation", "no hidden layer", "at least one"));
        }
        let mut norms = vec![Some(norm); hidden];
        norms.push(None);
        self.with_batch_norms(&norms)
    }

    /// The same with these batch normalisations, one for each layer that is to have one.
    ///
    /// # Errors
    /// Another number of entries than of layers, or one for the output layer: a normalised output could not tell a task's
    /// rows from the same rows scaled.
    pub fn with_batch_norms(mut self, norms: &[Option<BatchNorm>]) -> Result<Self> {
        if norms.len() != self.layers() {
            let problem = format!("{} for {} layers", norms.len(), self.layers());
            return Err(Error::invalid("batch normalisation", problem, "an entry for each layer"));
        }
        if norms[self.layers() - 1].is_some() {
            return Err(Error::invalid("batch normalisation", "one for the output layer", "hidden layers alone"));
        }
        self.batch_norms = if norms.iter().any(Option::is_some) { norms.to_vec() } else { Vec::new() };
        Ok(self)
    }

    /// The same with batch normalisations of these epsilons, where they are not 0; no epsilons are all 0.
    pub(crate) fn with_epsilons(self, epsilons: &[f64]) -> Result<Self> {
        if epsilons.is_empty() {
            return Ok(self);
        }
        let norm = |epsilon: &f64| (*epsilon != 0.0).then(|| BatchNorm::new(*epsilon)).transpose();
        self.with_batch_norms(&epsilons.iter().map(norm).collect::<Result<Vec<_>>>()?)
    }

    /// Hidden layers of the widths given, all with `hidden`, then an output layer with `output`.
    ///
    /// # Errors
    /// As [`Mlp::new`].
    pub fn with_hidden(
        inputs: usize,
        hidden_widths: &[usize],
        outputs: usize,
        hidden: Activation,
        output: Activation,
    ) -> Result<Self> {
        let widths = [&[inputs], hidden_widths, &[outputs]].concat();
        let mut activations = vec![hidden; hidden_widths.len()];
        activations.push(output);
        Self::new(&widths, &activations)
    }

    /// Inputs, hidden widths, outputs.
    pub fn widths(&self) -> &[usize] {
        &self.widths
    }

    /// One activation a layer.
    pub fn activations(&self) -> &[Activation] {
        &self.activations
    }

    /// The batch normalisation of layer `layer`, if it has one.
    pub fn batch_norm(&self, layer: usize) -> Option<BatchNorm> {
        self.batch_norms.get(layer).copied().flatten()
    }

    /// Whether any layer has a batch normalisation.
    pub fn has_batch_norm(&self) -> bool {
        !self.batch_norms.is_empty()
    }

    /// The architecture in words, for errors.
    pub(crate) fn summary(&self) -> String {
        let norms: Vec<f64> = (0..self.layers()).map(|layer| self.batch_norm(layer).map_or(0.0, f64::from)).collect();
        let norms = if self.has_batch_norm() { format!(" with batch normalisation {norms:?}") } else { String::new() };
        format!("widths {:?}, activations {:?}{norms}", self.widths, self.activations)
    }

    /// Number of Linear layers.
    pub fn layers(&self) -> usize {
        self.activations.len()
    }

    /// Width of the network's input.
    pub fn inputs(&self) -> usize {
        self.widths[0]
    }

    /// Width of the network's output.
    pub fn outputs(&self) -> usize {
        self.widths[self.layers()]
    }

    /// Number of parameters, weights and biases.
    pub fn parameter_count(&self) -> usize {
        self.offsets[self.layers()]
    }

    /// Number of weights, without the biases.
    pub fn weight_count(&self) -> usize {
        self.widths.windows(2).map(|pair| pair[0] * pair[1]).sum()
    }

    /// Where layer `layer`'s weight, `[out, in]`, lies in the flat array.
    pub fn weight_range(&self, layer: usize) -> Range<usize> {
        let start = self.offsets[layer];
        start..start + self.widths[layer] * self.widths[layer + 1]
    }

    /// Where layer `layer`'s bias, `[out]`, lies in the flat array.
    pub fn bias_range(&self, layer: usize) -> Range<usize> {
        self.weight_range(layer).end..self.offsets[layer + 1]
    }
}
