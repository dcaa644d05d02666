//! What an opening costs.

use std::sync::Arc;

use sinter::device::faulty::{FaultPlan, FaultyDisk};
use sinter::units::{BlockCount, ByteCount, Lba, ObjectNumber};

use crate::pool::Pool;
use crate::{assert_sound, blocks, read};

const SEGMENT_BYTES: u64 = 1 << 18;

/// Calls to the device that an opening made, of a pool that held so many blocks at its checkpoint and was given
/// so many more behind it.
fn calls_to_open(segments: u64, blocks_before: u64, blocks_behind: u64) -> u64 {
    let plan = FaultPlan::new();
    let mut pool = Pool::new(7);
    pool.options.segment_bytes = ByteCount(SEGMENT_BYTES);
    let len = ByteCount((segments + 2) * SEGMENT_BYTES);
    pool.device = Arc::new(FaultyDisk::new("disk", len, 7, Arc::clone(&plan)));
    let store = pool.create();
    let (object, _) = store.create_object(BlockCount(blocks_before + blocks_behind), &[]).unwrap();
    write(&store, object, 0..blocks_before);
    store.checkpoint().unwrap();
    write(&store, object, blocks_before..blocks_before + blocks_behind);
    store.make_durable(store.last_lsn()).unwrap();
    drop(store);

    let before = plan.counts().total();
    let store = pool.open();
    let calls = plan.counts().total() - before;
    let last = blocks_before + blocks_behind - 1;
    assert!(read(&store, object, last, 1).unwrap() == blocks(last..last + 1), "the last block");
    if blocks_before < 10_000 {
        assert_sound(&store);
    }
    calls
}

fn write(store: &sinter::store::Store, object: ObjectNumber, places: std::ops::Range<u64>) {
    let mut next = places.start;
    while next < places.end {
        let end = places.end.min(next + 256);
        store.write(object, Lba(next), &blocks(next..end)).unwrap();
        next = end;
    }
}

#[test]
fn p6_opening_costs_by_the_log_and_not_by_the_pool() {
    let small = calls_to_open(512, 4_000, 1_000);
    let full = calls_to_open(512, 20_000, 1_000);
    let large = calls_to_open(4_096, 100_000, 1_000);
    // A larger table is a level higher: some pages of directories more, for 8 times the pool and 25 times the data.
    let enough = small + small / 4;
    assert!(
        full <= enough && large <= enough,
        "{small} calls for a small pool, {full} and {large} for others"
    );
    let longer = calls_to_open(512, 4_000, 8_000);
    assert!(longer > 2 * small, "{small} calls for a log of 1,000 blocks, {longer} for one of 8,000");
}
