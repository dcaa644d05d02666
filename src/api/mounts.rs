//! The routes of mounts: volumes and snapshots as files in a directory of the array's machine.

use std::fmt::Write as _;
use std::path::Path;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::response::Response;

use crate::api::Service;
use crate::api::call::Call;
use crate::api::call::MANAGEMENT_BODY_MAX;
use crate::api::page::Page;
use crate::api::problem::Problem;
use crate::api::request;
use crate::api::types::Mount;
use crate::api::types::MountList;
use crate::api::volumes;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::error::Result;

/// Who mounts. Its verbs may wait.
pub trait MountControl: Send + Sync {
    /// All mounts, in the order of their paths.
    fn list(&self) -> Vec<Mount>;

    /// Mounts on an empty directory.
    ///
    /// # Errors
    /// `NotFound`, `Invalid` or `Busy` where the directory is missing, none, or in use; `Unsupported`
    /// where the host has no FUSE; `Device` for all else that it said.
    fn mount(&self, point: &Path) -> Result<Mount>;

    /// Takes a mount away. `lazy` hides it at once, also while files are open in it, and it ends with
    /// the last of them.
    ///
    /// # Errors
    /// `NotFound` where it is not mounted; `Busy` while files are open in it, without `lazy`; `Device`.
    fn unmount(&self, point: &Path, lazy: bool) -> Result<()>;
}

type Answer = Result<Response, Problem>;

/// Calls the one who mounts from a thread that may wait.
async fn blocking<T: Send + 'static>(
    service: &Service,
    call: impl FnOnce(&dyn MountControl) -> Result<T> + Send + 'static,
) -> Result<T, Problem> {
    let Some(mounts) = service.mounts.clone() else {
        return Err(Error::new(ErrorKind::Unsupported, "mounts are not offered here").into());
    };
    service.blocking(move |_| call(&*mounts)).await
}

pub(super) async fn list(State(service): State<Arc<Service>>, mut call: Call) -> Answer {
    let page = Page::asked(&mut call.query)?;
    call.query.finish()?;
    let mounts = blocking(&service, |mounts| Ok(mounts.list())).await?;
    let total = mounts.len() as u64;
    let (mounts, next_cursor) = page.of(mounts);
    Ok(Json(MountList { mounts, total, next_cursor }).into_response())
}

pub(super) async fn create(State(service): State<Arc<Service>>, call: Call) -> Answer {
    let asked = request::create_mount(&call.json(MANAGEMENT_BODY_MAX).await?)?;
    if !Path::new(&asked.mountpoint).is_absolute() {
        return Err(Problem::field("mountpoint", "mountpoint must be an absolute path"));
    }
    let mount = blocking(&service, move |mounts| mounts.mount(Path::new(&asked.mountpoint))).await?;
    let path = format!("/api/v1/mounts/{}", encoded(&mount.mountpoint));
    Ok(volumes::created(&path, mount))
}

/// The text as one segment of a path.
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

pub(super) async fn remove(State(service): State<Arc<Service>>, mut call: Call) -> Answer {
    let lazy = call.query.flag("lazy")?;
    call.query.finish()?;
    blocking(&service, move |mounts| mounts.unmount(Path::new(&call.which), lazy)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}
