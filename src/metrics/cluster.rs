//! What an operator watches of a cluster. Where clustering is off there are the names, and values only of
//! what can be counted from nothing.

use crate::replica::node::status::NodeStatus;
use crate::replica::node::status::PeerStatus;

use super::Metric;
use super::Sources;
use super::text::Kind;
use super::text::Samples;

/// A node and its cluster at this moment.
#[derive(Clone, Debug)]
pub struct ClusterFigures {
    /// As the node sees it.
    pub node: NodeStatus,
    /// How often another node has become primary, since the cluster was made.
    pub failovers: u64,
}

/// These metrics, in the order of the page.
pub(super) static METRICS: &[Metric] = &[
    Metric {
        name: "sinter_cluster_primary",
        kind: Kind::Gauge,
        help: "1 where this node is the primary and takes requests, else 0.",
        read: |from, to| node(from, to, |it| u64::from(it.node.serves)),
    },
    Metric {
        name: "sinter_cluster_epoch",
        kind: Kind::Gauge,
        help: "The epoch, raised with every change of the primary; 0 without a cluster.",
        read: |from, to| to.count(&[], from.cluster.map_or(0, |it| u64::from(it.node.record.epoch.number))),
    },
    Metric {
        name: "sinter_cluster_quorum",
        kind: Kind::Gauge,
        help: "1 while this node hears a majority of the voters, else 0.",
        read: |from, to| node(from, to, |it| u64::from(it.node.standing.has_quorum)),
    },
    Metric {
        name: "sinter_cluster_in_sync_nodes",
        kind: Kind::Gauge,
        help: "Nodes that hold every acknowledged write.",
        read: |from, to| node(from, to, |it| it.node.record.set.len() as u64),
    },
    Metric {
        name: "sinter_failover_total",
        kind: Kind::Counter,
        help: "How often another node has become primary since the cluster was made.",
        read: |from, to| to.count(&[], from.cluster.map_or(0, |it| it.failovers)),
    },
    Metric {
        name: "sinter_replica_in_sync",
        kind: Kind::Gauge,
        help: "1 while the other node holds every acknowledged write, else 0; said by the primary.",
        read: |from, to| each_peer(from, to, |peer| u64::from(peer.in_sync)),
    },
    Metric {
        name: "sinter_replica_lag_bytes",
        kind: Kind::Gauge,
        help: "Bytes that the other node has not answered for; said by the primary.",
        read: |from, to| each_peer(from, to, |peer| peer.lag.0),
    },
    Metric {
        name: "sinter_replica_lag_operations",
        kind: Kind::Gauge,
        help: "Operations that the other node has not answered for; said by the primary.",
        read: |from, to| each_peer(from, to, |peer| peer.lag_operations),
    },
    Metric {
        name: "sinter_replica_lag_seconds",
        kind: Kind::Gauge,
        help: "For how long the other node has lacked operations; said by the primary.",
        read: |from, to| peers(from, |peer, name| to.value(&[("peer", name)], peer.lag_time.as_secs_f64())),
    },
    Metric {
        name: "sinter_resync_remaining_bytes",
        kind: Kind::Gauge,
        help: "Bytes of the other node that are left to be compared; said by the primary.",
        read: |from, to| each_peer(from, to, |peer| peer.resync_remaining.0),
    },
    Metric {
        name: "sinter_bookmark_bytes",
        kind: Kind::Gauge,
        help: "Bytes that only bookmarks hold on this node, kept for nodes that come back; found every few minutes.",
        read: |from, to| node(from, to, |it| it.node.bookmark_bytes.0),
    },
    Metric {
        name: "sinter_replica_shipped_bytes",
        kind: Kind::Gauge,
        help: "Bytes sent to the other node in this term; said by the primary.",
        read: |from, to| each_peer(from, to, |peer| peer.shipped_bytes),
    },
    Metric {
        name: "sinter_replica_shipped_operations",
        kind: Kind::Gauge,
        help: "Operations and pieces of a comparison sent to the other node in this term; said by the primary.",
        read: |from, to| each_peer(from, to, |peer| peer.shipped_operations),
    },
    Metric {
        name: "sinter_replica_wait_seconds",
        kind: Kind::Summary,
        help: "Time that requests waited for the other nodes in sync, where they were acknowledged.",
        read: |from, to| {
            if let Some(cluster) = from.cluster {
                let totals = &cluster.node.totals;
                to.summary(&[], totals.replicated, totals.waited.as_secs_f64());
            }
        },
    },
    Metric {
        name: "sinter_replica_repaired_blocks_total",
        kind: Kind::Counter,
        help: "Damaged blocks of this node that were fetched from another one and written anew.",
        read: |from, to| node(from, to, |it| it.node.totals.repaired_blocks),
    },
    Metric {
        name: "sinter_replica_failed_requests_total",
        kind: Kind::Counter,
        help: "Requests that this node could not acknowledge, because it was not the primary any more.",
        read: |from, to| node(from, to, |it| it.node.totals.failed),
    },
];

fn node(from: &Sources<'_>, to: &mut Samples<'_>, read: fn(&ClusterFigures) -> u64) {
    if let Some(cluster) = from.cluster {
        to.count(&[], read(cluster));
    }
}

fn each_peer(from: &Sources<'_>, to: &mut Samples<'_>, read: fn(&PeerStatus) -> u64) {
    peers(from, |peer, name| to.count(&[("peer", name)], read(peer)));
}

/// Only a primary knows of the others, and a witness keeps nothing.
fn peers(from: &Sources<'_>, mut each: impl FnMut(&PeerStatus, &str)) {
    let Some(cluster) = from.cluster.filter(|cluster| cluster.node.serves) else { return };
    for peer in cluster.node.peers.iter().filter(|peer| !peer.is_witness()) {
        each(peer, &peer.entry.name);
    }
}
