//! `sinter cluster`.

use std::fmt::Write as _;

use clap::Args;
use clap::Subcommand;
use clap::ValueEnum;

use crate::api::types::AddPeer;
use crate::api::types::ClusterMembers;
use crate::api::types::ClusterNode;
use crate::api::types::ClusterState;
use crate::api::types::Failover;
use crate::api::types::FailoverAnswer;
use crate::api::types::FailoverReason;
use crate::api::types::InitCluster;
use crate::api::types::JoinToken;
use crate::api::types::NewCluster;
use crate::api::types::NewToken;
use crate::api::types::NodeRole;
use crate::api::types::NodeState;
use crate::api::types::Promote;
use crate::api::types::ReplicationMode;
use crate::api::types::TokenRole;
use crate::cli::client::Client;
use crate::cli::client::parse;
use crate::cli::output;
use crate::cli::status::tell;
use crate::cli::table;
use crate::cli::table::Cell;
use crate::cli::table::Column;
use crate::cli::table::ListFlags;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::quantity::round_size;
use crate::daemon::uri::encode;
use crate::error::ErrorKind;
use crate::units::ByteCount;

mod forming;
mod verify;

/// Where the members are.
const MEMBERS: &str = "/api/v1/cluster/members";

/// Most changes of the primary that `status` shows.
const FAILOVERS_SHOWN: usize = 5;

/// What can be done with a cluster.
#[derive(Debug, Subcommand)]
pub enum ClusterCommand {
    /// Make this array the first node of a cluster, and print what to type on the next two machines
    Init(Init),
    /// Print a token that lets one more node or client in
    Token(NewTokenArguments),
    /// Have this array, whose pool is empty, join a cluster: it begins anew as a node of it
    Join(forming::Join),
    /// Show how the cluster is, what is wrong first
    Status(StatusFlags),
    /// List all nodes
    #[command(visible_alias = "ls")]
    Peers(ListFlags),
    /// Announce a node before it has joined
    Add(Add),
    /// Take a node out of the cluster
    #[command(visible_alias = "rm")]
    Remove(Remove),
    /// Compare all nodes that are in sync, block by block; exits 14 where one differs
    Verify(verify::Verify),
    /// Make another node that is in sync the primary
    Failover(FailoverArguments),
    /// Make the former primary it again, once it is in sync
    Failback(FailbackArguments),
    /// Make this node the primary, whatever the others hold: acknowledged writes that it does not hold are lost
    Promote(PromoteArguments),
    /// Start the array after all nodes were down, without those that never return
    Start(forming::Start),
    /// Let this array stand alone, with what it holds
    Forget(forming::Forget),
}

/// `cluster init`.
#[derive(Debug, Args)]
pub struct Init {
    /// Where other nodes reach this one; without it what the configuration says
    #[arg(long, value_name = "ADDR:PORT")]
    listen: Option<String>,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `cluster token`.
#[derive(Debug, Args)]
pub struct NewTokenArguments {
    /// What it is for
    #[arg(long, value_enum, default_value = "data", conflicts_with = "client")]
    role: RoleArgument,
    /// The same as --role client
    #[arg(long)]
    client: bool,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// What a token is for.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum RoleArgument {
    /// A node that keeps a copy of the array
    Data,
    /// A node that votes, and keeps nothing
    Witness,
    /// A machine that attaches volumes
    Client,
}

/// `cluster status`.
#[derive(Debug, Args)]
pub struct StatusFlags {
    /// Only what is wrong; nothing if all is well
    #[arg(short = 'x')]
    only_trouble: bool,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `cluster add`.
#[derive(Debug, Args)]
pub struct Add {
    /// What it will be called
    name: String,
    /// Where its REST will be, such as http://node-2:8000
    #[arg(value_name = "URL")]
    address: String,
}

/// `cluster remove`.
#[derive(Debug, Args)]
pub struct Remove {
    /// Its name or number
    node: String,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

/// `cluster failover`.
#[derive(Debug, Args)]
pub struct FailoverArguments {
    /// The name or number of the new primary; without it any that is in sync
    node: Option<String>,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `cluster failback`.
#[derive(Debug, Args)]
pub struct FailbackArguments {
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `cluster promote`.
#[derive(Debug, Args)]
pub struct PromoteArguments {
    /// Needed: nothing else makes a node primary that is not in sync
    #[arg(long, required = true)]
    force: bool,
    /// Do not ask
    #[arg(long)]
    yes: bool,
}

const COLUMNS: &[Column<ClusterNode>] = &[
    Column { name: "name", cell: |it, _| Cell::Text(it.node_id.clone()) },
    Column { name: "number", cell: |it, _| number(it.number.map(u64::from)) },
    Column { name: "role", cell: |it, _| Cell::Text(role(it.role).to_owned()) },
    Column { name: "state", cell: |it, _| Cell::Text(state(it.state).to_owned()) },
    Column { name: "in_sync", cell: |it, _| yes_no(it.in_sync) },
    Column { name: "votes", cell: |it, _| yes_no(it.votes) },
    Column { name: "mode", cell: |it, _| Cell::Text(it.mode.map_or("-", mode).to_owned()) },
    Column { name: "lag", cell: |it, exact| size(it.lag_bytes, exact) },
    Column { name: "operations", cell: |it, _| number(Some(it.lag_operations)) },
    Column { name: "seconds", cell: |it, _| Cell::Number(it.lag_seconds, format!("{:.1}", it.lag_seconds)) },
    Column { name: "resync", cell: |it, exact| size(it.resync_remaining_bytes, exact) },
    Column { name: "shipped", cell: |it, exact| size(it.shipped_bytes, exact) },
    Column { name: "address", cell: |it, _| text(it.cluster_address.as_ref()) },
    Column { name: "url", cell: |it, _| text(it.url.as_ref()) },
    Column { name: "nbd", cell: |it, _| text(it.nbd_address.as_ref()) },
    Column { name: "error", cell: |it, _| text(it.error.as_ref()) },
];

const SHOWN: &[&str] = &["name", "role", "state", "in_sync", "lag", "seconds", "resync", "address", "url"];

/// Runs `sinter cluster`.
///
/// # Errors
/// What the array answered; `NoQuorum` where the status shows no quorum or no primary.
pub fn run(client: &Client, command: ClusterCommand) -> Outcome {
    match command {
        ClusterCommand::Init(arguments) => init(client, arguments),
        ClusterCommand::Token(arguments) => token(client, &arguments),
        ClusterCommand::Join(arguments) => forming::join(client, &arguments),
        ClusterCommand::Start(arguments) => forming::start(client, &arguments),
        ClusterCommand::Forget(arguments) => forming::forget(client, &arguments),
        ClusterCommand::Status(flags) => status(client, &flags),
        ClusterCommand::Peers(flags) => peers(client, &flags),
        ClusterCommand::Add(add) => {
            client
                .post("/api/v1/cluster/peers", &AddPeer { node_id: add.name, url: add.address })
                .map_err(helped)?;
            output::note("announced; `sinter cluster token` makes the token that it joins with");
            Ok(())
        }
        ClusterCommand::Remove(remove) => {
            let question =
                format!("Take {} out of the cluster? It can come back only as a new node.", remove.node);
            output::confirm(&question, remove.yes)?;
            let path = format!("/api/v1/cluster/peers/{}", encode(remove.node.as_bytes(), b"-._~"));
            client.delete(&path).map_err(helped)
        }
        ClusterCommand::Verify(arguments) => verify::run(client, &arguments),
        ClusterCommand::Failover(arguments) => {
            let asked = Failover { target_node: arguments.node };
            let answer = client.post("/api/v1/cluster/failover", &asked).map_err(helped)?;
            moved(answer, arguments.json)
        }
        ClusterCommand::Failback(arguments) => {
            let answer = client.post("/api/v1/cluster/failback", &serde_json::json!({})).map_err(helped)?;
            moved(answer, arguments.json)
        }
        ClusterCommand::Promote(arguments) => {
            let question =
                "Make this node the primary by force? Acknowledged writes that it does not hold are lost.";
            output::confirm(question, arguments.yes)?;
            let asked = Promote { force: arguments.force };
            let answer = client.post("/api/v1/cluster/promote", &asked).map_err(helped)?;
            let members: ClusterMembers = parse(&answer)?;
            output::note(match members.nodes.len() {
                1 => "this node is the primary, alone: every other one is let in only when it joins anew",
                _ => "this node is the primary; `sinter cluster status` shows who follows it",
            });
            Ok(())
        }
    }
}

/// The members of the cluster.
fn fetch(client: &Client) -> Outcome<(String, ClusterMembers)> {
    let answer = client.get_text(MEMBERS).map_err(helped)?;
    let members = parse(&answer)?;
    Ok((answer, members))
}

/// What helps where it is the same for many commands.
fn helped(failure: Failure) -> Failure {
    match failure.error.kind() {
        ErrorKind::NoQuorum => failure.hint("`sinter cluster status` on each node shows whom it can reach"),
        ErrorKind::Invalid if failure.error.what() == "Clustering is not enabled" => {
            failure.hint("`sinter cluster init` makes this array the first node of a cluster")
        }
        _ => failure,
    }
}

fn init(client: &Client, arguments: Init) -> Outcome {
    let answer = client.post("/api/v1/cluster/init", &InitCluster { listen: arguments.listen })?;
    if arguments.json {
        return output::data(answer + "\n");
    }
    let made: NewCluster = parse(&answer)?;
    let mut text = String::new();
    let _ = writeln!(text, "cluster     {}", made.cluster_id);
    let _ = writeln!(text, "listening   {}", made.listen);
    let _ = writeln!(
        text,
        "\nOn the machine that is to keep the second copy, with ADDR one of its own addresses:"
    );
    let _ = writeln!(text, "  sinter serve --cluster ADDR:PORT --join {}", made.data_token);
    let _ = writeln!(text, "\nOn a third machine, which only votes:");
    let _ = writeln!(text, "  sinter serve --witness --cluster ADDR:PORT --join {}", made.witness_token);
    output::data(text)?;
    output::note("\nEach token is good for one node and one hour; `sinter cluster token` makes more.");
    if made.listen.starts_with("127.") || made.listen.starts_with("[::1]") {
        output::note("Only this machine can reach that address: --listen says another one.");
    }
    Ok(())
}

fn token(client: &Client, arguments: &NewTokenArguments) -> Outcome {
    let role = match (arguments.client, arguments.role) {
        (true, _) | (_, RoleArgument::Client) => TokenRole::Client,
        (_, RoleArgument::Data) => TokenRole::Data,
        (_, RoleArgument::Witness) => TokenRole::Witness,
    };
    let answer = client.post("/api/v1/cluster/tokens", &NewToken { role }).map_err(helped)?;
    if arguments.json {
        return output::data(answer + "\n");
    }
    output::data(parse::<JoinToken>(&answer)?.token + "\n")
}

fn status(client: &Client, flags: &StatusFlags) -> Outcome {
    let (answer, members) = fetch(client)?;
    if flags.json {
        output::data(answer + "\n")?;
        return outcome(&members);
    }
    let mut text = String::new();
    tell(&members.problems, &mut text);
    if !flags.only_trouble {
        if !members.problems.is_empty() {
            text.push('\n');
        }
        describe(&members, &mut text)?;
    }
    output::data(text)?;
    outcome(&members)
}

/// Whether the cluster can serve, and decide.
fn outcome(members: &ClusterMembers) -> Outcome {
    match (members.primary_serves, members.has_quorum) {
        (true, true) => Ok(()),
        (false, _) => Err(Failure::new(ErrorKind::NoQuorum, "there is no primary")),
        (true, false) => Err(Failure::new(ErrorKind::NoQuorum, "there is no quorum")),
    }
}

fn describe(members: &ClusterMembers, text: &mut String) -> Outcome {
    let quorum = if members.has_quorum { "quorum" } else { "no quorum" };
    let primary = members.primary.as_deref().unwrap_or("nobody");
    let not_served = if members.primary_serves { "" } else { " (does not serve)" };
    let _ = writeln!(text, "cluster     {}, {}, {quorum}", members.cluster_id, cluster_state(members.state));
    let _ = writeln!(text, "this node   {}, {}", members.node_id, role(Some(members.role)));
    let _ =
        writeln!(text, "primary     {primary}{not_served}, epoch {}.{}", members.generation, members.epoch);
    let _ = writeln!(text, "in sync     {}", members.in_sync.join(", "));
    let _ = writeln!(text, "voters      {}", members.voters.join(", "));
    if let Some(home) = &members.failback_to {
        let _ = writeln!(text, "failed over from {home}: `sinter cluster failback` leads back");
    }
    text.push('\n');
    *text += &table::render(&members.nodes, COLUMNS, SHOWN, &ListFlags::default())?;
    if !members.failovers.is_empty() {
        let _ = writeln!(text, "\n{} failovers, the last ones:", members.total_failovers);
    }
    for it in members.failovers.iter().rev().take(FAILOVERS_SHOWN) {
        let (old, new, why) = (&it.old_primary, &it.new_primary, reason(it.reason));
        let _ = writeln!(text, "  {}  {old} to {new}, {why}, epoch {}.{}", it.at, it.generation, it.epoch);
    }
    Ok(())
}

fn peers(client: &Client, flags: &ListFlags) -> Outcome {
    let (answer, members) = fetch(client)?;
    if flags.json {
        return output::data(answer + "\n");
    }
    output::data(table::render(&members.nodes, COLUMNS, SHOWN, flags)?)
}

fn moved(answer: String, json: bool) -> Outcome {
    if json {
        return output::data(answer + "\n");
    }
    let moved: FailoverAnswer = parse(&answer)?;
    let (old, new) = (&moved.old_primary, &moved.new_primary);
    output::note(&format!("{new} is the primary in place of {old}, after {:.0} ms", moved.duration_ms));
    Ok(())
}

fn text(value: Option<&String>) -> Cell {
    Cell::Text(value.cloned().unwrap_or_else(|| "-".to_owned()))
}

fn yes_no(value: bool) -> Cell {
    Cell::Text(if value { "yes" } else { "no" }.to_owned())
}

#[expect(clippy::cast_precision_loss, reason = "only for sorting")]
fn number(value: Option<u64>) -> Cell {
    value.map_or_else(|| Cell::Text("-".to_owned()), |value| Cell::Number(value as f64, value.to_string()))
}

#[expect(clippy::cast_precision_loss, reason = "only for sorting")]
fn size(bytes: u64, exact: bool) -> Cell {
    let shown = if exact { bytes.to_string() } else { round_size(ByteCount(bytes)) };
    Cell::Number(bytes as f64, shown)
}

fn role(role: Option<NodeRole>) -> &'static str {
    match role {
        Some(NodeRole::Primary) => "primary",
        Some(NodeRole::Secondary) => "secondary",
        Some(NodeRole::Witness) => "witness",
        None => "-",
    }
}

fn state(state: NodeState) -> &'static str {
    match state {
        NodeState::Healthy => "healthy",
        NodeState::Degraded => "degraded",
        NodeState::Broken => "broken",
        NodeState::Syncing => "syncing",
        NodeState::Joining => "joining",
        NodeState::Unknown => "unknown",
    }
}

/// How a cluster is, in a word.
pub(super) fn cluster_state(state: ClusterState) -> &'static str {
    match state {
        ClusterState::Standalone => "standalone",
        ClusterState::Initializing => "initializing",
        ClusterState::Healthy => "healthy",
        ClusterState::Degraded => "degraded",
        ClusterState::Failed => "failed",
    }
}

fn mode(mode: ReplicationMode) -> &'static str {
    match mode {
        ReplicationMode::Disabled => "-",
        ReplicationMode::Sync => "sync",
        ReplicationMode::Async => "async",
    }
}

fn reason(reason: FailoverReason) -> &'static str {
    match reason {
        FailoverReason::Manual => "handed over",
        FailoverReason::NodeFailure => "the former one was silent",
        FailoverReason::Start => "all had been down",
        FailoverReason::StartWithout => "started without some",
        FailoverReason::Forced => "forced",
    }
}
