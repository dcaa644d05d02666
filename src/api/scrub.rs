//! Scrub over REST: started, stopped and looked at under one address.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;
use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

use crate::api::Service;
use crate::api::call::Call;
use crate::api::problem::Problem;
use crate::store::ScrubState;
use crate::store::ScrubStatus;

/// `GET`, `POST` and `DELETE` of `/api/v1/scrub`: how far the newest scrub has come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Scrub {
    /// What it is at.
    pub state: ScrubPhase,
    /// Pages of metadata verified, each copy counted.
    pub pages_verified: u64,
    /// Blocks verified.
    pub blocks_verified: u64,
    /// Bytes of both.
    pub bytes_verified: u64,
    /// Block ids passed so far.
    pub position: u64,
    /// Block ids that there are.
    pub end: u64,
    /// Pages and blocks that failed their check or could not be read.
    pub errors: u64,
    /// Of those, pages with a good copy: they are written anew.
    pub repaired: u64,
    /// What failed, at most a hundred lines.
    pub damage: Vec<String>,
}

/// What a scrub is at.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ScrubPhase {
    /// None was started since the array was.
    Never,
    /// It reads.
    Running,
    /// It was stopped before it had read all.
    Stopped,
    /// It has read all.
    Finished,
}

impl From<ScrubStatus> for Scrub {
    fn from(status: ScrubStatus) -> Scrub {
        Scrub {
            state: match status.state {
                ScrubState::Never => ScrubPhase::Never,
                ScrubState::Running => ScrubPhase::Running,
                ScrubState::Stopped => ScrubPhase::Stopped,
                ScrubState::Finished => ScrubPhase::Finished,
            },
            pages_verified: status.pages,
            blocks_verified: status.blocks,
            bytes_verified: status.bytes,
            position: status.position.0.min(status.position.1),
            end: status.position.1,
            errors: status.errors,
            repaired: status.repaired,
            damage: status.damage,
        }
    }
}

pub(super) async fn show(State(service): State<Arc<Service>>, call: Call) -> Result<Response, Problem> {
    call.query.finish()?;
    let status = service.blocking(|array| Ok(array.scrub_status())).await?;
    Ok(Json(Scrub::from(status)).into_response())
}

pub(super) async fn start(State(service): State<Arc<Service>>, call: Call) -> Result<Response, Problem> {
    call.query.finish()?;
    let status = service.blocking(|array| Ok(array.start_scrub())).await?;
    Ok(Json(Scrub::from(status)).into_response())
}

pub(super) async fn stop(State(service): State<Arc<Service>>, call: Call) -> Result<Response, Problem> {
    call.query.finish()?;
    let status = service.blocking(|array| Ok(array.stop_scrub())).await?;
    Ok(Json(Scrub::from(status)).into_response())
}
