//! Real mounts: what programs see of volumes, and that NBD and REST see the same.

use std::fs::File;
use std::fs::OpenOptions;
use std::io::Seek as _;
use std::os::unix::fs::FileExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::process::Command;

use rustix::fs::FallocateFlags;
use rustix::fs::SeekFrom;
use rustix::io::Errno;
use sinter::sync::RandomSource as _;

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::host::MountPoint;
use crate::host::has_fuse;
use crate::host::run;
use crate::pool::SeededRandom;
use crate::seed;
use crate::steps;

const MIB: u64 = 1 << 20;
const O_DIRECT: i32 = 0o40000;

/// A daemon with a volume `disk` of 16 MiB, mounted.
fn mounted(scratch: &Scratch) -> (MountPoint, Daemon) {
    let point = MountPoint::new(scratch.join("a mount"));
    let daemon = Daemon::start(scratch.path(), &["--volume", "disk:16MiB", "--fuse", point.text()]);
    (point, daemon)
}

fn open(path: &Path) -> File {
    OpenOptions::new().read(true).write(true).open(path).unwrap()
}

fn errno<T: std::fmt::Debug>(result: std::io::Result<T>) -> Errno {
    Errno::from_io_error(&result.unwrap_err()).unwrap()
}

fn noise(len: usize) -> Vec<u8> {
    let mut noise = vec![0; len];
    SeededRandom::new(len as u64).fill(&mut noise);
    noise
}

#[test]
fn files_and_nbd_show_each_others_writes_at_once() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let (point, daemon) = mounted(&scratch);
    let file = open(&point.join("volumes/disk"));
    let data = noise(3 << 20);
    file.write_all_at(&data, 4096).unwrap();
    file.sync_all().unwrap();
    let copy = scratch.join("copy");
    run("nbdcopy", &[&daemon.uri("disk"), copy.to_str().unwrap()]);
    let image = std::fs::read(&copy).unwrap();
    assert!(image[4096..4096 + data.len()] == data);

    let mut back = vec![0; 8192];
    file.read_exact_at(&mut back, 0).unwrap();
    let changed = vec![0xc3; 16 << 20];
    std::fs::write(&copy, &changed).unwrap();
    run("nbdcopy", &[copy.to_str().unwrap(), &daemon.uri("disk")]);
    file.read_exact_at(&mut back, 0).unwrap();
    assert!(back.iter().all(|byte| *byte == 0xc3), "a file that was open and read before sees it");

    run("qemu-io", &["-f", "raw", "-c", "write -P 7 1M 64k", &daemon.uri("disk")]);
    file.read_exact_at(&mut back, MIB).unwrap();
    assert!(back.iter().all(|byte| *byte == 7));
}

#[test]
fn holes_are_punched_and_found_and_sizes_are_the_volumes() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let (point, daemon) = mounted(&scratch);
    let path = point.join("volumes/disk");
    let mut file = open(&path);
    assert_eq!((file.metadata().unwrap().len(), file.metadata().unwrap().blocks()), (16 * MIB, 0));
    file.write_all_at(&noise(64 << 10), MIB).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 128);
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(0)), Ok(MIB));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Hole(MIB)), Ok(MIB + (64 << 10)));
    assert_eq!(rustix::fs::seek(&file, SeekFrom::Data(2 * MIB)), Err(Errno::NXIO));

    let keep = FallocateFlags::KEEP_SIZE;
    rustix::fs::fallocate(&file, FallocateFlags::PUNCH_HOLE | keep, MIB + 100, 8192).unwrap();
    rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, MIB + (32 << 10), 4096).unwrap();
    assert_eq!(file.metadata().unwrap().blocks(), 128 - 16);
    let mut back = vec![0; 64 << 10];
    file.read_exact_at(&mut back, MIB).unwrap();
    let mut expected = noise(64 << 10);
    expected[100..8292].fill(0);
    expected[32 << 10..36 << 10].fill(0);
    assert!(back == expected);
    assert_eq!(rustix::fs::fallocate(&file, FallocateFlags::empty(), 0, 4096), Err(Errno::OPNOTSUPP));
    let past = rustix::fs::fallocate(&file, FallocateFlags::ZERO_RANGE, 16 * MIB - 1, 2);
    assert_eq!(past, Err(Errno::FBIG));
    assert_eq!(errno(file.write_at(b"x", 16 * MIB)), Errno::NOSPC);
    assert_eq!(file.write_at(b"across the end", 16 * MIB - 4).unwrap(), 4);

    assert!(daemon.run(&["volume", "resize", "disk", "32MiB"]).status.success());
    assert_eq!(file.metadata().unwrap().len(), 32 * MIB);
    assert_eq!(file.seek(std::io::SeekFrom::End(0)).unwrap(), 32 * MIB);
    assert_eq!(file.write_at(b"beyond what was the end", 16 * MIB).unwrap(), 23);
    let room = rustix::fs::statvfs(&path).unwrap();
    assert!(room.f_blocks > 0 && room.f_bfree <= room.f_blocks && room.f_bsize == 4096);
}

#[test]
fn files_come_and_go_while_mounted_and_nothing_is_changed_there() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let (point, daemon) = mounted(&scratch);
    let volumes = point.join("volumes");
    let list = || {
        let mut names: Vec<String> = std::fs::read_dir(&volumes)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    };
    assert_eq!(list(), ["disk"]);
    let odd = "a \"b\" \\ 'c' $d \u{1f512} \u{f6}";
    assert!(daemon.run(&["volume", "create", odd, "1MiB"]).status.success());
    for number in 0..300 {
        let name = format!("many-{number:03}-{}", "x".repeat(200));
        assert!(daemon.run(&["volume", "create", &name, "1MiB"]).status.success());
    }
    assert_eq!(list().len(), 302, "more than one answer's worth");
    std::fs::write(volumes.join("new"), "x").unwrap_err();
    open(&volumes.join(odd)).write_all_at(b"odd", 0).unwrap();
    assert_eq!(std::fs::metadata(volumes.join(odd)).unwrap().blocks(), 8);
    assert!(daemon.run(&["volume", "delete", odd, "--yes"]).status.success(), "no file is open");
    assert_eq!(errno(std::fs::metadata(volumes.join(odd))), Errno::NOENT);

    let disk = volumes.join("disk");
    assert_eq!(errno(std::fs::remove_file(&disk)), Errno::PERM);
    assert_eq!(errno(std::fs::rename(&disk, volumes.join("other"))), Errno::PERM);
    assert_eq!(errno(std::fs::create_dir(volumes.join("folder"))), Errno::PERM);
    assert_eq!(errno(File::create_new(volumes.join("new"))), Errno::PERM);
    assert_eq!(errno(File::create(&disk)), Errno::PERM, "truncating");
    assert_eq!(errno(open(&disk).set_len(1)), Errno::PERM);
    assert_eq!(errno(std::fs::hard_link(&disk, volumes.join("link"))), Errno::PERM);
    assert_eq!(errno(std::os::unix::fs::symlink(&disk, volumes.join("link"))), Errno::PERM);
    assert_eq!(errno(File::create_new(point.join("snapshots/x"))), Errno::ROFS);
    open(&disk).set_len(16 * MIB).unwrap();

    let file = open(&disk);
    let refused = daemon.run(&["volume", "delete", "disk", "--yes"]);
    assert_eq!(refused.status.code(), Some(11), "a file is open: {refused:?}");
    assert!(daemon.run(&["volume", "delete", "disk", "--yes", "--force"]).status.success());
    assert_eq!(errno(file.write_at(b"x", 0)), Errno::STALE);
    assert_eq!(errno(file.sync_all()), Errno::STALE);
}

/// A random load by several threads, each on a range of its own, through the page cache's back door and past it.
#[test]
fn a_mounted_file_holds_what_its_model_holds() {
    const PART: usize = 4 << 20;
    if !has_fuse() {
        return;
    }
    let seed = seed();
    let scratch = Scratch::new();
    let (point, daemon) = mounted(&scratch);
    let path = point.join("volumes/disk");
    let load = |part: usize| {
        let random = SeededRandom::new(seed ^ (part as u64) << 32);
        let direct = part % 2 == 1;
        let flags = if direct { O_DIRECT } else { 0 };
        let file = OpenOptions::new().read(true).write(true).custom_flags(flags).open(&path).unwrap();
        let begin = part * PART;
        let mut model = vec![0u8; PART];
        for step in 0..steps(1500) {
            let number = random.number();
            let mut at = (number >> 8) as usize % PART;
            let mut len = ((number >> 32) as usize % 200_000 + 1).min(PART - at);
            if direct {
                at &= !511;
                len = (len & !511).max(512);
            }
            let offset = (begin + at) as u64;
            match number % 8 {
                0..4 => {
                    let mut data = vec![0; len];
                    random.fill(&mut data[..len / 3]);
                    file.write_all_at(&data, offset).unwrap();
                    model[at..at + len].copy_from_slice(&data);
                }
                4 => {
                    let mode = FallocateFlags::PUNCH_HOLE | FallocateFlags::KEEP_SIZE;
                    rustix::fs::fallocate(&file, mode, offset, len as u64).unwrap();
                    model[at..at + len].fill(0);
                }
                5 if number & 0xf00 == 0 => file.sync_data().unwrap(),
                _ => {
                    let mut back = vec![0xee; len];
                    file.read_exact_at(&mut back, offset).unwrap();
                    assert!(back == model[at..at + len], "seed {seed}, part {part}, step {step}");
                }
            }
        }
        model
    };
    let models: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4).map(|part| scope.spawn(move || load(part))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    // Killed without a flush: what was answered is there.
    daemon.kill();
    let output = crate::daemon::sinter(scratch.path()).args(["umount", point.text()]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let daemon = Daemon::start(scratch.path(), &["--fuse", point.text()]);
    let image = std::fs::read(&path).unwrap();
    assert!(image == models.concat(), "seed {seed}");
    assert!(daemon.terminate().success());
}

#[test]
fn fio_verifies_asynchronous_and_mapped_writes() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let (point, _daemon) = mounted(&scratch);
    let file = format!("--filename={}", point.join("volumes/disk").display());
    for engine in ["--ioengine=libaio", "--ioengine=mmap", "--ioengine=io_uring"] {
        let direct = if engine.ends_with("mmap") { "--direct=0" } else { "--direct=1" };
        // A machine may forbid io_uring.
        let probe = ["--name=probe", &file, engine, direct, "--rw=read", "--size=4k"];
        if engine.ends_with("io_uring") && !Command::new("fio").args(probe).output().unwrap().status.success()
        {
            continue;
        }
        let job = [
            "--name=verify",
            &file,
            engine,
            direct,
            "--rw=randwrite",
            "--bsrange=4k-256k",
            "--iodepth=32",
            "--size=16m",
            "--verify=crc32c",
            "--verify_fatal=1",
            "--fallocate=none",
            "--verify_state_save=0",
            "--randrepeat=0",
        ];
        let output = Command::new("fio").args(job).output().unwrap();
        assert!(output.status.success(), "{engine}: {}", String::from_utf8_lossy(&output.stderr));
    }
}

#[test]
fn requests_are_counted() {
    if !has_fuse() {
        return;
    }
    let scratch = Scratch::new();
    let (point, daemon) = mounted(&scratch);
    let file = open(&point.join("volumes/disk"));
    for block in 0..10 {
        file.write_all_at(&[1; 4096], block * 4096).unwrap();
    }
    file.sync_all().unwrap();
    file.write_at(b"x", 16 * MIB).unwrap_err();
    let count = |operation: &str| {
        let page = run("curl", &["--silent", "--fail", &format!("{}/metrics", daemon.url)]);
        let name = format!("sinter_request_duration_seconds_count{{protocol=\"fuse\",op=\"{operation}\"}} ");
        let line = page.lines().find(|line| line.starts_with(&name)).unwrap();
        line[name.len()..].parse::<u64>().unwrap()
    };
    // A request is counted just after it is answered.
    let counted = (0..100).any(|_| count("write") == 11 && count("flush") == 1);
    assert!(counted, "{} writes, {} flushes", count("write"), count("flush"));
    assert!(count("metadata") >= 4);
}
