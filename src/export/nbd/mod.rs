//! The NBD server: volumes as network block devices, on TCP and Unix sockets.
//!
//! One thread a connection receives. Small requests that wait together in its buffer are executed
//! there, made safe with one call and answered with one send. What may have to wait (cold reads,
//! FLUSH, FUA, large requests) goes to a pool of workers shared by all connections, so that it
//! holds up nothing else; only when it is all there is to do does the connection's own thread
//! execute it, because at depth 1 the hand-over to another thread costs more than the request.
//! Replies leave in the order in which they become ready.
//!
//! Promised: whatever a client sends, it gets the protocol's error or a closed connection; memory
//! for requests stays within one budget (`RequestBudget`), and a connection that finds it full
//! stops reading; a client that does not read its replies holds up nobody but itself.
//!
//! Never: it knows neither names' meaning nor how blocks are kept, only `ExportSource` and
//! `BlockService`; it answers nothing that `acknowledge` or `make_durable` has not confirmed.

mod budget;
pub mod client;
mod connection;
mod contexts;
pub mod dial;
mod errors;
mod execute;
mod group;
pub mod handshake;
pub mod line;
mod outgoing;
mod receiver;
mod request;
mod server;
mod socket;
mod statistics;
mod watch;
pub mod wire;
mod workers;

use std::sync::Arc;

use crate::array::service::{BlockService, ChangeSource, SessionTerms};
use crate::error::{Error, ErrorKind, Result};
use crate::export::clock;
use crate::units::SessionId;

pub use budget::REQUEST_BUDGET_MIN;
pub use contexts::Contexts;
pub use errors::Errno;
pub use server::{Listener, Server, ServerOptions, SocketPath, check_socket_path};
pub use statistics::{NbdStatistics, Operation};

/// One line of the list of exports.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExportEntry {
    /// What a client asks for.
    pub name: String,
    /// For human beings; may be empty.
    pub description: String,
}

/// Takes a connection that is served elsewhere: the socket, TCP or Unix, as a stream.
pub type PassOn = Box<dyn FnOnce(std::net::TcpStream) + Send>;

/// Where exports come from. Asked anew by every handshake, so that new volumes appear and a new
/// size is seen by the next connection.
pub trait ExportSource: Send + Sync {
    /// What is to become of a new connection that is not for this server: it is called on a thread of its own with
    /// the connection, before anything was said, and whatever it does the connection ends with it.
    fn pass_on(&self) -> Option<PassOn> {
        None
    }

    /// All exports that a client may list.
    fn list(&self) -> Vec<ExportEntry>;

    /// The export of that name. (The empty name never gets here: it stands for the only export
    /// where there is just one, and is refused otherwise.)
    ///
    /// # Errors
    /// `NotFound`; what else keeps it from being served, such as `NotPrimary`.
    fn open(&self, name: &str) -> Result<Arc<dyn BlockService>>;

    /// What is told a client that goes on with its requests.
    fn session_terms(&self, _session: SessionId) -> SessionTerms {
        SessionTerms::default()
    }

    /// The names of the snapshots that the export of that name can be compared with.
    fn snapshots(&self, _export: &str) -> Vec<String> {
        Vec::new()
    }

    /// What the export holds otherwise than a snapshot: of the same volume by name or id, of another one as
    /// `VOLUME@SNAPSHOT`.
    ///
    /// # Errors
    /// `NotFound`; what else keeps them from being compared.
    fn changes(&self, _export: &str, since: &str) -> Result<Arc<dyn ChangeSource>> {
        Err(Error::new(ErrorKind::NotFound, format!("there is no snapshot {since} to compare with")))
    }
}
