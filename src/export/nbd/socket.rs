//! A connected socket, TCP or Unix alike.

use std::io::{self, IoSlice};
use std::net::{Shutdown, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, SendAncillaryBuffer, SendFlags, recv, sendmsg, sockopt};

const KEEPALIVE_IDLE: Duration = Duration::from_secs(60);

/// Send buffer asked of the operating system, in bytes: a reply of 1 MiB should leave in few calls.
const SEND_BUFFER_BYTES: usize = 1 << 20;

/// A connected stream socket in blocking mode.
#[derive(Debug)]
pub(super) struct Socket(OwnedFd);

/// Once rung, it wakes all who wait with it, and whoever comes to wait later does not begin to.
#[derive(Debug)]
pub(super) struct Bell(OwnedFd);

impl Bell {
    pub(super) fn new() -> io::Result<Bell> {
        Ok(Bell(eventfd(0, EventfdFlags::CLOEXEC)?))
    }

    pub(super) fn ring(&self) {
        // The counter cannot overflow by one ring.
        let _ = rustix::io::write(&self.0, &[1; 8]);
    }
}

/// What receiving gave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Received {
    /// So many bytes, at least one.
    Bytes(usize),
    /// Nothing is there (in time).
    Nothing,
    /// The other side has closed, or the connection is broken.
    Closed,
}

impl Socket {
    /// Takes over a TCP connection: small replies leave at once, a vanished client is noticed.
    pub(super) fn from_tcp(stream: TcpStream) -> io::Result<Socket> {
        stream.set_nodelay(true)?;
        let socket = Socket(OwnedFd::from(stream));
        sockopt::set_socket_keepalive(&socket.0, true)?;
        sockopt::set_tcp_keepidle(&socket.0, KEEPALIVE_IDLE)?;
        Ok(socket)
    }

    /// Takes over a Unix connection.
    pub(super) fn from_unix(stream: UnixStream) -> io::Result<Socket> {
        let socket = Socket(OwnedFd::from(stream));
        // TCP sizes its buffers itself; a Unix socket keeps the small default.
        sockopt::set_socket_send_buffer_size(&socket.0, SEND_BUFFER_BYTES)?;
        Ok(socket)
    }

    /// The same socket as a stream: what is asked of it, reading, writing and shutting down, is the same for TCP and Unix
    /// sockets.
    pub(super) fn stream(&self) -> io::Result<TcpStream> {
        Ok(TcpStream::from(self.0.try_clone()?))
    }

    /// How long a blocking `receive` waits before it answers `Nothing`.
    pub(super) fn set_receive_limit(&self, limit: Duration) -> io::Result<()> {
        Ok(sockopt::set_socket_timeout(&self.0, sockopt::Timeout::Recv, Some(limit))?)
    }

    /// Receives into `buffer`, which must not be empty; waits for the first byte if `wait`.
    pub(super) fn receive(&self, buffer: &mut [u8], wait: bool) -> Received {
        let flags = if wait { RecvFlags::empty() } else { RecvFlags::DONTWAIT };
        match retry_on_intr(|| recv(&self.0, &mut *buffer, flags)) {
            Ok((0, _)) => Received::Closed,
            Ok((received, _)) => Received::Bytes(received),
            Err(Errno::AGAIN) => Received::Nothing,
            Err(_) => Received::Closed,
        }
    }

    /// Sends as much of the slices as fits without waiting; 0 where nothing does.
    pub(super) fn send(&self, slices: &[IoSlice<'_>]) -> io::Result<usize> {
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        match retry_on_intr(|| sendmsg(&self.0, slices, &mut SendAncillaryBuffer::default(), flags)) {
            Ok(sent) => Ok(sent),
            Err(Errno::AGAIN) => Ok(0),
            Err(error) => Err(error.into()),
        }
    }

    /// Waits until something can be sent (or the connection breaks); false after `limit`.
    pub(super) fn wait_writable(&self, limit: Duration) -> bool {
        let limit = Timespec::try_from(limit).ok();
        let mut descriptors = [PollFd::new(&self.0, PollFlags::OUT)];
        // An interrupted wait counts as a wake-up: the caller tries to send and asks again.
        !matches!(poll(&mut descriptors, limit.as_ref()), Ok(0))
    }

    /// Waits until there is something to receive, the other side has closed, or the bell is rung; for `limit` at
    /// most.
    pub(super) fn wait_readable(&self, bell: &Bell, limit: Duration) {
        let limit = Timespec::try_from(limit).ok();
        let mut descriptors = [PollFd::new(&self.0, PollFlags::IN), PollFd::new(&bell.0, PollFlags::IN)];
        // However it ends, the caller looks for itself.
        let _ = poll(&mut descriptors, limit.as_ref());
    }

    /// Ends receiving, or everything; a thread that waits on the socket wakes up.
    pub(super) fn shutdown(&self, how: Shutdown) {
        let how = match how {
            Shutdown::Read => rustix::net::Shutdown::Read,
            Shutdown::Write => rustix::net::Shutdown::Write,
            Shutdown::Both => rustix::net::Shutdown::Both,
        };
        // It fails only where the connection is gone already.
        let _ = rustix::net::shutdown(&self.0, how);
    }
}

impl AsFd for Socket {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}
