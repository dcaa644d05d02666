//! A pool in memory: device, clock and random source, all repeatable.

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;
use std::sync::Mutex;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use sinter::device::Device;
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
    let environment =
        Environment { clock: Arc::new(TickingClock::default()), random: Arc::new(SeededRandom::new(seed)) };
    let options = StoreOptions {
        metadata_budget: ByteCount(32 << 20),
        index_budget: ByteCount(16 << 20),
        ..StoreOptions::default()
    };
    let devices: Vec<Arc<dyn Device>> = vec![Arc::new(MemoryDevice::default())];
    let store = Store::create(devices, options, environment.clone()).expect("a new pool in memory");
    (Arc::new(store), environment)
}

/// A device that takes memory only for what was written.
#[derive(Default)]
struct MemoryDevice {
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

impl Device for MemoryDevice {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn len(&self) -> ByteCount {
        ByteCount(POOL_BYTES)
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

    fn sync(&self) -> io::Result<()> {
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
