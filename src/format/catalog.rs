//! The record of a volume or snapshot in the catalog: what the store keeps as an object's opaque bytes.
//!
//! All numbers are little endian, all text is UTF-8, nothing is padded:
//!
//! | field | bytes |
//! | --- | --- |
//! | version of this layout, now 1 | 1 |
//! | kind: 1 is a volume, 2 a snapshot (3 is the system's own: see `system`) | 1 |
//! | id | 16 |
//! | created, milliseconds since 1970-01-01 00:00:00 UTC | 8 |
//! | last changed by a management verb, likewise | 8 |
//! | size in bytes | 8 |
//! | length of the name, and the name | 1 + n |
//! | length of the description, and the description | 2 + n |
//! | number of tags | 2 |
//! | each tag, in ascending order of keys: length of key, key, length of value, value | 2 + n + 2 + n |
//! | snapshots only: id of its volume | 16 |
//! | snapshots only: length of the name that its volume had, and the name | 1 + n |
//!
//! The decoder is total: any bytes give a record or an error, never a panic, and what it allocates
//! is a part of what it was given. A record has exactly one encoding. There is no checksum here: the
//! store's pages have theirs.

use std::collections::BTreeMap;

use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::units::ByteCount;
use crate::units::Uuid;

/// Most bytes of an encoded record: what the store keeps for an object.
pub const RECORD_BYTES_MAX: usize = 3584;

const VERSION: u8 = 1;
const KIND_VOLUME: u8 = 1;
const KIND_SNAPSHOT: u8 = 2;

/// What a record describes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum RecordKind {
    /// A thin disk.
    Volume,
    /// A read-only picture of one, which outlives it.
    Snapshot {
        /// The id of the volume that it was taken of.
        of: Uuid,
        /// What the volume was called when this was written; at most 255 bytes.
        of_name: String,
    },
}

/// What the catalog keeps of one volume or snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// What it is.
    pub kind: RecordKind,
    /// Never changes, and is never used twice.
    pub id: Uuid,
    /// Milliseconds since 1970-01-01 00:00:00 UTC.
    pub created_ms: u64,
    /// When a management verb changed it last; milliseconds since 1970-01-01 00:00:00 UTC.
    pub updated_ms: u64,
    /// The size that clients see.
    pub size: ByteCount,
    /// Unique among volumes, or among a volume's snapshots; at most 255 bytes.
    pub name: String,
    /// Free text.
    pub description: String,
    /// Free text by key.
    pub tags: BTreeMap<String, String>,
}

impl Record {
    /// The record as bytes, at most [`RECORD_BYTES_MAX`].
    ///
    /// # Errors
    /// `Invalid` where it does not fit.
    pub fn encode(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::with_capacity(RECORD_BYTES_MAX);
        bytes.push(VERSION);
        bytes.push(match self.kind {
            RecordKind::Volume => KIND_VOLUME,
            RecordKind::Snapshot { .. } => KIND_SNAPSHOT,
        });
        bytes.extend_from_slice(&self.id.0);
        bytes.extend_from_slice(&self.created_ms.to_le_bytes());
        bytes.extend_from_slice(&self.updated_ms.to_le_bytes());
        bytes.extend_from_slice(&self.size.0.to_le_bytes());
        put_name(&mut bytes, &self.name)?;
        put_text(&mut bytes, &self.description)?;
        let tag_count = u16::try_from(self.tags.len()).map_err(|_| too_large())?;
        bytes.extend_from_slice(&tag_count.to_le_bytes());
        for (key, value) in &self.tags {
            put_text(&mut bytes, key)?;
            put_text(&mut bytes, value)?;
        }
        if let RecordKind::Snapshot { of, of_name } = &self.kind {
            bytes.extend_from_slice(&of.0);
            put_name(&mut bytes, of_name)?;
        }
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(too_large());
        }
        Ok(bytes)
    }

    /// Reads what `encode` gave.
    ///
    /// # Errors
    /// `Unsupported` for a version or kind that this program does not know; `Corrupt` for
    /// everything else that `encode` cannot have given.
    pub fn decode(bytes: &[u8]) -> Result<Record> {
        if bytes.len() > RECORD_BYTES_MAX {
            return Err(corrupt("is too long"));
        }
        let mut rest = Reader(bytes);
        let [version] = rest.array()?;
        if version != VERSION {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("catalog record of version {version}: this program knows version {VERSION}"),
            ));
        }
        let [kind] = rest.array()?;
        if !matches!(kind, KIND_VOLUME | KIND_SNAPSHOT) {
            return Err(Error::new(
                ErrorKind::Unsupported,
                format!("catalog record of kind {kind}: this program knows volumes and snapshots"),
            ));
        }
        let id = Uuid(rest.array()?);
        let created_ms = u64::from_le_bytes(rest.array()?);
        let updated_ms = u64::from_le_bytes(rest.array()?);
        let size = ByteCount(u64::from_le_bytes(rest.array()?));
        let name = rest.name()?;
        let description = rest.counted_text()?;
        let tag_count = u16::from_le_bytes(rest.array()?);
        let mut tags = BTreeMap::new();
        for _ in 0..tag_count {
            let key = rest.counted_text()?;
            if tags.last_key_value().is_some_and(|(last, _)| *last >= key) {
                return Err(corrupt("has tags out of order"));
            }
            tags.insert(key, rest.counted_text()?);
        }
        let kind = match kind {
            KIND_SNAPSHOT => RecordKind::Snapshot { of: Uuid(rest.array()?), of_name: rest.name()? },
            _ => RecordKind::Volume,
        };
        if !rest.0.is_empty() {
            return Err(corrupt("goes on after its end"));
        }
        Ok(Record { kind, id, created_ms, updated_ms, size, name, description, tags })
    }
}

fn put_name(bytes: &mut Vec<u8>, name: &str) -> Result<()> {
    let len = u8::try_from(name.len())
        .map_err(|_| Error::new(ErrorKind::Invalid, "a name takes at most 255 bytes"))?;
    bytes.push(len);
    bytes.extend_from_slice(name.as_bytes());
    Ok(())
}

fn put_text(bytes: &mut Vec<u8>, text: &str) -> Result<()> {
    let len = u16::try_from(text.len()).map_err(|_| too_large())?;
    bytes.extend_from_slice(&len.to_le_bytes());
    bytes.extend_from_slice(text.as_bytes());
    Ok(())
}

fn too_large() -> Error {
    Error::new(
        ErrorKind::Invalid,
        format!(
            "names, description and tags do not fit into the {RECORD_BYTES_MAX} bytes kept for a volume or snapshot"
        ),
    )
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("catalog record {what}"))
}

/// What is left to decode.
struct Reader<'a>(&'a [u8]);

impl Reader<'_> {
    fn array<const N: usize>(&mut self) -> Result<[u8; N]> {
        let (head, rest) = self.0.split_first_chunk().ok_or_else(|| corrupt("ends early"))?;
        self.0 = rest;
        Ok(*head)
    }

    fn text(&mut self, len: usize) -> Result<String> {
        let (head, rest) = self.0.split_at_checked(len).ok_or_else(|| corrupt("ends early"))?;
        self.0 = rest;
        let text = std::str::from_utf8(head).map_err(|_| corrupt("holds text that is not UTF-8"))?;
        Ok(text.to_owned())
    }

    fn name(&mut self) -> Result<String> {
        let [len] = self.array()?;
        self.text(usize::from(len))
    }

    fn counted_text(&mut self) -> Result<String> {
        let len = u16::from_le_bytes(self.array()?);
        self.text(usize::from(len))
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::btree_map;
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn record() -> impl Strategy<Value = Record> {
        let numbers = (any::<[u8; 16]>(), any::<u64>(), any::<u64>(), any::<u64>());
        let texts = ("\\PC{0,60}", "\\PC{0,600}", btree_map("\\PC{0,8}", "\\PC{0,30}", 0..8));
        let kind = proptest::option::of((any::<[u8; 16]>(), "\\PC{0,60}")).prop_map(|of| match of {
            Some((of, of_name)) => RecordKind::Snapshot { of: Uuid(of), of_name },
            None => RecordKind::Volume,
        });
        (numbers, texts, kind).prop_map(
            |((id, created_ms, updated_ms, size), (name, description, tags), kind)| Record {
                kind,
                id: Uuid(id),
                created_ms,
                updated_ms,
                size: ByteCount(size),
                name,
                description,
                tags,
            },
        )
    }

    fn plain() -> Record {
        Record {
            kind: RecordKind::Volume,
            id: Uuid([3; 16]),
            created_ms: 1,
            updated_ms: 2,
            size: ByteCount(4096),
            name: "demo".to_owned(),
            description: String::new(),
            tags: BTreeMap::from([("a".to_owned(), "1".to_owned()), ("b".to_owned(), "2".to_owned())]),
        }
    }

    proptest! {
        #[test]
        fn a_record_reads_back(record in record()) {
            match record.encode() {
                Ok(bytes) => prop_assert_eq!(Record::decode(&bytes).unwrap(), record),
                Err(error) => prop_assert_eq!(error.kind(), ErrorKind::Invalid),
            }
        }

        #[test]
        fn any_bytes_give_an_answer(bytes in vec(any::<u8>(), 0..5000)) {
            let _ = Record::decode(&bytes);
        }

        #[test]
        fn a_damaged_record_gives_an_error_or_its_only_encoding(
            record in record(),
            damage in vec((any::<proptest::sample::Index>(), any::<u8>()), 1..4),
            cut in any::<proptest::sample::Index>(),
        ) {
            let Ok(mut bytes) = record.encode() else { return Ok(()) };
            for (place, value) in damage {
                let place = place.index(bytes.len());
                bytes[place] = value;
            }
            if let Ok(other) = Record::decode(&bytes) {
                prop_assert_eq!(&other.encode().unwrap(), &bytes);
            }
            let cut = cut.index(bytes.len());
            prop_assert!(Record::decode(&bytes[..cut]).is_err());
        }
    }

    #[test]
    fn what_does_not_fit_is_refused() {
        let fixed = plain().encode().unwrap().len();
        let full = Record { description: "x".repeat(RECORD_BYTES_MAX - fixed), ..plain() };
        assert_eq!(full.encode().unwrap().len(), RECORD_BYTES_MAX);
        let over = Record { description: "x".repeat(RECORD_BYTES_MAX - fixed + 1), ..plain() };
        assert_eq!(over.encode().unwrap_err().kind(), ErrorKind::Invalid);
        for huge in [
            Record { name: "x".repeat(256), ..plain() },
            Record { description: "x".repeat(1 << 16), ..plain() },
            Record { tags: (0..70_000).map(|n| (n.to_string(), String::new())).collect(), ..plain() },
        ] {
            assert_eq!(huge.encode().unwrap_err().kind(), ErrorKind::Invalid);
        }
    }

    #[test]
    fn the_layout_stays_as_it_is() {
        let bytes = plain().encode().unwrap();
        let mut expected = vec![1, 1];
        expected.extend_from_slice(&[3; 16]);
        expected.extend_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0]);
        expected.extend_from_slice(&[0, 16, 0, 0, 0, 0, 0, 0]);
        expected.extend_from_slice(b"\x04demo\x00\x00\x02\x00");
        expected.extend_from_slice(b"\x01\x00a\x01\x001\x01\x00b\x01\x002");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn a_snapshot_names_its_volume_behind_all_else() {
        let kind = RecordKind::Snapshot { of: Uuid([5; 16]), of_name: "disk".to_owned() };
        let bytes = Record { kind, ..plain() }.encode().unwrap();
        let mut expected = plain().encode().unwrap();
        expected[1] = 2;
        expected.extend_from_slice(&[5; 16]);
        expected.extend_from_slice(b"\x04disk");
        assert_eq!(bytes, expected);
    }

    #[test]
    fn unknown_versions_and_kinds_are_told_from_damage() {
        let good = plain().encode().unwrap();
        for place in 0..2 {
            let mut bytes = good.clone();
            bytes[place] = 9;
            assert_eq!(Record::decode(&bytes).unwrap_err().kind(), ErrorKind::Unsupported);
        }
        let swapped = [&good[..good.len() - 12], b"\x01\x00b\x01\x002\x01\x00a\x01\x001".as_slice()].concat();
        assert_eq!(Record::decode(&swapped).unwrap_err().kind(), ErrorKind::Corrupt);
        let longer = [good.as_slice(), b"\0"].concat();
        assert_eq!(Record::decode(&longer).unwrap_err().kind(), ErrorKind::Corrupt);
    }
}
