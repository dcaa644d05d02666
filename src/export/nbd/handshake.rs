//! The server's side of the handshake, as a state machine over bytes: it reads no socket.
//!
//! Protocol: "Fixed newstyle negotiation" and the options under "Option types". TLS is not
//! offered (NOTLS mode).

use std::sync::Arc;

use super::wire::options::{
    CLIENT_FLAGS_BYTES, EXPORT_NAME_PADDING_BYTES, FLAG_FIXED_NEWSTYLE, FLAG_NO_ZEROES, InfoRequest,
    OPTION_HEAD_BYTES, decode_client_flags, decode_info_request, decode_meta_request, decode_option_head,
    encode_greeting, encode_info_block_size, encode_info_export, encode_info_string, encode_meta_context,
    encode_server, info, option, put_option_reply, reply, transmission_flag,
};
use super::wire::transmission::{PAYLOAD_BYTES_MAX, Style};
use super::wire::{Decoded, STRING_BYTES_MAX, shortened, string};
use super::{Contexts, ExportEntry, ExportSource};
use crate::array::service::BlockService;
use crate::error::{Error, ErrorKind, Result};
use crate::units::ByteCount;

/// Greatest length of one option's data in bytes; a client that sends more is cut off.
pub const OPTION_DATA_BYTES_MAX: usize = 64 << 10;

/// The most options in one handshake; a client that sends more is cut off.
const OPTIONS_MAX: u32 = 4096;

const MINIMUM_BLOCK_BYTES: u32 = 1;
const PREFERRED_BLOCK_BYTES: u32 = 4096;

/// What a finished handshake agreed on.
#[derive(Clone)]
pub struct Negotiated {
    /// The export's own name (never empty).
    pub name: String,
    /// The export.
    pub service: Arc<dyn BlockService>,
    /// Its size for the whole life of the connection.
    pub size: ByteCount,
    /// Whether it refuses writes.
    pub read_only: bool,
    /// The form of requests and replies.
    pub style: Style,
    /// What BLOCK_STATUS may be asked for.
    pub contexts: Contexts,
}

/// What one step of the handshake did.
pub enum Step {
    /// Nothing: more bytes must come first.
    More,
    /// It used up this many bytes of the input.
    Taken(usize),
    /// It used up this many bytes, and what follows them is the transmission phase.
    Go(usize, Box<Negotiated>),
    /// The connection is to be closed, once what was put out has been sent.
    Close,
}

/// One client's handshake.
#[derive(Default)]
pub struct Handshake {
    flags_seen: bool,
    no_zeroes: bool,
    structured: bool,
    extended: bool,
    /// The export for which contexts were chosen, by its own name, and which.
    contexts_of: Option<(String, Contexts)>,
    options: u32,
}

impl Handshake {
    /// The bytes that the server sends first.
    #[must_use]
    pub fn greeting() -> [u8; 18] {
        encode_greeting(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES)
    }

    /// Takes at most one message from the front of `input` and appends the answer to `output`.
    pub fn step(&mut self, input: &[u8], output: &mut Vec<u8>, exports: &dyn ExportSource) -> Step {
        if !self.flags_seen {
            return self.client_flags(input);
        }
        let head = match decode_option_head(input) {
            Decoded::Incomplete => return Step::More,
            Decoded::Foreign => return Step::Close,
            Decoded::Complete(head) => head,
        };
        let data_bytes = head.data_bytes as usize;
        if data_bytes > OPTION_DATA_BYTES_MAX || self.options >= OPTIONS_MAX {
            return Step::Close;
        }
        let total = OPTION_HEAD_BYTES + data_bytes;
        let Some(data) = input.get(OPTION_HEAD_BYTES..total) else { return Step::More };
        self.options += 1;
        let mut answer = Answer { option: head.option, output };
        match self.option(head.option, data, &mut answer, exports) {
            Verdict::Go(on) => Step::Go(total, on),
            Verdict::Haggle => Step::Taken(total),
            Verdict::Close => Step::Close,
        }
    }

    fn client_flags(&mut self, input: &[u8]) -> Step {
        let Decoded::Complete(flags) = decode_client_flags(input) else { return Step::More };
        if flags & !u32::from(FLAG_FIXED_NEWSTYLE | FLAG_NO_ZEROES) != 0 {
            return Step::Close;
        }
        self.flags_seen = true;
        self.no_zeroes = flags & u32::from(FLAG_NO_ZEROES) != 0;
        Step::Taken(CLIENT_FLAGS_BYTES)
    }

    fn option(
        &mut self,
        number: u32,
        data: &[u8],
        answer: &mut Answer<'_>,
        exports: &dyn ExportSource,
    ) -> Verdict {
        match number {
            option::EXPORT_NAME => return self.export_name(data, answer, exports),
            option::ABORT => {
                answer.ack();
                return Verdict::Close;
            }
            option::INFO | option::GO => return self.info(number, data, answer, exports),
            option::LIST_META_CONTEXT | option::SET_META_CONTEXT => {
                self.meta_context(number, data, answer, exports);
            }
            option::LIST | option::STRUCTURED_REPLY | option::EXTENDED_HEADERS | option::STARTTLS
                if !data.is_empty() =>
            {
                answer.refuse(reply::ERR_INVALID, "this option takes no data");
            }
            option::LIST => {
                for entry in exports.list() {
                    let description = shortened(&entry.description, STRING_BYTES_MAX);
                    answer.put(reply::SERVER, &encode_server(&entry.name, description));
                }
                answer.ack();
            }
            option::STARTTLS => answer.refuse(reply::ERR_UNSUP, "TLS is not offered"),
            option::STRUCTURED_REPLY if self.extended => {
                answer.refuse(reply::ERR_EXT_HEADER_REQD, "extended headers are already agreed on");
            }
            option::STRUCTURED_REPLY => {
                self.structured = true;
                answer.ack();
            }
            option::EXTENDED_HEADERS => {
                self.extended = true;
                answer.ack();
            }
            _ => answer.refuse(reply::ERR_UNSUP, "unknown option"),
        }
        Verdict::Haggle
    }

    /// EXPORT_NAME has no way to refuse but to close the connection.
    fn export_name(&self, data: &[u8], answer: &mut Answer<'_>, exports: &dyn ExportSource) -> Verdict {
        let Some(name) = string(data) else { return Verdict::Close };
        if self.extended {
            return Verdict::Close;
        }
        let Ok((entry, service)) = open(name, exports) else { return Verdict::Close };
        let negotiated = self.negotiated(entry, service);
        answer.output.extend_from_slice(&negotiated.size.0.to_be_bytes());
        answer.output.extend_from_slice(&negotiated.transmission_flags().to_be_bytes());
        if !self.no_zeroes {
            answer.output.extend_from_slice(&[0; EXPORT_NAME_PADDING_BYTES]);
        }
        Verdict::Go(Box::new(negotiated))
    }

    fn info(&self, number: u32, data: &[u8], answer: &mut Answer<'_>, exports: &dyn ExportSource) -> Verdict {
        let Some(request) = decode_info_request(data) else {
            answer.refuse(reply::ERR_INVALID, "the request for information is not well formed");
            return Verdict::Haggle;
        };
        let (entry, service) = match open(request.name, exports) {
            Ok(found) => found,
            Err(error) => {
                answer.refuse_export(&error);
                return Verdict::Haggle;
            }
        };
        let description = entry.description.clone();
        let negotiated = self.negotiated(entry, service);
        put_infos(&request, &negotiated, &description, answer);
        answer.ack();
        if number == option::GO { Verdict::Go(Box::new(negotiated)) } else { Verdict::Haggle }
    }

    fn meta_context(
        &mut self,
        number: u32,
        data: &[u8],
        answer: &mut Answer<'_>,
        exports: &dyn ExportSource,
    ) {
        let set = number == option::SET_META_CONTEXT;
        if set {
            // What was chosen before is gone even where this request fails.
            self.contexts_of = None;
        }
        let Some(request) = decode_meta_request(data) else {
            return answer.refuse(reply::ERR_INVALID, "the query for contexts is not well formed");
        };
        if set && !self.structured && !self.extended {
            return answer.refuse(reply::ERR_INVALID, "contexts need structured replies or extended headers");
        }
        let (entry, _) = match open(request.name, exports) {
            Ok(found) => found,
            Err(error) => return answer.refuse_export(&error),
        };
        let mut put =
            |number, name: &str| answer.put(reply::META_CONTEXT, &encode_meta_context(number, name));
        if set {
            let contexts = Contexts::choose(&request, &entry.name, exports, put);
            self.contexts_of = Some((entry.name, contexts));
        } else {
            Contexts::list(&request, &entry.name, exports, |name| put(0, name));
        }
        answer.ack();
    }

    fn negotiated(&self, entry: ExportEntry, service: Arc<dyn BlockService>) -> Negotiated {
        let style = if self.extended {
            Style::Extended
        } else if self.structured {
            Style::Structured
        } else {
            Style::Simple
        };
        let contexts = self.contexts_of.as_ref().filter(|(export, _)| *export == entry.name);
        let contexts = contexts.map(|(_, contexts)| contexts.clone()).unwrap_or_default();
        let (size, read_only) = (service.size(), service.read_only());
        Negotiated { name: entry.name, service, size, read_only, style, contexts }
    }
}

impl Negotiated {
    /// What the export can do, for this client ("Transmission flags").
    #[must_use]
    pub fn transmission_flags(&self) -> u16 {
        use transmission_flag as flag;
        let mut flags = flag::HAS_FLAGS
            | flag::SEND_FLUSH
            | flag::SEND_FUA
            | flag::SEND_CACHE
            // All connections look at the same volume, and a flush covers the writes of all.
            | flag::CAN_MULTI_CONN;
        if self.read_only {
            flags |= flag::READ_ONLY;
        } else {
            flags |= flag::SEND_TRIM | flag::SEND_WRITE_ZEROES | flag::SEND_FAST_ZERO;
        }
        if self.style != Style::Simple {
            flags |= flag::SEND_DF;
        }
        if self.style == Style::Extended && !self.contexts.is_empty() {
            flags |= flag::BLOCK_STATUS_PAYLOAD;
        }
        flags
    }
}

enum Verdict {
    Haggle,
    Go(Box<Negotiated>),
    Close,
}

/// Writes the replies to one option.
struct Answer<'a> {
    option: u32,
    output: &'a mut Vec<u8>,
}

impl Answer<'_> {
    fn put(&mut self, kind: u32, data: &[u8]) {
        put_option_reply(self.output, self.option, kind, data);
    }

    fn ack(&mut self) {
        self.put(reply::ACK, &[]);
    }

    fn refuse(&mut self, kind: u32, message: &str) {
        self.put(kind, shortened(message, STRING_BYTES_MAX).as_bytes());
    }

    fn refuse_export(&mut self, error: &Error) {
        let kind = match error.kind() {
            ErrorKind::NotFound | ErrorKind::Invalid => reply::ERR_UNKNOWN,
            ErrorKind::NotPrimary | ErrorKind::NoQuorum | ErrorKind::Unreachable => reply::ERR_SHUTDOWN,
            ErrorKind::Exists
            | ErrorKind::Busy
            | ErrorKind::Changed
            | ErrorKind::NoSpace
            | ErrorKind::Corrupt
            | ErrorKind::Device
            | ErrorKind::Stopped
            | ErrorKind::ReadOnly
            | ErrorKind::Unsupported => reply::ERR_POLICY,
        };
        self.refuse(kind, &error.to_string());
    }
}

fn put_infos(request: &InfoRequest<'_>, export: &Negotiated, description: &str, answer: &mut Answer<'_>) {
    answer.put(reply::INFO, &encode_info_export(export.size.0, export.transmission_flags()));
    if request.wants_name {
        answer.put(reply::INFO, &encode_info_string(info::NAME, &export.name));
    }
    if request.wants_description && !description.is_empty() {
        let description = shortened(description, STRING_BYTES_MAX);
        answer.put(reply::INFO, &encode_info_string(info::DESCRIPTION, description));
    }
    if request.wants_block_size {
        let sizes = encode_info_block_size(MINIMUM_BLOCK_BYTES, PREFERRED_BLOCK_BYTES, PAYLOAD_BYTES_MAX);
        answer.put(reply::INFO, &sizes);
    }
}

/// The export that a client means by `name`, with its own name and description.
fn open(name: &str, exports: &dyn ExportSource) -> Result<(ExportEntry, Arc<dyn BlockService>)> {
    let mut listed = exports.list();
    let entry = if name.is_empty() {
        let only = if listed.len() == 1 { listed.pop() } else { None };
        only.ok_or_else(|| Error::new(ErrorKind::NotFound, "there is no default export: name one"))?
    } else {
        // A name that is not listed may still be served: snapshots, for one.
        let unlisted = || ExportEntry { name: name.to_owned(), description: String::new() };
        listed.into_iter().find(|entry| entry.name == name).unwrap_or_else(unlisted)
    };
    let service = exports.open(&entry.name)?;
    Ok((entry, service))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::export::nbd::wire::options::put_option;

    struct Nothing;

    impl ExportSource for Nothing {
        fn list(&self) -> Vec<ExportEntry> {
            vec![ExportEntry { name: "gone".to_owned(), description: String::new() }]
        }

        fn open(&self, name: &str) -> Result<Arc<dyn BlockService>> {
            Err(Error::new(ErrorKind::NotFound, name))
        }
    }

    /// Feeds the bytes until they are used up or refused; how many of them were taken.
    fn feed(mut input: &[u8], output: &mut Vec<u8>) -> usize {
        let mut handshake = Handshake::default();
        let len = input.len();
        while let Step::Taken(bytes) = handshake.step(input, output, &Nothing) {
            assert!(bytes > 0, "every step makes progress");
            input = &input[bytes..];
        }
        len - input.len()
    }

    proptest! {
        #[test]
        fn any_bytes_are_answered(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
            feed(&bytes, &mut Vec::new());
        }

        #[test]
        fn any_data_of_any_option_is_answered(
            options in proptest::collection::vec((0u32..14, proptest::collection::vec(any::<u8>(), 0..64)), 0..8),
        ) {
            let mut input = 3u32.to_be_bytes().to_vec();
            for (number, data) in &options {
                put_option(&mut input, *number, data);
            }
            let ends = [option::EXPORT_NAME, option::ABORT];
            let ended = options.iter().any(|(number, _)| ends.contains(number));
            let mut output = Vec::new();
            let taken = feed(&input, &mut output);
            prop_assert_eq!(taken == input.len(), !ended, "only these two end a handshake without an export");
        }
    }
}
