//! The library, from outside. One program, because compiling many takes longer than running them.

#[path = "../fixtures/mod.rs"]
mod fixtures;
#[path = "../fixtures/golden.rs"]
mod reference;

mod batch_norm;
mod clip_folders;
mod embedding;
mod explained;
mod golden;
mod kept_rows;
mod memory;
mod outer_optimizer;
mod problem_files;
mod tasks;
mod video_readers;
mod video_writers;
mod work;
