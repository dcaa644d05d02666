//! What nodes say of where they stand while nobody of the set is left, and since when that was not heard again.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::replica::decisions::{Incarnation, Member, NodeId, Position, Record, SetVersion};

/// Reports of nodes that the set names in earlier lives; of one version of the set.
#[derive(Debug, Default)]
pub(super) struct Reports {
    version: SetVersion,
    of: BTreeMap<NodeId, Report>,
}

/// The newest report of a node.
#[derive(Clone, Copy, Debug)]
struct Report {
    incarnation: Incarnation,
    position: Position,
    heard_at: Duration,
}

impl Reports {
    /// Notes what a node has said just now.
    pub(super) fn note(&mut self, version: SetVersion, by: Member, position: Position, now: Duration) {
        if self.version != version {
            *self = Reports { version, of: BTreeMap::new() };
        }
        self.of.insert(by.node, Report { incarnation: by.incarnation, position, heard_at: now });
    }

    /// Everything that was said while the set had this version.
    pub(super) fn all(&self, version: SetVersion) -> BTreeMap<NodeId, (Incarnation, Position)> {
        let of = self.of.iter().filter(|_| self.version == version);
        of.map(|(node, report)| (*node, (report.incarnation, report.position))).collect()
    }

    /// What nodes of the set have said at this time or later.
    pub(super) fn since(&self, record: &Record, time: Duration) -> BTreeMap<NodeId, (Incarnation, Position)> {
        let mut reports = self.all(record.version);
        let heard = |node: &NodeId| self.of.get(node).is_some_and(|report| report.heard_at >= time);
        reports.retain(|node, _| record.set.contains_key(node) && heard(node));
        reports
    }
}
