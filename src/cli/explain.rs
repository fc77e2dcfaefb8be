//! `bench --explain`: the plan, and each stage's time beside the least that its flop and bytes could take.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::device::{Stage, Work};

/// What the device reaches at best, measured in the same run.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ceilings {
    /// Flop a second.
    pub matrix: f64,
    /// Bytes a second.
    pub memory: f64,
}

/// What takes a stage at least as long as its floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
enum Bound {
    Flop,
    Bytes,
}

impl Ceilings {
    /// The least time that this work can take, in seconds, and why.
    fn floor(&self, work: &Work) -> (f64, Bound) {
        let (flop, bytes) = (work.all_flop() as f64 / self.matrix, work.bytes as f64 / self.memory);
        if flop > bytes { (flop, Bound::Flop) } else { (bytes, Bound::Bytes) }
    }
}

/// One line of the table: all operations of one kind in a meta-step.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Line {
    stage: &'static str,
    calls: u64,
    flop: u64,
    correction_flop: u64,
    bytes: u64,
    floor_ms: f64,
    bound_by: Bound,
    median_ms: f64,
    /// The floor over the time.
    floor_share: f64,
}

/// The sum of the lines, beside the meta-step that nobody kept account of.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Total {
    calls: u64,
    flop: u64,
    correction_flop: u64,
    bytes: u64,
    floor_ms: f64,
    median_ms: f64,
    floor_share: f64,
    /// The time of a whole meta-step of which account was kept.
    accounted_meta_step_ms: f64,
    /// The time of the lines over that of the meta-step of which none was.
    meta_step_share: f64,
}

/// Where the time of a meta-step goes.
#[derive(Clone, Debug, Serialize)]
pub(super) struct Explanation {
    pub stages: Vec<Line>,
    pub total: Total,
}

impl Explanation {
    /// Of the accounts of some meta-steps, which differ in their times alone; `accounted` is the time of one as a
    /// whole, `plain` that of one without an account, in seconds.
    pub(super) fn new(
        accounts: &[BTreeMap<&'static str, Stage>],
        ceilings: &Ceilings,
        [accounted, plain]: [f64; 2],
    ) -> Self {
        let last = accounts.last().into_iter().flatten();
        let mut stages: Vec<_> = last
            .map(|(&stage, Stage { calls, work, .. })| {
                let mut times: Vec<f64> = accounts.iter().filter_map(|a| a.get(stage)).map(|s| s.seconds).collect();
                times.sort_unstable_by(f64::total_cmp);
                let (seconds, (floor, bound_by)) = (times[times.len() / 2], ceilings.floor(work));
                Line {
                    stage,
                    calls: *calls,
                    flop: work.flop,
                    correction_flop: work.correction_flop,
                    bytes: work.bytes,
                    floor_ms: floor * 1e3,
                    bound_by,
                    median_ms: seconds * 1e3,
                    floor_share: share(floor, seconds),
                }
            })
            .collect();
        stages.sort_by(|a, b| b.median_ms.total_cmp(&a.median_ms));
        let (floor_ms, median_ms) =
            stages.iter().fold((0.0, 0.0), |(floor, time), line| (floor + line.floor_ms, time + line.median_ms));
        let total = Total {
            calls: stages.iter().map(|line| line.calls).sum(),
            flop: stages.iter().map(|line| line.flop).sum(),
            correction_flop: stages.iter().map(|line| line.correction_flop).sum(),
            bytes: stages.iter().map(|line| line.bytes).sum(),
            floor_ms,
            median_ms,
            floor_share: share(floor_ms, median_ms),
            accounted_meta_step_ms: accounted * 1e3,
            meta_step_share: share(median_ms, plain * 1e3),
        };
        Self { stages, total }
    }

    /// The table, for people.
    pub(super) fn say(&self) {
        say!(
            "{:<22} {:>6} {:>9} {:>11} {:>9} {:>9} {:>6} {:>9} {:>6}",
            "stage",
            "calls",
            "GFLOP",
            "corrections",
            "MB",
            "floor ms",
            "bound",
            "ms",
            "floor%"
        );
        for line in &self.stages {
            let bound = match line.bound_by {
                Bound::Flop => "flop",
                Bound::Bytes => "bytes",
            };
            row(
                line.stage,
                line.calls,
                [line.flop, line.correction_flop, line.bytes],
                line.floor_ms,
                bound,
                line.median_ms,
            );
        }
        let Total {
            calls,
            flop,
            correction_flop,
            bytes,
            floor_ms,
            median_ms,
            accounted_meta_step_ms,
            meta_step_share,
            ..
        } = self.total;
        row("total", calls, [flop, correction_flop, bytes], floor_ms, "", median_ms);
        say!(
            "the stages' times sum to {:.1}% of the meta-step's, which took {accounted_meta_step_ms:.3} ms while it was explained",
            100.0 * meta_step_share
        );
    }
}

fn row(stage: &str, calls: u64, [flop, correction_flop, bytes]: [u64; 3], floor: f64, bound: &str, time: f64) {
    say!(
        "{stage:<22} {calls:>6} {:>9.4} {:>11.4} {:>9.3} {floor:>9.4} {bound:>6} {time:>9.4} {:>6.1}",
        (flop + correction_flop) as f64 / 1e9,
        correction_flop as f64 / 1e9,
        bytes as f64 / 1e6,
        100.0 * share(floor, time),
    );
}

/// `part / whole`; 0 of nothing.
fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole } else { 0.0 }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::{Bound, Ceilings, Explanation};
    use crate::device::{Stage, Work};

    #[test]
    fn floors_medians_and_totals() {
        let ceilings = Ceilings { matrix: 1e9, memory: 1e8 };
        let account = |gram: f64, fill: f64| {
            let work = Work { flop: 3_000_000, correction_flop: 1_000_000, bytes: 100_000 };
            let filled = Work { flop: 0, correction_flop: 0, bytes: 200_000 };
            BTreeMap::from([
                ("fill", Stage { calls: 1, work: filled, seconds: fill }),
                ("gram", Stage { calls: 2, work, seconds: gram }),
            ])
        };
        let accounts = [account(0.005, 0.001), account(0.008, 0.004), account(0.1, 0.002)];
        let Explanation { stages, total } = Explanation::new(&accounts, &ceilings, [0.03, 0.02]);
        let lines: Vec<_> = stages.iter().map(|l| (l.stage, l.calls, l.bound_by)).collect();
        // The slowest first: 4 Mflop take 4 ms and 0.1 MB 1 ms at least; 0.2 MB take 2 ms.
        assert_eq!(lines, [("gram", 2, Bound::Flop), ("fill", 1, Bound::Bytes)]);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        for (line, [floor, time]) in stages.iter().zip([[4.0, 8.0], [2.0, 2.0]]) {
            assert!(close(line.floor_ms, floor) && close(line.median_ms, time), "{line:?}");
            assert!(close(line.floor_share, floor / time), "{line:?}");
        }
        assert_eq!([total.calls, total.flop, total.correction_flop, total.bytes], [3, 3_000_000, 1_000_000, 300_000]);
        assert!(close(total.floor_ms, 6.0) && close(total.median_ms, 10.0), "{total:?}");
        assert!(close(total.accounted_meta_step_ms, 30.0), "{total:?}");
        assert!(close(total.floor_share, 0.6) && close(total.meta_step_share, 0.5), "{total:?}");
    }
}
