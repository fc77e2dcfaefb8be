//! A folder of clips as tasks.

use std::fs;
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use super::cache::Cache;
use super::condition::{Condition, Given};
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
    /// What is told of clips. Labels come from the tasks' names, the rest from files beside the clips.
    pub condition: Condition,
    /// The label of all tasks, in place of those that their names mean.
    pub label: Option<String>,
}

/// Tasks read from `DIR/TASK/CLIP`, all decoded at opening and kept in memory.
///
/// A clip is anything that [`read_clip`] reads. Tasks and clips are in natural order of their names; hidden entries are
/// passed over silently, other files that are no clips with a note. A `.npy`, `.txt` or `.wav` file that has the name of a clip
/// beside it is no clip: [`Condition`] says what it is for.
#[derive(Debug)]
pub struct ClipFolder {
    format: ClipFormat,
    /// Values of the condition that is told beside the clips.
    condition_width: usize,
    tasks: Vec<Task>,
    notes: Vec<String>,
}

#[derive(Debug)]
struct Task {
    name: String,
    clips: usize,
    /// [clips, F*H*W*C].
    values: Vec<f32>,
    /// [clips, condition width], or one row for all clips.
    conditions: Vec<f32>,
}

/// A clip's values, and those of the file beside it.
type Decoded = (Vec<f32>, Vec<f32>);

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
    /// it), or a clip or the file that tells its condition is missing or bad (the first in order is named), or a task's label
    /// is not known.
    pub fn open(dir: impl AsRef<Path>, format: ClipFormat, options: &FolderOptions) -> Result<Self> {
        let dir = dir.as_ref();
        format.validate()?;
        let mut notes = Vec::new();
        let folders = task_folders(dir, options.cache.as_deref())?;
        let listed = folders.into_iter().map(|folder| list(folder, &mut notes)).collect::<Result<_>>()?;
        Self::decode(dir, listed, format, options, notes)
    }

    /// The names of a folder's tasks, which need not hold any clips. `cache`: as in [`FolderOptions`].
    ///
    /// # Errors
    /// If the folder is missing or has no tasks.
    pub fn task_names(dir: impl AsRef<Path>, cache: Option<&Path>) -> Result<Vec<String>> {
        Ok(task_folders(dir.as_ref(), cache)?.iter().map(|folder| listing::name(folder)).collect())
    }

    /// The first clip of the first task that has any. `cache`: as in [`FolderOptions`].
    ///
    /// # Errors
    /// If the folder is missing or has no clips.
    pub fn first_clip(dir: impl AsRef<Path>, cache: Option<&Path>) -> Result<PathBuf> {
        let dir = dir.as_ref();
        for folder in task_folders(dir, cache)? {
            if let Some(clip) = listing::clips(&folder)?.paths.into_iter().next() {
                return Ok(clip);
            }
        }
        Err(Error::file(dir, "holds no clips", "lay clips out as DIR/TASK/CLIP, a folder for each task"))
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
            let decoded = values.and_then(|values| Ok((values, options.condition.read_beside(path, &format)?)));
            bar.inc(1);
            decoded
        };
        let paths: Vec<&PathBuf> = listed.iter().flat_map(|task| &task.clips).collect();
        // Collected before the first error is looked for, so that it is the first in order, not in time.
        let decoded: Vec<Result<Decoded>> = paths.into_par_iter().map(read).collect();
        bar.finish_and_clear();
        let mut decoded = decoded.into_iter();
        let condition_width = if options.condition.is_beside_clip() { options.condition.width() } else { 0 };
        let mut tasks = Vec::with_capacity(listed.len());
        for task in listed {
            let (name, mut conditions) = (listing::name(&task.folder), Vec::new());
            if let Condition::Label(labels) = &options.condition {
                let label = options.label.as_deref().unwrap_or_else(|| labels.of_task(&name));
                conditions.resize(condition_width, 0.0);
                options.condition.encode(Given::Label(label), &format, &mut conditions)?;
            }
            let mut values = Vec::with_capacity(task.clips.len() * format.values());
            for clip in decoded.by_ref().take(task.clips.len()) {
                let (clip, condition) = clip?;
                values.extend(clip);
                conditions.extend(condition);
            }
            tasks.push(Task { name, clips: task.clips.len(), values, conditions });
        }
        Ok(Self { format, condition_width, tasks, notes })
    }
}

/// The folders of tasks; the cache, where it lies among them, is none.
fn task_folders(dir: &Path, cache: Option<&Path>) -> Result<Vec<PathBuf>> {
    let own_cache = cache.and_then(|cache| fs::canonicalize(cache).ok());
    let mut folders = listing::folders(dir)?;
    folders.retain(|folder| own_cache.is_none() || fs::canonicalize(folder).ok() != own_cache);
    if folders.is_empty() {
        return Err(Error::file(dir, "holds no tasks", "lay clips out as DIR/TASK/CLIP, a folder for each task"));
    }
    Ok(folders)
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

    fn condition_width(&self) -> usize {
        self.condition_width
    }

    fn condition_into(&self, task: usize, clip: usize, out: &mut [f32]) {
        let (width, conditions) = (self.condition_width, &self.tasks[task].conditions);
        let start = if conditions.len() == width { 0 } else { clip * width };
        out.copy_from_slice(&conditions[start..start + width]);
    }
}
