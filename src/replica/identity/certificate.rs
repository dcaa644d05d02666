//! Reading certificates: who they name, and whether the authority signed them.
//!
//! Names are DNS names that nobody resolves: `data-7.<cluster>.sinter` says who, and `valid-<from>-<until>.<cluster>
//! .sinter` says in seconds since 1970 what the certificate's own dates say, which are checked as well.

use std::time::Duration;

use rustls::pki_types::{CertificateDer, UnixTime};
use webpki::{EndEntityCert, KeyUsage};

use super::key::PUBLIC_KEY_BYTES;
use super::{PeerIdentity, PeerName};
use crate::error::{Error, ErrorKind, Result};
use crate::units::Uuid;

const TOP: &str = "sinter";

/// Which end of a connection presents a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Usage {
    /// The end that was connected to: only nodes may be that.
    Server,
    /// The end that connects.
    Client,
}

/// The names that a certificate for `peer` carries.
pub(super) fn names(peer: &PeerIdentity) -> Vec<String> {
    let cluster = peer.cluster;
    let (from, until) = (peer.valid_from.as_secs(), peer.valid_until.as_secs());
    vec![format!("{}.{cluster}.{TOP}", peer.name), format!("valid-{from}-{until}.{cluster}.{TOP}")]
}

/// Who `certificate` names (DER), once it is known to be signed by `authority` (DER), to hold at `now`, and to be
/// meant for this end.
///
/// # Errors
/// `Invalid` for anything else.
pub fn verify(certificate: &[u8], authority: &[u8], now: UnixTime, usage: Usage) -> Result<PeerIdentity> {
    let refused = |error| Error::caused(ErrorKind::Invalid, "a certificate is refused", error);
    let authority = CertificateDer::from(authority);
    let anchor = webpki::anchor_from_trusted_cert(&authority).map_err(refused)?;
    let presented = CertificateDer::from(certificate);
    let parsed = EndEntityCert::try_from(&presented).map_err(refused)?;
    let usage = match usage {
        Usage::Server => KeyUsage::server_auth(),
        Usage::Client => KeyUsage::client_auth(),
    };
    parsed
        .verify_for_usage(&[webpki::ring::ED25519], &[anchor], &[], now, usage, None, None)
        .map_err(refused)?;
    let (peer, _) = read(certificate)?;
    Ok(peer)
}

/// Who `certificate` names, and its public key; believes what it reads.
pub(super) fn read(certificate: &[u8]) -> Result<(PeerIdentity, [u8; PUBLIC_KEY_BYTES])> {
    let der = CertificateDer::from(certificate);
    let parsed = EndEntityCert::try_from(&der)
        .map_err(|e| Error::caused(ErrorKind::Invalid, "a certificate cannot be read", e))?;
    let peer = read_names(parsed.valid_dns_names())
        .ok_or_else(|| Error::new(ErrorKind::Invalid, "a certificate does not name a peer of a cluster"))?;
    // An Ed25519 key is the last field of its description, which has one length only.
    let description = parsed.subject_public_key_info();
    let public_key = description
        .last_chunk()
        .ok_or_else(|| Error::new(ErrorKind::Invalid, "a certificate's key is too short"))?;
    Ok((peer, *public_key))
}

fn read_names<'a>(names: impl Iterator<Item = &'a str>) -> Option<PeerIdentity> {
    let (mut name, mut valid, mut cluster) = (None, None, None);
    for text in names {
        let mut labels = text.split('.');
        let (first, second, top) = (labels.next()?, labels.next()?, labels.next()?);
        let of = Uuid::parse(second)?;
        if top != TOP || labels.next().is_some() || cluster.is_some_and(|known| known != of) {
            return None;
        }
        cluster = Some(of);
        match first.strip_prefix("valid-") {
            Some(dates) if valid.is_none() => {
                let (from, until) = dates.split_once('-')?;
                valid = Some((seconds(from)?, seconds(until)?));
            }
            None if name.is_none() => name = Some(PeerName::parse(first)?),
            _ => return None,
        }
    }
    let (valid_from, valid_until) = valid?;
    Some(PeerIdentity { cluster: cluster?, name: name?, valid_from, valid_until })
}

fn seconds(text: &str) -> Option<Duration> {
    text.parse().ok().map(Duration::from_secs)
}
