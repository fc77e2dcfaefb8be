use std::ops::Range;

use serde::{Deserialize, Serialize};

use super::Activation;
use crate::{Error, Result};

/// The shape of a multilayer perceptron: its widths and activations, without its numbers.
///
/// Layer `l` maps `widths[l]` inputs to `widths[l + 1]` outputs: `a' = act(a W^T + b)`, with `W` `[out, in]` as in
/// PyTorch. All parameters of a network lie in one flat array: for each layer its weight, row-major, then its bias.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "Unchecked", into = "Unchecked")]
pub struct Mlp {
    widths: Vec<usize>,
    activations: Vec<Activation>,
    /// Where each layer's weight begins in the flat array; one more entry holds the total.
    offsets: Vec<usize>,
}

#[derive(Clone, Serialize, Deserialize)]
struct Unchecked {
    widths: Vec<usize>,
    activations: Vec<Activation>,
}

impl TryFrom<Unchecked> for Mlp {
    type Error = Error;
    fn try_from(raw: Unchecked) -> Result<Self> {
        Self::new(&raw.widths, &raw.activations)
    }
}

impl From<Mlp> for Unchecked {
    fn from(mlp: Mlp) -> Self {
        Self { widths: mlp.widths, activations: mlp.activations }
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
        Ok(Self { widths: widths.to_vec(), activations: activations.to_vec(), offsets })
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
