//! Listening, limits, and the life of the server's threads.

use std::collections::HashMap;
use std::io::{self, IoSlice};
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{Builder, JoinHandle};
use std::time::{Duration, Instant};

use super::ExportSource;
use super::budget::RequestBudget;
use super::clock::now;
use super::connection::{Connection, RECEIVE_PATIENCE, Shared};
use super::handshake::{Handshake, Negotiated, OPTION_DATA_BYTES_MAX, Step};
use super::socket::{Bell, Received, Socket};
use super::statistics::NbdStatistics;
use super::watch::{self, Watch};
use super::wire::options::SessionId;
use super::workers::{self, WorkQueue};
use crate::array::service::BlockService;
use crate::error::{Error, ErrorKind, Result};
use crate::sync::{Condition, Mutex};
use crate::units::ByteCount;

/// A blocking receive of the handshake gives up after this time, so that time limits are looked at.
const RECEIVE_LIMIT: Duration = Duration::from_secs(30);

/// After a failed accept (no descriptors left, say) the listener rests for so long.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// How long a session's new connection waits for the end of the former one.
const FORMER_MAX: Duration = Duration::from_secs(10);

/// Only the owner may connect, until there are users and permissions of our own.
const UNIX_SOCKET_MODE: u32 = 0o600;

/// Limits of a server.
#[derive(Clone, Debug)]
pub struct ServerOptions {
    /// Connections at one time; more are closed at once.
    pub connections_max: usize,
    /// Memory for payloads in flight, over all connections; at least `REQUEST_BUDGET_MIN`.
    pub request_budget: ByteCount,
    /// Threads for what may have to wait: as many cold reads overlap.
    pub workers: usize,
    /// A handshake must be over by then.
    pub handshake_limit: Duration,
    /// A client that reads nothing for so long, while replies wait for it, is cut off.
    pub send_limit: Duration,
}

impl Default for ServerOptions {
    fn default() -> ServerOptions {
        ServerOptions {
            connections_max: 1024,
            request_budget: ByteCount(64 << 20),
            workers: 16,
            handshake_limit: Duration::from_secs(60),
            send_limit: Duration::from_secs(30),
        }
    }
}

/// A bound socket, ready to accept.
#[derive(Debug)]
pub struct Listener(Bound);

#[derive(Debug)]
enum Bound {
    Tcp(TcpListener),
    Unix { listener: UnixListener, _file: SocketFile },
}

impl Listener {
    /// Listens on a TCP address; port 0 takes a free one.
    ///
    /// # Errors
    /// `Busy` where the address is in use, `Invalid` where it cannot be bound for another reason.
    pub fn tcp(address: SocketAddr) -> Result<Listener> {
        let failed = |error: io::Error| {
            let in_use = error.kind() == io::ErrorKind::AddrInUse;
            let kind = if in_use { ErrorKind::Busy } else { ErrorKind::Invalid };
            Error::caused(kind, format!("cannot listen for NBD on {address}"), error)
        };
        Ok(Listener(Bound::Tcp(TcpListener::bind(address).map_err(failed)?)))
    }

    /// Listens on a Unix socket that only this user may connect to. A socket that a dead server has
    /// left behind is replaced; nothing else ever is.
    ///
    /// # Errors
    /// `Busy` where a server listens there, `Exists` where the path is no socket, `Invalid` where
    /// it cannot be bound for another reason.
    pub fn unix(path: &Path) -> Result<Listener> {
        let shown = path.display();
        let failed = |error: io::Error| cannot_listen(path, error);
        if check_socket_path(path)? == SocketPath::Stale {
            std::fs::remove_file(path).map_err(|error| {
                Error::caused(ErrorKind::Invalid, format!("cannot replace {shown}"), error)
            })?;
        }
        let listener = UnixListener::bind(path).map_err(failed)?;
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(UNIX_SOCKET_MODE)).map_err(failed)?;
        let metadata = std::fs::symlink_metadata(path).map_err(failed)?;
        let file = SocketFile { path: path.to_owned(), identity: (metadata.dev(), metadata.ino()) };
        Ok(Listener(Bound::Unix { listener, _file: file }))
    }

    /// The TCP address, with the port that was taken; `None` for a Unix socket.
    #[must_use]
    pub fn tcp_address(&self) -> Option<SocketAddr> {
        match &self.0 {
            Bound::Tcp(listener) => listener.local_addr().ok(),
            Bound::Unix { .. } => None,
        }
    }

    fn accept(&self) -> io::Result<Socket> {
        match &self.0 {
            Bound::Tcp(listener) => Socket::from_tcp(listener.accept()?.0),
            Bound::Unix { listener, .. } => Socket::from_unix(listener.accept()?.0),
        }
    }

    /// Wakes the thread that accepts.
    fn close(&self) {
        // It fails only where the socket is closed already.
        let _ = match &self.0 {
            Bound::Tcp(listener) => rustix::net::shutdown(listener, rustix::net::Shutdown::Both),
            Bound::Unix { listener, .. } => rustix::net::shutdown(listener, rustix::net::Shutdown::Both),
        };
    }
}

/// The file of a Unix socket; removed with its listener, if it is still the same file.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: (u64, u64),
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let Ok(metadata) = std::fs::symlink_metadata(&self.path) else { return };
        if (metadata.dev(), metadata.ino()) == self.identity {
            // A file that cannot be removed is found stale by the next server.
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

/// What lies where a Unix socket is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketPath {
    /// Nothing.
    Free,
    /// A socket at which nobody listens any more.
    Stale,
}

/// Whether a server can listen on a Unix socket at `path`, as far as that shows without changing anything.
///
/// # Errors
/// `Exists` when something else than a socket is there; `Busy` when another server listens there; `Invalid`
/// when the path is too long, or its directory is missing.
pub fn check_socket_path(path: &Path) -> Result<SocketPath> {
    let shown = path.display();
    std::os::unix::net::SocketAddr::from_pathname(path).map_err(|error| cannot_listen(path, error))?;
    let Ok(metadata) = std::fs::symlink_metadata(path) else {
        let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
        std::fs::metadata(directory.unwrap_or(Path::new("."))).map_err(|error| cannot_listen(path, error))?;
        return Ok(SocketPath::Free);
    };
    if !metadata.file_type().is_socket() {
        return Err(Error::new(ErrorKind::Exists, format!("{shown} exists and is not a socket")));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(SocketPath::Stale),
        _ => Err(Error::new(ErrorKind::Busy, format!("another server listens on {shown}"))),
    }
}

fn cannot_listen(path: &Path, error: io::Error) -> Error {
    Error::caused(ErrorKind::Invalid, format!("cannot listen for NBD on {}", path.display()), error)
}

/// A running server.
pub struct Server {
    inner: Arc<Inner>,
    listeners: Vec<Arc<Listener>>,
    acceptors: Vec<JoinHandle<()>>,
    helpers: Vec<JoinHandle<()>>,
}

struct Inner {
    shared: Arc<Shared>,
    exports: Arc<dyn ExportSource>,
    stopping: AtomicBool,
    open: Mutex<Open>,
    changed: Condition,
}

#[derive(Default)]
struct Open {
    last_id: u64,
    connections: HashMap<u64, Entry>,
}

/// An open connection as the server sees it.
struct Entry {
    socket: Arc<Socket>,
    stopping: Arc<AtomicBool>,
    /// The export's own name and what serves it, once the handshake is over.
    export: Option<(String, Arc<dyn BlockService>)>,
    /// The session that it belongs to, if its client has one.
    session: Option<SessionId>,
}

impl Entry {
    /// Whether the connection has an export, and that is as asked for.
    fn serves(&self, wanted: impl FnOnce(&str, &dyn BlockService) -> bool) -> bool {
        self.export.as_ref().is_some_and(|(name, service)| wanted(name, &**service))
    }

    /// Lets the connection end after the requests that its client has sent. The bell wakes its thread.
    fn finish(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        if self.export.is_none() {
            self.socket.shutdown(Shutdown::Read);
        }
    }

    /// Lets the connection end after the requests it has received; what the client goes on sending fails.
    fn stop(&self) {
        self.stopping.store(true, Ordering::Relaxed);
        self.socket.shutdown(Shutdown::Read);
    }
}

impl Server {
    /// Starts serving on all the listeners.
    ///
    /// # Errors
    /// `Busy` where threads or descriptors cannot be had.
    pub fn start(
        exports: Arc<dyn ExportSource>,
        listeners: Vec<Listener>,
        options: ServerOptions,
    ) -> Result<Server> {
        let failed = |error: io::Error| Error::caused(ErrorKind::Busy, "cannot start the NBD server", error);
        let queue = Arc::new(WorkQueue::new());
        let watch = Arc::new(Watch::new().map_err(failed)?);
        let shared = Shared {
            budget: RequestBudget::new(options.request_budget),
            queue: Arc::clone(&queue),
            watch: Arc::clone(&watch),
            end: Bell::new().map_err(failed)?,
            statistics: Arc::default(),
            options,
        };
        let workers = shared.options.workers.max(1);
        let inner = Arc::new(Inner {
            shared: Arc::new(shared),
            exports,
            stopping: AtomicBool::new(false),
            open: Mutex::default(),
            changed: Condition::new(),
        });
        // Made before the threads: should one of them not start, dropping it stops the others.
        let mut server = Server {
            inner: Arc::clone(&inner),
            listeners: listeners.into_iter().map(Arc::new).collect(),
            acceptors: Vec::new(),
            helpers: workers::start(&queue, workers).map_err(failed)?,
        };
        server.helpers.push(watch::start(&watch, &queue).map_err(failed)?);
        for listener in &server.listeners {
            let (inner, listener) = (Arc::clone(&inner), Arc::clone(listener));
            let acceptor = Builder::new().name("nbd-accept".to_owned());
            server.acceptors.push(acceptor.spawn(move || inner.accept_all(&listener)).map_err(failed)?);
        }
        Ok(server)
    }

    /// The TCP addresses that are listened on.
    #[must_use]
    pub fn tcp_addresses(&self) -> Vec<SocketAddr> {
        self.listeners.iter().filter_map(|listener| listener.tcp_address()).collect()
    }

    /// The counters.
    #[must_use]
    pub fn statistics(&self) -> Arc<NbdStatistics> {
        Arc::clone(&self.inner.shared.statistics)
    }

    /// How many clients are connected to the export of that name.
    #[must_use]
    pub fn connections_to(&self, export: &str) -> usize {
        let open = self.inner.open.lock();
        open.connections.values().filter(|entry| entry.serves(|name, _| name == export)).count()
    }

    /// Lets all clients of an export go, after the requests that have been received from them.
    /// Returns without waiting for it.
    pub fn disconnect(&self, export: &str) {
        let open = self.inner.open.lock();
        open.connections
            .values()
            .filter(|entry| entry.serves(|name, _| name == export))
            .for_each(Entry::stop);
    }

    /// Lets all clients go whose export has been deleted. Returns without waiting for it.
    pub fn disconnect_deleted(&self) {
        self.disconnector()();
    }

    /// The same as a function that may outlive the server, and then does nothing.
    pub fn disconnector(&self) -> impl Fn() + Send + Sync + use<> {
        let inner = Arc::downgrade(&self.inner);
        move || {
            let Some(inner) = inner.upgrade() else { return };
            let open = inner.open.lock();
            let gone =
                open.connections.values().filter(|entry| entry.serves(|_, service| service.is_deleted()));
            gone.for_each(Entry::stop);
        }
    }

    /// Cuts all connections, whatever is under way on them: as a function that may outlive the server, and then does
    /// nothing. For a server whose clients are to look for another one.
    pub fn cutter(&self) -> impl Fn() + Send + Sync + use<> {
        let inner = Arc::downgrade(&self.inner);
        move || {
            let Some(inner) = inner.upgrade() else { return };
            inner.open.lock().connections.values().for_each(|entry| entry.socket.shutdown(Shutdown::Both));
        }
    }

    /// Stops accepting, lets the requests in flight finish for at most `limit`, and closes all
    /// connections. False where some had to be cut off.
    pub fn stop(mut self, limit: Duration) -> bool {
        self.shut_down(limit)
    }

    fn shut_down(&mut self, limit: Duration) -> bool {
        let inner = Arc::clone(&self.inner);
        inner.stopping.store(true, Ordering::SeqCst);
        inner.changed.notify_all();
        self.listeners.iter().for_each(|listener| listener.close());
        join(&mut self.acceptors);
        self.listeners.clear();
        inner.open.lock().connections.values().for_each(Entry::finish);
        inner.shared.end.ring();
        let drained = inner.wait_until_empty(limit);
        if !drained {
            inner.open.lock().connections.values().for_each(|entry| entry.socket.shutdown(Shutdown::Both));
            // What a connection's thread now waits for is in the array's hands.
            inner.wait_until_empty(RECEIVE_LIMIT);
        }
        inner.shared.queue.close();
        inner.shared.watch.close();
        join(&mut self.helpers);
        drained
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if !self.helpers.is_empty() {
            self.shut_down(Duration::ZERO);
        }
    }
}

fn join(threads: &mut Vec<JoinHandle<()>>) {
    for thread in threads.drain(..) {
        // A thread that panicked has said so; there is nothing to add.
        let _ = thread.join();
    }
}

impl Inner {
    fn accept_all(self: &Arc<Self>, listener: &Listener) {
        while !self.stopping.load(Ordering::SeqCst) {
            match listener.accept() {
                Ok(socket) => self.admit(socket),
                Err(_) => self.rest(),
            }
        }
    }

    /// Waits a little, or until the server stops.
    fn rest(&self) {
        let open = self.open.lock();
        if !self.stopping.load(Ordering::SeqCst) {
            drop(self.changed.wait_for(open, ACCEPT_PAUSE));
        }
    }

    /// Gives the connection a thread, or closes it.
    fn admit(self: &Arc<Self>, socket: Socket) {
        let statistics = &self.shared.statistics;
        statistics.connections_accepted.fetch_add(1, Ordering::Relaxed);
        let socket = Arc::new(socket);
        let stopping = Arc::new(AtomicBool::new(false));
        let mut open = self.open.lock();
        if open.connections.len() >= self.shared.options.connections_max
            || self.stopping.load(Ordering::SeqCst)
        {
            statistics.connections_refused.fetch_add(1, Ordering::Relaxed);
            return;
        }
        open.last_id += 1;
        let id = open.last_id;
        let entry = Entry {
            socket: Arc::clone(&socket),
            stopping: Arc::clone(&stopping),
            export: None,
            session: None,
        };
        open.connections.insert(id, entry);
        statistics.connections.fetch_add(1, Ordering::Relaxed);
        drop(open);
        let inner = Arc::clone(self);
        let spawned = Builder::new().name(format!("nbd-{id}")).spawn(move || {
            // Removes the entry also where serving panics.
            let left = Left { inner: Arc::clone(&inner), id };
            inner.serve(id, &socket, stopping);
            drop(left);
        });
        if spawned.is_err() {
            statistics.connections_refused.fetch_add(1, Ordering::Relaxed);
            self.remove(id);
        }
    }

    fn remove(&self, id: u64) {
        let mut open = self.open.lock();
        if open.connections.remove(&id).is_some() {
            self.shared.statistics.connections.fetch_sub(1, Ordering::Relaxed);
            self.changed.notify_all();
        }
    }

    fn serve(&self, id: u64, socket: &Arc<Socket>, stopping: Arc<AtomicBool>) {
        if let Some(pass_on) = self.exports.pass_on() {
            if let Ok(stream) = socket.stream() {
                pass_on(stream);
            }
            socket.shutdown(Shutdown::Both);
            return;
        }
        if socket.set_receive_limit(RECEIVE_LIMIT.min(self.shared.options.handshake_limit)).is_err() {
            return;
        }
        let Some((negotiated, received)) = self.shake_hands(id, socket) else { return };
        if socket.set_receive_limit(RECEIVE_PATIENCE).is_err() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let connection = Connection::new(id, Arc::clone(socket), negotiated, shared, stopping, &received);
        if self.shared.watch.enter(&connection).is_ok() {
            connection.serve();
        }
        self.shared.watch.leave(&connection);
    }

    /// Brings the handshake to its end: what was agreed on, and the bytes that came after it.
    fn shake_hands(&self, id: u64, socket: &Socket) -> Option<(Negotiated, Vec<u8>)> {
        let deadline = now() + self.shared.options.handshake_limit;
        let mut handshake = Handshake::default();
        let mut output = Handshake::greeting().to_vec();
        let mut input = Vec::new();
        let mut chunk = vec![0; 4096];
        loop {
            let agreed = loop {
                match handshake.step(&input, &mut output, &*self.exports) {
                    Step::More => break None,
                    Step::Taken(bytes) => {
                        input.drain(..bytes);
                        // Answers may be longer than questions: they do not pile up.
                        if output.len() > OPTION_DATA_BYTES_MAX {
                            break None;
                        }
                    }
                    Step::Go(bytes, negotiated) => {
                        input.drain(..bytes);
                        if let Some(session) = negotiated.contexts.session()
                            && !self.end_former(id, session)
                        {
                            return None;
                        }
                        // Before the client hears of it: from then on it counts as connected.
                        if let Some(entry) = self.open.lock().connections.get_mut(&id) {
                            entry.export = Some((negotiated.name.clone(), Arc::clone(&negotiated.service)));
                        }
                        break Some(negotiated);
                    }
                    Step::Close => {
                        send_all(socket, &output, deadline);
                        return None;
                    }
                }
            };
            if !send_all(socket, &output, deadline) {
                return None;
            }
            if let Some(negotiated) = agreed {
                return Some((*negotiated, input));
            }
            if std::mem::take(&mut output).len() > OPTION_DATA_BYTES_MAX {
                continue;
            }
            let Received::Bytes(count) = socket.receive(&mut chunk, true) else { return None };
            input.extend_from_slice(&chunk[..count]);
            // A step takes any complete option, and refuses longer ones by their heads.
            debug_assert!(input.len() <= OPTION_DATA_BYTES_MAX + 2 * chunk.len());
            if now() > deadline {
                return None;
            }
        }
    }

    /// Cuts the former connections of a session and waits until nothing that came on them can be executed any more;
    /// false where that takes too long. The client sends the same requests again, and newer ones behind them.
    fn end_former(&self, id: u64, session: SessionId) -> bool {
        let deadline = now() + FORMER_MAX;
        let mut open = self.open.lock();
        if let Some(entry) = open.connections.get_mut(&id) {
            entry.session = Some(session);
        }
        loop {
            let mut former = open
                .connections
                .iter()
                .filter(|(other, entry)| **other < id && entry.session == Some(session))
                .peekable();
            if former.peek().is_none() {
                return true;
            }
            former.for_each(|(_, entry)| entry.socket.shutdown(Shutdown::Both));
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() || self.stopping.load(Ordering::SeqCst) {
                return false;
            }
            open = self.changed.wait_for(open, left);
        }
    }

    /// Waits until all connections are closed; false where some are not after `limit`.
    fn wait_until_empty(&self, limit: Duration) -> bool {
        let deadline = now() + limit;
        let mut open = self.open.lock();
        while !open.connections.is_empty() {
            let left = deadline.saturating_duration_since(now());
            if left.is_zero() {
                return false;
            }
            open = self.changed.wait_for(open, left);
        }
        true
    }
}

/// Takes a connection off the list when its thread ends.
struct Left {
    inner: Arc<Inner>,
    id: u64,
}

impl Drop for Left {
    fn drop(&mut self) {
        self.inner.remove(self.id);
    }
}

fn send_all(socket: &Socket, mut bytes: &[u8], deadline: Instant) -> bool {
    while !bytes.is_empty() {
        match socket.send(&[IoSlice::new(bytes)]) {
            Err(_) => return false,
            Ok(0) if !socket.wait_writable(deadline.saturating_duration_since(now())) => return false,
            Ok(sent) => bytes = &bytes[sent..],
        }
    }
    true
}
