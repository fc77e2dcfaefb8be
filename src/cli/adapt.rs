use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use clap::{Args, ValueEnum};
use serde_json::json;

use super::run_folder::RunFolder;
use super::samples::{Comparison, write_comparison};
use super::{Compute, console, on_device, subject};
use crate::checkpoint::Checkpoint;
use crate::device::Device;
use crate::personal::Personal;
use crate::run::{Adaptation, AdaptationOptions, Course, Personalisation, Tune, Tuning, adapt, personalise, video_job};
use crate::tasks::ClipTasks;
use crate::{Error, Losses, Result};

/// Adapt a trained generator to a new subject, from a folder of its clips
///
/// Prints the losses before adapting and after each step, on clips that were not adapted with, and writes the adapted
/// checkpoint and an animation beside it: the clips as they are, as generated before, and after. With --tune it writes a
/// small personal file instead, which belongs to the checkpoint: see generate --personal.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A run's folder, or its checkpoint
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// Folder of the clips of ONE subject: DIR/CLIP
    #[arg(value_name = "DIR")]
    clips: PathBuf,
    /// Where to write the adapted checkpoint or personal file; the animation is written beside it, as .gif [default:
    /// adapted.safetensors, or personal.safetensors with --tune]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
    /// Clips to adapt with; the others are judged on [default: as in training]
    #[arg(long)]
    shots: Option<usize>,
    /// Inner steps [default: as in training]
    #[arg(long)]
    steps: Option<usize>,
    /// Seed of the choice of clips and of the noise
    #[arg(long, default_value_t = 0)]
    seed: u64,
    /// The subject's label, for a checkpoint trained with labels [default: what the folder's name means]
    #[arg(long)]
    label: Option<String>,
    /// Where decoded clips are kept; DIR/.innerloop-cache when absent
    #[arg(long, value_name = "DIR")]
    cache: Option<PathBuf>,
    /// Write a personal file: what adapting makes of the weights, or a meta-optimizer tuned on the clips, or both
    #[arg(long, help_heading = "Personal files")]
    tune: Option<What>,
    /// Meta-steps that tune the meta-optimizer
    #[arg(long, value_name = "N", default_value_t = TUNING_STEPS, help_heading = "Personal files")]
    tune_steps: u64,
    /// The factor of training's phi learning rates in these meta-steps
    #[arg(long, value_name = "FACTOR", default_value_t = Tuning::RATE, help_heading = "Personal files")]
    tune_rate: f64,
    /// Adapt with the meta-optimizer of this personal file in place of the checkpoint's
    #[arg(long, value_name = "FILE", help_heading = "Personal files")]
    optimizer: Option<PathBuf>,
    #[command(flatten)]
    compute: Compute,
}

/// What is personal.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum What {
    /// The generator, as it is once adapted
    Weights,
    /// The meta-optimizer: it adapts to further clips of the subject
    Optimizer,
    /// The meta-optimizer, and the generator adapted by it
    Both,
}

const TUNING_STEPS: u64 = 20;

/// What was asked for.
enum Made {
    Whole(Box<Adaptation>),
    Personal(Box<Personalisation>),
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let (out, animation) = arguments.outputs()?;
    let path = RunFolder::find_checkpoint(Some(&arguments.checkpoint))?;
    let mut checkpoint = Checkpoint::read(&path)?;
    let job = video_job(&checkpoint)?;
    let format = job.source.format();
    let clips = subject::open(job, &arguments.clips, arguments.label.as_deref(), arguments.cache.as_deref())?;
    if let Some(path) = &arguments.optimizer {
        let phi = Personal::read(path, &checkpoint)?.phi.ok_or_else(|| {
            let expected = "a personal file made with --tune optimizer or both";
            Error::invalid("--optimizer", format!("{}, which holds no meta-optimizer", path.display()), expected)
        })?;
        // The checkpoint that is written says how many steps its phi is for.
        let steps = checkpoint.config.job.inner().steps;
        checkpoint.phi = phi.iter().map(|phi| phi.with_steps(steps)).collect();
    }
    arguments.compute.override_choices(&mut checkpoint.config)?;
    let precision = checkpoint.config.precision;
    let begun = Instant::now();
    let made = on_device!(arguments.compute, precision, device => arguments.make(&device, &checkpoint, clips))?;
    let seconds = begun.elapsed().as_secs_f64();
    let course = made.course();
    print(course, made.psnr_before_tuning())?;
    let bytes = made.write(&out)?;
    let comparison = Comparison {
        format,
        truth: &course.batch.query_x,
        before: &course.trace.outputs[0],
        after: &course.trace.outputs[course.trace.outputs.len() - 1],
        stride: 1,
    };
    write_comparison(&animation, &comparison)?;
    let mut record = json!({
        "animation": animation.to_string_lossy(), "shots": course.batch.shots, "queries": course.batch.queries,
        "judged_on_support": course.judged_on_support, "psnr": course.psnr, "seconds": seconds,
        "loss": course.trace.losses.iter().map(Losses::mean).collect::<Vec<_>>(),
    });
    record[made.what()] = json!(out.to_string_lossy());
    if let Some(bytes) = bytes {
        let whole = std::fs::metadata(&path).map_err(|e| Error::io(&path, "read", e))?.len();
        record["bytes"] = json!(bytes);
        record["checkpoint_bytes"] = json!(whole);
        record["psnr_before_tuning"] = json!(made.psnr_before_tuning());
        let (megabytes, percent) = (bytes as f64 / 1e6, 100.0 * bytes as f64 / whole as f64);
        say!("personal file: {}, {megabytes:.2} MB ({percent:.1} % of the checkpoint)", out.display());
    } else {
        say!("adapted checkpoint: {}", out.display());
    }
    console::record(&record)?;
    say!("truth, before, after: {}", animation.display());
    say!("time: {seconds:.2} s, not counting files read and written");
    Ok(())
}

impl Arguments {
    /// The file to write, and the animation beside it.
    fn outputs(&self) -> Result<(PathBuf, PathBuf)> {
        let default = if self.tune.is_some() { "personal.safetensors" } else { "adapted.safetensors" };
        let out = self.out.clone().unwrap_or_else(|| default.into());
        let animation = out.with_extension("gif");
        if animation == out {
            return Err(Error::invalid("--out", out.display().to_string(), "a name that ends in .safetensors"));
        }
        Ok((out, animation))
    }

    fn make<D: Device<f32> + Clone>(
        &self,
        device: &D,
        checkpoint: &Checkpoint,
        clips: Arc<dyn ClipTasks>,
    ) -> Result<Made> {
        if !(self.tune_rate.is_finite() && self.tune_rate >= 0.0) {
            return Err(Error::invalid("--tune-rate", self.tune_rate.to_string(), "a finite number, 0 or above"));
        }
        let options = AdaptationOptions { shots: self.shots, steps: self.steps, seed: self.seed };
        let tuning = Tuning { steps: self.tune_steps, rate: self.tune_rate };
        let tune = match self.tune {
            None => return Ok(Made::Whole(Box::new(adapt(device, checkpoint, clips, &options)?))),
            Some(What::Weights) => Tune::Weights,
            Some(What::Optimizer) => Tune::Optimizer(tuning),
            Some(What::Both) => Tune::Both(tuning),
        };
        Ok(Made::Personal(Box::new(personalise(device, checkpoint, clips, &options, tune)?)))
    }
}

impl Made {
    fn course(&self) -> &Course {
        match self {
            Self::Whole(adaptation) => &adaptation.course,
            Self::Personal(personalisation) => &personalisation.course,
        }
    }

    fn psnr_before_tuning(&self) -> Option<&[f64]> {
        match self {
            Self::Whole(_) => None,
            Self::Personal(personalisation) => personalisation.psnr_before_tuning.as_deref(),
        }
    }

    /// What it is called in JSON.
    fn what(&self) -> &'static str {
        match self {
            Self::Whole(_) => "checkpoint",
            Self::Personal(_) => "personal",
        }
    }

    /// Returns the size in bytes of a personal file.
    fn write(&self, path: &Path) -> Result<Option<usize>> {
        match self {
            Self::Whole(adaptation) => adaptation.checkpoint.write(path).map(|()| None),
            Self::Personal(personalisation) => personalisation.personal.write(path).map(Some),
        }
    }
}

/// Prints the course.
///
/// # Errors
/// A course that diverged.
fn print(course: &Course, untuned: Option<&[f64]>) -> Result<()> {
    let (shots, queries) = (course.batch.shots, course.batch.queries);
    if course.judged_on_support {
        say!("adapting with {shots} clips; none is left to judge on, so these are judged on themselves");
    } else {
        say!("adapting with {shots} clips, judging on {queries} others");
    }
    let heading = if untuned.is_some() { "  untuned dB" } else { "" };
    say!("{:>5} {:>12} {:>15} {:>9}{heading}", "step", "loss", "discriminator", "PSNR dB");
    for (step, (losses, psnr)) in course.trace.losses.iter().zip(&course.psnr).enumerate() {
        let discriminator = losses.discriminator.first().filter(|loss| **loss != 0.0);
        let discriminator = discriminator.map_or("-".to_owned(), |loss| format!("{loss:.5}"));
        let untuned = untuned.map_or(String::new(), |psnr| format!(" {:>11.2}", psnr[step]));
        say!("{step:>5} {:>12.6} {discriminator:>15} {psnr:>9.2}{untuned}", losses.mean());
    }
    match course.psnr.iter().position(|psnr| !psnr.is_finite()) {
        Some(step) => {
            let expected = "fewer steps, or a checkpoint trained with more inner steps";
            Err(Error::invalid("adapting", format!("the loss became NaN after step {step}"), expected))
        }
        None => Ok(()),
    }
}
