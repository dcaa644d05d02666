//! Requests and answers over links: one open connection for each peer, one request at a time on it.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::connect::deadline_in;
use super::{Frame, Link, connect, kind, now};
use crate::error::{Error, ErrorKind, Result};
use crate::replica::decisions::NodeId;
use crate::replica::identity::{NodeIdentity, PeerIdentity};
use crate::sync::Mutex;

/// How long a connection without calls is kept.
const IDLE_MAX: Duration = Duration::from_secs(120);

/// A text in a failure is cut there.
const TEXT_BYTES_MAX: usize = 4096;

/// Connections to peers that are kept open between requests: at most one for each.
#[derive(Debug)]
pub struct CallPool {
    identity: Mutex<Arc<NodeIdentity>>,
    idle: Mutex<BTreeMap<NodeId, (String, Link)>>,
}

impl CallPool {
    /// For requests of this node; nothing is connected yet.
    #[must_use]
    pub fn new(identity: Arc<NodeIdentity>) -> CallPool {
        CallPool { identity: Mutex::new(identity), idle: Mutex::default() }
    }

    /// Sends `request` to the node `to` at `address` and waits for its answer, for at most `patience` in all. A request
    /// is sent once: where an error leaves open whether it was executed, the caller decides whether to repeat it.
    ///
    /// # Errors
    /// `Unreachable` where there is no answer, `Invalid` where the other end is not that node, and whatever the node
    /// itself answers.
    pub fn call(&self, to: NodeId, address: &str, request: &[u8], patience: Duration) -> Result<Vec<u8>> {
        let deadline = deadline_in(patience);
        let kept = self.idle.lock().remove(&to);
        let mut link = match kept.filter(|(at, link)| at == address && link.receiver.is_quiet()) {
            Some((_, link)) => link,
            None => {
                let identity = self.identity.lock().clone();
                connect(address, &identity, Some(to), patience)?
            }
        };
        link.send(kind::CALL, &[request]).map_err(|e| e.context(format!("asking node {}", to.0)))?;
        let left = deadline.saturating_duration_since(now());
        let answer = link.receive(Some(left)).map_err(|e| e.context(format!("asking node {}", to.0)))?;
        let Some(Frame { kind, body }) = answer else {
            return Err(Error::new(ErrorKind::Unreachable, format!("node {} does not answer in time", to.0)));
        };
        let answer = match kind {
            kind::ANSWER => Ok(body),
            kind::FAILED => Err(read_failure(&body)),
            other => {
                let what = format!("node {} answers with a frame of kind {other}", to.0);
                return Err(Error::new(ErrorKind::Invalid, what));
            }
        };
        self.idle.lock().insert(to, (address.to_owned(), link));
        answer
    }

    /// Goes on with a renewed identity: open connections are closed, the next ones show it.
    pub fn replace_identity(&self, identity: Arc<NodeIdentity>) {
        *self.identity.lock() = identity;
        self.idle.lock().clear();
    }

    /// Closes the connection to a node that is asked nothing any more.
    pub fn forget(&self, node: NodeId) {
        self.idle.lock().remove(&node);
    }
}

/// Answers a request of a peer.
pub type Answer<'a> = dyn Fn(&PeerIdentity, &[u8]) -> Result<Vec<u8>> + 'a;

/// Answers the calls of a peer with `answer`, `first` among them, until the link ends, or two minutes pass without a
/// call: a peer that lost its power says no goodbye. For the accepting end.
///
/// # Errors
/// `Unreachable` when the link has ended, `Invalid` for a frame that is no call.
pub fn serve_calls(mut link: Link, first: Frame, answer: &Answer<'_>) -> Result<()> {
    let mut next = Some(first);
    loop {
        let frame = match next.take() {
            Some(frame) => frame,
            None => match link.receive(Some(IDLE_MAX))? {
                Some(frame) => frame,
                None => return Ok(()),
            },
        };
        if frame.kind != kind::CALL {
            return Err(Error::new(ErrorKind::Invalid, format!("a frame of kind {} is no call", frame.kind)));
        }
        match answer(link.peer(), &frame.body) {
            Ok(body) => link.send(kind::ANSWER, &[&body])?,
            Err(e) => link.send(kind::FAILED, &[&write_failure(&e)])?,
        }
    }
}

const KINDS: [ErrorKind; 14] = [
    ErrorKind::Invalid,
    ErrorKind::NotFound,
    ErrorKind::Exists,
    ErrorKind::Busy,
    ErrorKind::Changed,
    ErrorKind::NoSpace,
    ErrorKind::Corrupt,
    ErrorKind::Device,
    ErrorKind::Stopped,
    ErrorKind::ReadOnly,
    ErrorKind::NotPrimary,
    ErrorKind::NoQuorum,
    ErrorKind::Unreachable,
    ErrorKind::Unsupported,
];

/// A kind's number on the wire.
fn number(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::Invalid => 1,
        ErrorKind::NotFound => 2,
        ErrorKind::Exists => 3,
        ErrorKind::Busy => 4,
        ErrorKind::Changed => 5,
        ErrorKind::NoSpace => 6,
        ErrorKind::Corrupt => 7,
        ErrorKind::Device => 8,
        ErrorKind::Stopped => 9,
        ErrorKind::ReadOnly => 10,
        ErrorKind::NotPrimary => 11,
        ErrorKind::NoQuorum => 12,
        ErrorKind::Unreachable => 13,
        ErrorKind::Unsupported => 14,
    }
}

/// An error for the wire: its kind, and what it says.
pub(super) fn write_failure(error: &Error) -> Vec<u8> {
    let mut body = vec![number(error.kind())];
    body.extend(error.to_string().bytes().take(TEXT_BYTES_MAX));
    body
}

/// The error that a peer sent; what cannot be read is `Invalid`.
pub(super) fn read_failure(body: &[u8]) -> Error {
    let Some((number, text)) = body.split_first() else {
        return Error::new(ErrorKind::Invalid, "the peer refuses, and does not say why");
    };
    let kind = KINDS.into_iter().find(|kind| self::number(*kind) == *number).unwrap_or(ErrorKind::Invalid);
    let text = String::from_utf8_lossy(&text[..text.len().min(TEXT_BYTES_MAX)]);
    // A peer's words end up in logs and on terminals.
    Error::new(kind, text.replace(|c: char| c.is_control(), " "))
}
