//! `sinter snapshot`.

use std::time::Duration;

use clap::Args;
use clap::Subcommand;

use crate::api::types::ChangedRange;
use crate::api::types::CloneVolume;
use crate::api::types::CreateSnapshot;
use crate::api::types::CreateSnapshotGroup;
use crate::api::types::RangeKind;
use crate::api::types::RestoreSnapshot;
use crate::api::types::Snapshot;
use crate::api::types::SnapshotDiff;
use crate::api::types::SnapshotGroup;
use crate::api::types::SnapshotList;
use crate::api::types::Volume;
use crate::cli::client::Client;
use crate::cli::client::parse;
use crate::cli::client::snapshot_path;
use crate::cli::client::volume_path;
use crate::cli::output;
use crate::cli::output::shell_word;
use crate::cli::table;
use crate::cli::table::Cell;
use crate::cli::table::Column;
use crate::cli::table::ListFlags;
use crate::cli::volume;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::quantity::round_size;
use crate::daemon::uri::encode;
use crate::error::ErrorKind;
use crate::sync::Condition;
use crate::sync::Mutex;
use crate::units::ByteCount;

/// How often it is looked whether what a snapshot holds alone has been counted, and how many times.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
const LOOKS_MAX: u32 = 15;

/// What can be done with snapshots.
#[derive(Debug, Subcommand)]
pub enum SnapshotCommand {
    /// Take a snapshot; of several volumes at one moment, if several are given
    Create(Create),
    /// List the snapshots
    #[command(visible_alias = "ls")]
    List(List),
    /// Show one snapshot, and how much space deleting it would free
    Show(Show),
    /// Make a writable volume that begins as the snapshot
    Clone(CloneArguments),
    /// Make a new volume of the snapshot or, with --onto, put it in place of what a volume holds
    Restore(Restore),
    /// List what has changed since a snapshot
    Diff(Diff),
    /// Delete a snapshot; its space comes back in the background
    #[command(visible_alias = "rm")]
    Delete(Delete),
}

/// A snapshot as it is written on the command line.
#[derive(Clone, Debug)]
pub struct SnapshotName {
    /// Name or id of the volume.
    pub volume: String,
    /// Name or id of the snapshot.
    pub snapshot: String,
}

/// Reads `VOLUME@SNAPSHOT`.
///
/// # Errors
/// A sentence for what is something else.
pub fn parse_snapshot(text: &str) -> Result<SnapshotName, String> {
    match text.split_once('@') {
        Some((volume, snapshot)) if !volume.is_empty() && !snapshot.is_empty() => {
            Ok(SnapshotName { volume: volume.to_owned(), snapshot: snapshot.to_owned() })
        }
        _ => Err("a snapshot is written VOLUME@SNAPSHOT".to_owned()),
    }
}

impl SnapshotName {
    fn path(&self) -> String {
        snapshot_path(&self.volume, &self.snapshot)
    }
}

/// `snapshot create`.
#[derive(Debug, Args)]
pub struct Create {
    /// The volumes, each as VOLUME or as VOLUME@SNAPSHOT with one and the same name for the snapshots; without one
    /// they are named by volume and time
    #[arg(required = true, value_name = "VOLUME[@SNAPSHOT]")]
    volumes: Vec<String>,
    /// Free text
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// A label; may be given more than once
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = volume::tag)]
    tags: Vec<(String, String)>,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `snapshot list`.
#[derive(Debug, Args)]
pub struct List {
    /// Only those of this volume, by name or id
    volume: Option<String>,
    #[command(flatten)]
    flags: ListFlags,
}

/// `snapshot show`.
#[derive(Debug, Args)]
pub struct Show {
    /// The snapshot
    #[arg(value_name = "VOLUME@SNAPSHOT", value_parser = parse_snapshot)]
    snapshot: SnapshotName,
    /// Exact bytes instead of rounded sizes
    #[arg(short = 'p')]
    exact: bool,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `snapshot clone`.
#[derive(Debug, Args)]
pub struct CloneArguments {
    /// The snapshot
    #[arg(value_name = "VOLUME@SNAPSHOT", value_parser = parse_snapshot)]
    snapshot: SnapshotName,
    /// Name of the new volume
    name: String,
    /// Free text [default: what it is a clone of]
    #[arg(long)]
    description: Option<String>,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `snapshot restore`.
#[derive(Debug, Args)]
pub struct Restore {
    /// The snapshot
    #[arg(value_name = "VOLUME@SNAPSHOT", value_parser = parse_snapshot)]
    snapshot: SnapshotName,
    /// The volume whose data is replaced, by name or id; it grows if the snapshot is larger. Without it a new
    /// volume is made
    #[arg(long, value_name = "VOLUME")]
    onto: Option<String>,
    /// Name of the new volume [default: the old one's name and -restored]
    #[arg(long, conflicts_with = "onto")]
    name: Option<String>,
    /// Also while a client is connected to the volume
    #[arg(long, requires = "onto")]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `snapshot diff`.
#[derive(Debug, Args)]
pub struct Diff {
    /// The older snapshot
    #[arg(value_name = "VOLUME@SNAPSHOT", value_parser = parse_snapshot)]
    snapshot: SnapshotName,
    /// What it is compared with, also of another volume [default: its volume as it is now]
    #[arg(value_name = "VOLUME[@SNAPSHOT]")]
    to: Option<String>,
    #[command(flatten)]
    flags: ListFlags,
}

/// `snapshot delete`.
#[derive(Debug, Args)]
pub struct Delete {
    /// The snapshot
    #[arg(value_name = "VOLUME@SNAPSHOT", value_parser = parse_snapshot)]
    snapshot: SnapshotName,
    /// Also while a client is connected, which is cut off then
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

const COLUMNS: &[Column<Snapshot>] = &[
    Column { name: "name", cell: |it, _| Cell::Text(format!("{}@{}", it.volume_name, it.name)) },
    Column { name: "size", cell: |it, exact| volume::bytes(it.size_bytes, exact) },
    Column { name: "used", cell: |it, exact| volume::bytes(it.used_bytes, exact) },
    Column {
        name: "reclaimable",
        cell: |it, exact| match it.reclaimable_bytes {
            Some(bytes) => volume::bytes(bytes, exact),
            None => Cell::Number(-1.0, "-".to_owned()),
        },
    },
    Column { name: "created", cell: |it, _| Cell::Text(it.created_at.clone()) },
    Column { name: "state", cell: |it, _| Cell::Text(volume::state(it.state).to_owned()) },
    Column { name: "snapshot", cell: |it, _| Cell::Text(it.name.clone()) },
    Column { name: "volume", cell: |it, _| Cell::Text(it.volume_name.clone()) },
    Column {
        name: "deleted",
        cell: |it, _| Cell::Text(if it.volume_is_deleted { "yes" } else { "no" }.to_owned()),
    },
    Column { name: "id", cell: |it, _| Cell::Text(it.id.clone()) },
    Column { name: "volume_id", cell: |it, _| Cell::Text(it.volume_id.clone()) },
    Column { name: "description", cell: |it, _| Cell::Text(volume::one_line(&it.description)) },
    Column { name: "tags", cell: |it, _| Cell::Text(volume::one_line(&volume::tags(&it.tags))) },
];

const DEFAULT_COLUMNS: &[&str] = &["name", "size", "used", "created", "state"];

const DIFF_COLUMNS: &[Column<ChangedRange>] = &[
    Column { name: "offset", cell: |it, _| volume::bytes(it.offset, true) },
    Column { name: "length", cell: |it, exact| volume::bytes(it.length, exact) },
    Column { name: "kind", cell: |it, _| Cell::Text(range_kind(it.kind).to_owned()) },
];

const DEFAULT_DIFF_COLUMNS: &[&str] = &["offset", "length", "kind"];

/// Runs `sinter snapshot ...`.
///
/// # Errors
/// What the array answered.
pub fn run(client: &Client, command: SnapshotCommand) -> Outcome {
    match command {
        SnapshotCommand::Create(create) => take(client, create),
        SnapshotCommand::List(arguments) => list(client, &arguments),
        SnapshotCommand::Show(arguments) => {
            let answer = measured(client, &arguments.snapshot)?;
            if arguments.json {
                return output::data(answer + "\n");
            }
            output::data(table::describe(&parse::<Snapshot>(&answer)?, COLUMNS, arguments.exact))
        }
        SnapshotCommand::Clone(arguments) => {
            let body = CloneVolume { name: arguments.name, description: arguments.description };
            let path = format!("{}/clone", arguments.snapshot.path());
            let answer = client
                .post(&path, &body)
                .map_err(|failure| with_hint(volume::taken(failure, &body.name), &arguments.snapshot))?;
            volume::show(&answer, arguments.json, false)
        }
        SnapshotCommand::Restore(arguments) => restore(client, arguments),
        SnapshotCommand::Diff(arguments) => diff(client, &arguments),
        SnapshotCommand::Delete(arguments) => {
            let SnapshotName { volume, snapshot } = &arguments.snapshot;
            if !arguments.yes {
                // Nobody is asked about what does not exist.
                client
                    .get_text(&arguments.snapshot.path())
                    .map_err(|failure| with_hint(failure, &arguments.snapshot))?;
            }
            output::confirm(&format!("Snapshot {volume}@{snapshot} will be lost."), arguments.yes)?;
            let force = if arguments.force { "?force=true" } else { "" };
            client
                .delete(&format!("{}{force}", arguments.snapshot.path()))
                .map_err(|failure| with_hint(failure, &arguments.snapshot))
        }
    }
}

/// The snapshot with what deleting it would free, where that is known soon.
fn measured(client: &Client, snapshot: &SnapshotName) -> Outcome<String> {
    let (still, pause) = (Mutex::new(()), Condition::new());
    let mut looks = 0;
    loop {
        let answer = client.get_text(&snapshot.path()).map_err(|failure| with_hint(failure, snapshot))?;
        looks += 1;
        if looks == LOOKS_MAX || parse::<Snapshot>(&answer)?.reclaimable_bytes.is_some() {
            return Ok(answer);
        }
        drop(pause.wait_for(still.lock(), LOOK_INTERVAL));
    }
}

/// The command that helps, by what went wrong with this snapshot.
pub fn with_hint(failure: Failure, name: &SnapshotName) -> Failure {
    if failure.error.kind() != ErrorKind::NotFound || failure.hint.is_some() {
        return volume::with_hint(failure);
    }
    let SnapshotName { volume, snapshot } = name;
    // The array is asked for a snapshot of a volume, and so names only the one of both that it misses.
    if failure.error.what() == format!("Snapshot {snapshot} not found") {
        return Failure::new(ErrorKind::NotFound, format!("Snapshot {volume}@{snapshot} not found"))
            .hint(format!("`sinter snapshot list {}` shows the snapshots there are", shell_word(volume)));
    }
    if failure.error.what() == format!("Volume {volume} not found") {
        return failure.hint("`sinter volume list` shows the volumes, `sinter snapshot list` all snapshots");
    }
    volume::with_hint(failure)
}

/// As `with_hint`, where a snapshot was to be taken: the name that is taken is a snapshot's.
fn not_taken(failure: Failure) -> Failure {
    match failure.error.kind() {
        ErrorKind::Exists => {
            failure.hint("choose another name: `sinter snapshot list VOLUME` shows those that are taken")
        }
        _ => volume::with_hint(failure),
    }
}

/// Takes one snapshot, or one of each volume at the same moment.
fn take(client: &Client, create: Create) -> Outcome {
    let mut volumes = Vec::with_capacity(create.volumes.len());
    let mut names = Vec::with_capacity(create.volumes.len());
    for text in &create.volumes {
        let (volume, name) = match text.split_once('@') {
            Some((volume, name)) => (volume, Some(name.to_owned())),
            None => (text.as_str(), None),
        };
        volumes.push(volume.to_owned());
        names.push(name);
    }
    let name = names.first().cloned().flatten();
    if names.iter().any(|other| *other != name) {
        let what = "snapshots that are taken at one moment have one name";
        return Err(Failure::new(ErrorKind::Invalid, what)
            .hint("write sinter snapshot create ONE@NAME TWO@NAME, or no names at all"));
    }
    let snapshot =
        CreateSnapshot { name, description: create.description, tags: create.tags.into_iter().collect() };
    if let [volume] = volumes.as_slice() {
        let answer =
            client.post(&format!("{}/snapshots", volume_path(volume)), &snapshot).map_err(not_taken)?;
        if create.json {
            return output::data(answer + "\n");
        }
        return output::data(table::describe(&parse::<Snapshot>(&answer)?, COLUMNS, false));
    }
    let body = CreateSnapshotGroup { volumes, snapshot };
    let answer = client.post("/api/v1/snapshots", &body).map_err(not_taken)?;
    if create.json {
        return output::data(answer + "\n");
    }
    let made = parse::<SnapshotGroup>(&answer)?.snapshots;
    output::data(table::render(&made, COLUMNS, DEFAULT_COLUMNS, &ListFlags::default())?)
}

fn list(client: &Client, arguments: &List) -> Outcome {
    let path = match &arguments.volume {
        Some(volume) => format!("{}/snapshots", volume_path(volume)),
        None => "/api/v1/snapshots".to_owned(),
    };
    let answer = client.get_text(&path).map_err(volume::with_hint)?;
    if arguments.flags.json {
        return output::data(answer + "\n");
    }
    let snapshots = parse::<SnapshotList>(&answer)?.snapshots;
    output::data(table::render(&snapshots, COLUMNS, DEFAULT_COLUMNS, &arguments.flags)?)?;
    if snapshots.is_empty() {
        output::note("no snapshots yet; `sinter snapshot create VOLUME@NAME` takes one");
    }
    Ok(())
}

fn restore(client: &Client, arguments: Restore) -> Outcome {
    let growth = match &arguments.onto {
        Some(target) => confirm_restore(client, &arguments, target)?,
        None => None,
    };
    let force = if arguments.force { "?force=true" } else { "" };
    let path = format!("{}/restore{force}", arguments.snapshot.path());
    let new_name = arguments.name.clone().unwrap_or_default();
    let body = RestoreSnapshot { target_volume_id: arguments.onto, name: arguments.name };
    let answer = client
        .post(&path, &body)
        .map_err(|failure| with_hint(volume::taken(failure, &new_name), &arguments.snapshot))?;
    if let Some(growth) = growth.filter(|_| arguments.yes) {
        output::note(&growth);
    }
    volume::show(&answer, arguments.json, false)
}

/// Asks before a volume's data is replaced. Where the volume grows by it, the sentence that says so.
fn confirm_restore(client: &Client, arguments: &Restore, target: &str) -> Outcome<Option<String>> {
    // Nobody is asked about what does not exist.
    let name = &arguments.snapshot;
    let answer = client.get_text(&name.path()).map_err(|failure| with_hint(failure, name))?;
    let snapshot: Snapshot = parse(&answer)?;
    let answer = client.get_text(&volume_path(target)).map_err(volume::with_hint)?;
    let target: Volume = parse(&answer)?;
    let growth = (snapshot.size_bytes > target.size_bytes).then(|| {
        let [from, to] = [target.size_bytes, snapshot.size_bytes].map(|bytes| round_size(ByteCount(bytes)));
        format!("Volume {} grows from {from} to {to}, the size of the snapshot.", target.name)
    });
    let mut question = format!("What volume {} holds will be lost.", target.name);
    if let Some(growth) = &growth {
        question.push_str(&format!(" {growth}"));
    }
    output::confirm(&question, arguments.yes)?;
    Ok(growth)
}

/// Asks for the whole difference, answer by answer.
fn diff(client: &Client, arguments: &Diff) -> Outcome {
    let to =
        arguments.to.as_ref().map(|to| format!("&to={}", encode(to.as_bytes(), b"-._~"))).unwrap_or_default();
    let mut whole: Option<SnapshotDiff> = None;
    let mut next = Some(0);
    while let Some(offset) = next {
        let path = format!("{}/diff?offset={offset}{to}", arguments.snapshot.path());
        let answer = client.get_text(&path).map_err(|failure| with_hint(failure, &arguments.snapshot))?;
        let part: SnapshotDiff = parse(&answer)?;
        next = part.next_offset;
        match &mut whole {
            Some(whole) => whole.ranges.extend(part.ranges),
            None => whole = Some(SnapshotDiff { next_offset: None, ..part }),
        }
    }
    let Some(whole) = whole else { return Ok(()) };
    if arguments.flags.json {
        let text = serde_json::to_string(&whole)
            .map_err(|error| Failure::new(ErrorKind::Invalid, format!("showing the difference: {error}")))?;
        return output::data(text + "\n");
    }
    output::data(table::render(&whole.ranges, DIFF_COLUMNS, DEFAULT_DIFF_COLUMNS, &arguments.flags)?)
}

fn range_kind(kind: RangeKind) -> &'static str {
    match kind {
        RangeKind::Data => "data",
        RangeKind::Hole => "hole",
        RangeKind::Pattern => "pattern",
    }
}
