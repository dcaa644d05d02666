//! Which parts of a simulated disk have room on its host.

use crate::units::BLOCK_BYTES;

const PAGE_BYTES: u64 = BLOCK_BYTES as u64;

/// The 4 KiB pages that the host has set aside, a bit each.
#[derive(Clone, Debug)]
pub(super) struct Room {
    words: Vec<u64>,
    pages: u64,
}

impl Room {
    /// No room yet, for a disk of `len` bytes.
    pub(super) fn none(len: u64) -> Room {
        let words = usize::try_from(len.div_ceil(PAGE_BYTES * 64)).expect("a simulated disk fits in memory");
        Room { words: vec![0; words], pages: 0 }
    }

    /// Pages set aside.
    pub(super) fn pages(&self) -> u64 {
        self.pages
    }

    /// Sets aside every page that the range touches.
    pub(super) fn take(&mut self, offset: u64, len: u64) {
        for page in touched(offset, len) {
            let (word, bit) = place(page);
            self.pages += u64::from(self.words[word] & bit == 0);
            self.words[word] |= bit;
        }
    }

    /// Gives back every page that lies wholly in the range.
    pub(super) fn release(&mut self, offset: u64, len: u64) {
        for page in offset.div_ceil(PAGE_BYTES)..(offset + len) / PAGE_BYTES {
            let (word, bit) = place(page);
            self.pages -= u64::from(self.words[word] & bit != 0);
            self.words[word] &= !bit;
        }
    }

    /// How many pages `take` would newly set aside.
    pub(super) fn missing(&self, offset: u64, len: u64) -> u64 {
        let missing = |page: &u64| {
            let (word, bit) = place(*page);
            self.words[word] & bit == 0
        };
        touched(offset, len).filter(missing).count() as u64
    }
}

fn touched(offset: u64, len: u64) -> std::ops::Range<u64> {
    if len == 0 { 0..0 } else { offset / PAGE_BYTES..(offset + len).div_ceil(PAGE_BYTES) }
}

fn place(page: u64) -> (usize, u64) {
    (usize::try_from(page / 64).expect("the bit map fits in memory"), 1 << (page % 64))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn takes_what_is_touched_and_releases_what_is_covered() {
        let mut room = Room::none(1 << 20);
        room.take(4095, 2);
        assert_eq!((room.pages(), room.missing(0, 12_288)), (2, 1));
        room.take(0, 8192);
        assert_eq!(room.pages(), 2);
        room.release(1, 8191);
        assert_eq!((room.pages(), room.missing(0, 4096), room.missing(4096, 1)), (1, 0, 1));
        room.release(100, 100);
        room.take(5000, 0);
        assert_eq!(room.pages(), 1);
        room.take(0, 1 << 20);
        assert_eq!((room.pages(), room.missing(0, 1 << 20)), (256, 0));
    }
}
