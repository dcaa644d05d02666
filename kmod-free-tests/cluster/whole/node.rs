//! A node of the whole cluster: a disk that keeps what was synced, and what lives on it.

use std::collections::{BTreeMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use sinter::array::{Array, ArrayOptions, CommitGate};
use sinter::device::Device;
use sinter::device::faulty::{DiskSnapshot, FaultPlan, FaultyDisk};
use sinter::error::{Error, ErrorKind, Result};
use sinter::format::batch::{LoggedOperation, MappingRecord};
use sinter::replica::decisions::{Member, Position, Record};
use sinter::replica::epochs::Epochs;
use sinter::replica::follower::Follower;
use sinter::replica::ring::Ring;
use sinter::replica::role::{Action, Role};
use sinter::replica::stream::Stream;
use sinter::store::{Commit, CommitSink, PoolIdentity, Store};
use sinter::sync::RandomSource;
use sinter::units::{BlockCount, ByteCount, Epoch, Fingerprint, Lba, Lsn, ObjectNumber, Uuid};

use super::clients::Pending;
use super::world::Time;
use crate::pool::Pool;

/// An operation as it was committed or applied somewhere: the term, and a digest of what it does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) epoch: Epoch,
    pub(super) digest: u64,
    /// What a write sets: of which object, from where on, and so many blocks.
    pub(super) blocks: Option<(ObjectNumber, Lba, u64)>,
}

/// What a pool holds, by number.
pub(super) type Log = BTreeMap<Lsn, Entry>;

/// The gate of an array in simulation: it never waits. What has to be waited for it notes, and the world looks whether
/// it has come.
#[derive(Default)]
pub(super) struct Gate {
    pub(super) open: AtomicBool,
    /// Somebody who must hold what is written has no room.
    pub(super) short: AtomicBool,
    wanted: AtomicU64,
}

impl Gate {
    /// Up to where the verb that has just returned wants everything durable.
    pub(super) fn wanted(&self) -> Lsn {
        Lsn(self.wanted.load(Ordering::Relaxed))
    }
}

impl CommitGate for Gate {
    fn admit(&self) -> Result<()> {
        let closed = || Error::new(ErrorKind::NotPrimary, "nothing is taken here");
        self.open.load(Ordering::Relaxed).then_some(()).ok_or_else(closed)
    }

    fn done(&self) {}

    fn reserve(&self, _blocks: BlockCount) -> Result<()> {
        let full = || Error::new(ErrorKind::NoSpace, "a member has no room");
        (!self.short.load(Ordering::Relaxed)).then_some(()).ok_or_else(full)
    }

    fn acknowledged(&self, _lsn: Lsn) -> Result<()> {
        Ok(())
    }

    fn durable(&self, lsn: Lsn) -> Result<()> {
        self.wanted.store(lsn.0, Ordering::Relaxed);
        Ok(())
    }

    fn may_answer_read(&self, _object: ObjectNumber, _first: Lba, _count: BlockCount) -> Result<()> {
        Ok(())
    }

    fn try_answer_read(&self, _object: ObjectNumber, _first: Lba, _count: BlockCount) -> Result<bool> {
        Ok(true)
    }
}

/// The commit sink of a node: the ring, and a note of every operation for the oracle.
pub(super) struct Sink {
    ring: Arc<Ring>,
    log: Arc<Mutex<Log>>,
    /// Planted: now and then two operations change their places on the way to the ring.
    out_of_order: bool,
    held: Mutex<Option<Held>>,
}

/// A commit that another one overtakes.
type Held = (LoggedOperation, Vec<Fingerprint>, Arc<Vec<u8>>);

impl CommitSink for Sink {
    fn listens(&self) -> bool {
        self.ring.listens()
    }

    fn committed(&self, commit: &Commit<'_>) {
        if !self.ring.listens() || matches!(commit.operation, LoggedOperation::Moved { .. }) {
            return self.ring.committed(commit);
        }
        let blocks = match commit.operation {
            LoggedOperation::Write { object, first, mappings } => {
                Some((*object, *first, mappings.len() as u64))
            }
            _ => None,
        };
        let entry = Entry { epoch: commit.epoch, digest: digest(commit), blocks };
        self.log.lock().unwrap().insert(commit.lsn, entry);
        let mut held = self.held.lock().unwrap();
        match held.take() {
            Some((operation, fingerprints, payload)) => {
                let before = Lsn(commit.lsn.0 - 1);
                self.ring.committed(&Commit { lsn: before, ..*commit });
                let fingerprints = &fingerprints[..];
                let payload = &payload;
                self.ring.committed(&Commit { operation: &operation, fingerprints, payload, ..*commit });
            }
            None if self.out_of_order && entry.digest.is_multiple_of(8) => {
                let (operation, fingerprints) = (commit.operation.clone(), commit.fingerprints.to_vec());
                *held = Some((operation, fingerprints, Arc::clone(commit.payload)));
            }
            None => self.ring.committed(commit),
        }
    }
}

/// What an operation does, without the names that are a node's own.
fn digest(commit: &Commit<'_>) -> u64 {
    let mut hasher = DefaultHasher::new();
    match commit.operation {
        LoggedOperation::Write { object, first, mappings } => {
            (object, first).hash(&mut hasher);
            for (mapping, fingerprint) in mappings.iter().zip(commit.fingerprints) {
                match mapping {
                    MappingRecord::Hole => 1.hash(&mut hasher),
                    MappingRecord::Pattern(word) => (2, word).hash(&mut hasher),
                    MappingRecord::Lost => 3.hash(&mut hasher),
                    _ => (3, fingerprint.0).hash(&mut hasher),
                }
            }
        }
        other => format!("{other:?}").hash(&mut hasher),
    }
    hasher.finish()
}

/// A stream to another node, or the attempts to have one.
#[derive(Default)]
pub(super) struct Shipping {
    /// The connection that is open, or being opened.
    pub(super) link: Option<u64>,
    pub(super) stream: Option<Stream>,
    pub(super) asked_sync: Lsn,
    pub(super) pause: Time,
    /// What it has said that it can take, having applied so much.
    pub(super) writable: Option<ByteCount>,
    pub(super) applied: Lsn,
    /// The next stream to it compares it, wherever it stands.
    pub(super) compare: bool,
}

/// The stream that a node follows.
pub(super) struct Following {
    pub(super) link: u64,
    pub(super) epoch: Epoch,
    pub(super) follower: Follower,
    /// Everything up to here is to be made durable.
    pub(super) wanted: Lsn,
    /// The newest operation that has come, applied or not.
    pub(super) received: Lsn,
    pub(super) told_room: Option<ByteCount>,
    /// Messages that have come and were not looked at.
    pub(super) waiting: VecDeque<Vec<u8>>,
}

/// What a node has while it lives.
pub(super) struct Life {
    pub(super) number: u64,
    pub(super) role: Role,
    pub(super) store: Arc<Store>,
    pub(super) array: Arc<Array>,
    pub(super) ring: Arc<Ring>,
    pub(super) gate: Arc<Gate>,
    pub(super) random: Arc<dyn RandomSource>,
    /// The epoch in which requests are taken.
    pub(super) serving: Option<Epoch>,
    /// Terms to begin and to end, in order.
    pub(super) changes: VecDeque<Action>,
    pub(super) shipping: BTreeMap<usize, Shipping>,
    pub(super) following: Option<Following>,
    /// It is being compared: its own numbers mean nothing.
    pub(super) compared: bool,
    pub(super) sync_wanted: Lsn,
    pub(super) written_out: Lsn,
    pub(super) epochs: Epochs,
    pub(super) bookmark_due: Duration,
    /// A bookmark that is not durable on all members yet.
    pub(super) bookmark: Option<(Uuid, Lsn)>,
    pub(super) pending: Vec<Pending>,
    /// Attempts to begin the present term.
    pub(super) failures: u32,
    /// It is known that its store takes no writes any more.
    pub(super) device_failed: bool,
}

impl Life {
    /// What the role counts as applied here.
    pub(super) fn position(&self) -> Position {
        if self.compared || self.store.syncing() {
            return Position::default();
        }
        let (epoch, lsn) = self.store.position();
        Position { epoch, lsn }
    }

    /// Whether requests are taken now.
    pub(super) fn takes(&self) -> bool {
        self.stands() && self.role.takes_requests()
    }

    /// (6): whoever is being compared carries out nothing, and answers nothing.
    pub(super) fn assert_may_serve(&self) {
        let compared = self.compared || self.store.syncing();
        assert!(!self.stands() || !compared, "a node that is being compared serves in {:?}", self.serving);
    }

    /// Whether what is under way may be answered at all.
    pub(super) fn stands(&self) -> bool {
        self.serving.is_some() && self.serving == self.role.serves()
    }
}

/// What a disk held at one moment, and what the oracle knows of it.
pub(super) struct Copy {
    disk: DiskSnapshot,
    log: Log,
    has_pool: bool,
}

pub(super) struct Node {
    pub(super) plan: Arc<FaultPlan>,
    disk: Arc<FaultyDisk>,
    seed: u64,
    budget: ByteCount,
    segments: u64,
    /// None before its pool was made.
    pub(super) has_pool: bool,
    pub(super) log: Arc<Mutex<Log>>,
    pub(super) life: Option<Life>,
    /// The newest decision that was applied here.
    pub(super) record: Record,
    pub(super) decisions: usize,
    pub(super) paused_until: Time,
    /// Its disk takes its time until then.
    pub(super) slow_until: Time,
    /// What its clock gains, in parts of ten thousand.
    pub(super) gains: i64,
    /// Until then its clock stands still, from a moment on.
    pub(super) clock_stands: Option<(Time, Time)>,
    pub(super) old: Option<Copy>,
    /// Its pool was taken from it, in this life or after it.
    pub(super) pool_lost_in: u64,
    /// Its pool may be without something acknowledged, for all that can be seen where it lies.
    may_lack: bool,
}

/// A store with what is around it.
pub(super) struct Opened {
    pub(super) store: Arc<Store>,
    pub(super) array: Arc<Array>,
    pub(super) ring: Arc<Ring>,
    pub(super) gate: Arc<Gate>,
    pub(super) random: Arc<dyn RandomSource>,
}

impl Node {
    pub(super) fn new(seed: u64, budget: ByteCount, record: Record, gains: i64, segments: u64) -> Node {
        let plan = FaultPlan::new();
        Node {
            disk: blank(seed, segments, &plan),
            plan,
            seed,
            budget,
            segments,
            has_pool: false,
            log: Arc::default(),
            life: None,
            record,
            decisions: 0,
            paused_until: 0,
            slow_until: 0,
            gains,
            clock_stands: None,
            old: None,
            pool_lost_in: 0,
            may_lack: false,
        }
    }

    /// Makes a pool where there is none, and opens it; nothing where the disk stops meanwhile.
    pub(super) fn open(&mut self, identity: Option<&PoolIdentity>, out_of_order: bool) -> Option<Opened> {
        let ring = Arc::new(Ring::new(self.budget));
        let mut pool = Pool::small(self.seed, self.segments);
        pool.device = Arc::clone(&self.disk) as Arc<dyn Device>;
        let (log, held) = (Arc::clone(&self.log), Mutex::default());
        let sink = Sink { ring: Arc::clone(&ring), log, out_of_order, held };
        pool.options.sink = Some(Arc::new(sink) as Arc<dyn CommitSink>);
        self.seed += 1;
        let (devices, options, environment) =
            (pool.devices(), pool.options.clone(), pool.environment.clone());
        let opened = if self.has_pool {
            Store::open(devices, options, environment).map(|(store, report)| (store, report.damage))
        } else {
            Store::create_as(devices, options, environment, identity).map(|store| (store, Vec::new()))
        };
        let store = match opened {
            // What cannot be read because the disk has stopped is no damage.
            Ok((_, damage)) if !damage.is_empty() && self.plan.is_stopped() => return None,
            Ok((store, damage)) => {
                assert!(damage.is_empty(), "{damage:?}");
                Arc::new(store)
            }
            Err(error) if self.plan.is_stopped() => {
                drop(error);
                return None;
            }
            Err(error) => panic!("a pool does not open: {error}"),
        };
        self.may_lack &= self.has_pool;
        store.set_may_lack(self.may_lack);
        self.has_pool = true;
        let gate = Arc::new(Gate::default());
        let options = ArrayOptions {
            gate: Some(Arc::clone(&gate) as Arc<dyn CommitGate>),
            ..ArrayOptions::new("array")
        };
        let array = Array::new(Arc::clone(&store), options, pool.environment.clone());
        if self.plan.is_stopped() {
            return None;
        }
        self.remember(&store);
        Some(Opened { array: array.unwrap(), store, ring, gate, random: pool.environment.random })
    }

    /// What was lost with the power is forgotten here, too.
    fn remember(&self, store: &Store) {
        let mut log = self.log.lock().unwrap();
        let (epoch, last) = store.position();
        if store.syncing() {
            log.clear();
            return;
        }
        let _ = log.split_off(&last.next());
        if let Some((lsn, newest)) = log.last_key_value() {
            assert!(*lsn == last && newest.epoch <= epoch, "a pool came back at {epoch:?} {last}, not {lsn}");
        }
    }

    /// The node dies, and its power with it or not. What it had written may be gone.
    pub(super) fn die(&mut self, power: bool, may_lack: bool) {
        self.life = None;
        self.paused_until = 0;
        self.may_lack |= may_lack;
        self.plan.forget_faults();
        if power {
            self.disk.crash();
        } else {
            self.disk.kill_process();
        }
    }

    /// What lies on the disk of a node that does not live.
    pub(super) fn copy(&self) -> Copy {
        let log = self.log.lock().unwrap().clone();
        Copy { disk: self.disk.snapshot(), log, has_pool: self.has_pool }
    }

    /// Puts something else on the disk of a node that does not live; a new disk where it is nothing.
    pub(super) fn put_back(&mut self, copy: Option<Copy>, seed: u64) {
        self.may_lack = true;
        match copy {
            Some(Copy { disk, log, has_pool }) => {
                self.has_pool = has_pool;
                self.disk = Arc::new(FaultyDisk::from_snapshot(&disk, Arc::clone(&self.plan)));
                self.disk.reseed(seed);
                *self.log.lock().unwrap() = log;
            }
            None => {
                self.disk = blank(seed, self.segments, &self.plan);
                self.has_pool = false;
                self.log.lock().unwrap().clear();
            }
        }
    }

    /// This node in its present life.
    pub(super) fn member(&self, index: usize) -> Option<Member> {
        let incarnation = sinter::replica::decisions::Incarnation(self.life.as_ref()?.number);
        Some(Member { node: super::world::id(index), incarnation })
    }
}

fn blank(seed: u64, segments: u64, plan: &Arc<FaultPlan>) -> Arc<FaultyDisk> {
    Arc::new(FaultyDisk::new("disk", ByteCount((segments + 2) << 16), seed, Arc::clone(plan)))
}
