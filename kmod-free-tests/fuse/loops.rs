//! File systems on a loop device over `volumes/NAME`: under load, trimmed, checked and mounted again.

use std::path::Path;

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::host::Loop;
use crate::host::MountPoint;
use crate::host::has_loop;
use crate::host::run;
use crate::host::unmount;
use crate::load::FileLoad;
use crate::seed;
use crate::steps;

const MIB: u64 = 1 << 20;

fn used_bytes(daemon: &Daemon) -> u64 {
    let output = daemon.run(&["volume", "show", "disk", "--json"]);
    let volume: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    volume["used_bytes"].as_u64().unwrap()
}

fn mount(device: &Loop, point: &MountPoint) {
    run("mount", &["-o", "noatime", device.device(), point.text()]);
}

/// Loads the file system, trims it, takes it apart, checks it, and finds everything again.
fn survives(kind: &str, make: &[&str], check: &[&str], more: &[&str]) {
    if !has_loop(kind) {
        return;
    }
    let seed = seed();
    let scratch = Scratch::new();
    let point = MountPoint::new(scratch.join("mount"));
    let inner = MountPoint::new(scratch.join("inner"));
    let arguments = ["--volume", "disk:400MiB", "--fuse", point.text()];
    let daemon = Daemon::start(scratch.path(), &arguments);
    let file = point.join("volumes/disk");

    let device = Loop::attach(&file, more);
    run(make[0], &[&make[1..], &[device.device()]].concat());
    mount(&device, &inner);
    let mut load = FileLoad::new(&inner.join("load"), seed);
    load.run(steps(1500));
    let ballast = inner.join("ballast");
    let mut noise = vec![0; 24 << 20];
    sinter::sync::RandomSource::fill(&crate::pool::SeededRandom::new(seed), &mut noise);
    std::fs::write(&ballast, &noise).unwrap();
    run("sync", &["--file-system", inner.text()]);
    let full = used_bytes(&daemon);

    std::fs::remove_file(&ballast).unwrap();
    // A file system may take its time before it counts the blocks of a removed file as free.
    let trimmed = (0..50).map(|_| {
        run("sync", &["--file-system", inner.text()]);
        run("fstrim", &[inner.text()]);
        used_bytes(&daemon)
    });
    let enough = trimmed.into_iter().find(|trimmed| trimmed + 20 * MIB < full);
    assert!(enough.is_some(), "fstrim gives nothing back of {full} bytes");
    load.verify(&inner.join("load"));
    load.run(steps(1500) / 3);
    unmount(inner.text());
    run(check[0], &[&check[1..], &[device.device()]].concat());
    device.detach();

    // What the next daemon shows is what this one was told to keep.
    assert!(daemon.terminate().success());
    let daemon = Daemon::start(scratch.path(), &arguments);
    let device = Loop::attach(&file, more);
    mount(&device, &inner);
    load.verify(&inner.join("load"));
    unmount(inner.text());
    device.detach();
    assert!(daemon.terminate().success());
    assert!(!Path::new(&file).exists());
}

#[test]
fn ext4_on_a_volume_survives_load_and_fstrim() {
    survives("ext4", &["mkfs.ext4", "-q"], &["e2fsck", "-fn"], &[]);
}

#[test]
fn ext4_on_a_volume_survives_load_without_the_loop_devices_own_cache() {
    survives("ext4", &["mkfs.ext4", "-q"], &["e2fsck", "-fn"], &["--direct-io=on", "--sector-size=4096"]);
}

#[test]
fn a_snapshot_of_a_live_ext4_shows_its_files_as_of_that_moment() {
    if !has_loop("ext4") {
        return;
    }
    let scratch = Scratch::new();
    let point = MountPoint::new(scratch.join("mount"));
    let (inner, then) = (MountPoint::new(scratch.join("inner")), MountPoint::new(scratch.join("then")));
    let daemon = Daemon::start(scratch.path(), &["--volume", "disk:64MiB", "--fuse", point.text()]);
    let snapshots = || std::fs::read_dir(point.join("snapshots")).unwrap().count();
    assert_eq!(snapshots(), 0);
    let device = Loop::attach(&point.join("volumes/disk"), &[]);
    run("mkfs.ext4", &["-q", device.device()]);
    mount(&device, &inner);
    let mut load = FileLoad::new(&inner.join("load"), seed());
    load.run(steps(300));
    std::fs::write(inner.join("diary"), "monday").unwrap();
    run("sync", &["--file-system", inner.text()]);
    let taken = daemon.run(&["snapshot", "create", "disk@monday"]);
    assert!(taken.status.success(), "{taken:?}");

    std::fs::write(inner.join("diary"), "tuesday").unwrap();
    std::fs::remove_dir_all(inner.join("load")).unwrap();
    run("sync", &["--file-system", inner.text()]);
    assert_eq!(snapshots(), 1);
    let file = point.join("snapshots/disk/monday");
    std::fs::OpenOptions::new().write(true).open(&file).unwrap_err();
    let picture = Loop::attach(&file, &["--read-only"]);
    // Without replaying the journal, which nothing can be written to; `sync` has left nothing in it to replay.
    run("mount", &["-o", "ro,noload", picture.device(), then.text()]);
    assert_eq!(std::fs::read_to_string(then.join("diary")).unwrap(), "monday");
    assert_eq!(std::fs::read_to_string(inner.join("diary")).unwrap(), "tuesday");
    load.verify(&then.join("load"));

    let refused = daemon.run(&["snapshot", "delete", "disk@monday", "--yes"]);
    assert_eq!(refused.status.code(), Some(11), "it is mounted: {refused:?}");
    unmount(then.text());
    picture.detach();
    let deleted = daemon.run(&["snapshot", "delete", "disk@monday", "--yes"]);
    assert!(deleted.status.success(), "{deleted:?}");
    assert!(!file.exists() && snapshots() == 0);
    unmount(inner.text());
    device.detach();
    assert!(daemon.terminate().success());
}

#[test]
fn xfs_on_a_volume_survives_load_and_fstrim() {
    survives("xfs", &["mkfs.xfs", "-q"], &["xfs_repair", "-n"], &[]);
}
