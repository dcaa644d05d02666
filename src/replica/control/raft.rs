//! Control by Raft: openraft on a runtime of its own, with one thread.
//!
//! Everything that the group is told by others is checked before openraft sees it. A message of another group is
//! refused: a group that begins again from a single node, by force, hears nobody of the former one.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::time::Duration;

use openraft::{BasicNode, Config, Raft, ServerState, SnapshotPolicy};
use tokio::runtime::{Handle, Runtime};

use super::codec;
use super::group::{Group, draw};
use super::machine::{Content, Proposal, Types};
use super::messages::{Envelope, Request};
use super::network::{Network, Peers};
use super::state::{ClusterState, Decision, NodeEntry, Outcome};
use super::store::{Identity, Store};
use super::{Control, Standing, Transport, upkeep};
use crate::error::{Error, ErrorKind, Result};
use crate::replica::decisions::{NodeId, Record};
use crate::replica::timing::Timing;
use crate::sync::Mutex;
use crate::units::Uuid;

/// Entries of the log after which those that are applied may go.
const LOG_KEPT: u64 = 200;
/// A snapshot is sent in pieces of this size.
const SNAPSHOT_PIECE_BYTES: u64 = 128 << 10;
/// Threads that may wait for devices and peers: four kinds of requests to each of a dozen peers, and the file.
const WAITING_THREADS_MAX: usize = 64;
/// Proposals that nobody waits for: more are dropped, as the network might have done.
const PROPOSALS_MAX: usize = 32;
/// A new group of one node decides at once; the rest is for a slow device.
const BEGIN_PATIENCE: Duration = Duration::from_secs(20);
/// So long a peer waits at most for an answer of this node.
const ANSWER_PATIENCE: Duration = Duration::from_secs(5);
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// A node's part in the group.
pub struct RaftControl {
    group: Arc<Group>,
    handle: Handle,
    running: Mutex<Option<(Runtime, Store)>>,
    unheard_proposals: Arc<AtomicUsize>,
}

impl RaftControl {
    /// A new group of one node, which begins with a record. Refused where the file holds a group already; an attempt
    /// that failed may be made again.
    pub fn create(
        path: &Path,
        cluster: Uuid,
        own: NodeId,
        first: NodeEntry,
        record: Record,
        identity: Vec<u8>,
        transport: Arc<dyn Transport>,
    ) -> Result<Arc<RaftControl>> {
        let (store, owner) = Store::create(path, Identity { cluster, own, group: Some(draw()?) })?;
        let control = RaftControl::start(store, owner, transport)?;
        let node = BasicNode::new(&first.cluster_address);
        let raft = control.group.raft.clone();
        let members = BTreeMap::from([(u64::from(own.0), node)]);
        // It fails where an earlier attempt came so far; what counts is what is decided next.
        control.run(BEGIN_PATIENCE, async move { drop(raft.initialize(members).await) })?;
        let state = ClusterState::of(cluster, own, first, record, identity);
        match control.settle(Content::Begin(Box::new(state)), BEGIN_PATIENCE)? {
            Outcome::Unchanged(why) => {
                Err(Error::new(ErrorKind::Exists, format!("beginning a cluster: {why}")))
            }
            Outcome::Changed | Outcome::Joined(_) => Ok(control),
        }
    }

    /// The file of a node that was given its id just now: it waits for the group to make contact.
    pub fn join(
        path: &Path,
        cluster: Uuid,
        own: NodeId,
        transport: Arc<dyn Transport>,
    ) -> Result<Arc<RaftControl>> {
        let (store, identity) = Store::create(path, Identity { cluster, own, group: None })?;
        RaftControl::start(store, identity, transport)
    }

    /// A restart.
    pub fn open(path: &Path, own: NodeId, transport: Arc<dyn Transport>) -> Result<Arc<RaftControl>> {
        let (store, identity) = RaftControl::own_file(path, own)?;
        RaftControl::start(store, identity, transport)
    }

    /// A restart by force, where the group has lost its quorum for good: this node is the only voter of another group
    /// that begins with what it had applied. Nobody of the former group is heard again; the others come back under
    /// new ids. The caller then decides [`Decision::Force`].
    pub fn open_alone(path: &Path, own: NodeId, transport: Arc<dyn Transport>) -> Result<Arc<RaftControl>> {
        let (store, identity) = RaftControl::own_file(path, own)?;
        let identity = Identity { group: Some(draw()?), ..identity };
        store.cut_down_to(own, identity)?;
        RaftControl::start(store, identity, transport)
    }

    /// Serves what a peer has called over its [`Transport`]; `from` is who it is known to be. Bytes that no peer in
    /// its senses sends are an error.
    pub fn answer(&self, from: NodeId, request: &[u8]) -> Result<Vec<u8>> {
        let envelope: Envelope = codec::decode("a message of the group", request)?;
        self.admit(from, &envelope)?;
        let group = Arc::clone(&self.group);
        let answer = self.run(ANSWER_PATIENCE, async move { group.serve(envelope.request).await })?;
        codec::encode(&answer)
    }

    /// Ends this node's part, and lets go of the file. Not to be called from async code.
    pub fn stop(&self) {
        let Some((runtime, store)) = self.running.lock().take() else { return };
        let raft = self.group.raft.clone();
        let (done, wait) = mpsc::sync_channel(1);
        runtime.spawn(async move {
            // It fails only where it has ended before.
            drop(raft.shutdown().await);
            let _ = done.send(());
        });
        let _ = wait.recv_timeout(STOP_PATIENCE);
        drop(store);
        runtime.shutdown_timeout(STOP_PATIENCE);
    }

    fn own_file(path: &Path, own: NodeId) -> Result<(Store, Identity)> {
        let (store, identity) = Store::open(path)?;
        if identity.own != own {
            let what = format!(
                "opening {}: it is the file of node {}, this is node {}",
                path.display(),
                identity.own.0,
                own.0
            );
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok((store, identity))
    }

    fn start(store: Store, identity: Identity, transport: Arc<dyn Transport>) -> Result<Arc<RaftControl>> {
        let timing = Timing::default();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .max_blocking_threads(WAITING_THREADS_MAX)
            .thread_name("raft")
            .enable_time()
            .build()
            .map_err(|error| {
                Error::caused(ErrorKind::Busy, "starting the consensus group's thread", error)
            })?;
        let handle = runtime.handle().clone();
        let published = store.published();
        let own = identity.own;
        let identity = Arc::new(Mutex::new(identity));
        let pause = timing.group_heartbeat;
        let network = Arc::new(Network::new(transport, Arc::clone(&published), Arc::clone(&identity), pause));
        let config = Arc::new(config(&timing)?);
        let (peers, log, machine) = (Peers(Arc::clone(&network)), store.clone(), store.clone());
        let started = run_on(&handle, BEGIN_PATIENCE, async move {
            Raft::<Types>::new(u64::from(own.0), config, peers, log, machine).await
        })?;
        let raft = started.map_err(|error| {
            Error::caused(ErrorKind::Corrupt, "starting the consensus group from its file", error)
        })?;
        let group = Arc::new(Group::new(own, timing, raft, network, identity, published));
        runtime.spawn(upkeep::keep_members(Arc::clone(&group)));
        let unheard_proposals = Arc::new(AtomicUsize::new(0));
        let running = Mutex::new(Some((runtime, store)));
        Ok(Arc::new(RaftControl { group, handle, running, unheard_proposals }))
    }

    /// Whether a message is for this node, from one that may send it.
    fn admit(&self, from: NodeId, envelope: &Envelope) -> Result<()> {
        let refused = |kind, why: &str| {
            Err(Error::new(kind, format!("a message of the consensus group from node {}: {why}", from.0)))
        };
        envelope.request.check(from)?;
        if from == self.group.own {
            return refused(ErrorKind::Invalid, "that is this node");
        }
        if self.group.published.state().removed.contains(&from) {
            return refused(ErrorKind::NotFound, "it is no member any more");
        }
        let running = self.running.lock();
        let Some((_, store)) = &*running else {
            return refused(ErrorKind::Stopped, "this node's part in it has ended");
        };
        let mut identity = self.group.identity.lock();
        if envelope.cluster != identity.cluster {
            return refused(ErrorKind::Invalid, "it belongs to another cluster");
        }
        match identity.group {
            Some(own) if own == envelope.group => Ok(()),
            Some(_) => refused(ErrorKind::Invalid, "its group is another one, begun by force"),
            None if matches!(envelope.request, Request::Append(_) | Request::Snapshot(_)) => {
                let known = Identity { group: Some(envelope.group), ..*identity };
                store.save_identity(&known)?;
                *identity = known;
                Ok(())
            }
            None => refused(ErrorKind::NoQuorum, "this node waits for its leader"),
        }
    }

    fn settle(&self, content: Content, patience: Duration) -> Result<Outcome> {
        let proposal = Proposal { number: draw()?, at_ms: 0, content };
        let group = Arc::clone(&self.group);
        // The grace is for the answer's way to this thread: the time itself is kept by the group.
        self.run(patience + STOP_PATIENCE, async move { group.settle(proposal, patience).await })?
    }

    fn run<T: Send + 'static>(
        &self,
        patience: Duration,
        work: impl Future<Output = T> + Send + 'static,
    ) -> Result<T> {
        if self.running.lock().is_none() {
            return Err(Error::new(ErrorKind::Stopped, "this node's part in the consensus group has ended"));
        }
        run_on(&self.handle, patience, work)
    }
}

impl Control for RaftControl {
    fn propose(&self, decision: Decision) {
        if self.unheard_proposals.fetch_add(1, Ordering::AcqRel) >= PROPOSALS_MAX {
            self.unheard_proposals.fetch_sub(1, Ordering::AcqRel);
            return;
        }
        let (group, count) = (Arc::clone(&self.group), Arc::clone(&self.unheard_proposals));
        let proposed = self.handle.spawn(async move {
            if let Ok(number) = draw() {
                let proposal = Proposal { number, at_ms: 0, content: Content::Decide(decision) };
                // Whoever proposed it sees what has become of it in the state.
                drop(group.settle(proposal, group.timing.group_election_max).await);
            }
            count.fetch_sub(1, Ordering::AcqRel);
        });
        drop(proposed);
    }

    fn decide(&self, decision: Decision, patience: Duration) -> Result<Outcome> {
        self.settle(Content::Decide(decision), patience)
    }

    fn state(&self) -> Arc<ClusterState> {
        self.group.published.state()
    }

    fn subscribe(&self, changed: Box<dyn Fn() + Send + Sync>) {
        self.group.published.subscribe(changed);
    }

    fn standing(&self) -> Standing {
        let metrics = self.group.raft.metrics().borrow().clone();
        let id = |id: u64| u32::try_from(id).ok().map(NodeId);
        let membership = metrics.membership_config.membership();
        let parts = membership.get_joint_config();
        let in_all = |node: &u64| parts.iter().all(|part| part.contains(node));
        let voters: Vec<NodeId> = membership.voter_ids().filter(in_all).filter_map(id).collect();
        let learners = membership.learner_ids().filter_map(id).collect();
        if metrics.running_state.is_err() || self.running.lock().is_none() {
            return Standing { voters, learners, ..Standing::default() };
        }
        // One that led before a restart goes on leading in its own eyes, until it hears of another.
        let led = metrics.state == ServerState::Leader;
        let lately = |age: Duration| age < self.group.timing.group_election_max;
        let has_quorum = if led {
            (parts.len() == 1 && voters == [self.group.own])
                || metrics.millis_since_quorum_ack.is_some_and(|age| lately(Duration::from_millis(age)))
        } else {
            self.group.leader_silent_for().is_some_and(lately)
        };
        let leader = if has_quorum { metrics.current_leader.and_then(id) } else { None };
        Standing { leader, leads: led && has_quorum, has_quorum, voters, learners }
    }
}

impl Drop for RaftControl {
    fn drop(&mut self) {
        if let Some((runtime, _)) = self.running.lock().take() {
            runtime.shutdown_background();
        }
    }
}

fn config(timing: &Timing) -> Result<Config> {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    let config = Config {
        cluster_name: "sinter".into(),
        heartbeat_interval: millis(timing.group_heartbeat),
        election_timeout_min: millis(timing.group_election_min),
        election_timeout_max: millis(timing.group_election_max),
        install_snapshot_timeout: millis(timing.group_election_max * 2),
        snapshot_policy: SnapshotPolicy::LogsSinceLast(LOG_KEPT),
        max_in_snapshot_log_to_keep: LOG_KEPT / 2,
        replication_lag_threshold: LOG_KEPT * 2,
        snapshot_max_chunk_size: SNAPSHOT_PIECE_BYTES,
        ..Config::default()
    };
    config.validate().map_err(|error| Error::caused(ErrorKind::Invalid, "the consensus group's times", error))
}

/// Runs something on the group's thread; the calling one waits, whatever it is.
fn run_on<T: Send + 'static>(
    handle: &Handle,
    patience: Duration,
    work: impl Future<Output = T> + Send + 'static,
) -> Result<T> {
    let (done, wait) = mpsc::sync_channel(1);
    handle.spawn(async move { drop(done.send(work.await)) });
    wait.recv_timeout(patience).map_err(|error| {
        Error::caused(ErrorKind::NoQuorum, "waiting for this node's part in the consensus group", error)
    })
}
