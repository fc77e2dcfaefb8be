//! What lies in a folder of clips.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use super::condition::files_beside;
use crate::video::{Kind, kind_of_file, natural_order, still_names};
use crate::{Error, Result};

/// Extensions of clips: a file named so is meant as a clip even if its content is damaged, and is then reported rather
/// than passed over.
const CLIP_EXTENSIONS: [&str; 8] = ["gif", "png", "apng", "jpg", "jpeg", "y4m", "npy", "webp"];

/// The clips of one task, in natural order of their names, and what was passed over.
pub(super) struct Clips {
    pub(super) paths: Vec<PathBuf>,
    pub(super) skipped: Vec<PathBuf>,
}

/// The clips in `folder`: files that are clips and folders that hold pictures. Files beside a clip that may tell its condition
/// are neither clips nor passed over.
pub(super) fn clips(folder: &Path) -> Result<Clips> {
    let (mut paths, mut skipped) = (Vec::new(), Vec::new());
    for path in entries(folder)? {
        if is_clip(&path)? { &mut paths } else { &mut skipped }.push(path);
    }
    let beside: HashSet<PathBuf> = paths.iter().flat_map(|clip| files_beside(clip)).collect();
    paths.retain(|path| !beside.contains(path));
    skipped.retain(|path| !beside.contains(path));
    Ok(Clips { paths, skipped })
}

/// The folders in `folder`, in natural order of their names.
pub(super) fn folders(folder: &Path) -> Result<Vec<PathBuf>> {
    Ok(entries(folder)?.into_iter().filter(|path| path.is_dir()).collect())
}

/// Whether a folder holds no pictures itself but clips or folders of pictures: then it is a task, not a clip.
pub(super) fn is_task(folder: &Path) -> Result<bool> {
    if !still_names(folder)?.is_empty() {
        return Ok(false);
    }
    for path in entries(folder)? {
        if is_clip(&path)? {
            return Ok(true);
        }
    }
    Ok(false)
}

/// A path's last part, for messages and as a task's name.
pub(super) fn name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

fn is_clip(path: &Path) -> Result<bool> {
    if path.is_dir() {
        return Ok(!still_names(path)?.is_empty());
    }
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    let named_so = CLIP_EXTENSIONS.iter().any(|known| extension.eq_ignore_ascii_case(known));
    Ok(named_so || kind_of_file(path)? != Kind::Unknown)
}

/// All that is in a folder, hidden entries aside, in natural order of names.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    let failed = |e| Error::io(folder, "read", e);
    let mut paths = Vec::new();
    for entry in fs::read_dir(folder).map_err(failed)? {
        let path = entry.map_err(failed)?.path();
        if !name(&path).starts_with('.') {
            paths.push(path);
        }
    }
    paths.sort_by(|a, b| natural_order(&name(a), &name(b)));
    Ok(paths)
}
