//! What lets a node join: a line of text that says which cluster, where, as what, and until when.
//!
//! Whoever holds a token may join once the cluster has agreed to spend it, so it is as secret as a password.

use std::fmt;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use super::authority::{Authority, Fingerprint};
use super::{ClusterSecret, PeerRole};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bytes::{Append as _, Reader};
use crate::units::Uuid;

const PREFIX: &str = "sinter1.";
const ADDRESSES_MAX: usize = 16;
const CODE_BYTES: usize = 32;

/// The longest text that is looked at.
pub const TOKEN_TEXT_MAX: usize = 8192;

/// A token. `Display` writes it with its secret, `Debug` without.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    cluster: Uuid,
    authority: Fingerprint,
    role: PeerRole,
    id: [u8; 16],
    expires: Duration,
    addresses: Vec<String>,
    code: [u8; CODE_BYTES],
}

impl Token {
    pub(super) fn make(
        authority: &Authority,
        role: PeerRole,
        id: [u8; 16],
        expires: Duration,
        addresses: &[String],
    ) -> Result<Token> {
        let fit = !addresses.is_empty() && addresses.len() <= ADDRESSES_MAX;
        if !fit || !addresses.iter().all(|address| is_address(address.as_bytes())) {
            let what =
                format!("a token names 1 to {ADDRESSES_MAX} addresses as HOST:PORT, not {addresses:?}");
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let mut token = Token {
            cluster: authority.cluster(),
            authority: authority.fingerprint(),
            role,
            id,
            expires,
            addresses: addresses.to_vec(),
            code: [0; CODE_BYTES],
        };
        token.code = *authority.secret().token_code(&token.fields()).as_bytes();
        Ok(token)
    }

    /// Reads a token; white space around it does not matter.
    ///
    /// # Errors
    /// `Invalid` for anything that is none.
    pub fn parse(text: &str) -> Result<Token> {
        Token::read(text.trim())
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "this is not a join token, or it is damaged"))
    }

    fn read(text: &str) -> Option<Token> {
        if text.len() > TOKEN_TEXT_MAX {
            return None;
        }
        let bytes = URL_SAFE_NO_PAD.decode(text.strip_prefix(PREFIX)?).ok()?;
        let (fields, code) = bytes.split_last_chunk::<CODE_BYTES>()?;
        let mut reader = Reader::new(fields);
        let cluster = Uuid(reader.array()?);
        let authority = Fingerprint(reader.array()?);
        let role = PeerRole::of_number(reader.u8()?)?;
        let id = reader.array()?;
        let expires = Duration::from_secs(reader.u64()?);
        let count = usize::from(reader.u8()?);
        if count == 0 || count > ADDRESSES_MAX {
            return None;
        }
        let mut addresses = Vec::new();
        for _ in 0..count {
            let len = usize::from(reader.u8()?);
            let address = reader.take(len).filter(|address| is_address(address))?;
            addresses.push(std::str::from_utf8(address).ok()?.to_owned());
        }
        let token = Token { cluster, authority, role, id, expires, addresses, code: *code };
        reader.rest().is_empty().then_some(token)
    }

    fn fields(&self) -> Vec<u8> {
        let mut fields = Vec::new();
        fields.put_slice(&self.cluster.0);
        fields.put_slice(&self.authority.0);
        fields.put_u8(self.role.number());
        fields.put_slice(&self.id);
        fields.put_u64(self.expires.as_secs());
        // Both were bounded when the token was made or read.
        fields.put_u8(self.addresses.len() as u8);
        for address in &self.addresses {
            fields.put_u8(address.len() as u8);
            fields.put_slice(address.as_bytes());
        }
        fields
    }

    /// Whether this token was made by a data node of this cluster and has not expired. Whether it was spent before is
    /// for the cluster to decide.
    ///
    /// # Errors
    /// `Invalid`, with the reason.
    pub fn check(&self, cluster: Uuid, now: Duration, secret: &ClusterSecret) -> Result<()> {
        let refused = |what: &str| Err(Error::new(ErrorKind::Invalid, what));
        if self.cluster != cluster {
            return refused("the token is for another cluster");
        }
        if !self.is_genuine(secret) {
            return refused("the token was not made by this cluster, or was altered");
        }
        if now >= self.expires {
            return refused("the token has expired: make a new one with `sinter cluster token`");
        }
        Ok(())
    }

    /// Whether a node with this secret made it, whenever that was.
    #[must_use]
    pub fn is_genuine(&self, secret: &ClusterSecret) -> bool {
        // `blake3::Hash` compares in constant time.
        secret.token_code(&self.fields()) == blake3::Hash::from_bytes(self.code)
    }

    /// The cluster.
    #[must_use]
    pub fn cluster(&self) -> Uuid {
        self.cluster
    }

    /// The cluster's authority.
    #[must_use]
    pub fn authority(&self) -> Fingerprint {
        self.authority
    }

    /// What its holder becomes.
    #[must_use]
    pub fn role(&self) -> PeerRole {
        self.role
    }

    /// What the cluster remembers once it is spent.
    #[must_use]
    pub fn id(&self) -> [u8; 16] {
        self.id
    }

    /// When it ends.
    #[must_use]
    pub fn expires(&self) -> Duration {
        self.expires
    }

    /// Where to join, as `HOST:PORT`.
    #[must_use]
    pub fn addresses(&self) -> &[String] {
        &self.addresses
    }
}

/// `HOST:PORT` in visible ASCII of at most 255 bytes.
fn is_address(address: &[u8]) -> bool {
    let port = address.rsplit(|byte| *byte == b':').next().unwrap_or_default();
    let host = address.len().saturating_sub(port.len() + 1);
    host > 0
        && address.len() <= 255
        && address.iter().all(u8::is_ascii_graphic)
        && std::str::from_utf8(port).is_ok_and(|port| port.parse::<u16>().is_ok())
}

impl fmt::Display for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let bytes = [&self.fields()[..], &self.code].concat();
        write!(f, "{PREFIX}{}", URL_SAFE_NO_PAD.encode(bytes))
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "Token({} of {}, expires {:?}, at {:?})",
            self.role, self.cluster, self.expires, self.addresses
        )
    }
}
