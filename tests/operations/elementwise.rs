//! Copies, sums, factors of columns and the lanes.

use std::sync::atomic::{AtomicUsize, Ordering};

use innerloop::Scalar;
use innerloop::device::cpu::{CpuArena, CpuDevice};
use innerloop::device::{ColumnScale, ColumnScaleAdjoint, Device, Region};

use crate::case::{ACTIVATIONS, Case, WIDTHS, first, for_seeds, value};

fn host<T: Scalar>(len: usize) -> (Vec<T>, Vec<f64>) {
    let values: Vec<T> = (0..len).map(|i| T::from_f64(i as f64 * 0.37 - 3.0)).collect();
    let wide = values.iter().map(|v| v.to_f64()).collect();
    (values, wide)
}

#[test]
fn copies() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (rows, width) = (case.pick(&[1, 5, 7]), case.pick(&WIDTHS));
        let (from, written) = (case.random(rows, width), case.poisoned(rows, width));
        let image = case.image();
        let (values, wide) = host::<T>(rows * width);
        let source = image.of(from).to_vec();
        case.judge("upload", 0.0, &[(written, wide.clone())], |d, arena| d.upload(arena, written, &values));
        let sum = source.iter().zip(&wide).map(|(a, b)| a + b).collect();
        case.judge("add_host", 1e-7, &[(from, sum)], |d, arena| d.add_host(arena, from, &values));
        let filled = vec![0.5; rows * width];
        case.judge("fill", 0.0, &[(written, filled)], |d, arena| d.fill(arena, written, T::from_f64(0.5)));
        case.judge("copy", 0.0, &[(written, source.clone())], |d, arena| d.copy(arena, from, written));
        case.judge("download", 0.0, &[], |d, arena| {
            let mut out = vec![T::ZERO; rows * width];
            d.download(arena, from, &mut out);
            assert!(out.iter().zip(&source).all(|(o, s)| o.to_f64() == *s));
        });
        let indices: Vec<u32> = (0..case.pick(&[1, 3, 9])).map(|_| case.below(rows) as u32).collect();
        let gathered = case.poisoned(indices.len(), width);
        let expected = indices.iter().flat_map(|i| &source[*i as usize * width..][..width]).copied().collect();
        case.judge("gather", 0.0, &[(gathered, expected)], |d, arena| d.gather(arena, from, &indices, gathered));
    }
    for_seeds!(20, check);
}

#[test]
fn column_scale() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (rows, width) = (case.pick(&[1, 5, 41, 300]), case.pick(&WIDTHS));
        let (activation, learns) = (case.pick(&ACTIVATIONS), case.coin());
        let (from, scale, to) = (case.random(rows, width), case.random(1, width), case.poisoned(rows, width));
        let op = ColumnScale { from, scale, activation, to };
        let of = case.values(rows, width, activation);
        let (cotangent, gradient) = (case.random(rows, width), case.random(1, width));
        let image = case.image();
        let each = |element: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            (0..rows).flat_map(|r| (0..width).map(move |c| (r, c))).map(|(r, c)| element(r, c)).collect()
        };
        let factor = |c| image.at(scale, 0, c);
        let values = each(&|r, c| value(activation, image.at(from, r, c) * factor(c)));
        case.judge("column_scale", 3e-7, &[(to, values)], |d, arena| d.column_scale(arena, &op));

        let u = |r, c| image.at(cotangent, r, c) * first(activation, image.at(of, r, c));
        let mut expected = vec![(cotangent, each(&|r, c| u(r, c) * factor(c)))];
        if learns {
            let sum = |c| (0..rows).map(|r| u(r, c) * image.at(from, r, c)).sum::<f64>();
            expected.push((gradient, (0..width).map(|c| image.at(gradient, 0, c) + 0.3 * sum(c)).collect()));
        }
        let op = ColumnScaleAdjoint {
            of: ColumnScale { to: of, ..op },
            cotangent,
            gradient: learns.then_some(gradient),
            weight: T::from_f64(0.3),
        };
        case.judge("column_scale_adjoint", 2e-6, &expected, |d, arena| d.column_scale_adjoint(arena, &op));
    }
    for_seeds!(60, check);
}

#[test]
fn sums() {
    fn check<T: Scalar>(seed: u64) {
        let mut case = Case::<T>::new(seed);
        let (rows, width, accumulate) = (case.pick(&[1, 5, 41]), case.pick(&[1, 17, 257, 40_001]), case.coin());
        let (from, to) = (case.random(rows, width), case.output(1, width, accumulate));
        let target = case.random(rows, width);
        let image = case.image();
        let scale = T::from_f64(-0.3);
        let expected = (0..width)
            .map(|c| {
                let before = if accumulate { image.at(to, 0, c) } else { 0.0 };
                before + scale.to_f64() * (0..rows).map(|r| image.at(from, r, c)).sum::<f64>()
            })
            .collect();
        case.judge("sum_rows", 2e-6, &[(to, expected)], |d, arena| d.sum_rows(arena, from, scale, to, accumulate));
        let sum = image.of(target).iter().zip(image.of(from)).map(|(t, f)| t + scale.to_f64() * f).collect();
        case.judge("add_scaled", 1e-6, &[(target, sum)], |d, arena| d.add_scaled(arena, from, scale, target));
    }
    for_seeds!(20, check);
}

/// A region beyond the arena, or one that is read and written at once, must not reach memory.
#[test]
fn misplaced_regions_are_refused() {
    let device = CpuDevice::new(1).unwrap();
    let arena: CpuArena<f64> = device.arena(64).unwrap();
    let arena = std::sync::Mutex::new(arena);
    let refuses = |from: Region, to: Region| {
        let add = || device.add_scaled(&mut arena.lock().unwrap_or_else(|e| e.into_inner()), from, 1.0, to);
        std::panic::catch_unwind(std::panic::AssertUnwindSafe(add)).is_err()
    };
    let region = |offset| Region { offset, rows: 2, width: 8 };
    assert!(refuses(region(0), region(56)) && refuses(region(56), region(0)), "beyond the end");
    assert!(refuses(region(0), region(15)), "overlapping");
    assert!(!refuses(region(0), region(16)));
}

#[test]
fn every_lane_runs_once_with_a_device_that_works() {
    for threads in [1, 3] {
        let device = CpuDevice::new(threads).unwrap();
        assert_eq!(Device::<f64>::lanes(&device), threads);
        for count in [1, 2, 7] {
            let runs = AtomicUsize::new(0);
            let mut lanes: Vec<(usize, CpuArena<f64>)> =
                (0..count).map(|i| (i, device.arena(40_000).unwrap())).collect();
            let whole = Region { offset: 0, rows: 1, width: 40_000 };
            Device::<f64>::for_each_lane(&device, &mut lanes, |device, (i, arena)| {
                runs.fetch_add(1, Ordering::Relaxed);
                device.fill(arena, whole, *i as f64);
                let (from, to) = (whole.elements(0, 20_000), whole.elements(20_000, 20_000));
                device.add_scaled(arena, from, 2.0, to);
            });
            assert_eq!(runs.into_inner(), count);
            for (i, arena) in &lanes {
                assert!(arena.slice(whole.elements(20_000, 20_000)).iter().all(|v| *v == 3.0 * *i as f64));
            }
        }
    }
}
