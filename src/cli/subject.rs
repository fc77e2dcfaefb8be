//! One subject, told by a folder of its clips.

use std::path::Path;
use std::sync::Arc;

use super::console;
use crate::run::VideoJob;
use crate::tasks::{ClipFolder, ClipTasks, Condition, FolderOptions};
use crate::{Error, Result};

/// Opens the folder of one subject's clips for a checkpoint's job; `label` is the subject's, for a checkpoint trained with
/// labels.
pub(super) fn open(
    job: &VideoJob,
    clips: &Path,
    label: Option<&str>,
    cache: Option<&Path>,
) -> Result<Arc<dyn ClipTasks>> {
    let condition = job.latent.condition.clone();
    let options = FolderOptions {
        cache: cache.map(Path::to_owned),
        min_clips: 1,
        progress: console::shows_progress(),
        label: label_of(clips, label, &condition)?,
        condition,
    };
    let folder = ClipFolder::open_single_task(clips, job.source.format(), &options)?;
    console::notes(folder.notes());
    Ok(Arc::new(folder))
}

/// The subject's label, if the checkpoint wants one.
fn label_of(clips: &Path, label: Option<&str>, condition: &Condition) -> Result<Option<String>> {
    match (condition, label) {
        (Condition::Label(labels), Some(label)) => labels.index(label).map(|_| Some(label.to_owned())),
        (Condition::Label(labels), None) => {
            let folder = clips.canonicalize().map_err(|e| Error::io(clips, "read", e))?;
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
