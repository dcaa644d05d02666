//! What the array allows: names, sizes, and the room for text.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::format::catalog::RECORD_BYTES_MAX;
use crate::store::OPAQUE_BYTES_MAX;
use crate::units::ByteCount;
use crate::units::Uuid;

const _: () = assert!(RECORD_BYTES_MAX == OPAQUE_BYTES_MAX, "a record may take what the store keeps");

/// Most bytes of a name.
pub const NAME_BYTES_MAX: usize = 255;
/// Most bytes of a description and all tags (keys and values) together.
pub const TEXT_BYTES_MAX: usize = 3500;
/// The largest volume.
pub const VOLUME_BYTES_MAX: ByteCount = ByteCount(256 << 40);

fn invalid(what: impl Into<String>) -> Error {
    Error::new(ErrorKind::Invalid, what)
}

/// Whether a volume may have this name: 1 to 255 bytes, no control characters, no `@` (it parts a
/// volume's name from a snapshot's) and no `/`, neither `.` nor `..`, and not of the form of a UUID
/// (every verb takes a name or an id).
///
/// # Errors
/// `Invalid`, saying which rule is broken.
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(invalid("a volume's name is empty"));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(invalid(format!("a volume's name takes at most {NAME_BYTES_MAX} bytes")));
    }
    if name.chars().any(char::is_control) {
        return Err(invalid("a volume's name holds no control characters"));
    }
    if name.contains(['@', '/']) {
        return Err(invalid(format!("volume name {name}: '@' and '/' are not allowed")));
    }
    if matches!(name, "." | "..") {
        return Err(invalid("a volume cannot be called '.' or '..'"));
    }
    if Uuid::parse(name).is_some() {
        return Err(invalid(format!("volume name {name}: names of the form of an id are not allowed")));
    }
    Ok(())
}

/// Whether description and tags stay within [`TEXT_BYTES_MAX`].
pub(super) fn check_text(description: &str, tags: &BTreeMap<String, String>) -> Result<()> {
    let tag_bytes: usize = tags.iter().map(|(key, value)| key.len() + value.len()).sum();
    if description.len() + tag_bytes > TEXT_BYTES_MAX {
        return Err(invalid(format!("description and tags take at most {TEXT_BYTES_MAX} bytes together")));
    }
    Ok(())
}

/// The size that a volume gets for one that was wished: whole blocks.
pub(super) fn volume_size(wished: ByteCount) -> Result<ByteCount> {
    if wished.0 == 0 {
        return Err(invalid("a volume's size is more than 0"));
    }
    if wished > VOLUME_BYTES_MAX {
        return Err(invalid(format!(
            "a volume has at most 256 TiB ({VOLUME_BYTES_MAX} bytes); {wished} bytes are asked for"
        )));
    }
    Ok(wished.blocks().bytes())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_follow_the_rules() {
        for good in [
            "a",
            "demo",
            "Gr\u{f6}\u{df}e 1",
            "a.b",
            "...",
            "a7a7a7a7a7a747a7a7a7a7a7a7a7a7a7",
            &"x".repeat(255),
        ] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let uuid = "A7A7A7A7-a7a7-47a7-a7a7-a7a7a7a7a7a7";
        for bad in [
            "",
            ".",
            "..",
            "a@b",
            "a/b",
            "a\nb",
            "\u{7f}",
            "a\u{85}",
            "\0",
            uuid,
            &"x".repeat(256),
            &"\u{f6}".repeat(128),
        ] {
            assert_eq!(check_name(bad).unwrap_err().kind(), ErrorKind::Invalid, "{bad:?}");
        }
    }

    #[test]
    fn sizes_are_whole_blocks_within_bounds() {
        assert_eq!(volume_size(ByteCount(1)).unwrap(), ByteCount(4096));
        assert_eq!(volume_size(ByteCount(4096)).unwrap(), ByteCount(4096));
        assert_eq!(volume_size(ByteCount(4097)).unwrap(), ByteCount(8192));
        assert_eq!(volume_size(VOLUME_BYTES_MAX).unwrap(), VOLUME_BYTES_MAX);
        for bad in [0, VOLUME_BYTES_MAX.0 + 1, u64::MAX] {
            assert_eq!(volume_size(ByteCount(bad)).unwrap_err().kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn text_is_bounded() {
        let tags = BTreeMap::from([("k".repeat(100), "v".repeat(400))]);
        assert!(check_text(&"d".repeat(3000), &tags).is_ok());
        assert_eq!(check_text(&"d".repeat(3001), &tags).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
