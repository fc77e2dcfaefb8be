//! The dual form's per-task parts: Gram matrices, the corrections made of them, and the sums over them.

use bytemuck::Zeroable;

use super::driver::{Driver, Kernel};
use super::{Arguments, CudaArena, CudaDevice, NOTHING, NOWHERE, activation_code, array, ended, linear, narrow, wide};
use crate::device::{self, Region};

/// Blocks an operation may have: `BLOCKS` in `kernels/kernel.cuh`.
pub(super) const BLOCKS: usize = 4;
/// Terms, or factors, of one launch: `LIST` in `kernels/low_rank.cu`.
pub(super) const LIST: usize = 64;
/// Rows a block takes at once: `GROUP` there.
pub(super) const GROUP: usize = 8;
/// Columns of a Gram matrix that a warp computes at most: `WARP_COLUMNS` there.
const WARP_COLUMNS: usize = 4;
/// Of a term without a shift: `NO_SHIFT` in `kernels/corrections.cuh`.
const NO_SHIFT: i32 = i32::MIN;
/// Correction rows that a lane has on their way at once: `CORRECTIONS_AHEAD` there.
const AHEAD: usize = 8;
/// Warps of a block, as a power of two; and lanes of a warp.
const WARPS_LOG: u32 = 2;
const LANES: usize = 32;
/// Warps that keep a large GPU busy. With fewer, several divide what one could do.
const MANY_WARPS: usize = 4096;
/// The same of those that multiply on tensor cores: two for each part of a multiprocessor. More than that is not worth adding up.
const MANY_TENSOR_WARPS: usize = 1024;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Gate {
    values: u64,
    activation: u32,
    block: [u32; BLOCKS],
    block_rows: u32,
}

impl Gate {
    pub const NONE: Self = Self { values: 0, activation: 0, block: [0; BLOCKS], block_rows: 1 };

    /// Where its values begin.
    pub fn offset(&self) -> u64 {
        self.values
    }

    /// The activation, as kernels take it.
    pub fn activation(&self) -> u32 {
        self.activation
    }

    /// Whether its values are these, each block's for the output block of its number.
    pub fn is_of(&self, values: Region, blocks: usize) -> bool {
        self.values == wide(values.offset) && (0..blocks).all(|block| self.block[block] as usize == block)
    }

    /// The gate of `blocks` output blocks, of `block_rows` rows each.
    pub fn new(gate: &device::Gate<'_>, blocks: usize, block_rows: usize) -> Self {
        assert!(blocks <= BLOCKS, "{blocks} blocks of rows; kernels take {BLOCKS}");
        let mut block = [0; BLOCKS];
        for (to, from) in block.iter_mut().zip(&gate.blocks[..blocks]) {
            *to = narrow(*from);
        }
        Self {
            values: wide(gate.values.offset),
            activation: activation_code(gate.activation),
            block,
            block_rows: narrow(block_rows),
        }
    }
}

#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Term {
    pub gram: u64,
    pub rows: u64,
    scale: u64,
    pub task_stride: u32,
    pub row_stride: u32,
    pub column_stride: u32,
    pub count: u32,
    pub column: u32,
    shift: i32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Corrections {
    pub terms: [Term; LIST],
    pub end: [u32; BLOCKS],
    gate: Gate,
    output: u64,
    tasks: u32,
    rows: u32,
    width: u32,
    gated: u32,
    begun: u32,
    pub most: u32,
    piece: u32,
    spread: u32,
}

#[repr(C)]
#[derive(Clone, Copy, Default, bytemuck::Pod, bytemuck::Zeroable)]
pub(super) struct Factor {
    pub rows: u64,
    pub count: u32,
    pub column: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Gram {
    y: [Factor; LIST],
    x: u64,
    output: u64,
    tasks: u32,
    rows: u32,
    width: u32,
    columns: u32,
    count: u32,
    most: u32,
    share: u32,
    shares: u32,
    piece: u32,
    spread: u32,
    begun: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct InnerTerm {
    left: u64,
    right: u64,
    output: u64,
    scale: f64,
    rows: u32,
    group: u32,
    width: u32,
    shift: f32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct GramInner {
    terms: [InnerTerm; LIST],
    end: [u32; LIST],
}

super::arguments! {
    Corrections, 3160 => ApplyCorrections;
    Gram, 1088 => Gram;
    GramInner, 3328 => GramInner;
}

/// How many numbers of rows of this width a lane takes at once: 4 where all rows, from these offsets on, lie at multiples of 16
/// bytes.
fn piece_of(width: usize, mut offsets: impl Iterator<Item = usize>) -> usize {
    if width.is_multiple_of(4) && offsets.all(|offset| offset.is_multiple_of(4)) { 4 } else { 1 }
}

/// Among how many warps, as a power of two, each of so many warps' work is divided: `fewest` at least, and more until a GPU is
/// busy, a block has no more, or more are not `useful`.
fn spread_of(fewest: u32, (warps, many): (usize, usize), useful: impl Fn(u32) -> bool) -> u32 {
    (fewest..WARPS_LOG).find(|spread| warps << spread >= many || !useful(spread + 1)).unwrap_or(WARPS_LOG)
}

/// Whether one launch holds all terms.
pub(super) fn in_one_launch(corrections: &device::Corrections<'_>) -> bool {
    let share = LIST / corrections.blocks.len().max(1);
    corrections.blocks.iter().all(|terms| terms.len() <= share)
}

/// The corrections of one launch, its grid, and how many rows go into an output at most.
pub(super) struct Applied {
    pub call: Corrections,
    pub grid: [usize; 3],
    pub most: usize,
}

impl Applied {
    /// The terms from `skipped` on, as many as one launch holds. `pieces` tells whether everything else that the kernel touches
    /// lies at multiples of 16 bytes.
    pub fn new(
        corrections: &device::Corrections<'_>,
        (tasks, rows): (usize, usize),
        output: Region,
        skipped: usize,
        pieces: bool,
    ) -> Self {
        let blocks = output.rows / (tasks * rows);
        let share = LIST / blocks;
        let offsets = corrections.blocks.iter().flatten().map(|term| term.rows.offset).chain([output.offset]);
        let piece = if pieces { piece_of(output.width, offsets) } else { 1 };
        let groups = tasks * rows.div_ceil(GROUP);
        let mut call = Corrections {
            terms: [Term::default(); LIST],
            end: [0; BLOCKS],
            gate: Gate::NONE,
            output: wide(output.offset),
            tasks: narrow(tasks),
            rows: narrow(rows),
            width: narrow(output.width),
            gated: 0,
            begun: 0,
            most: 1,
            piece: narrow(piece),
            spread: 0,
        };
        let (mut next, mut most) = (0, 0);
        for (block, terms) in corrections.blocks.iter().enumerate() {
            let mut column = 0;
            for term in terms.iter().skip(skipped).take(share) {
                let count = term.rows.rows / tasks;
                call.terms[next] = Term {
                    gram: wide(term.gram.offset),
                    rows: wide(term.rows.offset),
                    task_stride: narrow(term.gram.task_stride),
                    row_stride: narrow(term.gram.row_stride),
                    column_stride: narrow(term.gram.column_stride),
                    count: narrow(count),
                    column: narrow(column),
                    scale: wide(corrections.scales.offset + term.scale),
                    shift: term.bias.map_or(NO_SHIFT, |index| index as i32 - term.scale as i32),
                };
                call.most = call.most.max(narrow(count));
                column += count;
                next += 1;
            }
            most = most.max(column);
            call.end[block] = narrow(next);
        }
        let mut applied = Self { call, grid: [groups, 0, blocks], most };
        applied.spread(MANY_WARPS);
        applied
    }

    /// Divides the work among so many warps, if it is worth it.
    fn spread(&mut self, many: usize) {
        let Self { call, grid: [groups, down, blocks], most } = self;
        let strips = (call.width as usize).div_ceil(LANES * call.piece as usize);
        // As few as leave no warp of a block without columns.
        let fewest = WARPS_LOG - strips.max(1).ilog2().min(WARPS_LOG);
        call.spread = spread_of(fewest, (*blocks * *groups * strips, many), |spread| *most > AHEAD << (spread - 1));
        *down = strips.div_ceil(1 << (WARPS_LOG - call.spread));
    }

    /// Divides rows among a block's warps: without corrections there is nothing to add up.
    pub fn spread_rows(&mut self) {
        self.call.spread = WARPS_LOG;
        self.grid[1] = (self.call.width as usize).div_ceil(LANES * self.call.piece as usize);
    }

    /// Takes the rows of its terms from where copies of them begin, which are multiplied on tensor cores.
    pub fn take_copies(&mut self, copies: &[usize]) {
        for (term, copy) in self.call.terms.iter_mut().zip(copies) {
            term.rows = wide(*copy);
        }
        self.spread(MANY_TENSOR_WARPS);
    }
}

impl Term {
    /// Where its factor and what is added to the inner products lie, if anything is.
    pub fn factors(&self) -> (u64, Option<u64>) {
        (self.scale, (self.shift != NO_SHIFT).then(|| self.scale.wrapping_add_signed(self.shift.into())))
    }
}

impl Corrections {
    /// How many terms there are.
    pub fn terms(&self) -> usize {
        self.end.into_iter().max().unwrap_or(0) as usize
    }

    /// Whether the kernel takes four columns at a time.
    pub fn in_fours(&self) -> bool {
        self.piece == 4
    }

    /// Strips of columns that a block has.
    pub fn strips(&self) -> usize {
        1 << (WARPS_LOG - self.spread)
    }
}

/// Hands on the regions of corrections' terms, rows and inner products.
pub(super) fn check_corrections(
    corrections: &device::Corrections<'_>,
    (tasks, rows): (usize, usize),
    mut regions: impl FnMut(Region, Region),
) {
    let blocks = corrections.blocks.len();
    assert!(blocks <= BLOCKS, "{blocks} blocks of rows; kernels take {BLOCKS}");
    for term in corrections.blocks.iter().flatten() {
        let gram = Region {
            offset: term.gram.offset,
            rows: 1,
            width: (tasks - 1) * term.gram.task_stride + extent(term, (tasks, rows)),
        };
        regions(term.rows, gram);
    }
}

/// From the first to the last of a term's coefficients of one task.
pub(super) fn extent(term: &device::Term, (tasks, rows): (usize, usize)) -> usize {
    let count = term.rows.rows / tasks;
    (rows - 1) * term.gram.row_stride + count.saturating_sub(1) * term.gram.column_stride + 1
}

/// `output (+)= corrections * act'(gate)`, where there are corrections; returns whether there are. The factors are made on
/// the way, so the operation's scratch is not used.
pub(super) fn apply_corrections<D: Driver>(
    device: &CudaDevice<D>,
    arena: &CudaArena<D>,
    corrections: &device::Corrections<'_>,
    (tasks, rows): (usize, usize),
    output: Region,
    gate: Option<&device::Gate<'_>>,
    accumulate: bool,
) -> bool {
    let blocks = corrections.blocks;
    if blocks.is_empty() {
        return false;
    }
    arena.check(&[corrections.scales, gate.map_or(NOTHING, |gate| gate.values)], &[output]);
    check_corrections(corrections, (tasks, rows), |rows, gram| arena.check(&[rows, gram], &[output]));
    let pieces = gate.is_none_or(|gate| gate.values.offset % 4 == 0);
    // More terms than one launch holds are taken in turns; the first one also writes the blocks that have none.
    let share = LIST / blocks.len();
    let turns = blocks.iter().map(|terms| terms.len().div_ceil(share)).max().unwrap_or(0).max(1);
    for turn in 0..turns {
        let Applied { call, grid, most } = Applied::new(corrections, (tasks, rows), output, turn * share, pieces);
        let call = Corrections {
            gate: gate.map_or(Gate::NONE, |gate| Gate::new(gate, blocks.len(), tasks * rows)),
            gated: gate.is_some().into(),
            begun: (accumulate || turn > 0).into(),
            ..call
        };
        let (count, width) = (blocks.len(), output.width);
        let shapes = format_args!("{count} blocks of {tasks} tasks x {rows} rows of {width}, {most} correction rows");
        device.launch(arena, Kernel::ApplyCorrections, grid, &call, shapes);
    }
    true
}

/// See [`device::LowRank`].
pub(super) fn low_rank<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &device::LowRank<'_>) {
    if let Some(base) = op.base {
        linear::low_rank(device, arena, op, base);
        return;
    }
    let (shape, gate) = ((op.tasks, op.rows), op.gate.as_ref());
    arena.check(&[], &[op.output]);
    let corrected = apply_corrections(device, arena, &op.corrections, shape, op.output, gate, op.accumulate);
    if !corrected && !op.accumulate {
        array::fill(device, arena, op.output, 0.0);
    }
}

/// See [`device::Gram`].
pub(super) fn gram<D: Driver>(device: &CudaDevice<D>, arena: &mut CudaArena<D>, op: &device::Gram<'_>) {
    if !op.accumulate && ended::with_gram(device, arena, op) {
        return;
    }
    let (tasks, rows, width) = (op.tasks, op.rows, op.x.width);
    let columns: usize = op.y.iter().map(|y| y.rows / tasks).sum();
    assert_eq!(op.output.len(), op.x.rows * columns, "the output must hold every product");
    arena.check(&[op.x], &[op.output]);
    op.y.iter().for_each(|y| arena.check(&[*y], &[op.output]));
    let piece = piece_of(width, op.y.iter().chain([&op.x]).map(|rows| rows.offset));
    let mut column = 0;
    for part in op.y.chunks(LIST) {
        let first = column;
        let mut call = Gram {
            y: [Factor::default(); LIST],
            x: wide(op.x.offset),
            output: wide(op.output.offset),
            tasks: narrow(tasks),
            rows: narrow(rows),
            width: narrow(width),
            columns: narrow(columns),
            count: 0,
            most: 1,
            share: 0,
            shares: 0,
            piece: narrow(piece),
            spread: 0,
            begun: op.accumulate.into(),
            unused: 0,
        };
        for (factor, y) in call.y.iter_mut().zip(part) {
            let count = y.rows / tasks;
            *factor = Factor { rows: wide(y.offset), count: narrow(count), column: narrow(column) };
            call.most = call.most.max(narrow(count));
            column += count;
        }
        let count = column - first;
        let shares = count.div_ceil(WARP_COLUMNS).max(1);
        call.count = narrow(count);
        call.share = narrow(count.div_ceil(shares));
        call.shares = narrow(shares);
        let (groups, blocks) = (rows.div_ceil(GROUP), op.x.rows / rows / tasks);
        let useful = |spread| (LANES * piece) << (spread - 1) < width;
        call.spread = spread_of(0, (tasks * shares * groups * blocks, MANY_WARPS), useful);
        let across = if count == 0 { 0 } else { (tasks * shares).div_ceil(1 << (WARPS_LOG - call.spread)) };
        let grid = [across, groups, blocks];
        let shapes =
            format_args!("{} rows, {rows} a task, with {} of {columns} rows of {width}", op.x.rows, call.count);
        device.launch(arena, Kernel::Gram, grid, &call, shapes);
    }
}

/// See [`device::GramInner`]. As many as add to different numbers are one launch.
pub(super) fn gram_inners<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, mut all: &[device::GramInner]) {
    while let Some((first, rest)) = all.split_first() {
        let before = |count: usize| &rest[..count];
        let apart = |(count, op): (usize, &device::GramInner)| {
            !first.output.overlaps(&op.output) && before(count).iter().all(|other| !other.output.overlaps(&op.output))
        };
        let more = rest.iter().enumerate().take(LIST - 1).take_while(|(count, op)| apart((*count, op))).count();
        let (these, others) = all.split_at(1 + more);
        launch_inners(device, arena, these);
        all = others;
    }
}

fn launch_inners<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, these: &[device::GramInner]) {
    let mut call = GramInner::zeroed();
    let (mut columns, mut rows) = (0, 0);
    for ((to, end), op) in call.terms.iter_mut().zip(&mut call.end).zip(these) {
        arena.check(&[op.left, op.right.unwrap_or(op.left)], &[op.output]);
        *to = InnerTerm {
            left: wide(op.left.offset),
            right: op.right.map_or(NOWHERE, |right| wide(right.offset)),
            output: wide(op.output.offset),
            scale: op.scale,
            rows: narrow(op.left.rows),
            group: narrow(op.group),
            width: narrow(op.left.width),
            shift: if op.plus_one { 1.0 } else { 0.0 },
        };
        columns += op.output.width;
        rows = rows.max(op.left.rows);
        *end = narrow(columns);
    }
    let shapes = format_args!("{} products of up to {rows} rows", these.len());
    device.launch(arena, Kernel::GramInner, [columns, 1, 1], &call, shapes);
}
