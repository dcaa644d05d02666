//! The accepting end of links: a bounded number of threads, one for each connection.
//!
//! What a stranger can take is little: a thread and a small buffer for ten seconds, of which one address gets a few,
//! and all strangers together never so many that members find none left.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use rustls::{Connection, ServerConfig, ServerConnection};

use super::join::{JOIN_BYTES_MAX, JoinGrant, JoinRequest};
use super::{Frame, Link, LinkCloser, call, configure, frame, kind, now, tls};
use crate::error::{Error, ErrorKind, Result};
use crate::replica::identity::{NodeIdentity, PeerIdentity};
use crate::sync::{Condition, Mutex};

/// The most connections at a time.
pub const CONNECTIONS_MAX: usize = 256;

/// The most of them whose peer has not shown yet that it is a member.
const STRANGERS_MAX: usize = 64;

/// The most of these from one address.
const STRANGERS_OF_ADDRESS_MAX: usize = 32;

/// How long a handshake may take, and a request to join.
const HANDSHAKE_PATIENCE: Duration = Duration::from_secs(10);

/// How long a member may take until its first frame.
const FIRST_FRAME_PATIENCE: Duration = Duration::from_secs(30);

/// How often one address is heard of in the log.
const LOG_EVERY: Duration = Duration::from_secs(60);

/// The most addresses that are remembered for that.
const LOGGED_MAX: usize = 1024;

/// The wait after a connection could not be accepted, which is for want of something that others must give back.
const ACCEPT_AGAIN: Duration = Duration::from_millis(100);

/// Whether a peer is a member now.
pub type Check = Arc<dyn Fn(&PeerIdentity) -> bool + Send + Sync>;

/// Takes a member's link with its first frame, on the connection's own thread.
pub type Accept = Arc<dyn Fn(PeerIdentity, Link, Frame) + Send + Sync>;

/// Decides on a request to join.
pub type Join = Arc<dyn Fn(JoinRequest) -> Result<JoinGrant> + Send + Sync>;

/// What the server asks and tells.
#[derive(Clone)]
pub struct Handlers {
    /// Whether a peer whose certificate is good is a member now.
    pub check: Check,
    /// Takes a member's link.
    pub accept: Accept,
    /// Decides on a request to join.
    pub join: Join,
}

/// Accepts links on one port. Dropping it stops it.
pub struct LinkServer {
    inner: Arc<Inner>,
    thread: Option<JoinHandle<()>>,
}

struct Inner {
    listener: TcpListener,
    handlers: Handlers,
    config: Mutex<Arc<ServerConfig>>,
    state: Mutex<State>,
    stopped: Condition,
}

#[derive(Default)]
struct State {
    stopping: bool,
    last: u64,
    connections: BTreeMap<u64, Entry>,
    logged: BTreeMap<IpAddr, Instant>,
}

struct Entry {
    closer: LinkCloser,
    /// Whose share of strangers it counts to.
    address: IpAddr,
    /// Once it is known.
    peer: Option<PeerIdentity>,
    /// Whether its thread is still at work; the link itself may live longer.
    running: bool,
}

impl LinkServer {
    /// Accepts connections on `listener` as `identity`.
    ///
    /// # Errors
    /// `Invalid` where the identity cannot be used, `Unreachable` where no thread can be started.
    pub fn start(listener: TcpListener, identity: &NodeIdentity, handlers: Handlers) -> Result<LinkServer> {
        let inner = Arc::new(Inner {
            listener,
            handlers,
            config: Mutex::new(tls::server_config(identity)?),
            state: Mutex::default(),
            stopped: Condition::new(),
        });
        let accepting = inner.clone();
        let thread = thread::Builder::new()
            .name("link-accept".to_owned())
            .spawn(move || accepting.accept())
            .map_err(|e| Error::caused(ErrorKind::Unreachable, "links cannot be accepted", e))?;
        Ok(LinkServer { inner, thread: Some(thread) })
    }

    /// Shows a renewed certificate to whoever connects from now on.
    ///
    /// # Errors
    /// `Invalid` where the identity cannot be used; the former one stays.
    pub fn replace_identity(&self, identity: &NodeIdentity) -> Result<()> {
        *self.inner.config.lock() = tls::server_config(identity)?;
        Ok(())
    }

    /// Asks again of every accepted link whether its peer is a member, and closes those whose is not. To be called
    /// whenever a node was removed.
    pub fn recheck(&self) {
        let mut known = Vec::new();
        for entry in self.inner.state.lock().connections.values() {
            known.extend(entry.peer.map(|peer| (peer, entry.closer.clone())));
        }
        for (_, closer) in known.iter().filter(|(peer, _)| !(self.inner.handlers.check)(peer)) {
            closer.close();
        }
    }

    /// Accepts nothing more and closes every accepted link; does not wait for those who used them.
    pub fn stop(&mut self) {
        let Some(thread) = self.thread.take() else { return };
        {
            let mut state = self.inner.state.lock();
            state.stopping = true;
            state.connections.values().for_each(|entry| entry.closer.close());
            self.inner.stopped.notify_all();
        }
        // On Linux this wakes whoever accepts; it fails for a listener that is broken, which wakes as well.
        let _ = rustix::net::shutdown(&self.inner.listener, rustix::net::Shutdown::Both);
        // A panic of that thread has been reported by then, and nothing of it is needed here.
        let _ = thread.join();
    }
}

impl Drop for LinkServer {
    fn drop(&mut self) {
        self.stop();
    }
}

impl Inner {
    fn accept(self: Arc<Inner>) {
        loop {
            let accepted = self.listener.accept();
            if self.state.lock().stopping {
                return;
            }
            match accepted {
                Ok((socket, remote)) => self.admit(socket, remote),
                Err(e) => {
                    tracing::warn!("a cluster connection could not be accepted: {e}");
                    let state = self.state.lock();
                    if !state.stopping {
                        drop(self.stopped.wait_for(state, ACCEPT_AGAIN));
                    }
                }
            }
        }
    }

    /// Starts a thread for a new connection, where there is room for one.
    fn admit(self: &Arc<Inner>, socket: TcpStream, remote: SocketAddr) {
        let address = share_of(remote.ip());
        let socket = Arc::new(socket);
        let number = {
            let mut state = self.state.lock();
            state.connections.retain(|_, entry| entry.running || !entry.closer.is_gone());
            let strangers = || state.connections.values().filter(|entry| entry.peer.is_none());
            let full = state.connections.len() >= CONNECTIONS_MAX
                || strangers().count() >= STRANGERS_MAX
                || strangers().filter(|entry| entry.address == address).count() >= STRANGERS_OF_ADDRESS_MAX;
            if full {
                drop(state);
                let what = "there are too many connections already";
                return self.log(address, &Error::new(ErrorKind::Busy, what));
            }
            state.last += 1;
            let number = state.last;
            let entry = Entry { closer: LinkCloser::of(&socket), address, peer: None, running: true };
            state.connections.insert(number, entry);
            number
        };
        let inner = self.clone();
        let spawned = thread::Builder::new().name("link".to_owned()).spawn(move || {
            let ended = Running { inner: &inner, number };
            if let Err(e) = inner.serve(socket, remote, number) {
                inner.log(address, &e);
            }
            drop(ended);
        });
        if let Err(e) = spawned {
            self.ended(number);
            self.log(address, &Error::caused(ErrorKind::Busy, "there is no thread for it", e));
        }
    }

    fn serve(&self, socket: Arc<TcpStream>, remote: SocketAddr, number: u64) -> Result<()> {
        let deadline = now() + HANDSHAKE_PATIENCE;
        configure(&socket)?;
        let config = self.config.lock().clone();
        let mut tls: Connection = ServerConnection::new(config)
            .map_err(|e| Error::caused(ErrorKind::Invalid, "TLS cannot begin", e))?
            .into();
        tls::handshake(&socket, &mut tls, deadline)?;
        let peer = tls::peer(&tls)?;
        let (sender, receiver) = frame::halves(socket, tls)?;
        match peer {
            None => self.serve_stranger(sender, receiver, remote, deadline),
            Some(peer) => self.serve_member(number, Link { peer, remote, sender, receiver }),
        }
    }

    fn serve_member(&self, number: u64, mut link: Link) -> Result<()> {
        let peer = *link.peer();
        // Known before it is asked about, so that no `recheck` can pass between the two.
        if let Some(entry) = self.state.lock().connections.get_mut(&number) {
            entry.peer = Some(peer);
        }
        if !(self.handlers.check)(&peer) {
            let refusal =
                Error::new(ErrorKind::Invalid, format!("{} is not a member of the cluster", peer.name));
            link.send(kind::REFUSED, &[&call::write_failure(&refusal)])?;
            return Err(refusal);
        }
        link.send(kind::WELCOME, &[])?;
        let silent =
            || Error::new(ErrorKind::Unreachable, format!("{} connects and says nothing", peer.name));
        let first = link.receive(Some(FIRST_FRAME_PATIENCE))?.ok_or_else(silent)?;
        (self.handlers.accept)(peer, link, first);
        Ok(())
    }

    fn serve_stranger(
        &self,
        sender: frame::LinkSender,
        mut receiver: frame::LinkReceiver,
        remote: SocketAddr,
        deadline: Instant,
    ) -> Result<()> {
        receiver.set_limit(JOIN_BYTES_MAX);
        let left = deadline.saturating_duration_since(now());
        let refused = |what: &str| Err(Error::new(ErrorKind::Invalid, what));
        let request = match receiver.receive(Some(left))? {
            None => return refused("a peer without a certificate says nothing"),
            Some(frame) if frame.kind != kind::JOIN => {
                return refused("a peer without a certificate asks for something else than to join");
            }
            Some(frame) => JoinRequest::decode(&frame.body, remote),
        };
        let grant = request.and_then(|request| (self.handlers.join)(request)?.encode());
        match grant {
            Ok(grant) => sender.send(kind::GRANT, &[&grant]),
            Err(e) => {
                sender.send(kind::REFUSED, &[&call::write_failure(&e)])?;
                Err(e.context("a node may not join"))
            }
        }
    }

    fn ended(&self, number: u64) {
        let mut state = self.state.lock();
        if let Some(entry) = state.connections.get_mut(&number) {
            entry.running = false;
            if entry.closer.is_gone() {
                state.connections.remove(&number);
            }
        }
    }

    /// Logs why a connection was closed, once for each address and minute.
    fn log(&self, address: IpAddr, error: &Error) {
        let now = now();
        {
            let mut state = self.state.lock();
            if state.stopping {
                return;
            }
            state.logged.retain(|_, at| now.duration_since(*at) < LOG_EVERY);
            if state.logged.len() >= LOGGED_MAX || state.logged.contains_key(&address) {
                return;
            }
            state.logged.insert(address, now);
        }
        tracing::warn!("a cluster connection from {address} was closed: {error}");
    }
}

/// Notes the end of a connection's thread, however it ends.
struct Running<'a> {
    inner: &'a Inner,
    number: u64,
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.inner.ended(self.number);
    }
}

/// Whose share an address counts to: one machine commonly has 2^64 addresses of the sixth version.
fn share_of(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        v4 @ IpAddr::V4(_) => v4,
        IpAddr::V6(v6) => IpAddr::V6(Ipv6Addr::from(u128::from(v6) & !u128::from(u64::MAX))),
    }
}
