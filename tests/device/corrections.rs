//! Corrections of the dual form, and the Gram matrices they are made of.

use innerloop::device::{
    AdjointBackward, Device, Gate, Gram, GramInner, GramView, InnerRates, LinearForward, LowRank, RateTables,
    RateTablesGradient, Region, Term,
};
use innerloop::model::Activation;

use super::Make;
use super::scene::{Scene, compare};

/// Corrections of several blocks; the scales are of both signs.
pub struct Terms {
    pub blocks: Vec<Vec<Term>>,
    pub scales: Region,
    pub scratch: Region,
    /// Whether but a share of the weights is taken.
    pub decayed: bool,
}

impl Terms {
    /// `counts[b]` lists the rows a task of each term of block `b`. Views of the Gram matrices go by rows and by columns.
    pub fn new(scene: &mut Scene, tasks: usize, rows: usize, width: usize, counts: &[Vec<usize>]) -> Self {
        let mut total = 0;
        let blocks = counts.iter().enumerate().map(|(b, counts)| {
            let terms = counts.iter().enumerate().map(|(i, count)| {
                total += count * tasks * rows;
                let (row_stride, column_stride) = if (i + b) % 2 == 0 { (count + 2, 1) } else { (1, rows + 1) };
                let task_stride = (rows * (count + 2)).max(count * (rows + 1));
                let gram = scene.random(1, tasks * task_stride);
                Term {
                    gram: GramView { offset: gram.offset, task_stride, row_stride, column_stride },
                    bias: (i % 3 == 1).then_some((i + 2 * b) % 3),
                    scale: (i + b) % 3,
                    rows: scene.random(tasks * count, width),
                }
            });
            terms.collect()
        });
        let blocks = blocks.collect();
        let scratch = scene.scratch(total);
        Self { blocks, scales: scene.holding(&[-0.3, 0.2, -0.05, 0.75]), scratch, decayed: true }
    }

    /// None.
    pub fn none() -> Self {
        let nothing = Region { offset: 0, rows: 0, width: 0 };
        Self { blocks: Vec::new(), scales: nothing, scratch: nothing, decayed: false }
    }
}

/// `Corrections` of some terms.
macro_rules! corrections {
    ($terms:expr) => {
        innerloop::device::Corrections {
            share: $terms.decayed.then_some(3),
            blocks: &$terms.blocks,
            scales: $terms.scales,
            scratch: $terms.scratch,
        }
    };
}
pub(crate) use corrections;

/// Tasks, rows, width and alignment: columns one by one and by fours; a part of a block, and several.
const SHAPES: [(usize, usize, usize, usize); 4] = [(3, 9, 131, 1), (2, 5, 132, 4), (1, 1, 260, 4), (1, 17, 1100, 4)];

/// More terms than one launch holds, more rows than one pass of a block, in blocks of unequal length.
pub fn many_corrections<D: Device<f32>>(make: Make<'_, D>) {
    for (case, counts) in [
        vec![vec![1; 70], vec![], vec![2; 3]],
        vec![vec![3; 131]],
        vec![vec![150, 1, 129], vec![5]],
        vec![vec![], vec![7]],
    ]
    .iter()
    .enumerate()
    {
        for (tasks, rows, outputs, alignment) in SHAPES {
            let scene = &mut Scene::new(case as u64);
            scene.align(alignment);
            let inputs = 4;
            let input = scene.random(counts.len() * tasks * rows, inputs);
            let layer = scene.layer(tasks, true, inputs, outputs);
            let terms = Terms::new(scene, tasks, rows, outputs, counts);
            let output = scene.written(input.rows, outputs);
            compare!(scene, make, format!("{counts:?} of width {outputs}"), |device, arena, T| {
                let corrections = corrections!(terms);
                let activation = Activation::Linear;
                device.linear_forward(
                    arena,
                    &LinearForward { tasks, rows, input, layer, corrections, activation, output },
                );
            });
        }
    }
}

/// Added to what is there, through every activation.
pub fn gated_corrections<D: Device<f32>>(make: Make<'_, D>) {
    for (case, activation) in super::products::ACTIVATIONS.into_iter().enumerate() {
        for (tasks, rows, inputs, alignment) in SHAPES {
            let scene = &mut Scene::new(30 + case as u64);
            scene.align(alignment);
            let (blocks, outputs) = (2, 3);
            let z_cotangent = scene.random(blocks * tasks * rows, outputs);
            let layer = scene.layer(tasks, true, inputs, outputs);
            let counts = [vec![3], vec![5; 1 + 7 * case]];
            let terms = Terms::new(scene, tasks, rows, inputs, &counts);
            let values = scene.random(3 * tasks * rows, inputs);
            let gate = Some(Gate { activation, values, blocks: &[2, 0] });
            let output = scene.changed(z_cotangent.rows, inputs, true);
            compare!(scene, make, format!("{activation:?} of width {inputs}"), |device, arena, T| {
                let corrections = corrections!(terms);
                let (direction, accumulate) = (None, true);
                let operation = AdjointBackward {
                    tasks,
                    rows,
                    z_cotangent,
                    layer,
                    direction,
                    corrections,
                    gate,
                    output,
                    accumulate,
                };
                device.adjoint_backward(arena, &operation);
            });
        }
    }
}

pub fn low_rank<D: Device<f32>>(make: Make<'_, D>) {
    // The last has tasks enough that no two warps share a column.
    for (case, counts) in
        [vec![vec![5], vec![], vec![1; 30]], vec![vec![2; 70]], vec![], vec![vec![4, 9]]].iter().enumerate()
    {
        let (tasks, rows, width) = [(3, 9, 131), (3, 9, 7), (3, 9, 33), (1024, 1, 97)][case];
        let scene = &mut Scene::new(50 + case as u64);
        let terms = Terms::new(scene, tasks, rows, width, counts);
        let output = scene.written(if counts.is_empty() { 2 } else { counts.len() } * tasks * rows, width);
        let (base, gate, accumulate) = (None, None, false);
        compare!(scene, make, format!("{counts:?}"), |device, arena, T| {
            let corrections = corrections!(terms);
            device.low_rank(arena, &LowRank { tasks, rows, base, corrections, gate, output, accumulate });
        });
    }
}

/// The same added to rows, multiplied with an activation's derivative, added to what is there; of widths down to 1.
pub fn low_rank_of_rows<D: Device<f32>>(make: Make<'_, D>) {
    let counts = [vec![vec![5], vec![]], vec![vec![2; 70], vec![1]], vec![], vec![vec![5; 3], vec![4]]];
    let shapes = [(3, 9, 131), (3, 5, 64), (1, 1, 1), (33, 5, 5), (40, 5, 128), (2, 17, 1)];
    for (case, (tasks, rows, width)) in shapes.into_iter().enumerate() {
        for (list, counts) in counts.iter().enumerate() {
            for alignment in [1, 4].into_iter().take(1 + usize::from(width % 4 == 0)) {
                let scene = &mut Scene::new(70 + (case * 10 + list) as u64);
                scene.align(alignment);
                let terms = Terms::new(scene, tasks, rows, width, counts);
                let all = 2 * tasks * rows;
                let base = (list != 3).then(|| scene.random(all, width));
                let activation = super::products::ACTIVATIONS[case % 4];
                let values = scene.random(all, width);
                let gate = (case % 3 != 2).then_some(Gate { activation, values, blocks: &[1, 0] });
                let accumulate = (case + list) % 2 == 0;
                let output = scene.changed(all, width, accumulate);
                compare!(scene, make, format!("{tasks} x {rows} rows of {width}, {counts:?}"), |device, arena, T| {
                    let corrections = corrections!(terms);
                    device.low_rank(arena, &LowRank { tasks, rows, base, corrections, gate, output, accumulate });
                });
            }
        }
    }
}

pub fn gram<D: Device<f32>>(make: Make<'_, D>) {
    for (case, (tasks, rows, blocks, width, counts)) in [
        (1, 1, 1, 1, vec![1]),
        (3, 5, 2, 7, vec![5, 5, 2]),
        (2, 9, 3, 33, vec![16, 1]),
        (4, 8, 1, 64, vec![17]),
        (2, 3, 1, 130, vec![1; 70]),
        (1, 17, 1, 200, vec![3; 11]),
        (3, 5, 2, 300, vec![5, 0, 1, 7]),
        (1, 2, 1, 2500, vec![2, 9]),
        // So many that no two warps share a product.
        (4096, 1, 1, 67, vec![1]),
        (2048, 1, 1, 132, vec![3, 2]),
    ]
    .into_iter()
    .enumerate()
    {
        // Rows that lie anywhere, and, where their width allows it, at multiples of 16 bytes.
        for alignment in [1, 4].into_iter().take(1 + usize::from(width % 4 == 0)) {
            let scene = &mut Scene::new(100 + case as u64);
            scene.align(alignment);
            let x = scene.random(blocks * tasks * rows, width);
            let y: Vec<Region> = counts.iter().map(|count| scene.random(tasks * count, width)).collect();
            let accumulate = case % 3 == 1;
            let output = scene.changed(x.rows, counts.iter().sum(), accumulate);
            compare!(scene, make, format!("gram {counts:?} of width {width}"), |device, arena, _T| {
                device.gram(arena, &Gram { tasks, rows, x, y: &y, output, accumulate });
            });
        }
    }
}

/// One by one, and many at once, of which some add to the same numbers.
pub fn gram_inner<D: Device<f32>>(make: Make<'_, D>) {
    let shapes = [(1, 1, 1, true), (7, 3, 5, false), (40, 2, 10, true), (129, 4, 3, false)];
    for (case, (rows, groups, group, plus_one)) in shapes.into_iter().enumerate() {
        let scene = &mut Scene::new(200 + case as u64);
        let left = scene.random(rows, groups * group);
        // Without a right operand it counts as 0.
        let right = (case != 2).then(|| scene.random(rows, groups * group));
        let output = scene.changed(1, groups, true);
        compare!(scene, make, format!("gram_inner {rows} x {groups} x {group}"), |device, arena, _T| {
            device.gram_inner(arena, &GramInner { left, right, group, plus_one, scale: 0.25, output });
        });
    }
    let scene = &mut Scene::new(210);
    let sums = scene.changed(1, 300, true);
    let mut many = Vec::new();
    for i in 0..150 {
        let (rows, groups, group, plus_one) = shapes[i % 4];
        let [left, right] = [(); 2].map(|()| scene.random(rows, groups * group));
        // The 70th and some more come where others have been.
        let output = sums.elements(if i % 70 == 69 { i % 4 } else { i * 280 / 150 }, groups);
        many.push(GramInner { left, right: Some(right), group, plus_one, scale: 0.25, output });
    }
    compare!(scene, make, "many of them", |device, arena, _T| device.gram_inners(arena, &many));
}

pub fn rate_tables<D: Device<f32>>(make: Make<'_, D>) {
    for (case, (steps, layers, single, biased, (momentum, decay), queries, first_moving)) in [
        (1, 1, false, false, (0.0, 0.0), 1, 0),
        (5, 3, false, false, (0.0, 0.0), 5, 0),
        (5, 4, true, false, (0.9, 0.0), 1, 2),
        (5, 4, true, false, (0.0, 0.2), 1, 1),
        (7, 3, false, true, (0.5, 0.1), 7, 1),
        (1, 2, true, true, (0.0, 0.3), 1, 0),
        (40, 5, false, true, (0.9, 0.0), 1, 0),
    ]
    .into_iter()
    .enumerate()
    {
        let scene = &mut Scene::new(220 + case as u64);
        let each = steps * layers;
        let rates = scene.random(1, if single { 1 } else { each });
        let bias = biased.then(|| scene.random(1, each));
        let query_weights = (queries > 1).then(|| scene.random(1, queries));
        let of = InnerRates { steps, layers, momentum, decay, rates, bias, query_weights };
        let of_tables = scene.random(layers * if biased { 2 } else { 1 }, InnerRates::table(steps));
        let of_shares = (decay != 0.0).then(|| scene.random(layers, steps + 1));
        let tables = scene.written(layers, RateTables::width(steps, queries));
        let gradient = scene.written(1, rates.len());
        let bias_gradient = biased.then(|| scene.written(1, each));
        compare!(scene, make, format!("{steps} steps of {layers} layers"), |device, arena, _T| {
            device.rate_tables(arena, &RateTables { of, tables });
            let back = RateTablesGradient { of, tables, of_tables, of_shares, first_moving, gradient, bias_gradient };
            device.rate_tables_gradient(arena, &back);
        });
    }
}
