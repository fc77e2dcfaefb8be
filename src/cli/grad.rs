use std::collections::BTreeMap;
use std::path::PathBuf;

use clap::Args;

use super::{Compute, Precision, console, on_device};
use crate::Result;
use crate::problem::Problem;

/// Carry out one meta-step of a problem file, to hold innerloop against a program of your own
///
/// The problem is a safetensors file with layers.L.weight|bias (or generator.* and discriminator.*), support.x|y|z and
/// query.x|y|z as [tasks, rows, width], and rates where they are learned; its metadata names the algorithm and its
/// settings. The answer holds loss, task_loss, grad.* and rates_grad (or generator_loss, discriminator_loss,
/// generator.grad.*, discriminator.grad.*).
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// The problem
    #[arg(value_name = "PROBLEM.safetensors")]
    problem: PathBuf,
    /// Where to write the answer
    #[arg(long, value_name = "ANSWER.safetensors")]
    out: PathBuf,
    #[command(flatten)]
    compute: Compute,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let problem = Problem::read(&arguments.problem)?;
    let (compute, strategy) = (&arguments.compute, arguments.compute.strategy.0);
    let answer = match compute.precision.unwrap_or(Precision::F64).of_matrices(compute.device)? {
        Some(precision) => on_device!(compute, precision, device => problem.solve::<f32>(device, strategy))?,
        None => problem.solve::<f64>(compute.cpu_for_f64()?, strategy)?,
    };
    answer.write(&arguments.out)?;
    let losses = answer.tensors.iter().filter(|(name, _)| name.ends_with("loss"));
    let losses: BTreeMap<_, _> = losses.map(|(name, tensor)| (name, &tensor.values)).collect();
    console::record(&losses)?;
    for (name, values) in losses {
        let values = values.iter().map(|v| format!("{v:.9}")).collect::<Vec<_>>().join(" ");
        say!("{name}: {values}");
    }
    Ok(())
}
