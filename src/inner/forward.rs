use super::network::Network;
use super::tape::NetworkSpec;
use crate::device::{ArenaPlan, Corrections, Device, LinearForward, Region};
use crate::meta::{InnerConfig, Shape};
use crate::model::Parameters;
use crate::{Algorithm, Error, Result, Scalar};

/// A network's outputs, `[rows, outputs]`, for the inputs `[rows, inputs]`.
///
/// # Errors
/// Inputs that are not a whole number of rows, or too little memory.
pub fn forward<T: Scalar, D: Device<T>>(device: &D, parameters: &Parameters<T>, inputs: &[T]) -> Result<Vec<T>> {
    let mlp = parameters.mlp();
    let rows = inputs.len() / mlp.inputs();
    if inputs.is_empty() || !inputs.len().is_multiple_of(mlp.inputs()) {
        let expected = format!("a multiple of {}, the network's input width", mlp.inputs());
        return Err(Error::invalid("inputs", format!("{} numbers", inputs.len()), expected));
    }
    let shape = Shape { tasks: 1, shots: rows, queries: rows };
    let spec = NetworkSpec::new(mlp, &InnerConfig::new(Algorithm::FirstOrderMaml, 0), 1, &shape, false);
    let mut plan = ArenaPlan::default();
    let weights = plan.take(1, mlp.parameter_count());
    let values: Vec<Region> = mlp.widths().iter().map(|width| plan.take(rows, *width)).collect();
    let mut arena = device.arena(plan.elements())?;
    device.upload(&mut arena, weights, parameters.values());
    device.upload(&mut arena, values[0], inputs);
    for layer in 0..mlp.layers() {
        let operation = LinearForward {
            tasks: 1,
            rows,
            input: values[layer],
            layer: Network::<T>::layer_at(&spec, weights.offset, 0, layer),
            corrections: Corrections::NONE,
            activation: mlp.activations()[layer],
            output: values[layer + 1],
        };
        device.linear_forward(&mut arena, &operation);
    }
    let mut outputs = vec![T::ZERO; rows * mlp.outputs()];
    device.download(&arena, values[mlp.layers()], &mut outputs);
    device.check()?;
    Ok(outputs)
}
