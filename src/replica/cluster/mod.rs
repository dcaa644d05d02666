//! The cluster as one node has it: forming, joining and leaving it, its port, and the node at work.
//!
//! What a node is lies in one directory: who it is (`IdentityFiles`), where it listens (`node.json`), and the log of
//! the consensus group (`control.redb`). Without them the array stands alone, and everything here is off.

mod files;
mod forming;
mod leaving;
mod port;
mod upkeep;

use std::collections::BTreeSet;
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::array::Array;
use crate::error::{Error, ErrorKind, Result};
use crate::store::{Environment, PoolIdentity, Store};
use crate::sync::Mutex;
use crate::units::{ByteCount, Epoch, Lsn, Uuid};

use super::control::raft::RaftControl;
use super::control::state::{Decision, NodeEntry, Outcome};
use super::control::{Control, Transport};
use super::decisions::{Change, Member, NodeId, Record};
use super::identity::{Authority, CurrentIdentity, PeerRole};
use super::link::{self, CallPool, Link, LinkCloser, LinkServer};
use super::node::{Gate, Node, Upkeep};
use super::ring::Ring;

pub use forming::{JoinPlan, Joining, join_as_client};
pub use port::passage_to;
pub use upkeep::ask_to_renew;

/// How long a decision may take that somebody waits for.
pub const DECISION_PATIENCE: Duration = Duration::from_secs(10);
/// A primary that is told to stop hands over within this time, or stops without.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(5);
/// A node that cannot be reached within this time does not count as one that can.
const REACH_PATIENCE: Duration = Duration::from_millis(300);
/// A member that stops takes itself out of the set within this time, or leaves that to the primary.
const LEAVE_PATIENCE: Duration = Duration::from_secs(1);
/// Another decision may come first.
const LEAVE_ATTEMPTS: usize = 3;
/// A connection to the primary is made within this time.
const TUNNEL_PATIENCE: Duration = Duration::from_secs(3);

/// What this node is called and where it is.
#[derive(Clone, Debug)]
pub struct ClusterOptions {
    /// Where everything about the cluster is kept.
    pub directory: PathBuf,
    /// What this node is called: unique in the cluster.
    pub name: String,
    /// Where other nodes reach it; what was said when it joined, where nothing is said now.
    pub listen: Option<SocketAddr>,
    /// Where its REST is.
    pub api_address: Option<String>,
    /// Where its NBD server is.
    pub nbd_address: Option<String>,
    /// Whether it follows at its own pace, and is never a member of the in-sync set.
    pub asynchronous: bool,
    /// What it does for nodes that come back.
    pub upkeep: Upkeep,
}

/// The array of a data node, and where its own servers are.
#[derive(Clone)]
pub struct DataParts {
    /// The pool.
    pub store: Arc<Store>,
    /// The array on it.
    pub array: Arc<Array>,
    /// What the pool's operations fill.
    pub ring: Arc<Ring>,
    /// What the array asks.
    pub gate: Arc<Gate>,
    /// Lets all clients go, who are to connect anew.
    pub disconnect: Arc<dyn Fn() + Send + Sync>,
    /// Ends the process in order, and starts it again.
    pub begin_anew: Arc<dyn Fn() + Send + Sync>,
    /// Where connections that others pass on are served.
    pub local: LocalServers,
}

/// Where connections that other nodes pass on are served.
#[derive(Clone, Debug)]
pub struct LocalServers {
    /// NBD.
    pub nbd: Option<LocalServer>,
    /// REST.
    pub rest: SocketAddr,
}

/// One of this node's own servers.
#[derive(Clone, Debug)]
pub enum LocalServer {
    /// At a TCP address.
    Tcp(SocketAddr),
    /// At a Unix socket.
    Unix(PathBuf),
}

/// What is passed on to the primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Passage {
    /// An NBD connection.
    Nbd,
    /// An HTTP connection.
    Rest,
}

/// The cluster as this node has it.
pub struct Cluster {
    options: ClusterOptions,
    environment: Environment,
    data: Option<DataParts>,
    running: Mutex<Option<Arc<Running>>>,
    /// Held by whoever forms, opens or leaves.
    forming: Mutex<()>,
    /// What this node passes on, and to whom: it is cut when another one is the primary.
    passing: Mutex<Vec<(NodeId, LinkCloser)>>,
}

/// A cluster that this node is in.
pub struct Running {
    /// This node.
    pub own: NodeId,
    /// Where other nodes reach it.
    pub listen: SocketAddr,
    /// Who decides.
    pub control: Arc<RaftControl>,
    /// The node at work; a witness has none.
    pub node: Option<Arc<Node>>,
    identity: Arc<CurrentIdentity>,
    authority: Option<Authority>,
    calls: Arc<Calls>,
    server: Mutex<Option<LinkServer>>,
    upkeep: upkeep::Upkeep,
}

/// Requests to other nodes.
struct Calls(CallPool);

impl Transport for Calls {
    fn call(&self, to: NodeId, address: &str, request: &[u8], patience: Duration) -> Result<Vec<u8>> {
        self.0.call(to, address, request, patience)
    }
}

impl Cluster {
    /// An array that stands alone until it is told otherwise. Without `data` it can only be a witness.
    #[must_use]
    pub fn new(options: ClusterOptions, environment: Environment, data: Option<DataParts>) -> Arc<Cluster> {
        let (running, forming, passing) = (Mutex::new(None), Mutex::new(()), Mutex::new(Vec::new()));
        Arc::new(Cluster { options, environment, data, running, forming, passing })
    }

    /// The cluster that this node is in.
    #[must_use]
    pub fn running(&self) -> Option<Arc<Running>> {
        self.running.lock().clone()
    }

    /// The same, or an error that says that there is none.
    ///
    /// # Errors
    /// `Invalid`.
    pub fn enabled(&self) -> Result<Arc<Running>> {
        self.running().ok_or_else(|| Error::new(ErrorKind::Invalid, "Clustering is not enabled"))
    }

    /// The array's own clock and random source.
    #[must_use]
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// A new token for a node or a client.
    ///
    /// # Errors
    /// `Invalid` where clustering is off; `Unsupported` on a witness.
    pub fn token(&self, role: PeerRole) -> Result<String> {
        let running = self.enabled()?;
        let authority = running.authority()?;
        let nodes = &running.control.state().nodes;
        let mut addresses: Vec<String> =
            nodes.get(&running.own).map(|entry| entry.cluster_address.clone()).into_iter().collect();
        let data =
            nodes.iter().filter(|(node, _)| **node != running.own && running.control.state().is_data(**node));
        addresses.extend(data.map(|(_, entry)| entry.cluster_address.clone()).take(4));
        let now = self.environment.clock.since_unix_epoch();
        Ok(authority.token(role, &addresses, now, &*self.environment.random)?.to_string())
    }

    /// Whether requests are to be passed on, because another node is the primary.
    #[must_use]
    pub fn passes_on(&self) -> bool {
        let node = self.running().and_then(|running| running.node.clone());
        node.is_some_and(|node| !node.leads())
    }

    /// A connection to the primary for a client of this node.
    ///
    /// # Errors
    /// `NoQuorum` where no primary is known; `Unreachable` where it does not answer.
    pub fn pass_on(&self, what: Passage) -> Result<Link> {
        let running = self.enabled()?;
        let primary = running.node.as_ref().and_then(|node| node.primary_elsewhere());
        let (primary, entry) =
            primary.ok_or_else(|| Error::new(ErrorKind::NoQuorum, "there is no primary"))?;
        let link = passage_to(&entry.cluster_address, &running.identity.now(), Some(primary), what)?;
        // A request over REST ends by itself, and the answer to one for a failover comes from the former primary.
        if what == Passage::Nbd {
            let mut passing = self.passing.lock();
            passing.retain(|(_, closer)| !closer.is_gone());
            passing.push((primary, link.closer()));
        }
        Ok(link)
    }

    /// Whether another node can be reached now, and takes this one for a member.
    #[must_use]
    pub fn reaches(&self, node: NodeId) -> bool {
        let Some(running) = self.running() else { return false };
        let entry = running.control.state().nodes.get(&node).cloned();
        entry.is_some_and(|entry| {
            link::connect(&entry.cluster_address, &running.identity.now(), Some(node), REACH_PATIENCE).is_ok()
        })
    }

    /// Cuts what is passed on to others than this node.
    fn cut_passages_but_to(&self, primary: NodeId) {
        let mut passing = self.passing.lock();
        let wrong = |(to, _): &&(NodeId, LinkCloser)| *to != primary;
        passing.iter().filter(wrong).for_each(|(_, closer)| closer.close());
        passing.retain(|(to, closer)| *to == primary && !closer.is_gone());
    }

    /// Starts the array without nodes that were in sync when all were down, and never return; the new primary.
    ///
    /// # Errors
    /// As `Node::start_without`; `Invalid` where clustering is off.
    pub fn start_without(&self, without: &BTreeSet<NodeId>, patience: Duration) -> Result<NodeId> {
        let running = self.enabled()?;
        let node = running.node.as_ref();
        node.ok_or_else(|| Error::new(ErrorKind::NotPrimary, "a witness is never primary"))?
            .start_without(without, patience)
    }

    /// Hands over to `to`, or to any node that is in sync; the new primary.
    ///
    /// # Errors
    /// As `Node::hand_over`; `Invalid` where clustering is off.
    pub fn hand_over(&self, to: Option<NodeId>, patience: Duration) -> Result<NodeId> {
        let running = self.enabled()?;
        let node = running.node.as_ref();
        node.ok_or_else(|| Error::new(ErrorKind::NotPrimary, "a witness is never primary"))?
            .hand_over(to, patience)
    }

    /// Decides something that an operator asked for.
    ///
    /// # Errors
    /// `Busy` where it was refused, and why; `NoQuorum` where it was not decided in time: it may still be.
    pub fn decide(&self, decision: Decision) -> Result<Outcome> {
        match self.enabled()?.control.decide(decision, DECISION_PATIENCE)? {
            Outcome::Unchanged(why) => Err(Error::new(ErrorKind::Busy, why)),
            outcome => Ok(outcome),
        }
    }

    /// Stops: a primary hands over first, where it can.
    pub fn stop(&self) {
        let _forming = self.forming.lock();
        let Some(running) = self.running.lock().take() else { return };
        if let Some(node) = &running.node {
            if node.serves() {
                match node.hand_over(None, HAND_OVER_PATIENCE) {
                    Ok(to) => tracing::info!("handed over to node {}", to.0),
                    Err(error) => tracing::info!("stopping without handing over: {error}"),
                }
            }
            running.leave_the_set(node.own());
        }
        running.end();
    }
}

impl Running {
    /// Ends all threads and connections.
    fn end(&self) {
        self.upkeep.stop();
        if let Some(node) = &self.node {
            node.stop();
        }
        if let Some(mut server) = self.server.lock().take() {
            server.stop();
        }
        self.control.stop();
        self.upkeep.join();
    }

    /// How often another node has become primary, since the cluster was made.
    #[must_use]
    pub fn failovers(&self) -> u64 {
        self.control.state().failovers
    }

    /// The entry of this node.
    #[must_use]
    pub fn entry(&self) -> Option<NodeEntry> {
        self.control.state().nodes.get(&self.own).cloned()
    }

    /// A member that stops says so: nobody has to find out that it is silent.
    fn leave_the_set(&self, own: Member) {
        for _ in 0..LEAVE_ATTEMPTS {
            let record = self.control.state().record.clone();
            let member = |record: &Record| record.names(own) && record.primary != own.node;
            let Some(record) = record.filter(member) else { return };
            let out = Decision::Role(record.command(Change::Out(own.node)));
            // Where it is not decided, the primary finds out.
            if self.control.decide(out, LEAVE_PATIENCE).is_err() {
                return;
            }
        }
    }

    fn authority(&self) -> Result<&Authority> {
        self.authority.as_ref().ok_or_else(|| {
            Error::new(ErrorKind::Unsupported, "a witness gives out no tokens: ask a node that keeps data")
        })
    }
}

impl LocalServer {
    fn tunnel(&self, link: Link) -> Result<()> {
        let failed = |error| Error::caused(ErrorKind::Unreachable, "reaching this node's own server", error);
        match self {
            LocalServer::Tcp(address) => link::tunnel(link, TcpStream::connect(address).map_err(failed)?),
            LocalServer::Unix(path) => link::tunnel(link, UnixStream::connect(path).map_err(failed)?),
        }
    }
}

/// What makes a pool one of the array's.
#[derive(Clone, Debug)]
pub struct ArrayPool {
    /// The pool's id, and the key of its fingerprints.
    pub identity: PoolIdentity,
    /// The size of its segments: an operation of one node must fit into those of every other one.
    pub segment_bytes: ByteCount,
}

impl ArrayPool {
    fn of(store: &Store) -> ArrayPool {
        ArrayPool { identity: store.identity(), segment_bytes: store.segment_bytes() }
    }

    /// As the group keeps it.
    fn encode(&self) -> Vec<u8> {
        let PoolIdentity { pool, fingerprint_key, .. } = &self.identity;
        [pool.0.as_slice(), fingerprint_key, &self.segment_bytes.0.to_le_bytes()].concat()
    }

    /// Reads what `encode` gave; a pool that is made so begins with nothing.
    fn decode(bytes: &[u8]) -> Option<ArrayPool> {
        let (pool, rest) = bytes.split_first_chunk::<16>()?;
        let (key, segment_bytes) = rest.split_first_chunk::<32>()?;
        let position = (Epoch::default(), Lsn(0));
        let identity = PoolIdentity { pool: Uuid(*pool), fingerprint_key: *key, position };
        Some(ArrayPool {
            identity,
            segment_bytes: ByteCount(u64::from_le_bytes(segment_bytes.try_into().ok()?)),
        })
    }
}
