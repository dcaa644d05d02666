//! What the host says of mounts: which ones of ours there are, whether anyone serves them, and taking
//! them away.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStringExt;
use std::path::Path;
use std::path::PathBuf;
use std::process::Command;

use rustix::io::Errno;
use rustix::mount::UnmountFlags;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::units::Uuid;

/// What the source of every mount of ours begins with.
const SOURCE_PREFIX: &str = "sinter:";

/// A mount of Sinter.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostMount {
    /// The directory.
    pub point: PathBuf,
    /// The pool whose volumes it shows (or showed).
    pub pool: Uuid,
}

/// The source of a mount of this pool, as `mount` shows it.
#[must_use]
pub fn source_of(pool: Uuid) -> String {
    format!("{SOURCE_PREFIX}{pool}")
}

/// All mounts of Sinter that this process can see, in the order in which they were made.
///
/// # Errors
/// `Device` where the list cannot be read.
pub fn mounts() -> Result<Vec<HostMount>> {
    let all = all_mounts()?.into_iter();
    Ok(all.filter_map(|(point, pool)| Some(HostMount { point, pool: pool? })).collect())
}

/// The mount at exactly this directory, if it is one of ours and no other mount lies over it.
///
/// # Errors
/// As [`mounts`].
pub fn mount_at(point: &Path) -> Result<Option<HostMount>> {
    let topmost = all_mounts()?.into_iter().rfind(|(mounted, _)| mounted == point);
    Ok(topmost.and_then(|(point, pool)| Some(HostMount { point, pool: pool? })))
}

/// All mounts: the directory, and the pool where it is one of ours.
fn all_mounts() -> Result<Vec<(PathBuf, Option<Uuid>)>> {
    const LIST: &str = "/proc/self/mountinfo";
    let text =
        fs::read(LIST).map_err(|error| Error::caused(ErrorKind::Device, format!("reading {LIST}"), error))?;
    Ok(text.split(|byte| *byte == b'\n').filter_map(parse_line).collect())
}

/// A line of mountinfo (proc_pid_mountinfo(5)): the fifth field is the directory; behind the field "-"
/// come type and source.
fn parse_line(line: &[u8]) -> Option<(PathBuf, Option<Uuid>)> {
    let mut fields = line.split(|byte| *byte == b' ');
    let point = PathBuf::from(OsString::from_vec(unescaped(fields.nth(4)?)));
    let mut fields = fields.skip_while(|field| *field != b"-").skip(1);
    let (kind, source) = (fields.next()?, fields.next()?);
    let ours = kind == b"fuse" || kind.starts_with(b"fuse.");
    let source = String::from_utf8(unescaped(source)).ok().filter(|_| ours);
    let pool = source.and_then(|source| Uuid::parse(source.strip_prefix(SOURCE_PREFIX)?));
    Some((point, pool))
}

/// The kernel writes spaces, tabs, line ends and backslashes as three octal digits behind a backslash.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(field.len());
    let mut at = 0;
    while at < field.len() {
        let digits = field.get(at + 1..at + 4).filter(|_| field[at] == b'\\');
        let value = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        plain.push(value.unwrap_or(field[at]));
        at += if value.is_some() { 4 } else { 1 };
    }
    plain
}

/// Whether nobody serves the mount any more, so that whoever looks into it gets an error.
#[must_use]
pub fn is_dead(point: &Path) -> bool {
    matches!(rustix::fs::stat(point), Err(Errno::NOTCONN | Errno::CONNABORTED))
}

/// Takes the mount away. `lazy` hides it at once and ends it with its last user.
///
/// # Errors
/// `Busy` while it is in use, without `lazy`; `NotFound` where nothing is mounted; `Device` for all else
/// that the host said.
pub fn unmount(point: &Path, lazy: bool) -> Result<()> {
    let flags = if lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    let failed = |kind, error| Error::caused(kind, format!("unmounting {}", point.display()), error);
    match rustix::mount::unmount(point, flags) {
        Ok(()) => Ok(()),
        Err(Errno::PERM) => unmount_as_user(point, lazy),
        Err(error @ Errno::BUSY) => Err(failed(ErrorKind::Busy, error)),
        Err(error @ (Errno::INVAL | Errno::NOENT)) => Err(failed(ErrorKind::NotFound, error)),
        Err(error) => Err(failed(ErrorKind::Device, error)),
    }
}

/// Without the right to unmount, `fusermount3` does it for the user who mounted.
fn unmount_as_user(point: &Path, lazy: bool) -> Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(point);
    let output = command.output().map_err(|error| {
        Error::caused(ErrorKind::Device, format!("running fusermount3 for {}", point.display()), error)
    })?;
    if output.status.success() {
        return Ok(());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let kind = if said.contains("busy") { ErrorKind::Busy } else { ErrorKind::Device };
    Err(Error::new(kind, format!("unmounting {}: {}", point.display(), said.trim())))
}

#[cfg(test)]
mod tests {
    use super::*;

    const POOL: &str = "a7a7a7a7-a7a7-47a7-a7a7-a7a7a7a7a7a7";

    #[test]
    fn our_mounts_are_found_among_others() {
        let line = format!(
            "36 35 0:42 / /mnt/a\\040b\\134c rw,nosuid shared:1 master:2 - fuse.sinter sinter:{POOL} rw"
        );
        let (point, pool) = parse_line(line.as_bytes()).unwrap();
        assert_eq!(point, Path::new("/mnt/a b\\c"));
        assert_eq!(source_of(pool.unwrap()), format!("sinter:{POOL}"));
        let plain = format!("36 35 0:42 / /m rw - fuse sinter:{POOL} rw");
        assert!(parse_line(plain.as_bytes()).unwrap().1.is_some());
        for other in [
            "36 35 0:42 / /m rw - ext4 /dev/sda1 rw".to_owned(),
            "36 35 0:42 / /m rw - fuse.sshfs host:/ rw".to_owned(),
            "36 35 0:42 / /m rw - fuse.sinter sinter:x rw".to_owned(),
            format!("36 35 0:42 / /m rw - ext4 sinter:{POOL} rw"),
        ] {
            assert_eq!(parse_line(other.as_bytes()), Some((PathBuf::from("/m"), None)), "{other}");
        }
        for broken in ["", "36 35", "36 35 0:42 / /m rw -", "36 35 0:42 / /m rw - fuse"] {
            assert_eq!(parse_line(broken.as_bytes()), None, "{broken}");
        }
    }

    #[test]
    fn broken_escapes_stay_as_they_are() {
        assert_eq!(unescaped(b"a\\04"), b"a\\04");
        assert_eq!(unescaped(b"\\999\\011"), b"\\999\t");
        assert_eq!(unescaped(b"\\777"), b"\\777");
    }
}
