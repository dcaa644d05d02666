//! Nodes of one consensus group in this process, with links that can be cut and listened to.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};

use sinter::error::{Error, ErrorKind, Result};
use sinter::replica::control::raft::RaftControl;
use sinter::replica::control::state::{Decision, NodeEntry, NodeKind, Outcome, ReplicaMode};
use sinter::replica::control::{Control, Transport};
use sinter::replica::decisions::{Incarnation, Member, NodeId, Record};
use sinter::units::Uuid;

pub(crate) const CLUSTER: Uuid = Uuid([7; 16]);

/// Long for a busy machine; a test that passes does not wait for it.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who can be called, and which links are cut.
#[derive(Default)]
struct Links {
    nodes: Mutex<BTreeMap<NodeId, Weak<RaftControl>>>,
    cut: Mutex<BTreeSet<NodeId>>,
    /// The last request to each node that it did not refuse.
    overheard: Mutex<BTreeMap<NodeId, (NodeId, Vec<u8>)>>,
}

struct Link {
    own: NodeId,
    links: Arc<Links>,
}

impl Transport for Link {
    fn call(&self, to: NodeId, address: &str, request: &[u8], _patience: Duration) -> Result<Vec<u8>> {
        let silent = || Error::new(ErrorKind::Unreachable, format!("{} to {}", self.own.0, to.0));
        assert_eq!(address, format!("node-{}", to.0));
        let is_cut = || {
            let cut = self.links.cut.lock().unwrap();
            cut.contains(&to) || cut.contains(&self.own)
        };
        if is_cut() {
            return Err(silent());
        }
        let peer = self.links.nodes.lock().unwrap().get(&to).and_then(Weak::upgrade).ok_or_else(silent)?;
        let answer = peer.answer(self.own, request)?;
        self.links.overheard.lock().unwrap().insert(to, (self.own, request.to_vec()));
        // An answer may be lost where the request was not.
        if is_cut() { Err(silent()) } else { Ok(answer) }
    }
}

pub(crate) struct Nodes {
    folder: PathBuf,
    links: Arc<Links>,
    running: BTreeMap<u32, Arc<RaftControl>>,
}

impl Nodes {
    /// A group of one.
    pub(crate) fn one(test: &str) -> Nodes {
        let folder = std::env::temp_dir().join(format!("sinter-control-{}-{test}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let mut nodes = Nodes { folder, links: Arc::default(), running: BTreeMap::new() };
        let first = nodes.begin(1).unwrap();
        nodes.up(1, first);
        nodes
    }

    /// Two data nodes and a witness, all voting.
    pub(crate) fn three(test: &str) -> Nodes {
        let mut nodes = Nodes::one(test);
        nodes.join(2, entry("b", 2));
        nodes.join(3, NodeEntry { kind: NodeKind::Witness, ..entry("w", 3) });
        eventually("all three vote", || (1..=3).all(|node| nodes.control(node).standing().voters.len() == 3));
        nodes
    }

    pub(crate) fn begin(&self, node: u32) -> Result<Arc<RaftControl>> {
        let record = Record::of(Member { node: NodeId(node), incarnation: Incarnation(10) });
        let first = entry("a", node);
        let (path, link) = (self.path(node), self.link(node));
        RaftControl::create(&path, CLUSTER, NodeId(node), first, record, vec![1, 2, 3], link)
    }

    /// A node joins with a token of its own.
    pub(crate) fn join(&mut self, node: u32, entry: NodeEntry) {
        let decision = join_with(u8::try_from(node).unwrap(), entry);
        let outcome = self.control(1).decide(decision, PATIENCE).unwrap();
        assert_eq!(outcome, Outcome::Joined(NodeId(node)));
        let control = RaftControl::join(&self.path(node), CLUSTER, NodeId(node), self.link(node)).unwrap();
        self.up(node, control);
    }

    pub(crate) fn open(&mut self, node: u32) {
        let control = RaftControl::open(&self.path(node), NodeId(node), self.link(node)).unwrap();
        self.up(node, control);
    }

    pub(crate) fn open_alone(&mut self, node: u32) {
        let control = RaftControl::open_alone(&self.path(node), NodeId(node), self.link(node)).unwrap();
        self.up(node, control);
    }

    pub(crate) fn stop(&mut self, node: u32) {
        let control = self.running.remove(&node).unwrap();
        control.stop();
    }

    pub(crate) fn control(&self, node: u32) -> &RaftControl {
        &self.running[&node]
    }

    pub(crate) fn cut_off(&self, node: u32) {
        self.links.cut.lock().unwrap().insert(NodeId(node));
    }

    pub(crate) fn heal(&self) {
        self.links.cut.lock().unwrap().clear();
    }

    pub(crate) fn leader(&self) -> u32 {
        let mut leader = None;
        eventually("somebody leads", || {
            leader = self.running.iter().find(|(_, control)| control.standing().leads).map(|(node, _)| *node);
            leader.is_some()
        });
        leader.unwrap()
    }

    /// A request that a node has just answered, and from whom.
    pub(crate) fn overheard(&self, to: u32) -> (u32, Vec<u8>) {
        let mut heard = None;
        self.links.overheard.lock().unwrap().clear();
        eventually("a heartbeat", || {
            heard = self.links.overheard.lock().unwrap().get(&NodeId(to)).cloned();
            heard.is_some()
        });
        heard.map(|(from, request)| (from.0, request)).unwrap()
    }

    pub(crate) fn path(&self, node: u32) -> PathBuf {
        self.folder.join(format!("{node}.redb"))
    }

    pub(crate) fn link(&self, node: u32) -> Arc<dyn Transport> {
        Arc::new(Link { own: NodeId(node), links: Arc::clone(&self.links) })
    }

    fn up(&mut self, node: u32, control: Arc<RaftControl>) {
        self.links.nodes.lock().unwrap().insert(NodeId(node), Arc::downgrade(&control));
        self.running.insert(node, control);
    }
}

impl Drop for Nodes {
    fn drop(&mut self) {
        for control in self.running.values() {
            control.stop();
        }
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

pub(crate) fn entry(name: &str, node: u32) -> NodeEntry {
    NodeEntry {
        name: name.into(),
        kind: NodeKind::Data,
        mode: ReplicaMode::Sync,
        cluster_address: format!("node-{node}"),
        api_address: None,
        nbd_address: None,
        key_fingerprint: [u8::try_from(node).unwrap(); 32],
        announced_url: None,
    }
}

pub(crate) fn join_with(token: u8, entry: NodeEntry) -> Decision {
    Decision::Join { token: [token; 16], token_expires: u64::MAX / 2, entry }
}

/// Waits until something holds; fails where it never does.
pub(crate) fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + PATIENCE;
    while !holds() {
        assert!(Instant::now() < until, "never: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}
