//! Snapshots and clones: objects that share nodes, each changed and deleted as if it were alone.

mod borrowing;
mod model;

use std::sync::Arc;

use sinter::device::faulty::{FaultPlan, FaultyDisk};
use sinter::error::ErrorKind;
use sinter::format::page::{PageKey, Table};
use sinter::store::{CLONES_MAX, CloneRequest, MappingKind, OccupiedWalk, ReclaimWalk, Reclaimable, Store};
use sinter::sync::seeded::SeededNumbers;
use sinter::units::{BlockCount, ByteCount, Lba, ObjectNumber};

use crate::pool::Pool;
use crate::{assert_sound, blocks, read};

use model::Model;

/// Lets everything that was let go of come back.
fn settle(store: &Store) {
    for _ in 0..10_000 {
        let figures = store.statistics();
        if (figures.nodes_waiting, figures.nodes_let_go, figures.leaves_borrowing) == (0, 0, 0) {
            store.checkpoint().unwrap();
            store.checkpoint().unwrap();
            return;
        }
        if !store.background_step().unwrap() {
            store.checkpoint().unwrap();
        }
    }
    panic!("what was let go of does not come back: {:?}", store.statistics());
}

fn reclaimable(store: &Store, object: u64) -> Reclaimable {
    let mut walk = ReclaimWalk::new(ObjectNumber(object));
    let mut steps = 0;
    while store.walk_reclaimable(&mut walk).unwrap() {
        assert_eq!(walk.found(), None);
        steps += 1;
        assert!(steps < 100_000, "the walk comes to no end");
    }
    walk.found().unwrap()
}

fn occupied(store: &Store, object: u64) -> u64 {
    let mut walk = OccupiedWalk::new(ObjectNumber(object));
    while store.walk_occupied(&mut walk).unwrap() {
        assert_eq!(walk.found(), None);
    }
    walk.found().unwrap().0
}

/// Nodes, bytes of nodes, blocks and bytes of blocks that are there.
fn in_use(store: &Store) -> [u64; 4] {
    let figures = store.statistics();
    let mut node_bytes = 0;
    for node in 1..6000 {
        for (_, _, len) in store.stored_copies(PageKey::leaf(Table::Nodes, node)).unwrap() {
            node_bytes += u64::from(len).next_multiple_of(16);
        }
    }
    let block_bytes = store.block_segments().iter().map(|(_, live)| u64::from(*live)).sum();
    [figures.map_nodes, node_bytes, figures.unique_blocks, block_bytes]
}

/// Deletes an object: what the walk has found is what comes free.
fn delete_and_compare(model: &mut Model, store: &Store, object: u64, seed: u64) {
    settle(store);
    let found = reclaimable(store, object);
    let before = in_use(store);
    model.delete(store, object);
    settle(store);
    let after = in_use(store);
    let freed: Vec<u64> = before.iter().zip(after).map(|(before, after)| before - after).collect();
    let walked = vec![found.nodes, found.node_bytes.0, found.blocks, found.block_bytes.0];
    assert_eq!(walked, freed, "seed {seed}: object {object}");
    assert_eq!(found.bytes().0, freed[1] + freed[3]);
}

#[test]
fn objects_that_share_nodes_are_each_as_if_alone() {
    for seed in 0..16 {
        let mut numbers = SeededNumbers::new(seed);
        let pool = Pool::small(seed, 1600);
        let mut store = pool.create();
        let mut model = Model::default();
        for round in 0..8 {
            for _ in 0..60 {
                model.step(&store, &mut numbers);
                if numbers.chance(1, 6) {
                    let listed: Vec<u64> = model.objects.keys().copied().collect();
                    let (older, newer) = (numbers.index(listed.len()), numbers.index(listed.len()));
                    model.compare_diff(&store, listed[older], listed[newer], &mut numbers);
                }
            }
            model.compare(&store, seed);
            if round % 2 == 0 {
                assert_sound(&store);
            } else {
                store.write_out(store.last_lsn()).unwrap();
                drop(store);
                store = pool.open();
                model.compare(&store, seed);
                assert_sound(&store);
            }
        }
        settle(&store);
        let together: u64 = model.objects.keys().map(|object| occupied(&store, *object)).sum();
        let stored = store.statistics().stored_data_bytes;
        assert!(together.abs_diff(stored) <= model.objects.len() as u64, "{together} of {stored}");
        while let Some(object) = model.objects.keys().nth(numbers.index(model.objects.len().max(1))).copied()
        {
            delete_and_compare(&mut model, &store, object, seed);
            model.compare(&store, seed);
        }
        settle(&store);
        assert_eq!(in_use(&store), [0; 4], "seed {seed}: nothing is left");
        assert_sound(&store);
    }
}

#[test]
fn blocks_that_an_object_has_twice_come_free_with_it() {
    let mut pool = Pool::small(1, 1600);
    pool.options.index_budget = ByteCount(1 << 20);
    let store = pool.create();
    let mut model = Model::default();
    let [one, two] = [0, 1].map(|_| model.create(&store, 20_000));
    // More blocks with several references than a walk remembers at once: some twice here, some here and there.
    for half in 0..2 {
        for first in (0..3000).step_by(100) {
            store
                .write(ObjectNumber(one), Lba(half * 5000 + first), &blocks(first + 1..first + 101))
                .unwrap();
        }
    }
    store.write(ObjectNumber(two), Lba(0), &blocks(2901..3401)).unwrap();
    model.clone_all(&store, &[one]);
    store.write(ObjectNumber(one), Lba(512), &blocks(9000..9001)).unwrap();
    let clone = *model.objects.keys().next_back().unwrap();
    assert_eq!(store.statistics().unique_blocks, 3401);
    settle(&store);
    // Of one leaf each has its own; the rest they share.
    let found = reclaimable(&store, one);
    assert_eq!((found.nodes, found.blocks), (2, 1));
    assert_eq!(reclaimable(&store, clone).blocks, 0);
    delete_and_compare(&mut model, &store, one, 1);
    let found = reclaimable(&store, clone);
    assert_eq!((found.blocks, found.block_bytes.0), (2900, 2900 * 4096));
    delete_and_compare(&mut model, &store, clone, 1);
    delete_and_compare(&mut model, &store, two, 1);
    assert_sound(&store);
}

#[test]
fn p4_a_clone_waits_for_no_device_whatever_the_size() {
    let plan = FaultPlan::new();
    let mut pool = Pool::small(2, 1600);
    pool.device = Arc::new(FaultyDisk::new("disk", ByteCount(1602 << 16), 2, Arc::clone(&plan)));
    let store = pool.create();
    let mut model = Model::default();
    let small = model.create(&store, 1);
    let large = model.create(&store, 1 << 36);
    for place in 0..40 {
        model.write(&store, large, place * (1 << 30), 3);
    }
    store.checkpoint().unwrap();
    drop(store);
    let store = pool.open();
    let before = plan.counts();
    model.clone_all(&store, &[large]);
    model.clone_all(&store, &[small, large, large]);
    assert_eq!(plan.counts().total(), before.total(), "nothing was read or written");
    let log_bytes = store.statistics().log_bytes_written;
    model.clone_all(&store, &[small]);
    let of_small = store.statistics().log_bytes_written - log_bytes;
    model.clone_all(&store, &[large]);
    assert_eq!(store.statistics().log_bytes_written - log_bytes, 2 * of_small);
    model.compare(&store, 2);
    assert_sound(&store);
}

#[test]
fn a_request_that_makes_no_sense_changes_nothing() {
    let pool = Pool::small(3, 400);
    let store = pool.create();
    let (one, _) = store.create_object(BlockCount(100), b"one").unwrap();
    let (two, _) = store.create_object(BlockCount(50), b"two").unwrap();
    let missing = ObjectNumber(77);
    let last = store.last_lsn();
    let request = |source| CloneRequest { source, opaque: b"clone" };
    let clone = |requests: &[CloneRequest<'_>]| store.clone_objects(requests).unwrap_err().kind();
    assert_eq!(clone(&[]), ErrorKind::Invalid);
    assert_eq!(clone(&[request(one), request(missing)]), ErrorKind::NotFound);
    assert_eq!(clone(&vec![request(one); CLONES_MAX + 1]), ErrorKind::Invalid);
    assert_eq!(clone(&[CloneRequest { source: one, opaque: &[0; 3585] }]), ErrorKind::Invalid);
    // Each is short enough, and all together fit no segment.
    let long = CloneRequest { source: one, opaque: &[0; 3584] };
    assert_eq!(clone(&[long; CLONES_MAX]), ErrorKind::Invalid);
    let restore = |target, source, size| {
        store.restore_object(target, source, BlockCount(size), &[]).unwrap_err().kind()
    };
    assert_eq!(restore(two, one, 99), ErrorKind::Invalid);
    assert_eq!(restore(one, two, 99), ErrorKind::Invalid);
    assert_eq!(restore(one, one, 100), ErrorKind::Invalid);
    assert_eq!(restore(one, two, (1 << 36) + 1), ErrorKind::Invalid);
    assert_eq!(restore(missing, two, 100), ErrorKind::NotFound);
    assert_eq!(restore(two, missing, 100), ErrorKind::NotFound);
    let diff = |older, newer, first, count| {
        store.diff(older, newer, Lba(first), BlockCount(count), 8).unwrap_err().kind()
    };
    assert_eq!(diff(one, two, 0, 51), ErrorKind::Invalid);
    assert_eq!(diff(one, two, 50, u64::MAX), ErrorKind::Invalid);
    assert_eq!(diff(one, two, 0, 0), ErrorKind::Invalid);
    assert_eq!(diff(missing, two, 0, 1), ErrorKind::NotFound);
    assert_eq!(diff(one, missing, 0, 1), ErrorKind::NotFound);
    let walked = store.walk_reclaimable(&mut ReclaimWalk::new(missing));
    assert_eq!(walked.unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!(store.walk_occupied(&mut OccupiedWalk::new(missing)).unwrap_err().kind(), ErrorKind::NotFound);
    assert_eq!((store.last_lsn(), store.objects().unwrap().len()), (last, 2));
    store.clone_objects(&vec![request(one); CLONES_MAX]).unwrap();
    assert_eq!(store.objects().unwrap().len(), 2 + CLONES_MAX);
    assert_sound(&store);
}

/// A large map whose every leaf holds one block is deleted while the store is opened again and again.
#[test]
fn p4_a_deleted_object_is_taken_apart_in_bounded_steps_through_restarts() {
    const LEAVES: u64 = 3000;
    let pool = Pool::small(4, 1600);
    let mut store = pool.create();
    let mut model = Model::default();
    let large = model.create(&store, 1 << 30);
    let kept = model.create(&store, 3000);
    model.write(&store, kept, 0, 20);
    for leaf in 0..LEAVES {
        model.write(&store, large, leaf * 1024, 1);
    }
    let clone = model.clone_all(&store, &[large])[0];
    model.write(&store, large, 100 * 1024, 1);
    settle(&store);
    model.delete(&store, large);
    settle(&store);
    assert!(store.statistics().nodes_released < 20, "the clone holds on to the rest");
    model.compare(&store, 4);

    model.delete(&store, clone);
    store.make_durable(store.last_lsn()).unwrap();
    let mut most = 0;
    let mut released = 0;
    let mut restarts = 0;
    while store.statistics().map_nodes > 4 {
        for _ in 0..6 {
            let before = store.statistics().nodes_released;
            store.background_step().unwrap();
            let figures = store.statistics();
            most = most.max(figures.nodes_waiting);
            released += figures.nodes_released - before;
            assert!(figures.nodes_released - before <= 64, "a step is bounded");
        }
        store.checkpoint().unwrap();
        if released > 300 && restarts < 5 {
            released = 0;
            restarts += 1;
            drop(store);
            store = pool.open();
            assert_sound(&store);
        }
    }
    assert_eq!(restarts, 5);
    assert!((1..=4 * 512).contains(&most), "{most} nodes waited at a time");
    settle(&store);
    model.compare(&store, 4);
    assert_eq!(store.statistics().unique_blocks, 16);
    assert_sound(&store);
}

#[test]
fn what_cannot_be_read_counts_as_changed_and_nothing_else_does() {
    const SIZE: u64 = 4 * 512;
    for (damaged, side) in [(1, 0), (2, 1)] {
        let pool = Pool::small(5, 1600);
        let store = pool.create();
        let mut model = Model::default();
        let volume = model.create(&store, SIZE);
        for first in (0..SIZE).step_by(64) {
            model.write(&store, volume, first, 60);
        }
        let older = model.clone_all(&store, &[volume])[0];
        // The first leaf stays shared, each of the others differs.
        for leaf in 1..4 {
            model.write(&store, volume, leaf * 512 + 7, 1);
        }
        let newer = model.clone_all(&store, &[volume])[0];
        settle(&store);
        let object = [older, newer][side];
        let root = store.map_root(ObjectNumber(object)).unwrap();
        let leaf = store.map_entry(root, damaged).unwrap();
        for (_, offset, len) in store.stored_copies(PageKey::leaf(Table::Nodes, leaf)).unwrap() {
            let at = sinter::units::DeviceOffset(offset.0 + u64::from(len) - 1);
            let mut byte = [0];
            pool.device.read_at(at, &mut byte).unwrap();
            pool.device.write_at(at, &[&[byte[0] ^ 1]]).unwrap();
        }
        drop(store);
        let store = pool.open();
        let runs =
            store.diff(ObjectNumber(older), ObjectNumber(newer), Lba(0), BlockCount(SIZE), 1000).unwrap();
        let (mut at, damaged) = (0, damaged as u64);
        for run in runs {
            let mut expected = run.changed;
            for lba in at..at + run.blocks.0 {
                if lba / 512 == damaged {
                    assert!(run.changed.is_some(), "block {lba} may have changed");
                } else {
                    expected = (lba % 512 == 7 && lba > 512).then_some(MappingKind::Data);
                    let differs =
                        model.objects[&older].blocks.get(&lba) != model.objects[&newer].blocks.get(&lba);
                    assert_eq!(
                        (run.changed.is_some(), expected.is_some()),
                        (differs, differs),
                        "block {lba}"
                    );
                }
            }
            assert_eq!(run.changed.is_some(), expected.is_some());
            at += run.blocks.0;
        }
        assert_eq!(at, SIZE);
        let read_error = read(&store, ObjectNumber(object), damaged * 512, 1).unwrap_err();
        assert_eq!(read_error.kind(), ErrorKind::Corrupt);
    }
}

/// A write across the border of a shared leaf and one of its own, the counts of which have left the cache.
#[test]
fn a_node_is_known_to_be_shared_also_when_its_count_has_left_the_cache() {
    let pool = Pool::small(6, 1600);
    let store = pool.create();
    let mut model = Model::default();
    let volume = model.create(&store, 1024);
    model.write(&store, volume, 500, 24);
    // The counts of nodes made from now on are on another page.
    let large = model.create(&store, 1100 * 512);
    for leaf in 0..1100 {
        model.write(&store, large, leaf * 512, 1);
    }
    model.clone_all(&store, &[volume]);
    settle(&store);
    model.write(&store, volume, 600, 1);
    model.write(&store, volume, 601, 1);
    let other = model.create(&store, 2500 * 512);
    for leaf in 0..2500 {
        model.write(&store, other, leaf * 512, 1);
        // The nodes themselves stay, with what is known of them.
        read(&store, ObjectNumber(volume), 601, 1).unwrap();
    }
    model.write(&store, volume, 508, 8);
    model.compare(&store, 6);
    assert_sound(&store);
}
