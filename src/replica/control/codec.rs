//! Bytes of the group, on the wire and on disk: one byte of version, then JSON. What is not of this version, too
//! long, or not what it should be is an error.

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{Error, ErrorKind, Result};

/// The version of everything that is written here.
const VERSION: u8 = 1;
/// Nothing longer is read: the group's state is small, and its log is sent in pieces.
pub(super) const BYTES_MAX: usize = 16 << 20;

/// A value's bytes.
pub(super) fn encode(value: &impl Serialize) -> Result<Vec<u8>> {
    let mut bytes = vec![VERSION];
    serde_json::to_writer(&mut bytes, value)
        .map_err(|error| Error::caused(ErrorKind::Invalid, "writing what the group keeps", error))?;
    Ok(bytes)
}

/// The value of some bytes; `what` names them in errors.
pub(super) fn decode<T: DeserializeOwned>(what: &str, bytes: &[u8]) -> Result<T> {
    let invalid = |why: String| Error::new(ErrorKind::Invalid, format!("reading {what}: {why}"));
    if bytes.len() > BYTES_MAX {
        return Err(invalid(format!("{} bytes are more than the {BYTES_MAX} allowed", bytes.len())));
    }
    match bytes {
        [VERSION, rest @ ..] => serde_json::from_slice(rest)
            .map_err(|error| Error::caused(ErrorKind::Invalid, format!("reading {what}"), error)),
        [other, ..] => Err(invalid(format!("it is of version {other}, this program knows {VERSION}"))),
        [] => Err(invalid("it is empty".into())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_this_version_is_read() {
        let bytes = encode(&vec![1u32, 2]).unwrap();
        assert_eq!(decode::<Vec<u32>>("a list", &bytes).unwrap(), [1, 2]);
        let mut other = bytes.clone();
        other[0] = 2;
        for wrong in [&other[..], &bytes[..bytes.len() - 1], &[], &[1], &[1, 0xff]] {
            assert_eq!(
                decode::<Vec<u32>>("a list", wrong).unwrap_err().kind(),
                ErrorKind::Invalid,
                "{wrong:?}"
            );
        }
        assert!(decode::<Vec<u32>>("a list", &vec![1; BYTES_MAX + 1]).is_err());
    }
}
