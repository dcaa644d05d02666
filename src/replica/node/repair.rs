//! Blocks that have failed their check here are fetched from other nodes, by fingerprint, and written anew.
//!
//! What comes is believed only where it has the fingerprint of the block that is missing. It makes no operation: what
//! the array holds is as it was.

use std::sync::Arc;
use std::time::Duration;

use crate::error::{Error, ErrorKind, Result};
use crate::replica::control::state::NodeKind;
use crate::replica::decisions::NodeId;
use crate::replica::link::{self, Frame, Link};
use crate::replica::wire;
use crate::sync::Mutex;
use crate::units::{BlockId, Fingerprint};

use super::{Node, frames};

/// Blocks that are asked for over one connection.
const TOGETHER: usize = 64;
/// A node that cannot be reached or does not answer within this time has nothing.
const PATIENCE: Duration = Duration::from_millis(500);
/// How often it is looked whether a block has failed.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// For so long after a vain attempt there is no other one.
const VAIN_FOR: Duration = Duration::from_secs(5);
/// A connection without questions is closed after this time.
const IDLE: Duration = Duration::from_secs(30);

/// Whoever repairs holds it: until when there is no use in it.
#[derive(Default)]
pub(super) struct Repairs(Mutex<Duration>);

impl Node {
    /// Repairs what has failed, again and again.
    pub(super) fn repair_in_background(self: &Arc<Node>) {
        while self.lives() {
            self.repair();
            self.rest(LOOK_EVERY);
        }
    }

    /// Fetches blocks that have failed from other nodes; whether any is good again.
    pub(super) fn repair(&self) -> bool {
        let mut vain_until = self.repairs.0.lock();
        let bad = self.parts.store.bad_blocks(TOGETHER);
        if bad.is_empty() || self.now() < *vain_until {
            return false;
        }
        let healed = self.repair_from_all(bad);
        if !healed {
            *vain_until = self.now() + VAIN_FOR;
        }
        healed
    }

    /// Fetches the blocks with these fingerprints, where they have failed, without regard to vain attempts: whoever asks
    /// gives them up otherwise.
    pub(super) fn repair_these(&self, wanted: &[Fingerprint]) {
        let _one_at_a_time = self.repairs.0.lock();
        let mut bad = self.parts.store.bad_blocks(usize::MAX);
        bad.retain(|(_, fingerprint)| wanted.contains(fingerprint));
        self.repair_from_all(bad);
    }

    /// Fetches blocks from other nodes, one after the other; whether any is good again.
    fn repair_from_all(&self, mut left: Vec<(BlockId, Fingerprint)>) -> bool {
        let all = left.len();
        let nodes = self.parts.control.state().nodes.clone();
        for (node, entry) in &nodes {
            if *node == self.parts.own.node || entry.kind != NodeKind::Data || left.is_empty() {
                continue;
            }
            // Those that came before it broke are repaired, and another node may have the others.
            if let Err(error) = self.repair_from(*node, &entry.cluster_address, &mut left) {
                tracing::debug!("blocks cannot be fetched from node {}: {error}", entry.name);
            }
        }
        let healed = all - left.len();
        if healed > 0 {
            self.counters.repaired(healed as u64);
        }
        healed > 0
    }

    /// Repairs what a node has of the blocks; those that it has are taken out.
    fn repair_from(&self, node: NodeId, address: &str, left: &mut Vec<(BlockId, Fingerprint)>) -> Result<()> {
        let mut link = link::connect(address, &self.parts.identity.now(), Some(node), PATIENCE)?;
        let mut kept = Vec::new();
        while let Some((block, fingerprint)) = left.pop() {
            match self.fetch(&mut link, &fingerprint) {
                Ok(Some(stored)) if self.parts.store.heal(block, &fingerprint, &stored)? => {
                    tracing::warn!(
                        "block {block} was damaged here: node {} had it, it is written anew",
                        node.0
                    );
                }
                Ok(_) => kept.push((block, fingerprint)),
                Err(error) => {
                    left.push((block, fingerprint));
                    left.append(&mut kept);
                    return Err(error);
                }
            }
        }
        *left = kept;
        Ok(())
    }

    fn fetch(&self, link: &mut Link, fingerprint: &Fingerprint) -> Result<Option<Vec<u8>>> {
        link.send(frames::FETCH, &[&wire::encode_fetch(fingerprint)])?;
        let answer = link.receive(Some(PATIENCE))?.filter(|frame| frame.kind == frames::FETCH);
        let stored = answer.as_ref().and_then(|frame| wire::decode_fetched(&frame.body));
        let nothing = || Error::new(ErrorKind::Unreachable, "it does not answer for a block");
        Ok(stored.ok_or_else(nothing)?.map(<[u8]>::to_vec))
    }

    /// Gives another node the blocks that it asks for, until it closes the connection.
    pub(super) fn answer_fetches(&self, from: NodeId, mut link: Link, first: Frame) {
        let mut next = Some(first);
        while self.lives() {
            let frame = match next.take() {
                Some(frame) => frame,
                None => match link.receive(Some(IDLE)) {
                    Ok(Some(frame)) => frame,
                    Ok(None) | Err(_) => return,
                },
            };
            let asked = (frame.kind == frames::FETCH).then(|| wire::decode_fetch(&frame.body)).flatten();
            let Some(fingerprint) = asked else {
                tracing::warn!("node {} asked for what means nothing; its connection is closed", from.0);
                return;
            };
            // What cannot be read here, the other one has no use for.
            let stored = self.parts.store.stored_block(&fingerprint).ok().flatten();
            let body = wire::encode_fetched(stored.as_ref().map(|(stored, _)| stored.as_slice()));
            if link.send(frames::FETCH, &[&body]).is_err() {
                return;
            }
        }
    }
}
