//! innerloop
#![deny(missing_docs)]

pub(crate) mod atomic;
mod error;
pub mod tasks;

pub mod video;

pub use error::{Error, Result};
