//! `sinter import` and `sinter export`: images in and out, over NBD with several requests under way.

use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use clap::builder::NonEmptyStringValueParser;

use crate::api::types::ArrayList;
use crate::api::types::Snapshot;
use crate::api::types::Volume;
use crate::api::types::VolumeState;
use crate::cli::client::Client;
use crate::cli::client::parse;
use crate::cli::client::snapshot_path;
use crate::cli::client::volume_path;
use crate::cli::image::Image;
use crate::cli::image::Sink;
use crate::cli::image::Stretch;
use crate::cli::image::stretches;
use crate::cli::output;
use crate::cli::output::shell_word;
use crate::cli::progress::Progress;
use crate::cli::snapshot;
use crate::cli::snapshot::parse_snapshot;
use crate::cli::volume::with_hint;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::quantity::round_size;
use crate::daemon::quantity::show_size;
use crate::daemon::uri::NbdEndpoint;
use crate::error::ErrorKind;
use crate::export::nbd::client::Address;
use crate::export::nbd::client::Client as NbdClient;
use crate::sync::Condition;
use crate::sync::Mutex;
use crate::units::ByteCount;

/// Requests that are under way at a time.
const DEPTH: usize = 16;

/// Most bytes of one request.
const CHUNK_BYTES: u32 = 1 << 20;

/// How often, and how many times, it is looked whether a volume's clients have gone.
const GONE_INTERVAL: Duration = Duration::from_millis(100);
const GONE_LOOKS: u32 = 10;

/// The stretch of a volume whose holes are asked for at once, in bytes.
const WINDOW_BYTES: u64 = 1 << 30;

/// `sinter import`.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Import {
    /// The image, raw; `-` is standard input
    file: PathBuf,
    /// The volume to fill, by name or id
    #[arg(value_parser = NonEmptyStringValueParser::new())]
    volume: String,
    /// Also while a client is connected to the volume, which would see its data change
    #[arg(long)]
    force: bool,
    /// Do not ask before data in the volume is overwritten
    #[arg(short, long)]
    yes: bool,
}

/// `sinter export`.
#[derive(Debug, Args)]
#[group(skip)]
pub struct Export {
    /// The volume to copy, by name or id, or the snapshot
    #[arg(value_name = "VOLUME[@SNAPSHOT]", value_parser = NonEmptyStringValueParser::new())]
    source: String,
    /// The image, raw; `-` is standard output
    file: PathBuf,
    /// Do not ask before a file is overwritten
    #[arg(short, long)]
    yes: bool,
}

/// Runs `sinter import`. Afterwards the volume holds the image, then zeros.
///
/// # Errors
/// What the array or the operating system said; `Invalid` for an image larger than the volume.
pub fn import(client: &Client, import: Import) -> Outcome {
    let volume = find_volume(client, &import.volume).map_err(|failure| match failure.error.kind() {
        ErrorKind::NotFound if import.volume.contains('@') => {
            failure.hint("a snapshot cannot be written to: name a volume")
        }
        ErrorKind::NotFound => {
            failure.hint(format!("`sinter volume create {} SIZE` makes it", shell_word(&import.volume)))
        }
        _ => failure,
    })?;
    let mut image = Image::open(&import.file).map_err(|failure| file_hint(failure, &import.file))?;
    if let Some(len) = image.len().filter(|len| len.0 > volume.size_bytes) {
        let (has, len) = (show_size(ByteCount(volume.size_bytes)), show_size(len));
        let what = format!("volume {} has {has}, the image {len}", volume.name);
        return Err(Failure::new(ErrorKind::Invalid, what).hint(format!(
            "`sinter volume resize {} {len}` makes it large enough",
            shell_word(&volume.name)
        )));
    }
    let volume = if import.force { volume } else { unused(client, volume)? };
    // An empty volume is zero already.
    let must_zero = volume.used_bytes > 0;
    if must_zero {
        output::confirm(&format!("What volume {} holds will be overwritten.", volume.name), import.yes)?;
    }
    let nbd = connect(client, &volume.name)?;
    let copied = fill(&mut image, nbd, &volume, must_zero).map_err(import_hint)?;
    output::note(&format!("{} read into volume {}", round_size(copied), volume.name));
    Ok(())
}

/// Makes the volume hold the image, then zeros; how long the image was.
fn fill(image: &mut Image, mut nbd: NbdClient, volume: &Volume, must_zero: bool) -> Outcome<ByteCount> {
    let copied = copy_in(image, &mut nbd, volume, must_zero)?;
    if must_zero && copied.0 < volume.size_bytes {
        nbd.write_zeroes(copied.0, ByteCount(volume.size_bytes - copied.0))?;
    }
    nbd.flush()?;
    nbd.disconnect()?;
    Ok(copied)
}

/// What helps where the copy broke off, unless that has been said.
fn import_hint(failure: Failure) -> Failure {
    let hint = match failure.error.kind() {
        _ if failure.hint.is_some() => return failure,
        ErrorKind::NoSpace => {
            "the volume holds a part of the image: `sinter status` shows the space; deletes and trims give some back"
        }
        _ => {
            "the volume holds a part of the image: `sinter status` shows what is wrong with the array, if anything is"
        }
    };
    failure.hint(hint)
}

/// Writes the image to the volume; how long it was.
fn copy_in(image: &mut Image, nbd: &mut NbdClient, volume: &Volume, must_zero: bool) -> Outcome<ByteCount> {
    let mut progress = Progress::bytes("importing", image.len());
    let mut chunk = Vec::with_capacity(CHUNK_BYTES as usize);
    let mut offset = 0u64;
    loop {
        chunk.clear();
        image.take(u64::from(CHUNK_BYTES)).read_to_end(&mut chunk).map_err(|error| image.error(error))?;
        if chunk.is_empty() {
            return Ok(ByteCount(offset));
        }
        let end = offset + chunk.len() as u64;
        if end > volume.size_bytes {
            let has = show_size(ByteCount(volume.size_bytes));
            let what =
                format!("volume {} has {has}, and the image is larger; all of it is filled", volume.name);
            return Err(Failure::new(ErrorKind::Invalid, what).hint(format!(
                "`sinter volume resize {} SIZE` makes it larger; then import again",
                volume.name
            )));
        }
        for (range, stretch) in stretches(&chunk) {
            let at = offset + range.start as u64;
            match stretch {
                Stretch::Data => nbd.write(at, &chunk[range])?,
                Stretch::Zeros if must_zero => nbd.write_zeroes(at, ByteCount(range.len() as u64))?,
                Stretch::Zeros => {}
            }
        }
        offset = end;
        progress.show(offset, None);
    }
}

/// Runs `sinter export`. Where the image is a regular file, holes stay holes.
///
/// # Errors
/// What the array or the operating system said.
pub fn export(client: &Client, export: Export) -> Outcome {
    let (what, name) = find_source(client, &export.source)?;
    if Sink::would_overwrite(&export.file) {
        output::confirm(&format!("What {} holds will be overwritten.", export.file.display()), export.yes)?;
    }
    let mut nbd = connect(client, &name)?;
    let size = nbd.size();
    let mut sink = Sink::create(&export.file, size).map_err(|failure| file_hint(failure, &export.file))?;
    copy_out(&mut nbd, &mut sink, size).map_err(export_hint)?;
    sink.finish().map_err(export_hint)?;
    nbd.disconnect()?;
    if export.file != Path::new("-") {
        output::note(&format!("{} of {what} written to {}", round_size(size), export.file.display()));
    }
    Ok(())
}

/// What helps where the copy broke off.
fn export_hint(failure: Failure) -> Failure {
    match failure.error.kind() {
        ErrorKind::Corrupt => failure.hint(
            "export a snapshot from before the damage; `sinter check`, with the array stopped, shows all of it",
        ),
        ErrorKind::NoSpace => failure.hint("make room where the image goes (`df` shows it), and export again"),
        _ => failure.hint("what has arrived so far is not the whole volume: export again"),
    }
}

/// What helps where a file of the user's cannot be used.
fn file_hint(failure: Failure, file: &Path) -> Failure {
    let directory = file.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let shown = shell_word(&directory.display().to_string());
    failure.hint(match directory.is_dir() {
        true => format!("`ls -la {shown}` shows what is there, and whose it is"),
        false => format!("there is no directory {shown}"),
    })
}

/// Writes the whole volume to the sink, in order.
fn copy_out(nbd: &mut NbdClient, sink: &mut Sink, size: ByteCount) -> Outcome {
    let mut progress = Progress::bytes("exporting", Some(size));
    let mut window = 0u64;
    while window < size.0 {
        let len = ByteCount(WINDOW_BYTES.min(size.0 - window));
        for found in nbd.block_status(window, len)? {
            if found.zero {
                sink.zeros(found.offset, found.len)?;
                progress.show(found.offset + found.len.0, None);
                continue;
            }
            nbd.read_each(found.offset, found.len, CHUNK_BYTES, |offset, data| {
                for (range, stretch) in stretches(data) {
                    let at = offset + range.start as u64;
                    match stretch {
                        Stretch::Data => sink.write(at, &data[range])?,
                        Stretch::Zeros => sink.zeros(at, ByteCount(range.len() as u64))?,
                    }
                }
                progress.show(offset + data.len() as u64, None);
                Ok(())
            })?;
        }
        window += len.0;
    }
    Ok(())
}

/// What is to be exported, in words and as the name of an export.
fn find_source(client: &Client, source: &str) -> Outcome<(String, String)> {
    let Ok(name) = parse_snapshot(source) else {
        let volume = find_volume(client, source)?;
        return Ok((format!("volume {}", volume.name), volume.name));
    };
    let answer = client
        .get_text(&snapshot_path(&name.volume, &name.snapshot))
        .map_err(|failure| snapshot::with_hint(failure, &name))?;
    let found: Snapshot = parse(&answer)?;
    let what = format!("snapshot {}@{}", found.volume_name, found.name);
    Ok((what, format!("{}@{}", found.volume_id, found.id)))
}

/// The volume, if no client is connected to it. One that has just gone is noticed within moments.
fn unused(client: &Client, mut volume: Volume) -> Outcome<Volume> {
    let (still, pause) = (Mutex::new(()), Condition::new());
    for _ in 0..GONE_LOOKS {
        if volume.state == VolumeState::Available {
            return Ok(volume);
        }
        drop(pause.wait_for(still.lock(), GONE_INTERVAL));
        volume = find_volume(client, &volume.id)?;
    }
    let what =
        format!("volume {} is in use: a client is connected, and would see its data change", volume.name);
    Err(Failure::new(ErrorKind::Busy, what).hint("disconnect its clients first, or say --force"))
}

fn find_volume(client: &Client, volume: &str) -> Outcome<Volume> {
    parse(&client.get_text(&volume_path(volume)).map_err(with_hint)?)
}

/// Connects to a volume where the array serves NBD: at the Unix socket where it can be reached from
/// here, else over TCP.
fn connect(client: &Client, volume: &str) -> Outcome<NbdClient> {
    let arrays: ArrayList = parse(&client.get_text("/api/v1/arrays")?)?;
    let endpoints = arrays.arrays.into_iter().next().map(|array| array.endpoints).unwrap_or_default();
    let unix = endpoints.nbd_unix.as_deref().and_then(NbdEndpoint::parse);
    let unix = unix.filter(|endpoint| match endpoint {
        NbdEndpoint::Unix(path) => client.is_local() && path.exists(),
        NbdEndpoint::Tcp(_) => false,
    });
    let tcp = || endpoints.nbd.as_deref().and_then(NbdEndpoint::parse);
    let address = match unix.or_else(tcp).map(|endpoint| client.reachable(endpoint)) {
        Some(NbdEndpoint::Unix(path)) => Address::Unix(path),
        Some(NbdEndpoint::Tcp(address)) => Address::Tcp(address),
        None => {
            let what = "the array serves NBD nowhere that can be reached from here";
            return Err(
                Failure::new(ErrorKind::Unreachable, what).hint("start `sinter serve` with --nbd ADDR:PORT")
            );
        }
    };
    Ok(NbdClient::connect(&address, volume, DEPTH)?)
}
