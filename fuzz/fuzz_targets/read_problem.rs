//! Problem files: any bytes give a problem whose tensors are whole and finite, or an error of one line.
#![no_main]

use std::path::Path;

use innerloop::problem::Problem;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    // As it is, and with a header length that is right.
    let framed = [&(bytes.len() as u64).to_le_bytes()[..], bytes].concat();
    for bytes in [bytes, &framed[..]] {
        match Problem::decode(Path::new("problem"), bytes) {
            Ok(problem) => {
                for tensor in problem.tensors().values() {
                    assert_eq!(tensor.values.len(), tensor.shape.iter().product::<usize>());
                    assert!(tensor.values.iter().all(|v| v.is_finite()));
                }
            }
            Err(error) => assert!(!error.to_string().contains('\n')),
        }
    }
});
