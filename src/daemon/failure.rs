//! How a command ends: the exit statuses, and an error together with the hint that goes with it.

use std::process::ExitCode;

use crate::error::Error;
use crate::error::ErrorKind;

/// How a command ended, for the shell. The numbers are a promise to scripts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum ExitStatus {
    /// All that was asked for is done.
    Done = 0,
    /// It failed, for a reason that has no number of its own.
    Failed = 1,
    /// The command line, the configuration or a value in it is wrong.
    Usage = 2,
    /// What was named does not exist.
    NotFound = 10,
    /// It exists already, is in use, or is in conflict with something else.
    Conflict = 11,
    /// The pool, or the host below it, has no room.
    NoSpace = 12,
    /// The request went to a node that is not the primary.
    NotPrimary = 13,
    /// Damage was found.
    Corrupt = 14,
    /// The daemon cannot be reached.
    Unreachable = 15,
    /// There is no quorum, or no primary.
    NoQuorum = 16,
    /// Interrupted by the user.
    Interrupted = 130,
}

/// All of them, with what they say.
pub const EXIT_STATUSES: [(ExitStatus, &str); 11] = [
    (ExitStatus::Done, "done"),
    (ExitStatus::Failed, "failed"),
    (ExitStatus::Usage, "wrong usage"),
    (ExitStatus::NotFound, "not found"),
    (ExitStatus::Conflict, "exists, busy or in conflict"),
    (ExitStatus::NoSpace, "no space"),
    (ExitStatus::NotPrimary, "not primary"),
    (ExitStatus::Corrupt, "corruption found"),
    (ExitStatus::Unreachable, "the daemon cannot be reached"),
    (ExitStatus::NoQuorum, "no quorum or no primary"),
    (ExitStatus::Interrupted, "interrupted"),
];

/// The list that every help text ends with.
#[must_use]
pub fn exit_status_help() -> String {
    let all = EXIT_STATUSES.map(|(status, meaning)| format!("{} {meaning}", status as u8));
    format!("Exit status: {}.", all.join("; "))
}

impl From<ErrorKind> for ExitStatus {
    fn from(kind: ErrorKind) -> ExitStatus {
        match kind {
            ErrorKind::Invalid => ExitStatus::Usage,
            ErrorKind::NotFound => ExitStatus::NotFound,
            ErrorKind::Exists | ErrorKind::Busy | ErrorKind::Changed => ExitStatus::Conflict,
            ErrorKind::NoSpace => ExitStatus::NoSpace,
            ErrorKind::Corrupt => ExitStatus::Corrupt,
            ErrorKind::NotPrimary => ExitStatus::NotPrimary,
            ErrorKind::NoQuorum => ExitStatus::NoQuorum,
            ErrorKind::Unreachable => ExitStatus::Unreachable,
            ErrorKind::Device | ErrorKind::Stopped | ErrorKind::ReadOnly | ErrorKind::Unsupported => {
                ExitStatus::Failed
            }
        }
    }
}

impl From<ExitStatus> for ExitCode {
    fn from(status: ExitStatus) -> ExitCode {
        ExitCode::from(status as u8)
    }
}

/// An error on its way to the user, with the one line that says what helps.
#[derive(Debug)]
pub struct Failure {
    /// What went wrong and why.
    pub error: Error,
    /// What to do about it, best a command to type.
    pub hint: Option<String>,
}

/// The result of what a command does.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// A failure without a hint.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Failure {
        Error::new(kind, what).into()
    }

    /// The same failure with a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Failure {
        self.hint = Some(hint.into());
        self
    }

    /// The status that the process ends with.
    #[must_use]
    pub fn status(&self) -> ExitStatus {
        self.error.kind().into()
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure { error, hint: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn statuses_are_the_promised_numbers() {
        for (kind, number) in [
            (ErrorKind::Invalid, 2),
            (ErrorKind::NotFound, 10),
            (ErrorKind::Exists, 11),
            (ErrorKind::Busy, 11),
            (ErrorKind::Changed, 11),
            (ErrorKind::NoSpace, 12),
            (ErrorKind::NotPrimary, 13),
            (ErrorKind::Corrupt, 14),
            (ErrorKind::Unreachable, 15),
            (ErrorKind::NoQuorum, 16),
            (ErrorKind::Device, 1),
        ] {
            assert_eq!(ExitStatus::from(kind) as u8, number, "{kind:?}");
        }
    }
}
