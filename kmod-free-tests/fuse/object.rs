//! The file system without a mount.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt as _;

use rustix::io::Errno;
use sinter::array::NewVolume;
use sinter::array::VolumeUpdate;
use sinter::error::ErrorKind;
use sinter::export::fuse::Attributes;
use sinter::export::fuse::FileKind;
use sinter::export::fuse::FileSystem;
use sinter::export::fuse::Inode;
use sinter::export::fuse::OpenFile;
use sinter::export::fuse::Zeroing;
use sinter::export::fuse::errno_of;
use sinter::sync::RandomSource as _;
use sinter::units::ByteCount;

use crate::catalog::new_file_system;
use crate::catalog::time;
use crate::pool::SeededRandom;
use crate::seed;
use crate::steps;

const MIB: u64 = 1 << 20;

/// Follows a path from the top.
fn find(files: &FileSystem, path: &str) -> Result<Attributes, Errno> {
    let mut found = files.attributes(Inode::ROOT);
    for name in path.split('/') {
        found = files.look_up(found?.inode, OsStr::new(name));
    }
    found
}

fn names(files: &FileSystem, path: &str) -> Vec<String> {
    let inode = if path.is_empty() { Inode::ROOT } else { find(files, path).unwrap().inode };
    let handle = files.open_directory(inode).unwrap();
    let entries = files.entries(handle, true).unwrap();
    files.close_directory(handle);
    let mut names: Vec<String> = entries.iter().map(|entry| entry.name.clone()).collect();
    assert_eq!(names.drain(..2).collect::<Vec<_>>(), [".", ".."]);
    names.sort();
    names
}

fn open(files: &FileSystem, path: &str) -> (u64, std::sync::Arc<OpenFile>) {
    let handle = files.open(find(files, path).unwrap().inode, true).unwrap();
    (handle, files.file(handle).unwrap())
}

#[test]
fn files_come_and_go_with_their_volumes() {
    let (catalog, files, _) = new_file_system(1);
    assert_eq!(names(&files, ""), ["snapshots", "volumes"]);
    assert!(names(&files, "volumes").is_empty());
    assert_eq!(find(&files, "volumes/a").unwrap_err(), Errno::NOENT);

    catalog.create("a", MIB);
    catalog.create("Gr\u{f6}\u{df}e 1", 2 * MIB);
    assert_eq!(names(&files, "volumes"), ["Gr\u{f6}\u{df}e 1", "a"]);
    let a = find(&files, "volumes/a").unwrap();
    assert_eq!((a.kind, a.size, a.used, a.mode), (FileKind::File, ByteCount(MIB), ByteCount(0), 0o600));
    assert_eq!(files.attributes(a.inode).unwrap().inode, a.inode);

    catalog.array.resize_volume("a", ByteCount(3 * MIB)).unwrap();
    assert_eq!(files.attributes(a.inode).unwrap().size, ByteCount(3 * MIB));

    let update = VolumeUpdate { name: Some("b".to_owned()), ..VolumeUpdate::default() };
    catalog.array.update_volume("a", update).unwrap();
    assert_eq!(find(&files, "volumes/a").unwrap_err(), Errno::NOENT);
    assert_eq!(find(&files, "volumes/b").unwrap().inode, a.inode, "the file is the same under its new name");

    catalog.array.delete_volume("b", false).unwrap();
    assert_eq!(find(&files, "volumes/b").unwrap_err(), Errno::NOENT);
    assert_eq!(files.attributes(a.inode).unwrap_err(), Errno::STALE);
    assert_eq!(names(&files, "volumes"), ["Gr\u{f6}\u{df}e 1"]);
}

#[test]
fn names_that_are_no_text_and_paths_through_files_are_not_found() {
    let (catalog, files, _) = new_file_system(2);
    catalog.create("a", MIB);
    let volumes = find(&files, "volumes").unwrap().inode;
    let id = catalog.array.volume("a").unwrap().id.to_string();
    for name in [OsStr::from_bytes(b"\xff\xfe"), OsStr::new("A"), OsStr::new(""), OsStr::from_bytes(b"a\0")] {
        assert_eq!(files.look_up(volumes, name).unwrap_err(), Errno::NOENT, "{name:?}");
    }
    assert!(!names(&files, "volumes").contains(&id));
    let a = find(&files, "volumes/a").unwrap().inode;
    assert_eq!(files.look_up(a, OsStr::new("b")).unwrap_err(), Errno::NOTDIR);
    assert_eq!(files.open_directory(a).unwrap_err(), Errno::NOTDIR);
    assert_eq!(files.open(volumes, false).unwrap_err(), Errno::ISDIR);
    assert_eq!(files.look_up(Inode(4711), OsStr::new("a")).unwrap_err(), Errno::STALE);
    assert_eq!(find(&files, "volumes/a").unwrap().inode, a);
}

#[test]
fn what_is_written_is_read_and_the_end_is_the_end() {
    let (catalog, files, _) = new_file_system(3);
    catalog.create("a", MIB);
    let (_, file) = open(&files, "volumes/a");
    let (bytes, commit) = file.write(100, b"hello").unwrap();
    file.acknowledge(commit).unwrap();
    file.sync().unwrap();
    assert_eq!(bytes, 5);
    let mut buffer = [1; 16];
    assert_eq!(file.read(98, &mut buffer), Ok(16));
    assert_eq!(&buffer, b"\0\0hello\0\0\0\0\0\0\0\0\0");
    assert_eq!(file.try_read(98, &mut buffer), Ok(Some(16)), "it is in memory");

    assert_eq!(file.write(MIB - 3, b"across").map(|(bytes, _)| bytes), Ok(3), "as much as fits");
    assert_eq!(file.write(MIB, b"x").map(|_| ()), Err(Errno::NOSPC));
    assert_eq!(file.write(u64::MAX, b"x").map(|_| ()), Err(Errno::NOSPC));
    assert_eq!(file.write(MIB, b"").map(|(bytes, _)| bytes), Ok(0));
    assert_eq!(file.read(MIB - 3, &mut buffer), Ok(3));
    assert_eq!(&buffer[..3], b"acr");
    assert_eq!((file.read(MIB, &mut buffer), file.read(u64::MAX, &mut buffer)), (Ok(0), Ok(0)));

    let reader = files.open(find(&files, "volumes/a").unwrap().inode, false).unwrap();
    let reader = files.file(reader).unwrap();
    assert_eq!(reader.write(0, b"x").map(|_| ()), Err(Errno::BADF));
    assert_eq!(reader.zero(0, ByteCount(1), Zeroing::KeepSize), Err(Errno::BADF));
    assert_eq!(reader.sync(), Ok(()));
}

#[test]
fn a_punched_range_reads_as_zeros_to_the_byte_and_gives_its_space_back() {
    let (catalog, files, _) = new_file_system(4);
    catalog.create("a", MIB);
    let (_, file) = open(&files, "volumes/a");
    let mut noise = vec![0; 64 << 10];
    SeededRandom::new(4).fill(&mut noise);
    file.write(0, &noise).unwrap();
    let used = || find(&files, "volumes/a").unwrap().used.0;
    assert_eq!(used(), 64 << 10);

    file.zero(1000, ByteCount(20_000), Zeroing::KeepSize).unwrap();
    let mut back = vec![0; 64 << 10];
    file.read(0, &mut back).unwrap();
    noise[1000..21_000].fill(0);
    assert!(back == noise);
    assert_eq!(used(), (64 << 10) - (4 << 12), "four whole blocks lie in it");

    file.zero(MIB - 4096, ByteCount(MIB), Zeroing::KeepSize).unwrap();
    file.zero(5 * MIB, ByteCount(MIB), Zeroing::KeepSize).unwrap();
    file.zero(MIB - 4096, ByteCount(4096), Zeroing::Whole).unwrap();
    assert_eq!(file.zero(MIB - 4096, ByteCount(4097), Zeroing::Whole), Err(Errno::FBIG));
    assert_eq!(file.zero(u64::MAX, ByteCount(2), Zeroing::KeepSize), Err(Errno::FBIG));
    assert_eq!(file.zero(0, ByteCount(0), Zeroing::KeepSize), Err(Errno::INVAL));
}

#[test]
fn holes_and_data_are_found() {
    let (catalog, files, _) = new_file_system(5);
    catalog.create("a", 4 * MIB);
    let (_, file) = open(&files, "volumes/a");
    assert_eq!((file.next_hole(0), file.next_data(0)), (Ok(0), Err(Errno::NXIO)));
    file.write(MIB, &[0x5a; 8192]).unwrap();
    let mut noise = vec![0; 4096];
    SeededRandom::new(5).fill(&mut noise);
    file.write(MIB + 8192, &noise).unwrap();
    file.write(4 * MIB - 4096, &noise).unwrap();
    assert_eq!(file.next_data(0), Ok(MIB));
    assert_eq!(file.next_data(MIB + 5), Ok(MIB + 5));
    assert_eq!(file.next_hole(MIB + 5), Ok(MIB + 12_288), "a pattern and stored data are both data");
    assert_eq!(file.next_hole(4 * MIB - 1), Ok(4 * MIB), "the end is a hole");
    assert_eq!((file.next_hole(4 * MIB), file.next_data(4 * MIB)), (Err(Errno::NXIO), Err(Errno::NXIO)));
    assert_eq!(file.next_data(u64::MAX), Err(Errno::NXIO));

    catalog.create("huge", 200 << 40);
    let (_, huge) = open(&files, "volumes/huge");
    huge.write((150 << 40) + 5, b"x").unwrap();
    assert_eq!(huge.next_data(0), Ok(150 << 40));
    assert_eq!(huge.next_hole(150 << 40), Ok((150 << 40) + 4096));
}

#[test]
fn snapshots_are_files_to_read() {
    let (catalog, files, _) = new_file_system(6);
    catalog.create("a", MIB);
    catalog.create("a-then", MIB);
    let (_, then) = open(&files, "volumes/a-then");
    then.write(0, b"then").unwrap();
    assert!(names(&files, "snapshots").is_empty());
    catalog.put_snapshot("a", "monday", "a-then");
    assert_eq!(names(&files, "snapshots"), ["a"]);
    assert_eq!(names(&files, "snapshots/a"), ["monday"]);
    assert_eq!(find(&files, "snapshots/b").unwrap_err(), Errno::NOENT);
    assert_eq!(find(&files, "snapshots/a/tuesday").unwrap_err(), Errno::NOENT);
    let monday = find(&files, "snapshots/a/monday").unwrap();
    assert_eq!((monday.mode, monday.size), (0o400, ByteCount(MIB)));
    assert_ne!(monday.inode, find(&files, "volumes/a-then").unwrap().inode);

    assert_eq!(files.open(monday.inode, true).unwrap_err(), Errno::ROFS);
    let handle = files.open(monday.inode, false).unwrap();
    let file = files.file(handle).unwrap();
    let mut buffer = [0; 4];
    assert_eq!((file.read(0, &mut buffer), &buffer), (Ok(4), b"then"));
    assert_eq!((file.write(0, b"x").map(|_| ()), file.sync()), (Err(Errno::BADF), Ok(())));

    let directory = find(&files, "snapshots/a").unwrap().inode;
    catalog.drop_snapshot("a", "monday");
    assert_eq!(find(&files, "snapshots/a").unwrap_err(), Errno::NOENT);
    assert_eq!(files.attributes(directory).unwrap_err(), Errno::STALE);
    assert_eq!(files.attributes(monday.inode).unwrap_err(), Errno::STALE);
}

#[test]
fn nothing_is_made_renamed_removed_or_resized_through_the_mount() {
    let (catalog, files, _) = new_file_system(7);
    catalog.create("a", MIB);
    catalog.put_snapshot("a", "s", "a");
    for path in ["volumes", "volumes/a"] {
        assert_eq!(files.refusal(find(&files, path).unwrap().inode), Errno::PERM, "{path}");
    }
    assert_eq!(files.refusal(Inode::ROOT), Errno::PERM);
    for path in ["snapshots", "snapshots/a", "snapshots/a/s"] {
        assert_eq!(files.refusal(find(&files, path).unwrap().inode), Errno::ROFS, "{path}");
    }
    let a = find(&files, "volumes/a").unwrap().inode;
    for size in [0, MIB - 1, MIB + 1, u64::MAX] {
        assert_eq!(files.set_size(a, ByteCount(size)).unwrap_err(), Errno::PERM);
    }
    assert_eq!(files.set_size(a, ByteCount(MIB)).unwrap().size, ByteCount(MIB), "the size that it has");
    let snapshot = find(&files, "snapshots/a/s").unwrap().inode;
    assert_eq!(files.set_size(snapshot, ByteCount(0)).unwrap_err(), Errno::ROFS);
    assert_eq!(files.set_size(Inode::ROOT, ByteCount(0)).unwrap_err(), Errno::ISDIR);
}

#[test]
fn an_open_file_keeps_its_volume_in_use_and_goes_stale_under_force() {
    let (catalog, files, _) = new_file_system(8);
    catalog.create("a", MIB);
    let (handle, file) = open(&files, "volumes/a");
    assert_eq!(files.open_files(), 1);
    assert_eq!(catalog.array.delete_volume("a", false).unwrap_err().kind(), ErrorKind::Busy);
    catalog.array.delete_volume("a", true).unwrap();
    let mut buffer = [0; 8];
    assert_eq!(file.read(0, &mut buffer), Err(Errno::STALE));
    assert_eq!(file.try_read(0, &mut buffer), Err(Errno::STALE));
    assert_eq!(file.write(0, b"x").map(|_| ()), Err(Errno::STALE));
    assert_eq!(file.sync(), Err(Errno::STALE));
    assert_eq!(file.zero(0, ByteCount(4096), Zeroing::Whole), Err(Errno::STALE));
    files.close(handle);
    assert_eq!(files.file(handle).map(|_| ()), Err(Errno::BADF));
    assert_eq!(files.open_files(), 0);

    catalog
        .array
        .create_volume(NewVolume { name: "b".into(), size: ByteCount(MIB), ..NewVolume::default() })
        .unwrap();
    let (handle, file) = open(&files, "volumes/b");
    drop(file);
    files.close(handle);
    catalog.array.delete_volume("b", false).unwrap();
}

#[test]
fn errors_of_the_array_reach_programs_as_what_they_are() {
    let (catalog, files, _) = new_file_system(9);
    catalog.create("a", MIB);
    let (_, file) = open(&files, "volumes/a");
    for kind in
        [ErrorKind::NoSpace, ErrorKind::Corrupt, ErrorKind::Device, ErrorKind::Stopped, ErrorKind::NotPrimary]
    {
        *catalog.failure.lock().unwrap() = Some(kind);
        let expected = errno_of(kind);
        let mut buffer = [0; 8];
        assert_eq!(file.write(0, b"x").map(|_| ()), Err(expected), "{kind:?}");
        assert_eq!(file.read(0, &mut buffer).map(|_| ()), Err(expected), "{kind:?}");
        assert_eq!(file.try_read(0, &mut buffer).map(|_| ()), Err(expected), "{kind:?}");
        assert_eq!(file.sync(), Err(expected), "{kind:?}");
        assert_eq!(file.zero(0, ByteCount(1), Zeroing::Whole), Err(expected), "{kind:?}");
        assert_eq!(file.next_data(0).map(|_| ()), Err(expected), "{kind:?}");
    }
    assert_eq!(errno_of(ErrorKind::NoSpace), Errno::NOSPC);
    assert_eq!(errno_of(ErrorKind::Device), Errno::IO);
}

#[test]
fn a_directory_that_is_being_read_neither_loses_nor_doubles_names() {
    let (catalog, files, _) = new_file_system(10);
    for number in 0..10 {
        catalog.create(&format!("v{number}"), MIB);
    }
    let handle = files.open_directory(find(&files, "volumes").unwrap().inode).unwrap();
    let first = files.entries(handle, true).unwrap();
    assert_eq!(first.len(), 12);
    catalog.array.delete_volume("v0", false).unwrap();
    catalog.create("w", MIB);
    assert_eq!(files.entries(handle, false).unwrap(), first, "whoever is in the middle goes on where he was");
    let again = files.entries(handle, true).unwrap();
    assert!(again.iter().any(|entry| entry.name == "w") && again.iter().all(|entry| entry.name != "v0"));
    files.end_of_directory(handle);
    assert_eq!(files.entries(handle, false).unwrap(), again, "going back from the end looks anew");
    files.close_directory(handle);
    assert_eq!(files.entries(handle, true).unwrap_err(), Errno::BADF);
    let many: Vec<_> = (0..300).map(|_| files.open_directory(Inode::ROOT)).collect();
    assert_eq!(many.iter().filter(|opened| **opened == Err(Errno::NFILE)).count(), 300 - 256);
    for entry in again.iter().skip(2) {
        assert_eq!(find(&files, &format!("volumes/{}", entry.name)).unwrap().inode, entry.inode);
    }
}

#[test]
fn a_file_is_as_new_as_what_was_written_to_it() {
    let (catalog, files, environment) = new_file_system(11);
    catalog.create("a", MIB);
    let before = find(&files, "volumes/a").unwrap();
    assert_eq!(find(&files, "volumes/a").unwrap().modified, before.modified, "looking changes nothing");
    let then = time(&environment);
    // Not through the file: by any other client of the array.
    let volume = catalog.array.open_volume("a").unwrap();
    volume.write_reported(0, b"x").unwrap();
    let after = files.attributes(before.inode).unwrap();
    assert!(after.modified >= then && after.modified > before.modified);
    assert_eq!(files.attributes(before.inode).unwrap().modified, after.modified);
}

#[test]
fn numbers_are_the_same_after_a_remount() {
    let (catalog, files, environment) = new_file_system(12);
    catalog.create("a", MIB);
    catalog.put_snapshot("a", "s", "a");
    let again = FileSystem::new(catalog.clone(), environment.clock.clone());
    for path in ["volumes", "volumes/a", "snapshots", "snapshots/a", "snapshots/a/s"] {
        assert_eq!(find(&files, path).unwrap().inode, find(&again, path).unwrap().inode, "{path}");
    }
    let inode = find(&files, "volumes/a").unwrap().inode;
    files.forget(inode, 2);
    assert_eq!(files.attributes(inode).unwrap_err(), Errno::STALE, "forgotten as often as it was told");
}

/// A random program on a file and on the bytes that it should hold.
#[test]
fn a_file_holds_what_its_model_holds() {
    const SIZE: usize = 1 << 20;
    let seed = seed();
    let random = SeededRandom::new(seed);
    let (catalog, files, _) = new_file_system(seed);
    catalog.create("a", SIZE as u64);
    let (_, file) = open(&files, "volumes/a");
    let mut model = vec![0u8; SIZE];
    for step in 0..steps(2000) {
        let number = random.number();
        let at = (number >> 8) as usize % SIZE;
        let len = ((number >> 32) as usize % 70_000).min(SIZE - at).max(1);
        match number % 8 {
            0..3 => {
                let mut data = vec![(number >> 60) as u8; len];
                if number & 16 == 0 {
                    random.fill(&mut data);
                }
                let (bytes, commit) = file.write(at as u64, &data).unwrap();
                assert_eq!(bytes, len);
                if number & 32 == 0 {
                    file.acknowledge(commit).unwrap();
                }
                model[at..at + len].copy_from_slice(&data);
            }
            3 => {
                file.zero(at as u64, ByteCount(len as u64), Zeroing::KeepSize).unwrap();
                model[at..at + len].fill(0);
            }
            4 => file.sync().unwrap(),
            5 => {
                let data = file.next_data(at as u64).unwrap_or(SIZE as u64) as usize;
                assert!(
                    model[at..data].iter().all(|byte| *byte == 0),
                    "seed {seed}, step {step}: data in a hole"
                );
                let hole = file.next_hole(at as u64).unwrap() as usize;
                assert!(hole >= at && (hole == at || data == at), "seed {seed}, step {step}");
            }
            _ => {
                let mut back = vec![0xee; len];
                assert_eq!(file.read(at as u64, &mut back), Ok(len));
                assert!(back == model[at..at + len], "seed {seed}, step {step}: {len} bytes at {at}");
            }
        }
    }
    let mut back = vec![0; SIZE];
    file.read(0, &mut back).unwrap();
    assert!(back == model, "seed {seed}");
}
