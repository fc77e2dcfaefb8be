//! One page that shows a run: HTML with everything in it, for any browser, large or small.

use std::fmt::Write as _;
use std::io::Write as _;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use clap::Args;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::console;
use super::eval::{Contestant, chart as evaluation_chart, figures as figures_of};
use super::metrics::{Metric, Metrics, curve, loss_curve};
use super::reporter::Summary;
use super::run_folder::RunFolder;
use crate::chart::{self, Chart, escape};
use crate::checkpoint::Checkpoint;
use crate::run::{Job, RunConfig, Score};
use crate::{Error, Result};

/// Make one page of a run: curves, samples, results, configuration and speed
///
/// The page is a single HTML file with everything in it, to be opened in a browser or sent to somebody. It shows what the
/// run has left so far; innerloop eval adds the baselines.
#[derive(Debug, Args)]
pub(super) struct Arguments {
    /// A run's folder; the newest run when absent
    #[arg(value_name = "RUN")]
    run: Option<PathBuf>,
    /// Where to write the page; RUN/report.html when absent
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,
}

const STYLE: &str = include_str!("report.css");

/// A chart's size on the page: wide enough for a phone, two side by side on a larger screen.
const CHART: (f64, f64) = (440.0, 300.0);

/// What the page says of the baselines.
#[derive(Deserialize)]
struct EvaluationFile {
    episodes: usize,
    contestants: Vec<Contestant>,
}

/// All that a run has left.
struct Run {
    name: String,
    folder: RunFolder,
    config: RunConfig,
    step: u64,
    metrics: Vec<Metric>,
    summary: Option<Summary>,
    evaluation: Option<EvaluationFile>,
}

pub(super) fn run(arguments: &Arguments) -> Result<()> {
    let checkpoint = RunFolder::find_checkpoint(arguments.run.as_deref())?;
    let run = Run::read(&checkpoint)?;
    let out = arguments.out.clone().unwrap_or_else(|| run.folder.report());
    let page = run.page()?;
    crate::atomic::write(&out, |file| file.write_all(page.as_bytes()))?;
    console::record(&serde_json::json!({ "report": out.to_string_lossy(), "bytes": page.len() }))?;
    say!("report: {}", out.display());
    Ok(())
}

/// A file of a run, if it is there.
fn read_json<T: DeserializeOwned>(path: &Path, writer: &str) -> Result<Option<T>> {
    match std::fs::read(path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).map_err(|e| {
            Error::file(path, format!("cannot be understood ({e})"), format!("write it again with innerloop {writer}"))
        }),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, "read", e)),
    }
}

impl Run {
    fn read(path: &Path) -> Result<Self> {
        let Checkpoint { config, step, .. } = Checkpoint::read(path)?;
        let folder = RunFolder(path.parent().map_or_else(PathBuf::new, Path::to_owned));
        let absolute = std::path::absolute(&folder.0).map_err(|e| Error::io(&folder.0, "read", e))?;
        Ok(Self {
            name: absolute.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned()),
            metrics: Metrics::read(&folder.metrics())?,
            summary: read_json(&folder.summary(), "train")?,
            evaluation: read_json(&folder.evaluation(), "eval")?,
            folder,
            config,
            step,
        })
    }

    fn is_video(&self) -> bool {
        matches!(self.config.job, Job::Video(_))
    }

    fn page(&self) -> Result<String> {
        let title = format!("{} · innerloop", escape(&self.name));
        let mut page = format!(
            "<!doctype html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
             <meta name=\"viewport\" content=\"width=device-width, initial-scale=1\">\n\
             <meta name=\"color-scheme\" content=\"light dark\">\n<title>{title}</title>\n\
             <style>\n{STYLE}{}</style>\n</head>\n<body>\n<main>\n",
            chart::STYLE
        );
        let _ =
            write!(page, "<h1>{}</h1>\n<p class=\"lead\">{}</p>\n{}", escape(&self.name), self.lead(), self.tiles());
        for (heading, body) in [
            ("Before and after adapting", self.comparison()?),
            ("Results", self.results()),
            ("Course", self.course()),
            ("Samples along the way", self.samples()?),
            ("Plan and speed", self.plan()),
            ("Networks", self.networks()),
            ("Configuration", self.configuration()?),
        ] {
            if !body.is_empty() {
                let _ = write!(page, "<section>\n<h2>{heading}</h2>\n{body}\n</section>\n");
            }
        }
        page.push_str("</main>\n</body>\n</html>\n");
        Ok(page)
    }

    /// What the run is, in a sentence.
    fn lead(&self) -> String {
        let (inner, shape) = (self.config.job.inner(), self.config.shape);
        let subject = match &self.config.job {
            Job::Video(job) => format!("a video generator for clips of {}", job.source.format()),
            Job::Sinusoid(_) => "a regressor of sinusoids".to_owned(),
        };
        let progress = if self.step < self.config.steps {
            format!("{} of {} meta-steps so far", self.step, self.config.steps)
        } else {
            format!("{} meta-steps", self.step)
        };
        format!(
            "{} of {}: {} inner step{} on {} examples of a task, {} tasks a meta-step; {progress}.",
            inner.algorithm.to_string().to_uppercase(),
            escape(&subject),
            inner.steps,
            if inner.steps == 1 { "" } else { "s" },
            shape.shots,
            shape.tasks,
        )
    }

    /// The scores on held-out tasks: the evaluation's, or else those that training ended with.
    fn scores(&self) -> &[Score] {
        let evaluated = self.evaluation.as_ref().and_then(|e| e.contestants.first()).map(|c| c.scores.as_slice());
        evaluated.or(self.summary.as_ref().map(|s| s.scores.as_slice())).unwrap_or_default()
    }

    /// The numbers that matter most.
    fn tiles(&self) -> String {
        let mut tiles = Vec::new();
        if let [first, .., last] = self.scores() {
            match (first.psnr, last.psnr) {
                (Some(before), Some(after)) => {
                    tiles.push((format!("{:.1} dB", after.mean), "PSNR after adapting".to_owned()));
                    tiles.push((format!("{:+.1} dB", after.mean - before.mean), "gained by adapting".to_owned()));
                }
                _ => {
                    tiles.push((format!("{:.4}", last.loss.mean), "loss after adapting".to_owned()));
                    tiles.push((format!("{:.4}", first.loss.mean), "loss before".to_owned()));
                }
            }
        }
        if let Some(summary) = &self.summary {
            tiles.push((thousands(summary.tasks_per_second), "tasks a second".to_owned()));
            tiles.push((duration(summary.speed.seconds), format!("for {} meta-steps", summary.speed.meta_steps)));
        }
        let tile = |(value, label): &(String, String)| format!("<div><b>{value}</b><span>{label}</span></div>");
        if tiles.is_empty() {
            return String::new();
        }
        format!("<div class=\"tiles\">{}</div>\n", tiles.iter().map(tile).collect::<String>())
    }

    fn comparison(&self) -> Result<String> {
        let Some(animation) = data_uri(&self.folder.adapted())? else { return Ok(String::new()) };
        let steps = self.config.job.inner().steps;
        let shots = self.config.shape.shots;
        Ok(format!(
            "<div class=\"comparison\"><div class=\"rows\"><span>truth</span><span>before</span><span>after</span></div>\
             <img src=\"{animation}\" alt=\"Held-out tasks: truth, before adapting, after adapting\"></div>\n\
             <p class=\"note\">Tasks the generator has never seen, a column each. It is given the first frame of a clip. \
             After: {steps} gradient steps on {shots} other clips of the task.</p>"
        ))
    }

    /// The adaptation to held-out tasks, step by step, with the baselines where they were evaluated.
    fn results(&self) -> String {
        let own;
        let (contestants, episodes) = match (&self.evaluation, &self.summary) {
            (Some(evaluation), _) => (evaluation.contestants.as_slice(), evaluation.episodes),
            (None, Some(summary)) if !summary.scores.is_empty() => {
                own = [Contestant { name: "meta-learned".into(), rate: None, scores: summary.scores.clone() }];
                (own.as_slice(), summary.episodes)
            }
            _ => return String::new(),
        };
        let mut body = figures(&[evaluation_chart(contestants, self.is_video())]);
        let steps = contestants.first().map_or(0, |c| c.scores.len());
        let head = |contestant: &Contestant| {
            let rate = contestant.rate.map_or(String::new(), |rate| format!("<small>rate {rate}</small>"));
            format!("<th>{}{rate}</th>", escape(&contestant.name))
        };
        let header: String = contestants.iter().map(head).collect();
        body.push_str("<div class=\"grid\">\n");
        for figure in figures_of(contestants) {
            let cell = |score: &Score| {
                let (value, interval) = figure.text(score);
                format!("<td>{value}<small>{interval}</small></td>")
            };
            let row = |step: usize| {
                let cells: String =
                    contestants.iter().map(|c| c.scores.get(step).map_or(String::new(), cell)).collect();
                format!("<tr><th>{step}</th>{cells}</tr>\n")
            };
            let rows: String = (0..steps).map(row).collect();
            let _ = write!(
                body,
                "<table class=\"scores\"><caption>{}</caption>\
                 <thead><tr><th>steps</th>{header}</tr></thead><tbody>\n{rows}</tbody></table>\n",
                figure.name
            );
        }
        body.push_str("</div>\n");
        let _ = write!(
            body,
            "<p class=\"note\">Query sets of {episodes} held-out episodes; ± is the 95 % confidence interval."
        );
        if self.evaluation.is_none() {
            body.push_str(" For baselines: innerloop eval, then this report again.");
        }
        body + "</p>"
    }

    fn course(&self) -> String {
        let all = &self.metrics;
        let charts = [
            loss_curve(all),
            curve("Discriminator's query loss", "loss", all, false, |metric| metric.discriminator_loss),
            curve("Speed", "tasks a second", all, false, |metric| Some(metric.tasks_per_second)),
            curve("Outer learning rate", "rate", all, false, |metric| Some(metric.outer_lr)),
        ];
        figures(&charts)
    }

    fn samples(&self) -> Result<String> {
        let mut paths: Vec<PathBuf> = match std::fs::read_dir(self.folder.samples()) {
            Ok(entries) => entries.filter_map(|entry| Some(entry.ok()?.path())).collect(),
            Err(_) => Vec::new(),
        };
        paths.retain(|path| path.extension().is_some_and(|extension| extension == "gif"));
        paths.sort();
        let mut body = String::new();
        for path in paths {
            let name = path.file_stem().unwrap_or_default().to_string_lossy().replace("step-", "");
            let step = name.trim_start_matches('0');
            if let Some(animation) = data_uri(&path)? {
                let _ = writeln!(
                    body,
                    "<figure><img src=\"{animation}\" alt=\"Samples at meta-step {step}\">\
                     <figcaption>meta-step {step}</figcaption></figure>"
                );
            }
        }
        Ok(if body.is_empty() { body } else { format!("<div class=\"grid\">\n{body}</div>") })
    }

    fn plan(&self) -> String {
        let Some(summary) = &self.summary else { return String::new() };
        let rate = summary.speed.meta_steps as f64 / summary.speed.seconds.max(f64::MIN_POSITIVE);
        let form = if summary.form == summary.planned {
            format!("{}, the planner's choice", summary.form)
        } else {
            format!("{}; the planner would take the {} form", summary.form, summary.planned)
        };
        let rows = [
            ("Device", summary.device.clone()),
            ("Form of the adapted weights", form),
            ("Meta-steps a second", format!("{rate:.1}")),
            ("Tasks a second", thousands(summary.tasks_per_second)),
            ("Arithmetic", format!("{:.3} Gflop a meta-step", summary.flop_a_meta_step / 1e9)),
            ("Rate", format!("{:.1} Gflop/s, with drawing of tasks and files", rate * summary.flop_a_meta_step / 1e9)),
            ("Working memory", format!("{:.1} MB", summary.arena_bytes as f64 / 1e6)),
        ];
        pairs(rows.iter().map(|(name, value)| (*name, value.as_str())))
    }

    fn networks(&self) -> String {
        let networks = self.config.job.networks();
        let rows: Vec<(&str, String)> = (networks.iter())
            .map(|(name, mlp)| {
                let widths: Vec<String> = mlp.widths().iter().map(ToString::to_string).collect();
                let activations: Vec<String> = mlp.activations().iter().map(ToString::to_string).collect();
                let count = thousands(mlp.parameter_count() as f64);
                (*name, format!("{} ({}), {count} parameters", widths.join("–"), activations.join(", ")))
            })
            .collect();
        pairs(rows.iter().map(|(name, value)| (*name, value.as_str())))
    }

    /// The file that the run was started with, heading by heading.
    fn configuration(&self) -> Result<String> {
        let path = self.folder.config();
        let text = match std::fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(String::new()),
            Err(e) => return Err(Error::io(&path, "read", e)),
        };
        let mut body = String::new();
        for block in text.split("\n\n").skip(1) {
            let mut lines = block.lines();
            let heading = lines.next().unwrap_or_default().trim_start_matches("# ");
            let table = pairs(lines.filter_map(|line| line.split_once(" = ")));
            let _ = write!(body, "<div><h3>{}</h3>\n{table}</div>\n", escape(heading));
        }
        let again = format!("innerloop train --config {}", path.display());
        Ok(format!(
            "<div class=\"grid\">\n{body}</div>\n<p class=\"note\">The same again: <code>{}</code></p>",
            escape(&again)
        ))
    }
}

/// Charts side by side, those that have a point.
fn figures(charts: &[Chart<'_>]) -> String {
    let figures: String =
        charts.iter().filter_map(|chart| chart.svg(CHART, false)).map(|svg| format!("{svg}\n")).collect();
    if figures.is_empty() { figures } else { format!("<div class=\"grid\">\n{figures}</div>\n") }
}

/// A table of names and values.
fn pairs<'a>(rows: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let rows: String =
        rows.map(|(name, value)| format!("<tr><th>{}</th><td>{}</td></tr>\n", escape(name), escape(value))).collect();
    format!("<table class=\"pairs\"><tbody>\n{rows}</tbody></table>")
}

/// A GIF as part of the page, if the file is there.
fn data_uri(path: &Path) -> Result<Option<String>> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(Some(format!("data:image/gif;base64,{}", STANDARD.encode(bytes)))),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, "read", e)),
    }
}

/// A number of three digits or more, in groups of three.
fn thousands(value: f64) -> String {
    let digits = format!("{:.0}", value);
    let mut out = String::new();
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('\u{202f}');
        }
        out.push(digit);
    }
    out
}

fn duration(seconds: f64) -> String {
    match seconds {
        s if s < 90.0 => format!("{s:.1} s"),
        s if s < 5400.0 => format!("{:.1} min", s / 60.0),
        s => format!("{:.1} h", s / 3600.0),
    }
}
