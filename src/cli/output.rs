//! The only way to standard output and standard error.
//!
//! Data goes to standard output, everything else to standard error. A reader that has gone away
//! (`sinter volume list | head -1`) is quiet success, but for a stream that must arrive whole.

use std::io;
use std::io::IsTerminal;
use std::io::Write;

use crate::daemon::failure::ExitStatus;
use crate::daemon::failure::Failure;
use crate::daemon::failure::Outcome;
use crate::error::Error;
use crate::error::ErrorKind;

/// Writes data to standard output, and all of it at once.
///
/// # Errors
/// What the operating system said; a closed pipe ends the process with status 0.
pub fn data(bytes: impl AsRef<[u8]>) -> Outcome {
    let mut out = io::stdout().lock();
    if let Err(error) = out.write_all(bytes.as_ref()).and_then(|()| out.flush()) {
        if error.kind() == io::ErrorKind::BrokenPipe {
            std::process::exit(i32::from(ExitStatus::Done as u8));
        }
        return Err(stdout_error(error).into());
    }
    Ok(())
}

/// Writes a piece of a stream to standard output: whoever stops reading has not got it whole, which is an error.
///
/// # Errors
/// What the operating system said.
pub fn piece(bytes: &[u8]) -> Result<(), Error> {
    let mut out = io::stdout().lock();
    out.write_all(bytes).and_then(|()| out.flush()).map_err(stdout_error)
}

fn stdout_error(error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::NoSpace,
        _ => ErrorKind::Device,
    };
    Error::caused(kind, "writing to standard output", error)
}

/// Writes data to standard output and goes on if nobody reads it: for the daemon, which has more to
/// do than to talk.
pub fn announce(text: &str) {
    let mut out = io::stdout().lock();
    let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
}

/// Writes a line for the user to standard error.
pub fn note(line: &str) {
    // Nothing better can be done with an error of standard error itself.
    let _ = writeln!(io::stderr().lock(), "{line}");
}

/// Writes to standard error without ending the line.
pub fn transient(text: &str) {
    let mut err = io::stderr().lock();
    let _ = err.write_all(text.as_bytes()).and_then(|()| err.flush());
}

/// Tells the user why a command failed, and what helps.
pub fn failure(failure: &Failure) {
    note(&format!("error: {}", failure.error));
    if let Some(hint) = &failure.hint {
        note(&format!("hint: {hint}"));
    }
}

/// Asks before something is lost. Off a terminal nobody can answer, so `--yes` is needed there.
///
/// # Errors
/// `Invalid` where nobody can be asked; `Busy` where the answer is no.
pub fn confirm(question: &str, yes: bool) -> Outcome {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() || !io::stderr().is_terminal() {
        return Err(Failure::new(ErrorKind::Invalid, format!("{question} Nobody can be asked here"))
            .hint("say --yes to do it without asking"));
    }
    transient(&format!("{question} [y/N] "));
    let mut answer = String::new();
    let read = io::stdin().read_line(&mut answer);
    if read.is_ok() && matches!(answer.trim(), "y" | "Y" | "yes") {
        return Ok(());
    }
    Err(Failure::new(ErrorKind::Unsupported, "not confirmed, nothing was changed"))
}

/// The text as one word of a shell.
#[must_use]
pub fn shell_word(text: &str) -> String {
    let plain = text.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-._~/:%+=,@[]".contains(&byte));
    if plain && !text.is_empty() { text.to_owned() } else { format!("'{}'", text.replace('\'', "'\\''")) }
}
