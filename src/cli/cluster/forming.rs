//! `sinter cluster join`, `start` and `forget`.

use std::time::Duration;

use clap::Args;

use crate::api::types::ClusterMembers;
use crate::api::types::JoinCluster;
use crate::api::types::JoinedCluster;
use crate::api::types::StartCluster;
use crate::cli::client::Client;
use crate::cli::client::parse;
use crate::cli::output;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::sync::Condition;
use crate::sync::Mutex;

/// How often it is looked whether an array that begins anew is there.
const INTERVAL: Duration = Duration::from_millis(200);

/// It is given up after so many looks.
const LOOKS: u32 = 300;

/// `cluster join`.
#[derive(Debug, Args)]
pub struct Join {
    /// The token (`sinter cluster token` on a node of the cluster), or @ and the file that it is in
    token: String,
    /// Give up what the pool here holds
    #[arg(long)]
    discard_local_data: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// `cluster start`.
#[derive(Debug, Args)]
pub struct Start {
    /// The names or numbers of the nodes that were in sync and never return
    #[arg(long, value_name = "NODE", num_args = 1.., required = true)]
    without: Vec<String>,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// `cluster forget`.
#[derive(Debug, Args)]
pub struct Forget {
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

pub(super) fn join(client: &Client, arguments: &Join) -> Outcome {
    if arguments.discard_local_data {
        output::confirm("Give up all that this array holds, and join?", arguments.yes)?;
    }
    let token = match arguments.token.strip_prefix('@') {
        Some(path) => std::fs::read_to_string(path).map_err(|error| {
            Failure::from(Error::caused(ErrorKind::Invalid, format!("reading the token in {path}"), error))
        })?,
        None => arguments.token.clone(),
    };
    let asked = JoinCluster { token, discard_local_data: arguments.discard_local_data };
    let answer =
        client.post("/api/v1/cluster/join", &asked).map_err(|failure| match failure.error.kind() {
            ErrorKind::Exists => failure.hint("--discard-local-data gives up what this array's pool holds"),
            ErrorKind::Invalid => failure
                .hint("a token is good for one node and one hour; `sinter cluster token` makes another"),
            _ => failure,
        })?;
    let joined: JoinedCluster = parse(&answer)?;
    let (still, pause) = (Mutex::new(()), Condition::new());
    for _ in 0..LOOKS {
        if client.get_text(super::MEMBERS).is_ok() {
            output::note(&format!(
                "joined as node {}; `sinter wait --for resync` waits until it is in sync",
                joined.node_id
            ));
            return Ok(());
        }
        drop(pause.wait_for(still.lock(), INTERVAL));
    }
    Err(Failure::new(ErrorKind::Unreachable, "the array has joined, and is not there again")
        .hint("its log says why; started again, it goes on as a node of the cluster"))
}

pub(super) fn start(client: &Client, arguments: &Start) -> Outcome {
    let names = arguments.without.join(", ");
    let question = format!(
        "Start without {names}? Acknowledged writes that were not flushed and that only {names} held are lost."
    );
    output::confirm(&question, arguments.yes)?;
    let asked = StartCluster { without: arguments.without.clone() };
    let answer = client.post("/api/v1/cluster/start", &asked).map_err(super::helped)?;
    let members: ClusterMembers = parse(&answer)?;
    let primary = members.primary.unwrap_or_default();
    output::note(&format!("{primary} is the primary; `sinter cluster status` shows who follows it"));
    Ok(())
}

pub(super) fn forget(client: &Client, arguments: &Forget) -> Outcome {
    let question =
        "Let this array stand alone? It goes on with what it holds, and comes back only as a new node.";
    output::confirm(question, arguments.yes)?;
    client.post("/api/v1/cluster/forget", &serde_json::json!({})).map_err(|failure| {
        match failure.error.kind() {
            ErrorKind::Busy => failure.hint("`sinter cluster remove`, asked of another node, takes it out"),
            _ => super::helped(failure),
        }
    })?;
    output::note("this array stands alone");
    Ok(())
}
