//! NumPy arrays: any bytes after the magic number give a clip within range or an error of one line.
#![no_main]

use innerloop::video::{ClipFormat, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let format = ClipFormat { frames: 2, height: 5, width: 4, channels: 3 };
    match decode(&[b"\x93NUMPY".as_slice(), bytes].concat(), &format) {
        Ok(clip) => assert!(clip.values.iter().all(|v| (-1.0..=1.0).contains(v))),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
});
