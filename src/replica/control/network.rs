//! The group's way to its peers: openraft's requests over a blocking transport.
//!
//! A call waits on a thread of its own. To each peer one request of each kind is under way at a time, so that a peer
//! that never answers holds a few threads and no more.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use openraft::error::{InstallSnapshotError, NetworkError, RPCError, RaftError, RemoteError, Unreachable};
use openraft::network::{Backoff, RPCOption};
use openraft::raft::{
    AppendEntriesRequest, AppendEntriesResponse, InstallSnapshotRequest, InstallSnapshotResponse,
    VoteRequest, VoteResponse,
};
use openraft::{BasicNode, RaftNetwork, RaftNetworkFactory};
use tokio::sync::Semaphore;

use super::Transport;
use super::codec;
use super::machine::Types;
use super::messages::{Answer, Envelope, Kind, Request};
use super::published::Published;
use super::store::Identity;
use crate::error::{Error, ErrorKind, Result};
use crate::replica::decisions::NodeId;
use crate::sync::Mutex;

type Failed<E = RaftError<u64>> = RPCError<u64, BasicNode, E>;

/// The ways to all peers.
pub(super) struct Network {
    transport: Arc<dyn Transport>,
    published: Arc<Published>,
    /// Known to all: the group may be learned after the start.
    identity: Arc<Mutex<Identity>>,
    lanes: Mutex<BTreeMap<(NodeId, Kind), Arc<Semaphore>>>,
    /// For how long a peer that cannot be reached is left alone.
    pause: Duration,
}

impl Network {
    pub(super) fn new(
        transport: Arc<dyn Transport>,
        published: Arc<Published>,
        identity: Arc<Mutex<Identity>>,
        pause: Duration,
    ) -> Network {
        Network { transport, published, identity, lanes: Mutex::new(BTreeMap::new()), pause }
    }

    /// Asks a peer, for `patience` at most once the request is under way. `known_address` is for a peer that the
    /// applied state does not name.
    pub(super) async fn ask(
        &self,
        to: NodeId,
        known_address: Option<&str>,
        request: Request,
        patience: Duration,
    ) -> Result<Answer> {
        let Identity { cluster, group, .. } = *self.identity.lock();
        let kind = request.kind();
        let unknown =
            || Error::new(ErrorKind::Unreachable, format!("asking node {}: no address is known", to.0));
        let group = group.ok_or_else(|| {
            Error::new(ErrorKind::NoQuorum, "the consensus group has not made contact with this node yet")
        })?;
        let named = self.published.state().nodes.get(&to).map(|entry| entry.cluster_address.clone());
        let address = named.or_else(|| known_address.map(str::to_owned)).ok_or_else(unknown)?;
        let bytes = codec::encode(&Envelope { cluster, group, request })?;
        let lane =
            Arc::clone(self.lanes.lock().entry((to, kind)).or_insert_with(|| Arc::new(Semaphore::new(1))));
        let stopped = || Error::new(ErrorKind::Stopped, format!("asking node {}: this node stops", to.0));
        let permit = lane.acquire_owned().await.map_err(|_| stopped())?;
        let transport = Arc::clone(&self.transport);
        let called = tokio::task::spawn_blocking(move || {
            let answer = transport.call(to, &address, &bytes, patience);
            // Held until the call has ended, not until somebody stops waiting for it.
            drop(permit);
            answer
        });
        let answer = called.await.map_err(|_| stopped())??;
        codec::decode("an answer of the group", &answer)
    }
}

/// openraft's handle of all peers.
#[derive(Clone)]
pub(super) struct Peers(pub(super) Arc<Network>);

/// openraft's handle of one peer.
pub(super) struct Peer {
    network: Arc<Network>,
    to: Option<NodeId>,
    address: String,
}

impl RaftNetworkFactory<Types> for Peers {
    type Network = Peer;

    async fn new_client(&mut self, target: u64, node: &BasicNode) -> Peer {
        let to = u32::try_from(target).ok().map(NodeId);
        Peer { network: Arc::clone(&self.0), to, address: node.addr.clone() }
    }
}

impl Peer {
    async fn ask(&self, request: Request, option: &RPCOption) -> Result<Answer> {
        let unknown = || Error::new(ErrorKind::NotFound, "asking a node whose id no node can have");
        let to = self.to.ok_or_else(unknown)?;
        self.network.ask(to, Some(&self.address), request, option.hard_ttl()).await
    }
}

fn unreachable<E: std::error::Error>(error: &Error) -> Failed<E> {
    RPCError::Unreachable(Unreachable::new(error))
}

/// An answer that does not belong to its request.
fn astray<E: std::error::Error>(answer: Answer) -> Failed<E> {
    let what = match answer {
        Answer::Stopped(why) => format!("the peer's group has stopped: {why}"),
        _ => "the peer has answered something else".to_owned(),
    };
    RPCError::Network(NetworkError::new(&Error::new(ErrorKind::Unreachable, what)))
}

impl RaftNetwork<Types> for Peer {
    async fn append_entries(
        &mut self,
        rpc: AppendEntriesRequest<Types>,
        option: RPCOption,
    ) -> Result<AppendEntriesResponse<u64>, Failed> {
        match self.ask(Request::Append(rpc), &option).await {
            Ok(Answer::Append(answer)) => Ok(answer),
            Ok(other) => Err(astray(other)),
            Err(error) => Err(unreachable(&error)),
        }
    }

    async fn install_snapshot(
        &mut self,
        rpc: InstallSnapshotRequest<Types>,
        option: RPCOption,
    ) -> Result<InstallSnapshotResponse<u64>, Failed<RaftError<u64, InstallSnapshotError>>> {
        let target = u64::from(self.to.unwrap_or_default().0);
        match self.ask(Request::Snapshot(rpc), &option).await {
            Ok(Answer::Snapshot(Ok(answer))) => Ok(answer),
            Ok(Answer::Snapshot(Err(error))) => {
                Err(RPCError::RemoteError(RemoteError::new(target, RaftError::APIError(error))))
            }
            Ok(other) => Err(astray(other)),
            Err(error) => Err(unreachable(&error)),
        }
    }

    async fn vote(&mut self, rpc: VoteRequest<u64>, option: RPCOption) -> Result<VoteResponse<u64>, Failed> {
        match self.ask(Request::Vote(rpc), &option).await {
            Ok(Answer::Vote(answer)) => Ok(answer),
            Ok(other) => Err(astray(other)),
            Err(error) => Err(unreachable(&error)),
        }
    }

    fn backoff(&self) -> Backoff {
        Backoff::new(std::iter::repeat(self.network.pause))
    }
}
