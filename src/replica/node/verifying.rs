//! Comparing all nodes of the in-sync set at one position, in the background: the primary asks, the others answer.
//!
//! The position is a bookmark that is made for it and goes afterwards. A node that holds something else leaves the set
//! and is brought up as a whole.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::replica::bookmarks;
use crate::replica::compare::{self, Answer, LISTED_MAX, ObjectFacts, Question, Still};
use crate::replica::decisions::{Incarnation, Member, NodeId, Position};
use crate::replica::link::{self, Frame, Link};
use crate::replica::role::Input;
use crate::sync::Mutex;
use crate::units::{BlockCount, Epoch, Lba, ObjectNumber, Uuid};

use super::{Node, frames};

/// A connection to a member is made within this time.
const CONNECT_PATIENCE: Duration = Duration::from_secs(3);
/// A member answers within this time.
const ANSWER_PATIENCE: Duration = Duration::from_secs(60);
/// How often it is looked whether this node stops meanwhile.
const ANSWER_LOOK: Duration = Duration::from_millis(500);
/// A connection on which nothing is asked for so long is closed.
const IDLE_MAX: Duration = Duration::from_secs(120);
/// Differences that are named for each node.
const DIFFERENCES_MAX: usize = 8;
/// Attempts to catch all objects' records at rest, while management goes on.
const RECORDS_ATTEMPTS: usize = 20;
/// Between two of them.
const RECORDS_PAUSE: Duration = Duration::from_millis(50);
/// A node that differs is out of the set within this time, or stays in it.
const OUT_PATIENCE: Duration = Duration::from_secs(5);

/// How far the newest comparison of all nodes has come.
#[derive(Clone, Debug, Default)]
pub struct VerifyStatus {
    /// What it is at.
    pub phase: VerifyPhase,
    /// Where all are compared.
    pub position: Option<Position>,
    /// Mapped blocks that were compared.
    pub compared: BlockCount,
    /// The members of the set besides the primary, and what was found of each.
    pub nodes: BTreeMap<NodeId, Verdict>,
    /// Why it has failed.
    pub error: Option<String>,
}

/// What a comparison is at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum VerifyPhase {
    /// This node has begun none since it was started.
    #[default]
    Never,
    /// It compares.
    Running,
    /// It was stopped before its end.
    Stopped,
    /// It could not be brought to its end.
    Failed,
    /// All was compared that could be.
    Finished,
}

/// What was found of one node.
#[derive(Clone, Debug, Default)]
pub struct Verdict {
    /// The first differences; none for a node that is equal as far as it was compared.
    pub differences: Vec<Difference>,
    /// Why it could not be compared to the end.
    pub error: Option<String>,
}

/// A difference to the primary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Difference {
    /// The volume or snapshot.
    pub object: String,
    /// The block; none where it is not about one.
    pub lba: Option<Lba>,
    /// What differs.
    pub what: String,
}

/// What a node keeps of comparisons.
#[derive(Default)]
pub(super) struct Verifying {
    status: Mutex<VerifyStatus>,
    /// At which bookmark the one under way compares.
    bookmark: Mutex<Option<Uuid>>,
    /// The one under way is to end.
    stopping: AtomicBool,
}

impl Verifying {
    /// The bookmark that is in use by a comparison: another one that is made does not replace it.
    pub(super) fn bookmark(&self) -> Option<Uuid> {
        *self.bookmark.lock()
    }

    /// Whether a bookmark is in use by a comparison.
    pub(super) fn is_running(&self) -> bool {
        self.status.lock().phase == VerifyPhase::Running
    }
}

/// A member that is compared.
struct Compared {
    member: Member,
    link: Link,
}

impl Compared {
    fn ask(&mut self, node: &Node, question: &Question) -> Result<Answer> {
        self.link.send(frames::COMPARE, &[&compare::encode(question)?])?;
        self.answer(node)
    }

    fn answer(&mut self, node: &Node) -> Result<Answer> {
        let deadline = node.now() + ANSWER_PATIENCE;
        let answer = loop {
            match self.link.receive(Some(ANSWER_LOOK))? {
                Some(frame) if frame.kind == frames::COMPARE => break frame,
                Some(_) => return Err(nonsense()),
                None if node.now() < deadline && node.lives() => {}
                None => return Err(Error::new(ErrorKind::Unreachable, "it does not answer")),
            }
        };
        match compare::decode(&answer.body)? {
            Answer::Failed(why) => Err(Error::new(ErrorKind::Device, why)),
            answer => Ok(answer),
        }
    }
}

fn nonsense() -> Error {
    Error::new(ErrorKind::Invalid, "its answer is not one to the question")
}

impl Node {
    /// Begins to compare all members of the in-sync set with this primary.
    ///
    /// # Errors
    /// `NotPrimary` on another node; `Busy` while one is under way; `Device` where no thread can be started.
    pub fn start_verify(self: &Arc<Node>) -> Result<VerifyStatus> {
        let serving = self.state.lock().serving;
        let Some(epoch) = serving.filter(|_| self.serves()) else {
            return Err(Error::new(ErrorKind::NotPrimary, "this node is not the primary"));
        };
        {
            let mut status = self.verifying.status.lock();
            if status.phase == VerifyPhase::Running {
                return Err(Error::new(ErrorKind::Busy, "the nodes are being compared already"));
            }
            *status = VerifyStatus { phase: VerifyPhase::Running, ..VerifyStatus::default() };
            self.verifying.stopping.store(false, Ordering::Release);
        }
        let started = self.spawn("cluster-verify", move |node| {
            let outcome = node.verify(epoch);
            let mut status = node.verifying.status.lock();
            status.phase = match outcome {
                Ok(()) => VerifyPhase::Finished,
                Err(error) if error.kind() == ErrorKind::Changed => VerifyPhase::Stopped,
                Err(error) => {
                    tracing::warn!("the nodes were not compared: {error}");
                    status.error = Some(error.to_string());
                    VerifyPhase::Failed
                }
            };
        });
        if let Err(error) = started {
            self.verifying.status.lock().phase = VerifyPhase::Failed;
            return Err(error);
        }
        Ok(self.verify_status())
    }

    /// Ends the comparison under way, soon.
    pub fn stop_verify(&self) -> VerifyStatus {
        self.verifying.stopping.store(true, Ordering::Release);
        self.verify_status()
    }

    /// How far the newest comparison has come.
    #[must_use]
    pub fn verify_status(&self) -> VerifyStatus {
        self.verifying.status.lock().clone()
    }

    fn goes_on(&self, epoch: Epoch) -> Result<()> {
        if self.verifying.stopping.load(Ordering::Acquire) || !self.lives() {
            return Err(Error::new(ErrorKind::Changed, "it was stopped"));
        }
        match self.state.lock().serving == Some(epoch) {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::NotPrimary, "this node is not the primary any more")),
        }
    }

    fn verify(self: &Arc<Node>, epoch: Epoch) -> Result<()> {
        let mut bytes = [0; 16];
        self.parts.environment.random.fill(&mut bytes);
        let id = Uuid::from_random(bytes);
        *self.verifying.bookmark.lock() = Some(id);
        let compared = self.verify_at(epoch, id);
        *self.verifying.bookmark.lock() = None;
        self.admit()?;
        let dropped = bookmarks::drop_one(&self.parts.store, id);
        self.done();
        let dropped = dropped?;
        if let Some(lsn) = dropped {
            self.parts.store.write_out(lsn)?;
        }
        if compared? && dropped.is_none() {
            // From then on nothing was compared any more.
            let what = "the bookmark at which the nodes were compared was given up meanwhile: room was needed, or \
                        bookmark.keep was over";
            return Err(Error::new(ErrorKind::Busy, what));
        }
        Ok(())
    }

    /// Compares all at a bookmark of this id; whether there was one to be made: an array without volumes has none.
    fn verify_at(self: &Arc<Node>, epoch: Epoch, id: Uuid) -> Result<bool> {
        let (array, store) = (&self.parts.array, &self.parts.store);
        let now = self.parts.environment.clock.since_unix_epoch().as_millis();
        self.admit()?;
        let made = bookmarks::make(array, store, id, u64::try_from(now).unwrap_or(u64::MAX));
        self.done();
        let made = made?;
        let lsn = made.unwrap_or(store.position().1);
        store.make_durable(lsn)?;
        self.durable(lsn)?;
        self.verifying.status.lock().position = Some(Position { epoch, lsn });
        let mut compared = self.members_to_compare()?;
        self.each(&mut compared, |node, it| node.compare_records(epoch, it))?;
        for still in compare::still_objects(store, id)? {
            let mut at = Lba(0);
            while at.0 < still.size.0 {
                self.goes_on(epoch)?;
                let begun = self.now();
                let digest = compare::digest_from(store, still.object, at, still.size);
                let (digest, end) = match digest {
                    // A snapshot was deleted meanwhile.
                    Err(error) if error.kind() == ErrorKind::NotFound => break,
                    other => other?,
                };
                let count = BlockCount(end.0 - at.0);
                self.each(&mut compared, |node, it| {
                    let question = Question::Digest { object: still.object, first: at, count };
                    match it.ask(node, &question)? {
                        Answer::Digest(Some(theirs)) if theirs == digest => Ok(Vec::new()),
                        Answer::Digest(_) => node.narrow_down(it, &still, at, count),
                        Answer::NotFound if store.object_size(still.object).is_some() => {
                            Ok(vec![about(&still.name, "it is missing")])
                        }
                        Answer::NotFound => Ok(Vec::new()),
                        _ => Err(nonsense()),
                    }
                })?;
                self.verifying.status.lock().compared.0 += digest.mapped.0;
                at = end;
                // Half of the time is others'.
                self.rest(self.now().saturating_sub(begun));
            }
        }
        self.goes_on(epoch)?;
        let record = self.state.lock().role.record().clone();
        for it in &compared {
            if !record.names(it.member) {
                self.note_unknown(it.member.node, "it left the in-sync set meanwhile".to_owned());
            }
        }
        Ok(made.is_some())
    }

    /// Connections to all members; those that cannot be reached are noted.
    fn members_to_compare(&self) -> Result<Vec<Compared>> {
        let set: Vec<(NodeId, Incarnation)> = {
            let state = self.state.lock();
            state.role.record().set.iter().map(|(node, life)| (*node, *life)).collect()
        };
        let nodes = self.parts.control.state();
        let mut compared = Vec::new();
        for (node, incarnation) in set.into_iter().filter(|(node, _)| *node != self.parts.own.node) {
            self.verifying.status.lock().nodes.insert(node, Verdict::default());
            let address =
                nodes.nodes.get(&node).map(|entry| entry.cluster_address.clone()).unwrap_or_default();
            match link::connect(&address, &self.parts.identity.now(), Some(node), CONNECT_PATIENCE) {
                Ok(link) => compared.push(Compared { member: Member { node, incarnation }, link }),
                Err(error) => self.note_unknown(node, error.to_string()),
            }
        }
        if self.verifying.status.lock().nodes.is_empty() {
            let what = "no other node is in sync: there is nothing to compare with";
            return Err(Error::new(ErrorKind::Busy, what));
        }
        Ok(compared)
    }

    /// Notes why a node cannot be compared to the end.
    fn note_unknown(&self, node: NodeId, why: String) {
        self.verifying.status.lock().nodes.entry(node).or_default().error = Some(why);
    }

    /// Compares something with every member. One that cannot be asked, or of which enough is known, is left out from
    /// then on; one that differs leaves the set.
    fn each(
        self: &Arc<Node>,
        compared: &mut Vec<Compared>,
        mut compare: impl FnMut(&Node, &mut Compared) -> Result<Vec<Difference>>,
    ) -> Result<()> {
        let mut left = Vec::new();
        for mut it in std::mem::take(compared) {
            match compare(self, &mut it) {
                Ok(found) if found.is_empty() => left.push(it),
                Ok(found) => {
                    let node = it.member.node;
                    for Difference { object, lba, what } in &found {
                        let block = lba.map(|lba| format!(" block {lba}")).unwrap_or_default();
                        tracing::error!("node {} differs: {object}{block}: {what}", node.0);
                    }
                    self.verifying.status.lock().nodes.entry(node).or_default().differences = found;
                    if let Err(error) = self.discard(&mut it) {
                        tracing::error!("node {} differs and was not put out: {error}", node.0);
                        self.note_unknown(node, format!("it was not put out of the set: {error}"));
                    }
                }
                Err(error) if self.lives() => self.note_unknown(it.member.node, error.to_string()),
                Err(error) => return Err(error),
            }
        }
        *compared = left;
        Ok(())
    }

    /// Compares which objects there are, and their records, at a moment when management is at rest.
    fn compare_records(&self, epoch: Epoch, it: &mut Compared) -> Result<Vec<Difference>> {
        let store = &self.parts.store;
        let mut last = Vec::new();
        for _ in 0..RECORDS_ATTEMPTS {
            self.goes_on(epoch)?;
            let before = compare::facts(store)?;
            let (_, lsn) = store.position();
            store.make_durable(lsn)?;
            self.durable(lsn)?;
            let theirs = all_facts(self, it)?;
            let after = compare::facts(store)?;
            let all = before.keys().chain(theirs.keys()).chain(after.keys());
            let all: std::collections::BTreeSet<ObjectNumber> = all.copied().collect();
            let (still, moved): (Vec<_>, Vec<_>) =
                all.into_iter().partition(|number| before.get(number) == after.get(number));
            let differs = still.into_iter().filter(|number| before.get(number) != theirs.get(number));
            last = differs.map(|number| self.difference_of(number, &before, &theirs)).collect();
            if !last.is_empty() || moved.is_empty() {
                break;
            }
            self.rest(RECORDS_PAUSE);
        }
        last.truncate(DIFFERENCES_MAX);
        Ok(last)
    }

    fn difference_of(
        &self,
        number: ObjectNumber,
        own: &BTreeMap<ObjectNumber, ObjectFacts>,
        theirs: &BTreeMap<ObjectNumber, ObjectFacts>,
    ) -> Difference {
        let objects = self.parts.store.objects().unwrap_or_default();
        let named = objects.iter().find(|object| object.number == number).map(compare::name_of);
        let name = named.unwrap_or_else(|| format!("object {number}"));
        let what = match (own.get(&number), theirs.get(&number)) {
            (Some(_), None) => "it is missing",
            (None, _) => "it is there, and not on the primary",
            (Some(own), Some(theirs)) if own.size != theirs.size => "it has another size",
            _ => "it has another name, description or other property",
        };
        about(&name, what)
    }

    /// Finds the first blocks of a range that differ.
    fn narrow_down(
        &self,
        it: &mut Compared,
        still: &Still,
        first: Lba,
        count: BlockCount,
    ) -> Result<Vec<Difference>> {
        let store = &self.parts.store;
        let (object, mut found) = (still.object, Vec::new());
        let mut ranges = vec![(first, count)];
        while let Some((first, count)) = ranges.pop() {
            if found.len() >= DIFFERENCES_MAX {
                break;
            }
            if count.0 > LISTED_MAX {
                let half = count.0 / 2;
                // The lower half is looked at first.
                for (first, count) in
                    [(first.plus(half), BlockCount(count.0 - half)), (first, BlockCount(half))]
                {
                    let theirs = match it.ask(self, &Question::Digest { object, first, count })? {
                        Answer::Digest(theirs) => theirs,
                        _ => return Err(nonsense()),
                    };
                    let own = compare::digest_of(store, object, first, count)?;
                    if own.is_none() || own != theirs {
                        ranges.push((first, count));
                    }
                }
                continue;
            }
            let own = compare::blocks_of(store, object, first, count)?;
            let Answer::Blocks(theirs) = it.ask(self, &Question::Blocks { object, first, count })? else {
                return Err(nonsense());
            };
            if theirs.len() != own.len() {
                return Err(nonsense());
            }
            for (offset, _) in (0..).zip(own.iter().zip(&theirs)).filter(|(_, (own, theirs))| own != theirs) {
                let lba = Some(first.plus(offset));
                let what = "it holds something else".to_owned();
                found.push(Difference { object: still.name.clone(), lba, what });
            }
        }
        found.truncate(DIFFERENCES_MAX);
        if found.is_empty() {
            // Nothing of a bookmark or snapshot changes: what differs as a whole differs somewhere.
            found.push(about(&still.name, "it differs, and no block of it does"));
        }
        Ok(found)
    }

    /// Has a member leave the set and be brought up as a whole.
    fn discard(self: &Arc<Node>, it: &mut Compared) -> Result<()> {
        it.link.send(frames::COMPARE, &[&compare::encode(&Question::Discard)?])?;
        let deadline = self.now() + OUT_PATIENCE;
        while self.state.lock().role.record().names(it.member) {
            if self.now() >= deadline {
                return Err(Error::new(ErrorKind::NoQuorum, "that was not decided in time"));
            }
            self.step(Input::Failed(it.member));
            self.rest(self.parts.timing.heartbeat);
        }
        match it.answer(self)? {
            Answer::Discarded => Ok(()),
            _ => Err(nonsense()),
        }
    }

    /// A member's end: answers the primary until it closes the connection.
    pub(super) fn answer_comparison(self: &Arc<Node>, from: NodeId, mut link: Link, first: Frame) {
        let mut frame = Some(first);
        while self.lives() {
            let taken = match frame.take() {
                Some(frame) => Some(frame),
                None => link.receive(Some(IDLE_MAX)).ok().flatten(),
            };
            let Some(taken) = taken.filter(|frame| frame.kind == frames::COMPARE) else { return };
            let question: Result<Question> = compare::decode(&taken.body);
            let primary = self.state.lock().role.record().primary;
            let answer = match question {
                Err(error) => {
                    tracing::warn!("node {} asks what means nothing: {error}", from.0);
                    return;
                }
                Ok(_) if primary != from => Answer::Failed("only the primary compares".to_owned()),
                Ok(Question::Discard) => match self.give_up_copy() {
                    Ok(()) => Answer::Discarded,
                    Err(error) => Answer::Failed(error.to_string()),
                },
                Ok(question) => compare::answer(&self.parts.store, &question),
            };
            let sent = compare::encode(&answer).and_then(|body| link.send(frames::COMPARE, &[&body]));
            if sent.is_err() {
                return;
            }
        }
    }

    /// This node's copy is wrong: it leaves the set, and begins again from nothing.
    fn give_up_copy(self: &Arc<Node>) -> Result<()> {
        self.hold_following()?;
        let given_up = self.mark_once_out();
        self.release_following();
        if given_up.is_ok() {
            tracing::warn!("this copy differs from the primary's: everything is compared");
        }
        given_up
    }

    fn mark_once_out(&self) -> Result<()> {
        let deadline = self.now() + OUT_PATIENCE;
        let listed = || {
            let state = self.parts.control.state();
            state.record.clone().filter(|record| record.names(self.parts.own))
        };
        while listed().is_some() {
            if self.now() >= deadline || self.leads() || !self.lives() {
                return Err(Error::new(ErrorKind::Busy, "this node is still in the set"));
            }
            self.rest(self.parts.timing.heartbeat);
        }
        self.parts.ring.mute();
        // Where a decision that took it in again was on its way, it leaves the set once more: `leave_while_syncing`.
        self.parts.store.begin_sync()
    }
}

fn all_facts(node: &Node, it: &mut Compared) -> Result<BTreeMap<ObjectNumber, ObjectFacts>> {
    let mut all = BTreeMap::new();
    let mut from = ObjectNumber(0);
    loop {
        let Answer::Objects(found, more) = it.ask(node, &Question::Objects(from))? else {
            return Err(nonsense());
        };
        let last = found.last().map(|facts| facts.number);
        all.extend(found.into_iter().map(|facts| (facts.number, facts)));
        let next = last.filter(|last| more && *last >= from).and_then(|last| last.0.checked_add(1));
        match next {
            Some(next) => from = ObjectNumber(next),
            None => return Ok(all),
        }
    }
}

fn about(object: &str, what: &str) -> Difference {
    Difference { object: object.to_owned(), lba: None, what: what.to_owned() }
}
