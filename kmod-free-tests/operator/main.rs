//! What an operator has beside the array itself: completions and manual pages, the service unit and what the
//! daemon tells a service manager, an orderly end, metrics, the dashboard and the alert rules.
//!
//! Shells, promtool, Prometheus and systemd-analyze are others' programs. A test that lacks one says so on
//! standard error, whether it is shown or not, and verifies the rest.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "../common/daemon.rs"]
mod daemon;
mod metrics;
mod prometheus;
mod raw;
mod service;
mod shell;
mod status;
mod stop;

use std::io::Write as _;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

/// Whether a program is there; if not, it is said what is not verified for want of it.
fn have(program: &str, for_what: &str) -> bool {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).any(|folder| folder.join(program).is_file());
    if !found {
        // Past the test's own capture: a test that was skipped must not look like one that has passed.
        let _ = writeln!(std::io::stderr(), "NOT VERIFIED: {for_what}: {program} is not installed");
    }
    found
}

/// Runs a program with `input`, which must succeed; what it printed, standard error last.
#[track_caller]
fn run(program: &str, arguments: &[&str], input: &[u8]) -> String {
    let mut child = Command::new(program)
        .args(arguments)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{program}: {error}"));
    // A program that does not read to the end is judged by its status.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let said = both(&output);
    assert!(output.status.success(), "{program} {arguments:?}\n{said}");
    said
}

fn both(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// What the daemon answers to a GET.
#[track_caller]
fn get(daemon: &daemon::Daemon, path: &str) -> String {
    let mut answer = ureq::get(format!("{}{path}", daemon.url)).call().unwrap();
    answer.body_mut().read_to_string().unwrap()
}

/// A file of the repository.
fn file(path: &str) -> String {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}
