//! Management verbs: what they refuse, and what two of them at once may not do.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::Barrier;
use std::time::Duration;

use sinter::array::Array;
use sinter::array::ArrayOptions;
use sinter::array::BlockService;
use sinter::array::Health;
use sinter::array::NewVolume;
use sinter::array::VolumeState;
use sinter::array::VolumeUpdate;
use sinter::error::ErrorKind;
use sinter::store::Environment;
use sinter::store::Store;
use sinter::units::BlockCount;
use sinter::units::ByteCount;

use crate::be_polite;
use crate::kind;
use crate::pool::new_store;

pub(crate) fn open(store: &Arc<Store>, environment: &Environment) -> Arc<Array> {
    Array::new(store.clone(), ArrayOptions::new("test"), environment.clone()).unwrap()
}

pub(crate) fn array() -> Arc<Array> {
    let (store, environment) = new_store(1);
    open(&store, &environment)
}

fn new(name: &str, size: u64) -> NewVolume {
    NewVolume { name: name.to_owned(), size: ByteCount(size), ..NewVolume::default() }
}

fn renaming(name: &str) -> VolumeUpdate {
    VolumeUpdate { name: Some(name.to_owned()), ..VolumeUpdate::default() }
}

#[test]
fn a_volume_outlives_the_opening() {
    let (store, environment) = new_store(1);
    let tags = BTreeMap::from([("owner".to_owned(), "ops".to_owned())]);
    let made = {
        let array = open(&store, &environment);
        let made = array
            .create_volume(NewVolume { description: "first".to_owned(), tags, ..new("demo", 10_000) })
            .unwrap();
        array.resize_volume("demo", ByteCount(20_000)).unwrap();
        array.open_volume("demo").unwrap().write(4096, &[7; 5000]).unwrap();
        made
    };
    let array = open(&store, &environment);
    let info = array.volume("demo").unwrap();
    assert_eq!(info.id, made.id);
    assert_eq!((made.size_bytes.0, info.size_bytes.0), (12_288, 20_480));
    assert_eq!((info.description.as_str(), info.tags["owner"].as_str()), ("first", "ops"));
    assert_eq!(info.created_at, made.created_at);
    assert!(info.updated_at > made.updated_at && made.updated_at == made.created_at);
    assert!(made.created_at >= Duration::from_secs(1_700_000_000));
    assert_eq!(info.used_bytes.0, 8192);
    let mut read = [0; 5000];
    array.open_volume(&info.id.to_string()).unwrap().read(4096, &mut read).unwrap();
    assert!(read == [7; 5000]);
}

#[test]
fn volumes_are_listed_by_age() {
    let array = array();
    for name in ["c", "a", "b"] {
        array.create_volume(new(name, 4096)).unwrap();
    }
    array.update_volume("c", renaming("z")).unwrap();
    let names: Vec<String> = array.volumes().into_iter().map(|info| info.name).collect();
    assert_eq!(names, ["z", "a", "b"]);
}

#[test]
fn names_and_texts_against_the_rules_change_nothing() {
    let array = array();
    array.create_volume(new("good", 4096)).unwrap();
    for bad in ["", "..", "a@b", "a/b", "a\tb", "01234567-89ab-cdef-0123-456789abcdef"] {
        assert_eq!(kind(array.create_volume(new(bad, 4096))), ErrorKind::Invalid);
        assert_eq!(kind(array.update_volume("good", renaming(bad))), ErrorKind::Invalid);
    }
    for size in [0, (256 << 40) + 1, u64::MAX] {
        assert_eq!(kind(array.create_volume(new("other", size))), ErrorKind::Invalid);
        assert_eq!(kind(array.resize_volume("good", ByteCount(size))), ErrorKind::Invalid);
    }
    let text = |len| VolumeUpdate { description: Some("x".repeat(len)), ..VolumeUpdate::default() };
    assert_eq!(kind(array.update_volume("good", text(3501))), ErrorKind::Invalid);
    assert_eq!(array.volume("good").unwrap().description, "");
    array.update_volume("good", text(3500)).unwrap();
    let long_name = array.update_volume("good", renaming(&"n".repeat(255)));
    assert_eq!(kind(long_name), ErrorKind::Invalid, "the record does not fit");
    assert_eq!(array.volumes().len(), 1);
}

#[test]
fn only_what_is_given_changes() {
    let array = array();
    let tags = BTreeMap::from([("a".to_owned(), "b".to_owned())]);
    array
        .create_volume(NewVolume { description: "d".to_owned(), tags: tags.clone(), ..new("v", 4096) })
        .unwrap();
    let info = array.update_volume("v", renaming("w")).unwrap();
    assert_eq!((info.name.as_str(), info.description.as_str(), &info.tags), ("w", "d", &tags));
    assert_eq!(kind(array.volume("v")), ErrorKind::NotFound);
    let untagged = VolumeUpdate { tags: Some(BTreeMap::new()), ..VolumeUpdate::default() };
    let info = array.update_volume("w", untagged).unwrap();
    assert_eq!((info.description.as_str(), info.tags.len()), ("d", 0));
    array.create_volume(new("v", 4096)).unwrap();
    assert_eq!(kind(array.update_volume("w", renaming("v"))), ErrorKind::Exists);
}

const ROUNDS: usize = 300;

/// One of the threads that want the same name at the same time, round by round, by creating or by
/// renaming: what it was told.
fn compete(array: &Array, barrier: &Barrier, thread: usize) -> Vec<Result<(), ErrorKind>> {
    be_polite();
    let one_round = |round: usize| {
        let (own, wanted) = (format!("{round} of {thread}"), format!("wanted {round}"));
        let renames = thread % 2 == 1;
        let made = if renames { array.create_volume(new(&own, 4096)).map(drop) } else { Ok(()) };
        barrier.wait();
        let result = if renames {
            made.and_then(|()| array.update_volume(&own, renaming(&wanted)))
        } else {
            array.create_volume(new(&wanted, 4096))
        };
        result.map(drop).map_err(|error| error.kind())
    };
    (0..ROUNDS).map(one_round).collect()
}

#[test]
fn of_many_that_want_one_name_one_gets_it() {
    const THREADS: usize = 4;
    let array = array();
    let barrier = Barrier::new(THREADS);
    let outcomes: Vec<_> = std::thread::scope(|scope| {
        let (array, barrier) = (&*array, &barrier);
        let threads = std::array::from_fn::<_, THREADS, _>(|thread| {
            scope.spawn(move || compete(array, barrier, thread))
        });
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    for round in 0..ROUNDS {
        let of_round: Vec<_> = outcomes.iter().map(|outcome| outcome[round]).collect();
        assert_eq!(of_round.iter().filter(|result| result.is_ok()).count(), 1, "round {round}");
        let losers = of_round.iter().filter(|result| **result == Err(ErrorKind::Exists)).count();
        assert_eq!(losers, THREADS - 1, "round {round}: {of_round:?}");
    }
    let names: Vec<String> = array.volumes().into_iter().map(|info| info.name).collect();
    let unique: BTreeSet<&String> = names.iter().collect();
    assert_eq!(unique.len(), names.len());
    assert!((0..ROUNDS).all(|round| unique.contains(&format!("wanted {round}"))));
}

#[test]
fn a_connected_volume_is_deleted_only_by_force() {
    let array = array();
    array.create_volume(new("v", 8192)).unwrap();
    let (first, second) = (array.open_volume("v").unwrap(), array.open_volume("v").unwrap());
    let commit = first.write(0, &[1; 4096]).unwrap();
    drop(second);
    assert_eq!(array.volume("v").unwrap().state, VolumeState::InUse);
    assert_eq!(kind(array.delete_volume("v", false)), ErrorKind::Busy);
    array.delete_volume("v", true).unwrap();
    let len = ByteCount(4096);
    assert_eq!(kind(first.read(0, &mut [0; 10])), ErrorKind::NotFound);
    assert_eq!(kind(first.try_read(0, &mut [0; 10])), ErrorKind::NotFound);
    assert_eq!(kind(first.write(0, &[0; 10])), ErrorKind::NotFound);
    assert_eq!(kind(first.write_zeroes(0, len)), ErrorKind::NotFound);
    assert_eq!(kind(first.trim(0, len)), ErrorKind::NotFound);
    assert_eq!(kind(first.block_status(0, len, 1)), ErrorKind::NotFound);
    assert_eq!(kind(first.flush()), ErrorKind::NotFound);
    first.acknowledge(commit).unwrap();
    first.make_durable(commit).unwrap();
    assert_eq!(kind(array.open_volume("v")), ErrorKind::NotFound);
    assert_eq!(kind(array.delete_volume("v", true)), ErrorKind::NotFound);

    let fresh = array.create_volume(new("v", 8192)).unwrap();
    assert_ne!(fresh.id, first.id());
    assert_eq!(fresh.state, VolumeState::Available, "the old client is not connected to the new volume");
    let mut read = [1; 4096];
    array.open_volume("v").unwrap().read(0, &mut read).unwrap();
    assert!(read == [0; 4096]);
    array.delete_volume("v", false).unwrap();
}

#[test]
fn a_volume_is_either_opened_or_deleted() {
    let array = array();
    for round in 0..ROUNDS {
        array.create_volume(new("v", 4096)).unwrap();
        let barrier = Barrier::new(2);
        std::thread::scope(|scope| {
            let opening = scope.spawn(|| {
                be_polite();
                barrier.wait();
                array.open_volume("v")
            });
            be_polite();
            barrier.wait();
            let deleted = array.delete_volume("v", false);
            match (opening.join().unwrap(), deleted) {
                (Ok(volume), Err(error)) => {
                    assert_eq!(error.kind(), ErrorKind::Busy);
                    volume.read(0, &mut [0]).unwrap();
                    drop(volume);
                    array.delete_volume("v", false).unwrap();
                }
                (Err(error), Ok(())) => assert_eq!(error.kind(), ErrorKind::NotFound),
                (opened, deleted) => {
                    panic!("round {round}: opened {}, deleted {deleted:?}", opened.is_ok());
                }
            }
        });
    }
}

#[test]
fn ranges_at_the_edge_of_numbers_are_refused() {
    let array = array();
    array.create_volume(new("v", 8192)).unwrap();
    let volume = array.open_volume("v").unwrap();
    for (offset, len) in [(8192, 1), (8191, 2), (u64::MAX, 1), (u64::MAX - 4095, 4096), (0, 8193)] {
        let mut bytes = vec![9; len as usize];
        assert_eq!(kind(volume.read(offset, &mut bytes)), ErrorKind::Invalid);
        assert_eq!(kind(volume.try_read(offset, &mut bytes)), ErrorKind::Invalid);
        assert_eq!(kind(volume.write(offset, &bytes)), ErrorKind::Invalid);
    }
    for (offset, len) in [(0, u64::MAX), (u64::MAX, u64::MAX), (4096, 4097), (8193, 0)] {
        let len = ByteCount(len);
        assert_eq!(kind(volume.trim(offset, len)), ErrorKind::Invalid);
        assert_eq!(kind(volume.write_zeroes(offset, len)), ErrorKind::Invalid);
        assert_eq!(kind(volume.block_status(offset, len, 1)), ErrorKind::Invalid);
    }
    volume.write(8192, &[]).unwrap();
    volume.trim(8192, ByteCount(0)).unwrap();
    let mut read = [1; 8192];
    volume.read(0, &mut read).unwrap();
    assert!(read == [0; 8192]);
}

#[test]
fn counters_count_what_was_done() {
    let array = array();
    array.create_volume(new("v", 8192)).unwrap();
    let volume = array.open_volume("v").unwrap();
    volume.write(100, &[1; 5000]).unwrap();
    volume.write(0, &[1; 4096]).unwrap();
    volume.read(10, &mut [0; 20]).unwrap();
    assert_eq!(kind(volume.write(8000, &[1; 200])), ErrorKind::Invalid);
    let counters = array.volume("v").unwrap().counters;
    assert_eq!((counters.write_ops, counters.write_bytes), (2, 9096));
    assert_eq!((counters.read_ops, counters.read_bytes), (1, 20));
}

#[test]
fn what_cannot_be_read_of_the_catalog_is_a_problem_and_no_obstacle() {
    let (store, environment) = new_store(1);
    let array = open(&store, &environment);
    array.create_volume(new("good", 4096)).unwrap();
    assert_eq!(array.status().health, Health::Healthy);
    let record = store.objects().unwrap().remove(0).opaque;
    for (blocks, opaque) in [(1, vec![]), (1, vec![0xff; 3000]), (1, record.clone()), (2, record)] {
        store.create_object(BlockCount(blocks), &opaque).unwrap();
    }
    let array = open(&store, &environment);
    array.volume("good").unwrap();
    let status = array.status();
    assert_eq!((status.health, status.volumes), (Health::Degraded, 1));
    assert_eq!(status.problems.len(), 4);
    array.create_volume(new("another", 4096)).unwrap();
}
