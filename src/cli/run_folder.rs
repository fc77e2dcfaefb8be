//! The folder of a run: where its files lie.

use std::fs;
use std::path::{Path, PathBuf};

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
    /// TensorBoard takes every file with `tfevents` in its name.
    pub fn events(&self) -> PathBuf {
        self.0.join("events.out.tfevents.innerloop")
    }
    pub fn summary(&self) -> PathBuf {
        self.0.join("summary.json")
    }
    pub fn evaluation(&self) -> PathBuf {
        self.0.join("eval.json")
    }
    pub fn report(&self) -> PathBuf {
        self.0.join("report.html")
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
