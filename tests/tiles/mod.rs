//! Which kernel is launched for which shape.

use innerloop::device::cuda::{CudaDevice, Fastest, Kernel, Tiles, Tuning, Warpgroups, tune};
use innerloop::device::{
    ArenaPlan, Corrections, Device, Linear, LinearForward, MatrixPrecision, OuterProduct, OuterTerm,
};
use innerloop::model::{Activation, Mlp, Parameters};
use innerloop::objective::Loss;
use innerloop::{
    Algorithm, InnerConfig, MetaLearner, MetaOptimizer, OuterConfig, Shape, Strategy, SupervisedConfig, SupervisedRows,
};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::Refusing;

/// Which kernel is launched, over which grid, follows from the shape and the precision.
pub fn tiles_fit_the_shape() {
    use MatrixPrecision::{Bf16, F16, F32, Tf32};
    let told = |precision, kernel: Kernel, work: &dyn Fn(&CudaDevice<Refusing>)| {
        let device = CudaDevice::with_driver(Refusing::new(Some(kernel))).with_precision(precision);
        work(&device);
        device.check().expect_err(kernel.name()).to_string()
    };
    for (precision, rows, inputs, width, kernel, grid) in [
        (F32, 1000, 1, 100, Kernel::LinearForward, "16 x 2"),
        (Bf16, 1, 1, 1, Kernel::LinearForward16x64, "1 x 1"),
        (Bf16, 5, 1, 100_000, Kernel::LinearForward16x64, "1 x 1563"),
        (Bf16, 80, 1, 256, Kernel::LinearForward16x64, "5 x 4"),
        (Tf32, 80, 1, 4096, Kernel::LinearForward64x64, "2 x 64"),
        (Tf32, 320, 1, 4096, Kernel::LinearForward64x64, "5 x 64"),
        (Bf16, 1024, 1, 4096, Kernel::LinearForward128x128, "8 x 32"),
        (Bf16, 65_536, 1, 128, Kernel::LinearForward128x128, "512 x 1"),
        // On warpgroups, of three multiprocessors.
        (F16, 1280, 512, 2048, Kernel::HopperForward128x160, "3 x 1"),
        (Bf16, 320, 1024, 4096, Kernel::HopperForward64x160, "3 x 1"),
        (Bf16, 320, 256, 512, Kernel::HopperForward64x64, "6 x 1"),
        // In clusters of two.
        (Bf16, 1024, 256, 2048, Kernel::HopperForward128x128, "2 x 1"),
        (Bf16, 2048, 256, 2048, Kernel::HopperForward128x256, "2 x 1"),
        (Tf32, 512, 512, 4096, Kernel::LinearForward128x128, "4 x 32"),
    ] {
        let message = told(precision, kernel, &|device| forward(device, rows, inputs, width));
        let expected = format!("kernel {} over a grid of {grid} x 1 blocks", kernel.name());
        assert!(message.contains(&expected) && message.contains(precision.name()), "{message}");
    }
    for (precision, outputs, inputs, kernel, grid) in [
        (F32, 130, 40, Kernel::OuterProduct, "3 x 1"),
        (Tf32, 1, 40, Kernel::OuterProduct64x64, "1 x 1"),
        (Bf16, 4096, 512, Kernel::OuterProduct128x128, "32 x 4"),
    ] {
        let mut plan = ArenaPlan::default();
        let (p, q) = (plan.take(3, outputs), plan.take(3, inputs));
        let (weight, bias) = (plan.take(outputs, inputs), plan.take(1, outputs));
        let layer = Linear { weight: weight.offset, bias: bias.offset, task_stride: 0, inputs, outputs };
        let message = told(precision, kernel, &|device| {
            let arena = &mut device.arena(plan.elements()).unwrap();
            let terms = [OuterTerm { p, q, bias: 1.0, blocks: 1, scale: 1.0, share: None }];
            device.outer_product(arena, &OuterProduct { tasks: 3, terms: &terms, layer, accumulate: false });
        });
        assert!(message.contains(&format!("kernel {} over a grid of {grid} x 1 blocks", kernel.name())), "{message}");
    }
}

/// Every shape is measured with every kernel, the measurements come through a file, and launches take the nearest one's.
pub fn measured_tiles_are_taken() {
    let precisions = vec![MatrixPrecision::Bf16, MatrixPrecision::Tf32];
    let tuning = Tuning { precisions, rows: vec![5, 70], columns: vec![64, 130], inner: 24, seconds: 0.0 };
    let recorder = Refusing::new(None);
    let mut seen = Vec::new();
    let device = CudaDevice::with_driver(recorder.clone());
    let tiles = tune(&device, &tuning, |done, all| seen.push((done, all))).unwrap();
    assert_eq!(seen, [(0, 4), (1, 4), (2, 4), (3, 4), (4, 4)]);
    assert_eq!((tiles.gpu.as_str(), tiles.fastest.len()), ("cuda:9", 4 * 2 * 4));
    let launched = recorder.launched.lock().unwrap().clone();
    let tiled = |name: &str| (name.ends_with("64") || name.ends_with("128")) && !name.starts_with("hopper");
    for kernel in Kernel::ALL.iter().filter(|kernel| tiled(kernel.name())) {
        assert!(launched.contains(kernel), "{} was not measured", kernel.name());
    }
    for entry in &tiles.fastest {
        let kernels = if entry.product == "outer_product" { 2 } else { 3 };
        assert!(entry.microseconds.len() == kernels && entry.microseconds.is_sorted(), "{entry:?}");
        assert!(entry.kernel.starts_with(&entry.product), "{entry:?}");
    }
    let other = Tiles { gpu: "another".into(), ..Tiles::default() };
    let old = Tiles { fastest: Vec::new(), ..tiles.clone() };
    let text = other.clone().put_into("# A comment.\n").unwrap();
    let text = tiles.clone().put_into(&old.put_into(&text).unwrap()).unwrap();
    assert!(text.starts_with("# A comment.\n"), "{text}");
    assert_eq!(Tiles::parse_all(&text).unwrap(), [other, tiles]);
    let unknown = text.replace("linear_forward_16x64", "linear_forward_17x64");
    for (text, part) in [(unknown.as_str(), "linear_forward_17x64"), ("gpu = 3", "innerloop tune")] {
        let message = Tiles::parse_all(text).unwrap_err().to_string();
        assert!(message.contains(part) && !message.contains('\n'), "{message}");
    }

    // What no rule would take: small tiles for large outputs and the other way round.
    let fastest = |rows, columns, kernel: Kernel| Fastest {
        product: "linear_forward".into(),
        precision: MatrixPrecision::Bf16,
        rows,
        columns,
        kernel: kernel.name().into(),
        microseconds: vec![1.0],
    };
    let tiles = Tiles {
        fastest: vec![
            fastest(4, 64, Kernel::LinearForward128x128),
            fastest(1000, 64, Kernel::LinearForward16x64),
            fastest(1000, 4096, Kernel::LinearForward64x64),
        ],
        ..Tiles::default()
    };
    for (rows, width, precision, kernel) in [
        (1, 1, MatrixPrecision::Bf16, Kernel::LinearForward128x128),
        (60, 64, MatrixPrecision::Bf16, Kernel::LinearForward128x128),
        (70, 64, MatrixPrecision::Bf16, Kernel::LinearForward16x64),
        (300, 500, MatrixPrecision::Bf16, Kernel::LinearForward16x64),
        (300, 600, MatrixPrecision::Bf16, Kernel::LinearForward64x64),
        // Not measured: by the rule.
        (1, 1, MatrixPrecision::Tf32, Kernel::LinearForward16x64),
        (1, 1, MatrixPrecision::F32, Kernel::LinearForward),
    ] {
        let recorder = Refusing::new(None);
        let device = CudaDevice::with_driver(recorder.clone()).with_precision(precision).with_tiles(Some(&tiles));
        forward(&device, rows, 1, width);
        assert_eq!(*recorder.launched.lock().unwrap(), [kernel], "{rows} x {width} {precision}");
    }
}

/// A forward pass of so many rows.
fn forward(device: &CudaDevice<Refusing>, rows: usize, inputs: usize, width: usize) {
    let mut plan = ArenaPlan::default();
    let (input, output) = (plan.take(rows, inputs), plan.take(rows, width));
    let (weight, bias) = (plan.take(width, inputs), plan.take(1, width));
    let layer = Linear { weight: weight.offset, bias: bias.offset, task_stride: 0, inputs, outputs: width };
    // As large as that of a learner, which holds gradients and more.
    let mut arena = device.arena(4 * plan.elements()).unwrap();
    let (corrections, activation) = (Corrections::NONE, Activation::Linear);
    let operation = LinearForward { tasks: 1, rows, input, layer, corrections, activation, output };
    device.linear_forward(&mut arena, &operation);
}

/// The narrow layers between two wide ones, of an inner step's way back and of the next one's way up, are one launch.
pub fn narrow_layers_are_one_launch() {
    let recorder = Refusing::new(None);
    let device = CudaDevice::with_driver(recorder.clone())
        .with_precision(MatrixPrecision::Bf16)
        .with_warpgroups(Warpgroups::Always);
    let mlp = Mlp::with_hidden(16, &[32, 48], 544, Activation::Relu, Activation::Linear).unwrap();
    let inner = InnerConfig { strategy: Some(Strategy::Dual), ..InnerConfig::new(Algorithm::Maml, 3) };
    let shape = Shape { tasks: 3, shots: 4, queries: 4 };
    let phi = vec![MetaOptimizer::uniform(inner.rates, &mlp, inner.steps, 0.05).unwrap()];
    let parameters = Parameters::initialise(&mlp, &mut ChaCha8Rng::seed_from_u64(1));
    let config = SupervisedConfig { mlp, loss: Loss::Mse, inner };
    let mut learner = MetaLearner::new(device, config, shape, phi).unwrap();
    learner.set_parameters(0, &parameters).unwrap();
    let numbers = |width: usize| vec![0.5; 12 * width];
    let [x, y] = [16, 544].map(numbers);
    for _ in 0..2 {
        recorder.launched.lock().unwrap().clear();
        let rows = SupervisedRows { support_x: &x, support_y: &y, query_x: &x, query_y: &y };
        learner.run(rows, &mut ChaCha8Rng::seed_from_u64(2)).unwrap();
    }
    let launched = recorder.launched.lock().unwrap();
    let count = |kernel: Kernel| launched.iter().filter(|launch| **launch == kernel).count();
    // On the way up and down of every step, and of the query rows; on the way back of every step, and before the first.
    assert_eq!(count(Kernel::Chain), 8, "{launched:?}");
    // The wide layer's: up, down, and the adjoint pass; each but the first, which nothing comes before, and those that go down.
    assert_eq!(count(Kernel::HopperForward64x64), 4, "{launched:?}");
    assert_eq!(count(Kernel::HopperBackward64x64), 7, "{launched:?}");
    assert_eq!(count(Kernel::HopperAdjoint64x64), 3, "{launched:?}");
    assert_eq!(count(Kernel::FinishForward) + count(Kernel::FinishAdjoint), 6, "{launched:?}");
    // Two copies of the support inputs, in 16 bits as well, these inputs and the query's in 16 bits; two losses; and two for each
    // layer's gradient.
    assert_eq!(launched.len(), 28 + 4 + 2 + 6, "{launched:?}");
}

/// After the inner loops of a small network the rest of a meta-step is one launch, with the same result as one by one, and
/// without any where it diverges.
pub fn small_networks_settle_in_one_launch() {
    let (recorder, shape) = (Refusing::new(None), Shape { tasks: 3, shots: 4, queries: 5 });
    let mlp = Mlp::with_hidden(1, &[40, 40], 1, Activation::Relu, Activation::Linear).unwrap();
    let inner = InnerConfig { strategy: Some(Strategy::Resident), ..InnerConfig::new(Algorithm::Maml, 2) };
    let parameters = Parameters::initialise(&mlp, &mut ChaCha8Rng::seed_from_u64(1));
    let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner };
    let learner = || {
        let phi = vec![MetaOptimizer::uniform(config.inner.rates, &mlp, 2, 0.05).unwrap()];
        let device = CudaDevice::with_driver(recorder.clone());
        let mut learner = MetaLearner::new(device, config.clone(), shape, phi).unwrap();
        learner.set_parameters(0, &parameters).unwrap();
        learner
    };
    let (mut together, mut apart) = (learner(), learner());
    let outer = OuterConfig { clip: Some(0.1), ..OuterConfig::adam(1e-2) };
    let numbers = |count: usize, from: f32| (0..count).map(|i| (from + i as f32).sin()).collect::<Vec<f32>>();
    let rng = &mut ChaCha8Rng::seed_from_u64(2);
    for (step, wrong) in [false, false, true, false].into_iter().enumerate() {
        let [x, query_x] = [(12, 0.5), (15, 2.5)].map(|(count, from)| numbers(count, from + step as f32));
        let [y, mut query_y] = [(12, 1.5), (15, 3.5)].map(|(count, from)| numbers(count, from));
        query_y[7] = if wrong { f32::NAN } else { query_y[7] };
        let rows = SupervisedRows { support_x: &x, support_y: &y, query_x: &query_x, query_y: &query_y };
        recorder.launched.lock().unwrap().clear();
        together.submit(rows, &outer, rng).unwrap();
        assert_eq!(together.wait().is_err(), wrong);
        let launched: Vec<Kernel> = recorder.launched.lock().unwrap().drain(..).collect();
        let replayed = step % 2 == 1;
        let expected = [Kernel::NarrowFew, Kernel::Settle];
        // What was found is forgotten by another.
        let others = launched.len() - if wrong { 1 } else { 0 };
        assert!(launched[..others] == expected || (replayed && launched.is_empty()), "{step}: {launched:?}");
        apart.run(rows, rng).unwrap();
        assert_eq!(apart.update(&outer).is_err(), wrong);
        assert!(together.parameters(0) == apart.parameters(0), "step {step}");
        assert!(together.optimizer_state() == apart.optimizer_state(), "step {step}");
    }
    assert!(together.parameters(0) != parameters);
}

/// The planner counts with a GPU's rates, by precision: as forms were measured on one, and where a CPU's choice would be another.
pub fn plans_go_by_the_gpu() {
    use MatrixPrecision::{Bf16, F32};
    let seed = [128, 256, 512, 4096];
    for (widths, shots, tasks, steps, precision, expected) in [
        (&seed[..], 5, 64, 5, Bf16, Strategy::Dual),
        (&seed[..], 5, 1024, 5, Bf16, Strategy::Folded),
        (&seed[..], 5, 16, 1, F32, Strategy::Dual),
        (&[1, 40, 40, 1], 10, 25, 1, F32, Strategy::Resident),
        (&[1, 40, 40, 1], 10, 25, 5, Bf16, Strategy::Resident),
        (&[1, 40, 40, 1], 10, 4096, 5, F32, Strategy::Resident),
        // So many rows of corrections that weights of its own cost a task less.
        (&[256, 256, 256], 50, 32, 10, F32, Strategy::Materialised),
        (&[256, 256, 256], 4, 32, 10, F32, Strategy::Dual),
    ] {
        let mlp = Mlp::with_hidden(
            widths[0],
            &widths[1..widths.len() - 1],
            widths[widths.len() - 1],
            Activation::Relu,
            Activation::Linear,
        );
        let mlp = mlp.unwrap();
        let inner = InnerConfig::new(Algorithm::Maml, steps);
        let phi = vec![MetaOptimizer::uniform(inner.rates, &mlp, steps, 0.01).unwrap()];
        let device = CudaDevice::with_driver(Refusing::new(None)).with_precision(precision);
        let config = SupervisedConfig { mlp, loss: Loss::Mse, inner };
        let learner = MetaLearner::new(device, config, Shape { tasks, shots, queries: shots }, phi).unwrap();
        let estimates = Strategy::ALL.map(|form| learner.estimate_in(form));
        assert_eq!(learner.planned(), expected, "{widths:?}, {tasks} tasks, {steps} steps: {estimates:?}");
    }
}
