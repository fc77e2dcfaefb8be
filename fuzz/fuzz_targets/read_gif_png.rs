//! GIF, PNG and JPEG pictures and animations: any bytes give a clip within range or an error of one line.
#![no_main]

use innerloop::video::{ClipFormat, decode};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let format = ClipFormat { frames: 1, height: 5, width: 4, channels: 1 };
    // The first byte chooses the kind; bytes that begin with a magic number of their own are taken as they are too.
    let Some((&kind, rest)) = bytes.split_first() else { return };
    let magic: &[u8] = [&b"GIF89a"[..], b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff"][usize::from(kind % 3)];
    for bytes in [bytes, &[magic, rest].concat()] {
        match decode(bytes, &format) {
            Ok(clip) => assert!(clip.values.iter().all(|v| (-1.0..=1.0).contains(v))),
            Err(error) => assert!(!error.to_string().contains('\n')),
        }
    }
});
