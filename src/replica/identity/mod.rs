//! Who a peer is: the cluster's authority, the certificates that it signs, and the tokens that let a node join.
//!
//! Every node makes its own key and never shows it. What a peer may do follows from the name in its certificate and
//! from the membership now, which is the caller's to ask. Nothing here reads a clock: the time is handed in, as time
//! since 1970-01-01 00:00:00 UTC.

mod authority;
mod certificate;
mod files;
mod key;
mod secret;
mod token;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};

use crate::error::{Error, ErrorKind, Result};
use crate::replica::decisions::NodeId;
use crate::sync::Mutex;
use crate::units::Uuid;

pub use authority::{Authority, Fingerprint};
pub use certificate::{Usage, verify};
pub use files::{IdentityFiles, Stored};
pub use key::{NodeKey, SigningRequest};
pub use secret::{ClusterSecret, SECRET_BYTES};
pub use token::{TOKEN_TEXT_MAX, Token};

/// How long a certificate holds; it is renewed at half of that.
pub const CERTIFICATE_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// How long a token may be used.
pub const TOKEN_LIFE: Duration = Duration::from_secs(3600);

/// What a peer may be in the cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerRole {
    /// A node with a pool.
    Data,
    /// A voter without data.
    Witness,
    /// A machine that attaches volumes, and is no node.
    Client,
}

impl PeerRole {
    fn number(self) -> u8 {
        match self {
            PeerRole::Data => 1,
            PeerRole::Witness => 2,
            PeerRole::Client => 3,
        }
    }

    fn of_number(number: u8) -> Option<PeerRole> {
        [PeerRole::Data, PeerRole::Witness, PeerRole::Client].into_iter().find(|role| role.number() == number)
    }
}

impl fmt::Display for PeerRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            PeerRole::Data => "data",
            PeerRole::Witness => "witness",
            PeerRole::Client => "client",
        })
    }
}

/// A client's random name.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct ClientId(pub [u8; 8]);

impl fmt::Display for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for ClientId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Who a certificate names; shown as `data-7`, `witness-3`, `client-00f1a2b3c4d5e6f7`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum PeerName {
    /// A node with a pool.
    Data(NodeId),
    /// A voter without data.
    Witness(NodeId),
    /// A machine that attaches volumes.
    Client(ClientId),
}

impl PeerName {
    /// What the peer may be.
    #[must_use]
    pub fn role(self) -> PeerRole {
        match self {
            PeerName::Data(_) => PeerRole::Data,
            PeerName::Witness(_) => PeerRole::Witness,
            PeerName::Client(_) => PeerRole::Client,
        }
    }

    /// The node, unless it is a client.
    #[must_use]
    pub fn node(self) -> Option<NodeId> {
        match self {
            PeerName::Data(node) | PeerName::Witness(node) => Some(node),
            PeerName::Client(_) => None,
        }
    }

    /// Reads what `Display` writes, and nothing else.
    #[must_use]
    pub fn parse(text: &str) -> Option<PeerName> {
        let (role, id) = text.split_once('-')?;
        let name = match role {
            "data" => PeerName::Data(NodeId(id.parse().ok()?)),
            "witness" => PeerName::Witness(NodeId(id.parse().ok()?)),
            "client" if id.len() == 16 => {
                PeerName::Client(ClientId(u64::from_str_radix(id, 16).ok()?.to_be_bytes()))
            }
            _ => return None,
        };
        // "+7" and "007" are not what the authority writes.
        (name.to_string() == text).then_some(name)
    }
}

impl fmt::Display for PeerName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let role = self.role();
        match self {
            PeerName::Data(node) | PeerName::Witness(node) => write!(f, "{role}-{}", node.0),
            PeerName::Client(client) => write!(f, "{role}-{client}"),
        }
    }
}

/// What a verified certificate says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PeerIdentity {
    /// The cluster whose authority signed it.
    pub cluster: Uuid,
    /// Who presented it.
    pub name: PeerName,
    /// When it was signed.
    pub valid_from: Duration,
    /// When it ends.
    pub valid_until: Duration,
}

/// Who a certificate names (DER) that was verified before.
pub(in crate::replica) fn read_checked(certificate: &[u8]) -> Result<PeerIdentity> {
    certificate::read(certificate).map(|(peer, _)| peer)
}

/// Who a node is now: its certificate is renewed while it runs.
#[derive(Debug)]
pub struct CurrentIdentity(Mutex<Arc<NodeIdentity>>);

impl CurrentIdentity {
    /// With this certificate for now.
    #[must_use]
    pub fn new(identity: Arc<NodeIdentity>) -> CurrentIdentity {
        CurrentIdentity(Mutex::new(identity))
    }

    /// What is shown to others now.
    #[must_use]
    pub fn now(&self) -> Arc<NodeIdentity> {
        Arc::clone(&self.0.lock())
    }

    /// From now on this is shown.
    pub fn replace(&self, identity: Arc<NodeIdentity>) {
        *self.0.lock() = identity;
    }
}

/// This node's certificate and key, and the authority that all of the cluster is known by.
#[derive(Clone, Debug)]
pub struct NodeIdentity {
    peer: PeerIdentity,
    certificate: Vec<u8>,
    authority: Vec<u8>,
    key: NodeKey,
}

impl NodeIdentity {
    /// Puts together what belongs together: `certificate` names this key and was signed by `authority` (both in DER).
    /// Whether it still holds is not looked at: `renewal_due` says that, and peers do.
    ///
    /// # Errors
    /// `Invalid` where one of them is damaged, or not of the others.
    pub fn new(certificate: Vec<u8>, authority: Vec<u8>, key: NodeKey) -> Result<NodeIdentity> {
        let (peer, public_key) = certificate::read(&certificate)?;
        if public_key != key.public_key() {
            return Err(Error::new(ErrorKind::Invalid, "a certificate is not for this node's key"));
        }
        let usage = match peer.name.role() {
            PeerRole::Client => Usage::Client,
            PeerRole::Data | PeerRole::Witness => Usage::Server,
        };
        verify(&certificate, &authority, UnixTime::since_unix_epoch(peer.valid_from), usage)?;
        Ok(NodeIdentity { peer, certificate, authority, key })
    }

    /// What the certificate says.
    #[must_use]
    pub fn peer(&self) -> &PeerIdentity {
        &self.peer
    }

    /// The certificate, in DER.
    #[must_use]
    pub fn certificate(&self) -> &[u8] {
        &self.certificate
    }

    /// The authority's certificate, in DER.
    #[must_use]
    pub fn authority(&self) -> &[u8] {
        &self.authority
    }

    /// The key.
    #[must_use]
    pub fn key(&self) -> &NodeKey {
        &self.key
    }

    /// Whether half of the certificate's life is over: time to ask a data node to sign `signing_request` anew.
    #[must_use]
    pub fn renewal_due(&self, now: Duration) -> bool {
        let life = self.peer.valid_until.saturating_sub(self.peer.valid_from);
        now >= self.peer.valid_from + life / 2
    }

    /// What a data node signs to renew the certificate.
    ///
    /// # Errors
    /// `Invalid` where the key cannot sign.
    pub fn signing_request(&self) -> Result<SigningRequest> {
        SigningRequest::new(&self.key, self.peer.cluster)
    }

    /// The same node with a newer certificate.
    ///
    /// # Errors
    /// `Invalid` where it is not of this key, authority, cluster and name.
    pub fn renewed(&self, certificate: Vec<u8>) -> Result<NodeIdentity> {
        let renewed = NodeIdentity::new(certificate, self.authority.clone(), self.key.clone())?;
        if (renewed.peer.cluster, renewed.peer.name) != (self.peer.cluster, self.peer.name) {
            let what = format!("a certificate for {} was renewed for {}", self.peer.name, renewed.peer.name);
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        Ok(renewed)
    }

    /// What is presented to a peer: the certificate, and the authority's, for peers that know its fingerprint only.
    pub(in crate::replica) fn chain(&self) -> Vec<CertificateDer<'static>> {
        vec![self.certificate.clone().into(), self.authority.clone().into()]
    }
}
