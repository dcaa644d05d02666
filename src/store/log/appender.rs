//! An open segment that collection or a checkpoint appends to. Whoever appends holds the maintenance role, so
//! there is one at a time.

use crate::format::SYNC_UNIT_BYTES;
use crate::format::page::{PAGE_HEADER_BYTES, encode_padding};
use crate::format::segment::{SEGMENT_HEADER_BYTES, SegmentKind};
use crate::units::SegmentId;

use super::super::core::{Core, Stall};

/// An open segment and what is to be written to it.
#[derive(Debug)]
pub(crate) struct Appender {
    kind: SegmentKind,
    segment: Option<SegmentId>,
    /// Where the next thing goes.
    tail: u32,
    /// What the segment's chain of batches ends with; for moved blocks only.
    pub(crate) chain: u64,
    /// Bytes that wait to be written, and where.
    waiting: Vec<(SegmentId, u32, Vec<u8>)>,
}

impl Appender {
    /// Without a segment yet.
    pub(crate) fn new(kind: SegmentKind) -> Appender {
        Appender { kind, segment: None, tail: 0, chain: 0, waiting: Vec::new() }
    }

    /// Takes what is to be written: segment, offset, bytes.
    pub(crate) fn take_waiting(&mut self) -> Vec<(SegmentId, u32, Vec<u8>)> {
        std::mem::take(&mut self.waiting)
    }

    /// Room left in the open segment.
    pub(crate) fn room(&self, segment_bytes: u32) -> usize {
        self.segment.map_or(0, |_| (segment_bytes - self.tail) as usize)
    }

    fn put(&mut self, segment: SegmentId, bytes: &[u8]) -> u32 {
        let offset = self.tail;
        match self.waiting.last_mut() {
            Some((last, start, waiting)) if *last == segment && *start + waiting.len() as u32 == offset => {
                waiting.extend_from_slice(bytes);
            }
            _ => self.waiting.push((segment, offset, bytes.to_vec())),
        }
        let padded = crate::format::to_grain(bytes.len());
        if let Some((_, _, waiting)) = self.waiting.last_mut() {
            waiting.resize(waiting.len() + padded - bytes.len(), 0);
        }
        self.tail += u32::try_from(padded).expect("within a segment");
        offset
    }
}

/// Which of the appenders.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// Blocks moved out of log segments.
    Moved,
    /// Blocks moved again, and long-lived ones that make room for wear.
    Cold,
    /// Pages and roots.
    Metadata,
    /// Their second copies.
    MetadataCopy,
}

impl Core {
    /// One of the appenders.
    pub(crate) fn appender(&mut self, stream: Stream) -> &mut Appender {
        match stream {
            Stream::Moved => &mut self.moved,
            Stream::Cold => &mut self.cold,
            Stream::Metadata => &mut self.metadata,
            Stream::MetadataCopy => &mut self.metadata_copy,
        }
    }

    /// Makes sure that `len` bytes fit behind one another into a stream's open segment, taking the next one
    /// where they do not.
    ///
    /// # Errors
    /// A stall while none can be had with `keep` left.
    pub(crate) fn prepare_append(&mut self, stream: Stream, len: usize, keep: usize) -> Result<(), Stall> {
        let segment_bytes = self.geometry.segment_bytes;
        // What is left behind may need a header of padding.
        if self.appender(stream).room(segment_bytes) >= len + PAGE_HEADER_BYTES {
            return Ok(());
        }
        // Metadata goes round in a few segments: they rest only where data that lies for long takes them.
        let rest = stream == Stream::Cold && (self.levelling || self.segments.free_have_drifted());
        self.prepare_segment(keep, rest)?;
        self.end_append_segment(stream);
        let kind = self.appender(stream).kind;
        let segment = self.take_segment(kind, rest);
        let header = self.segment_header(segment, segment);
        let chain = crate::format::checksum(&header);
        let appender = self.appender(stream);
        appender.segment = Some(segment);
        appender.tail = 0;
        appender.chain = chain;
        appender.put(segment, &header);
        assert_eq!(appender.tail as usize, SEGMENT_HEADER_BYTES);
        Ok(())
    }

    /// Appends bytes that `prepare_append` has made sure of; where they go.
    pub(crate) fn append(&mut self, stream: Stream, bytes: &[u8]) -> (SegmentId, u32) {
        let appender = self.appender(stream);
        let segment = appender.segment.expect("prepare_append has opened one");
        (segment, appender.put(segment, bytes))
    }

    /// Bytes that fit behind one another into a stream's open segment.
    pub(crate) fn append_room(&mut self, stream: Stream) -> usize {
        let segment_bytes = self.geometry.segment_bytes;
        self.appender(stream).room(segment_bytes).saturating_sub(PAGE_HEADER_BYTES)
    }

    /// What comes next begins at a fresh 4 KiB, because a sync will cover what is there; in metadata segments
    /// the gap is filled with padding that says how long it is.
    pub(crate) fn align_append(&mut self, stream: Stream) {
        let (segment_bytes, pool) = (self.geometry.segment_bytes, self.pool_short);
        let appender = self.appender(stream);
        let Some(segment) = appender.segment else { return };
        let unit = SYNC_UNIT_BYTES as u32;
        let mut gap = (appender.tail.next_multiple_of(unit) - appender.tail) as usize;
        if gap == 0 {
            return;
        }
        if matches!(stream, Stream::Moved | Stream::Cold) {
            appender.tail += u32::try_from(gap).expect("below 4096");
            return;
        }
        if gap < PAGE_HEADER_BYTES {
            gap += SYNC_UNIT_BYTES;
        }
        if appender.tail as usize + gap > segment_bytes as usize {
            self.end_append_segment(stream);
        } else {
            let padding = encode_padding(gap, pool);
            appender.put(segment, &padding);
        }
    }

    /// Nothing is added to the stream's open segment any more.
    pub(crate) fn end_append_segment(&mut self, stream: Stream) {
        if let Some(segment) = self.appender(stream).segment.take() {
            self.segments.close(segment);
        }
    }
}
