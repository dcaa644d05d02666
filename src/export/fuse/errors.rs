//! The one mapping between kinds of error and the numbers that system calls return.

use rustix::io::Errno;

use crate::error::ErrorKind;

/// The number for a kind of error on an open file. (Where a name is looked up, `NotFound` is `ENOENT`
/// instead.)
#[must_use]
pub fn errno_of(kind: ErrorKind) -> Errno {
    match kind {
        ErrorKind::Invalid => Errno::INVAL,
        // It was there when the file was opened: a forced delete took it away.
        ErrorKind::NotFound => Errno::STALE,
        ErrorKind::Exists => Errno::EXIST,
        ErrorKind::Busy => Errno::BUSY,
        ErrorKind::Changed => Errno::AGAIN,
        ErrorKind::NoSpace => Errno::NOSPC,
        // What the kernel's own file systems say of a checksum that does not fit.
        ErrorKind::Corrupt => Errno::BADMSG,
        // An fsync that a stopped store refuses must not look like a file system mounted read-only.
        ErrorKind::Device | ErrorKind::Stopped => Errno::IO,
        ErrorKind::ReadOnly => Errno::ROFS,
        ErrorKind::NotPrimary => Errno::REMOTE,
        ErrorKind::NoQuorum => Errno::NETDOWN,
        ErrorKind::Unreachable => Errno::HOSTUNREACH,
        ErrorKind::Unsupported => Errno::OPNOTSUPP,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_program_acts_on_keeps_its_own_number() {
        let kinds = [
            (ErrorKind::NoSpace, 28),
            (ErrorKind::NotFound, 116),
            (ErrorKind::Corrupt, 74),
            (ErrorKind::Device, 5),
            (ErrorKind::ReadOnly, 30),
            (ErrorKind::NotPrimary, 66),
            (ErrorKind::NoQuorum, 100),
            (ErrorKind::Unsupported, 95),
        ];
        for (kind, number) in kinds {
            assert_eq!(errno_of(kind).raw_os_error(), number, "{kind:?}");
        }
        assert_eq!(errno_of(ErrorKind::Stopped), errno_of(ErrorKind::Device));
    }
}
