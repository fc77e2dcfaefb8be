use super::change::LowRankChange;
use crate::device::{ArenaPlan, Corrections, Device, Gram, GramView, Linear, LinearForward, Normalise, Region, Term};
use crate::model::{Activation, Mlp, Parameters};
use crate::{Error, Result, Scalar};

/// A network's outputs, `[rows, outputs]`, for the inputs `[rows, inputs]`. Batch normalisation takes its means over all of
/// these rows.
///
/// # Errors
/// Inputs that are not a whole number of rows, or too little memory.
pub fn forward<T: Scalar, D: Device<T>>(device: &D, parameters: &Parameters<T>, inputs: &[T]) -> Result<Vec<T>> {
    let mut plan = ArenaPlan::default();
    let pass = Pass::new(&mut plan, parameters.mlp(), 1, inputs)?;
    let mut arena = device.arena(plan.elements())?;
    pass.begin(device, &mut arena, parameters, inputs);
    for layer in 0..pass.mlp.layers() {
        pass.layer(device, &mut arena, layer, Corrections::NONE);
    }
    pass.end(device, &arena)
}

/// The outputs of several networks, `[networks, rows, outputs]`, for the inputs `[networks, rows, inputs]`: each is the
/// shared one after a change. All go through the shared weights together; none has weights of its own. Batch normalisation
/// takes its means over each network's rows.
///
/// # Errors
/// No changes, one of another architecture, inputs that are not as many whole rows for each network, or too little memory.
pub fn forward_changed<T: Scalar, D: Device<T>>(
    device: &D,
    parameters: &Parameters<T>,
    changes: &[&LowRankChange<T>],
    inputs: &[T],
) -> Result<Vec<T>> {
    let mlp = parameters.mlp();
    if changes.is_empty() {
        return Err(Error::invalid("changes", "none", "at least one"));
    }
    if let Some(change) = changes.iter().find(|change| change.mlp() != mlp) {
        return Err(Error::invalid("change", change.mlp().summary(), mlp.summary()));
    }
    let rows = inputs.len() / changes.len();
    if !inputs.len().is_multiple_of(changes.len()) || rows == 0 || !rows.is_multiple_of(mlp.inputs()) {
        let expected = format!("a multiple of {} for each of {} networks", mlp.inputs(), changes.len());
        return Err(Error::invalid("inputs", format!("{} numbers", inputs.len()), expected));
    }
    let shares = |change: &LowRankChange<T>| -> Vec<T> { change.layers().iter().map(|layer| layer.share).collect() };
    let mut outputs = vec![T::ZERO; inputs.len() / mlp.inputs() * mlp.outputs()];
    let size = outputs.len() / changes.len();
    // A batch has one share of the weights; they are all 1 where no weight decayed.
    let mut waiting: Vec<usize> = (0..changes.len()).collect();
    while let Some(first) = waiting.first() {
        let share = shares(changes[*first]);
        let (batch, others): (Vec<usize>, Vec<usize>) = waiting.iter().partition(|&&i| shares(changes[i]) == share);
        let of_batch: Vec<&LowRankChange<T>> = batch.iter().map(|&i| changes[i]).collect();
        let input: Vec<T> = batch.iter().flat_map(|&i| &inputs[i * rows..(i + 1) * rows]).copied().collect();
        let output = forward_alike(device, parameters, &of_batch, &input)?;
        for (&i, output) in batch.iter().zip(output.chunks_exact(size)) {
            outputs[i * size..(i + 1) * size].copy_from_slice(output);
        }
        waiting = others;
    }
    Ok(outputs)
}

/// The same, for changes with the same shares of the weights.
fn forward_alike<T: Scalar, D: Device<T>>(
    device: &D,
    parameters: &Parameters<T>,
    changes: &[&LowRankChange<T>],
    inputs: &[T],
) -> Result<Vec<T>> {
    let tasks = changes.len();
    let mut plan = ArenaPlan::default();
    let pass = Pass::new(&mut plan, parameters.mlp(), tasks, inputs)?;
    let layers: Vec<_> = (0..pass.mlp.layers()).map(|layer| Rows::new(&mut plan, &pass, changes, layer)).collect();
    let most = layers.iter().map(|layer| tasks * (layer.rank + 1)).max().unwrap_or(0);
    let scratch = plan.take(pass.rows, most);
    // What stands for the inputs of the rows that are biases: nothing but the 1 that is added to it.
    let nothing = plan.take(tasks * pass.rows, 1);
    // 1, and the share of the weights that the layer takes.
    let scales = plan.take(1, 2);
    let mut arena = device.arena(plan.elements())?;
    pass.begin(device, &mut arena, parameters, inputs);
    device.fill(&mut arena, nothing, T::ZERO);
    for (layer, rows) in layers.iter().enumerate() {
        rows.upload(device, &mut arena, changes, layer);
        let mut terms = vec![Term { gram: view(&pass, nothing), bias: Some(0), scale: 0, rows: rows.bias }];
        if rows.rank > 0 {
            let gram = Gram {
                tasks,
                rows: pass.rows,
                x: pass.values[layer],
                y: &[rows.values],
                output: rows.products,
                accumulate: false,
            };
            device.gram(&mut arena, &gram);
            terms.push(Term { gram: view(&pass, rows.products), bias: None, scale: 0, rows: rows.deltas });
        }
        let share = changes[0].layers()[layer].share;
        device.upload(&mut arena, scales, &[T::ONE, share]);
        let share = (share != T::ONE).then_some(1);
        pass.layer(device, &mut arena, layer, Corrections { share, blocks: &[terms], scales, scratch });
    }
    pass.end(device, &arena)
}

/// Coefficients `[T, K, columns]`.
fn view(pass: &Pass<'_>, region: Region) -> GramView {
    let Region { offset, width, .. } = region;
    GramView { offset, task_stride: pass.rows * width, row_stride: width, column_stride: 1 }
}

/// A forward pass through shared weights.
struct Pass<'a> {
    mlp: &'a Mlp,
    tasks: usize,
    /// Rows a task.
    rows: usize,
    weights: Region,
    /// By level.
    values: Vec<Region>,
    normalisation: Option<Normalisation>,
}

/// Room for the layers with batch normalisation.
struct Normalisation {
    /// What takes the bias's place in the product: zeros.
    no_bias: Region,
    rows: Region,
    inverse: Region,
}

impl Normalisation {
    fn new(plan: &mut ArenaPlan, mlp: &Mlp, tasks: usize, rows: usize) -> Self {
        let widest = mlp.widths().iter().copied().max().unwrap_or(0);
        Self { no_bias: plan.take(1, widest), rows: plan.take(rows, widest), inverse: plan.take(tasks, widest) }
    }
}

impl<'a> Pass<'a> {
    fn new<T>(plan: &mut ArenaPlan, mlp: &'a Mlp, tasks: usize, inputs: &[T]) -> Result<Self> {
        let rows = inputs.len() / mlp.inputs();
        if inputs.is_empty() || !inputs.len().is_multiple_of(mlp.inputs()) {
            let expected = format!("a multiple of {}, the network's input width", mlp.inputs());
            return Err(Error::invalid("inputs", format!("{} numbers", inputs.len()), expected));
        }
        let weights = plan.take(1, mlp.parameter_count());
        let values = mlp.widths().iter().map(|width| plan.take(rows, *width)).collect();
        let normalisation = mlp.has_batch_norm().then(|| Normalisation::new(plan, mlp, tasks, rows));
        Ok(Self { mlp, tasks, rows: rows / tasks, weights, values, normalisation })
    }

    fn begin<T: Scalar, D: Device<T>>(
        &self,
        device: &D,
        arena: &mut D::Arena,
        parameters: &Parameters<T>,
        inputs: &[T],
    ) {
        device.upload(arena, self.weights, parameters.values());
        device.upload(arena, self.values[0], inputs);
        if let Some(normalisation) = &self.normalisation {
            device.fill(arena, normalisation.no_bias, T::ZERO);
        }
    }

    fn layer<T: Scalar, D: Device<T>>(
        &self,
        device: &D,
        arena: &mut D::Arena,
        layer: usize,
        corrections: Corrections<'_>,
    ) {
        let outputs = self.mlp.widths()[layer + 1];
        let shift = self.weights.elements(self.mlp.bias_range(layer).start, outputs);
        let (activation, output) = (self.mlp.activations()[layer], self.values[layer + 1]);
        let normalised = self.mlp.batch_norm(layer).zip(self.normalisation.as_ref()).map(|(norm, room)| {
            let operation = Normalise {
                tasks: self.tasks,
                epsilon: norm.epsilon(),
                rows: Region { rows: output.rows, width: outputs, ..room.rows },
                inverse: Region { width: outputs, ..room.inverse },
                shift,
                activation,
                output,
            };
            (operation, room.no_bias)
        });
        let operation = LinearForward {
            tasks: self.tasks,
            rows: self.rows,
            input: self.values[layer],
            layer: Linear {
                weight: self.weights.offset + self.mlp.weight_range(layer).start,
                bias: normalised.map_or(shift, |(_, no_bias)| no_bias).offset,
                task_stride: 0,
                inputs: self.mlp.widths()[layer],
                outputs,
            },
            corrections,
            activation: if normalised.is_some() { Activation::Linear } else { activation },
            output: normalised.map_or(output, |(normalise, _)| normalise.rows),
        };
        device.linear_forward(arena, &operation);
        if let Some((normalise, _)) = normalised {
            device.normalise(arena, &normalise);
        }
    }

    fn end<T: Scalar, D: Device<T>>(&self, device: &D, arena: &D::Arena) -> Result<Vec<T>> {
        let outputs = self.values[self.mlp.layers()];
        let mut host = vec![T::ZERO; outputs.len()];
        device.download(arena, outputs, &mut host);
        device.check()?;
        Ok(host)
    }
}

/// One layer's rows of all changes, filled up with zeros to one rank.
struct Rows {
    rank: usize,
    /// `[T, rank, outputs]` and `[T, rank, inputs]`.
    deltas: Region,
    values: Region,
    /// `[T, 1, outputs]`.
    bias: Region,
    /// `[T, K, rank]`: the layer's inputs times the values.
    products: Region,
}

impl Rows {
    fn new<T: Scalar>(plan: &mut ArenaPlan, pass: &Pass<'_>, changes: &[&LowRankChange<T>], layer: usize) -> Self {
        let rank = changes.iter().map(|change| change.rank(layer)).max().unwrap_or(0);
        let (inputs, outputs) = (pass.mlp.widths()[layer], pass.mlp.widths()[layer + 1]);
        Self {
            rank,
            deltas: plan.take(pass.tasks * rank, outputs),
            values: plan.take(pass.tasks * rank, inputs),
            bias: plan.take(pass.tasks, outputs),
            products: plan.take(pass.tasks * pass.rows, rank),
        }
    }

    fn upload<T: Scalar, D: Device<T>>(
        &self,
        device: &D,
        arena: &mut D::Arena,
        changes: &[&LowRankChange<T>],
        layer: usize,
    ) {
        for (task, change) in changes.iter().enumerate() {
            let (layer, rank) = (&change.layers()[layer], change.rank(layer));
            for (to, from) in [(self.deltas, &layer.deltas), (self.values, &layer.values)] {
                let own = to.rows(task * self.rank, self.rank);
                device.upload(arena, own.rows(0, rank), from);
                device.fill(arena, own.rows(rank, self.rank - rank), T::ZERO);
            }
            device.upload(arena, self.bias.rows(task, 1), &layer.bias);
        }
    }
}
