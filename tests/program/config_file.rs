//! `train --config`: every option in a file, and the file a run leaves makes the run again.

use std::fs;
use std::path::Path;
use std::process::Command;

use crate::fixtures::command::{TINY, fail, innerloop, succeed};
use innerloop::checkpoint::Checkpoint;
use innerloop::run::Job;

fn checkpoint(at: &Path, run: &str) -> Vec<u8> {
    fs::read(at.join(run).join("checkpoint.safetensors")).unwrap()
}

fn table(path: &Path) -> toml::Table {
    fs::read_to_string(path).unwrap().parse().unwrap()
}

#[test]
fn the_configuration_a_run_leaves_makes_it_again_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let video = "--steps 12 --seed 3 --adversarial-from 0.5 --minibatch 1 --momentum 0.25 --meta-optimizer shared --train theta --color";
    let sinusoid = "--tasks sinusoid --generator-widths 8,5 --steps 40 --inner-steps 3 --meta-optimizer fixed --clip 2";
    for (name, options) in [("video", format!("{TINY} {video}")), ("sinusoid", sinusoid.to_owned())] {
        succeed(at, &format!("train {options} --out {name}"));
        // Another folder, other names, and other threads where the file does not say.
        let elsewhere = at.join("elsewhere");
        fs::create_dir_all(&elsewhere).unwrap();
        succeed(&elsewhere, &format!("train --config ../{name}/config.toml --out {name}"));
        assert!(checkpoint(at, name) == checkpoint(&elsewhere, name), "{name}: the checkpoints differ");
        let (first, second) =
            (table(&at.join(name).join("config.toml")), table(&elsewhere.join(name).join("config.toml")));
        assert_eq!(first, second);
        // A run that differs in one option ends elsewhere.
        succeed(at, &format!("train --config {name}/config.toml --seed 4 --out {name}-other"));
        assert!(checkpoint(at, name) != checkpoint(at, &format!("{name}-other")), "{name}");
    }
    let config = table(&at.join("video/config.toml"));
    assert_eq!(config["pretraining"].as_integer(), Some(3), "what follows from other options is written too");
    assert_eq!(config["generator-widths"].as_array().unwrap().len(), 2);
    assert_eq!(config["color"].as_bool(), Some(true));
    assert!(!config.contains_key("out") && !config.contains_key("resume"));
}

#[test]
fn a_folder_of_clips_is_found_again_from_anywhere() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    crate::fixtures::clip_folders(&at.join("-clips"), 3, 4);
    fs::write(at.join("run.toml"), format!("clips = \"-clips\"\n{}", as_toml(TINY))).unwrap();
    succeed(at, "train --config run.toml --steps 4 --out run");
    fs::create_dir(at.join("elsewhere")).unwrap();
    succeed(&at.join("elsewhere"), "train --config ../run/config.toml --out again");
    assert!(checkpoint(at, "run") == checkpoint(&at.join("elsewhere"), "again"));
}

/// Options as a file's lines, all values as strings.
fn as_toml(options: &str) -> String {
    let words: Vec<&str> = options.split_whitespace().collect();
    words.chunks(2).map(|pair| format!("{} = {:?}\n", pair[0].trim_start_matches('-'), pair[1])).collect()
}

#[test]
fn command_line_over_file_over_default() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let write = |text: &str| fs::write(at.join("run.toml"), format!("{}{text}", as_toml(TINY))).unwrap();
    let config = |options: &str| {
        let _ = fs::remove_dir_all(at.join("run"));
        succeed(at, &format!("train --config run.toml --out run {options}"));
        Checkpoint::read(&at.join("run/checkpoint.safetensors")).unwrap().config
    };
    write("steps = 5\ncolor = true\nmotion-weight = 0.5\npretraining = 0");
    let from_file = config("");
    let Job::Video(job) = &from_file.job else { panic!("not clips") };
    assert_eq!((from_file.steps, job.source.format().channels, job.objective.weights.motion), (5, 3, 0.5));
    assert_eq!((from_file.seed, from_file.outer.learning_rate), (0, 1e-3), "the defaults");
    let overridden = config("--steps 3 --color=false --seed 7");
    let Job::Video(job) = &overridden.job else { panic!("not clips") };
    assert_eq!((overridden.steps, job.source.format().channels, overridden.seed), (3, 1, 7));
    // An option that excludes one of the file's wins over it.
    crate::fixtures::clip_folders(&at.join("clips"), 3, 4);
    write("steps = 3\ntasks = \"shapes\"");
    assert!(matches!(config("clips").job, Job::Video(_)));
    write("steps = 3\nclips = \"clips\"");
    assert!(matches!(config("--tasks sinusoid --generator-widths 4").job, Job::Sinusoid(_)));
}

#[test]
fn every_option_of_the_help_is_a_key_of_the_file() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let help = succeed(at, "train --help");
    let options = help.lines().filter_map(|line| line.trim_start().trim_start_matches("-q, ").strip_prefix("--"));
    let names = options.map(|line| line.split(|c: char| c != '-' && !c.is_ascii_alphanumeric()).next().unwrap());
    let mut keys = 0;
    for name in names.filter(|name| !["config", "resume", "help", "quiet", "json", "out"].contains(name)) {
        fs::write(at.join("run.toml"), format!("{name} = [[1]]")).unwrap();
        fail(at, "train --config run.toml", &["run.toml", name, "is not right; give "]);
        keys += 1;
    }
    assert!(keys > 30, "{keys} options found in the help");
}

#[test]
fn wrong_files_are_told_in_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    fail(at, "train --config missing.toml", &["missing.toml", "check the path"]);
    for (text, parts) in [
        ("steps = ", ["line 1", "TOML"].as_slice()),
        ("seed = 1\nsteps = five", &["line 2", "TOML"]),
        ("inner-stepz = 3", &["unknown key \"inner-stepz\"", "inner-steps is meant"]),
        ("inner_steps = 3", &["unknown key \"inner_steps\"", "inner-steps is meant"]),
        ("qqqqqq = 3", &["unknown key \"qqqqqq\"", "innerloop train --help"]),
        ("resume = \"run\"", &["unknown key \"resume\"", "command line"]),
        ("[inner]\nsteps = 3", &["unknown key \"inner\""]),
        ("steps = \"five\"", &["steps = \"five\"", "a whole number"]),
        ("steps = 1.5", &["steps = 1.5", "a whole number"]),
        ("steps = -3", &["steps = -3", "a whole number"]),
        ("outer-lr = \"fast\"", &["outer-lr = \"fast\"", "a number"]),
        ("color = 3", &["color = 3", "one of true, false"]),
        ("meta-optimizer = \"some\"", &["meta-optimizer = \"some\"", "per-layer-per-step"]),
        ("algorithm = \"mamal\"", &["algorithm = \"mamal\"", "fomaml"]),
        ("size = 16", &["size = 16", "HEIGHTxWIDTH"]),
        ("device = \"gpu\"", &["device = \"gpu\"", "cuda:N"]),
        ("generator-widths = [3, \"x\"]", &["generator-widths = [3, \"x\"]", "a list of whole numbers"]),
        ("steps = [3]", &["steps = [3]", "a whole number"]),
        ("seed = { a = 1 }", &["seed = { a = 1 }", "a whole number"]),
        // What is only wrong together with other options, or in itself, still names its key.
        ("minibatch = 9", &["minibatch = 9", "1 to 5, the support rows"]),
        ("momentum = 1.5", &["momentum = 1.5", "below 1"]),
        ("checkpoint-every = 0", &["checkpoint-every = 0", "at least 1"]),
        ("seed = 1\ngenerator-widths = [0]", &["generator-widths = [0]", "at least 1"]),
        ("clips = \"a\"\ntasks = \"sinusoid\"", &["--tasks", "cannot be used with", "leave one of them out"]),
    ] {
        fs::write(at.join("run.toml"), text).unwrap();
        fail(at, "train --config run.toml", &[&["run.toml: "], parts].concat());
    }
    // The command line's own mistakes are not the file's.
    fs::write(at.join("run.toml"), "seed = 1").unwrap();
    let output = innerloop(at, "train --config run.toml --momentum 1.5");
    assert!(!String::from_utf8_lossy(&output.stderr).contains("run.toml"));
    assert_eq!(innerloop(at, "train --config run.toml --resume run").status.code(), Some(2));
    assert!(!at.join("runs").exists());
}

/// A path that is no text is passed on untouched.
#[cfg(unix)]
#[test]
fn names_that_are_no_text_go_through() {
    use std::os::unix::ffi::OsStrExt;
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("run.toml"), "seed = 1\nsteps = 2").unwrap();
    let name = std::ffi::OsStr::from_bytes(b"no\xfftext");
    let mut command = Command::new(env!("CARGO_BIN_EXE_innerloop"));
    command
        .current_dir(folder.path())
        .args(["train", "--config", "run.toml", "--tasks", "sinusoid", "--out"])
        .arg(name);
    assert!(command.output().unwrap().status.success());
    assert!(folder.path().join(name).join("config.toml").is_file());
}
