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

/// Whether a volume or snapshot may have this name: 1 to 255 bytes, no control characters, no blank at its
/// beginning or end (nobody sees it), no `@` (it parts a volume's name from a snapshot's) and no `/`, neither
/// `.` nor `..`, and not of the form of a UUID (every verb takes a name or an id).
///
/// # Errors
/// `Invalid`, saying which rule is broken.
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(invalid("the name is empty"));
    }
    if name.len() > NAME_BYTES_MAX {
        return Err(invalid(format!("a name takes at most {NAME_BYTES_MAX} bytes")));
    }
    if name.chars().any(char::is_control) {
        return Err(invalid("a name holds no control characters"));
    }
    if name.trim() != name {
        return Err(invalid(format!("name \"{name}\": a name neither begins nor ends with a blank")));
    }
    if name.contains(['@', '/']) {
        return Err(invalid(format!("name {name}: '@' and '/' are not allowed")));
    }
    if matches!(name, "." | "..") {
        return Err(invalid("nothing can be called '.' or '..'"));
    }
    if Uuid::parse(name).is_some() {
        return Err(invalid(format!("name {name}: names of the form of an id are not allowed")));
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

/// `base` and `suffix` as a name: the end of `base` is left out where they would be too long.
pub(super) fn derived_name(base: &str, suffix: &str) -> String {
    let room = NAME_BYTES_MAX.saturating_sub(suffix.len());
    let mut end = base.len().min(room);
    while !base.is_char_boundary(end) {
        end -= 1;
    }
    format!("{}{suffix}", &base[..end])
}

/// The first of `base`, `base-2`, `base-3`... that is free.
pub(super) fn first_free(base: &str, is_taken: impl Fn(&str) -> bool) -> String {
    let mut name = base.to_owned();
    let mut number = 2u64;
    while is_taken(&name) {
        name = derived_name(base, &format!("-{number}"));
        number += 1;
    }
    name
}

/// The size that a volume gets for one that was wished: whole blocks.
///
/// # Errors
/// `Invalid` for 0, and for more than [`VOLUME_BYTES_MAX`].
pub fn volume_size(wished: ByteCount) -> Result<ByteCount> {
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
            "a  b",
            &"x".repeat(255),
        ] {
            assert!(check_name(good).is_ok(), "{good}");
        }
        let uuid = "A7A7A7A7-a7a7-47a7-a7a7-a7a7a7a7a7a7";
        for bad in [
            "",
            ".",
            "..",
            " ",
            " \u{3000} ",
            " a",
            "a ",
            "a\u{a0}",
            "\u{2028}a",
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
    fn derived_names_stay_within_bounds() {
        assert_eq!(derived_name("a", "-restored"), "a-restored");
        let long = derived_name(&"\u{f6}".repeat(127), "-r");
        assert_eq!(long, "\u{f6}".repeat(126) + "-r");
        assert_eq!(first_free("a", |_| false), "a");
        assert_eq!(first_free("a", |name| matches!(name, "a" | "a-2")), "a-3");
        assert_eq!(first_free(&"x".repeat(255), |name| !name.ends_with('2')).len(), 255);
    }

    #[test]
    fn text_is_bounded() {
        let tags = BTreeMap::from([("k".repeat(100), "v".repeat(400))]);
        assert!(check_text(&"d".repeat(3000), &tags).is_ok());
        assert_eq!(check_text(&"d".repeat(3001), &tags).unwrap_err().kind(), ErrorKind::Invalid);
    }
}
