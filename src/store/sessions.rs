//! What has been done of the numbered requests of sessions.
//!
//! A client that lost its connection sends again what was not answered, and cannot know what of it was done. So an
//! operation that carries out a part of a numbered request says so (`Origin`), here and on every node that applies it,
//! under the lock and in the order of commits: whoever becomes primary knows exactly what the operations it holds have
//! done. It is in memory alone: a store that is opened begins another memory under another name, and a client sees by
//! the name that what it was not answered may have been done and is not remembered.
//!
//! It is bounded. A session's requests are remembered in a window behind its newest change; its client keeps the rule
//! that a request is sent only while every request before the window has been answered, and is never sent again after
//! that. Of too many sessions the one is forgotten that has changed nothing for longest. From then on nobody can tell
//! a forgotten session from a new one, and neither is called known.

use std::collections::BTreeMap;

use crate::units::{BlockCount, ByteCount, Lsn, RequestId, RequestNumber, SessionId, SessionMemory};

use super::Store;

/// A request is sent only when all with numbers lower by this much or more have been answered.
pub const REQUEST_WINDOW: u64 = 1024;

/// Most sessions that are remembered.
pub const SESSIONS_MAX: usize = 1024;

/// Most requests of one session that are remembered as done in part; more than a server carries out at a time.
pub const PARTS_MAX: usize = 128;

const WORDS: usize = (REQUEST_WINDOW / 64) as usize;

/// How much of a request has been done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// Its bytes up to here, from its first one on.
    Through(ByteCount),
    /// All of it.
    Done,
}

/// What an operation does for a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Origin {
    /// For which.
    pub request: RequestId,
    /// How much of it has been done with the operation.
    pub progress: Progress,
}

/// A request, of which some is done by a verb of the store.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Part {
    /// Which one.
    pub request: RequestId,
    /// What of it was done before.
    pub before: ByteCount,
    /// Whether it is done with this.
    pub last: bool,
}

impl Part {
    /// The origin of an operation that ends `done` bytes from where the part begins, which is `len` bytes long.
    pub(crate) fn origin(&self, done: ByteCount, len: ByteCount) -> Origin {
        let progress = match self.last && done >= len {
            true => Progress::Done,
            false => Progress::Through(ByteCount(self.before.0 + done.0)),
        };
        Origin { request: self.request, progress }
    }

    /// The part whose one operation would have this origin.
    pub(crate) fn ending_at(origin: Origin, len: BlockCount) -> Part {
        let (before, last) = match origin.progress {
            Progress::Done => (ByteCount(0), true),
            Progress::Through(end) => (ByteCount(end.0.saturating_sub(len.bytes().0)), false),
        };
        Part { request: origin.request, before, last }
    }
}

/// All that is remembered, as it is sent to another node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionsPicture {
    /// Which memory it is.
    pub memory: SessionMemory,
    /// Whether a session has been forgotten.
    pub has_forgotten: bool,
    /// The sessions, that which has changed nothing for longest first.
    pub sessions: Vec<SessionPicture>,
}

/// One session of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPicture {
    /// Which one.
    pub session: SessionId,
    /// The newest request that changed something.
    pub newest: RequestNumber,
    /// A bit for each request of the window that is done, at the place of its number.
    pub done: [u64; WORDS],
    /// Requests of which a part is done.
    pub parts: BTreeMap<RequestNumber, ByteCount>,
}

/// The memory itself.
#[derive(Debug)]
pub struct Sessions {
    memory: SessionMemory,
    has_forgotten: bool,
    by_id: BTreeMap<SessionId, (u64, SessionPicture)>,
    /// Sessions by the change that they made last.
    by_age: BTreeMap<u64, SessionId>,
    changes: u64,
}

impl Sessions {
    /// Nothing is remembered yet.
    #[must_use]
    pub fn new(memory: SessionMemory) -> Sessions {
        Sessions { memory, has_forgotten: false, by_id: BTreeMap::new(), by_age: BTreeMap::new(), changes: 0 }
    }

    /// What another node remembers.
    #[must_use]
    pub fn from_picture(picture: SessionsPicture) -> Sessions {
        let mut sessions = Sessions::new(picture.memory);
        sessions.has_forgotten = picture.has_forgotten;
        for session in picture.sessions {
            sessions.changes += 1;
            sessions.by_age.insert(sessions.changes, session.session);
            sessions.by_id.insert(session.session, (sessions.changes, session));
        }
        sessions
    }

    /// All that is remembered, for another node.
    #[must_use]
    pub fn picture(&self) -> SessionsPicture {
        let by_age = self.by_age.values().filter_map(|session| self.by_id.get(session));
        SessionsPicture {
            memory: self.memory,
            has_forgotten: self.has_forgotten,
            sessions: by_age.map(|(_, session)| session.clone()).collect(),
        }
    }

    /// An operation has done this.
    pub fn note(&mut self, origin: &Origin) {
        let id = origin.request.session;
        self.changes += 1;
        let (age, session) = self.by_id.entry(id).or_insert_with(|| (0, SessionPicture::new(id)));
        self.by_age.remove(age);
        *age = self.changes;
        self.by_age.insert(self.changes, id);
        session.note(origin);
        while self.by_id.len() > SESSIONS_MAX {
            let Some((_, oldest)) = self.by_age.pop_first() else { break };
            self.by_id.remove(&oldest);
            self.has_forgotten = true;
        }
    }

    /// How much of a request has been done.
    #[must_use]
    pub fn progress(&self, request: RequestId) -> Progress {
        let session = self.by_id.get(&request.session);
        session.map_or(Progress::Through(ByteCount(0)), |(_, session)| session.progress(request.number))
    }

    /// The name of this memory, where it knows all that the session has done.
    #[must_use]
    pub fn memory_of(&self, session: SessionId) -> Option<SessionMemory> {
        (!self.has_forgotten || self.by_id.contains_key(&session)).then_some(self.memory)
    }
}

impl SessionPicture {
    fn new(session: SessionId) -> SessionPicture {
        SessionPicture { session, newest: RequestNumber(0), done: [0; WORDS], parts: BTreeMap::new() }
    }

    fn is_before_window(&self, number: RequestNumber) -> bool {
        self.newest.0.saturating_sub(number.0) >= REQUEST_WINDOW
    }

    fn note(&mut self, origin: &Origin) {
        let number = origin.request.number;
        if self.is_before_window(number) {
            return;
        }
        if number > self.newest {
            let new = (number.0 - self.newest.0).min(REQUEST_WINDOW);
            (0..new).for_each(|back| self.set(RequestNumber(number.0 - back), false));
            self.newest = number;
            let before = RequestNumber(number.0.saturating_sub(REQUEST_WINDOW).saturating_add(1));
            self.parts = self.parts.split_off(&before);
        }
        match origin.progress {
            Progress::Done => {
                self.set(number, true);
                self.parts.remove(&number);
            }
            Progress::Through(bytes) => {
                let known = self.parts.entry(number).or_default();
                *known = bytes.max(*known);
                if self.parts.len() > PARTS_MAX {
                    self.parts.pop_first();
                }
            }
        }
    }

    fn progress(&self, number: RequestNumber) -> Progress {
        if number > self.newest {
            return Progress::Through(ByteCount(0));
        }
        let (word, bit) = place(number);
        if self.is_before_window(number) || self.done[word] & bit != 0 {
            return Progress::Done;
        }
        Progress::Through(self.parts.get(&number).copied().unwrap_or_default())
    }

    fn set(&mut self, number: RequestNumber, done: bool) {
        let (word, bit) = place(number);
        if done {
            self.done[word] |= bit;
        } else {
            self.done[word] &= !bit;
        }
    }
}

/// Where the bit of a request is.
fn place(number: RequestNumber) -> (usize, u64) {
    let place = number.0 % REQUEST_WINDOW;
    (usize::try_from(place / 64).expect("below the window"), 1 << (place % 64))
}

impl Store {
    /// How much of a request the operations that this store holds have done.
    #[must_use]
    pub fn progress_of(&self, request: RequestId) -> Progress {
        self.core.lock().sessions.progress(request)
    }

    /// The name of the memory of sessions, where it knows all that this session has done under it.
    #[must_use]
    pub fn memory_of(&self, session: SessionId) -> Option<SessionMemory> {
        self.core.lock().sessions.memory_of(session)
    }

    /// What is remembered of sessions, and behind which operation.
    #[must_use]
    pub fn sessions(&self) -> (Lsn, SessionsPicture) {
        let core = self.core.lock();
        (core.log.committed(), core.sessions.picture())
    }

    /// From now on what is remembered is what another node has remembered behind the operation that is the newest here.
    /// Nothing is missing here then that is there.
    pub fn adopt_sessions(&self, picture: SessionsPicture) {
        let mut core = self.core.lock();
        core.sessions = Sessions::from_picture(picture);
        core.may_lack = false;
    }

    /// Whether something that was acknowledged may be missing here, and no client has been told so yet.
    #[must_use]
    pub fn may_lack(&self) -> bool {
        self.core.lock().may_lack
    }

    /// Says so, or that clients are told of it by another name of the history.
    pub fn set_may_lack(&self, may_lack: bool) {
        self.core.lock().may_lack = may_lack;
    }

    /// Nothing is remembered any more: what was done is not what this store will hold.
    pub fn forget_sessions(&self) {
        let memory = SessionMemory(self.environment.random.number());
        self.core.lock().sessions = Sessions::new(memory);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn origin(session: u128, number: u64, progress: Progress) -> Origin {
        let request = RequestId { session: SessionId(session), number: RequestNumber(number) };
        Origin { request, progress }
    }

    fn through(bytes: u64) -> Progress {
        Progress::Through(ByteCount(bytes))
    }

    #[test]
    fn what_was_done_is_known_in_any_order_and_the_rest_is_not() {
        let mut sessions = Sessions::new(SessionMemory(1));
        let of = |sessions: &Sessions, number| sessions.progress(origin(7, number, Progress::Done).request);
        sessions.note(&origin(7, 5, Progress::Done));
        sessions.note(&origin(7, 3, through(4096)));
        sessions.note(&origin(7, 3, through(512)));
        assert_eq!(of(&sessions, 3), through(4096));
        assert_eq!(
            [of(&sessions, 5), of(&sessions, 4), of(&sessions, 6)],
            [Progress::Done, through(0), through(0)]
        );
        sessions.note(&origin(7, 3, Progress::Done));
        assert_eq!(of(&sessions, 3), Progress::Done);
        // The place in the window of a request that comes later is free again.
        sessions.note(&origin(7, 6 + REQUEST_WINDOW, through(1)));
        assert_eq!(of(&sessions, 5 + REQUEST_WINDOW), through(0));
        assert_eq!(of(&sessions, 6 + REQUEST_WINDOW), through(1));
        assert_eq!(of(&sessions, 6), Progress::Done, "its client had an answer");
        assert_eq!(of(&sessions, 7), through(0));
        assert_eq!(sessions.progress(origin(8, 5, Progress::Done).request), through(0));
        // Numbers that no client of ours gives do no harm.
        sessions.note(&origin(7, u64::MAX, Progress::Done));
        sessions.note(&origin(7, 0, Progress::Done));
        assert_eq!(of(&sessions, u64::MAX - 1), through(0));
        assert_eq!(of(&sessions, 9), Progress::Done);
    }

    #[test]
    fn too_many_are_forgotten_and_then_nobody_new_is_called_known() {
        let mut sessions = Sessions::new(SessionMemory(9));
        let known = |sessions: &Sessions, session| sessions.memory_of(SessionId(session)).is_some();
        for session in 0..SESSIONS_MAX as u128 {
            sessions.note(&origin(session, 1, Progress::Done));
        }
        assert!(known(&sessions, 0) && known(&sessions, 5000));
        sessions.note(&origin(0, 2, Progress::Done));
        sessions.note(&origin(5000, 1, Progress::Done));
        assert!(known(&sessions, 0) && known(&sessions, 5000));
        assert!(!known(&sessions, 1) && !known(&sessions, 6000));
        let again = Sessions::from_picture(sessions.picture());
        assert_eq!(again.picture(), sessions.picture());
        assert!(!known(&again, 1) && known(&again, 2));
        for number in 1..=2 * PARTS_MAX as u64 {
            sessions.note(&origin(0, number, through(1)));
        }
        assert!(sessions.by_id[&SessionId(0)].1.parts.len() <= PARTS_MAX);
    }
}
