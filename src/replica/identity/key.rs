//! A node's key, made where it stays, and the request to have it signed.

use std::fmt;
use std::sync::Arc;

use rcgen::{KeyPair, PKCS_ED25519, PublicKeyData, SignatureAlgorithm, SigningKey};
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

use crate::error::{Error, ErrorKind, Result};
use crate::units::Uuid;

/// Bytes of a public key (Ed25519).
pub(super) const PUBLIC_KEY_BYTES: usize = 32;

/// Bytes of a signature (Ed25519).
const SIGNATURE_BYTES: usize = 64;

/// What a signing request signs besides the key, so that its signature can be used for nothing else.
const REQUEST_CONTEXT: &[u8] = b"sinter signing request v1";

/// A key of its own for each node (Ed25519). `Debug` shows the public half.
#[derive(Clone)]
pub struct NodeKey {
    pair: Arc<KeyPair>,
    public_key: [u8; PUBLIC_KEY_BYTES],
}

impl NodeKey {
    /// A new key.
    ///
    /// # Errors
    /// `Device` where the operating system gives no random bytes.
    pub fn generate() -> Result<NodeKey> {
        let pair = KeyPair::generate_for(&PKCS_ED25519)
            .map_err(|e| Error::caused(ErrorKind::Device, "no key could be made", e))?;
        NodeKey::of(pair)
    }

    /// The key in these bytes, as `to_bytes` wrote them (PKCS #8).
    ///
    /// # Errors
    /// `Corrupt` where they are no such key.
    pub fn from_bytes(bytes: &[u8]) -> Result<NodeKey> {
        let key = PrivatePkcs8KeyDer::from(bytes);
        let pair = KeyPair::from_pkcs8_der_and_sign_algo(&key, &PKCS_ED25519)
            .map_err(|e| Error::caused(ErrorKind::Corrupt, "a key cannot be read", e))?;
        NodeKey::of(pair)
    }

    fn of(pair: KeyPair) -> Result<NodeKey> {
        let public_key = pair
            .public_key_raw()
            .try_into()
            .map_err(|e| Error::caused(ErrorKind::Corrupt, "a public key has a wrong length", e))?;
        Ok(NodeKey { pair: Arc::new(pair), public_key })
    }

    /// The secret bytes, for a file that nobody else may read (PKCS #8).
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        self.pair.serialize_der()
    }

    pub(super) fn public_key(&self) -> [u8; PUBLIC_KEY_BYTES] {
        self.public_key
    }

    pub(super) fn pair(&self) -> &KeyPair {
        &self.pair
    }

    pub(in crate::replica) fn private(&self) -> PrivateKeyDer<'static> {
        PrivateKeyDer::Pkcs8(self.to_bytes().into())
    }
}

impl fmt::Debug for NodeKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "NodeKey({})", blake3::hash(&self.public_key))
    }
}

/// A public key with the proof that its sender has the secret half, for one cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SigningRequest {
    public_key: [u8; PUBLIC_KEY_BYTES],
    signature: [u8; SIGNATURE_BYTES],
}

impl SigningRequest {
    /// Bytes of `to_bytes`.
    pub const BYTES: usize = PUBLIC_KEY_BYTES + SIGNATURE_BYTES;

    /// Asks for `key` to be signed by the authority of `cluster`.
    ///
    /// # Errors
    /// `Invalid` where the key cannot sign.
    pub fn new(key: &NodeKey, cluster: Uuid) -> Result<SigningRequest> {
        let signature = key
            .pair
            .sign(&signed_text(&key.public_key, cluster))
            .map_err(|e| Error::caused(ErrorKind::Invalid, "a signing request cannot be signed", e))?;
        let signature = signature.try_into().map_err(|_| {
            Error::new(ErrorKind::Invalid, "a signing request's signature has a wrong length")
        })?;
        Ok(SigningRequest { public_key: key.public_key, signature })
    }

    /// For the wire.
    #[must_use]
    pub fn to_bytes(&self) -> Vec<u8> {
        [&self.public_key[..], &self.signature[..]].concat()
    }

    /// Reads what `to_bytes` wrote; `None` for another length.
    #[must_use]
    pub fn from_bytes(bytes: &[u8]) -> Option<SigningRequest> {
        let (public_key, signature) = bytes.split_first_chunk()?;
        Some(SigningRequest { public_key: *public_key, signature: signature.try_into().ok()? })
    }

    /// The key, where its sender has proved that it is its own.
    ///
    /// # Errors
    /// `Invalid` where the signature is not by that key, for this cluster.
    pub(super) fn verified(&self, cluster: Uuid) -> Result<PublicKey> {
        webpki::ring::ED25519
            .verify_signature(&self.public_key, &signed_text(&self.public_key, cluster), &self.signature)
            .map_err(|_| Error::new(ErrorKind::Invalid, "a signing request was not signed by its own key"))?;
        Ok(PublicKey(self.public_key))
    }
}

fn signed_text(public_key: &[u8], cluster: Uuid) -> Vec<u8> {
    [REQUEST_CONTEXT, &cluster.0, public_key].concat()
}

/// A public key as certificates hold it.
pub(super) struct PublicKey([u8; PUBLIC_KEY_BYTES]);

impl PublicKeyData for PublicKey {
    fn der_bytes(&self) -> &[u8] {
        &self.0
    }

    fn algorithm(&self) -> &'static SignatureAlgorithm {
        &PKCS_ED25519
    }
}
