//! The golden problems: answers by automatic differentiation in float64, from the plain definitions.

use crate::reference as golden;

use golden::{errors, has_dual_form, has_folded_form, has_form, has_resident_form, name, problems, worst_of_phi};
use innerloop::Strategy;
use innerloop::device::cpu::CpuDevice;
use innerloop::problem::Problem;

fn check(strategy: Strategy, precision: &str, tolerance: f64) {
    let mut wrong = Vec::new();
    for path in problems() {
        let name = name(&path);
        if !has_form(&path, strategy) {
            continue; // its refusal is tested below
        }
        let problem = Problem::read(&path).unwrap();
        for threads in [1, 3] {
            let device = CpuDevice::new(threads).unwrap();
            let answer = match precision {
                "f64" => problem.solve::<f64>(device, Some(strategy)).unwrap(),
                _ => problem.solve::<f32>(device, Some(strategy)).unwrap(),
            };
            for (group, error) in errors(&answer, &problem) {
                println!("{name} {group} {strategy} {precision} {error:.1e}");
                if error.is_nan() || error > tolerance {
                    wrong.push(format!("{name} {group}: {error:e}"));
                }
            }
            // In single precision only the whole gradient of phi is: single arrays of it may cancel.
            let worst = worst_of_phi(&answer, &problem);
            if precision == "f64" && worst > tolerance {
                wrong.push(format!("{name}, an array of phi's gradient: {worst:e}"));
            }
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
fn resident_in_double_precision() {
    check(Strategy::Resident, "f64", 1e-9);
}

#[test]
fn resident_in_single_precision() {
    check(Strategy::Resident, "f32", 2e-5);
}

#[test]
fn folded_in_double_precision() {
    check(Strategy::Folded, "f64", 1e-9);
}

#[test]
fn folded_in_single_precision() {
    check(Strategy::Folded, "f32", 2e-5);
}

#[test]
fn what_has_no_folded_form_is_refused() {
    let mut refused = std::collections::BTreeSet::new();
    for path in problems().into_iter().filter(|path| !has_folded_form(path)) {
        let problem = Problem::read(&path).unwrap();
        let message = problem.solve::<f64>(CpuDevice::new(1).unwrap(), Some(Strategy::Folded)).unwrap_err().to_string();
        let reason = message.strip_prefix("strategy: folded with ").expect(&message);
        assert!(reason.contains("auto") && !message.contains('\n'), "{message}");
        refused.insert(reason.split(';').next().unwrap().to_owned());
    }
    // The video GAN, an activation, another algorithm, Adam, decay, meta-optimizers, learned rates, several query losses.
    assert!(refused.len() >= 7, "{refused:?}");
}

#[test]
fn what_has_no_resident_form_is_refused() {
    let (some, none): (Vec<_>, Vec<_>) = problems().into_iter().partition(|path| has_resident_form(path));
    assert!(some.len() >= 13, "only {} problems have it", some.len());
    for path in none {
        let problem = Problem::read(&path).unwrap();
        let device = CpuDevice::new(1).unwrap();
        let message = problem.solve::<f64>(device, Some(Strategy::Resident)).unwrap_err().to_string();
        let reasons = ["the video GAN", "Adam", "transforms rows", "multi-step", "batch normalisation"];
        assert!(message.contains("resident with") && reasons.iter().any(|r| message.contains(r)), "{message}");
        assert!(!message.contains('\n'), "{message}");
    }
}

#[test]
fn what_has_no_dual_form_is_refused() {
    for path in problems().into_iter().filter(|path| !has_dual_form(path)) {
        let problem = Problem::read(&path).unwrap();
        let device = CpuDevice::new(1).unwrap();
        let message = problem.solve::<f64>(device, Some(Strategy::Dual)).unwrap_err().to_string();
        let name = name(&path);
        let rule =
            if name.starts_with("meta_sgd") || name == "adam_maml_per_parameter_rates" { "Meta-SGD" } else { "Adam" };
        assert!(message.contains(rule) && message.contains("materialised"), "{message}");
        assert!(!message.contains('\n'), "{message}");
        // The planner takes the other form.
        problem.solve::<f64>(CpuDevice::new(1).unwrap(), None).unwrap();
    }
}
