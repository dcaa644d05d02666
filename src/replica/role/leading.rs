//! What a node has while it is primary: the others, as it knows them, and what it is about to change.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::replica::decisions::{Incarnation, Member, NodeId, SetVersion};
use crate::units::{Epoch, Lsn};

/// Another node, as a primary knows it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Peer {
    pub(super) incarnation: Incarnation,
    pub(super) applied: Lsn,
    pub(super) durable: Lsn,
    /// When the newest heartbeat that it has answered was sent.
    pub(super) promised: Option<Duration>,
    /// When its newest answer came.
    pub(super) heard_at: Duration,
    /// When it had last applied all there was, or some more of it.
    pub(super) progressed_at: Duration,
    /// It cannot apply what it is sent.
    pub(super) failed: bool,
}

/// What a node has while it is primary, from the decision on.
#[derive(Debug)]
pub(super) struct Leading {
    pub(super) epoch: Epoch,
    pub(super) begun: bool,
    /// When it was chosen, or began: from then on others have time to be heard.
    pub(super) since: Duration,
    /// All whose answers count, in or out of the set.
    pub(super) peers: BTreeMap<NodeId, Peer>,
    /// Waited for, and to be taken in.
    pub(super) admitted: BTreeMap<NodeId, Admitted>,
    pub(super) beaten_at: Option<Duration>,
    pub(super) handing_over: Option<HandingOver>,
}

/// A node that is waited for and not in the set yet.
#[derive(Clone, Copy, Debug)]
pub(super) struct Admitted {
    pub(super) incarnation: Incarnation,
    /// Until it has applied this, it lacks something that was acknowledged without it.
    pub(super) holds_all_at: Lsn,
    /// The decision has been asked for, and may come whatever becomes of the node.
    pub(super) asked: bool,
}

/// A hand-over under way.
#[derive(Clone, Copy, Debug)]
pub(super) struct HandingOver {
    pub(super) target: Member,
    /// The version that the decision was asked for from.
    pub(super) asked: Option<SetVersion>,
}

impl Leading {
    /// At the decision.
    pub(super) fn of(epoch: Epoch, now: Duration) -> Leading {
        Leading {
            epoch,
            begun: false,
            since: now,
            peers: BTreeMap::new(),
            admitted: BTreeMap::new(),
            beaten_at: None,
            handing_over: None,
        }
    }

    /// What is known of a member in this life.
    pub(super) fn peer(&self, member: Member) -> Option<&Peer> {
        self.peers.get(&member.node).filter(|peer| peer.incarnation == member.incarnation)
    }

    /// The same, to be changed; a node that is heard in another life is known in that one from then on.
    pub(super) fn peer_mut(&mut self, member: Member, now: Duration) -> &mut Peer {
        let new = Peer {
            incarnation: member.incarnation,
            applied: Lsn(0),
            durable: Lsn(0),
            promised: None,
            heard_at: now,
            progressed_at: now,
            failed: false,
        };
        let peer = self.peers.entry(member.node).or_insert(new);
        if peer.incarnation != member.incarnation {
            *peer = new;
        }
        peer
    }
}
