//! The service unit, and what the daemon tells the service manager.

use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::SocketAddr;
use std::os::unix::net::UnixDatagram;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::daemon::sinter;
use crate::file;
use crate::have;
use crate::raw;
use crate::run;

const UNIT: &str = "docs/systemd/sinter.service";

fn next(manager: &UnixDatagram) -> String {
    let mut bytes = [0; 4096];
    let count = manager.recv(&mut bytes).expect("a message in time");
    String::from_utf8(bytes[..count].to_vec()).unwrap()
}

/// Follows a daemon from its start to its end, over the socket of that name.
fn follow(scratch: &Scratch, manager: &UnixDatagram, name: &str) {
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let daemon = Daemon::start_with(
        scratch.path(),
        &["--volume", "disk:16MiB"],
        Stdio::inherit(),
        &[("NOTIFY_SOCKET", name)],
    );
    assert_eq!(next(manager), "STATUS=opening the pool");
    assert_eq!(next(manager), "STATUS=filling the fingerprint index");
    assert_eq!(next(manager), "READY=1\nSTATUS=serving array sinter, 1 volumes");
    drop(raw::connect(&daemon.socket(), "disk"));
    assert!(daemon.terminate().success());
    assert_eq!(next(manager), "STOPPING=1\nSTATUS=answering the requests under way");
    assert_eq!(next(manager), "STOPPING=1\nSTATUS=making everything durable");
}

#[test]
fn the_service_manager_is_told_when_it_serves_and_when_it_stops() {
    let scratch = Scratch::new();
    let path = scratch.join("notify");
    follow(&scratch, &UnixDatagram::bind(&path).unwrap(), path.to_str().unwrap());
}

#[test]
fn the_service_manager_may_have_an_abstract_address() {
    let scratch = Scratch::new();
    let name = format!("sinter-test-{}", std::process::id());
    let address = SocketAddr::from_abstract_name(&name).unwrap();
    follow(&scratch, &UnixDatagram::bind_addr(&address).unwrap(), &format!("@{name}"));
}

/// Ready means that clients are served: whoever waits for it can connect, whatever else is still to be done.
#[test]
fn ready_is_said_only_once_clients_are_served() {
    let scratch = Scratch::new();
    let path = scratch.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let mut child = sinter(scratch.path())
        .args(["serve", "--api", "127.0.0.1:0", "--nbd", "none", "--volume", "disk:16MiB", "--data-dir"])
        .arg(scratch.path())
        .env("NOTIFY_SOCKET", &path)
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    while !next(&manager).starts_with("READY=1") {}
    drop(raw::connect(&scratch.join("nbd.sock"), "disk"));
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_start_that_is_refused_is_never_ready() {
    let scratch = Scratch::new();
    let path = scratch.join("notify");
    let manager = UnixDatagram::bind(&path).unwrap();
    manager.set_nonblocking(true).unwrap();
    let mut start = sinter(scratch.path());
    start.args(["serve", "--device", "/nonexistent/disk", "--api", "127.0.0.1:0", "--nbd", "127.0.0.1:0"]);
    start.arg("--data-dir").arg(scratch.path()).env("NOTIFY_SOCKET", &path);
    let output = crate::daemon::output_in_time(&mut start);
    assert_eq!(output.status.code(), Some(10), "{}", crate::both(&output));
    assert_eq!(next(&manager), "STATUS=opening the pool");
    assert!(manager.recv(&mut [0; 64]).is_err(), "and nothing else");
}

/// The value of a setting of the unit, the last one.
fn setting<'a>(unit: &'a str, name: &str) -> &'a str {
    let mut found = unit.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    found.next_back().unwrap_or_else(|| panic!("{UNIT} sets no {name}"))
}

#[test]
fn the_unit_starts_what_there_is() {
    let scratch = Scratch::new();
    let unit = file(UNIT);
    assert_eq!(setting(&unit, "Type"), "notify");
    let mut words = setting(&unit, "ExecStart").split_whitespace();
    assert!(words.next().unwrap().ends_with("/sinter"));
    let mut command = sinter(scratch.path());
    let output = command.args(words).arg("--print-config").output().unwrap();
    assert!(output.status.success(), "{}", crate::both(&output));
    // The exit statuses of refused starts, as the documents list them.
    assert_eq!(setting(&unit, "RestartPreventExitStatus"), "2 10 11 14");
}

#[test]
fn systemd_accepts_the_unit_and_finds_it_confined() {
    if !have("systemd-analyze", "the service unit") {
        return;
    }
    let scratch = Scratch::new();
    let path = scratch.join("sinter.service");
    let unit = file(UNIT).replace("/usr/local/bin/sinter", env!("CARGO_BIN_EXE_sinter"));
    std::fs::write(&path, unit).unwrap();
    let path = path.to_str().unwrap();
    assert_eq!(run("systemd-analyze", &["verify", "--man=no", path], b""), "");
    // 25 of 100 points of exposure; without any of its confinement it has over 90.
    let security = Command::new("systemd-analyze")
        .args(["security", "--offline=true", "--no-pager", "--threshold=25", path])
        .output()
        .unwrap();
    assert!(security.status.success(), "{}", crate::both(&security));
}
