//! A node that is far away: it follows, and is never in the set.

use sinter::replica::stream::Stream;
use sinter::replica::wire::Downstream;
use sinter::store::ShippedOperation;
use sinter::units::{BlockCount, Lsn};

use super::world::{MILLISECOND, Time, World, id};

impl World {
    pub(super) fn is_far(&self, node: usize) -> bool {
        self.far == Some(node)
    }

    /// The nodes that take part in roles.
    pub(super) fn near(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|node| !self.is_far(*node)).collect()
    }

    /// What the way to a far node takes longer, now and then so much that it falls behind.
    pub(super) fn longer_way(&mut self, from: usize, to: usize) -> Time {
        if !self.is_far(from) && !self.is_far(to) {
            return 0;
        }
        let longest = if self.numbers.chance(1, 50) && !self.calm { 400 } else { 20 };
        self.numbers.below(longest * MILLISECOND)
    }

    /// A far node says that it has applied all up to where it stands: what it holds is what the primary whose stream it
    /// follows had at that place, operation by operation, and now and then it is looked at block by block.
    pub(super) fn check_far(&mut self, node: usize, primary: (usize, u64)) {
        if !self.is_far(node) {
            return;
        }
        self.oracle.seen.far_reports += 1;
        let (_, last) = self.nodes[node].life.as_ref().unwrap().store.position();
        if self.nodes[primary.0].life.as_ref().is_some_and(|life| life.number == primary.1) {
            let here = self.nodes[primary.0].log.lock().unwrap();
            let there = self.nodes[node].log.lock().unwrap();
            let newest = there.last_key_value().map_or(Lsn(0), |(lsn, _)| *lsn);
            assert_eq!(newest, last, "what node {node} has applied");
            for (lsn, entry) in there.iter().rev().take(64) {
                assert_eq!(here.get(lsn), Some(entry), "operation {lsn} of node {node}, which is far");
            }
        }
        if self.numbers.chance(1, 60) {
            self.compare_with_log(node);
        }
    }

    /// Planted: instead of a part of what a far node lacks it gets zeros.
    pub(super) fn spoil_piece(&mut self, peer: usize, body: Vec<u8>) -> Vec<u8> {
        if !self.planted.pieces_lost || !self.is_far(peer) || !self.numbers.chance(1, 4) {
            return body;
        }
        match Downstream::decode(&body) {
            Some(Downstream::Piece(ShippedOperation::Write { object, first, mappings, .. })) => {
                let count = BlockCount(mappings.len() as u64);
                Downstream::Piece(ShippedOperation::Zero { object, first, count }).encode()
            }
            _ => body,
        }
    }

    /// A far node is in no set, and no primary.
    pub(super) fn assert_far_is_no_member(&self) {
        let Some(far) = self.far else { return };
        let record = &self.consensus.record;
        assert!(
            !record.set.contains_key(&id(far)) && record.primary != id(far),
            "node {far} is far, and in the set"
        );
    }

    /// Whether the far node, if there is one, has all but what is on its way.
    pub(super) fn far_has_caught_up(&self, primary: usize) -> bool {
        let Some(far) = self.far else { return true };
        let shipping = self.nodes[primary].life.as_ref().and_then(|life| life.shipping.get(&far));
        shipping.and_then(|it| it.stream.as_ref()).is_some_and(Stream::has_caught_up)
    }
}
