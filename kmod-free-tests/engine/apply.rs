//! A secondary: fed by the commit sink of another store, in order, it holds the same.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use sinter::device::Device;
use sinter::device::faulty::{FaultPlan, FaultyDisk};
use sinter::error::ErrorKind;
use sinter::format::batch::{LoggedOperation, MappingRecord};
use sinter::store::{
    Applied, CloneRecord, CloneRequest, Commit, CommitSink, Shipment, ShippedMapping, ShippedOperation,
    ShippedPayload, Store,
};
use sinter::sync::seeded::SeededNumbers;
use sinter::units::{BlockCount, ByteCount, Epoch, Fingerprint, Lba, Lsn, ObjectNumber};

use crate::pool::Pool;
use crate::{assert_sound, blocks, read};

/// A block's stored bytes and their checksum.
pub(crate) type Stored = (Vec<u8>, u64);

/// Turns what the sink is told into what is shipped, and keeps it: by number, and each block by fingerprint.
#[derive(Default)]
pub(crate) struct Shipper {
    kept: Mutex<Kept>,
}

#[derive(Default)]
struct Kept {
    shipments: BTreeMap<u64, Shipment>,
    stored: HashMap<Fingerprint, Stored>,
}

impl CommitSink for Shipper {
    fn committed(&self, commit: &Commit<'_>) {
        let mut kept = self.kept.lock().unwrap();
        let operation = match commit.operation.clone() {
            LoggedOperation::Write { object, first, mappings } => {
                assert_eq!(mappings.len(), commit.fingerprints.len());
                let mut payloads = commit.operation.payloads();
                let shipped = mappings.iter().zip(commit.fingerprints).map(|(mapping, fingerprint)| {
                    let fingerprint = *fingerprint;
                    match *mapping {
                        MappingRecord::Hole => ShippedMapping::Hole,
                        MappingRecord::Pattern(word) => ShippedMapping::Pattern(word),
                        MappingRecord::Lost => ShippedMapping::Lost,
                        MappingRecord::Existing { .. } => {
                            ShippedMapping::Block { fingerprint, payload: None }
                        }
                        MappingRecord::New { stored_len, checksum, .. } => {
                            let (offset, len, sum) = payloads.next().unwrap();
                            assert_eq!((len, sum), (usize::from(stored_len), checksum));
                            let bytes = commit.payload[offset..offset + len].to_vec();
                            kept.stored.insert(fingerprint, (bytes, checksum));
                            let offset = u32::try_from(offset).unwrap();
                            let payload = Some(ShippedPayload { offset, len: stored_len, checksum });
                            ShippedMapping::Block { fingerprint, payload }
                        }
                    }
                });
                let mappings = shipped.collect();
                ShippedOperation::Write { object, first, mappings, payloads: Arc::clone(commit.payload) }
            }
            LoggedOperation::Zero { object, first, count } => ShippedOperation::Zero { object, first, count },
            LoggedOperation::CreateObject { object, size, opaque } => {
                ShippedOperation::CreateObject { object, size, opaque }
            }
            LoggedOperation::UpdateObject { object, size, opaque } => {
                ShippedOperation::UpdateObject { object, size, opaque }
            }
            LoggedOperation::DeleteObject { object } => ShippedOperation::DeleteObject { object },
            LoggedOperation::CloneObjects { clones } => ShippedOperation::CloneObjects { clones },
            LoggedOperation::RestoreObject { object, source, size, opaque } => {
                ShippedOperation::RestoreObject { object, source, size, opaque }
            }
            LoggedOperation::Moved { .. } => panic!("collection is no operation"),
        };
        let Commit { epoch, lsn, origin, .. } = *commit;
        let shipment = Shipment { epoch, lsn, operation, origin };
        assert!(kept.shipments.insert(commit.lsn.0, shipment).is_none());
    }
}

impl Shipper {
    pub(crate) fn shipment(&self, lsn: u64) -> Option<Shipment> {
        self.kept.lock().unwrap().shipments.get(&lsn).cloned()
    }

    /// The same operation, with payloads at exactly these positions.
    pub(crate) fn with_payloads(&self, shipment: &Shipment, positions: &[usize]) -> Shipment {
        let mut again = shipment.clone();
        if let ShippedOperation::Write { mappings, payloads, .. } = &mut again.operation {
            let kept = self.kept.lock().unwrap();
            let mut bytes: Vec<u8> = Vec::new();
            for (position, mapping) in mappings.iter_mut().enumerate() {
                let ShippedMapping::Block { fingerprint, payload } = mapping else { continue };
                *payload = positions.contains(&position).then(|| {
                    let (stored, checksum) = &kept.stored[fingerprint];
                    let offset = u32::try_from(bytes.len()).unwrap();
                    bytes.extend_from_slice(stored);
                    ShippedPayload { offset, len: u16::try_from(stored.len()).unwrap(), checksum: *checksum }
                });
            }
            *payloads = Arc::new(bytes);
        }
        again
    }
}

/// Two stores of one array: same key, other sizes.
pub(crate) fn primary(seed: u64) -> (Store, Arc<Shipper>) {
    let mut pool = Pool::small(seed, 300);
    let shipper = Arc::new(Shipper::default());
    pool.options.sink = Some(Arc::clone(&shipper) as Arc<dyn CommitSink>);
    (pool.create(), shipper)
}

pub(crate) fn same(one: &Store, other: &Store, seed: u64) {
    assert_eq!(one.last_lsn(), other.last_lsn(), "seed {seed}");
    let sorted = |store: &Store| {
        let mut objects = store.objects().unwrap();
        objects.sort_by_key(|object| object.number);
        objects
    };
    let objects = sorted(one);
    assert_eq!(objects, sorted(other), "seed {seed}");
    for object in objects {
        for first in (0..object.size.0).step_by(64) {
            let count = (object.size.0 - first).min(64) as usize;
            let held = read(one, object.number, first, count).unwrap();
            assert!(
                read(other, object.number, first, count).unwrap() == held,
                "seed {seed}: from {first} on"
            );
        }
    }
}

/// One request of a random client.
pub(crate) fn step(store: &Store, numbers: &mut SeededNumbers) {
    let objects = store.objects().unwrap();
    if objects.len() < 2 || (objects.len() < 5 && numbers.chance(1, 30)) {
        store.create_object(BlockCount(1 + numbers.below(1500)), b"new").unwrap();
        return;
    }
    let object = &objects[numbers.index(objects.len())];
    let (number, size) = (object.number, object.size.0);
    let first = numbers.below(size);
    match numbers.below(40) {
        0 => drop(store.delete_object(number).unwrap()),
        1 => drop(store.update_object(number, BlockCount(size + numbers.below(600)), b"larger").unwrap()),
        2 => {
            let other = objects[numbers.index(objects.len())].number;
            let request = |source| CloneRequest { source, opaque: b"clone" };
            if objects.len() < 9 {
                store.clone_objects(&[request(number), request(other)]).unwrap();
            }
        }
        3 => {
            let other = &objects[numbers.index(objects.len())];
            if other.number != number {
                let size = other.size.max(object.size);
                store.restore_object(number, other.number, size, b"restored").unwrap();
            }
        }
        4..7 => drop(store.zero(number, Lba(first), BlockCount(1 + numbers.below(size - first))).unwrap()),
        7..10 => drop(store.background_step().unwrap()),
        10 => store.checkpoint().unwrap(),
        _ => {
            let count = (1 + numbers.below(20)).min(size - first);
            let mut data = Vec::new();
            for _ in 0..count {
                match numbers.below(10) {
                    0 => data.extend_from_slice(&[0; 4096]),
                    1 => data.extend_from_slice(&[numbers.below(256) as u8; 4096]),
                    2..7 => data.extend(blocks([1 + numbers.below(60)].into_iter())),
                    _ => data.extend(blocks([1_000_000 + numbers.number() % 1_000_000].into_iter())),
                }
            }
            store.write(number, Lba(first), &data).unwrap();
        }
    }
}

/// The positions whose payloads come with an operation.
pub(crate) fn brought(shipment: &Shipment) -> Vec<usize> {
    let ShippedOperation::Write { mappings, .. } = &shipment.operation else { return Vec::new() };
    let with = |mapping: &ShippedMapping| matches!(mapping, ShippedMapping::Block { payload: Some(_), .. });
    (0..).zip(mappings).filter(|(_, mapping)| with(mapping)).map(|(position, _)| position).collect()
}

/// Ships the next operation as a seed says: with all its payloads, or with what is asked for.
pub(crate) fn ship(
    shipper: &Shipper,
    secondary: &Store,
    numbers: &mut SeededNumbers,
    asked: &mut u64,
) -> bool {
    let next = secondary.last_lsn().next();
    let Some(shipment) = shipper.shipment(next.0) else { return false };
    let bare = numbers.chance(1, 2);
    let first = if bare { shipper.with_payloads(&shipment, &[]) } else { shipment.clone() };
    match secondary.apply(&first).unwrap() {
        Applied::UpTo(lsn) => assert_eq!(lsn, next),
        Applied::NeedsPayloads(mut positions) => {
            *asked += 1;
            positions.extend(brought(&first));
            assert_eq!(secondary.last_lsn().next(), next, "nothing has changed");
            let again = shipper.with_payloads(&shipment, &positions);
            assert_eq!(secondary.apply(&again).unwrap(), Applied::UpTo(next));
        }
    }
    true
}

#[test]
fn p7_a_secondary_holds_what_the_primary_holds_through_crashes() {
    let mut asked = 0;
    for seed in 0..12 {
        let mut numbers = SeededNumbers::new(seed);
        let (primary, shipper) = primary(seed);
        let plan = FaultPlan::new();
        let disk = Arc::new(FaultyDisk::new("disk", ByteCount(402 << 16), seed, Arc::clone(&plan)));
        let mut pool = Pool::small(seed, 400);
        pool.device = Arc::clone(&disk) as Arc<dyn Device>;
        let mut secondary = pool.create();
        for _ in 0..6 {
            let mut answered = secondary.last_lsn();
            for _ in 0..60 {
                step(&primary, &mut numbers);
                while numbers.chance(3, 4) && ship(&shipper, &secondary, &mut numbers, &mut asked) {}
                if numbers.chance(1, 4) {
                    secondary.background_step().unwrap();
                }
                if numbers.chance(1, 6) {
                    answered = secondary.last_lsn();
                    secondary.make_durable(answered).unwrap();
                }
            }
            drop(secondary);
            disk.crash();
            secondary = pool.open();
            assert!(secondary.last_lsn() >= answered, "seed {seed}: what was durable is there");
        }
        while ship(&shipper, &secondary, &mut numbers, &mut asked) {}
        same(&primary, &secondary, seed);
        secondary.checkpoint().unwrap();
        assert_sound(&secondary);
        assert_sound(&primary);
        // What has been applied is answered again, and not applied again.
        let last = secondary.last_lsn();
        for lsn in [1, last.0 / 2, last.0] {
            let old = shipper.shipment(lsn).unwrap();
            assert_eq!(secondary.apply(&old).unwrap(), Applied::UpTo(last));
        }
        same(&primary, &secondary, seed);
    }
    assert!(asked > 50, "payloads were asked for {asked} times");
}

#[test]
fn what_is_out_of_turn_or_damaged_changes_nothing() {
    let (primary, shipper) = primary(7);
    let pool = Pool::small(7, 300);
    let secondary = pool.create();
    let (object, _) = primary.create_object(BlockCount(100), &[]).unwrap();
    primary.write(object, Lba(0), &blocks(1..5)).unwrap();
    primary.write(object, Lba(4), &blocks([9, 9, 2].into_iter())).unwrap();
    let [create, write, twins] = [1, 2, 3].map(|lsn| shipper.shipment(lsn).unwrap());
    let refused = |shipment: &Shipment, kind: ErrorKind| {
        let before = (secondary.last_lsn(), secondary.statistics().log_bytes_written);
        assert_eq!(secondary.apply(shipment).unwrap_err().kind(), kind);
        assert_eq!((secondary.last_lsn(), secondary.statistics().log_bytes_written), before);
    };
    refused(&write, ErrorKind::Invalid);
    secondary.apply(&create).unwrap();
    refused(&twins, ErrorKind::Invalid);

    let changed = |change: &dyn Fn(&mut ShippedMapping, &mut Vec<u8>)| {
        let mut shipment = write.clone();
        let ShippedOperation::Write { mappings, payloads, .. } = &mut shipment.operation else { panic!() };
        change(&mut mappings[2], Arc::make_mut(payloads));
        shipment
    };
    let with_payload = |change: fn(&mut ShippedPayload)| {
        changed(&|mapping, _| {
            if let ShippedMapping::Block { payload: Some(payload), .. } = mapping {
                change(payload);
            }
        })
    };
    refused(&changed(&|_, bytes| bytes[2 * 4096 + 77] ^= 1), ErrorKind::Corrupt);
    refused(&changed(&|_, bytes| bytes.truncate(2 * 4096 + 77)), ErrorKind::Corrupt);
    refused(&with_payload(|payload| payload.checksum ^= 1), ErrorKind::Corrupt);
    refused(&with_payload(|payload| payload.offset = u32::MAX), ErrorKind::Corrupt);
    refused(&with_payload(|payload| payload.len = u16::MAX), ErrorKind::Corrupt);
    refused(&with_payload(|payload| payload.len = 0), ErrorKind::Corrupt);
    let forged = changed(&|mapping, _| {
        if let ShippedMapping::Block { fingerprint, .. } = mapping {
            fingerprint.0[3] ^= 1;
        }
    });
    refused(&forged, ErrorKind::Corrupt);
    let mut beyond = write.clone();
    if let ShippedOperation::Write { first, .. } = &mut beyond.operation {
        *first = Lba(97);
    }
    refused(&beyond, ErrorKind::Invalid);

    secondary.apply(&write).unwrap();
    // Two mappings of one block need its payload once; a block that is here needs none.
    let bare = shipper.with_payloads(&twins, &[]);
    assert_eq!(secondary.apply(&bare).unwrap(), Applied::NeedsPayloads(vec![0]));
    assert_eq!(secondary.last_lsn(), Lsn(2));
    let first_only = shipper.with_payloads(&twins, &[0]);
    assert_eq!(secondary.apply(&first_only).unwrap(), Applied::UpTo(Lsn(3)));
    same(&primary, &secondary, 7);
    assert_eq!(secondary.statistics().unique_blocks, 5);
}

#[test]
fn a_term_that_is_over_is_refused_also_after_a_restart() {
    let (primary, shipper) = primary(8);
    let pool = Pool::small(8, 300);
    let secondary = pool.create();
    let (object, _) = primary.create_object(BlockCount(100), &[]).unwrap();
    primary.write(object, Lba(0), &blocks(1..5)).unwrap();
    primary.zero(object, Lba(0), BlockCount(2)).unwrap();
    let [create, mut write, zero] = [1, 2, 3].map(|lsn| shipper.shipment(lsn).unwrap());
    secondary.apply(&create).unwrap();
    write.epoch = Epoch { generation: write.epoch.generation, number: write.epoch.number + 1 };
    secondary.apply(&write).unwrap();
    assert_eq!(secondary.apply(&zero).unwrap_err().kind(), ErrorKind::NotPrimary);
    assert_eq!(secondary.apply(&create).unwrap_err().kind(), ErrorKind::NotPrimary);
    secondary.write_out(secondary.last_lsn()).unwrap();
    drop(secondary);
    let secondary = pool.open();
    assert_eq!(secondary.last_lsn(), Lsn(2));
    assert_eq!(secondary.apply(&zero).unwrap_err().kind(), ErrorKind::NotPrimary);
    let zero = Shipment { epoch: write.epoch, ..zero };
    assert_eq!(secondary.apply(&zero).unwrap(), Applied::UpTo(Lsn(3)));
    same(&primary, &secondary, 8);
}

#[test]
fn a_secondary_takes_nodes_apart_where_too_many_wait() {
    const LEAVES: u64 = 5200;
    let pool = Pool::new(9);
    let store = pool.create();
    let (object, size) = (ObjectNumber(1), BlockCount(LEAVES * 512));
    let apply = |operation: ShippedOperation| {
        let lsn = store.last_lsn().next();
        let shipment = Shipment { epoch: store.position().0, lsn, operation, origin: None };
        assert_eq!(store.apply(&shipment).unwrap(), Applied::UpTo(lsn));
    };
    let zero = |leaf: u64| {
        apply(ShippedOperation::Zero { object, first: Lba(leaf * 512), count: BlockCount(512) });
    };
    apply(ShippedOperation::CreateObject { object, size, opaque: vec![] });
    for leaf in 0..LEAVES {
        let (mappings, payloads) = (vec![ShippedMapping::Pattern(7)], Arc::default());
        apply(ShippedOperation::Write { object, first: Lba(leaf * 512), mappings, payloads });
    }
    let other = ObjectNumber(2);
    apply(ShippedOperation::CreateObject { object: other, size, opaque: vec![] });
    for some in 0..5 {
        (some * 1000..(some + 1) * 1000).for_each(zero);
        store.checkpoint().unwrap();
    }
    let clones = vec![CloneRecord { object: ObjectNumber(3), source: other, opaque: vec![] }];
    for (operation, releases) in [
        (ShippedOperation::CloneObjects { clones }, false),
        (ShippedOperation::Zero { object, first: Lba(5000 * 512), count: BlockCount(512) }, true),
        (ShippedOperation::RestoreObject { object: other, source: object, size, opaque: vec![] }, true),
        (ShippedOperation::DeleteObject { object }, true),
    ] {
        let before = store.statistics();
        assert!(before.nodes_waiting > 4200, "{} nodes wait", before.nodes_waiting);
        apply(operation.clone());
        let released = store.statistics().nodes_released - before.nodes_released;
        assert_eq!(released > 0, releases, "{released} nodes for {operation:?}");
    }
}
