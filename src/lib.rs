//! Fast gradient-based meta-learning (MAML, Reptile and kin) with multilayer perceptrons.
//!
//! MAML on data of your own: say what a task is, and train. Here a task is a line through the origin; its first five points
//! are the support set, which the network adapts on, the others the query set, on which it is judged.
//!
//! ```
//! use innerloop::{device::cpu::CpuDevice, model::*, objective::Loss, rand::RngExt, rand_chacha::ChaCha8Rng, *};
//! use std::ops::ControlFlow::{Break, Continue};
//!
//! let lines = |rng: &mut ChaCha8Rng, batch: &mut SupervisedBatch| {
//!     for _ in 0..16 {
//!         let slope = rng.random_range(-2.0..2.0);
//!         let x: [f32; 10] = std::array::from_fn(|_| rng.random_range(-1.0..1.0));
//!         let y = x.map(|x| slope * x);
//!         batch.push_task((&x[..5], &y[..5]), (&x[5..], &y[5..]));
//!     }
//!     Ok(())
//! };
//! let mlp = Mlp::new(&[1, 32, 32, 1], &[Activation::Relu, Activation::Relu, Activation::Linear])?;
//! let maml = SupervisedConfig { mlp, loss: Loss::Mse, inner: InnerConfig::new(Algorithm::Maml, 3) };
//! let config = TrainingConfig::new(Shape { tasks: 16, shots: 5, queries: 5 }, &[0.1]);
//! let device = CpuDevice::new(0)?;
//! let mut trainer = Trainer::new(device.clone(), maml, config, lines)?;
//! trainer.train(1000, |step| if step.loss < 0.005 { Break(()) } else { Continue(()) })?;
//!
//! let adapted = trainer.adapt(&[-0.8, -0.4, 0.2, 0.5, 0.9], &[-1.2, -0.6, 0.3, 0.75, 1.35])?; // the slope is 1.5
//! let y = forward(&device, &adapted, &[0.6])?;
//! assert!((y[0] - 0.9).abs() < 0.2, "{y:?}");
//! # Ok::<(), Error>(())
//! ```
//!
//! | to change | take |
//! |---|---|
//! | the tasks | any `FnMut` as above, or a type that implements [`Tasks`] |
//! | the network | [`model::Mlp`] of any widths and activations, with or without [`model::BatchNorm`]; [`pytorch`] reads and writes weights |
//! | the loss | [`objective::Loss`]: regression, binary or many classes |
//! | the algorithm, inner steps, momentum, learned rates | [`InnerConfig`] |
//! | the outer optimizer | [`OuterConfig`] in [`TrainingConfig`] |
//! | to a video generator and its discriminator | [`VideoConfig`], with [`tasks::Episodes`] of your own [`tasks::ClipTasks`] |
//! | the loop itself | [`MetaLearner`]: one meta-step at a time, single or double precision, gradients to look at |
//!
//! `examples/` has one program for each of: regression, classification, the video GAN, PyTorch weights in and out, the
//! published sinusoid regression, the published Omniglot classification. [`run`] is what the command line does: configuration, [`checkpoint`]s, evaluation against
//! baselines. [`chart`] draws curves.
//!
//! The exact second-order meta-gradient comes in the dual form, in which no task's weights are ever stored; `docs/` explains
//! it.
#![deny(missing_docs)]

mod atomic;
pub mod chart;
pub mod checkpoint;
#[doc(hidden)]
pub mod cli;
pub mod device;
mod error;
mod hash;
mod inner;
mod meta;
pub mod model;
pub mod objective;
pub mod personal;
pub mod problem;
mod progress;
pub mod pytorch;
pub mod run;
mod scalar;
pub mod tasks;
mod tensors;
pub mod video;

pub use error::{Error, Result};
pub use inner::{Cost, LayerChange, LowRankChange, Strategy, forward, forward_changed};
pub use meta::{
    Algorithm, InnerConfig, InnerOptimizer, Losses, MetaLearner, MetaOptimizer, Objective, OptimizerState, OuterConfig,
    OuterKind, RateKind, Schedule, Shape, SupervisedBatch, SupervisedConfig, SupervisedRows, Trace, VideoConfig,
    VideoRows,
};
pub use run::{StepReport, Tasks, Trainer, TrainingConfig};
pub use scalar::Scalar;
pub use {rand, rand_chacha};
