//! `train --config FILE`: the options of train as a TOML file, derived from the options themselves.
//!
//! A key is an option's long name, or `clips` for the folder of clips. What the file says is put on the command line, ahead
//! of what the user wrote, unless the user gave the same option or one that excludes it: command line over file over
//! default. Nothing here names an option twice, so a new one is a key at once.

use std::any::TypeId;
use std::error::Error as _;
use std::ffi::OsString;
use std::io::Write;
use std::path::{Path, PathBuf};

use clap::builder::ValueHint;
use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};
use toml::Value;

use crate::{Error, Result};

/// The subcommand whose options the file holds.
pub(super) const TRAIN: &str = "train";

/// Options that make no sense in a file, and the one that a copy of a run must not share with it.
const COMMAND_LINE_ONLY: [&str; 3] = ["config", "resume", "help"];
const OF_ONE_RUN: &str = "out";

/// Lets train's flags take a value, so that `--color=false` overrides a file's `color = true`.
pub(super) fn with_settable_flags(command: Command) -> Command {
    command.mut_subcommand(TRAIN, |train| {
        train.mut_args(|arg| match arg.get_action() {
            ArgAction::SetTrue => arg
                .action(ArgAction::Set)
                .num_args(0..=1)
                .require_equals(true)
                .value_name("BOOL")
                .default_missing_value("true")
                .default_value("false")
                .hide_default_value(true)
                .hide_possible_values(true),
            _ => arg,
        })
    })
}

/// A configuration file, as the command-line arguments it stands for.
pub(super) struct ConfigFile {
    path: PathBuf,
    entries: Vec<Entry>,
}

struct Entry {
    key: String,
    /// The value, as the file has it.
    shown: String,
    argument: OsString,
}

impl ConfigFile {
    /// Reads a file and holds each key and value against the options of `train`.
    ///
    /// # Errors
    /// A file that cannot be read or is no TOML, an unknown key, or a value its option does not take.
    pub(super) fn read(path: &Path, train: &Command) -> Result<Self> {
        let text = std::fs::read_to_string(path).map_err(|e| Error::io(path, "read", e))?;
        let table: toml::Table = text.parse().map_err(|e: toml::de::Error| {
            let line = e.span().map_or(1, |span| 1 + text[..span.start].matches('\n').count());
            let problem = format!("line {line} is no TOML ({})", e.message().replace('\n', ", "));
            Error::file(path, problem, "write one `option = value` a line, with strings in quotes")
        })?;
        let entries = table.iter().map(|(key, value)| Entry::new(path, key, value, train)).collect::<Result<_>>()?;
        Ok(Self { path: path.to_owned(), entries })
    }

    /// The arguments for what the command line, parsed to `given`, does not decide; without the key `left_out`.
    pub(super) fn arguments(&self, given: &ArgMatches, train: &Command, left_out: Option<&str>) -> Vec<OsString> {
        let is_given = |arg: &Arg| source(given, arg) == Some(ValueSource::CommandLine);
        let decided =
            |key: &str| option(train, key).is_none_or(|arg| is_given(arg) || is_excluded(train, arg, is_given));
        let kept = self.entries.iter().filter(|entry| left_out != Some(entry.key.as_str()) && !decided(&entry.key));
        kept.map(|entry| entry.argument.clone()).collect()
    }

    /// The error that options of this file exclude one another, or those of the command line.
    pub(super) fn clash(&self, error: &clap::Error) -> Error {
        let text = error.to_string();
        let first = text.lines().next().unwrap_or_default().trim_start_matches("error: ").to_owned();
        Error::file(&self.path, first, "leave one of them out")
    }

    /// The same error, told of the key that is to blame: the one without which everything fits.
    pub(super) fn blame(&self, error: Error, fits_without: impl Fn(&str) -> bool) -> Error {
        match self.entries.iter().find(|entry| fits_without(&entry.key)) {
            Some(Entry { key, shown, .. }) => {
                Error::file(&self.path, format!("{key} = {shown} does not fit"), error.to_string())
            }
            None => error,
        }
    }
}

impl Entry {
    fn new(path: &Path, key: &str, value: &Value, train: &Command) -> Result<Self> {
        let shown = value.to_string();
        let wrong = |problem: &str, remedy: String| Error::file(path, format!("{key} = {shown} {problem}"), remedy);
        let Some(arg) = option(train, key) else {
            let remedy = match refusal(train, format!("--{key}=")).and_then(|e| suggestion(&e)) {
                _ if COMMAND_LINE_ONLY.contains(&key) => format!("give --{key} on the command line"),
                Some(name) => format!("{name} is meant, perhaps"),
                None => "the keys are the options that `innerloop train --help` lists, without their dashes".to_owned(),
            };
            return Err(Error::file(path, format!("unknown key {key:?}"), remedy));
        };
        let expected = expected(arg);
        let text = match value {
            Value::Array(values) if arg.get_value_delimiter().is_some() => {
                let texts: Option<Vec<_>> = values.iter().map(plain).collect();
                texts.map(|texts| texts.join(","))
            }
            other => plain(other),
        };
        let text = text.ok_or_else(|| wrong("is not right", format!("give {expected}")))?;
        let argument = if arg.is_positional() {
            // A name that begins with a dash would pass for an option.
            absolute(&text).map_err(|e| Error::io(path, "read", e))?.into()
        } else {
            OsString::from(format!("--{key}={text}"))
        };
        match refusal(train, argument.clone()) {
            None => Ok(Self { key: key.to_owned(), shown, argument }),
            Some(error) => Err(match (error.kind(), error.get(ContextKind::ValidValue), error.source()) {
                (ErrorKind::InvalidValue, Some(ContextValue::Strings(valid)), _) if !valid.is_empty() => {
                    wrong("is not right", format!("give one of {}", valid.join(", ")))
                }
                (_, _, Some(source)) if source.is::<Error>() => wrong("is not right", source.to_string()),
                _ => wrong("is not right", format!("give {expected}")),
            }),
        }
    }
}

/// A value that is no list and no table, as an option takes it.
fn plain(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Integer(_) | Value::Float(_) | Value::Boolean(_) => Some(value.to_string()),
        Value::Array(_) | Value::Table(_) | Value::Datetime(_) => None,
    }
}

/// The option a key stands for.
fn option<'a>(train: &'a Command, key: &str) -> Option<&'a Arg> {
    let named = |arg: &&Arg| arg.get_long() == Some(key) || (arg.is_positional() && arg.get_id() == key);
    train.get_arguments().filter(|_| !COMMAND_LINE_ONLY.contains(&key)).find(named)
}

fn source(matches: &ArgMatches, arg: &Arg) -> Option<ValueSource> {
    matches.value_source(arg.get_id().as_str())
}

/// Whether an option that is `given` cannot be had together with `arg`.
fn is_excluded(train: &Command, arg: &Arg, given: impl Fn(&Arg) -> bool) -> bool {
    let excludes = |one: &Arg, other: &Arg| train.get_arg_conflicts_with(one).contains(&other);
    train.get_arguments().any(|other| given(other) && (excludes(arg, other) || excludes(other, arg)))
}

/// What clap says against a single argument.
fn refusal(train: &Command, argument: impl Into<OsString>) -> Option<clap::Error> {
    train.clone().try_get_matches_from([TRAIN.into(), argument.into()]).err()
}

fn suggestion(error: &clap::Error) -> Option<String> {
    match error.get(ContextKind::SuggestedArg)? {
        ContextValue::String(name) => Some(name.trim_start_matches('-').to_owned()),
        _ => None,
    }
}

/// What an option takes, in words.
fn expected(arg: &Arg) -> String {
    let parser = arg.get_value_parser().type_id();
    let is = |kind: TypeId| parser == kind;
    let (one, many) = if is(TypeId::of::<usize>()) || is(TypeId::of::<u64>()) {
        ("a whole number, 0 or above", "whole numbers")
    } else if is(TypeId::of::<f64>()) {
        ("a number", "numbers")
    } else if is(TypeId::of::<bool>()) {
        ("true or false", "true or false")
    } else {
        ("one string", "strings")
    };
    if arg.get_value_delimiter().is_some() { format!("a list of {many}, such as [256, 512]") } else { one.to_owned() }
}

fn absolute(text: &str) -> std::io::Result<PathBuf> {
    std::path::absolute(text)
}

/// What a run was started with: every option and its value, whether given, from a file, or by default.
#[derive(Default)]
pub(super) struct Effective(Vec<Setting>);

struct Setting {
    key: String,
    heading: Option<String>,
    /// As TOML.
    value: Option<String>,
}

impl Effective {
    /// Of the parsed options of `train`.
    pub(super) fn of(train: &Command, matches: &ArgMatches) -> Self {
        let kept = |arg: &&Arg| {
            let id = arg.get_id().as_str();
            // A default that an option excludes is not in force.
            let in_force = source(matches, arg) != Some(ValueSource::DefaultValue)
                || !is_excluded(train, arg, |other| source(matches, other) == Some(ValueSource::CommandLine));
            in_force && !COMMAND_LINE_ONLY.contains(&id) && id != OF_ONE_RUN
        };
        let setting = |arg: &Arg| {
            let id = arg.get_id().as_str();
            let is_path = !matches!(arg.get_value_hint(), ValueHint::Unknown | ValueHint::Other);
            let texts: Option<Vec<_>> = matches.try_get_raw(id).ok().flatten().map(|values| {
                let texts = values.map(|value| value.to_string_lossy().into_owned());
                // A file may be used from another folder.
                texts
                    .map(|text| match absolute(&text) {
                        Ok(path) if is_path => path.to_string_lossy().into_owned(),
                        _ => text,
                    })
                    .map(|text| as_toml(&text))
                    .collect()
            });
            Setting {
                key: arg.get_long().unwrap_or(id).to_owned(),
                heading: arg.get_help_heading().map(str::to_owned),
                value: texts.map(|texts| match arg.get_value_delimiter() {
                    Some(_) => format!("[{}]", texts.join(", ")),
                    None => texts.concat(),
                }),
            }
        };
        Self(train.get_arguments().filter(kept).map(setting).collect())
    }

    /// Puts in what followed from other options.
    pub(super) fn set(&mut self, key: &str, value: impl ToString) {
        if let Some(setting) = self.0.iter_mut().find(|setting| setting.key == key) {
            setting.value = Some(as_toml(&value.to_string()));
        }
    }

    /// Writes the file that `train --config` reads.
    pub(super) fn write(&self, path: &Path) -> Result<()> {
        crate::atomic::write(path, |out| {
            writeln!(out, "# innerloop {}: what this run was started with.", env!("CARGO_PKG_VERSION"))?;
            writeln!(out, "# Again, bit for bit on the CPU: innerloop train --config {}", path.display())?;
            let mut headings: Vec<_> = self.0.iter().map(|setting| &setting.heading).collect();
            headings.dedup();
            for heading in headings {
                writeln!(out, "\n# {}", heading.as_deref().unwrap_or("Run"))?;
                for Setting { key, value, .. } in self.0.iter().filter(|setting| setting.heading == *heading) {
                    if let Some(value) = value {
                        writeln!(out, "{key} = {value}")?;
                    }
                }
            }
            Ok(())
        })
    }
}

/// A number or a truth value as it is, anything else as a string.
fn as_toml(text: &str) -> String {
    let bare = format!("v = {text}").parse::<toml::Table>().ok().and_then(|mut table| table.remove("v"));
    match bare {
        Some(Value::Integer(_) | Value::Float(_) | Value::Boolean(_)) => text.to_owned(),
        _ => Value::String(text.to_owned()).to_string(),
    }
}
