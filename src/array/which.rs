//! How a caller says which volume or snapshot it means.

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;

/// What management verbs can change of a volume, in a number: another one after every change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Version(pub u64);

/// A volume by name or id, perhaps only as the caller has seen it.
#[derive(Clone, Copy, Debug)]
pub struct Which<'a> {
    pub(super) name_or_id: &'a str,
    versions: Option<&'a [Version]>,
}

impl<'a> Which<'a> {
    /// The volume of this name or id, in one of these versions if any are given.
    #[must_use]
    pub fn new(name_or_id: &'a str, versions: Option<&'a [Version]>) -> Which<'a> {
        Which { name_or_id, versions }
    }

    /// Whether the volume that was found is as the caller wants it: else `Changed`.
    pub(super) fn check(&self, version: Version) -> Result<()> {
        if self.versions.is_none_or(|versions| versions.contains(&version)) {
            return Ok(());
        }
        Err(changed("volume", self.name_or_id))
    }
}

fn changed(noun: &str, name: &str) -> Error {
    Error::new(ErrorKind::Changed, format!("{noun} {name} has been changed meanwhile"))
}

impl<'a> From<&'a str> for Which<'a> {
    fn from(name_or_id: &'a str) -> Which<'a> {
        Which { name_or_id, versions: None }
    }
}

impl<'a> From<&'a String> for Which<'a> {
    fn from(name_or_id: &'a String) -> Which<'a> {
        Which { name_or_id, versions: None }
    }
}

/// A snapshot: its name or id, and the name or id of its volume.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SnapshotWhich<'a> {
    /// Name or id of the volume. A name means the living volume first, then the newest one that is gone.
    pub volume: &'a str,
    /// Name or id of the snapshot.
    pub snapshot: &'a str,
}

impl<'a> SnapshotWhich<'a> {
    /// Reads `VOLUME@SNAPSHOT`; `None` for a text without an `@`. (Neither name can hold one.)
    #[must_use]
    pub fn parse(text: &'a str) -> Option<SnapshotWhich<'a>> {
        let (volume, snapshot) = text.split_once('@')?;
        Some(SnapshotWhich { volume, snapshot })
    }
}

/// A snapshot, perhaps only as the caller has seen it, or has seen what it is restored onto.
#[derive(Clone, Copy, Debug)]
pub struct SnapshotIn<'a> {
    pub(super) which: SnapshotWhich<'a>,
    pub(super) versions: Option<&'a [Version]>,
}

impl<'a> SnapshotIn<'a> {
    /// This snapshot, if it is in one of the versions; where it is restored onto a volume, if that one is.
    #[must_use]
    pub fn new(which: SnapshotWhich<'a>, versions: Option<&'a [Version]>) -> SnapshotIn<'a> {
        SnapshotIn { which, versions }
    }

    /// Whether the snapshot that was found is as the caller wants it: else `Changed`.
    pub(super) fn check(&self, version: Version) -> Result<()> {
        if self.versions.is_none_or(|versions| versions.contains(&version)) {
            return Ok(());
        }
        Err(changed("snapshot", self.which.snapshot))
    }
}

impl<'a> From<SnapshotWhich<'a>> for SnapshotIn<'a> {
    fn from(which: SnapshotWhich<'a>) -> SnapshotIn<'a> {
        SnapshotIn { which, versions: None }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_an_at_sign_is_a_snapshot() {
        assert_eq!(SnapshotWhich::parse("a@b"), Some(SnapshotWhich { volume: "a", snapshot: "b" }));
        assert_eq!(SnapshotWhich::parse("ab"), None);
    }

    #[test]
    fn a_version_is_asked_for_or_not() {
        assert!(Which::from("v").check(Version(1)).is_ok());
        let seen = [Version(1), Version(2)];
        assert!(Which::new("v", Some(&seen)).check(Version(2)).is_ok());
        let changed = Which::new("v", Some(&seen)).check(Version(3)).unwrap_err();
        assert_eq!(changed.kind(), ErrorKind::Changed);
        assert!(Which::new("v", Some(&[])).check(Version(3)).is_err());
    }
}
