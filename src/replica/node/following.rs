//! A secondary's end of a stream: what comes is applied on the thread on which it comes, and what is to be made durable
//! on another.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::replica::decisions::{Member, NodeId};
use crate::replica::follower::Follower;
use crate::replica::link::{Frame, Link, LinkCloser, LinkReceiver, LinkSender};
use crate::replica::role::Input;
use crate::replica::wire::{Downstream, ItemNumber, Upstream, decode_messages, message_len};
use crate::sync::{Condition, Mutex};
use crate::units::{Epoch, Lsn};

use super::{Node, State, frames};

/// How long a new stream waits for an older one, or a term of this node's own, to end.
const TURN_PATIENCE: Duration = Duration::from_secs(10);
/// Items that are applied before they are answered for, at most.
const GROUP: u32 = 64;

/// What is wanted durable is applied at the latest a few of these later.
const APPLY_SOON: Duration = Duration::from_millis(1);

/// The stream that this node follows.
#[derive(Default)]
pub(super) struct Following {
    closer: Option<LinkCloser>,
    /// A thread applies what comes.
    active: bool,
    /// It is being compared: its own numbers mean nothing.
    compared: bool,
    /// Whose stream it is.
    pub(super) primary: Option<NodeId>,
}

impl Following {
    pub(super) fn is_compared(&self) -> bool {
        self.compared
    }

    pub(super) fn close(&mut self) {
        if let Some(closer) = self.closer.take() {
            closer.close();
        }
    }
}

/// What is to be made durable, and what has been.
#[derive(Default)]
struct Syncing {
    lsns: Mutex<Lsns>,
    wanted: Condition,
}

#[derive(Clone, Copy, Default)]
struct Lsns {
    wanted: Lsn,
    durable: Lsn,
    ended: bool,
}

/// The turn of the stream that is followed: it ends however that stream does.
struct Turn<'a>(&'a Node);

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        {
            let mut state = self.0.state.lock();
            state.following.active = false;
            state.following.closer = None;
        }
        self.0.moved.notify_all();
    }
}

/// Ends a stream whose thread that makes durable has panicked.
struct Closing<'a>(&'a Node, &'a AtomicBool);

impl Drop for Closing<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.1.store(true, Ordering::Release);
            self.0.state.lock().following.close();
        }
    }
}

impl Node {
    /// Ends the stream that this node follows, and waits until nothing of it is applied any more.
    pub(super) fn end_following(&self) {
        let mut state = self.state.lock();
        while state.following.active && self.lives() {
            state.following.close();
            state = self.moved.wait_for(state, self.parts.timing.heartbeat);
        }
    }

    /// Ends the stream that this node follows, and takes no other one in until `release_following`.
    ///
    /// # Errors
    /// `Busy` where it does not end.
    pub(in crate::replica) fn hold_following(&self) -> Result<()> {
        let deadline = self.now() + TURN_PATIENCE;
        let mut state = self.state.lock();
        while state.following.active {
            if self.now() >= deadline || !self.lives() {
                return Err(Error::new(ErrorKind::Busy, "the stream to this node does not end"));
            }
            state.following.close();
            state = self.moved.wait_for(state, self.parts.timing.heartbeat);
        }
        state.following.active = true;
        Ok(())
    }

    /// Streams are taken in again.
    pub(in crate::replica) fn release_following(&self) {
        self.state.lock().following.active = false;
        self.moved.notify_all();
    }

    /// Follows a primary's stream until it ends.
    pub(super) fn follow(self: &Arc<Node>, from: NodeId, link: Link, first: &Frame) {
        let closer = link.closer();
        let (mut sender, mut receiver) = link.split();
        let open = decode_messages(&first.body)
            .and_then(|mut messages| messages.next().and_then(Downstream::decode));
        let Some(Downstream::Open { epoch, by }) = open.filter(|_| first.kind == frames::STREAM) else {
            tracing::warn!("node {} opened a stream with what means nothing", from.0);
            return;
        };
        if by.node != from {
            tracing::warn!("node {} speaks for node {}; its stream is closed", from.0, by.node.0);
            return;
        }
        if let Err(error) = self.take_turn(epoch, from, closer) {
            let _ = answer(&mut sender, &Upstream::Refused(error.to_string()));
            return;
        }
        let turn = Turn(self);
        let ended = self.apply_stream(epoch, by, sender, &mut receiver);
        drop(turn);
        // That it takes no writes any more, the store has said; the primary tries again and again.
        if let Err(error) = ended
            && error.kind() != ErrorKind::Stopped
        {
            tracing::info!("the stream from node {} ended: {error}", from.0);
        }
    }

    /// Makes this stream the one that is followed, unless its epoch is over.
    fn take_turn(self: &Arc<Node>, epoch: Epoch, from: NodeId, closer: LinkCloser) -> Result<()> {
        if !self.state.lock().role.accepts(epoch) {
            let state = self.state.lock();
            return Err(self.over(&state, epoch));
        }
        // A term of this node's own ends with that.
        self.step(Input::Tick);
        let deadline = self.now() + TURN_PATIENCE;
        let mut state = self.state.lock();
        loop {
            if !state.role.accepts(epoch) {
                return Err(self.over(&state, epoch));
            }
            let changing = state.changing || !state.changes.is_empty() || state.serving.is_some();
            if !changing && !state.following.active && self.under_way.load(Ordering::Acquire) == 0 {
                state.following.active = true;
                self.parts.store.follow(true);
                state.following.closer = Some(closer);
                state.following.primary = Some(from);
                return Ok(());
            }
            if self.now() >= deadline || !self.lives() {
                return Err(Error::new(ErrorKind::Busy, "this node is still busy with an older term"));
            }
            if !changing {
                state.following.close();
            }
            state = self.moved.wait_for(state, self.parts.timing.heartbeat);
        }
    }

    /// Why a stream of this epoch is not followed.
    fn over(&self, state: &State, epoch: Epoch) -> Error {
        let (own, _) = self.parts.store.position();
        if own <= epoch || state.role.record().epoch > epoch {
            return Error::new(ErrorKind::NotPrimary, "the stream is of an epoch that is over");
        }
        // No decision says so, but the pool: it was elsewhere.
        let what = format!(
            "it has operations of epoch {}.{}, which this array never had: split brain",
            own.generation, own.number
        );
        Error::new(ErrorKind::Busy, what)
    }

    fn apply_stream(
        self: &Arc<Node>,
        epoch: Epoch,
        by: Member,
        sender: LinkSender,
        receiver: &mut LinkReceiver,
    ) -> Result<()> {
        let sender = Mutex::new(sender);
        let parts = &self.parts;
        let mut follower = Follower::new(Arc::clone(&parts.store), Arc::clone(&parts.ring), parts.own);
        answer(&mut sender.lock(), &follower.standing()?)?;
        if parts.store.has_stopped() {
            let error = Error::new(
                ErrorKind::Stopped,
                "this node takes no writes any more, until it is started anew",
            );
            answer(&mut sender.lock(), &Upstream::Refused(error.to_string()))?;
            return Err(error);
        }
        let syncing = Syncing::default();
        let closed = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let closing = Closing(self, &closed);
            let durably = std::thread::Builder::new().spawn_scoped(scope, || {
                let _closing = closing;
                while let Some(durable) = self.sync_next(&syncing) {
                    let told = durable.and_then(|lsn| self.tell_durable(epoch, lsn, &sender));
                    if let Err(error) = told {
                        tracing::error!("node {} is not followed any more: {error}", by.node.0);
                        let _ = answer(&mut sender.lock(), &Upstream::Refused(error.to_string()));
                        closed.store(true, Ordering::Release);
                        self.state.lock().following.close();
                        return;
                    }
                }
            });
            durably.map_err(|error| {
                Error::caused(ErrorKind::Device, "starting to make a stream durable", error)
            })?;
            let outcome = self.apply_frames(epoch, &mut follower, &sender, receiver, &syncing, &closed);
            syncing.lsns.lock().ended = true;
            syncing.wanted.notify_all();
            if let Err(error) = &outcome
                && error.kind() != ErrorKind::Unreachable
            {
                if error.kind() == ErrorKind::NoSpace {
                    // Where it has come to, and what room it has, the primary must know.
                    let _ = self.report(epoch, &mut follower, &sender);
                }
                let _ = answer(&mut sender.lock(), &Upstream::Refused(error.to_string()));
            }
            outcome
        })
    }

    fn apply_frames(
        self: &Arc<Node>,
        epoch: Epoch,
        follower: &mut Follower,
        sender: &Mutex<LinkSender>,
        receiver: &mut LinkReceiver,
        syncing: &Syncing,
        closed: &AtomicBool,
    ) -> Result<()> {
        let (mut unanswered, mut told_room) = (0, None);
        while self.lives() && !closed.load(Ordering::Acquire) {
            if self.parts.store.has_stopped() {
                // Also where nothing comes that could not be applied: this node must not be handed over to.
                let what = "this node takes no writes any more, until it is started anew";
                return Err(Error::new(ErrorKind::Stopped, what));
            }
            let wait = if unanswered > 0 { Duration::ZERO } else { self.parts.timing.heartbeat };
            let frame = if unanswered >= GROUP { None } else { receiver.receive(Some(wait))? };
            let Some(frame) = frame else {
                follower.note_durable(syncing.lsns.lock().durable);
                // Room that maintenance has made is told, too: somebody may wait for it.
                let room = Some(self.parts.store.writable_bytes());
                if unanswered > 0 || follower.has_news() || told_room != room {
                    self.report(epoch, follower, sender)?;
                    told_room = room;
                }
                unanswered = 0;
                continue;
            };
            let messages = decode_messages(&frame.body).filter(|_| frame.kind == frames::STREAM);
            let nonsense = || Error::new(ErrorKind::Invalid, "the primary sent what means nothing");
            for message in messages.ok_or_else(nonsense)? {
                let bytes = message.len();
                match Downstream::decode(message).ok_or_else(nonsense)? {
                    Downstream::Sync(lsn) => {
                        let mut lsns = syncing.lsns.lock();
                        lsns.wanted = lsns.wanted.max(lsn);
                        drop(lsns);
                        syncing.wanted.notify_all();
                    }
                    message => {
                        if matches!(message, Downstream::Anew | Downstream::Resume) {
                            self.state.lock().following.compared = true;
                        }
                        follower.receive(message, bytes)?;
                    }
                }
                unanswered += 1;
            }
            if !self.state.lock().role.accepts(epoch) {
                return Err(Error::new(ErrorKind::NotPrimary, "a later epoch has begun"));
            }
            if let Some(needs) = follower.work()? {
                answer(&mut sender.lock(), &needs)?;
            }
            if follower.is_prefix() {
                self.state.lock().following.compared = false;
            }
        }
        Ok(())
    }

    /// Answers for what was applied, unless a later epoch has begun.
    fn report(
        self: &Arc<Node>,
        epoch: Epoch,
        follower: &mut Follower,
        sender: &Mutex<LinkSender>,
    ) -> Result<()> {
        let report = follower.report()?;
        if let Some(position) = follower.position() {
            self.step(Input::Moved(position));
        }
        let mut state = self.state.lock();
        if !state.role.accepts(epoch) {
            return Err(Error::new(ErrorKind::NotPrimary, "a later epoch has begun"));
        }
        drop(state);
        answer(&mut sender.lock(), &report)
    }

    /// Says at once what was made durable: somebody waits for it.
    fn tell_durable(&self, epoch: Epoch, lsn: Lsn, sender: &Mutex<LinkSender>) -> Result<()> {
        if !self.state.lock().role.accepts(epoch) {
            return Err(Error::new(ErrorKind::NotPrimary, "a later epoch has begun"));
        }
        let writable_bytes = self.parts.store.writable_bytes().0;
        let told = Upstream::Applied { items: ItemNumber(0), applied: lsn, durable: lsn, writable_bytes };
        answer(&mut sender.lock(), &told)
    }

    /// Makes durable what is wanted next; nothing at the end.
    fn sync_next(&self, syncing: &Syncing) -> Option<Result<Lsn>> {
        let mut lsns = syncing.lsns.lock();
        loop {
            if lsns.ended {
                return None;
            }
            let (_, applied) = self.parts.store.position();
            let asked = lsns.wanted > lsns.durable;
            // The numbers of a node that is compared are its own.
            if asked && applied >= lsns.wanted && !self.state.lock().following.is_compared() {
                break;
            }
            let limit = if asked { APPLY_SOON } else { self.parts.timing.heartbeat };
            lsns = syncing.wanted.wait_for(lsns, limit);
        }
        let wanted = lsns.wanted;
        drop(lsns);
        let outcome = self.parts.store.make_durable(wanted);
        if outcome.is_ok() {
            let mut lsns = syncing.lsns.lock();
            lsns.durable = lsns.durable.max(wanted);
        }
        Some(outcome.map(|()| wanted))
    }
}

fn answer(sender: &mut LinkSender, message: &Upstream) -> Result<()> {
    let body = message.encode();
    sender.send(frames::STREAM, &[&message_len(&body), &body])
}
