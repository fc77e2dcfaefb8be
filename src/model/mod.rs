//! Multilayer perceptrons: their shape ([`Mlp`]) and their numbers ([`Parameters`]).

mod activation;
mod mlp;
mod parameters;

pub use activation::Activation;
pub use mlp::Mlp;
pub use parameters::Parameters;
