//! What a node's role says to another node: a thread and a connection that do nothing else.

use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::replica::decisions::NodeId;
use crate::replica::link::{self, Frame, Link, LinkSender};
use crate::replica::role::{Input, Message};
use crate::replica::wire;
use crate::sync::{Condition, Mutex, MutexGuard};

use super::{Node, State, frames};

/// Messages that wait for the connection; older ones are worth nothing.
const WAITING_MAX: usize = 16;
/// A connection that cannot be made within this time is tried again.
const CONNECT_PATIENCE: Duration = Duration::from_millis(500);
/// Between two attempts.
const CONNECT_PAUSE: Duration = Duration::from_millis(50);

/// How often it is looked whether a connection on which nothing comes is to be given up.
const HEAR_LOOK: Duration = Duration::from_secs(1);

/// Messages to one node.
pub(super) struct Outgoing {
    waiting: Mutex<VecDeque<Message>>,
    come: Condition,
    stopping: AtomicBool,
}

impl Outgoing {
    /// Says something, soon, or never where the node cannot be reached.
    pub(super) fn say(&self, message: Message) {
        let mut waiting = self.waiting.lock();
        waiting.push_back(message);
        while waiting.len() > WAITING_MAX {
            waiting.pop_front();
        }
        drop(waiting);
        self.come.notify_one();
    }

    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.waiting.lock().clear();
        self.come.notify_all();
    }

    /// The next message, within a time.
    fn next(&self, limit: Duration) -> Next {
        let mut waiting = self.waiting.lock();
        let mut waited = false;
        loop {
            if self.stopping.load(Ordering::Acquire) {
                return Next::End;
            }
            if let Some(message) = waiting.pop_front() {
                return Next::Message(message);
            }
            if waited {
                return Next::Nothing;
            }
            waiting = self.come.wait_for(waiting, limit);
            waited = true;
        }
    }
}

/// What there is to say.
enum Next {
    Message(Message),
    /// Not in that time.
    Nothing,
    /// Nothing ever.
    End,
}

impl Node {
    /// The messages to a node; the thread that sends them is started with the first one.
    pub(super) fn outgoing_to(
        self: &Arc<Node>,
        state: &mut MutexGuard<'_, State>,
        to: NodeId,
    ) -> Option<Arc<Outgoing>> {
        if let Some(outgoing) = state.outgoing.get(&to) {
            return Some(Arc::clone(outgoing));
        }
        if !self.lives() {
            return None;
        }
        let outgoing = Arc::new(Outgoing {
            waiting: Mutex::new(VecDeque::new()),
            come: Condition::new(),
            stopping: AtomicBool::new(false),
        });
        let own = Arc::clone(&outgoing);
        let started = self.spawn(&format!("role-to-{}", to.0), move |node| node.send_role(to, &own));
        match started {
            Ok(()) => {
                state.outgoing.insert(to, Arc::clone(&outgoing));
                Some(outgoing)
            }
            Err(error) => {
                tracing::error!("{error}");
                None
            }
        }
    }

    fn send_role(&self, to: NodeId, outgoing: &Outgoing) {
        let mut sender: Option<LinkSender> = None;
        // The other end gives up a connection on which nothing comes. What is said next must not be lost with that.
        let idle_max = self.parts.timing.link_lost_after / 2;
        loop {
            let message = match outgoing.next(idle_max) {
                Next::Message(message) => message,
                Next::Nothing => {
                    sender = None;
                    continue;
                }
                Next::End => return,
            };
            if sender.is_none() {
                let address =
                    self.parts.control.state().nodes.get(&to).map(|entry| entry.cluster_address.clone());
                let Some(address) = address else { continue };
                match link::connect(&address, &self.parts.identity.now(), Some(to), CONNECT_PATIENCE) {
                    Ok(link) => {
                        let opened = link.split().0;
                        let bounded = opened.lose_after(self.parts.timing.role_link_lost_after);
                        sender = bounded.is_ok().then_some(opened);
                    }
                    Err(_) => {
                        self.rest(CONNECT_PAUSE);
                        // What waited meanwhile is too old.
                        outgoing.waiting.lock().clear();
                        continue;
                    }
                }
            }
            let body = wire::encode_role(&message);
            if let Some(open) = &mut sender
                && open.send(frames::ROLE, &[&body]).is_err()
            {
                sender = None;
            }
        }
    }

    /// Takes what another node's role says, until it closes the connection or says nothing more.
    pub(super) fn hear(self: &Arc<Node>, from: NodeId, link: Link, first: Frame) {
        let (_sender, mut receiver) = link.split();
        let mut frame = Some(first);
        let mut heard_at = self.now();
        while self.lives() {
            let taken = match frame.take() {
                Some(frame) => frame,
                None => match receiver.receive(Some(HEAR_LOOK)) {
                    Ok(Some(frame)) => frame,
                    Ok(None) if self.now() < heard_at + self.parts.timing.link_lost_after => continue,
                    Ok(None) => return,
                    Err(_) => return,
                },
            };
            heard_at = self.now();
            let message = (taken.kind == frames::ROLE).then(|| wire::decode_role(&taken.body)).flatten();
            let Some(message) = message else {
                tracing::warn!("node {} said something that means nothing; its connection is closed", from.0);
                return;
            };
            if said_by(&message).is_some_and(|node| node != from) {
                tracing::warn!("node {} speaks for another node; its connection is closed", from.0);
                return;
            }
            self.step(Input::Heard(from, message));
        }
    }
}

/// Whom a message is about, where it says so.
fn said_by(message: &Message) -> Option<NodeId> {
    match message {
        Message::Heartbeat { .. } => None,
        Message::Heard { by, .. } | Message::Stands { by, .. } => Some(by.node),
    }
}
