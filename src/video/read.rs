//! Recognising what a clip file is, and reading it.

use std::fs;
use std::io::Read;
use std::path::Path;

use super::clip::{Clip, ClipFormat};
use super::stills::read_folder;
use super::{animation, ffmpeg, npy, y4m};
use crate::{Error, Result};

/// The largest file read into memory: 2 GiB. Longer videos go through ffmpeg, which streams.
const MAX_FILE_BYTES: u64 = 2 << 30;

/// What a file holds, told by its first bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Gif,
    Png,
    Jpeg,
    Y4m,
    Npy,
    /// MP4, Matroska, AVI and the like: for ffmpeg.
    Video,
    Unknown,
}

impl Kind {
    /// Bytes from the front of a file that suffice for [`Kind::of`].
    const HEAD: usize = 16;

    pub(crate) fn of(bytes: &[u8]) -> Self {
        let starts = |magic: &[u8]| bytes.starts_with(magic);
        let holds = |at: usize, magic: &[u8]| bytes.get(at..).is_some_and(|rest| rest.starts_with(magic));
        if starts(b"GIF87a") || starts(b"GIF89a") {
            Self::Gif
        } else if starts(b"\x89PNG\r\n\x1a\n") {
            Self::Png
        } else if starts(b"\xff\xd8\xff") {
            Self::Jpeg
        } else if starts(b"YUV4MPEG2") {
            Self::Y4m
        } else if starts(b"\x93NUMPY") {
            Self::Npy
        } else if holds(4, b"ftyp")
            || holds(4, b"moov")
            || holds(4, b"mdat")
            || starts(b"\x1a\x45\xdf\xa3")
            || (starts(b"RIFF") && (holds(8, b"AVI ") || holds(8, b"WEBP")))
            || starts(b"\x00\x00\x01\xba")
            || starts(b"\x00\x00\x01\xb3")
            || starts(b"OggS")
            || starts(b"FLV\x01")
            || starts(b"\x30\x26\xb2\x75\x8e\x66\xcf\x11")
        {
            Self::Video
        } else {
            Self::Unknown
        }
    }
}

/// What the file at `path` holds. A file that its content does not tell is a video if its extension says so.
pub(crate) fn kind_of_file(path: &Path) -> Result<Kind> {
    let kind = Kind::of(&super::stills::head::<{ Kind::HEAD }>(path)?);
    let extension = path.extension().and_then(|e| e.to_str()).unwrap_or_default();
    // MPEG transport streams begin with one plain letter only; the others may begin with padding.
    let videos = ["ts", "m2ts", "mts", "mp4", "mov", "mkv", "webm", "avi", "mpg", "mpeg", "wmv", "flv"];
    match kind {
        Kind::Unknown if videos.iter().any(|known| extension.eq_ignore_ascii_case(known)) => Ok(Kind::Video),
        kind => Ok(kind),
    }
}

/// Reads a clip and brings it to `format`: F*H*W*C values in [-1, 1].
///
/// `path` is a GIF, an animated PNG, a YUV4MPEG2 file (`.y4m`, 8 bits), a NumPy array (`.npy`: u1, little-endian f4 or
/// f8, C order, shape (F, H, W) or (F, H, W, C); floats are taken as [-1, 1] if any is negative, else as [0, 1]), a
/// folder of PNG or JPEG frames in natural order of their names, or any video that the `ffmpeg` program reads, if it is
/// on PATH. What a file is, its content tells, not its name.
///
/// Of a longer clip F frames are taken evenly over its length, frame `i*n/F` of n for each i. Frames are resized by an
/// antialiased triangle filter; gray is Rec. 601 luma; a gray clip becomes RGB by repetition; transparent pixels are
/// black.
///
/// # Errors
/// A message naming the file: it is missing, unreadable, empty, cut short, damaged or of no known kind, has fewer than
/// F frames, holds NaN or infinite values or values out of range, or is larger than 2 GiB, 33,554,432 pixels a frame or
/// 4,294,967,296 pixels in all.
pub fn read_clip(path: impl AsRef<Path>, format: &ClipFormat) -> Result<Clip> {
    let path = path.as_ref();
    format.validate()?;
    let about = fs::metadata(path).map_err(|e| Error::io(path, "read", e))?;
    if about.is_dir() {
        return read_folder(path, format);
    }
    if about.len() == 0 {
        return Err(empty(path));
    }
    match kind_of_file(path)? {
        Kind::Video => ffmpeg::read(path, format),
        _ => decode_named(path, &read_bounded(path)?, format),
    }
}

/// Reads a clip from the bytes of a GIF, PNG, JPEG, y4m or npy file, as [`read_clip`] does.
///
/// # Errors
/// As [`read_clip`], with `clip` in place of the file's name; and if the bytes are a video that only ffmpeg reads.
pub fn decode(bytes: &[u8], format: &ClipFormat) -> Result<Clip> {
    format.validate()?;
    decode_named(Path::new("clip"), bytes, format)
}

fn decode_named(path: &Path, bytes: &[u8], format: &ClipFormat) -> Result<Clip> {
    match Kind::of(bytes) {
        Kind::Gif => animation::read_gif(path, bytes, format),
        Kind::Png => animation::read_png(path, bytes, format),
        Kind::Jpeg => animation::read_jpeg(path, bytes, format),
        Kind::Y4m => y4m::read(path, bytes, format),
        Kind::Npy => npy::read(path, bytes, format),
        Kind::Video => Err(Error::file(path, "is a video for ffmpeg", "write it to a file and read that")),
        Kind::Unknown if bytes.is_empty() => Err(empty(path)),
        Kind::Unknown => Err(Error::file(
            path,
            "is not a clip",
            "give a GIF, an animated PNG, a .y4m, a .npy, a video, or a folder of PNG or JPEG frames",
        )),
    }
}

fn empty(path: &Path) -> Error {
    Error::file(path, "is empty", "copy or export it again")
}

/// The bytes of a file of bounded size.
pub(crate) fn read_bounded(path: &Path) -> Result<Vec<u8>> {
    let failed = |e| Error::io(path, "read", e);
    let file = fs::File::open(path).map_err(failed)?;
    let mut bytes = Vec::new();
    // One byte more than allowed tells a file that is too large from one that just fits, even if it grows meanwhile.
    file.take(MAX_FILE_BYTES + 1).read_to_end(&mut bytes).map_err(failed)?;
    if bytes.len() as u64 > MAX_FILE_BYTES {
        return Err(Error::file(path, format!("is larger than {MAX_FILE_BYTES} bytes"), "cut it into shorter clips"));
    }
    Ok(bytes)
}
