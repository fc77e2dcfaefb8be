//! GIF, animated PNG, and still pictures, through the `image` crate.

use std::io::Cursor;
use std::path::Path;

use image::codecs::gif::GifDecoder;
use image::codecs::png::PngDecoder;
use image::{AnimationDecoder, DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader, Limits};

use super::clip::{Clip, ClipFormat};
use super::frames::{Frames, check_size};
use crate::{Error, Result};

/// Memory a picture decoder may take for one frame.
const MAX_DECODER_BYTES: u64 = 512 << 20;

pub(super) fn read_gif(path: &Path, bytes: &[u8], format: &ClipFormat) -> Result<Clip> {
    let decoder = GifDecoder::new(Cursor::new(bytes)).map_err(|e| unreadable(path, "GIF", e))?;
    let (width, height) = decoder.dimensions();
    check_size(path, height.into(), width.into())?;
    let mut frames = Frames::new(path, format);
    for frame in decoder.into_frames() {
        frames.push_rgba(frame.map_err(|e| unreadable(path, "GIF", e))?.buffer())?;
    }
    frames.finish()
}

/// An animated PNG; a PNG that is not animated is a clip of one frame.
pub(super) fn read_png(path: &Path, bytes: &[u8], format: &ClipFormat) -> Result<Clip> {
    let broken = |e| unreadable(path, "PNG", e);
    let decoder = PngDecoder::with_limits(Cursor::new(bytes), limits()).map_err(broken)?;
    let (width, height) = decoder.dimensions();
    check_size(path, height.into(), width.into())?;
    let mut frames = Frames::new(path, format);
    if decoder.is_apng().map_err(broken)? {
        for frame in decoder.apng().map_err(broken)?.into_frames() {
            frames.push_rgba(frame.map_err(broken)?.buffer())?;
        }
    } else {
        needs_one_frame(path, format)?;
        frames.push_rgba(&DynamicImage::from_decoder(decoder).map_err(broken)?.into_rgba8())?;
    }
    frames.finish()
}

/// A JPEG picture is a clip of one frame.
pub(super) fn read_jpeg(path: &Path, bytes: &[u8], format: &ClipFormat) -> Result<Clip> {
    needs_one_frame(path, format)?;
    let mut frames = Frames::new(path, format);
    push_still(path, bytes, ImageFormat::Jpeg, &mut frames)?;
    frames.finish()
}

/// Adds a PNG or JPEG picture as a frame.
pub(super) fn push_still(path: &Path, bytes: &[u8], kind: ImageFormat, frames: &mut Frames) -> Result<()> {
    let name = if kind == ImageFormat::Png { "PNG" } else { "JPEG" };
    let broken = |e| unreadable(path, name, e);
    let mut reader = ImageReader::with_format(Cursor::new(bytes), kind);
    reader.limits(limits());
    let decoder = reader.into_decoder().map_err(broken)?;
    let (width, height) = decoder.dimensions();
    check_size(path, height.into(), width.into())?;
    frames.push_rgba(&DynamicImage::from_decoder(decoder).map_err(broken)?.into_rgba8())
}

fn needs_one_frame(path: &Path, format: &ClipFormat) -> Result<()> {
    if format.frames > 1 {
        return Err(Error::file(
            path,
            format!("is a single picture, 1 frame of the {} needed", format.frames),
            "put the pictures of each clip into a folder of their own",
        ));
    }
    Ok(())
}

fn limits() -> Limits {
    let mut limits = Limits::default();
    limits.max_alloc = Some(MAX_DECODER_BYTES);
    limits
}

fn unreadable(path: &Path, kind: &str, error: ImageError) -> Error {
    // Decoders' messages may span lines; ours are one line.
    let reason = error.to_string().split_whitespace().collect::<Vec<_>>().join(" ");
    Error::file(path, format!("is a broken {kind} ({reason})"), "copy or export it again")
}
