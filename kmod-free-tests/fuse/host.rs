//! What the machine offers, and taking things off it again when a test is over.

use std::path::Path;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

/// Whether FUSE can be mounted here; says so on standard error where it cannot.
pub(crate) fn has_fuse() -> bool {
    let can_open = std::fs::OpenOptions::new().read(true).write(true).open("/dev/fuse").is_ok();
    offers(can_open && rustix::process::geteuid().is_root(), "mounts: they need /dev/fuse and root")
}

/// Whether a loop device can be made over a mount, and the file system of this kind be made and mounted.
pub(crate) fn has_loop(kind: &str) -> bool {
    let free = Command::new("losetup").arg("--find").output().is_ok_and(|output| output.status.success());
    let known = std::fs::read_to_string("/proc/filesystems").is_ok_and(|list| list.contains(kind));
    let make = Command::new(format!("mkfs.{kind}")).arg("-V").output().is_ok();
    has_fuse()
        && offers(free && known && make, &format!("{kind} on a loop device: losetup, mkfs.{kind}, kernel"))
}

#[expect(clippy::print_stderr, reason = "a test that was left out must be seen")]
fn offers(there: bool, what: &str) -> bool {
    if !there {
        eprintln!("NOT VERIFIED: {what}");
    }
    there
}

/// Runs a command that must succeed; what it printed.
#[track_caller]
pub(crate) fn run(command: &str, arguments: &[&str]) -> String {
    let output =
        Command::new(command).args(arguments).output().unwrap_or_else(|error| panic!("{command}: {error}"));
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(
        output.status.success(),
        "{command} {arguments:?}: {said}{}",
        String::from_utf8_lossy(&output.stdout)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Unmounts a file system. A command that another test is just starting holds what was open here until it has
/// begun: then it is busy for a moment.
#[track_caller]
pub(crate) fn unmount(point: &str) {
    for _ in 0..100 {
        if Command::new("umount").arg(point).output().unwrap().status.success() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(50));
    }
    run("umount", &[point]);
}

/// The lines of the kernel's list of mounts that name this directory.
pub(crate) fn mounts_at(point: &Path) -> usize {
    let list = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    // As the kernel writes a space.
    let point = point.to_str().unwrap().replace(' ', "\\040");
    list.lines().filter(|line| line.split(' ').nth(4) == Some(&point)).count()
}

/// A directory that something is mounted on; whatever is left of that goes with the test.
pub(crate) struct MountPoint(PathBuf);

impl MountPoint {
    pub(crate) fn new(path: PathBuf) -> MountPoint {
        std::fs::create_dir_all(&path).unwrap();
        MountPoint(path.canonicalize().unwrap())
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn text(&self) -> &str {
        self.0.to_str().unwrap()
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for MountPoint {
    fn drop(&mut self) {
        for _ in 0..mounts_at(&self.0) {
            let _ = Command::new("umount").arg("--lazy").arg(&self.0).output();
        }
    }
}

/// A loop device over a file.
pub(crate) struct Loop(String);

impl Loop {
    pub(crate) fn attach(file: &Path, more: &[&str]) -> Loop {
        let arguments = [&["--find", "--show"], more, &[file.to_str().unwrap()]].concat();
        Loop(run("losetup", &arguments).trim().to_owned())
    }

    pub(crate) fn device(&self) -> &str {
        &self.0
    }

    /// Takes the device away, and waits until the file is closed.
    pub(crate) fn detach(self) {
        run("losetup", &["--detach", &self.0]);
    }
}

impl Drop for Loop {
    fn drop(&mut self) {
        let _ = Command::new("losetup").args(["--detach", &self.0]).output();
    }
}
