use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

use proptest::prelude::*;

use super::*;
use crate::error::{Error, ErrorKind};
use crate::sync::baton::{Simulated, run_threads};

const LEN: u64 = 1 << 16;
const SECTORS: usize = 128;
const SECTOR: usize = 512;

fn disk(seed: u64) -> FaultyDisk {
    FaultyDisk::new("disk", ByteCount(LEN), seed, FaultPlan::new())
}

fn write(disk: &FaultyDisk, offset: u64, bytes: &[u8]) -> io::Result<()> {
    disk.write_at(DeviceOffset(offset), &[bytes])
}

fn read(disk: &FaultyDisk, offset: u64, len: usize) -> Vec<u8> {
    let mut bytes = vec![0xee; len];
    disk.read_at(DeviceOffset(offset), &mut bytes).unwrap();
    bytes
}

fn stable(disk: &FaultyDisk) -> Vec<u8> {
    let mut bytes = vec![0xee; length_of_disk()];
    disk.read_stable(DeviceOffset(0), &mut bytes);
    bytes
}

fn length_of_disk() -> usize {
    usize::try_from(LEN).unwrap()
}

fn is_eio(error: &io::Error) -> bool {
    error.raw_os_error() == Some(Errno::IO.raw_os_error())
}

#[derive(Clone, Debug)]
enum Step {
    Write { offset: usize, len: usize },
    Discard { offset: usize, len: usize },
    Allocate { offset: usize, len: usize },
    Sync,
    DropCache,
    KillProcess,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let range = || (0..length_of_disk(), 1..5_000usize).prop_map(|(o, l)| (o, l.min(length_of_disk() - o)));
    let step = prop_oneof![
        8 => range().prop_map(|(offset, len)| Step::Write { offset, len }),
        1 => range().prop_map(|(offset, len)| Step::Discard { offset, len }),
        1 => range().prop_map(|(offset, len)| Step::Allocate { offset, len }),
        2 => Just(Step::Sync),
        1 => Just(Step::DropCache),
        1 => Just(Step::KillProcess),
    ];
    proptest::collection::vec(step, 0..40)
}

/// What may be on the disk: for each byte what reads show (`None`: undefined), and for each sector
/// whether it was touched since the last sync.
struct Model {
    shown: Vec<Option<u8>>,
    stable: Vec<Option<u8>>,
    /// Every value that a byte has had since the last sync.
    since: Vec<Vec<Option<u8>>>,
}

impl Model {
    fn new() -> Model {
        let zeros = vec![Some(0); length_of_disk()];
        Model { shown: zeros.clone(), stable: zeros, since: vec![Vec::new(); length_of_disk()] }
    }

    fn set(&mut self, at: usize, byte: Option<u8>) {
        self.shown[at] = byte;
        self.since[at].push(byte);
    }

    fn sync(&mut self) {
        self.stable.clone_from(&self.shown);
        self.since.iter_mut().for_each(Vec::clear);
    }

    fn take(&mut self, step: &Step, fill: u8, disk: &FaultyDisk) {
        let at = |offset: usize| DeviceOffset(offset as u64);
        match *step {
            Step::Write { offset, len } => {
                let bytes = vec![fill; len];
                let (front, back) = bytes.split_at(len / 3);
                disk.write_at(at(offset), &[front, back]).unwrap();
                (offset..offset + len).for_each(|at| self.set(at, Some(fill)));
            }
            Step::Discard { offset, len } => {
                disk.discard(at(offset), ByteCount(len as u64)).unwrap();
                (offset..offset + len).for_each(|at| self.set(at, None));
            }
            Step::Allocate { offset, len } => disk.allocate(at(offset), ByteCount(len as u64)).unwrap(),
            Step::Sync => {
                disk.sync(Syncer::Log).unwrap();
                self.sync();
            }
            Step::DropCache => disk.drop_cache().unwrap(),
            Step::KillProcess => disk.kill_process(),
        }
    }

    fn assert_shown(&self, disk: &FaultyDisk) {
        let bytes = read(disk, 0, length_of_disk());
        for (at, (byte, shown)) in bytes.iter().zip(&self.shown).enumerate() {
            assert!(shown.is_none_or(|shown| shown == *byte), "byte {at} is {byte}, not {shown:?}");
        }
    }

    /// Whether no write touched the sector (or, for large tears, its block) since the last sync.
    fn was_left_alone(&self, sector: usize, tear_sectors: usize) -> bool {
        let first = sector / tear_sectors * tear_sectors * SECTOR;
        self.since[first..first + tear_sectors * SECTOR].iter().all(Vec::is_empty)
    }
}

proptest! {
    #[test]
    fn reads_show_all_until_a_crash_takes_only_what_was_not_synced(
        steps in steps(),
        seed in any::<u64>(),
        whole_blocks in any::<bool>(),
    ) {
        let tear_sectors = if whole_blocks { 8 } else { 1 };
        let disk = if whole_blocks { disk(seed).tearing_whole_blocks() } else { disk(seed) };
        let mut model = Model::new();
        for (step, fill) in steps.iter().zip(1..) {
            model.take(step, fill, &disk);
            model.assert_shown(&disk);
        }
        let before = disk.snapshot();
        disk.crash();
        let after = read(&disk, 0, length_of_disk());
        prop_assert_eq!(&after, &stable(&disk));
        prop_assert_eq!(disk.unsynced_changes(), 0);
        for sector in (0..SECTORS).filter(|sector| model.was_left_alone(*sector, tear_sectors)) {
            let bytes = sector * SECTOR..(sector + 1) * SECTOR;
            for (synced, byte) in model.stable[bytes.clone()].iter().zip(&after[bytes]) {
                prop_assert!(synced.is_none_or(|synced| synced == *byte), "sector {} lost what was synced", sector);
            }
        }
        // The same once more is the same once more.
        let again = FaultyDisk::from_snapshot(&before, FaultPlan::new());
        model.assert_shown(&again);
        again.crash();
        prop_assert_eq!(read(&again, 0, length_of_disk()), after);
    }
}

/// Sectors 0 to 15 hold 1s and are synced; sixteen writes of 2s, one a sector, are not.
fn sixteen_unsynced(seed: u64) -> FaultyDisk {
    let disk = disk(seed);
    write(&disk, 0, &[1; 16 * SECTOR]).unwrap();
    disk.sync(Syncer::Log).unwrap();
    for sector in 0..16 {
        write(&disk, sector * SECTOR as u64, &[2; SECTOR]).unwrap();
    }
    disk
}

/// For each of the sixteen sectors: o(ld), n(ew), p(art new), or g(arbage).
fn sixteen_fates(disk: &FaultyDisk) -> String {
    let fate = |sector: &[u8]| match (sector[0], sector[SECTOR - 1]) {
        _ if sector.iter().all(|byte| *byte == 1) => 'o',
        _ if sector.iter().all(|byte| *byte == 2) => 'n',
        (2, 1) if sector.iter().all(|byte| matches!(byte, 1 | 2)) => 'p',
        _ => 'g',
    };
    read(disk, 0, 16 * SECTOR).chunks(SECTOR).map(fate).collect()
}

#[test]
fn crashes_take_every_shape() {
    let mut fates = BTreeSet::new();
    for seed in 0..2_000 {
        let disk = sixteen_unsynced(seed);
        disk.crash();
        fates.insert(sixteen_fates(&disk));
    }
    let some = |what: &str, shape: &dyn Fn(&str) -> bool| {
        assert!(fates.iter().any(|fates| shape(fates)), "no crash with {what} among {} shapes", fates.len());
    };
    some("everything lost", &|fates| fates == "oooooooooooooooo");
    some("everything kept", &|fates| fates == "nnnnnnnnnnnnnnnn");
    some("a prefix", &|fates| fates == "nnnnnnoooooooooo");
    some("a torn end", &|fates| fates == "nnnngooooooooooo");
    some("the last write only", &|fates| fates == "ooooooooooooooon");
    some("all but one", &|fates| fates == "nnnnnnnonnnnnnnn");
    some("a half", &|fates| (6..=10).contains(&fates.matches('n').count()) && !fates.starts_with("nnnn"));
    some("part of a sector", &|fates| fates.contains('p'));
    some("garbage in the middle", &|fates| fates[..8].contains('g') && fates[8..].contains('n'));
    assert!(fates.len() > 300, "only {} shapes", fates.len());
}

#[test]
fn one_write_may_be_kept_in_part_and_an_old_version_may_stay() {
    let (mut parts, mut middles) = (0, 0);
    for seed in 0..1_000 {
        let disk = disk(seed);
        write(&disk, 0, &[1; 16 * SECTOR]).unwrap();
        write(&disk, 0, &[2; 16 * SECTOR]).unwrap();
        disk.crash();
        let bytes = read(&disk, 0, 16 * SECTOR);
        parts += u32::from(bytes.contains(&0) && bytes.contains(&1));
        middles += u32::from(bytes.iter().all(|byte| *byte == 1));
    }
    assert!(parts > 10 && middles > 10, "{parts} in part, {middles} of the older version");
}

#[test]
fn a_killed_process_loses_nothing() {
    let disk = sixteen_unsynced(1);
    disk.plan().stop_after(0);
    let error = disk.sync(Syncer::Log).unwrap_err();
    assert!(WorldStopped::is_cause_of(&error));
    disk.kill_process();
    assert_eq!(sixteen_fates(&disk), "nnnnnnnnnnnnnnnn");
    disk.drop_cache().unwrap();
    assert_eq!(sixteen_fates(&disk), "nnnnnnnnnnnnnnnn");
}

#[test]
fn the_world_stops_at_any_io_for_all_disks() {
    let run = |disks: &[FaultyDisk; 2]| -> io::Result<()> {
        for (round, disk) in disks.iter().cycle().take(6).enumerate() {
            let offset = DeviceOffset(round as u64 * 4096);
            disk.allocate(offset, ByteCount(4096))?;
            disk.write_at(offset, &[&[7; 4096]])?;
            disk.sync(Syncer::Log)?;
            disk.read_at(offset, &mut [0; 16])?;
            disk.try_read_at(offset, &mut [0; 16])?;
            disk.discard(offset, ByteCount(4096))?;
        }
        Ok(())
    };
    let machine = || {
        let plan = FaultPlan::new();
        let make = |name| FaultyDisk::new(name, ByteCount(LEN), 5, Arc::clone(&plan));
        ([make("a"), make("b")], Arc::clone(&plan))
    };
    let (disks, plan) = machine();
    run(&disks).unwrap();
    let counts = plan.counts();
    assert_eq!(counts, IoCounts { reads: 12, writes: 6, syncs: 6, allocates: 6, discards: 6 });
    for stop in 0..counts.total() {
        let (disks, plan) = machine();
        plan.stop_after(stop);
        let error = run(&disks).unwrap_err();
        assert!(WorldStopped::is_cause_of(&error), "{error}");
        assert_eq!((plan.counts().total(), plan.is_stopped()), (stop + 1, true));
        for disk in &disks {
            assert!(disk.read_at(DeviceOffset(0), &mut [0]).is_err());
            assert!(
                write(disk, 0, &[1]).is_err()
                    && disk.sync(Syncer::Log).is_err()
                    && disk.drop_cache().is_err()
            );
            assert!(disk.allocate(DeviceOffset(0), ByteCount(1)).is_err());
            assert!(disk.discard(DeviceOffset(0), ByteCount(1)).is_err());
        }
        assert_eq!(plan.counts().total(), stop + 1, "what finds the world stopped does not count");
        disks.iter().for_each(FaultyDisk::crash);
        run(&disks).unwrap();
    }
}

#[test]
fn the_stopping_write_is_done_in_part() {
    let mut lengths = BTreeSet::new();
    for seed in 0..200 {
        let disk = disk(seed);
        disk.plan().stop_after(0);
        assert!(write(&disk, 100, &[1; 2 * SECTOR]).is_err());
        disk.plan().restart();
        let bytes = read(&disk, 100, 2 * SECTOR);
        let done = bytes.iter().take_while(|byte| **byte == 1).count();
        assert!(bytes[done..].iter().all(|byte| *byte == 0));
        lengths.insert(done);
    }
    assert_eq!(lengths.into_iter().collect::<Vec<_>>(), [0, 412, 924, 1024]);
}

#[test]
fn the_stopped_world_is_known_through_other_errors() {
    let error = Error::caused(ErrorKind::Device, "cannot write the log", WorldStopped::error());
    assert!(WorldStopped::is_cause_of(&error));
    assert!(WorldStopped::is_cause_of(&io::Error::other(error)));
    let other = Error::caused(ErrorKind::Device, "cannot write the log", io::Error::other("no"));
    assert!(!WorldStopped::is_cause_of(&other));
}

#[test]
fn a_failed_sync_shows_what_it_lost_until_the_cache_is_dropped() {
    let mut kept = BTreeSet::new();
    for seed in 0..200 {
        let disk = sixteen_unsynced(seed);
        disk.plan().inject(Fault::FailSync, 0);
        assert!(is_eio(&disk.sync(Syncer::Log).unwrap_err()));
        assert_eq!(sixteen_fates(&disk), "nnnnnnnnnnnnnnnn");
        // The second try succeeds, and has saved nothing.
        disk.sync(Syncer::Log).unwrap();
        disk.drop_cache().unwrap();
        let fates = sixteen_fates(&disk);
        assert_ne!(fates, "nnnnnnnnnnnnnnnn");
        kept.insert(fates);
    }
    assert!(kept.contains("oooooooooooooooo") && kept.len() > 50);
}

#[test]
fn reads_and_writes_fail_when_told() {
    let disk = disk(3);
    disk.plan().inject(Fault::FailRead, 1);
    disk.plan().inject(Fault::FailWrite, 2);
    read(&disk, 0, 1);
    assert!(is_eio(&disk.read_at(DeviceOffset(0), &mut [0]).unwrap_err()));
    read(&disk, 0, 1);
    write(&disk, 0, &[1; 4096]).unwrap();
    write(&disk, 4096, &[1; 4096]).unwrap();
    assert!(is_eio(&write(&disk, 0, &[2; 8192]).unwrap_err()));
    assert!(read(&disk, 0, 8192).iter().all(|byte| matches!(byte, 1 | 2)));
    write(&disk, 0, &[3; 8192]).unwrap();
    disk.plan().inject(Fault::FailRead, 0);
    disk.plan().forget_faults();
    assert_eq!(read(&disk, 0, 8192), [3; 8192]);
}

#[test]
fn a_lost_write_shows_only_in_the_cache() {
    let disk = disk(4);
    write(&disk, 0, &[1; 4096]).unwrap();
    disk.plan().inject(Fault::LoseWrite, 0);
    write(&disk, 0, &[2; 4096]).unwrap();
    disk.sync(Syncer::Log).unwrap();
    assert_eq!(read(&disk, 0, 4096), [2; 4096]);
    disk.drop_cache().unwrap();
    assert_eq!(read(&disk, 0, 4096), [1; 4096]);
}

#[test]
fn a_misdirected_write_is_found_elsewhere() {
    for seed in 0..50 {
        let disk = disk(seed);
        write(&disk, 8192, &[1; 4096]).unwrap();
        disk.sync(Syncer::Log).unwrap();
        disk.plan().inject(Fault::MisdirectWrite, 0);
        write(&disk, 8192, &[2; 4096]).unwrap();
        assert_eq!(read(&disk, 8192, 4096), [2; 4096]);
        disk.sync(Syncer::Log).unwrap();
        disk.drop_cache().unwrap();
        let whole = read(&disk, 0, length_of_disk());
        let start = whole.iter().position(|byte| *byte == 2).expect("it went somewhere");
        assert!(start != 8192 && start % SECTOR == 0);
        assert!(whole[start..start + 4096].iter().all(|byte| *byte == 2));
        assert_eq!(whole.iter().filter(|byte| **byte == 2).count(), 4096);
        assert!(whole[8192..12_288].contains(&1), "the old bytes are where the new ones should be");
    }
    let small = FaultyDisk::new("small", ByteCount(4096), 1, FaultPlan::new());
    small.plan().inject(Fault::MisdirectWrite, 0);
    write(&small, 0, &[2; 4096]).unwrap();
    small.crash();
    assert_eq!(read(&small, 0, 4096), [0; 4096]);
}

#[test]
fn a_flipped_bit_shows_unless_newer_bytes_hide_it() {
    let disk = disk(5);
    write(&disk, 0, &[0; 4096]).unwrap();
    disk.sync(Syncer::Log).unwrap();
    disk.flip_bit(DeviceOffset(100), 3);
    assert_eq!(read(&disk, 99, 3), [0, 8, 0]);
    write(&disk, 200, &[1]).unwrap();
    disk.flip_bit(DeviceOffset(200), 7);
    assert_eq!(read(&disk, 200, 1), [1]);
    assert_eq!(stable(&disk)[200], 0x80);
    disk.sync(Syncer::Log).unwrap();
    disk.drop_cache().unwrap();
    assert_eq!(read(&disk, 200, 1), [1]);
}

#[test]
fn without_room_nothing_new_is_taken() {
    let disk = disk(6);
    let full = |outcome: io::Result<()>| outcome.unwrap_err().kind() == io::ErrorKind::StorageFull;
    disk.allocate(DeviceOffset(0), ByteCount(8192)).unwrap();
    disk.limit_room(Some(ByteCount(12_288)));
    disk.allocate(DeviceOffset(4096), ByteCount(8192)).unwrap();
    assert!(full(disk.allocate(DeviceOffset(0), ByteCount(16_384))));
    assert!(full(write(&disk, 12_287, &[1, 1])));
    write(&disk, 0, &[1; 12_288]).unwrap();
    disk.discard(DeviceOffset(0), ByteCount(4096)).unwrap();
    write(&disk, 12_288, &[1; 4096]).unwrap();
    assert!(full(write(&disk, 0, &[1])));
    disk.limit_room(None);
    write(&disk, 0, &[1]).unwrap();
    disk.plan().inject(Fault::RefuseAllocate, 0);
    assert!(full(disk.allocate(DeviceOffset(0), ByteCount(1))));
    disk.allocate(DeviceOffset(0), ByteCount(1)).unwrap();
}

#[test]
fn an_unsynced_allocation_may_be_lost() {
    let lost = |seed| {
        let disk = disk(seed);
        disk.allocate(DeviceOffset(0), ByteCount(8192)).unwrap();
        disk.crash();
        disk.limit_room(Some(ByteCount(0)));
        write(&disk, 0, &[1]).is_err()
    };
    let count = (0..200).filter(|seed| lost(*seed)).count();
    assert!((20..180).contains(&count), "{count} of 200 lost");
}

#[test]
fn a_discard_leaves_anything_there_and_nothing_beside() {
    let mut seen = BTreeSet::new();
    for seed in 0..100 {
        let disk = disk(seed);
        write(&disk, 0, &[1; 16_384]).unwrap();
        disk.sync(Syncer::Log).unwrap();
        disk.discard(DeviceOffset(4000), ByteCount(8192)).unwrap();
        let shown = read(&disk, 0, 16_384);
        assert!(shown[..4000].iter().chain(&shown[12_192..]).all(|byte| *byte == 1));
        disk.crash();
        let after = read(&disk, 0, 16_384);
        assert!(after[..4000].iter().chain(&after[12_192..]).all(|byte| *byte == 1));
        let kind = |byte| match byte {
            0 => "zeros",
            1 => "old",
            _ => "garbage",
        };
        seen.insert((kind(shown[8000]), kind(after[8000])));
    }
    for expected in
        [("zeros", "zeros"), ("zeros", "old"), ("garbage", "garbage"), ("garbage", "old"), ("old", "old")]
    {
        assert!(seen.contains(&expected), "{expected:?} is not among {seen:?}");
    }
}

#[test]
fn a_tried_read_is_right_or_says_no() {
    let disk = disk(8);
    write(&disk, 0, &[1; 4096]).unwrap();
    let (mut answered, mut refused) = (0, 0);
    for _ in 0..400 {
        let mut bytes = [0xee; 64];
        if disk.try_read_at(DeviceOffset(0), &mut bytes).unwrap() {
            assert_eq!(bytes, [1; 64]);
            answered += 1;
        } else {
            assert_ne!(bytes, [1; 64], "what is undefined should not look right");
            refused += 1;
        }
    }
    assert!(answered > 200 && refused > 50);
}

#[test]
fn a_sync_does_not_cover_what_is_written_while_it_runs() {
    let overtaken = |seed| {
        let disk = disk(seed);
        let (synced, written_meanwhile) = (AtomicBool::new(false), AtomicBool::new(false));
        let sync = || {
            disk.sync(Syncer::Log).unwrap();
            synced.store(true, Ordering::SeqCst);
        };
        let put = || {
            write(&disk, 0, &[1; 512]).unwrap();
            written_meanwhile.store(!synced.load(Ordering::SeqCst), Ordering::SeqCst);
        };
        let threads: Vec<Simulated<'_>> = vec![Box::new(sync), Box::new(put)];
        run_threads(seed, threads);
        (written_meanwhile.into_inner(), disk.unsynced_changes())
    };
    let outcomes: Vec<_> = (0..100).map(overtaken).collect();
    assert!(outcomes.contains(&(true, 0)), "a write before the sync is covered");
    assert!(outcomes.contains(&(true, 1)), "a write during the sync is not");
    assert!(outcomes.contains(&(false, 1)), "a write after the sync is not");
    assert_eq!(outcomes, (0..100).map(overtaken).collect::<Vec<_>>());
}

#[test]
fn a_snapshot_is_gone_back_to_under_other_seeds() {
    let disk = sixteen_unsynced(1);
    let snapshot = disk.snapshot();
    write(&disk, 0, &[3; 8192]).unwrap();
    disk.sync(Syncer::Log).unwrap();
    let mut fates = BTreeSet::new();
    for seed in 0..100 {
        let again = FaultyDisk::from_snapshot(&snapshot, FaultPlan::new());
        assert_eq!((again.name(), again.len()), ("disk", ByteCount(LEN)));
        assert_eq!(sixteen_fates(&again), "nnnnnnnnnnnnnnnn");
        again.reseed(seed);
        again.crash();
        fates.insert(sixteen_fates(&again));
    }
    assert!(fates.len() > 30);
    assert_eq!(read(&disk, 0, 8192), [3; 8192]);
}

#[test]
fn past_the_end_is_an_error() {
    let disk = disk(9);
    for offset in [LEN - 1, LEN, u64::MAX] {
        let error = disk.read_at(DeviceOffset(offset), &mut [0; 2]).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
        assert!(write(&disk, offset, &[0; 2]).is_err());
        assert!(disk.discard(DeviceOffset(offset), ByteCount(2)).is_err());
        assert!(disk.allocate(DeviceOffset(offset), ByteCount(2)).is_err());
    }
    assert_eq!(disk.plan().counts().total(), 0);
}
