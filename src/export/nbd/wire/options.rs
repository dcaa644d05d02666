//! The handshake: greeting, options and their replies.
//!
//! Protocol: "Fixed newstyle negotiation", "Option types", "Option reply types".

use super::{Decoded, Fields};
use crate::array::service::SessionTerms;
use crate::units::{SessionMemory, Uuid};

pub use crate::units::SessionId;

/// First magic of the greeting ("NBDMAGIC").
pub const MAGIC_GREETING: u64 = 0x4e42_444d_4147_4943;
/// Second magic of the greeting, and the magic before every option ("IHAVEOPT").
pub const MAGIC_OPTION: u64 = 0x4948_4156_454f_5054;
/// Magic before every reply to an option.
pub const MAGIC_OPTION_REPLY: u64 = 0x0003_e889_0455_65a9;

/// Handshake flag of the server, and the client's answer: options may be refused and repeated.
pub const FLAG_FIXED_NEWSTYLE: u16 = 1;
/// Handshake flag of the server, and the client's answer: no padding after EXPORT_NAME.
pub const FLAG_NO_ZEROES: u16 = 2;

/// Bytes of the server's greeting.
pub const GREETING_BYTES: usize = 18;
/// Bytes of the client's answer to the greeting.
pub const CLIENT_FLAGS_BYTES: usize = 4;
/// Bytes before an option's data.
pub const OPTION_HEAD_BYTES: usize = 16;
/// Bytes before an option reply's data.
pub const OPTION_REPLY_HEAD_BYTES: usize = 20;
/// Zero bytes after the answer to EXPORT_NAME, for clients that have not renounced them.
pub const EXPORT_NAME_PADDING_BYTES: usize = 124;

/// Numbers of the options.
pub mod option {
    #![expect(missing_docs, reason = "the protocol's own names, under Option types")]
    pub const EXPORT_NAME: u32 = 1;
    pub const ABORT: u32 = 2;
    pub const LIST: u32 = 3;
    pub const STARTTLS: u32 = 5;
    pub const INFO: u32 = 6;
    pub const GO: u32 = 7;
    pub const STRUCTURED_REPLY: u32 = 8;
    pub const LIST_META_CONTEXT: u32 = 9;
    pub const SET_META_CONTEXT: u32 = 10;
    pub const EXTENDED_HEADERS: u32 = 11;
}

/// Numbers of the replies to options.
pub mod reply {
    #![expect(missing_docs, reason = "the protocol's own names, under Option reply types")]
    pub const ACK: u32 = 1;
    pub const SERVER: u32 = 2;
    pub const INFO: u32 = 3;
    pub const META_CONTEXT: u32 = 4;
    /// Set in every reply that refuses.
    pub const ERROR_BIT: u32 = 1 << 31;
    pub const ERR_UNSUP: u32 = ERROR_BIT + 1;
    pub const ERR_POLICY: u32 = ERROR_BIT + 2;
    pub const ERR_INVALID: u32 = ERROR_BIT + 3;
    pub const ERR_UNKNOWN: u32 = ERROR_BIT + 6;
    pub const ERR_SHUTDOWN: u32 = ERROR_BIT + 7;
    pub const ERR_TOO_BIG: u32 = ERROR_BIT + 9;
    pub const ERR_EXT_HEADER_REQD: u32 = ERROR_BIT + 10;
}

/// Kinds of information about an export.
pub mod info {
    #![expect(missing_docs, reason = "the protocol's own names, under NBD_REP_INFO")]
    pub const EXPORT: u16 = 0;
    pub const NAME: u16 = 1;
    pub const DESCRIPTION: u16 = 2;
    pub const BLOCK_SIZE: u16 = 3;
}

/// What an export can do ("Transmission flags").
pub mod transmission_flag {
    #![expect(missing_docs, reason = "the protocol's own names, under Transmission flags")]
    pub const HAS_FLAGS: u16 = 1;
    pub const READ_ONLY: u16 = 1 << 1;
    pub const SEND_FLUSH: u16 = 1 << 2;
    pub const SEND_FUA: u16 = 1 << 3;
    pub const SEND_TRIM: u16 = 1 << 5;
    pub const SEND_WRITE_ZEROES: u16 = 1 << 6;
    pub const SEND_DF: u16 = 1 << 7;
    pub const CAN_MULTI_CONN: u16 = 1 << 8;
    pub const SEND_CACHE: u16 = 1 << 10;
    pub const SEND_FAST_ZERO: u16 = 1 << 11;
    pub const BLOCK_STATUS_PAYLOAD: u16 = 1 << 12;
}

/// The metadata context that says what is allocated.
pub const BASE_ALLOCATION: &str = "base:allocation";
/// Matches every context of the `base` namespace when contexts are listed.
pub const BASE_WILDCARD: &str = "base:";

/// The server's first bytes.
#[must_use]
pub fn encode_greeting(flags: u16) -> [u8; GREETING_BYTES] {
    let mut bytes = [0; GREETING_BYTES];
    bytes[..8].copy_from_slice(&MAGIC_GREETING.to_be_bytes());
    bytes[8..16].copy_from_slice(&MAGIC_OPTION.to_be_bytes());
    bytes[16..].copy_from_slice(&flags.to_be_bytes());
    bytes
}

/// The server's handshake flags, if the bytes are a newstyle greeting.
#[must_use]
pub fn decode_greeting(bytes: &[u8; GREETING_BYTES]) -> Option<u16> {
    let mut fields = Fields(bytes);
    let newstyle = fields.u64()? == MAGIC_GREETING && fields.u64()? == MAGIC_OPTION;
    if newstyle { fields.u16() } else { None }
}

/// The client's answer to the greeting.
#[must_use]
pub fn decode_client_flags(bytes: &[u8]) -> Decoded<u32> {
    Fields(bytes).u32().map_or(Decoded::Incomplete, Decoded::Complete)
}

/// An option, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionHead {
    /// Which option, as the client said it.
    pub option: u32,
    /// Bytes of data that follow.
    pub data_bytes: u32,
}

/// Reads `OPTION_HEAD_BYTES` from the front.
#[must_use]
pub fn decode_option_head(bytes: &[u8]) -> Decoded<OptionHead> {
    let mut fields = Fields(bytes);
    match fields.u64() {
        None => Decoded::Incomplete,
        Some(MAGIC_OPTION) => match (fields.u32(), fields.u32()) {
            (Some(option), Some(data_bytes)) => Decoded::Complete(OptionHead { option, data_bytes }),
            _ => Decoded::Incomplete,
        },
        Some(_) => Decoded::Foreign,
    }
}

/// Appends an option with its data, as a client sends it.
pub fn put_option(out: &mut Vec<u8>, option: u32, data: &[u8]) {
    out.extend_from_slice(&MAGIC_OPTION.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    put_length(out, data.len());
    out.extend_from_slice(data);
}

/// Appends one reply to an option, as a server sends it.
pub fn put_option_reply(out: &mut Vec<u8>, option: u32, kind: u32, data: &[u8]) {
    out.extend_from_slice(&MAGIC_OPTION_REPLY.to_be_bytes());
    out.extend_from_slice(&option.to_be_bytes());
    out.extend_from_slice(&kind.to_be_bytes());
    put_length(out, data.len());
    out.extend_from_slice(data);
}

fn put_length(out: &mut Vec<u8>, len: usize) {
    let len = u32::try_from(len).expect("option data is built from strings of at most 4096 bytes each");
    out.extend_from_slice(&len.to_be_bytes());
}

/// A reply to an option, without its data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OptionReplyHead {
    /// The option that this answers.
    pub option: u32,
    /// One of `reply`.
    pub kind: u32,
    /// Bytes of data that follow.
    pub data_bytes: u32,
}

/// Reads a reply's head; `None` where the magic is wrong.
#[must_use]
pub fn decode_option_reply_head(bytes: &[u8; OPTION_REPLY_HEAD_BYTES]) -> Option<OptionReplyHead> {
    let mut fields = Fields(bytes);
    if fields.u64()? != MAGIC_OPTION_REPLY {
        return None;
    }
    Some(OptionReplyHead { option: fields.u32()?, kind: fields.u32()?, data_bytes: fields.u32()? })
}

/// Data of INFO and GO.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct InfoRequest<'a> {
    /// The export; empty for the default one.
    pub name: &'a str,
    /// The client asked for the name.
    pub wants_name: bool,
    /// The client asked for the description.
    pub wants_description: bool,
    /// The client asked for the block sizes, and will obey them.
    pub wants_block_size: bool,
}

/// Reads the data of INFO and GO; `None` where it is not well formed.
#[must_use]
pub fn decode_info_request(data: &[u8]) -> Option<InfoRequest<'_>> {
    let mut fields = Fields(data);
    let mut request = InfoRequest {
        name: fields.string()?,
        wants_name: false,
        wants_description: false,
        wants_block_size: false,
    };
    for _ in 0..fields.u16()? {
        match fields.u16()? {
            info::NAME => request.wants_name = true,
            info::DESCRIPTION => request.wants_description = true,
            info::BLOCK_SIZE => request.wants_block_size = true,
            _ => {}
        }
    }
    fields.is_empty().then_some(request)
}

/// Data of INFO and GO, as a client sends it.
#[must_use]
pub fn encode_info_request(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = Vec::new();
    put_length(&mut data, name.len());
    data.extend_from_slice(name.as_bytes());
    let count = u16::try_from(wanted.len()).expect("there are only a handful of kinds of information");
    data.extend_from_slice(&count.to_be_bytes());
    wanted.iter().for_each(|kind| data.extend_from_slice(&kind.to_be_bytes()));
    data
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetaRequest<'a> {
    /// The export; empty for the default one.
    pub name: &'a str,
    /// What is asked for.
    pub queries: Vec<&'a str>,
}

/// Reads the data of LIST_META_CONTEXT and SET_META_CONTEXT; `None` where it is not well formed.
#[must_use]
pub fn decode_meta_request(data: &[u8]) -> Option<MetaRequest<'_>> {
    let mut fields = Fields(data);
    let name = fields.string()?;
    let mut queries = Vec::new();
    for _ in 0..fields.u32()? {
        queries.push(fields.string()?);
    }
    fields.is_empty().then_some(MetaRequest { name, queries })
}

/// Data of SET_META_CONTEXT, as a client sends it.
#[must_use]
pub fn encode_meta_request(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = Vec::new();
    put_length(&mut data, name.len());
    data.extend_from_slice(name.as_bytes());
    put_length(&mut data, queries.len());
    for query in queries {
        put_length(&mut data, query.len());
        data.extend_from_slice(query.as_bytes());
    }
    data
}

/// Data of a REP_SERVER: an export and its description.
#[must_use]
pub fn encode_server(name: &str, description: &str) -> Vec<u8> {
    let mut data = Vec::with_capacity(4 + name.len() + description.len());
    put_length(&mut data, name.len());
    data.extend_from_slice(name.as_bytes());
    data.extend_from_slice(description.as_bytes());
    data
}

/// Data of a REP_META_CONTEXT.
#[must_use]
pub fn encode_meta_context(id: u32, name: &str) -> Vec<u8> {
    let mut data = id.to_be_bytes().to_vec();
    data.extend_from_slice(name.as_bytes());
    data
}

/// Data of a REP_INFO about the export: its size in bytes and transmission flags.
#[must_use]
pub fn encode_info_export(size: u64, flags: u16) -> Vec<u8> {
    let mut data = info::EXPORT.to_be_bytes().to_vec();
    data.extend_from_slice(&size.to_be_bytes());
    data.extend_from_slice(&flags.to_be_bytes());
    data
}

/// Data of a REP_INFO that is a string: name or description.
#[must_use]
pub fn encode_info_string(kind: u16, text: &str) -> Vec<u8> {
    let mut data = kind.to_be_bytes().to_vec();
    data.extend_from_slice(text.as_bytes());
    data
}

/// Data of a REP_INFO about block sizes, all in bytes.
#[must_use]
pub fn encode_info_block_size(minimum: u32, preferred: u32, payload_max: u32) -> Vec<u8> {
    let mut data = info::BLOCK_SIZE.to_be_bytes().to_vec();
    for size in [minimum, preferred, payload_max] {
        data.extend_from_slice(&size.to_be_bytes());
    }
    data
}

/// Size in bytes and transmission flags, if the data of a REP_INFO speaks of them.
#[must_use]
pub fn decode_info_export(data: &[u8]) -> Option<(u64, u16)> {
    let mut fields = Fields(data);
    if fields.u16()? != info::EXPORT {
        return None;
    }
    Some((fields.u64()?, fields.u16()?))
}

/// The greatest payload in bytes, if the data of a REP_INFO speaks of it.
#[must_use]
pub fn decode_info_payload_max(data: &[u8]) -> Option<u32> {
    let mut fields = Fields(data);
    if fields.u16()? != info::BLOCK_SIZE {
        return None;
    }
    fields.bytes(8)?;
    fields.u32()
}

/// The number of the context, if the data of a REP_META_CONTEXT is about `name`.
#[must_use]
pub fn decode_meta_context(data: &[u8], name: &str) -> Option<u32> {
    let mut fields = Fields(data);
    let id = fields.u32()?;
    (fields.0 == name.as_bytes()).then_some(id)
}

const SESSION: &str = "sinter:session:";

impl SessionId {
    /// A new one, from random bytes: who guesses it can end the session's connection.
    #[must_use]
    pub fn from_random(bytes: [u8; 16]) -> SessionId {
        SessionId(u128::from_be_bytes(bytes))
    }

    /// The name by which it is told in the handshake, as if it were a context.
    #[must_use]
    pub fn name(self) -> String {
        format!("{SESSION}{:032x}", self.0)
    }

    /// Reads the name.
    #[must_use]
    pub fn parse(name: &str) -> Option<SessionId> {
        let digits = name.strip_prefix(SESSION)?;
        let plain = digits.len() == 32 && digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        if plain { u128::from_str_radix(digits, 16).ok().map(SessionId) } else { None }
    }
}

const TERMS: &str = "sinter:history:";

/// What a client of a session is told, as if it were a context's name.
#[must_use]
pub fn encode_terms(terms: &SessionTerms) -> String {
    let history = terms.history.map(|history| format!("{:032x}", u128::from_be_bytes(history.0)));
    let memory = terms.memory.map(|memory| format!("{:016x}", memory.0));
    format!("{TERMS}{}:{}", history.unwrap_or_default(), memory.unwrap_or_default())
}

/// Reads it from the data of a REP_META_CONTEXT; `None` for anything else.
#[must_use]
pub fn decode_terms(data: &[u8]) -> Option<SessionTerms> {
    let mut fields = Fields(data);
    fields.u32()?;
    let (history, memory) = std::str::from_utf8(fields.0).ok()?.strip_prefix(TERMS)?.split_once(':')?;
    let number = |text: &str, len| {
        let plain = text.len() == len && text.bytes().all(|digit| digit.is_ascii_hexdigit());
        if plain { u128::from_str_radix(text, 16).ok() } else { None }
    };
    let history = match history {
        "" => None,
        text => Some(Uuid(number(text, 32)?.to_be_bytes())),
    };
    let memory = match memory {
        "" => None,
        text => Some(SessionMemory(u64::try_from(number(text, 16)?).ok()?)),
    };
    Some(SessionTerms { history, memory })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn requests_read_back_what_they_say() {
        let data = encode_info_request("demo", &[info::BLOCK_SIZE, 99, info::NAME]);
        let request = decode_info_request(&data).unwrap();
        assert_eq!((request.name, request.wants_name, request.wants_description), ("demo", true, false));
        assert!(request.wants_block_size);
        let data = encode_meta_request("demo", &[BASE_ALLOCATION]);
        let request = decode_meta_request(&data).unwrap();
        assert_eq!(request, MetaRequest { name: "demo", queries: vec![BASE_ALLOCATION] });
    }

    proptest! {
        #[test]
        fn terms_read_back_what_they_say(history in any::<Option<[u8; 16]>>(), memory in any::<Option<u64>>()) {
            let terms = SessionTerms { history: history.map(Uuid), memory: memory.map(SessionMemory) };
            let name = encode_terms(&terms);
            let data = [&[0; 4], name.as_bytes()].concat();
            prop_assert_eq!(decode_terms(&data), Some(terms));
            prop_assert_eq!(decode_terms(&data[..data.len() - 1]).filter(|_| memory.is_some()), None);
            prop_assert_eq!(decode_terms(&data[4..]), None);
        }
    }

    #[test]
    fn sessions_are_known_by_their_name() {
        for session in [SessionId(0), SessionId(0xfeed), SessionId(u128::MAX)] {
            assert_eq!(SessionId::parse(&session.name()), Some(session));
        }
        for other in
            ["sinter:session:", "sinter:session:feed", "sinter:session:+0000000000000000000000000000001"]
        {
            assert_eq!(SessionId::parse(other), None);
        }
    }

    #[test]
    fn lengths_that_lie_are_refused() {
        let mut data = encode_info_request("demo", &[]);
        data[3] = 200;
        assert_eq!(decode_info_request(&data), None);
        data[..4].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(decode_info_request(&data), None);
        let mut data = encode_meta_request("demo", &[BASE_ALLOCATION]);
        data[8..12].copy_from_slice(&u32::MAX.to_be_bytes());
        assert_eq!(decode_meta_request(&data), None);
        let mut data = encode_info_request("demo", &[]);
        data.push(0);
        assert_eq!(decode_info_request(&data), None, "bytes left over");
        assert_eq!(decode_info_request(&encode_info_request("a\0b", &[])), None, "NUL in a name");
        assert_eq!(decode_info_request(&encode_info_request(&"x".repeat(4097), &[])), None);
    }

    proptest! {
        #[test]
        fn decoders_answer_any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            let _ = decode_client_flags(&bytes);
            let _ = decode_option_head(&bytes);
            let _ = decode_info_request(&bytes);
            let _ = decode_meta_request(&bytes);
            let _ = decode_info_export(&bytes);
            let _ = decode_info_payload_max(&bytes);
            let _ = decode_meta_context(&bytes, BASE_ALLOCATION);
        }

        #[test]
        fn option_heads_read_back(option: u32, data in proptest::collection::vec(any::<u8>(), 0..64)) {
            let mut out = Vec::new();
            put_option(&mut out, option, &data);
            let head = OptionHead { option, data_bytes: u32::try_from(data.len()).unwrap() };
            prop_assert_eq!(decode_option_head(&out), Decoded::Complete(head));
            prop_assert_eq!(decode_option_head(&out[..OPTION_HEAD_BYTES - 1]), Decoded::Incomplete);
            out[3] ^= 1;
            prop_assert_eq!(decode_option_head(&out), Decoded::Foreign);
        }
    }
}
