//! Devices that lose, misdirect or refuse: writes, syncs, reads, and room.

use std::panic::{AssertUnwindSafe, catch_unwind};

use sinter::device::Device;
use sinter::device::faulty::Fault;
use sinter::error::ErrorKind;
use sinter::format::page::Table;
use sinter::store::{CheckMode, Store};
use sinter::sync::seeded::SeededNumbers;
use sinter::units::{BLOCK_BYTES, ByteCount, DeviceOffset, Lba, ObjectNumber};

use crate::layout::{Role, live_stretches};
use crate::pool::{Content, Machine, OPERATION_BLOCKS, SEGMENT_BYTES, bytes_of, read_all};

const CORRUPT: &[ErrorKind] = &[ErrorKind::Corrupt];

/// Writes and trims here and there; errors end it.
fn work(machine: &mut Machine, store: &Store, numbers: &mut SeededNumbers, rounds: u64) {
    let volumes: Vec<(u64, u64)> =
        machine.model.sizes.iter().map(|(object, size)| (*object, *size)).collect();
    for round in 0..rounds {
        let (object, size) = volumes[numbers.index(volumes.len())];
        let first = numbers.below(size - 8);
        // Short operations, each handed over by itself: no write is a whole segment of the log, whose loss
        // cannot be told from a torn tail.
        let contents: Vec<Content> = (0..2).map(|_| 1 + numbers.below(600)).collect();
        let written = machine.write(store, ObjectNumber(object), first, &contents);
        if written.and_then(|lsn| store.write_out(lsn)).is_err() {
            return;
        }
        let done = match round % 6 {
            2 => machine.flush(store),
            4 => store.background_step().map(|_| ()),
            5 if round % 18 == 5 => store.checkpoint(),
            _ => Ok(()),
        };
        if done.is_err() {
            return;
        }
    }
}

/// One write goes astray, then everything is synced and read from the medium.
fn astray(seed: u64, fault: Fault) -> (bool, u64) {
    let (mut machine, store) = Machine::filled(seed, 96);
    let mut numbers = SeededNumbers::new(seed);
    let what = format!("seed {seed}, {fault:?}");
    if seed.is_multiple_of(2) {
        machine.plan.inject(fault, numbers.below(60));
        work(&mut machine, &store, &mut numbers, 40);
    } else {
        // No checkpoint behind it: the log has to be replayed.
        machine.plan.inject(fault, numbers.below(4));
        work(&mut machine, &store, &mut numbers, 4);
    }
    let flushed = machine.flush(&store).is_ok();
    if flushed && seed.is_multiple_of(4) {
        let _ = store.checkpoint();
    }
    drop(store);
    // What is astray shows once the cache has gone: opening drops it.
    let opened = machine.open();
    let (store, report) = match opened {
        Ok(opened) => opened,
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: opening: {error}");
            return (true, 0);
        }
    };
    let state = machine.model.at(report.last_lsn.0);
    if report.damage.is_empty() {
        assert!(state == machine.model.now(), "{what}: operations are missing, and nobody says so");
    } else {
        let refused = store.write(ObjectNumber(1), Lba(0), &bytes_of(&[5])).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Stopped, "{what}");
    }
    let reads = read_all(&store, &machine.model.sizes, &state, CORRUPT, &what);
    (!report.damage.is_empty(), reads.refused)
}

fn astray_sweep(fault: Fault) {
    let (mut damaged, mut refused) = (0, 0);
    for seed in 0..60 {
        let outcome = catch_unwind(AssertUnwindSafe(|| astray(seed, fault)));
        let (damage, errors) = outcome.unwrap_or_else(|_| panic!("seed {seed} failed"));
        damaged += u64::from(damage);
        refused += u64::from(errors > 0);
    }
    assert!(damaged > 0 && refused > 0, "{damaged} damaged, {refused} refused: the faults hit nothing");
}

#[test]
fn p2_a_lost_write_is_noticed() {
    astray_sweep(Fault::LoseWrite);
}

#[test]
fn p2_a_misdirected_write_is_noticed() {
    astray_sweep(Fault::MisdirectWrite);
}

#[test]
fn a_damaged_log_opens_at_its_last_intact_operation_when_told_to() {
    let (mut machine, store) = Machine::filled(21, 64);
    drop(store);
    let batch = live_stretches(&machine.disk).into_iter().find(|live| live.role == Role::Batch).unwrap();
    machine.disk.flip_bit(DeviceOffset(batch.offset + 40), 0);
    let (store, report) = machine.open().unwrap();
    assert!(!report.damage.is_empty());
    assert_eq!(store.make_durable(report.last_lsn.next()).unwrap_err().kind(), ErrorKind::Stopped);
    assert_eq!(store.background_step().unwrap_err().kind(), ErrorKind::Stopped);
    assert_eq!(store.checkpoint().unwrap_err().kind(), ErrorKind::Stopped);
    let state = machine.model.at(report.last_lsn.0);
    read_all(&store, &machine.model.sizes, &state, &[], "read-only");
    drop(store);
    let after = machine.check(CheckMode::AfterRecovery).unwrap();
    assert!(after.faults.iter().any(|fault| fault.what.contains("durable")), "{:?}", after.faults);

    machine.options.accept_loss = true;
    let (store, accepted) = machine.open().unwrap();
    assert_eq!(accepted.last_lsn, report.last_lsn);
    machine.model.forget_after(accepted.last_lsn.0);
    machine.write(&store, ObjectNumber(1), 0, &[5, 9]).unwrap();
    machine.flush(&store).unwrap();
    drop(store);
    machine.options.accept_loss = false;
    let (store, report) = machine.open().unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    read_all(&store, &machine.model.sizes, &machine.model.now(), &[], "after the loss was accepted");
    assert_eq!(machine.check(CheckMode::LastCheckpointOnly).unwrap().faults, []);
}

#[test]
fn p2_damage_is_noticed_many_segments_before_the_batch_that_calls_it_durable() {
    let (mut machine, store) = Machine::new(23, 128);
    let volume = machine.create(&store, 4096);
    machine.flush(&store).unwrap();
    store.checkpoint().unwrap();
    for first in (0..160 * OPERATION_BLOCKS as u64).step_by(OPERATION_BLOCKS) {
        let contents: Vec<Content> = (0..4).map(|block| (first * 8 + block) * 7 + 1).collect();
        let lsn = machine.write(&store, volume, first, &contents).unwrap();
        store.write_out(lsn).unwrap();
    }
    machine.flush(&store).unwrap();
    drop(store);
    let batches: Vec<u64> = live_stretches(&machine.disk)
        .into_iter()
        .filter(|live| live.role == Role::Batch && live.len > 1024)
        .map(|live| live.offset)
        .collect();
    let segments = (batches[batches.len() - 1] - batches[0]) / SEGMENT_BYTES;
    assert!(segments > 6, "the log fills only {segments} segments");
    let snapshot = machine.disk.snapshot();
    for part in 0..10 {
        let machine = machine.gone_back_to(&snapshot);
        machine.disk.flip_bit(DeviceOffset(batches[batches.len() * part / 10] + 100), 3);
        let (_, report) = machine.open().unwrap();
        assert!(!report.damage.is_empty(), "damage at {part}/10 of the log was taken for its end");
    }
    // The header of a segment says where the log goes on: without it nothing leads to what lies behind.
    let mut begun: Vec<u64> = batches.iter().map(|offset| offset / SEGMENT_BYTES * SEGMENT_BYTES).collect();
    begun.dedup();
    for header in &begun[1..] {
        let machine = machine.gone_back_to(&snapshot);
        machine.disk.flip_bit(DeviceOffset(header + 17), 2);
        let (_, report) = machine.open().unwrap();
        assert!(!report.damage.is_empty(), "a damaged header at {header} was taken for the end of the log");
    }
}

#[test]
fn p2_writing_a_bad_block_again_heals_it_everywhere() {
    let (mut machine, store) = Machine::new(31, 64);
    let one = machine.create(&store, 100);
    let other = machine.create(&store, 100);
    machine.write(&store, one, 3, &[1009]).unwrap();
    machine.write(&store, other, 50, &[1009, 1011]).unwrap();
    store.checkpoint().unwrap();
    let block = *live_stretches(&machine.disk).iter().find(|live| live.role == Role::Block).unwrap();
    machine.disk.flip_bit(DeviceOffset(block.offset + 7), 2);
    let state = machine.model.now();
    let reads = read_all(&store, &machine.model.sizes, &state, CORRUPT, "damaged");
    assert_eq!(reads.refused, 2, "both volumes share the block");
    assert_eq!(store.statistics().bad_blocks, 1);
    // The same content to a third place: stored anew, under the old id.
    let outcome = store.write(one, Lba(90), &bytes_of(&[1009])).unwrap();
    assert_eq!((outcome.new_blocks, outcome.duplicate_blocks), (1, 0));
    machine.model.note(outcome.lsn.0, one.0, 90, 1009);
    let state = machine.model.now();
    assert_eq!(read_all(&store, &machine.model.sizes, &state, &[], "healed").refused, 0);
    machine.flush(&store).unwrap();
    drop(store);
    for _ in 0..2 {
        let (store, _) = machine.open().unwrap();
        assert_eq!(read_all(&store, &machine.model.sizes, &state, &[], "opened again").refused, 0);
        assert_eq!(store.verify(&mut |_, _| {}).unwrap().faults, []);
    }
}

#[test]
fn p1_a_failed_sync_stops_writes_and_loses_nothing_that_was_flushed() {
    for seed in 0..20 {
        let (mut machine, store) = Machine::filled(seed, 64);
        let volume = *machine.model.sizes.keys().next().unwrap();
        let promised = machine.write(&store, ObjectNumber(volume), 0, &[701, 702]).unwrap();
        store.make_durable(promised).unwrap();
        let torn = machine.write(&store, ObjectNumber(volume), 1, &[703, 704]).unwrap();
        machine.plan.inject(Fault::FailSync, 0);
        assert_eq!(store.make_durable(torn).unwrap_err().kind(), ErrorKind::Stopped, "seed {seed}");
        // No second attempt: what the first lost would be called durable.
        assert_eq!(store.make_durable(torn).unwrap_err().kind(), ErrorKind::Stopped, "seed {seed}");
        let write = store.write(ObjectNumber(volume), Lba(5), &bytes_of(&[705]));
        assert_eq!(write.unwrap_err().kind(), ErrorKind::Stopped, "seed {seed}");
        let what = format!("seed {seed}, stopped");
        read_all(&store, &machine.model.sizes, &machine.model.now(), &[], &what);
        drop(store);
        machine.disk.kill_process();
        let (store, report) = machine.open().unwrap();
        assert!(report.damage.is_empty(), "seed {seed}: {:?}", report.damage);
        assert!(report.last_lsn >= promised, "seed {seed}: what was flushed has gone");
        machine.model.forget_after(report.last_lsn.0);
        let what = format!("seed {seed}, opened again");
        read_all(&store, &machine.model.sizes, &machine.model.now(), &[], &what);
        machine.write(&store, ObjectNumber(volume), 8, &[706]).unwrap();
        machine.flush(&store).unwrap();
    }
}

#[test]
fn p2_a_failed_read_is_that_requests_error_alone() {
    let (machine, store) = Machine::filled(41, 64);
    store.checkpoint().unwrap();
    drop(store);
    let before = machine.disk.snapshot();
    let state = machine.model.now();
    for ((object, lba), content) in state.iter().take(40) {
        let machine = machine.gone_back_to(&before);
        let (store, _) = machine.open().unwrap();
        let mut block = vec![0u8; BLOCK_BYTES];
        machine.plan.inject(Fault::FailRead, 0);
        match store.read(ObjectNumber(*object), Lba(*lba), &mut block, true) {
            Ok(_) => assert!(block == bytes_of(&[*content]), "block {lba} of {object}"),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Device, "block {lba} of {object}: {error}"),
        }
        machine.plan.forget_faults();
        store.read(ObjectNumber(*object), Lba(*lba), &mut block, true).unwrap();
        assert!(block == bytes_of(&[*content]), "block {lba} of {object}, read again");
    }
}

/// The ids that would be given out next may be those of a page that is damaged.
#[test]
fn p2_a_damaged_page_of_the_block_table_keeps_nothing_new_from_being_written() {
    let (machine, store) = Machine::filled(42, 96);
    store.checkpoint().unwrap();
    drop(store);
    let before = machine.disk.snapshot();
    let pages = live_stretches(&machine.disk);
    let pages: Vec<_> = pages.iter().filter(|live| live.role == Role::PageOnce(Table::Blocks)).collect();
    assert!(pages.len() > 1, "{pages:?}");
    for page in pages {
        let mut machine = machine.gone_back_to(&before);
        machine.disk.flip_bit(DeviceOffset(page.offset + page.len / 2), 3);
        let (store, report) = machine.open().unwrap();
        assert!(report.damage.is_empty(), "{:?}", report.damage);
        let fresh = machine.create(&store, 400);
        let mut numbers = SeededNumbers::new(page.offset);
        for lba in (0..400).step_by(8) {
            let contents: Vec<Content> = (0..8).map(|_| numbers.number() | 1).collect();
            machine.write(&store, fresh, lba, &contents).unwrap();
        }
        machine.flush(&store).unwrap();
        store.checkpoint().unwrap();
        drop(store);
        let (store, _) = machine.open().unwrap();
        let sizes = [(fresh.0, 400)].into();
        read_all(&store, &sizes, &machine.model.now(), &[], "written beside a damaged page");
    }
}

#[test]
fn p5_failed_reads_of_background_work_free_nothing_that_is_needed() {
    for seed in 0..40 {
        let (mut machine, store) = Machine::filled(seed, 64);
        drop(store);
        // A cold cache: background work must read its pages.
        let (store, _) = machine.open().unwrap();
        let mut numbers = SeededNumbers::new(seed);
        for _ in 0..6 {
            machine.plan.inject(Fault::FailRead, numbers.below(40));
        }
        work(&mut machine, &store, &mut numbers, 40);
        machine.plan.forget_faults();
        let flushed = machine.flush(&store).is_ok() && store.checkpoint().is_ok();
        drop(store);
        let (store, report) = machine.open().unwrap();
        assert!(report.damage.is_empty(), "seed {seed}: {:?}", report.damage);
        if !flushed {
            machine.model.forget_after(report.last_lsn.0);
        }
        work(&mut machine, &store, &mut numbers, 60);
        machine.flush(&store).unwrap();
        store.checkpoint().unwrap();
        let what = format!("seed {seed}");
        read_all(&store, &machine.model.sizes, &machine.model.now(), &[], &what);
    }
}

#[test]
fn p5_a_host_without_room_is_a_full_pool_until_it_has_room_again() {
    let (mut machine, store) = Machine::filled(51, 96);
    let volume = *machine.model.sizes.keys().last().unwrap();
    let taken = machine.disk.len().0 / 3;
    machine.disk.limit_room(Some(ByteCount(taken)));
    let mut numbers = SeededNumbers::new(51);
    let mut refused = None;
    for _ in 0..600 {
        let contents: Vec<Content> = (0..8).map(|_| numbers.number() | 1).collect();
        if let Err(error) = machine.write(&store, ObjectNumber(volume), numbers.below(2900), &contents) {
            refused = Some(error);
            break;
        }
    }
    let refused = refused.expect("the host's room is far less than was written");
    assert_eq!(refused.kind(), ErrorKind::NoSpace, "{refused}");
    assert!(store.statistics().host_full, "whoever looks is told why");
    read_all(&store, &machine.model.sizes, &machine.model.now(), &[], "without room");
    // A checkpoint has the room that it needs set aside, and an opening, too.
    store.checkpoint().unwrap();
    machine.zero(&store, ObjectNumber(volume), 0, 64).unwrap();
    machine.flush(&store).unwrap();
    store.checkpoint().unwrap();
    drop(store);
    let (store, report) = machine.open().unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    read_all(&store, &machine.model.sizes, &machine.model.now(), &[], "opened without room");
    store.checkpoint().unwrap();
    machine.disk.limit_room(None);
    for lba in 0..8 {
        machine.write(&store, ObjectNumber(volume), lba * 8, &[numbers.number() | 1; 8]).unwrap();
    }
    machine.flush(&store).unwrap();
    store.checkpoint().unwrap();
    assert!(!store.statistics().host_full);
    read_all(&store, &machine.model.sizes, &machine.model.now(), &[], "with room again");
}
