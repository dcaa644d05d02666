//! What the system keeps for itself in the catalog: objects that are no volume and no snapshot of a user.
//!
//! A record has the version of the catalog's records (1), kind 3, its purpose (1 byte), and a body that the purpose
//! explains. All numbers are little endian. The decoders are total, and a record has exactly one encoding.

use std::collections::BTreeSet;

use crate::error::{Error, ErrorKind, Result};
use crate::units::{Epoch, Lsn, ObjectNumber, Uuid};

use super::bytes::{Append, Reader};
use super::catalog::RECORD_BYTES_MAX;

const VERSION: u8 = 1;
const KIND_SYSTEM: u8 = 3;
const HEAD_BYTES: usize = 3;

/// Most terms that a history holds.
pub const EPOCHS_MAX: usize = 128;

/// What a system record is there for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SystemPurpose {
    /// Its body is an [`EpochHistory`].
    EpochHistory,
    /// Its body is a [`Bookmark`].
    Bookmark,
    /// Its body is a [`KeptObjects`].
    KeptObjects,
    /// Its body is a [`HistoryId`].
    HistoryId,
    /// Its body is a [`ResyncCursor`](super::cursor::ResyncCursor).
    ResyncCursor,
}

impl SystemPurpose {
    fn code(self) -> u8 {
        match self {
            SystemPurpose::EpochHistory => 1,
            SystemPurpose::Bookmark => 2,
            SystemPurpose::KeptObjects => 3,
            SystemPurpose::HistoryId => 4,
            SystemPurpose::ResyncCursor => 5,
        }
    }

    fn from_code(code: u8) -> Option<SystemPurpose> {
        let known = [
            SystemPurpose::EpochHistory,
            SystemPurpose::Bookmark,
            SystemPurpose::KeptObjects,
            SystemPurpose::HistoryId,
            SystemPurpose::ResyncCursor,
        ];
        known.into_iter().find(|known| known.code() == code)
    }
}

/// A record of the system's own.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SystemRecord {
    /// What it is there for.
    pub purpose: SystemPurpose,
    /// What it holds.
    pub body: Vec<u8>,
}

impl SystemRecord {
    /// Whether an object's opaque bytes are such a record, be it one that this program can read or not.
    #[must_use]
    pub fn is_one(bytes: &[u8]) -> bool {
        bytes.starts_with(&[VERSION, KIND_SYSTEM])
    }

    /// The record as bytes, at most [`RECORD_BYTES_MAX`].
    ///
    /// # Errors
    /// `Invalid` where it does not fit.
    pub fn encode(&self) -> Result<Vec<u8>> {
        if HEAD_BYTES + self.body.len() > RECORD_BYTES_MAX {
            let what = format!("a system record of {} bytes is too long", self.body.len());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok([&[VERSION, KIND_SYSTEM, self.purpose.code()], self.body.as_slice()].concat())
    }

    /// Reads what `encode` gave.
    ///
    /// # Errors
    /// `Unsupported` for a purpose that this program does not know; `Corrupt` for everything else that `encode`
    /// cannot have given.
    pub fn decode(bytes: &[u8]) -> Result<SystemRecord> {
        let (true, Some((head, body))) = (
            SystemRecord::is_one(bytes) && bytes.len() <= RECORD_BYTES_MAX,
            bytes.split_at_checked(HEAD_BYTES),
        ) else {
            return Err(corrupt("is none"));
        };
        let purpose = SystemPurpose::from_code(head[2]).ok_or_else(|| {
            let what = format!("a system record for purpose {}, which this program does not know", head[2]);
            Error::new(ErrorKind::Unsupported, what)
        })?;
        Ok(SystemRecord { purpose, body: body.to_vec() })
    }
}

fn corrupt(what: &str) -> Error {
    Error::new(ErrorKind::Corrupt, format!("a system record {what}"))
}

/// Where a term began.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EpochStart {
    /// The term.
    pub epoch: Epoch,
    /// Its first operation.
    pub first: Lsn,
}

/// Where the latest terms began, at most [`EPOCHS_MAX`] of them, the oldest first: generation (4), number (4) and
/// first LSN (8) of each.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EpochHistory {
    starts: Vec<EpochStart>,
}

impl EpochHistory {
    /// The terms, each later than the one before and none beginning before it.
    #[must_use]
    pub fn starts(&self) -> &[EpochStart] {
        &self.starts
    }

    /// Adds a term, and forgets the oldest where there are too many.
    ///
    /// # Errors
    /// `Invalid` for a term that is not later than the last one, or begins before it.
    pub fn push(&mut self, start: EpochStart) -> Result<()> {
        if self.starts.last().is_some_and(|last| !last.precedes(start)) {
            let Epoch { generation, number } = start.epoch;
            let what =
                format!("term {generation}.{number} from operation {} on does not follow", start.first);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        if self.starts.len() == EPOCHS_MAX {
            self.starts.remove(0);
        }
        self.starts.push(start);
        Ok(())
    }

    /// The record that holds it.
    #[must_use]
    pub fn record(&self) -> SystemRecord {
        let mut body = Vec::with_capacity(16 * self.starts.len());
        for EpochStart { epoch, first } in &self.starts {
            body.put_u32(epoch.generation);
            body.put_u32(epoch.number);
            body.put_u64(first.0);
        }
        SystemRecord { purpose: SystemPurpose::EpochHistory, body }
    }

    /// Reads the body of a record.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<EpochHistory> {
        let (parts, rest) = body.as_chunks::<16>();
        if !rest.is_empty() || parts.len() > EPOCHS_MAX {
            return None;
        }
        let mut history = EpochHistory::default();
        for part in parts {
            let mut reader = Reader::new(part);
            let epoch = Epoch { generation: reader.u32()?, number: reader.u32()? };
            history.push(EpochStart { epoch, first: Lsn(reader.u64()?) }).ok()?;
        }
        Some(history)
    }
}

impl EpochStart {
    fn precedes(&self, next: EpochStart) -> bool {
        self.epoch < next.epoch && self.first <= next.first
    }
}

/// On a node that is being compared, the objects that are whole: all others are on their way. Eight bytes each, in
/// ascending order, at most [`KEPT_MAX`] of them; one that is left out counts as not whole.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KeptObjects {
    /// Their numbers.
    pub numbers: BTreeSet<ObjectNumber>,
}

/// Most objects of one such record.
pub const KEPT_MAX: usize = 440;

impl KeptObjects {
    /// The record that holds it.
    #[must_use]
    pub fn record(&self) -> SystemRecord {
        let mut body = Vec::with_capacity(8 * self.numbers.len());
        // The youngest ones matter most: the newest bookmark is among them.
        let skipped = self.numbers.len().saturating_sub(KEPT_MAX);
        for number in self.numbers.iter().skip(skipped) {
            body.put_u64(number.0);
        }
        SystemRecord { purpose: SystemPurpose::KeptObjects, body }
    }

    /// Reads the body of a record.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<KeptObjects> {
        let (parts, rest) = body.as_chunks::<8>();
        let numbers: Vec<ObjectNumber> =
            parts.iter().map(|part| ObjectNumber(u64::from_le_bytes(*part))).collect();
        let sound = rest.is_empty() && parts.len() <= KEPT_MAX && numbers.is_sorted_by(|a, b| a < b);
        sound.then(|| KeptObjects { numbers: numbers.into_iter().collect() })
    }
}

/// A held picture of one object that all nodes have in common: id (16), object (8), when it was made (8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bookmark {
    /// The same for all objects that were pictured in one operation.
    pub id: Uuid,
    /// The object that was pictured.
    pub of: ObjectNumber,
    /// Milliseconds since 1970-01-01 00:00:00 UTC.
    pub made_ms: u64,
}

impl Bookmark {
    /// The record that holds it.
    #[must_use]
    pub fn record(&self) -> SystemRecord {
        let mut body = Vec::with_capacity(32);
        body.put_slice(&self.id.0);
        body.put_u64(self.of.0);
        body.put_u64(self.made_ms);
        SystemRecord { purpose: SystemPurpose::Bookmark, body }
    }

    /// Reads the body of a record.
    #[must_use]
    pub fn decode(body: &[u8]) -> Option<Bookmark> {
        let mut reader = Reader::new(body);
        let bookmark =
            Bookmark { id: Uuid(reader.array()?), of: ObjectNumber(reader.u64()?), made_ms: reader.u64()? };
        reader.rest().is_empty().then_some(bookmark)
    }
}

/// Names the run of acknowledged operations that the array holds: another one is drawn when some of them may have been
/// lost. Id (16), generation (4) and number (4) of the term in which it was drawn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HistoryId {
    /// The name.
    pub id: Uuid,
    /// When it was drawn.
    pub since: Epoch,
}

impl HistoryId {
    /// The record that holds it.
    #[must_use]
    pub fn record(&self) -> SystemRecord {
        let mut body = Vec::with_capacity(24);
        body.put_slice(&self.id.0);
        body.put_u32(self.since.generation);
        body.put_u32(self.since.number);
        SystemRecord { purpose: SystemPurpose::HistoryId, body }
    }

    /// Reads an object's opaque bytes; `None` where they are anything else.
    #[must_use]
    pub fn of(opaque: &[u8]) -> Option<HistoryId> {
        let record = SystemRecord::decode(opaque).ok()?;
        if record.purpose != SystemPurpose::HistoryId {
            return None;
        }
        let mut reader = Reader::new(&record.body);
        let id = Uuid(reader.array()?);
        let since = Epoch { generation: reader.u32()?, number: reader.u32()? };
        reader.rest().is_empty().then_some(HistoryId { id, since })
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    fn start(number: u32, first: u64) -> EpochStart {
        EpochStart { epoch: Epoch { generation: 1, number }, first: Lsn(first) }
    }

    proptest! {
        #[test]
        fn any_bytes_give_an_answer_or_their_only_meaning(
            head in vec(0u8..5, 0..4),
            body in vec(any::<u8>(), 0..4000),
        ) {
            let bytes = [head, body].concat();
            if let Ok(record) = SystemRecord::decode(&bytes) {
                prop_assert!(SystemRecord::is_one(&bytes));
                prop_assert_eq!(record.encode().unwrap(), bytes);
            }
        }

        #[test]
        fn bodies_have_one_encoding(body in vec(any::<u8>(), 0..2100)) {
            if let Some(history) = EpochHistory::decode(&body) {
                prop_assert_eq!(&history.record().body, &body);
            }
            if let Some(bookmark) = Bookmark::decode(&body) {
                prop_assert_eq!(&bookmark.record().body, &body);
            }
        }

        #[test]
        fn a_bookmark_reads_back(id in any::<[u8; 16]>(), of in any::<u64>(), made_ms in any::<u64>()) {
            let bookmark = Bookmark { id: Uuid(id), of: ObjectNumber(of), made_ms };
            let bytes = bookmark.record().encode().unwrap();
            let record = SystemRecord::decode(&bytes).unwrap();
            prop_assert_eq!(record.purpose, SystemPurpose::Bookmark);
            prop_assert_eq!(Bookmark::decode(&record.body), Some(bookmark));
            prop_assert_eq!(Bookmark::decode(&record.body[1..]), None);
        }
    }

    #[test]
    fn the_name_of_a_history_reads_back() {
        let named = HistoryId { id: Uuid([7; 16]), since: Epoch { generation: 1, number: 2 } };
        let bytes = named.record().encode().unwrap();
        assert_eq!(bytes, [&[1, 3, 4][..], &[7; 16], &[1, 0, 0, 0, 2, 0, 0, 0]].concat());
        assert_eq!(HistoryId::of(&bytes), Some(named));
        assert_eq!(HistoryId::of(&bytes[..26]), None);
        assert_eq!(HistoryId::of(&[bytes.as_slice(), &[0]].concat()), None);
        assert_eq!(HistoryId::of(&KeptObjects::default().record().encode().unwrap()), None);
    }

    #[test]
    fn a_history_keeps_the_latest_terms_in_order() {
        let mut history = EpochHistory::default();
        for number in 0..300 {
            history.push(start(number, u64::from(number) / 2)).unwrap();
        }
        assert_eq!(history.starts().len(), EPOCHS_MAX);
        assert_eq!(history.starts()[0], start(300 - 128, (300 - 128) / 2));
        for wrong in [start(299, 900), start(400, 3)] {
            assert_eq!(history.push(wrong).unwrap_err().kind(), ErrorKind::Invalid);
        }
        let bytes = history.record().encode().unwrap();
        let record = SystemRecord::decode(&bytes).unwrap();
        assert_eq!(EpochHistory::decode(&record.body), Some(history));
        let swapped = [&record.body[16..32], &record.body[..16]].concat();
        assert_eq!(EpochHistory::decode(&swapped), None);
    }

    #[test]
    fn the_layout_stays_as_it_is() {
        let mut history = EpochHistory::default();
        history.push(start(2, 7)).unwrap();
        assert_eq!(
            history.record().encode().unwrap(),
            [1, 3, 1, 1, 0, 0, 0, 2, 0, 0, 0, 7, 0, 0, 0, 0, 0, 0, 0]
        );
        let unknown = SystemRecord::decode(&[1, 3, 9]).unwrap_err();
        assert_eq!(unknown.kind(), ErrorKind::Unsupported);
        assert_eq!(SystemRecord::decode(&[1, 3]).unwrap_err().kind(), ErrorKind::Corrupt);
        assert_eq!(SystemRecord::decode(&[1, 2, 1]).unwrap_err().kind(), ErrorKind::Corrupt);
        let long = SystemRecord { purpose: SystemPurpose::Bookmark, body: vec![0; RECORD_BYTES_MAX - 2] };
        assert_eq!(long.encode().unwrap_err().kind(), ErrorKind::Invalid);
    }
}
