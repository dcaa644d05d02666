//! The routes of the array as a whole: what it is, how it is.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;

use crate::api::Service;
use crate::api::call::Call;
use crate::api::cluster;
use crate::api::problem::Problem;
use crate::api::types::About;
use crate::api::types::ArrayCapacity;
use crate::api::types::ArrayInfo;
use crate::api::types::ArrayList;
use crate::api::types::Health;
use crate::api::types::HealthState;
use crate::api::view;

type Answer = Result<Response, Problem>;

pub(super) async fn about(call: Call) -> Answer {
    call.query.finish()?;
    let about = About {
        name: "Sinter API".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        description: "Management of a Sinter virtual flash array".to_owned(),
    };
    Ok(Json(about).into_response())
}

pub(super) async fn health(State(service): State<Arc<Service>>) -> Answer {
    let status = service.blocking(|array| Ok(array.status())).await?;
    let cluster = cluster::health(&service);
    let health = Health {
        status: if cluster == Some(false) { HealthState::Degraded } else { view::health(status.health) },
        reduction_ratio: status.reduction_ratio,
        cluster_enabled: cluster.is_some(),
    };
    Ok(Json(health).into_response())
}

pub(super) async fn arrays(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let status = service.blocking(|array| Ok(array.status())).await?;
    let array = ArrayInfo {
        id: service.array.id().to_string(),
        name: status.name,
        model: "Sinter Virtual Array".to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        capacity: ArrayCapacity {
            total_bytes: status.store.capacity_bytes,
            used_bytes: status.store.used_bytes,
            reduction_ratio: status.reduction_ratio,
        },
        endpoints: service.endpoints.clone(),
    };
    Ok(Json(ArrayList { arrays: vec![array] }).into_response())
}

pub(super) async fn status(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let control = service.mounts.clone();
    let (status, mounts) = service
        .blocking(move |array| {
            let mounts = control.map(|control| control.list()).unwrap_or_default();
            Ok((array.status(), mounts))
        })
        .await?;
    let (part, troubles) = cluster::part_of_status(&service).await?;
    let clock = &service.clock;
    let uptime = clock.monotonic().saturating_sub(service.started);
    let endpoints = service.endpoints.clone();
    let (id, now) = (service.array.id(), clock.since_unix_epoch());
    let mut status = view::status(status, id, endpoints, mounts, now, uptime);
    if !troubles.is_empty() {
        status.health = HealthState::Degraded;
    }
    status.problems.splice(0..0, troubles);
    status.cluster = part;
    Ok(Json(status).into_response())
}
