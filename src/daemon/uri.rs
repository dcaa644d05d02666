//! NBD URIs ("The NBD Uniform Resource Indicator (URI) format" of the NBD project).

use std::net::SocketAddr;
use std::path::Path;
use std::path::PathBuf;

/// Where an NBD server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NbdEndpoint {
    /// At an address and port.
    Tcp(SocketAddr),
    /// At a Unix socket.
    Unix(PathBuf),
}

impl NbdEndpoint {
    /// The URI of the server (an empty export name) or of one export.
    #[must_use]
    pub fn uri(&self, export: &str) -> String {
        let name = encode(export.as_bytes(), b"-._~");
        match self {
            NbdEndpoint::Tcp(address) if name.is_empty() => format!("nbd://{address}"),
            NbdEndpoint::Tcp(address) => format!("nbd://{address}/{name}"),
            NbdEndpoint::Unix(path) => {
                let path = encode(path.as_os_str().as_encoded_bytes(), b"-._~/");
                format!("nbd+unix:///{name}?socket={path}")
            }
        }
    }

    /// Reads what `uri` writes for an empty export name.
    #[must_use]
    pub fn parse(uri: &str) -> Option<NbdEndpoint> {
        if let Some(path) = uri.strip_prefix("nbd+unix:///?socket=") {
            let bytes = decode(path)?;
            let path = String::from_utf8(bytes).ok()?;
            return Some(NbdEndpoint::Unix(Path::new(&path).to_path_buf()));
        }
        uri.strip_prefix("nbd://")?.parse().ok().map(NbdEndpoint::Tcp)
    }
}

/// Percent-encodes all but letters, digits and `plain` (RFC 3986, section 2).
#[must_use]
pub fn encode(bytes: &[u8], plain: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len());
    for byte in bytes {
        if byte.is_ascii_alphanumeric() || plain.contains(byte) {
            text.push(char::from(*byte));
        } else {
            text.push('%');
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789ABCDEF"[usize::from(nibble)]));
            }
        }
    }
    text
}

fn decode(text: &str) -> Option<Vec<u8>> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            bytes.push(*first);
            continue;
        }
        let (digits, after) = after.split_at_checked(2)?;
        bytes.push(u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok()?);
        rest = after;
    }
    Some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uris_are_those_of_the_nbd_tools() {
        let tcp = NbdEndpoint::Tcp(SocketAddr::from(([127, 0, 0, 1], 10809)));
        assert_eq!(tcp.uri("demo"), "nbd://127.0.0.1:10809/demo");
        assert_eq!(NbdEndpoint::parse(&tcp.uri("")), Some(tcp));
        let unix = NbdEndpoint::Unix(PathBuf::from("/run/a b/nbd.sock"));
        assert_eq!(unix.uri("\u{f6} 1"), "nbd+unix:///%C3%B6%201?socket=/run/a%20b/nbd.sock");
        assert_eq!(NbdEndpoint::parse(&unix.uri("")), Some(unix));
        assert_eq!(NbdEndpoint::parse("http://127.0.0.1"), None);
        assert_eq!(NbdEndpoint::parse("nbd+unix:///?socket=%f"), None);
    }
}
