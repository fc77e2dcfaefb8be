//! The command line: one file a command.

/// Prints a line; results are in files as well, so that nobody reads along is no failure.
macro_rules! say {
    ($($text:tt)*) => {{
        let _ = std::io::Write::write_fmt(&mut std::io::stdout(), format_args!("{}\n", format_args!($($text)*)));
    }};
}

mod adapt;
mod bench;
mod chart;
mod eval;
mod generate;
mod grad;
mod run_folder;
mod samples;
mod setup;
mod train;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::device::cpu::CpuDevice;
use crate::{Result, Strategy};

/// Fast gradient-based meta-learning with multilayer perceptrons, and a video generator that adapts to a new subject
/// from a handful of clips.
#[derive(Debug, Parser)]
#[command(name = "innerloop", version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(Box<train::Arguments>),
    Adapt(adapt::Arguments),
    Generate(generate::Arguments),
    Eval(eval::Arguments),
    Grad(grad::Arguments),
    Bench(bench::Arguments),
}

/// Where and how to compute; the same for every command.
#[derive(Clone, Copy, Debug, Args)]
struct Compute {
    /// Threads; 0 takes every core
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// How adapted weights are represented: auto picks the cheaper form by its cost model
    #[arg(long, default_value = "auto", value_parser = parse_strategy, value_name = "auto|dual|materialised")]
    strategy: Choice,
}

/// `--precision`.
#[derive(Clone, Copy, Debug, clap::ValueEnum)]
enum Precision {
    F32,
    F64,
}

/// `--strategy`: a form, or none for the planner's choice.
#[derive(Clone, Copy, Debug)]
struct Choice(Option<Strategy>);

fn parse_strategy(text: &str) -> Result<Choice> {
    if text == "auto" { Ok(Choice(None)) } else { text.parse().map(|s| Choice(Some(s))) }
}

impl Compute {
    fn device(&self) -> Result<CpuDevice> {
        CpuDevice::new(self.threads)
    }
}

/// Runs the command line; errors are one line on standard error and exit code 1.
pub fn main() -> ExitCode {
    let result = match Arguments::parse().command {
        Command::Train(arguments) => return finish(train::run(&arguments)),
        Command::Adapt(arguments) => adapt::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::Grad(arguments) => grad::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
    };
    finish(result.map(|()| ExitCode::SUCCESS))
}

fn finish(result: Result<ExitCode>) -> ExitCode {
    match result {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}
