//! The NBD server over the array's volumes.

use std::collections::BTreeSet;
use std::path::Path;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::array::Array;
use crate::array::BlockService;
use crate::array::ChangeSource;
use crate::array::SessionTerms;
use crate::array::SnapshotWhich;
use crate::daemon::config::Config;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::uri::NbdEndpoint;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;
use crate::export::nbd::ExportEntry;
use crate::export::nbd::ExportSource;
use crate::export::nbd::Listener;
use crate::export::nbd::NbdStatistics;
use crate::export::nbd::PassOn;
use crate::export::nbd::Server;
use crate::export::nbd::ServerOptions;
use crate::export::nbd::check_socket_path;
use crate::units::SessionId;

/// How long requests in flight may take to finish when the daemon stops.
const DRAIN_MAX: Duration = Duration::from_secs(10);

/// The server, running.
pub(super) struct NbdServer {
    server: Server,
    endpoints: Vec<NbdEndpoint>,
}

impl NbdServer {
    /// Takes the Unix socket, if there is to be one, and starts serving there and on `tcp`.
    ///
    /// # Errors
    /// `Busy` or `Exists` where the socket's path is taken; `Invalid` where it cannot be bound.
    pub(super) fn start(
        config: &Config,
        tcp: Option<Listener>,
        socket: Option<PathBuf>,
        array: &Arc<Array>,
        pass_on: impl Fn() -> Option<PassOn> + Send + Sync + 'static,
    ) -> Outcome<NbdServer> {
        let mut listeners = Vec::new();
        let mut endpoints = Vec::new();
        if let Some(listener) = tcp {
            endpoints.extend(listener.tcp_address().map(NbdEndpoint::Tcp));
            listeners.push(listener);
        }
        if let Some(path) = socket {
            listeners.push(Listener::unix(&path).map_err(socket_hint)?);
            // Clients find the socket whatever directory they are in.
            endpoints.push(NbdEndpoint::Unix(std::path::absolute(&path).unwrap_or(path)));
        }
        let options = ServerOptions {
            connections_max: config.nbd_connections,
            request_budget: config.memory_requests,
            ..ServerOptions::default()
        };
        let server = Server::start(
            Arc::new(Volumes { array: array.clone(), pass_on: Box::new(pass_on) }),
            listeners,
            options,
        )?;
        Ok(NbdServer { server, endpoints })
    }

    /// Where it serves.
    pub(super) fn endpoints(&self) -> &[NbdEndpoint] {
        &self.endpoints
    }

    /// What it counts.
    pub(super) fn statistics(&self) -> Arc<NbdStatistics> {
        self.server.statistics()
    }

    /// Lets clients go whose volume or snapshot has been deleted, whenever it is called.
    pub(super) fn disconnector(&self) -> impl Fn() + Send + Sync + use<> {
        self.server.disconnector()
    }

    /// Cuts all connections, whenever it is called: their clients are to look for another node.
    pub(super) fn cutter(&self) -> impl Fn() + Send + Sync + use<> {
        self.server.cutter()
    }

    /// Stops accepting, lets requests in flight finish, and closes all connections.
    pub(super) fn stop(self) {
        if !self.server.stop(DRAIN_MAX) {
            tracing::warn!("some NBD requests did not finish in time and were cut off");
        }
    }
}

/// Takes a TCP port for NBD.
///
/// # Errors
/// `Busy` where it is taken; `Invalid` where it cannot be had for another reason.
pub(super) fn listen(address: std::net::SocketAddr) -> Outcome<Listener> {
    Listener::tcp(address).map_err(|error| match error.kind() {
        ErrorKind::Busy => {
            Failure::from(error).hint("--nbd ADDR:PORT takes another one, --nbd none leaves TCP out")
        }
        _ => error.into(),
    })
}

/// The Unix socket in a data directory.
pub(super) fn socket_in(data_directory: &Path) -> PathBuf {
    data_directory.join("nbd.sock")
}

/// Whether another daemon works in the data directory, as far as its socket says.
///
/// # Errors
/// `Busy` where one does.
pub(super) fn check_data_directory(path: &Path) -> Outcome {
    match check_socket_path(&socket_in(path)) {
        Err(error) if error.kind() == ErrorKind::Busy => {
            let what = format!("another `sinter serve` has the data directory {} in use", path.display());
            Err(Failure::new(ErrorKind::Busy, what)
                .hint("`sinter status` asks it; --data-dir DIR gives this one a place of its own"))
        }
        // What else is wrong with the socket's path is said when it is its turn.
        _ => Ok(()),
    }
}

/// Whether the Unix socket can be taken, before anything is written anywhere.
///
/// # Errors
/// As [`NbdServer::start`].
pub(super) fn check_socket(path: &Path) -> Outcome {
    check_socket_path(path).map(drop).map_err(socket_hint)
}

fn socket_hint(error: Error) -> Failure {
    let hint = match error.kind() {
        ErrorKind::Busy => "is another `sinter serve` running? --nbd-unix PATH puts the socket elsewhere",
        _ => "--nbd-unix PATH puts the socket elsewhere, --nbd-unix none leaves it out",
    };
    Failure::from(error).hint(hint)
}

/// The array's volumes as exports, and its snapshots as read-only ones.
struct Volumes {
    array: Arc<Array>,
    pass_on: Box<dyn Fn() -> Option<PassOn> + Send + Sync>,
}

impl ExportSource for Volumes {
    fn pass_on(&self) -> Option<PassOn> {
        (self.pass_on)()
    }

    fn list(&self) -> Vec<ExportEntry> {
        let volumes = self.array.volumes().into_iter();
        let volumes = volumes.map(|info| ExportEntry { name: info.name, description: info.description });
        let snapshots = self.array.snapshots().into_iter().map(|info| ExportEntry {
            name: format!("{}@{}", info.volume_name, info.name),
            description: info.description,
        });
        // Where two volumes of one name are gone, only the newest one's snapshot is meant by a name.
        let mut names = BTreeSet::new();
        volumes.chain(snapshots).filter(|entry| names.insert(entry.name.clone())).collect()
    }

    fn open(&self, name: &str) -> Result<Arc<dyn BlockService>> {
        self.array.takes_clients()?;
        Ok(self.array.open(name)?)
    }

    fn session_terms(&self, session: SessionId) -> SessionTerms {
        self.array.session_terms(session)
    }

    fn snapshots(&self, export: &str) -> Vec<String> {
        let volume = SnapshotWhich::parse(export).map_or(export, |which| which.volume);
        let snapshots = self.array.snapshots_of(volume).unwrap_or_default();
        snapshots.into_iter().map(|info| info.name).collect()
    }

    fn changes(&self, export: &str, since: &str) -> Result<Arc<dyn ChangeSource>> {
        let volume = SnapshotWhich::parse(export).map_or(export, |which| which.volume);
        let older = SnapshotWhich::parse(since).unwrap_or(SnapshotWhich { volume, snapshot: since });
        Ok(Arc::new(self.array.compare(older, export)?))
    }
}
