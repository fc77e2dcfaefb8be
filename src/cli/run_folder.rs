//! The folder of a run: where its files lie, and its metrics.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::checkpoint::Checkpoint;
use crate::{Error, Result};

/// Where runs go by default.
const RUNS: &str = "runs";
const CHECKPOINT: &str = "checkpoint.safetensors";

/// The folder of a run.
#[derive(Clone, Debug)]
pub(super) struct RunFolder(pub PathBuf);

impl RunFolder {
    /// Makes the folder for a new run: `path`, or the next free `runs/NAME-N`.
    ///
    /// # Errors
    /// A folder that already holds a run, or that cannot be made.
    pub fn create(path: Option<&Path>, name: &str) -> Result<Self> {
        let folder = match path {
            Some(path) => path.to_owned(),
            None => (1..)
                .map(|n| Path::new(RUNS).join(format!("{name}-{n}")))
                .find(|path| !path.exists())
                .ok_or_else(|| Error::invalid("--out", "no free name is left", "a folder"))?,
        };
        let run = Self(folder);
        if run.checkpoint().exists() {
            let remedy = format!("train --resume {} continues it; another --out begins a new run", run.0.display());
            return Err(Error::file(&run.0, "already holds a run", remedy));
        }
        fs::create_dir_all(run.samples()).map_err(|e| Error::io(&run.0, "create", e))?;
        // Permissions do not tell whether writing works; writing does, and now rather than after an hour.
        tempfile::tempfile_in(&run.0).map_err(|e| Error::io(&run.0, "write to", e))?;
        Ok(run)
    }

    /// The checkpoint that `path` means: a file, a run's folder, or, when absent, the newest run in `runs`.
    ///
    /// # Errors
    /// If there is none.
    pub fn find_checkpoint(path: Option<&Path>) -> Result<PathBuf> {
        match path {
            Some(path) if path.is_dir() => {
                let checkpoint = Self(path.to_owned()).checkpoint();
                if checkpoint.is_file() {
                    return Ok(checkpoint);
                }
                Err(Error::file(path, format!("holds no {CHECKPOINT}"), "name a run's folder or a checkpoint file"))
            }
            Some(path) => Ok(path.to_owned()),
            None => Self::newest().ok_or_else(|| {
                Error::file(RUNS, "holds no run", "name a checkpoint, or make one with innerloop train")
            }),
        }
    }

    fn newest() -> Option<PathBuf> {
        let entries = fs::read_dir(RUNS).ok()?;
        let checkpoints = entries.filter_map(|entry| Some(Self(entry.ok()?.path()).checkpoint()));
        let dated = checkpoints.filter_map(|path| Some((fs::metadata(&path).ok()?.modified().ok()?, path)));
        dated.max().map(|(_, path)| path)
    }

    pub fn checkpoint(&self) -> PathBuf {
        self.0.join(CHECKPOINT)
    }
    pub fn config(&self) -> PathBuf {
        self.0.join("config.toml")
    }
    pub fn metrics(&self) -> PathBuf {
        self.0.join("metrics.jsonl")
    }
    pub fn curve(&self) -> PathBuf {
        self.0.join("loss.svg")
    }
    pub fn samples(&self) -> PathBuf {
        self.0.join("samples")
    }
    pub fn sample(&self, step: u64) -> PathBuf {
        self.samples().join(format!("step-{step:06}.gif"))
    }
    pub fn adapted(&self) -> PathBuf {
        self.0.join("adapted.gif")
    }

    /// Writes the checkpoint.
    pub fn write(&self, checkpoint: &Checkpoint) -> Result<()> {
        checkpoint.write(&self.checkpoint())
    }
}

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
}

/// The metrics file: a JSON object a line.
pub(super) struct Metrics {
    path: PathBuf,
    file: File,
    all: Vec<Metric>,
}

impl Metrics {
    /// Opens the file and drops what lies after meta-step `step`, which a resumed run does again.
    ///
    /// # Errors
    /// A file that cannot be read or written.
    pub fn open(path: PathBuf, step: u64) -> Result<Self> {
        let text = match fs::read_to_string(&path) {
            Ok(text) => text,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(&path, "read", e)),
        };
        // A line that was cut short by a stop is dropped with the rest.
        let all: Vec<Metric> = text
            .lines()
            .map_while(|line| serde_json::from_str(line).ok())
            .filter(|m: &Metric| m.step <= step)
            .collect();
        crate::atomic::write(&path, |out| all.iter().try_for_each(|metric| line(out, metric)))?;
        let file = OpenOptions::new().append(true).open(&path).map_err(|e| Error::io(&path, "write", e))?;
        Ok(Self { path, file, all })
    }

    /// Adds a line.
    ///
    /// # Errors
    /// A full disk, say.
    pub fn push(&mut self, metric: Metric) -> Result<()> {
        let mut text = Vec::new();
        line(&mut text, &metric)
            .and_then(|()| self.file.write_all(&text))
            .map_err(|e| Error::io(&self.path, "write", e))?;
        self.all.push(metric);
        Ok(())
    }

    /// All lines, those of earlier parts of the run too.
    pub fn all(&self) -> &[Metric] {
        &self.all
    }
}

fn line(out: &mut impl Write, metric: &Metric) -> std::io::Result<()> {
    serde_json::to_writer(&mut *out, metric).map_err(std::io::Error::from)?;
    writeln!(out)
}
