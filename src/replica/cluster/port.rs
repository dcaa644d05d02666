//! The cluster's port: who may come in, and what for.

use std::sync::Arc;

use crate::error::{Error, ErrorKind, Result};
use crate::replica::control::Control;
use crate::replica::control::state::ClusterState;
use crate::replica::decisions::NodeId;
use crate::replica::identity::{NodeIdentity, PeerIdentity, PeerName};
use crate::replica::link::{self, Frame, Handlers, JoinGrant, JoinRequest, Link, kind};
use crate::replica::node::frames;

use super::{Cluster, Passage, Running, TUNNEL_PATIENCE};

/// An NBD connection that is passed on.
const PASS_NBD: u8 = 18;
/// An HTTP connection that is passed on.
const PASS_REST: u8 = 19;

/// A member's certificate that is to be renewed, and the renewed one.
pub(super) const RENEW: u8 = 21;

/// A link over which a connection to the node at `address` (`HOST:PORT`) can be carried; that node serves it if it is the
/// primary, and ends it otherwise. With `expect`, only to that node.
///
/// # Errors
/// As `link::connect`.
pub fn passage_to(
    address: &str,
    identity: &NodeIdentity,
    expect: Option<NodeId>,
    what: Passage,
) -> Result<Link> {
    let link = link::connect(address, identity, expect, TUNNEL_PATIENCE)?;
    let frame = match what {
        Passage::Nbd => PASS_NBD,
        Passage::Rest => PASS_REST,
    };
    link.send(frame, &[])?;
    Ok(link)
}

impl Cluster {
    pub(super) fn handlers(self: &Arc<Cluster>, running: &Arc<Running>) -> Handlers {
        let (for_check, for_accept, for_join) =
            (Arc::downgrade(running), Arc::downgrade(running), Arc::downgrade(running));
        let (accepting, joining) = (Arc::downgrade(self), Arc::downgrade(self));
        Handlers {
            check: Arc::new(move |peer| {
                for_check.upgrade().is_some_and(|running| is_member(&running.control.state(), peer))
            }),
            accept: Arc::new(move |peer, link, first| {
                let (Some(cluster), Some(running)) = (accepting.upgrade(), for_accept.upgrade()) else {
                    return;
                };
                if let Err(error) = cluster.take(&running, &peer, link, first) {
                    tracing::debug!("a connection of {} ended: {error}", peer.name);
                }
            }),
            join: Arc::new(move |request| match (joining.upgrade(), for_join.upgrade()) {
                (Some(cluster), Some(running)) => cluster.grant(&running, &request),
                _ => Err(Error::new(ErrorKind::NoQuorum, "this node is stopping")),
            }),
        }
    }

    fn take(&self, running: &Running, peer: &PeerIdentity, link: Link, first: Frame) -> Result<()> {
        match (first.kind, peer.name.node()) {
            (kind::CALL, Some(from)) => {
                let control = Arc::clone(&running.control);
                link::serve_calls(link, first, &move |_, request| control.answer(from, request))
            }
            (frames::ROLE | frames::STREAM | frames::COMPARE | frames::FETCH, Some(_)) => {
                if let Some(node) = &running.node {
                    node.accept(peer, link, first);
                }
                Ok(())
            }
            (RENEW, _) => self.renew(running, peer, &link, &first),
            (PASS_NBD | PASS_REST, _) => {
                // A node that is not the primary itself would pass it on again.
                if running.node.as_ref().is_none_or(|node| !node.leads()) {
                    return Err(Error::new(ErrorKind::NotPrimary, "this node is not the primary"));
                }
                let data = self.data.as_ref();
                let local = data
                    .map(|data| &data.local)
                    .ok_or_else(|| Error::new(ErrorKind::Unsupported, "a witness serves no clients"))?;
                let server = match first.kind {
                    PASS_NBD => local.nbd.clone(),
                    _ => Some(super::LocalServer::Tcp(local.rest)),
                };
                let server =
                    server.ok_or_else(|| Error::new(ErrorKind::Unsupported, "NBD is not served here"))?;
                server.tunnel(link)
            }
            (other, _) => {
                Err(Error::new(ErrorKind::Invalid, format!("a frame of kind {other} begins nothing")))
            }
        }
    }

    fn grant(&self, running: &Running, request: &JoinRequest) -> Result<JoinGrant> {
        let authority = running.authority()?;
        let now = self.environment.clock.since_unix_epoch();
        let let_in = request
            .token
            .check(authority.cluster(), now, authority.secret())
            .and_then(|()| self.let_in(running, &request.token, &request.signing, &request.details));
        if let Err(error) = &let_in
            && request.token.is_genuine(authority.secret())
        {
            // Whoever holds a token that this cluster made is worth a line, also when strangers ask all the time.
            tracing::warn!("a token from {} lets nobody in: {error}", request.remote);
        }
        let (name, extra) = let_in?;
        let state = running.control.state();
        let addresses = state.nodes.values().map(|entry| entry.cluster_address.clone()).take(16).collect();
        JoinGrant::make(authority, request, name, now, &*self.environment.random, (addresses, extra))
    }
}

/// Whether a peer with a good certificate is a member now. A node that has not heard of its cluster yet believes the
/// certificate alone: else nobody could tell it.
fn is_member(state: &ClusterState, peer: &PeerIdentity) -> bool {
    match peer.name {
        PeerName::Client(_) => true,
        PeerName::Data(node) | PeerName::Witness(node) => {
            state.record.is_none() || (state.nodes.contains_key(&node) && !state.removed.contains(&node))
        }
    }
}
