use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use clap::Args;

use super::config_file::Effective;
use super::metrics::{Metric, Metrics, Window, loss_curve};
use super::reporter::{EPISODES, Reporter, Speed};
use super::run_folder::RunFolder;
use super::setup::Setup;
use super::{Compute, console, on_device};
use crate::checkpoint::Checkpoint;
use crate::device::Device;
use crate::model::Parameters;
use crate::run::{Evaluation, Job, Pools, RunConfig, Session, SineBatches, Tasks, joint_training};
use crate::{Error, Objective, Result};

/// Meta-train on a folder of clips, or on built-in tasks
///
/// Writes to a folder of its own (runs/NAME-N): checkpoint.safetensors, config.toml, metrics.jsonl and the same for
/// TensorBoard, loss.svg, sample animations, and at the end summary.json and adapted.gif: held-out tasks as they are, as
/// generated before adapting, and after. `innerloop report` makes one page of it all. Ctrl-C leaves a checkpoint that
/// --resume continues; with the same number of threads the continued run ends bit for bit as it would
/// have without the stop.
#[derive(Debug, Args)]
#[command(allow_negative_numbers = true)]
pub(super) struct Arguments {
    /// Continue a run: its folder or its checkpoint. Everything but threads and files comes from the checkpoint
    #[arg(long, value_name = "RUN", conflicts_with = "Setup")]
    resume: Option<PathBuf>,
    /// Take options from a TOML file, `option = value` a line; those given here count more. A run's config.toml makes the
    /// run again
    #[arg(long, value_name = "FILE", conflicts_with = "resume")]
    pub(super) config: Option<PathBuf>,
    /// Folder of the run; the next free runs/NAME-N when absent
    #[arg(long, value_name = "DIR", conflicts_with = "resume")]
    out: Option<PathBuf>,
    /// Meta-steps between checkpoints
    #[arg(long, value_name = "N", default_value_t = 500)]
    checkpoint_every: u64,
    /// Meta-steps between sample animations [default: a fifth of the run]
    #[arg(long, value_name = "N")]
    sample_every: Option<u64>,
    /// Meta-steps averaged in a line of metrics [default: a thousandth of the run]
    #[arg(long, value_name = "N")]
    log_every: Option<u64>,
    #[command(flatten)]
    compute: Compute,
    #[command(flatten)]
    setup: Setup,
}

/// The exit code of a run that Ctrl-C has stopped.
const INTERRUPTED: u8 = 130;

impl Arguments {
    /// Checks that the options fit together.
    ///
    /// # Errors
    /// Naming the option or field at fault.
    pub(super) fn check(&self) -> Result<()> {
        for (option, value) in [
            ("--checkpoint-every", Some(self.checkpoint_every)),
            ("--sample-every", self.sample_every),
            ("--log-every", self.log_every),
        ] {
            if value == Some(0) {
                return Err(Error::invalid(option, "0", "at least 1"));
            }
        }
        if self.resume.is_some() { Ok(()) } else { self.setup.config().map(drop) }
    }

    fn log_every(&self, steps: u64) -> u64 {
        self.log_every.unwrap_or((steps / 1000).max(1))
    }

    fn sample_every(&self, steps: u64) -> u64 {
        self.sample_every.unwrap_or((steps / 5).max(1))
    }
}

/// Runs the command; `effective` is what it was started with.
pub(super) fn run(arguments: &Arguments, mut effective: Effective) -> Result<ExitCode> {
    arguments.check()?;
    let resumed = match &arguments.resume {
        Some(path) => {
            let path = RunFolder::find_checkpoint(Some(path))?;
            let folder = RunFolder(path.parent().map_or_else(PathBuf::new, Into::into));
            Some((folder, Checkpoint::read(&path)?))
        }
        None => None,
    };
    let mut config = match &resumed {
        Some((_, checkpoint)) => checkpoint.config.clone(),
        None => arguments.setup.config()?,
    };
    arguments.compute.override_choices(&mut config)?;
    let precision = config.precision;
    effective.set("precision", precision);
    effective.set("pretraining", config.pretraining);
    effective.set("log-every", arguments.log_every(config.steps));
    effective.set("sample-every", arguments.sample_every(config.steps));
    let min_clips = config.shape.shots.saturating_add(config.shape.queries);
    let (job, shape) = (config.job.clone(), config.shape);
    match &job {
        Job::Video(video) => {
            let pools =
                video.source.open(&video.latent.condition, config.seed, min_clips, console::shows_progress())?;
            console::notes(&pools.notes);
            let batches = video.episodes(pools.training.clone(), shape)?;
            let start = Start { arguments, effective, config, resumed, pools: Some(pools) };
            on_device!(arguments.compute, precision, device => train(device, start, video.objective.clone(), batches))
        }
        Job::Sinusoid(sine) => {
            let batches = SineBatches::new(sine, shape)?;
            let start = Start { arguments, effective, config, resumed, pools: None };
            on_device!(arguments.compute, precision, device => train(device, start, sine.objective.clone(), batches))
        }
    }
}

/// What a run starts from.
struct Start<'a> {
    arguments: &'a Arguments,
    effective: Effective,
    config: RunConfig,
    resumed: Option<(RunFolder, Checkpoint)>,
    pools: Option<Pools>,
}

fn train<O, S, D>(device: D, start: Start<'_>, objective: O, tasks: S) -> Result<ExitCode>
where
    O: Objective,
    S: Tasks<O>,
    D: Device<f32> + Clone,
{
    let Start { arguments, effective, config, resumed, pools } = start;
    let (mut session, folder) = match resumed {
        Some((folder, mut checkpoint)) => {
            checkpoint.config = config.clone();
            (Session::resume(device.clone(), &checkpoint, objective, tasks)?, folder)
        }
        None => {
            let mut session = Session::new(device.clone(), config.clone(), objective, tasks)?;
            if config.pretraining > 0 {
                match pretrain(&device, &config, pools.as_ref())? {
                    Some(parameters) => session.set_parameters(&parameters)?,
                    None => {
                        eprintln!("stopped before the first meta-step: nothing was written");
                        return Ok(ExitCode::from(INTERRUPTED));
                    }
                }
            }
            let name = match config.job {
                Job::Video(_) if arguments.setup.clips.is_none() => "shapes",
                Job::Video(_) => "clips",
                Job::Sinusoid(_) => "sinusoid",
            };
            let folder = RunFolder::create(arguments.out.as_deref(), name)?;
            effective.write(&folder.config())?;
            folder.write(&session.checkpoint())?;
            (session, folder)
        }
    };
    let evaluation = match &pools {
        Some(pools) if pools.held_out.is_empty() => None,
        _ => Some(Evaluation::draw(&config, pools.as_ref(), EPISODES)?),
    };
    let report = Reporter { device, folder, evaluation };
    report.announce(&session, pools.as_ref())?;
    let speed = course(&mut session, arguments, &report)?;
    report.folder.write(&session.checkpoint())?;
    if session.steps_done() < session.config().steps {
        let folder = report.folder.0.display();
        eprintln!("stopped after meta-step {}; go on with: innerloop train --resume {folder}", session.steps_done());
        return Ok(ExitCode::from(INTERRUPTED));
    }
    report.finish(&session, speed)?;
    Ok(ExitCode::SUCCESS)
}

/// Joint training before the first meta-step; nothing if Ctrl-C ended it.
fn pretrain<D: Device<f32> + Clone>(
    device: &D,
    config: &RunConfig,
    pools: Option<&Pools>,
) -> Result<Option<Vec<Parameters<f32>>>> {
    let bar = console::progress_bar("joint training", config.pretraining);
    let interrupted = interruption();
    let parameters = joint_training(device, config, pools, config.pretraining, |step| {
        bar.set_position(step);
        !interrupted.load(Ordering::Relaxed)
    });
    bar.finish_and_clear();
    let parameters = parameters?;
    Ok((!interrupted.load(Ordering::Relaxed)).then_some(parameters))
}

/// Runs to the end, or until Ctrl-C.
fn course<O, S, D>(session: &mut Session<O, S, D>, arguments: &Arguments, report: &Reporter<D>) -> Result<Speed>
where
    O: Objective,
    S: Tasks<O>,
    D: Device<f32> + Clone,
{
    let steps = session.config().steps;
    let (log_every, sample_every) = (arguments.log_every(steps), arguments.sample_every(steps));
    let mut metrics = Metrics::open(&report.folder.metrics(), &report.folder.events(), session.steps_done())?;
    let interrupted = interruption();
    let bar = console::progress_bar("meta-training", steps).with_position(session.steps_done());
    bar.reset_eta();
    let mut window = Window::new();
    let begun = Instant::now();
    let first = session.steps_done();
    while session.steps_done() < steps && !interrupted.load(Ordering::Relaxed) {
        let step = session.step().inspect_err(|_| bar.abandon())?;
        window.add(&step);
        let config = session.config();
        if step.step.is_multiple_of(log_every) || step.step == steps {
            let metric = window.close(step.step, config);
            bar.set_message(message(&metric));
            console::event("metrics", &metric)?;
            metrics.push(metric)?;
        }
        bar.set_position(step.step);
        if step.step < steps && step.step.is_multiple_of(arguments.checkpoint_every) {
            report.folder.write(&session.checkpoint())?;
            loss_curve(metrics.all()).write(&report.folder.curve())?;
        }
        if step.step < steps && step.step.is_multiple_of(sample_every) {
            report.sample(session, &report.folder.sample(step.step))?;
        }
    }
    bar.finish_and_clear();
    loss_curve(metrics.all()).write(&report.folder.curve())?;
    let speed = Speed { meta_steps: session.steps_done() - first, seconds: begun.elapsed().as_secs_f64() };
    if speed.meta_steps > 0 {
        let (tasks, form) = (speed.tasks_per_second(session.config()), session.learner().strategy());
        say!("{} meta-steps in {:.1} s: {tasks:.0} tasks/s, {form} form", speed.meta_steps, speed.seconds);
    }
    Ok(speed)
}

/// Set by the first Ctrl-C; the second ends the program at once.
fn interruption() -> &'static AtomicBool {
    static SEEN: AtomicBool = AtomicBool::new(false);
    let handler = || {
        if SEEN.swap(true, Ordering::Relaxed) {
            std::process::exit(INTERRUPTED.into());
        }
    };
    // Set once. Without a handler Ctrl-C ends the program at once, as it does everywhere; checkpoints are whole all the same.
    let _ = ctrlc::set_handler(handler);
    &SEEN
}

fn message(metric: &Metric) -> String {
    let discriminator = metric.discriminator_loss.map_or(String::new(), |loss| format!(" D {loss:.4}"));
    format!("loss {:.5}{discriminator}, {:.0} tasks/s", metric.loss, metric.tasks_per_second)
}
