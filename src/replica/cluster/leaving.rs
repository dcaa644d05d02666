//! Going on without the cluster as it was: standing alone, and promotion where no majority is left.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::replica::control::raft::RaftControl;
use crate::replica::control::state::Decision;
use crate::replica::control::{Control, Transport};
use crate::replica::decisions::{Incarnation, Member};
use crate::replica::identity::{IdentityFiles, Stored};
use crate::replica::link::CallPool;

use super::files::{node_file, read_node_file, remove_if_there};
use super::forming::{bind, listen_address};
use super::{Calls, Cluster, DECISION_PATIENCE, DataParts, Running};

/// A primary that was heard so lately counts as one that serves.
const PRIMARY_ALIVE: Duration = Duration::from_secs(1);

impl Cluster {
    /// Makes this node the primary, alone in another generation, whoever is or was it. Acknowledged writes that it does
    /// not hold are lost. Where a majority of the voters is heard, they decide it, and the other nodes are made like
    /// this one; without, this node goes on in a group of its own, and the others are none of its nodes any more. Whether
    /// it was the latter.
    ///
    /// # Errors
    /// `Exists` where it is the primary; `Unsupported` on a witness; `Busy` where another epoch has begun meanwhile, or
    /// this node's copy is not whole; `NoQuorum` where this node has not heard its cluster yet, or where it cannot be
    /// decided.
    pub fn promote_by_force(self: &Arc<Cluster>) -> Result<bool> {
        let running = self.enabled()?;
        let node = running.node.as_ref();
        let node = node.ok_or_else(|| Error::new(ErrorKind::Unsupported, "a witness is never primary"))?;
        if node.serves() {
            return Err(Error::new(ErrorKind::Exists, "this node is the primary"));
        }
        self.whole_copy()?;
        let record = running.control.state().record.clone();
        let from = record
            .ok_or_else(|| Error::new(ErrorKind::NoQuorum, "this node has not heard its cluster yet"))?;
        if running.control.standing().has_quorum {
            self.decide(Decision::Force { member: node.own(), from: from.epoch })?;
            return Ok(false);
        }
        drop(running);
        let running = self.go_on_alone()?;
        let node = running.node.as_ref();
        let node = node.ok_or_else(|| Error::new(ErrorKind::Unsupported, "a witness is never primary"))?;
        let force = Decision::Force { member: node.own(), from: from.epoch };
        running.control.decide(force, DECISION_PATIENCE)?;
        tracing::warn!("this node goes on alone, by force: all other nodes must join anew");
        Ok(true)
    }

    /// Leaves the cluster: this node's array stands alone from now on, with what it holds.
    ///
    /// # Errors
    /// `Invalid` where clustering is off; `Unsupported` on a witness; `Busy` while other nodes take this one for one of
    /// theirs, or where its copy is not whole; `Device`, `Corrupt`: then it is done at the next start.
    pub fn forget(&self) -> Result<()> {
        let _forming = self.forming.lock();
        let running = self.enabled()?;
        let data = self.whole_copy()?;
        let alone = running.control.state().nodes.len() <= 1;
        let served = running.node.as_ref().is_some_and(|node| {
            let status = node.status();
            let primary = status.peers.iter().find(|peer| peer.node == status.record.primary);
            status.serves || primary.and_then(|peer| peer.heard_ago).is_some_and(|ago| ago < PRIMARY_ALIVE)
        });
        if served && !alone {
            let what = "this node is one of several that serve the array: take it out of the cluster first";
            return Err(Error::new(ErrorKind::Busy, what));
        }
        self.take_down(&running, data);
        drop(running);
        let directory = &self.options.directory;
        IdentityFiles::in_directory(directory).remove()?;
        remove_if_there(&node_file(directory))?;
        remove_if_there(&self.control_path())?;
        data.store.follow(false);
        data.array.reload()?;
        data.gate.release();
        tracing::warn!("this array has left its cluster, and stands alone");
        Ok(())
    }

    /// What this node keeps, where that is of one moment.
    fn whole_copy(&self) -> Result<&DataParts> {
        let data = self.data.as_ref();
        let data = data.ok_or_else(|| Error::new(ErrorKind::Unsupported, "a witness keeps no data"))?;
        if data.store.syncing() {
            let what = "this node was being compared with the primary: its copy is not whole";
            return Err(Error::new(ErrorKind::Busy, what));
        }
        Ok(data)
    }

    /// Ends the node at work, without asking anybody; nothing is taken until the gate is opened again.
    fn take_down(&self, running: &Arc<Running>, data: &DataParts) {
        *self.running.lock() = None;
        data.gate.hold();
        running.end();
        (data.disconnect)();
    }

    /// The same node in a group of its own.
    fn go_on_alone(self: &Arc<Cluster>) -> Result<Arc<Running>> {
        let _forming = self.forming.lock();
        let running = self.enabled()?;
        let data = self.whole_copy()?;
        self.take_down(&running, data);
        let own = running.own;
        drop(running);
        let directory = &self.options.directory;
        let stored = IdentityFiles::in_directory(directory).load()?;
        let Some(Stored { identity, authority }) = stored else {
            return Err(Error::new(ErrorKind::Corrupt, "this node's identity is gone"));
        };
        let file = read_node_file(directory)?;
        let listener = bind(listen_address(self.options.listen, Some(file.listen))?)?;
        let identity = Arc::new(identity);
        let calls = Arc::new(Calls(CallPool::new(Arc::clone(&identity))));
        let transport = || Arc::clone(&calls) as Arc<dyn Transport>;
        let path = self.control_path();
        let (control, failure) = match RaftControl::open_alone(&path, own, transport()) {
            Ok(control) => (control, None),
            Err(error) => (RaftControl::open(&path, own, transport())?, Some(error)),
        };
        let member = Member { node: own, incarnation: Incarnation(self.environment.random.number()) };
        let running = self.run(listener, member, control, (identity, authority), calls)?;
        failure.map_or(Ok(running), Err)
    }
}
