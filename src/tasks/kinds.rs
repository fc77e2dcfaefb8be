//! Kinds of task, to hold whole kinds out.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::moving_shapes::MovingShapes;
use super::source::ClipTasks;
use super::split::Subset;
use crate::{Error, Result};

/// Kinds of task that training never sees. As text: `motion:circular,zig-zag`, `shape:ring`, `name:anna,bert` or `drawn`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HeldOutKinds {
    /// Moving shapes with these laws of motion.
    Motion(Vec<String>),
    /// Moving shapes with these outlines.
    Shape(Vec<String>),
    /// A folder's tasks in whose names one of these words stands, such as a person's in `anna-walks`.
    Name(Vec<String>),
    /// As many of a folder's tasks as its fraction says, drawn anew from each seed.
    Drawn,
}

/// Those of a folder's words that an error lists.
const LISTED: usize = 30;

impl HeldOutKinds {
    /// Whether these are kinds of moving shapes rather than of a folder's tasks.
    pub fn are_of_shapes(&self) -> bool {
        matches!(self, Self::Motion(_) | Self::Shape(_))
    }

    /// Those of `shapes` that are of other kinds, and those of these kinds.
    ///
    /// # Errors
    /// A kind that moving shapes do not have, or a split that leaves nothing on one side.
    pub fn split_shapes(&self, shapes: &MovingShapes) -> Result<(Subset, Subset)> {
        let (kinds, place, known) = match self {
            Self::Motion(kinds) => (kinds, 0, MovingShapes::motions()),
            Self::Shape(kinds) => (kinds, 1, MovingShapes::outlines()),
            Self::Name(_) | Self::Drawn => {
                let expected = "motion:... or shape:... for moving shapes";
                return Err(Error::invalid("held-out kinds", self.to_string(), expected));
            }
        };
        self.check(kinds, &known)?;
        self.partition(Arc::new(shapes.clone()), |task| kinds.iter().any(|kind| kind == shapes.kinds(task)[place]))
    }

    /// Those of a folder's tasks that do not bear one of these words, and those that do.
    ///
    /// # Errors
    /// A word that no task bears, or a split that leaves nothing on one side.
    pub fn split_named(&self, source: &Arc<dyn ClipTasks>) -> Result<(Subset, Subset)> {
        let Self::Name(kinds) = self else {
            return Err(Error::invalid("held-out kinds", self.to_string(), "name:... or drawn for a folder of clips"));
        };
        let names: Vec<String> = (0..source.len()).map(|task| source.name(task)).collect();
        let known: BTreeSet<&str> = names.iter().flat_map(|name| words(name)).collect();
        self.check(kinds, &known.into_iter().collect::<Vec<_>>())?;
        self.partition(Arc::clone(source), |task| words(&names[task]).any(|word| kinds.iter().any(|kind| kind == word)))
    }

    fn check(&self, kinds: &[String], known: &[&str]) -> Result<()> {
        match kinds.iter().find(|kind| !known.contains(&kind.as_str())) {
            None => Ok(()),
            Some(kind) => {
                let more = if known.len() > LISTED { ", ..." } else { "" };
                let listed = known[..known.len().min(LISTED)].join(", ");
                Err(Error::invalid("held-out kinds", format!("{kind:?} in {self}"), format!("some of {listed}{more}")))
            }
        }
    }

    fn partition(&self, source: Arc<dyn ClipTasks>, is_held_out: impl Fn(usize) -> bool) -> Result<(Subset, Subset)> {
        let (held_out, kept): (Vec<usize>, Vec<usize>) = (0..source.len()).partition(|task| is_held_out(*task));
        for (tasks, problem) in [(&kept, "leaves no task to learn from"), (&held_out, "holds no task out")] {
            if tasks.is_empty() {
                let expected = "some of the kinds, not all";
                return Err(Error::invalid("held-out kinds", format!("{self} {problem}"), expected));
            }
        }
        Ok((Subset::new(Arc::clone(&source), kept)?, Subset::new(source, held_out)?))
    }
}

/// The words of a task's name: what lies between spaces, dashes, underscores and other signs.
fn words(name: &str) -> impl Iterator<Item = &str> {
    name.split(|letter: char| !letter.is_alphanumeric()).filter(|word| !word.is_empty())
}

impl fmt::Display for HeldOutKinds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Motion(kinds) => write!(f, "motion:{}", kinds.join(",")),
            Self::Shape(kinds) => write!(f, "shape:{}", kinds.join(",")),
            Self::Name(kinds) => write!(f, "name:{}", kinds.join(",")),
            Self::Drawn => f.write_str("drawn"),
        }
    }
}

impl FromStr for HeldOutKinds {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let (aspect, kinds) = text.split_once(':').unwrap_or((text, ""));
        let kinds: Vec<String> =
            kinds.split(',').map(str::trim).filter(|kind| !kind.is_empty()).map(str::to_owned).collect();
        match (aspect.trim(), kinds.is_empty()) {
            ("motion", false) => Ok(Self::Motion(kinds)),
            ("shape", false) => Ok(Self::Shape(kinds)),
            ("name", false) => Ok(Self::Name(kinds)),
            ("drawn", true) => Ok(Self::Drawn),
            _ => {
                let expected = format!(
                    "motion:KINDS (of {}), shape:KINDS (of {}), name:WORDS or drawn",
                    MovingShapes::motions().join(", "),
                    MovingShapes::outlines().join(", ")
                );
                Err(Error::invalid("held-out kinds", format!("{text:?}"), expected))
            }
        }
    }
}
