//! Clips side by side in a grid.

use image::{Rgb, RgbImage};

use super::clip::ClipFormat;
use super::frames::to_byte;
use crate::{Error, Result};

/// The largest side of a picture, in pixels: what a GIF can hold.
const MAX_SIDE: usize = 65_535;
/// The most pixels of one picture (256 MiB as RGBA).
const MAX_PIXELS: usize = 1 << 26;

/// Clips of one format in a grid, and how to show them.
///
/// ```
/// use innerloop::video::{ClipFormat, Montage};
///
/// let format = ClipFormat::new(2, 4, 4, 1)?;
/// let (truth, generated) = (vec![0.5; format.values()], vec![-0.5; format.values()]);
/// let montage = Montage { scale: 4, ..Montage::new(format, vec![vec![&truth, &generated]]) };
/// # let folder = tempfile::tempdir().unwrap();
/// # let path = folder.path().join("montage.gif");
/// innerloop::video::write_gif(&path, &montage)?;
/// # Ok::<(), innerloop::Error>(())
/// ```
#[derive(Clone, Debug)]
pub struct Montage<'a> {
    /// The format of every clip.
    pub format: ClipFormat,
    /// Rows of clips, each F*H*W*C values in [-1, 1]; values outside are clamped, NaN is black. Rows may differ in
    /// length.
    pub rows: Vec<Vec<&'a [f32]>>,
    /// Pixels between and around the clips, before scaling; 1 by default.
    pub padding: usize,
    /// The side, in pixels, that each pixel of a clip is shown with, at least 1; 1 by default.
    pub scale: usize,
    /// The gray of padding and empty places, 0 (black) to 255; black by default.
    pub background: u8,
    /// Milliseconds a frame is shown in an animation, at least 10 and kept in steps of 10; 100 by default.
    pub delay_ms: u32,
}

impl<'a> Montage<'a> {
    /// A montage with the default padding, scale, background and delay.
    pub fn new(format: ClipFormat, rows: Vec<Vec<&'a [f32]>>) -> Self {
        Self { format, rows, padding: 1, scale: 1, background: 0, delay_ms: 100 }
    }

    /// Checks the clips against the format, and the numbers against their ranges.
    pub(super) fn validate(&self) -> Result<()> {
        self.format.validate()?;
        let wanted = self.format.values();
        for (row, clips) in self.rows.iter().enumerate() {
            for (column, clip) in clips.iter().enumerate() {
                if clip.len() != wanted {
                    return Err(Error::invalid(
                        format!("montage rows[{row}][{column}]"),
                        format!("has {} values", clip.len()),
                        format!("{wanted}, a clip of {}", self.format),
                    ));
                }
            }
        }
        if self.rows.iter().all(Vec::is_empty) {
            return Err(Error::invalid("montage rows", "hold no clip", "at least one clip"));
        }
        if self.scale == 0 {
            return Err(Error::invalid("montage scale", "is 0", "at least 1"));
        }
        if !(10..=600_000).contains(&self.delay_ms) {
            return Err(Error::invalid("montage delay_ms", format!("is {}", self.delay_ms), "10 to 600000"));
        }
        Ok(())
    }

    /// Frame `frame` of all clips, each at its place in the grid. The montage is valid.
    pub(super) fn picture(&self, frame: usize) -> Result<RgbImage> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let size = self.format.frame_values();
        let cells = self.rows.iter().enumerate().flat_map(|(y, clips)| {
            clips.iter().enumerate().map(move |(x, clip)| (y, x, &clip[frame * size..(frame + 1) * size]))
        });
        self.paint(self.rows.len(), columns, cells)
    }

    /// One row for each clip, in reading order, its frames from left to right. The montage is valid.
    pub(super) fn strip(&self) -> Result<RgbImage> {
        let clips = self.rows.iter().flatten();
        let cells = clips.clone().enumerate().flat_map(|(y, clip)| {
            clip.chunks_exact(self.format.frame_values()).enumerate().map(move |(x, frame)| (y, x, frame))
        });
        self.paint(clips.count(), self.format.frames, cells)
    }

    fn paint<'b>(
        &self,
        rows: usize,
        columns: usize,
        cells: impl Iterator<Item = (usize, usize, &'b [f32])>,
    ) -> Result<RgbImage> {
        let ClipFormat { height, width, channels, .. } = self.format;
        let side = |count: usize, cell: usize| {
            let cells = count.checked_mul(cell.checked_add(self.padding)?)?;
            cells.checked_add(self.padding)?.checked_mul(self.scale).filter(|&side| side <= MAX_SIDE)
        };
        let (Some(tall), Some(wide)) = (side(rows, height), side(columns, width)) else {
            return Err(self.too_large(rows, columns));
        };
        if tall * wide > MAX_PIXELS {
            return Err(self.too_large(rows, columns));
        }
        let mut picture = RgbImage::from_pixel(wide as u32, tall as u32, Rgb([self.background; 3]));
        for (row, column, frame) in cells {
            let top = (self.padding + row * (height + self.padding)) * self.scale;
            let left = (self.padding + column * (width + self.padding)) * self.scale;
            for y in 0..height * self.scale {
                for x in 0..width * self.scale {
                    let at = (y / self.scale * width + x / self.scale) * channels;
                    let colour = std::array::from_fn(|c| to_byte(frame[at + c.min(channels - 1)]));
                    picture.put_pixel((left + x) as u32, (top + y) as u32, Rgb(colour));
                }
            }
        }
        Ok(picture)
    }

    fn too_large(&self, rows: usize, columns: usize) -> Error {
        Error::invalid(
            "montage",
            format!("{rows} x {columns} pictures of {} with scale {} are too large", self.format, self.scale),
            format!(
                "at most {MAX_SIDE} pixels a side and {MAX_PIXELS} pixels in all; lower the scale or show fewer clips"
            ),
        )
    }
}
