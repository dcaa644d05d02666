//! The one mapping between kinds of error and the error numbers of the NBD protocol.
//!
//! Protocol: "Error values". The numbers are the protocol's own, the same on every system.

use std::borrow::Cow;

use crate::error::Error;
use crate::error::ErrorKind;

/// How the message begins that goes with [`Errno::InputOutput`] where data is damaged: the protocol has no number of
/// its own for that.
const DAMAGED: &str = "data is damaged: ";

/// The message for people that goes with the number of an error.
pub(super) fn message_of(error: &Error) -> Cow<'_, str> {
    match error.kind() {
        ErrorKind::Corrupt => format!("{DAMAGED}{}", error.what()).into(),
        _ => error.what().into(),
    }
}

/// An error number as it stands in a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[repr(u32)]
pub enum Errno {
    /// The export is read-only.
    NotPermitted = 1,
    /// The data could not be read or kept.
    InputOutput = 5,
    /// The request is wrong in itself.
    Invalid = 22,
    /// The pool is full, or the write reaches past the end.
    NoSpace = 28,
    /// The reply would be too large.
    Overflow = 75,
    /// Well formed, but not offered.
    NotSupported = 95,
    /// This server cannot go on serving the export; the client should leave.
    ShuttingDown = 108,
}

impl Errno {
    /// The number on the wire.
    #[must_use]
    pub fn code(self) -> u32 {
        self as u32
    }

    /// The kind that a client reports for a number from a server and the message that came with it.
    #[must_use]
    pub fn kind_with(code: u32, message: &str) -> ErrorKind {
        match Errno::kind_of(code) {
            ErrorKind::Device if message.starts_with(DAMAGED) => ErrorKind::Corrupt,
            kind => kind,
        }
    }

    /// The kind that a client reports for a number from a server; unknown ones count as `Invalid`,
    /// as the protocol asks.
    #[must_use]
    pub fn kind_of(code: u32) -> ErrorKind {
        match code {
            1 => ErrorKind::ReadOnly,
            5 | 12 => ErrorKind::Device,
            28 => ErrorKind::NoSpace,
            75 | 95 => ErrorKind::Unsupported,
            108 => ErrorKind::Unreachable,
            _ => ErrorKind::Invalid,
        }
    }
}

impl From<ErrorKind> for Errno {
    fn from(kind: ErrorKind) -> Errno {
        match kind {
            ErrorKind::Invalid | ErrorKind::Exists => Errno::Invalid,
            ErrorKind::NoSpace => Errno::NoSpace,
            ErrorKind::ReadOnly => Errno::NotPermitted,
            ErrorKind::Unsupported => Errno::NotSupported,
            ErrorKind::Corrupt
            | ErrorKind::Device
            | ErrorKind::Stopped
            | ErrorKind::Busy
            | ErrorKind::Changed => Errno::InputOutput,
            // The export is gone from here, for now or for good: no request can succeed any more,
            // and a client that can should look for it elsewhere.
            ErrorKind::NotFound | ErrorKind::NotPrimary | ErrorKind::NoQuorum | ErrorKind::Unreachable => {
                Errno::ShuttingDown
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_a_client_can_act_on_survive_the_wire() {
        for kind in [
            ErrorKind::Invalid,
            ErrorKind::NoSpace,
            ErrorKind::ReadOnly,
            ErrorKind::Unsupported,
            ErrorKind::Device,
        ] {
            assert_eq!(Errno::kind_of(Errno::from(kind).code()), kind);
        }
        assert_eq!(Errno::from(ErrorKind::NotPrimary).code(), 108);
        assert_eq!(Errno::from(ErrorKind::Corrupt).code(), 5);
        assert_eq!(Errno::kind_of(4711), ErrorKind::Invalid);
        for kind in [ErrorKind::Corrupt, ErrorKind::Device, ErrorKind::NoSpace] {
            let error = Error::new(kind, "block 7");
            assert_eq!(Errno::kind_with(Errno::from(kind).code(), &message_of(&error)), kind);
        }
    }
}
