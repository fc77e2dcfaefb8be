use clap::Args;

use crate::Result;

/// Not written yet
#[derive(Debug, Args)]
pub(super) struct Arguments {}

pub(super) fn run(_: &Arguments) -> Result<()> {
    Ok(())
}
