//! Writing clips: animations, strips of frames, arrays.

use std::io::{self, Write};
use std::path::Path;

use image::codecs::gif::{GifEncoder, Repeat};
use image::codecs::png::PngEncoder;
use image::{Delay, DynamicImage, Frame, ImageEncoder, ImageError};

use super::clip::ClipFormat;
use super::montage::Montage;
use crate::{Error, Result, atomic};

/// Writes a montage as a GIF that plays endlessly. Gray is exact to 256 levels; each colour frame has 256 colours of its
/// own.
///
/// # Errors
/// If the montage is empty, a clip's length is not F*H*W*C, a setting is out of range, the picture would be too large,
/// or the file cannot be written; a file that was there before is then left as it was.
pub fn write_gif(path: impl AsRef<Path>, montage: &Montage) -> Result<()> {
    montage.validate()?;
    // Painting the first frame before the file is opened reports a montage that is too large as such.
    let (width, height) = montage.picture(0)?.dimensions();
    atomic::write(path.as_ref(), |out| {
        let mut encoder = GifEncoder::new_with_speed(out, palette_speed(width, height));
        encoder.set_repeat(Repeat::Infinite).map_err(to_io)?;
        for frame in 0..montage.format.frames {
            let picture = DynamicImage::ImageRgb8(montage.picture(frame).map_err(io::Error::other)?).into_rgba8();
            let delay = Delay::from_numer_denom_ms(montage.delay_ms, 1);
            encoder.encode_frame(Frame::from_parts(picture, 0, 0, delay)).map_err(to_io)?;
        }
        Ok(())
    })
}

/// Writes all frames of all clips as one PNG: a row for each clip, in reading order of the montage, its frames from left
/// to right.
///
/// # Errors
/// As [`write_gif`].
pub fn write_png_strip(path: impl AsRef<Path>, montage: &Montage) -> Result<()> {
    montage.validate()?;
    let picture = montage.strip()?;
    atomic::write(path.as_ref(), |out| {
        let (width, height) = picture.dimensions();
        PngEncoder::new(out).write_image(&picture, width, height, image::ExtendedColorType::Rgb8).map_err(to_io)
    })
}

/// Writes N clips of one format as a NumPy array of shape (N, F, H, W, C), little-endian f4, as they are.
///
/// # Errors
/// If a clip's length is not F*H*W*C or the file cannot be written; a file that was there before is then left as it was.
pub fn write_npy(path: impl AsRef<Path>, format: &ClipFormat, clips: &[&[f32]]) -> Result<()> {
    format.validate()?;
    if let Some((i, clip)) = clips.iter().enumerate().find(|(_, clip)| clip.len() != format.values()) {
        return Err(Error::invalid(
            format!("clips[{i}]"),
            format!("has {} values", clip.len()),
            format!("{}, a clip of {format}", format.values()),
        ));
    }
    let ClipFormat { frames, height, width, channels } = format;
    let shape = format!("({}, {frames}, {height}, {width}, {channels})", clips.len());
    let mut header = format!("{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}");
    // Magic, version, length and header together fill whole blocks of 64 bytes, the last one a line end.
    let padded = (10 + header.len() + 1).next_multiple_of(64);
    header.extend(std::iter::repeat_n(' ', padded - 11 - header.len()));
    header.push('\n');
    atomic::write(path.as_ref(), |out| {
        out.write_all(b"\x93NUMPY\x01\x00")?;
        out.write_all(&(header.len() as u16).to_le_bytes())?;
        out.write_all(header.as_bytes())?;
        clips.iter().flat_map(|clip| clip.iter()).try_for_each(|value| out.write_all(&value.to_le_bytes()))
    })
}

/// How hard a colour palette is optimised, from 1 (best) to 10 (fast): small pictures need all their pixels, large ones
/// would take seconds. Frames of up to 256 colours, all gray ones among them, are exact anyway.
fn palette_speed(width: u32, height: u32) -> i32 {
    (u64::from(width) * u64::from(height) / 50_000).clamp(1, 10) as i32
}

/// A full disk reaches the user as a full disk, not as a fault of the picture.
fn to_io(error: ImageError) -> io::Error {
    match error {
        ImageError::IoError(e) => e,
        e => io::Error::other(e),
    }
}
