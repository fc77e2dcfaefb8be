//! A folder of pictures as a clip.

use std::fs;
use std::io::Read;
use std::path::Path;

use image::ImageFormat;

use super::animation::push_still;
use super::clip::{Clip, ClipFormat};
use super::frames::{Frames, choose};
use super::natural::natural_order;
use super::read::{Kind, kind_of_file, read_bounded};
use crate::{Error, Result};

/// Reads the PNG and JPEG pictures of a folder, in natural order of their names, as a clip's frames. Only the pictures
/// that are used are decoded.
pub(super) fn read_folder(folder: &Path, format: &ClipFormat) -> Result<Clip> {
    let names = still_names(folder)?;
    if names.is_empty() {
        return Err(Error::file(
            folder,
            "is a folder without PNG or JPEG pictures",
            "name a clip file or a folder that holds one clip's frames",
        ));
    }
    let mut frames = Frames::new(folder, format);
    for index in choose(folder, names.len(), format)? {
        let path = folder.join(&names[index]);
        let bytes = read_bounded(&path)?;
        let kind = if Kind::of(&bytes) == Kind::Jpeg { ImageFormat::Jpeg } else { ImageFormat::Png };
        push_still(&path, &bytes, kind, &mut frames)?;
    }
    frames.finish()
}

/// The names of a folder's PNG and JPEG pictures (hidden files aside), in natural order. A file counts by its content,
/// or by its extension, so that a damaged frame is reported rather than passed over.
pub(crate) fn still_names(folder: &Path) -> Result<Vec<String>> {
    let unreadable = |e| Error::io(folder, "read", e);
    let mut names = Vec::new();
    for entry in fs::read_dir(folder).map_err(unreadable)? {
        let path = entry.map_err(unreadable)?.path();
        let Some(name) = path.file_name().and_then(|name| name.to_str()) else { continue };
        if name.starts_with('.') || !path.is_file() {
            continue;
        }
        if has_still_extension(&path) || matches!(kind_of_file(&path)?, Kind::Png | Kind::Jpeg) {
            names.push(name.to_owned());
        }
    }
    names.sort_by(|a, b| natural_order(a, b));
    Ok(names)
}

fn has_still_extension(path: &Path) -> bool {
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    ["png", "jpg", "jpeg"].iter().any(|known| extension.eq_ignore_ascii_case(known))
}

/// Reads at most the first `N` bytes of a file.
pub(super) fn head<const N: usize>(path: &Path) -> Result<Vec<u8>> {
    let failed = |e| Error::io(path, "read", e);
    let mut bytes = Vec::with_capacity(N);
    fs::File::open(path).map_err(failed)?.take(N as u64).read_to_end(&mut bytes).map_err(failed)?;
    Ok(bytes)
}
