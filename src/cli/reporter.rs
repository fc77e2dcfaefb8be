//! How a run goes and how it ended, for people and for programs.

use std::io::Write;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::json;

use super::console;
use super::run_folder::RunFolder;
use super::samples::{Comparison, write_comparison};
use crate::device::Device;
use crate::run::{Evaluation, Job, Pools, RunConfig, Score, Session, Tasks};
use crate::{Error, Objective, Result, Strategy, Trace};

/// Held-out episodes that tell what adapting gains.
pub(super) const EPISODES: usize = 64;

/// Shows how the run goes.
pub(super) struct Reporter<D> {
    pub(super) device: D,
    pub(super) folder: RunFolder,
    pub(super) evaluation: Option<Evaluation>,
}

impl<D: Device<f32> + Clone> Reporter<D> {
    pub(super) fn announce<O: Objective, S: Tasks<O>>(
        &self,
        session: &Session<O, S, D>,
        pools: Option<&Pools>,
    ) -> Result<()> {
        let config = session.config();
        for (name, mlp) in config.job.networks() {
            let widths: Vec<String> = mlp.widths().iter().map(ToString::to_string).collect();
            say!("{name}: {}, {} parameters", widths.join("-"), mlp.parameter_count());
        }
        if let Some(pools) = pools {
            say!("tasks: {} to learn from, {} held out", pools.training.len(), pools.held_out.len());
        }
        say!("run: {}", self.folder.0.display());
        console::event(
            "begin",
            &json!({ "run": self.folder.0.to_string_lossy(), "step": session.steps_done(), "steps": config.steps }),
        )
    }

    /// Adapts the session's parameters to the held-out episodes.
    fn trace<O: Objective, S: Tasks<O>>(
        &self,
        session: &Session<O, S, D>,
        evaluation: &Evaluation,
    ) -> Result<Trace<f32>> {
        let (config, learner) = (session.config(), session.learner());
        let networks = 0..config.job.networks().len();
        let parameters: Vec<_> = networks.clone().map(|network| learner.parameters(network)).collect();
        let phi: Vec<_> = networks.map(|network| learner.phi(network).clone()).collect();
        let plays = config.adversarial_at(session.steps_done());
        evaluation.trace(&self.device, &parameters, &phi, config.job.inner().steps, plays)
    }

    /// Writes held-out tasks as they are, before, and after adapting; nothing for sinusoids.
    pub(super) fn sample<O: Objective, S: Tasks<O>>(&self, session: &Session<O, S, D>, path: &Path) -> Result<()> {
        match &self.evaluation {
            Some(evaluation) if evaluation.clips().is_some() => {
                write_samples(session.config(), evaluation, &self.trace(session, evaluation)?, path)
            }
            _ => Ok(()),
        }
    }

    /// The last samples, what adapting gains, and the summary of the run.
    pub(super) fn finish<O: Objective, S: Tasks<O>>(&self, session: &Session<O, S, D>, speed: Speed) -> Result<()> {
        say!("checkpoint: {}", self.folder.checkpoint().display());
        let config = session.config();
        let mut summary = Summary {
            meta_steps: session.steps_done(),
            speed,
            tasks_per_second: speed.tasks_per_second(config),
            device: self.device.label(),
            form: session.learner().strategy(),
            planned: session.learner().planned(),
            flop_a_meta_step: session.learner().cost().flop(),
            arena_bytes: session.learner().bytes(),
            episodes: 0,
            scores: Vec::new(),
        };
        if let Some(evaluation) = &self.evaluation {
            let trace = self.trace(session, evaluation)?;
            if evaluation.clips().is_some() {
                write_samples(config, evaluation, &trace, &self.folder.adapted())?;
                say!("truth, before, after adapting: {}", self.folder.adapted().display());
            }
            (summary.episodes, summary.scores) = (EPISODES, evaluation.scores(&trace)?);
            say_gain(config, &summary.scores);
        } else {
            say!("no task was held out, so nothing tells what adapting gains");
        }
        summary.write(&self.folder.summary())?;
        console::event("end", &summary)
    }
}

/// How long the meta-steps of one command took.
#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
pub(super) struct Speed {
    pub(super) meta_steps: u64,
    pub(super) seconds: f64,
}

impl Speed {
    pub(super) fn tasks_per_second(&self, config: &RunConfig) -> f64 {
        self.meta_steps as f64 * config.shape.tasks as f64 / self.seconds.max(f64::MIN_POSITIVE)
    }
}

/// How a run ended, for programs and for its report.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Summary {
    pub(super) meta_steps: u64,
    /// Of the last part of a run that was stopped and resumed.
    pub(super) speed: Speed,
    pub(super) tasks_per_second: f64,
    pub(super) device: String,
    pub(super) form: Strategy,
    pub(super) planned: Strategy,
    pub(super) flop_a_meta_step: f64,
    pub(super) arena_bytes: usize,
    /// Held-out episodes, and their scores after 0, 1, ... inner steps.
    pub(super) episodes: usize,
    pub(super) scores: Vec<Score>,
}

impl Summary {
    fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::invalid("summary", e.to_string(), "what JSON can hold"))?;
        crate::atomic::write(path, |out| writeln!(out, "{text}"))
    }
}

/// What adapting gains, in a line.
fn say_gain(config: &RunConfig, scores: &[Score]) {
    let (first, last) = (&scores[0], &scores[scores.len() - 1]);
    let given = format!("{} steps on {} examples of a held-out task", config.job.inner().steps, config.shape.shots);
    match (first.psnr, last.psnr) {
        (Some(before), Some(after)) => say!(
            "adapting by {given}: query PSNR {:.2} -> {:.2} dB ({:+.2} dB, {EPISODES} tasks)",
            before.mean,
            after.mean,
            after.mean - before.mean
        ),
        _ => {
            say!("adapting by {given}: query loss {:.4} -> {:.4} ({EPISODES} tasks)", first.loss.mean, last.loss.mean)
        }
    }
}

/// Held-out clips as they are, before, and after adapting.
fn write_samples(config: &RunConfig, evaluation: &Evaluation, trace: &Trace<f32>, path: &Path) -> Result<()> {
    let (Job::Video(job), Some(clips)) = (&config.job, evaluation.clips()) else { return Ok(()) };
    let comparison = Comparison {
        format: job.source.format(),
        truth: &clips.query_x,
        before: &trace.outputs[0],
        after: &trace.outputs[trace.outputs.len() - 1],
        stride: clips.queries,
    };
    write_comparison(path, &comparison)
}
