//! A client that builds its packets by hand, so that it can send wrong ones.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::Fixture;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;
pub(crate) const DISC: u16 = 2;
pub(crate) const FLUSH: u16 = 3;
pub(crate) const TRIM: u16 = 4;
pub(crate) const CACHE: u16 = 5;
pub(crate) const WRITE_ZEROES: u16 = 6;
pub(crate) const BLOCK_STATUS: u16 = 7;
pub(crate) const FUA: u16 = 1;
pub(crate) const PAYLOAD_LEN: u16 = 1 << 5;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Style {
    Simple,
    Structured,
    Extended,
}

pub(crate) struct Raw {
    pub(crate) stream: UnixStream,
    pub(crate) style: Style,
}

/// A simple reply, or one chunk.
#[derive(Debug, PartialEq, Eq, Clone)]
pub(crate) struct Answer {
    pub(crate) cookie: u64,
    /// 0, or the error.
    pub(crate) error: u32,
    pub(crate) kind: u16,
    pub(crate) payload: Vec<u8>,
}

pub(crate) fn request(
    style: Style,
    flags: u16,
    command: u16,
    cookie: u64,
    offset: u64,
    length: u64,
) -> Vec<u8> {
    let magic: u32 = if style == Style::Extended { 0x21e4_1c71 } else { 0x2560_9513 };
    let mut bytes = magic.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    if style == Style::Extended {
        bytes.extend(length.to_be_bytes());
    } else {
        bytes.extend(u32::try_from(length).unwrap().to_be_bytes());
    }
    bytes
}

pub(crate) fn option(number: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = b"IHAVEOPT".to_vec();
    bytes.extend(number.to_be_bytes());
    bytes.extend(u32::try_from(data.len()).unwrap().to_be_bytes());
    bytes.extend(data);
    bytes
}

/// Data of INFO and GO.
pub(crate) fn info_data(name: &str, wanted: &[u16]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(u16::try_from(wanted.len()).unwrap().to_be_bytes());
    wanted.iter().for_each(|kind| data.extend(kind.to_be_bytes()));
    data
}

/// Data of LIST_META_CONTEXT and SET_META_CONTEXT.
pub(crate) fn meta_data(name: &str, queries: &[&str]) -> Vec<u8> {
    let mut data = u32::try_from(name.len()).unwrap().to_be_bytes().to_vec();
    data.extend(name.as_bytes());
    data.extend(u32::try_from(queries.len()).unwrap().to_be_bytes());
    for query in queries {
        data.extend(u32::try_from(query.len()).unwrap().to_be_bytes());
        data.extend(query.as_bytes());
    }
    data
}

impl Raw {
    /// Only the greeting and its answer.
    pub(crate) fn greeted(fixture: &Fixture) -> Raw {
        let mut stream = UnixStream::connect(fixture.socket()).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        let mut greeting = [0; 18];
        stream.read_exact(&mut greeting).unwrap();
        assert_eq!(&greeting[..16], b"NBDMAGICIHAVEOPT");
        assert_eq!(greeting[16..], [0, 3]);
        stream.write_all(&3u32.to_be_bytes()).unwrap();
        Raw { stream, style: Style::Simple }
    }

    /// Ready for requests to the export `v`, with `base:allocation` where the style has it.
    pub(crate) fn connected(fixture: &Fixture, style: Style) -> Raw {
        let mut raw = Raw::greeted(fixture);
        match style {
            Style::Simple => {}
            Style::Structured => assert_eq!(raw.haggle(8, &[]), [(1, vec![])]),
            Style::Extended => assert_eq!(raw.haggle(11, &[]), [(1, vec![])]),
        }
        if style != Style::Simple {
            assert_eq!(raw.haggle(10, &meta_data("v", &["base:allocation"])).len(), 2);
        }
        let replies = raw.haggle(7, &info_data("v", &[]));
        assert_eq!(replies.last(), Some(&(1, vec![])));
        raw.style = style;
        raw
    }

    pub(crate) fn send(&mut self, bytes: &[u8]) {
        self.stream.write_all(bytes).unwrap();
    }

    /// Sends an option and collects the replies (kind, data) up to the last.
    pub(crate) fn haggle(&mut self, number: u32, data: &[u8]) -> Vec<(u32, Vec<u8>)> {
        self.send(&option(number, data));
        let mut replies = Vec::new();
        loop {
            let mut head = [0; 20];
            self.stream.read_exact(&mut head).unwrap();
            assert_eq!(head[..8], 0x0003_e889_0455_65a9u64.to_be_bytes());
            assert_eq!(head[8..12], number.to_be_bytes());
            let kind = u32::from_be_bytes(head[12..16].try_into().unwrap());
            let mut data = vec![0; u32::from_be_bytes(head[16..].try_into().unwrap()) as usize];
            self.stream.read_exact(&mut data).unwrap();
            replies.push((kind, data));
            if kind == 1 || kind >> 31 == 1 {
                return replies;
            }
        }
    }

    pub(crate) fn request(&mut self, flags: u16, command: u16, cookie: u64, offset: u64, length: u64) {
        let bytes = request(self.style, flags, command, cookie, offset, length);
        self.send(&bytes);
    }

    pub(crate) fn write(&mut self, flags: u16, cookie: u64, offset: u64, data: &[u8]) {
        let payload = if self.style == Style::Extended { PAYLOAD_LEN } else { 0 };
        let mut bytes = request(self.style, flags | payload, WRITE, cookie, offset, data.len() as u64);
        bytes.extend(data);
        self.send(&bytes);
    }

    /// The next reply. `data_bytes` follow a simple reply without error.
    pub(crate) fn answer(&mut self, data_bytes: usize) -> Answer {
        let mut magic = [0; 4];
        self.stream.read_exact(&mut magic).unwrap();
        let mut rest = vec![0; if magic == 0x6e8a_278cu32.to_be_bytes() { 28 } else { 12 }];
        self.stream.read_exact(&mut rest).unwrap();
        match u32::from_be_bytes(magic) {
            0x6744_6698 => {
                let error = u32::from_be_bytes(rest[..4].try_into().unwrap());
                let cookie = u64::from_be_bytes(rest[4..].try_into().unwrap());
                let mut payload = vec![0; if error == 0 { data_bytes } else { 0 }];
                self.stream.read_exact(&mut payload).unwrap();
                Answer { cookie, error, kind: 0, payload }
            }
            0x668e_33ef => {
                let mut len = [0; 4];
                self.stream.read_exact(&mut len).unwrap();
                self.chunk(&rest, u32::from_be_bytes(len) as usize)
            }
            0x6e8a_278c => {
                let len = u64::from_be_bytes(rest[20..].try_into().unwrap());
                self.chunk(&rest, usize::try_from(len).unwrap())
            }
            other => panic!("no reply begins with {other:#x}"),
        }
    }

    fn chunk(&mut self, head: &[u8], len: usize) -> Answer {
        assert_eq!(head[..2], [0, 1], "every reply of this server is one chunk");
        let kind = u16::from_be_bytes(head[2..4].try_into().unwrap());
        let cookie = u64::from_be_bytes(head[4..12].try_into().unwrap());
        let mut payload = vec![0; len];
        self.stream.read_exact(&mut payload).unwrap();
        let error = if kind >> 15 == 1 { u32::from_be_bytes(payload[..4].try_into().unwrap()) } else { 0 };
        Answer { cookie, error, kind, payload }
    }

    /// Nothing more comes: the server has closed the connection.
    pub(crate) fn assert_closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is a close, too: the server did not read everything.
        match self.stream.read_to_end(&mut rest) {
            Ok(_) => assert!(rest.is_empty(), "unexpected: {rest:x?}"),
            Err(error) => assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset),
        }
    }

    /// No reply comes for a little while.
    pub(crate) fn assert_silent(&mut self) {
        self.stream.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
        let error = self.stream.read(&mut [0]).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::WouldBlock);
        self.stream.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    }
}
