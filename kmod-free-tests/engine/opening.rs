//! What an opening costs, and leaves on the device.

use std::sync::Arc;

use sinter::device::faulty::{FaultPlan, FaultyDisk};
use sinter::format::segment::{SEGMENT_HEADER_BYTES, SegmentHeader, SegmentKind};
use sinter::units::{BlockCount, ByteCount, DeviceOffset, Lba, ObjectNumber};

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

/// The newest segment of a log whose header is on the device; segments are of 64 KiB.
fn newest_log_header(pool: &Pool, segments: u64) -> Option<u64> {
    let header = |segment: u64| {
        let mut bytes = vec![0; SEGMENT_HEADER_BYTES];
        pool.device.read_at(DeviceOffset((1 + segment) << 16), &mut bytes).unwrap();
        SegmentHeader::decode(&bytes).filter(|header| header.kind == SegmentKind::Log)
    };
    (0..segments).filter_map(header).map(|header| header.sequence).max()
}

#[test]
fn p2_the_header_of_a_log_is_there_before_its_first_batch() {
    let pool = Pool::small(11, 64);
    drop(pool.create());
    let mut before = newest_log_header(&pool, 64).expect("a header after the pool was made");
    for _ in 0..2 {
        drop(pool.open());
        let after = newest_log_header(&pool, 64).unwrap();
        assert!(after > before, "opening has begun a log, and its header is not on the device");
        before = after;
    }
}
