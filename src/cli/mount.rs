//! `sinter mount` and `sinter umount`.

use std::path::Path;
use std::path::PathBuf;

use clap::Args;

use crate::api::types::CreateMount;
use crate::api::types::Mount;
use crate::api::types::MountList;
use crate::api::types::MountState;
use crate::cli::client::Client;
use crate::cli::client::mount_path;
use crate::cli::client::parse;
use crate::cli::output;
use crate::cli::output::shell_word;
use crate::cli::table;
use crate::cli::table::Cell;
use crate::cli::table::Column;
use crate::cli::table::ListFlags;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::error::Error;
use crate::error::ErrorKind;
use crate::export::fuse::host;

/// `sinter mount`.
#[derive(Debug, Args)]
pub struct MountCommand {
    /// An empty directory: volumes/NAME and snapshots/VOLUME/SNAPSHOT appear in it; without one, all mounts are
    /// listed
    mountpoint: Option<PathBuf>,
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// `sinter umount`.
#[derive(Debug, Args)]
pub struct UmountCommand {
    /// The directory
    mountpoint: PathBuf,
    /// Hide it at once, also while files are open in it; it ends with the last of them
    #[arg(long, short = 'l')]
    lazy: bool,
}

const COLUMNS: &[Column<Mount>] = &[
    Column { name: "mountpoint", cell: |it, _| Cell::Text(it.mountpoint.clone()) },
    Column { name: "state", cell: |it, _| Cell::Text(state(it.state).to_owned()) },
    #[expect(clippy::cast_precision_loss, reason = "only for sorting")]
    Column {
        name: "open_files",
        cell: |it, _| Cell::Number(it.open_files as f64, it.open_files.to_string()),
    },
];

fn state(state: MountState) -> &'static str {
    match state {
        MountState::Mounted => "mounted",
        MountState::Detached => "detached",
    }
}

/// Lists the array's mounts.
fn list(client: &Client, json: bool) -> Outcome {
    let answer = client.get_text("/api/v1/mounts")?;
    if json {
        return output::data(answer + "\n");
    }
    let mounts = parse::<MountList>(&answer)?.mounts;
    let all: Vec<&str> = COLUMNS.iter().map(|column| column.name).collect();
    output::data(table::render(&mounts, COLUMNS, &all, &ListFlags::default())?)?;
    if mounts.is_empty() {
        output::note("no mounts yet; `sinter mount DIR` makes one");
    }
    Ok(())
}

/// Has the array mounted on a directory of this machine; without a directory, lists its mounts.
///
/// # Errors
/// `Invalid` for an array on another machine; what the array answered.
pub fn mount(client: &Client, command: MountCommand) -> Outcome {
    let Some(wanted) = command.mountpoint else { return list(client, command.json) };
    let point = wanted.canonicalize().map_err(|error| {
        let shown = wanted.display();
        let kind = match error.kind() {
            std::io::ErrorKind::NotFound => ErrorKind::NotFound,
            std::io::ErrorKind::NotConnected => ErrorKind::Busy,
            _ => ErrorKind::Invalid,
        };
        let failure = Failure::from(Error::caused(kind, format!("{shown} cannot be mounted on"), error));
        match kind {
            ErrorKind::NotFound => failure.hint(format!("mkdir {shown}")),
            ErrorKind::Busy => {
                failure.hint(format!("sinter umount {shown} takes away what a dead array left"))
            }
            _ => failure.hint("give an empty directory"),
        }
    })?;
    check_local(client)?;
    let body = CreateMount { mountpoint: text(&point)?.to_owned() };
    let answer = client.post("/api/v1/mounts", &body).map_err(|failure| match failure.error.kind() {
        ErrorKind::Busy => {
            let shown = shell_word(&point.display().to_string());
            failure.hint(format!("give an empty directory; `sinter umount {shown}` takes a mount away"))
        }
        ErrorKind::Invalid => failure.hint("give an empty directory"),
        ErrorKind::Unsupported => failure.hint("is /dev/fuse there? `modprobe fuse` loads it"),
        _ => failure,
    })?;
    if command.json {
        return output::data(answer);
    }
    let mount: Mount = parse(&answer)?;
    output::note(&format!("volumes are files in {}/volumes", mount.mountpoint));
    Ok(())
}

/// Takes a mount away: asks the array that made it, or cleans up after one that died.
///
/// # Errors
/// `NotFound` for what is no mount of Sinter; `Busy` while it is in use; what the array answered.
pub fn umount(client: &Client, command: &UmountCommand) -> Outcome {
    let point = absolute(&command.mountpoint)?;
    check_local(client)?;
    let path = format!("{}{}", mount_path(text(&point)?), if command.lazy { "?lazy=true" } else { "" });
    let Err(failure) = client.delete(&path) else { return Ok(()) };
    match failure.error.kind() {
        ErrorKind::Busy => {
            Err(failure.hint("close what uses it first (`fuser -vm DIR` shows who), or say --lazy"))
        }
        ErrorKind::NotFound | ErrorKind::Unreachable => clean_up(&point, failure),
        _ => Err(failure),
    }
}

/// Takes a mount away that nobody serves any more; `failure` is why the array could not do it.
fn clean_up(point: &Path, failure: Failure) -> Outcome {
    let shown = point.display();
    // The host knows all mounts of this machine, whether the array answers or not.
    let Some(mount) = host::mount_at(point)? else {
        return Err(Failure::new(ErrorKind::NotFound, format!("{shown} is not a mount of Sinter"))
            .hint("`sinter mount` lists the array's mounts"));
    };
    if !host::is_dead(point) {
        if failure.error.kind() == ErrorKind::Unreachable {
            return Err(failure);
        }
        let what = format!("{shown} is served by another array (pool {})", mount.pool);
        return Err(Failure::new(ErrorKind::Busy, what).hint("--url or SINTER_URL says where that one is"));
    }
    host::unmount(point, true)?;
    output::note(&format!("{shown} was left behind by an array that is gone; it is taken away"));
    Ok(())
}

fn check_local(client: &Client) -> Outcome {
    if client.is_local() {
        return Ok(());
    }
    Err(Failure::new(
        ErrorKind::Invalid,
        "the array is on another machine: it mounts on directories of its own",
    )
    .hint("run `sinter mount` there, or use NBD from here"))
}

/// The path without looking at what it leads to: a mount that nobody serves cannot be looked at.
fn absolute(point: &Path) -> Outcome<PathBuf> {
    let failed = |error| Error::caused(ErrorKind::Invalid, format!("{} is no path", point.display()), error);
    let absolute = std::path::absolute(point).map_err(failed)?;
    let (Some(parent), Some(name)) = (absolute.parent(), absolute.file_name()) else { return Ok(absolute) };
    let joined = parent.canonicalize().map(|parent| parent.join(name));
    let joined = joined.unwrap_or_else(|_| absolute.clone());
    // A symbolic link to a mount is taken for the mount.
    Ok(joined.canonicalize().unwrap_or(joined))
}

fn text(path: &Path) -> Outcome<&str> {
    path.to_str().ok_or_else(|| {
        Failure::new(ErrorKind::Invalid, format!("{} is not UTF-8, and cannot be sent", path.display()))
    })
}
