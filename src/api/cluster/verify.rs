//! Comparing all nodes over REST: started, stopped and looked at under one address, on the primary.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;

use crate::api::Service;
use crate::api::call::Call;
use crate::api::problem::Problem;
use crate::api::types::ClusterVerify;
use crate::api::types::VerifiedNode;
use crate::api::types::VerifyDifference;
use crate::api::types::VerifyState;
use crate::api::types::VerifyVerdict;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::replica::cluster::Running;
use crate::replica::control::Control as _;
use crate::replica::control::state::NodeKind;
use crate::replica::node::Node;
use crate::replica::node::verifying::Difference;
use crate::replica::node::verifying::VerifyPhase;
use crate::replica::node::verifying::VerifyStatus;

use super::Answer;
use super::enabled;
use super::view;

pub(in crate::api) async fn show(State(service): State<Arc<Service>>, call: Call) -> Answer {
    answer(&service, call, |node| Ok(node.verify_status())).await
}

pub(in crate::api) async fn start(State(service): State<Arc<Service>>, call: Call) -> Answer {
    answer(&service, call, |node| Ok(node.start_verify()?)).await
}

pub(in crate::api) async fn stop(State(service): State<Arc<Service>>, call: Call) -> Answer {
    answer(&service, call, |node| Ok(node.stop_verify())).await
}

async fn answer(
    service: &Service,
    call: Call,
    work: impl FnOnce(&Arc<Node>) -> Result<VerifyStatus, Problem> + Send + 'static,
) -> Result<Response, Problem> {
    call.query.finish()?;
    let answer = enabled(service, move |_, running| {
        let node = running.node.as_ref();
        let node = node.ok_or_else(|| Error::new(ErrorKind::NotPrimary, "a witness keeps no data"))?;
        Ok(shown(running, work(node)?))
    });
    Ok(Json(answer.await?).into_response())
}

fn shown(running: &Running, status: VerifyStatus) -> ClusterVerify {
    let state = running.control.state();
    let others = state.nodes.iter().filter(|(node, _)| **node != running.own);
    let nodes = others.filter(|(_, entry)| entry.kind == NodeKind::Data).map(|(node, entry)| {
        let found = status.nodes.get(node);
        let error = match found {
            Some(found) => found.error.clone(),
            None if status.phase == VerifyPhase::Never => None,
            None => Some("it was not in sync".to_owned()),
        };
        let verdict = match found {
            Some(found) if !found.differences.is_empty() => VerifyVerdict::Different,
            Some(found) if found.error.is_none() => match status.phase {
                VerifyPhase::Running => VerifyVerdict::Comparing,
                VerifyPhase::Finished => VerifyVerdict::Equal,
                _ => VerifyVerdict::NotCompared,
            },
            _ => VerifyVerdict::NotCompared,
        };
        let differences = found.map(|found| found.differences.iter().map(difference).collect());
        VerifiedNode {
            node_id: entry.name.clone(),
            verdict,
            differences: differences.unwrap_or_default(),
            error,
        }
    });
    ClusterVerify {
        state: match status.phase {
            VerifyPhase::Never => VerifyState::Never,
            VerifyPhase::Running => VerifyState::Running,
            VerifyPhase::Stopped => VerifyState::Stopped,
            VerifyPhase::Failed => VerifyState::Failed,
            VerifyPhase::Finished => VerifyState::Finished,
        },
        primary: view::name_of(&state, running.own),
        epoch: status.position.map(|at| format!("{}.{}", at.epoch.generation, at.epoch.number)),
        operation: status.position.map(|at| at.lsn.0),
        compared_bytes: status.compared.bytes().0,
        nodes: nodes.collect(),
        error: status.error,
    }
}

fn difference(found: &Difference) -> VerifyDifference {
    VerifyDifference {
        object: found.object.clone(),
        lba: found.lba.map(|lba| lba.0),
        what: found.what.clone(),
    }
}
