//! `eval --transfer`: methods trained on some kinds of task and judged on others.

use std::io::Write;
use std::path::{Path, PathBuf};

use clap::{Args, Parser};
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::setup::{RANK, Setup};
use super::{Compute, console, on_device};
use crate::chart::{Chart, Line, write_sheet};
use crate::run::{
    ClipSource, Estimate, Job, Method, RunConfig, TransferCurves, TransferOutcome, TransferPlan, TransferProgress,
    TransferSummary, transfer, transfer_summary,
};
use crate::tasks::HeldOutKinds;
use crate::{Error, RateKind, Result};

/// Where the comparison is kept when --out is absent.
const FOLDER: &str = "runs/transfer";

#[derive(Debug, Args)]
pub(super) struct Options {
    /// Compare methods on kinds of task that training never sees: each is trained anew with each seed. Their curves over
    /// inner steps and shots go to transfer.json and transfer.svg; the same command goes on where it was stopped
    #[arg(long, conflicts_with = "no_baselines", help_heading = "Transfer")]
    pub(super) transfer: bool,
    /// Kinds kept out of training: motion:KINDS or shape:KINDS of the built-in clips; name:WORDS in the names of a folder's
    /// tasks, or drawn anew from each seed [default: motion:circular,zig-zag or drawn]
    #[arg(long, value_name = "KINDS", requires = "transfer", help_heading = "Transfer")]
    held_out_kinds: Option<HeldOutKinds>,
    /// Seeds, from that of the run on; the intervals are over them
    #[arg(long, value_name = "N", default_value_t = 5, requires = "transfer", help_heading = "Transfer")]
    seeds: u64,
    /// Numbers of clips to adapt with [default: 1, 2, 5 up to those of training]
    #[arg(long, value_delimiter = ',', value_name = "N,...", requires = "transfer", help_heading = "Transfer")]
    shots: Vec<usize>,
    /// Options of train, after `--`, for what all methods share: clips, networks, meta-steps. A checkpoint's when absent, or
    /// train's defaults
    #[arg(last = true, value_name = "TRAIN OPTIONS", requires = "transfer", conflicts_with = "checkpoint")]
    training: Vec<String>,
}

/// The options after `--`.
#[derive(Debug, Parser)]
#[command(name = "innerloop eval --transfer --", no_binary_name = true)]
struct Training {
    #[command(flatten)]
    setup: Setup,
}

/// What `eval` is told besides.
pub(super) struct Common<'a> {
    /// Of the checkpoint, if one was named.
    pub config: Option<RunConfig>,
    pub steps: Option<usize>,
    pub episodes: usize,
    pub out: Option<&'a Path>,
    pub compute: &'a Compute,
}

/// The file: what is compared, and what came out so far.
#[derive(Debug, Serialize, Deserialize)]
struct Report {
    plan: TransferPlan,
    outcomes: Vec<TransferOutcome>,
    /// Once all outcomes are there.
    summary: Vec<TransferSummary>,
}

pub(super) fn run(options: &Options, common: Common<'_>) -> Result<()> {
    let plan = options.plan(&common)?;
    plan.check()?;
    let folder = common.out.map_or_else(|| PathBuf::from(FOLDER), Path::to_owned);
    std::fs::create_dir_all(&folder).map_err(|e| Error::io(&folder, "create", e))?;
    let (json, svg) = (folder.join("transfer.json"), folder.join("transfer.svg"));
    let mut report = Report::begin(&json, plan)?;
    if !report.outcomes.is_empty() {
        say!("{}: goes on after {} trainings", json.display(), report.outcomes.len());
    }
    let outcomes =
        on_device!(common.compute, report.plan.config.precision, device => compare(&device, &report, &json))?;
    report.outcomes = outcomes;
    report.summary = transfer_summary(&report.plan, &report.outcomes);
    report.write(&json)?;
    console::record(&report)?;
    report.print();
    write_sheet(&report.charts(), 2, &svg)?;
    say!("written: {}, {}", json.display(), svg.display());
    Ok(())
}

impl Options {
    fn plan(&self, common: &Common<'_>) -> Result<TransferPlan> {
        let (mut config, rank) = match &common.config {
            Some(config) => (config.clone(), RANK),
            None => {
                let training = Training::try_parse_from(&self.training).unwrap_or_else(|error| error.exit());
                (training.setup.config()?, training.setup.rank())
            }
        };
        common.compute.override_choices(&mut config)?;
        let rank = if let RateKind::Network { rank } = config.job.inner().rates { rank } else { rank };
        let is_folder = matches!(&config.job, Job::Video(job) if matches!(job.source, ClipSource::Folder { .. }));
        let held_out = match &self.held_out_kinds {
            Some(kinds) => kinds.clone(),
            None if is_folder => HeldOutKinds::Drawn,
            None => HeldOutKinds::Motion(vec!["circular".to_owned(), "zig-zag".to_owned()]),
        };
        let trained = config.shape.shots;
        let mut shots = match self.shots.as_slice() {
            [] => [1, 2, 5].into_iter().filter(|shots| *shots < trained).collect(),
            given => given.to_vec(),
        };
        shots.push(trained);
        shots.sort_unstable();
        shots.dedup();
        let steps = common.steps.unwrap_or(config.job.inner().steps);
        let (methods, seeds, episodes) = (Method::ALL.to_vec(), self.seeds, common.episodes);
        Ok(TransferPlan { config, held_out, methods, seeds, shots, steps, episodes, rank })
    }
}

fn compare<D: crate::device::Device<f32> + Clone>(
    device: &D,
    begun: &Report,
    json: &Path,
) -> Result<Vec<TransferOutcome>> {
    let plan = &begun.plan;
    let total = plan.seeds as usize * plan.methods.len();
    let mut bar = console::progress_bar("training", 0);
    transfer(device, plan, begun.outcomes.clone(), console::shows_progress(), &mut |progress| {
        match progress {
            TransferProgress::Opened(seed, pools) => {
                say!(
                    "seed {seed}: {} tasks to learn from, {} of other kinds to judge on",
                    pools.training.len(),
                    pools.unseen.len()
                );
                if seed == plan.config.seed {
                    console::notes(&pools.notes);
                }
            }
            TransferProgress::Begun(seed, method, steps) => {
                bar = console::progress_bar(method.name(), steps);
                bar.set_message(format!("seed {seed}"));
            }
            TransferProgress::Trained(step) => bar.set_position(step),
            TransferProgress::Judged(outcomes) => {
                bar.finish_and_clear();
                Report { plan: plan.clone(), outcomes: outcomes.to_vec(), summary: Vec::new() }.write(json)?;
                if let Some(TransferOutcome { seed, method, unseen, .. }) = outcomes.last() {
                    let last = unseen.steps.last().copied().unwrap_or(f64::NAN);
                    say!("{}/{total} seed {seed}, {method}: {last:.2} dB", outcomes.len());
                    console::event("judged", &json!({ "seed": seed, "method": method, "psnr": last }))?;
                }
            }
        }
        Ok(())
    })
}

impl Report {
    /// The report that is there already, if it is of this plan.
    fn begin(path: &Path, plan: TransferPlan) -> Result<Self> {
        if !path.exists() {
            return Ok(Self { plan, outcomes: Vec::new(), summary: Vec::new() });
        }
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        let elsewhere = "choose another --out, or remove the file";
        let there: Self = serde_json::from_str(&text)
            .map_err(|e| Error::file(path, format!("is no comparison to go on with ({e})"), elsewhere))?;
        if there.plan == plan {
            return Ok(there);
        }
        Err(Error::file(path, "holds a comparison with other options", elsewhere))
    }

    fn write(&self, path: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self)
            .map_err(|e| Error::invalid("transfer", e.to_string(), "what JSON can hold"))?;
        crate::atomic::write(path, |out| writeln!(out, "{text}"))
    }

    fn print(&self) {
        let TransferPlan { held_out, shots, steps, seeds, config, .. } = &self.plan;
        let table = |title: String, heads: Vec<String>, of: fn(&TransferSummary) -> &Vec<Estimate>| {
            say!("{title}");
            say!("{:<26}{}", "", heads.iter().map(|head| format!("{head:>14}")).collect::<String>());
            for summary in &self.summary {
                let cell = |e: &Estimate| format!("{:>14}", format!("{:.2} ±{:.2}", e.mean, e.margin));
                say!("{:<26}{}", summary.method.name(), of(summary).iter().map(cell).collect::<String>());
            }
        };
        let trained = config.shape.shots;
        let after = || (0..=*steps).map(|step| format!("after {step}")).collect();
        let with = || shots.iter().map(|shots| format!("{shots} shots")).collect();
        say!("query PSNR in dB, mean and 95 % t-interval over {seeds} seeds");
        table(format!("kinds never seen ({held_out}), {trained} shots"), after(), |s| &s.unseen.steps);
        table(format!("kinds never seen, after {steps} steps"), with(), |s| &s.unseen.shots);
        table(format!("kinds trained on, {trained} shots"), after(), |s| &s.seen.steps);
        table(format!("kinds trained on, after {steps} steps"), with(), |s| &s.seen.shots);
    }

    fn charts(&self) -> [Chart<'_>; 4] {
        type Of = fn(&TransferSummary) -> &TransferCurves<Estimate>;
        let (unseen, seen): (Of, Of) = (|s| &s.unseen, |s| &s.seen);
        let chart = |title, x, points: &dyn Fn(&TransferSummary) -> Vec<(f64, Estimate)>| Chart {
            title,
            x,
            y: "query PSNR (dB)",
            lines: (self.summary.iter())
                .map(|summary| {
                    let (points, margins) = points(summary).into_iter().map(|(x, e)| ((x, e.mean), e.margin)).unzip();
                    Line { label: summary.method.name(), points, margins }
                })
                .collect(),
            marks: true,
            logarithmic: false,
        };
        let steps = |of: Of| {
            move |s: &TransferSummary| of(s).steps.iter().enumerate().map(|(step, e)| (step as f64, *e)).collect()
        };
        let shots = |of: Of| {
            move |s: &TransferSummary| {
                self.plan.shots.iter().map(|shots| *shots as f64).zip(of(s).shots.iter().copied()).collect()
            }
        };
        [
            chart("Kinds never seen: inner steps", "inner steps", &steps(unseen)),
            chart("Kinds never seen: shots", "support clips", &shots(unseen)),
            chart("Kinds trained on: inner steps", "inner steps", &steps(seen)),
            chart("Kinds trained on: shots", "support clips", &shots(seen)),
        ]
    }
}
