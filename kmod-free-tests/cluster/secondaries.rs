//! One primary and one secondary, step by step: what a primary cannot read, what is made while a secondary is compared, what
//! has grown since a bookmark, and ends that do not keep to the rules.

use std::sync::Arc;

use sinter::array::{Array, ArrayOptions, BlockService as _, NewSnapshot, NewVolume};
use sinter::device::Device;
use sinter::device::faulty::{Fault as DeviceFault, FaultPlan, FaultyDisk};
use sinter::error::{ErrorKind, Result};
use sinter::format::page::{PAGE_HEADER_BYTES, Table};
use sinter::replica::bookmarks;
use sinter::replica::decisions::{Incarnation, Member, NodeId};
use sinter::replica::epochs::Epochs;
use sinter::replica::follower::Follower;
use sinter::replica::ring::Ring;
use sinter::replica::stream::{IN_FLIGHT_BYTES_MAX, IN_FLIGHT_ITEMS_MAX, Progress, Stream};
use sinter::replica::wire::{Downstream, ItemNumber, Standing, Upstream};
use sinter::store::{CommitSink, PoolIdentity, Store};
use sinter::sync::seeded::mix;
use sinter::units::{
    BLOCK_BYTES, BlockCount, ByteCount, DeviceOffset, Epoch, Fingerprint, Lba, Lsn, ObjectNumber, Uuid,
};

use crate::pool::Pool;

const SEGMENTS: u64 = 600;
const BLOCKS: u64 = 1300;

/// A store on a disk that can be damaged.
struct Node {
    disk: Arc<FaultyDisk>,
    pool: Pool,
    ring: Arc<Ring>,
    store: Arc<Store>,
}

impl Node {
    fn new(seed: u64, identity: Option<&PoolIdentity>) -> Node {
        let disk = FaultyDisk::new("disk", ByteCount((SEGMENTS + 2) << 16), seed, FaultPlan::new());
        let (disk, ring) = (Arc::new(disk), Arc::new(Ring::new(ByteCount(4 << 20))));
        let mut pool = Pool::small(seed, SEGMENTS);
        pool.device = Arc::clone(&disk) as Arc<dyn Device>;
        pool.options.sink = Some(Arc::clone(&ring) as Arc<dyn CommitSink>);
        let (options, environment) = (pool.options.clone(), pool.environment.clone());
        let store = Arc::new(Store::create_as(pool.devices(), options, environment, identity).unwrap());
        Node { disk, pool, ring, store }
    }

    fn array(&self) -> Arc<Array> {
        let options = ArrayOptions::new("array");
        Array::new(Arc::clone(&self.store), options, self.pool.environment.clone()).unwrap()
    }

    /// All that is there is on the disk, and nothing of it in memory any more, once `meanwhile` is done.
    fn reopened(self, meanwhile: impl FnOnce(&FaultyDisk)) -> Node {
        self.store.make_durable(self.store.last_lsn()).unwrap();
        self.store.checkpoint().unwrap();
        let Node { disk, pool, ring, store } = self;
        drop(store);
        meanwhile(&disk);
        let store = Arc::new(pool.open());
        Node { disk, pool, ring, store }
    }
}

type Opening = fn(&Array, &Arc<Store>, &Arc<Ring>, &Epochs, &Standing) -> Result<Stream>;

/// A primary, and a secondary that has nothing yet.
struct Both {
    primary: Node,
    array: Arc<Array>,
    epochs: Epochs,
    secondary: Node,
}

impl Both {
    fn of(primary: Node) -> Both {
        let array = primary.array();
        primary.ring.listen_from(primary.store.last_lsn());
        let mut epochs = Epochs::load(&primary.store).unwrap();
        epochs.begin(&primary.store, Epoch { generation: 1, number: 2 }).unwrap();
        let identity = PoolIdentity { position: (Epoch::default(), Lsn(0)), ..primary.store.identity() };
        let secondary = Node::new(77, Some(&identity));
        secondary.store.follow(true);
        Both { primary, array, epochs, secondary }
    }

    fn follower(&self) -> Follower {
        let by = Member { node: NodeId(2), incarnation: Incarnation(20) };
        Follower::new(Arc::clone(&self.secondary.store), Arc::clone(&self.secondary.ring), by)
    }

    fn open(&self) -> Link {
        self.open_by(Stream::open)
    }

    fn open_by(&self, open: Opening) -> Link {
        let follower = self.follower();
        let Upstream::Standing(standing) = follower.standing().unwrap() else { panic!() };
        let (store, ring) = (&self.primary.store, &self.primary.ring);
        let stream = open(&self.array, store, ring, &self.epochs, &standing).unwrap();
        Link { stream, follower, frames: 0 }
    }

    fn volume(&self, name: &str) -> ObjectNumber {
        let id = self.array.volume(name).unwrap().id;
        let objects = self.primary.store.objects().unwrap();
        let record = |opaque: &[u8]| sinter::format::catalog::Record::decode(opaque).ok();
        objects.iter().find(|it| record(&it.opaque).is_some_and(|it| it.id == id)).unwrap().number
    }

    /// Both read the same everywhere, an error where the other one has one; the blocks with errors.
    fn compare(&self) -> u64 {
        let mut errors = 0;
        let objects = self.primary.store.objects().unwrap();
        assert_eq!(objects.len(), self.secondary.store.objects().unwrap().len());
        for object in objects {
            for lba in 0..object.size.0.min(BLOCKS) {
                let read = |store: &Store| {
                    let mut bytes = vec![1; BLOCK_BYTES];
                    store.read(object.number, Lba(lba), &mut bytes, true).map(|_| bytes)
                };
                match (read(&self.primary.store), read(&self.secondary.store)) {
                    (Ok(one), Ok(other)) => assert!(one == other, "block {lba} of {}", object.number),
                    (Err(one), Err(other)) => {
                        errors += 1;
                        assert!(matches!(one.kind(), ErrorKind::Corrupt | ErrorKind::Device), "{one}");
                        assert_eq!(other.kind(), ErrorKind::Corrupt, "{other}");
                    }
                    (one, other) => {
                        panic!("block {lba} of {}: {:?}, {:?}", object.number, one.is_ok(), other.is_ok())
                    }
                }
            }
        }
        self.secondary.store.checkpoint().unwrap();
        let report = self.secondary.store.verify(&mut |_, _| {}).unwrap();
        assert!(report.faults.is_empty(), "{:#?}", report.faults);
        errors
    }
}

struct Link {
    stream: Stream,
    follower: Follower,
    frames: u64,
}

impl Link {
    /// One message of the primary is applied and answered for; whether there was one.
    fn carry(&mut self, repair: &mut dyn FnMut(&[Fingerprint])) -> Result<bool> {
        let Some(body) = self.stream.next_frame()? else { return Ok(false) };
        self.frames += 1;
        self.follower.receive(Downstream::decode(&body).unwrap(), body.len())?;
        while let Some(needs) = self.follower.work()? {
            let Some(Upstream::Needs { item, positions }) = Upstream::decode(&needs.encode()) else {
                panic!()
            };
            let body = self.stream.payloads(item, &positions, repair)?;
            self.follower.receive(Downstream::decode(&body).unwrap(), body.len())?;
        }
        if let Upstream::Applied { items, applied, .. } = self.follower.report()? {
            self.stream.applied(items, applied);
        }
        Ok(true)
    }

    fn carry_all(&mut self) {
        while self.carry(&mut |_| ()).unwrap() {}
        assert!(self.stream.has_caught_up() && self.follower.is_prefix());
    }

    fn remaining(&self) -> u64 {
        match self.stream.progress() {
            Progress::Compared { remaining } => remaining.0,
            Progress::Prefix => 0,
        }
    }
}

/// Blocks that nothing reduces, none like another.
fn content(seed: u64, blocks: u64) -> Vec<u8> {
    let mut state = mix(seed);
    let words = (0..blocks * BLOCK_BYTES as u64 / 8).map(|_| {
        state = mix(state);
        state.to_le_bytes()
    });
    words.flatten().collect()
}

fn new_volume(array: &Array, name: &str, blocks: u64) {
    let size = BlockCount(blocks).bytes();
    array.create_volume(NewVolume { name: name.to_owned(), size, ..NewVolume::default() }).unwrap();
}

/// A node with a volume `disk` that holds something everywhere, and what it holds.
fn filled() -> (Node, Vec<u8>) {
    let node = Node::new(5, None);
    let array = node.array();
    new_volume(&array, "disk", BLOCKS);
    let bytes = content(1, BLOCKS);
    array.open_volume("disk").unwrap().write(0, &bytes).unwrap();
    drop(array);
    (node, bytes)
}

/// Every place of the disk at which a page, block or whatever else begins as wished.
fn places(disk: &FaultyDisk, wished: impl Fn(&[u8]) -> bool) -> Vec<u64> {
    let mut bytes = vec![0; (SEGMENTS as usize + 2) << 16];
    disk.read_stable(DeviceOffset(0), &mut bytes);
    (0..bytes.len() - BLOCK_BYTES)
        .step_by(16)
        .filter(|at| wished(&bytes[*at..]))
        .map(|at| at as u64)
        .collect()
}

fn spoil(disk: &FaultyDisk, offset: u64) {
    disk.flip_bit(DeviceOffset(offset + 40), 3);
}

/// What is wrong with a place of a disk.
type Harm = fn(&FaultyDisk, u64);

/// It cannot be read.
fn fail(disk: &FaultyDisk, offset: u64) {
    disk.fail_reads_of(DeviceOffset(offset + 40), ByteCount(1));
}

/// Damages stored blocks.
fn spoil_blocks(disk: &FaultyDisk, bytes: &[u8], blocks: &[usize], harm: Harm) {
    for block in blocks {
        let head = &bytes[block * BLOCK_BYTES..][..64];
        let found = places(disk, |there| there.starts_with(head));
        assert_eq!(found.len(), 1, "block {block}");
        harm(disk, found[0] + 100);
    }
}

#[test]
fn p2_a_block_that_the_primary_cannot_read_stops_nobody_from_being_brought_up() {
    for harm in [spoil, fail] {
        bring_up_without_blocks(harm);
    }
}

fn bring_up_without_blocks(harm: Harm) {
    let (node, bytes) = filled();
    // Named twice in one piece, and once more elsewhere.
    let array = node.array();
    for place in [10, 900] {
        let disk = array.open_volume("disk").unwrap();
        disk.write(place * BLOCK_BYTES as u64, &bytes[3 * BLOCK_BYTES..4 * BLOCK_BYTES]).unwrap();
    }
    drop(array);
    let both = Both::of(node.reopened(|disk| spoil_blocks(disk, &bytes, &[3, 4, 700], harm)));
    let disk = both.array.open_volume("disk").unwrap();
    both.array
        .create_snapshot("disk", &NewSnapshot { name: Some("s".into()), ..NewSnapshot::default() })
        .unwrap();
    both.open().carry_all();
    assert_eq!(both.compare(), 2 * 5, "in the volume and in its snapshot");
    // What is written anew is good on both.
    disk.write(3 * BLOCK_BYTES as u64, &content(9, 1)).unwrap();
    both.open().carry_all();
    assert_eq!(both.compare(), 2 * 5 - 1);
    // The secondary comes to the same from its log, and can bring up others.
    let secondary = both.secondary.reopened(|_| ());
    let third = Both::of(secondary);
    third.open().carry_all();
    assert_eq!(third.compare(), 2 * 5 - 1);
}

#[test]
fn p2_a_map_that_the_primary_cannot_read_stops_nobody_from_being_brought_up() {
    for harm in [spoil, fail] {
        bring_up_without_a_leaf(harm);
    }
}

fn bring_up_without_a_leaf(harm: Harm) {
    let (node, _) = filled();
    let of_a_leaf = |there: &[u8]| {
        let table = there[6] == Table::Nodes as u8 && there[7] == 0;
        there[..4] == 0x4547_4150u32.to_le_bytes() && table && there[40] == 0 && PAGE_HEADER_BYTES == 64
    };
    let both = Both::of(node.reopened(|disk| {
        let found = places(disk, of_a_leaf);
        let number = |at: u64| {
            let mut number = [0; 8];
            disk.read_stable(DeviceOffset(at + 8), &mut number);
            u64::from_le_bytes(number)
        };
        // A page, and its copy.
        let chosen = number(found[0]);
        found.iter().filter(|at| number(**at) == chosen).for_each(|at| harm(disk, *at));
    }));
    both.open().carry_all();
    let lost = both.compare();
    assert!(lost == 512 || lost == BLOCKS % 512, "one leaf: {lost}");
    // As the primary began with nothing there: so does one that is compared by what it holds.
    both.secondary.store.follow(false);
    both.secondary.store.write(both.volume("disk"), Lba(600), &content(44, 3)).unwrap();
    both.secondary.store.follow(true);
    let mut again = both.open_by(Stream::open_anew);
    assert!(again.remaining() >= BLOCKS);
    again.carry_all();
    assert_eq!(both.compare(), lost);
}

#[test]
fn p2_what_a_device_does_not_read_at_the_first_attempt_is_not_given_up() {
    let (node, _) = filled();
    let both = Both::of(node.reopened(|_| ()));
    let mut link = both.open();
    let plan = both.primary.disk.plan();
    (0..30_000).step_by(7).for_each(|after| plan.inject(DeviceFault::FailRead, after));
    let before = plan.counts().reads;
    link.carry_all();
    assert!(plan.counts().reads > before + BLOCKS);
    plan.forget_faults();
    assert_eq!(both.compare(), 0);
}

#[test]
fn p2_a_device_that_reads_nothing_makes_nothing_lost() {
    let (node, _) = filled();
    let both = Both::of(node.reopened(|_| ()));
    let mut link = both.open();
    while link.remaining() > BLOCKS / 2 || link.remaining() == 0 {
        assert!(link.carry(&mut |_| ()).unwrap());
    }
    let disk = &both.primary.disk;
    disk.fail_reads_of(DeviceOffset(0), disk.len());
    let broken = loop {
        match link.carry(&mut |_| ()) {
            Ok(more) => assert!(more, "it has gone on to its end"),
            Err(error) => break error,
        }
    };
    assert_eq!(broken.kind(), ErrorKind::Device, "{broken}");
    for lba in 0..BLOCKS {
        let mut bytes = vec![0; BLOCK_BYTES];
        both.secondary.store.read(both.volume("disk"), Lba(lba), &mut bytes, true).unwrap();
    }
}

#[test]
fn p2_a_block_that_another_node_has_is_not_given_up() {
    let (node, bytes) = filled();
    let both = Both::of(node.reopened(|disk| spoil_blocks(disk, &bytes, &[3, 700], spoil)));
    let mut link = both.open();
    let store = &both.primary.store;
    let mut asked = 0;
    let mut repair = |wanted: &[Fingerprint]| {
        for (block, fingerprint) in store.bad_blocks(100) {
            assert!(wanted.contains(&fingerprint));
            asked += 1;
            let healed = [3, 700].into_iter().any(|at: usize| {
                let stored = &bytes[at * BLOCK_BYTES..(at + 1) * BLOCK_BYTES];
                store.heal(block, &fingerprint, stored).unwrap_or(false)
            });
            assert!(healed);
        }
    };
    while link.carry(&mut repair).unwrap() {}
    assert_eq!(asked, 2);
    assert_eq!(both.compare(), 0);
}

#[test]
fn what_is_made_of_an_object_that_is_being_compared_goes_on_where_that_is() {
    let (node, bytes) = filled();
    let both = Both::of(node);
    let mut link = both.open();
    while link.remaining() > BLOCKS / 3 || link.remaining() == 0 {
        assert!(link.carry(&mut |_| ()).unwrap());
    }
    let before = link.remaining();
    let disk = both.array.open_volume("disk").unwrap();
    for number in 0..6 {
        let name = Some(format!("s{number}"));
        both.array.create_snapshot("disk", &NewSnapshot { name, ..NewSnapshot::default() }).unwrap();
        // On either side of what has been compared.
        disk.write(number * BLOCK_BYTES as u64, &content(100 + number, 1)).unwrap();
        disk.write((BLOCKS - 1 - number) * BLOCK_BYTES as u64, &bytes[..BLOCK_BYTES]).unwrap();
    }
    let sent = link.stream.sent();
    while link.stream.sent() < Lsn(sent.0 + 18) {
        assert!(link.carry(&mut |_| ()).unwrap());
    }
    assert!(link.remaining() <= 7 * before, "{} from {before}", link.remaining());
    link.carry_all();
    assert_eq!(both.compare(), 0);
    // Of what is complete nothing is left to be looked at.
    let frames = link.frames;
    both.array
        .create_snapshot("disk", &NewSnapshot { name: Some("t".into()), ..NewSnapshot::default() })
        .unwrap();
    link.carry_all();
    assert!(link.frames <= frames + 2);
    assert_eq!(both.compare(), 0);
}

#[test]
fn a_large_volume_with_little_in_it_is_compared_by_what_is_in_it() {
    let node = Node::new(5, None);
    let array = node.array();
    new_volume(&array, "disk", 1 << 28);
    let disk = array.open_volume("disk").unwrap();
    let places = [0, 5000, (1 << 20) + 7, 1 << 27, (1 << 28) - 1];
    let write = |from: u64| {
        for place in places {
            disk.write((place - place.min(from)) * BLOCK_BYTES as u64, &content(from + place, 1)).unwrap();
        }
    };
    write(0);
    drop(array);
    let both = Both::of(node);
    both.open().carry_all();
    // It has something of its own at other places, and no bookmark.
    both.secondary.store.follow(false);
    let object = both.volume("disk");
    for place in [3, 9000, 1 << 26] {
        both.secondary.store.write(object, Lba(place), &content(place, 1)).unwrap();
    }
    both.secondary.store.follow(true);
    write(2);
    let mut link = both.open_by(Stream::open_anew);
    assert!(link.remaining() >= 1 << 28);
    link.carry_all();
    assert!(link.frames < 3000, "{} frames", link.frames);
    for place in places.into_iter().flat_map(|place| [place, place - place.min(2)]).chain([3, 9000, 1 << 26])
    {
        let read = |store: &Store| {
            let mut bytes = vec![1; BLOCK_BYTES];
            store.read(object, Lba(place), &mut bytes, true).unwrap();
            bytes
        };
        assert!(read(&both.primary.store) == read(&both.secondary.store), "block {place}");
    }
}

#[test]
fn a_snapshot_of_a_volume_that_has_grown_since_is_brought_up() {
    let node = Node::new(5, None);
    let array = node.array();
    new_volume(&array, "disk", 100);
    let volume = array.open_volume("disk").unwrap();
    volume.write(0, &content(1, 100)).unwrap();
    drop(volume);
    array.create_snapshot("disk", &NewSnapshot { name: Some("s".into()), ..NewSnapshot::default() }).unwrap();
    array.resize_volume("disk", BlockCount(BLOCKS).bytes()).unwrap();
    array.open_volume("disk").unwrap().write(50 * BLOCK_BYTES as u64, &content(2, 200)).unwrap();
    drop(array);
    let both = Both::of(node);
    bookmarks::make(&both.array, &both.primary.store, Uuid([7; 16]), 1).unwrap();
    both.open().carry_all();
    // A tail: it has deleted the snapshot, and nobody else knows.
    let snapshot = both.primary.store.objects().unwrap().into_iter().find(|it| it.size.0 == 100).unwrap();
    both.secondary.store.follow(false);
    both.secondary.store.delete_object(snapshot.number).unwrap();
    both.secondary.store.write(both.volume("disk"), Lba(9), &content(3, 1)).unwrap();
    both.secondary.store.follow(true);
    let mut link = both.open();
    assert!(link.remaining() > 0);
    link.carry_all();
    assert_eq!(both.compare(), 0);
}

#[test]
fn a_secondary_that_asks_for_nonsense_is_refused() {
    let (node, _) = filled();
    let both = Both::of(node);
    let mut link = both.open();
    let needs = loop {
        let body = link.stream.next_frame().unwrap().unwrap();
        link.follower.receive(Downstream::decode(&body).unwrap(), body.len()).unwrap();
        if let Some(needs) = link.follower.work().unwrap() {
            break needs;
        }
    };
    let Upstream::Needs { item, positions } = needs else { panic!() };
    assert!(positions.len() > 100);
    let (one, other) = (positions[0], positions[1]);
    for asked in [vec![], vec![one; 65_535], vec![other, one], vec![one, 256], vec![one, u16::MAX]] {
        let refused = link.stream.payloads(item, &asked, &mut |_| ()).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
    }
    // Neither does the secondary take what it has not asked for, or a part of it.
    let all = link.stream.payloads(item, &positions, &mut |_| ()).unwrap();
    let Some(Downstream::Payloads { item, payloads, .. }) = Downstream::decode(&all) else { panic!() };
    let part = Downstream::Payloads { item, payloads: payloads[1..].to_vec(), lost: vec![] };
    let refused = link.follower.receive(part, 100).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::Invalid, "{refused}");
}

#[test]
fn a_primary_that_sends_without_end_is_not_listened_to() {
    let (node, _) = filled();
    let both = Both::of(node);
    let mut follower = both.follower();
    for _ in 0..2 * IN_FLIGHT_ITEMS_MAX {
        follower.receive(Downstream::ObjectsEnd, 2).unwrap();
    }
    assert_eq!(follower.receive(Downstream::ObjectsEnd, 2).unwrap_err().kind(), ErrorKind::Invalid);
    let mut follower = both.follower();
    follower.receive(Downstream::ObjectsEnd, 2 * IN_FLIGHT_BYTES_MAX).unwrap();
    assert_eq!(follower.receive(Downstream::ObjectsEnd, 1).unwrap_err().kind(), ErrorKind::Invalid);
    let nothing = Downstream::Payloads { item: ItemNumber(1), payloads: vec![], lost: vec![] };
    assert_eq!(both.follower().receive(nothing, 2).unwrap_err().kind(), ErrorKind::Invalid);
}
