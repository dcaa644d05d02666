//! Space comes back: a full pool refuses writes, and nothing else, until something is freed.

use sinter::error::ErrorKind;
use sinter::store::Store;
use sinter::sync::seeded::SeededNumbers;
use sinter::units::ObjectNumber;

use crate::pool::{Content, Machine, OPERATION_BLOCKS, read_all};

const BATCH: u64 = OPERATION_BLOCKS as u64;

/// Contents that neither compress nor repeat.
fn fresh(numbers: &mut SeededNumbers) -> Vec<Content> {
    (0..BATCH)
        .map(|_| {
            loop {
                let content = numbers.number() | 1;
                if !content.is_multiple_of(7) {
                    return content;
                }
            }
        })
        .collect()
}

fn background(store: &Store) {
    for _ in 0..200 {
        if !store.background_step().unwrap() {
            return;
        }
    }
}

/// Fills a volume from `first` on until a write is refused; how many blocks went in.
fn fill(machine: &mut Machine, store: &Store, object: ObjectNumber, numbers: &mut SeededNumbers) -> u64 {
    let size = machine.model.sizes[&object.0];
    for first in (0..size - BATCH).step_by(OPERATION_BLOCKS) {
        match machine.write(store, object, first, &fresh(numbers)) {
            Ok(lsn) => store.write_out(lsn).unwrap(),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::NoSpace, "at block {first}: {error}");
                return first;
            }
        }
    }
    panic!("the volume is larger than the pool, and every write was taken");
}

#[test]
fn a_full_pool_takes_writes_again_after_trims_and_deletes() {
    let (mut machine, store) = Machine::new(61, 96);
    let mut numbers = SeededNumbers::new(61);
    let volume = machine.create(&store, 4096);
    let mut least = u64::MAX;
    for round in 0..6 {
        let filled = fill(&mut machine, &store, volume, &mut numbers);
        least = least.min(filled);
        assert!(filled > 400, "round {round}: only {filled} blocks went in");
        // Full: reads go on.
        read_all(&store, &machine.model.sizes, &machine.model.now(), &[], "full");
        if round % 2 == 0 {
            machine.zero(&store, volume, 0, 4096).unwrap();
        } else {
            // Half of it: so many blocks fit again at least.
            machine.zero(&store, volume, 0, filled / 2).unwrap();
            for first in (0..filled / 3).step_by(OPERATION_BLOCKS) {
                machine.write(&store, volume, first, &fresh(&mut numbers)).unwrap();
            }
            machine.zero(&store, volume, 0, 4096).unwrap();
        }
        background(&store);
    }
    let filled = fill(&mut machine, &store, volume, &mut numbers);
    machine.delete(&store, volume).unwrap();
    background(&store);
    let volume = machine.create(&store, 4096);
    let again = fill(&mut machine, &store, volume, &mut numbers);
    assert!(again * 10 >= filled * 9, "{filled} blocks fitted, and after a delete {again}");
    machine.zero(&store, volume, 0, 4096).unwrap();
    machine.flush(&store).unwrap();
    assert_eq!(store.verify(&mut |_, _| {}).unwrap().faults, []);
    drop(store);
    let (store, _) = machine.open().unwrap();
    read_all(&store, &machine.model.sizes, &machine.model.now(), &[], "opened again");
}

#[test]
fn a_pool_four_fifths_full_can_be_overwritten_again_and_again() {
    let (mut machine, store) = Machine::new(62, 128);
    let mut numbers = SeededNumbers::new(62);
    let usable = store.statistics().usable_bytes;
    // A block takes its 4096 bytes and some 60 of metadata.
    let blocks = usable * 4 / 5 / 4160 / BATCH * BATCH;
    let volume = machine.create(&store, blocks + BATCH);
    for first in (0..blocks).step_by(OPERATION_BLOCKS) {
        machine.write(&store, volume, first, &fresh(&mut numbers)).unwrap();
    }
    for round in 0..blocks * 6 / BATCH {
        let first = numbers.below(blocks / BATCH) * BATCH;
        machine
            .write(&store, volume, first, &fresh(&mut numbers))
            .unwrap_or_else(|error| panic!("overwrite {round} at {blocks} blocks: {error}"));
        if round % 4 == 0 {
            store.background_step().unwrap();
        }
    }
    read_all(&store, &machine.model.sizes, &machine.model.now(), &[], "overwritten");
    assert_eq!(store.verify(&mut |_, _| {}).unwrap().faults, []);
    assert!(store.statistics().collected_segments > 0, "nothing was collected");
}
