//! What can be seen of a node and its cluster.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::replica::control::Standing;
use crate::replica::control::state::{NodeEntry, NodeKind};
use crate::replica::decisions::{Member, NodeId, Position, Record};
use crate::units::{ByteCount, Lsn};

use super::Node;

/// How another node stands towards this one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PeerState {
    /// In the in-sync set.
    Healthy,
    /// It follows, and is not in the set.
    Degraded,
    /// It is not heard.
    Broken,
    /// It is being compared.
    Syncing,
    /// This node does not know: only the primary does, and nobody of a witness.
    Unknown,
}

/// Another node, as this one sees it.
#[derive(Clone, Debug)]
pub struct PeerStatus {
    /// Which node.
    pub node: NodeId,
    /// What is known of it.
    pub entry: NodeEntry,
    /// Whether it is in the in-sync set.
    pub in_sync: bool,
    /// How it stands.
    pub state: PeerState,
    /// Its newest operation, as far as the primary knows.
    pub applied: Option<Lsn>,
    /// Bytes that it has not answered for.
    pub lag: ByteCount,
    /// Operations that it has not answered for.
    pub lag_operations: u64,
    /// For how long it has lacked them.
    pub lag_time: Duration,
    /// Bytes that are left to be compared.
    pub resync_remaining: ByteCount,
    /// How long ago it was heard last: on the primary any node, elsewhere the primary.
    pub heard_ago: Option<Duration>,
    /// Bytes shipped to it in this term.
    pub shipped_bytes: u64,
    /// Operations and pieces shipped to it in this term.
    pub shipped_operations: u64,
    /// What is wrong with the stream to it.
    pub error: Option<String>,
}

impl PeerStatus {
    /// Whether it votes and keeps nothing.
    #[must_use]
    pub fn is_witness(&self) -> bool {
        self.entry.kind == NodeKind::Witness
    }
}

/// A node and its cluster at one moment.
#[derive(Clone, Debug)]
pub struct NodeStatus {
    /// This node.
    pub own: Member,
    /// Its newest operation.
    pub position: Position,
    /// The newest decision that it knows.
    pub record: Record,
    /// How consensus stands here.
    pub standing: Standing,
    /// Whether it takes requests.
    pub serves: bool,
    /// Whether it is being compared.
    pub compared: bool,
    /// All other nodes, by number.
    pub peers: Vec<PeerStatus>,
    /// Operations that are not acknowledged yet.
    pub pending: u64,
    /// What bookmarks hold alone here, when that was last found out.
    pub bookmark_bytes: ByteCount,
    /// Since this node was started.
    pub totals: Totals,
}

/// What a node counts from its start on.
#[derive(Clone, Copy, Debug, Default)]
pub struct Totals {
    /// Writes and flushes that were acknowledged once the other nodes held what they are about.
    pub replicated: u64,
    /// Requests that could not be.
    pub failed: u64,
    /// How long the former ones waited for that, together.
    pub waited: Duration,
    /// Terms that this node began after another node's.
    pub takeovers: u64,
    /// From the last that it had heard of the former primary until it served, together.
    pub takeover_time: Duration,
    /// Damaged blocks that were fetched from another node and written anew.
    pub repaired_blocks: u64,
}

/// The counters behind `Totals`.
#[derive(Debug, Default)]
pub(super) struct Counters {
    replicated: AtomicU64,
    failed: AtomicU64,
    waited_nanos: AtomicU64,
    takeovers: AtomicU64,
    takeover_nanos: AtomicU64,
    repaired_blocks: AtomicU64,
}

impl Counters {
    /// A request has waited for other nodes.
    pub(super) fn waited(&self, time: Duration, acknowledged: bool) {
        if acknowledged {
            self.replicated.fetch_add(1, Ordering::Relaxed);
            add(&self.waited_nanos, time);
        } else {
            self.failed.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// This node serves in another one's place.
    pub(super) fn took_over(&self, time: Duration) {
        self.takeovers.fetch_add(1, Ordering::Relaxed);
        add(&self.takeover_nanos, time);
    }

    /// Damaged blocks were written anew.
    pub(super) fn repaired(&self, blocks: u64) {
        self.repaired_blocks.fetch_add(blocks, Ordering::Relaxed);
    }

    fn read(&self) -> Totals {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Totals {
            replicated: load(&self.replicated),
            failed: load(&self.failed),
            waited: Duration::from_nanos(load(&self.waited_nanos)),
            takeovers: load(&self.takeovers),
            takeover_time: Duration::from_nanos(load(&self.takeover_nanos)),
            repaired_blocks: load(&self.repaired_blocks),
        }
    }
}

fn add(counter: &AtomicU64, time: Duration) {
    counter.fetch_add(u64::try_from(time.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
}

impl Node {
    /// How this node and its cluster stand.
    #[must_use]
    pub fn status(&self) -> NodeStatus {
        let decided = self.parts.control.state();
        let standing = self.parts.control.standing();
        let now = self.now();
        let state = self.state.lock();
        let record = state.role.record().clone();
        let serves = state.serving.is_some() && state.serving == state.role.serves();
        let acknowledged = state.role.acknowledged();
        let shipping = state.shipping.clone();
        let bookmark_bytes = state.bookmarks.bytes;
        let compared = state.following.is_compared() || self.parts.store.syncing();
        let (epoch, lsn) = self.parts.store.position();
        let others = decided.nodes.iter().filter(|(node, _)| **node != self.parts.own.node);
        let heard = others.map(|(node, entry)| (node, entry, state.role.heard_from(*node)));
        let heard: Vec<_> = heard.collect();
        drop(state);
        let peers = heard.into_iter().map(|(node, entry, heard_at)| {
            let in_sync = record.set.contains_key(node);
            let mut peer = PeerStatus {
                node: *node,
                entry: entry.clone(),
                in_sync,
                state: if in_sync { PeerState::Healthy } else { PeerState::Unknown },
                applied: None,
                lag: ByteCount(0),
                lag_operations: 0,
                lag_time: Duration::ZERO,
                resync_remaining: ByteCount(0),
                heard_ago: heard_at.map(|at| now.saturating_sub(at)),
                shipped_bytes: 0,
                shipped_operations: 0,
                error: None,
            };
            if let Some(shipping) = shipping.get(node).filter(|_| serves) {
                let seen = shipping.figures.state.lock().clone();
                peer.state = match (&seen, in_sync) {
                    (seen, _) if !seen.connected => PeerState::Broken,
                    (seen, _) if seen.compared => PeerState::Syncing,
                    (_, true) => PeerState::Healthy,
                    (_, false) => PeerState::Degraded,
                };
                peer.applied = (seen.applied > Lsn(0)).then_some(seen.applied);
                peer.lag = self.lag_bytes(shipping);
                peer.lag_operations = lsn.0.saturating_sub(seen.applied.0);
                peer.resync_remaining = crate::units::BlockCount(seen.remaining_blocks).bytes();
                peer.lag_time = self.notes.lock().behind(seen.applied, lsn, now);
                peer.shipped_bytes = shipping.figures.shipped_bytes.load(Ordering::Relaxed);
                peer.shipped_operations = shipping.figures.shipped_operations.load(Ordering::Relaxed);
                peer.error = seen.error;
            }
            peer
        });
        NodeStatus {
            own: self.parts.own,
            position: Position { epoch, lsn },
            peers: peers.collect(),
            record,
            standing,
            serves,
            compared,
            pending: acknowledged.map_or(0, |acknowledged| lsn.0.saturating_sub(acknowledged.0)),
            bookmark_bytes,
            totals: self.counters.read(),
        }
    }
}
