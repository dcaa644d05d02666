//! `sinter serve`.

use std::fmt::Write as _;
use std::path::PathBuf;

use clap::Args;

use crate::cli::client::DEFAULT_URL;
use crate::cli::output;
use crate::cli::output::shell_word;
use crate::daemon;
use crate::daemon::ServeOptions;
use crate::daemon::Serving;
use crate::daemon::config;
use crate::daemon::config::Config;
use crate::daemon::config::Flag;
use crate::daemon::config::Given;
use crate::daemon::failure::Outcome;
use crate::daemon::pool;
use crate::daemon::pool::OtherContent;
use crate::daemon::quantity::parse_size;
use crate::daemon::quantity::round_size;
use crate::units::ByteCount;

/// Most volumes whose addresses are printed at the start.
const VOLUMES_SHOWN: usize = 16;

/// `sinter serve`.
#[derive(Debug, Args)]
pub struct Serve {
    /// Configuration file [default: sinter/sinter.toml in ~/.config or /etc]
    #[arg(long, value_name = "FILE")]
    config: Option<PathBuf>,
    /// Where the pool file and the state are kept [default: ~/.local/share/sinter]
    #[arg(long, value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// A file or block device of the pool, the same ones at every start; with a size the file is made if it is
    /// missing. May be given more than once
    #[arg(long = "device", value_name = "PATH[,size=16GiB]")]
    devices: Vec<String>,
    /// Take over devices that hold something else: all they hold is lost
    #[arg(long)]
    force: bool,
    /// Open a damaged pool at its last intact operation, giving up what came later
    #[arg(long)]
    accept_loss: bool,
    /// Address of REST and metrics [default: 127.0.0.1:8000]
    #[arg(long, value_name = "ADDR:PORT", overrides_with = "api")]
    api: Option<String>,
    /// Address of NBD, or none [default: 127.0.0.1:10809]
    #[arg(long, value_name = "ADDR:PORT", overrides_with = "nbd")]
    nbd: Option<String>,
    /// Unix socket of NBD, or none [default: nbd.sock in the data directory]
    #[arg(long, value_name = "PATH")]
    nbd_unix: Option<String>,
    /// Mount the volumes as files on this empty directory
    #[arg(long, value_name = "DIR")]
    fuse: Option<String>,
    /// Serve addresses that are not loopback: whoever reaches them can read and delete everything
    #[arg(long)]
    insecure_open: bool,
    /// A volume that is made if it is missing, and left as it is if not. May be given more than once
    #[arg(long = "volume", value_name = "NAME:SIZE", value_parser = volume)]
    volumes: Vec<(String, ByteCount)>,
    /// Address where other nodes of a cluster reach this one; it takes nothing without a certificate
    #[arg(long, value_name = "ADDR:PORT")]
    cluster: Option<String>,
    /// Join the cluster that made this token (`sinter cluster token`); @FILE reads it from a file. A node that has
    /// joined needs it no more
    #[arg(long, value_name = "TOKEN", env = "SINTER_JOIN", hide_env_values = true)]
    join: Option<String>,
    /// Joining, give up what the pool here holds
    #[arg(long)]
    discard_local_data: bool,
    /// Serve a pool alone that belongs to a cluster, with what it holds: for a node whose data directory is lost
    #[arg(long, conflicts_with_all = ["join", "witness"])]
    forget_cluster: bool,
    /// Take part in the decisions of a cluster, and keep no data
    #[arg(long)]
    witness: bool,
    /// Print the configuration in force, and stop
    #[arg(long)]
    print_config: bool,
}

/// Runs the array until it is told to stop.
///
/// # Errors
/// A start that was refused, or an array that could not be closed.
pub fn run(serve: Serve) -> Outcome {
    let variable = |name: &str| std::env::var(name).ok();
    let file = serve.config.or_else(|| config::default_file(variable));
    let environment = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)));
    let mut flags: Vec<Flag> = Vec::new();
    if !serve.devices.is_empty() {
        flags.push(("pool.devices", Given::List(serve.devices)));
    }
    for (key, value) in [
        ("api.listen", serve.api),
        ("nbd.listen", serve.nbd),
        ("nbd.unix", serve.nbd_unix),
        ("fuse.mountpoint", serve.fuse),
        ("cluster.listen", serve.cluster),
    ] {
        flags.extend(value.map(|value| (key, Given::One(value))));
    }
    let config = Config::load(file.as_deref(), environment, flags)?;
    let data_directory = match serve.data_dir {
        Some(path) => path,
        None => pool::default_data_directory(variable)?,
    };
    if serve.print_config {
        daemon::check_configuration(&config, serve.insecure_open)?;
        return output::data(daemon::resolved(config, &data_directory).print());
    }
    let options = ServeOptions {
        config,
        data_directory,
        other_content: if serve.force { OtherContent::Overwrite } else { OtherContent::Refuse },
        accept_loss: serve.accept_loss,
        insecure_open: serve.insecure_open,
        volumes: serve.volumes,
        join: serve.join,
        discard_local_data: serve.discard_local_data,
        forget_cluster: serve.forget_cluster,
        witness: serve.witness,
    };
    daemon::serve(options, |serving| output::announce(&announcement(serving)))
}

/// What is served, and what to type next.
fn announcement(serving: &Serving) -> String {
    let mut text = String::new();
    let paths: Vec<String> = serving.pool_paths.iter().map(|path| path.display().to_string()).collect();
    let new = if serving.pool_is_new { ", new" } else { "" };
    let _ = writeln!(
        text,
        "Sinter {} serves array {} from {} ({}{new})",
        env!("CARGO_PKG_VERSION"),
        serving.name,
        paths.join(", "),
        round_size(serving.capacity)
    );
    if !serving.takes_writes {
        text.push_str("  READ-ONLY, because it is damaged: the newest writes may be missing. `sinter status -x` says what\n");
        text.push_str("  is lost; `sinter serve --accept-loss` goes on without it\n");
    }
    let url = format!("http://{}", serving.rest);
    let _ = writeln!(text, "  REST  {url}");
    for endpoint in &serving.nbd {
        let _ = writeln!(text, "  NBD   {}", endpoint.uri(""));
    }
    if let Some(point) = &serving.fuse {
        let _ = writeln!(text, "  FUSE  {}", shell_word(&point.join("volumes").display().to_string()));
    }
    for volume in serving.volumes.iter().take(VOLUMES_SHOWN) {
        for endpoint in &serving.nbd {
            let _ = writeln!(text, "        {}", shell_word(&endpoint.uri(volume)));
        }
    }
    if serving.volumes.len() > VOLUMES_SHOWN {
        let _ = writeln!(text, "        and {} more volumes", serving.volumes.len() - VOLUMES_SHOWN);
    }
    let sinter = shell_word(&program());
    // `--url` belongs to the verb, so it stands behind it.
    let at = if url == DEFAULT_URL { String::new() } else { format!(" --url {url}") };
    text.push_str("Next:\n");
    if serving.volumes.is_empty() && serving.takes_writes {
        let _ = writeln!(text, "  {sinter} volume create demo 10GiB{at}");
        return text;
    }
    let empty = serving.empty_volume.as_ref().filter(|_| serving.takes_writes);
    if let (Some(volume), Some(endpoint)) = (empty.or(serving.volumes.first()), serving.nbd.first()) {
        // What would overwrite data is not for typing unread.
        let command = if empty.is_some() { "nbdcopy disk.img" } else { "nbdinfo" };
        let _ = writeln!(text, "  {command} {}", shell_word(&endpoint.uri(volume)));
    }
    let _ = writeln!(text, "  {sinter} status{at}");
    text
}

/// The program as it was called: by a path, where it may not be found without one.
fn program() -> String {
    let called = std::env::args().next().filter(|called| called.contains('/'));
    called.unwrap_or_else(|| "sinter".to_owned())
}

fn volume(text: &str) -> Result<(String, ByteCount), String> {
    let (name, size) = text.rsplit_once(':').ok_or("a volume is written NAME:SIZE, such as demo:10GiB")?;
    Ok((name.to_owned(), parse_size(size)?))
}
