//! How a node without a certificate gets one: it shows a token to a data node, over a connection on which only that
//! data node has shown who it is.

use std::net::SocketAddr;
use std::time::Duration;

use super::connect::{connect_with, deadline_in};
use super::{call, kind, now, tls};
use crate::error::{Error, ErrorKind, Result};
use crate::format::bytes::{Append as _, Reader};
use crate::replica::identity::{
    Authority, ClusterSecret, NodeIdentity, NodeKey, PeerName, PeerRole, SECRET_BYTES, SigningRequest,
    TOKEN_TEXT_MAX, Token,
};
use crate::sync::RandomSource;

/// The longest request to join.
pub(super) const JOIN_BYTES_MAX: usize = TOKEN_TEXT_MAX + SigningRequest::BYTES + 2 + DETAILS_BYTES_MAX;

/// What a node may say of itself.
const DETAILS_BYTES_MAX: usize = 4096;

const ADDRESSES_MAX: usize = 64;

/// What a node that wants to join sends.
#[derive(Clone, Debug)]
pub struct JoinRequest {
    /// What it shows for itself; not yet checked.
    pub token: Token,
    /// Its key.
    pub signing: SigningRequest,
    /// What it says of itself: for whoever lets it in to read.
    pub details: Vec<u8>,
    /// Where it connects from.
    pub remote: SocketAddr,
}

impl JoinRequest {
    fn encode(token: &Token, signing: &SigningRequest, details: &[u8]) -> Result<Vec<u8>> {
        let mut body = signing.to_bytes();
        put_part(&mut body, details)?;
        body.put_slice(token.to_string().as_bytes());
        Ok(body)
    }

    pub(super) fn decode(body: &[u8], remote: SocketAddr) -> Result<JoinRequest> {
        let damaged = || Error::new(ErrorKind::Invalid, "a request to join cannot be read");
        let (signing, token) = body.split_at_checked(SigningRequest::BYTES).ok_or_else(damaged)?;
        let signing = SigningRequest::from_bytes(signing).ok_or_else(damaged)?;
        let mut reader = Reader::new(token);
        let details = take_part(&mut reader).filter(|details| details.len() <= DETAILS_BYTES_MAX);
        let details = details.ok_or_else(damaged)?.to_vec();
        let token = Token::parse(std::str::from_utf8(reader.rest()).map_err(|_| damaged())?)?;
        Ok(JoinRequest { token, signing, details, remote })
    }
}

/// What a node that may join is given.
#[derive(Clone, Debug)]
pub struct JoinGrant {
    certificate: Vec<u8>,
    authority: Vec<u8>,
    /// The authority's key, encrypted, and the secret: for data nodes.
    keys: Option<(Vec<u8>, ClusterSecret)>,
    addresses: Vec<String>,
    extra: Vec<u8>,
}

impl JoinGrant {
    /// Lets the sender of `request` in as `name`, once its token has been checked. Whether the token was spent before,
    /// and the name was never given out, is for the caller to have decided.
    ///
    /// `addresses` is where the nodes of the cluster are, `extra` whatever else the new node needs to know.
    ///
    /// # Errors
    /// `Invalid` where the token is not good for this name now, or the request not signed by its key.
    pub fn make(
        authority: &Authority,
        request: &JoinRequest,
        name: PeerName,
        now: Duration,
        random: &dyn RandomSource,
        (addresses, extra): (Vec<String>, Vec<u8>),
    ) -> Result<JoinGrant> {
        request.token.check(authority.cluster(), now, authority.secret())?;
        if request.token.role() != name.role() {
            let what = format!("a token for a {} does not make its holder {name}", request.token.role());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        let keys = match name.role() {
            PeerRole::Data => Some((authority.sealed_key(random)?, authority.secret().clone())),
            PeerRole::Witness | PeerRole::Client => None,
        };
        let certificate = authority.sign(name, &request.signing, now)?;
        Ok(JoinGrant { certificate, authority: authority.certificate().to_vec(), keys, addresses, extra })
    }

    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        put_part(&mut body, &self.certificate)?;
        put_part(&mut body, &self.authority)?;
        match &self.keys {
            None => body.put_u8(0),
            Some((sealed, secret)) => {
                body.put_u8(1);
                put_part(&mut body, sealed)?;
                body.put_slice(&secret.to_bytes());
            }
        }
        let count =
            u8::try_from(self.addresses.len()).ok().filter(|count| usize::from(*count) <= ADDRESSES_MAX);
        let too_many = || Error::new(ErrorKind::Invalid, "too many addresses for a grant");
        body.put_u8(count.ok_or_else(too_many)?);
        for address in &self.addresses {
            put_part(&mut body, address.as_bytes())?;
        }
        body.put_slice(&self.extra);
        Ok(body)
    }

    pub(super) fn decode(body: &[u8]) -> Option<JoinGrant> {
        let mut reader = Reader::new(body);
        let certificate = take_part(&mut reader)?.to_vec();
        let authority = take_part(&mut reader)?.to_vec();
        let keys = match reader.u8()? {
            0 => None,
            1 => {
                let sealed = take_part(&mut reader)?.to_vec();
                Some((sealed, ClusterSecret::from_bytes(reader.array::<SECRET_BYTES>()?)))
            }
            _ => return None,
        };
        let count = usize::from(reader.u8()?);
        if count > ADDRESSES_MAX {
            return None;
        }
        let mut addresses = Vec::new();
        for _ in 0..count {
            addresses.push(std::str::from_utf8(take_part(&mut reader)?).ok()?.to_owned());
        }
        Some(JoinGrant { certificate, authority, keys, addresses, extra: reader.rest().to_vec() })
    }

    /// Checks that the grant is what the token promises.
    fn received(self, token: &Token, key: &NodeKey) -> Result<Joined> {
        use crate::replica::identity::Fingerprint;
        let wrong = |what: &str| Error::new(ErrorKind::Invalid, what);
        if Fingerprint::of(&self.authority) != token.authority() {
            return Err(wrong("the grant is by another authority than the token's"));
        }
        let identity = NodeIdentity::new(self.certificate, self.authority, key.clone())?;
        let peer = identity.peer();
        if peer.cluster != token.cluster() || peer.name.role() != token.role() {
            return Err(wrong("the grant is not for what the token says"));
        }
        let authority = match (peer.name.role(), self.keys) {
            (PeerRole::Data, Some((sealed, secret))) => {
                Some(Authority::open(peer.cluster, identity.authority().to_vec(), &sealed, secret)?)
            }
            (PeerRole::Data, None) => {
                return Err(wrong("the grant for a data node lacks the authority's key"));
            }
            (PeerRole::Witness | PeerRole::Client, _) => None,
        };
        Ok(Joined { identity, authority, addresses: self.addresses, extra: self.extra })
    }
}

/// What a node is once it has joined.
#[derive(Clone, Debug)]
pub struct Joined {
    /// Who it is now.
    pub identity: NodeIdentity,
    /// The cluster's authority, for data nodes.
    pub authority: Option<Authority>,
    /// Where the nodes of the cluster are.
    pub addresses: Vec<String>,
    /// Whatever else it was told.
    pub extra: Vec<u8>,
}

/// Joins the cluster of `token` with `key`, at the first of its addresses that answers, within `patience` for each. The
/// next address is tried where a node cannot be reached or cannot let anybody in now; a refusal of the token is final.
///
/// # Errors
/// `Unreachable` where no node can be reached, `Invalid` where the token is refused or the other end is not of its
/// cluster, and whatever else the nodes answer.
pub fn join(token: &Token, key: &NodeKey, details: &[u8], patience: Duration) -> Result<Joined> {
    let mut failure = Error::new(ErrorKind::Invalid, "the token names no address");
    for address in token.addresses() {
        match join_at(address, token, key, details, patience) {
            Ok(joined) => return Ok(joined),
            Err(e) => {
                let elsewhere = matches!(
                    e.kind(),
                    ErrorKind::Unreachable
                        | ErrorKind::NotPrimary
                        | ErrorKind::NoQuorum
                        | ErrorKind::Unsupported
                );
                failure = e.context(format!("joining at {address}"));
                if !elsewhere {
                    return Err(failure);
                }
            }
        }
    }
    Err(failure)
}

fn join_at(
    address: &str,
    token: &Token,
    key: &NodeKey,
    details: &[u8],
    patience: Duration,
) -> Result<Joined> {
    let deadline = deadline_in(patience);
    let tls = tls::client_without_certificate(token.cluster(), token.authority())?;
    let (sender, mut receiver) = connect_with(address, tls, deadline)?;
    let signing = SigningRequest::new(key, token.cluster())?;
    sender.send(kind::JOIN, &[&JoinRequest::encode(token, &signing, details)?])?;
    let answer = receiver.receive(Some(deadline.saturating_duration_since(now())))?;
    match answer {
        None => Err(Error::new(ErrorKind::Unreachable, "there is no answer to the request to join in time")),
        Some(frame) if frame.kind == kind::GRANT => JoinGrant::decode(&frame.body)
            .ok_or_else(|| {
                Error::new(ErrorKind::Invalid, "the answer to the request to join cannot be read")
            })?
            .received(token, key),
        Some(frame) if frame.kind == kind::REFUSED => Err(call::read_failure(&frame.body)),
        Some(frame) => {
            let what = format!("a frame of kind {} is no answer to a request to join", frame.kind);
            Err(Error::new(ErrorKind::Invalid, what))
        }
    }
}

fn put_part(body: &mut Vec<u8>, part: &[u8]) -> Result<()> {
    let len = u16::try_from(part.len())
        .map_err(|e| Error::caused(ErrorKind::Invalid, "a part of a grant is too long", e))?;
    body.put_u16(len);
    body.put_slice(part);
    Ok(())
}

fn take_part<'a>(reader: &mut Reader<'a>) -> Option<&'a [u8]> {
    let len = usize::from(reader.u16()?);
    reader.take(len)
}
