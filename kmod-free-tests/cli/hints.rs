//! Whatever is refused, one line says why and one what helps, in the words of the command line.

use std::process::Output;

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::daemon::output_in_time;
use crate::daemon::sinter;
use crate::failure;
use crate::text;

/// The hint of a command that failed with this status.
#[track_caller]
fn hint(output: &Output, status: i32) -> String {
    let said = failure(output, status);
    let hint = said.lines().find_map(|line| line.strip_prefix("hint: "));
    hint.unwrap_or_else(|| panic!("there is no hint: {said}")).to_owned()
}

#[test]
fn what_the_array_refuses_has_a_hint() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "demo:1MiB"]);
    let refused = |arguments: &[&str], status| hint(&daemon.run(arguments), status);
    assert!(refused(&["volume", "create", "a/b", "1GiB"], 2).contains("sinter volume create --help"));
    assert!(refused(&["volume", "update", "demo", "--name", "a@b"], 2).contains("--help"));
    assert!(refused(&["volume", "clone", "demo", ".."], 2).contains("--help"));
    assert!(refused(&["snapshot", "create", "demo@a/b"], 2).contains("--help"));
    assert!(refused(&["volume", "resize", "demo", "1KiB"], 2).contains("sinter volume show demo"));
    assert!(refused(&["umount", scratch.path().to_str().unwrap()], 10).contains("sinter mount"));
    let (full, file) = (scratch.join("full"), scratch.join("full/file"));
    std::fs::create_dir(&full).unwrap();
    std::fs::write(&file, "x").unwrap();
    for (point, status) in [(&full, 11), (&file, 2)] {
        assert!(refused(&["mount", point.to_str().unwrap()], status).contains("empty directory"));
    }
    let nowhere = scratch.join("nowhere/image");
    let nowhere = nowhere.to_str().unwrap();
    assert!(refused(&["export", "demo", nowhere], 10).contains("there is no directory"));
    assert!(refused(&["import", nowhere, "demo"], 10).contains("there is no directory"));
    assert!(refused(&["export", "demo", full.to_str().unwrap()], 2).contains("ls -la"));
    assert!(refused(&["import", full.to_str().unwrap(), "demo"], 2).contains("ls -la"));
}

#[test]
fn sizes_and_names_are_spoken_of_as_they_are_typed() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "demo:1MiB"]);
    for arguments in [
        &["volume", "create", "x", "257TiB"][..],
        &["volume", "create", "x", "0"],
        &["volume", "resize", "demo", "257TiB"],
    ] {
        let output = daemon.run(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("at most 256 TiB") && !said.contains("size_bytes"), "{said}");
    }
    for verb in ["show", "delete"] {
        let output = daemon.run(&["volume", verb, ""]);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{said}");
        assert!(said.contains("VOLUME") && !said.contains("/api/"), "{said}");
    }
}

#[test]
fn a_full_device_behind_standard_output_is_status_12() {
    let scratch = Scratch::new();
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").unwrap();
    let output = sinter(scratch.path()).arg("man").stdout(full).output().unwrap();
    assert!(failure(&output, 12).contains("standard output"));
}

#[test]
fn refused_starts_have_a_hint() {
    let scratch = Scratch::new();
    let start = |arguments: &[&str]| {
        let ports = ["serve", "--api", "127.0.0.1:0", "--nbd", "127.0.0.1:0"];
        output_in_time(sinter(scratch.path()).args(ports).args(arguments))
    };
    assert!(hint(&start(&["--config", "/nonexistent/sinter.toml"]), 10).contains("--config"));
    assert!(hint(&start(&["--device", "/dev/null"]), 2).contains("lsblk"));
    let path = scratch.join("disk");
    let device = path.to_str().unwrap();
    let daemon = Daemon::start(scratch.path(), &["--device", &format!("{device},size=64MiB")]);
    assert!(daemon.terminate().success());
    let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
    file.set_len(32 << 20).unwrap();
    let output = start(&["--device", device]);
    let status = output.status.code().unwrap();
    assert!(!hint(&output, status).is_empty() && status != 0);
}

#[test]
fn a_second_array_in_one_data_directory_is_told_so_first() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &[]);
    let url = daemon.url.strip_prefix("http://").unwrap();
    let data = scratch.path().to_str().unwrap();
    // Also where the port would be taken.
    for api in ["127.0.0.1:0", url] {
        let arguments = ["serve", "--api", api, "--nbd", "127.0.0.1:0", "--data-dir", data];
        let said = failure(&output_in_time(sinter(scratch.path()).args(arguments)), 11);
        assert!(said.contains("data directory") && said.contains("--data-dir"), "{said}");
    }
    text(&daemon.run(&["status"]));
}
