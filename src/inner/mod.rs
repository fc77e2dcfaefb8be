//! The inner loop and its exact transpose, in forms that give the same numbers.
//!
//! `tape` holds the rows of every step, `learned` the rates that the device learns by itself, `dual` and `materialised` say how the adapted weights are represented, `rule` how
//! the latter move, `folded` what takes the dual form's last layer's place where it is linear, `normalised` what batch normalisation adds to either, and `resident` hands the whole loop to the device;
//! `network` puts them together for one network, `supervised` and `gan` are the two objectives' loops.

mod change;
mod coefficients;
mod cost;
mod dual;
mod dual_layer;
mod dual_rates;
mod folded;
mod folded_layer;
mod forward;
mod gan;
mod learned;
mod materialised;
mod network;
mod normalised;
mod one_task;
mod plan;
mod resident;
mod rule;
mod supervised;
mod tape;
mod transform;

pub use plan::Strategy;

pub use change::{LayerChange, LowRankChange};
pub use cost::Cost;
pub use folded_layer::check as check_folded;
pub use forward::{forward, forward_changed};
pub use plan::{MAX_DUAL_STEPS, Nearby, choose, cost_of, estimate, is_possible, lanes};
#[cfg(any(feature = "cuda", feature = "emulate"))]
pub(crate) use resident::LAYERS;
pub use resident::check as check_resident;
pub use tape::NetworkSpec;

pub use gan::{GanLoop, GanSpec};
pub use learned::Learned;
pub use network::{LoopRows, Network, Rates};
pub use supervised::{SupervisedLoop, SupervisedSpec};
