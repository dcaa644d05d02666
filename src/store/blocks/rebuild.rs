//! Filling the fingerprint index after an opening, from the block table, in the background.
//!
//! A cursor goes over the pages of the table from the newest ids to the oldest, a bounded number a step, and reads
//! stored pages past the cache, so that nothing is evicted for it. What it finds are hints like any other: a page
//! that changes meanwhile, or cannot be read, costs reduction and nothing else. It changes no page, and never
//! displaces a hint: what has been written since the opening is worth more than what was there before.

use crate::format::page::{
    BLOCK_ENTRIES_PER_PAGE, BlockEntry, PAGE_BYTES, PageKey, PagePointer, Table, decode_page,
};
use crate::units::BlockId;

use super::super::Store;
use super::super::run::Caller;
use super::index::Offered;

/// Pages of the block table that one step looks at.
const PAGES_PER_STEP: u64 = 64;
/// From this many hints without a place on, a step says something about the whole index.
const REFUSED_MIN: u64 = 1024;
/// The index counts as full where fewer than one hint in this many finds a place.
const PLACED_ONE_IN: u64 = 64;

/// How far the rebuilding has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Rebuild {
    /// Pages of the block table that nobody has begun to look at: all with a number below this.
    pub(crate) pages_left: u64,
}

impl Rebuild {
    /// Everything is still to be looked at, of a table whose ids go up to `next`.
    pub(crate) fn of_table(next: BlockId) -> Rebuild {
        Rebuild { pages_left: next.0.div_ceil(BLOCK_ENTRIES_PER_PAGE) }
    }

    /// The pages that the next step looks at: the first, and the one behind the last.
    fn claim(&mut self) -> (u64, u64) {
        let end = self.pages_left;
        self.pages_left = end.saturating_sub(PAGES_PER_STEP);
        (self.pages_left, end)
    }
}

/// Where the entries of one page are to be had.
enum PageSource {
    /// There is none.
    Absent,
    /// They were in the cache.
    Cached(Box<[u8; PAGE_BYTES]>),
    /// On a device.
    Stored(PagePointer),
}

/// How the hints of one step went.
#[derive(Default)]
struct Tally {
    placed: u64,
    refused: u64,
}

impl Store {
    /// Looks at the next few pages of the block table that no other thread looks at; whether more are left. It goes
    /// on at once also while operations are committed: a million blocks take about half a second, and what is
    /// written before they are known is stored twice. It needs no maintenance role, so that threads of their own may
    /// call it while a checkpoint is under way.
    pub fn rebuild_index_step(&self) -> bool {
        let (start, end) = self.core.lock().rebuild.claim();
        let mut tally = Tally::default();
        for number in (start..end).rev() {
            self.offer_page(number, &mut tally);
        }
        let full = tally.refused >= REFUSED_MIN && tally.placed * PLACED_ONE_IN < tally.refused;
        let mut core = self.core.lock();
        if full {
            core.rebuild.pages_left = 0;
        }
        core.rebuild.pages_left > 0
    }

    fn offer_page(&self, number: u64, tally: &mut Tally) {
        let key = PageKey::leaf(Table::Blocks, number);
        let source = self.run(Caller::Maintenance, |core| {
            if let Some(page) = core.cache.peek(key) {
                return Ok(PageSource::Cached(Box::new(*page)));
            }
            let pointer = core.pointer(key)?;
            Ok(if pointer.is_none() { PageSource::Absent } else { PageSource::Stored(pointer) })
        });
        // A damaged page is for reads and checks to report.
        let page = match source {
            Ok(PageSource::Cached(page)) => Some(page),
            Ok(PageSource::Stored(pointer)) => self.read_past_cache(key, &pointer),
            Ok(PageSource::Absent) | Err(_) => None,
        };
        let Some(page) = page else { return };
        let first = number * BLOCK_ENTRIES_PER_PAGE;
        for block in (first..first + BLOCK_ENTRIES_PER_PAGE).rev().map(BlockId) {
            let entry = BlockEntry::at(&page, block);
            if entry.location.is_none() || entry.crowded {
                continue;
            }
            match self.index.offer(&entry.fingerprint, block) {
                Offered::Placed => tally.placed += 1,
                Offered::NoRoom => tally.refused += 1,
                Offered::Known => {}
            }
        }
    }

    /// Reads a page as it was stored, without keeping it; `None` where it is damaged or has moved meanwhile.
    pub(crate) fn read_past_cache(
        &self,
        key: PageKey,
        pointer: &PagePointer,
    ) -> Option<Box<[u8; PAGE_BYTES]>> {
        let mut stored = vec![0u8; usize::from(pointer.location.len)];
        self.read_location(pointer.location, &mut stored).ok()?;
        decode_page(&stored, key, pointer, self.short_id()).map(|(_, page)| page)
    }
}
