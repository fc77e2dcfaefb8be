//! Files that are either wholly written or not touched at all.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use crate::{Error, Result};

/// Writes `path` through a temporary file in the same folder: filled, flushed, synced to disk, then renamed over `path`.
/// On any error the temporary file is removed and what was at `path` stays as it was.
pub(crate) fn write(path: &Path, fill: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>) -> Result<()> {
    replace(path, true, fill)
}

/// As [`write`], but without waiting for the disk: for files that are checked when read and can be made again.
pub(crate) fn write_unsynced(
    path: &Path,
    fill: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>,
) -> Result<()> {
    replace(path, false, fill)
}

fn replace(path: &Path, sync: bool, fill: impl FnOnce(&mut BufWriter<&mut File>) -> io::Result<()>) -> Result<()> {
    let failed = |source| Error::io(path, "write", source);
    if path.is_dir() {
        return Err(failed(io::ErrorKind::IsADirectory.into()));
    }
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut builder = tempfile::Builder::new();
    builder.prefix(".innerloop-").suffix(".part");
    // Temporary files are private by default; the finished file gets the permissions any new file would.
    #[cfg(unix)]
    builder.permissions(std::os::unix::fs::PermissionsExt::from_mode(0o666));
    // The temporary name would only confuse: errors speak of the file that was asked for.
    let mut file = builder.tempfile_in(folder).map_err(|e| failed(plain(e)))?;
    {
        let mut out = BufWriter::new(file.as_file_mut());
        fill(&mut out).map_err(failed)?;
        out.flush().map_err(failed)?;
    }
    if sync {
        file.as_file().sync_all().map_err(failed)?;
    }
    file.persist(path).map_err(|e| failed(e.error))?;
    // The rename itself reaches the disk with its folder; a file system that cannot sync folders is no failure.
    #[cfg(unix)]
    if sync && let Ok(folder) = File::open(folder) {
        let _ = folder.sync_all();
    }
    Ok(())
}

/// The operating system's own error, without the temporary file's path that `tempfile` wraps around it.
fn plain(error: io::Error) -> io::Error {
    match error.raw_os_error() {
        Some(code) => io::Error::from_raw_os_error(code),
        None => error.kind().into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        write(&path, |out| out.write_all(b"old")).unwrap();
        let error = write(&path, |out| {
            out.write_all(b"half")?;
            Err(io::Error::from(io::ErrorKind::StorageFull))
        });
        assert!(error.unwrap_err().to_string().contains("free some disk space"));
        assert_eq!(std::fs::read(&path).unwrap(), b"old");
        write_unsynced(&path, |out| out.write_all(b"new")).unwrap();
        assert_eq!(std::fs::read(&path).unwrap(), b"new");
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_missing_folder_or_a_folder_in_the_way_is_an_error_of_one_line() {
        let folder = tempfile::tempdir().unwrap();
        for path in [folder.path().join("missing/file"), folder.path().to_path_buf()] {
            let message = write(&path, |out| out.write_all(b"x")).unwrap_err().to_string();
            assert!(message.contains(path.to_str().unwrap()) && !message.contains('\n'), "{message}");
            assert!(!message.contains(".part"), "{message}");
        }
    }
}
