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
    /// It was told to begin.
    pub(super) begun: bool,
    /// It has begun, and serves.
    pub(super) serves: bool,
    /// When it was chosen, or began to serve: from then on others have time to be heard.
    pub(super) since: Duration,
    /// All whose answers count, in or out of the set.
    pub(super) peers: BTreeMap<NodeId, Peer>,
    /// Waited for, and to be taken in.
    pub(super) admitted: BTreeMap<NodeId, Admitted>,
    /// What lives of nodes have said to have applied that no answer to a heartbeat has come from yet: they may never
    /// say it again.
    early: BTreeMap<NodeId, Early>,
    pub(super) beaten_at: Option<Duration>,
    pub(super) handing_over: Option<HandingOver>,
}

/// What a life of a node has applied and made durable, in this epoch.
#[derive(Clone, Copy, Debug)]
struct Early {
    incarnation: Incarnation,
    applied: Lsn,
    durable: Lsn,
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
            serves: false,
            since: now,
            peers: BTreeMap::new(),
            admitted: BTreeMap::new(),
            early: BTreeMap::new(),
            beaten_at: None,
            handing_over: None,
        }
    }

    /// The term has begun; until now nobody could apply anything of it.
    pub(super) fn serve(&mut self, now: Duration) {
        self.serves = true;
        self.since = now;
        self.peers.values_mut().for_each(|peer| peer.progressed_at = now);
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
        if let Some(early) = self.early.get(&member.node).filter(|it| it.incarnation == member.incarnation) {
            peer.applied = peer.applied.max(early.applied);
            peer.durable = peer.durable.max(early.durable);
            self.early.remove(&member.node);
        }
        peer
    }

    /// Keeps what a life of a node says that is not known yet.
    pub(super) fn keep_early(&mut self, by: Member, applied: Lsn, durable: Lsn) {
        let new = Early { incarnation: by.incarnation, applied, durable };
        let kept = self.early.entry(by.node).or_insert(new);
        if kept.incarnation == by.incarnation {
            kept.applied = kept.applied.max(applied);
            kept.durable = kept.durable.max(durable);
        } else {
            *kept = new;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_new_life_says_before_it_is_heard_counts_once_it_is_and_for_no_other() {
        let (now, life) =
            (Duration::from_secs(1), |life| Member { node: NodeId(2), incarnation: Incarnation(life) });
        let mut leading = Leading::of(Epoch::default(), now);
        leading.peer_mut(life(20), now);
        leading.keep_early(life(21), Lsn(7), Lsn(5));
        leading.keep_early(life(21), Lsn(6), Lsn(6));
        assert_eq!(leading.peer_mut(life(20), now).applied, Lsn(0));
        let peer = *leading.peer_mut(life(21), now);
        assert_eq!((peer.applied, peer.durable), (Lsn(7), Lsn(6)));
        assert_eq!(leading.peer_mut(life(22), now).applied, Lsn(0));
    }
}
