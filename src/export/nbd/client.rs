//! A small blocking NBD client, for images that are streamed into and out of volumes.
//!
//! Requests are pipelined to a fixed depth. It asks for structured replies and `base:allocation`,
//! and does without where a server has neither.

use std::collections::{HashMap, VecDeque};
use std::io::{self, BufReader, IoSlice, Read, Write};
use std::net::TcpStream;
use std::time::Duration;

pub use super::dial::Address;
use super::dial::{Patience, dial};
use super::errors::Errno;
use super::line::Line;
use super::wire::options::{
    BASE_ALLOCATION, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, GREETING_BYTES, OPTION_REPLY_HEAD_BYTES,
    OptionReplyHead, SessionId, decode_greeting, decode_info_export, decode_info_payload_max,
    decode_meta_context, decode_option_reply_head, decode_terms, encode_info_request, encode_meta_request,
    info, option, put_option, reply, transmission_flag,
};
use super::wire::transmission::{
    PAYLOAD_BYTES_MAX, ReplyHead, SIMPLE_REPLY_BYTES, STATE_ZERO, STRUCTURED_REPLY_BYTES, chunk, command,
    decode_error_payload, decode_hole_payload, decode_reply_head, decode_status_reply, encode_request,
};
use super::wire::{Decoded, shortened};
use crate::array::service::SessionTerms;
use crate::error::{Error, ErrorKind, Result};
use crate::units::ByteCount;

/// Longest answer to an option, and longest error or status chunk, that is believed, in bytes.
pub(super) const CONTROL_BYTES_MAX: u32 = 9 << 20;

/// Longest range of one trim, zeroing or status request, in bytes.
pub(super) const RANGE_BYTES_MAX: u64 = 1 << 30;

/// What a stretch of the export holds, as far as the protocol tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stretch {
    /// Where it begins, in bytes.
    pub offset: u64,
    /// How long it is.
    pub len: ByteCount,
    /// Whether it is known to read as zeros.
    pub zero: bool,
}

/// A connection to one export.
pub struct Client {
    stream: BufReader<TcpStream>,
    size: ByteCount,
    flags: u16,
    payload_max: u32,
    structured: bool,
    context: Option<u32>,
    depth: usize,
    last_cookie: u64,
    pending: HashMap<u64, Pending>,
    /// The first error of a request that nobody waits for.
    failed: Option<Error>,
    /// What the server has said of the session.
    terms: SessionTerms,
}

/// A request on its way.
struct Pending {
    offset: u64,
    /// What a read asks for.
    data: Vec<u8>,
    /// How much of it has come.
    covered: usize,
    extents: Vec<(u32, u32)>,
    error: Option<Error>,
    done: bool,
    /// Somebody will ask for the result.
    awaited: bool,
}

impl Client {
    /// Connects to the export, with at most `depth` requests under way at a time (at least 1).
    ///
    /// # Errors
    /// `Unreachable` where nothing answers or it is no NBD server; `NotFound` where it does not
    /// have the export.
    pub fn connect(address: &Address, export: &str, depth: usize) -> Result<Client> {
        Client::connect_within(address, export, depth, &Patience::default(), None)
    }

    /// The same within time limits, and as one connection of a session: its server ends the one before it first.
    ///
    /// # Errors
    /// As `connect`, where it takes too long as well; `Unsupported` where the server knows no sessions.
    pub fn connect_within(
        address: &Address,
        export: &str,
        depth: usize,
        patience: &Patience,
        session: Option<SessionId>,
    ) -> Result<Client> {
        Client::over(dial(address, patience)?, export, depth, session)
    }

    /// The same over a connection that is there already.
    ///
    /// # Errors
    /// As `connect_within`.
    pub fn over(stream: TcpStream, export: &str, depth: usize, session: Option<SessionId>) -> Result<Client> {
        let mut client = Client {
            stream: BufReader::with_capacity(64 << 10, stream),
            size: ByteCount(0),
            flags: 0,
            payload_max: PAYLOAD_BYTES_MAX,
            structured: false,
            context: None,
            depth: depth.max(1),
            last_cookie: 0,
            pending: HashMap::new(),
            failed: None,
            terms: SessionTerms::default(),
        };
        client.shake_hands(export, session)?;
        Ok(client)
    }

    /// What the server said of the session that this connection goes on with.
    #[must_use]
    pub fn terms(&self) -> SessionTerms {
        self.terms
    }

    /// Size of the export.
    #[must_use]
    pub fn size(&self) -> ByteCount {
        self.size
    }

    /// Whether the export refuses writes.
    #[must_use]
    pub fn read_only(&self) -> bool {
        self.flags & transmission_flag::READ_ONLY != 0
    }

    /// Longest payload of one request, in bytes.
    #[must_use]
    pub fn payload_max(&self) -> u32 {
        self.payload_max
    }

    /// Whether `write_zeroes` can be used.
    #[must_use]
    pub fn can_write_zeroes(&self) -> bool {
        self.flags & transmission_flag::SEND_WRITE_ZEROES != 0
    }

    fn shake_hands(&mut self, export: &str, session: Option<SessionId>) -> Result<()> {
        let mut greeting = [0; GREETING_BYTES];
        self.read_exact(&mut greeting)?;
        let flags = decode_greeting(&greeting).filter(|flags| flags & FLAG_FIXED_NEWSTYLE != 0);
        let flags = flags.ok_or_else(|| broken("it does not speak fixed newstyle NBD"))?;
        let answer = u32::from(flags & (FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES));
        self.write_all(&answer.to_be_bytes())?;
        self.structured = self.option(option::STRUCTURED_REPLY, &[], |_, _| {})?.is_ok();
        if self.structured {
            let (mut context, mut known, mut terms) = (None, session.is_none(), SessionTerms::default());
            let name = session.map(SessionId::name).unwrap_or_default();
            let queries = [BASE_ALLOCATION, &name];
            let queries = &queries[..1 + usize::from(session.is_some())];
            let query = encode_meta_request(export, queries);
            let chosen = self.option(option::SET_META_CONTEXT, &query, |kind, data| {
                if kind == reply::META_CONTEXT {
                    context = context.or(decode_meta_context(data, BASE_ALLOCATION));
                    known |= decode_meta_context(data, &name).is_some();
                    terms = decode_terms(data).unwrap_or(terms);
                }
            })?;
            self.context = context.filter(|_| chosen.is_ok());
            self.terms = terms;
            if session.is_some() {
                chosen.map_err(|error| error.context(format!("export '{export}'")))?;
            }
            if !known {
                return Err(no_session());
            }
        } else if session.is_some() {
            return Err(no_session());
        }
        let (mut found, mut payload_max) = (None, None);
        let request = encode_info_request(export, &[info::BLOCK_SIZE]);
        let gone = self.option(option::GO, &request, |kind, data| {
            if kind == reply::INFO {
                found = found.or(decode_info_export(data));
                payload_max = payload_max.or(decode_info_payload_max(data));
            }
        })?;
        gone.map_err(|error| error.context(format!("export '{export}'")))?;
        let (size, flags) = found.ok_or_else(|| broken("it does not say how large the export is"))?;
        self.size = ByteCount(size);
        self.flags = flags;
        self.payload_max = payload_max.unwrap_or(PAYLOAD_BYTES_MAX).clamp(4096, PAYLOAD_BYTES_MAX);
        Ok(())
    }

    /// Sends an option and shows the replies before the last to `each`. The inner result is the
    /// server's answer.
    fn option(&mut self, number: u32, data: &[u8], mut each: impl FnMut(u32, &[u8])) -> Result<Result<()>> {
        let mut message = Vec::new();
        put_option(&mut message, number, data);
        self.write_all(&message)?;
        loop {
            let mut head = [0; OPTION_REPLY_HEAD_BYTES];
            self.read_exact(&mut head)?;
            let head = decode_option_reply_head(&head).filter(|head| head.option == number);
            let head = head.ok_or_else(|| broken("a reply to an option it was not asked about"))?;
            let data = self.control_payload(head.data_bytes)?;
            match head.kind {
                reply::ACK => return Ok(Ok(())),
                kind if kind & reply::ERROR_BIT != 0 => return Ok(Err(refused(&head, &data))),
                kind => each(kind, &data),
            }
        }
    }

    /// Queues a write; it is under way when this returns. An error shows at a later call, at the
    /// latest in `flush`.
    ///
    /// # Errors
    /// What the server said to this or an earlier request; `Unreachable` where it is gone.
    pub fn write(&mut self, mut offset: u64, data: &[u8]) -> Result<()> {
        for piece in data.chunks(self.payload_max as usize) {
            let len = u32::try_from(piece.len()).expect("pieces are no longer than 32 MiB");
            self.start(command::WRITE, offset, len, piece, Vec::new(), false)?;
            offset += piece.len() as u64;
        }
        Ok(())
    }

    /// Queues a zeroing, as `write` does.
    ///
    /// # Errors
    /// As `write`.
    pub fn write_zeroes(&mut self, offset: u64, len: ByteCount) -> Result<()> {
        self.range(command::WRITE_ZEROES, offset, len)
    }

    /// Queues a trim, as `write` does.
    ///
    /// # Errors
    /// As `write`.
    pub fn trim(&mut self, offset: u64, len: ByteCount) -> Result<()> {
        self.range(command::TRIM, offset, len)
    }

    fn range(&mut self, command: u16, mut offset: u64, len: ByteCount) -> Result<()> {
        let mut left = len.0;
        while left > 0 {
            let piece = left.min(RANGE_BYTES_MAX);
            let wire_len = u32::try_from(piece).expect("pieces are no longer than 1 GiB");
            self.start(command, offset, wire_len, &[], Vec::new(), false)?;
            offset += piece;
            left -= piece;
        }
        Ok(())
    }

    /// Waits until everything queued is answered, and durable.
    ///
    /// # Errors
    /// As `write`.
    pub fn flush(&mut self) -> Result<()> {
        self.drain()?;
        if self.flags & transmission_flag::SEND_FLUSH != 0 {
            let cookie = self.start(command::FLUSH, 0, 0, &[], Vec::new(), true)?;
            self.wait_for(cookie)?;
        }
        Ok(())
    }

    /// Fills `buffer`.
    ///
    /// # Errors
    /// As `write`.
    pub fn read(&mut self, offset: u64, buffer: &mut [u8]) -> Result<()> {
        let chunk = self.payload_max;
        self.read_each(offset, ByteCount(buffer.len() as u64), chunk, |at, data| {
            let start = usize::try_from(at - offset).expect("within the buffer");
            buffer[start..start + data.len()].copy_from_slice(data);
            Ok(())
        })
    }

    /// Reads a range in pieces of at most `piece_max` bytes, several at a time, and shows them to
    /// `each` in order, with their offsets.
    ///
    /// # Errors
    /// As `write`; what `each` says ends the reading.
    pub fn read_each(
        &mut self,
        offset: u64,
        len: ByteCount,
        piece_max: u32,
        mut each: impl FnMut(u64, &[u8]) -> Result<()>,
    ) -> Result<()> {
        let piece_max = u64::from(piece_max.clamp(1, self.payload_max));
        let end = offset.checked_add(len.0).ok_or_else(|| Error::new(ErrorKind::Invalid, "past the end"))?;
        let mut next = offset;
        let mut under_way = VecDeque::new();
        let mut spare: Vec<Vec<u8>> = Vec::new();
        loop {
            while next < end && under_way.len() < self.depth {
                let piece =
                    u32::try_from(piece_max.min(end - next)).expect("pieces are no longer than 32 MiB");
                let mut data = spare.pop().unwrap_or_default();
                data.resize(piece as usize, 0);
                under_way.push_back(self.start(command::READ, next, piece, &[], data, true)?);
                next += u64::from(piece);
            }
            let Some(cookie) = under_way.pop_front() else { return Ok(()) };
            let done = self.wait_for(cookie)?;
            each(done.offset, &done.data)?;
            spare.push(done.data);
        }
    }

    /// What the range holds; one stretch of unknown content where the server does not tell.
    ///
    /// # Errors
    /// As `write`.
    pub fn block_status(&mut self, offset: u64, len: ByteCount) -> Result<Vec<Stretch>> {
        if self.context.is_none() {
            return Ok(vec![Stretch { offset, len, zero: false }]);
        }
        let end = offset.saturating_add(len.0);
        let mut stretches: Vec<Stretch> = Vec::new();
        let mut at = offset;
        while at < end {
            let asked = u32::try_from((end - at).min(RANGE_BYTES_MAX)).expect("no longer than 1 GiB");
            let cookie = self.start(command::BLOCK_STATUS, at, asked, &[], Vec::new(), true)?;
            let before = at;
            for (len, state) in self.wait_for(cookie)?.extents {
                let len = u64::from(len).min(end - at);
                let zero = state & STATE_ZERO != 0;
                match stretches.last_mut() {
                    Some(last) if last.zero == zero => last.len.0 += len,
                    _ => stretches.push(Stretch { offset: at, len: ByteCount(len), zero }),
                }
                at += len;
            }
            if at == before {
                return Err(broken("a status of nothing"));
            }
        }
        Ok(stretches)
    }

    /// The connection as two halves, for who sends and receives at the same time. Nothing may be under way. From now on
    /// an answer that has begun must go on within `progress`, and sending waits for ever.
    ///
    /// # Errors
    /// Where the process has too many open files.
    pub fn into_line(self, progress: Duration) -> Result<Line> {
        let stream = self.stream.get_ref();
        let limits = stream.set_read_timeout(Some(progress)).and_then(|()| stream.set_write_timeout(None));
        limits.map_err(lost)?;
        let sending = stream.try_clone().map_err(lost)?;
        Ok(Line::new(self.stream, sending, self.context))
    }

    /// Waits for everything queued and takes leave.
    ///
    /// # Errors
    /// As `write`.
    pub fn disconnect(mut self) -> Result<()> {
        self.drain()?;
        self.write_all(&encode_request(0, command::DISC, 0, 0, 0))
    }

    fn drain(&mut self) -> Result<()> {
        while !self.pending.is_empty() {
            self.receive()?;
        }
        self.failed.take().map_or(Ok(()), Err)
    }

    /// Sends a request as soon as there is room for it.
    fn start(
        &mut self,
        command: u16,
        offset: u64,
        len: u32,
        payload: &[u8],
        data: Vec<u8>,
        awaited: bool,
    ) -> Result<u64> {
        while self.pending.values().filter(|pending| !pending.done).count() >= self.depth {
            self.receive()?;
        }
        if let Some(error) = self.failed.take() {
            return Err(error);
        }
        self.last_cookie += 1;
        let cookie = self.last_cookie;
        let head = encode_request(0, command, cookie, offset, len);
        let pending =
            Pending { offset, data, covered: 0, extents: Vec::new(), error: None, done: false, awaited };
        self.pending.insert(cookie, pending);
        self.write_two(&head, payload)?;
        Ok(cookie)
    }

    fn wait_for(&mut self, cookie: u64) -> Result<Pending> {
        while self.pending.get(&cookie).is_some_and(|pending| !pending.done) {
            self.receive()?;
        }
        let mut done = self.pending.remove(&cookie).expect("awaited requests stay until they are taken");
        match done.error.take() {
            Some(error) => Err(error),
            None if done.covered < done.data.len() => Err(broken("a read with bytes missing")),
            None => Ok(done),
        }
    }

    /// Receives one reply or chunk.
    fn receive(&mut self) -> Result<()> {
        let mut bytes = [0; STRUCTURED_REPLY_BYTES];
        self.read_exact(&mut bytes[..SIMPLE_REPLY_BYTES])?;
        let mut head = decode_reply_head(&bytes[..SIMPLE_REPLY_BYTES]);
        if head == Decoded::Incomplete {
            self.read_exact(&mut bytes[SIMPLE_REPLY_BYTES..])?;
            head = decode_reply_head(&bytes);
        }
        match head {
            Decoded::Complete(ReplyHead::Simple { error, cookie }) => self.simple_reply(error, cookie),
            Decoded::Complete(ReplyHead::Chunk { done, kind, cookie, payload_bytes }) => {
                self.chunk(done, kind, cookie, payload_bytes)
            }
            Decoded::Incomplete | Decoded::Foreign => Err(broken("something that is no reply")),
        }
    }

    fn simple_reply(&mut self, error: u32, cookie: u64) -> Result<()> {
        let mut pending = self.pending_of(cookie)?;
        if error != 0 {
            pending.error = Some(failed(error, ""));
        } else if !pending.data.is_empty() {
            if self.structured {
                return Err(broken("a simple reply to a read"));
            }
            self.read_exact(&mut pending.data)?;
            pending.covered = pending.data.len();
        }
        pending.done = true;
        self.put_back(cookie, pending);
        Ok(())
    }

    fn chunk(&mut self, done: bool, kind: u16, cookie: u64, payload_bytes: u32) -> Result<()> {
        let mut pending = self.pending_of(cookie)?;
        if kind == chunk::OFFSET_DATA {
            let mut offset = [0; 8];
            self.read_exact(&mut offset)?;
            let len =
                u64::from(payload_bytes).checked_sub(8).ok_or_else(|| broken("a data chunk without data"))?;
            let slot = pending.slot(u64::from_be_bytes(offset), len)?;
            self.read_exact(slot)?;
        } else {
            let payload = self.control_payload(payload_bytes)?;
            pending.control_chunk(kind, &payload, self.context)?;
        }
        pending.done = done;
        self.put_back(cookie, pending);
        Ok(())
    }

    fn pending_of(&mut self, cookie: u64) -> Result<Pending> {
        let pending = self.pending.remove(&cookie).filter(|pending| !pending.done);
        pending.ok_or_else(|| broken("a reply to a request it was not sent"))
    }

    /// Keeps a request whose reply is not complete, or whose result will be asked for.
    fn put_back(&mut self, cookie: u64, mut pending: Pending) {
        if pending.done && !pending.awaited {
            self.failed = self.failed.take().or(pending.error.take());
        } else {
            self.pending.insert(cookie, pending);
        }
    }

    fn control_payload(&mut self, len: u32) -> Result<Vec<u8>> {
        if len > CONTROL_BYTES_MAX {
            return Err(broken("an answer that is too long"));
        }
        let mut payload = vec![0; len as usize];
        self.read_exact(&mut payload)?;
        Ok(payload)
    }

    fn read_exact(&mut self, buffer: &mut [u8]) -> Result<()> {
        self.stream.read_exact(buffer).map_err(lost)
    }

    fn write_all(&mut self, bytes: &[u8]) -> Result<()> {
        self.stream.get_mut().write_all(bytes).map_err(lost)
    }

    fn write_two(&mut self, head: &[u8], payload: &[u8]) -> Result<()> {
        let slices = [IoSlice::new(head), IoSlice::new(payload)];
        let sent = self.stream.get_mut().write_vectored(&slices).map_err(lost)?;
        if sent < head.len() {
            self.write_all(&head[sent..])?;
        }
        self.write_all(&payload[sent.saturating_sub(head.len())..])
    }
}

impl Pending {
    /// Where `len` bytes for `offset` belong.
    fn slot(&mut self, offset: u64, len: u64) -> Result<&mut [u8]> {
        let outside = || broken("data that was not asked for");
        let start = offset.checked_sub(self.offset).and_then(|start| usize::try_from(start).ok());
        let start = start.ok_or_else(outside)?;
        let end = usize::try_from(len).ok().and_then(|len| start.checked_add(len)).ok_or_else(outside)?;
        let slot = self.data.get_mut(start..end).ok_or_else(outside)?;
        self.covered += slot.len();
        Ok(slot)
    }

    fn control_chunk(&mut self, kind: u16, payload: &[u8], context: Option<u32>) -> Result<()> {
        let malformed = || broken("a chunk that is not well formed");
        match kind {
            chunk::NONE => {}
            chunk::OFFSET_HOLE => {
                let (offset, len) = decode_hole_payload(payload).ok_or_else(malformed)?;
                self.slot(offset, u64::from(len))?.fill(0);
            }
            chunk::BLOCK_STATUS => {
                let (id, extents) = decode_status_reply(payload).ok_or_else(malformed)?;
                if Some(id) == context {
                    self.extents = extents;
                }
            }
            kind if kind & chunk::ERROR_BIT != 0 => {
                let (code, message) = decode_error_payload(payload).ok_or_else(malformed)?;
                self.error.get_or_insert_with(|| failed(code, message));
            }
            _ => return Err(broken("a chunk of an unknown kind")),
        }
        Ok(())
    }
}

fn failed(code: u32, message: &str) -> Error {
    let message = if message.is_empty() { format!("error {code}") } else { message.to_owned() };
    Error::new(Errno::kind_with(code, &message), message).context("the NBD server said")
}

fn refused(head: &OptionReplyHead, data: &[u8]) -> Error {
    let kind = match head.kind {
        reply::ERR_UNKNOWN => ErrorKind::NotFound,
        reply::ERR_INVALID | reply::ERR_TOO_BIG => ErrorKind::Invalid,
        reply::ERR_SHUTDOWN => ErrorKind::Unreachable,
        _ => ErrorKind::Unsupported,
    };
    let message = String::from_utf8_lossy(data);
    Error::new(kind, shortened(&message, 512)).context("the NBD server refused")
}

fn no_session() -> Error {
    Error::new(ErrorKind::Unsupported, "the NBD server knows no sessions: it is no array of this version")
}

pub(super) fn broken(what: &str) -> Error {
    Error::new(ErrorKind::Unreachable, what).context("the NBD server sent")
}

pub(super) fn lost(error: io::Error) -> Error {
    Error::caused(ErrorKind::Unreachable, "the connection to the NBD server is lost", error)
}
