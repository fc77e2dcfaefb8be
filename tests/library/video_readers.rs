//! Every kind of clip file: read back as written, and refused in one line when it is bad.

use std::fs;

use crate::fixtures::*;
use innerloop::video::{ClipFormat, decode, read_clip};
use proptest::prelude::*;

/// Half a level of 255, and rounding.
const LEVEL: f32 = 0.5 / 127.5 + 1e-5;

/// One file of each kind.
fn files(format: &ClipFormat) -> Vec<(&'static str, Vec<u8>)> {
    let mut files = vec![("gif", gif(format)), ("apng", apng(format)), ("npy", npy_u1(format))];
    if format.channels == 1 {
        files.push(("y4m", y4m_mono(format)));
    }
    files
}

#[test]
fn every_kind_of_file_round_trips() {
    for channels in [1, 3] {
        let format = format(channels);
        for (kind, bytes) in files(&format) {
            let clip = decode(&bytes, &format).unwrap_or_else(|e| panic!("{kind}: {e}"));
            assert_eq!(clip.format, format);
            assert_near(&clip.values, &values(&format), LEVEL);
        }
    }
}

#[test]
fn a_file_is_known_by_its_content_not_its_name() {
    let folder = tempfile::tempdir().unwrap();
    let format = format(1);
    for (i, (_, bytes)) in files(&format).into_iter().enumerate() {
        let path = folder.path().join(format!("clip{i}.mp4"));
        fs::write(&path, bytes).unwrap();
        assert_near(&read_clip(&path, &format).unwrap().values, &values(&format), LEVEL);
    }
}

#[test]
fn gray_becomes_rgb_by_repetition_and_rgb_gray_by_luma() {
    let (gray, colour) = (format(1), format(3));
    for (_, bytes) in files(&gray) {
        let clip = decode(&bytes, &colour).unwrap();
        let expected: Vec<f32> = values(&gray).into_iter().flat_map(|v| [v; 3]).collect();
        assert_near(&clip.values, &expected, LEVEL);
    }
    let expected: Vec<f32> =
        values(&colour).chunks(3).map(|rgb| 0.299 * rgb[0] + 0.587 * rgb[1] + 0.114 * rgb[2]).collect();
    for (_, bytes) in files(&colour) {
        assert_near(&decode(&bytes, &gray).unwrap().values, &expected, LEVEL);
    }
}

#[test]
fn longer_clips_are_sampled_and_shorter_ones_refused() {
    let whole = format(1);
    for (kind, bytes) in files(&whole) {
        let half = ClipFormat { frames: 2, ..whole };
        let all = values(&whole);
        let frames: Vec<&[f32]> = all.chunks(whole.frame_values()).collect();
        assert_near(&decode(&bytes, &half).unwrap().values, &[frames[0], frames[2]].concat(), LEVEL);
        let more = ClipFormat { frames: 5, ..whole };
        assert_error(decode(&bytes, &more), &["has 4 frames of the 5 needed", "at least 5"]);
        let small = ClipFormat { height: 1, width: 1, frames: 1, channels: 1 };
        let mean = frames[0].iter().sum::<f32>() / frames[0].len() as f32;
        assert!((decode(&bytes, &small).unwrap().values[0] - mean).abs() < 0.35, "{kind}");
    }
}

#[test]
fn npy_of_every_type_version_and_range() {
    let format = ClipFormat::new(2, 1, 2, 1).unwrap();
    let read = |bytes: Vec<u8>| decode(&bytes, &format).map(|clip| clip.values);
    assert_eq!(read(npy_f4("(2, 1, 2)", &[-1.0, 0.5, 0.0, 1.0])).unwrap(), [-1.0, 0.5, 0.0, 1.0]);
    assert_eq!(read(npy_f4("(2, 1, 2, 1)", &[0.0, 0.5, 0.25, 1.0])).unwrap(), [-1.0, 0.0, -0.5, 1.0]);
    let doubles: Vec<u8> = [-0.5_f64, 0.5, 0.0, 1.0].iter().flat_map(|v| v.to_le_bytes()).collect();
    for version in [1, 2, 3] {
        let header = "{'descr': '<f8', 'fortran_order': False, 'shape': (2, 1, 2), }";
        assert_eq!(read(npy(version, header, &doubles)).unwrap(), [-0.5, 0.5, 0.0, 1.0]);
    }
    let with = |descr: &str, order: &str, shape: &str, data: &[u8]| {
        read(npy(1, &format!("{{'descr': '{descr}', 'fortran_order': {order}, 'shape': {shape}, }}"), data))
    };
    assert_eq!(with("|u1", "False", "(2, 1, 2)", &[0, 255, 255, 0]).unwrap(), [-1.0, 1.0, 1.0, -1.0]);
    assert_error(with("<i4", "False", "(2, 1, 2)", &[0; 16]), &["type \"<i4\"", "numpy.float32"]);
    assert_error(with(">f4", "False", "(2, 1, 2)", &[0; 16]), &["type \">f4\"", "little-endian"]);
    assert_error(with("|u1", "True", "(2, 1, 2)", &[0; 4]), &["Fortran order", "ascontiguousarray"]);
    assert_error(with("|u1", "False", "(4,)", &[0; 4]), &["shape (4)", "(F, H, W)"]);
    assert_error(with("|u1", "False", "(2, 1, 1, 2)", &[0; 4]), &["shape (2, 1, 1, 2)"]);
    assert_error(with("|u1", "False", "(2, 1, 2)", &[0; 3]), &["cut short", "3 bytes"]);
    assert_error(with("|u1", "False", "(2, 1, 2)", &[0; 5]), &["too long", "5 bytes"]);
    assert_error(with("|u1", "False", "(0, 1, 2)", &[]), &["has 0 frames of the 2 needed"]);
    assert_error(with("|u1", "False", "(2, 0, 2)", &[]), &["2 x 0 pixels"]);
    assert_error(read(npy(1, "not a dict", &[])), &["cannot be understood", "numpy.save"]);
    assert_error(read(npy(1, "{'descr': '<f4'}", &[])), &["without descr, fortran_order and shape"]);
    assert_error(read(npy(9, "", &[])), &["version 9"]);
}

#[test]
fn bad_numbers_are_named_with_their_place() {
    let format = ClipFormat::new(1, 1, 2, 1).unwrap();
    let read = |values: [f32; 4]| decode(&npy_f4("(2, 1, 2)", &values), &format);
    assert_error(read([0.0, 0.0, 0.0, f32::NAN]), &["NaN at index [1, 0, 1]"]);
    assert_error(read([0.0, f32::INFINITY, 0.0, 0.0]), &["inf at index [0, 0, 1]"]);
    assert_error(read([0.0, 255.0, 0.0, 0.0]), &["from 0 to 255", "numpy.uint8"]);
    assert_error(read([-1.5, 0.0, 0.0, 0.0]), &["from -1.5 to 0"]);
}

#[test]
fn folders_of_pictures_are_clips_in_natural_order() {
    let folder = tempfile::tempdir().unwrap();
    let format = format(3);
    for (frame, name) in bytes(&format).chunks(format.frame_values()).zip(["f2.png", "f9.png", "f10.PNG", "f100.png"]) {
        fs::write(folder.path().join(name), png(8, 6, 3, frame)).unwrap();
    }
    fs::write(folder.path().join("notes.txt"), "not a frame").unwrap();
    fs::write(folder.path().join(".hidden.png"), "not a frame").unwrap();
    assert_near(&read_clip(folder.path(), &format).unwrap().values, &values(&format), LEVEL);
    fs::write(folder.path().join("f9.png"), "broken").unwrap();
    assert_error(read_clip(folder.path(), &format), &["f9.png", "broken PNG", "export it again"]);
    fs::remove_file(folder.path().join("f9.png")).unwrap();
    assert_error(read_clip(folder.path(), &format), &["has 3 frames of the 4 needed"]);
    let empty = tempfile::tempdir().unwrap();
    assert_error(read_clip(empty.path(), &format), &["without PNG or JPEG", empty.path().to_str().unwrap()]);
}

#[test]
fn jpeg_frames_are_read() {
    let folder = tempfile::tempdir().unwrap();
    let format = ClipFormat::new(1, 8, 8, 1).unwrap();
    let mut jpeg = Vec::new();
    let encoder = image::codecs::jpeg::JpegEncoder::new_with_quality(&mut jpeg, 95);
    image::ImageEncoder::write_image(encoder, &[51; 64], 8, 8, image::ExtendedColorType::L8).unwrap();
    fs::write(folder.path().join("0.jpg"), &jpeg).unwrap();
    assert_near(&read_clip(folder.path(), &format).unwrap().values, &[-0.6; 64], 0.03);
    assert_near(&decode(&jpeg, &format).unwrap().values, &[-0.6; 64], 0.03);
    assert_error(decode(&jpeg, &ClipFormat { frames: 2, ..format }), &["single picture", "folder of their own"]);
    assert_error(decode(&png(1, 1, 1, &[0]), &ClipFormat { frames: 2, ..format }), &["single picture"]);
}

#[test]
fn missing_empty_and_foreign_files_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.gif");
    assert_error(read_clip(&path, &format(1)), &["clip.gif", "check the path"]);
    fs::write(&path, "").unwrap();
    assert_error(read_clip(&path, &format(1)), &["clip.gif", "is empty"]);
    let video = folder.path().join("clip.webm");
    fs::write(&video, "").unwrap();
    assert_error(read_clip(&video, &format(1)), &["clip.webm", "is empty"]);
    fs::write(&path, "<html>404</html>").unwrap();
    assert_error(read_clip(&path, &format(1)), &["clip.gif", "is not a clip", "give a GIF"]);
    assert_error(decode(b"\0\0\0\x18ftypmp42", &format(1)), &["ffmpeg"]);
    let unchecked = ClipFormat { frames: 0, height: 1, width: 1, channels: 1 };
    assert_error(decode(b"", &unchecked), &["frames"]);
}

#[test]
fn a_file_cut_anywhere_is_an_error_and_damage_no_panic() {
    for channels in [1, 3] {
        let format = format(channels);
        for (kind, bytes) in files(&format) {
            for end in 0..bytes.len() {
                let result = decode(&bytes[..end], &format);
                // A GIF or PNG that lacks no more than its end mark still holds all frames.
                assert!(result.is_err() || end + 13 > bytes.len() && kind != "npy" && kind != "y4m", "{kind} at {end}");
                if let Err(error) = result {
                    assert!(!error.to_string().contains('\n'), "{error}");
                }
            }
            for at in 0..bytes.len() {
                for flip in [1, 0x80, 0xff] {
                    let mut damaged = bytes.clone();
                    damaged[at] ^= flip;
                    if let Ok(clip) = decode(&damaged, &format) {
                        assert!(clip.values.iter().all(|v| (-1.0..=1.0).contains(v)), "{kind}");
                    }
                }
            }
        }
    }
}

#[test]
fn absurd_sizes_are_refused_with_the_limit() {
    let format = format(1);
    let limit = ["limit of 33554432 pixels"];
    let mut gif = gif(&format);
    gif[6..10].fill(0xff);
    assert_error(decode(&gif, &format), &limit);
    let mut png = b"\x89PNG\r\n\x1a\n".to_vec();
    let size = 1_000_000_u32.to_be_bytes();
    chunk(&mut png, b"IHDR", &[&size[..], &size, &[8, 0, 0, 0, 0]].concat());
    chunk(&mut png, b"IDAT", &[0; 10]);
    chunk(&mut png, b"IEND", &[]);
    assert_error(decode(&png, &format), &limit);
    assert_error(decode(b"YUV4MPEG2 W4000000000 H4000000000\nFRAME\n", &format), &limit);
    assert_error(decode(b"YUV4MPEG2 W18446744073709551615 H18446744073709551615\n", &format), &limit);
    assert_error(decode(&npy_f4("(4, 1000000, 1000000)", &[]), &format), &limit);
    assert_error(decode(&npy_f4("(18446744073709551615, 6, 8)", &[0.0]), &format), &["cut short"]);
    assert_error(decode(&npy_f4("(99999999999999999999999, 6, 8)", &[]), &format), &["cannot be understood"]);
}

#[test]
fn y4m_headers_are_checked() {
    let format = ClipFormat::new(1, 1, 1, 1).unwrap();
    let read = |text: &[u8]| decode(text, &format);
    assert_error(read(b"YUV4MPEG2 W1 H1 C420p10\nFRAME\n"), &["C420p10", "yuv420p"]);
    assert_error(read(b"YUV4MPEG2 W1 Cmono\nFRAME\n"), &["without W and H"]);
    assert_error(read(b"YUV4MPEG2 W1 Hx Cmono\n"), &["\"Hx\""]);
    assert_error(read(b"YUV4MPEG2 W0 H1 Cmono\n"), &["0 x 1 pixels"]);
    assert_error(read(b"YUV4MPEG2 W1 H1 Cmono\nFRAMES\n\0"), &["FRAME before frame 0"]);
    assert_error(read(b"YUV4MPEG2 W1 H1 Cmono\nFRAME\n\0FRAME\n"), &["cut short in frame 1"]);
    assert_error(read(b"YUV4MPEG2 W1 H1 Cmono"), &["cut short in its header"]);
    assert_error(read(b"YUV4MPEG2 W1 H1 Cmono\n"), &["has 0 frames of the 1 needed"]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(512))]

    #[test]
    fn no_bytes_make_a_reader_panic(
        start in prop::sample::select(vec![
            &b""[..], b"GIF89a", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"YUV4MPEG2 ", b"YUV4MPEG2 W2 H2\nFRAME\n", b"\x93NUMPY\x01\0",
            b"\x93NUMPY\x01\0\x40\0{'descr': '<f4', 'shape': (",
        ]),
        rest in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let bytes = [start, &rest].concat();
        if let Err(error) = decode(&bytes, &format(3)) {
            prop_assert!(!error.to_string().contains('\n'));
        }
    }

    #[test]
    fn no_text_makes_a_header_panic(header in "\\PC{0,80}", data in prop::collection::vec(any::<u8>(), 0..64)) {
        let _ = decode(&npy(1, &header, &data), &format(1));
        let _ = decode(format!("YUV4MPEG2 {header}\nFRAME\n").as_bytes(), &format(1));
    }

    #[test]
    fn float_arrays_come_back_as_they_were(values in prop::collection::vec(-1.0_f32..=1.0, 24)) {
        prop_assume!(values.iter().any(|&v| v < 0.0));
        let format = ClipFormat::new(2, 2, 2, 3).unwrap();
        prop_assert_eq!(decode(&npy_f4("(2, 2, 2, 3)", &values), &format).unwrap().values, values);
    }

    #[test]
    fn any_size_comes_to_any_format_within_range(
        (height, width) in (1_usize..20, 1_usize..20), to in (1_usize..20, 1_usize..20), channels in prop::sample::select(vec![1, 3]),
    ) {
        let source = ClipFormat::new(2, height, width, 3).unwrap();
        let format = ClipFormat::new(2, to.0, to.1, channels).unwrap();
        let clip = decode(&npy_u1(&source), &format).unwrap();
        prop_assert_eq!(clip.values.len(), format.values());
        prop_assert!(clip.values.iter().all(|v| (-1.0..=1.0).contains(v)));
    }
}
