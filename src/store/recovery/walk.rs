//! Walking the chain of batches from a checkpoint to the end of the log, and telling a torn tail from damage.

use crate::error::Result;
use crate::format::SYNC_UNIT_BYTES;
use crate::format::batch::{BATCH_HEADER_BYTES, Batch, BatchHeader, BatchKind};
use crate::format::location::Location;
use crate::format::root::CheckpointRoot;
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind};
use crate::units::{Incarnation, Lsn, SegmentId};

use super::super::Store;

/// A position in the chain: what comes next must fit to it.
#[derive(Clone, Debug)]
pub(crate) struct Walk {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
    pub(crate) successor: SegmentId,
    pub(crate) chain: u64,
    pub(crate) next_lsn: Lsn,
    incarnation: Incarnation,
    ignore_chain: bool,
}

/// A batch of the chain.
pub(crate) struct WalkedBatch {
    pub(crate) segment: SegmentId,
    pub(crate) offset: u32,
    pub(crate) bytes: Vec<u8>,
}

/// What a search behind the end of the chain has found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BehindTheEnd {
    /// What a later batch calls durable.
    pub(crate) durable_lsn: Lsn,
    /// Its first operation.
    pub(crate) first_lsn: Lsn,
}

impl Walk {
    /// The position that a checkpoint names.
    pub(crate) fn from_root(root: &CheckpointRoot, ignore_chain: bool) -> Walk {
        Walk {
            segment: root.log_segment,
            offset: root.log_offset,
            successor: root.log_successor,
            chain: root.log_chain,
            next_lsn: root.lsn.next(),
            incarnation: root.log_incarnation,
            ignore_chain,
        }
    }

    /// The next batch of the chain, its payloads checked, and the position behind it; `None` at the end.
    pub(crate) fn next(&mut self, store: &Store) -> Result<Option<WalkedBatch>> {
        let unit = SYNC_UNIT_BYTES as u32;
        for offset in [self.offset, self.offset.next_multiple_of(unit)] {
            if let Some(batch) = self.batch_at(store, self.segment, offset)? {
                return Ok(Some(batch));
            }
        }
        let Some(header) = self.log_header(store, self.successor)? else { return Ok(None) };
        let successor = self.successor;
        for offset in [SEGMENT_HEADER_BYTES as u32, unit] {
            if let Some(batch) = self.batch_at(store, successor, offset)? {
                self.segment = successor;
                self.successor = header.successor;
                return Ok(Some(batch));
            }
        }
        Ok(None)
    }

    /// The header of a segment that this log has entered.
    fn log_header(&self, store: &Store, segment: SegmentId) -> Result<Option<SegmentHeader>> {
        let header = read_header(store, segment)?;
        Ok(header.filter(|header| header.incarnation == self.incarnation && header.kind == SegmentKind::Log))
    }

    fn batch_at(&mut self, store: &Store, segment: SegmentId, offset: u32) -> Result<Option<WalkedBatch>> {
        let Some(bytes) = read_batch(store, segment, offset)? else { return Ok(None) };
        let Some(batch) = Batch::decode(&bytes, true) else { return Ok(None) };
        let header = &batch.header;
        let follows = header.incarnation == self.incarnation
            && header.first_lsn == self.next_lsn
            && header.previous == self.chain;
        let fits = header.kind == BatchKind::Log
            && header.pool == store.short_id()
            && (follows || self.ignore_chain);
        if !fits {
            return Ok(None);
        }
        self.chain = batch.checksum;
        self.next_lsn = Lsn(header.first_lsn.0 + u64::from(header.operations));
        self.offset = offset + header.len;
        Ok(Some(WalkedBatch { segment, offset, bytes }))
    }

    /// Searches the rest of the segment, its successor, and as far as headers of this log lead on from there, for a
    /// batch of the same incarnation that follows what the chain ended with: what it calls durable and is not there
    /// is damage, not a torn tail. Many segments may have been written between two syncs, so the batch that says so may
    /// lie far behind. The successor is searched whatever its header says: the header may be what is damaged. Then
    /// nothing leads on from there, and where there are later batches at all, every segment that was begun later is searched.
    pub(crate) fn search_behind(&self, store: &Store) -> Result<Option<BehindTheEnd>> {
        let end_sequence = read_header(store, self.segment)?.map_or(0, |header| header.sequence);
        let mut found = self.search_segment(store, self.segment, self.offset)?;
        let mut newest_sequence = end_sequence;
        let mut next = Some(self.successor);
        while let Some(segment) = next {
            found.add(self.search_segment(store, segment, SEGMENT_HEADER_BYTES as u32)?);
            // Numbers of segments only grow along a log: it cannot lead round in a circle.
            let header = self.log_header(store, segment)?.filter(|header| header.sequence > newest_sequence);
            newest_sequence = header.as_ref().map_or(newest_sequence, |header| header.sequence);
            next = header.map(|header| header.successor);
        }
        if found.any_later && found.worst.is_none() {
            // Only after a loss of power or damage: a usual end has nothing behind it, and costs no look at every segment.
            for segment in (0..store.geometry.segments()).map(SegmentId) {
                let header = self.log_header(store, segment)?;
                if header.is_some_and(|header| header.sequence > end_sequence) {
                    found.add(self.search_segment(store, segment, SEGMENT_HEADER_BYTES as u32)?);
                }
            }
        }
        Ok(found.worst)
    }

    /// Searches a segment from an offset on; see `search_behind`.
    fn search_segment(&self, store: &Store, segment: SegmentId, from: u32) -> Result<Found> {
        let mut found = Found::default();
        if store.geometry.place(segment, 0).is_none() {
            return Ok(found);
        }
        let len = store.geometry.segment_bytes - from.min(store.geometry.segment_bytes);
        let mut bytes = vec![0u8; len as usize];
        store.read_location(Location { segment, offset: from, len: 1 }, &mut bytes)?;
        for start in (0..bytes.len()).step_by(crate::format::GRAIN_BYTES) {
            let Some((header, _)) = BatchHeader::peek(&bytes[start..]) else { continue };
            let of_this_log = header.incarnation == self.incarnation && header.pool == store.short_id();
            let later = header.first_lsn >= self.next_lsn || header.durable_lsn >= self.next_lsn;
            if !of_this_log || !later || Batch::decode(&bytes[start..], false).is_none() {
                continue;
            }
            let worst = (header.durable_lsn >= self.next_lsn)
                .then_some(BehindTheEnd { durable_lsn: header.durable_lsn, first_lsn: header.first_lsn });
            found.add(Found { any_later: true, worst });
        }
        Ok(found)
    }
}

/// What lies behind the end of a chain.
#[derive(Clone, Copy, Default)]
struct Found {
    /// Batches that do not follow what the chain ended with, and come after it.
    any_later: bool,
    /// The one of them that calls the newest operation durable which the chain does not reach.
    worst: Option<BehindTheEnd>,
}

impl Found {
    fn add(&mut self, other: Found) {
        self.any_later |= other.any_later;
        self.worst = match (self.worst, other.worst) {
            (Some(one), Some(other)) if one.durable_lsn >= other.durable_lsn => Some(one),
            (one, other) => other.or(one),
        };
    }
}

/// Reads the header of a segment; `None` where there is none that is valid.
pub(crate) fn read_header(store: &Store, segment: SegmentId) -> Result<Option<SegmentHeader>> {
    if store.geometry.place(segment, 0).is_none() {
        return Ok(None);
    }
    let mut bytes = vec![0u8; SEGMENT_HEADER_BYTES];
    store.read_location(Location { segment, offset: 0, len: 1 }, &mut bytes)?;
    Ok(SegmentHeader::decode(&bytes)
        .filter(|header| header.segment == segment && header.pool == store.short_id()))
}

fn read_batch(store: &Store, segment: SegmentId, offset: u32) -> Result<Option<Vec<u8>>> {
    let segment_bytes = store.geometry.segment_bytes;
    if store.geometry.place(segment, 0).is_none()
        || offset.saturating_add(BATCH_HEADER_BYTES as u32) > segment_bytes
    {
        return Ok(None);
    }
    let at = Location { segment, offset, len: 1 };
    let mut bytes = vec![0u8; BATCH_HEADER_BYTES];
    store.read_location(at, &mut bytes)?;
    let Some((header, _)) = BatchHeader::peek(&bytes) else { return Ok(None) };
    if header.len > segment_bytes - offset {
        return Ok(None);
    }
    bytes.resize(header.len as usize, 0);
    store.read_location(at, &mut bytes)?;
    Ok(Some(bytes))
}
