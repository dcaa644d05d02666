//! Threads that have nothing else to do, and pack blocks for those who reduce a write.
//!
//! Requests that come together are taken and entered by one thread, and packing their blocks is half of what they cost:
//! the work that another processor can take over. A helper is handed copies, since the blocks lie where a request
//! was received; copying a block costs a twentieth of packing it. Nobody depends on a helper: what it has not
//! begun is taken back, and what it does not finish is done again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::sync::{Clock, Condition, Mutex};
use crate::units::BLOCK_BYTES;

use super::Store;
use super::reduce::{PackedBlock, pack};

/// Fewest blocks of which some are offered, and the least that packing one takes, in nanoseconds: below, waking
/// somebody costs more than it saves.
const SHARED_MIN: usize = 4;
const WORTHWHILE_NANOSECONDS: u64 = 4500;
/// Longest time for a block that is believed: a thread that was not running takes any.
const BELIEVED_NANOSECONDS: u64 = 20_000;
/// Most blocks that are copied for helpers at once.
pub(crate) const SHARED_MAX: usize = 32;
/// How often one gives way to a helper that is at a block, before doing without it.
const PATIENCE: usize = 64;

/// The threads that wait for something to help with, and what there is.
#[derive(Debug, Default)]
pub(crate) struct Helpers {
    offers: Mutex<Vec<Arc<Offer>>>,
    offered: Condition,
    /// Threads that wait.
    idle: AtomicUsize,
    dismissed: AtomicBool,
    /// Threads that pack what they are writing.
    packing: AtomicUsize,
    /// What packing a block took lately, in nanoseconds.
    block_nanoseconds: AtomicU64,
}

/// While it is not dropped, a thread packs what it is writing.
pub(crate) struct TakingPart<'a>(&'a Helpers);

impl Drop for TakingPart<'_> {
    fn drop(&mut self) {
        self.0.packing.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Blocks to be packed, and what has been made of them.
#[derive(Debug)]
pub(crate) struct Offer {
    blocks: Vec<u8>,
    /// The first block that nobody has begun.
    next: AtomicUsize,
    packed: Vec<Mutex<Option<PackedBlock>>>,
}

impl Offer {
    fn block(&self, number: usize) -> &[u8] {
        &self.blocks[number * BLOCK_BYTES..][..BLOCK_BYTES]
    }

    fn is_begun(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.packed.len()
    }

    /// Packs one that nobody has begun; whether there was one.
    fn pack_one(&self) -> bool {
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        let Some(place) = self.packed.get(number) else { return false };
        let packed = pack(self.block(number));
        *place.lock() = Some(packed);
        true
    }
}

impl Helpers {
    /// Counts a thread that packs what it is writing.
    pub(crate) fn begin_packing(&self) -> TakingPart<'_> {
        self.packing.fetch_add(1, Ordering::Relaxed);
        TakingPart(self)
    }

    /// Whether some of so many blocks should be offered: somebody waits for them whom no other writer needs, and they
    /// are many enough and take long enough.
    pub(crate) fn are_worth_asking(&self, blocks: usize) -> bool {
        blocks >= SHARED_MIN
            && self.packing.load(Ordering::Relaxed) <= self.idle.load(Ordering::Relaxed)
            && self.block_nanoseconds.load(Ordering::Relaxed) >= WORTHWHILE_NANOSECONDS
    }

    /// Packs so many blocks, and keeps in mind how long that takes where there is somebody to be asked.
    pub(crate) fn measuring(&self, clock: &dyn Clock, blocks: usize, pack_all: impl FnOnce()) {
        if blocks == 0 || self.idle.load(Ordering::Relaxed) == 0 {
            return pack_all();
        }
        let before = clock.monotonic();
        pack_all();
        let took = clock.monotonic().saturating_sub(before).as_nanos() / blocks as u128;
        let took = u64::try_from(took).unwrap_or(u64::MAX).min(BELIEVED_NANOSECONDS);
        let lately = self.block_nanoseconds.load(Ordering::Relaxed);
        self.block_nanoseconds.store((7 * lately + took) / 8, Ordering::Relaxed);
    }

    /// Offers blocks to those who wait.
    pub(crate) fn offer<'a>(
        &self,
        blocks: impl ExactSizeIterator<Item = &'a [u8; BLOCK_BYTES]>,
    ) -> Arc<Offer> {
        let count = blocks.len();
        let mut copies = Vec::with_capacity(count * BLOCK_BYTES);
        for block in blocks {
            copies.extend_from_slice(block);
        }
        let packed = (0..count).map(|_| Mutex::new(None)).collect();
        let offer = Arc::new(Offer { blocks: copies, next: AtomicUsize::new(0), packed });
        self.offers.lock().push(Arc::clone(&offer));
        self.offered.notify_one();
        offer
    }

    /// Takes an offer back: packs what nobody has begun, and gives all of it, in order.
    pub(crate) fn take_back(&self, offer: &Arc<Offer>) -> Vec<PackedBlock> {
        while offer.pack_one() {}
        self.offers.lock().retain(|other| !Arc::ptr_eq(other, offer));
        let mut patience = PATIENCE;
        let mut one = |(number, place): (usize, &Mutex<Option<PackedBlock>>)| loop {
            if let Some(packed) = place.lock().take() {
                return packed;
            }
            if patience == 0 {
                return pack(offer.block(number));
            }
            patience -= 1;
            std::thread::yield_now();
        };
        offer.packed.iter().enumerate().map(&mut one).collect()
    }

    fn wait_for_offer(&self, limit: Duration) -> Option<Arc<Offer>> {
        let find = |offers: &Vec<Arc<Offer>>| offers.iter().find(|offer| !offer.is_begun()).cloned();
        let mut offers = self.offers.lock();
        if let Some(offer) = find(&offers) {
            return Some(offer);
        }
        if self.dismissed.load(Ordering::Relaxed) {
            return None;
        }
        self.idle.fetch_add(1, Ordering::Relaxed);
        offers = self.offered.wait_for(offers, limit);
        self.idle.fetch_sub(1, Ordering::Relaxed);
        find(&offers)
    }
}

impl Store {
    /// Helps those who reduce writes, for a thread that has nothing else to do: returns after some work, or after
    /// `limit` without any.
    pub fn help(&self, limit: Duration) {
        if let Some(offer) = self.helpers.wait_for_offer(limit) {
            while offer.pack_one() {}
        }
    }

    /// Lets helpers go, and those who come later not wait.
    pub fn dismiss_helpers(&self) {
        let offers = self.helpers.offers.lock();
        self.helpers.dismissed.store(true, Ordering::Relaxed);
        self.helpers.offered.notify_all();
        drop(offers);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn blocks(count: usize) -> Vec<[u8; BLOCK_BYTES]> {
        let mut noise = blake3::Hasher::new().finalize_xof();
        let mut blocks = vec![[0u8; BLOCK_BYTES]; count];
        for (number, block) in blocks.iter_mut().enumerate() {
            noise.fill(&mut block[..number * 37 % BLOCK_BYTES]);
        }
        blocks
    }

    fn alone(blocks: &[[u8; BLOCK_BYTES]]) -> Vec<PackedBlock> {
        blocks.iter().map(|block| pack(block)).collect()
    }

    #[test]
    fn blocks_are_packed_alike_whoever_packs_them() {
        let helpers = Helpers::default();
        let blocks = blocks(SHARED_MAX);
        let expected = alone(&blocks);
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !helpers.dismissed.load(Ordering::Relaxed) {
                        if let Some(offer) = helpers.wait_for_offer(Duration::from_millis(1)) {
                            while offer.pack_one() {}
                        }
                    }
                });
            }
            for round in 0..300 {
                let count = 1 + round % SHARED_MAX;
                let offer = helpers.offer(blocks[..count].iter());
                assert_eq!(helpers.take_back(&offer), expected[..count], "round {round}");
            }
            helpers.dismissed.store(true, Ordering::Relaxed);
        });
        assert!(helpers.offers.lock().is_empty());
    }

    #[test]
    fn a_helper_that_does_not_go_on_is_done_without() {
        let helpers = Helpers::default();
        let blocks = blocks(5);
        let offer = helpers.offer(blocks.iter());
        // Somebody has begun the first two, and is never heard of again.
        offer.next.store(2, Ordering::Relaxed);
        assert_eq!(helpers.take_back(&offer), alone(&blocks));
    }

    #[test]
    fn nobody_is_asked_where_it_does_not_pay() {
        let helpers = Helpers::default();
        helpers.block_nanoseconds.store(WORTHWHILE_NANOSECONDS, Ordering::Relaxed);
        let own = helpers.begin_packing();
        assert!(!helpers.are_worth_asking(SHARED_MIN), "nobody waits");
        helpers.idle.store(1, Ordering::Relaxed);
        assert!(helpers.are_worth_asking(SHARED_MIN));
        assert!(!helpers.are_worth_asking(SHARED_MIN - 1), "too few");
        let other = helpers.begin_packing();
        assert!(!helpers.are_worth_asking(SHARED_MIN), "another writer has the processor");
        drop((own, other));
        helpers.block_nanoseconds.store(WORTHWHILE_NANOSECONDS - 1, Ordering::Relaxed);
        let _own = helpers.begin_packing();
        assert!(!helpers.are_worth_asking(SHARED_MIN), "done in no time");
    }
}
