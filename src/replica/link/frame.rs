//! The two halves of a link, and frames on the wire: `len: u32, kind: u8, body` with `len` bytes of body.

use std::io::{BufRead as _, ErrorKind as IoErrorKind, IoSlice, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustls::Connection;

use super::{LinkCloser, now};
use crate::error::{Error, ErrorKind, Result};
use crate::sync::Mutex;

/// The longest body of a frame: 4 MiB of payload and room for what describes it.
pub const FRAME_BYTES_MAX: usize = (4 << 20) + (64 << 10);

const HEADER_BYTES: usize = 5;

/// How much is encrypted under one lock, and read from the socket at once.
const PIECE_BYTES: usize = 64 << 10;

/// The shortest wait that a socket can be told.
const WAIT_MIN: Duration = Duration::from_millis(1);

/// One message of a peer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Frame {
    /// What it is for.
    pub kind: u8,
    /// What it says.
    pub body: Vec<u8>,
}

#[derive(Debug)]
struct Shared {
    socket: Arc<TcpStream>,
    tls: Mutex<Connection>,
    /// Held while records are made and written, so that they leave in the order of their making. Taken before `tls`.
    /// Inside: room for the records.
    wire: Mutex<Vec<u8>>,
}

/// The halves over a connection whose handshake is complete.
pub(super) fn halves(socket: Arc<TcpStream>, mut tls: Connection) -> Result<(LinkSender, LinkReceiver)> {
    tls.set_buffer_limit(None);
    let mut plain = Vec::new();
    // The peer's first frame may have come together with the end of its handshake.
    let ended = take_plaintext(&mut tls, &mut plain)?;
    let shared = Arc::new(Shared { socket, tls: Mutex::new(tls), wire: Mutex::new(Vec::new()) });
    let receiver = LinkReceiver {
        shared: shared.clone(),
        wire: vec![0; PIECE_BYTES],
        plain,
        taken: 0,
        ended,
        limit: FRAME_BYTES_MAX,
        waits: Waits::Unset,
    };
    Ok((LinkSender { shared }, receiver))
}

/// Sends frames.
#[derive(Debug)]
pub struct LinkSender {
    shared: Arc<Shared>,
}

impl LinkSender {
    /// Sends one frame, its body in pieces that need not be put together first. Returns when the operating system has
    /// taken it all. After an error the link is closed.
    ///
    /// # Errors
    /// `Invalid` for a body over `FRAME_BYTES_MAX` (nothing is sent then), `Unreachable` where the peer does not take it.
    pub fn send(&self, kind: u8, body: &[&[u8]]) -> Result<()> {
        let bytes: usize = body.iter().map(|piece| piece.len()).sum();
        let len = u32::try_from(bytes).ok().filter(|_| bytes <= FRAME_BYTES_MAX).ok_or_else(|| {
            let what = format!("a frame of {bytes} bytes is over the {FRAME_BYTES_MAX} that a link takes");
            Error::new(ErrorKind::Invalid, what)
        })?;
        let mut header = [0u8; HEADER_BYTES];
        header[..4].copy_from_slice(&len.to_le_bytes());
        header[4] = kind;
        let mut slices = Vec::with_capacity(body.len() + 1);
        slices.push(IoSlice::new(&header));
        slices.extend(body.iter().filter(|piece| !piece.is_empty()).map(|piece| IoSlice::new(piece)));
        self.write(&mut slices).map_err(|e| {
            // Half a record may have left: nothing that follows would make sense.
            let _ = self.shared.socket.shutdown(Shutdown::Both);
            Error::caused(ErrorKind::Unreachable, "a frame could not be sent", e)
        })
    }

    fn write(&self, mut slices: &mut [IoSlice<'_>]) -> std::io::Result<()> {
        let mut wire = self.shared.wire.lock();
        while !slices.is_empty() {
            wire.clear();
            {
                let mut tls = self.shared.tls.lock();
                let encrypted = encrypt(&mut tls, slices)?;
                IoSlice::advance_slices(&mut slices, encrypted);
                while tls.wants_write() {
                    tls.write_tls(&mut *wire)?;
                }
            }
            (&*self.shared.socket).write_all(&wire)?;
        }
        Ok(())
    }

    /// Ends the link from another thread.
    #[must_use]
    pub fn closer(&self) -> LinkCloser {
        LinkCloser::of(&self.shared.socket)
    }

    /// Lets writes wait for the peer for as long as the link counts as one: that ends when the peer has taken nothing of
    /// what it was sent for `limit`.
    pub(super) fn wait_for(&self, limit: Duration) -> Result<()> {
        self.shared.socket.set_write_timeout(None).map_err(super::not_set_up)?;
        self.lose_after(limit)
    }

    /// Ends the link when the peer's machine has taken nothing of what it was sent for so long.
    ///
    /// # Errors
    /// `Unreachable` where the connection is lost already.
    pub fn lose_after(&self, limit: Duration) -> Result<()> {
        super::lose_after(&self.shared.socket, limit)
    }
}

/// Encrypts at most one piece from the start of `slices`; how many bytes that was.
fn encrypt(tls: &mut Connection, slices: &[IoSlice<'_>]) -> std::io::Result<usize> {
    let (mut whole, mut bytes) = (0, 0);
    while let Some(slice) = slices.get(whole).filter(|slice| bytes + slice.len() <= PIECE_BYTES) {
        bytes += slice.len();
        whole += 1;
    }
    let mut writer = tls.writer();
    let encrypted = match slices.get(whole) {
        // A slice that alone is longer than a piece is cut.
        Some(long) if whole == 0 => writer.write(&long[..PIECE_BYTES])?,
        // What is before a long slice goes with its start: a header needs no record of its own.
        Some(long) => {
            let mut first = slices[..whole].to_vec();
            first.push(IoSlice::new(&long[..PIECE_BYTES - bytes]));
            writer.write_vectored(&first)?
        }
        None => writer.write_vectored(slices)?,
    };
    if encrypted == 0 {
        return Err(IoErrorKind::WriteZero.into());
    }
    Ok(encrypted)
}

/// How long the socket was last told to wait for bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Waits {
    Unset,
    For(Option<Duration>),
}

/// Receives frames.
#[derive(Debug)]
pub struct LinkReceiver {
    shared: Arc<Shared>,
    /// What comes from the socket.
    wire: Vec<u8>,
    /// Decrypted bytes, of which `taken` have been given out.
    plain: Vec<u8>,
    taken: usize,
    /// Whether the peer has said that nothing more comes: what came before still counts.
    ended: bool,
    limit: usize,
    waits: Waits,
}

impl LinkReceiver {
    /// The next frame; `None` when none is complete after `timeout` (without one it waits for ever). After an error the
    /// link is closed. A peer that ends the connection is an error too: a link has no end of its own.
    ///
    /// # Errors
    /// `Unreachable` when the link has ended, `Invalid` for a frame that no peer may send, `Corrupt` where the bytes do
    /// not decrypt.
    pub fn receive(&mut self, timeout: Option<Duration>) -> Result<Option<Frame>> {
        let received = self.receive_within(timeout);
        if received.is_err() {
            let _ = self.shared.socket.shutdown(Shutdown::Both);
        }
        received
    }

    fn receive_within(&mut self, timeout: Option<Duration>) -> Result<Option<Frame>> {
        let deadline = timeout.and_then(|timeout| now().checked_add(timeout));
        let mut left = timeout;
        loop {
            if let Some(frame) = self.complete()? {
                return Ok(Some(frame));
            }
            if !self.fill(left)? {
                return Ok(None);
            }
            if let Some(deadline) = deadline {
                let until = deadline.saturating_duration_since(now());
                if until.is_zero() {
                    return self.complete();
                }
                left = Some(until);
            }
        }
    }

    /// Ends the link from another thread.
    #[must_use]
    pub fn closer(&self) -> LinkCloser {
        LinkCloser::of(&self.shared.socket)
    }

    /// Takes no frame with a longer body from now on.
    pub(super) fn set_limit(&mut self, limit: usize) {
        self.limit = limit.min(FRAME_BYTES_MAX);
    }

    /// Whether nothing has come, not even the end, since the last frame.
    pub(super) fn is_quiet(&self) -> bool {
        let mut byte = [0u8; 1];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let peeked = rustix::net::recv(&*self.shared.socket, &mut byte, flags);
        !self.ended && self.taken == self.plain.len() && matches!(peeked, Err(Errno::WOULDBLOCK))
    }

    /// The next frame, where all of it is here.
    fn complete(&mut self) -> Result<Option<Frame>> {
        let Some((header, rest)) = self.plain[self.taken..].split_first_chunk::<HEADER_BYTES>() else {
            return Ok(None);
        };
        let [len @ .., kind] = *header;
        let len = u32::from_le_bytes(len) as usize;
        if len > self.limit {
            let what = format!("a peer sends a frame of {len} bytes, over the {} allowed", self.limit);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let Some(body) = rest.get(..len) else { return Ok(None) };
        let frame = Frame { kind, body: body.to_vec() };
        self.taken += HEADER_BYTES + len;
        if self.taken == self.plain.len() {
            self.plain.clear();
            self.taken = 0;
        }
        Ok(Some(frame))
    }

    /// Reads what the socket has, waiting for at most `wait` if that is nothing; false when that was in vain.
    fn fill(&mut self, wait: Option<Duration>) -> Result<bool> {
        if self.taken > 0 {
            self.plain.drain(..self.taken);
            self.taken = 0;
        }
        if self.ended {
            return Err(Error::new(ErrorKind::Unreachable, "the peer ended the link"));
        }
        let lost = |e| Error::caused(ErrorKind::Unreachable, "a link was lost", e);
        if wait == Some(Duration::ZERO) {
            // A socket's own time limits are some milliseconds at least.
            let received = rustix::net::recv(&*self.shared.socket, &mut self.wire[..], RecvFlags::DONTWAIT);
            return match received {
                Ok((0, _)) => Err(Error::new(ErrorKind::Unreachable, "the link was closed")),
                Ok((read, _)) => self.decrypt(read).map(|()| true),
                Err(Errno::WOULDBLOCK) => Ok(false),
                Err(Errno::INTR) => Ok(true),
                Err(error) => Err(lost(error.into())),
            };
        }
        let wait = wait.map(|wait| wait.max(WAIT_MIN));
        if self.waits != Waits::For(wait) {
            self.shared.socket.set_read_timeout(wait).map_err(lost)?;
            self.waits = Waits::For(wait);
        }
        let read = match (&*self.shared.socket).read(&mut self.wire) {
            Ok(0) => return Err(Error::new(ErrorKind::Unreachable, "the link was closed")),
            Ok(read) => read,
            Err(e) if matches!(e.kind(), IoErrorKind::WouldBlock | IoErrorKind::TimedOut) => {
                return Ok(false);
            }
            Err(e) if e.kind() == IoErrorKind::Interrupted => return Ok(true),
            Err(e) => return Err(lost(e)),
        };
        self.decrypt(read).map(|()| true)
    }

    /// Decrypts the first `read` bytes of what has come.
    fn decrypt(&mut self, read: usize) -> Result<()> {
        let lost = |e| Error::caused(ErrorKind::Unreachable, "a link was lost", e);
        let mut input = &self.wire[..read];
        let mut tls = self.shared.tls.lock();
        while !input.is_empty() {
            tls.read_tls(&mut input).map_err(lost)?;
            tls.process_new_packets()
                .map_err(|e| Error::caused(ErrorKind::Corrupt, "what a peer sends cannot be decrypted", e))?;
            self.ended |= take_plaintext(&mut tls, &mut self.plain)?;
            if self.ended {
                break;
            }
        }
        Ok(())
    }
}

/// Moves what is decrypted to the end of `plain`; whether it was the last.
fn take_plaintext(tls: &mut Connection, plain: &mut Vec<u8>) -> Result<bool> {
    let mut reader = tls.reader();
    loop {
        let taken = match reader.fill_buf() {
            Ok([]) => return Ok(true),
            Ok(bytes) => {
                plain.extend_from_slice(bytes);
                bytes.len()
            }
            Err(e) if e.kind() == IoErrorKind::WouldBlock => return Ok(false),
            Err(e) => return Err(Error::caused(ErrorKind::Unreachable, "a link was lost", e)),
        };
        reader.consume(taken);
    }
}
