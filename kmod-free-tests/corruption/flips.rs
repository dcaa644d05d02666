//! One bit turned over, anywhere on the device.

use sinter::device::Device;
use sinter::error::ErrorKind;
use sinter::store::CheckMode;
use sinter::sync::seeded::SeededNumbers;
use sinter::units::{DeviceOffset, Lba, ObjectNumber};

use crate::layout::{Live, Role, live_stretches};
use crate::pool::{Machine, bytes_of, read_all};

const SEGMENTS: u64 = 64;

fn role_at(live: &[Live], offset: u64) -> Option<Role> {
    let found = live.iter().find(|live| (live.offset..live.offset + live.len).contains(&offset));
    found.map(|live| live.role)
}

/// Flips one bit, and looks at everything; what the flip has cost is checked against what was hit.
fn flip_one(
    machine: &Machine,
    before: &sinter::device::faulty::DiskSnapshot,
    offset: u64,
    bit: u32,
    hit: Option<Role>,
) {
    let what = format!("bit {bit} at {offset} ({hit:?})");
    let flipped = machine.gone_back_to(before);
    flipped.disk.flip_bit(DeviceOffset(offset), bit);

    let report =
        flipped.check(CheckMode::LastCheckpointOnly).unwrap_or_else(|error| panic!("{what}: {error}"));
    let in_checkpoint =
        matches!(hit, Some(Role::Root | Role::PageTwice(_) | Role::PageOnce(_) | Role::Block));
    assert_eq!(!report.faults.is_empty(), in_checkpoint, "{what}: check says {:?}", report.faults);

    let (store, report) = flipped.open().unwrap_or_else(|error| panic!("{what}: opening: {error}"));
    let state = flipped.model.at(report.last_lsn.0);
    let lost = matches!(hit, Some(Role::Batch | Role::LogSegmentHeader));
    let replay_needs_it = matches!(hit, Some(Role::PageOnce(_)));
    if !report.damage.is_empty() {
        assert!(lost || replay_needs_it, "{what}: {:?}", report.damage);
        let refused = store.write(ObjectNumber(1), Lba(0), &bytes_of(&[5])).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Stopped, "{what}: {refused}");
    } else {
        assert!(!lost, "{what}: the damage goes unnoticed");
        assert!(state == flipped.model.now(), "{what}: operations are missing");
    }
    let reads = read_all(&store, &flipped.model.sizes, &state, &[ErrorKind::Corrupt], &what);
    assert!(reads.refused == 0 || replay_needs_it || hit == Some(Role::Block), "{what}: {reads:?}");
    if !report.damage.is_empty() || hit.is_none() {
        return;
    }
    // The store goes on, and what is new is safe.
    let mut flipped = flipped;
    let fresh = flipped.create(&store, 64);
    flipped
        .write(&store, fresh, 0, &[1001, 1002, 7, 3])
        .unwrap_or_else(|error| panic!("{what}: writing: {error}"));
    store.checkpoint().unwrap_or_else(|error| panic!("{what}: a checkpoint: {error}"));
    for _ in 0..4 {
        store.background_step().unwrap_or_else(|error| panic!("{what}: background work: {error}"));
    }
    drop(store);
    let (store, _) = flipped.open().unwrap_or_else(|error| panic!("{what}: opening again: {error}"));
    let state = flipped.model.now();
    read_all(&store, &flipped.model.sizes, &state, &[ErrorKind::Corrupt], &what);
}

#[test]
fn p2_a_bit_turned_over_anywhere_is_noticed_and_costs_only_what_it_hit() {
    let (machine, store) = Machine::filled(11, SEGMENTS);
    drop(store);
    let before = machine.disk.snapshot();
    let live = live_stretches(&machine.disk);
    let mut numbers = SeededNumbers::new(5);
    let mut hits = 0;
    for stretch in (0..machine.disk.len().0).step_by(4096) {
        let here: Vec<&Live> =
            live.iter().filter(|live| (stretch..stretch + 4096).contains(&live.offset)).collect();
        // Anywhere, and in up to two of the things that begin here.
        let mut places = vec![stretch + numbers.below(4096)];
        for _ in 0..here.len().min(2) {
            let chosen = here[numbers.index(here.len())];
            places.push(chosen.offset + numbers.below(chosen.len));
        }
        for offset in places {
            let hit = role_at(&live, offset);
            hits += u64::from(hit.is_some());
            flip_one(&machine, &before, offset, numbers.below(8) as u32, hit);
        }
    }
    assert!(hits > 100, "only {hits} flips hit anything");
}

#[test]
fn p2_metadata_of_every_kind_is_hit() {
    let (machine, store) = Machine::filled(12, SEGMENTS);
    drop(store);
    let before = machine.disk.snapshot();
    let live = live_stretches(&machine.disk);
    let mut numbers = SeededNumbers::new(6);
    let mut kinds: Vec<Role> = Vec::new();
    for live in &live {
        let seen = kinds.iter().filter(|role| **role == live.role).count();
        let enough = if matches!(live.role, Role::Block | Role::Batch) { 6 } else { 16 };
        if seen >= enough {
            continue;
        }
        kinds.push(live.role);
        let offset = live.offset + numbers.below(live.len);
        flip_one(&machine, &before, offset, numbers.below(8) as u32, Some(live.role));
    }
    kinds.dedup();
    for role in [Role::Superblock, Role::Root, Role::Block, Role::Batch, Role::LogSegmentHeader] {
        assert!(kinds.contains(&role), "nothing of the kind {role:?} was hit");
    }
}
