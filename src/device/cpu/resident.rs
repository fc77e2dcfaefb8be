//! Whole inner loops, as many tasks at once as a vector has lanes: the vectors of a group of tasks stay in a core's caches from
//! the first step to the last of the way back.

use super::lanes::{Grid, Product, Term, multiply};
use super::lanes_loss::LanesLoss;
use super::matrix::with_activation;
use super::scratch::scratch;
use super::{Base, CpuArena, CpuDevice};
use crate::device::resident::{Pass, Places};
use crate::device::{Region, Resident, ResidentGradient};
use crate::model::Activation;
use crate::scalar::Scalar;

/// Bytes of one task that are taken: a group of them fills the nearer caches several times over.
pub(super) const TASK_BYTES: usize = 1 << 20;

/// See [`Resident`].
pub(super) fn resident<T: Scalar>(device: &CpuDevice, arena: &mut CpuArena<T>, op: &Resident<'_, T>) {
    let (reads, writes) = op.access();
    let base = arena.shared(&reads, &writes);
    let places = Places::new(op, |width| width);
    assert!(op.task_bytes() <= TASK_BYTES, "{places:?}");
    let groups = op.tasks.div_ceil(T::LANES);
    device.run(groups, |group| {
        // One vector of ones comes first.
        scratch((1 + places.len) * T::LANES, |_, room: &mut [T]| {
            room[..T::LANES].fill(T::ONE);
            let first = group * T::LANES;
            let tasks = (op.tasks - first).min(T::LANES);
            let group = Group { op, base, places, room: room.as_mut_ptr(), index: group, first, tasks };
            group.run();
        });
    });
    // Group by group, so that the order of the sums never changes.
    let displacement = op.kind == ResidentGradient::Displacement;
    let gradient = op.gradient.map(|regions| (regions, if displacement { -op.scale } else { op.scale }));
    let rate_gradient = op.rate_gradient.map(|regions| (regions, -op.scale));
    for ([to, from], scale) in [gradient, rate_gradient].into_iter().flatten() {
        // SAFETY: declared regions; the groups have ended.
        let to = unsafe { base.slice_mut(to.offset, to.len()) };
        for group in 0..groups {
            // SAFETY: as above.
            let from = unsafe { base.slice(from.offset + group * from.width, to.len()) };
            for (t, f) in to.iter_mut().zip(from) {
                *t = if group == 0 { scale * *f } else { *t + scale * *f };
            }
        }
    }
}

/// The tasks of one vector. Places and lengths are in vectors; where there are fewer tasks, the rest of each vector computes
/// something, which is not read.
pub(super) struct Group<'a, T> {
    pub op: &'a Resident<'a, T>,
    pub base: Base<T>,
    pub places: Places,
    room: *mut T,
    pub index: usize,
    first: usize,
    pub tasks: usize,
}

/// The vector of ones; the places follow it.
const ONES: usize = 0;

/// The matrix of a layer's weights, that of its biases as rows, and where they begin.
#[derive(Clone, Copy)]
pub(super) struct Layer {
    pub weight: Grid,
    pub bias: usize,
    pub inputs: usize,
    pub outputs: usize,
}

impl<T: Scalar> Group<'_, T> {
    fn run(&self) {
        let op = self.op;
        self.load(op.support, &self.places.step(0));
        self.load(op.query, &self.places.query);
        self.spread();
        if let Some(sums) = self.rate_sums() {
            sums.fill(T::ZERO);
        }
        for step in 0..op.steps {
            self.trace(step);
            let pass = self.places.step(step);
            self.forward(&pass, step);
            self.loss(&pass).delta(self.output(&pass), self.targets(&pass), self.top_delta(&pass));
            self.backward(&pass, step, op.first_moving);
            self.update(step);
        }
        self.trace(op.steps);
        self.adapted();
        if op.task_loss.is_some() || op.goes_back() {
            self.query_loss();
        }
        if op.kind == ResidentGradient::Displacement {
            self.displacement();
        }
        if op.reverses_steps() {
            for step in (0..op.steps).rev() {
                self.reverse(step);
                if op.is_exact() {
                    self.adjoint(step);
                }
            }
        }
        if let Some([_, sums]) = op.gradient {
            self.sum(sums.elements(self.index * sums.width, sums.width));
        }
    }

    /// Vectors from place `start` on.
    #[allow(clippy::mut_from_ref)]
    pub fn at(&self, start: usize, count: usize) -> &mut [T] {
        debug_assert!(start + count <= self.places.len);
        // SAFETY: inside the room, which is this group's own; what is borrowed at once does not overlap.
        unsafe { std::slice::from_raw_parts_mut(self.room.add((1 + start) * T::LANES), count * T::LANES) }
    }

    pub fn multiply(&self, shape: (usize, usize), terms: &[Term], scale: T, onto: Option<Grid>, out: Grid) {
        // SAFETY: the grids are made of this group's places.
        unsafe { multiply(self.room, Product { shape, terms, scale, onto, out }) };
    }

    /// A row-major matrix at a place.
    pub fn grid(place: usize, width: usize) -> Grid {
        Grid::rows(1 + place, width)
    }

    /// A layer of parameters at a place.
    pub fn layer(&self, parameters: usize, layer: usize) -> Layer {
        let mlp = self.op.mlp;
        let (inputs, outputs) = (mlp.widths()[layer], mlp.widths()[layer + 1]);
        let weight = Self::grid(parameters + mlp.weight_range(layer).start, inputs);
        Layer { weight, bias: parameters + mlp.bias_range(layer).start, inputs, outputs }
    }

    /// The tasks' rows, and zeros where there are fewer tasks.
    fn load(&self, [inputs, targets]: [Region; 2], pass: &Pass) {
        for (from, to) in [(inputs, pass.inputs), (targets, pass.targets)] {
            let count = pass.rows * from.width;
            let to = self.at(to, count);
            to.fill(T::ZERO);
            for task in 0..self.tasks {
                // SAFETY: a declared region that is only read.
                let from = unsafe { self.base.slice(from.offset + (self.first + task) * count, count) };
                to.chunks_mut(T::LANES).zip(from).for_each(|(to, from)| to[task] = *from);
            }
        }
    }

    /// The shared parameters.
    pub fn shared(&self) -> &[T] {
        // SAFETY: a declared region that is only read.
        unsafe { self.base.slice(self.op.parameters.offset, self.op.parameters.len()) }
    }

    /// The shared parameters, to every task.
    fn spread(&self) {
        let to = self.at(self.places.weights(0), self.op.mlp.parameter_count());
        let shared = self.shared();
        pulp::Arch::new().dispatch(|| {
            for (to, from) in to.chunks_exact_mut(T::LANES).zip(shared) {
                to.iter_mut().for_each(|to| *to = *from);
            }
        });
    }

    fn rates(&self) -> &[T] {
        // SAFETY: a declared region that is only read.
        unsafe { self.base.slice(self.op.rates.offset, self.op.rates.len()) }
    }

    fn rate(&self, layer: usize, step: usize) -> T {
        self.rates()[step * self.op.mlp.layers() + layer]
    }

    pub fn level(&self, pass: &Pass, level: usize) -> &mut [T] {
        self.at(pass.level(self.op.mlp, level), pass.rows * self.op.mlp.widths()[level])
    }

    pub fn output(&self, pass: &Pass) -> &[T] {
        self.level(pass, self.op.mlp.layers())
    }

    pub fn targets(&self, pass: &Pass) -> &[T] {
        self.at(pass.targets, pass.rows * self.op.mlp.outputs())
    }

    fn top_delta(&self, pass: &Pass) -> &mut [T] {
        let mlp = self.op.mlp;
        self.at(pass.delta(mlp, mlp.layers() - 1), pass.rows * mlp.outputs())
    }

    pub fn loss(&self, pass: &Pass) -> LanesLoss {
        let mlp = self.op.mlp;
        let activation = mlp.activations()[mlp.layers() - 1];
        LanesLoss { loss: self.op.loss, activation, rows: pass.rows, outputs: mlp.outputs() }
    }

    /// All layers, at the weights after so many steps.
    fn forward(&self, pass: &Pass, steps: usize) {
        let mlp = self.op.mlp;
        for index in 0..mlp.layers() {
            let layer = self.layer(self.places.weights(steps), index);
            let left = Self::grid(pass.level(mlp, index), layer.inputs);
            let terms = [Term { left, right: layer.weight.transposed(), depth: layer.inputs }];
            let out = Self::grid(pass.level(mlp, index + 1), layer.outputs);
            let bias = Grid::one_row(1 + layer.bias);
            self.multiply((pass.rows, layer.outputs), &terms, T::ONE, Some(bias), out);
            activate(mlp.activations()[index], self.level(pass, index + 1));
        }
    }

    /// The deltas from the top one down to that of layer `last`.
    fn backward(&self, pass: &Pass, steps: usize, last: usize) {
        let mlp = self.op.mlp;
        for index in (last + 1..mlp.layers()).rev() {
            let layer = self.layer(self.places.weights(steps), index);
            let left = Self::grid(pass.delta(mlp, index), layer.outputs);
            let terms = [Term { left, right: layer.weight, depth: layer.outputs }];
            let place = pass.delta(mlp, index - 1);
            self.multiply((pass.rows, layer.inputs), &terms, T::ONE, None, Self::grid(place, layer.inputs));
            let delta = self.at(place, pass.rows * layer.inputs);
            gate(mlp.activations()[index - 1], self.level(pass, index), delta);
        }
    }

    /// `out = onto + scale * (sum over the pairs of p^T q)`, a weight; its bias with ones for the first q.
    pub fn gradient(&self, pass: &Pass, pairs: &[(usize, usize)], scale: T, onto: Option<Layer>, out: Layer) {
        let term = |&(p, q): &(usize, usize)| Term {
            left: Self::grid(p, out.outputs).transposed(),
            right: Self::grid(q, out.inputs),
            depth: pass.rows,
        };
        let shape = (out.outputs, out.inputs);
        let terms = [term(&pairs[0]), term(&pairs[pairs.len() - 1])];
        self.multiply(shape, &terms[..pairs.len()], scale, onto.map(|onto| onto.weight), out.weight);
        let rows = Self::grid(pairs[0].0, out.outputs);
        let terms = [Term { left: Grid::constant(ONES), right: rows, depth: pass.rows }];
        let onto = onto.map(|onto| Self::grid(onto.bias, 0));
        self.multiply((1, out.outputs), &terms, scale, onto, Self::grid(out.bias, 0));
    }

    /// The parameters of the layers that move.
    fn moving(&self) -> std::ops::Range<usize> {
        self.op.mlp.weight_range(self.op.first_moving).start..self.op.mlp.parameter_count()
    }

    pub fn layers(&self, index: usize) -> std::ops::Range<usize> {
        self.op.mlp.weight_range(index).start..self.op.mlp.bias_range(index).end
    }

    /// The layer's part of parameters at a place.
    pub fn part(&self, place: usize, layer: usize) -> &mut [T] {
        let range = self.layers(layer);
        self.at(place + range.start, range.len())
    }

    /// One step of the inner optimizer.
    fn update(&self, step: usize) {
        let (op, pass) = (self.op, self.places.step(step));
        let (from, to) = (self.places.weights(step), self.places.weights(step + 1));
        for index in 0..op.mlp.layers() {
            if index < op.first_moving {
                continue;
            }
            let rows = [(pass.delta(op.mlp, index), pass.level(op.mlp, index))];
            let Some(velocity) = self.places.velocity(step) else {
                // Nothing else needs the gradient: it goes straight into the weights.
                let (from, to) = (self.layer(from, index), self.layer(to, index));
                self.gradient(&pass, &rows, -self.rate(index, step), Some(from), to);
                continue;
            };
            self.begin_velocity(index, step, velocity);
            let onto = self.layer(velocity, index);
            self.gradient(&pass, &rows, T::ONE, Some(onto), onto);
            if from != to {
                self.part(to, index).copy_from_slice(self.part(from, index));
            }
            self.subtract(index, step, T::ONE, self.part(velocity, index), self.part(to, index));
        }
        if from != to && op.first_moving > 0 {
            let still = self.moving().start;
            self.at(to, still).copy_from_slice(self.at(from, still));
        }
    }

    /// `v = momentum v + decay theta`, as far as there is any of it.
    fn begin_velocity(&self, layer: usize, step: usize, velocity: usize) {
        let op = self.op;
        let weights = self.part(self.places.weights(step), layer);
        let last = step.checked_sub(1).and_then(|last| self.places.velocity(last)).filter(|_| op.momentum != T::ZERO);
        let to = self.part(velocity, layer);
        match last {
            Some(last) if last != velocity => to.copy_from_slice(self.part(last, layer)),
            Some(_) => {}
            None => to.fill(T::ZERO),
        }
        pulp::Arch::new().dispatch(|| {
            to.iter_mut().zip(weights).for_each(|(v, w)| *v = op.momentum * *v + op.decay * *w);
        });
    }

    /// `to = share * to - rate * from`, of a layer; without a share, whatever lies there.
    pub fn subtract(&self, layer: usize, step: usize, share: T, from: &[T], to: &mut [T]) {
        pulp::Arch::new().dispatch(|| {
            let pairs = to.iter_mut().zip(from);
            if self.op.per_parameter {
                let rates = &self.rates()[self.layers(layer)];
                for (i, (to, from)) in pairs.enumerate() {
                    let kept = if share == T::ZERO { T::ZERO } else { share * *to };
                    *to = kept - rates[i / T::LANES] * *from;
                }
                return;
            }
            let rate = self.rate(layer, step);
            match share == T::ZERO {
                true => pairs.for_each(|(to, from)| *to = -(rate * *from)),
                false => pairs.for_each(|(to, from)| *to = share * *to - rate * *from),
            }
        });
    }

    /// The query loss, and its gradient with respect to the adapted parameters.
    fn query_loss(&self) {
        let (op, pass) = (self.op, self.places.query);
        self.forward(&pass, op.steps);
        let loss = self.loss(&pass);
        if let Some(losses) = op.task_loss {
            // SAFETY: a declared region; each group writes its own tasks.
            let losses = unsafe { self.base.slice_mut(losses.offset + self.first, self.tasks) };
            loss.value(self.output(&pass), self.targets(&pass), losses);
        }
        if !op.goes_back() {
            return;
        }
        loss.delta(self.output(&pass), self.targets(&pass), self.top_delta(&pass));
        self.backward(&pass, op.steps, 0);
        for index in 0..op.mlp.layers() {
            let rows = [(pass.delta(op.mlp, index), pass.level(op.mlp, index))];
            self.gradient(&pass, &rows, T::ONE, None, self.layer(self.places.cotangent, index));
        }
    }

    /// The query set at the weights after so many steps, when that is asked for.
    fn trace(&self, after: usize) {
        let (op, pass) = (self.op, self.places.query);
        let Some([losses, outputs]) = op.trace else { return };
        self.forward(&pass, after);
        // SAFETY: declared regions; each group writes its own tasks.
        unsafe {
            let losses = self.base.slice_mut(losses.offset + after * op.tasks + self.first, self.tasks);
            self.loss(&pass).value(self.output(&pass), self.targets(&pass), losses);
        }
        let outputs = outputs.rows(after * op.tasks * op.queries, op.tasks * op.queries);
        self.write(self.output(&pass), outputs);
    }

    /// The tasks' numbers out of vectors, to their places among all tasks'.
    fn write(&self, from: &[T], to: Region) {
        let count = from.len() / T::LANES;
        for task in 0..self.tasks {
            // SAFETY: a declared region; each group writes its own tasks.
            let to = unsafe { self.base.slice_mut(to.offset + (self.first + task) * count, count) };
            to.iter_mut().zip(from.chunks(T::LANES)).for_each(|(to, from)| *to = from[task]);
        }
    }

    /// The tasks' parameters after the last step, when they are asked for.
    fn adapted(&self) {
        if let Some(to) = self.op.adapted {
            self.write(self.at(self.places.weights(self.op.steps), self.op.mlp.parameter_count()), to);
        }
    }

    /// The sums over the group's tasks of its gradient's vectors.
    fn sum(&self, to: Region) {
        let vectors = self.at(self.places.cotangent, self.op.mlp.parameter_count());
        // SAFETY: a declared region; each group writes its own row.
        let sums = unsafe { self.base.slice_mut(to.offset, to.len()) };
        pulp::Arch::new().dispatch(|| {
            for (sum, vector) in sums.iter_mut().zip(vectors.chunks_exact_mut(T::LANES)) {
                for (i, value) in vector.iter_mut().enumerate() {
                    *value = if i < self.tasks { *value } else { T::ZERO };
                }
                let mut half = T::LANES / 2;
                while half > 0 {
                    for i in 0..half {
                        vector[i] += vector[half + i];
                    }
                    half /= 2;
                }
                *sum = vector[0];
            }
        });
    }
}

fn activate<T: Scalar>(activation: Activation, values: &mut [T]) {
    pulp::Arch::new().dispatch(|| {
        with_activation!(activation, ACT => values.iter_mut().for_each(|v| *v = ACT.apply(*v)));
    });
}

/// Multiplies by the derivative where the values are these.
pub(super) fn gate<T: Scalar>(activation: Activation, values: &[T], out: &mut [T]) {
    pulp::Arch::new().dispatch(|| {
        with_activation!(activation, ACT => out.iter_mut().zip(values).for_each(|(o, v)| *o *= ACT.derivative(*v)));
    });
}
