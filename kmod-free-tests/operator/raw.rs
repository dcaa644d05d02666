//! The smallest NBD client there can be: it asks, and need not listen.

use std::io::Read;
use std::io::Write;
use std::os::unix::net::UnixStream;
use std::path::Path;

pub(crate) const READ: u16 = 0;
pub(crate) const WRITE: u16 = 1;

/// A connection to an export, by the oldest way to ask for one.
pub(crate) fn connect(socket: &Path, export: &str) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.set_read_timeout(Some(std::time::Duration::from_secs(30))).unwrap();
    ask_for(&mut stream, export);
    stream
}

/// Comes to terms about an export on a fresh connection.
pub(crate) fn ask_for(stream: &mut (impl Read + Write), export: &str) {
    let mut greeting = [0; 18];
    stream.read_exact(&mut greeting).unwrap();
    // Both flags: options of any kind, and no zeros after the answer.
    let mut ask = 3u32.to_be_bytes().to_vec();
    ask.extend(b"IHAVEOPT");
    ask.extend(1u32.to_be_bytes());
    ask.extend(u32::try_from(export.len()).unwrap().to_be_bytes());
    ask.extend(export.as_bytes());
    stream.write_all(&ask).unwrap();
    let mut answer = [0; 10];
    stream.read_exact(&mut answer).unwrap();
}

/// A request, with the data of a write behind it.
pub(crate) fn request(command: u16, cookie: u64, offset: u64, length: u32, data: &[u8]) -> Vec<u8> {
    let mut bytes = 0x2560_9513u32.to_be_bytes().to_vec();
    bytes.extend([0, 0]);
    bytes.extend(command.to_be_bytes());
    bytes.extend(cookie.to_be_bytes());
    bytes.extend(offset.to_be_bytes());
    bytes.extend(length.to_be_bytes());
    bytes.extend(data);
    bytes
}

/// The error of the next answer, which carries no data, and the request that it answers.
pub(crate) fn answer(stream: &mut impl Read) -> (u32, u64) {
    let mut bytes = [0; 16];
    stream.read_exact(&mut bytes).unwrap();
    assert_eq!(bytes[..4], 0x6744_6698u32.to_be_bytes());
    (u32::from_be_bytes(bytes[4..8].try_into().unwrap()), u64::from_be_bytes(bytes[8..].try_into().unwrap()))
}
