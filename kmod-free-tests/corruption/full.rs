//! Space comes back: a full pool refuses writes, and nothing else, until something is freed.

use sinter::error::ErrorKind;
use sinter::store::{CloneRequest, Store};
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
fn p5_a_full_pool_takes_writes_again_after_trims_and_deletes() {
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
fn p5_a_pool_four_fifths_full_can_be_overwritten_again_and_again() {
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

/// A checkpoint may find that pages take less than the account has set aside for them: then a little more fits.
fn write_until_refused(
    machine: &mut Machine,
    store: &Store,
    object: ObjectNumber,
    numbers: &mut SeededNumbers,
) {
    for first in 0..40 {
        if let Err(error) = machine.write(store, object, first * BATCH, &fresh(numbers)) {
            assert_eq!(error.kind(), ErrorKind::NoSpace);
            return;
        }
    }
    panic!("a full pool takes one write after the other");
}

/// Writes stop first, then trims that copy shared nodes, then new snapshots; deletes always go.
#[test]
fn p5_a_full_pool_with_snapshots_refuses_in_order_and_recovers() {
    let (mut machine, store) = Machine::new(63, 640);
    let mut numbers = SeededNumbers::new(63);
    let mut volume = machine.create(&store, 12_000);
    let mut filled = Vec::new();
    for round in 0..3 {
        let first = machine.clone_of(&store, volume).unwrap();
        filled.push(fill(&mut machine, &store, volume, &mut numbers));
        let snapshot = machine.clone_of(&store, volume).expect("a snapshot of a full pool");
        write_until_refused(&mut machine, &store, snapshot, &mut numbers);
        // Each leaf is copied, for a hole: some of these go while writes do not.
        machine.zero(&store, volume, 0, 1).expect("a trim that copies what is shared");
        machine.zero(&store, volume, 512, 1).expect("a trim that copies what is shared");
        // The snapshot holds what was trimmed.
        write_until_refused(&mut machine, &store, volume, &mut numbers);
        read_all(&store, &machine.model.sizes, &machine.model.now(), &[], "full");

        // New snapshots stop as well, at some time; a trim takes less, so that it may still go.
        let mut made = Vec::new();
        let refused = loop {
            assert!(made.len() < 10_000, "snapshots without end");
            let mut opaque = vec![0; 3584];
            numbers.fill(&mut opaque);
            match store.clone_objects(&[CloneRequest { source: volume, opaque: &opaque }]) {
                Ok((objects, _)) => made.push(objects[0]),
                Err(error) => break error,
            }
        };
        assert_eq!(refused.kind(), ErrorKind::NoSpace);
        if let Err(refused) = machine.zero(&store, snapshot, 0, 1) {
            assert_eq!(refused.kind(), ErrorKind::NoSpace);
        }
        for object in made {
            store.delete_object(object).expect("deletes always go");
        }
        machine.delete(&store, first).unwrap();
        if round % 2 == 0 {
            machine.zero(&store, snapshot, 0, 12_000).expect("nothing is copied for a whole tree");
            machine.zero(&store, volume, 0, 12_000).unwrap();
            machine.delete(&store, snapshot).unwrap();
        } else {
            machine.delete(&store, volume).unwrap();
            machine.delete(&store, snapshot).unwrap();
            volume = machine.create(&store, 12_000);
        }
        background(&store);
        assert_eq!(store.verify(&mut |_, _| {}).unwrap().faults, [], "round {round}");
    }
    let (least, most) = (filled.iter().min().unwrap(), filled.iter().max().unwrap());
    assert!(least * 10 >= most * 9, "space was lost: {filled:?}");
}
