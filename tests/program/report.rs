//! What a run leaves for others to read: TensorBoard's events, one page, JSON, completions, manual pages.

use std::fs;
use std::path::Path;

use crate::fixtures::command::{TINY, fail, innerloop, succeed};
use serde_json::Value;

/// CRC-32C by its definition: the remainder of the bits, most significant first, after division by the polynomial.
fn crc32c(data: &[u8]) -> u32 {
    const POLYNOMIAL: u64 = 0x1_1edc_6f41;
    let mut bits: Vec<u8> = data.iter().flat_map(|byte| (0..8).map(move |bit| byte >> bit & 1)).collect();
    bits.extend([0; 32]);
    bits[..32].iter_mut().for_each(|bit| *bit ^= 1);
    let mut remainder = 0_u64;
    for bit in bits {
        remainder = remainder << 1 | u64::from(bit);
        if remainder >> 32 & 1 == 1 {
            remainder ^= POLYNOMIAL;
        }
    }
    !(remainder as u32).reverse_bits()
}

/// The records of a TFRecord file; both checksums of each are held.
fn records(bytes: &[u8]) -> Vec<&[u8]> {
    let (mut records, mut rest) = (Vec::new(), bytes);
    let masked = |data: &[u8]| {
        let crc = crc32c(data);
        crc.rotate_right(15).wrapping_add(0xa282_ead8)
    };
    let number = |bytes: &[u8]| u32::from_le_bytes(bytes.try_into().unwrap());
    while !rest.is_empty() {
        let length = u64::from_le_bytes(rest[..8].try_into().unwrap()) as usize;
        assert_eq!(number(&rest[8..12]), masked(&rest[..8]), "the length's checksum");
        let data = &rest[12..12 + length];
        assert_eq!(number(&rest[12 + length..16 + length]), masked(data), "the data's checksum");
        records.push(data);
        rest = &rest[16 + length..];
    }
    records
}

/// A field of a protocol buffer.
#[derive(Debug, PartialEq)]
enum Field<'a> {
    Varint(u64),
    Double(f64),
    Float(f32),
    Bytes(&'a [u8]),
}

/// The fields of a protocol buffer, with their numbers.
fn fields(mut bytes: &[u8]) -> Vec<(u64, Field<'_>)> {
    fn varint(bytes: &mut &[u8]) -> u64 {
        let length = bytes.iter().position(|byte| byte & 0x80 == 0).unwrap() + 1;
        let value = bytes[..length].iter().rev().fold(0, |value, byte| value << 7 | u64::from(byte & 0x7f));
        *bytes = &bytes[length..];
        value
    }
    let mut out = Vec::new();
    while !bytes.is_empty() {
        let key = varint(&mut bytes);
        let size = match key & 7 {
            0 => {
                out.push((key >> 3, Field::Varint(varint(&mut bytes))));
                continue;
            }
            1 => 8,
            2 => varint(&mut bytes) as usize,
            5 => 4,
            other => panic!("encoding {other}"),
        };
        let (value, rest) = bytes.split_at(size);
        out.push((
            key >> 3,
            match key & 7 {
                1 => Field::Double(f64::from_le_bytes(value.try_into().unwrap())),
                5 => Field::Float(f32::from_le_bytes(value.try_into().unwrap())),
                _ => Field::Bytes(value),
            },
        ));
        bytes = rest;
    }
    out
}

/// `(step, tag, value)` of every scalar in a run's event file.
fn scalars(run: &Path) -> Vec<(u64, String, f32)> {
    let bytes = fs::read(run.join("events.out.tfevents.innerloop")).unwrap();
    let mut out = Vec::new();
    for (index, record) in records(&bytes).into_iter().enumerate() {
        let event = fields(record);
        let Field::Double(time) = event[0].1 else { panic!("no wall time") };
        assert!(event[0].0 == 1 && time > 1.7e9, "{time}");
        if index == 0 {
            assert_eq!(event[1], (3, Field::Bytes(b"brain.Event:2")));
            continue;
        }
        let ((2, Field::Varint(step)), (5, Field::Bytes(summary))) = (&event[1], &event[2]) else {
            panic!("{event:?}")
        };
        for (number, value) in fields(summary) {
            let Field::Bytes(value) = value else { panic!("no scalar") };
            let value = fields(value);
            let ((1, Field::Bytes(tag)), (2, Field::Float(scalar))) = (&value[0], &value[1]) else {
                panic!("{value:?}")
            };
            assert_eq!(number, 1);
            out.push((*step, String::from_utf8(tag.to_vec()).unwrap(), *scalar));
        }
    }
    out
}

fn lines(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap_or_else(|e| panic!("{e}: {line}"))).collect()
}

fn metrics(run: &Path) -> Vec<Value> {
    lines(&fs::read_to_string(run.join("metrics.jsonl")).unwrap())
}

#[test]
fn tensorboard_is_told_the_metrics() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(at, &format!("train {TINY} --steps 200 --log-every 20 --adversarial-from 0.5 --out run"));
    let run = at.join("run");
    let scalars = scalars(&run);
    let metrics = metrics(&run);
    assert_eq!(metrics.len(), 10);
    for (tag, field) in [
        ("loss/query", "loss"),
        ("loss/discriminator", "discriminator_loss"),
        ("speed/tasks_per_second", "tasks_per_second"),
        ("outer_learning_rate", "outer_lr"),
    ] {
        let told: Vec<(u64, f32)> = scalars.iter().filter(|s| s.1 == tag).map(|s| (s.0, s.2)).collect();
        let expected: Vec<(u64, f32)> = metrics
            .iter()
            .filter_map(|m| Some((m["step"].as_u64().unwrap(), m.get(field)?.as_f64().unwrap() as f32)))
            .collect();
        assert!(!told.is_empty() && told == expected, "{tag}: {told:?}, {expected:?}");
    }
    // A run that goes on from an earlier point has each step once, in one file.
    let text = fs::read_to_string(run.join("metrics.jsonl")).unwrap();
    fs::write(run.join("metrics.jsonl"), format!("{text}{{\"step\":2")).unwrap();
    succeed(at, "train --resume run --threads 2");
    assert_eq!(self::scalars(&run).len(), scalars.len());
}

#[test]
fn the_report_is_one_page_with_everything_in_it() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(at, &format!("train {TINY} --steps 40 --sample-every 15 --adversarial-from 0.5 --out a<b>&c"));
    let page = |arguments: &str| {
        succeed(at, &format!("report {arguments}"));
        fs::read_to_string(at.join("a<b>&c/report.html")).unwrap()
    };
    let before = page("a<b>&c");
    assert!(before.contains("a&lt;b&gt;&amp;c") && !before.contains("a<b>"), "names are escaped");
    for part in
        ["<!doctype html>", "width=device-width", "prefers-color-scheme:dark", "Plan and speed", "generator-widths"]
    {
        assert!(before.contains(part), "{part}");
    }
    // Before and after, and two samples on the way; nothing is fetched from elsewhere.
    assert_eq!(before.matches("src=\"data:image/gif;base64,").count(), 3);
    assert_eq!(before.matches("src=").count(), 3);
    let links = before.replace("http://www.w3.org/2000/svg", "");
    assert!(!links.contains("http") && !links.contains("<script") && !links.contains("url("));
    assert!(before.matches("<svg").count() >= 4 && before.contains("innerloop eval"));
    for tag in ["section", "table", "svg", "div", "tr", "td", "th", "figure", "p"] {
        let opened = before.matches(&format!("<{tag}>")).count() + before.matches(&format!("<{tag} ")).count();
        assert_eq!(opened, before.matches(&format!("</{tag}>")).count(), "<{tag}>");
    }
    let json: Value = serde_json::from_slice(&fs::read(at.join("a<b>&c/summary.json")).unwrap()).unwrap();
    let psnr = json["scores"][2]["psnr"]["mean"].as_f64().unwrap();
    assert!(before.contains(&format!("{psnr:.2}<small>")), "the result is in the table");

    succeed(at, "eval a<b>&c --episodes 5");
    let after = page("a<b>&c");
    assert!(after.contains("joint training") && after.contains("random initialisation"));

    // A run that has only just begun, or whose files are damaged.
    fs::remove_file(at.join("a<b>&c/summary.json")).unwrap();
    fs::remove_file(at.join("a<b>&c/metrics.jsonl")).unwrap();
    fs::remove_file(at.join("a<b>&c/adapted.gif")).unwrap();
    assert!(page("a<b>&c").contains("Configuration"));
    fs::write(at.join("a<b>&c/eval.json"), "{}").unwrap();
    fail(at, "report a<b>&c", &["eval.json", "cannot be understood", "innerloop eval"]);
    fail(at, "report missing", &["missing", "check the path"]);
    fail(at, "report", &["runs", "innerloop train"]);
}

#[test]
fn sinusoids_have_a_report_too() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    succeed(at, "train --tasks sinusoid --generator-widths 8 --steps 30 --log-every 3");
    succeed(at, "report --out page.html");
    let page = fs::read_to_string(at.join("page.html")).unwrap();
    assert!(page.contains("loss after adapting") && page.contains("regressor of sinusoids") && !page.contains("PSNR"));
}

#[test]
fn quiet_says_nothing_and_json_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    let run = format!("train {TINY} --steps 20 --log-every 5 --out");
    for arguments in [format!("{run} quiet --quiet"), "eval quiet -q --episodes 3".into(), "-q report quiet".into()] {
        let output = innerloop(at, &arguments);
        assert!(output.status.success() && output.stdout.is_empty() && output.stderr.is_empty(), "{arguments}");
    }
    let events = lines(&succeed(at, &format!("{run} json --json")));
    let names: Vec<&str> = events.iter().map(|event| event["event"].as_str().unwrap()).collect();
    assert_eq!(names, ["begin", "metrics", "metrics", "metrics", "metrics", "end"]);
    assert_eq!(events[0]["run"], "json");
    let written = metrics(&at.join("json"));
    assert_eq!(events[4]["loss"], written[3]["loss"]);
    assert!(events[5]["scores"][2]["psnr"]["mean"].is_f64() && events[5]["form"] == "dual");
    crate::fixtures::clip_folders(&at.join("clips"), 1, 4);
    for (arguments, field) in [
        ("eval json --episodes 3", "contestants"),
        ("adapt json clips/subject0 --out new.safetensors", "psnr"),
        ("generate new.safetensors --count 2", "clips"),
        ("report json", "report"),
        ("bench --widths 4,5,6 --tasks 2 --steps 1 --seconds 0", "median_ms"),
    ] {
        let records = lines(&succeed(at, &format!("{arguments} --json")));
        assert!(!records.is_empty() && records.iter().all(|record| record.get(field).is_some()), "{arguments}");
    }
    assert_eq!(innerloop(at, "eval --quiet --json").status.code(), Some(2));
}

#[test]
fn completions_and_manual_pages() {
    let folder = tempfile::tempdir().unwrap();
    let at = folder.path();
    for shell in ["bash", "zsh", "fish", "elvish", "powershell"] {
        let script = succeed(at, &format!("completions {shell}"));
        assert!(script.contains("inner-steps") && script.contains("report"), "{shell}");
    }
    let page = succeed(at, "man");
    assert!(page.contains(".TH innerloop 1") && page.contains("innerloop\\-train"), "{page}");
    succeed(at, "man --out pages");
    let page = fs::read_to_string(at.join("pages/innerloop-train.1")).unwrap();
    assert!(page.contains("\\-\\-inner\\-steps") && page.contains(".TH innerloop-train"), "{page}");
    assert!(at.join("pages/innerloop.1").exists() && at.join("pages/innerloop-man.1").exists());
    assert_eq!(fs::read_dir(at.join("pages")).unwrap().count(), 11);
}
