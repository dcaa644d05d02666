//! A client's connection in two halves: one thread sends requests, another takes the answers as they come.

use std::collections::HashMap;
use std::io::{BufReader, BufWriter, Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::client::{CONTROL_BYTES_MAX, broken, lost};
use super::errors::Errno;
use super::wire::Decoded;
use super::wire::transmission::{
    PAYLOAD_BYTES_MAX, ReplyHead, SIMPLE_REPLY_BYTES, STRUCTURED_REPLY_BYTES, chunk, decode_error_payload,
    decode_hole_payload, decode_reply_head, decode_status_reply, encode_request,
};
use crate::error::{Error, Result};

/// What gathers before it is sent, in bytes.
const SEND_BYTES: usize = 256 << 10;

/// A connection with structured replies, after its handshake.
pub struct Line {
    /// Sends.
    pub sender: LineSender,
    /// Receives.
    pub receiver: LineReceiver,
}

/// The half that sends.
pub struct LineSender {
    stream: BufWriter<TcpStream>,
}

/// The half that receives.
pub struct LineReceiver {
    stream: BufReader<TcpStream>,
    context: Option<u32>,
    /// Answers of which a part has come.
    begun: HashMap<u64, Answer>,
}

/// Ends the connection, from whichever thread.
pub struct LineCutter {
    stream: TcpStream,
}

/// What the server answered to one request.
#[derive(Debug, Default)]
pub struct Answer {
    /// The request's number.
    pub cookie: u64,
    /// What went wrong.
    pub error: Option<Error>,
    /// Whether the server cannot go on serving the export: the request counts as unanswered.
    pub shutting_down: bool,
    /// Of a read: offsets, and what was found there; `None` stands for zeros.
    pub pieces: Vec<(u64, u32, Option<Vec<u8>>)>,
    /// Of a status: lengths and state flags of `base:allocation`.
    pub extents: Vec<(u32, u32)>,
    /// Bytes of the pieces.
    bytes: u64,
}

impl Line {
    pub(super) fn new(receiving: BufReader<TcpStream>, sending: TcpStream, context: Option<u32>) -> Line {
        Line {
            sender: LineSender { stream: BufWriter::with_capacity(SEND_BYTES, sending) },
            receiver: LineReceiver { stream: receiving, context, begun: HashMap::new() },
        }
    }

    /// What ends the connection, for a third thread.
    ///
    /// # Errors
    /// `Unreachable` where the process has too many open files.
    pub fn cutter(&self) -> Result<LineCutter> {
        Ok(LineCutter { stream: self.receiver.stream.get_ref().try_clone().map_err(lost)? })
    }

    /// Whether the server tells where data is.
    #[must_use]
    pub fn has_status(&self) -> bool {
        self.receiver.context.is_some()
    }
}

impl LineCutter {
    /// Ends it: both halves fail from now on.
    pub fn cut(&self) {
        // It fails only where the connection is gone already.
        let _ = self.stream.shutdown(Shutdown::Both);
    }
}

impl LineSender {
    /// Adds a request to what is to be sent: flags, `command`, cookie and range, and the payload of a write.
    ///
    /// # Errors
    /// `Unreachable` where the connection is lost.
    pub fn put(&mut self, command: u16, cookie: u64, offset: u64, len: u32, payload: &[u8]) -> Result<()> {
        self.stream.write_all(&encode_request(0, command, cookie, offset, len)).map_err(lost)?;
        self.stream.write_all(payload).map_err(lost)
    }

    /// Sends what is left.
    ///
    /// # Errors
    /// `Unreachable` where the connection is lost.
    pub fn flush(&mut self) -> Result<()> {
        self.stream.flush().map_err(lost)
    }
}

impl LineReceiver {
    /// Waits until something has come, for `limit` at most; whether it has.
    ///
    /// # Errors
    /// `Unreachable` where the operating system does not say.
    pub fn wait(&self, limit: Duration) -> Result<bool> {
        if !self.stream.buffer().is_empty() {
            return Ok(true);
        }
        let limit = Timespec::try_from(limit).ok();
        let mut descriptors = [PollFd::new(self.stream.get_ref(), PollFlags::IN)];
        match poll(&mut descriptors, limit.as_ref()) {
            Ok(ready) => Ok(ready > 0),
            Err(rustix::io::Errno::INTR) => Ok(false),
            Err(error) => Err(lost(error.into())),
        }
    }

    /// Receives one reply or chunk; the answer, if that was the last of it.
    ///
    /// # Errors
    /// `Unreachable` where the connection is lost, or the server does not keep to the protocol.
    pub fn receive(&mut self) -> Result<Option<Answer>> {
        let mut bytes = [0; STRUCTURED_REPLY_BYTES];
        self.read_exact(&mut bytes[..SIMPLE_REPLY_BYTES])?;
        let mut head = decode_reply_head(&bytes[..SIMPLE_REPLY_BYTES]);
        if head == Decoded::Incomplete {
            self.read_exact(&mut bytes[SIMPLE_REPLY_BYTES..])?;
            head = decode_reply_head(&bytes);
        }
        match head {
            Decoded::Complete(ReplyHead::Simple { error, cookie }) => {
                let mut answer = self.begun.remove(&cookie).unwrap_or_default();
                answer.cookie = cookie;
                if error != 0 {
                    answer.fail(error, "");
                }
                Ok(Some(answer))
            }
            Decoded::Complete(ReplyHead::Chunk { done, kind, cookie, payload_bytes }) => {
                self.chunk(done, kind, cookie, payload_bytes)
            }
            Decoded::Incomplete | Decoded::Foreign => Err(broken("something that is no reply")),
        }
    }

    fn chunk(&mut self, done: bool, kind: u16, cookie: u64, len: u32) -> Result<Option<Answer>> {
        let malformed = || broken("a chunk that is not well formed");
        let mut answer = self.begun.remove(&cookie).unwrap_or_default();
        answer.cookie = cookie;
        if kind == chunk::OFFSET_DATA {
            let mut offset = [0; 8];
            self.read_exact(&mut offset)?;
            let len = len.checked_sub(8).ok_or_else(malformed)?;
            answer.count(len)?;
            let mut data = vec![0; len as usize];
            self.read_exact(&mut data)?;
            answer.pieces.push((u64::from_be_bytes(offset), len, Some(data)));
        } else {
            if len > CONTROL_BYTES_MAX {
                return Err(broken("an answer that is too long"));
            }
            let mut payload = vec![0; len as usize];
            self.read_exact(&mut payload)?;
            match kind {
                chunk::NONE => {}
                chunk::OFFSET_HOLE => {
                    let (offset, len) = decode_hole_payload(&payload).ok_or_else(malformed)?;
                    answer.count(len)?;
                    answer.pieces.push((offset, len, None));
                }
                chunk::BLOCK_STATUS => {
                    let (id, extents) = decode_status_reply(&payload).ok_or_else(malformed)?;
                    if Some(id) == self.context {
                        answer.extents = extents;
                    }
                }
                kind if kind & chunk::ERROR_BIT != 0 => {
                    let (code, message) = decode_error_payload(&payload).ok_or_else(malformed)?;
                    answer.fail(code, message);
                }
                _ => return Err(broken("a chunk of an unknown kind")),
            }
        }
        if done {
            return Ok(Some(answer));
        }
        self.begun.insert(cookie, answer);
        Ok(None)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.stream.read_exact(buffer).map_err(lost)
    }
}

impl Answer {
    fn fail(&mut self, code: u32, message: &str) {
        let message = if message.is_empty() { format!("error {code}") } else { message.to_owned() };
        self.shutting_down |= code == Errno::ShuttingDown.code();
        self.error.get_or_insert_with(|| Error::new(Errno::kind_of(code), message));
    }

    /// No answer is longer than the longest read.
    fn count(&mut self, len: u32) -> Result<()> {
        self.bytes += u64::from(len);
        if len == 0 || self.bytes > u64::from(PAYLOAD_BYTES_MAX) {
            return Err(broken("more data than was asked for"));
        }
        Ok(())
    }

    /// Puts what was read together: `None` where some of the range is missing, or something else came.
    #[must_use]
    pub fn assemble(self, offset: u64, len: u32) -> Option<Vec<u8>> {
        if let [(start, found, Some(_))] = &self.pieces[..]
            && (*start, *found) == (offset, len)
        {
            return self.pieces.into_iter().next().and_then(|(_, _, data)| data);
        }
        let mut whole = vec![0; len as usize];
        for (start, found, data) in &self.pieces {
            let at = usize::try_from(start.checked_sub(offset)?).ok()?;
            let slot = whole.get_mut(at..at.checked_add(*found as usize)?)?;
            if let Some(data) = data {
                slot.copy_from_slice(data);
            }
        }
        (self.bytes == u64::from(len)).then_some(whole)
    }
}
