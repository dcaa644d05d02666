//! The transmission phase: requests, and the three styles of reply.
//!
//! Protocol: "Request message", "Simple reply message", "Structured reply chunk message", and the
//! EXTENDED_HEADERS extension for the 32-byte heads with 64-bit lengths.

use super::{Decoded, Fields, shortened};

/// Magic of a request with a 32-bit length.
pub const MAGIC_REQUEST: u32 = 0x2560_9513;
/// Magic of a request with a 64-bit length.
pub const MAGIC_EXTENDED_REQUEST: u32 = 0x21e4_1c71;
/// Magic of a simple reply.
pub const MAGIC_SIMPLE_REPLY: u32 = 0x6744_6698;
/// Magic of a structured reply chunk.
pub const MAGIC_STRUCTURED_REPLY: u32 = 0x668e_33ef;
/// Magic of an extended reply chunk.
pub const MAGIC_EXTENDED_REPLY: u32 = 0x6e8a_278c;

/// Bytes of a request with a 32-bit length, without payload.
pub const REQUEST_BYTES: usize = 28;
/// Bytes of a request with a 64-bit length, without payload.
pub const EXTENDED_REQUEST_BYTES: usize = 32;
/// Bytes of a simple reply, without data.
pub const SIMPLE_REPLY_BYTES: usize = 16;
/// Bytes of a structured reply chunk's head.
pub const STRUCTURED_REPLY_BYTES: usize = 20;
/// Bytes of an extended reply chunk's head.
pub const EXTENDED_REPLY_BYTES: usize = 32;

/// Greatest payload of one request or reply, in bytes, as announced to clients.
pub const PAYLOAD_BYTES_MAX: u32 = 32 << 20;

/// Longest error message that is put in a reply, in bytes.
const MESSAGE_BYTES_MAX: usize = 512;

/// Numbers of the commands ("Request types").
pub mod command {
    #![expect(missing_docs, reason = "the protocol's own names, under Request types")]
    pub const READ: u16 = 0;
    pub const WRITE: u16 = 1;
    pub const DISC: u16 = 2;
    pub const FLUSH: u16 = 3;
    pub const TRIM: u16 = 4;
    pub const CACHE: u16 = 5;
    pub const WRITE_ZEROES: u16 = 6;
    pub const BLOCK_STATUS: u16 = 7;
}

/// Flags of a request ("Command flags").
pub mod command_flag {
    #![expect(missing_docs, reason = "the protocol's own names, under Command flags")]
    pub const FUA: u16 = 1;
    pub const NO_HOLE: u16 = 1 << 1;
    pub const DF: u16 = 1 << 2;
    pub const REQ_ONE: u16 = 1 << 3;
    pub const FAST_ZERO: u16 = 1 << 4;
    pub const PAYLOAD_LEN: u16 = 1 << 5;
}

/// Kinds of reply chunk ("Structured reply types").
pub mod chunk {
    #![expect(missing_docs, reason = "the protocol's own names, under Structured reply types")]
    pub const NONE: u16 = 0;
    pub const OFFSET_DATA: u16 = 1;
    pub const OFFSET_HOLE: u16 = 2;
    pub const BLOCK_STATUS: u16 = 5;
    pub const BLOCK_STATUS_EXT: u16 = 6;
    /// Set in every kind that reports an error.
    pub const ERROR_BIT: u16 = 1 << 15;
    pub const ERROR: u16 = ERROR_BIT + 1;
    /// Flag of the last chunk of a reply.
    pub const FLAG_DONE: u16 = 1;
}

/// State flag of `base:allocation`: takes no space.
pub const STATE_HOLE: u32 = 1;
/// State flag of `base:allocation`: reads as zeros.
pub const STATE_ZERO: u32 = 2;
/// State flag of `sinter:changed-since`: is not what the snapshot holds.
pub const STATE_CHANGED: u32 = 1;

/// What was negotiated about the form of requests and replies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// 32-bit requests, simple replies only.
    Simple,
    /// 32-bit requests; reads, statuses and errors are answered in chunks.
    Structured,
    /// 64-bit requests; everything is answered in chunks.
    Extended,
}

impl Style {
    /// Bytes of a request without its payload.
    #[must_use]
    pub fn request_bytes(self) -> usize {
        match self {
            Style::Simple | Style::Structured => REQUEST_BYTES,
            Style::Extended => EXTENDED_REQUEST_BYTES,
        }
    }
}

/// A request without its payload.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// `command_flag`s.
    pub flags: u16,
    /// One of `command`, or anything.
    pub command: u16,
    /// The client's name for the request, given back in the reply.
    pub cookie: u64,
    /// Where, in bytes.
    pub offset: u64,
    /// How much, in bytes; or the length of the payload (see `payload_bytes`).
    pub length: u64,
}

impl RequestHead {
    /// How many bytes of payload follow on the wire. A WRITE with a 64-bit length should say by a
    /// flag that it has a payload; QEMU's client does not, and sends it all the same.
    #[must_use]
    pub fn payload_bytes(&self, style: Style) -> u64 {
        let said = style == Style::Extended && self.flags & command_flag::PAYLOAD_LEN != 0;
        if said || self.command == command::WRITE { self.length } else { 0 }
    }
}

/// Reads a request of `style.request_bytes()` from the front.
#[must_use]
pub fn decode_request(bytes: &[u8], style: Style) -> Decoded<RequestHead> {
    let mut fields = Fields(bytes);
    let magic = match style {
        Style::Simple | Style::Structured => MAGIC_REQUEST,
        Style::Extended => MAGIC_EXTENDED_REQUEST,
    };
    match fields.u32() {
        None => Decoded::Incomplete,
        Some(found) if found != magic => Decoded::Foreign,
        Some(_) => request_fields(fields, style).map_or(Decoded::Incomplete, Decoded::Complete),
    }
}

fn request_fields(mut fields: Fields<'_>, style: Style) -> Option<RequestHead> {
    Some(RequestHead {
        flags: fields.u16()?,
        command: fields.u16()?,
        cookie: fields.u64()?,
        offset: fields.u64()?,
        length: match style {
            Style::Simple | Style::Structured => u64::from(fields.u32()?),
            Style::Extended => fields.u64()?,
        },
    })
}

/// A request with a 32-bit length, as a client sends it.
#[must_use]
pub fn encode_request(
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u32,
) -> [u8; REQUEST_BYTES] {
    let mut bytes = [0; REQUEST_BYTES];
    bytes[..4].copy_from_slice(&MAGIC_REQUEST.to_be_bytes());
    bytes[4..6].copy_from_slice(&flags.to_be_bytes());
    bytes[6..8].copy_from_slice(&command.to_be_bytes());
    bytes[8..16].copy_from_slice(&cookie.to_be_bytes());
    bytes[16..24].copy_from_slice(&offset.to_be_bytes());
    bytes[24..].copy_from_slice(&length.to_be_bytes());
    bytes
}

/// Reads the payload of a BLOCK_STATUS that chooses contexts: the length in bytes that the client asks
/// about, and the contexts' numbers.
#[must_use]
pub fn decode_status_payload(payload: &[u8]) -> Option<(u64, Vec<u32>)> {
    let mut fields = Fields(payload);
    let length = fields.u64()?;
    let mut contexts = Vec::new();
    while !fields.is_empty() {
        contexts.push(fields.u32()?);
    }
    Some((length, contexts))
}

/// The fixed part of a reply, on the stack.
#[derive(Clone, Copy, Debug)]
pub struct Head {
    bytes: [u8; Head::BYTES_MAX],
    len: usize,
}

impl Head {
    /// Longest head: an extended chunk about a hole.
    pub const BYTES_MAX: usize = EXTENDED_REPLY_BYTES + 12;

    fn new() -> Head {
        Head { bytes: [0; Head::BYTES_MAX], len: 0 }
    }

    fn with(mut self, field: &[u8]) -> Head {
        self.bytes[self.len..self.len + field.len()].copy_from_slice(field);
        self.len += field.len();
        self
    }

    fn simple(error: u32, cookie: u64) -> Head {
        Head::new()
            .with(&MAGIC_SIMPLE_REPLY.to_be_bytes())
            .with(&error.to_be_bytes())
            .with(&cookie.to_be_bytes())
    }

    fn chunk(to: ReplyTo, kind: u16, payload_bytes: u32) -> Head {
        Head::part(to, chunk::FLAG_DONE, kind, payload_bytes)
    }

    fn part(to: ReplyTo, flags: u16, kind: u16, payload_bytes: u32) -> Head {
        let magic = if to.style == Style::Extended { MAGIC_EXTENDED_REPLY } else { MAGIC_STRUCTURED_REPLY };
        let head = Head::new()
            .with(&magic.to_be_bytes())
            .with(&flags.to_be_bytes())
            .with(&kind.to_be_bytes())
            .with(&to.cookie.to_be_bytes());
        match to.style {
            Style::Extended => {
                head.with(&to.offset.to_be_bytes()).with(&u64::from(payload_bytes).to_be_bytes())
            }
            Style::Simple | Style::Structured => head.with(&payload_bytes.to_be_bytes()),
        }
    }
}

impl std::ops::Deref for Head {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// What a reply needs to know of its request. Every reply here is a single chunk, but for the status in
/// several contexts: data is only sent once all of it has been read, so nothing can fail half-way.
#[derive(Clone, Copy, Debug)]
pub struct ReplyTo {
    /// What was negotiated.
    pub style: Style,
    /// The request's cookie.
    pub cookie: u64,
    /// The request's offset in bytes.
    pub offset: u64,
}

impl ReplyTo {
    /// Done; no data. Where a simple reply may be used, it is.
    #[must_use]
    pub fn done(self) -> Head {
        match self.style {
            Style::Simple | Style::Structured => Head::simple(0, self.cookie),
            Style::Extended => Head::chunk(self, chunk::NONE, 0),
        }
    }

    /// The head of `len` bytes of data (at most `PAYLOAD_BYTES_MAX`), which must follow at once.
    #[must_use]
    pub fn data(self, len: u32) -> Head {
        match self.style {
            Style::Simple => Head::simple(0, self.cookie),
            Style::Structured | Style::Extended => {
                Head::chunk(self, chunk::OFFSET_DATA, len + 8).with(&self.offset.to_be_bytes())
            }
        }
    }

    /// The whole range read reads as zeros: no data follows. Only where chunks were negotiated.
    #[must_use]
    pub fn hole(self, len: u32) -> Head {
        Head::chunk(self, chunk::OFFSET_HOLE, 12).with(&self.offset.to_be_bytes()).with(&len.to_be_bytes())
    }

    /// Appends an error, with a message where the style has room for one.
    pub fn put_error(self, out: &mut Vec<u8>, code: u32, message: &str) {
        if self.style == Style::Simple {
            out.extend_from_slice(&Head::simple(code, self.cookie));
            return;
        }
        let message = shortened(message, MESSAGE_BYTES_MAX).as_bytes();
        let len = u16::try_from(message.len()).expect("messages are cut at 512 bytes");
        out.extend_from_slice(&Head::chunk(self, chunk::ERROR, u32::from(len) + 6));
        out.extend_from_slice(&code.to_be_bytes());
        out.extend_from_slice(&len.to_be_bytes());
        out.extend_from_slice(message);
    }

    /// Appends the status of a range in one context, the last one or not: lengths in bytes and state flags.
    /// Only where chunks were negotiated; without 64-bit heads every length must fit 32 bits.
    pub fn put_status(self, out: &mut Vec<u8>, context: u32, extents: &[(u64, u32)], last: bool) {
        let flags = if last { chunk::FLAG_DONE } else { 0 };
        let count = u32::try_from(extents.len()).expect("a server asks for a few thousand extents at most");
        if self.style == Style::Extended {
            out.extend_from_slice(&Head::part(self, flags, chunk::BLOCK_STATUS_EXT, 8 + count * 16));
            out.extend_from_slice(&context.to_be_bytes());
            out.extend_from_slice(&count.to_be_bytes());
            for (len, state) in extents {
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(&u64::from(*state).to_be_bytes());
            }
        } else {
            out.extend_from_slice(&Head::part(self, flags, chunk::BLOCK_STATUS, 4 + count * 8));
            out.extend_from_slice(&context.to_be_bytes());
            for (len, state) in extents {
                let len = u32::try_from(*len).expect("no longer than the 32-bit length asked about");
                out.extend_from_slice(&len.to_be_bytes());
                out.extend_from_slice(&state.to_be_bytes());
            }
        }
    }
}

/// The head of a reply, as a client with 32-bit requests reads it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ReplyHead {
    /// A simple reply; data follows where a read succeeded and chunks were not negotiated.
    Simple {
        /// 0, or what went wrong.
        error: u32,
        /// The request's cookie.
        cookie: u64,
    },
    /// A structured reply chunk.
    Chunk {
        /// Whether it is the last one of its reply.
        done: bool,
        /// One of `chunk`, or anything.
        kind: u16,
        /// The request's cookie.
        cookie: u64,
        /// Bytes of payload that follow.
        payload_bytes: u32,
    },
}

impl ReplyHead {
    /// Bytes that the head takes.
    #[must_use]
    pub fn wire_bytes(&self) -> usize {
        match self {
            ReplyHead::Simple { .. } => SIMPLE_REPLY_BYTES,
            ReplyHead::Chunk { .. } => STRUCTURED_REPLY_BYTES,
        }
    }
}

/// Reads a simple reply or a structured chunk's head from the front.
#[must_use]
pub fn decode_reply_head(bytes: &[u8]) -> Decoded<ReplyHead> {
    let mut fields = Fields(bytes);
    let head = match fields.u32() {
        None => None,
        Some(MAGIC_SIMPLE_REPLY) => simple_fields(fields),
        Some(MAGIC_STRUCTURED_REPLY) => chunk_fields(fields),
        Some(_) => return Decoded::Foreign,
    };
    head.map_or(Decoded::Incomplete, Decoded::Complete)
}

fn simple_fields(mut fields: Fields<'_>) -> Option<ReplyHead> {
    Some(ReplyHead::Simple { error: fields.u32()?, cookie: fields.u64()? })
}

fn chunk_fields(mut fields: Fields<'_>) -> Option<ReplyHead> {
    Some(ReplyHead::Chunk {
        done: fields.u16()? & chunk::FLAG_DONE != 0,
        kind: fields.u16()?,
        cookie: fields.u64()?,
        payload_bytes: fields.u32()?,
    })
}

/// The payload of an error chunk: the number and the message.
#[must_use]
pub fn decode_error_payload(payload: &[u8]) -> Option<(u32, &str)> {
    let mut fields = Fields(payload);
    let code = fields.u32()?;
    let len = usize::from(fields.u16()?);
    Some((code, super::string(fields.bytes(len)?).unwrap_or_default()))
}

/// The payload of a hole chunk: offset and length in bytes.
#[must_use]
pub fn decode_hole_payload(payload: &[u8]) -> Option<(u64, u32)> {
    let mut fields = Fields(payload);
    Some((fields.u64()?, fields.u32()?))
}

/// The payload of a block status chunk: context number, then lengths in bytes with state flags.
#[must_use]
pub fn decode_status_reply(payload: &[u8]) -> Option<(u32, Vec<(u32, u32)>)> {
    let mut fields = Fields(payload);
    let context = fields.u32()?;
    let mut extents = Vec::with_capacity(fields.0.len() / 8);
    while !fields.is_empty() {
        extents.push((fields.u32()?, fields.u32()?));
    }
    Some((context, extents))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn heads_have_the_protocols_lengths() {
        for (style, done, data) in
            [(Style::Simple, 16, 16), (Style::Structured, 16, 28), (Style::Extended, 32, 40)]
        {
            let to = ReplyTo { style, cookie: 7, offset: 4096 };
            assert_eq!((to.done().len(), to.data(512).len()), (done, data));
        }
        let to = ReplyTo { style: Style::Extended, cookie: 7, offset: 4096 };
        assert_eq!(to.hole(512).len(), Head::BYTES_MAX);
        let mut out = Vec::new();
        to.put_status(&mut out, 1, &[(4096, 0), (1 << 40, 3)], true);
        assert_eq!(out.len(), 32 + 8 + 2 * 16);
        out.clear();
        to.put_error(&mut out, 5, &"\u{e4}".repeat(400));
        assert_eq!(out.len(), 32 + 6 + 512);
    }

    #[test]
    fn payload_follows_where_the_protocol_says() {
        let head = RequestHead { flags: 0, command: command::WRITE, cookie: 0, offset: 0, length: 9 };
        assert_eq!(head.payload_bytes(Style::Simple), 9);
        assert_eq!(head.payload_bytes(Style::Extended), 9);
        let head = RequestHead { flags: command_flag::PAYLOAD_LEN, command: command::TRIM, ..head };
        assert_eq!(head.payload_bytes(Style::Structured), 0);
        assert_eq!(head.payload_bytes(Style::Extended), 9);
    }

    proptest! {
        #[test]
        fn decoders_answer_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..256)) {
            for style in [Style::Simple, Style::Structured, Style::Extended] {
                let _ = decode_request(&bytes, style);
            }
            let _ = decode_reply_head(&bytes);
            let _ = decode_error_payload(&bytes);
            let _ = decode_hole_payload(&bytes);
            let _ = decode_status_reply(&bytes);
            let _ = decode_status_payload(&bytes);
        }

        #[test]
        fn requests_read_back(flags: u16, command: u16, cookie: u64, offset: u64, length: u32) {
            let bytes = encode_request(flags, command, cookie, offset, length);
            let head = RequestHead { flags, command, cookie, offset, length: u64::from(length) };
            prop_assert_eq!(decode_request(&bytes, Style::Simple), Decoded::Complete(head));
            prop_assert_eq!(decode_request(&bytes[..27], Style::Simple), Decoded::Incomplete);
            prop_assert_eq!(decode_request(&bytes, Style::Extended), Decoded::Foreign);
        }

        #[test]
        fn replies_read_back(cookie: u64, offset: u64, len in 1u32..PAYLOAD_BYTES_MAX) {
            let to = ReplyTo { style: Style::Structured, cookie, offset };
            prop_assert_eq!(decode_reply_head(&to.done()), Decoded::Complete(ReplyHead::Simple { error: 0, cookie }));
            let expected = ReplyHead::Chunk { done: true, kind: chunk::OFFSET_DATA, cookie, payload_bytes: len + 8 };
            prop_assert_eq!(decode_reply_head(&to.data(len)), Decoded::Complete(expected));
            prop_assert_eq!(decode_hole_payload(&to.hole(len)[STRUCTURED_REPLY_BYTES..]), Some((offset, len)));
        }
    }
}
