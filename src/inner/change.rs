use crate::model::Mlp;
use crate::{Error, Result, Scalar};

/// What adapting has made of one network's parameters, as the dual form holds it: for each layer a share of the shared
/// ones and a change of low rank, `W' = share W + deltas^T values` and `b' = share b + bias`.
///
/// It takes `rank * (inputs + outputs)` numbers a layer where the adapted parameters take `inputs * outputs`.
#[derive(Clone, Debug, PartialEq)]
pub struct LowRankChange<T> {
    mlp: Mlp,
    layers: Vec<LayerChange<T>>,
}

/// One layer of a [`LowRankChange`].
#[derive(Clone, Debug, PartialEq)]
pub struct LayerChange<T> {
    /// What is left of the shared weights and biases: 1 without weight decay.
    pub share: T,
    /// `[rank, outputs]`, row-major: the rows of the steps' gradients, times the steps' rates.
    pub deltas: Vec<T>,
    /// `[rank, inputs]`, row-major: the layer's inputs in those steps.
    pub values: Vec<T>,
    /// `[outputs]`.
    pub bias: Vec<T>,
}

impl<T: Scalar> LowRankChange<T> {
    /// From its layers.
    ///
    /// # Errors
    /// Another number of layers than the network has, or numbers that do not fit a layer.
    pub fn new(mlp: &Mlp, layers: Vec<LayerChange<T>>) -> Result<Self> {
        if layers.len() != mlp.layers() {
            return Err(Error::invalid("change", format!("{} layers", layers.len()), mlp.layers().to_string()));
        }
        for (index, layer) in layers.iter().enumerate() {
            let (inputs, outputs) = (mlp.widths()[index], mlp.widths()[index + 1]);
            let rank = layer.deltas.len() / outputs;
            let found = [layer.deltas.len(), layer.values.len(), layer.bias.len()];
            let fitting = [rank * outputs, rank * inputs, outputs];
            if found != fitting {
                let expected = format!("{fitting:?} for rank {rank}");
                return Err(Error::invalid(format!("change of layer {index}"), format!("{found:?} numbers"), expected));
            }
        }
        Ok(Self { mlp: mlp.clone(), layers })
    }

    /// The network's architecture.
    pub fn mlp(&self) -> &Mlp {
        &self.mlp
    }

    /// The layers, from the input on.
    pub fn layers(&self) -> &[LayerChange<T>] {
        &self.layers
    }

    /// The rank of a layer's change at most: its number of rows.
    pub fn rank(&self, layer: usize) -> usize {
        self.layers[layer].deltas.len() / self.mlp.widths()[layer + 1]
    }
}
