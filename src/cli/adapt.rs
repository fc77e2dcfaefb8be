use std::path::PathBuf;
use std::sync::Arc;

use clap::Args;
use serde_json::json;

use super::run_folder::RunFolder;
use super::samples::{Comparison, write_comparison};
use super::{Compute, console, on_device};
use crate::checkpoint::Checkpoint;
use crate::run::{AdaptationOptions, adapt, video_job};
use crate::tasks::{ClipFolder, Condition, FolderOptions};
use crate::{Error, Losses, Result};

/// Adapt a trained generator to a new subject, from a folder of its clips
///
/// Prints the losses before adapting and after each step, on clips that were not adapted with, and writes the adapted
/// checkpoint and an animation beside it: the clips as they are, as generated before, and after.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A run's folder, or its checkpoint
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: PathBuf,
    /// Folder of the clips of ONE subject: DIR/CLIP
    #[arg(value_name = "DIR")]
    clips: PathBuf,
    /// Where to write the adapted checkpoint; the animation is written beside it, as .gif
    #[arg(long, value_name = "FILE", default_value = "adapted.safetensors")]
    out: PathBuf,
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
    #[command(flatten)]
    compute: Compute,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let mut checkpoint = Checkpoint::read(&RunFolder::find_checkpoint(Some(&arguments.checkpoint))?)?;
    let (format, condition) = {
        let job = video_job(&checkpoint)?;
        (job.source.format(), job.latent.condition.clone())
    };
    let animation = arguments.out.with_extension("gif");
    if animation == arguments.out {
        return Err(Error::invalid("--out", arguments.out.display().to_string(), "a name that ends in .safetensors"));
    }
    let options = FolderOptions {
        cache: arguments.cache.clone(),
        min_clips: 1,
        progress: console::shows_progress(),
        label: label(arguments, &condition)?,
        condition,
    };
    let folder = ClipFolder::open_single_task(&arguments.clips, format, &options)?;
    console::notes(folder.notes());
    let options = AdaptationOptions { shots: arguments.shots, steps: arguments.steps, seed: arguments.seed };
    arguments.compute.override_strategy(&mut checkpoint.config);
    let adapted = on_device!(arguments.compute, device => adapt(&device, &checkpoint, Arc::new(folder), &options))?;
    let (shots, queries) = (adapted.batch.shots, adapted.batch.queries);
    if adapted.judged_on_support {
        say!("adapting with {shots} clips; none is left to judge on, so these are judged on themselves");
    } else {
        say!("adapting with {shots} clips, judging on {queries} others");
    }
    say!("{:>5} {:>12} {:>15} {:>9}", "step", "loss", "discriminator", "PSNR dB");
    for (step, (losses, psnr)) in adapted.trace.losses.iter().zip(&adapted.psnr).enumerate() {
        let discriminator = losses.discriminator.first().filter(|loss| **loss != 0.0);
        let discriminator = discriminator.map_or("-".to_owned(), |loss| format!("{loss:.5}"));
        say!("{step:>5} {:>12.6} {discriminator:>15} {psnr:>9.2}", losses.mean());
    }
    if let Some(step) = adapted.psnr.iter().position(|psnr| !psnr.is_finite()) {
        let expected = "fewer steps, or a checkpoint trained with more inner steps";
        return Err(Error::invalid("adapting", format!("the loss became NaN after step {step}"), expected));
    }
    adapted.checkpoint.write(&arguments.out)?;
    let comparison = Comparison {
        format,
        truth: &adapted.batch.query_x,
        before: &adapted.trace.outputs[0],
        after: &adapted.trace.outputs[adapted.trace.outputs.len() - 1],
        stride: 1,
    };
    write_comparison(&animation, &comparison)?;
    console::record(&json!({
        "checkpoint": arguments.out.to_string_lossy(), "animation": animation.to_string_lossy(), "shots": shots, "queries": queries,
        "judged_on_support": adapted.judged_on_support, "psnr": adapted.psnr,
        "loss": adapted.trace.losses.iter().map(Losses::mean).collect::<Vec<_>>(),
    }))?;
    say!("adapted checkpoint: {}", arguments.out.display());
    say!("truth, before, after: {}", animation.display());
    Ok(())
}

/// The subject's label, if the checkpoint wants one.
fn label(arguments: &Arguments, condition: &Condition) -> Result<Option<String>> {
    match (condition, &arguments.label) {
        (Condition::Label(labels), Some(label)) => labels.index(label).map(|_| Some(label.clone())),
        (Condition::Label(labels), None) => {
            let folder = arguments.clips.canonicalize().map_err(|e| Error::io(&arguments.clips, "read", e))?;
            let name = folder.file_name().unwrap_or_default().to_string_lossy();
            let label = labels.of_task(&name).to_owned();
            labels.index(&label).map_err(|_| {
                let problem = format!("absent, and the folder's name {name:?} is no label that was trained with");
                Error::invalid("--label", problem, labels.listed())
            })?;
            Ok(Some(label))
        }
        (_, Some(_)) => {
            let expected = "none: this checkpoint was not trained with labels";
            Err(Error::invalid("--label", "given", expected))
        }
        (_, None) => Ok(None),
    }
}
