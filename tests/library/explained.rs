//! A device that keeps account changes nothing, and its account is that of the plan; `bench --explain` shows it.

use crate::reference as golden;

use std::collections::BTreeMap;
use std::time::Instant;

use crate::fixtures::command::succeed;
use innerloop::device::cpu::CpuDevice;
use innerloop::device::{CostFactors, Explained, Stage, Work};
use innerloop::model::{Activation, BatchNorm, Mlp, Parameters};
use innerloop::objective::{Loss, VideoWeights};
use innerloop::problem::Problem;
use innerloop::{
    Algorithm, Cost, InnerConfig, MetaLearner, MetaOptimizer, Objective, OuterConfig, RateKind, Shape, Strategy,
    SupervisedConfig, SupervisedRows, VideoConfig, VideoRows,
};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

#[test]
fn the_same_bits() {
    for path in golden::problems() {
        let problem = Problem::read(&path).unwrap();
        for threads in [1, 3] {
            let device = CpuDevice::new(threads).unwrap();
            let explained = Explained::new(device.clone());
            let plain = problem.solve::<f32>(device, None).unwrap();
            assert!(plain == problem.solve::<f32>(explained.clone(), None).unwrap(), "{}", golden::name(&path));
            assert!(explained.take().keys().any(|name| ["linear_forward", "resident"].contains(name)));
        }
    }
}

const SHAPE: Shape = Shape { tasks: 5, shots: 3, queries: 2 };
const STEPS: usize = 3;

/// The account of one meta-step, what the plan says it costs, its lanes, and its time.
fn account<O: Objective>(
    objective: O,
    mlps: &[&Mlp],
    rows: O::Rows<'_, f32>,
    threads: usize,
) -> (BTreeMap<&'static str, Stage>, Cost, usize, f64) {
    let device = Explained::new(CpuDevice::new(threads).unwrap());
    let phi = mlps.iter().map(|mlp| MetaOptimizer::uniform(RateKind::PerLayerPerStep, mlp, STEPS, 0.05).unwrap());
    let mut learner = MetaLearner::new(device.clone(), objective, SHAPE, phi.collect()).unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(1);
    for (network, mlp) in mlps.iter().enumerate() {
        learner.set_parameters(network, &Parameters::initialise(mlp, &mut rng)).unwrap();
    }
    learner.run(rows, &mut rng).unwrap();
    device.take();
    let start = Instant::now();
    learner.run(rows, &mut rng).unwrap();
    learner.update(&OuterConfig::adam(1e-3)).unwrap();
    let seconds = start.elapsed().as_secs_f64();
    (device.take(), learner.cost(), learner.lanes(), seconds)
}

/// Random rows of every task.
fn numbers(rows: usize, width: usize) -> Vec<f32> {
    let mut rng = ChaCha8Rng::seed_from_u64((rows * 100 + width) as u64);
    (0..SHAPE.tasks * rows * width).map(|_| rng.random_range(-1.0..1.0)).collect()
}

fn supervised(inner: InnerConfig, threads: usize) -> (BTreeMap<&'static str, Stage>, Cost, usize, f64) {
    supervised_of(
        &Mlp::new(&[6, 7, 8, 5], &[Activation::Tanh, Activation::Relu, Activation::Linear]).unwrap(),
        inner,
        threads,
    )
}

/// The same of a network of those inputs and outputs.
fn supervised_of(mlp: &Mlp, inner: InnerConfig, threads: usize) -> (BTreeMap<&'static str, Stage>, Cost, usize, f64) {
    let [support_x, support_y] = [6, 5].map(|width| numbers(SHAPE.shots, width));
    let [query_x, query_y] = [6, 5].map(|width| numbers(SHAPE.queries, width));
    let rows = SupervisedRows { support_x: &support_x, support_y: &support_y, query_x: &query_x, query_y: &query_y };
    account(SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner }, &[mlp], rows, threads)
}

fn gan(inner: InnerConfig, threads: usize) -> (BTreeMap<&'static str, Stage>, Cost, usize, f64) {
    let generator = Mlp::new(&[4, 7, 12], &[Activation::Relu, Activation::Tanh]).unwrap();
    let discriminator = Mlp::new(&[12, 6, 1], &[Activation::LeakyRelu, Activation::Linear]).unwrap();
    let [support_z, support_x] = [4, 12].map(|width| numbers(SHAPE.shots, width));
    let [query_z, query_x] = [4, 12].map(|width| numbers(SHAPE.queries, width));
    let rows = VideoRows { support_z: &support_z, support_x: &support_x, query_z: &query_z, query_x: &query_x };
    let config = VideoConfig {
        generator: generator.clone(),
        discriminator: discriminator.clone(),
        frames: 3,
        frame: None,
        weights: VideoWeights { adversarial: 0.1, reconstruction: 1.0, motion: 1.0, texture: 0.0 },
        adversarial: true,
        inner,
    };
    account(config, &[&generator, &discriminator], rows, threads)
}

/// All work but that of what the plan leaves out: the sum over the tasks' gradients and the outer optimizer's check.
fn planned_work(stages: &BTreeMap<&'static str, Stage>) -> Work {
    let planned = stages.iter().filter(|(name, _)| !["sum_rows", "gradient_check"].contains(name));
    planned.fold(Work::default(), |sum, (_, stage)| sum + stage.work)
}

#[test]
fn as_much_work_as_planned() {
    for algorithm in [Algorithm::Maml, Algorithm::FirstOrderMaml, Algorithm::Anil] {
        // The plan counts what the later passes ask of the values at the network's input, which nothing is done with: of
        // 5 tasks, 2 * 3 rows of width 6 for each of 8, 5 and 2 later rows.
        let at_input = if algorithm == Algorithm::Maml { 5 * 2 * 3 * 6 * (8 + 5 + 2) } else { 0 };
        for (threads, lanes) in [(1, 1), (3, 3)] {
            let inner = InnerConfig { strategy: Some(Strategy::Dual), ..InnerConfig::new(algorithm, STEPS) };
            let (stages, cost, in_lanes, _) = supervised(inner.clone(), threads);
            let work = planned_work(&stages);
            assert_eq!((work.flop as f64, in_lanes), (cost.shared, lanes), "{algorithm}");
            assert_eq!((work.correction_flop + at_input) as f64, cost.low_rank, "{algorithm}");
            let copies = InnerConfig { strategy: Some(Strategy::Materialised), ..inner.clone() };
            let near = InnerConfig { strategy: Some(Strategy::Resident), ..inner.clone() };
            let (stages, cost, in_lanes, _) = supervised(near, threads);
            let work = planned_work(&stages);
            assert_eq!((work.flop as f64, work.correction_flop, in_lanes), (cost.resident, 0, 1), "{algorithm}");
            let (stages, cost, ..) = supervised(copies.clone(), threads);
            let work = planned_work(&stages);
            assert_eq!(work.correction_flop, 0, "{algorithm}");
            if algorithm == Algorithm::Anil {
                // The plan has layers that do not move go back through a direction as well. The GAN has no ANIL.
                assert!((work.flop as f64) < cost.per_task);
                continue;
            }
            assert_eq!(work.flop as f64, cost.per_task, "{algorithm}");
            // Where the discriminator's gradient goes on to the generator, the plan counts the generated rows' inner
            // products alone: its corrections are right within an eighth.
            let (stages, cost, ..) = gan(inner, threads);
            let work = planned_work(&stages);
            assert_eq!(work.flop as f64, cost.shared, "{algorithm}");
            let ratio = work.correction_flop as f64 / cost.low_rank;
            assert!((0.875..1.125).contains(&ratio), "{algorithm}: {ratio}");
            let (stages, cost, ..) = gan(copies, threads);
            let work = planned_work(&stages);
            assert_eq!((work.flop as f64, work.correction_flop), (cost.per_task, 0), "{algorithm}");
        }
    }
}

#[test]
fn as_much_folded_work_as_planned() {
    let inner = InnerConfig { strategy: Some(Strategy::Folded), ..InnerConfig::new(Algorithm::Maml, STEPS) };
    let (stages, cost, ..) = supervised(inner, 1);
    let work = planned_work(&stages);
    assert_eq!(work.flop as f64, cost.shared);
    // As above, of the layers that are not folded.
    let at_input = 5 * 2 * 3 * 6 * (8 + 5 + 2);
    assert_eq!((work.correction_flop + at_input) as f64, cost.low_rank);
}

/// What takes a launch on a GPU, but for what the plan leaves out.
#[test]
fn about_as_many_operations_as_planned() {
    let few = ["upload", "download", "copy", "fill", "sum_rows", "gradient_check", "outer_step"];
    for algorithm in [Algorithm::Maml, Algorithm::FirstOrderMaml, Algorithm::Anil] {
        for strategy in Strategy::ALL {
            if strategy == Strategy::Folded && algorithm != Algorithm::Maml {
                continue;
            }
            let inner = InnerConfig { strategy: Some(strategy), ..InnerConfig::new(algorithm, STEPS) };
            let whole_sets = matches!(strategy, Strategy::Resident | Strategy::Folded);
            let gan = (!whole_sets && algorithm != Algorithm::Anil).then(|| gan(inner.clone(), 1));
            for (stages, cost, ..) in [supervised(inner, 1)].into_iter().chain(gan) {
                let counted = stages.iter().filter(|(name, _)| !few.contains(name));
                let ratio = counted.map(|(_, stage)| stage.calls).sum::<u64>() as f64 / cost.operations;
                assert!((0.55..1.1).contains(&ratio), "{algorithm}, {strategy}: {ratio}");
            }
        }
    }
}

#[test]
fn as_much_normalisation_as_planned() {
    use Activation::{Linear, Relu, Tanh};
    let mlp = Mlp::new(&[6, 7, 4, 8, 5], &[Tanh, Relu, Relu, Linear]).unwrap();
    let norm = Some(BatchNorm::default());
    let mlp = mlp.with_batch_norms(&[norm, None, norm, None]).unwrap();
    for algorithm in [Algorithm::Maml, Algorithm::FirstOrderMaml, Algorithm::Anil] {
        for strategy in [Strategy::Dual, Strategy::Materialised] {
            let inner = InnerConfig { strategy: Some(strategy), ..InnerConfig::new(algorithm, STEPS) };
            let (stages, cost, ..) = supervised_of(&mlp, inner, 3);
            let names = ["normalise", "normalise_jacobian", "normalise_adjoint"];
            let flop: u64 = names.iter().filter_map(|name| stages.get(name)).map(|stage| stage.work.flop).sum();
            assert_eq!(flop as f64, cost.normalisation, "{algorithm}, {strategy}");
            assert!(cost.normalisation > 0.0 && cost.flop() > cost.normalisation);
        }
    }
}

#[test]
fn the_times_fit_into_the_whole() {
    for threads in [1, 3] {
        let (stages, _, lanes, whole) = supervised(InnerConfig::new(Algorithm::Maml, STEPS), threads);
        assert_eq!(lanes, threads);
        let sum: f64 = stages.values().map(|stage| stage.seconds).sum();
        assert!(0.0 < sum && sum <= whole, "{threads}: {sum} of {whole}");
    }
}

#[test]
fn the_form_that_the_planner_cannot_take_has_no_cost() {
    let mlp = Mlp::new(&[3, 4, 2], &[Activation::Tanh, Activation::Linear]).unwrap();
    for (rates, possible) in [(RateKind::PerLayerPerStep, true), (RateKind::PerParameter, false)] {
        let inner = InnerConfig { rates, ..InnerConfig::new(Algorithm::Maml, STEPS) };
        let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner };
        let phi = vec![MetaOptimizer::<f32>::uniform(rates, &mlp, STEPS, 0.05).unwrap()];
        let learner = MetaLearner::new(CpuDevice::new(1).unwrap(), config, SHAPE, phi).unwrap();
        assert_eq!(learner.cost_in(Strategy::Dual).is_some(), possible);
        assert_eq!(learner.cost_in(learner.strategy()), Some(learner.cost()));
        let estimate = |form| learner.estimate_in(form).unwrap_or(f64::INFINITY);
        // The resident form has room for 16 tasks at once.
        let plain = learner.cost_in(Strategy::Resident).unwrap().estimate(&CostFactors::CPU);
        assert!((estimate(Strategy::Resident) / (16.0 / SHAPE.tasks as f64 * plain) - 1.0).abs() < 1e-12);
        let cheapest = Strategy::ALL.into_iter().min_by(|a, b| estimate(*a).total_cmp(&estimate(*b)));
        assert_eq!(Some(learner.planned()), cheapest);
    }
}

#[test]
fn bench_explains() {
    let folder = tempfile::tempdir().unwrap();
    let bench = "bench --widths 4,5,6 --tasks 3 --steps 2 --seconds 0 --threads 2 --device cpu";
    let text = succeed(folder.path(), &format!("{bench} --explain --update"));
    let place = |what: &str| text.find(what).unwrap_or_else(|| panic!("no {what:?} in:\n{text}"));
    let parts =
        ["memory: ", "plan: ", "the planner's choice;", "2 lanes, arena", "floor ms", "\ntotal ", "the stages'"];
    assert!(parts.map(place).is_sorted(), "{text}");
    for stage in ["linear_forward", "outer_product", "supervised_loss", "upload", "gradient_check", "outer_step"] {
        assert!((place("floor ms")..place("\ntotal ")).contains(&place(stage)), "{stage}:\n{text}");
    }
    assert!(!succeed(folder.path(), bench).contains("plan:"));

    for (options, planned) in [("--explain", false), ("--explain --strategy materialised", true)] {
        let text = succeed(folder.path(), &format!("{bench} --json {options}"));
        let records: Vec<serde_json::Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        assert_eq!(records.len(), 1);
        let (record, explanation) = (&records[0], &records[0]["explanation"]);
        assert!(planned || record["strategy"] == record["planned"], "{text}");
        let number = |value: &serde_json::Value| value.as_f64().unwrap_or_else(|| panic!("no number in: {text}"));
        assert!(number(&explanation["estimates"]["dual"]) > 0.0);
        assert!(number(&explanation["estimates"]["materialised"]) > 0.0);
        let [matrix, memory] = [&record["matrix_flop_per_second"], &explanation["memory_bytes_per_second"]].map(number);
        let stages = explanation["stages"].as_array().unwrap();
        assert!(stages.is_sorted_by(|a, b| number(&a["median_ms"]) >= number(&b["median_ms"])), "{text}");
        for stage in stages {
            let flop = number(&stage["flop"]) + number(&stage["correction_flop"]);
            let [by_flop, by_bytes] = [flop / matrix * 1e3, number(&stage["bytes"]) / memory * 1e3];
            let floor = number(&stage["floor_ms"]);
            assert!((floor - by_flop.max(by_bytes)).abs() <= 1e-9 * floor, "{stage}");
            assert_eq!(stage["bound_by"], if by_flop > by_bytes { "flop" } else { "bytes" }, "{stage}");
            let share = floor / number(&stage["median_ms"]);
            assert!((number(&stage["floor_share"]) - share).abs() <= 1e-9 * share, "{stage}");
        }
        for sum in ["calls", "flop", "correction_flop", "bytes", "floor_ms", "median_ms"] {
            let (total, summed) =
                (number(&explanation["total"][sum]), stages.iter().map(|s| number(&s[sum])).sum::<f64>());
            assert!((total - summed).abs() <= 1e-9 * total, "{sum}");
        }
        assert!(number(&explanation["total"]["meta_step_share"]) > 0.0);
        assert!(number(&explanation["total"]["accounted_meta_step_ms"]) >= number(&explanation["total"]["median_ms"]));
    }
    // So many steps have no dual form.
    let text = succeed(folder.path(), "bench --widths 2,3,2 --tasks 1 --steps 1001 --seconds 0 --explain --threads 1");
    assert!(text.contains("plan: materialised, the planner's choice") && text.contains("dual none"), "{text}");
}
