//! Meta-learning: the algorithms, the meta-optimizer, the outer optimizer, and the [`MetaLearner`] that ties them together.

mod adapted;
mod ahead;
mod algorithm;
mod annealing;
mod batch;
mod config;
mod layout;
mod learner;
mod meta_optimizer;
mod objective;
mod outer;
mod outer_step;
mod phi_layout;

pub use algorithm::Algorithm;
pub use batch::{SupervisedBatch, SupervisedRows, VideoRows};
pub use config::{InnerConfig, InnerOptimizer, SupervisedConfig, VideoConfig};
pub use learner::{Losses, MetaLearner, Shape, Trace};
pub(crate) use meta_optimizer::rate_count;
pub use meta_optimizer::{MetaOptimizer, RateKind};
pub use objective::Objective;
pub(crate) use objective::sealed;
pub use outer::{OuterConfig, OuterKind, Schedule};
pub use outer_step::OptimizerState;
pub(crate) use phi_layout::{PhiLayout, Side, SideLayout};
