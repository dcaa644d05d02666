//! The connections on which operations travel: in order, or broken; either end may learn of that late.

use std::collections::VecDeque;
use std::sync::Arc;

use sinter::error::ErrorKind;
use sinter::replica::decisions::{Member, Position};
use sinter::replica::follower::Follower;
use sinter::replica::role::Input;
use sinter::replica::stream::{Progress, Stream};
use sinter::replica::wire::{Downstream, ItemNumber, Standing, Upstream};
use sinter::units::{ByteCount, Epoch, Lsn};

use super::node::{Following, Shipping};
use super::world::{Event, MILLISECOND, SECOND, Time, World};

/// Messages that a primary has on their way to a node, at most.
const ON_THEIR_WAY_MAX: usize = 24;
/// Between two attempts to connect, at first and at most.
const PAUSE_MIN: Time = 25 * MILLISECOND;
const PAUSE_MAX: Time = SECOND;
/// A stream waits no longer for a former term to end.
const TURN_PATIENCE: Time = 10 * SECOND;

/// A connection from a primary to another node.
pub(super) struct Link {
    from: (usize, u64),
    to: (usize, u64),
    epoch: Epoch,
    opened_at: Time,
    down: VecDeque<Vec<u8>>,
    up: VecDeque<Vec<u8>>,
}

impl World {
    pub(super) fn links_between(&self, one: usize, other: usize) -> Vec<u64> {
        let between = |link: &Link| [(one, other), (other, one)].contains(&(link.from.0, link.to.0));
        self.links.iter().filter(|(_, link)| between(link)).map(|(number, _)| *number).collect()
    }

    pub(super) fn links_of(&self, node: usize) -> Vec<u64> {
        let ends = |link: &Link| link.from.0 == node || link.to.0 == node;
        self.links.iter().filter(|(_, link)| ends(link)).map(|(number, _)| *number).collect()
    }

    fn lives(&self, (node, life): (usize, u64)) -> bool {
        self.nodes[node].life.as_ref().is_some_and(|own| own.number == life)
    }

    pub(super) fn connect(&mut self, node: usize, peer: usize) {
        let there = self.nodes[peer].life.as_ref().map(|life| life.number);
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        let Some(epoch) = life.serving.filter(|_| life.stands()) else { return };
        let Some(shipping) = life.shipping.get_mut(&peer).filter(|it| it.link.is_none()) else { return };
        self.links_made += 1;
        let link = self.links_made;
        let from = (node, life.number);
        let reached = self.cut[node][peer] <= self.now && self.cut[peer][node] <= self.now;
        let Some(there) = there.filter(|_| reached) else {
            return self.connect_later(node, peer);
        };
        shipping.link = Some(link);
        let (down, up) = Default::default();
        let new = Link { from, to: (peer, there), epoch, opened_at: self.now, down, up };
        self.links.insert(link, new);
        let delay = self.numbers.below(MILLISECOND);
        self.after(delay, Event::Open { link, to: peer });
    }

    fn connect_later(&mut self, node: usize, peer: usize) {
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        let Some(shipping) = life.shipping.get_mut(&peer) else { return };
        shipping.pause = (shipping.pause * 2).clamp(PAUSE_MIN, PAUSE_MAX);
        let (pause, life) = (shipping.pause, life.number);
        self.after(pause, Event::Connect { node, life, peer });
    }

    /// One end closes a connection, or is gone; the other one hears of it, soon or not.
    pub(super) fn lose_link(&mut self, link: u64, by: usize) {
        let Some(lost) = self.links.remove(&link) else { return };
        for (node, life) in [lost.from, lost.to] {
            let late = !self.calm && self.numbers.chance(1, 5);
            let delay = self.numbers.below(if late { 800 } else { 2 } * MILLISECOND);
            self.after(if node == by { 0 } else { delay }, Event::Closed { node, life, link });
        }
    }

    /// A node hears that a connection is closed.
    pub(super) fn closed(&mut self, node: usize, link: u64) {
        let life = self.nodes[node].life.as_mut().unwrap();
        life.following.take_if(|following| following.link == link);
        let lost = life.shipping.iter_mut().find(|(_, it)| it.link == Some(link));
        if let Some((peer, shipping)) = lost {
            let peer = *peer;
            (shipping.link, shipping.stream, shipping.asked_sync) = (None, None, Lsn(0));
            (shipping.writable, shipping.applied) = (None, Lsn(0));
            self.connect_later(node, peer);
        }
    }

    pub(super) fn end_following(&mut self, node: usize) {
        let following = self.nodes[node].life.as_mut().and_then(|life| life.following.take());
        if let Some(following) = following {
            self.lose_link(following.link, node);
        }
    }

    /// A node takes a stream as the one that it follows, unless its epoch is over.
    pub(super) fn open(&mut self, link: u64) {
        let Some(Link { to: (to, number), epoch, opened_at, .. }) =
            self.links.get(&link).map(|it| Link { down: VecDeque::new(), up: VecDeque::new(), ..*it })
        else {
            return;
        };
        if !self.lives((to, number)) {
            return;
        }
        if self.is_held(to) {
            let delay = 1 + self.numbers.below(2 * MILLISECOND);
            return self.after(delay, Event::Open { link, to });
        }
        let life = self.nodes[to].life.as_mut().unwrap();
        if !life.role.accepts(epoch) || self.now > opened_at + TURN_PATIENCE {
            return self.lose_link(link, to);
        }
        // A term of this node's own ends with that.
        self.tell(to, Input::Tick);
        let Some(life) = self.nodes[to].life.as_mut() else { return };
        if !life.changes.is_empty() || life.serving.is_some() {
            let delay = 1 + self.numbers.below(2 * MILLISECOND);
            return self.after(delay, Event::Open { link, to });
        }
        self.end_following(to);
        let own = self.nodes[to].member(to).unwrap();
        let life = self.nodes[to].life.as_mut().unwrap();
        life.store.follow(true);
        let follower = Follower::new(Arc::clone(&life.store), Arc::clone(&life.ring), own);
        let standing = follower.standing().map(|standing| standing.encode());
        let (wanted, received) = (Lsn(0), Lsn(0));
        life.following = Some(Following {
            link,
            epoch,
            follower,
            wanted,
            received,
            told_room: None,
            waiting: VecDeque::new(),
        });
        if let Ok(standing) = self.tried(to, standing) {
            self.send_up(link, standing);
        }
    }

    fn delay(&mut self, from: usize, to: usize) -> Time {
        let slow = !self.calm && self.numbers.chance(1, 40);
        // What is cut is sent again until it is not.
        let cut = self.cut[from][to].saturating_sub(self.now);
        cut + self.longer_way(from, to) + self.numbers.below(if slow { 90 * MILLISECOND } else { 500 })
    }

    fn send_up(&mut self, link: u64, body: Vec<u8>) {
        let Some(open) = self.links.get_mut(&link) else { return };
        open.up.push_back(body);
        let (from, to) = (open.to.0, open.from.0);
        let delay = self.delay(from, to);
        self.after(delay, Event::Up { link, to });
    }

    fn send_down(&mut self, link: u64, body: Vec<u8>) {
        let Some(open) = self.links.get_mut(&link) else { return };
        open.down.push_back(body);
        let (from, to) = (open.from.0, open.to.0);
        let delay = self.delay(from, to);
        self.after(delay, Event::Down { link, to });
    }

    pub(super) fn pump_all(&mut self, node: usize) {
        let Some(life) = self.nodes[node].life.as_ref() else { return };
        let peers: Vec<usize> = life.shipping.keys().copied().collect();
        peers.into_iter().for_each(|peer| self.pump(node, peer));
    }

    /// Sends what there is to a node, and takes it in once it has come so far.
    fn pump(&mut self, node: usize, peer: usize) {
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        let wanted = life.sync_wanted;
        let Some(shipping) = life.shipping.get_mut(&peer) else { return };
        let (Some(link), Some(stream)) = (shipping.link, shipping.stream.as_mut()) else { return };
        let Some(open) = self.links.get(&link) else { return };
        let mut bodies = Vec::new();
        let mut idle = false;
        let mut outcome = Ok(());
        while open.down.len() + bodies.len() < ON_THEIR_WAY_MAX {
            match stream.next_frame() {
                Ok(Some(body)) => bodies.push(body),
                Ok(None) => {
                    idle = true;
                    break;
                }
                Err(error) => {
                    outcome = Err(error);
                    break;
                }
            }
        }
        if wanted > shipping.asked_sync && stream.sent() >= wanted {
            shipping.asked_sync = wanted;
            bodies.push(Downstream::Sync(wanted).encode());
        }
        let (caught_up, member) = (idle && stream.has_caught_up(), stream.peer());
        let listed = life.role.record().names(member);
        for body in bodies {
            if let Some(Downstream::Adopt(position)) = Downstream::decode(&body) {
                let log = self.nodes[node].log.lock().unwrap().clone();
                self.adoptions.insert((position.epoch, position.lsn), log);
            }
            let body = self.spoil_piece(peer, body);
            self.send_down(link, body);
        }
        if self.tried(node, outcome).is_err() {
            return self.lose_link(link, node);
        }
        if caught_up && !listed && !self.is_far(peer) {
            self.tell(node, Input::CaughtUp(member));
            self.bookmark_soon(node);
        }
    }

    /// A primary hears from a node that it ships to.
    pub(super) fn up(&mut self, link: u64) {
        let Some(open) = self.links.get_mut(&link) else { return };
        let Some(body) = open.up.pop_front() else { return };
        let ((node, number), (peer, _), epoch) = (open.from, open.to, open.epoch);
        if !self.lives((node, number)) {
            return;
        }
        let life = self.nodes[node].life.as_mut().unwrap();
        let Some(shipping) = life.shipping.get_mut(&peer).filter(|it| it.link == Some(link)) else { return };
        match Upstream::decode(&body).unwrap() {
            Upstream::Standing(standing) => self.opened(node, peer, standing),
            Upstream::Applied { items, applied, durable, writable_bytes } => {
                let Some(stream) = shipping.stream.as_mut() else { return };
                stream.applied(items, applied);
                let by = stream.peer();
                self.note_room(node, peer, applied, ByteCount(writable_bytes));
                if applied > Lsn(0) {
                    self.tell(node, Input::Applied { by, epoch, applied, durable });
                }
                self.pump(node, peer);
            }
            Upstream::Needs { item, positions } => {
                let Some(stream) = shipping.stream.as_mut() else { return };
                let payloads = stream.payloads(item, &positions, &mut |_| ());
                match self.tried(node, payloads) {
                    Ok(body) => self.send_down(link, body),
                    Err(()) => self.lose_link(link, node),
                }
            }
            Upstream::Refused(_) => {
                if let Some(by) = shipping.stream.as_ref().map(Stream::peer) {
                    self.tell(node, Input::Failed(by));
                }
                self.lose_link(link, node);
            }
        }
    }

    fn opened(&mut self, node: usize, peer: usize, mut standing: Standing) {
        let life = self.nodes[node].life.as_mut().unwrap();
        if self.planted.bare_numbers && !standing.syncing {
            let (epoch, last) = life.store.position();
            standing.position = Position { epoch, lsn: standing.position.lsn.min(last) };
        }
        let Shipping { link, compare, .. } = life.shipping[&peer];
        let open = if compare { Stream::open_anew } else { Stream::open };
        let stream = open(&life.array, &life.store, &life.ring, &life.epochs, &standing);
        if stream.as_ref().is_err_and(|error| error.what().contains("split brain")) {
            self.operator.split.insert(peer);
        }
        let stream = self.tried(node, stream).and_then(|stream| {
            let compared = stream.progress() != Progress::Prefix;
            let waited_for = self.nodes[node].life.as_ref().is_some_and(|it| it.role.waits_for(standing.by));
            if compared && waited_for && !self.planted.member_compared {
                self.tell(node, Input::Failed(standing.by));
                return Err(());
            }
            Ok(stream)
        });
        match stream {
            Ok(stream) => {
                if stream.progress() == Progress::Prefix {
                    self.assert_prefix(node, peer, standing.by);
                }
                let seen = &mut self.oracle.seen;
                match stream.progress() {
                    Progress::Prefix => seen.went_on += 1,
                    Progress::Compared { .. } => {
                        seen.compared += 1;
                        seen.from_bookmark += u64::from(!standing.bookmarks.is_empty());
                    }
                }
                let life = self.nodes[node].life.as_mut().unwrap();
                let shipping = life.shipping.get_mut(&peer).unwrap();
                (shipping.stream, shipping.compare) = (Some(stream), false);
                self.pump(node, peer);
            }
            Err(()) => link.into_iter().for_each(|link| self.lose_link(link, node)),
        }
    }

    /// A node that goes on where it is holds a prefix of what its primary has: nothing else is ever merged.
    pub(super) fn assert_prefix(&self, node: usize, peer: usize, by: Member) {
        if self.nodes[peer].member(peer) != Some(by) || self.planted.bare_numbers {
            return;
        }
        let (here, there) = (self.nodes[node].log.lock().unwrap(), self.nodes[peer].log.lock().unwrap());
        for (lsn, entry) in there.iter() {
            assert_eq!(
                here.get(lsn),
                Some(entry),
                "node {peer} holds another operation {lsn} than node {node}"
            );
        }
    }

    /// A message of its primary has come to a node; it looks at it now, or a little later.
    pub(super) fn down(&mut self, link: u64) {
        let Some(open) = self.links.get_mut(&link) else { return };
        let Some(body) = open.down.pop_front() else { return };
        let (node, number) = open.to;
        if !self.lives((node, number)) {
            return;
        }
        let busy = !self.calm && self.numbers.chance(1, 30) || self.nodes[node].slow_until > self.now;
        let life = self.nodes[node].life.as_mut().unwrap();
        let Some(following) = life.following.as_mut().filter(|it| it.link == link) else { return };
        if let Some(Downstream::Operation(shipment)) = Downstream::decode(&body) {
            following.received = shipment.lsn;
        }
        following.waiting.push_back(body);
        if self.planted.answered_on_receipt {
            self.answer_on_receipt(node, link);
        }
        let delay = if busy { self.numbers.below(40 * MILLISECOND) } else { 0 };
        self.after(delay, Event::Work { node, life: number, link });
    }

    /// Planted: what has come counts as applied, and as durable.
    fn answer_on_receipt(&mut self, node: usize, link: u64) {
        let life = self.nodes[node].life.as_ref().unwrap();
        let Some(following) = &life.following else { return };
        if following.follower.is_prefix() && following.received > Lsn(0) {
            let (applied, durable) = (following.received, following.received);
            let report = Upstream::Applied { items: ItemNumber(0), applied, durable, writable_bytes: 0 };
            self.send_up(link, report.encode());
        }
    }

    /// A node looks at a message.
    pub(super) fn work(&mut self, node: usize, link: u64) {
        let log = Arc::clone(&self.nodes[node].log);
        let life = self.nodes[node].life.as_mut().unwrap();
        let Some(following) = life.following.as_mut().filter(|it| it.link == link) else { return };
        let Some(body) = following.waiting.pop_front() else { return };
        let message = Downstream::decode(&body).unwrap();
        let mut adopted = None;
        match message {
            Downstream::Sync(lsn) => {
                following.wanted = following.wanted.max(lsn);
                let slow = self.nodes[node].slow_until > self.now;
                let delay = self.numbers.below(if slow { 300 } else { 2 } * MILLISECOND);
                let life = self.nodes[node].life.as_ref().unwrap().number;
                self.after(delay, Event::Sync { node, life, link });
                return;
            }
            Downstream::Anew => {
                life.compared = true;
                self.adopting.remove(&node);
                log.lock().unwrap().clear();
            }
            Downstream::Adopt(position) => adopted = Some(position),
            _ => {}
        }
        let (role, following) = (&mut life.role, life.following.as_mut().unwrap());
        let outcome = following.follower.receive(Downstream::decode(&body).unwrap(), body.len());
        if !role.accepts(following.epoch) {
            return self.end_following(node);
        }
        let outcome = outcome.and_then(|()| following.follower.work());
        let full = outcome.as_ref().is_err_and(|error| error.kind() == ErrorKind::NoSpace);
        if full && following.follower.is_prefix() {
            // Before that, whoever writes is told that there is no space.
            let member = self.nodes[node].member(node).unwrap();
            assert!(!self.consensus.record.names(member), "node {node} is in sync, and has no room");
            let store = &self.nodes[node].life.as_ref().unwrap().store;
            let room = Some((store.position().1, store.writable_bytes()));
            return self.refuse_for(node, link, room);
        }
        if following.follower.is_prefix() {
            life.compared = false;
        }
        if let Some(position) = adopted {
            self.adopting.insert(node, position);
        }
        self.note_adoption(node);
        match self.tried(node, outcome) {
            Ok(needs) => {
                needs.into_iter().for_each(|needs| self.send_up(link, needs.encode()));
                let delay = if self.numbers.chance(1, 2) { 0 } else { self.numbers.below(2 * MILLISECOND) };
                if let Some(life) = self.nodes[node].life.as_ref().map(|life| life.number) {
                    self.after(delay, Event::Report { node, life, link });
                }
            }
            Err(()) => self.refuse(node, link),
        }
    }

    /// A node says that it does not go on with the stream that it follows, and ends it.
    pub(super) fn refuse(&mut self, node: usize, link: u64) {
        self.refuse_for(node, link, None);
    }

    fn refuse_for(&mut self, node: usize, link: u64, room: Option<(Lsn, ByteCount)>) {
        if let (Some(by), Some(open)) = (self.nodes[node].member(node), self.links.get(&link)) {
            let (to, life) = open.from;
            let delay = self.delay(node, to);
            let lost = !self.calm && self.numbers.chance(1, 10);
            if !lost {
                self.after(delay, Event::Refused { node: to, life, by, room });
            }
        }
        self.end_following(node);
    }

    /// A node answers for what it has applied, unless a later epoch has begun.
    pub(super) fn report(&mut self, node: usize, link: u64) {
        let life = self.nodes[node].life.as_mut().unwrap();
        let Some(following) = life.following.as_mut().filter(|it| it.link == link) else { return };
        let room = life.store.writable_bytes();
        let room_is_news = self.wider.room_is_short && following.told_room != Some(room);
        if !following.follower.has_news() && !room_is_news {
            return;
        }
        following.told_room = Some(room);
        let report = following.follower.report();
        let (epoch, position) = (following.epoch, following.follower.position());
        let Ok(report) = self.tried(node, report) else { return self.refuse(node, link) };
        if let Some(position) = position {
            if let Some(from) = self.links.get(&link).map(|open| open.from) {
                self.check_far(node, from);
            }
            self.tell(node, Input::Moved(position));
        }
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        if life.role.accepts(epoch) {
            self.send_up(link, report.encode());
        } else {
            self.end_following(node);
        }
    }

    /// A node makes durable what is wanted, and says so.
    pub(super) fn sync(&mut self, node: usize, link: u64) {
        let life = self.nodes[node].life.as_mut().unwrap();
        let number = life.number;
        let Some(following) = life.following.as_mut().filter(|it| it.link == link) else { return };
        let (wanted, epoch) = (following.wanted, following.epoch);
        if life.store.position().1 < wanted || life.compared {
            return self.after(MILLISECOND, Event::Sync { node, life: number, link });
        }
        let outcome = life.store.make_durable(wanted);
        if self.tried(node, outcome).is_err() {
            return self.refuse(node, link);
        }
        let life = self.nodes[node].life.as_mut().unwrap();
        let Some(following) = life.following.as_mut() else { return };
        following.follower.note_durable(wanted);
        if life.role.accepts(epoch) {
            let (applied, durable) = (wanted, wanted);
            let writable_bytes = life.store.writable_bytes().0;
            let told = Upstream::Applied { items: ItemNumber(0), applied, durable, writable_bytes };
            self.send_up(link, told.encode());
        } else {
            self.end_following(node);
        }
    }

    /// Where a node has adopted its primary's position, its log is that of the primary from there on.
    fn note_adoption(&mut self, node: usize) {
        let Some(Position { epoch, lsn }) = self.adopting.get(&node).copied() else { return };
        if self.nodes[node].life.as_ref().is_none_or(|life| life.store.syncing()) {
            return;
        }
        self.adopting.remove(&node);
        self.oracle.seen.adopted += 1;
        let log = self.adoptions[&(epoch, lsn)].range(..=lsn);
        self.nodes[node].log.lock().unwrap().extend(log);
    }
}
