//! The page cache: all pages of tables, trees and directories that are in memory.
//!
//! A page that is changed belongs to the *generation* of the next checkpoint. Freezing raises the
//! generation; a frozen page that is changed before the checkpoint has written it is copied first, so the
//! checkpoint sees one moment and commits never wait for it. Dirty and pinned pages are never evicted.
//!
//! The memory of pages stays with the cache once it has been taken: an allocator that keeps apart what each thread
//! asks for would hold a multiple of the pages that threads hand to one another.

use rustc_hash::FxHashMap;

use crate::format::page::{PAGE_BYTES, PageFacts, PageKey};

/// The bytes of a page.
pub(crate) type Page = [u8; PAGE_BYTES];

/// A page in memory.
#[derive(Debug)]
pub(crate) struct Frame {
    key: PageKey,
    /// Its bytes.
    pub(crate) page: Box<Page>,
    /// What its header says.
    pub(crate) facts: PageFacts,
    /// Generation in which it was changed; `CLEAN` or `DIRECTORY` otherwise.
    dirty_in: u64,
    hot: bool,
    pins: u32,
    /// The attempt that looked at it last: until that ends it stays.
    touched_in: u64,
    /// Of a node: the state of sharing in which it was found to have one parent.
    pub(crate) exclusive_in: u64,
}

const CLEAN: u64 = 0;
/// Pages that memory is taken for at once.
const PAGES_TAKEN: usize = 64;
/// A directory page that the checkpoint under way has changed.
const DIRECTORY: u64 = u64::MAX;

/// The cache.
#[derive(Debug)]
pub(crate) struct Cache {
    frames: Vec<Option<Frame>>,
    vacant: Vec<usize>,
    places: FxHashMap<PageKey, usize>,
    hand: usize,
    capacity: usize,
    generation: u64,
    attempt: u64,
    dirty: Vec<PageKey>,
    frozen: FxHashMap<PageKey, (Box<Page>, PageFacts)>,
    frozen_left: usize,
    /// Memory for pages to come.
    spare: Vec<Box<Page>>,
}

/// Memory for a page, with the bytes of `page`.
fn filled(spare: &mut Vec<Box<Page>>, page: &Page) -> Box<Page> {
    if spare.is_empty() {
        spare.extend((0..PAGES_TAKEN).map(|_| Box::new([0; PAGE_BYTES])));
    }
    let mut memory = spare.pop().expect("some has just been taken");
    *memory = *page;
    memory
}

impl Cache {
    /// An empty cache of `capacity` pages, its changes belonging to `generation` (never 0).
    pub(crate) fn new(capacity: usize, generation: u64) -> Cache {
        Cache {
            frames: Vec::new(),
            vacant: Vec::new(),
            places: FxHashMap::default(),
            hand: 0,
            capacity,
            generation,
            attempt: 0,
            dirty: Vec::new(),
            frozen: FxHashMap::default(),
            frozen_left: 0,
            spare: Vec::new(),
        }
    }

    /// A new attempt under the lock begins: pages that it looks at stay in memory until the next one begins.
    pub(crate) fn begin_attempt(&mut self) {
        self.attempt += 1;
    }

    /// Whether the page is in memory, where it then stays for this attempt.
    pub(crate) fn holds(&mut self, key: PageKey) -> bool {
        self.get(key).is_some()
    }

    /// A page in memory.
    pub(crate) fn get(&mut self, key: PageKey) -> Option<&Frame> {
        let place = self.place_of(key)?;
        self.frames[place].as_ref()
    }

    /// A page in memory, for whoever only passes by: it counts as no use of it.
    pub(crate) fn peek(&self, key: PageKey) -> Option<&Page> {
        self.frames[*self.places.get(&key)?].as_ref().map(|frame| &*frame.page)
    }

    /// Whether a page has changed since it was stored, or was never stored.
    pub(crate) fn is_dirty(&self, key: PageKey) -> bool {
        let frame = self.places.get(&key).and_then(|place| self.frames[*place].as_ref());
        frame.is_some_and(|frame| frame.dirty_in != CLEAN)
    }

    /// Where a page in memory is, until the next one is brought in.
    pub(crate) fn place_of(&mut self, key: PageKey) -> Option<usize> {
        let place = *self.places.get(&key)?;
        let frame = self.frames[place].as_mut()?;
        frame.hot = true;
        frame.touched_in = self.attempt;
        Some(place)
    }

    /// The page at a place that `place_of` gave.
    ///
    /// # Panics
    /// When nothing is there.
    pub(crate) fn at(&self, place: usize) -> &Frame {
        self.frames[place].as_ref().expect("place_of gave the place of a page")
    }

    /// Remembers that a node in memory has one parent, as of a state of sharing.
    pub(crate) fn note_exclusive(&mut self, place: usize, state: u64) {
        if let Some(frame) = self.frames[place].as_mut() {
            frame.exclusive_in = state;
        }
    }

    /// A page in memory that whoever calls has made sure of.
    ///
    /// # Panics
    /// When it is not there: every change is preceded by a preparation that brings its pages in.
    pub(crate) fn page(&mut self, key: PageKey) -> &Frame {
        self.get(key).expect("prepared pages stay in memory while the lock is held")
    }

    /// A page in memory, to be changed.
    ///
    /// # Panics
    /// As `page`.
    pub(crate) fn change(&mut self, key: PageKey) -> &mut Frame {
        let place = *self.places.get(&key).expect("prepared pages stay in memory while the lock is held");
        let frame = self.frames[place].as_mut().expect("a place in the map is never vacant");
        frame.hot = true;
        frame.touched_in = self.attempt;
        if frame.dirty_in != self.generation {
            if frame.dirty_in != CLEAN {
                debug_assert!(frame.dirty_in != DIRECTORY, "only checkpoints change directories");
                self.frozen.insert(key, (filled(&mut self.spare, &frame.page), frame.facts));
            }
            frame.dirty_in = self.generation;
            self.dirty.push(key);
        }
        frame
    }

    /// Brings a page into memory; one that is there already stays as it is.
    pub(crate) fn insert(&mut self, key: PageKey, page: &Page, facts: PageFacts) {
        if self.holds(key) {
            return;
        }
        self.make_room();
        let frame = Frame {
            key,
            page: filled(&mut self.spare, page),
            facts,
            dirty_in: CLEAN,
            hot: true,
            pins: 0,
            touched_in: self.attempt,
            exclusive_in: 0,
        };
        let place = match self.vacant.pop() {
            Some(place) => {
                self.frames[place] = Some(frame);
                place
            }
            None => {
                self.frames.push(Some(frame));
                self.frames.len() - 1
            }
        };
        self.places.insert(key, place);
    }

    /// Two clean pages go for one that comes while the cache is over its capacity, so that it shrinks again.
    fn make_room(&mut self) {
        let mut evictions = match self.places.len() + self.frozen.len() {
            held if held < self.capacity => return,
            held if held == self.capacity => 1,
            _ => 2,
        };
        let mut looks = self.frames.len() * 2;
        while evictions > 0 && looks > 0 {
            looks -= 1;
            self.hand = (self.hand + 1) % self.frames.len();
            let Some(frame) = self.frames[self.hand].as_mut() else { continue };
            if frame.pins > 0 || frame.dirty_in != CLEAN || frame.touched_in == self.attempt {
                continue;
            }
            if frame.hot {
                frame.hot = false;
                continue;
            }
            let key = frame.key;
            if let Some(frame) = self.vacate(key) {
                self.spare.push(frame.page);
            }
            evictions -= 1;
        }
    }

    fn vacate(&mut self, key: PageKey) -> Option<Frame> {
        let place = self.places.remove(&key)?;
        self.vacant.push(place);
        self.frames[place].take()
    }

    /// Keeps a page in memory until `unpin`.
    pub(crate) fn pin(&mut self, key: PageKey) {
        if let Some(place) = self.places.get(&key)
            && let Some(frame) = self.frames[*place].as_mut()
        {
            frame.pins += 1;
        }
    }

    /// Undoes one `pin`; nothing for a page that was dropped meanwhile.
    pub(crate) fn unpin(&mut self, key: PageKey) {
        if let Some(place) = self.places.get(&key)
            && let Some(frame) = self.frames[*place].as_mut()
        {
            frame.pins = frame.pins.saturating_sub(1);
        }
    }

    /// Takes a page that does not exist any more out of memory; a frozen state of it stays for the checkpoint.
    pub(crate) fn drop_page(&mut self, key: PageKey) {
        let generation = self.generation;
        if let Some(frame) = self.vacate(key) {
            if frame.dirty_in == generation {
                self.dirty.retain(|dirty| *dirty != key);
            } else if frame.dirty_in != CLEAN {
                self.frozen.insert(key, (frame.page, frame.facts));
                return;
            }
            self.spare.push(frame.page);
        }
    }

    /// Pages changed and not yet stored, frozen ones included.
    pub(crate) fn dirty_pages(&self) -> usize {
        self.dirty.len() + self.frozen_left
    }

    /// Pages in memory.
    pub(crate) fn pages(&self) -> usize {
        self.places.len() + self.frozen.len()
    }

    /// Takes the picture: what is dirty now belongs to the checkpoint, in the order in which it is to be
    /// written.
    pub(crate) fn freeze(&mut self) -> Vec<PageKey> {
        assert!(self.frozen_left == 0, "one checkpoint at a time");
        self.generation += 1;
        let mut keys = std::mem::take(&mut self.dirty);
        keys.sort_unstable();
        self.frozen_left = keys.len();
        keys
    }

    /// The state of a page at the last freeze; `None` for one that has been written already.
    pub(crate) fn frozen_page(&self, key: PageKey) -> Option<(&Page, PageFacts)> {
        if let Some((page, facts)) = self.frozen.get(&key) {
            return Some((page, *facts));
        }
        let frame = self.frames[*self.places.get(&key)?].as_ref()?;
        (frame.dirty_in != CLEAN && frame.dirty_in != self.generation).then_some((&*frame.page, frame.facts))
    }

    /// The checkpoint has stored the frozen state of a page under a new version.
    pub(crate) fn stored(&mut self, key: PageKey, version: u32) {
        self.frozen_left = self.frozen_left.saturating_sub(1);
        let copy = self.frozen.remove(&key);
        let was_copied = copy.is_some();
        self.spare.extend(copy.map(|(page, _)| page));
        let generation = self.generation;
        if let Some(place) = self.places.get(&key)
            && let Some(frame) = self.frames[*place].as_mut()
        {
            // A page that was dropped and made anew meanwhile counts its versions from its own start; only
            // the pointer's version matters to a reader, and the next checkpoint takes it from there.
            frame.facts.version = version;
            if !was_copied && frame.dirty_in != generation {
                frame.dirty_in = CLEAN;
            }
        }
    }

    /// A directory page, to be changed by the checkpoint under way; whether this is its first change.
    ///
    /// # Panics
    /// As `page`.
    pub(crate) fn change_directory(&mut self, key: PageKey) -> (&mut Page, bool) {
        let place = *self.places.get(&key).expect("the checkpoint has brought the directory page in");
        let frame = self.frames[place].as_mut().expect("a place in the map is never vacant");
        let first = frame.dirty_in != DIRECTORY;
        frame.dirty_in = DIRECTORY;
        (&mut frame.page, first)
    }

    /// The checkpoint has stored a directory page.
    pub(crate) fn directory_stored(&mut self, key: PageKey, version: u32) {
        if let Some(place) = self.places.get(&key)
            && let Some(frame) = self.frames[*place].as_mut()
        {
            frame.dirty_in = CLEAN;
            frame.facts.version = version;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::page::Table;

    fn key(number: u64) -> PageKey {
        PageKey::leaf(Table::Blocks, number)
    }

    fn insert(cache: &mut Cache, number: u64) {
        cache.insert(key(number), &[number as u8; PAGE_BYTES], PageFacts::default());
    }

    #[test]
    fn clean_pages_give_way_and_dirty_and_pinned_ones_do_not() {
        let mut cache = Cache::new(8, 1);
        for number in 0..4 {
            insert(&mut cache, number);
        }
        cache.change(key(0)).page[0] = 99;
        cache.pin(key(1));
        for number in 4..100 {
            cache.begin_attempt();
            insert(&mut cache, number);
        }
        assert!(cache.pages() <= 8 && cache.holds(key(0)) && cache.holds(key(1)));
        assert!(!cache.holds(key(2)));
    }

    #[test]
    fn frozen_page_shows_the_moment_of_the_freeze() {
        let mut cache = Cache::new(8, 1);
        insert(&mut cache, 3);
        cache.change(key(3)).page[0] = 10;
        assert_eq!(cache.freeze(), vec![key(3)]);
        cache.change(key(3)).page[0] = 11;
        assert_eq!(cache.frozen_page(key(3)).unwrap().0[0], 10);
        assert_eq!(cache.dirty_pages(), 2);
        cache.stored(key(3), 1);
        assert_eq!(cache.dirty_pages(), 1);
        assert_eq!(cache.page(key(3)).page[0], 11);
        assert_eq!(cache.freeze(), vec![key(3)]);
        cache.drop_page(key(3));
        assert_eq!(cache.frozen_page(key(3)).unwrap().0[0], 11);
    }
}
