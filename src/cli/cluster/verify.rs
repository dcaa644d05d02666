//! `sinter cluster verify`.

use std::fmt::Write as _;
use std::time::Duration;

use clap::Args;

use crate::api::types::ClusterVerify;
use crate::api::types::VerifiedNode;
use crate::api::types::VerifyState;
use crate::api::types::VerifyVerdict;
use crate::cli::client::Client;
use crate::cli::client::parse;
use crate::cli::output;
use crate::cli::progress::Progress;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::quantity::round_size;
use crate::error::ErrorKind;
use crate::sync::Condition;
use crate::sync::Mutex;
use crate::units::BLOCK_BYTES;
use crate::units::ByteCount;

/// Where it is reached.
const PATH: &str = "/api/v1/cluster/verify";

/// How often it is looked.
const INTERVAL: Duration = Duration::from_millis(200);

/// `cluster verify`.
#[derive(Debug, Args)]
pub struct Verify {
    /// Begin, and do not wait for the end
    #[arg(long, conflicts_with_all = ["status", "stop"])]
    detach: bool,
    /// Show the newest one, and begin none
    #[arg(long, conflicts_with = "stop")]
    status: bool,
    /// End the one that is under way
    #[arg(long)]
    stop: bool,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `sinter cluster verify`.
///
/// # Errors
/// What the array answered; `Corrupt` where a node differs; `Busy` where one was not compared.
pub(super) fn run(client: &Client, arguments: &Verify) -> Outcome {
    if arguments.stop {
        return client.delete(PATH).map_err(super::helped);
    }
    let mut answer = match arguments.status {
        true => client.get_text(PATH).map_err(super::helped)?,
        false => client.post(PATH, &serde_json::json!({})).map_err(super::helped)?,
    };
    if arguments.detach {
        output::note("the nodes are being compared; `sinter cluster verify --status` shows what was found");
        return Ok(());
    }
    let mut progress = Progress::bytes("compared", None);
    let (still, pause) = (Mutex::new(()), Condition::new());
    let mut verify: ClusterVerify = parse(&answer)?;
    while !arguments.status && verify.state == VerifyState::Running {
        progress.show(verify.compared_bytes, None);
        drop(pause.wait_for(still.lock(), INTERVAL));
        answer = client.get_text(PATH).map_err(super::helped)?;
        verify = parse(&answer)?;
    }
    output::data(if arguments.json { answer + "\n" } else { describe(&verify) })?;
    outcome(&verify)
}

fn outcome(verify: &ClusterVerify) -> Outcome {
    let names = |verdict| {
        let nodes = verify.nodes.iter().filter(|node| node.verdict == verdict);
        nodes.map(|node| node.node_id.as_str()).collect::<Vec<_>>().join(", ")
    };
    let (different, left) = (names(VerifyVerdict::Different), names(VerifyVerdict::NotCompared));
    if !different.is_empty() {
        let what = format!("{different}: not what {} holds", verify.primary);
        return Err(Failure::new(ErrorKind::Corrupt, what)
            .hint("it is being compared as a whole; `sinter wait --for resync` waits until it is in sync"));
    }
    match (verify.state, &verify.error) {
        (VerifyState::Never | VerifyState::Running, _) => Ok(()),
        (VerifyState::Failed, Some(why)) => Err(Failure::new(ErrorKind::Busy, why.clone())),
        (VerifyState::Finished, _) if left.is_empty() => Ok(()),
        (VerifyState::Finished, _) => Err(Failure::new(ErrorKind::Busy, format!("not compared: {left}"))
            .hint("only nodes that are in sync are compared; `sinter cluster status` shows them")),
        (VerifyState::Failed | VerifyState::Stopped, _) => {
            Err(Failure::new(ErrorKind::Busy, "the comparison ended before all was compared"))
        }
    }
}

fn describe(verify: &ClusterVerify) -> String {
    let mut text = String::new();
    let state = match verify.state {
        VerifyState::Never => "none since the primary was started",
        VerifyState::Running => "running",
        VerifyState::Stopped => "stopped before its end",
        VerifyState::Failed => "failed",
        VerifyState::Finished => "finished",
    };
    let _ = writeln!(text, "comparison  {state}");
    let _ = writeln!(text, "primary     {}", verify.primary);
    if let (Some(epoch), Some(operation)) = (&verify.epoch, verify.operation) {
        let _ = writeln!(text, "position    epoch {epoch}, operation {operation}");
    }
    let _ = writeln!(text, "compared    {}", round_size(ByteCount(verify.compared_bytes)));
    for node in &verify.nodes {
        describe_node(node, &mut text);
    }
    if let Some(error) = &verify.error {
        let _ = writeln!(text, "error       {error}");
    }
    text
}

fn describe_node(node: &VerifiedNode, text: &mut String) {
    let verdict = match node.verdict {
        VerifyVerdict::Comparing => "being compared",
        VerifyVerdict::Equal => "equal",
        VerifyVerdict::Different => "DIFFERENT",
        VerifyVerdict::NotCompared => "not compared",
    };
    let why = node.error.as_ref().map(|why| format!(": {why}")).unwrap_or_default();
    let _ = writeln!(text, "{:<11} {verdict}{why}", node.node_id);
    for it in &node.differences {
        let block =
            it.lba.map(|lba| format!(", block {lba} (byte {})", lba.saturating_mul(BLOCK_BYTES as u64)));
        let _ = writeln!(text, "  {}{}: {}", it.object, block.unwrap_or_default(), it.what);
    }
}
