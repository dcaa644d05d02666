//! `sinter man`: the manual, one page a verb, made from the help texts.

use std::path::Path;
use std::path::PathBuf;

use clap::Args;
use clap::Command;

use crate::cli::output;
use crate::daemon::failure::Outcome;
use crate::error::Error;
use crate::error::ErrorKind;

/// What the generator calls the text that ends each help, and what it is.
const LAST_SECTION: (&str, &str) = (".SH EXTRA\n", ".SH \"EXIT STATUS\"\n");

/// `sinter man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Write all pages into this directory, a file each, instead of printing the main one
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
}

/// Prints the main page of `command`, or writes the pages of all verbs.
///
/// # Errors
/// What the operating system said of standard output or of the directory.
pub fn run(command: Command, man: &Man) -> Outcome {
    // Every page speaks for itself: `help` among the verbs would double them all.
    let mut command = command.disable_help_subcommand(true);
    command.build();
    let Some(directory) = &man.dir else {
        return output::data(render(&command).1);
    };
    let failed = |error| {
        Error::caused(ErrorKind::Device, format!("making the directory {}", directory.display()), error)
    };
    std::fs::create_dir_all(directory).map_err(failed)?;
    write_pages(&command, directory)
}

/// Writes the page of `command` and those of all verbs below it.
fn write_pages(command: &Command, directory: &Path) -> Outcome {
    let (name, page) = render(command);
    let path = directory.join(name);
    std::fs::write(&path, page).map_err(|error| {
        Error::caused(ErrorKind::Device, format!("writing the page {}", path.display()), error)
    })?;
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        write_pages(verb, directory)?;
    }
    Ok(())
}

/// The file name and the text of the page of `command`, in the language of man pages.
fn render(command: &Command) -> (String, String) {
    let page = clap_mangen::Man::new(command.clone())
        .source(concat!("sinter ", env!("CARGO_PKG_VERSION")))
        .manual("Sinter");
    let mut text = Vec::new();
    page.render(&mut text).expect("memory takes all that is written to it");
    let text = String::from_utf8_lossy(&text).replace(LAST_SECTION.0, LAST_SECTION.1);
    (page.get_filename(), text)
}
