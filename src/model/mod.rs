//! Multilayer perceptrons: their shape ([`Mlp`]) and their numbers ([`Parameters`]).

mod activation;
mod batch_norm;
mod mlp;
mod parameters;

pub use activation::Activation;
pub use batch_norm::BatchNorm;
pub use mlp::Mlp;
pub use parameters::Parameters;
