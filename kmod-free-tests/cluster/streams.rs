//! Streams over real stores: a primary with its array, a secondary on a disk that crashes, and a connection that breaks.
//!
//! Whatever happens, a secondary that has caught up holds what the primary holds, block by block and snapshot by
//! snapshot, under the same numbers: sent from the ring, brought up from a bookmark, or from nothing.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use sinter::array::{
    Array, ArrayOptions, BlockService as _, NewClone, NewSnapshot, NewVolume, RestoreTarget, SnapshotWhich,
};
use sinter::device::Device;
use sinter::device::faulty::{FaultPlan, FaultyDisk};
use sinter::format::catalog::{Record, RecordKind};
use sinter::replica::bookmarks;
use sinter::replica::decisions::{Incarnation, Member, NodeId};
use sinter::replica::epochs::Epochs;
use sinter::replica::follower::Follower;
use sinter::replica::ring::Ring;
use sinter::replica::stream::{Progress, Stream};
use sinter::replica::wire::{Downstream, Upstream};
use sinter::store::{CommitSink, Store};
use sinter::sync::seeded::{SeededNumbers, mix};
use sinter::units::{BLOCK_BYTES, BlockCount, ByteCount, Epoch, Lba, Lsn, Uuid};

use crate::pool::Pool;

const VOLUME_BLOCKS: u64 = 700;

fn own(node: u32, life: u64) -> Member {
    Member { node: NodeId(node), incarnation: Incarnation(life) }
}

fn epoch(number: u32) -> Epoch {
    Epoch { generation: 1, number }
}

/// Both nodes, and what is on its way between them.
struct Pair {
    numbers: SeededNumbers,
    array: Arc<Array>,
    primary: Arc<Store>,
    ring: Arc<Ring>,
    epochs: Epochs,
    term: u32,
    disk: Arc<FaultyDisk>,
    pool: Pool,
    secondary: Option<Arc<Store>>,
    secondary_ring: Arc<Ring>,
    link: Option<Connection>,
    named: u64,
    /// What the last stream was to send was not there any more.
    lost: bool,
    /// Whether the last bookmark is waited for, and up to where.
    marked: Option<(Uuid, Lsn)>,
    seen: Seen,
}

struct Connection {
    stream: Stream,
    follower: Follower,
    down: VecDeque<Vec<u8>>,
    up: VecDeque<Vec<u8>>,
    asked: bool,
}

/// What has happened, so that the test knows that it tests something.
#[derive(Clone, Copy, Debug, Default)]
struct Seen {
    went_on: u64,
    from_nothing: u64,
    from_bookmark: u64,
    broken_off: u64,
    needs: u64,
    crashes: u64,
    terms: u64,
    tails: u64,
    adopted: u64,
    resumed: u64,
}

impl Pair {
    fn new(seed: u64) -> Pair {
        let mut numbers = SeededNumbers::new(seed);
        let budget = ByteCount([20_000, 200_000, 2_000_000][numbers.index(3)]);
        let ring = Arc::new(Ring::new(budget));
        let mut pool = Pool::small(seed, 500);
        pool.options.sink = Some(Arc::clone(&ring) as Arc<dyn CommitSink>);
        let primary = Arc::new(pool.create());
        let array =
            Array::new(Arc::clone(&primary), ArrayOptions::new("array"), pool.environment.clone()).unwrap();
        let plan = FaultPlan::new();
        let disk = Arc::new(FaultyDisk::new("disk", ByteCount(602 << 16), seed, Arc::clone(&plan)));
        let secondary_ring = Arc::new(Ring::new(budget));
        let mut other = Pool::small(seed + 1, 600);
        other.device = Arc::clone(&disk) as Arc<dyn Device>;
        other.options.sink = Some(Arc::clone(&secondary_ring) as Arc<dyn CommitSink>);
        let identity =
            sinter::store::PoolIdentity { position: (Epoch::default(), Lsn(0)), ..primary.identity() };
        let secondary = Store::create_as(
            other.devices(),
            other.options.clone(),
            other.environment.clone(),
            Some(&identity),
        );
        let mut pair = Pair {
            numbers,
            array,
            primary,
            ring,
            epochs: Epochs::default(),
            term: 1,
            disk,
            pool: other,
            secondary: Some(Arc::new(secondary.unwrap())),
            secondary_ring,
            link: None,
            named: 0,
            lost: false,
            marked: None,
            seen: Seen::default(),
        };
        for _ in 0..pair.numbers.below(40) {
            pair.client();
        }
        pair.ring.listen_from(pair.primary.last_lsn());
        pair.begin_term();
        pair
    }

    fn begin_term(&mut self) {
        self.term += 1;
        self.epochs = Epochs::load(&self.primary).unwrap();
        self.epochs.begin(&self.primary, epoch(self.term)).unwrap();
        self.link = None;
        self.seen.terms += 1;
    }

    fn name(&mut self) -> String {
        self.named += 1;
        format!("n{}", self.named)
    }

    /// One request of a client, or one step of background work.
    fn client(&mut self) {
        let volumes = self.array.volumes();
        if volumes.is_empty() || volumes.len() < 4 && self.numbers.chance(1, 20) {
            let new = NewVolume {
                name: self.name(),
                size: BlockCount(VOLUME_BLOCKS).bytes(),
                ..NewVolume::default()
            };
            self.array.create_volume(new).unwrap();
            return;
        }
        let volume = volumes[self.numbers.index(volumes.len())].name.clone();
        let snapshots = self.array.snapshots();
        let snapshot =
            (!snapshots.is_empty()).then(|| snapshots[self.numbers.index(snapshots.len())].clone());
        match self.numbers.below(60) {
            0 if volumes.len() > 1 => self.array.delete_volume(volume.as_str(), false).unwrap(),
            1..4 if snapshots.len() < 6 => {
                let new = NewSnapshot { name: Some(self.name()), ..NewSnapshot::default() };
                self.array.create_snapshot(&volume, &new).unwrap();
            }
            4 if volumes.len() < 5 => {
                let new = NewClone { name: self.name(), description: None };
                self.array.clone_volume(volume.as_str(), &new).unwrap();
            }
            kind @ 5..9 => {
                let Some(snapshot) = snapshot else { return };
                let of = snapshot.volume_id.to_string();
                let which = SnapshotWhich { volume: &of, snapshot: &snapshot.name };
                match kind {
                    5 | 6 => self.array.delete_snapshot(which, false).unwrap(),
                    7 => {
                        let target = RestoreTarget::Onto { volume, force: false };
                        self.array.restore_snapshot(which, &target).unwrap();
                    }
                    _ if volumes.len() < 5 => {
                        let new = NewClone { name: self.name(), description: None };
                        self.array.clone_snapshot(which, &new).unwrap();
                    }
                    _ => {}
                }
            }
            9..12 => drop(self.primary.background_step().unwrap()),
            12 => self.primary.checkpoint().unwrap(),
            other => {
                let volume = self.array.open_volume(&volume).unwrap();
                let blocks = volume.size().blocks().0;
                let first = self.numbers.below(blocks);
                let count = (1 + self.numbers.below(12)).min(blocks - first);
                if other < 18 {
                    let count = 1 + self.numbers.below(blocks - first);
                    volume.trim(first * BLOCK_BYTES as u64, BlockCount(count).bytes()).unwrap();
                    return;
                }
                let data = self.content(count);
                volume.write(first * BLOCK_BYTES as u64, &data).unwrap();
            }
        }
    }

    fn content(&mut self, count: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        for _ in 0..count {
            let content = match self.numbers.below(8) {
                0 => {
                    bytes.extend_from_slice(&[0; BLOCK_BYTES]);
                    continue;
                }
                1 => {
                    let word = u8::try_from(self.numbers.below(256)).unwrap();
                    bytes.extend_from_slice(&[word; BLOCK_BYTES]);
                    continue;
                }
                2..5 => self.numbers.below(50),
                _ => 1000 + self.numbers.number() % 1_000_000,
            };
            let mut state = mix(content);
            for _ in 0..BLOCK_BYTES / 16 {
                state = mix(state);
                bytes.extend_from_slice(&state.to_le_bytes());
                bytes.extend_from_slice(&[7; 8]);
            }
        }
        bytes
    }

    /// Opens a stream, if there is none.
    fn connect(&mut self) {
        let Some(secondary) = self.secondary.clone().filter(|_| self.link.is_none()) else { return };
        let follower = Follower::new(secondary, Arc::clone(&self.secondary_ring), own(2, 20));
        let standing = match Upstream::decode(&follower.standing().unwrap().encode()) {
            Some(Upstream::Standing(standing)) => standing,
            other => panic!("{other:?}"),
        };
        let shared = !standing.bookmarks.is_empty();
        let open = if std::mem::take(&mut self.lost) { Stream::open_anew } else { Stream::open };
        let mut stream = open(&self.array, &self.primary, &self.ring, &self.epochs, &standing).unwrap();
        stream.put_cursors_every(ByteCount(8 << 10));
        self.seen.resumed += u64::from(stream.is_resumed());
        match stream.progress() {
            Progress::Prefix => self.seen.went_on += 1,
            Progress::Compared { .. } if shared => self.seen.from_bookmark += 1,
            Progress::Compared { .. } => self.seen.from_nothing += 1,
        }
        self.link =
            Some(Connection { stream, follower, down: VecDeque::new(), up: VecDeque::new(), asked: false });
    }

    /// One step of the connection; an error of either end breaks it.
    fn carry(&mut self) {
        let Some(link) = &mut self.link else { return };
        let (numbers, seen) = (&mut self.numbers, &mut self.seen);
        let outcome = match numbers.below(5) {
            0 | 1 => link.send().map_err(|error| error.context("sending")),
            2 | 3 => link.deliver(numbers, seen).map_err(|error| error.context("applying")),
            _ => link.answer().map_err(|error| error.context("answering")),
        };
        if let Err(error) = outcome {
            assert_eq!(error.kind(), sinter::error::ErrorKind::Changed, "{error}");
            self.seen.broken_off += 1;
            self.link = None;
            self.lost = true;
        }
    }

    /// Makes a bookmark while the secondary follows, and forgets older ones once it has it.
    fn bookmark(&mut self) {
        let follows = self.link.as_ref().is_some_and(|link| link.stream.has_caught_up());
        match self.marked {
            None if follows => {
                let mut id = [0; 16];
                self.numbers.fill(&mut id);
                let id = Uuid::from_random(id);
                let made = bookmarks::make(&self.array, &self.primary, id, 1).unwrap();
                self.marked = made.map(|lsn| (id, lsn));
            }
            Some((id, lsn)) => {
                let has =
                    self.secondary.as_ref().is_some_and(|store| !store.syncing() && store.last_lsn() >= lsn);
                if has && follows {
                    self.secondary.as_ref().unwrap().make_durable(lsn).unwrap();
                    bookmarks::drop_all_but(&self.primary, &[id]).unwrap();
                    self.marked = None;
                }
            }
            None => {}
        }
    }

    /// The secondary loses its power, and comes back.
    fn crash(&mut self) {
        self.link = None;
        self.secondary = None;
        self.disk.crash();
        let store = Arc::new(self.pool.open());
        self.secondary_ring.mute();
        if !store.syncing() {
            self.secondary_ring.listen_from(store.last_lsn());
        }
        self.secondary = Some(store);
        self.seen.crashes += 1;
    }

    /// The secondary was the primary of this term, and committed something that nobody else has: the term is over, and
    /// its tail counts for nothing.
    fn tail(&mut self) {
        let Some(secondary) = &self.secondary else { return };
        if secondary.syncing() || secondary.position() != self.primary.position() {
            return;
        }
        self.link = None;
        self.seen.tails += 1;
        secondary.follow(false);
        for object in secondary.objects().unwrap() {
            // Nobody writes to what is no volume.
            let volume = Record::decode(&object.opaque).is_ok_and(|record| record.kind == RecordKind::Volume);
            if volume && self.numbers.chance(2, 3) {
                let data = vec![0xee; BLOCK_BYTES * 3];
                let _ = secondary.write(object.number, Lba(self.numbers.below(VOLUME_BLOCKS - 3)), &data);
            }
        }
        secondary.follow(true);
        self.begin_term();
    }

    fn step(&mut self) {
        match self.numbers.below(8000) {
            0..4 => self.crash(),
            4..10 => self.link = None,
            10..14 => {
                // Away for a while.
                self.link = None;
                for _ in 0..self.numbers.below(60) {
                    self.client();
                }
            }
            14 => self.begin_term(),
            15..40 => self.tail(),
            40..80 => self.bookmark(),
            80..300 => {
                if let Some(secondary) = &self.secondary {
                    let _ = secondary.background_step().unwrap();
                }
            }
            300..800 => self.connect(),
            800..1600 => self.client(),
            _ => self.carry(),
        }
    }

    /// Without faults and requests the secondary catches up, and holds the same.
    fn heal(&mut self) {
        for _ in 0..2_000_000 {
            self.connect();
            self.carry();
            let caught_up = |link: &Connection| {
                link.stream.has_caught_up() && link.stream.sent() == self.ring.last() && link.down.is_empty()
            };
            let last = self
                .secondary
                .as_ref()
                .is_some_and(|store| !store.syncing() && store.position() == self.primary.position());
            if last && self.link.as_ref().is_some_and(caught_up) {
                return self.compare();
            }
        }
        panic!("the secondary does not catch up");
    }

    fn compare(&self) {
        let secondary = self.secondary.as_ref().unwrap();
        let objects = |store: &Store| -> BTreeMap<_, _> {
            store.objects().unwrap().into_iter().map(|object| (object.number, object)).collect()
        };
        let (here, there) = (objects(&self.primary), objects(secondary));
        for (number, object) in &here {
            assert_eq!(Some(object), there.get(number));
        }
        assert_eq!(here.len(), there.len());
        for object in here.values() {
            for first in (0..object.size.0).step_by(64) {
                let count = usize::try_from((object.size.0 - first).min(64)).unwrap();
                let read = |store: &Store| {
                    let mut bytes = vec![1; count * BLOCK_BYTES];
                    store.read(object.number, Lba(first), &mut bytes, true).unwrap();
                    bytes
                };
                assert!(read(&self.primary) == read(secondary), "object {} from {first} on", object.number);
            }
        }
        for store in [&self.primary, secondary] {
            store.checkpoint().unwrap();
            let report = store.verify(&mut |_, _| {}).unwrap();
            assert!(report.faults.is_empty(), "{:#?}", &report.faults[..report.faults.len().min(8)]);
        }
    }
}

impl Connection {
    fn send(&mut self) -> sinter::error::Result<()> {
        if self.down.len() < 40 {
            self.down.extend(self.stream.next_frame()?);
        }
        Ok(())
    }

    fn deliver(&mut self, numbers: &mut SeededNumbers, seen: &mut Seen) -> sinter::error::Result<()> {
        for _ in 0..=numbers.below(4) {
            let Some(body) = self.down.pop_front() else { break };
            let message = Downstream::decode(&body).unwrap();
            assert!(message.encode() == body, "a message has one encoding");
            seen.adopted += u64::from(matches!(message, Downstream::Adopt(_)));
            self.follower.receive(message, body.len())?;
        }
        if let Some(needs) = self.follower.work()? {
            seen.needs += 1;
            self.asked = true;
            self.up.push_back(needs.encode());
        }
        if self.follower.has_news() && numbers.chance(2, 3) {
            self.up.push_back(self.follower.report()?.encode());
        }
        Ok(())
    }

    fn answer(&mut self) -> sinter::error::Result<()> {
        if self.up.is_empty() && self.follower.has_news() {
            self.up.push_back(self.follower.report()?.encode());
        }
        let Some(body) = self.up.pop_front() else { return Ok(()) };
        match Upstream::decode(&body).unwrap() {
            Upstream::Applied { items, applied, .. } => self.stream.applied(items, applied),
            Upstream::Needs { item, positions } => {
                self.down.push_back(self.stream.payloads(item, &positions, &mut |_| ())?)
            }
            other => panic!("{other:?}"),
        }
        Ok(())
    }
}

fn live(seed: u64) -> Seen {
    let mut pair = Pair::new(seed);
    for _ in 0..25_000 {
        pair.step();
    }
    pair.heal();
    // What comes after a comparison is followed as well.
    for _ in 0..200 {
        pair.client();
        pair.carry();
    }
    pair.heal();
    pair.seen
}

#[test]
fn p7_a_secondary_that_has_caught_up_holds_the_same() {
    if let Some(seed) = crate::from_environment("SINTER_STREAM_SEED") {
        println!("{:?}", live(seed));
        return;
    }
    let lives = crate::from_environment("SINTER_STREAM_LIVES").unwrap_or(25);
    let mut all = Seen::default();
    for seed in 1..=lives {
        let lived = std::panic::catch_unwind(|| live(seed));
        let seen = lived.unwrap_or_else(|_| {
            panic!("seed {seed} failed; replay: SINTER_STREAM_SEED={seed} cargo test --test cluster holds_the_same")
        });
        all.went_on += seen.went_on;
        all.from_nothing += seen.from_nothing;
        all.from_bookmark += seen.from_bookmark;
        all.broken_off += seen.broken_off;
        all.needs += seen.needs;
        all.crashes += seen.crashes;
        all.terms += seen.terms;
        all.tails += seen.tails;
        all.adopted += seen.adopted;
        all.resumed += seen.resumed;
    }
    println!("{lives} lives: {all:?}");
    assert!(all.went_on > lives && all.from_nothing > lives / 2 && all.from_bookmark > lives / 2, "{all:?}");
    assert!(all.resumed > lives, "{all:?}");
    assert!(all.needs > lives && all.crashes > lives && all.adopted > lives / 2, "{all:?}");
}
