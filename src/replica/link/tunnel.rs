//! Tunnels: the bytes of a client's connection, carried over a link to the node that serves it.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::Duration;

use super::{Link, LinkReceiver, LinkSender, kind};
use crate::error::{Error, ErrorKind, Result};
use crate::replica::timing::Timing;

/// Bytes that are read from the stream at once, and the most in one frame.
const PIECE_BYTES: usize = 64 << 10;

/// How often a tunnel of which one direction has ended looks whether the other one has.
const HALF_OPEN_LOOK: Duration = Duration::from_millis(200);

/// A socket that can be carried: read by one thread while another one writes it.
pub trait TunnelStream: Read + Write + Send + Sized {
    /// The same socket for another thread.
    ///
    /// # Errors
    /// Where the process has too many open files.
    fn another(&self) -> io::Result<Self>;

    /// Ends one direction, or both.
    ///
    /// # Errors
    /// Where the other end was faster.
    fn end(&self, how: Shutdown) -> io::Result<()>;
}

impl TunnelStream for TcpStream {
    fn another(&self) -> io::Result<TcpStream> {
        self.try_clone()
    }

    fn end(&self, how: Shutdown) -> io::Result<()> {
        self.shutdown(how)
    }
}

impl TunnelStream for UnixStream {
    fn another(&self) -> io::Result<UnixStream> {
        self.try_clone()
    }

    fn end(&self, how: Shutdown) -> io::Result<()> {
        self.shutdown(how)
    }
}

/// Carries bytes both ways until both directions have ended, each of them by itself, or one has failed: then both ends
/// are closed. A client that does not read holds up its own tunnel, for `Timing::tunnel_lost_after` at most: from here it
/// looks like a peer that has vanished. Whoever must cut a tunnel (when the primary changes) keeps the link's closer.
///
/// # Errors
/// `Unreachable` where the link or the stream was lost, `Invalid` for a frame that does not belong into a tunnel.
pub fn tunnel(link: Link, stream: impl TunnelStream) -> Result<()> {
    tunnel_within(link, stream, Timing::default().tunnel_lost_after)
}

/// As `tunnel`, with another time within which the peer must take something of what it is sent.
///
/// # Errors
/// As `tunnel`.
pub fn tunnel_within(link: Link, stream: impl TunnelStream, lost_after: Duration) -> Result<()> {
    let closer = link.closer();
    let (sender, mut receiver) = link.split();
    sender.wait_for(lost_after)?;
    let mut reading = stream.another().map_err(lost)?;
    let mut stream = stream;
    thread::scope(|scope| {
        let outward = thread::Builder::new().name("tunnel".to_owned()).spawn_scoped(scope, || {
            let done = outward(&mut reading, &sender);
            if done.is_err() {
                closer.close();
            }
            done
        });
        let outward = outward.map_err(lost)?;
        let inward = inward(&mut receiver, &mut stream);
        let mut failed = inward.is_err();
        // The peer's direction has ended; an end of the link must still wake whoever reads the stream.
        while !failed && !outward.is_finished() {
            failed = !matches!(receiver.receive(Some(HALF_OPEN_LOOK)), Ok(None));
        }
        if failed {
            closer.close();
            let _ = stream.end(Shutdown::Both);
        }
        let outward = outward
            .join()
            .unwrap_or_else(|_| Err(Error::new(ErrorKind::Unreachable, "a tunnel's thread has ended")));
        inward.and(outward)
    })
}

fn outward(stream: &mut impl Read, sender: &LinkSender) -> Result<()> {
    let mut piece = vec![0u8; PIECE_BYTES];
    loop {
        match stream.read(&mut piece) {
            Ok(0) => return sender.send(kind::END, &[]),
            Ok(read) => sender.send(kind::DATA, &[&piece[..read]])?,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(lost(e)),
        }
    }
}

fn inward(receiver: &mut LinkReceiver, stream: &mut impl TunnelStream) -> Result<()> {
    loop {
        let Some(frame) = receiver.receive(None)? else { continue };
        match frame.kind {
            kind::DATA => stream.write_all(&frame.body).map_err(lost)?,
            kind::END => {
                // The client may be gone already; its own direction says so.
                let _ = stream.end(Shutdown::Write);
                return Ok(());
            }
            other => {
                let what = format!("a frame of kind {other} does not belong into a tunnel");
                return Err(Error::new(ErrorKind::Invalid, what));
            }
        }
    }
}

fn lost(error: io::Error) -> Error {
    Error::caused(ErrorKind::Unreachable, "a tunnel was lost", error)
}
