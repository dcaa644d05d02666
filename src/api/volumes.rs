//! The routes of volumes.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::ETAG;
use axum::http::header::LOCATION;
use axum::response::IntoResponse;
use axum::response::Response;
use serde::Serialize;

use crate::api::Service;
use crate::api::call::Call;
use crate::api::call::MANAGEMENT_BODY_MAX;
use crate::api::condition;
use crate::api::page::Page;
use crate::api::problem::Problem;
use crate::api::request;
use crate::api::types::VolumeList;
use crate::api::view;
use crate::array::Array;
use crate::array::NewClone;
use crate::array::NewVolume;
use crate::array::VolumeInfo;
use crate::array::VolumeUpdate;
use crate::array::Which;
use crate::units::ByteCount;

type Answer = Result<Response, Problem>;

/// A volume, with the tag by which a later change can be made conditional.
pub(super) fn answer(info: VolumeInfo) -> Response {
    let tag = condition::tag(info.version);
    ([(ETAG, tag)], Json(view::volume(info))).into_response()
}

/// The answer to what was made, with the path under which it is found from now on.
pub(super) fn created(path: &str, body: impl Serialize) -> Response {
    (StatusCode::CREATED, [(LOCATION, path)], Json(body)).into_response()
}

pub(super) async fn create(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let asked = request::create_volume(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let new = NewVolume {
        name: asked.name,
        size: ByteCount(asked.size_bytes),
        description: asked.description,
        tags: asked.tags,
    };
    let info = service.blocking(|array| array.create_volume(new)).await?;
    let path = format!("/api/v1/volumes/{}", info.id);
    let tag = condition::tag(info.version);
    Ok(([(ETAG, tag)], created(&path, view::volume(info))).into_response())
}

pub(super) async fn list(State(service): State<Arc<Service>>, mut call: Call) -> Answer {
    let page = Page::asked(&mut call.query)?;
    call.query.finish()?;
    let volumes = service.blocking(|array| Ok(array.volumes())).await?;
    let total = volumes.len() as u64;
    let (volumes, next_cursor) = page.of(volumes);
    let volumes = volumes.into_iter().map(view::volume).collect();
    Ok(Json(VolumeList { volumes, total, next_cursor }).into_response())
}

pub(super) async fn show(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let info = service
        .blocking(move |array| {
            let info = array.volume(&call.which)?;
            array.request_measurement(info.id);
            Ok(info)
        })
        .await?;
    Ok(answer(info))
}

pub(super) async fn update(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let (name, versions) = (call.which.clone(), call.if_match()?);
    let asked = request::update_volume(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let update = VolumeUpdate { name: asked.name, description: asked.description, tags: asked.tags };
    let change = move |array: &Array| array.update_volume(Which::new(&name, versions.as_deref()), update);
    Ok(answer(service.blocking(change).await?))
}

pub(super) async fn delete(State(service): State<Arc<Service>>, mut call: Call) -> Answer {
    let force = call.query.flag("force")?;
    let versions = call.if_match()?;
    call.query.finish()?;
    let delete =
        move |array: &Array| array.delete_volume(Which::new(&call.which, versions.as_deref()), force);
    service.blocking(delete).await?;
    service.disconnect_deleted();
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn resize(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let (name, versions) = (call.which.clone(), call.if_match()?);
    let asked = request::resize_volume(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let size = ByteCount(asked.size_bytes);
    let resize = move |array: &Array| array.resize_volume(Which::new(&name, versions.as_deref()), size);
    Ok(answer(service.blocking(resize).await?))
}

pub(super) async fn clone(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let (name, versions) = (call.which.clone(), call.if_match()?);
    let asked = request::clone_volume(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let new = NewClone { name: asked.name, description: asked.description };
    let clone = move |array: &Array| array.clone_volume(Which::new(&name, versions.as_deref()), &new);
    Ok(answer(service.blocking(clone).await?))
}
