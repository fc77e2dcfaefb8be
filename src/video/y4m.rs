//! YUV4MPEG2 (`.y4m`): uncompressed video with a one-line text header.

use std::path::Path;

use super::clip::{Clip, ClipFormat};
use super::frames::{Frames, check_size, choose};
use crate::{Error, Result};

/// How the planes of a frame lie.
struct Layout {
    height: usize,
    width: usize,
    /// Height and width of each chroma plane and the pixels that a sample spans down and across; none for gray.
    chroma: Option<Chroma>,
    full_range: bool,
    frame_bytes: usize,
}

struct Chroma {
    height: usize,
    width: usize,
    down: usize,
    across: usize,
}

/// Reads 8-bit 4:2:0, 4:2:2, 4:1:1, 4:4:4 and gray streams (Rec. 601 matrix). Luma is 16..=235 unless the header says
/// `XCOLORRANGE=FULL`; gray streams are 0..=255 unless it says `XCOLORRANGE=LIMITED`, as ffmpeg writes them.
pub(super) fn read(path: &Path, bytes: &[u8], format: &ClipFormat) -> Result<Clip> {
    let (header, mut rest) = line(bytes).ok_or_else(|| short(path, "in its header"))?;
    let layout = Layout::parse(path, header)?;
    let mut pictures = Vec::new();
    while !rest.is_empty() {
        let number = pictures.len();
        let (frame_header, after) = line(rest).ok_or_else(|| short(path, format!("in frame {number}")))?;
        if frame_header != b"FRAME" && !frame_header.starts_with(b"FRAME ") {
            return Err(Error::file(path, format!("lacks the word FRAME before frame {number}"), "export it again"));
        }
        if after.len() < layout.frame_bytes {
            return Err(short(path, format!("in frame {number}")));
        }
        let (picture, after) = after.split_at(layout.frame_bytes);
        pictures.push(picture);
        rest = after;
    }
    let mut frames = Frames::new(path, format);
    for index in choose(path, pictures.len(), format)? {
        let picture = pictures[index];
        frames.push(layout.height, layout.width, |i| layout.rgb(picture, i))?;
    }
    frames.finish()
}

/// The first line, without its end, and what follows it. Headers are short: no line end within 4096 bytes is none.
fn line(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().take(4096).position(|&byte| byte == b'\n')?;
    Some((&bytes[..end], &bytes[end + 1..]))
}

fn short(path: &Path, place: impl AsRef<str>) -> Error {
    Error::file(path, format!("is cut short {}", place.as_ref()), "copy or export it again")
}

impl Layout {
    fn parse(path: &Path, header: &[u8]) -> Result<Self> {
        let broken = |problem: String| Error::file(path, problem, "export it again");
        let text = std::str::from_utf8(header).map_err(|_| broken("has a header that is not text".into()))?;
        let (mut width, mut height, mut colour, mut range) = (None, None, "420", None);
        for field in text.split_ascii_whitespace().skip(1) {
            // The first character is ASCII or the field is none we know.
            let (tag, value) = if field.is_char_boundary(1) { field.split_at(1) } else { ("", field) };
            let extent = || value.parse::<usize>().map_err(|_| broken(format!("has the header field {field:?}")));
            match tag {
                "W" => width = Some(extent()?),
                "H" => height = Some(extent()?),
                "C" => colour = value,
                "X" if value.starts_with("COLORRANGE=") => range = value.split('=').nth(1),
                _ => {}
            }
        }
        let (Some(width), Some(height)) = (width, height) else {
            return Err(broken("has a header without W and H".into()));
        };
        check_size(path, height as u64, width as u64)?;
        let (down, across, planes) = match colour {
            "mono" => (1, 1, 0),
            "444" => (1, 1, 2),
            "422" => (1, 2, 2),
            "411" => (1, 4, 2),
            "420" | "420jpeg" | "420mpeg2" | "420paldv" => (2, 2, 2),
            _ => {
                return Err(Error::file(
                    path,
                    format!("has the colour layout C{colour}"),
                    "convert it to 8 bits: ffmpeg -i IN -pix_fmt yuv420p OUT.y4m",
                ));
            }
        };
        let chroma = Chroma { height: height.div_ceil(down), width: width.div_ceil(across), down, across };
        let frame_bytes = height * width + planes * chroma.height * chroma.width;
        let chroma = (planes > 0).then_some(chroma);
        let full_range = match range {
            Some(range) => range.eq_ignore_ascii_case("full"),
            None => chroma.is_none(),
        };
        Ok(Self { height, width, chroma, full_range, frame_bytes })
    }

    /// The colour of pixel `i` in [-1, 1] (Rec. 601).
    fn rgb(&self, picture: &[u8], i: usize) -> [f32; 3] {
        let (black, luma_span, chroma_span) = if self.full_range { (0.0, 255.0, 255.0) } else { (16.0, 219.0, 224.0) };
        let luma = (f32::from(picture[i]) - black) / luma_span;
        let Some(plane) = &self.chroma else { return [unit(luma); 3] };
        let (y, x) = (i / self.width, i % self.width);
        let at = self.height * self.width + y / plane.down * plane.width + x / plane.across;
        let sample = |at: usize| (f32::from(picture[at]) - 128.0) / chroma_span;
        let (blue, red) = (sample(at), sample(at + plane.height * plane.width));
        [luma + 1.402 * red, luma - 0.344_136 * blue - 0.714_136 * red, luma + 1.772 * blue].map(unit)
    }
}

/// [0, 1] to [-1, 1], clamped: limited-range video may step over its bounds.
fn unit(value: f32) -> f32 {
    value.clamp(0.0, 1.0) * 2.0 - 1.0
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read_one(header: &str, planes: &[u8], channels: usize) -> Vec<f32> {
        let bytes = [header.as_bytes(), b"\nFRAME\n", planes].concat();
        read(Path::new("x"), &bytes, &ClipFormat::new(1, 1, 1, channels).unwrap()).unwrap().values
    }

    #[test]
    fn known_colours() {
        let close =
            |a: Vec<f32>, b: [f32; 3]| assert!(a.iter().zip(b).all(|(x, y)| (x - y).abs() < 0.02), "{a:?} {b:?}");
        // Rec. 601 red, white and black in limited range, and red in full range.
        close(read_one("YUV4MPEG2 W1 H1 C444", &[81, 90, 240], 3), [1.0, -1.0, -1.0]);
        close(read_one("YUV4MPEG2 W1 H1", &[235, 128, 128], 3), [1.0; 3]);
        close(read_one("YUV4MPEG2 W1 H1 F25:1 Ip A1:1 C422", &[16, 128, 128], 3), [-1.0; 3]);
        close(read_one("YUV4MPEG2 W1 H1 C444 XCOLORRANGE=FULL", &[76, 85, 255], 3), [1.0, -1.0, -1.0]);
        assert_eq!(read_one("YUV4MPEG2 W1 H1 Cmono", &[255], 1), [1.0]);
        assert_eq!(read_one("YUV4MPEG2 W1 H1 Cmono XCOLORRANGE=LIMITED", &[235], 1), [1.0]);
    }

    #[test]
    fn odd_sizes_round_chroma_up() {
        // 3 x 3 pixels: chroma 2 x 2, so 9 + 4 + 4 bytes a frame.
        let bytes = [b"YUV4MPEG2 W3 H3 C420jpeg\nFRAME\n".as_slice(), &[128; 17]].concat();
        let format = ClipFormat::new(1, 3, 3, 3).unwrap();
        assert!(read(Path::new("x"), &bytes, &format).is_ok());
        assert!(read(Path::new("x"), &bytes[..bytes.len() - 1], &format).is_err());
    }
}
