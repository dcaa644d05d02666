//! What a node sees to while it is in a cluster: that the group knows where it is, and that its certificate holds.

use std::sync::{Arc, Weak};
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::replica::control::Control;
use crate::replica::control::state::{Decision, NodeEntry};
use crate::replica::decisions::NodeId;
use crate::replica::identity::{IdentityFiles, NodeIdentity, PeerIdentity, SigningRequest};
use crate::replica::link::{self, Frame, Link};
use crate::sync::{Clock, Condition, Mutex};

use super::forming::introduction;
use super::{Cluster, ClusterOptions, DECISION_PATIENCE, Running, port};

/// Between attempts to say what has changed about this node.
const UPDATE_PAUSE: Duration = Duration::from_secs(1);
/// How often it is looked whether the certificate is to be renewed.
const RENEWAL_LOOK: Duration = Duration::from_secs(60 * 60);
/// After an attempt that failed.
const RENEWAL_PAUSE: Duration = Duration::from_secs(10);
/// A node that is asked to renew a certificate answers within this time.
const RENEWAL_PATIENCE: Duration = Duration::from_secs(5);

/// The thread, and what it waits on.
#[derive(Default)]
pub(super) struct Upkeep {
    rest: Arc<Rest>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

#[derive(Default)]
struct Rest {
    ended: Mutex<bool>,
    end: Condition,
}

impl Rest {
    /// Waits for a time, or for the end; whether it has come.
    fn wait(&self, clock: &dyn Clock, time: Duration) -> bool {
        let deadline = clock.monotonic() + time;
        let mut ended = self.ended.lock();
        loop {
            let left = deadline.saturating_sub(clock.monotonic());
            if *ended || left.is_zero() {
                return *ended;
            }
            ended = self.end.wait_for(ended, left);
        }
    }
}

impl Upkeep {
    pub(super) fn start(&self, options: &ClusterOptions, clock: &Arc<dyn Clock>, running: &Arc<Running>) {
        let (options, clock) = (options.clone(), Arc::clone(clock));
        let (rest, running) = (Arc::clone(&self.rest), Arc::downgrade(running));
        let work = move || keep(&options, &*clock, &rest, &running);
        match Builder::new().name("cluster-upkeep".to_owned()).spawn(work) {
            Ok(thread) => *self.thread.lock() = Some(thread),
            Err(error) => tracing::warn!("the cluster is not told where this node is: {error}"),
        }
    }

    /// The thread ends as soon as what it has asked for is answered.
    pub(super) fn stop(&self) {
        *self.rest.ended.lock() = true;
        self.rest.end.notify_all();
    }

    /// Waits for that.
    pub(super) fn join(&self) {
        if let Some(thread) = self.thread.lock().take() {
            // A panic of that thread has been reported by then.
            let _ = thread.join();
        }
    }
}

fn keep(options: &ClusterOptions, clock: &dyn Clock, rest: &Rest, running: &Weak<Running>) {
    let (mut told, mut pause) = (false, Duration::ZERO);
    let mut renew_at = clock.monotonic();
    while !rest.wait(clock, pause) {
        let Some(running) = running.upgrade() else { return };
        told = told || running.tell_where_it_is(options);
        if clock.monotonic() >= renew_at {
            let renewed = running.renew_if_due(options, clock.since_unix_epoch());
            if let Err(error) = &renewed {
                tracing::warn!("this node's certificate was not renewed, and is to be: {error}");
            }
            renew_at = clock.monotonic() + if renewed.is_ok() { RENEWAL_LOOK } else { RENEWAL_PAUSE };
        }
        let left = renew_at.saturating_sub(clock.monotonic());
        pause = if told { left } else { left.min(UPDATE_PAUSE) };
    }
}

impl Running {
    /// Tells the group where this node is now, where that is not what the group knows; whether it knows it then.
    fn tell_where_it_is(&self, options: &ClusterOptions) -> bool {
        let Some(known) = self.entry() else { return false };
        let said = introduction(options, self.listen);
        let now = NodeEntry {
            cluster_address: said.cluster_address,
            api_address: said.api_address,
            nbd_address: said.nbd_address,
            ..known.clone()
        };
        if now == known {
            return true;
        }
        let update = Decision::Update { node: self.own, entry: now };
        self.control.decide(update, DECISION_PATIENCE).is_ok()
    }

    /// Has the certificate renewed once half of its life is over: a node that holds the authority's key does it itself,
    /// any other one asks such a node.
    fn renew_if_due(&self, options: &ClusterOptions, now: Duration) -> Result<()> {
        let identity = self.identity.now();
        if !identity.renewal_due(now) {
            return Ok(());
        }
        let renewed = Arc::new(match &self.authority {
            Some(authority) => {
                let request = identity.signing_request()?;
                identity.renewed(authority.sign(identity.peer().name, &request, now)?)?
            }
            None => self.ask_any_to_renew(&identity)?,
        });
        IdentityFiles::in_directory(&options.directory).save_renewed(&renewed)?;
        self.calls.0.replace_identity(Arc::clone(&renewed));
        if let Some(server) = &*self.server.lock() {
            server.replace_identity(&renewed)?;
        }
        self.identity.replace(renewed);
        tracing::info!("this node's certificate was renewed");
        Ok(())
    }

    fn ask_any_to_renew(&self, identity: &NodeIdentity) -> Result<NodeIdentity> {
        let state = self.control.state();
        let others = state.nodes.iter().filter(|(node, _)| **node != self.own && state.is_data(**node));
        let mut failure = Error::new(ErrorKind::NotFound, "no node that keeps data is known");
        for (node, entry) in others {
            match ask_to_renew(&entry.cluster_address, identity, Some(*node)) {
                Ok(renewed) => return Ok(renewed),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }
}

/// This identity with the certificate that the node at `address` (`HOST:PORT`) signs anew; one that keeps data can. With
/// `expect`, only that node is asked.
///
/// # Errors
/// `Unreachable` where it does not answer or does not sign it, `Invalid` for a certificate that is not this identity's;
/// as `link::connect`.
pub fn ask_to_renew(address: &str, identity: &NodeIdentity, expect: Option<NodeId>) -> Result<NodeIdentity> {
    let mut link = link::connect(address, identity, expect, RENEWAL_PATIENCE)?;
    link.send(port::RENEW, &[&identity.signing_request()?.to_bytes()])?;
    let answer = link.receive(Some(RENEWAL_PATIENCE))?.filter(|frame| frame.kind == port::RENEW);
    let refused = || Error::new(ErrorKind::Unreachable, format!("{address} does not renew a certificate"));
    identity.renewed(answer.ok_or_else(refused)?.body)
}

impl Cluster {
    /// Signs a member's certificate anew, under the name that it has.
    pub(super) fn renew(
        &self,
        running: &Running,
        peer: &PeerIdentity,
        link: &Link,
        first: &Frame,
    ) -> Result<()> {
        let request = SigningRequest::from_bytes(&first.body);
        let request = request
            .ok_or_else(|| Error::new(ErrorKind::Invalid, "a request for a certificate that is none"))?;
        let now = self.environment.clock.since_unix_epoch();
        let certificate = running.authority()?.sign(peer.name, &request, now)?;
        tracing::info!("the certificate of {} was renewed", peer.name);
        link.send(port::RENEW, &[&certificate])
    }
}
