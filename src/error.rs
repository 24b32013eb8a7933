//! The one error type: what went wrong, where, what to do about it, and the exit code it means.
//!
//! An error is made where the facts are known, gains its place (`at`) and remedy (`hint`) on the
//! way up, is printed once by `main`, and ends the whole job. Bugs are `assert!`s, not errors.

use std::fmt;
use std::path::Path;

/// The result of anything that can fail for a reason the user may mend.
pub type Result<T> = std::result::Result<T, Error>;

/// What an error means for the process; the number is the exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(i32)]
pub enum Kind {
    /// Wrong use of the command line, or a wrong configuration.
    Usage = 2,
    /// The user's data cannot be used.
    Data = 3,
    /// The launcher, the machine, its file system or its memory.
    Launch = 4,
    /// A checkpoint, cache or model directory that is damaged or does not match.
    Damaged = 5,
    /// Non-finite numbers that did not recover.
    Numerical = 6,
    /// A mistake of this program.
    Bug = 70,
    /// A signal asked us to stop and the state is saved: run the same command again.
    Preempted = 75,
}

/// What, where, and a remedy.
#[derive(Clone, Debug)]
pub struct Error {
    kind: Kind,
    what: String,
    place: Option<String>,
    hint: Option<String>,
    everywhere: bool,
}

impl Error {
    fn new(kind: Kind, what: impl Into<String>) -> Self {
        Error { kind, what: what.into(), place: None, hint: None, everywhere: false }
    }

    /// Wrong use or configuration (exit code 2).
    pub fn usage(what: impl Into<String>) -> Self {
        Self::new(Kind::Usage, what)
    }

    /// The user's data cannot be used (exit code 3).
    pub fn data(what: impl Into<String>) -> Self {
        Self::new(Kind::Data, what)
    }

    /// Launcher, machine, file system, memory (exit code 4).
    pub fn launch(what: impl Into<String>) -> Self {
        Self::new(Kind::Launch, what)
    }

    /// Damaged or mismatched checkpoint, cache or model (exit code 5).
    pub fn damaged(what: impl Into<String>) -> Self {
        Self::new(Kind::Damaged, what)
    }

    /// Non-finite numbers (exit code 6).
    pub fn numerical(what: impl Into<String>) -> Self {
        Self::new(Kind::Numerical, what)
    }

    /// Something that cannot happen unless this program is wrong (exit code 70).
    pub fn bug(what: impl Into<String>) -> Self {
        Self::new(Kind::Bug, what)
    }

    /// Stopped by a signal with the state saved (exit code 75).
    pub fn preempted(what: impl Into<String>) -> Self {
        Self::new(Kind::Preempted, what)
    }

    /// A file of the user's that could not be read (exit code 3).
    pub fn read(path: &Path, err: &std::io::Error) -> Self {
        let hint = match err.kind() {
            std::io::ErrorKind::NotFound => {
                "check the path; relative paths start where the \
                                             command was given"
            }
            std::io::ErrorKind::PermissionDenied => "the file is there but you may not read it",
            _ => "see whether the file is whole and its file system is up",
        };
        Self::data(format!("cannot read: {err}")).at(path.display()).hint(hint)
    }

    /// A file or directory that could not be written (exit code 4).
    pub fn write(path: &Path, err: &std::io::Error) -> Self {
        let hint = match err.kind() {
            std::io::ErrorKind::PermissionDenied
            | std::io::ErrorKind::ReadOnlyFilesystem
            | std::io::ErrorKind::NotADirectory => {
                "choose a directory you may write to (run.output_dir, esm.cache_dir)"
            }
            std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => {
                "the disk or your quota is full: free some space and run the same command again"
            }
            std::io::ErrorKind::FileTooLarge => {
                "a limit on the size of files is set (`ulimit -f`): raise it, and run the same command again"
            }
            _ => "see whether the directory exists and its file system is up",
        };
        Self::launch(format!("cannot write: {err}")).at(path.display()).hint(hint)
    }

    /// Says where: `file:line`, a key, or a tensor. Outer places go in front of inner ones.
    pub fn at(mut self, place: impl fmt::Display) -> Self {
        self.place = Some(match self.place.take() {
            Some(inner) => format!("{place}: {inner}"),
            None => place.to_string(),
        });
        self
    }

    /// Says what to do about it; the innermost hint wins, because it knew most.
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        if self.hint.is_none() {
            self.hint = Some(hint.into());
        }
        self
    }

    /// Says that every rank meets this error and words it alike, so that rank 0 alone tells it.
    pub fn everywhere(mut self) -> Self {
        self.everywhere = true;
        self
    }

    /// Whether every rank meets this error.
    pub fn is_everywhere(&self) -> bool {
        self.everywhere
    }

    /// What this error means.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The process's exit code (README, "Exit codes").
    pub fn code(&self) -> i32 {
        self.kind as i32
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(place) = &self.place {
            write!(f, "{place}: ")?;
        }
        write!(f, "{}", self.what)?;
        if let Some(hint) = &self.hint {
            write!(f, "\n  hint: {hint}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {}

/// Of the names a user could have meant, the nearest one, if any is near.
pub fn nearest<'a>(given: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(given, name), name))
        .filter(|(distance, name)| *distance <= 1 + name.len().max(given.len()) / 4)
        .min()
        .map(|(_, name)| name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn places_nest_and_the_innermost_hint_wins() {
        let error = Error::data("no such column").at("a.csv:1").hint("inner");
        let error = error.at("dataset").hint("outer");
        assert_eq!(error.to_string(), "dataset: a.csv:1: no such column\n  hint: inner");
        assert_eq!(error.code(), 3);
    }

    #[test]
    fn nearest_name() {
        let known = ["lr", "max_steps", "num_train_epochs"];
        assert_eq!(nearest("max_step", known), Some("max_steps"));
        assert_eq!(nearest("num_epochs", known), None);
        assert_eq!(nearest("zzzzzzzz", known), None);
    }
}
