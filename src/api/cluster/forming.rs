//! Forming a cluster, joining and leaving one, and going on with what is left of it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;

use crate::api::Service;
use crate::api::call::Call;
use crate::api::call::MANAGEMENT_BODY_MAX;
use crate::api::problem::Problem;
use crate::api::request;
use crate::api::types::JoinToken;
use crate::api::types::JoinedCluster;
use crate::api::types::NewCluster;
use crate::api::types::TokenRole;
use crate::replica::control::Control as _;
use crate::replica::decisions::NodeId;
use crate::replica::identity::PeerRole;
use crate::replica::identity::Token;

use super::Answer;
use super::blocking;
use super::enabled;
use super::find;
use super::look;
use super::off;
use super::unknown;

/// Nodes that are back say within this time where they stand, and it is decided.
const START_PATIENCE: Duration = Duration::from_secs(10);

pub(in crate::api) async fn init(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let asked = request::init_cluster(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let listen = asked.listen.map(|text| {
        text.parse().map_err(|_| Problem::field("listen", format!("`{text}` is not ADDRESS:PORT")))
    });
    let listen = listen.transpose()?;
    let made = blocking(&service, move |cluster| {
        let running = cluster.init(listen)?;
        Ok(NewCluster {
            cluster_id: running.control.state().cluster.to_string(),
            node_id: running.own.0,
            listen: running.listen.to_string(),
            data_token: cluster.token(PeerRole::Data)?,
            witness_token: cluster.token(PeerRole::Witness)?,
        })
    });
    Ok((StatusCode::CREATED, Json(made.await?)).into_response())
}

pub(in crate::api) async fn token(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let asked = request::new_token(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let role = match asked.role {
        TokenRole::Data => PeerRole::Data,
        TokenRole::Witness => PeerRole::Witness,
        TokenRole::Client => PeerRole::Client,
    };
    let token = enabled(&service, move |cluster, _| Ok(cluster.token(role)?)).await?;
    Ok((StatusCode::CREATED, Json(JoinToken { token })).into_response())
}

pub(in crate::api) async fn promote(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let asked = request::promote(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    if !asked.force {
        let what =
            "a promotion without the others' agreement may lose acknowledged writes: say `force: true`";
        return Err(Problem::field("force", what));
    }
    let seen = enabled(&service, move |cluster, _| {
        cluster.promote_by_force()?;
        look(cluster, true).ok_or_else(off)
    });
    Ok(Json(seen.await?.members).into_response())
}

pub(in crate::api) async fn start(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let asked = request::start_cluster(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let seen = enabled(&service, move |cluster, running| {
        let state = running.control.state();
        let nodes = asked.without.iter().map(|which| find(&state, which).ok_or_else(|| unknown(which)));
        let without: BTreeSet<NodeId> = nodes.collect::<Result<_, Problem>>()?;
        cluster.start_without(&without, START_PATIENCE)?;
        look(cluster, true).ok_or_else(off)
    });
    Ok(Json(seen.await?.members).into_response())
}

pub(in crate::api) async fn join(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let asked = request::join_cluster(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let joined = blocking(&service, move |cluster| {
        let token = Token::parse(asked.token.trim())?;
        Ok(cluster.join(token, asked.discard_local_data)?)
    });
    let node_id = joined.await?.0;
    Ok((StatusCode::ACCEPTED, Json(JoinedCluster { node_id })).into_response())
}

pub(in crate::api) async fn forget(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    enabled(&service, |cluster, _| Ok(cluster.forget()?)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
