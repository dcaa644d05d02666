//! Connecting to an NBD server, within time limits where that is asked for.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::net::sockopt;

use crate::error::{Error, ErrorKind, Result};

/// Where a server listens.
#[derive(Clone, Debug)]
pub enum Address {
    /// TCP.
    Tcp(SocketAddr),
    /// A Unix socket.
    Unix(PathBuf),
}

/// How long to wait for the other side; without limits, for ever.
#[derive(Clone, Copy, Debug, Default)]
pub struct Patience {
    /// Until there is a connection.
    pub connect: Option<Duration>,
    /// For each part of an answer once it was begun, and for room to send.
    pub progress: Option<Duration>,
    /// How long a machine may be silent at the level of TCP before it counts as gone.
    pub silence: Option<Duration>,
}

impl Patience {
    /// Makes a connection keep the limits that are looked at while it lasts: how long each part may take.
    ///
    /// # Errors
    /// `Unreachable` where the operating system does not take them.
    pub fn limit(&self, stream: &TcpStream) -> Result<()> {
        let limited =
            stream.set_read_timeout(self.progress).and_then(|()| stream.set_write_timeout(self.progress));
        limited.map_err(|error| Error::caused(ErrorKind::Unreachable, "limiting how long it may take", error))
    }
}

/// Connects. A Unix socket is given as the same type: what is asked of it is the same.
///
/// # Errors
/// `Unreachable` where nothing answers.
pub(super) fn dial(address: &Address, patience: &Patience) -> Result<TcpStream> {
    open(address, patience).map_err(|error| {
        let what = match address {
            Address::Tcp(address) => format!("cannot connect to NBD at {address}"),
            Address::Unix(path) => format!("cannot connect to NBD at {}", path.display()),
        };
        Error::caused(ErrorKind::Unreachable, what, error)
    })
}

fn open(address: &Address, patience: &Patience) -> io::Result<TcpStream> {
    let stream = match address {
        Address::Tcp(address) => {
            let stream = match patience.connect {
                Some(limit) => TcpStream::connect_timeout(address, limit)?,
                None => TcpStream::connect(address)?,
            };
            stream.set_nodelay(true)?;
            if let Some(silence) = patience.silence {
                notice_silence(&stream, silence)?;
            }
            stream
        }
        Address::Unix(path) => TcpStream::from(OwnedFd::from(UnixStream::connect(path)?)),
    };
    stream.set_read_timeout(patience.progress)?;
    stream.set_write_timeout(patience.progress)?;
    Ok(stream)
}

/// What was sent must be confirmed in time, and while nothing is sent the other machine is asked for a sign.
fn notice_silence(stream: &TcpStream, silence: Duration) -> io::Result<()> {
    let milliseconds = u32::try_from(silence.as_millis()).unwrap_or(u32::MAX);
    sockopt::set_tcp_user_timeout(stream, milliseconds)?;
    sockopt::set_socket_keepalive(stream, true)?;
    sockopt::set_tcp_keepidle(stream, Duration::from_secs(1))?;
    sockopt::set_tcp_keepintvl(stream, Duration::from_secs(1))?;
    Ok(sockopt::set_tcp_keepcnt(stream, 3)?)
}
