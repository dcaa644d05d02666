//! `sinter completions`: scripts that complete the command line, for the shells that people use.

use clap::Args;
use clap::Command;
use clap_complete::Shell;

use crate::cli::output;
use crate::daemon::failure::Outcome;

/// `sinter completions`.
#[derive(Debug, Args)]
pub struct Completions {
    /// The shell that is to complete
    shell: Shell,
}

/// Prints the script that completes `command`.
///
/// # Errors
/// What the operating system said of standard output.
pub fn run(mut command: Command, completions: &Completions) -> Outcome {
    let name = command.get_name().to_owned();
    let mut script = Vec::new();
    clap_complete::generate(completions.shell, &mut command, name, &mut script);
    output::data(script)
}
