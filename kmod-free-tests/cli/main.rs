//! The command line against the real daemon: help, tables, JSON, exit statuses, configuration, images
//! in and out, and starts that must be refused.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "../common/daemon.rs"]
mod daemon;
mod hints;
mod refused;
mod snapshots;
mod transfers;

use std::process::Output;
use std::process::Stdio;

use serde_json::Value;

use daemon::Daemon;
use daemon::Scratch;
use daemon::sinter;

#[track_caller]
fn text(output: &Output) -> String {
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8(output.stdout.clone()).unwrap()
}

/// Asserts the exit status and the form of the error: one `error:` line and at most one `hint:` line.
#[track_caller]
fn failure(output: &Output, status: i32) -> String {
    let text = String::from_utf8(output.stderr.clone()).unwrap();
    assert_eq!(output.status.code(), Some(status), "{text}");
    // A note or what the daemon has logged may come before.
    let lines: Vec<&str> = text.lines().skip_while(|line| !line.starts_with("error: ")).collect();
    assert!(!lines.is_empty(), "{text}");
    assert!(lines.len() == 1 || (lines.len() == 2 && lines[1].starts_with("hint: ")), "{text}");
    text
}

/// Bytes that neither repeat nor compress.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

#[test]
fn every_help_lists_the_exit_statuses() {
    let scratch = Scratch::new();
    for arguments in [
        &["--help"][..],
        &["serve", "--help"],
        &["volume", "--help"],
        &["volume", "create", "--help"],
        &["snapshot", "--help"],
        &["snapshot", "restore", "--help"],
        &["flash", "--help"],
        &["wait", "--help"],
        &["import", "--help"],
        &["export", "--help"],
        &["status", "--help"],
        &["reduction", "--help"],
        &["check", "--help"],
        &["completions", "--help"],
        &["man", "--help"],
    ] {
        let help = text(&sinter(scratch.path()).args(arguments).output().unwrap());
        let flat = help.split_whitespace().collect::<Vec<_>>().join(" ");
        assert!(flat.contains("Exit status: 0 done; 1 failed; 2 wrong usage;"), "{help}");
        assert!(flat.ends_with("130 interrupted."), "{help}");
    }
    let version = text(&sinter(scratch.path()).arg("--version").output().unwrap());
    assert_eq!(version, format!("sinter {}\n", env!("CARGO_PKG_VERSION")));
    for arguments in [
        &[][..],
        &["conjure"],
        &["volume"],
        &["volume", "create", "x"],
        &["volume", "create", "x", "10 apples"],
    ] {
        let output = sinter(scratch.path()).args(arguments).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{arguments:?}");
        assert!(output.stdout.is_empty());
    }
}

#[test]
fn volumes_from_the_command_line() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &[]);
    let empty = daemon.run(&["volume", "list"]);
    assert!(String::from_utf8_lossy(&empty.stderr).contains("sinter volume create"));
    text(&daemon.run(&[
        "volume",
        "create",
        "data",
        "10GiB",
        "--description",
        "d",
        "--tag",
        "env=prod",
        "--tag",
        "a=b=c",
    ]));
    text(&daemon.run(&["volume", "create", "boot", "1G"]));
    text(&daemon.run(&["volume", "create", "exact", "1000000000"]));

    let table = text(&daemon.run(&["volume", "list", "-s", "size"]));
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(lines[0].split_whitespace().collect::<Vec<_>>(), ["NAME", "SIZE", "USED", "RATIO", "STATE"]);
    assert!(lines[1].starts_with("exact") && lines[3].starts_with("data"), "{table}");
    assert_eq!(
        lines[3].split_whitespace().collect::<Vec<_>>(),
        ["data", "10.0", "GiB", "0", "B", "1.00", "available"]
    );
    let rows = text(&daemon.run(&["volume", "list", "-H", "-p", "-o", "size,name", "-s", "name"]));
    assert_eq!(rows, "1073741824\tboot\n10737418240\tdata\n1000001536\texact\n");
    let list: Value = serde_json::from_str(&text(&daemon.run(&["volume", "list", "--json"]))).unwrap();
    assert_eq!(list["total"], 3);
    let shown: Value =
        serde_json::from_str(&text(&daemon.run(&["volume", "show", "data", "--json"]))).unwrap();
    assert_eq!(shown["tags"]["a"], "b=c");
    let id = shown["id"].as_str().unwrap();

    let resized = text(&daemon.run(&["volume", "resize", id, "20GiB"]));
    assert!(resized.contains("20.0 GiB"), "{resized}");
    text(&daemon.run(&["volume", "update", "data", "--name", "new", "--no-tags"]));
    let shown: Value = serde_json::from_str(&text(&daemon.run(&["volume", "show", id, "--json"]))).unwrap();
    assert_eq!((&shown["name"], &shown["description"]), (&"new".into(), &"d".into()));
    assert_eq!(shown["tags"], serde_json::json!({}));

    let error = failure(&daemon.run(&["volume", "show", "data"]), 10);
    assert!(error.contains("hint: `sinter volume list`"), "{error}");
    let error = failure(&daemon.run(&["volume", "create", "boot", "1GiB"]), 11);
    assert!(error.contains("`sinter volume show boot`"), "{error}");
    let error = failure(&daemon.run(&["volume", "update", "new", "--name", "boot"]), 11);
    assert!(error.contains("`sinter volume show boot`"), "{error}");
    for name in ["a/b", "", " ", " a", "a\t", "\u{a0}"] {
        failure(&daemon.run(&["volume", "create", name, "1GiB"]), 2);
    }
    failure(&daemon.run(&["volume", "resize", "boot", "1GiB"]), 2);
    let error = failure(&daemon.run(&["volume", "list", "-o", "colour"]), 2);
    assert!(error.contains("hint: the columns are name, size"), "{error}");
    let error = failure(&daemon.run(&["volume", "delete", "boot"]), 2);
    assert!(error.contains("--yes"), "{error}");
    assert!(text(&daemon.run(&["volume", "delete", "boot", "--yes"])).is_empty());
    failure(&daemon.run(&["volume", "delete", "boot", "--yes"]), 10);
}

#[test]
fn status_and_reduction() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "demo:1GiB"]);
    let status = text(&daemon.run(&["status"]));
    assert!(status.contains("healthy") && status.contains("volumes     1, 1.00 GiB provisioned"), "{status}");
    assert!(status.contains("kept back") && status.contains("\nwritable    "), "{status}");
    assert_eq!(text(&daemon.run(&["status", "-x"])), "");
    let json: Value = serde_json::from_str(&text(&daemon.run(&["status", "--json"]))).unwrap();
    assert_eq!(json["volumes"]["total"], 1);
    let capacity = |name: &str| json["capacity"][name].as_u64().unwrap();
    assert_eq!(capacity("reserved_bytes"), capacity("total_bytes") - capacity("usable_bytes"));
    assert!(capacity("writable_bytes") <= capacity("usable_bytes") - capacity("live_bytes"));
    assert!(capacity("writable_bytes") < capacity("free_bytes"));
    assert!(text(&daemon.run(&["reduction"])).contains("deduplication"));
    let json: Value = serde_json::from_str(&text(&daemon.run(&["reduction", "--json"]))).unwrap();
    assert_eq!(json["compression"]["algorithm"], "lz4");
}

#[test]
fn what_the_start_says_to_type_next_works() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &[]);
    let next = daemon.announcement.lines().last().unwrap();
    assert!(next.contains("volume create demo 10GiB"), "{next}");
    text(&std::process::Command::new("sh").args(["-c", next]).output().unwrap());
    assert_eq!(text(&daemon.run(&["volume", "list", "-H", "-o", "name"])), "demo\n");
    assert!(daemon.terminate().success());
    // A volume that is empty may be filled; one that holds something is looked at.
    let daemon = Daemon::start(scratch.path(), &[]);
    assert!(daemon.announcement.contains("nbdcopy disk.img"), "{}", daemon.announcement);
    let image = scratch.join("image");
    std::fs::write(&image, noise(1 << 20, 11)).unwrap();
    text(&daemon.run(&["import", image.to_str().unwrap(), "demo"]));
    assert!(daemon.terminate().success());
    let daemon = Daemon::start(scratch.path(), &[]);
    let announced = &daemon.announcement;
    assert!(!announced.contains("nbdcopy") && announced.contains("nbdinfo"), "{announced}");
}

#[test]
fn what_cannot_be_done_is_said_before_anyone_is_asked() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "demo:1MiB"]);
    assert_eq!(daemon.run(&["volume", "update", "demo"]).status.code(), Some(2));
    assert_eq!(daemon.run(&["volume", "update", "demo", "--json"]).status.code(), Some(2));
    text(&daemon.run(&["volume", "update", "demo", "--description", "x", "--json"]));
    text(&daemon.run(&["volume", "update", "demo", "--no-tags"]));
    text(&daemon.run(&["volume", "update", "demo", "--tag", "a=b"]));
    failure(&daemon.run(&["volume", "delete", "nosuch"]), 10);
    failure(&daemon.run(&["snapshot", "delete", "demo@nosuch"]), 10);
    assert!(failure(&daemon.run(&["volume", "delete", "demo"]), 2).contains("--yes"));
    let image = scratch.join("image");
    let image = image.to_str().unwrap();
    let error = failure(&daemon.run(&["export", "nosuch", image]), 10);
    assert!(!error.contains("volume create"), "{error}");
    let error = failure(&daemon.run(&["import", image, "nosuch"]), 10);
    assert!(error.contains("volume create nosuch"), "{error}");
}

#[test]
fn what_is_no_array_is_not_taken_for_one() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &[]);
    let ask = |url: &str| sinter(scratch.path()).args(["status", "--url", url]).output().unwrap();
    let error = failure(&ask(&daemon.nbd.replace("nbd://", "http://")), 15);
    assert!(error.contains("not the REST of a Sinter array"), "{error}");
    failure(&ask("http://127.0.0.1:99999"), 2);
    failure(&ask("http://127.0.0.1:port"), 2);
}

#[test]
fn an_array_that_cannot_be_reached_is_status_15() {
    let scratch = Scratch::new();
    let error = failure(
        &sinter(scratch.path()).args(["status", "--url", "http://127.0.0.1:1"]).output().unwrap(),
        15,
    );
    assert!(error.contains("sinter serve"), "{error}");
    failure(&sinter(scratch.path()).args(["--url", "http://127.0.0.1:1", "status"]).output().unwrap(), 15);
    failure(&sinter(scratch.path()).args(["status", "--url", "ftp://x"]).output().unwrap(), 2);
}

#[test]
fn a_closed_pipe_is_quiet_success_but_for_a_stream() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "demo:64MiB"]);
    let run_unread = |arguments: &[&str]| {
        let mut command = sinter(scratch.path());
        command.env("SINTER_URL", &daemon.url).args(arguments);
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        child.wait_with_output().unwrap()
    };
    let output = run_unread(&["volume", "list"]);
    assert!(output.status.success() && output.stderr.is_empty(), "{output:?}");
    let error = failure(&run_unread(&["export", "demo", "-"]), 1);
    assert!(error.contains("standard output") && error.contains("not the whole volume"), "{error}");
}

#[test]
fn images_come_back_byte_for_byte() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "demo:16MiB", "--volume", "stream:16MiB"]);
    let mut image = vec![0u8; (9 << 20) + 12_345];
    image[4096..(2 << 20) + 77].copy_from_slice(&noise((2 << 20) + 77 - 4096, 1));
    image[(6 << 20) + 3..(7 << 20) + 4].copy_from_slice(&noise((1 << 20) + 1, 2));
    let last = image.len() - 1;
    image[last] = 9;
    let (file, back) = (scratch.join("image"), scratch.join("back"));
    std::fs::write(&file, &image).unwrap();
    let (file, back) = (file.to_str().unwrap(), back.to_str().unwrap());
    let imported = daemon.run(&["import", file, "demo"]);
    assert!(imported.stdout.is_empty());
    let said = String::from_utf8_lossy(&imported.stderr).into_owned();
    assert!(imported.status.success() && said.lines().count() == 1, "no progress bar on a pipe: {said}");
    text(&daemon.run(&["export", "demo", back]));
    let mut expected = image.clone();
    expected.resize(16 << 20, 0);
    assert!(std::fs::read(back).unwrap() == expected);
    let blocks = std::os::unix::fs::MetadataExt::blocks(&std::fs::metadata(back).unwrap());
    assert!(blocks * 512 < 8 << 20, "holes stay holes: {blocks} sectors");

    // A second image takes the place of the first, to the volume's end; files are not overwritten unasked.
    let second = noise(5 << 20, 3);
    std::fs::write(file, &second).unwrap();
    failure(&daemon.run(&["import", file, "demo"]), 2);
    text(&daemon.run(&["import", "--yes", file, "demo"]));
    failure(&daemon.run(&["export", "demo", back]), 2);
    text(&daemon.run(&["export", "-y", "demo", back]));
    let mut expected = second.clone();
    expected.resize(16 << 20, 0);
    assert!(std::fs::read(back).unwrap() == expected);

    // Through pipes, and larger than the volume.
    let input = std::fs::File::open(file).unwrap();
    let mut import = sinter(scratch.path());
    import.env("SINTER_URL", &daemon.url).args(["import", "-", "stream"]).stdin(input);
    text(&import.output().unwrap());
    assert!(daemon.run(&["export", "stream", "-"]).stdout == expected);
    std::fs::File::create(file).unwrap().set_len((16 << 20) + 1).unwrap();
    let error = failure(&daemon.run(&["import", "--yes", file, "demo"]), 2);
    assert!(error.contains("sinter volume resize demo"), "{error}");
    let error = failure(&daemon.run(&["import", file, "none"]), 10);
    assert!(error.contains("sinter volume create none"), "{error}");
    failure(&daemon.run(&["import", "/nonexistent/image", "demo"]), 10);
}

#[test]
fn what_was_imported_outlives_a_stop_and_a_crash() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "demo:16MiB"]);
    let id = text(&daemon.run(&["volume", "list", "-H", "-o", "id"]));
    let file = scratch.join("image");
    let image = noise(3 << 20, 7);
    std::fs::write(&file, &image).unwrap();
    text(&daemon.run(&["import", file.to_str().unwrap(), "demo"]));
    assert!(daemon.terminate().success());
    assert!(!scratch.join("nbd.sock").exists(), "the socket goes with the daemon");
    let daemon = Daemon::start(scratch.path(), &["--volume", "demo:32MiB"]);
    assert_eq!(daemon.run(&["export", "demo", "-"]).stdout[..image.len()], image);
    assert!(daemon.announcement.contains("/demo"), "{}", daemon.announcement);
    text(&daemon.run(&["volume", "create", "late", "1MiB"]));
    daemon.kill();
    let daemon = Daemon::start(scratch.path(), &[]);
    assert_eq!(daemon.run(&["export", "demo", "-"]).stdout[..image.len()], image);
    assert_eq!(
        text(&daemon.run(&["volume", "list", "-H", "-o", "name,size", "-p"])),
        "demo\t16777216\nlate\t1048576\n"
    );
    assert!(text(&daemon.run(&["volume", "list", "-H", "-o", "id"])).starts_with(&id));
}

#[test]
fn what_snapshots_share_is_shown_and_an_estimate_is_marked() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "demo:16MiB"]);
    let image = scratch.join("image");
    std::fs::write(&image, noise(4 << 20, 21)).unwrap();
    text(&daemon.run(&["import", image.to_str().unwrap(), "demo"]));
    let sharing = || -> Value {
        let shown = text(&daemon.run(&["reduction", "--json"]));
        serde_json::from_str::<Value>(&shown).unwrap()["sharing"].clone()
    };
    assert_eq!((&sharing()["held_bytes"], &sharing()["shared_bytes"]), (&(4 << 20).into(), &0.into()));
    let estimated = || -> Value {
        let shown = text(&daemon.run(&["volume", "show", "demo", "--json"]));
        serde_json::from_str::<Value>(&shown).unwrap()["reduction_is_estimate"].clone()
    };
    let before = estimated();
    let ratio = text(&daemon.run(&["volume", "list", "-H", "-o", "ratio"]));
    // It may be measured at any moment, and then stays so.
    if before == estimated() {
        assert_eq!(ratio.starts_with('~'), before == true, "{ratio}");
    }
    let exact = text(&daemon.run(&["volume", "list", "-H", "-p", "-o", "ratio"]));
    assert!(exact.trim().parse::<f64>().is_ok(), "{exact}");
    text(&daemon.run(&["snapshot", "create", "demo@one"]));
    text(&daemon.run(&["volume", "clone", "demo", "copy"]));
    let found = sharing();
    let figures = ["held_bytes", "distinct_bytes", "shared_bytes"].map(|name| found[name].as_u64().unwrap());
    assert_eq!(figures, [12 << 20, 4 << 20, 8 << 20]);
    let shown = text(&daemon.run(&["reduction"]));
    assert!(shown.contains("sharing        12.0 MiB") && shown.contains("8.00 MiB of it shared"), "{shown}");
}

#[test]
fn an_image_is_not_put_below_a_connected_client_unless_by_force() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "demo:1MiB"]);
    let image = scratch.join("image");
    std::fs::write(&image, noise(4096, 5)).unwrap();
    let image = image.to_str().unwrap();
    let address = sinter::export::nbd::client::Address::Unix(daemon.socket());
    let client = sinter::export::nbd::client::Client::connect(&address, "demo", 1).unwrap();
    let error = failure(&daemon.run(&["import", "--yes", image, "demo"]), 11);
    assert!(error.contains("in use") && error.contains("--force"), "{error}");
    assert!(daemon.run(&["export", "demo", "-"]).stdout.iter().all(|byte| *byte == 0));
    text(&daemon.run(&["import", "--yes", "--force", image, "demo"]));
    client.disconnect().unwrap();
    // Whoever has just gone is not in the way.
    text(&daemon.run(&["import", "--yes", image, "demo"]));
}

#[test]
fn a_scrub_is_waited_for() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "demo:64MiB"]);
    let image = scratch.join("image");
    std::fs::write(&image, noise(8 << 20, 6)).unwrap();
    text(&daemon.run(&["import", image.to_str().unwrap(), "demo"]));
    text(&daemon.run(&["wait", "--for", "scrub"]));
    text(&daemon.run(&["scrub"]));
    text(&daemon.run(&["wait", "--for", "scrub,delete"]));
    assert!(text(&daemon.run(&["scrub", "status"])).contains("finished"));
}
