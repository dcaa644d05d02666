//! Space comes back: to the pool, and from the pool to the host.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use sinter::device::file::FileDevice;
use sinter::error::ErrorKind;
use sinter::units::{BLOCK_BYTES, BlockCount, ByteCount, Lba, ObjectNumber};

use crate::assert_sound;
use crate::load::{Load, options, unique};

const MIB: u64 = 1 << 20;
const POOL: ByteCount = ByteCount(256 * MIB);
const SEGMENT: ByteCount = ByteCount(256 << 10);

/// A file that goes with the test.
struct PoolFile(PathBuf);

impl PoolFile {
    fn new(name: &str) -> PoolFile {
        let path = std::env::temp_dir().join(format!("sinter-flash-{name}-{}", std::process::id()));
        let _ = std::fs::remove_file(&path);
        PoolFile(path)
    }

    /// What the file takes on the host.
    fn allocated(&self) -> u64 {
        std::fs::metadata(&self.0).unwrap().blocks() * 512
    }

    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for PoolFile {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

fn write_volume(load: &mut Load, object: ObjectNumber, first: u64, blocks: u64) {
    let mut buffer = vec![0u8; 16 * BLOCK_BYTES];
    for lba in (first..first + blocks).step_by(16) {
        unique(&mut load.numbers, &mut buffer);
        load.store.write(object, Lba(lba), &buffer).unwrap();
        load.background();
    }
}

/// Two volumes written in turn, so that every segment holds blocks of both; one of them goes.
#[test]
fn p5_an_idle_pool_gives_deleted_space_back_to_the_host() {
    let file = PoolFile::new("delete");
    let device = Arc::new(FileDevice::create(file.path(), POOL).unwrap());
    let mut load = Load::on(device, options(SEGMENT, ByteCount(4 * MIB)), 1);
    let (other, _) = load.store.create_object(BlockCount(1 << 16), b"other").unwrap();
    let object = load.object;
    for round in 0..512 {
        write_volume(&mut load, object, round * 32, 32);
        write_volume(&mut load, other, round * 64, 64);
    }
    load.idle(Duration::from_secs(1));
    let full = file.allocated();
    assert!(full > 190 * MIB, "{} MiB", full / MIB);
    load.store.delete_object(other).unwrap();
    load.idle(Duration::from_secs(60));
    let statistics = load.store.statistics();
    let left = file.allocated();
    println!(
        "{} MiB before, {} MiB after, {} MiB are live",
        full / MIB,
        left / MIB,
        statistics.live_bytes / MIB
    );
    assert!(statistics.live_bytes < 70 * MIB, "{} MiB are live", statistics.live_bytes / MIB);
    assert!(left < statistics.live_bytes + statistics.live_bytes / 4 + 8 * MIB, "{} MiB", left / MIB);
    assert!(statistics.punched_bytes >= full - left, "{} MiB punched", statistics.punched_bytes / MIB);
    let erases = statistics.segment_erases;
    load.idle(Duration::from_secs(600));
    assert_eq!(load.store.statistics().segment_erases, erases, "an idle pool comes to rest");
    assert_sound(&load.store);
}

#[test]
fn p5_trimmed_and_overwritten_space_goes_back_to_the_host() {
    let file = PoolFile::new("trim");
    let device = Arc::new(FileDevice::create(file.path(), POOL).unwrap());
    let mut load = Load::on(device, options(SEGMENT, ByteCount(4 * MIB)), 2);
    let object = load.object;
    write_volume(&mut load, object, 0, 40_000);
    let full = file.allocated();
    load.store.zero(object, Lba(0), BlockCount(20_000)).unwrap();
    let zeros = vec![0u8; 16 * BLOCK_BYTES];
    for lba in (20_000..39_000).step_by(16) {
        load.store.write(object, Lba(lba), &zeros).unwrap();
    }
    load.idle(Duration::from_secs(60));
    let left = file.allocated();
    println!("{} MiB before, {} MiB after", full / MIB, left / MIB);
    assert!(full > 150 * MIB && left < 16 * MIB, "{} MiB before, {} MiB after", full / MIB, left / MIB);
    assert_sound(&load.store);
}

#[test]
fn p5_a_full_pool_says_so_serves_reads_and_recovers() {
    let mut load = Load::new(ByteCount(64 * MIB), options(ByteCount(128 << 10), ByteCount(MIB)), 3);
    let object = load.object;
    let mut block = vec![0u8; BLOCK_BYTES];
    let mut said_near_full = false;
    let filled = (0..).find(|lba| {
        unique(&mut load.numbers, &mut block);
        let written = load.store.write(object, Lba(*lba), &block);
        if lba % 64 == 0 {
            load.background();
            said_near_full |= load.store.statistics().near_full;
        }
        written.is_err_and(|error| {
            assert_eq!(error.kind(), ErrorKind::NoSpace, "{error}");
            true
        })
    });
    let filled = filled.unwrap();
    let full = load.store.statistics();
    assert!(full.full && said_near_full, "{full:?}");
    assert!(full.live_bytes > full.usable_bytes * 97 / 100, "{} of {}", full.live_bytes, full.usable_bytes);
    let mut last = vec![0u8; BLOCK_BYTES];
    load.store.read(object, Lba(filled - 1), &mut last, true).unwrap();
    assert!(last.iter().any(|byte| *byte != 0));
    load.store.zero(object, Lba(0), BlockCount(filled / 2)).unwrap();
    // Nothing waits for the background: the write itself works off what was let go of.
    load.store.write(object, Lba(filled), &block).unwrap();
    load.background();
    let after = load.store.statistics();
    assert!(!after.full && !after.near_full, "{after:?}");
    assert_sound(&load.store);
}
