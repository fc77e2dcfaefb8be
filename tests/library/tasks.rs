//! Sources of tasks: what belongs to a task, what to a clip, and how batches are drawn from them.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use innerloop::SupervisedBatch;
use innerloop::tasks::{
    ClipTasks, Condition, Episodes, Latent, Law, MovingShapes, Sinusoids, Subset, VideoBatch, split,
};
use innerloop::video::ClipFormat;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

fn format() -> ClipFormat {
    ClipFormat::new(8, 16, 16, 1).unwrap()
}

fn shapes(tasks: usize, clips: usize) -> MovingShapes {
    MovingShapes::new(format(), 11, tasks, clips).unwrap()
}

fn clip(source: &dyn ClipTasks, task: usize, clip: usize) -> Vec<f32> {
    let mut out = vec![f32::NAN; source.format().values()];
    source.read_into(task, clip, &mut out);
    out
}

fn rng(seed: u64) -> ChaCha8Rng {
    ChaCha8Rng::seed_from_u64(seed)
}

#[test]
fn shapes_follow_from_seed_task_and_clip_alone() {
    for channels in [1, 3] {
        let format = ClipFormat::new(3, 12, 20, channels).unwrap();
        let (a, b) = (MovingShapes::new(format, 1, 40, 3).unwrap(), MovingShapes::new(format, 1, 60, 9).unwrap());
        let other = MovingShapes::new(format, 2, 40, 3).unwrap();
        let mut seen = HashSet::new();
        for task in 0..40 {
            for n in 0..3 {
                let values = clip(&a, task, n);
                assert!(values.iter().all(|v| (-1.0..=1.0).contains(v)));
                assert_eq!(values, clip(&b, task, n));
                assert_ne!(values, clip(&other, task, n));
                assert!(seen.insert(values.iter().map(|v| v.to_bits()).collect::<Vec<_>>()), "{task} {n}");
            }
        }
        assert_eq!((0..40).map(|task| a.name(task)).collect::<HashSet<_>>().len(), 40);
    }
    assert!(MovingShapes::new(format(), 0, 0, 1).is_err() && MovingShapes::new(format(), 0, 1, 0).is_err());
}

#[test]
fn the_shape_is_where_its_path_says() {
    let shapes = shapes(60, 2);
    for task in 0..60 {
        let values = clip(&shapes, task, 1);
        let background = clip(&shapes, task, 0).iter().fold(HashMap::new(), |mut counts: HashMap<u32, u32>, v| {
            *counts.entry(v.to_bits()).or_default() += 1;
            counts
        });
        let background = f32::from_bits(*background.iter().max_by_key(|(_, count)| **count).unwrap().0);
        for (frame, [x, y]) in values.chunks(256).zip(shapes.path(task, 1)) {
            let (mut mass, mut at) = (0.0, [0.0; 2]);
            for (i, v) in frame.iter().enumerate() {
                let weight = f32::from((v - background).abs() > 0.1);
                mass += weight;
                at[0] += weight * ((i % 16) as f32 + 0.5) / 16.0;
                at[1] += weight * ((i / 16) as f32 + 0.5) / 16.0;
            }
            assert!(mass >= 4.0, "{}: the shape is seen", shapes.name(task));
            let distance = (at[0] / mass - x).hypot(at[1] / mass - y);
            assert!(distance < 0.16, "{}: {distance}", shapes.name(task));
        }
    }
}

/// One clip and the law tell every other clip of the task from its first frame.
#[test]
fn clips_of_a_task_share_its_law() {
    let shapes = shapes(300, 3);
    let mut laws: HashMap<&str, usize> = HashMap::new();
    for task in 0..300 {
        let (seen, new) = (shapes.path(task, 0), shapes.path(task, 2));
        assert!((seen[0][0] - new[0][0]).hypot(seen[0][1] - new[0][1]) > 1e-6, "starts differ");
        let law = shapes.law(task);
        let kind = match law {
            Law::Linear { .. } => "linear",
            Law::Bouncing { .. } => "bouncing",
            Law::Circular { .. } => "circular",
            Law::ZigZag { .. } => "zig-zag",
            Law::Accelerating { .. } => "accelerating",
        };
        *laws.entry(kind).or_default() += 1;
        for frame in 0..8 {
            let expected = match law {
                Law::Linear { .. } | Law::ZigZag { .. } | Law::Accelerating { .. } => {
                    [0, 1].map(|axis| new[0][axis] + seen[frame][axis] - seen[0][axis])
                }
                Law::Circular { centre, radius, turn } => {
                    let phase = (new[0][1] - centre[1]).atan2(new[0][0] - centre[0]) + turn * frame as f32 / 7.0;
                    [centre[0] + radius * phase.cos(), centre[1] + radius * phase.sin()]
                }
                Law::Bouncing { .. } => continue,
            };
            let off = (expected[0] - new[frame][0]).hypot(expected[1] - new[frame][1]);
            assert!(off < 1e-4, "{}: {off}", shapes.name(task));
        }
    }
    assert!(laws.len() == 5 && laws.values().all(|&count| count > 35), "{laws:?}");
}

#[test]
fn tasks_differ_in_motion() {
    let shapes = shapes(50, 1);
    let motion = |task| {
        let path = shapes.path(task, 0);
        [path[7][0] - path[0][0], path[7][1] - path[0][1], path[3][0] - path[0][0], path[3][1] - path[0][1]]
    };
    for a in 0..50 {
        for b in 0..a {
            assert!(motion(a).iter().zip(motion(b)).any(|(x, y)| (x - y).abs() > 1e-3), "{a} {b}");
        }
    }
}

#[test]
fn sinusoids_are_those_of_the_paper() {
    let family = Sinusoids::default();
    let (mut x, mut y) = (vec![0.0_f64; 2000], vec![0.0_f64; 2000]);
    family.draw(&mut rng(1), 100, 20, &mut x, &mut y).unwrap();
    assert!(x.iter().all(|x| (-5.0..=5.0).contains(x)) && y.iter().all(|y| y.abs() <= 5.0));
    for (x, y) in x.chunks(20).zip(y.chunks(20)) {
        // y = a sin x - b cos x: the first two points tell a and b, which must hold for the others.
        let determinant = x[0].cos() * x[1].sin() - x[0].sin() * x[1].cos();
        if determinant.abs() > 0.1 {
            let a = (x[0].cos() * y[1] - x[1].cos() * y[0]) / determinant;
            let b = (x[0].sin() * y[1] - x[1].sin() * y[0]) / determinant;
            assert!((0.09..5.01).contains(&a.hypot(b)) && b > -1e-3, "amplitude {} phase in [0, pi]", a.hypot(b));
            assert!(x.iter().zip(y).all(|(x, y)| (a * x.sin() - b * x.cos() - y).abs() < 1e-3));
        }
    }
    let mut batch = SupervisedBatch::<f32>::default();
    family.draw_batch(&mut rng(2), 3, 5, 10, &mut batch).unwrap();
    assert_eq!(
        [batch.support_x.len(), batch.support_y.len(), batch.query_x.len(), batch.query_y.len()],
        [15, 15, 30, 30]
    );
    let wave = family.task(&mut rng(3)).unwrap();
    assert!((wave.at(wave.phase + std::f32::consts::FRAC_PI_2) - wave.amplitude).abs() < 1e-5);
    assert!(family.draw(&mut rng(1), 3, 5, &mut x, &mut y).is_err());
    for x in [(1.0, 0.0), (f32::NAN, 1.0), (f32::MIN, f32::MAX)] {
        assert!(Sinusoids { x, ..family }.task(&mut rng(1)).is_err());
    }
}

/// The tasks of another source in another order, as a file system might list them.
struct Reversed(MovingShapes);

impl ClipTasks for Reversed {
    fn format(&self) -> ClipFormat {
        self.0.format()
    }
    fn len(&self) -> usize {
        self.0.len()
    }
    fn name(&self, task: usize) -> String {
        self.0.name(self.0.len() - 1 - task)
    }
    fn clips(&self, task: usize) -> usize {
        self.0.clips(self.0.len() - 1 - task)
    }
    fn read_into(&self, task: usize, clip: usize, out: &mut [f32]) {
        self.0.read_into(self.0.len() - 1 - task, clip, out);
    }
}

#[test]
fn splits_follow_from_names_and_seed() {
    let source: Arc<dyn ClipTasks> = Arc::new(shapes(20, 2));
    let reversed: Arc<dyn ClipTasks> = Arc::new(Reversed(shapes(20, 2)));
    let names = |part: &Subset| (0..part.len()).map(|task| part.name(task)).collect::<Vec<_>>();
    let (train, held_out) = split(&source, 0.25, 7).unwrap();
    assert_eq!((train.len(), held_out.len()), (15, 5));
    let all: HashSet<String> = names(&train).into_iter().chain(names(&held_out)).collect();
    assert_eq!(all.len(), 20);
    let (same_train, same_held_out) = split(&reversed, 0.25, 7).unwrap();
    assert_eq!((names(&train), names(&held_out)), (names(&same_train), names(&same_held_out)));
    assert_eq!(clip(&held_out, 2, 1), clip(&same_held_out, 2, 1));
    assert_ne!(names(&split(&source, 0.25, 8).unwrap().1), names(&held_out));
    assert_eq!(split(&source, 0.0, 7).unwrap().1.len(), 0);
    assert_eq!(split(&source, 0.001, 7).unwrap().1.len(), 1);
    for fraction in [-0.1, 1.0, 0.99, f64::NAN] {
        assert!(split(&source, fraction, 7).is_err(), "{fraction}");
    }
    assert_eq!(names(&Subset::new(source.clone(), vec![3, 1]).unwrap()), [source.name(3), source.name(1)]);
    assert!(Subset::new(source, vec![20]).is_err());
}

#[test]
fn batches_hold_what_was_drawn() {
    let source: Arc<dyn ClipTasks> = Arc::new(shapes(6, 7));
    let latent = Latent { noise: 3, condition: Condition::FirstFrame { height: 16, width: 16 } };
    let episodes = Episodes::new(source.clone(), latent.clone(), 4, 2, 3).unwrap();
    let mut batch = VideoBatch::default();
    episodes.draw(&mut rng(1), &mut batch).unwrap();
    let size = format().values();
    assert_eq!((batch.tasks, batch.shots, batch.queries), (4, 2, 3));
    assert_eq!((batch.support_x.len(), batch.query_x.len()), (4 * 2 * size, 4 * 3 * size));
    assert_eq!((batch.support_z.len(), batch.query_z.len()), (4 * 2 * 259, 4 * 3 * 259));
    assert_eq!(batch.chosen.iter().collect::<HashSet<_>>().len(), 4);
    let mut noise = HashSet::new();
    for t in 0..4 {
        let clips: Vec<Vec<f32>> = (0..7).map(|n| clip(source.as_ref(), batch.chosen[t], n)).collect();
        let (x, z) =
            (&batch.support_x[t * 2 * size..(t + 1) * 2 * size], &batch.support_z[t * 2 * 259..(t + 1) * 2 * 259]);
        let (qx, qz) =
            (&batch.query_x[t * 3 * size..(t + 1) * 3 * size], &batch.query_z[t * 3 * 259..(t + 1) * 3 * 259]);
        let mut used = HashSet::new();
        for (x, z) in x.chunks(size).chain(qx.chunks(size)).zip(z.chunks(259).chain(qz.chunks(259))) {
            let place = clips.iter().position(|clip| clip == x).expect("a clip of the task");
            assert!(used.insert(place), "clips are distinct");
            assert!(z[3..].iter().zip(x).all(|(a, b)| (a - b).abs() < 1e-6), "the condition is the first frame");
            assert!(noise.insert(z[0].to_bits()), "noise is fresh");
        }
    }
    let again = |threads| {
        let pool = rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap();
        let mut other = VideoBatch::default();
        pool.install(|| episodes.draw(&mut rng(1), &mut other)).unwrap();
        other
    };
    for threads in [1, 3] {
        assert_eq!((&again(threads).query_x, &again(threads).query_z), (&batch.query_x, &batch.query_z));
    }
}

#[test]
fn noise_is_drawn_anew_for_each_inner_step_where_that_is_wanted() {
    let source: Arc<dyn ClipTasks> = Arc::new(shapes(6, 7));
    let latent = Latent { noise: 3, condition: Condition::FirstFrame { height: 2, width: 2 } };
    let episodes = Episodes::new(source, latent.clone(), 4, 2, 3).unwrap();
    let [mut once, mut anew] = [(); 2].map(|()| VideoBatch::default());
    // The second draw finds what the first has left behind.
    for seed in [8, 1] {
        episodes.draw(&mut rng(seed), &mut once).unwrap();
        episodes.clone().with_fresh_noise(3).draw(&mut rng(seed), &mut anew).unwrap();
    }
    assert_eq!((&once.support_x, &once.query_x, &once.query_z), (&anew.support_x, &anew.query_x, &anew.query_z));
    assert_eq!(anew.support_z.len(), 3 * once.support_z.len());
    assert_eq!(anew.support_z[..once.support_z.len()], once.support_z);
    let mut noise = HashSet::new();
    for step in anew.support_z.chunks(once.support_z.len()) {
        for (row, first) in step.chunks(7).zip(once.support_z.chunks(7)) {
            assert_eq!(row[3..], first[3..], "the condition stays");
            assert!(noise.insert(row[0].to_bits()) && noise.insert(row[2].to_bits()), "noise is fresh");
        }
    }
    assert!(once.query_z.chunks(7).all(|row| noise.insert(row[0].to_bits())));
}

#[test]
fn memory_is_reused_and_odd_counts_work() {
    let source: Arc<dyn ClipTasks> = Arc::new(shapes(3, 4));
    let latent = Latent { noise: 4, condition: Condition::None };
    let mut batch = VideoBatch::default();
    let episodes = Episodes::new(source.clone(), latent.clone(), 5, 4, 0).unwrap();
    let mut rng = rng(2);
    episodes.draw(&mut rng, &mut batch).unwrap();
    let place = (batch.support_x.as_ptr(), batch.support_z.as_ptr());
    assert!(batch.query_x.is_empty() && batch.query_z.is_empty());
    for _ in 0..10 {
        episodes.draw(&mut rng, &mut batch).unwrap();
        assert_eq!(place, (batch.support_x.as_ptr(), batch.support_z.as_ptr()));
        // Five draws of three tasks: each once before any twice.
        assert_eq!(batch.chosen[..3].iter().collect::<HashSet<_>>().len(), 3);
        assert_ne!(batch.chosen[3], batch.chosen[4]);
    }
    episodes.fixed(&[2, 2, 0], &mut rng, &mut batch).unwrap();
    assert_eq!((batch.tasks, batch.chosen.as_slice()), (3, &[2, 2, 0][..]));
    assert_eq!(batch.support_x.len(), 3 * 4 * format().values());
    assert!(episodes.fixed(&[3], &mut rng, &mut batch).is_err() && episodes.fixed(&[], &mut rng, &mut batch).is_err());
}

#[test]
fn impossible_episodes_are_refused() {
    let source: Arc<dyn ClipTasks> = Arc::new(shapes(3, 4));
    let latent = Latent { noise: 4, condition: Condition::None };
    let new = |latent, tasks, shots, queries| Episodes::new(source.clone(), latent, tasks, shots, queries).map(|_| ());
    let message = new(latent.clone(), 2, 3, 2).unwrap_err().to_string();
    assert!(message.contains("3 + 2") && message.contains(&source.name(0)) && message.contains("4 clips"), "{message}");
    for (tasks, shots, queries) in [(0, 1, 1), (1, 0, 1), (1, 1, usize::MAX)] {
        assert!(new(latent.clone(), tasks, shots, queries).is_err());
    }
    let text = Latent { condition: Condition::Text { width: 8 }, ..latent.clone() };
    let message = new(text, 1, 1, 1).unwrap_err().to_string();
    assert!(message.contains("tell 0 values") && message.contains('8'), "{message}");
    assert!(new(Latent { noise: 0, ..latent.clone() }, 1, 1, 1).is_err());
    let empty: Arc<dyn ClipTasks> = Arc::new(Subset::new(source.clone(), vec![]).unwrap());
    assert!(Episodes::new(empty, latent, 1, 1, 1).is_err());
}
