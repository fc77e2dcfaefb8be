//! Personal files: what they hold, whom they fit, and many of them against one shared checkpoint.

use std::path::Path;
use std::sync::Arc;

use crate::fixtures::assert_error;
use crate::fixtures::command::{TINY, fail, succeed};
use innerloop::checkpoint::Checkpoint;
use innerloop::device::cpu::CpuDevice;
use innerloop::model::Parameters;
use innerloop::personal::{Personal, fingerprint};
use innerloop::run::{
    AdaptationOptions, Personalisation, Tune, Tuning, adapt, generate, generate_personal, personalise,
};
use innerloop::tasks::{ClipTasks, MovingShapes, Subset};
use innerloop::video::ClipFormat;
use innerloop::{LowRankChange, forward_changed};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// A checkpoint trained for a moment, with these options.
fn checkpoint(options: &str) -> Checkpoint {
    let folder = tempfile::tempdir().unwrap();
    succeed(folder.path(), &format!("train {TINY} --steps 30 --out run {options}"));
    Checkpoint::read(&folder.path().join("run/checkpoint.safetensors")).unwrap()
}

fn device() -> CpuDevice {
    CpuDevice::new(1).unwrap()
}

/// A subject of so many clips that no checkpoint has seen.
fn subject(task: usize, clips: usize) -> Arc<dyn ClipTasks> {
    let shapes: Arc<dyn ClipTasks> =
        Arc::new(MovingShapes::new(ClipFormat::new(3, 6, 8, 1).unwrap(), 77, 9, clips).unwrap());
    Arc::new(Subset::new(shapes, vec![task]).unwrap())
}

const OPTIONS: AdaptationOptions = AdaptationOptions { shots: Some(3), steps: None, seed: 4 };

fn personal(checkpoint: &Checkpoint, task: usize, options: &AdaptationOptions, tune: Tune) -> Personalisation {
    personalise(&device(), checkpoint, subject(task, 5), options, tune).unwrap()
}

fn read_back(personal: &Personal, checkpoint: &Checkpoint) -> Personal {
    Personal::decode(Path::new("p"), &personal.encode().unwrap(), checkpoint).unwrap()
}

fn distance(a: &[f32], b: &[f32]) -> f64 {
    assert_eq!(a.len(), b.len());
    let norm = |values: &mut dyn Iterator<Item = f32>| values.map(|v| f64::from(v * v)).sum::<f64>().sqrt();
    norm(&mut a.iter().zip(b).map(|(a, b)| a - b)) / norm(&mut b.iter().copied())
}

#[test]
fn many_subjects_generate_in_one_batch_what_their_adapted_checkpoints_do() {
    for options in
        ["", "--meta-optimizer network --rank 3 --momentum 0.5", "--meta-optimizer row-column --weight-decay 0.05"]
    {
        let shared = checkpoint(options);
        // Other numbers of clips and steps: other ranks, and with weight decay other shares of the weights.
        let ways = [(0, 3, 2), (4, 5, 1), (7, 1, 4)];
        let ways = ways.map(|(task, shots, steps)| {
            (task, AdaptationOptions { shots: Some(shots), steps: Some(steps), seed: task as u64 })
        });
        let files = ways.map(|(task, options)| personal(&shared, task, &options, Tune::Weights).personal);
        let files = files.map(|file| read_back(&file, &shared).adapted.unwrap());
        let files: Vec<_> = files.iter().collect();
        let together = generate_personal(&device(), &shared, &files, &[], 6, 9).unwrap();
        let mut apart = Vec::new();
        for (task, options) in ways {
            let adapted = adapt(&device(), &shared, subject(task, 5), &options).unwrap();
            let own = match &adapted.checkpoint.stage {
                innerloop::checkpoint::Stage::Adapted { latents, .. } => latents.clone(),
                stage => panic!("{stage:?}"),
            };
            apart.push(generate(&device(), &adapted.checkpoint, &own, 6, 9).unwrap());
        }
        let error = distance(&together, &apart.concat());
        assert!(error < 1e-5, "{options}: {error:e}");
        let plain = generate(&device(), &shared, &files[0].latents, 6, 9).unwrap();
        assert!(distance(&plain, &apart[0]) > 1e-2, "{options}: adapting changes nothing");
    }
}

#[test]
fn a_file_comes_back_as_it_went_and_fits_its_own_checkpoint_alone() {
    let shared = checkpoint("--meta-optimizer network --rank 3 --adversarial-from 0");
    for tune in [Tune::Weights, Tune::Optimizer(Tuning::new(2)), Tune::Both(Tuning::new(2))] {
        let made = personal(&shared, 1, &OPTIONS, tune).personal;
        assert_eq!(made.adapted.is_some(), !matches!(tune, Tune::Optimizer(_)));
        assert_eq!(made.phi.is_some(), tune != Tune::Weights);
        assert_eq!((made.subject.clips, made.subject.steps), (3, 2));
        assert_eq!(read_back(&made, &shared), made);
        let bytes = made.encode().unwrap();
        let other = Checkpoint {
            parameters: checkpoint("--seed 1 --meta-optimizer network --rank 3").parameters,
            ..shared.clone()
        };
        assert_error(Personal::decode(Path::new("p"), &bytes, &other), &["p:", "another checkpoint", "--tune"]);
        for cut in [0, 7, 60, bytes.len() / 2, bytes.len() - 1] {
            assert_error(Personal::decode(Path::new("p"), &bytes[..cut], &shared), &["p:", "personal file"]);
        }
    }
    // Whatever a byte is changed to, there is a file or an error of one line.
    let bytes = personal(&shared, 1, &OPTIONS, Tune::Both(Tuning::new(1))).personal.encode().unwrap();
    let mut rng = ChaCha8Rng::seed_from_u64(3);
    let mut refused = 0;
    for _ in 0..2000 {
        let mut damaged = bytes.clone();
        // The header is where most can go wrong.
        let end = if rng.random_range(0..4) > 0 { 1500 } else { bytes.len() };
        damaged[rng.random_range(0..end)] = rng.random_range(0..=255);
        if let Err(error) = Personal::decode(Path::new("p"), &damaged, &shared) {
            assert!(!error.to_string().contains('\n'), "{error}");
            refused += 1;
        }
    }
    assert!(refused > 200, "{refused}");
    let whole = shared.encode().unwrap();
    assert_error(Personal::decode(Path::new("p"), &whole, &shared), &["not a personal file", "innerloop adapt --tune"]);
    let small = personal(&shared, 1, &OPTIONS, Tune::Weights).personal.encode().unwrap();
    assert_error(Checkpoint::decode(Path::new("p"), &small), &["not a checkpoint"]);
}

#[test]
fn one_number_apart_is_another_fingerprint() {
    let mut parameters = checkpoint("").parameters.remove(0);
    let before = fingerprint(&parameters);
    assert_eq!(before, fingerprint(&parameters.clone()));
    let last = parameters.values().len() - 1;
    parameters.values_mut()[last] += 1.0;
    assert_ne!(before, fingerprint(&parameters));
}

#[test]
fn tuning_trains_phi_alone_and_helps_on_the_clips_it_was_trained_on() {
    for options in ["", "--meta-optimizer network --rank 3 --adversarial-from 0", "--algorithm reptile"] {
        let shared = checkpoint(options);
        // All clips are adapted with, and so judged on.
        let all = AdaptationOptions { shots: Some(5), ..OPTIONS };
        let still = personal(&shared, 2, &all, Tune::Both(Tuning { steps: 5, rate: 0.0 }));
        assert_eq!(still.course.psnr, still.psnr_before_tuning.unwrap(), "{options}: a rate of 0 tunes nothing");
        assert_eq!(still.personal.phi.as_ref().unwrap()[0], shared.phi[0].with_steps(2));
        let made = personal(&shared, 2, &all, Tune::Both(Tuning { steps: 40, rate: 1.0 }));
        assert_eq!(made.personal.base, fingerprint(&shared.parameters[0]));
        assert_ne!(made.personal.phi.as_ref().unwrap()[0], shared.phi[0]);
        let (before, after) = (made.psnr_before_tuning.unwrap()[2], made.course.psnr[2]);
        assert!(after > before + 0.02, "{options}: {before} to {after} dB");
        // The generator that is kept is the one the kept meta-optimizer makes.
        let tuned = Checkpoint { phi: made.personal.phi.clone().unwrap(), ..shared };
        let again = personal(&tuned, 2, &all, Tune::Weights).personal;
        assert_eq!(again.adapted, made.personal.adapted, "{options}");
    }
}

#[test]
fn tuning_sees_only_the_clips_that_are_adapted_with() {
    /// The same subject, but for the clips that are judged on.
    struct Changed(Arc<dyn ClipTasks>, Vec<usize>);
    impl ClipTasks for Changed {
        fn format(&self) -> ClipFormat {
            self.0.format()
        }
        fn len(&self) -> usize {
            1
        }
        fn name(&self, task: usize) -> String {
            self.0.name(task)
        }
        fn clips(&self, task: usize) -> usize {
            self.0.clips(task)
        }
        fn read_into(&self, task: usize, clip: usize, out: &mut [f32]) {
            self.0.read_into(task, clip, out);
            if !self.1.contains(&clip) {
                out.fill(0.5);
            }
        }
    }
    let shared = checkpoint("");
    let tune = Tune::Optimizer(Tuning::new(5));
    let made = personal(&shared, 3, &OPTIONS, tune);
    let chosen: Vec<usize> = (0..5)
        .filter(|clip| {
            let mut values = vec![0.0; 3 * 6 * 8];
            subject(3, 5).read_into(0, *clip, &mut values);
            made.course.batch.support_x.chunks_exact(values.len()).any(|own| own == values)
        })
        .collect();
    assert_eq!(chosen.len(), 3);
    let changed = Arc::new(Changed(subject(3, 5), chosen));
    let other = personalise(&device(), &shared, changed, &OPTIONS, tune).unwrap();
    assert_ne!(other.course.psnr, made.course.psnr);
    assert_eq!(other.personal, made.personal);
}

#[test]
fn what_does_not_fit_is_refused() {
    let shared = checkpoint("");
    let file = personal(&shared, 1, &OPTIONS, Tune::Weights).personal.adapted.unwrap();
    let mut layers = file.change.layers().to_vec();
    layers[0].values.pop();
    let mlp = file.change.mlp().clone();
    assert_error(LowRankChange::new(&mlp, layers.clone()), &["layer 0", "rank"]);
    layers.pop();
    assert_error(LowRankChange::new(&mlp, layers), &["2 layers", "3"]);
    let generator = &shared.parameters[0];
    let inputs = vec![0.0; 2 * mlp.inputs()];
    assert_error(forward_changed(&device(), generator, &[], &inputs), &["changes", "none"]);
    assert_error(forward_changed(&device(), generator, &[&file.change], &inputs[1..]), &["inputs", "multiple"]);
    let discriminator: &Parameters<f32> = &shared.parameters[1];
    let inputs = vec![0.0; discriminator.mlp().inputs()];
    assert_error(forward_changed(&device(), discriminator, &[&file.change], &inputs), &["change", "widths"]);
    let one = AdaptationOptions { shots: Some(1), ..OPTIONS };
    let result = personalise(&device(), &shared, subject(1, 5), &one, Tune::Both(Tuning::new(1)));
    assert_error(result, &["1 clip", "at least 2"]);
    for (options, rule) in [("--inner-optimizer adam", "adam"), ("--meta-optimizer per-parameter", "each parameter")] {
        let full_rank = checkpoint(options);
        let result = personalise(&device(), &full_rank, subject(1, 5), &OPTIONS, Tune::Weights);
        assert_error(result, &[rule, "low rank"]);
        assert!(personal(&full_rank, 1, &OPTIONS, Tune::Optimizer(Tuning::new(1))).personal.phi.is_some());
    }
}

#[test]
fn from_clips_to_personal_files_to_one_batch_of_all_subjects() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    crate::fixtures::clip_folders(at, 3, 5);
    succeed(at, &format!("train {TINY} --steps 20 --meta-optimizer network --rank 3 --out run"));
    for (task, tune) in ["weights", "both", "optimizer"].iter().enumerate() {
        let text =
            succeed(at, &format!("adapt run subject{task} --tune {tune} --tune-steps 3 --out {task}.safetensors"));
        assert!(text.contains("% of the checkpoint") && text.contains("time: "), "{text}");
        assert_eq!(text.contains("untuned dB"), *tune != "weights", "{text}");
        assert!(at.join(format!("{task}.gif")).exists());
    }
    succeed(at, "adapt run subject0 --out whole.safetensors");
    succeed(at, "generate whole.safetensors --count 3 --out whole.npy");
    succeed(at, "generate run --personal 0.safetensors --count 3 --out 0.npy");
    let clips = |name: &str| -> Vec<f32> {
        let bytes = std::fs::read(at.join(name)).unwrap();
        let values = &bytes[bytes.len() - bytes.len() / 4 / 432 * 4 * 432..];
        values.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
    };
    assert!(distance(&clips("0.npy"), &clips("whole.npy")) < 1e-5);
    let all = "generate run --personal 0.safetensors 1.safetensors 2.safetensors --count 3";
    fail(at, all, &["--clips", "2.safetensors", "alone"]);
    fail(at, &format!("{all} --clips subject2 subject1"), &["--clips", "subject1", "no personal file"]);
    succeed(at, &format!("{all} --clips subject2 --out all.npy"));
    let npy = std::fs::read(at.join("all.npy")).unwrap();
    assert!(String::from_utf8_lossy(&npy[..128]).contains("(9, 3, 6, 8, 1)"));
    for out in ["all.gif", "all.png"] {
        succeed(at, &format!("{all} --clips subject2 --out {out}"));
    }
    succeed(at, &format!("{all} --clips subject2 --from subject1 --out from.npy"));
    succeed(at, "adapt run subject2 --tune optimizer --steps 4 --out longer.safetensors");
    succeed(at, "adapt run subject2 --optimizer longer.safetensors --out tuned.safetensors");
    succeed(at, "generate tuned.safetensors --out tuned.npy");
    fail(at, "adapt run subject2 --optimizer 0.safetensors", &["--optimizer", "0.safetensors", "no meta-optimizer"]);
    fail(at, "generate run --personal whole.safetensors", &["whole.safetensors", "not a personal file"]);
    fail(at, "generate 0.safetensors", &["0.safetensors", "not a checkpoint"]);
    fail(at, "adapt run subject2 --tune both --tune-rate nan", &["--tune-rate", "NaN"]);
    fail(at, "adapt run subject2 --tune weights --strategy materialised", &["strategy", "full rank", "dual"]);
}
