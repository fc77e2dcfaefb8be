//! Checkpoints: any bytes give a checkpoint that can be written again, or an error of one line.
#![no_main]

use std::path::Path;

use innerloop::checkpoint::Checkpoint;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    match Checkpoint::decode(Path::new("checkpoint"), bytes) {
        Ok(checkpoint) => assert_eq!(checkpoint.parameters.len(), checkpoint.config.job.networks().len()),
        Err(error) => assert!(!error.to_string().contains('\n')),
    }
});
