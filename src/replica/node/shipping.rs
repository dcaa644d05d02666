//! A primary's streams: for each other node that keeps data a thread that sends and one that takes the answers.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::replica::decisions::{Member, NodeId};
use crate::replica::link::{self, LinkCloser, LinkReceiver, LinkSender};
use crate::replica::ring::Ring;
use crate::replica::role::Input;
use crate::replica::room::is_stuck;
use crate::replica::stream::{Progress, Stream};
use crate::replica::wire::{Downstream, Upstream, decode_messages};
use crate::sync::Mutex;
use crate::units::{ByteCount, Epoch, Fingerprint, Lsn};

use super::{Node, frames};

/// A connection that cannot be made within this time is tried again.
const CONNECT_PATIENCE: Duration = Duration::from_secs(1);
/// A secondary says within this time where it stands: it may have to end a term of its own first.
const STANDING_PATIENCE: Duration = Duration::from_secs(15);
/// Between two attempts, at first and at most.
const PAUSE_MIN: Duration = Duration::from_millis(25);
const PAUSE_MAX: Duration = Duration::from_secs(1);
/// How often it is looked whether a connection that cannot be sent to has said why.
const REASON_PAUSE: Duration = Duration::from_millis(2);
/// A comparison may be ahead of its rate by so much.
const PACE_BYTES: u64 = 1 << 20;
/// Messages and bytes of one frame.
const FRAME_MESSAGES: usize = 128;
const FRAME_BYTES: usize = 1 << 20;
/// How often it is looked whether a stream without answers is still one.
const ANSWER_LOOK: Duration = Duration::from_millis(500);

/// A stream to a node, or the attempts to have one.
pub(super) struct Shipping {
    epoch: Epoch,
    peer: NodeId,
    stopping: AtomicBool,
    finished: AtomicBool,
    closer: Mutex<Option<LinkCloser>>,
    pub(super) figures: Figures,
}

/// What can be seen of a stream.
#[derive(Default)]
pub(super) struct Figures {
    pub(super) state: Mutex<Seen>,
    pub(super) shipped_bytes: AtomicU64,
    pub(super) shipped_operations: AtomicU64,
    /// What the present connection was asked to make durable.
    asked_sync: AtomicU64,
}

/// How a stream stands.
#[derive(Clone, Debug, Default)]
pub(super) struct Seen {
    pub(super) connected: bool,
    pub(super) compared: bool,
    /// Blocks that are left to be compared.
    pub(super) remaining_blocks: u64,
    pub(super) applied: Lsn,
    pub(super) answered_at: Duration,
    /// What it has room for, once it has said so.
    pub(super) writable: Option<ByteCount>,
    pub(super) error: Option<String>,
}

/// Says that a stream has ended when its thread does, however that comes, or has not begun: then there may be another one.
struct Finishing(Arc<Shipping>);

impl Drop for Finishing {
    fn drop(&mut self) {
        self.0.figures.state.lock().connected = false;
        self.0.finished.store(true, Ordering::Release);
    }
}

/// Ends the other half of a stream when the thread that takes the answers does, however that comes.
struct AnswersEnding<'a> {
    ended: &'a AtomicBool,
    closer: &'a LinkCloser,
    ring: &'a Ring,
}

impl Drop for AnswersEnding<'_> {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Release);
        self.closer.close();
        self.ring.call();
    }
}

/// How fast a comparison goes.
#[derive(Clone, Copy)]
struct Pace {
    rate: Option<ByteCount>,
    began_at: Duration,
}

impl Pace {
    /// Bytes that may have been sent for it by now, if that is limited.
    fn allowance(&self, now: Duration) -> Option<u64> {
        let elapsed = now.saturating_sub(self.began_at).as_nanos();
        let due = |rate: ByteCount| u128::from(rate.0) * elapsed / 1_000_000_000 + u128::from(PACE_BYTES);
        self.rate.map(|rate| u64::try_from(due(rate)).unwrap_or(u64::MAX))
    }
}

impl Shipping {
    pub(super) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        if let Some(closer) = self.closer.lock().take() {
            closer.close();
        }
    }

    fn goes_on(&self, node: &Node) -> bool {
        !self.stopping.load(Ordering::Acquire) && node.lives()
    }
}

impl Node {
    /// Starts the streams that are missing.
    pub(super) fn ship_to_all(self: &Arc<Node>, epoch: Epoch) {
        let nodes = self.parts.control.state();
        for (peer, entry) in &nodes.nodes {
            if *peer == self.parts.own.node || entry.kind != crate::replica::control::state::NodeKind::Data {
                continue;
            }
            let mut state = self.state.lock();
            let there = state
                .shipping
                .get(peer)
                .is_some_and(|it| it.epoch == epoch && !it.finished.load(Ordering::Acquire));
            if there || state.serving != Some(epoch) {
                continue;
            }
            let shipping = Arc::new(Shipping {
                epoch,
                peer: *peer,
                stopping: AtomicBool::new(false),
                finished: AtomicBool::new(false),
                closer: Mutex::new(None),
                figures: Figures::default(),
            });
            state.shipping.insert(*peer, Arc::clone(&shipping));
            drop(state);
            let finishing = Finishing(shipping);
            let started = self.spawn(&format!("ship-to-{}", peer.0), move |node| node.ship(&finishing));
            if let Err(error) = started {
                tracing::error!("{error}");
            }
        }
    }

    fn ship(self: &Arc<Node>, Finishing(shipping): &Finishing) {
        let (mut pause, mut compare) = (PAUSE_MIN, false);
        while shipping.goes_on(self) && self.parts.control.state().nodes.contains_key(&shipping.peer) {
            let before = self.now();
            if let Err(error) = self.ship_once(shipping, compare) {
                // What was to be sent is not here any more: what the node lacks, only a comparison finds. That may have to
                // wait until it is out of the set. A node without room for what follows never comes to what makes some.
                compare = matches!(error.kind(), ErrorKind::Changed | ErrorKind::NoSpace)
                    || compare && error.kind() == ErrorKind::Busy;
                let mut seen = shipping.figures.state.lock();
                let told = seen.error.as_deref() == Some(error.what());
                seen.connected = false;
                seen.error = Some(error.what().to_owned());
                drop(seen);
                if !told && shipping.goes_on(self) {
                    tracing::warn!("the stream to node {} broke: {error}", shipping.peer.0);
                }
            }
            // One that went well for a while begins with short pauses again.
            pause = if self.now() > before + PAUSE_MAX * 4 { PAUSE_MIN } else { (pause * 2).min(PAUSE_MAX) };
            let until = self.now() + pause;
            while shipping.goes_on(self) && self.now() < until {
                self.rest(pause.min(self.parts.timing.heartbeat));
            }
        }
    }

    fn ship_once(self: &Arc<Node>, shipping: &Arc<Shipping>, compare: bool) -> Result<()> {
        let peer = shipping.peer;
        let entry = self.parts.control.state().nodes.get(&peer).cloned();
        let entry = entry.ok_or_else(|| Error::new(ErrorKind::NotFound, "the node was removed"))?;
        let link =
            link::connect(&entry.cluster_address, &self.parts.identity.now(), Some(peer), CONNECT_PATIENCE)?;
        let closer = link.closer();
        *shipping.closer.lock() = Some(link.closer());
        if !shipping.goes_on(self) {
            closer.close();
        }
        let (mut sender, mut receiver) = link.split();
        let open = Downstream::Open { epoch: shipping.epoch, by: self.parts.own };
        send(&mut sender, &[open.encode()])?;
        let standing = match first_answer(&mut receiver, STANDING_PATIENCE)? {
            Upstream::Standing(standing) if standing.by.node == peer => standing,
            Upstream::Refused(why) => return Err(Error::new(ErrorKind::Busy, why)),
            _ => return Err(Error::new(ErrorKind::Invalid, "it did not say where it stands")),
        };
        let epochs = self.state.lock().epochs.clone();
        let parts = &self.parts;
        let (array, store, ring) = (&parts.array, &parts.store, &parts.ring);
        let stream = match compare {
            true => Stream::open_anew(array, store, ring, &epochs, &standing)?,
            false => Stream::open(array, store, ring, &epochs, &standing)?,
        };
        if stream.progress() != Progress::Prefix && self.state.lock().role.waits_for(standing.by) {
            // Its connection broke when the ring was too short for it. A member that was compared could be promoted in
            // the middle of it, and while it may not be, nobody else might be left.
            self.step(Input::Failed(standing.by));
            let what = "it cannot go on from where it was, and is put out of the set first";
            return Err(Error::new(ErrorKind::Busy, what));
        }
        if stream.is_resumed() {
            tracing::info!("node {} is compared: that goes on where it was broken off", peer.0);
        } else if stream.progress() != Progress::Prefix {
            tracing::info!("node {} is compared: it cannot go on from where it was", peer.0);
        }
        {
            let mut seen = shipping.figures.state.lock();
            shipping.figures.asked_sync.store(0, Ordering::Release);
            *seen = Seen { connected: true, answered_at: self.now(), ..Seen::default() };
        }
        let (stream, sender) = (Mutex::new(stream), Mutex::new(sender));
        let pace = Pace { rate: self.parts.upkeep.resync_rate, began_at: self.now() };
        let broken: Mutex<Option<Error>> = Mutex::new(None);
        let answers_ended = AtomicBool::new(false);
        let unsent = std::thread::scope(|scope| {
            let ending = AnswersEnding { ended: &answers_ended, closer: &closer, ring: &parts.ring };
            let taking = std::thread::Builder::new().spawn_scoped(scope, || {
                let _ending = ending;
                if let Err(error) = self.take_answers(shipping, &stream, &sender, &mut receiver) {
                    broken.lock().get_or_insert(error);
                }
            });
            let taking = taking.map_err(|error| {
                Error::caused(ErrorKind::Device, format!("starting to listen to node {}", peer.0), error)
            })?;
            let mut unsent = Ok(());
            let ended = || answers_ended.load(Ordering::Acquire) || broken.lock().is_some();
            while shipping.goes_on(self) && !ended() && unsent.is_ok() {
                stream.lock().allow_comparison(pace.allowance(self.now()));
                unsent = self.send_some(shipping, &stream, &sender, standing.by);
            }
            // Who closed the connection may have said why before.
            let until = self.now() + self.parts.timing.heartbeat;
            while unsent.is_err() && !answers_ended.load(Ordering::Acquire) && self.now() < until {
                self.rest(REASON_PAUSE);
            }
            closer.close();
            let panicked =
                || Error::new(ErrorKind::Device, format!("listening to node {} has failed", peer.0));
            taking.join().map_err(|_| panicked())?;
            unsent
        });
        let said = broken.into_inner().map_or(Ok(()), Err);
        match (said, unsent) {
            (Err(said), Err(unsent)) if said.kind() == ErrorKind::Unreachable => Err(unsent),
            (Ok(()), unsent) => unsent,
            (said, _) => said,
        }
    }

    /// Sends what there is, or waits a moment for more.
    fn send_some(
        self: &Arc<Node>,
        shipping: &Shipping,
        stream: &Mutex<Stream>,
        sender: &Mutex<LinkSender>,
        peer: Member,
    ) -> Result<()> {
        let calls = self.parts.ring.calls();
        let mut bodies: Vec<Vec<u8>> = Vec::new();
        let (sent, full, more) = {
            let mut stream = stream.lock();
            let mut bytes = 0;
            while bodies.len() < FRAME_MESSAGES && bytes < FRAME_BYTES {
                let Some(body) = stream.next_frame()? else { break };
                bytes += body.len();
                bodies.push(body);
            }
            (stream.sent(), stream.is_full(), stream.has_more())
        };
        let wanted = self.state.lock().sync_wanted;
        let asked = Lsn(shipping.figures.asked_sync.load(Ordering::Acquire));
        if wanted > asked && sent >= wanted {
            shipping.figures.asked_sync.store(wanted.0, Ordering::Release);
            bodies.push(Downstream::Sync(wanted).encode());
        }
        if !bodies.is_empty() {
            shipping.figures.shipped_operations.fetch_add(bodies.len() as u64, Ordering::Relaxed);
            let bytes = send(&mut sender.lock(), &bodies)?;
            shipping.figures.shipped_bytes.fetch_add(bytes, Ordering::Relaxed);
            return Ok(());
        }
        self.take_in(stream, peer);
        if !more {
            let behind = (!full).then_some(sent);
            self.parts.ring.wait(behind, calls, self.parts.timing.heartbeat);
        }
        Ok(())
    }

    /// Asks for a node's place in the set once it holds what this one has.
    fn take_in(self: &Arc<Node>, stream: &Mutex<Stream>, peer: Member) {
        let caught_up = stream.lock().has_caught_up();
        let listed = self.state.lock().role.record().names(peer);
        if caught_up && !listed && self.is_synchronous(peer.node) {
            self.step(Input::CaughtUp(peer));
            self.bookmark_soon();
        }
    }

    fn take_answers(
        self: &Arc<Node>,
        shipping: &Shipping,
        stream: &Mutex<Stream>,
        sender: &Mutex<LinkSender>,
        receiver: &mut LinkReceiver,
    ) -> Result<()> {
        let peer = stream.lock().peer();
        let began_at = self.now();
        let mut answered_at = began_at;
        while shipping.goes_on(self) {
            let Some(frame) = receiver.receive(Some(ANSWER_LOOK))? else {
                let now = self.now();
                if !stream.lock().has_unanswered() {
                    answered_at = now;
                }
                // A new life's stream may come before its first answer to a heartbeat.
                if now > began_at + self.parts.timing.role_link_lost_after * 2 {
                    self.check_silence(peer, now.saturating_sub(answered_at))?;
                }
                continue;
            };
            answered_at = self.now();
            let messages = decode_messages(&frame.body).filter(|_| frame.kind == frames::STREAM);
            let messages = messages
                .ok_or_else(|| Error::new(ErrorKind::Invalid, "it answered with what means nothing"))?;
            for message in messages {
                let message = Upstream::decode(message)
                    .ok_or_else(|| Error::new(ErrorKind::Invalid, "it answered with what means nothing"))?;
                match message {
                    Upstream::Applied { items, applied, durable, writable_bytes } => {
                        let (waited, progress) = {
                            let mut stream = stream.lock();
                            let waited = stream.waits_for_answers();
                            stream.applied(items, applied);
                            (waited, stream.progress())
                        };
                        if waited {
                            self.parts.ring.call();
                        }
                        {
                            let mut seen = shipping.figures.state.lock();
                            if applied >= seen.applied {
                                // Two threads of the node answer: an older answer may come later.
                                seen.writable = Some(ByteCount(writable_bytes));
                            }
                            seen.applied = seen.applied.max(applied);
                            seen.answered_at = self.now();
                            (seen.compared, seen.remaining_blocks) = match progress {
                                Progress::Prefix => (applied == Lsn(0), 0),
                                Progress::Compared { remaining } => (true, remaining.0),
                            };
                        }
                        self.moved.notify_all();
                        if applied > Lsn(0) {
                            self.step(Input::Applied { by: peer, epoch: shipping.epoch, applied, durable });
                        }
                    }
                    Upstream::Needs { item, positions } => {
                        let repair = &mut |bad: &[Fingerprint]| self.repair_these(bad);
                        let body = stream.lock().payloads(item, &positions, repair)?;
                        let bytes = send(&mut sender.lock(), &[body])?;
                        shipping.figures.shipped_bytes.fetch_add(bytes, Ordering::Relaxed);
                    }
                    Upstream::Refused(why) => {
                        self.step(Input::Failed(peer));
                        let prefix = stream.lock().progress() == Progress::Prefix;
                        let (applied, writable) = {
                            let seen = shipping.figures.state.lock();
                            (seen.applied, seen.writable.filter(|_| prefix))
                        };
                        let stuck = writable.is_some_and(|it| is_stuck(&self.parts.ring, applied, it));
                        return Err(Error::new(
                            if stuck { ErrorKind::NoSpace } else { ErrorKind::Device },
                            why,
                        ));
                    }
                    Upstream::Standing(_) => {
                        return Err(Error::new(ErrorKind::Invalid, "it said twice where it stands"));
                    }
                }
            }
        }
        Ok(())
    }

    /// Whether a stream without answers is still one.
    fn check_silence(&self, peer: Member, silent: Duration) -> Result<()> {
        let life = self.state.lock().role.known_life(peer.node);
        if life.is_some_and(|life| life != peer.incarnation) {
            return Err(Error::new(ErrorKind::Unreachable, "it was started anew"));
        }
        if silent >= self.parts.timing.stream_silence {
            return Err(Error::new(ErrorKind::Unreachable, "it answers for nothing that it was sent"));
        }
        Ok(())
    }

    /// Bytes that a node is behind by, as far as they are kept.
    pub(super) fn lag_bytes(&self, shipping: &Shipping) -> ByteCount {
        let seen = shipping.figures.state.lock().clone();
        if seen.compared {
            return crate::units::BlockCount(seen.remaining_blocks).bytes();
        }
        self.parts.ring.behind(seen.applied).0
    }
}

fn send(sender: &mut LinkSender, bodies: &[Vec<u8>]) -> Result<u64> {
    let lens: Vec<[u8; 4]> = bodies.iter().map(|body| crate::replica::wire::message_len(body)).collect();
    let slices: Vec<&[u8]> =
        lens.iter().zip(bodies).flat_map(|(len, body)| [len.as_slice(), body.as_slice()]).collect();
    sender.send(frames::STREAM, &slices)?;
    Ok(slices.iter().map(|slice| slice.len() as u64).sum())
}

fn first_answer(receiver: &mut LinkReceiver, patience: Duration) -> Result<Upstream> {
    let nothing = || Error::new(ErrorKind::Unreachable, "it does not say where it stands");
    let frame =
        receiver.receive(Some(patience))?.filter(|frame| frame.kind == frames::STREAM).ok_or_else(nothing)?;
    let message = decode_messages(&frame.body).and_then(|mut messages| messages.next().map(Upstream::decode));
    message.flatten().ok_or_else(nothing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_whose_thread_fails_has_finished() {
        let shipping = Arc::new(Shipping {
            epoch: Epoch::default(),
            peer: NodeId(2),
            stopping: AtomicBool::new(false),
            finished: AtomicBool::new(false),
            closer: Mutex::new(None),
            figures: Figures::default(),
        });
        let finishing = Finishing(Arc::clone(&shipping));
        let failing = std::panic::AssertUnwindSafe(move || {
            let finishing = finishing;
            assert!(finishing.0.finished.load(Ordering::Acquire), "it goes on so far");
        });
        assert!(std::panic::catch_unwind(failing).is_err());
        assert!(shipping.finished.load(Ordering::Acquire));
    }

    #[test]
    fn a_comparison_keeps_to_its_rate_and_to_none_where_none_is_set() {
        let at = Duration::from_millis;
        let pace = Pace { rate: Some(ByteCount(3 << 20)), began_at: at(5_000) };
        assert_eq!(pace.allowance(at(5_000)), Some(PACE_BYTES));
        assert_eq!(pace.allowance(at(7_500)), Some(PACE_BYTES + 15 * (1 << 19)));
        assert_eq!(Pace { rate: None, ..pace }.allowance(at(7_500)), None);
    }
}
