//! The routes of the cluster.

use axum::routing::delete;
use axum::routing::get;
use axum::routing::post;

use crate::api::cluster;
use crate::api::types;

use super::Route;
use super::posting;
use super::reading;
use super::shape;

pub(super) const ALL: &[Route] = &[
    reading(
        "/api/v1/cluster/status",
        "cluster_status",
        "How the cluster is",
        shape::<types::ClusterStatus>,
        || get(cluster::status),
    ),
    reading(
        "/api/v1/cluster/replication",
        "replication_status",
        "How far the peers are",
        shape::<types::ReplicationStatus>,
        || get(cluster::replication),
    ),
    Route {
        method: "post",
        path: "/api/v1/cluster/init",
        id: "init_cluster",
        summary: "Make this array the first node of a cluster",
        parameters: &[],
        body: Some(shape::<types::InitCluster>),
        status: 201,
        answer: Some(shape::<types::NewCluster>),
        problems: &[409],
        handler: || post(cluster::init),
    },
    Route {
        method: "post",
        path: "/api/v1/cluster/tokens",
        id: "new_token",
        summary: "Make a token for a node or a client",
        parameters: &[],
        body: Some(shape::<types::NewToken>),
        status: 201,
        answer: Some(shape::<types::JoinToken>),
        problems: &[],
        handler: || post(cluster::token),
    },
    reading(
        "/api/v1/cluster/members",
        "cluster_members",
        "All that is known of the cluster and its nodes",
        shape::<types::ClusterMembers>,
        || get(cluster::members),
    ),
    Route {
        status: 201,
        problems: &[409, 503],
        ..posting(
            "/api/v1/cluster/peers",
            "add_peer",
            "Announce a node; a token makes it one",
            shape::<types::AddPeer>,
            shape::<types::Peer>,
            || post(cluster::add_peer),
        )
    },
    Route {
        method: "delete",
        path: "/api/v1/cluster/peers/{node}",
        id: "remove_peer",
        summary: "Take a node out of the cluster, or an announced name off the list",
        parameters: &[],
        body: None,
        status: 204,
        answer: None,
        problems: &[409, 503],
        handler: || delete(cluster::remove_peer),
    },
    Route {
        problems: &[404, 409, 503],
        ..posting(
            "/api/v1/cluster/failover",
            "failover",
            "Make another node that is in sync the primary",
            shape::<types::Failover>,
            shape::<types::FailoverAnswer>,
            || post(cluster::failover),
        )
    },
    Route {
        body: None,
        problems: &[409, 503],
        ..posting(
            "/api/v1/cluster/failback",
            "failback",
            "Make the old primary it again, once it is in sync",
            shape::<types::Failover>,
            shape::<types::FailoverAnswer>,
            || post(cluster::failback),
        )
    },
    Route {
        problems: &[409, 503],
        ..posting(
            "/api/v1/cluster/promote",
            "promote",
            "Make this node the primary by force: writes that it does not hold are lost",
            shape::<types::Promote>,
            shape::<types::ClusterMembers>,
            || post(cluster::promote),
        )
    },
    Route {
        problems: &[],
        ..posting(
            "/api/v1/cluster/heartbeat",
            "heartbeat",
            "Ask a node whom it takes for the primary; nothing is changed",
            shape::<types::Heartbeat>,
            shape::<types::HeartbeatAnswer>,
            || post(cluster::heartbeat),
        )
    },
];
