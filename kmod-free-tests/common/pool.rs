//! A pool in memory: device, clock and random source, all repeatable.

#![allow(dead_code, reason = "each binary of tests uses a part of this")]

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sinter::device::{Device, Syncer};
use sinter::store::Environment;
use sinter::store::Store;
use sinter::store::StoreOptions;
use sinter::sync::Clock;
use sinter::sync::RandomSource;
use sinter::units::ByteCount;
use sinter::units::DeviceOffset;

/// The size of the pool that `new_store` makes.
const POOL_BYTES: u64 = 1 << 30;
const CHUNK: u64 = 1 << 16;

/// A new store on one device in memory.
pub(crate) fn new_store(seed: u64) -> (Arc<Store>, Environment) {
    let pool = Pool::new(seed);
    (Arc::new(pool.create()), pool.environment)
}

/// A pool that can be opened again and again.
pub(crate) struct Pool {
    pub(crate) device: Arc<dyn Device>,
    pub(crate) options: StoreOptions,
    pub(crate) environment: Environment,
}

impl Pool {
    /// A blank device of 1 GiB.
    pub(crate) fn new(seed: u64) -> Pool {
        let options = StoreOptions {
            metadata_budget: ByteCount(32 << 20),
            index_budget: ByteCount(16 << 20),
            ..StoreOptions::default()
        };
        Pool { device: MemoryDevice::of(POOL_BYTES), options, environment: environment(seed) }
    }

    /// A blank device of so many segments of 64 KiB, with little memory beside it: a short program passes
    /// checkpoints and collections.
    pub(crate) fn small(seed: u64, segments: u64) -> Pool {
        let options = StoreOptions {
            metadata_budget: ByteCount(1 << 20),
            index_budget: ByteCount(1 << 16),
            checkpoint_log_bytes: ByteCount(1 << 20),
            segment_bytes: ByteCount(1 << 16),
            ..StoreOptions::default()
        };
        Pool { device: MemoryDevice::of((segments + 2) << 16), options, environment: environment(seed) }
    }

    pub(crate) fn devices(&self) -> Vec<Arc<dyn Device>> {
        vec![Arc::clone(&self.device)]
    }

    /// Makes the pool.
    pub(crate) fn create(&self) -> Store {
        Store::create(self.devices(), self.options.clone(), self.environment.clone())
            .expect("a new pool in memory")
    }

    /// Opens the pool, as after the death of the process that had it.
    pub(crate) fn open(&self) -> Store {
        let opened = Store::open(self.devices(), self.options.clone(), self.environment.clone());
        let (store, report) = opened.expect("a pool in memory opens again");
        assert!(report.damage.is_empty(), "{:?}", report.damage);
        store
    }
}

/// Clock and random numbers that are the same in every run.
fn environment(seed: u64) -> Environment {
    Environment { clock: Arc::new(TickingClock::default()), random: Arc::new(SeededRandom::new(seed)) }
}

/// A device that takes memory only for what was written.
struct MemoryDevice {
    len: u64,
    chunks: Mutex<BTreeMap<u64, Box<[u8]>>>,
}

/// Calls `visit` with the chunk, the place in it and the length of each part of the range.
fn for_each_part(offset: u64, len: usize, mut visit: impl FnMut(u64, usize, usize)) {
    let (mut at, end) = (offset, offset + len as u64);
    while at < end {
        let within = at % CHUNK;
        let part = (CHUNK - within).min(end - at);
        visit(at / CHUNK, within as usize, part as usize);
        at += part;
    }
}

impl MemoryDevice {
    fn of(len: u64) -> Arc<dyn Device> {
        Arc::new(MemoryDevice { len, chunks: Mutex::default() })
    }
}

impl Device for MemoryDevice {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn len(&self) -> ByteCount {
        ByteCount(self.len)
    }

    fn read_at(&self, offset: DeviceOffset, buffer: &mut [u8]) -> io::Result<()> {
        let chunks = self.chunks.lock().unwrap();
        let mut done = 0;
        for_each_part(offset.0, buffer.len(), |chunk, within, len| {
            let part = &mut buffer[done..done + len];
            match chunks.get(&chunk) {
                Some(bytes) => part.copy_from_slice(&bytes[within..within + len]),
                None => part.fill(0),
            }
            done += len;
        });
        Ok(())
    }

    fn try_read_at(&self, offset: DeviceOffset, buffer: &mut [u8]) -> io::Result<bool> {
        self.read_at(offset, buffer).map(|()| true)
    }

    fn write_at(&self, offset: DeviceOffset, slices: &[&[u8]]) -> io::Result<()> {
        let mut chunks = self.chunks.lock().unwrap();
        let mut at = offset.0;
        for slice in slices {
            let mut done = 0;
            for_each_part(at, slice.len(), |chunk, within, len| {
                let bytes = chunks.entry(chunk).or_insert_with(|| vec![0; CHUNK as usize].into());
                bytes[within..within + len].copy_from_slice(&slice[done..done + len]);
                done += len;
            });
            at += slice.len() as u64;
        }
        Ok(())
    }

    fn sync(&self, _: Syncer) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, _offset: DeviceOffset, _len: ByteCount) -> io::Result<()> {
        Ok(())
    }

    fn discard(&self, _offset: DeviceOffset, _len: ByteCount) -> io::Result<()> {
        Ok(())
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }
}

/// A clock that goes on by a millisecond each time it is looked at.
#[derive(Default)]
struct TickingClock {
    looks: AtomicU64,
}

impl Clock for TickingClock {
    fn monotonic(&self) -> Duration {
        Duration::from_millis(self.looks.fetch_add(1, Ordering::Relaxed))
    }

    fn since_unix_epoch(&self) -> Duration {
        Duration::from_secs(1_700_000_000) + self.monotonic()
    }
}

/// The same numbers for the same seed (Steele, Lea and Flood's SplitMix64).
pub(crate) struct SeededRandom {
    state: AtomicU64,
}

impl SeededRandom {
    pub(crate) fn new(seed: u64) -> SeededRandom {
        SeededRandom { state: AtomicU64::new(seed) }
    }
}

impl RandomSource for SeededRandom {
    fn fill(&self, bytes: &mut [u8]) {
        const STEP: u64 = 0x9e37_79b9_7f4a_7c15;
        for part in bytes.chunks_mut(8) {
            let mut number = self.state.fetch_add(STEP, Ordering::Relaxed).wrapping_add(STEP);
            number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
            number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
            number ^= number >> 31;
            part.copy_from_slice(&number.to_le_bytes()[..part.len()]);
        }
    }
}
