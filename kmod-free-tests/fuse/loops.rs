//! File systems on a loop device over `volumes/NAME`: under load, trimmed, checked and mounted again.

use std::path::Path;

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::host::Loop;
use crate::host::MountPoint;
use crate::host::has_loop;
use crate::host::run;
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
    run("umount", &[inner.text()]);
    run(check[0], &[&check[1..], &[device.device()]].concat());
    device.detach();

    // What the next daemon shows is what this one was told to keep.
    assert!(daemon.terminate().success());
    let daemon = Daemon::start(scratch.path(), &arguments);
    let device = Loop::attach(&file, more);
    mount(&device, &inner);
    load.verify(&inner.join("load"));
    run("umount", &[inner.text()]);
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
fn xfs_on_a_volume_survives_load_and_fstrim() {
    survives("xfs", &["mkfs.xfs", "-q"], &["xfs_repair", "-n"], &[]);
}
