//! The CUDA kernels and their launchers, emulated on the CPU.

mod device;
mod graphs;
mod tiles;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use innerloop::device::cuda::{
    CudaDevice, Driver, EmulatedDriver, EmulatedGraph, EmulatedMemory, GraphStep, GraphWork, Kernel, PackedMatrix,
    TensorMap, Warpgroups, WrittenMatrices,
};
use innerloop::device::{ArenaPlan, Corrections, Device, Linear, LinearForward, MatrixPrecision, Region};
use innerloop::model::{Activation, Mlp, Parameters};
use innerloop::objective::Loss;
use innerloop::problem::Problem;
use innerloop::{
    Algorithm, InnerConfig, InnerOptimizer, MetaLearner, MetaOptimizer, OuterConfig, RateKind, Result, Shape, Strategy,
    SupervisedConfig, SupervisedRows,
};
use libtest_mimic::{Arguments, Trial};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn main() {
    let arguments = Arguments::from_args();
    let own: [(&str, fn()); 15] = [
        ("measured_tiles_are_taken", tiles::measured_tiles_are_taken),
        ("packed_weights_are_kept_until_written", packed_weights_are_kept_until_written),
        ("a_gradient_alone_diverges", graphs::a_gradient_alone_diverges),
        ("graphs_replay_meta_steps", graphs::replay_meta_steps),
        ("only_what_nothing_reads_is_left_out", graphs::only_what_nothing_reads_is_left_out),
        ("a_fault_stops_what_follows", graphs::a_fault_stops_what_follows),
        ("rows_are_copied_where_they_are_made", graphs::rows_are_copied_where_they_are_made),
        ("refused_graphs_are_told", graphs::refused_graphs_are_told),
        ("tiles_fit_the_shape", tiles::tiles_fit_the_shape),
        ("narrow_layers_are_one_launch", tiles::narrow_layers_are_one_launch),
        ("small_networks_settle_in_one_launch", tiles::small_networks_settle_in_one_launch),
        ("plans_go_by_the_gpu", tiles::plans_go_by_the_gpu),
        ("failures_are_told", failures_are_told),
        ("every_kernel_is_named", every_kernel_is_named),
        ("meta_steps_allocate_nothing", meta_steps_allocate_nothing),
    ];
    // First, since among them are those that take longest.
    let mut trials: Vec<Trial> = own
        .map(|(name, check)| {
            Trial::test(name, move || {
                check();
                Ok(())
            })
        })
        .into();
    let checks = device::all::<CudaDevice<EmulatedDriver>>().into_iter().map(|(name, check)| {
        Trial::test(name, move || {
            check(&CudaDevice::emulated);
            Ok(())
        })
    });
    trials.extend(checks);
    trials.extend(device::on_tensor_cores::<CudaDevice<EmulatedDriver>>().into_iter().map(
        |(name, precision, check)| {
            Trial::test(name, move || {
                check(&|seed| CudaDevice::emulated(seed).with_precision(precision), precision);
                Ok(())
            })
        },
    ));
    trials.extend(device::on_warpgroups::<CudaDevice<EmulatedDriver>>().into_iter().map(|(name, precision, check)| {
        Trial::test(name, move || {
            let make = |seed| CudaDevice::emulated(seed).with_precision(precision).with_warpgroups(Warpgroups::Always);
            check(&make, precision);
            Ok(())
        })
    }));
    trials.push(Trial::test("warpgroups_outer_product_of_many_rows_bf16", || {
        let make =
            |seed| CudaDevice::emulated(seed).with_precision(MatrixPrecision::Bf16).with_warpgroups(Warpgroups::Always);
        // Few enough for the emulation: a stage is used twice.
        device::gradients::outer_product_of_many_rows(&make, (700, (264, 136)));
        Ok(())
    }));
    libtest_mimic::run(&arguments, trials).exit();
}

/// Refuses the launch of one kernel, or graphs, and keeps count.
#[derive(Clone)]
struct Refusing {
    driver: EmulatedDriver,
    kernel: Option<Kernel>,
    calls: Arc<AtomicUsize>,
    graphs: Arc<AtomicUsize>,
    changes: Arc<AtomicUsize>,
    replays: Arc<AtomicUsize>,
    refuses_graphs: Arc<AtomicBool>,
    launched: Arc<Mutex<Vec<Kernel>>>,
    /// Of the learners of the tests of graphs.
    precision: MatrixPrecision,
    rates: RateKind,
}

impl Refusing {
    fn new(kernel: Option<Kernel>) -> Self {
        Self {
            driver: EmulatedDriver::new(0),
            kernel,
            calls: Arc::default(),
            graphs: Arc::default(),
            changes: Arc::default(),
            replays: Arc::default(),
            refuses_graphs: Arc::default(),
            launched: Arc::default(),
            precision: MatrixPrecision::F32,
            rates: RateKind::PerLayerPerStep,
        }
    }
}

impl Driver for Refusing {
    type Memory = EmulatedMemory;
    type Graph = EmulatedGraph;

    fn name(&self) -> String {
        "cuda:9".into()
    }
    fn keep_to(memory: &EmulatedMemory, regions: impl Iterator<Item = (usize, usize)>) {
        EmulatedDriver::keep_to(memory, regions);
    }
    fn allocate(&self, elements: usize) -> Result<EmulatedMemory> {
        self.driver.allocate(elements)
    }
    fn write(&self, memory: &mut EmulatedMemory, offset: usize, from: &[f32]) -> Result<(), String> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.driver.write(memory, offset, from)
    }
    fn read(&self, memory: &EmulatedMemory, offset: usize, to: &mut [f32]) -> Result<(), String> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.driver.read(memory, offset, to)
    }
    fn shared_bytes(&self) -> usize {
        self.driver.shared_bytes()
    }
    fn warpgroups(&self) -> Option<u32> {
        self.driver.warpgroups()
    }
    fn tensor_map(&self, memory: &EmulatedMemory, matrix: PackedMatrix) -> Result<TensorMap, String> {
        self.driver.tensor_map(memory, matrix)
    }

    fn written_map(&self, memory: &EmulatedMemory, matrices: WrittenMatrices) -> Result<TensorMap, String> {
        self.driver.written_map(memory, matrices)
    }
    unsafe fn launch(
        &self,
        memory: &EmulatedMemory,
        kernel: Kernel,
        grid: [u32; 3],
        shared: u32,
        arguments: *const c_void,
    ) -> Result<(), String> {
        self.calls.fetch_add(1, Ordering::Relaxed);
        self.launched.lock().unwrap().push(kernel);
        if Some(kernel) == self.kernel {
            return Err("CUDA_ERROR_LAUNCH_FAILED (unspecified launch failure)".into());
        }
        // SAFETY: the caller's promise.
        unsafe { self.driver.launch(memory, kernel, grid, shared, arguments) }
    }
    unsafe fn graph(&self, memory: &EmulatedMemory, steps: &[GraphStep<'_>]) -> Result<EmulatedGraph, String> {
        self.graphs.fetch_add(1, Ordering::Relaxed);
        let kernels = steps.iter().filter_map(|step| match step.work {
            GraphWork::Launch { kernel, .. } => Some(kernel),
            _ => None,
        });
        self.launched.lock().unwrap().extend(kernels);
        if self.refuses_graphs.load(Ordering::Relaxed) {
            return Err("CUDA_ERROR_INVALID_VALUE (invalid argument)".into());
        }
        // SAFETY: the caller's promise.
        unsafe { self.driver.graph(memory, steps) }
    }
    unsafe fn change(
        &self,
        memory: &EmulatedMemory,
        graph: &mut EmulatedGraph,
        index: usize,
        step: &GraphStep<'_>,
    ) -> Result<(), String> {
        self.changes.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { self.driver.change(memory, graph, index, step) }
    }
    fn staging<'g>(&self, graph: &'g mut EmulatedGraph) -> Result<&'g mut [f32], String> {
        self.driver.staging(graph)
    }
    unsafe fn replay(&self, memory: &EmulatedMemory, graph: &mut EmulatedGraph) -> Result<(), String> {
        self.replays.fetch_add(1, Ordering::Relaxed);
        // SAFETY: the caller's promise.
        unsafe { self.driver.replay(memory, graph) }
    }
    fn results<'g>(&self, graph: &'g mut EmulatedGraph) -> Result<&'g [f32], String> {
        self.driver.results(graph)
    }
}

/// The first failure names the device, the kernel, its grid and its shapes; nothing is tried after it until it was told.
fn failures_are_told() {
    let driver = Refusing::new(Some(Kernel::SumTallRows));
    let calls = driver.calls.clone();
    let device = CudaDevice::with_driver(driver);
    let mut arena = device.arena(700).unwrap();
    let before = calls.load(Ordering::Relaxed);
    let (from, to) = (Region { offset: 0, rows: 3, width: 150 }, Region { offset: 450, rows: 1, width: 150 });
    device.fill(&mut arena, from, 1.0);
    device.sum_rows(&mut arena, from, 1.0, to, false);
    device.fill(&mut arena, to, 2.0);
    assert_eq!(calls.load(Ordering::Relaxed) - before, 2, "work went on after a failure");
    let message = device.check().unwrap_err().to_string();
    for part in ["cuda:9", "kernel sum_tall_rows", "grid of 5 x 1 x 1", "3 rows of 150", "CUDA_ERROR_LAUNCH_FAILED"] {
        assert!(message.contains(part), "{part:?} is not in {message:?}");
    }
    assert!(!message.contains('\n'), "{message}");
    device.check().unwrap();
    device.fill(&mut arena, to, 2.0);
    let mut values = [0.0; 150];
    device.download(&arena, to, &mut values);
    device.check().unwrap();
    assert_eq!(values, [2.0; 150]);
}

/// Problems that launch all kernels between them.
const MANY_KERNELS: [&str; 12] = [
    "adam_anil.safetensors",
    "adam_batch_norm.safetensors",
    "adam_gan_fomaml.safetensors",
    "adam_gan_maml.safetensors",
    "adam_maml_per_parameter_rates.safetensors",
    "anil_mse_3step.safetensors",
    "batch_norm_5_way_1_shot.safetensors",
    "batch_norm_momentum_decay.safetensors",
    "decay_gan_network.safetensors",
    "gan_fomaml_3step.safetensors",
    "maml_per_layer_per_step_rates.safetensors",
    "maml_sinusoid_shape.safetensors",
];

/// Whichever kernel fails, the error says which, over which grid and shapes, and the meta-step returns it.
fn every_kernel_is_named() {
    // What no single meta-step over all rows has a use for, the discriminators of the problems, whose activations are not
    // curved, their tasks, which have few rows, and their layers, which are narrower than a tensor core's product.
    let outside = [
        Kernel::CheckGradient,
        Kernel::Sgd,
        Kernel::Adam,
        Kernel::Settle,
        Kernel::Copy,
        Kernel::Gather,
        Kernel::AddScaled,
        Kernel::AdjointGate,
        Kernel::InnerUpdate,
        Kernel::SumRows,
        Kernel::NarrowMany,
        Kernel::NarrowMma,
        Kernel::PackFragments,
    ];
    // Nor are the problems large enough for large tiles of tensor cores.
    let large = |kernel: &Kernel| {
        let name = kernel.name();
        name.ends_with("_128x128")
            || name.ends_with("_128x256")
            || name.ends_with("x160")
            || (name.ends_with("_64x64") && *kernel != Kernel::OuterProduct64x64)
    };
    let mut unmet: Vec<Kernel> =
        Kernel::ALL.iter().copied().filter(|kernel| !outside.contains(kernel) && !large(kernel)).collect();
    for path in
        device::golden::problems().into_iter().filter(|path| MANY_KERNELS.iter().any(|name| path.ends_with(name)))
    {
        let problem = Problem::read(&path).unwrap();
        for (strategy, precision, warpgroups) in [
            (Strategy::Dual, MatrixPrecision::F32, Warpgroups::Large),
            (Strategy::Materialised, MatrixPrecision::F32, Warpgroups::Large),
            (Strategy::Resident, MatrixPrecision::F32, Warpgroups::Large),
            (Strategy::Dual, MatrixPrecision::Bf16, Warpgroups::Large),
            (Strategy::Dual, MatrixPrecision::Bf16, Warpgroups::Always),
        ] {
            if !device::golden::has_form(&path, strategy) {
                continue;
            }
            let device = |driver: Refusing| {
                CudaDevice::with_driver(driver).with_precision(precision).with_warpgroups(warpgroups)
            };
            let recorder = Refusing::new(None);
            problem.solve::<f32>(device(recorder.clone()), Some(strategy)).unwrap();
            let launched = recorder.launched.lock().unwrap();
            unmet.retain(|kernel| {
                if !launched.contains(kernel) {
                    return true;
                }
                let refusing = device(Refusing::new(Some(*kernel)));
                let error = problem.solve::<f32>(refusing, Some(strategy)).unwrap_err();
                let (message, name) = (error.to_string(), kernel.name());
                let (_, told) = message.split_once(&format!("kernel {name} over a grid of ")).expect(&message);
                let (grid, shapes) = told.split_once(" blocks (").expect(&message);
                let grid: Vec<u32> = grid.split(" x ").map(|n| n.parse().expect(&message)).collect();
                assert!(grid.len() == 3 && shapes.starts_with(|c: char| c.is_ascii_digit()), "{message}");
                assert!(message.contains("cuda:9") && !message.contains('\n'), "{message}");
                false
            });
        }
    }
    assert_eq!(unmet, [], "none of these problems launches them");
}

/// The copy of weights serves until they change, and not a moment longer.
fn packed_weights_are_kept_until_written() {
    let driver = Refusing::new(None);
    let launched = driver.launched.clone();
    let device =
        CudaDevice::with_driver(driver).with_precision(MatrixPrecision::Bf16).with_warpgroups(Warpgroups::Always);
    let mut plan = ArenaPlan::default();
    let (rows, inputs, outputs) = (3, 5, 7);
    let (input, output) = (plan.take(rows, inputs), plan.take(rows, outputs));
    let (weight, bias) = (plan.take(outputs, inputs), plan.take(1, outputs));
    let mut arena = device.arena(plan.elements()).unwrap();
    let layer = Linear { weight: weight.offset, bias: bias.offset, task_stride: 0, inputs, outputs };
    let forward = |arena: &mut _| {
        let (corrections, activation) = (Corrections::NONE, Activation::Linear);
        let operation = LinearForward { tasks: 1, rows, input, layer, corrections, activation, output };
        device.linear_forward(arena, &operation);
        let mut values = vec![0.0; output.len()];
        device.download(arena, output, &mut values);
        device.check().unwrap();
        let packed = launched.lock().unwrap().iter().filter(|kernel| **kernel == Kernel::Pack).count();
        (values, packed)
    };
    device.fill(&mut arena, bias, 0.0);
    device.fill(&mut arena, weight, 1.0);
    device.fill(&mut arena, input, 1.0);
    assert_eq!(forward(&mut arena), (vec![5.0; output.len()], 2));
    // Other rows, the same weights.
    device.fill(&mut arena, input, 2.0);
    assert_eq!(forward(&mut arena), (vec![10.0; output.len()], 3));
    // One weight of each output.
    for row in 0..outputs {
        device.fill(&mut arena, weight.rows(row, 1).elements(inputs - 1, 1), 3.0);
    }
    assert_eq!(forward(&mut arena), (vec![14.0; output.len()], 5));
}

thread_local! {
    static ALLOCATIONS: Cell<usize> = const { Cell::new(0) };
}

/// Counts the allocations of each thread; the device works on the calling one.
struct Counting;

// SAFETY: hands everything on to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let _ = ALLOCATIONS.try_with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's promise.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        // SAFETY: the caller's promise.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// The launchers take no memory of the host either.
fn meta_steps_allocate_nothing() {
    let mlp = Mlp::with_hidden(3, &[9, 5], 2, Activation::Tanh, Activation::Linear).unwrap();
    let shape = Shape { tasks: 3, shots: 4, queries: 2 };
    let wave = |n: usize| (0..n).map(|i| (i as f32 * 0.37).sin()).collect::<Vec<_>>();
    let (support_x, support_y) = (wave(3 * 4 * 3), wave(3 * 4 * 2));
    let (query_x, query_y) = (wave(3 * 2 * 3), wave(3 * 2 * 2));
    let rows = SupervisedRows { support_x: &support_x, support_y: &support_y, query_x: &query_x, query_y: &query_y };
    for (optimizer, strategy) in [
        (InnerOptimizer::Sgd { momentum: 0.5 }, Strategy::Dual),
        (InnerOptimizer::Sgd { momentum: 0.5 }, Strategy::Materialised),
        (InnerOptimizer::ADAM, Strategy::Materialised),
        (InnerOptimizer::Sgd { momentum: 0.5 }, Strategy::Resident),
    ] {
        let inner = InnerConfig {
            optimizer,
            strategy: Some(strategy),
            minibatch: (strategy != Strategy::Resident).then_some(3),
            learn_rates: true,
            ..InnerConfig::new(Algorithm::Maml, 2)
        };
        let phi = MetaOptimizer::uniform(inner.rates, &mlp, inner.steps, 0.05).unwrap();
        let config = SupervisedConfig { mlp: mlp.clone(), loss: Loss::Mse, inner };
        let mut learner = MetaLearner::new(CudaDevice::emulated(0), config, shape, vec![phi]).unwrap();
        let mut rng = ChaCha8Rng::seed_from_u64(3);
        learner.set_parameters(0, &Parameters::initialise(&mlp, &mut rng)).unwrap();
        let outer = OuterConfig { clip: Some(1.0), ..OuterConfig::adam(1e-4) };
        let mut before = 0;
        // The first is carried out as it comes, the second is made a graph of, the third changes its arguments.
        for step in 0..6 {
            learner.run(rows, &mut rng).unwrap();
            learner.update(&outer).unwrap();
            let count = ALLOCATIONS.get();
            assert!(step < 3 || count == before, "{optimizer:?} {strategy}: {} in step {step}", count - before);
            before = ALLOCATIONS.get();
        }
    }
}
