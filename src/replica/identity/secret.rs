//! The secret that the data nodes of a cluster share.
//!
//! It checks tokens, so that any data node can do it without keeping a list, and encrypts the authority's key. It lies
//! in the same directory as that key: the encryption protects a key that gets out alone (a copied file, a log of the
//! bytes on the way), not one from somebody who can read the whole directory or is a data node.

use std::fmt;

use ring::aead::{Aad, CHACHA20_POLY1305, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};

use crate::error::{Error, ErrorKind, Result};
use crate::sync::RandomSource;

/// Bytes of the secret.
pub const SECRET_BYTES: usize = 32;

/// A secret of the cluster's data nodes. `Debug` does not show it.
#[derive(Clone, PartialEq, Eq)]
pub struct ClusterSecret([u8; SECRET_BYTES]);

impl ClusterSecret {
    /// A new secret.
    #[must_use]
    pub fn generate(random: &dyn RandomSource) -> ClusterSecret {
        let mut bytes = [0u8; SECRET_BYTES];
        random.fill(&mut bytes);
        ClusterSecret(bytes)
    }

    /// The secret in these bytes.
    #[must_use]
    pub fn from_bytes(bytes: [u8; SECRET_BYTES]) -> ClusterSecret {
        ClusterSecret(bytes)
    }

    /// The secret bytes, for a file that nobody else may read.
    #[must_use]
    pub fn to_bytes(&self) -> [u8; SECRET_BYTES] {
        self.0
    }

    /// The code by which data nodes know their own tokens.
    pub(super) fn token_code(&self, fields: &[u8]) -> blake3::Hash {
        blake3::keyed_hash(&blake3::derive_key("sinter 2026 join tokens", &self.0), fields)
    }

    /// Encrypts the authority's key; what it belongs to is bound to it.
    pub(super) fn seal(&self, key: &[u8], belongs_to: &[u8], random: &dyn RandomSource) -> Result<Vec<u8>> {
        let mut nonce = [0u8; NONCE_LEN];
        random.fill(&mut nonce);
        let mut sealed = key.to_vec();
        self.sealing_key()?
            .seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(belongs_to), &mut sealed)
            .map_err(|_| Error::new(ErrorKind::Invalid, "the authority's key cannot be encrypted"))?;
        Ok([&nonce[..], &sealed].concat())
    }

    /// Decrypts what `seal` encrypted for the same.
    pub(super) fn open(&self, sealed: &[u8], belongs_to: &[u8]) -> Result<Vec<u8>> {
        let damaged = || {
            let what = "the authority's key cannot be decrypted: it is damaged, or the secret is not its own";
            Error::new(ErrorKind::Corrupt, what)
        };
        let (nonce, rest) = sealed.split_first_chunk::<NONCE_LEN>().ok_or_else(damaged)?;
        let mut opened = rest.to_vec();
        let key = self
            .sealing_key()?
            .open_in_place(Nonce::assume_unique_for_key(*nonce), Aad::from(belongs_to), &mut opened)
            .map_err(|_| damaged())?;
        Ok(key.to_vec())
    }

    fn sealing_key(&self) -> Result<LessSafeKey> {
        let key = blake3::derive_key("sinter 2026 authority key at rest", &self.0);
        let key = UnboundKey::new(&CHACHA20_POLY1305, &key)
            .map_err(|_| Error::new(ErrorKind::Invalid, "no key can be derived from the cluster's secret"))?;
        Ok(LessSafeKey::new(key))
    }
}

impl fmt::Debug for ClusterSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ClusterSecret(..)")
    }
}
