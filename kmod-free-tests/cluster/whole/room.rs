//! Pools of several sizes, some of them too small for what clients write.

use std::sync::atomic::Ordering;

use sinter::array::{BlockService as _, SnapshotWhich};
use sinter::replica::bookmarks;
use sinter::replica::ring::Backlog;
use sinter::replica::room::{fits, is_stuck};
use sinter::units::{BlockCount, ByteCount, Lsn};

use super::clients::{BULK, BULK_BLOCKS};
use super::trouble::HEALED_WITHIN;
use super::world::{MILLISECOND, World, index};

/// Blocks of one request, at most.
const REQUEST_BLOCKS: BlockCount = BlockCount(24);

impl World {
    /// What a primary looks at before it commits something: who has no room for it. Bookmarks are given up first.
    pub(super) fn look_for_room(&mut self, node: usize) {
        if !self.wider.room_is_short {
            return;
        }
        let Some(life) = self.nodes[node].life.as_ref().filter(|life| life.takes()) else { return };
        let here = !fits(life.store.writable_bytes(), Backlog::default(), REQUEST_BLOCKS);
        let member = !self.planted.members_room_ignored
            && life.role.record().set.keys().any(|member| {
                let shipping = life.shipping.get(&index(*member));
                let known =
                    shipping.and_then(|it| it.writable.filter(|_| it.stream.is_some()).zip(Some(it.applied)));
                known.is_some_and(|(writable, applied)| {
                    !fits(writable, life.ring.backlog(applied), REQUEST_BLOCKS)
                })
            });
        // The store itself knows best how much it can take.
        life.gate.short.store(member, Ordering::Relaxed);
        if here || member {
            self.give_up_bookmarks(node);
        }
    }

    fn give_up_bookmarks(&mut self, node: usize) {
        let life = self.nodes[node].life.as_mut().unwrap();
        life.bookmark = None;
        let dropped = bookmarks::drop_all_but(&life.store, &[]);
        if let Ok(Some(_)) = self.tried(node, dropped) {
            self.committed(node);
        }
    }

    /// Whether a node or a member has less room than a sixteenth of what it could take.
    pub(super) fn is_near_full(&self, node: usize) -> bool {
        let Some(life) = self.nodes[node].life.as_ref().filter(|_| self.wider.room_is_short) else {
            return false;
        };
        let usable = life.store.usable_bytes();
        let members = life.role.record().set.keys().filter_map(|member| life.shipping.get(&index(*member)));
        let least = members.filter_map(|it| it.writable).min().unwrap_or(usable);
        least.min(life.store.writable_bytes()).0 < usable.0 / 16
    }

    /// Whether somebody asks for much at once: rather while a member has not said what it has room for.
    pub(super) fn asks_for_much(&mut self, node: usize) -> bool {
        let Some(life) = self.nodes[node].life.as_ref() else { return false };
        let mut peers = life.role.record().set.keys().filter_map(|member| life.shipping.get(&index(*member)));
        let one_in = if peers.any(|it| it.stream.is_none() || it.writable.is_none()) { 2 } else { 24 };
        self.numbers.chance(1, one_in)
    }

    /// A node has said how much it can take.
    pub(super) fn note_room(&mut self, node: usize, peer: usize, applied: Lsn, writable: ByteCount) {
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        let Some(shipping) = life.shipping.get_mut(&peer) else { return };
        if applied >= shipping.applied {
            (shipping.writable, shipping.applied) = (Some(writable), applied);
        }
    }

    /// A node that could go on says that it has no room for what follows.
    pub(super) fn note_stuck(&mut self, node: usize, peer: usize, applied: Lsn, writable: ByteCount) {
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        let Some(shipping) = life.shipping.get_mut(&peer) else { return };
        shipping.compare |= !self.planted.stuck_ignored && is_stuck(&life.ring, applied, writable);
        self.oracle.seen.stuck += u64::from(shipping.compare);
    }

    /// Everything goes that clients can do without.
    pub(super) fn make_room(&mut self) {
        let Some(node) = self.serving().first().copied().filter(|_| self.wider.room_is_short) else { return };
        if self.opens(node).is_none() || !self.reaches(node) {
            return;
        }
        let array = self.nodes[node].life.as_ref().unwrap().array.clone();
        for snapshot in array.snapshots() {
            let of = snapshot.volume_id.to_string();
            let deleted =
                array.delete_snapshot(SnapshotWhich { volume: &of, snapshot: &snapshot.name }, true);
            let _ = self.tried(node, deleted);
        }
        for volume in array.volumes().iter().filter(|volume| volume.name.starts_with('c')) {
            let _ = self.tried(node, array.delete_volume(volume.name.as_str(), true));
        }
        let bulk = array.open_volume(BULK);
        let trimmed = bulk.and_then(|volume| volume.trim(0, BlockCount(BULK_BLOCKS).bytes()));
        let _ = self.tried(node, trimmed);
        self.committed(node);
    }
    /// What was deleted is free once it has been collected: then something is written again.
    pub(super) fn wait_for_room(&mut self, writes_before: u64) {
        let deadline = self.now + HEALED_WITHIN;
        while self.wider.room_is_short && self.oracle.seen.writes == writes_before && self.now < deadline {
            self.make_room();
            self.run(200 * MILLISECOND);
        }
    }
}
