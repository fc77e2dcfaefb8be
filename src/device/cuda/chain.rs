//! Narrow layers one after the other, in one launch.
//!
//! A product with shared weights that takes what was made last, or rows that lie there, is put off as the end before it is
//! (`finish.rs`), and so on, until something else comes: a wide layer, a loss. The launch has a block for a few tasks, which makes all of
//! their rows, link by link; so a link may read whatever an earlier one has made of the same tasks, and nothing of others.

use bytemuck::Zeroable;

use super::driver::{Driver, Kernel};
use super::finish::{End, Given, Pending, rows_of};
use super::hopper::{Raw, Warpgroups};
use super::linear::{Product, ProductEnd};
use super::low_rank::{BLOCKS, Factor, GROUP, Term, check_corrections, extent, in_one_launch};
use super::outer_product::MULTIPROCESSORS;
use super::{Arguments, CudaArena, CudaDevice, NOWHERE, narrow, pack, settle, wide};
use crate::device::{self, Corrections, Gram, MatrixPrecision, Region};

/// As in `kernels/chain.cuh`: links of a chain, their terms and factors in all, groups of rows of a block.
const LINKS: usize = 6;
const TERMS: usize = 82;
const FACTORS: usize = 40;
const GROUPS: usize = 4;
/// Rows of earlier steps that are taken at once, and threads' warps and what each has of corrections there.
const ROWS: usize = 128;
const WARPS: usize = 16;
const STRIP_PITCH: usize = 132;
/// Numbers that are known of a group.
const OF_GROUP: usize = 8;
/// Columns of a layer at most, and what their number is a multiple of; or so few that they are kept as they are.
const WIDEST: usize = 512;
const SIDE: usize = 16;
const THIN: usize = 8;
/// Blocks at most: every one reads all weights.
const BLOCKS_OF_TASKS: usize = 2 * MULTIPROCESSORS;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct ChainTerm {
    gram: u32,
    rows: u32,
    task_stride: u32,
    row_stride: u16,
    column_stride: u16,
    count: u16,
    column: u16,
    scale: u16,
    shift: u16,
}

/// `NO_PLACE` in `kernels/chain.cuh`.
const NO_PLACE: u16 = u16::MAX;

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Link {
    product: ProductEnd,
    weight: u64,
    bias: u64,
    bias_first: u32,
    bias_rows: u32,
    weights: u64,
    raw: u64,
    packed: u64,
    gram: u64,
    grams: u64,
    term_rows: u64,
    scales: u64,
    kind: u32,
    parts: u32,
    inner: u32,
    given: u32,
    taken: u32,
    used: u32,
    first: u32,
    end: [u32; BLOCKS],
    factors: u32,
    columns: u32,
    most: u32,
    most_factor: u32,
    unused: u32,
}

#[repr(C)]
#[derive(Clone, Copy, bytemuck::Pod, bytemuck::Zeroable)]
struct Chain {
    links: [Link; LINKS],
    terms: [ChainTerm; TERMS],
    factors: [Factor; FACTORS],
    count: u32,
    tasks: u32,
    rows: u32,
    share: u32,
    groups: u32,
    widest: u32,
    numbers: u32,
    unused: u32,
}

super::arguments! {
    Chain, 4080 => Chain;
}

impl ChainTerm {
    /// With inner products, rows and factors from these on; nothing where one is too far, or its shape too large.
    fn new(of: &Term, [grams, rows, scales]: [u64; 3]) -> Option<Self> {
        let place = |number: u64| u16::try_from(number - scales).ok().filter(|place| *place != NO_PLACE);
        let (scale, shift) = of.factors();
        Some(Self {
            gram: (of.gram - grams).try_into().ok()?,
            rows: (of.rows - rows).try_into().ok()?,
            task_stride: of.task_stride,
            row_stride: of.row_stride.try_into().ok()?,
            column_stride: of.column_stride.try_into().ok()?,
            count: of.count.try_into().ok()?,
            column: of.column.try_into().ok()?,
            scale: place(scale)?,
            shift: shift.map_or(Some(NO_PLACE), place)?,
        })
    }
}

/// Where the terms' inner products, rows and factors begin.
fn begins_of(terms: &[Term]) -> [u64; 3] {
    let factor = |term: &Term| {
        let (scale, shift) = term.factors();
        shift.map_or(scale, |shift| shift.min(scale))
    };
    let least = |of: &dyn Fn(&Term) -> u64| terms.iter().map(of).min().unwrap_or(0);
    [least(&|term| term.gram), least(&|term| term.rows), least(&factor)]
}

/// Whether they can be those of a link.
pub(super) fn may_link(terms: &[Term]) -> bool {
    let begins = begins_of(terms);
    terms.len() <= TERMS && terms.iter().all(|term| ChainTerm::new(term, begins).is_some())
}

/// What a product takes of the rows that the link before makes, in blocks of rows.
#[derive(Clone, Copy, Debug)]
pub(super) struct Taken {
    /// Where its weights lie.
    weights: usize,
    inner: usize,
    /// Blocks that were made; the first of them that is taken, and how many are.
    given: usize,
    taken: usize,
    used: usize,
    /// The output block that the first is for.
    first: usize,
}

/// A layer's product as a link: all but corrections as in `finish`.
pub(super) struct Layer<'a> {
    pub kernel: Kernel,
    pub product: Product,
    pub corrections: &'a Corrections<'a>,
    /// T and K.
    pub shape: (usize, usize),
    /// The weights, and the rows they are multiplied with, none of them without a product.
    pub operands: (Region, Region),
    /// The output block that the first of the rows' is for.
    pub first: usize,
    pub output: Region,
    /// What is multiplied; what else is read, and written.
    pub multiplied: &'a [Region],
    pub reads: &'a [Region],
    pub writes: &'a [Region],
}

/// Whether blocks of rows this wide can be a link of a chain.
fn fits<D: Driver>(device: &CudaDevice<D>, (tasks, rows): (usize, usize), blocks: usize, width: usize) -> bool {
    let groups = blocks * rows.div_ceil(GROUP);
    let on = device.warpgroups().is_some() && device.precision == MatrixPrecision::Bf16;
    on && device.chains
        && groups > 0
        && groups <= GROUPS
        && tasks.div_ceil(GROUPS / groups) <= BLOCKS_OF_TASKS
        && (is_thin(width) || ((SIDE..=WIDEST).contains(&width) && width.is_multiple_of(SIDE)))
        && numbers(GROUPS, WIDEST) * size_of::<f32>() <= device.driver.shared_bytes()
}

/// Whether rows are so narrow that links keep them as they are.
pub(super) fn is_thin(width: usize) -> bool {
    (1..=THIN).contains(&width)
}

/// Numbers of shared memory that a block takes: as `ChainRun` lays them out.
fn numbers(groups: usize, widest: usize) -> usize {
    let row = 2 * (widest / 2 + 4) + widest + 4;
    WARPS * GROUP * STRIP_PITCH + groups * (GROUP * (row + THIN) + ROWS * (GROUP + 2) + OF_GROUP)
}

/// Puts a layer off, behind what was put off before if that fits; says whether it did.
pub(super) fn with_layer<D: Driver>(device: &CudaDevice<D>, arena: &CudaArena<D>, layer: &Layer<'_>) -> bool {
    let &Layer {
        kernel,
        product,
        corrections,
        shape,
        operands: (weight, input),
        first,
        output,
        multiplied,
        reads,
        writes,
    } = layer;
    let (tasks, rows) = shape;
    let blocks = |region: Region| region.rows / (tasks * rows);
    let multiplies = !input.is_empty();
    let backward = kernel == Kernel::FinishBackward;
    let (to_few, of_few) = (is_thin(output.width), multiplies && is_thin(input.width));
    // What is thin lies anywhere.
    let wide = [weight, input, output].into_iter().filter(|region| !is_thin(region.width));
    let aligned = wide.map(|region| region.offset).all(|offset| offset.is_multiple_of(4));
    let sides = !(to_few && (of_few || (multiplies && backward)));
    let terms: usize = corrections.blocks.iter().map(Vec::len).sum();
    let may = fits(device, shape, blocks(output), output.width)
        && (!multiplies || fits(device, shape, blocks(input), input.width))
        && aligned
        && sides
        && (to_few || product.in_fours())
        && terms <= TERMS
        && in_one_launch(corrections);
    if !may {
        return false;
    }
    settle::flush(arena);
    let in_fragments = multiplies && !to_few && !of_few;
    let placed = !in_fragments || pack::has_fragments(device, arena, weight, backward);
    let mut pending = arena.pending();
    let goes_on = placed
        && pending.is_chain(shape, 2, terms, 0)
        && pending.leaves_alone(shape, multiplied, writes)
        && pending.leaves_alone(shape, reads, writes)
        && pending.has_made(device, arena, corrections, shape);
    if !goes_on {
        pending.launch(arena);
    }
    drop(pending);
    arena.admit(multiplied, writes);
    arena.admit(reads, writes);
    arena.admit(&[corrections.scales], &[output]);
    check_corrections(corrections, shape, |rows, gram| arena.admit(&[rows, gram], &[output]));
    let mut given = Given::Sums;
    if multiplies {
        let weights = if in_fragments { pack::fragments(device, arena, weight, backward) } else { Some(0) };
        let Some(weights) = weights else { return false };
        let mut pending = arena.pending();
        let made = match pending.ends.last().map(|end| end.made).filter(|made| holds(*made, input, tasks * rows)) {
            Some(made) => made,
            None => {
                pending.take_rows(device, arena, input, shape);
                input
            }
        };
        let taken = (input.offset - made.offset) / (tasks * rows * input.width);
        given = Given::Product(Taken {
            weights,
            inner: input.width,
            given: blocks(made),
            taken,
            used: blocks(input),
            first,
        });
    }
    let raw = Raw { offset: output.offset, parts: 0 };
    let end = End::new(device, arena, kernel, product, corrections, shape, (raw, output), given);
    if !end.is_link() {
        return false;
    }
    let mut pending = arena.pending();
    pending.forget_copies_under(&end);
    pending.append(end, corrections, (reads, writes));
    if multiplies && !in_fragments {
        // As they are.
        pending.reads.push(weight);
    }
    true
}

/// Whether there is room for the factors of inner products of what was made last.
pub(super) fn has_room<D: Driver>(pending: &Pending<D>, op: &Gram<'_>) -> bool {
    let factors: usize = pending.ends.iter().map(|end| end.factors).sum();
    factors + op.y.len() <= FACTORS
}

/// Whether rows of which inner products are asked for can be taken behind what was put off.
pub(super) fn may_take_rows<D: Driver>(device: &CudaDevice<D>, pending: &Pending<D>, op: &Gram<'_>) -> bool {
    let shape = (op.tasks, op.rows);
    fits(device, shape, op.x.rows / (op.tasks * op.rows), op.x.width)
        && pending.is_chain(shape, 1, 0, op.y.len())
        && pending.leaves_alone(shape, &[op.x], &[op.output])
}

/// Whether an end that nothing comes before or after is a chain all the same: narrow rows as they are.
pub(super) fn is_alone<D: Driver>(end: &End<D>) -> bool {
    let (tasks, rows) = end.shape;
    matches!(end.given, Given::Rows) && fits(&end.device, end.shape, end.made.rows / (tasks * rows), end.made.width)
}

/// Whether `rows` are whole blocks of `made`, each of so many rows.
fn holds(made: Region, rows: Region, block: usize) -> bool {
    let inside = rows.offset >= made.offset && rows.offset + rows.len() <= made.offset + made.len();
    made.width == rows.width && inside && (rows.offset - made.offset).is_multiple_of(block * made.width)
}

/// Whether what a block of a chain touches of both, rows of its tasks, are the same tasks' where they overlap.
fn alike(one: Region, other: Region, (tasks, rows): (usize, usize)) -> bool {
    let block = tasks * rows;
    let whole = one.width == other.width && one.rows.is_multiple_of(block) && other.rows.is_multiple_of(block);
    !one.overlaps(&other) || (whole && one.offset.abs_diff(other.offset).is_multiple_of(block * one.width))
}

impl<D: Driver> Pending<D> {
    /// Whether what was put off is a chain, of tasks and rows like these, with room for so many more links, terms and factors.
    fn is_chain(&self, shape: (usize, usize), links: usize, terms: usize, factors: usize) -> bool {
        let of = |end: &End<D>| {
            let blocks = end.made.rows / (shape.0 * shape.1);
            let fits = end.shape == shape && fits(&end.device, shape, blocks, end.made.width);
            (fits && end.is_link()).then_some([end.call.corrections.terms(), end.factors])
        };
        let all = self.ends.iter().map(of).try_fold([terms, factors], |[terms, factors], more| {
            let [t, f] = more?;
            Some([terms + t, factors + f])
        });
        let room = all.is_some_and(|[terms, factors]| terms <= TERMS && factors <= FACTORS);
        room && self.ends.len() + links <= LINKS && self.losses.is_none()
    }

    /// Whether another link may read and write these: of what was put off, only the same tasks' rows.
    fn leaves_alone(&self, shape: (usize, usize), reads: &[Region], writes: &[Region]) -> bool {
        let apart = |of: &[Region], others: &[Region]| {
            of.iter().all(|one| others.iter().all(|other| alike(*one, *other, shape)))
        };
        apart(reads, &self.writes) && apart(writes, &self.writes) && apart(writes, &self.reads)
    }

    /// Whether all that corrections are made of is there, or will be: copies of rows, and inner products of the same tasks.
    fn has_made(
        &self,
        device: &CudaDevice<D>,
        arena: &CudaArena<D>,
        corrections: &Corrections<'_>,
        shape: (usize, usize),
    ) -> bool {
        let made = |region: Region| self.writes.iter().filter(move |write| write.overlaps(&region));
        let rows = rows_of(corrections).all(|rows| {
            if is_thin(rows.width) {
                return made(rows).all(|write| alike(rows, *write, shape));
            }
            let whole = pack::copied_with(device, arena, rows);
            made(whole).next().is_none() || pack::is_kept(device, arena, rows)
        });
        let own = |term: &device::Term, write: &Region| {
            let stride = write.len() / (write.rows / shape.1).max(1);
            let within = term.gram.offset.checked_sub(write.offset).map(|from| from % (shape.0 * stride));
            stride == term.gram.task_stride && within.is_some_and(|from| from + extent(term, shape) <= stride)
        };
        rows && corrections.blocks.iter().flatten().all(|term| {
            let width = (shape.0 - 1) * term.gram.task_stride + extent(term, shape);
            made(Region { offset: term.gram.offset, rows: 1, width }).all(|write| own(term, write))
        })
    }

    /// Links before leave no copy where this one leaves its own: theirs are not asked for any more.
    fn forget_copies_under(&mut self, end: &End<D>) {
        let copy = |end: &End<D>| (end.call.packed != NOWHERE).then_some((end.call.packed, wide(end.made.len() / 2)));
        let Some((offset, len)) = copy(end) else { return };
        for before in &mut self.ends {
            if copy(before).is_some_and(|(at, count)| at < offset + len && offset < at + count) {
                before.call.packed = NOWHERE;
            }
        }
    }
}

/// Launches a chain.
pub(super) fn launch<D: Driver>(arena: &CudaArena<D>, ends: &[End<D>]) {
    let (tasks, rows) = ends[0].shape;
    let device = &ends[0].device;
    let mut call = Chain { tasks: narrow(tasks), rows: narrow(rows), count: narrow(ends.len()), ..Chain::zeroed() };
    let (mut terms, mut factors, mut most_groups, mut widest) = (0, 0, 1, 0);
    for (link, end) in call.links.iter_mut().zip(ends) {
        let finish = &end.call;
        let corrections = &finish.corrections;
        let new = corrections.terms();
        let begin = terms;
        terms += new;
        let begins = begins_of(&corrections.terms[..new]);
        let [grams, term_rows, scales] = begins;
        for (to, term) in call.terms[begin..terms].iter_mut().zip(&corrections.terms) {
            // It has been found to be one of a link.
            *to = ChainTerm::new(term, begins).unwrap_or(ChainTerm::zeroed());
        }
        call.factors[factors..factors + end.factors].copy_from_slice(&finish.gram.y[..end.factors]);
        factors += end.factors;
        // A block without terms ends where the one before does.
        let mut ends_of_blocks = corrections.end.map(|end| narrow(begin) + end);
        (1..BLOCKS).for_each(|block| ends_of_blocks[block] = ends_of_blocks[block].max(ends_of_blocks[block - 1]));
        most_groups = most_groups.max(end.made.rows / (tasks * rows) * rows.div_ceil(GROUP));
        widest = widest.max(end.made.width);
        let (product, [weight, bias], [bias_first, bias_rows]) = finish.product.as_link();
        *link = Link {
            product,
            weight,
            bias,
            bias_first,
            bias_rows,
            grams,
            term_rows,
            scales,
            raw: finish.raw,
            packed: finish.packed,
            gram: finish.gram.output,
            parts: finish.parts,
            kind: match (end.given, end.kernel) {
                (Given::Rows, _) => 0,
                (_, Kernel::FinishForward) => 1,
                (_, Kernel::FinishBackward) => 2,
                _ => 3,
            },
            weights: NOWHERE,
            end: ends_of_blocks,
            factors: narrow(factors),
            columns: finish.gram.columns,
            most: corrections.most,
            most_factor: finish.gram.most,
            ..Link::zeroed()
        };
        if let Given::Product(Taken { weights, inner, given, taken, used, first }) = end.given {
            link.weights = wide(weights);
            [link.inner, link.given, link.taken] = [inner, given, taken].map(narrow);
            [link.used, link.first] = [used, first].map(narrow);
        }
    }
    // As few tasks a block as leave every multiprocessor one; to test, as many as fit.
    let most = GROUPS / most_groups;
    let least = if device.warpgroups == Warpgroups::Always { most } else { tasks.div_ceil(MULTIPROCESSORS) };
    let share = least.min(most).min(tasks);
    let groups = share * most_groups;
    let numbers = numbers(groups, widest);
    [call.share, call.groups] = [share, groups].map(narrow);
    [call.widest, call.numbers] = [widest, numbers].map(narrow);
    let bytes = narrow(numbers * size_of::<f32>());
    let shapes =
        format_args!("{} layers of {tasks} tasks x {rows} rows, up to {widest} wide, {terms} terms", ends.len());
    device.launch_with(arena, Kernel::Chain, [tasks.div_ceil(share), 1, 1], bytes, &call, shapes);
}
