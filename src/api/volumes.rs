//! The routes of volumes.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;

use crate::api::Service;
use crate::api::call::Call;
use crate::api::problem::Problem;
use crate::api::request;
use crate::api::types::ReadAnswer;
use crate::api::types::VolumeList;
use crate::api::types::WriteAnswer;
use crate::api::view;
use crate::array::Array;
use crate::array::BlockService;
use crate::array::ExtentKind;
use crate::array::NewVolume;
use crate::array::VolumeInfo;
use crate::array::VolumeUpdate;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::units::BLOCK_BYTES;
use crate::units::ByteCount;

/// Largest body of a management request; names, descriptions and tags are far smaller.
const MANAGEMENT_BODY_MAX: usize = 256 << 10;

/// Largest body of a write.
const WRITE_BODY_MAX: usize = 64 << 20;

/// Most bytes of one read.
const READ_BYTES_MAX: u64 = 32 << 20;

/// Most volumes of one page.
const PAGE_MAX: u64 = 10_000;

const BLOCK: u64 = BLOCK_BYTES as u64;

type Answer = Result<Response, Problem>;

pub(super) async fn create(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let asked = request::create_volume(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let new = NewVolume {
        name: asked.name,
        size: ByteCount(asked.size_bytes),
        description: asked.description,
        tags: asked.tags,
    };
    let info = service.blocking(|array| array.create_volume(new)).await?;
    Ok((StatusCode::CREATED, Json(view::volume(info))).into_response())
}

pub(super) async fn list(State(service): State<Arc<Service>>, mut call: Call) -> Answer {
    let limit = call.query.number("limit", 1, PAGE_MAX)?;
    let after = call.query.text("cursor").map(|cursor| Cursor::parse(&cursor)).transpose()?;
    call.query.finish()?;
    let volumes = service.blocking(|array| Ok(array.volumes())).await?;
    let total = volumes.len() as u64;
    let mut rest =
        volumes.into_iter().filter(|info| after.as_ref().is_none_or(|after| *after < Cursor::of(info)));
    let limit = limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(usize::MAX);
    let page: Vec<VolumeInfo> = rest.by_ref().take(limit).collect();
    let next_cursor = match (rest.next(), page.last()) {
        (Some(_), Some(last)) => Some(Cursor::of(last).show()),
        _ => None,
    };
    Ok(Json(VolumeList { volumes: page.into_iter().map(view::volume).collect(), total, next_cursor })
        .into_response())
}

pub(super) async fn show(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let info = service.blocking(move |array| array.volume(&call.which)).await?;
    Ok(Json(view::volume(info)).into_response())
}

pub(super) async fn update(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let which = call.which.clone();
    let asked = request::update_volume(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let update = VolumeUpdate { name: asked.name, description: asked.description, tags: asked.tags };
    let info = service.blocking(move |array| array.update_volume(&which, update)).await?;
    Ok(Json(view::volume(info)).into_response())
}

pub(super) async fn delete(State(service): State<Arc<Service>>, mut call: Call) -> Answer {
    let force = call.query.flag("force")?;
    call.query.finish()?;
    service.blocking(move |array| array.delete_volume(&call.which, force)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

pub(super) async fn resize(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let which = call.which.clone();
    let asked = request::resize_volume(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    let info =
        service.blocking(move |array| array.resize_volume(&which, ByteCount(asked.size_bytes))).await?;
    Ok(Json(view::volume(info)).into_response())
}

pub(super) async fn write(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let which = call.which.clone();
    // A missing volume is said before a long body is read.
    let info = service.blocking(move |array| array.volume(&which)).await?;
    let _permit = service.transfer().await;
    let asked = request::write(&call.json(WRITE_BODY_MAX).await?)?;
    let answer = service
        .blocking(move |array| {
            let data = STANDARD
                .decode(asked.data.as_bytes())
                .map_err(|_| Error::new(ErrorKind::Invalid, "Invalid base64 data"));
            data.and_then(|data| write_data(array, &info, asked.offset, &data))
        })
        .await?;
    Ok(Json(answer).into_response())
}

fn write_data(array: &Array, info: &VolumeInfo, offset: u64, data: &[u8]) -> Result<WriteAnswer, Error> {
    check_aligned(offset)?;
    let volume = array.open_volume(&info.id.to_string())?;
    let size = data.len() as u64;
    if offset.checked_add(size).is_none_or(|end| end > volume.size().0) {
        return Err(Error::new(ErrorKind::Invalid, "Write exceeds volume size"));
    }
    let written = volume.write_reported(offset, data)?;
    volume.make_durable(written.commit)?;
    drop(volume);
    Ok(WriteAnswer {
        volume_id: info.id.to_string(),
        offset,
        size,
        reduction_ratio: array.volume(&info.id.to_string())?.reduction_ratio,
        was_deduplicated: written.duplicate_blocks > 0,
        was_compressed: written.compressed_blocks > 0,
    })
}

pub(super) async fn read(State(service): State<Arc<Service>>, mut call: Call) -> Answer {
    let offset = call.query.number("offset", 0, u64::MAX)?.unwrap_or(0);
    let length = call.query.number("length", 0, READ_BYTES_MAX)?;
    call.query.finish()?;
    let _permit = service.transfer().await;
    let answer = service
        .blocking(move |array| {
            let volume = array.open_volume(&call.which)?;
            let data = match length {
                Some(length) => read_exactly(&*volume, offset, length)?,
                None => read_block(&*volume, offset)?,
            };
            let size = data.len() as u64;
            Ok(ReadAnswer { volume_id: volume.id().to_string(), offset, size, data: STANDARD.encode(data) })
        })
        .await?;
    Ok(Json(answer).into_response())
}

/// Exactly `length` bytes, holes as zeros.
fn read_exactly(volume: &dyn BlockService, offset: u64, length: u64) -> Result<Vec<u8>, Error> {
    if offset.checked_add(length).is_none_or(|end| end > volume.size().0) {
        return Err(Error::new(ErrorKind::Invalid, "Read exceeds volume size"));
    }
    let length = usize::try_from(length.min(READ_BYTES_MAX)).expect("32 MiB fit in memory");
    let mut data = vec![0; length];
    volume.read(offset, &mut data)?;
    Ok(data)
}

/// The block at `offset` without its trailing zero bytes.
fn read_block(volume: &dyn BlockService, offset: u64) -> Result<Vec<u8>, Error> {
    check_aligned(offset)?;
    let not_found = || Error::new(ErrorKind::NotFound, format!("Data not found at offset {offset}"));
    if offset >= volume.size().0 {
        return Err(not_found());
    }
    let extents = volume.block_status(offset, ByteCount(BLOCK), 1)?;
    if extents.first().is_none_or(|extent| extent.kind == ExtentKind::Hole) {
        return Err(not_found());
    }
    let mut data = vec![0; BLOCK_BYTES];
    volume.read(offset, &mut data)?;
    let end = data.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    data.truncate(end);
    Ok(data)
}

fn check_aligned(offset: u64) -> Result<(), Error> {
    if offset.is_multiple_of(BLOCK) {
        return Ok(());
    }
    Err(Error::new(ErrorKind::Invalid, "Offset must be aligned to block size (4096)"))
}

/// Where a page ended: the last volume's place in the order of the list. It stays right when volumes
/// come and go between two pages.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Cursor {
    created_ms: u128,
    name: String,
}

impl Cursor {
    fn of(info: &VolumeInfo) -> Cursor {
        Cursor { created_ms: info.created_at.as_millis(), name: info.name.clone() }
    }

    fn show(&self) -> String {
        URL_SAFE_NO_PAD.encode(format!("{}:{}", self.created_ms, self.name))
    }

    fn parse(text: &str) -> Result<Cursor, Problem> {
        let read = || {
            let plain = String::from_utf8(URL_SAFE_NO_PAD.decode(text).ok()?).ok()?;
            let (created_ms, name) = plain.split_once(':')?;
            Some(Cursor { created_ms: created_ms.parse().ok()?, name: name.to_owned() })
        };
        read().ok_or_else(|| Problem::field("cursor", "cursor is not one that a list has given"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursors_read_back() {
        let cursor = Cursor { created_ms: 1_705_314_600_250, name: "a:\u{f6}".to_owned() };
        assert_eq!(Cursor::parse(&cursor.show()).unwrap(), cursor);
        for text in ["", "!", "MTIz", "eDp5"] {
            assert!(Cursor::parse(text).is_err(), "{text}");
        }
    }
}
