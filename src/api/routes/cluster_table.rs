//! The routes of the cluster.

use axum::routing::delete;
use axum::routing::get;
use axum::routing::post;

use crate::api::cluster;
use crate::api::cluster::forming;
use crate::api::cluster::verify;
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
        handler: || post(forming::init),
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
        handler: || post(forming::token),
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
            || post(forming::promote),
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
    reading(
        "/api/v1/cluster/verify",
        "show_cluster_verify",
        "How far the newest comparison of all nodes has come",
        shape::<types::ClusterVerify>,
        || get(verify::show),
    ),
    Route {
        body: None,
        problems: &[409, 503],
        ..posting(
            "/api/v1/cluster/verify",
            "start_cluster_verify",
            "Compare all nodes that are in sync with the primary; goes on in the background",
            shape::<types::ClusterVerify>,
            shape::<types::ClusterVerify>,
            || post(verify::start),
        )
    },
    Route {
        method: "delete",
        path: "/api/v1/cluster/verify",
        id: "stop_cluster_verify",
        summary: "Stop the comparison under way",
        parameters: &[],
        body: None,
        status: 200,
        answer: Some(shape::<types::ClusterVerify>),
        problems: &[503],
        handler: || delete(verify::stop),
    },
    Route {
        problems: &[404, 409, 503],
        ..posting(
            "/api/v1/cluster/start",
            "start_cluster",
            "Start the array without nodes that were in sync and never return: writes that only they hold are lost",
            shape::<types::StartCluster>,
            shape::<types::ClusterMembers>,
            || post(forming::start),
        )
    },
    Route {
        problems: &[409, 503],
        status: 202,
        ..posting(
            "/api/v1/cluster/join",
            "join_cluster",
            "Make this array, whose pool is empty, a node of a cluster",
            shape::<types::JoinCluster>,
            shape::<types::JoinedCluster>,
            || post(forming::join),
        )
    },
    Route {
        method: "post",
        path: "/api/v1/cluster/forget",
        id: "forget_cluster",
        summary: "Let this array stand alone, once other nodes do not count on it any more",
        parameters: &[],
        body: None,
        status: 204,
        answer: None,
        problems: &[409],
        handler: || post(forming::forget),
    },
];
