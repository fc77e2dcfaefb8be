//! innerloop
#![deny(missing_docs)]

mod error;

pub use error::{Error, Result};
