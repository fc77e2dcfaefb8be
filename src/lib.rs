//! Fast gradient-based meta-learning (MAML, Reptile and kin) with multilayer perceptrons.
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
