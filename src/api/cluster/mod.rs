//! The routes of the cluster. While clustering is off the array is a cluster of one healthy node, and there is
//! nobody to add, to remove or to fail over to.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::Response;

use crate::api::Service;
use crate::api::call::Call;
use crate::api::call::MANAGEMENT_BODY_MAX;
use crate::api::pass_on;
use crate::api::problem::Problem;
use crate::api::request;
use crate::api::types::ClusterMembers;
use crate::api::types::ClusterState;
use crate::api::types::ClusterStatus;
use crate::api::types::FailoverAnswer;
use crate::api::types::FailoverReason;
use crate::api::types::HeartbeatAnswer;
use crate::api::types::NodeRole;
use crate::api::types::NodeState;
use crate::api::types::ReplicationMetrics;
use crate::api::types::ReplicationMode;
use crate::api::types::ReplicationStatus;
use crate::api::types::StatusCluster;
use crate::api::types::Trouble;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::replica::cluster::Cluster;
use crate::replica::cluster::Running;
use crate::replica::control::Control as _;
use crate::replica::control::state;
use crate::replica::control::state::Decision;
use crate::replica::decisions::NodeId;
use crate::sync::Condition;
use crate::sync::Mutex;

use self::view::Seen;

pub(super) mod forming;
pub(super) mod verify;
mod view;

type Answer = Result<Response, Problem>;

const OFF: &str = "Clustering is not enabled";

/// How long a hand-over may take: what is under way is finished first.
const HAND_OVER_PATIENCE: Duration = Duration::from_secs(10);

/// The new primary begins within this time, or the answer comes without waiting for it.
const BEGIN_PATIENCE: Duration = Duration::from_secs(5);

/// How often it is looked whether it has.
const BEGIN_LOOK: Duration = Duration::from_millis(10);

/// What is answered to everything that needs other nodes.
fn off() -> Problem {
    Problem::http(StatusCode::BAD_REQUEST, "clustering_disabled", OFF)
}

fn conflict(what: impl Into<String>) -> Problem {
    Error::new(ErrorKind::Busy, what).into()
}

/// Works with the cluster on a thread that may wait.
async fn blocking<T: Send + 'static>(
    service: &Service,
    work: impl FnOnce(&Arc<Cluster>) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let Some(cluster) = service.cluster.clone() else { return Err(off()) };
    service.blocking(move |_| Ok(work(&cluster))).await?
}

/// The same, where this node is in a cluster.
async fn enabled<T: Send + 'static>(
    service: &Service,
    work: impl FnOnce(&Arc<Cluster>, &Arc<Running>) -> Result<T, Problem> + Send + 'static,
) -> Result<T, Problem> {
    let work = |cluster: &Arc<Cluster>| match cluster.running() {
        Some(running) => work(cluster, &running),
        None => Err(off()),
    };
    blocking(service, work).await
}

/// The cluster as this node sees it, with what the primary says of the others; `None` where clustering is off.
fn look(cluster: &Cluster, passed_on: bool) -> Option<Seen> {
    let running = cluster.running()?;
    let mut seen = view::seen(&running, cluster.environment().clock.since_unix_epoch())?;
    if seen.members.role != NodeRole::Primary
        && !passed_on
        && let Ok(primary) = pass_on::get::<ClusterMembers>(cluster, "/api/v1/cluster/members")
    {
        view::complete(&mut seen.members, primary);
    }
    let mut asked = false;
    for node in seen.members.nodes.iter_mut().filter(|node| node.state == NodeState::Unknown) {
        let Some(number) = node.number else { continue };
        asked = true;
        if !cluster.reaches(NodeId(number)) {
            node.state = NodeState::Broken;
        } else if node.role == Some(NodeRole::Witness) {
            node.state = NodeState::Healthy;
        }
    }
    if asked {
        view::judge(&mut seen.members);
    }
    Some(seen)
}

/// The figures of replication.
pub(super) async fn replication_metrics(service: &Service) -> Result<ReplicationMetrics, Problem> {
    let Some(cluster) = service.cluster.clone() else { return Ok(disabled()) };
    let seen = service.blocking(move |_| Ok(look(&cluster, true))).await?;
    Ok(seen.as_ref().map_or_else(disabled, view::metrics))
}

fn disabled() -> ReplicationMetrics {
    ReplicationMetrics { enabled: false, message: Some(OFF.to_owned()), ..ReplicationMetrics::default() }
}

/// Whether the cluster is as it should be, as far as this node knows; `None` where clustering is off. Nobody is asked.
pub(super) fn health(service: &Service) -> Option<bool> {
    let running = service.cluster.as_ref()?.running()?;
    let status = running.node.as_ref()?.status();
    let primary = status.peers.iter().find(|peer| peer.node == status.record.primary);
    let led = status.serves
        || primary.and_then(|peer| peer.heard_ago).is_some_and(|ago| ago < Duration::from_secs(1));
    Some(led && status.standing.has_quorum)
}

/// The cluster's part of the status, and what is wrong with it.
pub(super) async fn part_of_status(service: &Service) -> Result<(StatusCluster, Vec<Trouble>), Problem> {
    let off = StatusCluster { enabled: false, ..StatusCluster::default() };
    let Some(cluster) = service.cluster.clone() else { return Ok((off, Vec::new())) };
    let seen = service.blocking(move |_| Ok(look(&cluster, true))).await?;
    Ok(match seen {
        Some(seen) => (view::part_of_status(&seen.members), seen.members.problems),
        None => (off, Vec::new()),
    })
}

pub(super) async fn members(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let passed_on = call.is_passed_on();
    call.query.finish()?;
    let seen = blocking(&service, move |cluster| look(cluster, passed_on).ok_or_else(off)).await?;
    Ok(Json(seen.members).into_response())
}

pub(super) async fn status(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let passed_on = call.is_passed_on();
    call.query.finish()?;
    let node_id = service.array.id().to_string();
    let cluster = service.cluster.clone();
    let look = move |_: &_| Ok(cluster.and_then(|cluster| look(&cluster, passed_on)));
    let status = match service.blocking(look).await? {
        Some(seen) => view::status(&seen.members),
        None => ClusterStatus {
            current_primary: Some(node_id.clone()),
            node_id,
            state: ClusterState::Standalone,
            has_quorum: true,
            node_count: 1,
            healthy_nodes: 1,
            replication_lag_ms: Some(0.0),
        },
    };
    Ok(Json(status).into_response())
}

pub(super) async fn replication(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let passed_on = call.is_passed_on();
    call.query.finish()?;
    let cluster = service.cluster.clone();
    let look = move |_: &_| Ok(cluster.and_then(|cluster| look(&cluster, passed_on)));
    let status = match service.blocking(look).await? {
        Some(seen) => view::replication(&seen),
        None => ReplicationStatus {
            mode: ReplicationMode::Disabled,
            node_id: service.array.id().to_string(),
            is_primary: true,
            peers: Vec::new(),
            operations_replicated: 0,
            operations_pending: 0,
            avg_latency_ms: 0.0,
        },
    };
    Ok(Json(status).into_response())
}

pub(super) async fn metrics(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    Ok(Json(replication_metrics(&service).await?).into_response())
}

pub(super) async fn add_peer(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let asked = request::add_peer(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let peer = enabled(&service, move |cluster, _| {
        cluster.decide(Decision::Announce { name: asked.node_id.clone(), url: asked.url.clone() })?;
        let seen = look(cluster, false).ok_or_else(off)?;
        let known = seen.members.nodes.iter().find(|node| node.node_id == asked.node_id);
        // The group has decided; this node may hear of it a moment later.
        Ok(known.map_or_else(|| view::peer(&view::announced(&asked.node_id, &asked.url)), view::peer))
    });
    Ok((StatusCode::CREATED, Json(peer.await?)).into_response())
}

pub(super) async fn remove_peer(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let which = call.which;
    call.query.finish()?;
    let remove = move |cluster: &Arc<Cluster>, running: &Arc<Running>| {
        let state = running.control.state();
        let Some(node) = find(&state, &which) else {
            return match state.announced.contains_key(&which) {
                true => Ok(cluster.decide(Decision::Withdraw(which)).map(drop)?),
                false => Err(unknown(&which)),
            };
        };
        if node == running.own && state.record.as_ref().is_none_or(|record| record.primary != node) {
            // It would not hear what became of its own removal.
            let name = view::name_of(&state, node);
            return Err(conflict(format!("{name} cannot remove itself: ask another node of the cluster")));
        }
        let record = state.record.as_ref().filter(|record| record.primary == node);
        if let Some(record) = record {
            let name = view::name_of(&state, node);
            return Err(conflict(match record.set.len() {
                1 => format!("{name} is the primary and the last node that is in sync"),
                _ => format!("{name} is the primary: fail over first"),
            }));
        }
        Ok(cluster.decide(Decision::Remove(node)).map(drop)?)
    };
    enabled(&service, remove).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn failover(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let asked = request::failover(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let answer = enabled(&service, move |cluster, running| {
        let state = running.control.state();
        let target = asked.target_node.as_deref();
        let target = target.map(|which| find(&state, which).ok_or_else(|| unknown(which))).transpose()?;
        fail_over(cluster, running, target)
    });
    Ok(Json(answer.await?).into_response())
}

pub(super) async fn failback(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let answer = enabled(&service, move |cluster, running| {
        let home = running.control.state().failed_over_from;
        let home =
            home.ok_or_else(|| Problem::invalid("No failback available (not in failed-over state)"))?;
        fail_over(cluster, running, Some(home))
    });
    Ok(Json(answer.await?).into_response())
}

/// Hands over to a node, or any, that is in sync, and waits until it serves.
fn fail_over(
    cluster: &Cluster,
    running: &Arc<Running>,
    target: Option<NodeId>,
) -> Result<FailoverAnswer, Problem> {
    let state = running.control.state();
    let clock = &cluster.environment().clock;
    let begun = clock.monotonic();
    if let (Some(target), Some(record)) = (target, &state.record) {
        let name = view::name_of(&state, target);
        if record.primary == target {
            return Err(conflict(format!("{name} is the primary already")));
        }
        if !state.is_data(target) {
            return Err(conflict(format!("{name} is a witness: it keeps no data")));
        }
        if !record.set.contains_key(&target) {
            return Err(conflict(format!(
                "{name} is not in sync: it does not hold every acknowledged write"
            )));
        }
    }
    if !running.control.standing().has_quorum {
        let what = "this node does not hear a majority of the voters: nobody can be promoted";
        return Err(Problem::http(StatusCode::CONFLICT, "no_quorum", what));
    }
    let new = cluster.hand_over(target, HAND_OVER_PATIENCE)?;
    let new_primary = view::name_of(&state, new);
    let deadline = clock.monotonic() + BEGIN_PATIENCE;
    let (still, pause) = (Mutex::new(()), Condition::new());
    while clock.monotonic() < deadline {
        let told = pass_on::get::<ClusterMembers>(cluster, "/api/v1/cluster/members");
        if told.is_ok_and(|members| members.primary_serves) {
            break;
        }
        drop(pause.wait_for(still.lock(), BEGIN_LOOK));
    }
    Ok(FailoverAnswer {
        old_primary: view::name_of(&state, running.own),
        new_primary,
        reason: FailoverReason::Manual,
        state: view::failover_state(running.control.state().failed_over_from),
        duration_ms: clock.monotonic().saturating_sub(begun).as_secs_f64() * 1000.0,
    })
}

pub(super) async fn heartbeat(State(service): State<Arc<Service>>, call: Call) -> Answer {
    request::heartbeat(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let answer = enabled(&service, |cluster, running| {
        let state = running.control.state();
        Ok(HeartbeatAnswer {
            node_id: view::name_of(&state, running.own),
            current_primary: state.record.as_ref().map(|record| view::name_of(&state, record.primary)),
            timestamp: cluster.environment().clock.since_unix_epoch().as_secs_f64(),
        })
    });
    Ok(Json(answer.await?).into_response())
}

/// The node with this name, or else this number.
fn find(state: &state::ClusterState, which: &str) -> Option<NodeId> {
    let named = state.nodes.iter().find(|(_, entry)| entry.name == which).map(|(node, _)| *node);
    let numbered = || which.parse().ok().map(NodeId).filter(|node| state.nodes.contains_key(node));
    named.or_else(numbered)
}

fn unknown(which: &str) -> Problem {
    Error::new(ErrorKind::NotFound, format!("Peer {which} not found")).into()
}
