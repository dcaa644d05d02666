//! Links: frames between two nodes over one connection of mutual TLS 1.3.
//!
//! A link is used by a sending and a receiving thread at the same time. The socket is read and written outside of the
//! lock around the TLS state: a receiver that waits never holds up the sender, and a sender that waits for a slow peer
//! never holds up the receiver. A frame is a length (u32), a kind (u8) and a body; what a peer sends is checked before
//! it is believed, and no memory is taken for a length beyond the bound.
//!
//! Both ends show a certificate of the cluster's authority, and the accepting end asks whether the peer is a member
//! now. The one exception is a node that joins: it shows a token, and gets an answer to that and nothing else.

mod call;
mod connect;
mod frame;
mod join;
mod server;
mod tls;
mod tunnel;

use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use rustix::net::sockopt;

use crate::error::{Error, ErrorKind, Result};
use crate::replica::identity::PeerIdentity;
use crate::replica::timing::Timing;

pub use call::{Answer, CallPool, serve_calls};
pub use connect::connect;
pub use frame::{FRAME_BYTES_MAX, Frame, LinkReceiver, LinkSender};
pub use join::{JoinGrant, JoinRequest, Joined, join};
pub use server::{Accept, CONNECTIONS_MAX, Check, Handlers, Join, LinkServer};
pub use tunnel::{TunnelStream, tunnel, tunnel_within};

/// What frames are for. From `FIRST_FREE` on the numbers are the users' of a link.
pub mod kind {
    /// The accepting end takes the peer for a member.
    pub const WELCOME: u8 = 1;
    /// It does not, or a node may not join: a failure follows, then the end.
    pub const REFUSED: u8 = 2;
    /// A node asks to join.
    pub const JOIN: u8 = 3;
    /// It may.
    pub const GRANT: u8 = 4;
    /// A request that `ANSWER` or `FAILED` answers.
    pub const CALL: u8 = 5;
    /// The answer to a `CALL`.
    pub const ANSWER: u8 = 6;
    /// Why a `CALL` has no answer.
    pub const FAILED: u8 = 7;
    /// Bytes of a tunnel.
    pub const DATA: u8 = 8;
    /// No more bytes in this direction of a tunnel.
    pub const END: u8 = 9;
    /// The first kind that means nothing here.
    pub const FIRST_FREE: u8 = 16;
}

/// How long a write may wait for the peer to take it; but for tunnels, where a slow reader is no failure for longer.
pub const WRITE_PATIENCE: Duration = Duration::from_secs(10);

/// Probes without an answer after which a link is lost.
const PROBES: u32 = 4;

/// A connection to a peer whose certificate was checked.
#[derive(Debug)]
pub struct Link {
    peer: PeerIdentity,
    remote: SocketAddr,
    sender: LinkSender,
    receiver: LinkReceiver,
}

impl Link {
    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// Where the other end is.
    #[must_use]
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// The two halves, for two threads. The connection ends when both are dropped.
    #[must_use]
    pub fn split(self) -> (LinkSender, LinkReceiver) {
        (self.sender, self.receiver)
    }

    /// Sends a frame: as `LinkSender::send`.
    ///
    /// # Errors
    /// As `LinkSender::send`.
    pub fn send(&self, kind: u8, body: &[&[u8]]) -> Result<()> {
        self.sender.send(kind, body)
    }

    /// Receives a frame: as `LinkReceiver::receive`.
    ///
    /// # Errors
    /// As `LinkReceiver::receive`.
    pub fn receive(&mut self, timeout: Option<Duration>) -> Result<Option<Frame>> {
        self.receiver.receive(timeout)
    }

    /// Ends the link from another thread, whatever its halves are waiting for.
    #[must_use]
    pub fn closer(&self) -> LinkCloser {
        self.sender.closer()
    }
}

/// Ends a link; does not keep it open.
#[derive(Clone, Debug)]
pub struct LinkCloser(Weak<TcpStream>);

impl LinkCloser {
    fn of(socket: &Arc<TcpStream>) -> LinkCloser {
        LinkCloser(Arc::downgrade(socket))
    }

    /// Ends the link: both halves, here and at the peer, get an error from then on.
    pub fn close(&self) {
        if let Some(socket) = self.0.upgrade() {
            // It fails where the peer was faster.
            let _ = socket.shutdown(Shutdown::Both);
        }
    }

    /// Whether both halves have been dropped.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

/// The time now: links have time limits, and nothing in them is simulated.
#[expect(clippy::disallowed_methods, reason = "sockets wait in real time")]
fn now() -> Instant {
    Instant::now()
}

/// Sets up a new socket: small frames leave at once, no write waits for ever, and another end that has vanished
/// without a word is noticed, whether something is on its way to it or not.
fn configure(socket: &TcpStream) -> Result<()> {
    let timing = Timing::default();
    let probed = || {
        sockopt::set_socket_keepalive(socket, true)?;
        sockopt::set_tcp_keepidle(socket, timing.link_probe_after)?;
        sockopt::set_tcp_keepintvl(socket, timing.link_probe_after / 2)?;
        sockopt::set_tcp_keepcnt(socket, PROBES)
    };
    socket
        .set_nodelay(true)
        .and_then(|()| socket.set_write_timeout(Some(WRITE_PATIENCE)))
        .and_then(|()| probed().map_err(std::io::Error::from))
        .map_err(not_set_up)?;
    lose_after(socket, timing.link_lost_after)
}

/// Ends a connection when its other end has taken nothing of what it was sent for so long.
fn lose_after(socket: &TcpStream, limit: Duration) -> Result<()> {
    // None at all would be 0.
    let limit = u32::try_from(limit.as_millis()).unwrap_or(u32::MAX).max(1);
    sockopt::set_tcp_user_timeout(socket, limit).map_err(|e| not_set_up(e.into()))
}

fn not_set_up(error: std::io::Error) -> Error {
    Error::caused(ErrorKind::Unreachable, "a connection cannot be set up", error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_end_that_has_vanished_is_noticed_within_seconds() {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        configure(&socket).unwrap();
        assert!(sockopt::socket_keepalive(&socket).unwrap());
        let idle = sockopt::tcp_keepidle(&socket).unwrap();
        let probed = sockopt::tcp_keepintvl(&socket).unwrap() * sockopt::tcp_keepcnt(&socket).unwrap();
        assert!(idle + probed < Duration::from_secs(10), "{idle:?}, {probed:?}");
        assert_eq!(sockopt::tcp_user_timeout(&socket).unwrap(), 10_000);
    }
}
