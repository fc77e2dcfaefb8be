//! The golden problems: answers by automatic differentiation in float64, from the plain definitions.

use std::path::PathBuf;

use innerloop::Strategy;
use innerloop::device::cpu::CpuDevice;
use innerloop::problem::{Answer, Problem};

fn problems() -> Vec<PathBuf> {
    let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden");
    let mut paths: Vec<_> = std::fs::read_dir(folder).unwrap().map(|e| e.unwrap().path()).collect();
    paths.retain(|p| p.extension().is_some_and(|e| e == "safetensors"));
    paths.sort();
    assert_eq!(paths.len(), 17, "a golden problem is missing");
    paths
}

/// The norm of the difference over the norm, over the tensors whose names begin with `prefix`.
fn error(answer: &Answer, problem: &Problem, prefix: &str) -> Option<f64> {
    let (mut difference, mut norm) = (0.0, 0.0);
    let mut found = false;
    for (name, expected) in problem.tensors() {
        let Some(name) = name.strip_prefix("expected.").filter(|n| n.starts_with(prefix)) else { continue };
        let (_, got) = answer.tensors.iter().find(|(n, _)| n == name).unwrap_or_else(|| panic!("no {name}"));
        assert_eq!(got.shape, expected.shape, "{name}");
        for (g, e) in got.values.iter().zip(&expected.values) {
            difference += (g - e) * (g - e);
            norm += e * e;
        }
        found = true;
    }
    found.then(|| (difference / norm).sqrt())
}

fn check(strategy: Strategy, precision: &str, tolerance: f64) {
    let mut wrong = Vec::new();
    for path in problems() {
        let name = path.file_stem().unwrap().to_string_lossy().into_owned();
        if name == "meta_sgd" && strategy == Strategy::Dual {
            continue; // its refusal is tested below
        }
        let problem = Problem::read(&path).unwrap();
        for threads in [1, 3] {
            let device = CpuDevice::new(threads).unwrap();
            let answer = match precision {
                "f64" => problem.solve::<f64>(device, Some(strategy)).unwrap(),
                _ => problem.solve::<f32>(device, Some(strategy)).unwrap(),
            };
            let mut groups = 0;
            for prefix in [
                "loss",
                "task_loss",
                "grad.",
                "rates_grad",
                "generator_loss",
                "discriminator_loss",
                "generator.grad.",
                "discriminator.grad.",
            ] {
                if let Some(error) = error(&answer, &problem, prefix) {
                    groups += 1;
                    println!("{name} {prefix} {strategy} {precision} {error:.1e}");
                    if error.is_nan() || error > tolerance {
                        wrong.push(format!("{name} {prefix}: {error:e}"));
                    }
                }
            }
            assert!(groups >= 3, "{name}: only {groups} answers compared");
        }
    }
    assert!(wrong.is_empty(), "{strategy} {precision}: {wrong:#?}");
}

#[test]
fn dual_in_double_precision() {
    check(Strategy::Dual, "f64", 1e-9);
}

#[test]
fn dual_in_single_precision() {
    check(Strategy::Dual, "f32", 2e-5);
}

#[test]
fn materialised_in_double_precision() {
    check(Strategy::Materialised, "f64", 1e-9);
}

#[test]
fn materialised_in_single_precision() {
    check(Strategy::Materialised, "f32", 2e-5);
}

#[test]
fn meta_sgd_has_no_dual_form() {
    let path = problems().into_iter().find(|p| p.ends_with("meta_sgd.safetensors")).unwrap();
    let problem = Problem::read(&path).unwrap();
    let device = CpuDevice::new(1).unwrap();
    let message = problem.solve::<f64>(device, Some(Strategy::Dual)).unwrap_err().to_string();
    assert!(message.contains("Meta-SGD") && message.contains("materialised"), "{message}");
}
