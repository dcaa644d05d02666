//! The command line: one file a noun, one way out (`output`).

use std::ffi::OsString;
use std::process::ExitCode;

use clap::Args;
use clap::Command;
use clap::CommandFactory;
use clap::FromArgMatches;
use clap::Parser;
use clap::Subcommand;
use tracing_subscriber::filter::LevelFilter;
use tracing_subscriber::filter::Targets;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;

use crate::cli::client::Client;
use crate::cli::client::DEFAULT_URL;
use crate::daemon::failure::ExitStatus;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::failure::exit_status_help;
use crate::error::ErrorKind;

pub mod attach;
pub mod check;
pub mod client;
pub mod cluster;
pub mod completions;
pub mod image;
pub mod man;
pub mod mount;
pub mod output;
pub mod progress;
pub mod scrub;
pub mod serve;
pub mod snapshot;
pub mod status;
pub mod table;
pub mod transfer;
pub mod volume;
pub mod wait;

/// A virtual flash array: thin, deduplicated, compressed, crash-safe volumes over NBD
#[derive(Debug, Parser)]
#[command(name = "sinter", version, max_term_width = 100, arg_required_else_help = true)]
struct Cli {
    #[command(flatten)]
    target: Target,
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, Subcommand)]
enum Verb {
    /// Run the array
    Serve(Box<serve::Serve>),
    /// Serve a volume at a local socket that survives restarts and failover of the array
    Attach(attach::Attach),
    /// Make, list, change and delete volumes
    Volume {
        #[command(subcommand)]
        command: volume::VolumeCommand,
    },
    /// Take, list, compare, restore, clone and delete snapshots
    Snapshot {
        #[command(subcommand)]
        command: snapshot::SnapshotCommand,
    },
    /// Copy an image into a volume; the rest of the volume becomes zeros
    Import {
        #[command(flatten)]
        import: transfer::Import,
    },
    /// Copy a volume or snapshot into an image
    Export {
        #[command(flatten)]
        export: transfer::Export,
    },
    /// Mount the volumes and snapshots as files, or list the mounts
    Mount {
        #[command(flatten)]
        command: mount::MountCommand,
    },
    /// Take a mount away, also one that a dead array left behind
    #[command(visible_alias = "unmount")]
    Umount {
        #[command(flatten)]
        command: mount::UmountCommand,
    },
    /// Show what the array is doing, what is wrong first
    Status {
        #[command(flatten)]
        flags: status::StatusFlags,
    },
    /// Show how far data is reduced, and by what
    Reduction {
        #[command(flatten)]
        flags: status::ReductionFlags,
    },
    /// Show how full and how worn the flash is
    Flash {
        #[command(flatten)]
        flags: status::FlashFlags,
    },
    /// Wait until background work is done, such as giving back the space of what was deleted
    Wait(wait::Wait),
    /// Form a cluster of arrays, look after it, and say who is the primary
    Cluster {
        #[command(subcommand)]
        command: Box<cluster::ClusterCommand>,
    },
    /// Verify all that is live while the array serves; without a command, begin to
    Scrub {
        #[command(subcommand)]
        command: Option<scrub::ScrubCommand>,
    },
    /// Verify a pool that is not being served: every count and every checksum
    Check(check::Check),
    /// Print the script that lets a shell complete this command line
    Completions(completions::Completions),
    /// Print the manual page, or write those of all verbs
    Man(man::Man),
}

/// Which array is meant.
#[derive(Debug, Args)]
struct Target {
    /// Address of the array
    #[arg(long, global = true, env = "SINTER_URL", default_value = DEFAULT_URL, value_name = "URL")]
    url: String,
}

/// Runs one command line, the program's name first.
#[must_use]
pub fn run(arguments: impl IntoIterator<Item = OsString>) -> ExitCode {
    let (cli, verb) = match parse(arguments) {
        Ok(parsed) => parsed,
        Err(error) => return refuse(&error),
    };
    match dispatch(&cli.target, cli.verb) {
        Ok(()) => ExitStatus::Done.into(),
        Err(failure) => {
            let failure = with_usual_hint(failure, &verb);
            output::failure(&failure);
            failure.status().into()
        }
    }
}

/// The command line, and the verb as one types it.
fn parse(arguments: impl IntoIterator<Item = OsString>) -> Result<(Cli, String), clap::Error> {
    let matches = command().try_get_matches_from(arguments)?;
    let mut verb = "sinter".to_owned();
    let mut at = &matches;
    while let Some((name, inner)) = at.subcommand() {
        verb.push(' ');
        verb.push_str(name);
        at = inner;
    }
    Ok((Cli::from_arg_matches(&matches)?, verb))
}

/// The command that helps, where nobody who knew more has named one.
fn with_usual_hint(failure: Failure, verb: &str) -> Failure {
    // These two run where no array is asked.
    let is_offline = matches!(verb, "sinter serve" | "sinter check");
    let hint = match failure.error.kind() {
        _ if failure.hint.is_some() => return failure,
        ErrorKind::Invalid => format!("`{verb} --help` says what it takes"),
        ErrorKind::NoSpace if is_offline => "`df` shows how much room is left".to_owned(),
        ErrorKind::NoSpace => "`sinter status` shows the space; deletes and trims give some back".to_owned(),
        ErrorKind::Corrupt => "stop the array; `sinter check` shows all that is damaged".to_owned(),
        ErrorKind::Stopped | ErrorKind::ReadOnly => {
            "`sinter status` says why the array takes no writes".to_owned()
        }
        ErrorKind::Device if !is_offline => {
            "`sinter status` shows what is wrong with the array, if anything is".to_owned()
        }
        _ => return failure,
    };
    failure.hint(hint)
}

/// The whole command line.
fn command() -> Command {
    with_exit_statuses(Cli::command())
}

/// Every help text ends with the list of exit statuses.
fn with_exit_statuses(command: Command) -> Command {
    command.after_help(exit_status_help()).mut_subcommands(with_exit_statuses)
}

/// Help and version are data and success; all else is wrong usage.
fn refuse(error: &clap::Error) -> ExitCode {
    let text = error.render().to_string();
    if error.use_stderr() {
        output::note(text.trim_end());
        return ExitStatus::Usage.into();
    }
    match output::data(text) {
        Ok(()) => ExitStatus::Done.into(),
        Err(failure) => failure.status().into(),
    }
}

fn dispatch(target: &Target, verb: Verb) -> Outcome {
    match verb {
        Verb::Serve(serve) => {
            log_to_stderr();
            serve::run(*serve)
        }
        Verb::Attach(attach) => {
            log_to_stderr();
            attach::run(attach)
        }
        Verb::Volume { command } => volume::run(&Client::new(&target.url)?, command),
        Verb::Snapshot { command } => snapshot::run(&Client::new(&target.url)?, command),
        Verb::Import { import } => transfer::import(&Client::new(&target.url)?, import),
        Verb::Export { export } => transfer::export(&Client::new(&target.url)?, export),
        Verb::Mount { command } => mount::mount(&Client::new(&target.url)?, command),
        Verb::Umount { command } => mount::umount(&Client::new(&target.url)?, &command),
        Verb::Cluster { command } => cluster::run(&Client::new(&target.url)?, *command),
        Verb::Scrub { command } => scrub::run(&Client::new(&target.url)?, command),
        Verb::Status { flags } => status::status(&Client::new(&target.url)?, &flags),
        Verb::Reduction { flags } => status::reduction(&Client::new(&target.url)?, &flags),
        Verb::Flash { flags } => status::flash(&Client::new(&target.url)?, &flags),
        Verb::Wait(wait) => wait::run(&Client::new(&target.url)?, &wait),
        Verb::Check(check) => check::run(check),
        Verb::Completions(completions) => completions::run(command(), &completions),
        Verb::Man(man) => man::run(command(), &man),
    }
}

/// What the daemon has to say while it runs goes to standard error, one line an event; of the consensus library only
/// what went wrong.
fn log_to_stderr() {
    let quiet = Targets::new().with_default(tracing::Level::INFO).with_target("openraft", LevelFilter::OFF);
    let lines =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).with_ansi(false).with_target(false);
    tracing_subscriber::registry().with(lines).with(quiet).init();
}
