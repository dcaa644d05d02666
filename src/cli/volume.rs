//! `sinter volume`.

use std::collections::BTreeMap;

use clap::Args;
use clap::Subcommand;
use clap::builder::NonEmptyStringValueParser;

use crate::api::request::SIZE_BYTES_MAX;
use crate::api::types::CloneVolume;
use crate::api::types::CreateVolume;
use crate::api::types::ResizeVolume;
use crate::api::types::UpdateVolume;
use crate::api::types::Volume;
use crate::api::types::VolumeList;
use crate::api::types::VolumeState;
use crate::cli::client::Client;
use crate::cli::client::parse;
use crate::cli::client::volume_path;
use crate::cli::output;
use crate::cli::output::shell_word;
use crate::cli::table;
use crate::cli::table::Cell;
use crate::cli::table::Column;
use crate::cli::table::ListFlags;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::quantity::parse_size;
use crate::daemon::quantity::round_size;
use crate::error::ErrorKind;
use crate::units::ByteCount;

/// What can be done with volumes.
#[derive(Debug, Subcommand)]
pub enum VolumeCommand {
    /// Make a volume; it takes space only as it is written
    Create(Create),
    /// List the volumes; a ratio with ~ is an estimate from the whole pool's
    #[command(visible_alias = "ls")]
    List(ListFlags),
    /// Show one volume; a ratio with ~ is an estimate until it has been measured
    Show(Show),
    /// Change a volume's name, description or tags; its size is changed by `resize`
    Update(Update),
    /// Make a volume larger (never smaller), also while it is in use: clients see it when they connect again
    Resize(Resize),
    /// Make a writable volume that begins as what this one holds now
    Clone(CloneArguments),
    /// Delete a volume; its snapshots and clones stay
    #[command(visible_alias = "rm")]
    Delete(Delete),
}

/// `volume create`.
#[derive(Debug, Args)]
pub struct Create {
    /// Its name: 1 to 255 bytes, no `@`, no `/`, no blank at its beginning or end
    name: String,
    /// Its size, such as 10GiB (also 10G), 10GB or plain bytes
    #[arg(value_parser = volume_size)]
    size: ByteCount,
    /// Free text
    #[arg(long, default_value = "", hide_default_value = true)]
    description: String,
    /// A label; may be given more than once
    #[arg(long = "tag", value_name = "KEY=VALUE", value_parser = tag)]
    tags: Vec<(String, String)>,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `volume show`.
#[derive(Debug, Args)]
pub struct Show {
    /// Its name or id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    volume: String,
    /// Exact bytes instead of rounded sizes
    #[arg(short = 'p')]
    exact: bool,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `volume update`.
#[derive(Debug, Args)]
#[group(skip)]
#[command(group = clap::ArgGroup::new("change").required(true).multiple(true).args(["name", "description", "tags", "no_tags"]))]
pub struct Update {
    /// Its name or id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    volume: String,
    /// The new name
    #[arg(long)]
    name: Option<String>,
    /// The new description
    #[arg(long)]
    description: Option<String>,
    /// A label; may be given more than once, and takes the place of all labels there were
    #[arg(long = "tag", id = "tags", value_name = "KEY=VALUE", value_parser = tag)]
    tags: Vec<(String, String)>,
    /// Take all labels off
    #[arg(long, conflicts_with = "tags")]
    no_tags: bool,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `volume resize`.
#[derive(Debug, Args)]
pub struct Resize {
    /// Its name or id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    volume: String,
    /// The new size as a whole, not what is added: such as 20GiB (also 20G), 20GB or plain bytes
    #[arg(value_parser = volume_size)]
    size: ByteCount,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `volume clone`.
#[derive(Debug, Args)]
pub struct CloneArguments {
    /// Its name or id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    volume: String,
    /// Name of the new volume
    name: String,
    /// Free text [default: what it is a clone of]
    #[arg(long)]
    description: Option<String>,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `volume delete`.
#[derive(Debug, Args)]
pub struct Delete {
    /// Its name or id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    volume: String,
    /// Also while a client is connected, which is cut off then
    #[arg(long)]
    force: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

const COLUMNS: &[Column<Volume>] = &[
    Column { name: "name", cell: |volume, _| Cell::Text(volume.name.clone()) },
    Column { name: "size", cell: |volume, exact| bytes(volume.size_bytes, exact) },
    Column { name: "used", cell: |volume, exact| bytes(volume.used_bytes, exact) },
    Column {
        name: "ratio",
        cell: |volume, exact| {
            // Programs, which ask for exact figures, have `reduction_is_estimate` in the JSON.
            let mark = if volume.reduction_is_estimate && !exact { "~" } else { "" };
            Cell::Number(volume.reduction_ratio, format!("{mark}{:.2}", volume.reduction_ratio))
        },
    },
    Column { name: "state", cell: |volume, _| Cell::Text(state(volume.state).to_owned()) },
    Column { name: "id", cell: |volume, _| Cell::Text(volume.id.clone()) },
    Column { name: "description", cell: |volume, _| Cell::Text(one_line(&volume.description)) },
    Column { name: "tags", cell: |volume, _| Cell::Text(one_line(&tags(&volume.tags))) },
    Column { name: "created", cell: |volume, _| Cell::Text(volume.created_at.clone()) },
    Column { name: "updated", cell: |volume, _| Cell::Text(volume.updated_at.clone()) },
];

const DEFAULT_COLUMNS: &[&str] = &["name", "size", "used", "ratio", "state"];

/// Runs `sinter volume ...`.
///
/// # Errors
/// What the array answered.
pub fn run(client: &Client, command: VolumeCommand) -> Outcome {
    match command {
        VolumeCommand::Create(create) => {
            let body = CreateVolume {
                name: create.name,
                size_bytes: create.size.0,
                description: create.description,
                tags: create.tags.into_iter().collect(),
            };
            let answer = client
                .post("/api/v1/volumes", &body)
                .map_err(|failure| with_hint(taken(failure, &body.name)))?;
            show(&answer, create.json, false)
        }
        VolumeCommand::List(flags) => list(client, &flags),
        VolumeCommand::Show(arguments) => {
            let path = volume_path(&arguments.volume);
            let answer =
                client.get_text(&path).map_err(|failure| no_volume(failure, &arguments.volume, "show"))?;
            show(&answer, arguments.json, arguments.exact)
        }
        VolumeCommand::Update(update) => {
            let tags = (update.no_tags || !update.tags.is_empty()).then(|| update.tags.into_iter().collect());
            let body = UpdateVolume { name: update.name, description: update.description, tags };
            let answer = client.put(&volume_path(&update.volume), &body).map_err(|failure| {
                let name = body.name.as_deref().unwrap_or_default();
                no_volume(taken(failure, name), &update.volume, "update")
            })?;
            show(&answer, update.json, false)
        }
        VolumeCommand::Resize(resize) => {
            let path = format!("{}/resize", volume_path(&resize.volume));
            let body = ResizeVolume { size_bytes: resize.size.0 };
            let answer = client.post(&path, &body).map_err(|failure| {
                no_volume(not_larger(failure, &resize.volume), &resize.volume, "resize")
            })?;
            show(&answer, resize.json, false)
        }
        VolumeCommand::Clone(clone) => {
            let path = format!("{}/clone", volume_path(&clone.volume));
            let body = CloneVolume { name: clone.name, description: clone.description };
            let answer = client
                .post(&path, &body)
                .map_err(|failure| no_volume(taken(failure, &body.name), &clone.volume, "clone"))?;
            show(&answer, clone.json, false)
        }
        VolumeCommand::Delete(delete) => {
            let hint = |failure| no_volume(failure, &delete.volume, "delete");
            if !delete.yes {
                // Nobody is asked about what does not exist.
                client.get_text(&volume_path(&delete.volume)).map_err(hint)?;
            }
            let question = format!("Volume {} and what it holds now will be lost.", delete.volume);
            output::confirm(&question, delete.yes)?;
            let force = if delete.force { "?force=true" } else { "" };
            client.delete(&format!("{}{force}", volume_path(&delete.volume))).map_err(hint)
        }
    }
}

/// The command that helps, by what went wrong.
pub fn with_hint(failure: Failure) -> Failure {
    let hint = match failure.error.kind() {
        ErrorKind::NotFound => "`sinter volume list` shows the volumes there are",
        ErrorKind::Exists => "choose another name: `sinter volume list` shows those that are taken",
        ErrorKind::Busy => "disconnect its clients first, or say --force",
        ErrorKind::NoSpace => "`sinter status` shows the space; deletes and trims give some back",
        ErrorKind::Stopped | ErrorKind::ReadOnly => "`sinter status` says why the array takes no writes",
        _ => return failure,
    };
    if failure.hint.is_some() { failure } else { failure.hint(hint) }
}

/// The command that helps where the volume that was to be made exists already, and no hint for anything else.
pub fn taken(failure: Failure, name: &str) -> Failure {
    if failure.error.kind() != ErrorKind::Exists || name.is_empty() {
        return failure;
    }
    failure.hint(format!("choose another name; `sinter volume show {}` shows that one", shell_word(name)))
}

/// The command that helps where a volume was to get a size that is not larger than the one it has.
fn not_larger(failure: Failure, volume: &str) -> Failure {
    if failure.error.kind() != ErrorKind::Invalid {
        return failure;
    }
    let volume = shell_word(volume);
    failure.hint(format!("`sinter volume show {volume}` shows its size: a volume can only be made larger"))
}

/// As [`with_hint`], where `verb` was to do something with this volume: a snapshot has verbs of its own.
fn no_volume(failure: Failure, volume: &str, verb: &str) -> Failure {
    if failure.error.kind() != ErrorKind::NotFound || !volume.contains('@') {
        return with_hint(failure);
    }
    let word = shell_word(volume);
    failure.hint(match verb {
        "show" | "delete" => format!("that is how a snapshot is written: `sinter snapshot {verb} {word}`"),
        "clone" => format!("that is how a snapshot is written: `sinter snapshot clone {word} NAME`"),
        _ => {
            format!("a snapshot cannot be changed; `sinter snapshot clone {word} NAME` makes a volume of it")
        }
    })
}

fn list(client: &Client, flags: &ListFlags) -> Outcome {
    let answer = client.get_text("/api/v1/volumes")?;
    if flags.json {
        return output::data(answer + "\n");
    }
    let volumes = parse::<VolumeList>(&answer)?.volumes;
    output::data(table::render(&volumes, COLUMNS, DEFAULT_COLUMNS, flags)?)?;
    if volumes.is_empty() {
        output::note("no volumes yet; `sinter volume create NAME SIZE` makes one");
    }
    Ok(())
}

/// Prints one volume.
///
/// # Errors
/// `Unreachable` for what is no volume.
pub fn show(answer: &str, json: bool, exact: bool) -> Outcome {
    if json {
        return output::data(format!("{answer}\n"));
    }
    output::data(table::describe(&parse::<Volume>(answer)?, COLUMNS, exact))
}

pub(super) fn bytes(value: u64, exact: bool) -> Cell {
    #[expect(clippy::cast_precision_loss, reason = "only for sorting")]
    let key = value as f64;
    Cell::Number(key, if exact { value.to_string() } else { round_size(ByteCount(value)) })
}

pub(super) fn state(state: VolumeState) -> &'static str {
    match state {
        VolumeState::Available => "available",
        VolumeState::InUse => "in_use",
    }
}

pub(super) fn tags(tags: &BTreeMap<String, String>) -> String {
    tags.iter().map(|(key, value)| format!("{key}={value}")).collect::<Vec<_>>().join(",")
}

/// Text of clients, made safe for a table and a terminal.
pub(super) fn one_line(text: &str) -> String {
    text.chars().map(|c| if c.is_control() { ' ' } else { c }).collect()
}

/// Reads the size of a volume.
fn volume_size(text: &str) -> Result<ByteCount, String> {
    let size = parse_size(text)?;
    // The array says the rest: this one would speak of a field that nobody has typed.
    if (1..=SIZE_BYTES_MAX).contains(&size.0) {
        return Ok(size);
    }
    Err("a volume has a size above 0 and at most 256 TiB".to_owned())
}

pub(super) fn tag(text: &str) -> Result<(String, String), String> {
    let (key, value) = text.split_once('=').ok_or("a label is written KEY=VALUE")?;
    Ok((key.to_owned(), value.to_owned()))
}
