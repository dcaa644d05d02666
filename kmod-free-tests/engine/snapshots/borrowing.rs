//! Leaves that borrow from those that they were copied from: nothing is lost, and nothing stays.

use sinter::store::{CloneRequest, ReclaimWalk};
use sinter::units::{BLOCK_BYTES, BlockCount, ByteCount, Lba};

use super::model::Model;
use super::{delete_and_compare, in_use, settle};
use crate::pool::Pool;
use crate::{assert_sound, blocks, read};

/// Copied leaves borrow at first: through crashes, further copies and deletes of either side, nothing is lost and
/// nothing stays.
#[test]
fn what_a_copied_leaf_borrows_is_settled_whatever_goes_first() {
    const LEAVES: u64 = 900;
    for first_gone in 0..3 {
        let pool = Pool::small(7, 2400);
        let mut store = pool.create();
        let mut model = Model::default();
        let volume = model.create(&store, LEAVES * 512);
        for leaf in 0..LEAVES {
            model.write(&store, volume, leaf * 512, 12);
        }
        let snapshot = model.clone_all(&store, &[volume])[0];
        for leaf in 0..LEAVES {
            model.write(&store, volume, leaf * 512 + leaf % 12, 1);
        }
        let most = store.statistics().leaves_borrowing;
        assert!((300..LEAVES).contains(&most), "{most} leaves borrow: many, but a bounded number");
        store.write_out(store.last_lsn()).unwrap();
        drop(store);
        store = pool.open();
        assert_sound(&store);
        // A copy of a copy: the lender borrows itself.
        let later = model.clone_all(&store, &[volume])[0];
        for leaf in 0..LEAVES / 3 {
            model.write(&store, volume, leaf * 512 + (leaf + 5) % 12, 1);
        }
        store.checkpoint().unwrap();
        assert!(store.statistics().leaves_borrowing > 0);
        assert_sound(&store);
        let gone = [volume, snapshot, later][first_gone];
        model.delete(&store, gone);
        model.compare(&store, 7);
        settle(&store);
        assert_sound(&store);
        for object in model.objects.keys().copied().collect::<Vec<_>>() {
            delete_and_compare(&mut model, &store, object, 7);
            assert_sound(&store);
        }
        assert_eq!(in_use(&store), [0; 4]);
    }
}

/// What is settled after a checkpoint makes room for more copies that borrow; replay does not settle, and still must
/// not take more memory, or a longer checkpoint, than a pool has.
#[test]
fn p6_replay_lets_borrow_what_borrowed_when_the_log_was_written() {
    const LEAVES: u64 = 150;
    let mut pool = Pool::small(11, 1600);
    pool.options.metadata_budget = ByteCount(8 << 20);
    pool.options.borrowers_max = LEAVES as usize;
    let store = pool.create();
    let (volume, _) = store.create_object(BlockCount(LEAVES * 512), b"volume").unwrap();
    // Every leaf names the same blocks: the pool stays small.
    let leaf = blocks(0..512);
    for number in 0..LEAVES {
        store.write(volume, Lba(number * 512), &leaf).unwrap();
    }
    store.checkpoint().unwrap();
    let overwrite_each_leaf = |slot: u64| {
        for number in 0..LEAVES {
            store.write(volume, Lba(number * 512 + slot), &blocks(slot + 1..slot + 2)).unwrap();
        }
    };
    let snapshot = |opaque| store.clone_objects(&[CloneRequest { source: volume, opaque }]).unwrap().0[0];
    let first = snapshot(b"first");
    overwrite_each_leaf(7);
    store.delete_object(first).unwrap();
    store.checkpoint().unwrap();
    let checkpoints = store.statistics().checkpoints;
    assert_eq!(store.statistics().leaves_borrowing, LEAVES, "all that borrowed still do");

    let mut walk = ReclaimWalk::new(volume);
    while store.statistics().leaves_borrowing > 0 && store.walk_reclaimable(&mut walk).unwrap() {}
    snapshot(b"second");
    overwrite_each_leaf(9);
    assert_eq!(store.statistics().checkpoints, checkpoints, "replay begins before all of this");
    assert_eq!(store.statistics().leaves_borrowing, LEAVES);
    store.write_out(store.last_lsn()).unwrap();
    drop(store);

    let store = pool.open();
    assert!(store.statistics().leaves_borrowing > LEAVES, "in replay both copies borrow");
    assert_sound(&store);
    for number in [0, 1, LEAVES / 2, LEAVES - 1] {
        let mut expected = blocks(0..512);
        for slot in [7, 9] {
            let at = slot * BLOCK_BYTES;
            expected[at..at + BLOCK_BYTES].copy_from_slice(&blocks(slot as u64 + 1..slot as u64 + 2));
        }
        assert!(read(&store, volume, number * 512, 512).unwrap() == expected, "leaf {number}");
    }
    settle(&store);
    assert_sound(&store);
}
