//! Decoded clips kept on disk, so that a folder is decoded once.

use std::fs;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use crate::hash::fnv1a;
use crate::video::{ClipFormat, still_names};
use crate::{Error, Result, atomic};

/// First bytes of an entry; the number changes with the layout or with how clips are decoded.
const MAGIC: &[u8] = b"innerloop clip 1\n";

/// A folder of decoded clips, one file each: the magic line, the length of the key, the key, the values (f32, little
/// endian), and a checksum of all that. The file's name is a hash of format and path; the key says in full what was
/// decoded, so that a changed file is decoded anew and replaces its old entry.
pub(super) struct Cache {
    folder: PathBuf,
}

impl Cache {
    /// Makes the folder if need be.
    ///
    /// # Errors
    /// If it cannot be made or written to.
    pub(super) fn open(folder: &Path) -> Result<Self> {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, "create", e))?;
        // Permissions do not tell whether writing works; writing does.
        tempfile::tempfile_in(folder).map_err(|e| Error::io(folder, "write to", e))?;
        Ok(Self { folder: folder.to_owned() })
    }

    /// The decoded clip at `path`, or `decode` of it, which is then kept. A missing, damaged or outdated entry is made
    /// anew; an entry that cannot be written is done without.
    ///
    /// # Errors
    /// Those of `decode`, and if the clip's size and age cannot be read.
    pub(super) fn read_or(
        &self,
        path: &Path,
        format: &ClipFormat,
        decode: impl FnOnce() -> Result<Vec<f32>>,
    ) -> Result<Vec<f32>> {
        let (place, key) = identity(path, format)?;
        let entry = self.folder.join(format!("{:016x}.clip", fnv1a(place.as_bytes())));
        if let Some(values) = fs::read(&entry).ok().and_then(|bytes| unpack(&bytes, &key, format.values())) {
            return Ok(values);
        }
        let values = decode()?;
        let bytes = pack(&key, &values);
        // The clip is decoded: a cache that fails now costs time at the next opening, nothing else.
        let _ = atomic::write_unsynced(&entry, |out| out.write_all(&bytes));
        Ok(values)
    }
}

/// Where a clip is and in which format it is wanted, and that together with the size and age of all its files.
fn identity(path: &Path, format: &ClipFormat) -> Result<(String, String)> {
    let full = fs::canonicalize(path).map_err(|e| Error::io(path, "read", e))?;
    let place = format!("{format}\n{}", full.display());
    let mut key = place.clone();
    let mut add = |path: &Path| {
        let stamp = fs::metadata(path).and_then(|data| Ok((data.len(), data.modified()?)));
        let (size, modified) = stamp.map_err(|e| Error::io(path, "read", e))?;
        let age = modified.duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos();
        key.push_str(&format!("\n{} {size} {age}", super::listing::name(path)));
        Ok::<(), Error>(())
    };
    if path.is_dir() {
        still_names(path)?.iter().try_for_each(|name| add(&path.join(name)))?;
    } else {
        add(path)?;
    }
    Ok((place, key))
}

fn pack(key: &str, values: &[f32]) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    bytes.extend((key.len() as u64).to_le_bytes());
    bytes.extend(key.as_bytes());
    bytes.extend(values.iter().flat_map(|value| value.to_le_bytes()));
    bytes.extend(fnv1a(&bytes).to_le_bytes());
    bytes
}

/// The values, if the entry is whole and was made for this key.
fn unpack(bytes: &[u8], key: &str, count: usize) -> Option<Vec<f32>> {
    let (body, checksum) = bytes.split_last_chunk::<8>()?;
    let (length, rest) = body.strip_prefix(MAGIC)?.split_first_chunk::<8>()?;
    let data = rest.strip_prefix(key.as_bytes())?;
    let sound = u64::from_le_bytes(*length) == key.len() as u64
        && data.len() == 4 * count
        && u64::from_le_bytes(*checksum) == fnv1a(body);
    sound.then(|| data.chunks_exact(4).map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_whole_entries_of_the_same_key_are_read() {
        let values = [0.5, -1.0, 0.25];
        let bytes = pack("key", &values);
        assert_eq!(unpack(&bytes, "key", 3).as_deref(), Some(values.as_slice()));
        assert!(unpack(&bytes, "kex", 3).is_none() && unpack(&bytes, "ke", 3).is_none());
        assert!(unpack(&bytes, "key", 2).is_none());
        for end in 0..bytes.len() {
            assert!(unpack(&bytes[..end], "key", 3).is_none());
            let mut damaged = bytes.clone();
            damaged[end] ^= 1;
            assert!(unpack(&damaged, "key", 3).is_none());
        }
    }
}
