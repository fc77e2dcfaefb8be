//! `innerloop grad` as a user meets it: problem files in, answers or one clear line out.

use crate::reference;

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use innerloop::device::cpu::CpuDevice;
use innerloop::problem::{Problem, Tensor};
use proptest::prelude::*;
use safetensors::tensor::{Dtype, TensorView};

fn golden(name: &str) -> PathBuf {
    [env!("CARGO_MANIFEST_DIR"), "tests", "golden", &format!("{name}.safetensors")].iter().collect()
}

fn grad(problem: &Path, out: &Path, options: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_innerloop"));
    command.args(["grad", "--threads", "1", "--out"]).arg(out).args(options).arg(problem).output().unwrap()
}

/// A problem file taken apart.
#[derive(Clone)]
struct File {
    tensors: Vec<(String, Dtype, Vec<usize>, Vec<u8>)>,
    metadata: HashMap<String, String>,
}

impl File {
    fn read(path: &Path) -> Self {
        let bytes = std::fs::read(path).unwrap();
        let (_, header) = safetensors::SafeTensors::read_metadata(&bytes).unwrap();
        let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
        let tensors = file
            .iter()
            .map(|(name, view)| (name.to_owned(), view.dtype(), view.shape().to_vec(), view.data().to_vec()))
            .collect();
        Self { tensors, metadata: header.metadata().clone().unwrap() }
    }

    fn bytes(&self) -> Vec<u8> {
        let views = self
            .tensors
            .iter()
            .map(|(name, dtype, shape, data)| (name, TensorView::new(*dtype, shape.clone(), data).unwrap()));
        safetensors::serialize(views, Some(self.metadata.clone())).unwrap()
    }

    fn tensor(&mut self, name: &str) -> &mut (String, Dtype, Vec<usize>, Vec<u8>) {
        self.tensors.iter_mut().find(|t| t.0 == name).unwrap()
    }

    /// Replaces a tensor's shape, and its content by as many halves.
    fn reshape(&mut self, name: &str, shape: &[usize]) {
        let tensor = self.tensor(name);
        tensor.2 = shape.to_vec();
        tensor.3 = (0..shape.iter().product()).flat_map(|_| 0.5f64.to_le_bytes()).collect();
    }

    fn set(&mut self, field: &str, value: &str) {
        self.metadata.insert(field.to_owned(), value.to_owned());
    }
}

/// The answer's tensors that the problem expects, with the relative error of each.
fn errors(problem: &Path, answer: &Path) -> Vec<(String, f64)> {
    let (problem, answer) = (Problem::read(problem).unwrap(), Problem::read(answer).unwrap());
    let mut all = Vec::new();
    for (name, Tensor { shape, values }) in problem.tensors() {
        let Some(name) = name.strip_prefix("expected.") else { continue };
        let got = answer.tensors().get(name).unwrap_or_else(|| panic!("no {name} in the answer"));
        assert_eq!(got.shape, *shape, "{name}");
        let difference: f64 = got.values.iter().zip(values).map(|(g, v)| (g - v).powi(2)).sum();
        let norm: f64 = values.iter().map(|v| v * v).sum();
        // What should be zero is given with the rounding of the reference.
        all.push((name.to_owned(), (difference / norm.max(1e-12)).sqrt()));
    }
    all
}

#[test]
fn every_golden_problem_is_answered() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("answer.safetensors");
    for path in reference::problems() {
        for strategy in ["auto", "dual", "materialised"] {
            for (precision, tolerance) in [("f64", 1e-9), ("f32", 1e-4)] {
                let output = grad(&path, &out, &["--strategy", strategy, "--precision", precision]);
                let name = path.file_stem().unwrap().to_string_lossy();
                let place = format!("{name} {strategy} {precision}: {output:?}");
                if strategy == "dual" && !reference::has_dual_form(&path) {
                    refused(&output, &["strategy", "materialised"]);
                    continue;
                }
                assert!(output.status.success() && output.stderr.is_empty(), "{place}");
                let errors = errors(&path, &out);
                assert!(errors.len() >= 4, "{place}");
                for (tensor, error) in errors {
                    // Single tensors are held less tightly in f32 than the whole gradient is elsewhere.
                    assert!(error <= tolerance, "{place}: {tensor} is off by {error:e}");
                }
                // What is printed is what is written.
                let stdout = String::from_utf8(output.stdout).unwrap();
                for (tensor, Tensor { values, .. }) in Problem::read(&out).unwrap().tensors() {
                    if tensor.ends_with("loss") {
                        let line = values.iter().map(|v| format!("{v:.9}")).collect::<Vec<_>>().join(" ");
                        assert!(stdout.lines().any(|l| l == format!("{tensor}: {line}")), "{place}");
                    }
                }
                std::fs::remove_file(&out).unwrap();
            }
        }
    }
}

/// One line that begins with `error:`, has all these words, and exit code 1.
fn refused(output: &Output, words: &[&str]) {
    let stderr = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(1), "{words:?}: {stderr}");
    assert!(output.stdout.is_empty(), "{words:?}: {stderr}");
    let one_line = stderr.starts_with("error: ") && stderr.ends_with('\n') && stderr.lines().count() == 1;
    assert!(one_line, "{words:?}: {stderr}");
    assert!(words.iter().all(|word| stderr.contains(word)), "{words:?}: {stderr}");
}

/// The file is refused with these words, and the answer of an earlier run is still there.
fn refuses(bytes: &[u8], words: &[&str]) {
    let folder = tempfile::tempdir().unwrap();
    let (problem, out) = (folder.path().join("broken.safetensors"), folder.path().join("answer.safetensors"));
    std::fs::write(&problem, bytes).unwrap();
    std::fs::write(&out, b"an earlier answer").unwrap();
    refused(&grad(&problem, &out, &[]), words);
    assert_eq!(std::fs::read(&out).unwrap(), b"an earlier answer", "{words:?}");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 2, "{words:?}: a temporary file is left");
}

#[test]
fn files_that_are_no_problem_files() {
    let folder = tempfile::tempdir().unwrap();
    let (missing, out) = (folder.path().join("missing.safetensors"), folder.path().join("out"));
    refused(&grad(&missing, &out, &[]), &["missing.safetensors", "read", "check the path"]);
    refused(&grad(folder.path(), &out, &[]), &[folder.path().to_str().unwrap(), "read"]);
    assert!(!out.exists());

    let whole = std::fs::read(golden("maml_mse_1step")).unwrap();
    let header = u64::from_le_bytes(whole[..8].try_into().unwrap()) as usize;
    for length in [0, 1, 7, 8, 9, header / 2, header + 7, header + 8, whole.len() - 8, whole.len() - 1] {
        refuses(&whole[..length], &["broken.safetensors", "whole safetensors file"]);
    }
    refuses(&[&whole[..], b"more"].concat(), &["broken.safetensors", "whole safetensors file"]);
    refuses(b"just some text, much longer than a length", &["broken.safetensors", "whole safetensors file"]);
    // A header that claims to be longer than any file, or than any header may be.
    for claim in [u64::MAX, 1 << 40, whole.len() as u64] {
        refuses(&[&claim.to_le_bytes(), &whole[8..]].concat(), &["broken.safetensors", "whole safetensors file"]);
    }
    // Shapes whose product overflows, or is far beyond the file.
    for shape in ["18446744073709551615,18446744073709551615", "4294967296,4294967296", "1000000000000,1"] {
        let json = format!(r#"{{"layers.0.weight":{{"dtype":"F64","shape":[{shape}],"data_offsets":[0,8]}}}}"#);
        let bytes = [&(json.len() as u64).to_le_bytes()[..], json.as_bytes(), &[0; 8]].concat();
        refuses(&bytes, &["broken.safetensors", "whole safetensors file"]);
    }
    refuses(&[&2u64.to_le_bytes()[..], b"{}"].concat(), &["broken.safetensors", "\"problem\""]);
}

#[test]
fn places_that_cannot_be_written() {
    let folder = tempfile::tempdir().unwrap();
    let problem = golden("maml_mse_1step");
    refused(&grad(&problem, folder.path(), &[]), &[folder.path().to_str().unwrap(), "write"]);
    let nowhere = folder.path().join("missing/answer.safetensors");
    refused(&grad(&problem, &nowhere, &[]), &[nowhere.to_str().unwrap(), "write"]);
    std::fs::write(folder.path().join("file"), b"in the way").unwrap();
    let below = folder.path().join("file/answer.safetensors");
    refused(&grad(&problem, &below, &[]), &[below.to_str().unwrap(), "write"]);
    assert_eq!(std::fs::read(folder.path().join("file")).unwrap(), b"in the way");
    assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
}

/// Nobody reads the printed losses: the answer is written all the same, without a word.
#[test]
fn a_closed_standard_output_is_no_failure() {
    let folder = tempfile::tempdir().unwrap();
    let out = folder.path().join("answer.safetensors");
    let mut command = Command::new(env!("CARGO_BIN_EXE_innerloop"));
    command.args(["grad", "--out"]).arg(&out).arg(golden("maml_tanh_5step"));
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    drop(child.stdout.take());
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    assert!(errors(&golden("maml_tanh_5step"), &out).iter().all(|(_, error)| *error < 1e-9));
}

/// Edits a golden problem; the words the refusal must have.
fn edited(name: &str, words: &[&str], edit: impl FnOnce(&mut File)) {
    let mut file = File::read(&golden(name));
    edit(&mut file);
    refuses(&file.bytes(), words);
}

#[test]
fn supervised_problems_that_do_not_fit() {
    let name = "maml_mse_1step";
    let File { tensors, metadata } = File::read(&golden(name));
    for (tensor, dtype, shape, _) in tensors.iter().filter(|t| !t.0.starts_with("expected.")) {
        edited(name, &["broken.safetensors", tensor], |f| f.tensors.retain(|t| t.0 != *tensor));
        edited(name, &["broken.safetensors", tensor, "I64"], |f| f.tensor(tensor).1 = Dtype::I64);
        edited(name, &["broken.safetensors", tensor, "dimensions"], |f| f.tensor(tensor).2.push(1));
        assert_eq!(*dtype, Dtype::F64);
        for (bad, word) in [(f64::NAN, "NaN"), (f64::INFINITY, "inf")] {
            edited(name, &["broken.safetensors", tensor, word, "index 0"], |f| {
                f.tensor(tensor).3[..8].copy_from_slice(&bad.to_le_bytes());
            });
        }
        // One more in each dimension in turn, or none: something no longer fits, be it only this tensor's neighbour.
        for axis in 0..shape.len() {
            let mut longer = shape.clone();
            longer[axis] += 1;
            edited(name, &[], |f| f.reshape(tensor, &longer));
            let mut empty = shape.clone();
            empty[axis] = 0;
            edited(name, &[], |f| f.reshape(tensor, &empty));
        }
    }
    for field in ["problem", "algorithm", "activations", "loss", "inner_steps"] {
        assert!(metadata.contains_key(field));
        edited(name, &["broken.safetensors", &format!("{field:?}")], |f| {
            f.metadata.remove(field);
        });
    }
    for (field, value, word) in [
        ("problem", "riddle", "problem"),
        ("algorithm", "MAML", "algorithm"),
        ("activations", "relu,swish", "swish"),
        ("activations", "", "activation"),
        ("loss", "mae", "loss"),
        ("inner_steps", "-1", "inner_steps"),
        ("inner_steps", "1.5", "inner_steps"),
        ("inner_steps", "100000", "inner steps"),
        ("inner_steps", "18446744073709551615", "inner steps"),
        ("inner_lr", "fast", "inner_lr"),
        ("inner_lr", "NaN", "rates"),
        ("inner_lr", "inf", "rates"),
        ("rates", "many", "rates"),
        ("rates", "per_layer_per_step", "\"rates\""),
        ("rates", "per_parameter", "rates.0.weight"),
        ("momentum", "1", "momentum"),
        ("momentum", "-0.1", "momentum"),
        ("momentum", "nan", "momentum"),
        ("inner_optimizer", "adamw", "inner_optimizer"),
    ] {
        edited(name, &[word], |f| f.set(field, value));
    }
    // A line break in a value does not become one in the message.
    edited(name, &["problem"], |f| f.set("problem", "two\nlines"));
    edited(name, &["activation"], |f| f.set("activations", "two\nlines"));
    // Fewer and more activations than layers.
    let activations = &metadata["activations"];
    let (fewer, _) = activations.rsplit_once(',').unwrap();
    edited(name, &["broken.safetensors", "activation"], |f| f.set("activations", fewer));
    edited(name, &["broken.safetensors", "no tensor"], |f| f.set("activations", &format!("{activations},relu")));
    // As many numbers as before, in another shape.
    for tensor in ["support.y", "query.y"] {
        edited(name, &["broken.safetensors", tensor], |f| {
            let shape = &mut f.tensor(tensor).2;
            assert_ne!(shape[0], shape[1]);
            shape.swap(0, 1);
        });
    }
}

#[test]
fn batch_normalisation_that_does_not_fit() {
    let name = "batch_norm_tanh";
    for (value, words) in [
        ("0.001,much,0", ["batch_norm", "numbers separated by commas"]),
        ("0.001,0.001", ["batch normalisation", "2 for 3 layers"]),
        ("0,0,0.1", ["batch normalisation", "output layer"]),
        ("-1,0,0", ["batch normalisation", "-1"]),
        ("NaN,0,0", ["batch normalisation", "NaN"]),
    ] {
        edited(name, &words, |f| f.set("batch_norm", value));
    }
}

#[test]
fn learned_rates_that_do_not_fit() {
    edited("maml_per_layer_per_step_rates", &["broken.safetensors", "rates"], |f| {
        let shape = &mut f.tensor("rates").2;
        assert_ne!(shape[0], shape[1]);
        shape.swap(0, 1);
    });
    edited("meta_sgd", &["broken.safetensors", "rates.1.weight"], |f| {
        let shape = &mut f.tensor("rates.1.weight").2;
        assert_ne!(shape[0], shape[1]);
        shape.swap(0, 1);
    });
    edited("meta_sgd", &["broken.safetensors", "rates.0.bias"], |f| f.tensors.retain(|t| t.0 != "rates.0.bias"));
}

#[test]
fn video_problems_that_do_not_fit() {
    let name = "gan_maml_1step";
    for tensor in ["support.z", "query.z"] {
        edited(name, &["broken.safetensors", tensor], |f| {
            let shape = &mut f.tensor(tensor).2;
            assert_ne!(shape[0], shape[1]);
            shape.swap(0, 1);
        });
        edited(name, &["broken.safetensors", tensor], |f| f.tensors.retain(|t| t.0 != tensor));
    }
    for (field, value, word) in [
        ("frames", "0", "frames"),
        ("frames", "7919", "frames"),
        ("frames", "18446744073709551615", "frames"),
        ("adversarial_weight", "NaN", "weights"),
        ("reconstruction_weight", "-1", "weights"),
        ("motion_weight", "inf", "weights"),
        ("generator_lr", "NaN", "rates"),
        ("discriminator_lr", "inf", "rates"),
        ("rates", "per_parameter", "rates"),
        ("algorithm", "anil", "anil"),
        ("generator_activations", "relu", "generator"),
        ("discriminator_activations", "relu,relu,relu,relu,relu,relu", "discriminator"),
    ] {
        edited(name, &[word], |f| f.set(field, value));
    }
    for (field, value, words) in [
        ("frame_height", "4000000000000000000", "frame shape"),
        ("frame_width", "0", "frame shape"),
        ("channels", "1", "frame shape"),
        ("channels", "-1", "channels"),
        ("texture_weight", "NaN", "weights"),
        ("texture_weight", "much", "texture_weight"),
    ] {
        edited("gan_texture_maml", &[words], |f| f.set(field, value));
    }
    edited("gan_texture_maml", &["broken.safetensors", "\"frame_width\""], |f| {
        f.metadata.remove("frame_width");
    });
    edited("gan_texture_maml", &["texture weight", "0.8", "height, width and channels"], |f| {
        f.metadata.retain(|field, _| !["frame_height", "frame_width", "channels"].contains(&field.as_str()));
    });
    for field in ["frames", "generator_lr", "discriminator_lr", "motion_weight", "generator_activations"] {
        edited(name, &["broken.safetensors", &format!("{field:?}")], |f| {
            f.metadata.remove(field);
        });
    }
}

/// Reading and solving give an answer or an error of one line.
fn survives(bytes: &[u8]) {
    let one_line = |error: innerloop::Error| {
        let message = error.to_string();
        assert!(!message.is_empty() && !message.contains('\n'), "{message}");
    };
    let device = || CpuDevice::new(1).unwrap();
    match Problem::decode(Path::new("problem"), bytes) {
        Err(error) => one_line(error),
        Ok(problem) => {
            problem.solve::<f64>(device(), None).map(drop).unwrap_or_else(one_line);
            problem.solve::<f32>(device(), None).map(drop).unwrap_or_else(one_line);
        }
    }
}

#[test]
fn every_truncation_is_an_error() {
    for name in ["maml_mse_1step", "gan_maml_1step", "meta_sgd"] {
        let whole = std::fs::read(golden(name)).unwrap();
        for length in (0..whole.len()).filter(|l| *l < 4096 || l % 97 == 0) {
            assert!(Problem::decode(Path::new("problem"), &whole[..length]).is_err(), "{name} cut to {length} bytes");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn corrupted_problems_are_solved_or_refused(
        name in prop::sample::select(vec!["maml_sinusoid_shape", "gan_fomaml_3step", "meta_sgd", "maml_momentum_4step"]),
        flips in prop::collection::vec((any::<prop::sample::Index>(), 0..8u8, any::<bool>()), 1..6),
    ) {
        let mut bytes = std::fs::read(golden(name)).unwrap();
        let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize + 8;
        for (at, bit, in_header) in flips {
            let at = at.index(if in_header { header } else { bytes.len() });
            bytes[at] ^= 1 << bit;
        }
        survives(&bytes);
    }

    #[test]
    fn any_bytes_are_refused(bytes in prop::collection::vec(any::<u8>(), 0..200), header in "[{}\\[\\]\":,a-zF0-9.]{0,60}") {
        prop_assert!(Problem::decode(Path::new("problem"), &bytes).is_err());
        let mut file = (header.len() as u64).to_le_bytes().to_vec();
        file.write_all(header.as_bytes()).unwrap();
        survives(&file);
    }
}
