//! The command, with real daemons that are killed and restarted below it.

use std::io::BufRead as _;
use std::io::BufReader;
use std::net::TcpListener;
use std::path::Path;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::ExitStatus;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::daemon::output_in_time;
use crate::daemon::sinter;
use crate::number_from_environment;

/// How often the daemon is killed, unless more is asked for.
const KILLS: u64 = 6;

/// A running `sinter attach`.
pub(crate) struct Attached {
    child: Child,
    socket: PathBuf,
}

impl Attached {
    pub(crate) fn start(home: &Path, target: &str, more: &[&str]) -> Attached {
        let socket = home.join("attached.sock");
        let mut child = command(home, target, &socket, more).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("Attached "), "{line} {:?}", child.try_wait());
        Attached { child, socket }
    }

    pub(crate) fn socket(&self) -> &Path {
        &self.socket
    }

    pub(crate) fn uri(&self, volume: &str) -> String {
        format!("nbd+unix:///{volume}?socket={}", self.socket.display())
    }

    pub(crate) fn terminate(mut self) -> ExitStatus {
        signal("-TERM", self.child.id());
        self.child.wait().unwrap()
    }
}

impl Drop for Attached {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) fn command(home: &Path, target: &str, socket: &Path, more: &[&str]) -> Command {
    let mut command = sinter(home);
    command.args(["attach", target, "--unix"]).arg(socket).args(more);
    command
}

pub(crate) fn signal(which: &str, pid: u32) {
    assert!(Command::new("kill").args([which, &pid.to_string()]).status().unwrap().success());
}

/// An address that nobody listens at.
fn free_address() -> String {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
}

fn unix_target(daemon: &Daemon, volume: &str) -> String {
    format!("unix:{}/{volume}", daemon.socket().display())
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&[&output.stdout[..], &output.stderr[..]].concat()).into_owned()
}

/// fio through a socket, as a child.
pub(crate) fn fio(uri: &str, name: &str, offset: &str, more: &[&str]) -> Child {
    let mut command = Command::new("fio");
    command.args(["--thread", "--ioengine=nbd", "--bs=4k", "--size=8m", "--iodepth=16"]);
    command.args(["--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0", "--rw=randwrite"]);
    command.args([format!("--uri={uri}"), format!("--name={name}"), format!("--offset={offset}")]);
    command.args(more).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().unwrap()
}

#[track_caller]
pub(crate) fn assert_done(child: Child) {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn clients_notice_nothing_of_daemons_that_are_killed() {
    let scratch = Scratch::new();
    let data = scratch.path();
    let mut daemon = Daemon::start(data, &["--volume", "disk:32MiB"]);
    // The first address never answers: it is passed over each time.
    let target = format!("{},{}", free_address(), unix_target(&daemon, "disk"));
    let attached = Attached::start(data, &target, &[]);
    let uri = attached.uri("disk");
    let kills = number_from_environment("SINTER_ATTACH_KILLS").unwrap_or(KILLS);
    // Two clients at once, which write and verify for as long as the daemon is killed.
    let seconds = format!("--runtime={}", 2 * kills);
    let more = ["--time_based", &seconds, "--fsync=64", "--rate_iops=2000"];
    let mut clients = vec![fio(&uri, "one", "0", &more), fio(&attached.uri(""), "two", "16m", &more)];
    for kill in 0..kills {
        std::thread::park_timeout(Duration::from_millis(600 + kill * 170 % 500));
        daemon.kill();
        daemon = Daemon::start(data, &[]);
    }
    for client in clients.drain(..) {
        assert_done(client);
    }
    // A whole pass, and a look at it past the socket, by the array itself.
    assert_done(fio(&uri, "whole", "0", &["--do_verify=0", "--end_fsync=1"]));
    assert!(attached.terminate().success());
    daemon.kill();
    let daemon = Daemon::start(data, &[]);
    let there = format!("nbd+unix:///disk?socket={}", daemon.socket().display());
    assert_done(fio(&there, "whole", "0", &["--verify_only=1"]));
    assert!(daemon.terminate().success());
}

#[test]
fn a_paused_array_is_waited_for_and_a_stop_answers_what_is_under_way() {
    let scratch = Scratch::new();
    let data = scratch.path();
    let daemon = Daemon::start(data, &["--volume", "disk:32MiB"]);
    let attached = Attached::start(data, &unix_target(&daemon, "disk"), &[]);
    signal("-STOP", daemon.pid());
    let uri = attached.uri("disk");
    let io = Command::new("qemu-io")
        .args(["-f", "raw", &uri, "-c", "write -P 7 0 1M", "-c", "flush", "-c", "read -P 7 0 1M"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    std::thread::park_timeout(Duration::from_millis(500));
    // Told to stop while the array is silent: it waits for the answers.
    signal("-TERM", attached.child.id());
    std::thread::park_timeout(Duration::from_millis(500));
    signal("-CONT", daemon.pid());
    let output = io.wait_with_output().unwrap();
    assert!(output.status.success() && !text(&output).contains("failed"), "{}", text(&output));
    let mut attached = attached;
    assert!(attached.child.wait().unwrap().success());
    assert!(!attached.socket.exists());
}

#[test]
fn all_kinds_of_requests_go_through() {
    let scratch = Scratch::new();
    let data = scratch.path();
    let daemon = Daemon::start(data, &["--volume", "disk:16MiB"]);
    let address = daemon.nbd.strip_prefix("nbd://").unwrap();
    let attached = Attached::start(data, &format!("{address}/disk"), &["--shared"]);
    let uri = attached.uri("disk");
    let commands = [
        "write -P 0x5a 100 70000",
        "write -f -P 0x5b 1M 3M",
        "write -f -P 0x5c 5M 4k",
        "discard 1M 1M",
        "write -z -u 2M 512k",
        "flush",
        "read -P 0 0 100",
        "read -P 0x5a 100 70000",
        "read -P 0 1M 1M",
        "read -P 0 2M 512k",
        "read -P 0x5b 2560k 1536k",
        "read -P 0x5c 5M 4k",
    ];
    let arguments: Vec<&str> = commands.iter().flat_map(|command| ["-c", command]).collect();
    let io = Command::new("qemu-io").args(["-f", "raw", &uri]).args(arguments).output().unwrap();
    assert!(io.status.success() && !text(&io).contains("failed"), "{}", text(&io));
    let map = Command::new("nbdinfo").args(["--map", &uri]).output().unwrap();
    let shapes: Vec<String> =
        text(&map).lines().map(|line| line.split_whitespace().collect::<Vec<_>>().join(" ")).collect();
    assert_eq!(shapes.last().unwrap(), "5246976 11530240 3 hole,zero");
    // A write past the end of what the array has is the client's own error, and ends nothing.
    let over = Command::new("qemu-io").args(["-f", "raw", &uri, "-c", "write 15M 2M"]).output().unwrap();
    assert!(text(&over).contains("failed") || !over.status.success(), "{}", text(&over));
    assert!(attached.terminate().success());
}

#[test]
fn what_cannot_be_attached_is_refused() {
    let scratch = Scratch::new();
    let data = scratch.path();
    let daemon = Daemon::start(data, &["--volume", "disk:16MiB"]);
    let socket = data.join("here.sock");
    let refused = |target: &str, socket: &Path, more: &[&str]| {
        let output = output_in_time(&mut command(data, target, socket, more));
        (output.status.code().unwrap(), text(&output))
    };
    let (status, said) = refused(&unix_target(&daemon, "none"), &socket, &[]);
    assert!(status == 10 && said.contains("none"), "{said}");
    let (status, said) = refused(&unix_target(&daemon, "disk"), &daemon.socket(), &[]);
    assert!(status == 11 && said.contains("another server listens"), "{said}");
    let file = data.join("file");
    std::fs::write(&file, "no socket").unwrap();
    let (status, said) = refused(&unix_target(&daemon, "disk"), &file, &[]);
    assert!(status == 11, "{said}");
    let nobody = format!("{}/disk", free_address());
    let (status, said) = refused(&nobody, &socket, &["--give-up-after", "1"]);
    assert!(status == 15 && said.contains("was not reached for 1 s"), "{said}");
    assert_eq!(refused("disk", &socket, &[]).0, 2);
    assert!(!socket.exists());
}

#[test]
fn what_is_gone_for_good_ends_the_command_and_fails_its_clients() {
    let scratch = Scratch::new();
    let data = scratch.path();
    let daemon = Daemon::start(data, &["--volume", "disk:16MiB", "--volume", "other:16MiB"]);
    let mut attached = Attached::start(data, &unix_target(&daemon, "disk"), &[]);
    let deleted = daemon.run(&["volume", "delete", "disk", "--force", "--yes"]);
    assert!(deleted.status.success(), "{}", text(&deleted));
    assert_eq!(attached.child.wait().unwrap().code(), Some(10));

    let mut attached = Attached::start(data, &unix_target(&daemon, "other"), &["--give-up-after", "1"]);
    daemon.kill();
    let uri = attached.uri("other");
    let read = Command::new("qemu-io").args(["-f", "raw", &uri, "-c", "read 0 4k"]).output().unwrap();
    assert!(text(&read).contains("failed") || !read.status.success(), "{}", text(&read));
    assert_eq!(attached.child.wait().unwrap().code(), Some(15));
}
