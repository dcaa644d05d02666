//! `sinter mount` and `sinter umount`, REST's mounts, and daemons that end with or without warning.

use std::fs::OpenOptions;
use std::os::unix::fs::FileExt as _;
use std::path::Path;
use std::process::Command;
use std::process::Output;
use std::time::Duration;

use rustix::io::Errno;

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::daemon::output_in_time;
use crate::daemon::sinter;
use crate::host::MountPoint;
use crate::host::has_fuse;
use crate::host::mounts_at;
use crate::host::run;

/// Exit statuses, as the command line promises them.
const INVALID: i32 = 2;
const NOT_FOUND: i32 = 10;
const CONFLICT: i32 = 11;
const UNREACHABLE: i32 = 15;

#[track_caller]
fn fails(output: &Output, status: i32, says: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(status), "{said}");
    assert!(said.contains(says), "{said}");
}

fn is_dead(point: &Path) -> bool {
    std::fs::metadata(point).is_err_and(|error| Errno::from_io_error(&error) == Some(Errno::NOTCONN))
}

/// Waits for what happens soon.
#[track_caller]
fn wait_until(mut happened: impl FnMut() -> bool) {
    for _ in 0..1000 {
        if happened() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(10));
    }
    panic!("it did not happen within ten seconds");
}

fn list(daemon: &Daemon) -> serde_json::Value {
    let answer = run("curl", &["--silent", "--fail", &format!("{}/api/v1/mounts", daemon.url)]);
    serde_json::from_str(&answer).unwrap()
}

#[test]
fn a_mount_outlives_the_command_and_goes_with_umount() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let (one, two) = (MountPoint::new(scratch.join("one")), MountPoint::new(scratch.join("two % ?#")));
    let daemon = Daemon::start(scratch.path(), &["--volume", "disk:16MiB"]);
    assert_eq!(list(&daemon)["total"], 0);
    for point in [&one, &two] {
        let output = daemon.run(&["mount", point.text()]);
        assert!(output.status.success(), "{output:?}");
        assert!(point.join("volumes/disk").exists());
    }
    assert_eq!(list(&daemon)["mounts"][0]["mountpoint"], one.text());
    assert_eq!(list(&daemon)["mounts"][1]["state"], "mounted");
    let printed = |arguments: &[&str]| String::from_utf8(daemon.run(arguments).stdout).unwrap();
    for shown in [printed(&["mount"]), printed(&["status"]), printed(&["status", "--json"])] {
        assert!(shown.contains(one.text()) && shown.contains(two.text()), "{shown}");
    }
    let metrics = run("curl", &["--silent", "--fail", &format!("{}/metrics", daemon.url)]);
    assert!(metrics.contains("\nsinter_fuse_mounts 2\n"), "{metrics}");
    fails(
        &daemon.run(&["umount", one.text(), "--url", "http://127.0.0.1:1"]),
        UNREACHABLE,
        "asking the array",
    );
    fails(&daemon.run(&["mount", one.text()]), CONFLICT, "already");

    let file = OpenOptions::new().write(true).open(two.join("volumes/disk")).unwrap();
    assert_eq!(list(&daemon)["mounts"][1]["open_files"], 1);
    fails(&daemon.run(&["umount", two.text()]), CONFLICT, "1 file is open");
    assert!(daemon.run(&["umount", one.text()]).status.success());
    assert_eq!((mounts_at(one.path()), list(&daemon)["total"].as_u64()), (0, Some(1)));
    fails(&daemon.run(&["umount", one.text()]), NOT_FOUND, "not a mount of Sinter");

    assert!(daemon.run(&["umount", "--lazy", two.text()]).status.success());
    assert_eq!(mounts_at(two.path()), 0);
    assert_eq!(list(&daemon)["mounts"][0]["state"], "detached");
    file.write_all_at(b"still there", 0).unwrap();
    drop(file);
    wait_until(|| list(&daemon)["total"] == 0);

    // By the host's own command: the array notices.
    assert!(daemon.run(&["mount", one.text()]).status.success());
    run("umount", &[one.text()]);
    wait_until(|| list(&daemon)["total"] == 0);
    assert!(daemon.run(&["mount", one.text()]).status.success());
    assert!(daemon.terminate().success());
    assert_eq!(mounts_at(one.path()), 0);
}

#[test]
fn what_cannot_be_mounted_is_refused_and_changes_nothing() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let full = scratch.join("full");
    std::fs::create_dir_all(full.join("something")).unwrap();
    std::fs::write(scratch.join("file"), "x").unwrap();
    let daemon = Daemon::start(&scratch.join("data"), &[]);
    let text = |name: &str| scratch.join(name).to_str().unwrap().to_owned();
    fails(&daemon.run(&["mount", &text("missing")]), NOT_FOUND, "mkdir");
    fails(&daemon.run(&["mount", &text("full")]), CONFLICT, "not empty");
    fails(&daemon.run(&["mount", &text("file")]), INVALID, "cannot be mounted on");
    fails(&daemon.run(&["umount", &text("missing")]), NOT_FOUND, "not a mount");
    fails(&daemon.run(&["umount", "/"]), NOT_FOUND, "not a mount");
    fails(&daemon.run(&["mount", "/", "--url", "http://192.0.2.1:1"]), INVALID, "another machine");
    fails(&daemon.run(&["umount", "/", "--url", "http://192.0.2.1:1"]), INVALID, "another machine");
    fails(&daemon.run(&["umount", &text("full"), "--url", "http://127.0.0.1:1"]), NOT_FOUND, "not a mount");

    let status = |method: &str, path: &str, body: &str| {
        let url = format!("{}/api/v1/mounts{path}", daemon.url);
        let kind = "Content-Type: application/json";
        let write = ["--silent", "--output", "/dev/null", "--write-out", "%{http_code}"];
        run("curl", &[&write[..], &["-X", method, "-H", kind, "-d", body, &url]].concat())
    };
    assert_eq!(status("POST", "", "{\"mountpoint\": \"relative\"}"), "400");
    assert_eq!(status("POST", "", "{\"mountpoint\": 7}"), "400");
    assert_eq!(status("POST", "", "{}"), "400");
    assert_eq!(status("POST", "", "{\"mountpoint\": \"/proc/1/nothing\"}"), "404");
    assert_eq!(status("POST", "", "{\"mountpoint\": \"/a\\u0000b\"}"), "400");
    assert_eq!(status("DELETE", "/%2Fnowhere", ""), "404");
    assert_eq!(status("DELETE", "/%2Fnowhere?lazy=maybe", ""), "400");
    assert_eq!(list(&daemon)["total"], 0);
    drop(daemon);

    let arguments = ["serve", "--api", "127.0.0.1:0", "--nbd", "127.0.0.1:0", "--data-dir", &text("data")];
    let output = output_in_time(sinter(scratch.path()).args(arguments).args(["--fuse", &text("missing")]));
    fails(&output, NOT_FOUND, "make the directory first");
}

#[test]
fn a_killed_daemon_leaves_no_mount_that_hangs() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let (one, two) = (MountPoint::new(scratch.join("one")), MountPoint::new(scratch.join("two")));
    let arguments = ["--volume", "disk:16MiB", "--fuse", one.text()];
    let daemon = Daemon::start(scratch.path(), &arguments);
    let file = OpenOptions::new().write(true).open(one.join("volumes/disk")).unwrap();
    file.write_all_at(b"answered", 4096).unwrap();
    let url = daemon.url.clone();
    daemon.kill();
    wait_until(|| is_dead(one.path()));
    let error = file.write_all_at(b"x", 0).unwrap_err();
    assert!(matches!(Errno::from_io_error(&error), Some(Errno::NOTCONN | Errno::CONNABORTED)), "{error}");

    let output = sinter(scratch.path()).args(["umount", one.text(), "--url", &url]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert_eq!(mounts_at(one.path()), 0);
    drop(file);

    // The next start does it, too: for its own directory and for others of the same pool.
    let daemon = Daemon::start(scratch.path(), &arguments);
    assert!(daemon.run(&["mount", two.text()]).status.success());
    daemon.kill();
    wait_until(|| is_dead(one.path()) && is_dead(two.path()));
    let daemon = Daemon::start(scratch.path(), &arguments);
    assert_eq!((mounts_at(one.path()), mounts_at(two.path())), (1, 0));
    let disk = std::fs::read(one.join("volumes/disk")).unwrap();
    assert_eq!(&disk[4096..4104], b"answered");

    // Another pool's mount is left alone: it is served.
    let other = MountPoint::new(scratch.join("other"));
    let elsewhere = Daemon::start(&scratch.join("elsewhere"), &["--fuse", other.text()]);
    fails(&daemon.run(&["umount", other.text()]), CONFLICT, "served by another array");
    assert_eq!(mounts_at(other.path()), 1);
    assert!(elsewhere.terminate().success());
    assert!(daemon.terminate().success());
}

#[test]
fn a_daemon_that_is_told_to_stop_waits_for_open_files() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let point = MountPoint::new(scratch.join("mount"));
    let daemon = Daemon::start(scratch.path(), &["--volume", "disk:16MiB", "--fuse", point.text()]);
    let file = OpenOptions::new().read(true).write(true).open(point.join("volumes/disk")).unwrap();
    let pid = daemon.pid().to_string();
    assert!(Command::new("kill").args(["-TERM", &pid]).status().unwrap().success());
    wait_until(|| mounts_at(point.path()) == 0);
    file.write_all_at(b"the last words", 0).unwrap();
    file.sync_all().unwrap();
    drop(file);
    assert!(daemon.wait().success());

    let daemon = Daemon::start(scratch.path(), &["--fuse", point.text()]);
    assert_eq!(&std::fs::read(point.join("volumes/disk")).unwrap()[..14], b"the last words");
    assert!(daemon.terminate().success());
}
