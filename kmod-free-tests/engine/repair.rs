//! `check --repair`: what can be counted is put right, what cannot be read is an I/O error and never zeros.

use std::collections::BTreeMap;
use std::sync::Arc;

use sinter::device::Device;
use sinter::device::faulty::{FaultPlan, FaultyDisk};
use sinter::error::ErrorKind;
use sinter::format::page::{PageKey, Table};
use sinter::store::check::plant::Untruth;
use sinter::store::{CheckMode, CheckReport, CloneRequest, Place, Store, check};
use sinter::sync::seeded::SeededNumbers;
use sinter::units::{
    BLOCK_BYTES, BlockCount, BlockId, ByteCount, DeviceOffset, Lba, MapNodeId, ObjectNumber,
};

use crate::pool::Pool;
use crate::{assert_sound, blocks, read};

const SIZE: u64 = 1300;

fn run_check(pool: &Pool, mode: CheckMode) -> CheckReport {
    check(pool.devices(), pool.options.clone(), pool.environment.clone(), mode, &mut |_, _| {}).unwrap()
}

/// Repairs, and leaves nothing wrong; what was repaired.
fn repair(pool: &Pool) -> Vec<String> {
    let report = run_check(pool, CheckMode::Repair);
    assert!(report.faults.is_empty(), "left: {:#?}", &report.faults[..report.faults.len().min(8)]);
    let again = run_check(pool, CheckMode::Repair);
    assert_eq!(again.repairs, vec![], "a second repair finds nothing");
    report.repairs.into_iter().map(|repair| repair.what).collect()
}

/// Two volumes that share half of their blocks, each on three leaves and with a hole in the middle.
fn sample(store: &Store) -> (ObjectNumber, ObjectNumber) {
    let (one, _) = store.create_object(BlockCount(SIZE), b"one").unwrap();
    let (two, _) = store.create_object(BlockCount(SIZE), b"two").unwrap();
    store.write(one, Lba(0), &blocks(0..SIZE)).unwrap();
    store.write(two, Lba(0), &blocks(SIZE / 2..SIZE + SIZE / 2)).unwrap();
    for object in [one, two] {
        store.zero(object, Lba(600), BlockCount(50)).unwrap();
    }
    store.checkpoint().unwrap();
    store.checkpoint().unwrap();
    (one, two)
}

/// What block `lba` of the sample's first (0) or second (1) volume holds.
fn expected(volume: u64, lba: u64) -> Vec<u8> {
    let content = lba + volume * SIZE / 2;
    if (600..650).contains(&lba) { vec![0; BLOCK_BYTES] } else { blocks(content..content + 1) }
}

fn assert_reads(store: &Store, object: ObjectNumber, volume: u64, lost: impl Fn(u64) -> bool) {
    for lba in 0..SIZE {
        match read(store, object, lba, 1) {
            Ok(bytes) => {
                assert!(!lost(lba), "block {lba} of {object} must be lost");
                assert!(bytes == expected(volume, lba), "block {lba} of {object} is wrong");
            }
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Corrupt);
                assert!(lost(lba), "block {lba} of {object}: {error}");
            }
        }
    }
}

/// Flips a bit of a stored page, in so many of its copies.
fn damage(pool: &Pool, store: &Store, key: PageKey, copies: usize) {
    let places = store.stored_copies(key).unwrap();
    assert!(places.len() >= copies, "{key:?} is stored {} times", places.len());
    for (_, offset, len) in places.into_iter().take(copies) {
        flip(pool, DeviceOffset(offset.0 + u64::from(len) - 1));
    }
}

fn flip(pool: &Pool, offset: DeviceOffset) {
    let mut byte = [0];
    pool.device.read_at(offset, &mut byte).unwrap();
    byte[0] ^= 0x10;
    pool.device.write_at(offset, &[&byte]).unwrap();
    pool.device.sync(sinter::device::Syncer::Checkpoint).unwrap();
}

/// Where a stored block is on the device.
fn find(pool: &Pool, content: &[u8]) -> DeviceOffset {
    let mut bytes = vec![0u8; usize::try_from(pool.device.len().0).unwrap()];
    pool.device.read_at(DeviceOffset(0), &mut bytes).unwrap();
    let place = bytes.windows(64).step_by(16).position(|window| window == &content[..64]);
    DeviceOffset(16 * place.expect("noise is stored as it is") as u64)
}

#[test]
fn a_sound_pool_needs_no_repair() {
    let pool = Pool::small(1, 400);
    let store = pool.create();
    let (one, two) = sample(&store);
    drop(store);
    assert_eq!(repair(&pool), Vec::<String>::new());
    let store = pool.open();
    assert_reads(&store, one, 0, |_| false);
    assert_reads(&store, two, 1, |_| false);
}

#[test]
fn what_is_untrue_is_counted_anew() {
    let pool = Pool::small(2, 400);
    let store = pool.create();
    let (one, two) = sample(&store);
    let root = store.map_root(one).unwrap();
    let leaf = MapNodeId(store.map_entry(root, 1).unwrap());
    let segments = store.block_segments();
    let fullest = segments.iter().max_by_key(|(_, live)| *live).unwrap().0;
    let other = segments.iter().find(|(segment, live)| *segment != fullest && *live > 64).unwrap();
    for untruth in [
        Untruth::BlockCount(BlockId(3), 0),
        Untruth::BlockCount(BlockId(4), 7),
        Untruth::BlockCount(BlockId(5), u32::MAX),
        Untruth::BlockFree(BlockId(6), true),
        Untruth::NodeCount(leaf, 9),
        Untruth::NodeCount(root, 0),
        Untruth::NodeFree(leaf, true),
        Untruth::NodeMapped(leaf, BlockCount(1)),
        Untruth::ObjectMapped(two, BlockCount(77)),
        Untruth::LiveBytes(fullest, 0),
        Untruth::LiveBytes(other.0, other.1 + 160),
        Untruth::Totals(1, 2),
    ] {
        store.plant(untruth).unwrap();
    }
    store.checkpoint_untrue().unwrap();
    drop(store);
    let found = run_check(&pool, CheckMode::LastCheckpointOnly);
    assert!(found.faults.len() >= 11, "{:#?}", found.faults);
    let repairs = repair(&pool);
    assert!(repairs.len() >= 10, "{repairs:#?}");
    let store = pool.open();
    assert_sound(&store);
    assert_reads(&store, one, 0, |_| false);
    assert_reads(&store, two, 1, |_| false);
    // A count that was too low would take away what is still referred to.
    store.zero(two, Lba(0), BlockCount(SIZE)).unwrap();
    store.checkpoint().unwrap();
    store.checkpoint().unwrap();
    assert_sound(&store);
    assert_reads(&store, one, 0, |_| false);
}

#[test]
fn p2_a_rotten_block_is_lost_wherever_it_is_mapped_and_nothing_else_is() {
    let pool = Pool::small(3, 400);
    let store = pool.create();
    let (one, two) = sample(&store);
    drop(store);
    // Block 700 of the first volume is block 50 of the second.
    flip(&pool, find(&pool, &blocks(700..701)));
    assert_eq!(run_check(&pool, CheckMode::AfterRecovery).faults.len(), 1);
    let repairs = repair(&pool);
    assert_eq!(repairs.len(), 1, "{repairs:#?}");
    assert!(repairs[0].contains("2 mappings"), "{repairs:?}");
    let store = pool.open();
    assert_sound(&store);
    assert_reads(&store, one, 0, |lba| lba == 700);
    assert_reads(&store, two, 1, |lba| lba == 50);
    store.write(one, Lba(700), &blocks(700..701)).unwrap();
    assert_reads(&store, one, 0, |_| false);
    store.checkpoint().unwrap();
    assert_sound(&store);
}

#[test]
fn below_a_map_node_that_cannot_be_read_all_is_lost_and_nothing_is_zero() {
    for node in ["leaf", "root"] {
        let pool = Pool::small(4, 400);
        let store = pool.create();
        let (one, two) = sample(&store);
        let root = store.map_root(one).unwrap();
        let (first, behind) = if node == "leaf" { (512, 1024) } else { (0, SIZE) };
        let victim = if node == "leaf" { MapNodeId(store.map_entry(root, 1).unwrap()) } else { root };
        let key = PageKey::leaf(Table::Nodes, victim.0);
        damage(&pool, &store, key, if node == "leaf" { 1 } else { 2 });
        drop(store);
        let repairs = repair(&pool);
        assert!(repairs.iter().any(|repair| repair.contains("lost")), "{repairs:#?}");
        let store = pool.open();
        assert_reads(&store, one, 0, |lba| (first..behind).contains(&lba));
        assert_reads(&store, two, 1, |_| false);
        // It can be written again, and trimmed to nothing.
        store.write(one, Lba(0), &blocks(0..SIZE)).unwrap();
        store.zero(one, Lba(600), BlockCount(50)).unwrap();
        assert_reads(&store, one, 0, |_| false);
        store.checkpoint().unwrap();
        assert_sound(&store);
        store.zero(one, Lba(0), BlockCount(SIZE)).unwrap();
        assert_eq!(store.object_mapped(one), Some(BlockCount(0)));
        store.checkpoint().unwrap();
        assert_sound(&store);
    }
}

/// Below a lost node of a high level everything is lost, and that costs a few nodes and not one for each leaf.
#[test]
fn a_large_map_is_lost_in_a_few_nodes() {
    let pool = Pool::small(5, 400);
    let store = pool.create();
    let size = (1 << 27) + 5000;
    let (object, _) = store.create_object(BlockCount(size), &[]).unwrap();
    store.write(object, Lba(size - 10), &blocks(0..10)).unwrap();
    store.checkpoint().unwrap();
    damage(&pool, &store, PageKey::leaf(Table::Nodes, store.map_root(object).unwrap().0), 2);
    drop(store);
    let repairs = repair(&pool);
    // What the repair itself has added was never counted too low, not even for a moment.
    assert!(!repairs.iter().any(|repair| repair.contains("counted 0 references")), "{repairs:#?}");
    let store = pool.open();
    assert_eq!(store.object_mapped(object), Some(BlockCount(size)));
    for lba in [0, 1 << 20, (1 << 27) - 1, 1 << 27, size - 1] {
        assert_eq!(read(&store, object, lba, 1).unwrap_err().kind(), ErrorKind::Corrupt);
    }
    let report = store.verify(&mut |_, _| {}).unwrap();
    assert!(report.faults.is_empty() && report.nodes < 12, "{} nodes", report.nodes);
    store.write(object, Lba(77), &blocks(5..6)).unwrap();
    assert!(read(&store, object, 77, 1).unwrap() == blocks(5..6));
    assert_eq!(read(&store, object, 78, 1).unwrap_err().kind(), ErrorKind::Corrupt);
    store.zero(object, Lba(0), BlockCount(size)).unwrap();
    assert_eq!(store.object_mapped(object), Some(BlockCount(0)));
    store.checkpoint().unwrap();
    assert_sound(&store);
}

#[test]
fn every_table_can_lose_a_page() {
    for table in Table::ALL {
        for copies in [1, 2] {
            let pool = Pool::small(6, 400);
            let store = pool.create();
            let (one, two) = sample(&store);
            // Something in every table: freed ids, and a directory above each.
            let (gone, _) = store.create_object(BlockCount(SIZE), &[]).unwrap();
            store.write(gone, Lba(0), &blocks(9000..9000 + SIZE)).unwrap();
            store.checkpoint().unwrap();
            store.delete_object(gone).unwrap();
            while store.background_step().unwrap() {}
            store.checkpoint().unwrap();
            store.checkpoint().unwrap();
            let height = store.directory_height(table);
            let page = PageKey { level: height, table, number: 0 };
            let stored = store.stored_copies(page).unwrap().len();
            if stored < copies {
                continue;
            }
            damage(&pool, &store, page, copies);
            drop(store);
            if table == Table::Nodes && copies == stored {
                let found = run_check(&pool, CheckMode::LastCheckpointOnly);
                let whole =
                    |place: &Place| (place.object, place.offset) == (one, 0) && place.length.0 >= SIZE * 4096;
                assert!(
                    found.faults.iter().any(|fault| fault.places.iter().any(whole)),
                    "{:#?}",
                    found.faults
                );
            }
            let repairs = repair(&pool);
            assert!(!repairs.is_empty(), "{page:?}, {copies} copies");
            let store = pool.open();
            assert_sound(&store);
            match table {
                Table::Objects if copies == stored => assert!(store.objects().unwrap().len() < 2),
                Table::Nodes | Table::Blocks if copies == stored => {
                    assert!(read(&store, one, 1, 1).is_err(), "what {page:?} named is lost: {repairs:#?}");
                }
                _ => {
                    assert_reads(&store, one, 0, |_| false);
                    assert_reads(&store, two, 1, |_| false);
                }
            }
            let (new, _) = store.create_object(BlockCount(SIZE), &[]).unwrap();
            store.write(new, Lba(0), &blocks(7000..7000 + SIZE)).unwrap();
            store.checkpoint().unwrap();
            assert_sound(&store);
        }
    }
}

/// What was written behind the checkpoint is replayed over what the repair has given up.
#[test]
fn the_log_is_replayed_over_a_mended_map() {
    let pool = Pool::small(7, 400);
    let store = pool.create();
    let (one, _) = sample(&store);
    let root = store.map_root(one).unwrap();
    let leaf = MapNodeId(store.map_entry(root, 1).unwrap());
    store.write(one, Lba(700), &blocks(700..720)).unwrap();
    store.write_out(store.last_lsn()).unwrap();
    damage(&pool, &store, PageKey::leaf(Table::Nodes, leaf.0), 1);
    drop(store);
    repair(&pool);
    let store = pool.open();
    assert_reads(&store, one, 0, |lba| (512..1024).contains(&lba) && !(700..720).contains(&lba));
}

/// A repair that is broken off at any write, and the next one, keep all that can be read.
#[test]
fn a_repair_that_is_broken_off_is_started_again() {
    let mut interrupted = 0;
    for seed in 0..60 {
        let plan = FaultPlan::new();
        let disk = Arc::new(FaultyDisk::new("disk", ByteCount(402 << 16), seed, Arc::clone(&plan)));
        let mut pool = Pool::small(seed, 400);
        pool.device = Arc::clone(&disk) as Arc<dyn Device>;
        let store = pool.create();
        let (one, two) = sample(&store);
        let mut numbers = SeededNumbers::new(seed);
        let mut written: BTreeMap<u64, u64> = BTreeMap::new();
        for _ in 0..numbers.below(40) {
            let (lba, content) = (numbers.below(500), numbers.below(3000));
            store.write(one, Lba(lba), &blocks(content..content + 1)).unwrap();
            written.insert(lba, content);
        }
        for _ in 0..20 {
            let block = BlockId(numbers.below(1500));
            store.plant(Untruth::BlockCount(block, numbers.below(4) as u32)).unwrap();
            store.plant(Untruth::BlockFree(BlockId(numbers.below(1500)), true)).unwrap();
        }
        store.plant(Untruth::NodeCount(store.map_root(one).unwrap(), 3)).unwrap();
        store.checkpoint_untrue().unwrap();
        store.write(one, Lba(501), &blocks(1..2)).unwrap();
        written.insert(501, 1);
        store.make_durable(store.last_lsn()).unwrap();
        drop(store);
        for _ in 0..3 {
            plan.stop_after(numbers.below(700));
            let outcome = check(
                pool.devices(),
                pool.options.clone(),
                pool.environment.clone(),
                CheckMode::Repair,
                &mut |_, _| {},
            );
            interrupted += u64::from(plan.is_stopped());
            assert!(outcome.is_ok() || plan.is_stopped(), "seed {seed}: {:?}", outcome.err());
            disk.crash();
            plan.restart();
            plan.forget_faults();
        }
        repair(&pool);
        let store = pool.open();
        assert_sound(&store);
        assert_reads(&store, two, 1, |_| false);
        for lba in 0..SIZE {
            let content =
                written.get(&lba).map_or_else(|| expected(0, lba), |number| blocks(*number..number + 1));
            assert!(read(&store, one, lba, 1).unwrap() == content, "seed {seed}: block {lba}");
        }
    }
    assert!(interrupted > 60, "only {interrupted} repairs were broken off");
}

/// A repair that is broken off and never finished leaves a pool that can be served: nothing that can be read is
/// taken away, and what is lost is lost in its own place only.
#[test]
fn a_repair_that_is_broken_off_and_not_finished_takes_nothing_away() {
    let mut interrupted = 0;
    for seed in 0..60 {
        let plan = FaultPlan::new();
        let disk = Arc::new(FaultyDisk::new("disk", ByteCount(402 << 16), seed, Arc::clone(&plan)));
        let mut pool = Pool::small(seed, 400);
        pool.device = Arc::clone(&disk) as Arc<dyn Device>;
        let store = pool.create();
        let (one, two) = sample(&store);
        let size = (1 << 18) + 700;
        let (large, _) = store.create_object(BlockCount(size), &[]).unwrap();
        store.write(large, Lba(size - 10), &blocks(1..11)).unwrap();
        store.write(one, Lba(100), &blocks(100..120)).unwrap();
        store.delete_object(store.create_object(BlockCount(5), &[]).unwrap().0).unwrap();
        let mut numbers = SeededNumbers::new(seed);
        for _ in 0..20 {
            let block = BlockId(numbers.below(1500));
            store.plant(Untruth::BlockCount(block, 5 + numbers.below(4) as u32)).unwrap();
        }
        store.checkpoint_untrue().unwrap();
        let key = PageKey::leaf(Table::Nodes, store.map_root(large).unwrap().0);
        damage(&pool, &store, key, 2);
        drop(store);

        plan.stop_after(numbers.below(500));
        let (devices, options, environment) =
            (pool.devices(), pool.options.clone(), pool.environment.clone());
        let outcome = check(devices, options, environment, CheckMode::Repair, &mut |_, _| {});
        interrupted += u64::from(plan.is_stopped());
        assert!(outcome.is_ok() || plan.is_stopped(), "seed {seed}: {:?}", outcome.err());
        disk.crash();
        plan.restart();
        plan.forget_faults();

        let store = pool.open();
        if store.write(large, Lba(7), &blocks(7..8)).is_ok() {
            for lba in [7 + 512, 7 + (1 << 18), 8] {
                assert!(read(&store, large, lba, 1).is_err(), "seed {seed}: block {lba} is not lost");
            }
        }
        store.zero(two, Lba(0), BlockCount(600)).unwrap();
        store.write(two, Lba(0), &blocks(50_000..50_600)).unwrap();
        for _ in 0..4 {
            store.checkpoint().unwrap();
            while store.background_step().unwrap() {}
        }
        assert_reads(&store, one, 0, |_| false);
        assert!(read(&store, two, 0, 600).unwrap() == blocks(50_000..50_600), "seed {seed}");
        store.zero(two, Lba(0), BlockCount(SIZE)).unwrap();
        store.checkpoint().unwrap();
        store.checkpoint().unwrap();
        assert_reads(&store, one, 0, |_| false);
    }
    assert!(interrupted > 20, "only {interrupted} repairs were broken off");
}

/// Two maps of which one borrows from the other's leaves: what cannot be read of either costs what it held.
#[test]
fn a_leaf_that_borrows_outlives_its_lender() {
    for damaged_lender in [true, false] {
        let pool = Pool::small(9, 600);
        let store = pool.create();
        let (one, two) = sample(&store);
        let (made, _) = store.clone_objects(&[CloneRequest { source: one, opaque: b"clone" }]).unwrap();
        // The first block of each leaf is written again with what it held.
        for lba in [0, 512, 1024] {
            store.write(one, Lba(lba), &expected(0, lba)).unwrap();
        }
        store.checkpoint().unwrap();
        assert_eq!(store.statistics().leaves_borrowing, 3);
        let of = if damaged_lender { made[0] } else { one };
        let leaf = store.map_entry(store.map_root(of).unwrap(), 1).unwrap();
        damage(&pool, &store, PageKey::leaf(Table::Nodes, leaf), 1);
        drop(store);
        repair(&pool);
        let store = pool.open();
        let damaged_leaf = |lba: u64| (512..1024).contains(&lba);
        assert_reads(&store, made[0], 0, |lba| damaged_lender && damaged_leaf(lba));
        assert_reads(&store, one, 0, |lba| !damaged_lender && damaged_leaf(lba));
        assert_reads(&store, two, 1, |_| false);
        for object in [made[0], two] {
            store.delete_object(object).unwrap();
            for _ in 0..10 {
                while store.background_step().unwrap() {}
                store.checkpoint().unwrap();
            }
        }
        assert_reads(&store, one, 0, |lba| !damaged_lender && damaged_leaf(lba));
        assert_eq!(store.statistics().leaves_borrowing, 0);
        assert_sound(&store);
    }
}

/// A lender that nothing but its borrowers reaches is mended like any other leaf.
#[test]
fn a_lender_that_no_map_reaches_is_mended() {
    let pool = Pool::small(10, 600);
    let store = pool.create();
    let (one, _) = sample(&store);
    let (made, _) = store.clone_objects(&[CloneRequest { source: one, opaque: b"clone" }]).unwrap();
    let lender = MapNodeId(store.map_entry(store.map_root(made[0]).unwrap(), 1).unwrap());
    for lba in [0, 512, 1024] {
        store.write(one, Lba(lba), &expected(0, lba)).unwrap();
    }
    store.delete_object(made[0]).unwrap();
    store.checkpoint().unwrap();
    assert_eq!(store.statistics().leaves_borrowing, 3);
    store.plant(Untruth::NodeMapped(lender, BlockCount(77))).unwrap();
    store.plant(Untruth::NodeCount(lender, 5)).unwrap();
    store.checkpoint_untrue().unwrap();
    drop(store);
    let repairs = repair(&pool);
    for what in ["77 mapped blocks", "5 references"] {
        assert!(repairs.iter().any(|repair| repair.contains(what)), "{what} of {repairs:#?}");
    }
    let store = pool.open();
    assert_eq!(store.statistics().leaves_borrowing, 3);
    assert_reads(&store, one, 0, |_| false);
    for _ in 0..10 {
        while store.background_step().unwrap() {}
        store.checkpoint().unwrap();
    }
    assert_eq!(store.statistics().leaves_borrowing, 0);
    assert_reads(&store, one, 0, |_| false);
    assert_sound(&store);
}
