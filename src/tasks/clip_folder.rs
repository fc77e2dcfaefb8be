//! A folder of clips as tasks.

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::cache::Cache;
use super::listing;
use super::source::ClipTasks;
use crate::video::{ClipFormat, plural, read_clip};
use crate::{Error, Result, progress};

/// The cache's name inside the folder of clips.
const CACHE_NAME: &str = ".innerloop-cache";

/// How a folder of clips is opened.
#[derive(Clone, Debug, Default)]
pub struct FolderOptions {
    /// Where decoded clips are kept; `DIR/.innerloop-cache` if none is given.
    pub cache: Option<PathBuf>,
    /// The fewest clips a task may have; 0 counts as 1.
    pub min_clips: usize,
    /// Whether to show a progress bar, if standard error is a terminal.
    pub progress: bool,
}

/// Tasks read from `DIR/TASK/CLIP`, all decoded at opening and kept in memory.
///
/// A clip is anything that [`read_clip`] reads. Tasks and clips are in natural order of their names; hidden entries are
/// passed over silently, other files that are no clips with a note.
#[derive(Debug)]
pub struct ClipFolder {
    format: ClipFormat,
    tasks: Vec<Task>,
    notes: Vec<String>,
}

#[derive(Debug)]
struct Task {
    name: String,
    clips: usize,
    /// [clips, F*H*W*C].
    values: Vec<f32>,
}

/// A task before its clips are decoded.
struct Listed {
    folder: PathBuf,
    clips: Vec<PathBuf>,
}

impl ClipFolder {
    /// Opens a folder of tasks, `DIR/TASK/CLIP`, and decodes all clips to `format` on all threads, or takes them from
    /// the cache. A cache that cannot be written is done without, with a note.
    ///
    /// # Errors
    /// If the folder is missing or has no tasks, a task has fewer than `min_clips` clips (the message names
    /// it), or a clip is bad (the first in order is named).
    pub fn open(dir: impl AsRef<Path>, format: ClipFormat, options: &FolderOptions) -> Result<Self> {
        let dir = dir.as_ref();
        format.validate()?;
        let mut notes = Vec::new();
        let own_cache = options.cache.as_deref().and_then(|cache| fs::canonicalize(cache).ok());
        let mut listed = Vec::new();
        for folder in listing::folders(dir)? {
            if own_cache.is_none() || fs::canonicalize(&folder).ok() != own_cache {
                listed.push(list(folder, &mut notes)?);
            }
        }
        if listed.is_empty() {
            return Err(Error::file(dir, "holds no tasks", "lay clips out as DIR/TASK/CLIP, a folder for each task"));
        }
        Self::decode(dir, listed, format, options, notes)
    }

    /// Opens a folder of one task's clips, `DIR/CLIP`: a new subject. The task's name is the folder's.
    ///
    /// # Errors
    /// As [`ClipFolder::open`], and if the folder looks like a folder of tasks.
    pub fn open_single_task(dir: impl AsRef<Path>, format: ClipFormat, options: &FolderOptions) -> Result<Self> {
        let dir = dir.as_ref();
        format.validate()?;
        let mut notes = Vec::new();
        let listed = list(dir.to_owned(), &mut notes)?;
        if listed.clips.is_empty() {
            for folder in listing::folders(dir)? {
                if listing::is_task(&folder)? {
                    let remedy = format!("name one of the tasks in it, e.g. {}", folder.display());
                    return Err(Error::file(dir, "is a folder of tasks, not of one task's clips", remedy));
                }
            }
        }
        Self::decode(dir, vec![listed], format, options, notes)
    }

    /// What was passed over or done without, a line each, for the user to see.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    fn decode(
        dir: &Path,
        listed: Vec<Listed>,
        format: ClipFormat,
        options: &FolderOptions,
        mut notes: Vec<String>,
    ) -> Result<Self> {
        let needed = options.min_clips.max(1);
        if let Some(task) = listed.iter().find(|task| task.clips.len() < needed) {
            let count = task.clips.len();
            let problem = format!("the task has {count} clip{} of the {needed} needed", plural(count));
            return Err(Error::file(&task.folder, problem, "add clips, ask for fewer, or move the folder away"));
        }
        let folder = options.cache.clone().unwrap_or_else(|| dir.join(CACHE_NAME));
        let cache = Cache::open(&folder)
            .map_err(|e| notes.push(format!("decoded clips are not kept, every run decodes them anew ({e})")))
            .ok();
        let total: usize = listed.iter().map(|task| task.clips.len()).sum();
        let bar = progress::bar("decoding clips", total as u64, options.progress);
        let read = |path: &PathBuf| {
            let decode = || Ok(read_clip(path, &format)?.values);
            let values = match &cache {
                Some(cache) => cache.read_or(path, &format, decode),
                None => decode(),
            };
            bar.inc(1);
            values
        };
        let paths: Vec<&PathBuf> = listed.iter().flat_map(|task| &task.clips).collect();
        // Collected before the first error is looked for, so that it is the first in order, not in time.
        let decoded: Vec<Result<Vec<f32>>> = paths.into_par_iter().map(read).collect();
        bar.finish_and_clear();
        let mut decoded = decoded.into_iter();
        let mut tasks = Vec::with_capacity(listed.len());
        for task in listed {
            let mut values = Vec::with_capacity(task.clips.len() * format.values());
            for clip in decoded.by_ref().take(task.clips.len()) {
                values.extend(clip?);
            }
            tasks.push(Task { name: listing::name(&task.folder), clips: task.clips.len(), values });
        }
        Ok(Self { format, tasks, notes })
    }
}

fn list(folder: PathBuf, notes: &mut Vec<String>) -> Result<Listed> {
    let listing::Clips { paths, skipped } = listing::clips(&folder)?;
    notes.extend(skipped.iter().map(|path| format!("{}: skipped, it is not a clip", path.display())));
    Ok(Listed { folder, clips: paths })
}

impl ClipTasks for ClipFolder {
    fn format(&self) -> ClipFormat {
        self.format
    }

    fn len(&self) -> usize {
        self.tasks.len()
    }

    fn name(&self, task: usize) -> String {
        self.tasks[task].name.clone()
    }

    fn clips(&self, task: usize) -> usize {
        self.tasks[task].clips
    }

    fn read_into(&self, task: usize, clip: usize, out: &mut [f32]) {
        let size = self.format.values();
        out.copy_from_slice(&self.tasks[task].values[clip * size..(clip + 1) * size]);
    }
}
