//! `eval --transfer` and what it rests on, on tiny networks.

use std::fs;
use std::str::FromStr;
use std::sync::Arc;

use crate::fixtures::command::{TINY, fail, succeed};
use crate::fixtures::{assert_error, clip_folders, format};
use innerloop::tasks::{ClipTasks, HeldOutKinds, MovingShapes};

const MEASURED: &str = "eval --transfer --seeds 2 --episodes 3 --steps 2 --shots 1,2 --threads 1";

fn options() -> String {
    format!("{} --steps 3 --pretraining 2 --first-order-steps 1 --multi-step-steps 2", TINY.replace("--threads 2", ""))
}

#[test]
fn held_out_kinds_are_judged_on_and_never_trained_on() {
    let shapes = MovingShapes::new(format(1), 7, 400, 3).unwrap();
    for (text, place, kinds) in
        [("motion:zig-zag,circular", 0, ["zig-zag", "circular"]), ("shape:ring,bar", 1, ["ring", "bar"])]
    {
        let held_out = HeldOutKinds::from_str(text).unwrap();
        assert_eq!(held_out.to_string(), text);
        let (kept, out) = held_out.split_shapes(&shapes).unwrap();
        assert!(kept.len() > 100 && out.len() > 50 && kept.len() + out.len() == 400);
        let is_held_out = |task: usize| kinds.contains(&shapes.kinds(task)[place]);
        assert!(
            kept.tasks().iter().all(|task| !is_held_out(*task)) && out.tasks().iter().all(|task| is_held_out(*task))
        );
        assert!((0..out.len()).all(|task| kinds.iter().any(|kind| out.name(task).contains(kind))));
    }
    let all = HeldOutKinds::Motion(MovingShapes::motions().into_iter().map(str::to_owned).collect());
    assert_error(all.split_shapes(&shapes).map(drop), &["leaves no task to learn from"]);
    let named: Arc<dyn ClipTasks> = Arc::new(shapes);
    let (kept, out) = HeldOutKinds::from_str("name:disc").unwrap().split_named(&named).unwrap();
    // A half-disc bears the word too.
    let bears = |name: String| name.split([' ', '-']).any(|word| word == "disc");
    assert!((0..kept.len()).all(|task| !bears(kept.name(task))));
    assert!((0..out.len()).all(|task| bears(out.name(task))) && !out.is_empty());
}

#[test]
fn a_comparison_repeats_and_goes_on_where_it_was_stopped() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let text = succeed(at, &format!("{MEASURED} --out a -- {}", options()));
    assert!(text.contains("kinds never seen (motion:circular,zig-zag), 2 shots"), "{text}");
    let read = |path: &str| fs::read_to_string(at.join(path)).unwrap();
    let whole = read("a/transfer.json");
    let mut report: serde_json::Value = serde_json::from_str(&whole).unwrap();
    assert_eq!(report["outcomes"].as_array().unwrap().len(), 16);
    for summary in report["summary"].as_array().unwrap() {
        for kinds in ["unseen", "seen"] {
            let (steps, shots) = (&summary[kinds]["steps"], &summary[kinds]["shots"]);
            assert!(steps.as_array().unwrap().len() == 3 && shots.as_array().unwrap().len() == 2);
            assert_eq!(steps[2], shots[1], "both are the last step with the shots of training");
            assert!(steps[0]["margin"].as_f64().unwrap() > 0.0);
        }
    }
    assert!(read("a/transfer.svg").matches(r#"class="chart""#).count() == 4);

    // As if it had been stopped after five trainings.
    report["outcomes"].as_array_mut().unwrap().truncate(5);
    report["summary"] = serde_json::json!([]);
    fs::create_dir(at.join("b")).unwrap();
    fs::write(at.join("b/transfer.json"), report.to_string()).unwrap();
    let text = succeed(at, &format!("{MEASURED} --out b -- {}", options()));
    let trained = |n: usize| text.lines().any(|line| line.starts_with(&format!("{n}/16 ")));
    assert!(text.contains("goes on after 5 trainings") && !trained(5) && trained(6), "{text}");
    assert!(read("b/transfer.json") == whole, "the continued comparison differs");
    fail(at, &format!("{MEASURED} --out b -- {} --seed 9", options()), &["transfer.json", "other options", "--out"]);
}

#[test]
fn folders_are_held_out_by_name_or_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    clip_folders(&at.join("clips"), 4, 4);
    let text = succeed(at, &format!("{MEASURED} --held-out-kinds name:subject1 --out named -- clips {}", options()));
    assert!(text.contains("3 tasks to learn from, 1 of other kinds"), "{text}");
    let text = succeed(at, &format!("{MEASURED} --out drawn -- clips {} --held-out 0.5", options()));
    assert!(text.contains("2 tasks to learn from, 2 of other kinds"), "{text}");
    let wrong = format!("{MEASURED} --held-out-kinds name:nobody -- clips {}", options());
    fail(at, &wrong, &["held-out kinds", "nobody", "subject0, subject1, subject2, subject3"]);
}

#[test]
fn wrong_kinds_and_counts_are_one_line() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let known = "linear, bouncing, circular, zig-zag, accelerating";
    fail(at, &format!("{MEASURED} --held-out-kinds motion:hover -- {}", options()), &["\"hover\"", known]);
    assert_error(HeldOutKinds::from_str("colour:red"), &["colour:red", known, "half-disc", "drawn"]);
    fail(at, &format!("eval --transfer --seeds 1 -- {}", options()), &["seeds", "at least 2"]);
    fail(at, "eval --transfer -- --tasks sinusoid --steps 3", &["transfer", "sinusoids", "clips"]);
}
