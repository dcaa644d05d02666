//! `sinter man`: the manual, one page a verb, made from the help texts.

use std::io::Write as _;
use std::path::Path;
use std::path::PathBuf;

use clap::Arg;
use clap::ArgAction;
use clap::Args;
use clap::Command;

use crate::cli::output;
use crate::daemon::failure::EXIT_STATUSES;
use crate::daemon::failure::Outcome;
use crate::error::Error;
use crate::error::ErrorKind;

/// `sinter man`.
#[derive(Debug, Args)]
pub struct Man {
    /// Write all pages into this directory, a file each, instead of printing the main one; it is made if it is
    /// missing, with those above it
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
    let rendered = page
        .render_title(&mut text)
        .and_then(|()| page.render_name_section(&mut text))
        .and_then(|()| text.write_all(synopsis(command).as_bytes()))
        .and_then(|()| page.render_description_section(&mut text))
        .and_then(|()| page.render_options_section(&mut text));
    let rendered = rendered.and_then(|()| {
        if command.has_subcommands() { page.render_subcommands_section(&mut text) } else { Ok(()) }
    });
    rendered.expect("memory takes all that is written to it");
    text.extend(exit_statuses().into_bytes());
    (page.get_filename(), String::from_utf8_lossy(&text).into_owned())
}

/// How the command is written: each flag with the value that it takes, in the order of the help.
fn synopsis(command: &Command) -> String {
    let name = command.get_bin_name().unwrap_or_else(|| command.get_name());
    let mut text = format!(".SH SYNOPSIS\n{}", bold(name));
    let is_asked = |argument: &&Arg| {
        let tells =
            matches!(argument.get_action(), ArgAction::Help | ArgAction::HelpShort | ArgAction::Version);
        !argument.is_hide_set() && !tells
    };
    let (places, flags): (Vec<&Arg>, Vec<&Arg>) =
        command.get_arguments().filter(is_asked).partition(|argument| argument.is_positional());
    for argument in flags.into_iter().chain(places) {
        text.push_str(&format!(" {}", usage(argument)));
    }
    if command.has_subcommands() {
        let word = italic("COMMAND");
        text.push_str(&if command.is_subcommand_required_set() {
            format!(" {word}")
        } else {
            format!(" [{word}]")
        });
    }
    text.push('\n');
    text
}

/// One flag or value, in brackets where it may be left out, with dots where there may be several.
fn usage(argument: &Arg) -> String {
    let flag = argument.get_long().map(|long| format!("--{long}"));
    let flag = flag.or_else(|| argument.get_short().map(|short| format!("-{short}")));
    let names = argument.get_value_names().unwrap_or_default();
    let values: Vec<String> = match argument.get_action().takes_values() {
        true => names.iter().map(|name| italic(name)).collect(),
        false => Vec::new(),
    };
    let words: Vec<String> = flag.iter().map(|flag| bold(flag)).chain(values).collect();
    let dots = if matches!(argument.get_action(), ArgAction::Append) { "..." } else { "" };
    match argument.is_required_set() {
        true => format!("{}{dots}", words.join(" ")),
        false => format!("[{}]{dots}", words.join(" ")),
    }
}

fn exit_statuses() -> String {
    let lines = EXIT_STATUSES
        .map(|(status, meaning)| format!(".TP\n{}\n{meaning}\n", bold(&(status as u8).to_string())));
    format!(".SH \"EXIT STATUS\"\n{}", lines.concat())
}

fn bold(text: &str) -> String {
    format!("\\fB{}\\fR", plain(text))
}

fn italic(text: &str) -> String {
    format!("\\fI{}\\fR", plain(text))
}

/// The text with what the language would take for its own escaped.
fn plain(text: &str) -> String {
    text.replace('\\', "\\\\").replace('-', "\\-")
}
