//! Repair of the tables: every page is read, what is live in each segment is counted from the pointers, and a page
//! that cannot be read becomes an empty one, to be filled by the recounts. Runs before anything is written.

use crate::error::{Error, ErrorKind, Result};
use crate::format::location::Location;
use crate::format::page::{
    BLOCK_ENTRIES_PER_PAGE, BlockEntry, PAGE_BYTES, PAGE_HEADER_BYTES, POINTERS_PER_PAGE, PageFacts, PageKey,
    PagePointer, Table, decode_page,
};
use crate::format::segment::SegmentKind;
use crate::format::to_grain;
use crate::units::{BlockId, SegmentId};

use super::super::super::recovery::read_header;
use super::super::super::run::Caller;
use super::{Moment, Repair};

/// What the pointers say.
struct Counted {
    /// Bytes live in each segment.
    live: Vec<u64>,
    blocks: u64,
    stored_bytes: u64,
    /// Pages of tables that are held whole in memory, and that could not be read.
    resident: Vec<PageKey>,
    blanked: usize,
}

impl Repair<'_> {
    /// Mends the tables as the checkpoint has them, and brings the segments and objects into memory.
    pub(super) fn tables(&mut self) -> Result<()> {
        let (roots, segments, extents) = {
            let core = self.store.core.lock();
            (core.roots, core.segments.count(), core.root_extents.clone())
        };
        let mut counted = Counted {
            live: vec![0; segments as usize],
            blocks: 0,
            stored_bytes: 0,
            resident: Vec::new(),
            blanked: 0,
        };
        for extent in extents {
            let bytes = to_grain(PAGE_HEADER_BYTES + extent.len as usize);
            if let Some(live) = counted.live.get_mut(extent.start.segment.0 as usize) {
                *live += bytes as u64;
            }
        }
        for table in Table::ALL {
            let root = roots[table.index()];
            let key = PageKey { level: root.height, table, number: 0 };
            self.table_below(key, root.pointer, &mut counted)?;
        }
        self.restore_resident(&counted)?;
        self.set_live(&counted)
    }

    fn table_below(&mut self, key: PageKey, pointer: PagePointer, counted: &mut Counted) -> Result<()> {
        if pointer.is_none() {
            return Ok(());
        }
        for location in [pointer.location, pointer.copy] {
            if !location.is_none() {
                counted.add(location, self.store.geometry.segment_bytes).ok_or_else(|| {
                    let what =
                        format!("page {} of table {:?} lies outside of the pool", key.number, key.table);
                    Error::new(ErrorKind::Corrupt, what)
                })?;
            }
        }
        let node = key.level == 0 && key.table == Table::Nodes;
        if node && pointer.copy.is_none() {
            // A leaf of a map is read when the maps are.
            return Ok(());
        }
        let (first, second) = (self.copy_of(key, &pointer, pointer.location)?, {
            if pointer.copy.is_none() { None } else { self.copy_of(key, &pointer, pointer.copy)? }
        });
        if !pointer.copy.is_none() && first.is_some() != second.is_some() {
            self.half_damaged.push(key);
        }
        let Some(page) = first.or(second) else {
            // An empty map node would invent zeros: what cannot be read there is lost with the maps.
            return if node { Ok(()) } else { self.blank(key, &pointer, counted) };
        };
        if key.level > 0 {
            for slot in 0..POINTERS_PER_PAGE {
                let below =
                    PageKey { level: key.level - 1, number: key.number * POINTERS_PER_PAGE + slot, ..key };
                let pointer = PagePointer::at(&page, usize::try_from(slot).expect("below 128"));
                self.table_below(below, pointer, counted)?;
            }
        } else if key.table == Table::Blocks {
            self.block_entries(key, &page, counted)?;
        }
        Ok(())
    }

    fn copy_of(
        &self,
        key: PageKey,
        pointer: &PagePointer,
        location: Location,
    ) -> Result<Option<Box<[u8; PAGE_BYTES]>>> {
        let mut stored = vec![0u8; usize::from(location.len)];
        self.store.read_location(location, &mut stored)?;
        Ok(decode_page(&stored, key, pointer, self.store.short_id()).map(|(_, page)| page))
    }

    /// Puts an empty page in the place of one that cannot be read.
    fn blank(&mut self, key: PageKey, pointer: &PagePointer, counted: &mut Counted) -> Result<()> {
        let mut core = self.store.core.lock();
        counted.blanked += 1;
        if counted.blanked > core.geometry.dirty_limit {
            let what = "more pages are damaged than memory can hold: give more of it for metadata";
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        let facts = PageFacts { version: pointer.version, ..PageFacts::default() };
        core.cache.begin_attempt();
        // Until they are counted anew, counts count as full: nothing is freed for want of a count.
        let byte = match key.table {
            Table::BlockCounts | Table::NodeCounts if key.level == 0 => 0xff,
            _ => 0,
        };
        core.cache.insert(key, &[byte; PAGE_BYTES], facts);
        core.cache.pin(key);
        match key.table {
            _ if key.level > 0 => {
                // The next checkpoint writes a directory page when something below it has changed.
                let number = key.number * POINTERS_PER_PAGE.pow(u32::from(key.level));
                core.dropped.push(PageKey::leaf(key.table, number));
            }
            Table::Objects | Table::Segments => counted.resident.push(key),
            _ => {
                core.cache.change(key);
            }
        }
        drop(core);
        let what = if key.level > 0 { "with all pages below it, " } else { "" };
        self.note(format!(
            "page {} of table {:?} (level {}), {what}could not be read and is empty now",
            key.number, key.table, key.level
        ));
        Ok(())
    }

    /// Counts the blocks of a page of the block table; an entry that makes no sense goes.
    fn block_entries(&mut self, key: PageKey, page: &[u8; PAGE_BYTES], counted: &mut Counted) -> Result<()> {
        let first = key.number * BLOCK_ENTRIES_PER_PAGE;
        for block in (first..first + BLOCK_ENTRIES_PER_PAGE).map(BlockId) {
            let location = BlockEntry::at(page, block).location;
            if location.is_none() {
                continue;
            }
            if counted.add(location, self.store.geometry.segment_bytes).is_some() {
                counted.blocks += 1;
                counted.stored_bytes += u64::from(location.len);
                continue;
            }
            self.store.run(Caller::Maintenance, |core| {
                core.bring_in(key)?;
                BlockEntry::default().put(&mut core.cache.change(key).page, block);
                Ok(())
            })?;
            self.note(format!("block {block} lay outside of the pool"));
        }
        Ok(())
    }

    fn restore_resident(&mut self, counted: &Counted) -> Result<()> {
        let Moment::BeforeReplay(root) = self.moment else { return Ok(()) };
        self.store.restore_segments(root, true)?;
        for slot in self.store.restore_objects(true)? {
            self.note(format!("the volume or snapshot in slot {slot} made no sense and is gone"));
            self.store.core.lock().objects.touch_slot(slot);
        }
        let mut core = self.store.core.lock();
        for key in &counted.resident {
            match key.table {
                Table::Objects => core.objects.touch_slot(key.number),
                _ => core.segments.touch_page(key.number),
            }
        }
        Ok(())
    }

    /// Enters what was counted.
    fn set_live(&mut self, counted: &Counted) -> Result<()> {
        for (segment, found) in (0..).map(SegmentId).zip(&counted.live) {
            let entry = *self.store.core.lock().segments.entry(segment);
            if u64::from(entry.live_bytes) != *found {
                self.note(format!(
                    "segment {segment} counted {} live bytes and has {found}",
                    entry.live_bytes
                ));
                let found = u32::try_from(*found).unwrap_or(u32::MAX);
                self.store.core.lock().segments.set_live(segment, found);
            }
            if *found > 0 && entry.kind == SegmentKind::Free {
                let header = read_header(self.store, segment)?;
                self.store.core.lock().segments.identify(segment, header.as_ref());
            }
        }
        let mut core = self.store.core.lock();
        let before = core.counters.unique_blocks;
        core.counters.unique_blocks = counted.blocks;
        core.counters.stored_bytes = counted.stored_bytes;
        drop(core);
        if before != counted.blocks {
            self.note(format!("the pool counted {before} blocks and has {}", counted.blocks));
        }
        Ok(())
    }
}

impl Counted {
    /// Counts what lies at a place; `None` for one outside of the pool.
    fn add(&mut self, location: Location, segment_bytes: u32) -> Option<()> {
        let live = self.live.get_mut(location.segment.0 as usize)?;
        if u64::from(location.offset) + u64::from(location.occupied_bytes()) > u64::from(segment_bytes) {
            return None;
        }
        *live += u64::from(location.occupied_bytes());
        Some(())
    }
}
