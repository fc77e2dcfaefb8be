//! Gathering source frames of any size into a clip of a given format.

use std::path::Path;

use super::clip::{Clip, ClipFormat};
use super::resize::{Resizer, luma};
use crate::{Error, Result};

/// The most pixels a source frame may have: 8K video has 33.2 million.
const MAX_FRAME_PIXELS: u64 = 1 << 25;
/// The most pixels of a whole source clip that are decoded: about a minute of 1080p at 30 frames a second.
const MAX_CLIP_PIXELS: u64 = 1 << 32;
/// The most values kept while the number of frames is not known yet (512 MiB).
const MAX_KEPT_VALUES: usize = 1 << 27;

/// Source frames on their way to a clip: each is resized and brought to the format's channels as it comes, so that
/// only small frames are kept.
pub(super) struct Frames<'a> {
    path: &'a Path,
    format: ClipFormat,
    resizer: Option<Resizer>,
    picture: Vec<f32>,
    values: Vec<f32>,
    pixels: u64,
}

impl<'a> Frames<'a> {
    pub(super) fn new(path: &'a Path, format: &ClipFormat) -> Self {
        Self { path, format: *format, resizer: None, picture: Vec::new(), values: Vec::new(), pixels: 0 }
    }

    /// Adds a frame of `height` x `width`; `pixel(i)` is the RGB of its i-th pixel, row by row, in [-1, 1].
    pub(super) fn push(&mut self, height: usize, width: usize, pixel: impl Fn(usize) -> [f32; 3]) -> Result<()> {
        check_size(self.path, height as u64, width as u64)?;
        self.pixels += (height * width) as u64;
        if self.pixels > MAX_CLIP_PIXELS || self.values.len() + self.format.frame_values() > MAX_KEPT_VALUES {
            return Err(Error::file(
                self.path,
                format!(
                    "is too long to be read as one clip (limits: {MAX_CLIP_PIXELS} pixels in all its frames, \
                     {MAX_KEPT_VALUES} values in all its resized frames)"
                ),
                "cut it into shorter clips",
            ));
        }
        self.picture.clear();
        match self.format.channels {
            1 => self.picture.extend((0..height * width).map(|i| luma(&pixel(i)))),
            _ => self.picture.extend((0..height * width).flat_map(pixel)),
        }
        let size = (height, width);
        let resizer = match &mut self.resizer {
            Some(resizer) if resizer.from() == size => resizer,
            other => other.insert(Resizer::new(size, (self.format.height, self.format.width))),
        };
        resizer.append(&self.picture, self.format.channels, &mut self.values);
        Ok(())
    }

    /// Adds a frame of 8-bit RGBA pixels, seen against black.
    pub(super) fn push_rgba(&mut self, image: &image::RgbaImage) -> Result<()> {
        let pixels = image.as_raw();
        self.push(image.height() as usize, image.width() as usize, |i| {
            let alpha = u32::from(pixels[4 * i + 3]);
            std::array::from_fn(|c| from_byte((u32::from(pixels[4 * i + c]) * alpha / 255) as u8))
        })
    }

    /// The clip: as many frames as the format wants, evenly over what came.
    ///
    /// # Errors
    /// If fewer came.
    pub(super) fn finish(mut self) -> Result<Clip> {
        let size = self.format.frame_values();
        let chosen = choose(self.path, self.values.len() / size, &self.format)?;
        for (to, from) in chosen.enumerate() {
            // `from >= to`: nothing that is still needed is overwritten.
            self.values.copy_within(from * size..(from + 1) * size, to * size);
        }
        self.values.truncate(self.format.values());
        // Weights sum to 1 only to rounding.
        self.values.iter_mut().for_each(|v| *v = v.clamp(-1.0, 1.0));
        Ok(Clip { format: self.format, values: self.values })
    }
}

/// The indices of F frames evenly over `count` frames, the first one always among them.
///
/// # Errors
/// If there are fewer than F.
pub(super) fn choose(path: &Path, count: usize, format: &ClipFormat) -> Result<impl Iterator<Item = usize> + use<>> {
    let frames = format.frames;
    if count < frames {
        let remedy = format!("give a clip of at least {frames} frames, or a format with fewer");
        return Err(Error::file(path, format!("has {count} frame{} of the {frames} needed", plural(count)), remedy));
    }
    Ok((0..frames).map(move |i| (i as u128 * count as u128 / frames as u128) as usize))
}

/// The ending of a noun that counts `count` things.
pub(crate) fn plural(count: usize) -> &'static str {
    if count == 1 { "" } else { "s" }
}

/// Refuses frames without pixels and frames too large to be honest.
pub(super) fn check_size(path: &Path, height: u64, width: u64) -> Result<()> {
    if height == 0 || width == 0 {
        return Err(Error::file(
            path,
            format!("declares frames of {width} x {height} pixels"),
            "export the clip again",
        ));
    }
    match height.checked_mul(width) {
        Some(pixels) if pixels <= MAX_FRAME_PIXELS => Ok(()),
        _ => Err(Error::file(
            path,
            format!(
                "declares frames of {width} x {height} pixels, above the limit of {MAX_FRAME_PIXELS} pixels a frame"
            ),
            "shrink the clip",
        )),
    }
}

/// 0..=255 to [-1, 1].
pub(super) fn from_byte(byte: u8) -> f32 {
    f32::from(byte) / 127.5 - 1.0
}

/// [-1, 1] to 0..=255, rounded; values outside are clamped.
pub(super) fn to_byte(value: f32) -> u8 {
    ((value + 1.0) * 127.5).round() as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_are_chosen_evenly_and_bytes_round_trip() {
        let format = ClipFormat::new(4, 1, 1, 1).unwrap();
        let chosen = |count| choose(Path::new("x"), count, &format).unwrap().collect::<Vec<_>>();
        assert_eq!(chosen(4), [0, 1, 2, 3]);
        assert_eq!(chosen(8), [0, 2, 4, 6]);
        assert_eq!(chosen(10), [0, 2, 5, 7]);
        let message = choose(Path::new("x"), 3, &format).map(|_| ()).unwrap_err().to_string();
        assert!(message.contains("has 3 frames of the 4 needed"), "{message}");
        assert!((0..=255).all(|byte| to_byte(from_byte(byte)) == byte));
        assert_eq!((to_byte(-7.0), to_byte(7.0)), (0, 255));
    }

    #[test]
    fn transparent_pixels_are_black() {
        let format = ClipFormat::new(1, 1, 2, 3).unwrap();
        let mut frames = Frames::new(Path::new("x"), &format);
        let image = image::RgbaImage::from_raw(2, 1, vec![255, 255, 255, 0, 255, 0, 255, 255]).unwrap();
        frames.push_rgba(&image).unwrap();
        assert_eq!(frames.finish().unwrap().values, [-1.0, -1.0, -1.0, 1.0, -1.0, 1.0]);
    }
}
