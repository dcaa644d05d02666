//! The routes of the cluster. Clustering is off: the array is a cluster of one healthy node, and there is
//! nobody to add, to remove or to fail over to.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::Response;

use crate::api::Service;
use crate::api::call::Call;
use crate::api::call::MANAGEMENT_BODY_MAX;
use crate::api::problem::Problem;
use crate::api::request;
use crate::api::types::ClusterState;
use crate::api::types::ClusterStatus;
use crate::api::types::ReplicationMetrics;
use crate::api::types::ReplicationMode;
use crate::api::types::ReplicationStatus;

type Answer = Result<Response, Problem>;

const OFF: &str = "Clustering is not enabled";

/// What is answered to everything that needs other nodes.
fn off() -> Problem {
    Problem::http(StatusCode::BAD_REQUEST, "clustering_disabled", OFF)
}

/// The figures of replication.
pub(super) fn replication_metrics() -> ReplicationMetrics {
    ReplicationMetrics { enabled: false, message: OFF.to_owned() }
}

pub(super) async fn status(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let node_id = service.array.id().to_string();
    let status = ClusterStatus {
        current_primary: Some(node_id.clone()),
        node_id,
        state: ClusterState::Standalone,
        has_quorum: true,
        node_count: 1,
        healthy_nodes: 1,
        replication_lag_ms: 0.0,
    };
    Ok(Json(status).into_response())
}

pub(super) async fn replication(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let status = ReplicationStatus {
        mode: ReplicationMode::Disabled,
        node_id: service.array.id().to_string(),
        is_primary: true,
        peers: Vec::new(),
        operations_replicated: 0,
        operations_pending: 0,
        avg_latency_ms: 0.0,
    };
    Ok(Json(status).into_response())
}

pub(super) async fn metrics(call: Call) -> Answer {
    call.query.finish()?;
    Ok(Json(replication_metrics()).into_response())
}

pub(super) async fn add_peer(call: Call) -> Answer {
    request::add_peer(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    Err(off())
}

pub(super) async fn remove_peer(call: Call) -> Answer {
    call.query.finish()?;
    Err(off())
}

pub(super) async fn failover(call: Call) -> Answer {
    request::failover(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    Err(off())
}

pub(super) async fn failback(call: Call) -> Answer {
    call.query.finish()?;
    Err(off())
}

pub(super) async fn heartbeat(call: Call) -> Answer {
    request::heartbeat(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    Err(off())
}
