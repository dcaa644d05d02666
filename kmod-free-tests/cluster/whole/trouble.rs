//! What goes wrong, and that all is well again once nothing does.

use std::collections::BTreeMap;

use sinter::error::Result;
use sinter::replica::bookmarks::Inventory;
use sinter::replica::decisions::Member;
use sinter::replica::role::Input;
use sinter::store::{ShippedMapping, Store};
use sinter::units::{BLOCK_BYTES, BlockCount, Lba, Lsn};

use super::oracle::Seen;
use super::world::{Event, MILLISECOND, SECOND, Time, World, id};

/// All nodes are in sync and equal again so soon after the last fault.
pub(super) const HEALED_WITHIN: Time = 30 * SECOND;
/// What is looked at of each log while nodes go on.
const COMPARED_OPERATIONS: u64 = 400;

impl World {
    pub(super) fn fault(&mut self) {
        if self.calm {
            return;
        }
        let delay = self.numbers.below(700 * MILLISECOND);
        self.after(delay, Event::Fault);
        let node = self.numbers.index(self.nodes.len());
        let length = self.numbers.below(1200 * MILLISECOND);
        if self.wider.devices_fail && self.numbers.chance(1, 4) {
            return self.fail_device(node);
        }
        if self.wider.machines_are_lost && self.numbers.chance(1, 5) {
            return self.lose_machine(node);
        }
        let kind = match self.sleepy {
            true if self.numbers.chance(1, 2) => 2,
            true => 6,
            false => self.numbers.below(22),
        };
        match kind {
            0 => self.fall(node, false),
            1 => self.fall(node, true),
            5 if self.numbers.chance(1, 3) => (0..self.nodes.len()).for_each(|node| self.fall(node, true)),
            2..5 => {
                // About as long as it takes until somebody else is to be primary is the most interesting.
                let about = 300 * MILLISECOND + self.numbers.below(300 * MILLISECOND);
                let length = if self.numbers.chance(2, 3) { about } else { length };
                self.nodes[node].paused_until = self.now + length;
            }
            5..9 => {
                let (from, to) = (self.numbers.index(self.cut.len()), self.numbers.index(self.cut.len()));
                self.cut[from][to] = self.now + length;
                self.break_links(from, to);
            }
            9..12 => {
                for other in (0..self.cut.len()).filter(|other| *other != node) {
                    self.cut[node][other] = self.now + length;
                    self.cut[other][node] = self.now + length;
                    self.break_links(node, other);
                }
            }
            12 | 13 => {
                let target = id(self.numbers.index(self.nodes.len()));
                (0..self.nodes.len()).for_each(|node| self.tell(node, Input::HandOver(target)));
            }
            14 | 15 => {
                // In the middle of whatever it is doing then.
                let after = self.numbers.below(60);
                self.nodes[node].plan.stop_after(after);
            }
            16 => self.nodes[node].slow_until = self.now + length,
            17 => {
                let clock_has_stood = self.nodes[node].clock_stands.is_some();
                if !clock_has_stood {
                    self.nodes[node].clock_stands = Some((self.now, self.now + length / 4));
                }
            }
            18 => self.nodes[node].old = self.nodes[node].life.is_none().then(|| self.nodes[node].copy()),
            _ => self.change_pool(node),
        }
    }

    pub(super) fn fall(&mut self, node: usize, power: bool) {
        if self.nodes[node].life.is_some() {
            self.die(node, power);
            if self.numbers.chance(1, 4) {
                self.nodes[node].old = Some(self.nodes[node].copy());
            }
        }
    }

    /// Connections between two nodes break, or hold out until the nodes reach each other again.
    fn break_links(&mut self, one: usize, other: usize) {
        if self.numbers.chance(1, 2) {
            return;
        }
        for link in self.links_between(one, other) {
            self.lose_link(link, one);
        }
    }

    /// A node's pool is lost, put back as it once was, or exchanged with that of another node. Not where nobody else
    /// holds what was acknowledged: nothing could help then.
    fn change_pool(&mut self, node: usize) {
        let others = (0..self.nodes.len()).filter(|other| *other != node);
        let holders: Vec<usize> = others.filter(|other| self.holds_all(*other)).collect();
        if holders.is_empty() {
            return;
        }
        let seed = self.numbers.number();
        let down: Vec<usize> = (0..self.nodes.len())
            .filter(|other| *other != node && !holders.contains(other) && self.nodes[*other].life.is_none())
            .filter(|other| self.nodes[*other].has_pool)
            .collect();
        self.fall(node, true);
        self.oracle.seen.pools_changed += 1;
        for changed in down.first().copied().into_iter().chain([node]) {
            self.nodes[changed].pool_lost_in = self.lives;
        }
        match (down.first(), self.nodes[node].old.take()) {
            (Some(other), _) => {
                let (mine, theirs) = (self.nodes[node].copy(), self.nodes[*other].copy());
                self.nodes[node].put_back(Some(theirs), seed);
                self.nodes[*other].put_back(Some(mine), seed + 1);
            }
            (None, old) => self.nodes[node].put_back(old, seed),
        }
    }

    /// Whether a node lives, and is in the set in this life.
    pub(super) fn holds_all(&self, node: usize) -> bool {
        self.nodes[node].member(node).is_some_and(|member: Member| self.consensus.record.names(member))
    }

    /// (3): nodes at the same place are equal, and one number is one operation everywhere.
    pub(super) fn compare_nodes(&mut self) {
        for node in &self.nodes {
            let log = node.log.lock().unwrap();
            let last = log.last_key_value().map_or(Lsn(0), |(lsn, _)| *lsn);
            self.oracle.compare(&log, Lsn(last.0.saturating_sub(COMPARED_OPERATIONS)));
        }
        let members: Vec<usize> = (0..self.nodes.len()).filter(|node| self.holds_all(*node)).collect();
        for pair in members.windows(2) {
            let [one, other] = [pair[0], pair[1]].map(|node| self.nodes[node].life.as_ref().unwrap());
            let same = one.position() == other.position() && one.position() != Default::default();
            if same && self.numbers.chance(1, 4) {
                let outcome = compare(&one.store, &other.store, false);
                let stopped = pair.iter().any(|node| self.nodes[*node].plan.is_stopped());
                assert!(outcome.is_ok() || stopped, "{outcome:?}");
            }
        }
    }

    /// (7): nothing fails any more; within a bounded time all nodes are in the set, and equal.
    pub(crate) fn heal(&mut self) -> Seen {
        self.calm = true;
        self.cut = Default::default();
        for node in &mut self.nodes {
            (node.paused_until, node.slow_until) = (0, 0);
            node.plan.forget_faults();
        }
        self.return_machines();
        // A node that was full must not need that others write on until it is compared.
        self.clients.resting = self.wider.room_is_short;
        let deadline = self.now + HEALED_WITHIN;
        while !self.is_whole() {
            assert!(self.now < deadline, "not whole in time: {}", self.shown());
            self.make_room();
            self.run(200 * MILLISECOND);
        }
        self.clients.resting = false;
        // A connection that has just broken is made again within a second.
        let before = self.oracle.seen.writes;
        self.run(2 * SECOND);
        self.wait_for_room(before);
        assert!(self.oracle.seen.writes > before, "a whole array takes no writes: {}", self.shown());
        self.clients.resting = true;
        self.run(2 * SECOND);
        // What takes room is refused for as long as what was deleted has not been collected.
        let deadline = self.now + if self.wider.room_is_short { HEALED_WITHIN } else { SECOND };
        let waits = |world: &World| world.wider.room_is_short && world.clients.wait();
        while (!self.is_quiet() || waits(self)) && self.now < deadline {
            self.run(10 * MILLISECOND);
        }
        assert!(self.is_whole(), "not whole any more: {}", self.shown());
        assert!(!self.clients.wait(), "a client still waits");
        self.check_all();
        self.oracle.seen
    }

    pub(super) fn serving(&self) -> Vec<usize> {
        let stands = |node: &usize| self.nodes[*node].life.as_ref().is_some_and(super::node::Life::stands);
        (0..self.nodes.len()).filter(stands).collect()
    }

    fn is_whole(&self) -> bool {
        let mut near = self.near().into_iter();
        let serving = self.serving();
        near.all(|node| self.holds_all(node))
            && (0..self.nodes.len()).all(|node| !self.has_stopped(node))
            && serving.len() == 1
            && self.far_has_caught_up(serving[0])
    }

    /// Nobody is about to do anything.
    fn is_quiet(&self) -> bool {
        let mut lives = self.nodes.iter().filter_map(|node| node.life.as_ref());
        let position = |node: &super::node::Life| node.store.position();
        let first = lives.clone().next().map(position);
        lives.all(|life| life.bookmark.is_none() && life.pending.is_empty() && first == Some(position(life)))
    }

    fn shown(&self) -> String {
        let nodes = self.nodes.iter().enumerate().map(|(index, node)| {
            let life = node.life.as_ref().map(|life| {
                let streams = life.shipping.iter().map(|(peer, shipping)| {
                    let stream = shipping.stream.as_ref();
                    let stream =
                        stream.map(|it| (it.progress(), it.sent(), it.is_full(), it.has_caught_up()));
                    format!("to {peer}: {:?} {stream:?}", shipping.link)
                });
                let streams: Vec<String> = streams.collect();
                let following = life.following.as_ref().map(|it| (it.link, it.epoch, it.follower.has_news()));
                let (position, version) = (life.position(), life.role.record().version);
                let (answers, takes) = (life.role.acknowledged(), life.takes());
                format!(
                    "{position:?} {:?} {version:?}, takes {takes}, answers up to {answers:?}, {streams:?}, follows \
                     {following:?}, {} wait",
                    life.serving,
                    life.pending.len()
                )
            });
            format!("node {index}: {life:?}")
        });
        let nodes: Vec<String> = nodes.collect();
        format!("{:?}\n{}", self.consensus.record, nodes.join("\n"))
    }

    fn check_all(&mut self) {
        let primary = self.serving()[0];
        let stores: Vec<_> =
            self.nodes.iter().map(|node| node.life.as_ref().unwrap().store.clone()).collect();
        for (node, store) in stores.iter().enumerate() {
            assert_eq!(store.position(), stores[primary].position(), "node {node} has not all");
            compare(&stores[primary], store, node != primary).unwrap();
            let bookmarks = Inventory::of(store).unwrap().bookmarks().len();
            // Where there was no room, they have been given up.
            let right = bookmarks == 1 || bookmarks == 0 && self.wider.room_is_short;
            assert!(right, "node {node} has {bookmarks} bookmarks");
            store.checkpoint().unwrap();
            let report = store.verify(&mut |_, _| {}).unwrap();
            assert!(report.faults.is_empty(), "{:#?}", &report.faults[..report.faults.len().min(8)]);
            let log = self.nodes[node].log.lock().unwrap();
            self.oracle.compare(&log, Lsn(0));
        }
        let values = self.oracle.values(&self.nodes[primary].log.lock().unwrap());
        for (block, value) in values {
            assert_eq!(self.holds(primary, block), Some(value), "block {block} at the end");
        }
        self.oracle.histories.check(|_| false, |_| None);
        self.oracle.seen.checked = self.oracle.histories.checked;
    }
}

/// Holds one store against another, by fingerprint or byte by byte.
fn compare(one: &Store, other: &Store, read: bool) -> Result<()> {
    let objects = |store: &Store| -> Result<BTreeMap<_, _>> {
        Ok(store.objects()?.into_iter().map(|object| (object.number, object)).collect())
    };
    let (here, there) = (objects(one)?, objects(other)?);
    assert_eq!(here, there, "two nodes in sync have other objects");
    for object in here.values() {
        for first in (0..object.size.0).step_by(64) {
            let count = (object.size.0 - first).min(64);
            let bytes = |store: &Store| -> Result<Vec<u8>> {
                let mut bytes = vec![1; usize::try_from(count).unwrap() * BLOCK_BYTES];
                store.read(object.number, Lba(first), &mut bytes, true).map(|_| bytes)
            };
            let mapped = |store: &Store| -> Result<Vec<ShippedMapping>> {
                let mut all = Vec::new();
                let mut keep = |mappings: &[ShippedMapping]| all.extend_from_slice(mappings);
                store.shipped_mappings(object.number, Lba(first), BlockCount(count), &mut keep).map(|()| all)
            };
            let equal = if read { bytes(one)? == bytes(other)? } else { mapped(one)? == mapped(other)? };
            assert!(equal, "object {} from {first} on", object.number);
        }
    }
    Ok(())
}
