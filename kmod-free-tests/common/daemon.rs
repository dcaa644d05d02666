//! Starts the real daemon on loopback with a directory of its own, and ends it when the test is over.

#![allow(dead_code, reason = "each test binary that includes this uses its own part of it")]
#![allow(clippy::unwrap_used, clippy::disallowed_methods, reason = "a helper that fails fails its test")]

use std::io::BufRead;
use std::io::BufReader;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Output;
use std::process::Stdio;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// A directory that goes away with the test.
pub(crate) struct Scratch {
    path: PathBuf,
}

impl Scratch {
    pub(crate) fn new() -> Scratch {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sinter-test-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch { path }
    }

    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.path);
    }
}

/// The `sinter` command, seeing nothing of the user's own configuration and data.
pub(crate) fn sinter(home: &Path) -> Command {
    seeing_nothing(Command::new(env!("CARGO_BIN_EXE_sinter")), home)
}

/// The same, and a limit to the size of its files is an error of a device, not the end of the process.
fn sinter_under_limits(home: &Path) -> Command {
    let mut command = Command::new("env");
    command.args(["--ignore-signal=XFSZ", env!("CARGO_BIN_EXE_sinter")]);
    seeing_nothing(command, home)
}

fn seeing_nothing(mut command: Command, home: &Path) -> Command {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("SINTER_") {
            command.env_remove(name);
        }
    }
    command.env("HOME", home).env_remove("XDG_DATA_HOME").env_remove("XDG_CONFIG_HOME").stdin(Stdio::null());
    command
}

/// Runs a command that must end by itself within seconds, and kills it if it does not: a daemon whose
/// start should have been refused would serve for ever.
#[track_caller]
pub(crate) fn output_in_time(command: &mut Command) -> Output {
    let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    for _ in 0..OUTPUT_ROUNDS {
        if child.try_wait().unwrap().is_some() {
            return child.wait_with_output().unwrap();
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    child.kill().unwrap();
    panic!("it did not end by itself: {:?}", child.wait_with_output().unwrap());
}

/// Hundredths of a second that `output_in_time` waits.
const OUTPUT_ROUNDS: u32 = 3000;

/// A running daemon.
pub(crate) struct Daemon {
    child: Child,
    data: PathBuf,
    /// What it printed when it was ready.
    pub(crate) announcement: String,
    /// Where REST is, such as `http://127.0.0.1:40000`.
    pub(crate) url: String,
    /// Where NBD is over TCP, such as `nbd://127.0.0.1:40001`.
    pub(crate) nbd: String,
}

impl Daemon {
    /// Starts `sinter serve` on free ports with its data in `data`, and waits until it serves.
    pub(crate) fn start(data: &Path, arguments: &[&str]) -> Daemon {
        Daemon::start_logging(data, arguments, Stdio::inherit())
    }

    /// As `start`, with its log (standard error) somewhere else.
    pub(crate) fn start_logging(data: &Path, arguments: &[&str], log: Stdio) -> Daemon {
        Daemon::start_with(data, arguments, log, &[])
    }

    /// As `start_logging`, with more in its environment.
    pub(crate) fn start_with(
        data: &Path,
        arguments: &[&str],
        log: Stdio,
        environment: &[(&str, &str)],
    ) -> Daemon {
        let mut child = sinter_under_limits(data)
            .envs(environment.iter().copied())
            .args(["serve", "--api", "127.0.0.1:0", "--nbd", "127.0.0.1:0", "--data-dir"])
            .arg(data)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut announcement = String::new();
        // The last line is the last of what to type next: it begins with two spaces, after "Next:".
        while !announcement.contains("\nNext:\n  ") {
            let read = stdout.read_line(&mut announcement).unwrap();
            assert!(read > 0, "the daemon ended instead of serving: {}", child.wait().unwrap());
        }
        // What follows is taken by a thread that ends with the daemon, so that it never blocks on a full pipe.
        std::thread::spawn(move || stdout.read_to_string(&mut String::new()));
        let word = |prefix: &str| {
            let found = announcement.split_whitespace().find(|word| word.starts_with(prefix));
            found.unwrap_or_default().to_owned()
        };
        Daemon { child, data: data.to_owned(), url: word("http://"), nbd: word("nbd://"), announcement }
    }

    /// Its process.
    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    /// The Unix socket of NBD.
    pub(crate) fn socket(&self) -> PathBuf {
        self.data.join("nbd.sock")
    }

    /// The NBD URI of a volume over TCP.
    pub(crate) fn uri(&self, volume: &str) -> String {
        format!("{}/{volume}", self.nbd)
    }

    /// Runs `sinter` against this daemon.
    pub(crate) fn run(&self, arguments: &[&str]) -> Output {
        sinter(&self.data).env("SINTER_URL", &self.url).args(arguments).output().unwrap()
    }

    /// Kills the daemon as a crash would.
    pub(crate) fn kill(mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// How it ended, if it has.
    pub(crate) fn ended(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().unwrap()
    }

    /// Waits for its end, which somebody else asks for.
    pub(crate) fn wait(mut self) -> ExitStatus {
        self.child.wait().unwrap()
    }

    /// Asks the daemon to stop, and waits for it.
    pub(crate) fn terminate(mut self) -> ExitStatus {
        let pid = self.child.id().to_string();
        assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
        self.child.wait().unwrap()
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // Already ended and waited for where the test did it: then both do nothing.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
