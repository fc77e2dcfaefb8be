//! The labels of tasks.

use std::collections::BTreeMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::video::natural_order;
use crate::{Error, Result};

/// The labels of a run, and which task has which.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Labels {
    /// Different ones, in natural order.
    names: Vec<String>,
    /// Those of the tasks whose label is not their name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    tasks: BTreeMap<String, String>,
}

/// Labels that a message lists.
const LISTED: usize = 20;

impl Labels {
    /// Each task's name is its label.
    pub fn of_tasks(tasks: impl IntoIterator<Item = String>) -> Self {
        Self { names: sorted(tasks.into_iter().collect()), tasks: BTreeMap::new() }
    }

    /// The labels that a file gives these tasks: a JSON object `{"task": "label", ...}` if its name ends in `.json`, else lines
    /// `task,label` (a tab will do for the comma). Lines of other tasks are passed over.
    ///
    /// # Errors
    /// A file that cannot be read, a line that is not so, a task without a label or with two.
    pub fn read(path: &Path, tasks: impl IntoIterator<Item = String>) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        let is_json = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("json"));
        let given = if is_json { from_json(path, &text) } else { from_lines(path, &text) }?;
        let mut of_tasks = BTreeMap::new();
        for task in tasks {
            match given.get(&task) {
                Some(label) if !label.is_empty() => of_tasks.insert(task, label.clone()),
                _ => {
                    let remedy = if is_json { "add it" } else { "add a line task,label" };
                    return Err(Error::file(path, format!("has no label for the task {task:?}"), remedy));
                }
            };
        }
        Ok(Self { names: sorted(of_tasks.values().cloned().collect()), tasks: of_tasks })
    }

    /// All labels.
    pub fn names(&self) -> &[String] {
        &self.names
    }

    /// The label of a task: the one it was given, or else its name.
    pub fn of_task<'a>(&'a self, task: &'a str) -> &'a str {
        self.tasks.get(task).map_or(task, String::as_str)
    }

    /// The place of a label among all.
    ///
    /// # Errors
    /// A label that is not among them; the message lists them.
    pub fn index(&self, label: &str) -> Result<usize> {
        let place = self.names.iter().position(|name| name == label);
        place.ok_or_else(|| Error::invalid("label", format!("{label:?} is not known"), self.listed()))
    }

    /// The labels for a message, the first few if there are many.
    pub fn listed(&self) -> String {
        let shown: Vec<String> = self.names.iter().take(LISTED).map(|name| format!("{name:?}")).collect();
        let rest = self.names.len().saturating_sub(LISTED);
        let more = if rest == 0 { String::new() } else { format!(" or {rest} others") };
        format!("one of {}{more}", shown.join(", "))
    }

    pub(super) fn validate(&self) -> Result<()> {
        if self.names.is_empty() {
            return Err(Error::invalid("labels", "none", "at least one"));
        }
        self.tasks.values().try_for_each(|label| self.index(label).map(drop))
    }
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort_by(|a, b| natural_order(a, b));
    names.dedup();
    names
}

fn from_json(path: &Path, text: &str) -> Result<BTreeMap<String, String>> {
    serde_json::from_str(text).map_err(|e| {
        Error::file(path, format!("is no JSON object of labels ({e})"), "write {\"task\": \"label\", ...}")
    })
}

fn from_lines(path: &Path, text: &str) -> Result<BTreeMap<String, String>> {
    let mut labels = BTreeMap::new();
    // Spreadsheets put a byte order mark in front.
    for (index, line) in text.trim_start_matches('\u{feff}').lines().enumerate() {
        if line.trim().is_empty() {
            continue;
        }
        let wrong = |problem: String| Error::file(path, format!("line {} {problem}", index + 1), "write task,label");
        let split = line.split_once(['\t', ',']).ok_or_else(|| wrong(format!("is {line:?}")))?;
        let [task, label] = [split.0, split.1].map(|part| part.trim().trim_matches('"').to_owned());
        if labels.insert(task.clone(), label).is_some() {
            return Err(wrong(format!("gives the task {task:?} a second label")));
        }
    }
    Ok(labels)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tasks() -> [String; 3] {
        ["ann", "bob", "cat"].map(str::to_owned)
    }

    #[test]
    fn files_of_labels() {
        let folder = tempfile::tempdir().unwrap();
        let read = |name: &str, text: &str| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            Labels::read(&path, tasks())
        };
        for (name, text) in [
            ("a.csv", "task,label\nann,walk\n\nbob, run \n\"cat\",\"walk\"\nother,x\n"),
            ("a.txt", "\u{feff}ann\twalk\r\nbob\trun\r\ncat\twalk\r\n"),
            ("a.json", r#"{"ann": "walk", "bob": "run", "cat": "walk", "other": "x"}"#),
        ] {
            let labels = read(name, text).unwrap();
            assert_eq!(labels.names(), ["run", "walk"]);
            assert_eq!(["ann", "bob", "cat", "run"].map(|task| labels.of_task(task)), ["walk", "run", "walk", "run"]);
            assert_eq!(labels.index("walk").unwrap(), 1);
            let json = serde_json::to_string(&labels).unwrap();
            assert_eq!(serde_json::from_str::<Labels>(&json).unwrap(), labels);
        }
        for (name, text, part) in [
            ("b.csv", "ann,walk\nbob\n", "line 2"),
            ("b.csv", "ann,walk\nann,run\n", "second label"),
            ("b.csv", "ann,walk\nbob,\ncat,run\n", "\"bob\""),
            ("b.csv", "ann,walk\nbob,run\n", "no label for the task \"cat\""),
            ("b.json", "{\"ann\": 3}", "JSON"),
        ] {
            let message = read(name, text).unwrap_err().to_string();
            assert!(message.contains(part) && message.contains(name) && !message.contains('\n'), "{message}");
        }
    }

    #[test]
    fn names_are_labels_and_unknown_ones_list_what_is_known() {
        let labels = Labels::of_tasks((0..30).rev().map(|n| format!("task{n}")));
        assert_eq!((labels.index("task10").unwrap(), labels.of_task("task3")), (10, "task3"));
        let message = labels.index("dog").unwrap_err().to_string();
        assert!(message.contains("\"dog\"") && message.contains("\"task19\" or 10 others"), "{message}");
    }
}
