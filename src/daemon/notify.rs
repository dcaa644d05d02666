//! Telling a service manager how far the daemon is: the protocol of systemd's sd_notify(3), datagrams of
//! `KEY=value` lines to the socket that `NOTIFY_SOCKET` names.
//!
//! Nobody needs to listen: a message that cannot be sent is a line in the log, and changes nothing else.

use std::ffi::OsStr;
use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::time::Duration;

/// The variable that names the socket.
pub(super) const VARIABLE: &str = "NOTIFY_SOCKET";

/// Longest wait for a manager whose queue is full.
const SEND_MAX: Duration = Duration::from_secs(5);

/// What the manager is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State<'a> {
    /// Not ready yet; what is being done.
    Starting(&'a str),
    /// The start is over: clients are served; what there is to say of it.
    Ready(&'a str),
    /// The end has begun; what is being done.
    Stopping(&'a str),
}

/// The way to the service manager, if there is one.
pub(super) struct Notifier {
    to: Option<(UnixDatagram, SocketAddr)>,
}

impl Notifier {
    /// The way to the socket of this name, which is a path, or `@` and an abstract name; without a name,
    /// nobody is told anything.
    pub(super) fn new(name: Option<&OsStr>) -> Notifier {
        let to = name.filter(|name| !name.is_empty()).and_then(|name| match open(name) {
            Ok(to) => Some(to),
            Err(error) => {
                tracing::warn!("{VARIABLE} is {}: nobody is told of the start: {error}", name.display());
                None
            }
        });
        Notifier { to }
    }

    /// Tells the manager.
    pub(super) fn tell(&self, state: State<'_>) {
        let Some((socket, address)) = &self.to else { return };
        if let Err(error) = socket.send_to_addr(message(state).as_bytes(), address) {
            tracing::warn!("telling the service manager: {error}");
        }
    }
}

fn open(name: &OsStr) -> io::Result<(UnixDatagram, SocketAddr)> {
    let address = match name.as_bytes() {
        [b'@', name @ ..] => SocketAddr::from_abstract_name(name)?,
        [b'/', ..] => SocketAddr::from_pathname(name)?,
        _ => return Err(io::Error::new(io::ErrorKind::Unsupported, "neither a path nor an abstract name")),
    };
    let socket = UnixDatagram::unbound()?;
    socket.set_write_timeout(Some(SEND_MAX))?;
    Ok((socket, address))
}

fn message(state: State<'_>) -> String {
    let (first, status) = match state {
        State::Starting(status) => ("", status),
        State::Ready(status) => ("READY=1\n", status),
        State::Stopping(status) => ("STOPPING=1\n", status),
    };
    // A line end within the status would begin another assignment.
    format!("{first}STATUS={}", status.replace(char::is_control, " "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_is_one_line_whatever_it_says() {
        assert_eq!(message(State::Starting("opening")), "STATUS=opening");
        assert_eq!(message(State::Ready("a\nREADY=0\u{1b}[1m")), "READY=1\nSTATUS=a READY=0 [1m");
        assert_eq!(message(State::Stopping("bye")), "STOPPING=1\nSTATUS=bye");
    }

    #[test]
    fn names_of_other_kinds_and_sockets_that_are_gone_change_nothing() {
        for name in ["vsock:2:1", "relative/path", "", "/nonexistent/notify", "@sinter-nobody-listens"] {
            Notifier::new(Some(OsStr::new(name))).tell(State::Ready("ready"));
        }
        Notifier::new(None).tell(State::Ready("ready"));
    }
}
