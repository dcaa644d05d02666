//! The NBD wire format: structures to bytes and back, and nothing else.
//!
//! All numbers are big-endian. Decoders are total: they answer every sequence of bytes, take no
//! length on trust, and allocate nothing that the input does not already occupy.

pub mod options;
pub mod transmission;

/// What a decoder of a stream found at its start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decoded<T> {
    /// The beginning of something; more bytes must come first.
    Incomplete,
    /// Not the protocol: the connection can only be closed.
    Foreign,
    /// The whole head; the decoder's constant says how many bytes it took.
    Complete(T),
}

/// Reads numbers and strings from the front of a slice.
#[derive(Clone, Copy, Debug)]
struct Fields<'a>(&'a [u8]);

impl<'a> Fields<'a> {
    fn bytes(&mut self, len: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(len)?;
        self.0 = rest;
        Some(head)
    }

    fn u16(&mut self) -> Option<u16> {
        self.bytes(2)?.try_into().ok().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Option<u32> {
        self.bytes(4)?.try_into().ok().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.bytes(8)?.try_into().ok().map(u64::from_be_bytes)
    }

    /// A string with its length in 32 bits before it ("Conventions": UTF-8, no NUL, at most
    /// 4096 bytes).
    fn string(&mut self) -> Option<&'a str> {
        let len = usize::try_from(self.u32()?).ok()?;
        string(self.bytes(len)?)
    }

    fn is_empty(self) -> bool {
        self.0.is_empty()
    }
}

/// Longest string of the protocol, in bytes.
pub const STRING_BYTES_MAX: usize = 4096;

/// A string as the protocol allows it, or nothing.
#[must_use]
pub fn string(bytes: &[u8]) -> Option<&str> {
    if bytes.len() > STRING_BYTES_MAX || bytes.contains(&0) {
        return None;
    }
    std::str::from_utf8(bytes).ok()
}

/// `text`, cut at a character boundary so that it takes at most `len_max` bytes.
#[must_use]
pub fn shortened(text: &str, len_max: usize) -> &str {
    let mut end = text.len().min(len_max);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}
