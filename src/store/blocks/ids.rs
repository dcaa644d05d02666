//! Giving out ids of blocks and nodes.
//!
//! Ids that were freed are bits in a paged array; ids at and above the high-water mark were never given out. A
//! *run* of freed ids from one page is kept at hand, its page pinned; where freed ids are few, new ones are
//! taken instead, so that a commit never searches. An id that was freed is in *quarantine* until the
//! checkpoint that freed it is durable.

use std::collections::{BTreeSet, VecDeque};

use roaring::RoaringTreemap;

use crate::format::bytes::{get_u64, set_u64};
use crate::format::page::{BLOCK_ENTRIES_PER_PAGE, FREED_BITS_PER_PAGE, PageKey, Table};

use super::super::core::{Core, Stall};

/// Which ids: each space has its own table of bits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Space {
    /// Ids of blocks.
    Blocks,
    /// Ids of map nodes.
    Nodes,
}

/// Pages looked at for one refill of the run.
const LOOKS: u64 = 4;
/// Fewest freed ids of a page that is worth taking, unless it has more than the average.
const RUN_MIN: u64 = 64;
const WORD_BITS: u64 = 64;

/// One space of ids.
#[derive(Debug)]
pub(crate) struct IdSpace {
    table: Table,
    /// Every id below was given out once.
    pub(crate) high_water: u64,
    /// Ids below the mark that are free.
    pub(crate) freed: u64,
    run: VecDeque<u64>,
    run_page: Option<PageKey>,
    cursor: u64,
    /// Pages of what the ids stand for that cannot be read: no id of theirs is given out.
    passed_over: BTreeSet<u64>,
    freed_lately: RoaringTreemap,
    freed_in_picture: RoaringTreemap,
    /// Test switch: gives freed ids out at once.
    pub(crate) no_quarantine: bool,
}

fn bit_page(table: Table, id: u64) -> (PageKey, usize, u64) {
    let bit = id % FREED_BITS_PER_PAGE;
    let word = usize::try_from(bit / WORD_BITS).expect("below 512") + 1;
    (PageKey::leaf(table, id / FREED_BITS_PER_PAGE), word, 1 << (bit % WORD_BITS))
}

impl IdSpace {
    /// A space whose ids below `high_water` were given out, `freed` of which are free.
    pub(crate) fn new(table: Table, high_water: u64, freed: u64) -> IdSpace {
        IdSpace {
            table,
            high_water,
            freed,
            run: VecDeque::new(),
            run_page: None,
            cursor: 0,
            passed_over: BTreeSet::new(),
            freed_lately: RoaringTreemap::new(),
            freed_in_picture: RoaringTreemap::new(),
            no_quarantine: false,
        }
    }

    fn quarantined(&self) -> u64 {
        self.freed_lately.len() + self.freed_in_picture.len()
    }

    fn in_quarantine(&self, id: u64) -> bool {
        !self.no_quarantine && (self.freed_lately.contains(id) || self.freed_in_picture.contains(id))
    }

    /// The ids that the next `count` takes will give.
    pub(crate) fn upcoming(&self, count: usize) -> impl Iterator<Item = u64> + use<> {
        let run: Vec<u64> = self.run.iter().copied().take(count).collect();
        let fresh = self.high_water..self.high_water + (count - run.len()) as u64;
        run.into_iter().chain(fresh)
    }

    fn is_passed_over(&self, id: u64) -> bool {
        self.passed_over.contains(&(id / BLOCK_ENTRIES_PER_PAGE))
    }

    /// Gives out no id of a page of the block table any more, until the pool is opened again. Those that were never given
    /// out are lost to it until a repair.
    pub(crate) fn pass_over(&mut self, page: u64) {
        self.passed_over.insert(page);
        let ids = page * BLOCK_ENTRIES_PER_PAGE..(page + 1) * BLOCK_ENTRIES_PER_PAGE;
        self.run.retain(|id| !ids.contains(id));
        if ids.contains(&self.high_water) {
            self.high_water = ids.end;
        }
    }

    /// The picture has been taken: what was freed up to now becomes free for good with this checkpoint.
    pub(crate) fn freeze(&mut self) {
        self.freed_in_picture |= std::mem::take(&mut self.freed_lately);
    }

    /// The checkpoint is durable.
    pub(crate) fn thaw(&mut self) {
        self.freed_in_picture.clear();
    }
}

impl Core {
    fn space(&mut self, space: Space) -> &mut IdSpace {
        match space {
            Space::Blocks => &mut self.block_ids,
            Space::Nodes => &mut self.node_ids,
        }
    }

    /// Makes sure that `count` ids can be taken without any further look.
    ///
    /// # Errors
    /// A stall while a page of bits is not in memory.
    pub(crate) fn prepare_ids(&mut self, which: Space, count: usize) -> Result<(), Stall> {
        let space = self.space(which);
        if space.run.len() >= count {
            return Ok(());
        }
        let worthwhile = if space.no_quarantine { 1 } else { RUN_MIN };
        let free = space.freed.saturating_sub(space.quarantined() + space.run.len() as u64);
        if free < worthwhile || !space.run.is_empty() {
            return Ok(());
        }
        let (table, pages) = (space.table, space.high_water.div_ceil(FREED_BITS_PER_PAGE));
        let average = space.freed / pages.max(1);
        for _ in 0..LOOKS.min(pages) {
            let number = self.space(which).cursor % pages;
            let key = PageKey::leaf(table, number);
            self.bring_in(key)?;
            let here = get_u64(&*self.cache.page(key).page, 0);
            self.space(which).cursor = number + 1;
            if here > 0 && here >= worthwhile.min(average) {
                self.take_run(which, key);
                if !self.space(which).run.is_empty() {
                    break;
                }
            }
        }
        Ok(())
    }

    fn take_run(&mut self, which: Space, key: PageKey) {
        let mut ids = Vec::new();
        let page = &self.cache.page(key).page;
        for word in 1..512usize {
            let mut bits = get_u64(&**page, word);
            while bits != 0 {
                let bit = u64::from(bits.trailing_zeros());
                ids.push(key.number * FREED_BITS_PER_PAGE + (word as u64 - 1) * WORD_BITS + bit);
                bits &= bits - 1;
            }
        }
        let space = self.space(which);
        ids.retain(|id| !space.in_quarantine(*id) && !space.is_passed_over(*id));
        space.run = ids.into();
        let before = space.run_page.replace(key);
        self.cache.pin(key);
        if let Some(before) = before {
            self.cache.unpin(before);
        }
    }

    /// Takes an id, after `prepare_ids` has made sure of it.
    pub(crate) fn take_id(&mut self, which: Space) -> u64 {
        let space = self.space(which);
        if let Some(id) = space.run.pop_front() {
            space.freed -= 1;
            let (key, word, mask) = bit_page(space.table, id);
            self.flip_bit(key, word, mask);
            return id;
        }
        let id = space.high_water;
        space.high_water += 1;
        id
    }

    fn flip_bit(&mut self, key: PageKey, word: usize, mask: u64) {
        let page = &mut self.cache.change(key).page;
        let bits = get_u64(&**page, word) ^ mask;
        let count = get_u64(&**page, 0);
        set_u64(&mut **page, word, bits);
        set_u64(&mut **page, 0, if bits & mask != 0 { count + 1 } else { count - 1 });
    }

    /// Brings in what `free_id` and `mark_id_used` change.
    ///
    /// # Errors
    /// A stall while the page of bits is not in memory.
    pub(crate) fn prepare_id_bit(&mut self, which: Space, id: u64) -> Result<(), Stall> {
        let (key, _, _) = bit_page(self.space(which).table, id);
        self.bring_in(key)
    }

    /// Whether an id is free, its page being in memory.
    pub(crate) fn id_is_free(&mut self, which: Space, id: u64) -> bool {
        let (key, word, mask) = bit_page(self.space(which).table, id);
        id >= self.space(which).high_water || get_u64(&*self.cache.page(key).page, word) & mask != 0
    }

    /// Frees an id; it is given out again once the checkpoint that has this in its picture is durable.
    pub(crate) fn free_id(&mut self, which: Space, id: u64) {
        if self.id_is_free(which, id) {
            return;
        }
        let space = self.space(which);
        space.freed += 1;
        space.freed_lately.insert(id);
        let (key, word, mask) = bit_page(space.table, id);
        self.flip_bit(key, word, mask);
    }

    /// Repair: says whether an id is free, whatever its page (which is in memory) said. The numbers of free ids
    /// must be made anew afterwards.
    pub(crate) fn correct_id(&mut self, which: Space, id: u64, free: bool) {
        let (key, word, mask) = bit_page(self.space(which).table, id);
        let bits = get_u64(&*self.cache.page(key).page, word);
        if (bits & mask != 0) != free {
            set_u64(&mut *self.cache.change(key).page, word, bits ^ mask);
            if free {
                self.space(which).freed_lately.insert(id);
            }
        }
    }

    /// Repair: how many pages of freed ids there are.
    pub(crate) fn freed_pages(&mut self, which: Space) -> u64 {
        self.space(which).high_water.div_ceil(FREED_BITS_PER_PAGE)
    }

    /// Repair: makes the number of free ids of a page anew, and returns it. Ids that were never given out are not
    /// marked.
    ///
    /// # Errors
    /// A stall while the page is not in memory.
    pub(crate) fn recount_freed_page(&mut self, which: Space, number: u64) -> Result<u64, Stall> {
        let space = self.space(which);
        let (key, high_water) = (PageKey::leaf(space.table, number), space.high_water);
        self.bring_in(key)?;
        let mut page = self.cache.page(key).page.clone();
        let mut freed = 0;
        for word in 1..512usize {
            let first = number * FREED_BITS_PER_PAGE + (word as u64 - 1) * WORD_BITS;
            let given_out = match high_water.saturating_sub(first) {
                known @ 0..WORD_BITS => (1 << known) - 1,
                _ => u64::MAX,
            };
            let bits = get_u64(&*page, word) & given_out;
            set_u64(&mut *page, word, bits);
            freed += u64::from(bits.count_ones());
        }
        set_u64(&mut *page, 0, freed);
        if page != self.cache.page(key).page {
            self.cache.change(key).page = page;
        }
        Ok(freed)
    }

    /// Repair: says how many ids are free.
    pub(crate) fn set_freed(&mut self, which: Space, freed: u64) {
        self.space(which).freed = freed;
    }

    /// Replay: the log says that this id was given out.
    pub(crate) fn mark_id_used(&mut self, which: Space, id: u64) {
        if id >= self.space(which).high_water {
            self.space(which).high_water = id + 1;
        } else if self.id_is_free(which, id) {
            let space = self.space(which);
            space.freed -= 1;
            space.run.retain(|at_hand| *at_hand != id);
            let (key, word, mask) = bit_page(space.table, id);
            self.flip_bit(key, word, mask);
        }
    }
}
