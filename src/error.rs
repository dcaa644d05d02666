//! One error type for the library: a kind, by what the caller does next, and a sentence that says
//! what was being done to what, with its cause kept.

use std::fmt;

/// What the caller does next. Mapped exhaustively, once each, to NBD errors, HTTP statuses and
/// exit codes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ErrorKind {
    /// The request is wrong in itself; asking again cannot help.
    Invalid,
    /// What the request names does not exist.
    NotFound,
    /// It exists already.
    Exists,
    /// It is in use, or in conflict with something else that is going on.
    Busy,
    /// It is not as the caller last saw it; look again before asking again.
    Changed,
    /// The pool is full; trims and deletes still work.
    NoSpace,
    /// The data is damaged, and no good copy is at hand.
    Corrupt,
    /// A device failed to do what it was told.
    Device,
    /// The store has stopped taking writes (after a failed write or sync); reads go on.
    Stopped,
    /// The volume or pool is read-only.
    ReadOnly,
    /// The request went to a node that is not the primary.
    NotPrimary,
    /// There is no quorum, or no primary.
    NoQuorum,
    /// The daemon cannot be reached.
    Unreachable,
    /// The request is well formed, but not offered here.
    Unsupported,
}

/// An error with its kind, what was being done, and the cause.
#[derive(Debug, thiserror::Error)]
pub struct Error {
    kind: ErrorKind,
    what: String,
    #[source]
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The library's result.
pub type Result<T, E = Error> = std::result::Result<T, E>;

impl Error {
    /// An error without a deeper cause.
    pub fn new(kind: ErrorKind, what: impl Into<String>) -> Error {
        Error { kind, what: what.into(), source: None }
    }

    /// An error with the cause below it.
    pub fn caused(
        kind: ErrorKind,
        what: impl Into<String>,
        source: impl Into<Box<dyn std::error::Error + Send + Sync>>,
    ) -> Error {
        Error { kind, what: what.into(), source: Some(source.into()) }
    }

    /// What the caller does next.
    #[must_use]
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// What was being done to what, without the cause.
    #[must_use]
    pub fn what(&self) -> &str {
        &self.what
    }

    /// The same error with more said in front: `"{context}: {what}"`.
    #[must_use]
    pub fn context(mut self, context: impl fmt::Display) -> Error {
        self.what = format!("{context}: {}", self.what);
        self
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)?;
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            write!(f, ": {error}")?;
            cause = error.source();
        }
        Ok(())
    }
}
