//! NumPy `.npy` arrays as clips.

use std::path::Path;

use super::clip::{Clip, ClipFormat};
use super::frames::{Frames, check_size, choose, from_byte};
use super::npy_header::{self, Element, Header};
use super::read::{Kind, read_bounded};
use crate::{Error, Result};

/// How far rounding may carry a float beyond its range.
const SLACK: f64 = 1e-5;

/// Reads an array of shape (F, H, W) or (F, H, W, C), C 1 or 3: u1 as 0..=255; floats as [-1, 1] if any is negative,
/// else as [0, 1].
pub(super) fn read(path: &Path, bytes: &[u8], format: &ClipFormat) -> Result<Clip> {
    let (header, data) = npy_header::parse(path, bytes)?;
    let [count, height, width, channels] = extents(path, &header)?;
    check_size(path, height as u64, width as u64)?;
    check_length(path, &header, data)?;
    let value: Box<dyn Fn(usize) -> f32> = match header.element {
        Element::U1 => Box::new(|i| from_byte(data[i])),
        Element::F4 => floats(path, &header, single(data))?,
        Element::F8 => floats(path, &header, double(data))?,
    };
    let mut frames = Frames::new(path, format);
    for index in choose(path, count, format)? {
        let start = index * height * width;
        frames.push(height, width, |i| {
            let at = (start + i) * channels;
            if channels == 1 { [value(at); 3] } else { [value(at), value(at + 1), value(at + 2)] }
        })?;
    }
    frames.finish()
}

/// Reads an array of any shape as numbers, in C order: the values of a vector.
///
/// # Errors
/// A file that cannot be read, is no `.npy` file, is empty, or holds numbers that are not finite.
pub(crate) fn read_vector(path: &Path) -> Result<Vec<f32>> {
    let bytes = read_bounded(path)?;
    if Kind::of(&bytes) != Kind::Npy {
        return Err(Error::file(path, "is no .npy file", "save the vector with numpy.save"));
    }
    let (header, data) = npy_header::parse(path, &bytes)?;
    check_length(path, &header, data)?;
    let count = data.len() / header.element.bytes();
    if count == 0 {
        return Err(Error::file(path, "holds no numbers", "save at least one"));
    }
    let value = |i| match header.element {
        Element::U1 => f32::from(data[i]),
        Element::F4 => single(data)(i) as f32,
        Element::F8 => double(data)(i) as f32,
    };
    let values: Vec<f32> = (0..count).map(value).collect();
    match values.iter().position(|value| !value.is_finite()) {
        Some(i) => Err(not_finite(path, &header, i, f64::from(values[i]))),
        None => Ok(values),
    }
}

fn not_finite(path: &Path, header: &Header, i: usize, value: f64) -> Error {
    Error::file(path, format!("holds {value} at index {}", index(header, i)), "replace it by a number")
}

/// Checks that there is as much data as the header declares.
fn check_length(path: &Path, header: &Header, data: &[u8]) -> Result<()> {
    let declared = header.shape.iter().try_fold(header.element.bytes(), |product, &extent| product.checked_mul(extent));
    if declared == Some(data.len()) {
        return Ok(());
    }
    let relation = if declared.is_none_or(|declared| declared > data.len()) { "is cut short" } else { "is too long" };
    let problem = format!("{relation}: its header declares shape {}, its data has {} bytes", shape(header), data.len());
    Err(Error::file(path, problem, "copy or save it again"))
}

fn extents(path: &Path, header: &Header) -> Result<[usize; 4]> {
    match *header.shape {
        [frames, height, width] => Ok([frames, height, width, 1]),
        [frames, height, width, channels @ (1 | 3)] => Ok([frames, height, width, channels]),
        _ => {
            let problem = format!("has shape {}", shape(header));
            Err(Error::file(path, problem, "save one clip as (F, H, W) or (F, H, W, C), C 1 or 3"))
        }
    }
}

fn shape(header: &Header) -> String {
    format!("({})", header.shape.iter().map(usize::to_string).collect::<Vec<_>>().join(", "))
}

fn single(data: &[u8]) -> impl Fn(usize) -> f64 + use<'_> {
    |i| f64::from(f32::from_le_bytes(std::array::from_fn(|k| data[4 * i + k])))
}

fn double(data: &[u8]) -> impl Fn(usize) -> f64 + use<'_> {
    |i| f64::from_le_bytes(std::array::from_fn(|k| data[8 * i + k]))
}

/// Checks all floats and returns how to read one as a value in [-1, 1].
fn floats<'a>(path: &Path, header: &Header, at: impl Fn(usize) -> f64 + 'a) -> Result<Box<dyn Fn(usize) -> f32 + 'a>> {
    let (mut low, mut high) = (f64::INFINITY, f64::NEG_INFINITY);
    for i in 0..header.shape.iter().product() {
        let value = at(i);
        if !value.is_finite() {
            return Err(not_finite(path, header, i, value));
        }
        (low, high) = (low.min(value), high.max(value));
    }
    let signed = low < 0.0;
    if high > 1.0 + SLACK || low < -1.0 - SLACK {
        let problem = format!("holds values from {low} to {high}");
        return Err(Error::file(path, problem, "scale floats to [-1, 1] or [0, 1], or save 0..255 as numpy.uint8"));
    }
    Ok(Box::new(move |i| if signed { at(i) as f32 } else { (at(i) * 2.0 - 1.0) as f32 }.clamp(-1.0, 1.0)))
}

/// Position `i` as an index into the array.
fn index(header: &Header, mut i: usize) -> String {
    let mut digits: Vec<String> = Vec::new();
    for &extent in header.shape.iter().rev() {
        digits.push((i % extent).to_string());
        i /= extent;
    }
    digits.reverse();
    format!("[{}]", digits.join(", "))
}
