//! Flop and bytes of every operation, counted by hand: 2 tasks, 3 rows, a layer from 4 to 5.

use innerloop::device::cpu::{CpuArena, CpuDevice};
use innerloop::device::{
    Adam, AdamRateGradient, AdamUpdate, AdjointBackward, AdjointForward, AdversarialCurvature, AdversarialLoss,
    ArenaPlan, ColumnScale, ColumnScaleAdjoint, Corrections, Device, Direction, Explained, FINDINGS, Finding, Gate,
    GradientCheck, Gram, GramInner, GramView, InnerUpdate, Linear, LinearBackward, LinearForward, LowRank, Normalise,
    NormaliseAdjoint, NormaliseJacobian, OuterProduct, OuterStep, OuterTerm, PixelCurvature, PixelLoss, Rate, Region,
    Resident, ResidentGradient, ReverseAdam, ReverseUpdate, SupervisedCurvature, SupervisedLoss, Term,
};
use innerloop::model::{Activation, Mlp};
use innerloop::objective::{FrameShape, Loss};

const TASKS: usize = 2;
const ROWS: usize = 3;
const INPUTS: usize = 4;
const OUTPUTS: usize = 5;
const LINEAR: Activation = Activation::Linear;
const TANH: Activation = Activation::Tanh;

/// What is operated on, in double precision.
struct Scene {
    device: Explained<CpuDevice>,
    arena: CpuArena<f64>,
    plan: ArenaPlan,
}

impl Scene {
    fn new() -> Self {
        let device = Explained::new(CpuDevice::new(1).unwrap());
        let arena = device.arena(1 << 12).unwrap();
        Self { device, arena, plan: ArenaPlan::default() }
    }

    fn take(&mut self, rows: usize, width: usize) -> Region {
        let region = self.plan.take(rows, width);
        assert!(self.plan.elements() <= 1 << 12);
        region
    }

    /// Rows of `blocks` blocks.
    fn blocks(&mut self, blocks: usize, width: usize) -> Region {
        self.take(blocks * TASKS * ROWS, width)
    }

    /// A layer of 4 x 5 weights and 5 biases; one a task, or one for all.
    fn layer(&mut self, per_task: bool) -> Linear {
        let width = (INPUTS + 1) * OUTPUTS;
        let weight = self.take(if per_task { TASKS } else { 1 }, width).offset;
        let task_stride = if per_task { width } else { 0 };
        Linear { weight, bias: weight + INPUTS * OUTPUTS, task_stride, inputs: INPUTS, outputs: OUTPUTS }
    }

    /// Two rows a task of that width, with coefficients for one block.
    fn term(&mut self, width: usize) -> Term {
        let coefficients = self.blocks(1, 2);
        let gram = GramView { offset: coefficients.offset, task_stride: ROWS * 2, row_stride: 2, column_stride: 1 };
        Term { gram, bias: None, scale: 0, rows: self.take(TASKS * 2, width) }
    }

    /// Carries one operation out, which must count as `[flop, flop of corrections, elements]`.
    #[track_caller]
    fn counts(
        &mut self,
        name: &str,
        expected: [u64; 3],
        operation: impl FnOnce(&Explained<CpuDevice>, &mut CpuArena<f64>),
    ) {
        self.device.take();
        operation(&self.device, &mut self.arena);
        let stages = self.device.take();
        let (found, stage) = stages.iter().next().unwrap();
        assert_eq!((stages.len(), *found, stage.calls), (1, name, 1));
        let work = stage.work;
        assert_eq!(
            [work.flop, work.correction_flop, work.bytes],
            [expected[0], expected[1], 8 * expected[2]],
            "{name}"
        );
        assert!(stage.seconds > 0.0);
    }
}

#[test]
fn products_with_weights() {
    let mut s = Scene::new();
    let (shared, own) = (s.layer(false), s.layer(true));
    let (x, y) = (s.blocks(1, INPUTS), s.blocks(1, OUTPUTS));
    let (x2, y2) = (s.blocks(2, INPUTS), s.blocks(2, OUTPUTS));
    let none = Corrections::NONE;
    let forward = |layer, input, output, corrections| LinearForward {
        tasks: TASKS,
        rows: ROWS,
        input,
        layer,
        corrections,
        activation: TANH,
        output,
    };
    // 2 * 6 rows * 4 * 5; input, weights and biases, output.
    let operation = forward(shared, x, y, none);
    s.counts("linear_forward", [240, 0, 24 + 25 + 30], |d, a| d.linear_forward(a, &operation));
    let operation = forward(own, x, y, none);
    s.counts("linear_forward", [240, 0, 24 + 2 * 25 + 30], |d, a| d.linear_forward(a, &operation));
    // Two blocks take the same rows with coefficients of their own: 2 * 12 rows * 2 * 5 flop.
    let (mut first, second, scratch) = (s.term(OUTPUTS), s.term(OUTPUTS), s.take(1, 64));
    first.rows = second.rows;
    let (blocks, scales) = ([vec![first], vec![second]], s.take(1, 1));
    let corrections = Corrections { share: None, blocks: &blocks, scales, scratch };
    let operation = forward(shared, x2, y2, corrections);
    let elements = 48 + 25 + 60 + 2 * 12 + 20;
    s.counts("linear_forward", [480, 240, elements], |d, a| d.linear_forward(a, &operation));
    let operation = LowRank {
        tasks: TASKS,
        rows: ROWS,
        base: None,
        corrections: Corrections { blocks: &blocks[..1], ..corrections },
        gate: None,
        output: y,
        accumulate: false,
    };
    s.counts("low_rank", [0, 120, 12 + 20 + 30], |d, a| d.low_rank(a, &operation));

    // One block of values gates both; a linear activation's are not needed.
    let gate = |activation| Gate { activation, values: x, blocks: &[0, 0] };
    for (gate, values) in [(Some(gate(Activation::Relu)), 24), (Some(gate(LINEAR)), 0), (None, 0)] {
        let operation =
            LinearBackward { tasks: TASKS, rows: ROWS, delta: y2, layer: shared, corrections: none, gate, output: x2 };
        s.counts("linear_backward", [480, 0, 60 + 20 + values + 48], |d, a| d.linear_backward(a, &operation));
    }

    let direction = Direction { layer: s.layer(true), values: s.blocks(1, INPUTS) };
    let (delta, z, e) = (s.blocks(1, OUTPUTS), s.blocks(1, OUTPUTS), s.blocks(1, OUTPUTS));
    let adjoint = |input, direction, activation| AdjointForward {
        tasks: TASKS,
        rows: ROWS,
        input,
        layer: shared,
        direction,
        corrections: none,
        gate: Gate { activation, values: y, blocks: &[0] },
        delta,
        z_cotangent: z,
        e_cotangent: e,
    };
    // Values and e; where the activation is curved, delta and z too.
    let operation = adjoint(Some((x, 0)), None, TANH);
    s.counts("adjoint_forward", [240, 0, 24 + 20 + 120], |d, a| d.adjoint_forward(a, &operation));
    let operation = adjoint(Some((x, 0)), None, Activation::Relu);
    s.counts("adjoint_forward", [240, 0, 24 + 20 + 60], |d, a| d.adjoint_forward(a, &operation));
    let operation = adjoint(Some((x, 0)), Some(direction), TANH);
    s.counts("adjoint_forward", [480, 0, 44 + 120 + 24 + 50], |d, a| d.adjoint_forward(a, &operation));
    let operation = adjoint(None, Some(direction), TANH);
    s.counts("adjoint_forward", [240, 0, 120 + 24 + 50], |d, a| d.adjoint_forward(a, &operation));

    let direction = Direction { values: s.blocks(1, OUTPUTS), ..direction };
    for (direction, accumulate, expected) in
        [(None, false, [240, 0, 30 + 20 + 24]), (Some(direction), true, [480, 0, 30 + 20 + 2 * 24 + 30 + 40])]
    {
        let operation = AdjointBackward {
            tasks: TASKS,
            rows: ROWS,
            z_cotangent: z,
            layer: shared,
            direction,
            corrections: none,
            gate: None,
            output: x,
            accumulate,
        };
        s.counts("adjoint_backward", expected, |d, a| d.adjoint_backward(a, &operation));
    }
}

#[test]
fn products_of_rows() {
    let mut s = Scene::new();
    let (x, y, output) = (s.blocks(2, INPUTS), [s.blocks(1, INPUTS), s.blocks(1, INPUTS)], s.take(12, 6));
    let operation = Gram { tasks: TASKS, rows: ROWS, x, y: &y, output, accumulate: false };
    // 12 rows, each with 6 of its own task: 72 products of 4.
    s.counts("gram", [0, 576, 48 + 48 + 72], |d, a| d.gram(a, &operation));
    let [left, other] = y;
    let output = s.take(1, 2);
    for (right, expected) in [(Some(other), [0, 48, 24 + 24 + 4]), (None, [0, 24, 24 + 4])] {
        let operation = GramInner { left, right, group: 2, plus_one: true, scale: 0.5, output };
        s.counts("gram_inner", expected, |d, a| d.gram_inner(a, &operation));
    }
    let of = ColumnScale { from: left, scale: s.take(1, INPUTS), activation: TANH, to: other };
    s.counts("column_scale", [0, 0, 24 + 4 + 24], |d, a| d.column_scale(a, &of));
    let (cotangent, gradient) = (s.blocks(1, INPUTS), s.take(1, INPUTS));
    for (gradient, expected) in [(None, [0, 0, 24 + 4 + 48]), (Some(gradient), [48, 0, 24 + 4 + 48 + 24 + 8])] {
        let operation = ColumnScaleAdjoint { of, cotangent, gradient, weight: 1.0 };
        s.counts("column_scale_adjoint", expected, |d, a| d.column_scale_adjoint(a, &operation));
    }
    let (p, q) = (s.blocks(1, OUTPUTS), s.blocks(1, INPUTS));
    let terms = [OuterTerm { p, q, bias: 1.0, blocks: 1, scale: 1.0, share: None }];
    for (per_task, layer) in [(false, 25), (true, 2 * 50)] {
        let weights = s.layer(per_task);
        let operation = OuterProduct { tasks: TASKS, terms: &terms, layer: weights, accumulate: per_task };
        s.counts("outer_product", [240, 0, 30 + 24 + layer], |d, a| d.outer_product(a, &operation));
    }
}

#[test]
fn batch_normalisation() {
    let mut s = Scene::new();
    let [rows, output, from, to, g, u, y, e] = [(); 8].map(|()| s.blocks(1, OUTPUTS));
    let (inverse, shift) = (s.take(TASKS, OUTPUTS), s.take(1, OUTPUTS));
    // A mean of 6 rows of 5, then one of squares; rows are read and written.
    let operation = Normalise { tasks: TASKS, epsilon: 0.1, rows, inverse, shift, activation: TANH, output };
    s.counts("normalise", [30 + 60, 0, 60 + 10 + 5 + 30], |d, a| d.normalise(a, &operation));
    for (accumulate, written) in [(false, 30), (true, 60)] {
        let operation = NormaliseJacobian { tasks: TASKS, normalised: rows, inverse, from, to, accumulate };
        let expected = [30 + 60, 0, 30 + 10 + 30 + written];
        s.counts("normalise_jacobian", expected, |d, a| d.normalise_jacobian(a, &operation));
    }
    // A linear activation needs no values, and what is not curved has no cotangent of y.
    for (activation, more) in [(LINEAR, 0), (Activation::Relu, 30), (TANH, 60)] {
        let operation = NormaliseAdjoint {
            tasks: TASKS,
            normalised: rows,
            inverse,
            activation,
            values: output,
            y_delta: from,
            u_delta: to,
            cotangent: g,
            u_cotangent: u,
            y_cotangent: y,
            e_cotangent: e,
        };
        let expected = [30 + 3 * 60, 0, 6 * 30 + 10 + more];
        s.counts("normalise_adjoint", expected, |d, a| d.normalise_adjoint(a, &operation));
    }
}

#[test]
fn inner_steps() {
    let mut s = Scene::new();
    let (delta, values) = (s.blocks(1, OUTPUTS), s.blocks(1, INPUTS));
    let (from, rates) = (s.layer(false), s.layer(false));
    let [to, v, w, m, n, direction] = [(); 6].map(|()| s.layer(true));
    let own_rates = Rate::PerParameter(rates);
    for (rate, velocity, new_velocity, layers) in
        [(Rate::Uniform(0.1), None, None, 25 + 50), (own_rates, Some(v), Some(w), 25 + 50 + 50 + 50 + 25)]
    {
        let operation = InnerUpdate {
            tasks: TASKS,
            rows: ROWS,
            delta,
            values,
            bias: 1.0,
            bias_factor: None,
            from,
            to,
            rate,
            momentum: 0.9,
            decay: 0.0,
            velocity,
            new_velocity,
        };
        s.counts("inner_update", [240, 0, 30 + 24 + layers], |d, a| d.inner_update(a, &operation));
    }
    let one = s.take(1, 1);
    for (accumulate, rate_gradient, expected) in
        [(false, None, [0, 0, 50 + 50]), (true, Some(one), [100, 0, 50 + 100 + 50 + 2])]
    {
        let operation = ReverseUpdate {
            tasks: TASKS,
            weight_cotangent: to,
            direction,
            accumulate,
            momentum: 0.9,
            rate: Rate::Uniform(0.1),
            velocity: rate_gradient.map(|_| v),
            rate_gradient,
            scale: 1.0,
        };
        s.counts("reverse_update", expected, |d, a| d.reverse_update(a, &operation));
    }
    let adam = Adam::at_step([0.9, 0.99], 1e-8, 1);
    for (moments, elements) in [(None, 30 + 24 + 25 + 50 + 100), (Some([v, w]), 30 + 24 + 25 + 50 + 200)] {
        let operation = AdamUpdate {
            tasks: TASKS,
            rows: ROWS,
            delta,
            values,
            from,
            to,
            rate: Rate::Uniform(0.1),
            adam,
            moments,
            new_moments: [v, w],
        };
        s.counts("adam_update", [240, 0, elements], |d, a| d.adam_update(a, &operation));
    }
    let operation = AdamRateGradient {
        tasks: TASKS,
        weight_cotangent: to,
        moments: [v, w],
        adam,
        moved: direction,
        rate_gradient: one,
        scale: 1.0,
    };
    s.counts("adam_rate_gradient", [100, 0, 4 * 50 + 2], |d, a| d.adam_rate_gradient(a, &operation));
    let operation = ReverseAdam {
        tasks: TASKS,
        rows: ROWS,
        delta,
        values,
        weight_cotangent: to,
        moments: [v, w],
        moment_cotangents: [m, n],
        accumulate: true,
        rate: own_rates,
        adam,
        direction,
    };
    s.counts("reverse_adam", [240, 0, 30 + 24 + 4 * 50 + 4 * 50 + 25], |d, a| d.reverse_adam(a, &operation));
}

#[test]
fn losses() {
    let mut s = Scene::new();
    let [prediction, target, delta, e, z] = [(); 5].map(|()| s.blocks(1, OUTPUTS));
    let task_loss = Some(s.take(1, TASKS));
    for (loss, activation, read) in [
        (Loss::Mse, LINEAR, 0),
        (Loss::Mse, TANH, 30),
        (Loss::BceWithLogits, LINEAR, 30),
        (Loss::CrossEntropy, LINEAR, 60),
    ] {
        let at = SupervisedLoss { tasks: TASKS, loss, activation, prediction, target, delta: Some(delta), task_loss };
        s.counts("supervised_loss", [0, 0, 3 * 30 + 2], |d, a| d.supervised_loss(a, &at));
        let operation = SupervisedCurvature { at, e_cotangent: e, z_cotangent: z, accumulate: true };
        s.counts("supervised_curvature", [0, 0, read + 30 + 60], |d, a| d.supervised_curvature(a, &operation));
    }
    let (logits, delta, e, z) = (s.blocks(2, 1), s.blocks(3, 1), s.blocks(3, 1), s.blocks(2, 1));
    let at = AdversarialLoss {
        tasks: TASKS,
        weight: 1.0,
        logits,
        activation: LINEAR,
        delta,
        discriminator_loss: Some(s.take(1, TASKS)),
        generator_loss: None,
    };
    s.counts("adversarial_loss", [0, 0, 12 + 18 + 2], |d, a| d.adversarial_loss(a, &at));
    let operation = AdversarialCurvature { at, e_cotangent: e, z_cotangent: z, accumulate: false };
    s.counts("adversarial_curvature", [0, 0, 12 + 18 + 12], |d, a| d.adversarial_curvature(a, &operation));
    // Clips of 2 frames of 2 x 2.
    let [prediction, target, upstream, delta, e, z] = [(); 6].map(|()| s.blocks(1, 8));
    let at = PixelLoss {
        tasks: TASKS,
        frame: FrameShape { height: 2, width: 2, channels: 1 },
        reconstruction: 1.0,
        motion: 1.0,
        texture: 1.0,
        prediction,
        target,
        activation: TANH,
        upstream,
        delta,
        task_loss,
    };
    s.counts("pixel_loss", [0, 0, 4 * 48 + 4], |d, a| d.pixel_loss(a, &at));
    let operation = PixelCurvature { at, e_cotangent: e, z_cotangent: z, accumulate: false };
    s.counts("pixel_curvature", [0, 0, 4 * 48], |d, a| d.pixel_curvature(a, &operation));
}

#[test]
fn whole_inner_loops() {
    let mut s = Scene::new();
    let mlp = Mlp::new(&[4, 5, 2], &[TANH, LINEAR]).unwrap();
    let mut rows = || [4, 2].map(|width| s.blocks(1, width));
    let (support, query) = (rows(), rows());
    let operation = Resident {
        mlp: &mlp,
        loss: Loss::Mse,
        tasks: TASKS,
        shots: ROWS,
        queries: ROWS,
        steps: 2,
        first_moving: 0,
        kind: ResidentGradient::Exact,
        momentum: 0.0,
        decay: 0.0,
        parameters: s.take(1, 37),
        rates: s.take(2, 2),
        per_parameter: false,
        support,
        query,
        scale: 0.5,
        task_loss: Some(s.take(1, TASKS)),
        gradient: Some([s.take(1, 37), s.take(TASKS, 37)]),
        rate_gradient: None,
        adapted: None,
        trace: None,
    };
    // Of the lower layer's 20 weights, in each step: forwards and the step itself, back up and to the cotangent; in the query,
    // forwards and to the cotangent. Of the upper layer's 10 also: the deltas below; up through both the weights and the
    // direction, down through both, and to the cotangent twice.
    let (lower, upper) = (2 * 20 * (2 * ROWS * 4 + ROWS * 2), 2 * 10 * (2 * ROWS * 9 + ROWS * 3));
    let elements = 37 + 4 + 2 * TASKS * ROWS * 6 + TASKS + 37;
    s.counts("resident", [(TASKS * (lower + upper)) as u64, 0, elements as u64], |d, a| d.resident(a, &operation));
    let first_order = Resident { kind: ResidentGradient::FirstOrder, ..operation };
    let (lower, upper) = (2 * 20 * (2 * ROWS * 2 + ROWS * 2), 2 * 10 * (2 * ROWS * 3 + ROWS * 3));
    s.counts("resident", [(TASKS * (lower + upper)) as u64, 0, elements as u64], |d, a| d.resident(a, &first_order));
}

#[test]
fn arrays() {
    let mut s = Scene::new();
    let [x, y] = [(); 2].map(|()| s.blocks(1, INPUTS));
    let (row, host) = (s.take(1, INPUTS), [1.0; 24]);
    s.counts("upload", [0, 0, 48], |d, a| d.upload(a, x, &host));
    s.counts("download", [0, 0, 48], |d, a| d.download(a, x, &mut host.clone()));
    s.counts("add_host", [0, 0, 72], |d, a| d.add_host(a, x, &host));
    s.counts("fill", [0, 0, 24], |d, a| d.fill(a, x, 2.0));
    s.counts("copy", [0, 0, 48], |d, a| d.copy(a, x, y));
    // Two rows there and back, and two indices of half a number each.
    s.counts("gather", [0, 0, 16 + 1], |d, a| d.gather(a, x, &[5, 1], y.rows(0, 2)));
    s.counts("sum_rows", [24, 0, 24 + 8], |d, a| d.sum_rows(a, x, 1.0, row, true));
    s.counts("add_scaled", [0, 0, 72], |d, a| d.add_scaled(a, x, 1.0, y));
    let [parameters, gradient, first, second] = [(); 4].map(|()| s.take(1, 25));
    let findings = s.take(1, FINDINGS);
    let gradients = [Some(x), None, None, None, None, None];
    let check = GradientCheck { losses: [Some(row), None], gradients, clip: None, findings };
    s.counts("gradient_check", [48, 0, 24 + 4], |d, a| d.gradient_check(a, &check));
    let finding = Finding { findings, gradient: 0 };
    let in_logarithm = false;
    let sgd = OuterStep::Sgd { in_logarithm, parameters, gradient, rate: 0.1, finding };
    s.counts("outer_step", [0, 0, 75], |d, a| d.outer_step(a, &sgd));
    let betas = (0.9, 0.99);
    let adam = OuterStep::Adam {
        in_logarithm,
        parameters,
        gradient,
        first,
        second,
        rate: 0.1,
        finding,
        betas,
        epsilon: 1e-8,
        step: 1,
    };
    s.counts("outer_step", [0, 0, 175], |d, a| d.outer_step(a, &adam));
}
