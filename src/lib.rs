//! Fast gradient-based meta-learning (MAML, Reptile and kin) with multilayer perceptrons.
//!
//! A [`MetaLearner`] holds the shared parameters and carries out meta-steps on batches of your own; the exact second-order
//! meta-gradient comes in the dual form, in which no task's weights are ever stored. Second-order MAML on sinusoids:
//!
//! ```
//! use innerloop::device::cpu::CpuDevice;
//! use innerloop::model::{Activation, Mlp, Parameters};
//! use innerloop::objective::Loss;
//! use innerloop::tasks::{SineBatch, Sinusoids};
//! use innerloop::*;
//! use rand::SeedableRng;
//!
//! let mut rng = rand_chacha::ChaCha8Rng::seed_from_u64(0);
//! let mlp = Mlp::with_hidden(1, &[40, 40], 1, Activation::Relu, Activation::Linear)?;
//! let inner = InnerConfig { learn_rates: true, ..InnerConfig::new(Algorithm::Maml, 3) };
//! let phi = MetaOptimizer::<f32>::uniform(inner.rates, &mlp, inner.steps, 0.01)?;
//! let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner };
//! let shape = Shape { tasks: 25, shots: 10, queries: 10 };
//! let mut learner = MetaLearner::new(CpuDevice::new(0)?, config, shape, vec![phi])?;
//! learner.set_parameters(0, &Parameters::initialise(&mlp, &mut rng))?;
//! let mut batch = SineBatch::default();
//! for _ in 0..20 {
//!     Sinusoids::default().draw_batch(&mut rng, shape.tasks, shape.shots, shape.queries, &mut batch)?;
//!     let SineBatch { support_x, support_y, query_x, query_y } = &batch;
//!     let losses = learner.run(SupervisedRows { support_x, support_y, query_x, query_y }, &mut rng)?;
//!     println!("query loss after adapting: {:.3}", losses.mean());
//!     learner.update(&OuterConfig::adam(1e-3))?;
//! }
//! # Ok::<(), Error>(())
//! ```
//!
//! [`VideoConfig`] in place of [`SupervisedConfig`] meta-trains a video generator and its discriminator; [`run`] ties a
//! learner to tasks, [`checkpoint`]s and evaluation, as the command line does.
#![deny(missing_docs)]

mod atomic;
pub mod checkpoint;
#[doc(hidden)]
pub mod cli;
pub mod device;
mod error;
mod inner;
mod meta;
pub mod model;
pub mod objective;
pub mod problem;
mod progress;
pub mod run;
mod scalar;
pub mod tasks;
pub mod video;

pub use error::{Error, Result};
pub use inner::{Cost, Strategy, forward};
pub use meta::{
    Algorithm, InnerConfig, Losses, MetaLearner, MetaOptimizer, Objective, OptimizerState, OuterConfig, OuterKind,
    RateKind, Schedule, Shape, SupervisedConfig, SupervisedRows, Trace, VideoConfig, VideoRows,
};
pub use scalar::Scalar;
