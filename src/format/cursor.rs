//! How far the comparison of a node has come, so that one that was broken off goes on there.
//!
//! The body of a system record: the term whose stream it is of (4 and 4 bytes), the position up to which all operations
//! have been applied (4, 4 and 8), then for each object, in ascending order, its number (8), what it began with (1), the
//! object that it began like, or 0 (8), and the first block that has not been looked at, or all ones where all have (8).

use crate::units::{Epoch, Lba, Lsn, ObjectNumber};

use super::bytes::{Append, Reader};
use super::system::{SystemPurpose, SystemRecord};

/// Most objects of one cursor.
pub const CURSOR_OBJECTS_MAX: usize = 128;

const ENTRY_BYTES: usize = 25;

/// The cursor. All operations of the stream up to `position` were applied before it was written, and all that the
/// stream's sender held there of what has been looked at.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResyncCursor {
    /// The term of the sender: another one may never have had what was sent.
    pub term: Epoch,
    /// The term of the newest operation that was sent, and its number.
    pub position: (Epoch, Lsn),
    /// The objects, by ascending number.
    pub objects: Vec<CursorObject>,
}

/// One object.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CursorObject {
    /// Its number.
    pub number: ObjectNumber,
    /// What it began with.
    pub began: CursorBegan,
    /// What comes next; `None` where all of it has been looked at.
    pub next: Option<Lba>,
}

/// What an object began with on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CursorBegan {
    /// Holes.
    Empty,
    /// What this object holds.
    Like(ObjectNumber),
    /// What nobody can tell.
    Unknown,
}

impl ResyncCursor {
    /// The record that holds it; `None` where there are too many objects.
    #[must_use]
    pub fn record(&self) -> Option<SystemRecord> {
        let body = self.encode()?;
        Some(SystemRecord { purpose: SystemPurpose::ResyncCursor, body })
    }

    /// The body of that record.
    #[must_use]
    pub fn encode(&self) -> Option<Vec<u8>> {
        if self.objects.len() > CURSOR_OBJECTS_MAX {
            return None;
        }
        let mut body = Vec::with_capacity(24 + ENTRY_BYTES * self.objects.len());
        for epoch in [self.term, self.position.0] {
            body.put_u32(epoch.generation);
            body.put_u32(epoch.number);
        }
        body.put_u64(self.position.1.0);
        for object in &self.objects {
            let (kind, like) = match object.began {
                CursorBegan::Empty => (0, 0),
                CursorBegan::Like(other) => (1, other.0),
                CursorBegan::Unknown => (2, 0),
            };
            body.put_u64(object.number.0);
            body.put_u8(kind);
            body.put_u64(like);
            body.put_u64(object.next.map_or(u64::MAX, |next| next.0));
        }
        Some(body)
    }

    /// Reads what `encode` gave; `None` for anything else.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<ResyncCursor> {
        let mut reader = Reader::new(body);
        let mut epoch = || Some(Epoch { generation: reader.u32()?, number: reader.u32()? });
        let (term, of) = (epoch()?, epoch()?);
        let position = (of, Lsn(reader.u64()?));
        let mut objects: Vec<CursorObject> = Vec::new();
        while !reader.rest().is_empty() {
            let (number, kind, like) = (ObjectNumber(reader.u64()?), reader.u8()?, reader.u64()?);
            let began = match (kind, like) {
                (0, 0) => CursorBegan::Empty,
                (1, other) => CursorBegan::Like(ObjectNumber(other)),
                (2, 0) => CursorBegan::Unknown,
                _ => return None,
            };
            let next = Some(reader.u64()?).filter(|next| *next != u64::MAX).map(Lba);
            let follows = objects.last().is_none_or(|last| last.number < number);
            if !follows || objects.len() == CURSOR_OBJECTS_MAX {
                return None;
            }
            objects.push(CursorObject { number, began, next });
        }
        Some(ResyncCursor { term, position, objects })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn object(number: u64, began: CursorBegan, next: Option<Lba>) -> CursorObject {
        CursorObject { number: ObjectNumber(number), began, next }
    }

    fn epoch(number: u32) -> Epoch {
        Epoch { generation: 1, number }
    }

    #[test]
    fn a_cursor_reads_back_and_one_with_too_many_objects_is_none() {
        let objects = vec![
            object(1, CursorBegan::Empty, Some(Lba(7))),
            object(2, CursorBegan::Like(ObjectNumber(9)), None),
            object(5, CursorBegan::Unknown, Some(Lba(0))),
        ];
        let cursor = ResyncCursor { term: epoch(4), position: (epoch(3), Lsn(77)), objects };
        let body = cursor.encode().unwrap();
        assert_eq!(ResyncCursor::decode(&body), Some(cursor.clone()));
        assert_eq!(ResyncCursor::decode(&body[..body.len() - 1]), None);
        let most = CURSOR_OBJECTS_MAX as u64;
        let many = |count| (0..count).map(|number| object(number, CursorBegan::Empty, None)).collect();
        let full = ResyncCursor { objects: many(most), ..cursor.clone() };
        assert!(full.record().unwrap().encode().is_ok());
        assert_eq!(ResyncCursor { objects: many(most + 1), ..cursor }.record(), None);
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer_or_their_only_meaning(
            head in vec(any::<u8>(), 24),
            entries in vec((0u64..40, 0u8..4, 0u64..2, any::<u64>()), 0..6),
            cut in 0usize..30,
        ) {
            let mut bytes = head;
            for (number, kind, like, next) in entries {
                bytes.put_u64(number);
                bytes.put_u8(kind);
                bytes.put_u64(like);
                bytes.put_u64(next);
            }
            bytes.truncate(bytes.len() - if cut < 25 { 0 } else { cut - 24 });
            if let Some(cursor) = ResyncCursor::decode(&bytes) {
                prop_assert_eq!(cursor.encode(), Some(bytes));
            }
        }
    }
}
