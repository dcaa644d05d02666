//! What the group's own thread does: serving peers, and getting a proposal decided wherever the leader is.

use std::sync::Arc;
use std::time::Duration;

use openraft::Raft;
use openraft::error::{ClientWriteError, RaftError};
use openraft::raft::AppendEntriesResponse;
use tokio::time::Instant;

use super::machine::{Proposal, Types};
use super::messages::{Answer, Request, Settled};
use super::network::Network;
use super::published::Published;
use super::state::Outcome;
use super::store::Identity;
use crate::error::{Error, ErrorKind, Result};
use crate::replica::decisions::NodeId;
use crate::replica::timing::Timing;
use crate::sync::Mutex;
use crate::units::Uuid;

pub(super) struct Group {
    pub(super) own: NodeId,
    pub(super) timing: Timing,
    pub(super) raft: Raft<Types>,
    network: Arc<Network>,
    pub(super) identity: Arc<Mutex<Identity>>,
    pub(super) published: Arc<Published>,
    /// When a leader was last believed.
    heard: Mutex<Option<Instant>>,
}

impl Group {
    pub(super) fn new(
        own: NodeId,
        timing: Timing,
        raft: Raft<Types>,
        network: Arc<Network>,
        identity: Arc<Mutex<Identity>>,
        published: Arc<Published>,
    ) -> Group {
        Group { own, timing, raft, network, identity, published, heard: Mutex::new(None) }
    }

    /// How long ago a leader was last believed.
    pub(super) fn leader_silent_for(&self) -> Option<Duration> {
        self.heard.lock().map(|heard| heard.elapsed())
    }

    /// Answers a request that was found to be in order.
    pub(super) async fn serve(&self, request: Request) -> Answer {
        match request {
            Request::Append(append) => match self.raft.append_entries(append).await {
                Ok(answer) => {
                    if !matches!(answer, AppendEntriesResponse::HigherVote(_)) {
                        self.believed();
                    }
                    Answer::Append(answer)
                }
                Err(error) => Answer::Stopped(error.to_string()),
            },
            Request::Vote(vote) => match self.raft.vote(vote).await {
                Ok(answer) => Answer::Vote(answer),
                Err(error) => Answer::Stopped(error.to_string()),
            },
            Request::Snapshot(piece) => {
                let vote = piece.vote;
                match self.raft.install_snapshot(piece).await {
                    Ok(answer) => {
                        if answer.vote == vote {
                            self.believed();
                        }
                        Answer::Snapshot(Ok(answer))
                    }
                    Err(RaftError::APIError(error)) => Answer::Snapshot(Err(error)),
                    Err(RaftError::Fatal(error)) => Answer::Stopped(error.to_string()),
                }
            }
            Request::Decide(proposal) => Answer::Decide(self.decide_here(proposal, self.attempt()).await),
        }
    }

    /// Gets a proposal decided by whoever leads, for `patience`.
    pub(super) async fn settle(&self, proposal: Proposal, patience: Duration) -> Result<Outcome> {
        let until = Instant::now() + patience;
        let mut hint = None;
        let mut unheard = "nobody leads it";
        loop {
            let left = until.saturating_duration_since(Instant::now()).min(self.attempt());
            let leader = hint.take().or_else(|| self.leader());
            let settled = match leader {
                _ if left.is_zero() => break,
                None => Settled::NotLeader(None),
                Some(leader) if leader == self.own => self.decide_here(proposal.clone(), left).await,
                Some(leader) => {
                    let request = Request::Decide(proposal.clone());
                    let asked = self.network.ask(leader, None, request, left);
                    match tokio::time::timeout(left, asked).await {
                        Ok(Ok(Answer::Decide(settled))) => settled,
                        Ok(Ok(_) | Err(_)) | Err(_) => Settled::Unknown,
                    }
                }
            };
            match settled {
                Settled::Done(outcome) => return Ok(outcome),
                Settled::NotLeader(other) => hint = other.filter(|other| Some(*other) != leader),
                Settled::Unknown => unheard = "its leader does not answer, or hears no quorum",
            }
            if hint.is_none() {
                tokio::time::sleep(self.timing.heartbeat).await;
            }
        }
        let what = format!("deciding in the consensus group: {unheard}; the outcome is not known");
        Err(Error::new(ErrorKind::NoQuorum, what))
    }

    /// A proposal whose outcome is not known after this time is made again: its number keeps it from being decided
    /// twice.
    fn attempt(&self) -> Duration {
        self.timing.group_election_max * 2
    }

    fn leader(&self) -> Option<NodeId> {
        let leader = self.raft.metrics().borrow().current_leader?;
        u32::try_from(leader).ok().map(NodeId)
    }

    async fn decide_here(&self, mut proposal: Proposal, patience: Duration) -> Settled {
        proposal.at_ms = now_ms();
        match tokio::time::timeout(patience, self.raft.client_write(proposal)).await {
            Ok(Ok(written)) => Settled::Done(written.data),
            Ok(Err(RaftError::APIError(ClientWriteError::ForwardToLeader(forward)))) => {
                let leader = forward.leader_id.and_then(|leader| u32::try_from(leader).ok());
                Settled::NotLeader(leader.map(NodeId))
            }
            Ok(Err(_)) | Err(_) => Settled::Unknown,
        }
    }

    fn believed(&self) {
        *self.heard.lock() = Some(Instant::now());
    }
}

/// 128 random bits.
pub(super) fn draw() -> Result<Uuid> {
    let mut bytes = [0u8; 16];
    getrandom::fill(&mut bytes)
        .map_err(|error| Error::caused(ErrorKind::Device, "asking the system for random bytes", error))?;
    Ok(Uuid::from_random(bytes))
}

/// The leader stamps decisions; what is decided depends on the stamp, never on another node's clock.
#[allow(clippy::disallowed_methods, reason = "the one clock of the group, stamped into what it decides")]
fn now_ms() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
