//! A pool under overwrites: blocks that neither compress nor repeat, written at random, with all background work
//! done in turn and a clock that goes by what was written, so that a seed is one exact run.

use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sinter::device::Device;
use sinter::device::memory::MemoryDevice;
use sinter::store::Environment;
use sinter::store::Store;
use sinter::store::StoreOptions;
use sinter::store::StoreStatistics;
use sinter::sync::Clock;
use sinter::sync::RandomSource;
use sinter::sync::seeded::SeededNumbers;
use sinter::units::BLOCK_BYTES;
use sinter::units::BlockCount;
use sinter::units::ByteCount;
use sinter::units::Lba;
use sinter::units::ObjectNumber;

/// Blocks of one request of the fill.
const FILL_BLOCKS: u64 = 32;
/// Writes between two looks at what is to be done in the background.
const WRITES_PER_ROUND: u64 = 32;
/// What one write of a block takes.
const WRITE_TIME: Duration = Duration::from_micros(10);

/// A clock that goes when it is told to.
#[derive(Default)]
pub(crate) struct HandClock(AtomicU64);

impl HandClock {
    /// So much time passes.
    pub(crate) fn pass(&self, time: Duration) {
        let nanoseconds = u64::try_from(time.as_nanos()).unwrap();
        self.0.fetch_add(nanoseconds, Ordering::Relaxed);
    }
}

impl Clock for HandClock {
    fn monotonic(&self) -> Duration {
        Duration::from_nanos(self.0.load(Ordering::Relaxed))
    }

    fn since_unix_epoch(&self) -> Duration {
        Duration::from_secs(1_700_000_000) + self.monotonic()
    }
}

struct SeededRandom(Mutex<SeededNumbers>);

impl RandomSource for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) {
        self.0.lock().unwrap().fill(bytes);
    }
}

/// Which blocks are written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pattern {
    /// Any, each as likely as the other.
    Uniform,
    /// Four writes of five go to a fifth of the blocks, which lie scattered over the volume.
    EightyTwenty,
    /// All writes go to a tenth of the blocks, which lie together; the others are never written again.
    Tenth,
}

impl Pattern {
    /// A block to be written, of so many.
    pub(crate) fn choose(self, numbers: &mut SeededNumbers, blocks: u64) -> u64 {
        match self {
            Pattern::Uniform => numbers.below(blocks),
            Pattern::EightyTwenty => {
                let fifth = blocks / 5;
                let kind = if numbers.chance(4, 5) { 0 } else { 1 + numbers.below(4) };
                numbers.below(fifth) * 5 + kind
            }
            Pattern::Tenth => numbers.below(blocks / 10),
        }
    }
}

/// A pool, open, with one volume.
pub(crate) struct Load {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) options: StoreOptions,
    pub(crate) clock: Arc<HandClock>,
    pub(crate) environment: Environment,
    pub(crate) store: Store,
    pub(crate) object: ObjectNumber,
    /// Blocks of the volume.
    pub(crate) blocks: u64,
    pub(crate) numbers: SeededNumbers,
}

/// Fills a block with what nothing else holds.
pub(crate) fn unique(numbers: &mut SeededNumbers, block: &mut [u8]) {
    numbers.fill(block);
}

/// Options of a pool whose segments and budgets are to each other as those of a large one.
pub(crate) fn options(segment: ByteCount, metadata_budget: ByteCount) -> StoreOptions {
    let index_budget = ByteCount(metadata_budget.0 * 2);
    StoreOptions { metadata_budget, index_budget, segment_bytes: segment, ..StoreOptions::default() }
}

impl Load {
    /// A new pool on a device in memory, without a volume's content.
    pub(crate) fn new(pool: ByteCount, options: StoreOptions, seed: u64) -> Load {
        Load::on(Arc::new(MemoryDevice::new("memory", pool)), options, seed)
    }

    /// A new pool on a device.
    pub(crate) fn on(device: Arc<dyn Device>, options: StoreOptions, seed: u64) -> Load {
        let mut numbers = SeededNumbers::new(seed);
        let clock: Arc<HandClock> = Arc::default();
        let random = Arc::new(SeededRandom(Mutex::new(numbers.branch())));
        let environment = Environment { clock: clock.clone(), random };
        let devices = vec![Arc::clone(&device)];
        let store = Store::create(devices, options.clone(), environment.clone()).unwrap();
        let blocks = store.statistics().usable_bytes / BLOCK_BYTES as u64;
        let (object, _) = store.create_object(BlockCount(blocks), b"flash").unwrap();
        Load { device, options, clock, environment, store, object, blocks, numbers }
    }

    /// Fills the volume from its start on until so many parts of a hundred of the usable capacity hold stored
    /// bytes; the number of blocks that it took. Only those are written from now on.
    pub(crate) fn fill(&mut self, percent: u64) -> u64 {
        let usable = self.store.statistics().usable_bytes;
        self.blocks = usable * percent / 100 / BLOCK_BYTES as u64;
        let mut buffer = vec![0u8; FILL_BLOCKS as usize * BLOCK_BYTES];
        let mut first = 0;
        while first < self.blocks {
            let count = FILL_BLOCKS.min(self.blocks - first);
            let bytes = &mut buffer[..count as usize * BLOCK_BYTES];
            unique(&mut self.numbers, bytes);
            self.store.write(self.object, Lba(first), bytes).unwrap();
            self.clock.pass(WRITE_TIME * count as u32);
            self.background();
            first += count;
        }
        self.blocks
    }

    /// Overwrites single blocks until so many bytes have been written.
    pub(crate) fn overwrite(&mut self, pattern: Pattern, bytes: u64) {
        let mut block = vec![0u8; BLOCK_BYTES];
        for written in 1..=bytes / BLOCK_BYTES as u64 {
            let lba = pattern.choose(&mut self.numbers, self.blocks);
            unique(&mut self.numbers, &mut block);
            self.store.write(self.object, Lba(lba), &block).unwrap();
            self.clock.pass(WRITE_TIME);
            if written % WRITES_PER_ROUND == 0 {
                self.background();
            }
        }
    }

    /// Hands over what was written, and does what is due in the background.
    pub(crate) fn background(&self) {
        self.store.write_out(self.store.last_lsn()).unwrap();
        self.store.sync_if_due().unwrap();
        while self.store.background_step().unwrap() {}
    }

    /// Nobody writes for so long; background work goes on.
    pub(crate) fn idle(&self, time: Duration) {
        const STEP: Duration = Duration::from_millis(100);
        let mut passed = Duration::ZERO;
        while passed < time {
            self.background();
            self.clock.pass(STEP);
            passed += STEP;
        }
    }
}

/// Stored bytes of user data written between two moments.
pub(crate) fn user_bytes(from: &StoreStatistics, to: &StoreStatistics) -> u64 {
    let stored =
        |at: &StoreStatistics| at.new_blocks_written * BLOCK_BYTES as u64 - at.compression_saved_bytes;
    stored(to) - stored(from)
}

/// (User + moved) / user bytes between two moments, in stored sizes.
pub(crate) fn amplification(from: &StoreStatistics, to: &StoreStatistics) -> f64 {
    1.0 + (to.moved_bytes - from.moved_bytes) as f64 / user_bytes(from, to) as f64
}
