//! Images that do not come out whole: no file is left that looks as if they had.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::daemon::sinter;
use crate::failure;
use crate::noise;
use crate::text;

/// What there is in a directory, but for what stands in `known`.
fn others(directory: &Path, known: &[&str]) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(directory).unwrap().map(|entry| entry.unwrap().path());
    entries.filter(|path| !known.iter().any(|known| path.ends_with(known))).collect()
}

#[test]
fn an_export_over_a_bad_block_leaves_nothing_that_looks_whole() {
    let scratch = Scratch::new();
    let path = scratch.join("disk");
    let spec = format!("{},size=256MiB", path.display());
    let daemon = Daemon::start(scratch.path(), &["--device", &spec, "--volume", "demo:8MiB"]);
    let data = noise(8 << 20, 5);
    let image = scratch.join("image");
    std::fs::write(&image, &data).unwrap();
    text(&daemon.run(&["import", image.to_str().unwrap(), "demo"]));
    assert!(daemon.terminate().success());
    let mut content = std::fs::read(&path).unwrap();
    let needle = &data[4 << 20..(4 << 20) + 64];
    let place = content.windows(64).position(|window| window == needle).expect("noise is stored as it is");
    content[place] ^= 1;
    std::fs::write(&path, &content).unwrap();

    let daemon = Daemon::start(scratch.path(), &["--device", path.to_str().unwrap()]);
    let directory = scratch.join("out");
    std::fs::create_dir(&directory).unwrap();
    let out = directory.join("o.img");
    let out = out.to_str().unwrap();
    let error = failure(&daemon.run(&["export", "demo", out]), 14);
    assert!(error.contains("checksum") && error.contains("sinter check"), "{error}");
    assert_eq!(others(&directory, &[]), Vec::<PathBuf>::new());
    // What was there before is there still.
    std::fs::write(out, "precious").unwrap();
    failure(&daemon.run(&["export", "--yes", "demo", out]), 14);
    assert_eq!(std::fs::read(out).unwrap(), b"precious");
    assert_eq!(others(&directory, &["o.img"]), Vec::<PathBuf>::new());
    failure(&daemon.run(&["export", "demo", "-"]), 14);
}

#[test]
fn an_export_takes_the_place_of_a_file_with_its_mode() {
    use std::os::unix::fs::PermissionsExt;
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "demo:1MiB"]);
    let (file, link) = (scratch.join("o.img"), scratch.join("link"));
    std::fs::write(&file, "old").unwrap();
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::symlink(&file, &link).unwrap();
    text(&daemon.run(&["export", "--yes", "demo", link.to_str().unwrap()]));
    let found = std::fs::metadata(&file).unwrap();
    assert_eq!((found.len(), found.permissions().mode() & 0o777), (1 << 20, 0o640));
    assert!(std::fs::symlink_metadata(&link).unwrap().is_symlink());
}

#[test]
fn an_interrupted_export_leaves_nothing() {
    let scratch = Scratch::new();
    let daemon = Daemon::start(scratch.path(), &["--volume", "demo:64MiB"]);
    let image = scratch.join("image");
    std::fs::write(&image, noise(64 << 20, 9)).unwrap();
    text(&daemon.run(&["import", image.to_str().unwrap(), "demo"]));
    let directory = scratch.join("out");
    std::fs::create_dir(&directory).unwrap();
    let signal = |name: &str, pid: u32| {
        assert!(Command::new("kill").args([name, &pid.to_string()]).status().unwrap().success());
    };
    let mut export = sinter(scratch.path())
        .env("SINTER_URL", &daemon.url)
        .args(["export", "demo"])
        .arg(directory.join("o.img"))
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    while others(&directory, &[]).is_empty() {
        assert!(export.try_wait().unwrap().is_none(), "it ended before it began");
        std::thread::park_timeout(Duration::from_micros(100));
    }
    signal("-STOP", daemon.pid());
    assert!(!directory.join("o.img").exists(), "it has its name only once it is whole");
    signal("-INT", export.id());
    let status = export.wait().unwrap();
    signal("-CONT", daemon.pid());
    assert_eq!(status.code(), Some(130));
    assert_eq!(others(&directory, &[]), Vec::<PathBuf>::new());
}
