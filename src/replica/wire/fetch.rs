//! What a node asks another for when a block of its own is damaged: the fingerprint, and the stored bytes that it names.

use crate::format::bytes::{Append, Reader};
use crate::units::{BLOCK_BYTES, Fingerprint};

use super::{WIRE_VERSION, versioned};

/// The question for a block, as the body of a frame.
#[must_use]
pub fn encode_fetch(fingerprint: &Fingerprint) -> Vec<u8> {
    let mut bytes = vec![WIRE_VERSION];
    bytes.put_slice(&fingerprint.0);
    bytes
}

/// Reads what `encode_fetch` gave; `None` for anything else.
#[must_use]
pub fn decode_fetch(bytes: &[u8]) -> Option<Fingerprint> {
    let mut reader = versioned(bytes)?;
    let fingerprint = Fingerprint(reader.array()?);
    reader.rest().is_empty().then_some(fingerprint)
}

/// The answer, as the body of a frame: the stored bytes of the block, or none where it is not there.
#[must_use]
pub fn encode_fetched(stored: Option<&[u8]>) -> Vec<u8> {
    let mut bytes = vec![WIRE_VERSION];
    bytes.put_slice(stored.unwrap_or_default());
    bytes
}

/// Reads what `encode_fetched` gave; the outer `None` is for anything else.
#[must_use]
pub fn decode_fetched(bytes: &[u8]) -> Option<Option<&[u8]>> {
    let reader: Reader<'_> = versioned(bytes)?;
    let stored = reader.rest();
    (stored.len() <= BLOCK_BYTES).then(|| (!stored.is_empty()).then_some(stored))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn questions_and_answers_read_back_and_nothing_else_does() {
        let fingerprint = Fingerprint([7; 16]);
        let question = encode_fetch(&fingerprint);
        assert_eq!(decode_fetch(&question), Some(fingerprint));
        for bytes in [&question[..16], &[&question[..], &[0]].concat(), &[]] {
            assert_eq!(decode_fetch(bytes), None);
        }
        for stored in [None, Some(&[1u8, 2, 3][..]), Some(&[9; BLOCK_BYTES][..])] {
            assert_eq!(decode_fetched(&encode_fetched(stored)), Some(stored));
        }
        assert_eq!(decode_fetched(&encode_fetched(Some(&[9; BLOCK_BYTES + 1]))), None);
        assert_eq!(decode_fetched(&[WIRE_VERSION + 1]), None);
        assert_eq!(decode_fetched(&[]), None);
    }
}
