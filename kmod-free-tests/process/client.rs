//! The client that knows what it was promised (`writer.py`, over libnbd), and the tools of others.

use std::io::BufRead as _;
use std::io::BufReader;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;

const SCRIPT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/kmod-free-tests/process/writer.py");

/// The journal of one client, over all its connections.
pub(crate) struct Journal {
    path: PathBuf,
}

/// The client, writing.
pub(crate) struct Writing {
    child: Child,
    stdout: BufReader<std::process::ChildStdout>,
}

/// How a connection ended.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Ended {
    /// Requests that were acknowledged.
    pub(crate) acknowledged: u64,
    /// Requests that were under way.
    pub(crate) unanswered: u64,
}

impl Journal {
    pub(crate) fn new(path: PathBuf) -> Journal {
        Journal { path }
    }

    /// Begins to write into the first `blocks` blocks, until the connection is lost or `requests` are done;
    /// returns once the connection is there.
    pub(crate) fn write(&self, uri: &str, seed: u64, blocks: u64, requests: Option<u64>) -> Writing {
        let mut command = self.script("write", uri);
        command.args([seed.to_string(), blocks.to_string()]);
        command.args(requests.map(|requests| requests.to_string()));
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        stdout.read_line(&mut line).unwrap();
        assert_eq!(line, "connected\n");
        Writing { child, stdout }
    }

    /// Reads everything that was ever written and compares; the number of blocks.
    #[track_caller]
    pub(crate) fn verify(&self, uri: &str) -> u64 {
        let output = self.try_verify(uri);
        let said = text(&output);
        assert!(output.status.success(), "{said}");
        said.trim().parse().unwrap()
    }

    /// As `verify`, but a fault is for the caller to judge.
    pub(crate) fn try_verify(&self, uri: &str) -> Output {
        self.script("verify", uri).output().unwrap()
    }

    /// A copy that claims that a request was acknowledged which never was made.
    pub(crate) fn with_a_lie(&self) -> Journal {
        let path = self.path.with_extension("lie");
        let mut lines = std::fs::read_to_string(&self.path).unwrap();
        lines.push_str("w 999999999 0 1\na 999999999\n");
        std::fs::write(&path, lines).unwrap();
        Journal { path }
    }

    fn script(&self, verb: &str, uri: &str) -> Command {
        // Debian's own Python: it is the one that has libnbd's module.
        let mut command = Command::new("/usr/bin/python3");
        command.args(["-B", SCRIPT, verb]).arg(&self.path).arg(uri).stdin(Stdio::null());
        command
    }
}

impl Writing {
    /// Waits for its end, which is the loss of the connection or the last of its requests.
    #[track_caller]
    pub(crate) fn ended(mut self) -> Ended {
        let mut line = String::new();
        self.stdout.read_line(&mut line).unwrap();
        assert!(self.child.wait().unwrap().success(), "the client failed");
        let mut numbers = line.split_whitespace().map(|word| word.parse().unwrap());
        Ended { acknowledged: numbers.next().unwrap(), unanswered: numbers.next().unwrap() }
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a tool, which must succeed; what it printed.
#[track_caller]
pub(crate) fn run(program: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(program).args(arguments).output().unwrap_or_else(|error| panic!("{program}: {error}"));
    assert!(output.status.success(), "{program} {arguments:?}\n{}", text(&output));
    text(&output)
}

/// Everything that a program has said.
pub(crate) fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// A path for an argument.
pub(crate) fn path(path: &Path) -> &str {
    path.to_str().unwrap()
}
