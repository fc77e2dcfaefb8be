//! Every kind of condition, from files beside clips to generated ones.

use std::fs;
use std::path::Path;
use std::sync::Arc;

use crate::fixtures::command::{TINY, fail, innerloop, succeed};
use crate::fixtures::{assert_error, clip_folders, npy_f4};
use innerloop::checkpoint::Checkpoint;
use innerloop::run::Job;
use innerloop::tasks::{ClipFolder, ClipTasks, Condition, Episodes, FolderOptions, Labels, Latent, VideoBatch};
use innerloop::video::ClipFormat;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

/// A second of sound: a sine.
fn write_wav(path: &Path, frequency: f64) {
    let sample_format = hound::SampleFormat::Int;
    let spec = hound::WavSpec { channels: 1, sample_rate: 8000, bits_per_sample: 16, sample_format };
    let mut writer = hound::WavWriter::create(path, spec).unwrap();
    for i in 0..8000 {
        let sine = (std::f64::consts::TAU * frequency * f64::from(i) / 8000.0).sin();
        writer.write_sample((sine * 30_000.0) as i16).unwrap();
    }
    writer.finalize().unwrap();
}

/// Writes the `.npy`, `.txt` and `.wav` files beside a clip, named `stem`: a dark one's and a light one's are far apart.
fn write_conditions(folder: &Path, stem: &str, vector: &str, light: bool) {
    let (sign, text, frequency) = if light { (1.0, "midday", 3000.0) } else { (-1.0, "night", 250.0) };
    fs::write(folder.join(format!("{stem}{vector}.npy")), npy_f4("(3,)", &[sign, 0.5, -sign])).unwrap();
    fs::write(folder.join(format!("{stem}.txt")), format!("{text}\n")).unwrap();
    write_wav(&folder.join(format!("{stem}.wav")), frequency);
}

/// Folders of GIFs, `clips/subject0` and on, each with all conditions beside it, and `labels.csv`.
fn conditioned_clips(at: &Path, tasks: usize, clips: usize) {
    clip_folders(&at.join("clips"), tasks, clips);
    let mut labels = String::from("task,label\n");
    for task in 0..tasks {
        for clip in 0..clips {
            let folder = at.join(format!("clips/subject{task}"));
            write_conditions(&folder, &clip.to_string(), "", clip % 2 == 1);
        }
        labels.push_str(&format!("subject{task},{}\n", ["walk", "run"][task % 2]));
    }
    fs::write(at.join("labels.csv"), labels).unwrap();
}

fn condition(checkpoint: &Path) -> Condition {
    let Job::Video(job) = Checkpoint::read(checkpoint).unwrap().config.job else { panic!("no clips") };
    job.latent.condition
}

/// The clips in a `.npy` file that `generate` wrote.
fn generated(path: &Path, clips: usize) -> Vec<Vec<f32>> {
    let bytes = fs::read(path).unwrap();
    let start = 10 + usize::from(u16::from_le_bytes([bytes[8], bytes[9]]));
    let values: Vec<f32> = bytes[start..].as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect();
    assert_eq!(values.len() % clips, 0);
    values.chunks_exact(values.len() / clips).map(<[f32]>::to_vec).collect()
}

#[test]
fn every_kind_is_trained_judged_adapted_and_generated_with() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    conditioned_clips(at, 4, 5);
    write_wav(&at.join("tone.wav"), 500.0);
    fs::write(at.join("vector.npy"), npy_f4("(1, 3)", &[0.25, 0.5, 0.75])).unwrap();
    for (kind, options, given, width) in [
        ("label", "--labels labels.csv", "--label walk run", 2),
        ("vector", "", "--vector vector.npy clips/subject0/1.npy", 3),
        ("text", "--text-width 32", "--text night day", 32),
        ("audio", "--audio-bands 4", "--audio tone.wav clips/subject0/1.wav", 4 * 3),
    ] {
        let text = succeed(at, &format!("train clips {TINY} --condition {kind} {options} --steps 6 --out {kind}"));
        assert!(text.contains("3 to learn from, 1 held out"), "{text}");
        assert_eq!(condition(&at.join(kind).join("checkpoint.safetensors")).width(), width);
        succeed(at, &format!("eval {kind} --episodes 3"));
        let label = if kind == "label" { "--label run" } else { "" };
        let text = succeed(at, &format!("adapt {kind} clips/subject1 {label} --out {kind}.safetensors"));
        assert!(text.contains("adapting with 2 clips, judging on 3 others"), "{text}");
        for checkpoint in [kind.to_owned(), format!("{kind}.safetensors")] {
            succeed(at, &format!("generate {checkpoint} --count 3 --out own.npy"));
            succeed(at, &format!("generate {checkpoint} {given} --count 4 --out given.npy"));
            let clips = generated(&at.join("given.npy"), 4);
            // Two conditions take turns, each time with other noise.
            assert!((0..4).all(|a| (0..a).all(|b| clips[a] != clips[b])), "{kind}");
        }
        // A run goes on, and its file makes it again.
        succeed(at, &format!("train --config {kind}/config.toml --out again"));
        let read = |run: &str| fs::read(at.join(run).join("checkpoint.safetensors")).unwrap();
        assert!(read("again") == read(kind), "{kind}");
        fs::remove_dir_all(at.join("again")).unwrap();
        fail(at, &format!("generate {kind} --from clips/subject0/0.gif"), &["a picture is given", "--"]);
    }
    // What is wanted is said.
    fail(at, "generate label --text night", &["a text is given", "--label", "\"run\", \"walk\""]);
    fail(at, "generate text --label walk", &["a label is given", "--text"]);
    fail(at, "generate vector --audio tone.wav", &["a sound is given", "3 values", "--vector"]);
    fail(at, "generate audio --vector vector.npy", &["a vector is given", "--audio"]);
    fail(at, "adapt text clips/subject0 --label walk", &["--label", "not trained with labels"]);
    assert_eq!(innerloop(at, "generate text --label walk --text night").status.code(), Some(2), "one kind only");
    // What is given is checked.
    fail(at, "generate label --label fly", &["\"fly\"", "\"run\", \"walk\""]);
    fail(at, "generate audio --audio vector.npy", &["vector.npy", "WAV"]);
    fail(at, "generate vector --vector tone.wav", &["tone.wav", ".npy"]);
    fail(at, "generate vector --vector missing.npy", &["missing.npy", "check the path"]);
    fs::write(at.join("wide.npy"), npy_f4("(4,)", &[0.0; 4])).unwrap();
    fail(at, "generate vector --vector wide.npy", &["wide.npy", "holds 4 values", "here 3"]);
}

#[test]
fn labels_are_kept_in_the_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    conditioned_clips(at, 4, 4);
    succeed(at, &format!("train clips {TINY} --condition label --labels labels.csv --steps 4 --out run"));
    fs::remove_file(at.join("labels.csv")).unwrap();
    succeed(at, "eval run --episodes 3 --no-baselines");
    // A new subject's label has to be said, unless the folder's name tells it.
    clip_folders(&at.join("new"), 1, 4);
    fs::rename(at.join("new/subject0"), at.join("new/someone")).unwrap();
    fail(at, "adapt run new/someone", &["--label", "\"someone\"", "\"run\", \"walk\""]);
    fail(at, "adapt run new/someone --label fly", &["\"fly\"", "\"run\", \"walk\""]);
    succeed(at, "adapt run new/someone --label walk");
    fs::rename(at.join("new/someone"), at.join("new/walk")).unwrap();
    succeed(at, "adapt run new/walk");

    // Names as labels: those of held-out tasks are never trained, which is said.
    let options = format!("train clips {TINY} --condition label --steps 4");
    let output = innerloop(at, &format!("{options} --out names"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success() && text.contains("1 of 4 labels belong to held-out tasks alone"), "{text}");
    let Condition::Label(labels) = condition(&at.join("names/checkpoint.safetensors")) else { panic!("no labels") };
    assert_eq!(labels.names(), ["subject0", "subject1", "subject2", "subject3"]);
    succeed(at, "generate names --label subject2 --count 1");
    let output = innerloop(at, &format!("{options} --held-out 0 --out all"));
    assert!(output.status.success() && !String::from_utf8_lossy(&output.stderr).contains("held-out tasks alone"));
    fs::write(at.join("few.json"), r#"{"subject0": "walk"}"#).unwrap();
    fail(at, &format!("{options} --labels few.json"), &["few.json", "no label", "\"subject1\""]);
    fail(at, &format!("{options} --labels none.csv"), &["none.csv", "check the path"]);
}

#[test]
fn files_that_are_missing_or_wrong_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    conditioned_clips(at, 4, 4);
    let train = |kind: &str| format!("train clips {TINY} --steps 2 --condition {kind}");
    for (kind, file, wrong, part) in [
        ("vector", "2.npy", npy_f4("(2,)", &[0.0; 2]), "holds 2 values"),
        ("vector", "2.npy", npy_f4("(3,)", &[0.0, f32::NAN, 0.0]), "NaN at index [1]"),
        ("vector", "2.npy", npy_f4("(3,)", &[0.0; 2]), "cut short"),
        ("text", "2.txt", b" \n".to_vec(), "no characters"),
        ("text", "2.txt", b"\xff\xff".to_vec(), "UTF-8"),
        ("audio", "2.wav", b"RIFF".to_vec(), "WAV"),
    ] {
        let path = at.join("clips/subject1").join(file);
        let whole = fs::read(&path).unwrap();
        fs::write(&path, wrong).unwrap();
        fail(at, &train(kind), &["subject1", file, part]);
        fs::remove_file(&path).unwrap();
        fail(at, &train(kind), &["subject1", &format!("{file}: is missing"), "add it"]);
        fs::write(&path, whole).unwrap();
    }
    // In the very first clip, too, whose vector tells the width.
    fs::remove_file(at.join("clips/subject0/0.npy")).unwrap();
    fail(at, &train("vector"), &["subject0", "0.npy: is missing"]);
    // A clip to adapt with needs its file as well.
    succeed(at, &format!("{} --out run", train("text")));
    fs::remove_file(at.join("clips/subject3/3.txt")).unwrap();
    fail(at, "adapt run clips/subject3", &["3.txt: is missing"]);
}

#[test]
fn without_a_condition_the_discriminator_alone_teaches() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(at, &format!("train {TINY} --condition none --steps 30 --log-every 10 --out run"));
    let checkpoint = Checkpoint::read(&at.join("run/checkpoint.safetensors")).unwrap();
    let Job::Video(job) = checkpoint.config.job else { panic!("no clips") };
    let weights = &job.objective.weights;
    assert_eq!((weights.reconstruction, weights.adversarial, job.adversarial_from), (0.0, 1.0, 0));
    let metrics = fs::read_to_string(at.join("run/metrics.jsonl")).unwrap();
    assert!(metrics.lines().count() == 3 && metrics.lines().all(|line| line.contains("discriminator_loss")));
    succeed(at, "eval run --episodes 3");
    clip_folders(at, 1, 4);
    succeed(at, "adapt run subject0");
    succeed(at, "generate run --count 2 --out a.npy");
    let clips = generated(&at.join("a.npy"), 2);
    assert!(clips[0] != clips[1], "the noise makes them differ");
    succeed(at, "generate adapted.safetensors --count 2");
    fail(at, "generate run --text night", &["a text is given", "trained with none"]);
    fail(at, "generate run --image subject0/0.gif", &["a picture is given", "trained with none"]);
}

/// Clips that are dark or light all over, by their condition alone: the generator has to listen to it.
#[test]
fn a_generator_does_as_its_condition_says() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let write = |task: String, clip: usize, light: bool| {
        let folder = at.join(task);
        fs::create_dir_all(&folder).unwrap();
        // Floats without a negative one are read as [0, 1].
        let value = if light { 0.9 } else { -0.8 };
        fs::write(folder.join(format!("{clip}.npy")), npy_f4("(3, 6, 8)", &[value; 3 * 6 * 8])).unwrap();
        write_conditions(&folder, &clip.to_string(), ".condition", light);
    };
    let mut labels = String::new();
    for task in 0..4 {
        for clip in 0..4 {
            write(format!("mixed/task{task}"), clip, clip % 2 == 1);
            write(format!("pure/task{task}"), clip, task % 2 == 1);
        }
        labels.push_str(&format!("task{task}\t{}\n", ["dark", "light"][task % 2]));
    }
    fs::write(at.join("labels.txt"), labels).unwrap();
    for (folder, kind, options, [dark, light]) in [
        ("pure", "label", "--labels labels.txt", ["dark", "light"]),
        ("mixed", "vector", "", ["mixed/task0/0.condition.npy", "mixed/task0/1.condition.npy"]),
        ("mixed", "text", "", ["NIGHT", "Midday"]),
        ("mixed", "audio", "--audio-bands 6", ["mixed/task0/0.wav", "mixed/task0/1.wav"]),
    ] {
        let options = format!("{options} --adversarial-weight 0 --held-out 0 --steps 400 --outer-lr 0.01");
        succeed(at, &format!("train {folder} {TINY} --condition {kind} {options} --out {kind}"));
        succeed(at, &format!("generate {kind} --{kind} {dark} {light} --count 6 --out a.npy"));
        for (index, clip) in generated(&at.join("a.npy"), 6).iter().enumerate() {
            let mean = clip.iter().sum::<f32>() / clip.len() as f32;
            assert!(if index % 2 == 1 { mean > 0.3 } else { mean < -0.3 }, "{kind}: {mean} of clip {index}");
        }
    }
}

#[test]
fn each_row_has_the_condition_of_its_own_clip() {
    let folder = tempfile::tempdir().unwrap();
    for (task, clips) in [("ann", [1, 2, 3]), ("bob", [4, 5, 6])] {
        fs::create_dir(folder.path().join(task)).unwrap();
        for clip in clips {
            let path = |name: String| folder.path().join(task).join(name);
            let value = clip as f32 / -10.0;
            fs::write(path(format!("{clip}.npy")), npy_f4("(1, 1, 1)", &[value])).unwrap();
            fs::write(path(format!("{clip}.condition.npy")), npy_f4("(2,)", &[value, -value])).unwrap();
        }
    }
    let format = ClipFormat::new(1, 1, 1, 1).unwrap();
    let open = |condition| {
        let options = FolderOptions { condition, ..FolderOptions::default() };
        ClipFolder::open(folder.path(), format, &options)
    };
    let vector = Condition::Vector { width: 2 };
    let source = open(vector.clone()).unwrap();
    assert!(source.notes().is_empty() && source.clips(0) == 3 && source.condition_width() == 2);
    let latent = Latent { noise: 2, condition: vector };
    let episodes = Episodes::new(Arc::new(source), latent, 2, 1, 2).unwrap();
    let mut batch = VideoBatch::default();
    episodes.draw(&mut ChaCha8Rng::seed_from_u64(1), &mut batch).unwrap();
    let (x, z) = ([&batch.support_x[..], &batch.query_x].concat(), [&batch.support_z[..], &batch.query_z].concat());
    assert_eq!((x.len(), z.len()), (6, 24));
    for (x, z) in x.iter().zip(z.chunks_exact(4)) {
        assert_eq!(z[2..], [*x, -*x]);
    }
    assert_error(open(Condition::Vector { width: 3 }), &["ann", "1.condition.npy", "holds 2 values", "here 3"]);
    let labels = open(Condition::Label(Labels::of_tasks(["ann", "bob", "cat"].map(str::to_owned)))).unwrap();
    let mut row = [f32::NAN; 3];
    labels.condition_into(1, 2, &mut row);
    assert_eq!(row, [0.0, 1.0, 0.0]);
    assert_error(open(Condition::Label(Labels::of_tasks(["bob".to_owned()]))), &["\"ann\"", "one of \"bob\""]);
    assert_eq!(open(Condition::None).unwrap().condition_width(), 0);
}
