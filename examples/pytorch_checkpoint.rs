//! PyTorch weights in and out: `cargo run --release --example pytorch_checkpoint -- [IN.safetensors] [OUT.safetensors]`
//!
//! IN is a network trained elsewhere, for instance in PyTorch:
//!
//! ```python
//! class Regressor(nn.Module):
//!     def __init__(self):
//!         super().__init__()
//!         self.main = nn.Sequential(nn.Linear(1, 40), nn.ReLU(), nn.Linear(40, 40), nn.ReLU(), nn.Linear(40, 1))
//!
//! safetensors.torch.save_file(regressor.state_dict(), "in.safetensors")
//! ```
//!
//! It is meta-trained on from there, adapted to one sinusoid, and written to OUT, where PyTorch finds the shared weights as
//! `main.*` and the adapted ones as `adapted.*`:
//!
//! ```python
//! tensors = safetensors.torch.load_file("out.safetensors")
//! regressor.load_state_dict({name: tensor for name, tensor in tensors.items() if name.startswith("main.")})
//! ```
//!
//! Without IN the network begins at random; without OUT it is written to the temporary folder.

use std::ops::ControlFlow;
use std::path::PathBuf;

use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, Mlp};
use innerloop::objective::Loss;
use innerloop::rand_chacha::ChaCha8Rng;
use innerloop::tasks::{Sinusoid, Sinusoids};
use innerloop::{
    Algorithm, InnerConfig, Result, Shape, SupervisedBatch, SupervisedConfig, Trainer, TrainingConfig, pytorch,
};

fn main() -> Result<()> {
    let mut arguments = std::env::args_os().skip(1).map(PathBuf::from);
    let (given, out) = (arguments.next(), arguments.next());
    let out = out.unwrap_or_else(|| std::env::temp_dir().join("innerloop-network.safetensors"));

    let mlp = Mlp::with_hidden(1, &[40, 40], 1, Activation::Relu, Activation::Linear)?;
    let shape = Shape { tasks: 25, shots: 10, queries: 10 };
    let objective = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner: InnerConfig::new(Algorithm::Maml, 1) };
    let tasks = |rng: &mut ChaCha8Rng, batch: &mut SupervisedBatch| {
        Sinusoids::default().draw_batch(rng, shape.tasks, shape.shots, shape.queries, batch)
    };
    let mut trainer = Trainer::new(CpuDevice::new(0)?, objective, TrainingConfig::new(shape, &[0.01]), tasks)?;
    if let Some(path) = &given {
        trainer.set_parameters(&[pytorch::read(path, "main", &mlp)?])?;
        println!("begun with {}", path.display());
    }
    trainer.train(5000, |step| {
        if step.step.is_multiple_of(1000) {
            println!("meta-step {}: query loss after adapting {:.3}", step.step, step.loss);
        }
        ControlFlow::Continue(())
    })?;

    let wave = Sinusoid { amplitude: 2.0, phase: 0.5 };
    let x: Vec<f32> = (0..10).map(|i| i as f32 - 4.5).collect();
    let y: Vec<f32> = x.iter().map(|x| wave.at(*x)).collect();
    let adapted = trainer.adapt(&x, &y)?;
    pytorch::write(&out, &[("main", &trainer.learner().parameters(0)), ("adapted", &adapted)])?;
    println!("written: {}", out.display());
    Ok(())
}
