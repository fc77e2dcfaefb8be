//! Written clips: what stands in them, and that a failure leaves nothing behind.

use std::fs;

use crate::fixtures::*;
use innerloop::video::{ClipFormat, Montage, decode, write_gif, write_npy, write_png_strip};

#[test]
fn a_montage_lays_clips_in_a_grid() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("strip.png");
    let format = ClipFormat::new(2, 1, 1, 1).unwrap();
    let (a, b) = ([-1.0, 1.0], [0.0, f32::NAN]);
    let montage = Montage { padding: 1, scale: 2, background: 7, ..Montage::new(format, vec![vec![&a], vec![&b]]) };
    write_png_strip(&path, &montage).unwrap();
    let strip = image::open(&path).unwrap().into_luma8();
    // Two clips down, two frames across, each 1 pixel, with 1 pixel around: 5 x 5, twice as large.
    assert_eq!(strip.dimensions(), (10, 10));
    let at = |row: u32, column: u32| strip.get_pixel(column * 2, row * 2).0[0];
    assert_eq!([at(0, 0), at(1, 1), at(1, 3), at(3, 1), at(3, 3), at(2, 2)], [7, 0, 255, 128, 0, 7]);
    assert_eq!(strip.get_pixel(7, 3).0[0], 255);

    let path = folder.path().join("montage.gif");
    write_gif(&path, &Montage { delay_ms: 250, ..montage }).unwrap();
    let bytes = fs::read(&path).unwrap();
    assert!(bytes.windows(11).any(|run| run == b"NETSCAPE2.0"), "plays endlessly");
    // One column of two clips: 3 x 5 pixels, twice as large.
    let frames = decode(&bytes, &ClipFormat::new(2, 10, 6, 1).unwrap()).unwrap().values;
    assert_eq!([frames[2 * 6 + 2], frames[60 + 2 * 6 + 2]], [-1.0, 1.0]);
}

#[test]
fn a_colour_gif_of_many_colours_stays_near() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clip.gif");
    let format = ClipFormat::new(2, 32, 32, 3).unwrap();
    let values: Vec<f32> = (0..format.values())
        .map(|i| [(i / 3 % 32) as f32 / 16.0, (i / 96 % 32) as f32 / 16.0, 1.0][i % 3] - 1.0)
        .collect();
    write_gif(&path, &Montage { padding: 0, ..Montage::new(format, vec![vec![&values]]) }).unwrap();
    let read = innerloop::video::read_clip(&path, &format).unwrap().values;
    let psnr = innerloop::video::psnr(&read, &values).unwrap();
    assert!(psnr > 28.0, "{psnr} dB");
}

#[test]
fn npy_files_hold_all_clips() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("clips.npy");
    let format = format(3);
    let values = values(&format);
    write_npy(&path, &format, &[&values, &values]).unwrap();
    let bytes = fs::read(&path).unwrap();
    let start = bytes.len() - 8 * format.values();
    assert_eq!(start % 64, 0);
    let header = String::from_utf8_lossy(&bytes[10..start]).into_owned();
    assert!(header.contains("'shape': (2, 4, 6, 8, 3)") && header.ends_with(" \n"), "{header}");
    let read: Vec<f32> = bytes[start..].chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(read, [values.clone(), values].concat());
    assert_error(decode(&bytes, &format), &["shape (2, 4, 6, 8, 3)", "one clip"]);
}

#[test]
fn failures_overwrite_nothing_and_leave_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("out");
    fs::write(&path, "old").unwrap();
    let format = format(1);
    let clip = values(&format);
    let montage = Montage::new(format, vec![vec![&clip]]);
    for bad in [
        Montage { rows: vec![vec![&clip, &clip[1..]]], ..montage.clone() },
        Montage { rows: vec![], ..montage.clone() },
        Montage { scale: 0, ..montage.clone() },
        Montage { scale: usize::MAX, ..montage.clone() },
        Montage { scale: 9000, ..montage.clone() },
        Montage { padding: usize::MAX, ..montage.clone() },
    ] {
        assert_error(write_gif(&path, &bad), &["montage", "expected"]);
        assert_error(write_png_strip(&path, &bad), &["montage", "expected"]);
    }
    assert_error(write_gif(&path, &Montage { delay_ms: 0, ..montage.clone() }), &["delay_ms"]);
    assert_error(write_npy(&path, &format, &[&clip, &clip[1..]]), &["clips[1]", "191 values"]);
    assert_eq!(fs::read(&path).unwrap(), b"old");
    for place in [folder.path().join("missing/out"), folder.path().to_path_buf(), path.join("below-a-file")] {
        let name = place.to_str().unwrap().to_owned();
        assert_error(write_gif(&place, &montage), &[&name, "cannot write"]);
        assert_error(write_png_strip(&place, &montage), &[&name, "cannot write"]);
        assert_error(write_npy(&place, &format, &[&clip]), &[&name, "cannot write"]);
    }
    assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    write_gif(&path, &montage).unwrap();
    assert!(fs::read(&path).unwrap().starts_with(b"GIF89a"));
}
