//! Weights through Python's `safetensors`, in both directions. Reported as ignored, with the reason, where Python lacks it.
//!
//! `INNERLOOP_PYTHON` names the interpreter, `python3` when absent. It needs NumPy and safetensors; with PyTorch installed
//! too, PyTorch runs the networks.

mod fixtures;

use std::path::Path;
use std::process::Command;

use fixtures::command::{TINY, succeed};
use innerloop::checkpoint::Checkpoint;
use innerloop::device::cpu::CpuDevice;
use innerloop::model::{Activation, Mlp, Parameters};
use innerloop::{forward, pytorch};
use libtest_mimic::{Arguments, Completion, Failed, Trial};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use safetensors::SafeTensors;
use safetensors::tensor::{Dtype, TensorView};

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/python/network.py");

/// Runs the script with these arguments.
type Python<'a> = &'a dyn Fn(&[&str]);

fn main() {
    let python = std::env::var_os("INNERLOOP_PYTHON").unwrap_or_else(|| "python3".into());
    let found = match Command::new(&python).args(["-c", "import numpy, safetensors"]).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(_) => Err("this Python has no numpy or no safetensors: INNERLOOP_PYTHON names another"),
        Err(_) => Err("there is no python3: INNERLOOP_PYTHON names one"),
    };
    let trial = |name: &str, check: fn(Python<'_>)| {
        let python = python.clone();
        Trial::ignorable_test(name, move || match found {
            Err(reason) => Ok(Completion::ignored_with(reason)),
            Ok(()) => {
                check(&|arguments| {
                    let output = Command::new(&python).arg(SCRIPT).args(arguments).output().unwrap();
                    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
                });
                Ok::<_, Failed>(Completion::Completed)
            }
        })
    };
    let trials = vec![
        trial("python_loads_a_written_network", python_loads_a_written_network),
        trial("python_loads_the_checkpoint_of_a_run", python_loads_the_checkpoint_of_a_run),
        trial("a_network_from_python_is_read", a_network_from_python_is_read),
    ];
    libtest_mimic::run(&Arguments::from_args(), trials).exit();
}

fn names(activations: &[Activation]) -> String {
    activations.iter().map(ToString::to_string).collect::<Vec<_>>().join(",")
}

/// Writes `[rows, width]` numbers as tensor `x`.
fn write_x(path: &Path, x: &[f32], width: usize) {
    let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
    let view = TensorView::new(Dtype::F32, vec![x.len() / width, width], &bytes).unwrap();
    std::fs::write(path, safetensors::serialize([("x", view)], None).unwrap()).unwrap();
}

fn read_tensor(path: &Path, name: &str) -> Vec<f32> {
    let bytes = std::fs::read(path).unwrap();
    let file = SafeTensors::deserialize(&bytes).unwrap();
    let data = file.tensor(name).unwrap().data();
    data.as_chunks().0.iter().map(|bytes| f32::from_le_bytes(*bytes)).collect()
}

/// Relative norm of the difference.
#[track_caller]
fn assert_close(found: &[f32], expected: &[f32]) {
    assert_eq!(found.len(), expected.len());
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v).powi(2)).sum::<f64>().sqrt();
    let difference = norm(&mut found.iter().zip(expected).map(|(a, b)| a - b));
    let error = difference / norm(&mut expected.iter().copied());
    assert!(error < 1e-6, "relative error {error:e}");
}

/// Python's answer for a network in a file must be the crate's.
fn hold(python: Python<'_>, file: &Path, prefix: &str, parameters: &Parameters<f32>) {
    let mut rng = ChaCha8Rng::seed_from_u64(2);
    let mlp = parameters.mlp();
    let x: Vec<f32> = (0..5 * mlp.inputs()).map(|_| rng.random_range(-1.0..1.0)).collect();
    let path = file.to_str().unwrap();
    write_x(Path::new(&format!("{path}.x")), &x, mlp.inputs());
    python(&["run", path, prefix, &names(mlp.activations())]);
    let theirs = read_tensor(Path::new(&format!("{path}.y")), "y");
    assert_close(&theirs, &forward(&CpuDevice::new(1).unwrap(), parameters, &x).unwrap());
}

fn python_loads_a_written_network(python: Python<'_>) {
    use Activation::{LeakyRelu, Linear, Relu, Sigmoid, Tanh};
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("network.safetensors");
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    let mlp = Mlp::new(&[5, 7, 6, 9, 4, 3], &[Relu, Linear, LeakyRelu, Tanh, Sigmoid]).unwrap();
    let [one, other] = [(); 2].map(|()| Parameters::initialise(&mlp, &mut rng));
    pytorch::write(&file, &[("main", &one), ("other.main", &other)]).unwrap();
    hold(python, &file, "main", &one);
    hold(python, &file, "other.main", &other);
}

fn python_loads_the_checkpoint_of_a_run(python: Python<'_>) {
    let folder = tempfile::tempdir().unwrap();
    succeed(folder.path(), &format!("train {TINY} --steps 5 --adversarial-from 0 --out run"));
    let file = folder.path().join("run/checkpoint.safetensors");
    let checkpoint = Checkpoint::read(&file).unwrap();
    hold(python, &file, "generator.main", &checkpoint.parameters[0]);
    hold(python, &file, "discriminator.main", &checkpoint.parameters[1]);
}

fn a_network_from_python_is_read(python: Python<'_>) {
    use Activation::{LeakyRelu, Linear, Tanh};
    let folder = tempfile::tempdir().unwrap();
    let activations = [LeakyRelu, Linear, Tanh, Linear];
    let mlp = Mlp::new(&[4, 8, 5, 6, 2], &activations).unwrap();
    for prefix in ["", "main"] {
        let file = folder.path().join("python.safetensors");
        let path = file.to_str().unwrap();
        python(&["make", path, prefix, &names(&activations), "4,8,5,6,2"]);
        let parameters = pytorch::read(&file, prefix, &mlp).unwrap();
        let x = read_tensor(Path::new(&format!("{path}.x")), "x");
        let theirs = read_tensor(Path::new(&format!("{path}.y")), "y");
        assert_close(&forward(&CpuDevice::new(1).unwrap(), &parameters, &x).unwrap(), &theirs);
    }
}
