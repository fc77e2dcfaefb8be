//! Folders of clips: how they are listed, what is refused, and when the cache is believed.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::fixtures::*;
use innerloop::tasks::{ClipFolder, ClipTasks, FolderOptions};
use innerloop::video::ClipFormat;

fn one_value() -> ClipFormat {
    ClipFormat::new(1, 1, 1, 1).unwrap()
}

/// A clip file of a single value.
fn put(path: PathBuf, value: f32) {
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, npy_f4("(1, 1, 1)", &[value])).unwrap();
}

fn read(folder: &ClipFolder, task: usize, clip: usize) -> f32 {
    let mut out = [f32::NAN];
    folder.read_into(task, clip, &mut out);
    out[0]
}

fn open(dir: &Path) -> innerloop::Result<ClipFolder> {
    ClipFolder::open(dir, one_value(), &FolderOptions::default())
}

fn entries(cache: &Path) -> Vec<PathBuf> {
    fs::read_dir(cache).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn tasks_and_clips_come_in_natural_order_and_the_rest_is_noted() {
    let dir = tempfile::tempdir().unwrap();
    for (task, clips) in [("ann", [2, 10, 1]), ("bob10", [3, 4, 5]), ("bob9", [6, 7, 8])] {
        for n in clips {
            put(dir.path().join(task).join(format!("clip{n}.npy")), n as f32 / -10.0);
        }
    }
    fs::write(dir.path().join("README.md"), "about").unwrap();
    fs::write(dir.path().join("ann/notes.txt"), "about ann").unwrap();
    fs::write(dir.path().join("ann/.hidden.gif"), "").unwrap();
    fs::create_dir(dir.path().join("bob9/empty")).unwrap();
    let folder = open(dir.path()).unwrap();
    assert_eq!([0, 1, 2].map(|task| folder.name(task)), ["ann", "bob9", "bob10"]);
    assert_eq!([0, 1, 2].map(|task| folder.clips(task)), [3, 3, 3]);
    assert_eq!([0, 1, 2].map(|clip| read(&folder, 0, clip)), [-0.1, -0.2, -1.0]);
    assert_eq!(read(&folder, 1, 0), -0.6);
    let notes = folder.notes();
    assert!(notes.len() == 2 && notes[0].contains("notes.txt") && notes[1].contains("empty"), "{notes:?}");
}

#[test]
fn a_clip_may_be_a_folder_of_pictures() {
    let dir = tempfile::tempdir().unwrap();
    let clip = dir.path().join("ann/walk");
    fs::create_dir_all(&clip).unwrap();
    fs::write(clip.join("0.png"), png(1, 1, 1, &[255])).unwrap();
    fs::write(clip.join("1.png"), png(1, 1, 1, &[0])).unwrap();
    assert_eq!(read(&open(dir.path()).unwrap(), 0, 0), 1.0);
    // Another picture in the clip's folder is noticed.
    fs::write(clip.join("0.png"), png(1, 1, 3, &[0, 0, 0])).unwrap();
    assert_eq!(read(&open(dir.path()).unwrap(), 0, 0), -1.0);
}

#[test]
fn bad_folders_are_refused_with_the_place_and_the_remedy() {
    let dir = tempfile::tempdir().unwrap();
    let options = FolderOptions { min_clips: 2, ..FolderOptions::default() };
    let open = || ClipFolder::open(dir.path(), one_value(), &options);
    assert_error(
        ClipFolder::open(dir.path().join("no"), one_value(), &options),
        &["no: cannot read", "check the path"],
    );
    assert_error(open(), &["holds no tasks", "DIR/TASK/CLIP"]);
    put(dir.path().join("ann/0.npy"), 0.5);
    put(dir.path().join("ann/1.npy"), 0.5);
    put(dir.path().join("bob/0.npy"), 0.5);
    assert_error(open(), &["bob", "has 1 clip of the 2 needed"]);
    fs::write(dir.path().join("bob/1.gif"), "").unwrap();
    assert_error(open(), &["1.gif", "is empty"]);
    fs::write(dir.path().join("ann/1.npy"), b"\x93NUMPY").unwrap();
    assert_error(open(), &["ann", "1.npy", "cut short"]);
    let bad = ClipFormat { channels: 2, ..one_value() };
    assert_error(ClipFolder::open(dir.path(), bad, &options), &["channels"]);
}

#[test]
fn a_single_task_is_told_from_a_folder_of_tasks() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path().join("ann/0.npy"), -0.5);
    let options = FolderOptions::default();
    let single = |path: &Path| ClipFolder::open_single_task(path, one_value(), &options);
    let ann = single(&dir.path().join("ann")).unwrap();
    assert_eq!((ann.len(), ann.name(0).as_str(), ann.clips(0), read(&ann, 0, 0)), (1, "ann", 1, -0.5));
    assert_error(single(dir.path()), &["folder of tasks", "ann"]);
    assert_error(single(&dir.path().join("ann/.innerloop-cache")), &["ann", "clips"]);
    assert_error(open(&dir.path().join("ann")), &["holds no tasks"]);
    assert_error(single(&dir.path().join("missing")), &["missing", "check the path"]);
}

#[test]
fn the_cache_is_used_renewed_and_repaired() {
    let dir = tempfile::tempdir().unwrap();
    let clip = dir.path().join("ann/0.npy");
    put(clip.clone(), -0.5);
    let stamp = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    let set_time = |time| fs::File::options().write(true).open(&clip).unwrap().set_modified(time).unwrap();
    set_time(stamp);
    assert_eq!(read(&open(dir.path()).unwrap(), 0, 0), -0.5);
    let cache = dir.path().join(".innerloop-cache");
    assert_eq!(entries(&cache).len(), 1);

    // The same size and time: the cache is believed, so that the file is not decoded again.
    put(clip.clone(), -0.25);
    set_time(stamp);
    assert_eq!(read(&open(dir.path()).unwrap(), 0, 0), -0.5);
    // Another time: decoded anew, the old entry replaced.
    set_time(stamp + Duration::from_secs(1));
    assert_eq!(read(&open(dir.path()).unwrap(), 0, 0), -0.25);
    assert_eq!(entries(&cache).len(), 1);

    // A damaged entry is ignored and written again.
    let entry = &entries(&cache)[0];
    let good = fs::read(entry).unwrap();
    for damage in [&b""[..], &good[..good.len() - 1], b"something else"] {
        fs::write(entry, damage).unwrap();
        assert_eq!(read(&open(dir.path()).unwrap(), 0, 0), -0.25);
        assert_eq!(fs::read(entry).unwrap(), good);
    }

    // Another format is another entry.
    let format = ClipFormat::new(1, 1, 1, 3).unwrap();
    ClipFolder::open(dir.path(), format, &FolderOptions::default()).unwrap();
    assert_eq!(entries(&cache).len(), 2);
}

#[test]
fn the_cache_may_lie_elsewhere_or_nowhere() {
    let dir = tempfile::tempdir().unwrap();
    put(dir.path().join("ann/0.npy"), -0.5);
    // Inside the folder of tasks it is still no task.
    let options = FolderOptions { cache: Some(dir.path().join("cache")), ..FolderOptions::default() };
    for _ in 0..2 {
        let folder = ClipFolder::open(dir.path(), one_value(), &options).unwrap();
        assert!(folder.len() == 1 && folder.notes().is_empty());
    }
    assert_eq!(entries(&dir.path().join("cache")).len(), 1);
    // A file stands where the cache's folder should be made.
    let options = FolderOptions { cache: Some(dir.path().join("ann/0.npy/cache")), ..FolderOptions::default() };
    fs::remove_dir_all(dir.path().join("cache")).unwrap();
    let folder = ClipFolder::open(dir.path(), one_value(), &options).unwrap();
    assert_eq!(read(&folder, 0, 0), -0.5);
    assert!(folder.notes().len() == 1 && folder.notes()[0].contains("not kept"), "{:?}", folder.notes());
}
