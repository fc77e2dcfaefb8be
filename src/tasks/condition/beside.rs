//! The files beside a clip that conditions are read from.

use std::path::{Path, PathBuf};

use crate::{Error, Result};

/// The file that tells the condition of a clip: the clip's name with another extension; with `condition` before the extension if
/// that is the clip's own.
fn beside(clip: &Path, extension: &str) -> PathBuf {
    let stem = if clip.is_dir() { clip.file_name() } else { clip.file_stem() };
    let mut name = stem.unwrap_or_default().to_os_string();
    if !clip.is_dir() && clip.extension().is_some_and(|own| own.eq_ignore_ascii_case(extension)) {
        name.push(".condition");
    }
    name.push(".");
    name.push(extension);
    clip.with_file_name(name)
}

/// All files that may tell a condition of a clip.
pub(in crate::tasks) fn files_beside(clip: &Path) -> [PathBuf; 3] {
    ["npy", "txt", "wav"].map(|extension| beside(clip, extension))
}

/// The file that tells the condition of a clip, a `kind` of condition.
///
/// # Errors
/// If it is missing.
pub(super) fn existing(clip: &Path, extension: &str, kind: &str) -> Result<PathBuf> {
    let path = beside(clip, extension);
    if path.is_file() {
        return Ok(path);
    }
    let problem = format!("is missing: it should hold the {kind} of the clip {}", clip.display());
    Err(Error::file(path, problem, "add it, or take another condition"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_beside_clips() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        std::fs::create_dir(at("frames.v2")).unwrap();
        for (clip, extension, expected) in [
            ("walk.gif", "npy", "walk.npy"),
            ("walk.2.gif", "txt", "walk.2.txt"),
            ("walk.npy", "npy", "walk.condition.npy"),
            ("walk.NPY", "npy", "walk.condition.npy"),
            ("walk.npy", "wav", "walk.wav"),
            ("frames.v2", "npy", "frames.v2.npy"),
        ] {
            assert_eq!(beside(&at(clip), extension), at(expected));
        }
        let text = existing(&at("walk.gif"), "txt", "text").unwrap_err().to_string();
        assert!(text.contains("walk.txt: is missing") && text.contains("text of the clip"), "{text}");
    }
}
