//! What a node does around its role: terms that begin and end, bookmarks, durability.

use std::sync::Arc;
use std::time::Duration;

use sinter::error::{ErrorKind, Result};
use sinter::replica::bookmarks;
use sinter::replica::decisions::Incarnation;
use sinter::replica::decisions::Member;
use sinter::replica::epochs::Epochs;
use sinter::replica::history;
use sinter::replica::role::{Action, Input, Role};
use sinter::units::{Epoch, Lsn, SessionId, Uuid};

use super::attached::{Attached, FIRST_OWN};
use super::node::{Life, Opened};
use super::oracle::Loss;
use super::world::{Event, MILLISECOND, Time, World, id, index};

const BOOKMARK_AFTER: Duration = Duration::from_millis(300);
const BOOKMARK_EVERY: Duration = Duration::from_millis(2500);
/// A term that cannot be begun is tried again after this time, and so often before another member is to take over.
const TRIED_AGAIN_AFTER: Time = 100 * MILLISECOND;
const FAILURES_MAX: u32 = 3;

impl World {
    pub(super) fn start(&mut self, node: usize) {
        if self.nodes[node].life.is_some() || self.is_away(node) {
            return;
        }
        let identity = self.identity.clone();
        let out_of_order = self.planted.shipped_outside_the_lock;
        let Some(Opened { store, array, ring, gate, random }) =
            self.nodes[node].open(Some(&identity), out_of_order)
        else {
            return self.die(node, true);
        };
        self.lives += 1;
        let number = self.lives;
        let own = Member { node: id(node), incarnation: Incarnation(number) };
        let all = self.near().into_iter().map(id).collect();
        let (epoch, lsn) = store.position();
        if !store.syncing() {
            ring.listen_from(lsn);
        }
        let position = sinter::replica::decisions::Position { epoch, lsn };
        let (record, now) = (self.nodes[node].record.clone(), self.clock(node));
        let role = Role::new(own, all, record, position, now, self.timing, self.planted.role);
        self.nodes[node].life = Some(Life {
            number,
            role,
            store,
            array,
            ring,
            gate,
            random,
            serving: None,
            changes: Default::default(),
            shipping: Default::default(),
            following: None,
            compared: false,
            sync_wanted: Lsn(0),
            written_out: Lsn(0),
            epochs: Epochs::default(),
            bookmark_due: now,
            bookmark: None,
            pending: Vec::new(),
            failures: 0,
            device_failed: false,
        });
        self.after(0, Event::Tick { node, life: number });
        self.after(0, Event::Learn { node });
    }

    pub(super) fn die(&mut self, node: usize, power: bool) {
        // After a failed sync nobody knows what of the writes before it is on the device.
        let may_lack = power || self.has_stopped(node) && !self.planted.failed_device_untold;
        self.nodes[node].life = None;
        self.links_of(node).into_iter().for_each(|link| self.lose_link(link, node));
        self.oracle.seen.crashes += 1;
        self.nodes[node].die(power, may_lack);
        let delay = 20 * MILLISECOND + self.numbers.below(if self.calm { 100 } else { 1500 } * MILLISECOND);
        self.after(delay, Event::Start { node });
    }

    /// What a verb on a node's store has come to; where its disk has stopped, the node dies.
    pub(super) fn tried<T>(&mut self, node: usize, outcome: Result<T>) -> Result<T, ()> {
        let stopped = self.nodes[node].plan.is_stopped();
        if stopped && self.nodes[node].life.is_some() {
            self.die(node, true);
        }
        outcome.map_err(|error| {
            let expected = [
                ErrorKind::NotPrimary,
                ErrorKind::NotFound,
                ErrorKind::Changed,
                ErrorKind::Busy,
                ErrorKind::Unreachable,
                ErrorKind::NoSpace,
            ];
            // A failed write in the background stops nothing: it is tried again.
            let failed =
                self.wider.devices_fail && [ErrorKind::Stopped, ErrorKind::Device].contains(&error.kind());
            assert!(stopped || failed || expected.contains(&error.kind()), "node {node}: {error}");
        })
    }

    /// Hands an input to a node's role, and does what it says.
    pub(super) fn tell(&mut self, node: usize, input: Input) {
        let now = self.clock(node);
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        let position = life.position();
        let compared = life.compared || life.store.syncing();
        life.role.set_compared(compared && !self.planted.member_compared);
        let mut actions = life.role.handle(now, Input::Moved(position));
        actions.extend(life.role.handle(now, input));
        let number = life.number;
        for action in actions {
            match action {
                Action::Send(to, message) => self.say(node, index(to), message),
                Action::Propose(command) => self.propose(node, command),
                Action::Begin(_) | Action::Stop(_) => {
                    let life = self.nodes[node].life.as_mut().unwrap();
                    if matches!(action, Action::Stop(_)) {
                        life.serving = None;
                    }
                    life.changes.push_back(action);
                    let delay = self.numbers.below(3 * MILLISECOND);
                    self.after(delay, Event::Change { node, life: number });
                }
            }
        }
        self.serve(node);
    }

    pub(super) fn change(&mut self, node: usize) {
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        match life.changes.pop_front() {
            Some(Action::Begin(epoch)) => self.begin(node, epoch),
            Some(Action::Stop(_)) => self.end(node),
            _ => {}
        }
    }

    fn begin(&mut self, node: usize, epoch: Epoch) {
        self.end_following(node);
        let life = self.nodes[node].life.as_mut().unwrap();
        if life.role.serves() != Some(epoch) {
            life.failures = 0;
            return;
        }
        // (6)
        assert!(!life.compared && !life.store.syncing(), "a node that is being compared begins {epoch:?}");
        let log = self.nodes[node].log.lock().unwrap().clone();
        // What a term was allowed to lose that never began, the next one that does begin without.
        let before = self.oracle.newest.map(|(newest, _)| newest);
        let since = |decided: &Epoch| *decided <= epoch && before.is_none_or(|before| *decided > before);
        let losses = self.losses.iter().filter(|(decided, _)| since(decided));
        let loss = losses.map(|(_, loss)| *loss).max().unwrap_or_default();
        let is_risked = self.risked.iter().any(since);
        let gone = self.oracle.begins(epoch, node, &log, loss);
        if let Some(gone) = &gone {
            self.compare_with_log(node);
            self.clients.attached.iter_mut().for_each(|client| client.lose(gone));
        }
        if gone.is_some() && loss == Loss::Anything {
            self.oracle.histories.forget_from(FIRST_OWN);
            self.clients.attached.iter_mut().for_each(Attached::lose_what_was_flushed);
        }
        if gone.is_some() && loss > Loss::Nothing {
            let values = self.oracle.values(&log);
            // Whoever is alone with its blocks sends again what is gone.
            self.oracle.histories.check(|block| block >= FIRST_OWN, |block| values.get(&block).copied());
            values.iter().for_each(|(block, value)| self.oracle.histories.begin_with(*block, *value));
            for (asked, block, write) in
                self.clients.attached.iter().flat_map(|client| client.may_come(loss == Loss::Anything))
            {
                self.oracle.histories.call(asked, block, write);
            }
        }
        let risked = self.risked.iter().copied().filter(|it| *it <= epoch && !self.planted.risk_untold).max();
        let life = self.nodes[node].life.as_mut().unwrap();
        let begun = begin_in_store(life, epoch, risked);
        let Ok(epochs) = self.tried(node, begun) else {
            return self.cannot_begin(node, epoch);
        };
        if self.oracle.newest == Some((epoch, node)) {
            let terms = self.nodes[node].life.as_ref().unwrap().array.session_terms(SessionId(0));
            let told = is_risked || loss == Loss::Anything;
            self.oracle.serves_in(terms.history, loss, told);
        }
        let (now, peers) = (self.clock(node), self.nodes.len());
        let life = self.nodes[node].life.as_mut().unwrap();
        life.epochs = epochs;
        life.failures = 0;
        life.bookmark = None;
        life.shipping.clear();
        if life.role.serves() == Some(epoch) {
            life.serving = Some(epoch);
            life.bookmark_due = now + BOOKMARK_AFTER;
            life.shipping =
                (0..peers).filter(|peer| *peer != node).map(|peer| (peer, Default::default())).collect();
            let number = life.number;
            for peer in (0..peers).filter(|peer| *peer != node) {
                self.after(0, Event::Connect { node, life: number, peer });
            }
            self.tell(node, Input::Begun(epoch));
        }
        self.committed(node);
    }

    /// A term that cannot be begun is tried again, until another member takes over.
    fn cannot_begin(&mut self, node: usize, epoch: Epoch) {
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        life.failures += 1;
        let gives_way = life.failures >= FAILURES_MAX || life.store.has_stopped();
        life.changes.push_front(Action::Begin(epoch));
        let life = life.number;
        self.after(TRIED_AGAIN_AFTER, Event::Change { node, life });
        if gives_way {
            self.tell(node, Input::CannotBegin(epoch));
        }
    }

    fn end(&mut self, node: usize) {
        let life = self.nodes[node].life.as_mut().unwrap();
        let shipping = std::mem::take(&mut life.shipping);
        life.pending.clear();
        life.bookmark = None;
        for link in shipping.values().filter_map(|it| it.link) {
            self.lose_link(link, node);
        }
    }

    /// A node's blocks are what its log says.
    pub(super) fn compare_with_log(&self, node: usize) {
        let values = self.oracle.values(&self.nodes[node].log.lock().unwrap());
        for (block, value) in values {
            let Some(held) = self.holds(node, block) else { return };
            assert_eq!(held, value, "block {block} of node {node}");
        }
    }

    /// Operations were committed here.
    pub(super) fn committed(&mut self, node: usize) {
        let now = self.clock(node);
        let write_out = self.numbers.chance(1, 2);
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        let (position, last) = (life.position(), life.store.last_lsn());
        life.role.moved(now, position);
        if write_out {
            let written = life.store.write_out(last);
            if self.tried(node, written).is_ok() {
                let life = self.nodes[node].life.as_mut();
                life.into_iter().for_each(|life| life.written_out = last);
            }
        }
        self.pump_all(node);
    }

    /// Everything up to `lsn` is wanted durable on the members.
    pub(super) fn wants_durable(&mut self, node: usize, lsn: Lsn) {
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        life.sync_wanted = life.sync_wanted.max(lsn);
        self.pump_all(node);
    }

    pub(super) fn tick(&mut self, node: usize) {
        let (background, sync, checkpoint) =
            (self.numbers.chance(1, 6), self.numbers.chance(1, 30), self.numbers.chance(1, 150));
        let background = background || self.calm && self.wider.room_is_short;
        let Some(life) = self.nodes[node].life.as_mut() else { return };
        let (store, last) = (Arc::clone(&life.store), life.store.last_lsn());
        let mut outcome = store.write_out(last);
        if outcome.is_ok() {
            life.written_out = life.written_out.max(last);
        }
        if background {
            outcome = outcome.and_then(|()| store.background_step().map(drop));
        }
        if sync {
            outcome = outcome.and_then(|()| store.make_durable(last));
        }
        if checkpoint {
            outcome = outcome.and_then(|()| store.checkpoint());
        }
        if self.tried(node, outcome).is_err() && !self.has_stopped(node) {
            return;
        }
        self.tell(node, Input::Tick);
        self.go_on_without_device(node);
        let life = self.nodes[node].life.as_ref();
        let told = life.and_then(|life| Some((life.number, life.following.as_ref()?.link)));
        if let Some((life, link)) = told.filter(|_| self.wider.room_is_short) {
            self.after(0, Event::Report { node, life, link });
        }
        self.keep_bookmarks(node);
        self.pump_all(node);
        self.serve(node);
    }

    fn keep_bookmarks(&mut self, node: usize) {
        let now = self.clock(node);
        let (count, near_full) = (self.near().len(), self.is_near_full(node));
        let Some(life) = self.nodes[node].life.as_mut().filter(|life| life.takes()) else { return };
        let (array, store) = (Arc::clone(&life.array), Arc::clone(&life.store));
        match life.bookmark {
            None if life.role.record().set.len() == count && now >= life.bookmark_due && !near_full => {
                life.bookmark_due = now + BOOKMARK_EVERY;
                let mut bytes = [0; 16];
                self.numbers.fill(&mut bytes);
                let bookmark = Uuid::from_random(bytes);
                let made = bookmarks::make(&array, &store, bookmark, 1);
                let made =
                    made.and_then(|lsn| lsn.map(|lsn| store.make_durable(lsn).map(|()| lsn)).transpose());
                let Ok(Some(lsn)) = self.tried(node, made) else { return };
                self.nodes[node].life.as_mut().unwrap().bookmark = Some((bookmark, lsn));
                self.wants_durable(node, lsn);
            }
            Some((bookmark, lsn)) if life.role.durable(lsn).is_some_and(|durable| durable >= lsn) => {
                life.bookmark = None;
                let dropped = bookmarks::drop_all_but(&store, &[bookmark]);
                if self.tried(node, dropped).is_ok() {
                    self.committed(node);
                }
            }
            _ => {}
        }
    }

    pub(super) fn bookmark_soon(&mut self, node: usize) {
        let soon = self.clock(node) + BOOKMARK_AFTER;
        if let Some(life) = self.nodes[node].life.as_mut() {
            life.bookmark_due = soon;
        }
    }
}

/// Writes the first operation of an epoch.
fn begin_in_store(life: &Life, epoch: Epoch, risked: Option<Epoch>) -> Result<Epochs> {
    life.store.follow(false);
    let mut epochs = Epochs::load(&life.store)?;
    let first = epochs.begin(&life.store, epoch)?;
    let named = history::begin(&life.store, epoch, risked, &*life.random)?;
    life.store.write_out(named.unwrap_or(first))?;
    life.array.reload()?;
    Ok(epochs)
}
