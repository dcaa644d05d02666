//! Forming a cluster, joining one, and opening what was formed.

use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};
use crate::replica::control::raft::RaftControl;
use crate::replica::control::state::{Decision, NodeEntry, NodeKind, Outcome, ReplicaMode};
use crate::replica::control::{Control, Transport};
use crate::replica::decisions::{Incarnation, Member, NodeId, Record};
use crate::replica::identity::{
    Authority, CurrentIdentity, IdentityFiles, NodeIdentity, NodeKey, PeerName, PeerRole, SigningRequest,
    Stored, Token,
};
use crate::replica::link::{self, CallPool, LinkServer};
use crate::replica::node::{Node, NodeParts};
use crate::replica::timing::Timing;
use crate::sync::{Mutex, RandomSource};
use crate::units::{Epoch, Uuid};

use super::files::{NodeFile, node_file, read_node_file, remove_if_there, write_node_file};
use super::{ArrayPool, Calls, Cluster, ClusterOptions, DECISION_PATIENCE, Running};

/// A new cluster's only node serves within this time.
const BEGIN_PATIENCE: Duration = Duration::from_secs(10);
/// A node that asks to join waits so long for each address.
const JOIN_PATIENCE: Duration = Duration::from_secs(15);

/// What a node that joins says of itself.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Introduction {
    pub(super) name: String,
    pub(super) cluster_address: String,
    pub(super) api_address: Option<String>,
    pub(super) nbd_address: Option<String>,
    pub(super) asynchronous: bool,
}

/// What a node needs to join.
#[derive(Clone, Debug)]
pub struct JoinPlan {
    /// The token.
    pub token: Token,
    /// What it is to be.
    pub options: ClusterOptions,
}

/// What a node has become by joining.
#[derive(Clone, Debug)]
pub struct Joining {
    /// Its number.
    pub node: NodeId,
    /// What its pool is made with; a witness has none.
    pub pool: Option<ArrayPool>,
}

impl JoinPlan {
    /// Joins: asks for a certificate and keeps what it gets. Nothing else of this node is touched.
    ///
    /// # Errors
    /// `Invalid` for a token that is refused; `Unreachable`, `NoQuorum` where nobody can let this node in; `Device`
    /// where its identity cannot be kept.
    pub fn carry_out(&self, random: &dyn RandomSource) -> Result<Joining> {
        let options = &self.options;
        let listen = listen_address(options.listen, None)?;
        let listener = bind(listen)?;
        let listen = listener.local_addr().map_err(|error| unusable(listen, error))?;
        let key = NodeKey::generate()?;
        let details = serde_json::to_vec(&introduction(options, listen))
            .map_err(|error| Error::caused(ErrorKind::Invalid, "saying who this node is", error))?;
        let joined = link::join(&self.token, &key, &details, JOIN_PATIENCE)?;
        let node = joined.identity.peer().name.node();
        let node =
            node.ok_or_else(|| Error::new(ErrorKind::Invalid, "this token is for a client, not for a node"))?;
        let pool = match self.token.role() {
            PeerRole::Data => Some(ArrayPool::decode(&joined.extra).ok_or_else(|| {
                Error::new(ErrorKind::Invalid, "the cluster did not say what its pools are made with")
            })?),
            PeerRole::Witness | PeerRole::Client => None,
        };
        let file = node_file_of(options, listen, pool.as_ref());
        let file = NodeFile { pool_is_to_be_made: pool.is_some(), ..file };
        write_node_file(&options.directory, &file)?;
        let files = IdentityFiles::in_directory(&options.directory);
        files.save(&joined.identity, joined.authority.as_ref(), random)?;
        Ok(Joining { node, pool })
    }
}

/// Makes this machine a client of the cluster that the token is for, and keeps what it gets in `directory`.
///
/// # Errors
/// `Invalid` for a token that is refused, or is not for a client; `Unreachable` where nobody answers; `Device` where
/// the certificate cannot be kept.
pub fn join_as_client(token: &Token, directory: &Path, random: &dyn RandomSource) -> Result<NodeIdentity> {
    if token.role() != PeerRole::Client {
        let what = format!("this token is for a {}, and not for a client", token.role());
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    let key = NodeKey::generate()?;
    let joined = link::join(token, &key, &[], JOIN_PATIENCE)?;
    IdentityFiles::in_directory(directory).save(&joined.identity, None, random)?;
    Ok(joined.identity)
}

impl Cluster {
    /// Whether a directory says that its node is in a cluster; if so, what its pool is made with. A witness has none.
    ///
    /// # Errors
    /// `Device`, `Corrupt`.
    pub fn pool_identity(directory: &Path) -> Result<Option<Option<ArrayPool>>> {
        if IdentityFiles::in_directory(directory).load()?.is_none() {
            return Ok(None);
        }
        let damaged =
            || Error::new(ErrorKind::Corrupt, format!("{} is damaged", node_file(directory).display()));
        let Some(text) = read_node_file(directory)?.pool else { return Ok(Some(None)) };
        let bytes = BASE64_STANDARD.decode(text).map_err(|_| damaged())?;
        ArrayPool::decode(&bytes).ok_or_else(damaged).map(|pool| Some(Some(pool)))
    }

    /// Whether the node in a directory has joined, and its pool was not made yet: what the devices hold is given up.
    ///
    /// # Errors
    /// `Device`, `Corrupt`.
    pub fn pool_is_to_be_made(directory: &Path) -> Result<bool> {
        Ok(read_node_file(directory)?.pool_is_to_be_made)
    }

    /// Joins another array's cluster while this one runs, and has it begin anew: its pool is made as that one's are. The
    /// number of the node that it is then.
    ///
    /// # Errors
    /// `Exists` where it is in a cluster, or where its pool holds something and it is not said to discard that; `Invalid`
    /// for a token of another kind; `Unsupported` on a witness; and what joining says.
    pub fn join(&self, token: Token, discard_local_data: bool) -> Result<NodeId> {
        let _forming = self.forming.lock();
        if self.running().is_some() {
            return Err(Error::new(ErrorKind::Exists, "this array is in a cluster already"));
        }
        let data = self.data.as_ref();
        let data =
            data.ok_or_else(|| Error::new(ErrorKind::Unsupported, "a witness joins when it is started"))?;
        if token.role() != PeerRole::Data {
            let what = format!("this token is for a {}, and this array keeps data", token.role());
            return Err(Error::new(ErrorKind::Invalid, what));
        }
        if IdentityFiles::in_directory(&self.options.directory).load()?.is_some() {
            return Err(Error::new(ErrorKind::Exists, "this array has joined a cluster, and begins anew"));
        }
        if !discard_local_data && !data.store.objects()?.is_empty() {
            let what = "this array's pool holds something: it would be given up";
            return Err(Error::new(ErrorKind::Exists, what));
        }
        let joined =
            JoinPlan { token, options: self.options.clone() }.carry_out(&*self.environment.random)?;
        tracing::info!("joined as node {}; the array begins anew", joined.node.0);
        (data.begin_anew)();
        Ok(joined.node)
    }

    /// Makes this array the first node of a new cluster.
    ///
    /// # Errors
    /// `Exists` where it is in a cluster; `Invalid`, `Busy` for an address that cannot be had; `Unsupported` without a
    /// pool; `Device`.
    pub fn init(self: &Arc<Cluster>, listen: Option<SocketAddr>) -> Result<Arc<Running>> {
        let _forming = self.forming.lock();
        if self.running().is_some() {
            return Err(Error::new(ErrorKind::Exists, "this array is in a cluster already"));
        }
        let data = self.data.as_ref();
        let data =
            data.ok_or_else(|| Error::new(ErrorKind::Unsupported, "a witness cannot begin a cluster"))?;
        let listener = bind(listen_address(listen.or(self.options.listen), None)?)?;
        let listen = listener.local_addr().map_err(|error| unusable(SocketAddr::from(([0; 4], 0)), error))?;
        let random = &*self.environment.random;
        let mut bytes = [0u8; 16];
        random.fill(&mut bytes);
        let cluster = Uuid::from_random(bytes);
        let now = self.environment.clock.since_unix_epoch();
        let authority = Authority::create(cluster, now, random)?;
        let own = NodeId(1);
        let key = NodeKey::generate()?;
        let request = SigningRequest::new(&key, cluster)?;
        let certificate = authority.sign(PeerName::Data(own), &request, now)?;
        let identity = Arc::new(NodeIdentity::new(certificate, authority.certificate().to_vec(), key)?);
        let member = Member { node: own, incarnation: Incarnation(random.number()) };
        let entry = entry(&introduction(&self.options, listen), NodeKind::Data, fingerprint(&request));
        let calls = Arc::new(Calls(CallPool::new(Arc::clone(&identity))));
        write_node_file(
            &self.options.directory,
            &node_file_of(&self.options, listen, Some(&ArrayPool::of(&data.store))),
        )?;
        let path = self.control_path();
        // What an attempt that failed before has left behind belongs to nobody.
        remove_if_there(&path)?;
        // The pool has terms of its own since it was made: the first one of the cluster is later than any of them.
        let (before, _) = data.store.position();
        let epoch = Epoch { generation: before.generation, number: before.number + 1 };
        let record = Record { epoch, ..Record::of(member) };
        let pool = ArrayPool::of(&data.store).encode();
        let transport = Arc::clone(&calls) as Arc<dyn Transport>;
        let control = RaftControl::create(&path, cluster, own, entry, record, pool, transport)?;
        let file = node_file_of(&self.options, listen, Some(&ArrayPool::of(&data.store)));
        write_node_file(&self.options.directory, &NodeFile { group_is_made: true, ..file })?;
        IdentityFiles::in_directory(&self.options.directory).save(&identity, Some(&authority), random)?;
        self.run(listener, member, control, (identity, Some(authority)), calls)
    }

    /// Goes on with the cluster that this node was in, or has just joined. Without one nothing happens.
    ///
    /// # Errors
    /// `Device`, `Corrupt`, `Busy`, `Invalid`.
    pub fn open(self: &Arc<Cluster>) -> Result<Option<Arc<Running>>> {
        let _forming = self.forming.lock();
        let directory = &self.options.directory;
        let Some(Stored { identity, authority }) = IdentityFiles::in_directory(directory).load()? else {
            return Ok(None);
        };
        let own = identity.peer().name.node();
        let own =
            own.ok_or_else(|| Error::new(ErrorKind::Corrupt, "the certificate of this node is a client's"))?;
        let mut file = read_node_file(directory)?;
        let path = self.control_path();
        let there = path.try_exists().unwrap_or(true);
        if file.group_is_made && !there {
            // With an empty log it could vote twice in one election.
            let what = format!(
                "{} is missing, and with it what this node has voted for: `sinter cluster remove`, asked of another node, \
                 takes it out; without {} it joins anew",
                path.display(),
                directory.display()
            );
            return Err(Error::new(ErrorKind::Corrupt, what));
        }
        if file.pool_is_to_be_made && self.data.is_some() {
            file.pool_is_to_be_made = false;
            write_node_file(directory, &file)?;
        }
        let listener = bind(listen_address(self.options.listen, Some(file.listen))?)?;
        let cluster = identity.peer().cluster;
        let identity = Arc::new(identity);
        let calls = Arc::new(Calls(CallPool::new(Arc::clone(&identity))));
        let transport = Arc::clone(&calls) as Arc<dyn Transport>;
        let control = match there {
            true => RaftControl::open(&path, own, transport)?,
            false => RaftControl::join(&path, cluster, own, transport)?,
        };
        if !file.group_is_made {
            // Before anything is answered from it.
            file.group_is_made = true;
            write_node_file(directory, &file)?;
        }
        let member = Member { node: own, incarnation: Incarnation(self.environment.random.number()) };
        self.run(listener, member, control, (identity, authority), calls).map(Some)
    }

    pub(super) fn run(
        self: &Arc<Cluster>,
        listener: TcpListener,
        own: Member,
        control: Arc<RaftControl>,
        (identity, authority): (Arc<NodeIdentity>, Option<Authority>),
        calls: Arc<Calls>,
    ) -> Result<Arc<Running>> {
        let listen = listener.local_addr().map_err(|error| unusable(SocketAddr::from(([0; 4], 0)), error))?;
        let shown = Arc::new(CurrentIdentity::new(Arc::clone(&identity)));
        let node = match &self.data {
            Some(data) => {
                let (gate, disconnect) = (Arc::clone(&data.gate), Arc::clone(&data.disconnect));
                let node = Node::start(NodeParts {
                    own,
                    store: Arc::clone(&data.store),
                    array: Arc::clone(&data.array),
                    ring: Arc::clone(&data.ring),
                    environment: self.environment.clone(),
                    control: Arc::clone(&control) as Arc<dyn Control>,
                    identity: Arc::clone(&shown),
                    timing: Timing::default(),
                    upkeep: self.options.upkeep,
                    disconnect: Box::new(move || {
                        gate.end_tenure();
                        disconnect();
                    }),
                })?;
                // An array that stood alone goes on as it did until this node serves: what is under way is acknowledged by
                // it, and nobody else is in the set.
                if !data.gate.is_held() && !node.wait_until_serving(BEGIN_PATIENCE) {
                    tracing::warn!("this node does not serve yet as a part of its cluster");
                }
                data.gate.install(Arc::clone(&node));
                Some(node)
            }
            None => None,
        };
        let running = Arc::new(Running {
            own: own.node,
            listen,
            control,
            node,
            identity: shown,
            authority,
            calls,
            server: Mutex::new(None),
            upkeep: super::upkeep::Upkeep::default(),
        });
        let server = LinkServer::start(listener, &identity, self.handlers(&running))?;
        *running.server.lock() = Some(server);
        let (weak, cluster) = (Arc::downgrade(&running), Arc::downgrade(self));
        running.control.subscribe(Box::new(move || {
            let (Some(running), Some(cluster)) = (weak.upgrade(), cluster.upgrade()) else { return };
            if let Some(record) = &running.control.state().record {
                cluster.cut_passages_but_to(record.primary);
            }
            for removed in &running.control.state().removed {
                running.calls.0.forget(*removed);
            }
            if let Some(server) = &*running.server.lock() {
                server.recheck();
            }
        }));
        *self.running.lock() = Some(Arc::clone(&running));
        running.upkeep.start(&self.options, &self.environment.clock, &running);
        Ok(running)
    }

    /// Decides on a request to join: what the new node is called, and its number.
    pub(super) fn let_in(
        &self,
        running: &Running,
        token: &Token,
        signing: &SigningRequest,
        details: &[u8],
    ) -> Result<(PeerName, Vec<u8>)> {
        let kind = match token.role() {
            PeerRole::Data => NodeKind::Data,
            PeerRole::Witness => NodeKind::Witness,
            PeerRole::Client => {
                let mut id = [0; 8];
                self.environment.random.fill(&mut id);
                return Ok((PeerName::Client(crate::replica::identity::ClientId(id)), Vec::new()));
            }
        };
        let said: Introduction = serde_json::from_slice(details)
            .map_err(|error| Error::caused(ErrorKind::Invalid, "reading who wants to join", error))?;
        let entry = entry(&said, kind, fingerprint(signing));
        let name = entry.name.clone();
        let join = Decision::Join { token: token.id(), token_expires: token.expires().as_secs(), entry };
        match running.control.decide(join, DECISION_PATIENCE)? {
            Outcome::Joined(node) => {
                tracing::info!("node {} ({name}) has joined", node.0);
                let peer = match kind {
                    NodeKind::Data => PeerName::Data(node),
                    NodeKind::Witness => PeerName::Witness(node),
                };
                Ok((peer, running.control.state().identity.clone()))
            }
            Outcome::Unchanged(why) => Err(Error::new(ErrorKind::Invalid, why)),
            Outcome::Changed => Err(Error::new(ErrorKind::Invalid, "the decision gave no number")),
        }
    }

    pub(super) fn control_path(&self) -> PathBuf {
        self.options.directory.join("control.redb")
    }
}

pub(super) fn introduction(options: &ClusterOptions, listen: SocketAddr) -> Introduction {
    Introduction {
        name: options.name.clone(),
        cluster_address: listen.to_string(),
        api_address: options.api_address.clone(),
        nbd_address: options.nbd_address.clone(),
        asynchronous: options.asynchronous,
    }
}

fn entry(said: &Introduction, kind: NodeKind, key_fingerprint: [u8; 32]) -> NodeEntry {
    NodeEntry {
        name: said.name.clone(),
        kind,
        mode: if said.asynchronous { ReplicaMode::Async } else { ReplicaMode::Sync },
        cluster_address: said.cluster_address.clone(),
        api_address: said.api_address.clone(),
        nbd_address: said.nbd_address.clone(),
        key_fingerprint,
        announced_url: None,
    }
}

fn fingerprint(request: &SigningRequest) -> [u8; 32] {
    *blake3::hash(&request.to_bytes()).as_bytes()
}

/// The address to listen at; other nodes must be able to use it as it stands.
pub(super) fn listen_address(said: Option<SocketAddr>, before: Option<SocketAddr>) -> Result<SocketAddr> {
    let address = said.or(before).unwrap_or(SocketAddr::from(([127, 0, 0, 1], 0)));
    if address.ip().is_unspecified() {
        let what =
            format!("{address} is no address at which other nodes reach this one: name one of its own");
        return Err(Error::new(ErrorKind::Invalid, what));
    }
    Ok(address)
}

pub(super) fn bind(address: SocketAddr) -> Result<TcpListener> {
    TcpListener::bind(address).map_err(|error| unusable(address, error))
}

fn unusable(address: SocketAddr, error: std::io::Error) -> Error {
    let kind = match error.kind() {
        std::io::ErrorKind::AddrInUse => ErrorKind::Busy,
        _ => ErrorKind::Invalid,
    };
    Error::caused(kind, format!("listening on {address} for other nodes"), error)
}

fn node_file_of(options: &ClusterOptions, listen: SocketAddr, pool: Option<&ArrayPool>) -> NodeFile {
    let pool = pool.map(|pool| BASE64_STANDARD.encode(pool.encode()));
    let name = options.name.clone();
    NodeFile { name, listen, pool, pool_is_to_be_made: false, group_is_made: false }
}
