//! The routes that move data: whole blocks in Base64, for scripts and tests; everything else speaks NBD.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::api::Service;
use crate::api::call::Call;
use crate::api::problem::Problem;
use crate::api::request;
use crate::api::types::ReadAnswer;
use crate::api::types::WriteAnswer;
use crate::array::Array;
use crate::array::BlockService;
use crate::array::ExtentKind;
use crate::array::VolumeInfo;
use crate::array::Which;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::units::BLOCK_BYTES;
use crate::units::ByteCount;

/// Largest body of a write.
pub(super) const WRITE_BODY_MAX: usize = 64 << 20;

/// Most bytes of one read.
pub(super) const READ_BYTES_MAX: u64 = 32 << 20;

const BLOCK: u64 = BLOCK_BYTES as u64;

type Answer = Result<Response, Problem>;

pub(super) async fn write(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let (which, versions) = (call.which.clone(), call.if_match()?);
    // A missing volume is said before a long body is read.
    let (info, versions) = service
        .blocking(move |array| {
            let info = array.volume_in_version(Which::new(&which, versions.as_deref()))?;
            Ok((info, versions))
        })
        .await?;
    let _permit = service.transfer().await;
    let asked = request::write(&call.json(WRITE_BODY_MAX).await?)?;
    let answer = service
        .blocking(move |array| {
            let data = STANDARD
                .decode(asked.data.as_bytes())
                .map_err(|_| Error::new(ErrorKind::Invalid, "Invalid base64 data"));
            let data = data?;
            // The body may have taken its time.
            array.volume_in_version(Which::new(&info.id.to_string(), versions.as_deref()))?;
            write_data(array, &info, asked.offset, &data)
        })
        .await?;
    Ok(Json(answer).into_response())
}

fn write_data(array: &Array, info: &VolumeInfo, offset: u64, data: &[u8]) -> Result<WriteAnswer, Error> {
    check_aligned(offset)?;
    let volume = array.open_volume_now(&info.id.to_string())?;
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
