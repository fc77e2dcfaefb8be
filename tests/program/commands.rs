//! `train`, `adapt`, `generate` and `eval` as a user meets them, on tiny networks.

use std::fs;
use std::process::{Command, Stdio};

use crate::fixtures::clip_folders;
use crate::fixtures::command::{TINY, command, fail, innerloop, succeed};
use innerloop::checkpoint::{Checkpoint, Stage};
use innerloop::device::MatrixPrecision;

#[test]
fn the_main_job_on_built_in_tasks() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let text = succeed(at, &format!("train {TINY} --steps 40 --adversarial-from 0.5 --log-every 4 --sample-every 25"));
    assert!(text.contains("query PSNR") && text.contains("runs/shapes-1"), "{text}");
    let run = at.join("runs/shapes-1");
    for file in ["checkpoint.safetensors", "config.toml", "loss.svg", "adapted.gif", "samples/step-000025.gif"] {
        assert!(run.join(file).metadata().unwrap().len() > 100, "{file}");
    }
    let metrics = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    let lines: Vec<serde_json::Value> = metrics.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(lines.len(), 10);
    assert!(lines.iter().all(|line| line["loss"].as_f64().unwrap() > 0.0));
    // The discriminator joined half way.
    let plays: Vec<bool> = lines.iter().map(|line| line.get("discriminator_loss").is_some()).collect();
    assert_eq!(plays, [[false; 5], [true; 5]].concat());
    let begun = Checkpoint::read(&run.join("checkpoint.safetensors")).unwrap();
    let Stage::Training { optimizer } = &begun.stage else { panic!("not a training checkpoint") };
    assert_eq!((begun.step, optimizer.steps_of.as_slice()), (40, [40, 20].as_slice()));

    let text = succeed(at, "eval --episodes 6 --steps 3");
    assert!(text.contains("joint training") && text.contains("random initialisation"), "{text}");
    let report: serde_json::Value = serde_json::from_slice(&fs::read(run.join("eval.json")).unwrap()).unwrap();
    let contestants = report["contestants"].as_array().unwrap();
    assert_eq!(contestants.len(), 3);
    for contestant in contestants {
        let scores = contestant["scores"].as_array().unwrap();
        assert_eq!(scores.len(), 4);
        assert!(scores.iter().all(|s| s["psnr"]["mean"].as_f64().unwrap() > 0.0 && s["ssim"]["mean"].is_f64()));
        for figure in ["motion_error", "texture_error", "flicker"] {
            assert!(scores.iter().all(|s| s[figure]["mean"].as_f64().unwrap() > 0.0), "{figure}");
        }
        assert!(scores.iter().all(|s| s["frechet"].as_f64().unwrap() > 0.0));
    }
    assert!(fs::read_to_string(run.join("eval.svg")).unwrap().contains("joint training"));

    clip_folders(at, 1, 5);
    let text = succeed(at, "adapt runs/shapes-1 subject0 --out new.safetensors --steps 4");
    assert!(text.contains("adapting with 2 clips, judging on 3 others"), "{text}");
    assert_eq!(text.lines().filter(|line| line.trim_start().starts_with(|c: char| c.is_ascii_digit())).count(), 5);
    assert!(at.join("new.gif").exists());
    let adapted = Checkpoint::read(&at.join("new.safetensors")).unwrap();
    assert!(adapted.parameters != begun.parameters);
    fail(at, "adapt new.safetensors subject0 --out again.safetensors", &["adapted already", "subject0"]);
    fail(at, "train --resume new.safetensors", &["optimizer state"]);
    fail(at, "eval new.safetensors", &["new.safetensors", "adapted"]);

    for out in ["a.gif", "a.png", "a.npy"] {
        succeed(at, &format!("generate new.safetensors --count 3 --out {out}"));
        succeed(at, &format!("generate --count 2 --seed 4 --out other-{out}"));
        assert!(at.join(out).exists() && at.join(format!("other-{out}")).exists());
    }
    let npy = fs::read(at.join("a.npy")).unwrap();
    assert!(String::from_utf8_lossy(&npy[..128]).contains("(3, 3, 6, 8, 1)"));
    succeed(at, "generate new.safetensors --from subject0/0.gif subject0 --out from.npy --count 3");
    succeed(at, "generate new.safetensors --count 3 --out same.npy");
    assert!(npy == fs::read(at.join("same.npy")).unwrap(), "the same seed gives the same clips");
    succeed(at, "generate new.safetensors --count 3 --seed 1 --out seed.npy");
    assert!(npy != fs::read(at.join("seed.npy")).unwrap(), "another seed gives others");
}

#[test]
fn a_resumed_run_ends_bit_identical_to_one_never_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let options = format!("train {TINY} --steps 4000 --checkpoint-every 100 --out");
    succeed(at, &format!("{options} whole"));
    let mut child =
        command(at, &format!("{options} parts")).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
    let (checkpoint, metrics) = (at.join("parts/checkpoint.safetensors"), at.join("parts/metrics.jsonl"));
    while fs::read_to_string(&metrics).is_ok_and(|text| text.lines().count() < 30) || !metrics.exists() {
        assert!(child.try_wait().unwrap().is_none(), "ended before it could be stopped");
        std::thread::sleep(std::time::Duration::from_millis(2));
    }
    Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(130));
    assert!(String::from_utf8_lossy(&output.stderr).contains("go on with: innerloop train --resume parts"));
    let stopped = Checkpoint::read(&checkpoint).unwrap();
    assert!((100..4000).contains(&stopped.step), "stopped at {}", stopped.step);
    succeed(at, "train --resume parts --threads 2");
    let same = fs::read(&checkpoint).unwrap() == fs::read(at.join("whole/checkpoint.safetensors")).unwrap();
    assert!(same, "the checkpoints differ");
    let steps = |run: &str| -> Vec<u64> {
        let text = fs::read_to_string(at.join(run).join("metrics.jsonl")).unwrap();
        text.lines().map(|l| serde_json::from_str::<serde_json::Value>(l).unwrap()["step"].as_u64().unwrap()).collect()
    };
    assert_eq!(steps("parts"), steps("whole"));
    fail(at, &format!("{options} whole"), &["whole", "already holds a run", "--resume"]);
}

#[test]
fn folders_of_clips() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    clip_folders(&at.join("clips"), 5, 4);
    let text = succeed(at, &format!("train clips {TINY} --steps 6 --held-out 0.4"));
    assert!(text.contains("3 to learn from, 2 held out"), "{text}");
    assert!(at.join("clips/.innerloop-cache").is_dir());
    succeed(at, "eval --episodes 5");
    fs::rename(at.join("clips"), at.join("moved")).unwrap();
    fail(at, "eval --episodes 5", &["clips", "check the path"]);
    succeed(at, "eval --episodes 5 --clips moved");
    fail(at, "generate", &["--from", "clips"]);
    succeed(at, "generate --from moved/subject1");
    // Fewer clips than in training are all adapted with, and judged on themselves.
    fs::remove_file(at.join("moved/subject1/0.gif")).unwrap();
    fs::remove_file(at.join("moved/subject1/1.gif")).unwrap();
    let text = succeed(at, "adapt runs/clips-1 moved/subject1");
    assert!(text.contains("judged on themselves"), "{text}");
    fail(at, &format!("train moved {TINY} --steps 6"), &["subject1", "2 clips of the 4 needed"]);
    fail(at, "adapt runs/clips-1 moved/subject1 --shots 3", &["shots: 3", "1 to 2"]);
    fail(at, "adapt runs/clips-1 moved", &["folder of tasks", "subject0"]);
    fs::write(at.join("moved/subject2/1.gif"), b"GIF89a").unwrap();
    fail(at, "adapt runs/clips-1 moved/subject2", &["1.gif"]);
}

#[test]
fn sinusoids_and_every_algorithm() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(at, "train --tasks sinusoid --generator-widths 8 --steps 30 --inner-steps 2");
    let text = succeed(at, "eval --steps 4 --episodes 20");
    assert!(text.contains("loss") && !text.contains("PSNR"), "{text}");
    fail(at, "generate", &["sinusoids"]);
    for (index, algorithm) in ["fomaml", "reptile"].iter().enumerate() {
        succeed(at, &format!("train {TINY} --steps 4 --algorithm {algorithm} --out run{index}"));
    }
    succeed(at, &format!("train {TINY} --steps 4 --algorithm reptile --fresh-noise --minibatch 1 --out figr"));
    succeed(at, "eval figr --episodes 3 --refine");
    succeed(at, "generate figr --refine --out refined.gif");
    fail(at, "train --tasks sinusoid --fresh-noise", &["fresh noise", "without latents"]);
    fail(
        at,
        &format!("train {} --fresh-noise", TINY.replace("--noise 2", "--noise 0")),
        &["fresh noise", "noise of at"],
    );
    fail(at, &format!("train {} --fresh-noise", TINY.replace("--inner-steps 2", "--inner-steps 0")), &["fresh noise"]);
    let sinusoid = "train --tasks sinusoid --generator-widths 8 --steps 4";
    for (index, options) in [
        "--algorithm anil",
        "--meta-optimizer per-parameter",
        "--meta-optimizer shared --outer sgd",
        "--meta-optimizer fixed --momentum 0.5",
        "--meta-optimizer row-column --train phi --weight-decay 0.1",
        "--meta-optimizer network --rank 3 --first-order-steps 2",
        "--minibatch 3 --inner-steps 3",
        "--inner-optimizer adam --inner-steps 2",
    ]
    .iter()
    .enumerate()
    {
        succeed(at, &format!("{sinusoid} {options} --out sine{index}"));
        succeed(at, &format!("eval sine{index} --episodes 3"));
    }
}

#[test]
fn bad_options_name_themselves() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for (options, parts) in [
        ("--inner-lr -1", ["inner learning rate", "positive"]),
        ("--outer-lr 0", ["outer learning rate", "positive"]),
        ("--frames 0", ["frames", "at least 1"]),
        ("--shots 0", ["shots", "at least 1"]),
        ("--minibatch 9", ["minibatch", "1 to 2"]),
        ("--momentum 1.5", ["momentum", "below 1"]),
        ("--inner-optimizer adam --momentum 0.5", ["--momentum", "--inner-optimizer sgd"]),
        ("--inner-optimizer adam --strategy dual", ["Adam", "materialised"]),
        ("--adversarial-from 2", ["--adversarial-from", "0 to 1"]),
        ("--checkpoint-every 0", ["--checkpoint-every", "at least 1"]),
        ("--algorithm anil", ["algorithm", "maml"]),
        ("--meta-optimizer per-parameter --strategy dual", ["Meta-SGD", "materialised"]),
        ("--condition none --reconstruction-weight 1", ["reconstruction weight", "condition"]),
        ("--condition none --motion-weight 1", ["motion weight", "condition"]),
        ("--condition none --adversarial-weight 0", ["adversarial weight", "above 0"]),
        ("--condition text", ["--condition", "a folder of clips"]),
        ("--labels labels.csv", ["--labels", "--condition label"]),
        ("--meta-optimizer network --rank 0", ["rank", "1 to 4096"]),
        ("--meta-optimizer fixed --train phi", ["--train", "theta"]),
        ("--first-order-steps 3 --algorithm fomaml", ["first-order steps", "maml"]),
        ("--weight-decay -1", ["weight decay", "0 or above"]),
        ("--generator-widths 0", ["widths", "at least 1"]),
        ("--out /proc/nowhere", ["/proc/nowhere", "create"]),
    ] {
        let kept: Vec<&str> = TINY.split_whitespace().collect();
        let option = options.split(' ').next().unwrap();
        let tiny = kept.chunks(2).filter(|pair| pair[0] != option).flatten().copied().collect::<Vec<_>>().join(" ");
        fail(at, &format!("train {tiny} --steps 4 {options}"), &parts);
    }
    assert!(!at.join("runs").join("shapes-1/checkpoint.safetensors").exists());
    fail(at, "train missing", &["missing", "check the path"]);
    fail(at, "eval", &["runs", "innerloop train"]);
    fail(at, "generate missing.safetensors", &["missing.safetensors", "check the path"]);
    fail(at, "generate --out clip.avi", &["clip.avi", ".gif, .png or .npy"]);
    assert_eq!(innerloop(at, "train clips --resume run").status.code(), Some(2), "a resumed run takes no options");
}

#[test]
fn each_precision_is_for_its_device() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let sinusoid = "--tasks sinusoid --generator-widths 5 --meta-batch 2 --inner-steps 1 --steps 3 --threads 1";
    let problem = std::path::absolute("tests/golden/maml_mse_1step.safetensors").unwrap();
    let grad = format!("grad {} --out answer.safetensors", problem.display());
    for rounded in ["tf32", "bf16", "f16"] {
        for command in [&format!("train {sinusoid}"), &grad, "bench --widths 2,2,2"] {
            let parts = ["--precision", &format!("{rounded} on the CPU"), "f32 on the CPU", "--device cuda"];
            fail(at, &format!("{command} --device cpu --precision {rounded}"), &parts);
        }
    }
    fail(
        at,
        &format!("train {sinusoid} --device cpu --precision f64"),
        &["--precision", "f64", "f32", "grad and bench"],
    );
    for command in [&grad, "bench --widths 2,2,2"] {
        let parts = ["--precision", "f64 on cuda:0", "bf16", "--device cpu"];
        fail(at, &format!("{command} --device cuda --precision f64"), &parts);
    }
    assert!(!at.join("runs").exists() && !at.join("answer.safetensors").exists());

    // What a file asks for counts less than the command line.
    fs::write(at.join("run.toml"), "precision = \"bf16\"").unwrap();
    let train = format!("train --config run.toml {sinusoid} --device cpu --out run");
    fail(at, &train, &["--precision", "bf16 on the CPU"]);
    succeed(at, &format!("{train} --precision f32"));
    // The fastest there is, by its name: the run is the same again.
    succeed(at, &train.replace("--out run", "--out auto --precision auto"));
    for run in ["run", "auto"] {
        let config = fs::read_to_string(at.join(run).join("config.toml")).unwrap();
        assert!(config.contains("precision = \"f32\""), "{config}");
    }

    // A run in bf16, from a GPU: a CPU goes on with it in f32, and it stays a run in bf16.
    let path = at.join("run/checkpoint.safetensors");
    let mut checkpoint = Checkpoint::read(&path).unwrap();
    assert_eq!(checkpoint.config.precision, MatrixPrecision::F32);
    checkpoint.config.precision = MatrixPrecision::Bf16;
    checkpoint.config.steps = 5;
    checkpoint.write(&path).unwrap();
    succeed(at, "train --resume run --device cpu --threads 1");
    succeed(at, "eval run --episodes 3 --device cpu --threads 1");
    assert_eq!(Checkpoint::read(&path).unwrap().config.precision, MatrixPrecision::Bf16);
    fail(at, "eval run --episodes 3 --device cpu --precision tf32", &["tf32 on the CPU"]);
}

#[test]
fn a_run_that_diverges_stops_and_keeps_its_checkpoint() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let output = innerloop(
        at,
        &format!("train {TINY} --steps 400 --pretraining 0 --outer sgd --outer-lr 1e30 --clip 1e30 --out run"),
    );
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.contains("at meta-step") && text.contains("lower the inner or outer learning rate"), "{text}");
    Checkpoint::read(&at.join("run/checkpoint.safetensors")).unwrap();
}

/// A file-size limit stands for a full disk: the write fails half way.
#[cfg(unix)]
#[test]
fn a_write_that_fails_leaves_what_was_there() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(at, &format!("train {TINY} --steps 4 --out run"));
    let checkpoint = at.join("run/checkpoint.safetensors");
    clip_folders(at, 1, 4);
    fs::copy(&checkpoint, at.join("kept.safetensors")).unwrap();
    let before = fs::read(&checkpoint).unwrap();
    let script = "trap '' XFSZ; ulimit -f 4; exec \"$0\" adapt run subject0 --out kept.safetensors --cache cache";
    let output =
        Command::new("sh").current_dir(at).args(["-c", script, env!("CARGO_BIN_EXE_innerloop")]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{text}");
    let errors: Vec<&str> = text.lines().filter(|line| !line.starts_with("note: ")).collect();
    assert!(errors.len() == 1 && errors[0].contains("kept.safetensors: cannot write"), "{text}");
    assert!(fs::read(at.join("kept.safetensors")).unwrap() == before, "the file was touched");
    assert!(fs::read_dir(at).unwrap().all(|e| !e.unwrap().file_name().to_string_lossy().contains(".part")));
}

#[test]
fn damaged_checkpoints_are_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(at, &format!("train {TINY} --steps 4 --out run"));
    let whole = fs::read(at.join("run/checkpoint.safetensors")).unwrap();
    let damaged = at.join("damaged.safetensors");
    for end in (0..whole.len()).step_by(997) {
        fs::write(&damaged, &whole[..end]).unwrap();
        assert!(Checkpoint::read(&damaged).unwrap_err().to_string().contains("damaged.safetensors"), "cut at {end}");
    }
    fail(at, "generate damaged.safetensors", &["damaged.safetensors", "not a whole checkpoint"]);
    for place in (0..whole.len()).step_by(31) {
        let mut bytes = whole.clone();
        bytes[place] ^= 0x55;
        // Either it is noticed, in one line, or only a number has changed.
        if let Err(error) = Checkpoint::decode(&damaged, &bytes) {
            let text = error.to_string();
            assert!(text.contains("damaged.safetensors") && !text.contains('\n'), "{text}");
        }
    }
    // What a configuration claims is not believed: a network that no memory holds is refused, not allocated.
    let config = Checkpoint::decode(&damaged, &whole).unwrap().config;
    let config = serde_json::to_string(&config).unwrap().replace("[14,9,7,144]", "[14,2000000000,7,144]");
    assert!(config.contains("2000000000"));
    let header = format!("{{\"format\":1,\"config\":{config},\"step\":0,\"steps_of\":[0,0]}}");
    let nothing = Vec::<(String, safetensors::tensor::TensorView<'_>)>::new();
    let claim = safetensors::serialize(nothing, Some([("innerloop".to_owned(), header)].into())).unwrap();
    let text = Checkpoint::decode(&damaged, &claim).unwrap_err().to_string();
    assert!(text.contains("no tensor \"generator.main.0.weight\""), "{text}");
    let problem = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/golden/maml_mse_1step.safetensors");
    fail(at, &format!("generate {problem}"), &["not a checkpoint of innerloop"]);
}
