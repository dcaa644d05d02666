//! The connecting end of a link.

use std::net::{SocketAddr, TcpStream, ToSocketAddrs as _};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustls::Connection;

use super::{Link, LinkReceiver, LinkSender, call, configure, frame, kind, now, tls};
use crate::error::{Error, ErrorKind, Result};
use crate::replica::decisions::NodeId;
use crate::replica::identity::NodeIdentity;

/// Connects to the node at `address` (`HOST:PORT`) as `identity`; returns when that node has taken this one for a
/// member, within `timeout` in all (the look-up of a host name apart). With `expect`, only to that node.
///
/// # Errors
/// `Unreachable` where nobody answers in time, `Invalid` where the other end is not of this cluster, is not the node
/// expected, or refuses this one.
pub fn connect(
    address: &str,
    identity: &NodeIdentity,
    expect: Option<NodeId>,
    timeout: Duration,
) -> Result<Link> {
    let deadline = deadline_in(timeout);
    let attempt = || {
        let (remote, socket, tls) = open(address, tls::client_of(identity)?, deadline)?;
        let peer = tls::peer(&tls)?
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "the other end shows no certificate"))?;
        if let Some(expected) = expect.filter(|expected| peer.name.node() != Some(*expected)) {
            let what = format!("there is {}, where node {} was expected", peer.name, expected.0);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let (sender, mut receiver) = frame::halves(socket, tls)?;
        wait_for_welcome(&mut receiver, deadline)?;
        Ok(Link { peer, remote, sender, receiver })
    };
    attempt().map_err(|e| e.context(format!("connecting to {address}")))
}

/// The same for an end without a certificate: the other end is known by its certificate, nothing was said yet.
pub(super) fn connect_with(
    address: &str,
    tls: Connection,
    deadline: Instant,
) -> Result<(LinkSender, LinkReceiver)> {
    let (_, socket, tls) = open(address, tls, deadline)?;
    frame::halves(socket, tls)
}

pub(super) fn deadline_in(timeout: Duration) -> Instant {
    // A time limit beyond what the clock can count is a day.
    let now = now();
    now.checked_add(timeout).unwrap_or(now + Duration::from_secs(24 * 3600))
}

fn open(
    address: &str,
    mut tls: Connection,
    deadline: Instant,
) -> Result<(SocketAddr, Arc<TcpStream>, Connection)> {
    let (remote, socket) = open_socket(address, deadline)?;
    configure(&socket)?;
    tls::handshake(&socket, &mut tls, deadline)?;
    Ok((remote, Arc::new(socket), tls))
}

fn open_socket(address: &str, deadline: Instant) -> Result<(SocketAddr, TcpStream)> {
    let unknown = |e| Error::caused(ErrorKind::Unreachable, "the address cannot be looked up", e);
    let mut failure = Error::new(ErrorKind::Unreachable, "the host name has no address");
    for remote in address.to_socket_addrs().map_err(unknown)? {
        let left = deadline.saturating_duration_since(now());
        if left.is_zero() {
            return Err(Error::new(ErrorKind::Unreachable, "there is no answer in time"));
        }
        match TcpStream::connect_timeout(&remote, left) {
            Ok(socket) => return Ok((remote, socket)),
            Err(e) => failure = Error::caused(ErrorKind::Unreachable, "there is no connection", e),
        }
    }
    Err(failure)
}

fn wait_for_welcome(receiver: &mut LinkReceiver, deadline: Instant) -> Result<()> {
    let left = deadline.saturating_duration_since(now());
    match receiver.receive(Some(left))? {
        Some(frame) if frame.kind == kind::WELCOME => Ok(()),
        Some(frame) if frame.kind == kind::REFUSED => Err(call::read_failure(&frame.body)),
        Some(frame) => Err(Error::new(
            ErrorKind::Invalid,
            format!("a frame of kind {} instead of a welcome", frame.kind),
        )),
        None => Err(Error::new(ErrorKind::Unreachable, "there is no welcome in time")),
    }
}
