//! Plain loops over regions, factors of columns, reductions and the outer optimizer.

use innerloop::device::{
    ArenaPlan, ColumnScale, ColumnScaleAdjoint, Device, FINDINGS, Finding, GradientCheck, OuterStep,
};
use innerloop::model::Activation;
use rand::RngExt;

use super::Make;
use super::scene::{Scene, compare};

pub fn plain_arrays<D: Device<f32>>(make: Make<'_, D>) {
    let shapes = [(1, 1, 1), (3, 43, 1), (5, 300, 1), (9, 257, 4)];
    for (case, (rows, width, alignment)) in shapes.into_iter().enumerate() {
        let scene = &mut Scene::new(900 + case as u64);
        scene.align(alignment);
        let from = scene.random(rows, width);
        let filled = scene.written(rows, width);
        let copied = scene.written(rows, width);
        let scaled = scene.changed(rows, width, true);
        let uploaded = scene.written(rows, width);
        let added = scene.changed(rows, width, true);
        let host: Vec<f64> = (0..rows * width).map(|i| f64::from(i as u32) * 0.125 - 3.0).collect();
        compare!(scene, make, format!("{rows} x {width}"), |device, arena, T| {
            let host: Vec<T> = host.iter().map(|v| *v as T).collect();
            device.fill(arena, filled, 0.75 as T);
            device.copy(arena, from, copied);
            device.add_scaled(arena, from, -0.3 as T, scaled);
            device.upload(arena, uploaded, &host);
            device.add_host(arena, added, &host);
        });
    }
}

pub fn gather<D: Device<f32>>(make: Make<'_, D>) {
    for (case, (rows, width, count)) in [(1, 1, 1), (7, 5, 12), (9, 131, 3), (600, 2, 1100)].into_iter().enumerate() {
        let scene = &mut Scene::new(1000 + case as u64);
        let from = scene.random(rows, width);
        let to = scene.written(count, width);
        let indices: Vec<u32> = (0..count).map(|_| scene.rng.random_range(0..rows as u32)).collect();
        compare!(scene, make, format!("{count} of {rows} x {width}"), |device, arena, _T| {
            device.gather(arena, from, &indices, to);
        });
    }
}

pub fn sum_rows<D: Device<f32>>(make: Make<'_, D>) {
    let few = [(1, 1, false), (5, 129, true), (40, 7, false), (3, 257, false), (300, 67, true)];
    let wide = [(3, 8300, true), (33, 8195, false), (11, 8194, false)];
    for (case, (rows, width, accumulate)) in few.into_iter().chain(wide).enumerate() {
        let scene = &mut Scene::new(1100 + case as u64);
        let from = scene.random(rows, width);
        let to = scene.changed(1, width, accumulate);
        compare!(scene, make, format!("{rows} x {width}"), |device, arena, T| {
            device.sum_rows(arena, from, -0.4 as T, to, accumulate);
        });
    }
}

pub fn column_scale<D: Device<f32>>(make: Make<'_, D>) {
    use Activation::{LeakyRelu, Linear, Relu, Sigmoid, Tanh};
    let shapes =
        [(1, 1, Linear), (5, 129, LeakyRelu), (40, 33, Tanh), (3, 257, Sigmoid), (131, 16, Relu), (9, 65, Linear)];
    for (case, (rows, width, activation)) in shapes.into_iter().enumerate() {
        let scene = &mut Scene::new(1150 + case as u64);
        let (from, scale) = (scene.random(rows, width), scene.random(1, width));
        let (to, of) = (scene.written(rows, width), scene.between(rows, width, 0.1, 0.9));
        let cotangent = scene.changed(rows, width, true);
        let gradient = (case % 2 == 0).then(|| scene.changed(1, width, true));
        compare!(scene, make, format!("{rows} x {width}, {activation:?}"), |device, arena, T| {
            let forward = ColumnScale { from, scale, activation, to };
            device.column_scale(arena, &forward);
            let of = ColumnScale { to: of, ..forward };
            let weight = 0.3 as T;
            device.column_scale_adjoint(arena, &ColumnScaleAdjoint { of, cotangent, gradient, weight });
        });
    }
}

/// Factors and norms, summed in double precision: the only error is the rounding of the findings. What is not finite is
/// found wherever it is, and stays found.
pub fn gradient_check<D: Device<f32>>(make: Make<'_, D>) {
    const TASKS: [usize; 2] = [200, 10];
    fn find<D: Device<f32>>(device: &D, arena: &mut D::Arena, check: &GradientCheck) -> [f32; FINDINGS] {
        let mut found = [0.0; FINDINGS];
        device.gradient_check(arena, check);
        device.download(arena, check.findings, &mut found);
        device.check().unwrap();
        found
    }
    for length in [1, 127, 5000, 70_001, 600_002] {
        let mut plan = ArenaPlan::default();
        let gradient = plan.take(1, length);
        let losses = TASKS.map(|tasks| plan.take(1, tasks));
        let findings = plan.take(1, FINDINGS);
        let mut rng = <rand_chacha::ChaCha8Rng as rand::SeedableRng>::seed_from_u64(length as u64);
        let values: Vec<f32> = (0..length).map(|_| rng.random_range(-1.0..1.0)).collect();
        let norm = values.iter().map(|v| f64::from(*v) * f64::from(*v)).sum::<f64>().sqrt();
        for (seed, clip, factor) in [(0, None, 1.0), (1, Some(norm / 2.0), 0.5), (2, Some(norm * 2.0), 1.0)] {
            let device = make(seed);
            let arena = &mut device.arena(plan.elements()).unwrap();
            device.upload(arena, gradient, &values);
            // What is not written keeps its 9.
            device.fill(arena, findings, 9.0);
            let flag = findings.elements(0, 1);
            device.fill(arena, flag, 0.0);
            // Those of rates come last, and are not scaled down.
            let rates = Some(gradient);
            let gradients = [None, Some(gradient), None, None, rates, None];
            let check = GradientCheck { losses: losses.map(Some), gradients, clip, findings };
            let found = find(&device, arena, &check);
            let close = |got: f32, wanted: f64| (f64::from(got) - wanted).abs() <= 1e-7 * wanted;
            assert!(close(found[3], factor) && close(found[4], norm), "{length}: {found:?}, not {factor}, {norm}");
            assert!(found[9] == 1.0 && close(found[10], norm), "{length}: {found:?}");
            let rest = [&found[..3], &found[5..9], &found[11..]].concat();
            assert_eq!(rest, [&[0.0][..], &[9.0; 8]].concat(), "{length}");
            for (region, place, value) in [
                (gradient, 0, f32::NAN),
                (gradient, length - 1, f32::INFINITY),
                (losses[0], TASKS[0] - 1, f32::NEG_INFINITY),
                (losses[1], 3, f32::NAN),
            ] {
                let place = region.elements(place, 1);
                let mut before = [0.0];
                device.download(arena, place, &mut before);
                device.upload(arena, place, &[value]);
                assert_eq!(find(&device, arena, &check)[0], 1.0, "{value} in {region:?}");
                if region != gradient {
                    device.fill(arena, flag, 0.0);
                    let alone = GradientCheck { gradients: [None; 6], ..check };
                    assert_eq!(find(&device, arena, &alone)[0], 1.0, "{value} in {region:?}, without a gradient");
                }
                device.upload(arena, place, &before);
                assert_eq!(find(&device, arena, &check)[0], 1.0, "forgotten");
                device.fill(arena, flag, 0.0);
                assert_eq!(find(&device, arena, &check)[0], 0.0, "found where there is nothing");
            }
        }
    }
}

pub fn outer_step<D: Device<f32>>(make: Make<'_, D>) {
    for (case, (length, alignment)) in [(1, 1), (130, 1), (1500, 1), (2050, 4)].into_iter().enumerate() {
        let scene = &mut Scene::new(1200 + case as u64);
        scene.align(alignment);
        let gradient = scene.random(1, length);
        // Those whose logarithms move are positive.
        let in_logarithm = case % 2 == 1;
        let [plain, parameters] = [(); 2].map(|()| match in_logarithm {
            true => scene.between(1, length, 0.1, 2.0),
            false => scene.random(1, length),
        });
        let first = scene.changed(1, length, true);
        let second = scene.between(1, length, 0.1, 2.0);
        let mut found = [9.0; FINDINGS];
        (found[0], found[3]) = (0.0, 0.5);
        let findings = scene.holding(&found);
        found[0] = 1.0;
        let refused = scene.holding(&found);
        // The second moment changes too, but stays positive.
        let scene = scene.also_written(second).also_written(plain).also_written(parameters);
        compare!(scene, make, format!("{length} parameters"), |device, arena, _T| {
            let (rate, finding) = (0.01, Finding { findings, gradient: 1 });
            let sgd = |finding| OuterStep::Sgd { in_logarithm, parameters: plain, gradient, rate, finding };
            device.outer_step(arena, &sgd(finding));
            for step in [1, 2, 1000] {
                let adam = |finding| OuterStep::Adam {
                    in_logarithm,
                    parameters,
                    gradient,
                    first,
                    second,
                    rate,
                    finding,
                    betas: (0.9, 0.999),
                    epsilon: 1e-8,
                    step,
                };
                device.outer_step(arena, &adam(finding));
                // Not one that must not be taken.
                let finding = Finding { findings: refused, gradient: 1 };
                device.outer_step(arena, &adam(finding));
                device.outer_step(arena, &sgd(finding));
            }
        });
    }
}
