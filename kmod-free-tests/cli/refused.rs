//! Configuration, and starts that must be refused with the right status and without any change.

use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use sinter::format::checksum;
use sinter::format::superblock::{
    SUPERBLOCK_AREA_BYTES, SUPERBLOCK_BYTES, SUPERBLOCK_SLOT_BYTES, Superblock,
};

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::daemon::output_in_time;
use crate::daemon::sinter;
use crate::failure;
use crate::text;

/// A start that ends by itself because it is refused.
fn serve(home: &Path, arguments: &[&str]) -> Output {
    let ports = ["serve", "--api", "127.0.0.1:0", "--nbd", "127.0.0.1:0"];
    output_in_time(sinter(home).args(ports).args(arguments))
}

#[test]
fn the_configuration_in_force_is_printed() {
    let scratch = Scratch::new();
    let file = scratch.join("sinter.toml");
    std::fs::write(
        &file,
        "[array]\nname = \"from-file\"\n[memory]\nindex = \"32MiB\"\nmetadata = \"32MiB\"\n",
    )
    .unwrap();
    let printed = sinter(scratch.path())
        .args(["serve", "--print-config", "--api", "127.0.0.1:9000", "--config"])
        .arg(&file)
        .env("SINTER_MEMORY_INDEX", "16MiB")
        .output()
        .unwrap();
    let printed = text(&printed);
    for line in [
        "name = \"from-file\"",
        "index = \"16MiB\"",
        "metadata = \"32MiB\"",
        "listen = \"127.0.0.1:9000\"",
        "sync_after = \"100ms\"",
    ] {
        assert!(printed.contains(line), "{line}: {printed}");
    }
    let home = scratch.path().display();
    for line in [
        format!("devices = [\"{home}/.local/share/sinter/pool.sinter,size=16GiB\"]"),
        format!("unix = \"{home}/.local/share/sinter/nbd.sock\""),
    ] {
        assert!(printed.contains(&line), "{line}: {printed}");
    }
    // What is printed is a file that says the same.
    std::fs::write(&file, &printed).unwrap();
    let again =
        sinter(scratch.path()).args(["serve", "--print-config", "--config"]).arg(&file).output().unwrap();
    assert_eq!(text(&again), printed);
    // The user's own file is found without being named.
    std::fs::create_dir_all(scratch.join(".config/sinter")).unwrap();
    std::fs::write(scratch.join(".config/sinter/sinter.toml"), "[array]\nname = \"mine\"\n").unwrap();
    let found = text(&sinter(scratch.path()).args(["serve", "--print-config"]).output().unwrap());
    assert!(found.contains("name = \"mine\""), "{found}");
}

#[test]
fn a_wrong_configuration_is_refused() {
    let scratch = Scratch::new();
    let file = scratch.join("sinter.toml");
    let load = |content: &str| {
        std::fs::write(&file, content).unwrap();
        failure(&serve(scratch.path(), &["--config", file.to_str().unwrap()]), 2)
    };
    let error = load("[pool]\n\nsegment_sise = \"4MiB\"\n");
    assert!(error.contains("sinter.toml:3: there is no key `pool.segment_sise`"), "{error}");
    assert!(error.contains("hint: did you mean `pool.segment_size`?"), "{error}");
    let error = load("[memory]\nrequests = \"1MiB\"\n");
    assert!(error.contains("sinter.toml:2: memory.requests: 1MiB is less than 33MiB"), "{error}");
    load("[memory\n");
    load("[api]\nlisten = 8000\n");
    assert!(load("[memory]\nindex = \"1TiB\"\n").contains("this machine has"));
    // What is printed is what a start would take.
    for (variable, value) in [("SINTER_NBD_LISTEN", "1.2.3.4:5"), ("SINTER_POOL_SEGMENT_SIZE", "3MiB")] {
        let mut command = sinter(scratch.path());
        let output = command.args(["serve", "--print-config"]).env(variable, value).output().unwrap();
        failure(&output, 2);
        assert!(output.stdout.is_empty());
    }
    failure(&serve(scratch.path(), &["--config", "/nonexistent/sinter.toml"]), 10);
    failure(&output_in_time(sinter(scratch.path()).args(["serve", "--nbd", "everywhere"])), 2);
    let variable = output_in_time(sinter(scratch.path()).arg("serve").env("SINTER_LOG_SYNC_AFTER", "soon"));
    assert!(failure(&variable, 2).contains("SINTER_LOG_SYNC_AFTER"));
    assert!(!scratch.join(".local").exists(), "nothing was made");
}

#[test]
fn only_loopback_is_served_unasked() {
    let scratch = Scratch::new();
    for arguments in [["--api", "0.0.0.0:0"], ["--nbd", "0.0.0.0:0"], ["--nbd", "[::]:0"]] {
        let output = output_in_time(sinter(scratch.path()).arg("serve").args(arguments));
        assert!(failure(&output, 2).contains("--insecure-open"));
    }
    assert!(!scratch.join(".local").exists(), "nothing was made");
}

#[test]
fn a_taken_port_is_a_conflict() {
    let scratch = Scratch::new();
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    for (arguments, flag) in [
        (["--api", &address, "--nbd", "127.0.0.1:0"], "--api"),
        (["--api", "127.0.0.1:0", "--nbd", &address], "--nbd"),
    ] {
        let output = output_in_time(sinter(scratch.path()).arg("serve").args(arguments));
        assert!(failure(&output, 11).contains(flag));
    }
    assert!(!scratch.join(".local").exists(), "nothing was made");
}

#[test]
fn devices_that_are_missing_or_in_use_are_refused() {
    let scratch = Scratch::new();
    let missing = scratch.join("missing");
    let error = failure(&serve(scratch.path(), &["--device", missing.to_str().unwrap()]), 10);
    assert!(error.contains("size=16GiB"), "{error}");
    assert!(!missing.exists());
    let error = failure(&serve(scratch.path(), &["--device", "/dev/no-such-device"]), 10);
    assert!(!error.contains("size="), "{error}");
    let nowhere = format!("{},size=1GiB", scratch.join("nowhere/disk").display());
    let error = failure(&serve(scratch.path(), &["--device", &nowhere]), 10);
    assert!(error.contains("directory is missing"), "{error}");

    let one = format!("{},size=1GiB", scratch.join("one").display());
    let daemon = Daemon::start(scratch.path(), &["--device", &one]);
    assert_eq!(std::fs::metadata(scratch.join("one")).unwrap().len(), 1 << 30);
    failure(&serve(scratch.path(), &["--nbd-unix", "none", "--device", &one]), 11);
    failure(&serve(scratch.path(), &["--device", &one, "--device", &one]), 2);
    drop(daemon);
}

#[test]
fn foreign_content_is_only_taken_over_by_force() {
    let scratch = Scratch::new();
    let path = scratch.join("disk");
    let mut content = vec![0u8; 1 << 30 >> 2];
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(&path, &content).unwrap();
    let device = path.to_str().unwrap();
    let error = failure(&serve(scratch.path(), &["--device", device]), 11);
    assert!(error.contains("not Sinter's") && error.contains("--force"), "{error}");
    assert!(std::fs::read(&path).unwrap() == content, "nothing was written");
    let error = failure(&check(scratch.path(), &["--device", device]), 11);
    assert!(!error.contains("--force") && error.contains("--data-dir"), "check cannot take over: {error}");
    let daemon = Daemon::start(scratch.path(), &["--device", device, "--force", "--volume", "demo:1MiB"]);
    assert!(daemon.terminate().success());
    // By then it is a pool, which force leaves alone.
    let daemon = Daemon::start(scratch.path(), &["--device", device, "--force"]);
    assert!(text(&daemon.run(&["volume", "list", "-H"])).starts_with("demo\t"));
}

#[test]
fn a_pool_of_another_format_version_is_named_and_left_alone() {
    let scratch = Scratch::new();
    let path = scratch.join("disk");
    let device = path.to_str().unwrap();
    let daemon = Daemon::start(scratch.path(), &["--device", &format!("{device},size=64MiB")]);
    assert!(daemon.terminate().success());
    let mut content = std::fs::read(&path).unwrap();
    let end = content.len() - SUPERBLOCK_AREA_BYTES as usize;
    let slot = SUPERBLOCK_SLOT_BYTES as usize;
    for version in [1u16, 2] {
        let mut changed = 0;
        for start in [0, slot, end, end + slot] {
            let superblock = &mut content[start..start + SUPERBLOCK_BYTES];
            if Superblock::version(superblock).is_some() {
                superblock[8..10].copy_from_slice(&version.to_le_bytes());
                let (summed, sum) = superblock.split_at_mut(SUPERBLOCK_BYTES - 8);
                sum.copy_from_slice(&checksum(summed).to_le_bytes());
                changed += 1;
            }
        }
        assert!(changed >= 2);
        std::fs::write(&path, &content).unwrap();
        for refused in
            [serve(scratch.path(), &["--device", device]), check(scratch.path(), &["--device", device])]
        {
            let error = failure(&refused, 11);
            assert!(error.contains(&format!("version {version}")) && error.contains("version 4"), "{error}");
        }
        assert!(std::fs::read(&path).unwrap() == content, "nothing was written");
    }
}

#[test]
fn what_is_wrong_is_found_before_a_device_is_touched() {
    let scratch = Scratch::new();
    let path = scratch.join("disk");
    let mut content = vec![7u8; 64 << 20];
    content[510..512].copy_from_slice(&[0x55, 0xaa]);
    std::fs::write(&path, &content).unwrap();
    std::fs::write(scratch.join("file"), "no socket").unwrap();
    let (file, nowhere, long) =
        (scratch.join("file"), scratch.join("nowhere/s"), scratch.join(&"s".repeat(120)));
    let listening = scratch.join("listening");
    let _listener = std::os::unix::net::UnixListener::bind(&listening).unwrap();
    let made = scratch.join("made");
    let new = format!("{},size=256MiB", made.display());
    let full = scratch.path().to_str().unwrap();
    for (arguments, status) in [
        (["--volume", "bad:0"], 2),
        (["--volume", "a@b:1GiB"], 2),
        (["--volume", "huge:257TiB"], 2),
        (["--nbd-unix", file.to_str().unwrap()], 11),
        (["--nbd-unix", listening.to_str().unwrap()], 11),
        (["--nbd-unix", nowhere.to_str().unwrap()], 2),
        (["--nbd-unix", long.to_str().unwrap()], 2),
        (["--fuse", nowhere.to_str().unwrap()], 10),
        (["--fuse", file.to_str().unwrap()], 2),
        (["--fuse", full], 11),
    ] {
        let force = ["--force", "--device", path.to_str().unwrap()];
        failure(&serve(scratch.path(), &[&force[..], &arguments].concat()), status);
        assert!(std::fs::read(&path).unwrap() == content, "{arguments:?} has cost what the device held");
        failure(&serve(scratch.path(), &[&["--device", &new][..], &arguments].concat()), status);
        assert!(!made.exists(), "{arguments:?}");
    }
}

#[test]
fn a_pool_is_only_opened_whole() {
    let scratch = Scratch::new();
    let spec = |name: &str| format!("{},size=256MiB", scratch.join(name).display());
    let (one, two, other, missing) = (spec("one"), spec("two"), spec("other"), spec("missing"));
    drop(Daemon::start(scratch.path(), &["--device", &one, "--device", &two, "--volume", "demo:1MiB"]));
    drop(Daemon::start(scratch.path(), &["--device", &other]));
    let error = failure(&serve(scratch.path(), &["--device", &two]), 11);
    assert!(error.contains("has 2 devices, and 1 of them"), "{error}");
    let error = failure(&serve(scratch.path(), &["--device", &one, "--device", &other]), 11);
    assert!(error.contains("belongs to pool"), "{error}");
    failure(&serve(scratch.path(), &["--device", &one, "--device", &two, "--device", &other]), 11);
    let error = failure(&serve(scratch.path(), &["--device", &one, "--device", &missing]), 10);
    assert!(error.contains("missing is missing"), "{error}");
    assert!(!scratch.join("missing").exists());
    // The order in which they are given makes no difference.
    let daemon = Daemon::start(scratch.path(), &["--device", &two, "--device", &one]);
    assert!(text(&daemon.run(&["volume", "list", "-H"])).starts_with("demo\t"));
}

#[test]
fn a_geometry_that_cannot_work_leaves_nothing_behind() {
    let scratch = Scratch::new();
    let tiny = format!("{},size=64KiB", scratch.join("tiny").display());
    failure(&serve(scratch.path(), &["--device", &tiny]), 2);
    assert!(!scratch.join("tiny").exists());
    let empty = scratch.join("empty");
    std::fs::write(&empty, "").unwrap();
    let error = failure(&serve(scratch.path(), &["--device", empty.to_str().unwrap()]), 2);
    assert!(error.contains("hint: remove"), "a file that exists is not made: {error}");
    let file = scratch.join("sinter.toml");
    std::fs::write(&file, "[pool]\nsegment_size = 5000000\n").unwrap();
    let error = failure(&serve(scratch.path(), &["--config", file.to_str().unwrap()]), 2);
    assert!(error.contains("hint: pool.segment_size"), "{error}");
}

#[test]
fn check_finds_nothing_and_then_what_was_damaged() {
    let scratch = Scratch::new();
    failure(&check(scratch.path(), &[]), 10);
    let path = scratch.join("disk");
    let spec = format!("{},size=256MiB", path.display());
    let device = ["--device", path.to_str().unwrap()];
    let daemon = Daemon::start(scratch.path(), &["--device", &spec, "--volume", "demo:32MiB"]);
    let image = scratch.join("image");
    std::fs::write(&image, crate::noise(8 << 20, 5)).unwrap();
    text(&daemon.run(&["import", image.to_str().unwrap(), "demo"]));
    text(&daemon.run(&["snapshot", "create", "demo@monday"]));
    text(&daemon.run(&["volume", "clone", "demo", "copy"]));
    failure(&check(scratch.path(), &device), 11);
    assert!(daemon.terminate().success());
    for mode in [&[][..], &["--no-recovery"]] {
        let sound = check(scratch.path(), &[&device[..], mode].concat());
        assert!(text(&sound).is_empty());
        let said = String::from_utf8_lossy(&sound.stderr).into_owned();
        assert!(said.contains("2 volumes, 1 snapshot, ") && said.contains("no faults"), "{said}");
    }
    // Somewhere in the middle of the eight noisy mebibytes a byte rots.
    let mut content = std::fs::read(&path).unwrap();
    let noise = std::fs::read(&image).unwrap();
    let needle = &noise[4 << 20..(4 << 20) + 64];
    let place = content.windows(64).position(|window| window == needle).expect("noise is stored as it is");
    content[place] ^= 1;
    std::fs::write(&path, &content).unwrap();
    let damaged = check(scratch.path(), &device);
    assert!(failure(&damaged, 14).contains("the pool has 1 fault"));
    let line = String::from_utf8_lossy(&damaged.stdout).into_owned();
    assert_eq!(line.lines().count(), 1);
    for name in ["volume demo", "volume copy", "snapshot demo@monday"] {
        assert!(line.contains(&format!("{name} at offset 4194304, 4096 bytes")), "{line}");
    }
    // Off a terminal a repair must be wanted in so many words.
    failure(&check(scratch.path(), &[&device[..], &["--repair"]].concat()), 2);
    let repaired = check(scratch.path(), &[&device[..], &["--repair", "--yes"]].concat());
    assert!(text(&repaired).starts_with("repaired: block"), "{repaired:?}");
    assert!(text(&check(scratch.path(), &device)).is_empty());
}

/// `sinter check` on this machine's devices.
fn check(home: &Path, arguments: &[&str]) -> Output {
    output_in_time(sinter(home).arg("check").args(arguments))
}
