//! What a run measures as it goes: lines of JSON, and the same for TensorBoard.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use serde::{Deserialize, Serialize};

use super::tensorboard;
use crate::chart::{Chart, Line};
use crate::run::{RunConfig, StepReport};
use crate::{Error, Result};

/// The mean over some meta-steps.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Metric {
    /// The last of the meta-steps, from 1.
    pub step: u64,
    pub loss: f64,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub discriminator_loss: Option<f64>,
    pub tasks_per_second: f64,
    pub outer_lr: f64,
    /// When it was measured, in seconds since 1970.
    pub wall_time: f64,
}

impl Metric {
    fn line(&self) -> Vec<u8> {
        // Numbers alone: JSON holds them all, those that are not finite as null.
        let mut line = serde_json::to_vec(self).unwrap_or_default();
        line.push(b'\n');
        line
    }

    fn event(&self) -> Vec<u8> {
        let mut values = vec![
            ("loss/query", self.loss),
            ("speed/tasks_per_second", self.tasks_per_second),
            ("outer_learning_rate", self.outer_lr),
        ];
        values.extend(self.discriminator_loss.map(|loss| ("loss/discriminator", loss)));
        tensorboard::scalars(self.wall_time, self.step, &values)
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}

/// The meta-steps since the last line of metrics.
pub(super) struct Window {
    loss: f64,
    discriminator: Option<f64>,
    steps: u64,
    since: Instant,
}

impl Window {
    pub(super) fn new() -> Self {
        Self { loss: 0.0, discriminator: None, steps: 0, since: Instant::now() }
    }

    pub(super) fn add(&mut self, step: &StepReport) {
        self.loss += step.loss;
        self.steps += 1;
        if let Some(loss) = step.discriminator_loss {
            *self.discriminator.get_or_insert(0.0) += loss;
        }
    }

    pub(super) fn close(&mut self, step: u64, config: &RunConfig) -> Metric {
        let count = self.steps as f64;
        let metric = Metric {
            step,
            loss: self.loss / count,
            discriminator_loss: self.discriminator.map(|loss| loss / count),
            tasks_per_second: count * config.shape.tasks as f64 / self.since.elapsed().as_secs_f64(),
            outer_lr: config.outer.learning_rate * config.outer.factor(step - 1),
            wall_time: now(),
        };
        *self = Self::new();
        metric
    }
}

/// The metrics of a run, and the two files they are written to: a JSON object a line, and TensorBoard's events.
pub(super) struct Metrics {
    lines: Appended,
    events: Appended,
    all: Vec<Metric>,
}

impl Metrics {
    /// Opens the files and drops what lies after meta-step `step`, which a resumed run does again.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub(super) fn open(lines: &Path, events: &Path, step: u64) -> Result<Self> {
        let mut all = Self::read(lines)?;
        all.retain(|metric| metric.step <= step);
        let text: Vec<u8> = all.iter().flat_map(Metric::line).collect();
        let begun = all.first().map_or_else(now, |metric| metric.wall_time);
        let records: Vec<u8> =
            tensorboard::header(begun).into_iter().chain(all.iter().flat_map(Metric::event)).collect();
        Ok(Self { lines: Appended::begin(lines, &text)?, events: Appended::begin(events, &records)?, all })
    }

    /// The metrics in a file; none if there is no file. A line that was cut short by a stop is left out.
    ///
    /// # Errors
    /// A file that cannot be read.
    pub(super) fn read(lines: &Path) -> Result<Vec<Metric>> {
        match fs::read_to_string(lines) {
            Ok(text) => Ok(text.lines().map_while(|line| serde_json::from_str(line).ok()).collect()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(Error::io(lines, "read", e)),
        }
    }

    /// Adds a metric.
    ///
    /// # Errors
    /// A full disk, say.
    pub(super) fn push(&mut self, metric: Metric) -> Result<()> {
        self.lines.append(&metric.line())?;
        self.events.append(&metric.event())?;
        self.all.push(metric);
        Ok(())
    }

    /// All of them, those of earlier parts of the run too.
    pub(super) fn all(&self) -> &[Metric] {
        &self.all
    }
}

/// A file that is added to.
struct Appended {
    path: PathBuf,
    file: File,
}

impl Appended {
    /// Replaces the file by `content`.
    fn begin(path: &Path, content: &[u8]) -> Result<Self> {
        crate::atomic::write(path, |out| out.write_all(content))?;
        let file = OpenOptions::new().append(true).open(path).map_err(|e| Error::io(path, "write", e))?;
        Ok(Self { path: path.to_owned(), file })
    }

    fn append(&mut self, content: &[u8]) -> Result<()> {
        self.file.write_all(content).map_err(|e| Error::io(&self.path, "write", e))
    }
}

/// A curve of metrics over the run. At most 150 points: their means show the course, where single meta-steps show chance.
pub(super) fn curve<'a>(
    title: &'a str,
    y: &'a str,
    all: &[Metric],
    logarithmic: bool,
    value: impl Fn(&Metric) -> Option<f64>,
) -> Chart<'a> {
    let all: Vec<(f64, f64)> = all.iter().filter_map(|m| Some((m.step as f64, value(m)?))).collect();
    let points = all.chunks(all.len().div_ceil(150).max(1)).map(|chunk| {
        let mean = chunk.iter().map(|(_, value)| value).sum::<f64>() / chunk.len() as f64;
        (chunk[chunk.len() - 1].0, mean)
    });
    let lines = vec![Line { label: y, points: points.collect(), margins: Vec::new() }];
    Chart { title, x: "meta-step", y, lines, marks: false, logarithmic }
}

/// The curve that every run has.
pub(super) fn loss_curve(all: &[Metric]) -> Chart<'static> {
    curve("Query loss after adapting", "loss", all, true, |metric| Some(metric.loss))
}
