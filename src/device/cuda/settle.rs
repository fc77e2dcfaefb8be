//! What follows the inner loops of small networks, in one launch: the sum of the tasks' gradients, its check, and the step of Adam.
//!
//! The sum is put off until its check is asked for, and both until the step is. Whatever else comes, they go first, each by itself.

use std::sync::PoisonError;

use super::array::{self, SumRows, TALL_COLUMNS};
use super::driver::{Driver, Kernel};
use super::optimizer::{self, Adam, CheckGradient};
use super::{Arguments, CudaArena, CudaDevice, reduction, wide};
use crate::device::{GradientCheck, OuterStep, Region};

/// Parameters of a small network at most: a block leaves one partial sum.
pub(super) const MOST: usize = reduction::SUMS * TALL_COLUMNS;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Settle {
    sum: SumRows,
    check: CheckGradient,
    adam: Adam,
    counter: u64,
}

super::arguments! {
    Settle, 200 => Settle;
}

/// A sum that was asked for and not launched yet, and its check.
pub(super) struct Pending<D: Driver> {
    device: CudaDevice<D>,
    from: Region,
    scale: f32,
    to: Region,
    check: Option<GradientCheck>,
}

/// `to = scale * the sum of the rows of from`, at once or with what comes next.
pub(super) fn sum_rows<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, from: Region, scale: f32, to: Region) {
    if to.len() > MOST {
        return array::sum_rows(device, arena, from, scale, to, false);
    }
    arena.check(&[from], &[to]);
    *arena.settling() = Some(Pending { device: device.clone(), from, scale, to, check: None });
}

/// Has the sum that was put off be checked; says whether that is what is asked for.
pub(super) fn with_check<D: Driver>(arena: &CudaArena<D>, op: &GradientCheck) -> bool {
    let mut settling = arena.settling();
    let Some(pending) = settling.as_mut().filter(|pending| pending.check.is_none()) else { return false };
    let [gradient, rest @ ..] = op.gradients;
    if gradient != Some(pending.to) || rest.iter().any(Option::is_some) {
        return false;
    }
    let [first, second] = op.losses.map(|losses| losses.unwrap_or(super::NOTHING));
    arena.admit(&[pending.from, pending.to, first, second], &[op.findings]);
    pending.check = Some(*op);
    true
}

/// Takes the step after both, and launches them; says whether it was a step with that gradient.
pub(super) fn with_step<D: Driver>(arena: &CudaArena<D>, op: &OuterStep) -> bool {
    let (Some(adam), OuterStep::Adam { parameters, gradient, first, second, finding, .. }) = (Adam::new(op), *op)
    else {
        return false;
    };
    let mut settling = arena.settling();
    let fits = |pending: &mut Pending<D>| {
        let checked = pending.check.is_some_and(|check| check.findings == finding.findings && finding.gradient == 0);
        checked && pending.to == gradient
    };
    let Some(Pending { device, from, scale, to, check: Some(check) }) = settling.take_if(fits) else { return false };
    drop(settling);
    let [one, other] = check.losses.map(|losses| losses.unwrap_or(super::NOTHING));
    let (reads, writes) = ([from, one, other], [to, check.findings, parameters, first, second]);
    arena.admit(&reads, &writes);
    arena.keep_to(reads.iter().chain(&writes));
    let blocks = to.len().div_ceil(TALL_COLUMNS);
    let call = Settle {
        sum: SumRows::new(from, scale, to, false),
        check: CheckGradient::new(arena, &check, 0, blocks),
        adam,
        counter: wide(arena.counters()),
    };
    let shapes = format_args!("{} rows of {} parameters", from.rows, to.len());
    device.launch(arena, Kernel::Settle, [blocks, 1, 1], &call, shapes);
    true
}

/// Launches what was put off, if there is anything.
pub(super) fn flush<D: Driver>(arena: &CudaArena<D>) {
    let Some(Pending { device, from, scale, to, check }) = arena.settling().take() else { return };
    array::sum_rows(&device, arena, from, scale, to, false);
    if let Some(check) = check {
        optimizer::gradient_check(&device, arena, &check);
    }
}

impl<D: Driver> CudaArena<D> {
    fn settling(&self) -> std::sync::MutexGuard<'_, Option<Pending<D>>> {
        self.settling.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
