//! The command line: one file a command.

/// Prints a line for people.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::console::line(format_args!($($text)*)) };
}

mod adapt;
mod bench;
mod ceilings;
mod config_file;
mod console;
mod documents;
mod eval;
mod explain;
mod generate;
mod grad;
mod metrics;
mod report;
mod reporter;
mod run_folder;
mod samples;
mod setup;
mod subject;
mod tensorboard;
mod train;
mod transfer;
mod tune;

use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand};

use self::config_file::{ConfigFile, Effective, TRAIN, with_settable_flags};
use self::console::Verbosity;
use crate::device::cpu::CpuDevice;
use crate::device::{DeviceKind, MatrixPrecision};
use crate::run::RunConfig;
use crate::{Error, Result, Strategy};

/// The program's name.
const NAME: &str = "innerloop";

/// Fast gradient-based meta-learning with multilayer perceptrons, and a video generator that adapts to a new subject
/// from a handful of clips.
#[derive(Debug, Parser)]
#[command(name = NAME, version, arg_required_else_help = true)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    verbosity: Verbosity,
}

#[derive(Debug, Subcommand)]
enum Command {
    Train(Box<train::Arguments>),
    Adapt(adapt::Arguments),
    Generate(generate::Arguments),
    Eval(eval::Arguments),
    Report(report::Arguments),
    Grad(grad::Arguments),
    Bench(bench::Arguments),
    Tune(tune::Arguments),
    Completions(documents::Completions),
    Man(documents::Man),
}

/// Where and how to compute; the same for every command.
#[derive(Clone, Copy, Debug, Args)]
struct Compute {
    /// Where to compute: auto takes a GPU if there is one that this build can use
    #[arg(long, default_value = "auto", value_name = "auto|cpu|cuda|cuda:N")]
    device: DeviceKind,
    /// Threads on the CPU; 0 takes every core
    #[arg(long, default_value_t = 0, value_name = "N")]
    threads: usize,
    /// How adapted weights are represented: auto picks the cheaper form by its cost model
    #[arg(long, default_value = "auto", value_parser = parse_strategy, value_name = "auto|dual|materialised|resident|folded")]
    strategy: Choice,
    /// What to compute in: f32 anywhere; f64 on the CPU, with grad (its default) and bench; on a GPU also f32 with the
    /// operands of large matrix products rounded to tf32, bf16 or f16; auto is what is fastest: bf16 on a GPU, f32 on the CPU
    /// [default: the run's, or f32]
    #[arg(long)]
    precision: Option<Precision>,
}

/// `--precision`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Precision {
    Auto,
    F32,
    F64,
    Tf32,
    Bf16,
    F16,
}

impl Precision {
    /// What operands of large matrix products are rounded to on that device; nothing where it is not for them.
    fn of_matrices(self, device: DeviceKind) -> Result<Option<MatrixPrecision>> {
        Ok(match self {
            Self::Auto if matches!(device.resolve()?, DeviceKind::Cuda(_)) => Some(MatrixPrecision::Bf16),
            Self::Auto | Self::F32 => Some(MatrixPrecision::F32),
            Self::F64 => None,
            Self::Tf32 => Some(MatrixPrecision::Tf32),
            Self::Bf16 => Some(MatrixPrecision::Bf16),
            Self::F16 => Some(MatrixPrecision::F16),
        })
    }
}

/// `--strategy`: a form, or none for the planner's choice.
#[derive(Clone, Copy, Debug)]
struct Choice(Option<Strategy>);

fn parse_strategy(text: &str) -> Result<Choice> {
    if text == "auto" { Ok(Choice(None)) } else { text.parse().map(|s| Choice(Some(s))) }
}

/// Evaluates an expression with the device that is asked for; the precision is for GPUs.
macro_rules! on_device {
    ($compute:expr, $precision:expr, $device:ident => $body:expr) => {
        match $compute.device.resolve()? {
            #[cfg(feature = "cuda")]
            $crate::device::DeviceKind::Cuda(ordinal) => {
                let $device = $crate::cli::tune::tuned(ordinal)?.with_precision($precision);
                $body
            }
            _ => {
                $compute.check_precision_of_cpu()?;
                let _: $crate::device::MatrixPrecision = $precision;
                let device = $crate::device::cpu::CpuDevice::new($compute.threads)?;
                device.clone().within(|| {
                    let $device = device;
                    $body
                })
            }
        }
    };
}
use on_device;

impl Compute {
    /// Puts the form and the precision that are asked for, if any, in place of the run's own.
    fn override_choices(&self, config: &mut RunConfig) -> Result<()> {
        if let Some(strategy) = self.strategy.0 {
            config.job.inner_mut().strategy = Some(strategy);
        }
        config.precision = self.precision_of(config)?;
        Ok(())
    }

    /// The precision that is asked for, else the run's own.
    fn precision_of(&self, config: &RunConfig) -> Result<MatrixPrecision> {
        let Some(precision) = self.precision else { return Ok(config.precision) };
        precision.of_matrices(self.device)?.ok_or_else(|| {
            let expected = "f32, or tf32, bf16 or f16 on a GPU: runs are in f32 (f64 is for grad and bench)";
            Error::invalid("--precision", "f64", expected)
        })
    }

    /// A CPU does as asked: it rounds no operands. What a run was trained with does not matter to it.
    fn check_precision_of_cpu(&self) -> Result<()> {
        match self.precision.map(|precision| precision.of_matrices(self.device)).transpose()?.flatten() {
            None | Some(MatrixPrecision::F32) => Ok(()),
            Some(rounded) => {
                let expected = "f32 on the CPU, or a GPU: --device cuda";
                Err(Error::invalid("--precision", format!("{rounded} on the CPU"), expected))
            }
        }
    }

    /// The CPU, for what only the CPU computes: double precision.
    fn cpu_for_f64(&self) -> Result<CpuDevice> {
        match self.device {
            DeviceKind::Cuda(_) => {
                let expected = "f32, tf32, bf16 or f16 on GPUs, or --device cpu";
                Err(Error::invalid("--precision", format!("f64 on {}", self.device), expected))
            }
            _ => CpuDevice::new(self.threads),
        }
    }
}

/// Runs the command line; errors are one line on standard error and exit code 1.
pub fn main() -> ExitCode {
    let (arguments, effective) = match parse(std::env::args_os().collect()) {
        Ok(parsed) => parsed,
        Err(error) => return finish(Err(error)),
    };
    arguments.verbosity.apply();
    let result = match arguments.command {
        Command::Train(arguments) => return finish(train::run(&arguments, effective)),
        Command::Adapt(arguments) => adapt::run(&arguments),
        Command::Generate(arguments) => generate::run(&arguments),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::Grad(arguments) => grad::run(&arguments),
        Command::Report(arguments) => report::run(&arguments),
        Command::Bench(arguments) => bench::run(&arguments),
        Command::Tune(arguments) => tune::run(&arguments),
        Command::Completions(arguments) => {
            documents::completions(command(), &arguments);
            Ok(())
        }
        Command::Man(arguments) => documents::man(command(), &arguments),
    };
    finish(result.map(|()| ExitCode::SUCCESS))
}

/// The commands and their options.
fn command() -> clap::Command {
    with_settable_flags(Arguments::command())
}

/// Parses the command line, with train's configuration file put in; also what train was started with.
fn parse(given: Vec<OsString>) -> Result<(Arguments, Effective)> {
    let command = command();
    let parse = |arguments: &[OsString]| {
        let matches = command.clone().try_get_matches_from(arguments)?;
        Ok((Arguments::from_arg_matches(&matches)?, matches))
    };
    let (mut arguments, mut matches) = parse(&given).unwrap_or_else(|error: clap::Error| error.exit());
    let (Some(train), Command::Train(options)) = (command.find_subcommand(TRAIN), &arguments.command) else {
        return Ok((arguments, Effective::default()));
    };
    let train_matches = |matches: &clap::ArgMatches| matches.subcommand_matches(TRAIN).cloned().unwrap_or_default();
    if let Some(path) = &options.config {
        let file = ConfigFile::read(path, train)?;
        let given_to_train = train_matches(&matches);
        // No option before a subcommand takes a value, so the first such word is the subcommand.
        let place = given.iter().position(|word| word == TRAIN).map_or(given.len(), |at| at + 1);
        let with_file = |left_out: Option<&str>| {
            let mut all = given.clone();
            all.splice(place..place, file.arguments(&given_to_train, train, left_out));
            parse(&all)
        };
        (arguments, matches) = with_file(None).map_err(|error| file.clash(&error))?;
        if let Command::Train(options) = &arguments.command {
            options.check().map_err(|error| {
                file.blame(error, |key| match with_file(Some(key)).map(|(arguments, _)| arguments.command) {
                    Ok(Command::Train(options)) => options.check().is_ok(),
                    _ => false,
                })
            })?;
        }
    }
    let effective = Effective::of(train, &train_matches(&matches));
    Ok((arguments, effective))
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
