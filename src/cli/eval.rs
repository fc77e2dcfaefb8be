use std::borrow::Cow;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::Args;
use serde::{Deserialize, Serialize};

use super::run_folder::RunFolder;
use super::{Compute, console, on_device, transfer};
use crate::chart::{Chart, Line};
use crate::checkpoint::{Checkpoint, Stage};
use crate::device::Device;
use crate::run::{ClipSource, Estimate, Evaluation, Job, Pools, RunConfig, Score, best_uniform_rate, joint_training};
use crate::{Error, Result};

/// Judge a trained checkpoint on held-out tasks, against what needs no meta-learning
///
/// Every contestant adapts to the same episodes: the checkpoint, with its learned rates; ordinary joint training on the
/// clips of all tasks, with as many steps, clips and the same optimizer as the checkpoint had; and random initialisation.
/// The two baselines use whichever one rate serves them best on these very episodes. Writes eval.json and eval.svg.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A run's folder, or its checkpoint; the newest run when absent
    #[arg(value_name = "CHECKPOINT")]
    checkpoint: Option<PathBuf>,
    /// Inner steps [default: as in training]
    #[arg(long)]
    steps: Option<usize>,
    /// Held-out episodes
    #[arg(long, default_value_t = 64)]
    episodes: usize,
    /// Leave the baselines out
    #[arg(long)]
    no_baselines: bool,
    /// Judge clips after the pass of generate --refine
    #[arg(long, conflicts_with = "transfer")]
    refine: bool,
    /// Where the run's clips lie now, if they have moved
    #[arg(long, value_name = "DIR")]
    clips: Option<PathBuf>,
    /// Folder for eval.json and eval.svg; that of the checkpoint when absent
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,
    #[command(flatten)]
    transfer: transfer::Options,
    #[command(flatten)]
    compute: Compute,
}

/// One contestant.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Contestant {
    pub(super) name: Cow<'static, str>,
    /// The rate it adapted with, where it is one number.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub(super) rate: Option<f64>,
    /// After 0, 1, ... steps.
    pub(super) scores: Vec<Score>,
}

#[derive(Debug, Serialize)]
struct Report<'a> {
    checkpoint: String,
    meta_steps: u64,
    episodes: usize,
    shots: usize,
    queries: usize,
    refined: bool,
    contestants: &'a [Contestant],
    config: &'a RunConfig,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    if arguments.episodes == 0 {
        return Err(Error::invalid("--episodes", "0", "at least 1"));
    }
    if arguments.transfer.transfer {
        return compare_transfer(arguments);
    }
    let path = RunFolder::find_checkpoint(arguments.checkpoint.as_deref())?;
    let mut checkpoint = Checkpoint::read(&path)?;
    if let Stage::Adapted { subject, .. } = &checkpoint.stage {
        let problem = format!("is adapted to {:?}", subject.name);
        return Err(Error::file(&path, problem, "name the checkpoint that train wrote"));
    }
    arguments.compute.override_choices(&mut checkpoint.config)?;
    let precision = checkpoint.config.precision;
    let folder = match &arguments.out {
        Some(folder) => folder.clone(),
        None => path.parent().map_or_else(PathBuf::new, Path::to_owned),
    };
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, "create", e))?;
    let pools = open(&mut checkpoint.config, arguments.clips.as_deref())?;
    let pools = pools.as_ref();
    let contestants =
        on_device!(arguments.compute, precision, device => contestants(&device, &checkpoint, pools, arguments))?;
    print_table(&contestants);
    let config = &checkpoint.config;
    let report = Report {
        checkpoint: path.display().to_string(),
        meta_steps: checkpoint.step,
        episodes: arguments.episodes,
        shots: config.shape.shots,
        queries: config.shape.queries,
        refined: arguments.refine,
        contestants: &contestants,
        config,
    };
    let text = serde_json::to_string_pretty(&report)
        .map_err(|e| Error::invalid("evaluation", e.to_string(), "what JSON can hold"))?;
    let (json, svg) = (folder.join("eval.json"), folder.join("eval.svg"));
    crate::atomic::write(&json, |out| writeln!(out, "{text}"))?;
    console::record(&report)?;
    chart(&contestants, matches!(config.job, Job::Video(_))).write(&svg)?;
    print_verdict(&contestants, config);
    say!("written: {}, {}", json.display(), svg.display());
    Ok(())
}

/// `--transfer`, which needs no more of a checkpoint than what it was trained with.
fn compare_transfer(arguments: &Arguments) -> Result<()> {
    let config = match &arguments.checkpoint {
        None if arguments.clips.is_some() => {
            return Err(Error::invalid("--clips", "given without a checkpoint", "the folder after `--`, as for train"));
        }
        Some(path) => Some(Checkpoint::read(&RunFolder::find_checkpoint(Some(path))?)?.config),
        None => None,
    };
    let config = config.map(|mut config| move_clips(&mut config, arguments.clips.as_deref()).map(|()| config));
    let Arguments { steps, episodes, out, compute, .. } = arguments;
    let (steps, episodes, out) = (*steps, *episodes, out.as_deref());
    let common = transfer::Common { config: config.transpose()?, steps, episodes, out, compute };
    transfer::run(&arguments.transfer, common)
}

/// Puts in where the run's clips lie now.
fn move_clips(config: &mut RunConfig, moved: Option<&Path>) -> Result<()> {
    let Some(moved) = moved else { return Ok(()) };
    let built_in = match &mut config.job {
        Job::Video(job) => match &mut job.source {
            ClipSource::Folder { path, .. } => {
                moved.clone_into(path);
                return Ok(());
            }
            ClipSource::MovingShapes { .. } => "moving shapes",
        },
        Job::Sinusoid(_) => "sinusoids",
    };
    Err(Error::invalid("--clips", "given", format!("none: the run was trained on {built_in}")))
}

/// The tasks of the run, if they are clips.
fn open(config: &mut RunConfig, moved: Option<&Path>) -> Result<Option<Pools>> {
    move_clips(config, moved)?;
    let Job::Video(job) = &config.job else { return Ok(None) };
    let min_clips = config.shape.shots.saturating_add(config.shape.queries);
    let pools = job.source.open(&job.latent.condition, config.seed, min_clips, console::shows_progress())?;
    console::notes(&pools.notes);
    Ok(Some(pools))
}

fn contestants<D: Device<f32> + Clone>(
    device: &D,
    checkpoint: &Checkpoint,
    pools: Option<&Pools>,
    arguments: &Arguments,
) -> Result<Vec<Contestant>> {
    let config = &checkpoint.config;
    let steps = arguments.steps.unwrap_or(config.job.inner().steps);
    let evaluation = Evaluation::draw(config, pools, arguments.episodes)?;
    let evaluation = if arguments.refine { evaluation.refined() } else { evaluation };
    let plays = config.adversarial_at(checkpoint.step);
    let trace = evaluation.trace(device, &checkpoint.parameters, &checkpoint.phi, steps, plays)?;
    let mut all = vec![Contestant { name: "meta-learned".into(), rate: None, scores: evaluation.scores(&trace)? }];
    if !arguments.no_baselines {
        // As long as the checkpoint was trained, which may be shorter than the run was meant to be.
        let steps_given = config.pretraining + checkpoint.step;
        let bar = console::progress_bar("joint training", steps_given);
        let joint = joint_training(device, config, pools, steps_given, |step| {
            bar.set_position(step);
            true
        });
        bar.finish_and_clear();
        for (name, parameters) in [("joint training", joint?), ("random initialisation", config.initial_parameters())] {
            let best = best_uniform_rate(device, config, &evaluation, &parameters, steps)?;
            all.push(Contestant { name: name.into(), rate: Some(best.rate), scores: best.scores });
        }
    }
    Ok(all)
}

/// A figure's value and half its confidence interval, where they exist.
type Value = Option<(f64, Option<f64>)>;

/// One of a score's figures, as tables show it.
pub(super) struct Figure {
    pub(super) name: &'static str,
    digits: usize,
    /// The value and, where it is a mean, half its confidence interval.
    of: fn(&Score) -> Value,
}

fn mean(estimate: Option<Estimate>) -> Value {
    estimate.map(|e| (e.mean, Some(e.margin)))
}

const FIGURES: [Figure; 7] = [
    Figure { name: "PSNR, dB", digits: 2, of: |s| mean(s.psnr) },
    Figure { name: "SSIM", digits: 3, of: |s| mean(s.ssim) },
    Figure { name: "motion error", digits: 3, of: |s| mean(s.motion_error) },
    Figure { name: "texture error", digits: 3, of: |s| mean(s.texture_error) },
    Figure { name: "flicker", digits: 2, of: |s| mean(s.flicker) },
    Figure { name: "Fréchet", digits: 3, of: |s| s.frechet.map(|f| (f, None)) },
    Figure { name: "loss", digits: 4, of: |s| mean(Some(s.loss)) },
];

impl Figure {
    /// The value in a table, and what its interval adds to it.
    pub(super) fn text(&self, score: &Score) -> (String, String) {
        let digits = self.digits;
        match (self.of)(score) {
            Some((value, Some(margin))) => (format!("{value:.digits$}"), format!(" ±{margin:.digits$}")),
            Some((value, None)) => (format!("{value:.digits$}"), String::new()),
            None => ("–".to_owned(), String::new()),
        }
    }
}

/// The figures that some score of some contestant has.
pub(super) fn figures(contestants: &[Contestant]) -> impl Iterator<Item = &'static Figure> {
    FIGURES.iter().filter(|f| contestants.iter().flat_map(|c| &c.scores).any(|score| (f.of)(score).is_some()))
}

fn print_table(contestants: &[Contestant]) {
    let steps = contestants[0].scores.len();
    let header: Vec<String> = (0..steps).map(|step| format!("{:>17}", format!("after {step}"))).collect();
    say!("{:<22} {:<13}{}", "", "", header.concat());
    for contestant in contestants {
        let mut name: &str = &contestant.name;
        for figure in figures(contestants) {
            let cell = |score| {
                let (value, interval) = figure.text(score);
                format!("{:>17}", value + &interval)
            };
            say!("{name:<22} {:<13}{}", figure.name, contestant.scores.iter().map(cell).collect::<String>());
            name = "";
        }
    }
}

/// How the contestants come out after each inner step.
pub(super) fn chart(contestants: &[Contestant], clips: bool) -> Chart<'_> {
    let value = |score: &Score| score.psnr.map_or(score.loss.mean, |psnr| psnr.mean);
    let lines = contestants
        .iter()
        .map(|c| Line {
            label: &c.name,
            points: c.scores.iter().enumerate().map(|(step, score)| (step as f64, value(score))).collect(),
            margins: Vec::new(),
        })
        .collect();
    Chart {
        title: if clips {
            "Quality of held-out tasks while adapting"
        } else {
            "Error of held-out tasks while adapting"
        },
        x: "inner steps",
        y: if clips { "query PSNR (dB)" } else { "query mean squared error" },
        lines,
        marks: true,
        logarithmic: !clips,
    }
}

fn print_verdict(contestants: &[Contestant], config: &RunConfig) {
    let last = |c: &Contestant| c.scores[c.scores.len() - 1];
    let (ours, steps) = (last(&contestants[0]), contestants[0].scores.len() - 1);
    for other in &contestants[1..] {
        let theirs = last(other);
        let rate = other.rate.map_or(String::new(), |rate| format!(" (best rate {rate})"));
        let against = format!("after {steps} steps on {} examples, against {}{rate}", config.shape.shots, other.name);
        match (ours.psnr, theirs.psnr) {
            (Some(ours), Some(theirs)) => say!("{against}: {:+.2} dB", ours.mean - theirs.mean),
            _ => say!("{against}: loss {:.4} against {:.4}", ours.loss.mean, theirs.loss.mean),
        }
    }
}
