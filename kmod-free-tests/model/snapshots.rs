//! Snapshots, clones and restores: what they hold, what they are called, and what they outlive.

use std::collections::BTreeMap;
use std::sync::Arc;

use sinter::array::Array;
use sinter::array::BlockService;
use sinter::array::ChangeSource;
use sinter::array::ExtentKind;
use sinter::array::NewClone;
use sinter::array::NewSnapshot;
use sinter::array::NewVolume;
use sinter::array::RestoreTarget;
use sinter::array::SnapshotWhich;
use sinter::array::VolumeState;
use sinter::array::VolumeUpdate;
use sinter::error::ErrorKind;
use sinter::units::ByteCount;

use crate::be_polite;
use crate::kind;
use crate::management::array;
use crate::management::open;
use crate::pool::new_store;

fn with_volume(size: u64) -> Arc<Array> {
    let array = array();
    volume(&array, "v", size);
    array
}

fn volume(array: &Array, name: &str, size: u64) {
    let new = NewVolume { name: name.to_owned(), size: ByteCount(size), ..NewVolume::default() };
    array.create_volume(new).unwrap();
}

fn named(name: &str) -> NewSnapshot {
    NewSnapshot { name: Some(name.to_owned()), ..NewSnapshot::default() }
}

fn snap(array: &Array, volume: &str, name: &str) {
    array.create_snapshot(volume, &named(name)).unwrap();
}

fn clone(name: &str) -> NewClone {
    NewClone { name: name.to_owned(), description: None }
}

fn which(text: &str) -> SnapshotWhich<'_> {
    SnapshotWhich::parse(text).unwrap()
}

fn write(array: &Array, name: &str, offset: u64, data: &[u8]) {
    array.open(name).unwrap().write(offset, data).unwrap();
}

/// The whole of a volume or snapshot.
fn contents(array: &Array, name: &str) -> Vec<u8> {
    let service = array.open(name).unwrap();
    let mut all = vec![0; usize::try_from(service.size().0).unwrap()];
    service.read(0, &mut all).unwrap();
    all
}

#[test]
fn a_snapshot_keeps_what_was_and_nothing_can_be_written_to_it() {
    let array = with_volume(16_384);
    write(&array, "v", 0, &[1; 10_000]);
    let before = contents(&array, "v");
    let info = array.create_snapshot("v", &named("s")).unwrap();
    assert_eq!((info.size_bytes.0, info.used_bytes.0), (16_384, 12_288));
    assert_eq!((info.volume_name.as_str(), info.volume_is_deleted), ("v", false));
    write(&array, "v", 4000, &[2; 8000]);
    array.resize_volume("v", ByteCount(32_768)).unwrap();
    assert_eq!(contents(&array, "v@s"), before);
    assert_ne!(contents(&array, "v")[..16_384], before);

    let snapshot = array.open("v@s").unwrap();
    assert!(snapshot.read_only());
    assert_eq!(kind(snapshot.write(0, &[3])), ErrorKind::ReadOnly);
    assert_eq!(kind(snapshot.write_zeroes(0, ByteCount(1))), ErrorKind::ReadOnly);
    assert_eq!(kind(snapshot.trim(0, ByteCount(4096))), ErrorKind::ReadOnly);
    snapshot.flush().unwrap();
    assert_eq!(array.snapshot(which("v@s")).unwrap().state, VolumeState::InUse);
    assert_eq!(kind(array.delete_snapshot(which("v@s"), false)), ErrorKind::Busy);
    array.delete_snapshot(which("v@s"), true).unwrap();
    assert_eq!(kind(snapshot.read(0, &mut [0; 1])), ErrorKind::NotFound);
    assert!(snapshot.is_deleted());
    assert_eq!(kind(array.snapshot(which("v@s"))), ErrorKind::NotFound);
    assert_eq!(array.status().snapshots, 0);
}

#[test]
fn defect_6_snapshots_and_clones_outlive_their_volume() {
    let (store, environment) = new_store(6);
    let first = open(&store, &environment);
    volume(&first, "v", 16_384);
    write(&first, "v", 0, &[1; 4096]);
    snap(&first, "v", "s");
    first.clone_volume("v", &clone("c")).unwrap();
    first.clone_snapshot(which("v@s"), &clone("d")).unwrap();
    let expected = contents(&first, "v");
    let id = first.volume("v").unwrap().id.to_string();
    first.delete_volume("v", false).unwrap();

    for array in [first.clone(), open(&store, &environment)] {
        assert_eq!(kind(array.volume("v")), ErrorKind::NotFound);
        assert_eq!(contents(&array, "c"), expected);
        assert_eq!(contents(&array, "d"), expected);
        for name in ["v", id.as_str()] {
            assert_eq!(contents(&array, &format!("{name}@s")), expected);
            let listed = array.snapshots_of(name).unwrap();
            assert_eq!((listed.len(), listed[0].volume_name.as_str()), (1, "v"));
            assert!(listed[0].volume_is_deleted);
        }
        assert_eq!(array.snapshots().len(), 1);
    }
    let restored = first.restore_snapshot(which("v@s"), &RestoreTarget::New { name: None }).unwrap();
    assert_eq!(
        (restored.name.as_str(), restored.description.as_str()),
        ("v-restored", "Restored from snapshot s")
    );
    assert_eq!(contents(&first, "v-restored"), expected);
    first.delete_snapshot(which("v@s"), false).unwrap();
    assert_eq!(kind(first.snapshots_of(&id)), ErrorKind::NotFound, "nothing is left of the volume");
    assert_eq!(contents(&first, "d"), expected);
}

#[test]
fn a_name_means_the_living_volume_first_then_the_newest_that_is_gone() {
    let array = array();
    for (round, snapshots) in [&["both", "old"][..], &["both", "new"], &["live"]].into_iter().enumerate() {
        volume(&array, "v", 4096);
        write(&array, "v", 0, &[u8::try_from(round).unwrap() + 1; 4096]);
        for name in snapshots {
            snap(&array, "v", name);
        }
        if round < 2 {
            array.delete_volume("v", false).unwrap();
        }
    }
    for (name, value) in [("old", 1), ("both", 2), ("new", 2), ("live", 3)] {
        assert_eq!(contents(&array, &format!("v@{name}"))[0], value, "{name}");
    }
    assert_eq!(array.snapshots_of("v").unwrap().len(), 1, "of the living one");
    assert_eq!(array.snapshots().len(), 5);
    assert_eq!(array.snapshot_counts().len(), 3);
}

#[test]
fn a_renamed_volume_is_known_by_its_last_name() {
    let (store, environment) = new_store(7);
    let array = open(&store, &environment);
    volume(&array, "old", 4096);
    snap(&array, "old", "s");
    let renaming = VolumeUpdate { name: Some("new".to_owned()), ..VolumeUpdate::default() };
    array.update_volume("old", renaming).unwrap();
    assert_eq!(array.snapshot(which("new@s")).unwrap().volume_name, "new");
    assert_eq!(kind(array.snapshot(which("old@s"))), ErrorKind::NotFound);
    array.delete_volume("new", false).unwrap();
    let array = open(&store, &environment);
    assert_eq!(array.snapshot(which("new@s")).unwrap().volume_name, "new");
    assert_eq!(kind(array.snapshot(which("old@s"))), ErrorKind::NotFound);
}

#[test]
fn a_group_is_of_one_moment() {
    let array = array();
    volume(&array, "a", 1 << 20);
    volume(&array, "b", 1 << 20);
    let write_both = {
        let array = array.clone();
        move || {
            be_polite();
            let (a, b) = (array.open_volume("a").unwrap(), array.open_volume("b").unwrap());
            for round in 1..=255u8 {
                // The second volume never has what the first does not have yet.
                a.write(0, &[round; 4096]).unwrap();
                b.write(0, &[round; 4096]).unwrap();
            }
        }
    };
    let both = ["a".to_owned(), "b".to_owned()];
    let take_snapshots = || {
        be_polite();
        for round in 0..30 {
            let made = array.create_snapshots(&both, &named(&format!("g{round}"))).unwrap();
            assert_eq!((made[0].volume_name.as_str(), made[1].volume_name.as_str()), ("a", "b"));
            assert_eq!(made[0].created_at, made[1].created_at);
            let (a, b) =
                (contents(&array, &format!("a@g{round}"))[0], contents(&array, &format!("b@g{round}"))[0]);
            assert!(a == b || a == b + 1, "{a} and {b} are of two moments");
        }
    };
    std::thread::scope(|scope| {
        scope.spawn(write_both);
        scope.spawn(take_snapshots);
    });

    let count = array.snapshots().len();
    let refused = |volumes: &[&str], name: &str| {
        let volumes: Vec<String> = volumes.iter().map(|name| (*name).to_owned()).collect();
        kind(array.create_snapshots(&volumes, &named(name)))
    };
    assert_eq!(refused(&[], "x"), ErrorKind::Invalid);
    assert_eq!(refused(&["a", "a"], "x"), ErrorKind::Invalid);
    assert_eq!(refused(&["a", "none"], "x"), ErrorKind::NotFound);
    assert_eq!(refused(&["a", "b"], "g1"), ErrorKind::Exists);
    assert_eq!(refused(&["a", "b"], "a/b"), ErrorKind::Invalid);
    assert_eq!(array.snapshots().len(), count, "all of a group or none");
}

#[test]
fn a_restore_replaces_all_and_never_shrinks() {
    let array = with_volume(16_384);
    write(&array, "v", 0, &[1; 16_384]);
    snap(&array, "v", "small");
    array.resize_volume("v", ByteCount(32_768)).unwrap();
    write(&array, "v", 0, &[2; 32_768]);
    snap(&array, "v", "large");
    let onto = |volume: &str, force| RestoreTarget::Onto { volume: volume.to_owned(), force };

    let info = array.restore_snapshot(which("v@small"), &onto("v", false)).unwrap();
    assert_eq!((info.size_bytes.0, info.used_bytes.0), (32_768, 16_384));
    let all = contents(&array, "v");
    assert!(all[..16_384].iter().all(|byte| *byte == 1) && all[16_384..].iter().all(|byte| *byte == 0));

    volume(&array, "other", 4096);
    let client = array.open_volume("other").unwrap();
    assert_eq!(kind(array.restore_snapshot(which("v@large"), &onto("other", false))), ErrorKind::Busy);
    assert_eq!(client.size().0, 4096);
    array.restore_snapshot(which("v@large"), &onto("other", true)).unwrap();
    assert_eq!(client.size().0, 32_768, "it has grown");
    assert_eq!(contents(&array, "other"), [2; 32_768]);
    assert_eq!(kind(array.restore_snapshot(which("v@large"), &onto("none", true))), ErrorKind::NotFound);
    assert_eq!(kind(array.restore_snapshot(which("v@none"), &onto("v", true))), ErrorKind::NotFound);

    for expected in ["v-restored", "v-restored-2"] {
        let made = array.restore_snapshot(which("v@small"), &RestoreTarget::New { name: None }).unwrap();
        assert_eq!((made.name.as_str(), made.size_bytes.0), (expected, 16_384));
    }
    let taken = RestoreTarget::New { name: Some("v".to_owned()) };
    assert_eq!(kind(array.restore_snapshot(which("v@small"), &taken)), ErrorKind::Exists);
}

/// Lets all walks that were asked for come to their end.
fn measure(array: &Array) {
    while array.measure_step().unwrap() {}
}

#[test]
fn what_deleting_a_snapshot_frees_is_counted_when_asked_for() {
    let (store, environment) = new_store(9);
    let array = open(&store, &environment);
    volume(&array, "v", 1 << 20);
    let noise = |seed: u8| -> Vec<u8> {
        let mut state = u64::from(seed) | 1;
        let mut next = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        };
        (0..40_960).map(|_| next()).collect()
    };
    write(&array, "v", 0, &noise(1));
    snap(&array, "v", "s");
    write(&array, "v", 0, &noise(3));
    let show = || array.snapshot(which("v@s")).unwrap();
    assert_eq!(show().reclaimable_bytes, None, "nobody has asked");
    array.request_measurement(show().id);
    assert_eq!(show().reclaimable_bytes, None, "it is not done yet");
    measure(&array);
    let reclaimable = show().reclaimable_bytes.unwrap();
    assert!(reclaimable.0 >= 40_960, "{reclaimable}");

    store.checkpoint().unwrap();
    let before = store.statistics().stored_data_bytes;
    array.delete_snapshot(which("v@s"), false).unwrap();
    for _ in 0..10 {
        while store.background_step().unwrap() {}
        store.checkpoint().unwrap();
    }
    assert_eq!(before - store.statistics().stored_data_bytes, 40_960, "ten blocks that do not compress");
}

#[test]
fn a_volumes_ratio_is_measured_on_its_own_blocks() {
    let array = array();
    volume(&array, "even", 1 << 20);
    volume(&array, "odd", 1 << 20);
    write(&array, "even", 0, &b"compresses".repeat(8192)[..65_536]);
    let mut state = 1u64;
    let noise: Vec<u8> = (0..65_536)
        .map(|_| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 33) as u8
        })
        .collect();
    write(&array, "odd", 0, &noise);
    let (even, odd) = (array.volume("even").unwrap(), array.volume("odd").unwrap());
    assert!((even.reduction_ratio - odd.reduction_ratio).abs() < 1e-9, "both are taken to be average");
    assert_eq!((even.reduction_measured_at, odd.reduction_measured_at), (None, None));
    for info in [&even, &odd] {
        array.request_measurement(info.id);
    }
    measure(&array);
    let (even, odd) = (array.volume("even").unwrap(), array.volume("odd").unwrap());
    assert!(even.reduction_ratio > 5.0 && (odd.reduction_ratio - 1.0).abs() < 0.01, "{even:?} {odd:?}");
    assert!(even.reduction_measured_at.is_some() && odd.reduction_measured_at.is_some());
    // Writes change what a volume holds, also where it holds as much as before; those to others do not.
    write(&array, "even", 0, &noise);
    let (even, odd) = (array.volume("even").unwrap(), array.volume("odd").unwrap());
    assert_eq!(even.reduction_measured_at, None, "{even:?}");
    assert!(odd.reduction_measured_at.is_some() && even.reduction_ratio < 5.0, "{even:?} {odd:?}");
    array.request_measurement(even.id);
    measure(&array);
    assert!(array.volume("even").unwrap().reduction_measured_at.is_some());
    array.open_volume("even").unwrap().trim(0, ByteCount(4096)).unwrap();
    assert_eq!(array.volume("even").unwrap().reduction_measured_at, None);
}

#[test]
fn clones_go_their_own_way() {
    let array = array();
    let tags = BTreeMap::from([("env".to_owned(), "production".to_owned())]);
    let new =
        NewVolume { name: "v".to_owned(), size: ByteCount(8192), tags: tags.clone(), ..NewVolume::default() };
    let source = array.create_volume(new).unwrap();
    write(&array, "v", 0, &[1; 8192]);
    let made = array.clone_volume("v", &clone("c")).unwrap();
    assert_eq!((made.size_bytes, made.used_bytes.0, &made.tags), (source.size_bytes, 8192, &tags));
    assert_eq!(made.description, "Clone of v");
    write(&array, "v", 0, &[2; 4096]);
    write(&array, "c", 4096, &[3; 4096]);
    assert_eq!((contents(&array, "v")[0], contents(&array, "v")[4096]), (2, 1));
    assert_eq!((contents(&array, "c")[0], contents(&array, "c")[4096]), (1, 3));
    assert_eq!(kind(array.clone_volume("v", &clone("c"))), ErrorKind::Exists);
    assert_eq!(kind(array.clone_volume("none", &clone("e"))), ErrorKind::NotFound);
    assert_eq!(kind(array.clone_volume("v", &clone("a@b"))), ErrorKind::Invalid);
    assert_eq!(array.volumes().len(), 2);
}

#[test]
fn names_are_made_where_none_is_given() {
    let array = with_volume(4096);
    let names: Vec<String> =
        (0..3).map(|_| array.create_snapshot("v", &NewSnapshot::default()).unwrap().name).collect();
    assert!(names.iter().all(|name| name.starts_with("v-snap-")), "{names:?}");
    assert!(names[0] != names[1] && names[1] != names[2], "{names:?}");
    snap(&array, "v", "s");
    assert_eq!(kind(array.create_snapshot("v", &named("s"))), ErrorKind::Exists);
    volume(&array, "w", 4096);
    snap(&array, "w", "s");
    for bad in ["", "a@b", "a/b", "..", "550e8400-e29b-41d4-a716-446655440000"] {
        assert_eq!(kind(array.create_snapshot("v", &named(bad))), ErrorKind::Invalid, "{bad}");
    }
}

#[test]
fn what_has_changed_is_found() {
    let array = with_volume(64 << 20);
    write(&array, "v", 0, &[1; 8192]);
    write(&array, "v", 40 << 20, &[2; 4096]);
    snap(&array, "v", "a");
    write(&array, "v", 4096, &b"new data".repeat(512));
    array.open_volume("v").unwrap().trim(40 << 20, ByteCount(4096)).unwrap();
    snap(&array, "v", "b");
    write(&array, "v", 60 << 20, &b"some more".repeat(1000)[..4096]);

    let changes =
        |newer: &str, offset, most| array.compare(which("v@a"), newer).unwrap().find(offset, most).unwrap();
    let found = changes("v@b", 0, 10);
    let ranges: Vec<(u64, u64, ExtentKind)> =
        found.changes.iter().map(|change| (change.offset, change.len.0, change.kind)).collect();
    assert_eq!(ranges, [(4096, 4096, ExtentKind::Data), (40 << 20, 4096, ExtentKind::Hole)]);
    assert_eq!(found.next_offset, None);
    assert_eq!(changes("v", 0, 10).changes.len(), 3, "the volume as it is now");
    let mut offset = Some(0);
    let mut single = Vec::new();
    while let Some(at) = offset {
        let part = changes("v", at, 1);
        assert!(part.changes.len() <= 1);
        single.extend(part.changes);
        offset = part.next_offset;
    }
    assert_eq!(single, changes("v", 0, 10).changes);

    let comparison = array.compare(which("v@a"), "v@b").unwrap();
    let extents = comparison.changes(4000, ByteCount(200), 10).unwrap();
    assert_eq!(extents.iter().map(|extent| extent.len.0).collect::<Vec<_>>(), [96, 104]);
    assert_eq!((extents[0].changed, extents[1].changed), (None, Some(ExtentKind::Data)));
    assert_eq!(kind(comparison.changes(64 << 20, ByteCount(1), 10)), ErrorKind::Invalid);
    assert_eq!(kind(comparison.changes(0, ByteCount(0), 10)), ErrorKind::Invalid);
    assert_eq!(kind(comparison.find(65 << 20, 10)), ErrorKind::Invalid);
    drop(comparison);
    assert_eq!(kind(array.compare(which("v@a"), "v@a").map(drop)), ErrorKind::Invalid);
    assert_eq!(kind(array.compare(which("v@a"), "none").map(drop)), ErrorKind::NotFound);
    array.delete_snapshot(which("v@a"), false).unwrap();
}
