//! A node that comes back and cannot go on: it takes everything anew, adopts the primary's position, and goes on.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use sinter::device::Device;
use sinter::device::faulty::{FaultPlan, FaultyDisk};
use sinter::error::ErrorKind;
use sinter::format::operation::CloneRecord;
use sinter::store::{
    Applied, BlockAt, CloneRequest, PoolIdentity, Shipment, ShippedMapping, ShippedOperation, ShippedPayload,
    Store,
};
use sinter::sync::seeded::SeededNumbers;
use sinter::units::{BlockCount, ByteCount, Epoch, Fingerprint, Lba, Lsn, ObjectNumber};

use crate::apply::{Shipper, primary, same, ship, step};
use crate::pool::Pool;
use crate::{assert_sound, blocks, read};

const PIECE_BLOCKS: u64 = 100;

/// What the primary sends to a node that is brought up: pieces and new operations, in the order of its commits.
struct Stream {
    queue: VecDeque<ShippedOperation>,
    /// Everything up to here is in the queue, or was.
    queued: Lsn,
    /// How far each object has been read.
    read: BTreeMap<ObjectNumber, u64>,
    /// Blocks that the primary does not have any more.
    gone: u64,
}

impl Stream {
    fn new(primary: &Store, numbers: &mut SeededNumbers) -> Stream {
        let mut objects = primary.objects().unwrap();
        let mut queue = VecDeque::new();
        let mut read = BTreeMap::new();
        while !objects.is_empty() {
            let object = objects.swap_remove(numbers.index(objects.len()));
            read.insert(object.number, 0);
            let (size, opaque) = (object.size, object.opaque);
            queue.push_back(ShippedOperation::CreateObject { object: object.number, size, opaque });
        }
        Stream { queue, queued: primary.last_lsn(), read, gone: 0 }
    }

    /// Queues what has been committed since.
    fn follow(&mut self, primary: &Store, shipper: &Shipper) {
        while self.queued < primary.last_lsn() {
            self.queued = self.queued.next();
            let Shipment { operation, .. } = shipper.shipment(self.queued.0).unwrap();
            match &operation {
                ShippedOperation::DeleteObject { object } => drop(self.read.remove(object)),
                // What it begins as may not be there yet.
                ShippedOperation::CloneObjects { clones } => {
                    self.read.extend(clones.iter().map(|CloneRecord { object, .. }| (*object, 0)));
                }
                ShippedOperation::RestoreObject { object, .. } => drop(self.read.insert(*object, 0)),
                _ => {}
            }
            self.queue.push_back(operation);
        }
    }

    /// Queues one more piece; whether there was one.
    fn read_piece(&mut self, primary: &Store) -> bool {
        let sizes = primary.objects().unwrap().into_iter().map(|object| (object.number, object.size.0));
        let sizes: BTreeMap<ObjectNumber, u64> = sizes.collect();
        let Some((object, at)) = self.read.iter().find(|(object, at)| **at < sizes[object]) else {
            return false;
        };
        let (object, first) = (*object, *at);
        let count = PIECE_BLOCKS.min(sizes[&object] - first);
        let mut delivered = 0;
        let queue = &mut self.queue;
        primary
            .shipped_mappings(object, Lba(first), BlockCount(count), &mut |mappings| {
                delivered += 1;
                let (mappings, payloads) = (mappings.to_vec(), Arc::default());
                queue.push_back(ShippedOperation::Write { object, first: Lba(first), mappings, payloads });
            })
            .unwrap();
        assert_eq!(delivered, 1);
        self.read.insert(object, first + count);
        true
    }

    /// Applies the first of the queue.
    fn apply(&mut self, primary: &Store, secondary: &Store) {
        let Some(mut operation) = self.queue.pop_front() else { return };
        let mut positions: Vec<usize> = Vec::new();
        loop {
            match secondary.apply_local(&operation).unwrap() {
                Applied::UpTo(lsn) => return assert_eq!(lsn, secondary.last_lsn()),
                Applied::NeedsPayloads(missing) => positions.extend(missing),
            }
            self.bring(primary, &mut operation, &positions);
        }
    }

    /// Puts the payloads of these positions into a write. What the primary has let go of was overwritten by something
    /// further back in the queue.
    fn bring(&mut self, primary: &Store, operation: &mut ShippedOperation, positions: &[usize]) {
        let ShippedOperation::Write { object, first, mappings, payloads } = operation else { panic!() };
        let mut bytes: Vec<u8> = Vec::new();
        let before = Arc::clone(payloads);
        for (position, mapping) in mappings.iter_mut().enumerate() {
            let ShippedMapping::Block { fingerprint, payload } = mapping else { continue };
            let stored = match payload {
                Some(payload) => {
                    let from = payload.offset as usize;
                    Some((before[from..from + usize::from(payload.len)].to_vec(), payload.checksum))
                }
                None if positions.contains(&position) => {
                    let lba = first.plus(position as u64);
                    stored(primary, *object, lba, fingerprint)
                }
                None => continue,
            };
            if let Some((stored, checksum)) = stored {
                let offset = u32::try_from(bytes.len()).unwrap();
                bytes.extend_from_slice(&stored);
                let len = u16::try_from(stored.len()).unwrap();
                *payload = Some(ShippedPayload { offset, len, checksum });
            } else {
                self.gone += 1;
                *mapping = ShippedMapping::Hole;
            }
        }
        *payloads = Arc::new(bytes);
    }
}

fn stored(
    store: &Store,
    object: ObjectNumber,
    lba: Lba,
    fingerprint: &Fingerprint,
) -> Option<(Vec<u8>, u64)> {
    let known = store.stored_block(fingerprint).unwrap();
    known.or_else(|| match store.block_at(object, lba, fingerprint).unwrap() {
        BlockAt::Stored(stored, checksum) => Some((stored, checksum)),
        _ => None,
    })
}

/// A secondary whose machine may stop at any moment.
struct Node {
    disk: Arc<FaultyDisk>,
    plan: Arc<FaultPlan>,
    pool: Pool,
}

impl Node {
    fn new(seed: u64) -> Node {
        let plan = FaultPlan::new();
        let disk = Arc::new(FaultyDisk::new("disk", ByteCount(402 << 16), seed, Arc::clone(&plan)));
        let mut pool = Pool::small(seed + 1000, 400);
        pool.device = Arc::clone(&disk) as Arc<dyn Device>;
        Node { disk, plan, pool }
    }

    fn create(&self, identity: &PoolIdentity) -> Store {
        let (options, environment) = (self.pool.options.clone(), self.pool.environment.clone());
        Store::create_as(self.pool.devices(), options, environment, Some(identity)).unwrap()
    }

    fn crash(&self, store: Store) -> Store {
        drop(store);
        self.disk.crash();
        self.pool.open()
    }
}

#[test]
fn a_node_that_was_brought_up_holds_the_same_and_goes_on() {
    let (mut gone, mut crashes, mut cut_short, mut lower) = (0, 0, 0, 0);
    for seed in 0..10 {
        let mut numbers = SeededNumbers::new(seed);
        let (primary, shipper) = primary(seed);
        let node = Node::new(seed);
        let start = (Epoch { generation: 1, number: 1 }, Lsn(0));
        let mut secondary = node.create(&PoolIdentity { position: start, ..primary.identity() });
        assert_eq!((secondary.pool_id(), secondary.position()), (primary.pool_id(), start));
        // It had a life of its own that nobody else knows of.
        for _ in 0..numbers.below(300) {
            step(&secondary, &mut numbers);
        }
        for _ in 0..120 {
            step(&primary, &mut numbers);
        }
        primary.begin_epoch(Epoch { generation: 1, number: 2 }).unwrap();
        loop {
            secondary.begin_sync().unwrap();
            secondary = if numbers.chance(1, 3) { node.crash(secondary) } else { secondary };
            assert!(secondary.syncing(), "seed {seed}");
            for object in secondary.objects().unwrap() {
                let delete = ShippedOperation::DeleteObject { object: object.number };
                secondary.apply_local(&delete).unwrap();
            }
            let mut stream = Stream::new(&primary, &mut numbers);
            let crashes_after = if numbers.chance(1, 2) { numbers.below(200) } else { u64::MAX };
            let mut steps = 0;
            while steps < crashes_after && (stream.read_piece(&primary) || !stream.queue.is_empty()) {
                steps += 1;
                for _ in 0..numbers.below(3) {
                    if steps < 150 {
                        step(&primary, &mut numbers);
                        stream.follow(&primary, &shipper);
                    }
                }
                for _ in 0..numbers.below(6) {
                    stream.apply(&primary, &secondary);
                }
                if numbers.chance(1, 5) {
                    secondary.background_step().unwrap();
                }
            }
            gone += stream.gone;
            if steps == crashes_after {
                crashes += 1;
                secondary = node.crash(secondary);
                assert!(secondary.syncing(), "seed {seed}");
                continue;
            }
            let (local, position) = (secondary.position(), primary.position());
            lower += u64::from(position.1 < local.1);
            if numbers.chance(1, 2) {
                node.plan.stop_after(numbers.below(40));
            }
            let adopted = secondary.adopt(position.0, position.1);
            node.plan.forget_faults();
            if adopted.is_err() || numbers.chance(1, 2) {
                cut_short += u64::from(adopted.is_err());
                secondary = node.crash(secondary);
            }
            if secondary.syncing() {
                assert!(adopted.is_err(), "seed {seed}: what was adopted is there");
                let (epoch, lsn) = secondary.position();
                assert!(epoch == local.0 && lsn <= local.1, "seed {seed}");
                continue;
            }
            assert_eq!(secondary.position(), position, "seed {seed}");
            assert_eq!(secondary.durable_lsn(), position.1, "seed {seed}");
            break;
        }
        same(&primary, &secondary, seed);
        assert_sound(&secondary);
        let mut asked = 0;
        for _ in 0..3 {
            for _ in 0..60 {
                step(&primary, &mut numbers);
                while numbers.chance(3, 4) && ship(&shipper, &secondary, &mut numbers, &mut asked) {}
                if numbers.chance(1, 4) {
                    secondary.background_step().unwrap();
                }
            }
            secondary.make_durable(secondary.last_lsn()).unwrap();
            let position = secondary.position();
            secondary = node.crash(secondary);
            assert_eq!(secondary.position(), position, "seed {seed}");
        }
        while ship(&shipper, &secondary, &mut numbers, &mut asked) {}
        assert_eq!(secondary.position(), primary.position());
        same(&primary, &secondary, seed);
        secondary.checkpoint().unwrap();
        assert_sound(&secondary);
        assert_sound(&primary);
        // Numbers of objects go on where the primary's do.
        let highest = primary.objects().unwrap().iter().map(|object| object.number).max().unwrap();
        let (made, _) = secondary.create_object(BlockCount(1), &[]).unwrap();
        assert!(made > highest, "seed {seed}");
    }
    assert!(crashes > 3 && cut_short > 1 && lower > 1, "{crashes} {cut_short} {lower}");
    assert!(gone > 0, "the primary went on meanwhile");
}

#[test]
fn terms_are_never_lowered_and_the_newest_operation_keeps_its_own() {
    let pool = Pool::small(3, 300);
    let store = pool.create();
    let term = |number| Epoch { generation: 1, number };
    assert_eq!(store.position(), (term(1), Lsn(0)));
    store.create_object(BlockCount(100), &[]).unwrap();
    store.begin_epoch(term(4)).unwrap();
    assert_eq!(store.begin_epoch(term(3)).unwrap_err().kind(), ErrorKind::NotPrimary);
    assert_eq!(store.position(), (term(1), Lsn(1)), "nothing was committed in the new term yet");
    store.checkpoint().unwrap();
    drop(store);
    let store = pool.open();
    assert_eq!(store.position(), (term(1), Lsn(1)));
    store.begin_epoch(term(5)).unwrap();
    let (object, lsn) = store.create_object(BlockCount(100), &[]).unwrap();
    assert_eq!(store.position(), (term(5), Lsn(2)));
    store.write_out(lsn).unwrap();
    drop(store);
    let store = pool.open();
    assert_eq!(store.position(), (term(5), Lsn(2)));
    assert_eq!(store.adopt(term(1), Lsn(1)).unwrap_err().kind(), ErrorKind::Invalid);
    store.begin_sync().unwrap();
    store.write(object, Lba(0), &blocks(1..4)).unwrap();
    store.adopt(term(9), Lsn(70)).unwrap();
    assert_eq!((store.position(), store.syncing()), ((term(9), Lsn(70)), false));
    assert_eq!(read(&store, object, 0, 3).unwrap(), blocks(1..4));
}

#[test]
fn an_operation_of_this_stores_own_keeps_the_numbers_of_objects() {
    let pool = Pool::small(4, 300);
    let store = pool.create();
    let create = |number| ShippedOperation::CreateObject {
        object: ObjectNumber(number),
        size: BlockCount(64),
        opaque: vec![],
    };
    for number in [9, 3, 7] {
        store.apply_local(&create(number)).unwrap();
    }
    assert_eq!(store.apply_local(&create(7)).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(store.apply_local(&create(u64::MAX)).unwrap_err().kind(), ErrorKind::Invalid);
    store.write(ObjectNumber(3), Lba(0), &blocks(0..2)).unwrap();
    let clone = CloneRecord { object: ObjectNumber(5), source: ObjectNumber(3), opaque: vec![1] };
    let clones = ShippedOperation::CloneObjects { clones: vec![clone] };
    store.apply_local(&clones).unwrap();
    assert_eq!(store.apply_local(&clones).unwrap_err().kind(), ErrorKind::Exists);
    assert_eq!(read(&store, ObjectNumber(5), 0, 2).unwrap(), blocks(0..2));
    let zero = ShippedOperation::Zero { object: ObjectNumber(5), first: Lba(0), count: BlockCount(64) };
    assert_eq!(store.apply_local(&zero).unwrap(), Applied::UpTo(store.last_lsn()));
    assert_eq!(store.create_object(BlockCount(1), &[]).unwrap().0, ObjectNumber(10));
    store.follow(true);
    let (newest, number) = (store.last_lsn(), ObjectNumber(3));
    let refused = [
        store.write(number, Lba(0), &blocks(5..6)).map(|outcome| outcome.lsn),
        store.write(number, Lba(0), &[0; 4096]).map(|outcome| outcome.lsn),
        store.zero(number, Lba(0), BlockCount(2)),
        store.create_object(BlockCount(1), &[]).map(|(_, lsn)| lsn),
        store.update_object(number, BlockCount(70), &[]),
        store.delete_object(number),
        store.clone_objects(&[CloneRequest { source: number, opaque: &[] }]).map(|(_, lsn)| lsn),
        store.restore_object(number, ObjectNumber(5), BlockCount(64), &[]),
    ];
    assert!(refused.into_iter().all(|refused| refused.unwrap_err().kind() == ErrorKind::NotPrimary));
    assert_eq!(store.last_lsn(), newest);
    store.apply_local(&zero).unwrap();
    store.apply_local(&create(20)).unwrap();
    store.follow(false);
    store.write(number, Lba(9), &blocks(5..6)).unwrap();
    let far = store.shipped_mappings(ObjectNumber(3), Lba(60), BlockCount(5), &mut |_| panic!());
    assert_eq!(far.unwrap_err().kind(), ErrorKind::Invalid);
    let unknown = Fingerprint([7; 16]);
    assert_eq!(store.stored_block(&unknown).unwrap(), None);
    assert_eq!(store.block_at(ObjectNumber(3), Lba(0), &unknown).unwrap(), BlockAt::Another);
    assert_eq!(store.block_at(ObjectNumber(99), Lba(0), &unknown).unwrap(), BlockAt::Another);
}
