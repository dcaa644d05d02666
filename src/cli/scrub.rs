//! `sinter scrub`.

use std::fmt::Write as _;

use clap::Args;
use clap::Subcommand;

use crate::api::scrub::Scrub;
use crate::api::scrub::ScrubPhase;
use crate::cli::check::counted;
use crate::cli::client::Client;
use crate::cli::client::parse;
use crate::cli::output;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::daemon::quantity::round_size;
use crate::error::ErrorKind;
use crate::units::ByteCount;

/// Where scrub is reached.
const PATH: &str = "/api/v1/scrub";

/// What can be done with a scrub.
#[derive(Debug, Subcommand)]
pub enum ScrubCommand {
    /// Read all that is live, and verify it, in the background; from the start if one is under way
    Start,
    /// End the scrub that is under way
    Stop,
    /// Show how far it has come and what it has found; exits 14 if anything is damaged
    Status(StatusFlags),
}

/// `scrub status`.
#[derive(Debug, Args)]
pub struct StatusFlags {
    /// What REST returns, as JSON
    #[arg(long)]
    json: bool,
}

/// Runs `sinter scrub`; without a verb it starts one.
///
/// # Errors
/// What the array answered; `Corrupt` where the newest scrub has found damage.
pub fn run(client: &Client, command: Option<ScrubCommand>) -> Outcome {
    match command.unwrap_or(ScrubCommand::Start) {
        ScrubCommand::Start => {
            client.post(PATH, &serde_json::json!({}))?;
            output::note(
                "scrub has started; `sinter scrub status` shows how far it has come, `sinter wait --for scrub` waits for it",
            );
            Ok(())
        }
        ScrubCommand::Stop => client.delete(PATH),
        ScrubCommand::Status(flags) => {
            let answer = client.get_text(PATH)?;
            let scrub: Scrub = parse(&answer)?;
            output::data(if flags.json { answer + "\n" } else { describe(&scrub) })?;
            outcome(&scrub)
        }
    }
}

/// How far the newest scrub has come.
///
/// # Errors
/// What the array answered.
pub fn fetch(client: &Client) -> Outcome<Scrub> {
    parse(&client.get_text(PATH)?)
}

/// Whether what the scrub has read is intact.
///
/// # Errors
/// `Corrupt` where it is not.
pub fn outcome(scrub: &Scrub) -> Outcome {
    match scrub.errors {
        0 => Ok(()),
        errors => {
            Err(Failure::new(ErrorKind::Corrupt, format!("scrub has found {}", counted(errors, "error")))
                .hint("stop the array and run `sinter check` to see all that is damaged"))
        }
    }
}

fn describe(scrub: &Scrub) -> String {
    let mut text = String::new();
    let percent = scrub.position * 100 / scrub.end.max(1);
    let state = match scrub.state {
        ScrubPhase::Never => "none since the array was started".to_owned(),
        ScrubPhase::Running => format!("running, {percent} % of the blocks passed"),
        ScrubPhase::Stopped => format!("stopped at {percent} % of the blocks"),
        ScrubPhase::Finished => "finished".to_owned(),
    };
    let _ = writeln!(text, "scrub     {state}");
    let _ = writeln!(
        text,
        "verified  {} in {} blocks and {} pages",
        round_size(ByteCount(scrub.bytes_verified)),
        scrub.blocks_verified,
        scrub.pages_verified
    );
    let _ = writeln!(text, "errors    {}, {} written anew from a good copy", scrub.errors, scrub.repaired);
    for line in &scrub.damage {
        let _ = writeln!(text, "  {line}");
    }
    text
}
