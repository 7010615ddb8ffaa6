//! What is wrong with a configuration: every problem at once, each with its place.
//!
//! Decides how a problem reads: `file:line:column: path: message (help)`.

use std::fmt;

use serde::{Serialize, Serializer};

/// One thing that is wrong, or (in [`crate::Config::warnings`]) odd.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Problem {
    /// The name of the file, or `command line`.
    pub source: String,
    /// From 1; 0 when there is no file to point into.
    pub line: usize,
    /// From 1, counted in characters; 0 when there is no file to point into.
    pub column: usize,
    /// As `routes[0].split.stable`; empty for the whole file.
    pub path: String,
    /// What is wrong, without a full stop.
    pub message: String,
    /// What to do about it, when that can be known.
    pub help: Option<String>,
}

/// Every problem of one configuration, at least one, in the order of the file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// At least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.source)?;
        if self.line > 0 {
            write!(out, ":{}:{}", self.line, self.column)?;
        }
        if !self.path.is_empty() {
            write!(out, ": {}", self.path)?;
        }
        write!(out, ": {}", self.message)?;
        match &self.help {
            Some(help) => write!(out, " ({help})"),
            None => Ok(()),
        }
    }
}

impl fmt::Display for Report {
    /// One problem per line.
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, problem) in self.problems.iter().enumerate() {
            let end = if index + 1 < self.problems.len() { "\n" } else { "" };
            write!(out, "{problem}{end}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Report {}

impl Serialize for Problem {
    fn serialize<S: Serializer>(&self, out: S) -> Result<S::Ok, S::Error> {
        out.collect_str(self)
    }
}
