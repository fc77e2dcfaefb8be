//! The command-line program, and what runs leave. One test program, because compiling many takes longer than running them.

#[path = "../fixtures/mod.rs"]
mod fixtures;

mod commands;
mod conditions;
mod config_file;
mod personal;
mod report;
mod transfer;
