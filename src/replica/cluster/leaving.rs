//! Going on without the cluster as it was: standing alone, and promotion where no majority is left.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::replica::control::raft::RaftControl;
use crate::replica::control::state::{Decision, Outcome};
use crate::replica::control::{Control, Transport};
use crate::replica::decisions::{Incarnation, Member};
use crate::replica::epochs;
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
            self.hold_whole_copy(&running)?;
            let forced = self.decide(Decision::Force { member: node.own(), from: from.epoch });
            if forced.is_ok() {
                // Until this node has heard it, a stream of the term before could still have it compared.
                node.wait_for_epoch_after(from.epoch, DECISION_PATIENCE);
            }
            node.release_following();
            return forced.map(|_| false);
        }
        drop(running);
        let running = self.go_on_alone()?;
        let node = running.node.as_ref();
        let node = node.ok_or_else(|| Error::new(ErrorKind::Unsupported, "a witness is never primary"))?;
        let force = Decision::Force { member: node.own(), from: from.epoch };
        if let Outcome::Unchanged(why) = running.control.decide(force, DECISION_PATIENCE)? {
            let what = format!("this node is in a group of its own now, and was not made its primary: {why}");
            return Err(Error::new(ErrorKind::Busy, what));
        }
        tracing::warn!("this node goes on alone, by force: all other nodes must join anew");
        Ok(true)
    }

    /// Leaves the cluster: this node's array stands alone from now on, with what it holds, in a generation of its own.
    ///
    /// # Errors
    /// `Invalid` where clustering is off; `Unsupported` on a witness; `Busy` while other nodes take this one for one of
    /// theirs, or where its copy is not whole; `Stopped` where its device has failed; `Device`, `Corrupt`: then it serves
    /// nothing until it is started again, and has left its cluster or is a node of it still.
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
        if data.store.has_stopped() {
            let what = "this node takes no writes any more: it leaves its cluster once it was started anew";
            return Err(Error::new(ErrorKind::Stopped, what));
        }
        // From here on nothing comes that would be compared.
        self.hold_whole_copy(&running)?;
        self.take_down(&running, data);
        drop(running);
        let directory = &self.options.directory;
        IdentityFiles::in_directory(directory).remove()?;
        remove_if_there(&node_file(directory))?;
        remove_if_there(&self.control_path())?;
        // Until this is done, the pool says of itself that it belongs to a cluster, and is not served alone.
        data.store.follow(false);
        epochs::stand_alone(&data.store, &*self.environment.random)?;
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

    /// The same, and it stays as it is until `release_following`: the stream that this node follows ends, and no other
    /// one begins.
    fn hold_whole_copy(&self, running: &Running) -> Result<&DataParts> {
        if let Some(node) = &running.node {
            node.hold_following()?;
        }
        let whole = self.whole_copy();
        if let (Err(_), Some(node)) = (&whole, &running.node) {
            node.release_following();
        }
        whole
    }

    /// Ends the node at work, without asking anybody; nothing is taken until the gate is opened again.
    fn take_down(&self, running: &Arc<Running>, data: &DataParts) {
        *self.running.lock() = None;
        data.gate.hold();
        running.end();
        data.gate.end_tenure();
        (data.disconnect)();
    }

    /// The same node in a group of its own.
    fn go_on_alone(self: &Arc<Cluster>) -> Result<Arc<Running>> {
        let _forming = self.forming.lock();
        let running = self.enabled()?;
        let data = self.hold_whole_copy(&running)?;
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
