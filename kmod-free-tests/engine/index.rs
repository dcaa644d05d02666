//! The fingerprint index after an opening.

use sinter::store::Store;
use sinter::units::{BlockCount, ByteCount, Lba, ObjectNumber};

use crate::pool::Pool;
use crate::{assert_sound, blocks, read};

const BLOCKS: u64 = 20_000;

/// Background steps until nothing is due; how many there were.
fn settle(store: &Store) -> u64 {
    let mut steps = 1;
    while store.background_step().unwrap() || store.statistics().index_pages_left > 0 {
        steps += 1;
    }
    steps
}

/// A pool of which a checkpoint holds `BLOCKS` blocks, their volume with room for as many again, and what they hold.
fn pool_of_blocks(seed: u64) -> (Pool, ObjectNumber, Vec<u8>) {
    let pool = Pool::new(seed);
    let store = pool.create();
    let (object, _) = store.create_object(BlockCount(2 * BLOCKS), &[]).unwrap();
    let data = blocks(1..BLOCKS + 1);
    assert_eq!(u64::from(store.write(object, Lba(0), &data).unwrap().new_blocks), BLOCKS);
    store.checkpoint().unwrap();
    (pool, object, data)
}

/// What was stored before a restart is found again.
#[test]
fn the_index_comes_back_after_a_restart() {
    let (pool, object, data) = pool_of_blocks(1);
    let store = pool.open();
    let before = store.statistics();
    assert_eq!(before.index_pages_left, BLOCKS.div_ceil(128), "nothing had to be replayed");
    let steps = settle(&store);
    assert!((3..=8).contains(&steps), "{steps} steps for 157 pages, 64 at a time");
    let after = store.statistics();
    assert_eq!(after.index_pages_left, 0);
    assert_eq!(after.dirty_bytes, before.dirty_bytes, "a hint changes no page");
    assert!(after.cache_bytes <= before.cache_bytes + 8 * 4300, "pages are read past the cache");

    let again = store.write(object, Lba(BLOCKS), &data).unwrap();
    assert_eq!((u64::from(again.duplicate_blocks), again.new_blocks), (BLOCKS, 0));
    store.checkpoint().unwrap();
    assert_sound(&store);
}

/// Several threads fill it together: none leaves out what it takes another to have looked at.
#[test]
fn the_index_is_filled_by_several_threads_together() {
    let (pool, object, data) = pool_of_blocks(3);
    let store = pool.open();
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| while store.rebuild_index_step() {});
        }
    });
    let again = store.write(object, Lba(BLOCKS), &data).unwrap();
    assert_eq!((u64::from(again.duplicate_blocks), again.new_blocks), (BLOCKS, 0));
}

/// What is written while the index is filled keeps its place, and the table may change meanwhile.
#[test]
fn the_index_is_filled_while_the_table_changes() {
    let (pool, object, data) = pool_of_blocks(2);
    let store = pool.open();
    let half = BLOCKS / 2;
    // The newest half goes, and the pages that name it change in memory and on the device.
    store.zero(object, Lba(half), BlockCount(half)).unwrap();
    store.write(object, Lba(half), &blocks(1_000_000..1_000_100)).unwrap();
    store.background_step().unwrap();
    store.checkpoint().unwrap();
    settle(&store);
    let older = store.write(object, Lba(half), &data[..4096 * 1000]).unwrap();
    assert_eq!((older.duplicate_blocks, older.new_blocks), (1000, 0));
    let newer = store.write(object, Lba(half + 1000), &blocks(1_000_000..1_000_100)).unwrap();
    assert_eq!((newer.duplicate_blocks, newer.new_blocks), (100, 0));
    // Of what has gone, a hint may be left: it is not believed.
    store.write(object, Lba(half + 2000), &data[4096 * (BLOCKS as usize - 50)..]).unwrap();
    assert!(read(&store, object, half + 2000, 50).unwrap() == data[4096 * (BLOCKS as usize - 50)..]);
    store.checkpoint().unwrap();
    assert_sound(&store);
}

/// An index that is too small for the table is not filled over and over.
#[test]
fn a_full_index_ends_the_reading() {
    let mut pool = Pool::new(3);
    let store = pool.create();
    let (object, _) = store.create_object(BlockCount(BLOCKS), &[]).unwrap();
    store.write(object, Lba(0), &blocks(1..BLOCKS + 1)).unwrap();
    store.checkpoint().unwrap();
    drop(store);
    pool.options.index_budget = ByteCount(64 * 16 + 64);
    let store = pool.open();
    assert_eq!(settle(&store), 2, "the first step fills it, the second finds it full");
    assert_eq!(store.statistics().index_pages_left, 0);
    // The newest are the ones that are remembered.
    let newest = store.write(object, Lba(0), &blocks(BLOCKS - 49..BLOCKS + 1)).unwrap();
    assert!(newest.duplicate_blocks > 40, "{newest:?}");
}
