//! The routes of snapshots.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::ETAG;
use axum::response::IntoResponse;
use axum::response::Response;

use crate::api::Service;
use crate::api::call::Call;
use crate::api::call::MANAGEMENT_BODY_MAX;
use crate::api::condition;
use crate::api::page;
use crate::api::page::Page;
use crate::api::problem::Problem;
use crate::api::request;
use crate::api::types::CreateSnapshot;
use crate::api::types::SnapshotDiff;
use crate::api::types::SnapshotGroup;
use crate::api::types::SnapshotList;
use crate::api::view;
use crate::api::volumes;
use crate::array::NewClone;
use crate::array::NewSnapshot;
use crate::array::RestoreTarget;
use crate::array::SnapshotIn;
use crate::array::SnapshotInfo;
use crate::array::SnapshotWhich;

type Answer = Result<Response, Problem>;

fn new_snapshot(asked: CreateSnapshot) -> NewSnapshot {
    NewSnapshot { name: asked.name, description: asked.description, tags: asked.tags }
}

fn answer_list(page: &Page, snapshots: Vec<SnapshotInfo>) -> Response {
    let total = snapshots.len() as u64;
    let (snapshots, next_cursor) = page.of(snapshots);
    let snapshots = snapshots.into_iter().map(view::snapshot).collect();
    Json(SnapshotList { snapshots, total, next_cursor }).into_response()
}

pub(super) async fn create(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let volume = call.which.clone();
    let new = new_snapshot(request::create_snapshot(&call.json(MANAGEMENT_BODY_MAX).await?)?);
    let info = service.blocking(move |array| array.create_snapshot(&volume, &new)).await?;
    let path = format!("/api/v1/volumes/{}/snapshots/{}", info.volume_id, info.id);
    let tag = condition::tag(info.version);
    Ok(([(ETAG, tag)], volumes::created(&path, view::snapshot(info))).into_response())
}

pub(super) async fn create_group(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let asked = request::create_snapshot_group(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let (volumes, new) = (asked.volumes, new_snapshot(asked.snapshot));
    let made = service.blocking(move |array| array.create_snapshots(&volumes, &new)).await?;
    let snapshots = made.into_iter().map(view::snapshot).collect();
    Ok((StatusCode::CREATED, Json(SnapshotGroup { snapshots })).into_response())
}

pub(super) async fn list(State(service): State<Arc<Service>>, mut call: Call) -> Answer {
    let page = Page::asked(&mut call.query)?;
    call.query.finish()?;
    let snapshots = service.blocking(|array| Ok(array.snapshots())).await?;
    Ok(answer_list(&page, snapshots))
}

pub(super) async fn list_of_volume(State(service): State<Arc<Service>>, mut call: Call) -> Answer {
    let page = Page::asked(&mut call.query)?;
    call.query.finish()?;
    let snapshots = service.blocking(move |array| array.snapshots_of(&call.which)).await?;
    Ok(answer_list(&page, snapshots))
}

pub(super) async fn show(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let (volume, snapshot) = (call.which, call.second);
    let info = service
        .blocking(move |array| {
            let info = array.snapshot(SnapshotWhich { volume: &volume, snapshot: &snapshot })?;
            array.request_measurement(info.id);
            Ok(info)
        })
        .await?;
    let tag = condition::tag(info.version);
    Ok(([(ETAG, tag)], Json(view::snapshot(info))).into_response())
}

pub(super) async fn diff(State(service): State<Arc<Service>>, mut call: Call) -> Answer {
    let to = call.query.text("to");
    let offset = call.query.number("offset", 0, u64::MAX)?.unwrap_or(0);
    let limit = call.query.number("limit", 1, page::PAGE_MAX)?.unwrap_or(page::PAGE_MAX);
    call.query.finish()?;
    let (volume, snapshot) = (call.which, call.second);
    let answer = service
        .blocking(move |array| {
            let older = SnapshotWhich { volume: &volume, snapshot: &snapshot };
            let newer = match to {
                Some(to) => to,
                None => array.snapshot(older)?.volume_id.to_string(),
            };
            let comparison = array.compare(older, &newer)?;
            let limit = usize::try_from(limit).unwrap_or(usize::MAX);
            let found = comparison.find(offset, limit)?;
            let (from, to) = (comparison.older().id().to_string(), comparison.newer().id().to_string());
            let ranges = found.changes.into_iter().map(view::changed_range).collect();
            Ok(SnapshotDiff { from, to, ranges, next_offset: found.next_offset })
        })
        .await?;
    Ok(Json(answer).into_response())
}

pub(super) async fn delete(State(service): State<Arc<Service>>, mut call: Call) -> Answer {
    let force = call.query.flag("force")?;
    let versions = call.if_match()?;
    call.query.finish()?;
    let (volume, snapshot) = (call.which, call.second);
    service
        .blocking(move |array| {
            let which = SnapshotWhich { volume: &volume, snapshot: &snapshot };
            array.delete_snapshot(SnapshotIn::new(which, versions.as_deref()), force)
        })
        .await?;
    service.disconnect_deleted();
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn clone(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let (volume, snapshot, versions) = (call.which.clone(), call.second.clone(), call.if_match()?);
    let asked = request::clone_volume(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let new = NewClone { name: asked.name, description: asked.description };
    let info = service
        .blocking(move |array| {
            let which = SnapshotWhich { volume: &volume, snapshot: &snapshot };
            array.clone_snapshot(SnapshotIn::new(which, versions.as_deref()), &new)
        })
        .await?;
    Ok(volumes::answer(info))
}

pub(super) async fn restore(State(service): State<Arc<Service>>, mut call: Call) -> Answer {
    let force = call.query.flag("force")?;
    let (volume, snapshot, versions) = (call.which.clone(), call.second.clone(), call.if_match()?);
    let asked = request::restore_snapshot(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let target = match asked.target_volume_id {
        Some(volume) => RestoreTarget::Onto { volume, force },
        None => RestoreTarget::New { name: asked.name },
    };
    let info = service
        .blocking(move |array| {
            let which = SnapshotWhich { volume: &volume, snapshot: &snapshot };
            array.restore_snapshot(SnapshotIn::new(which, versions.as_deref()), &target)
        })
        .await?;
    Ok(volumes::answer(info))
}
