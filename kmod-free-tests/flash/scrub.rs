//! Scrub: all that is live is read while the pool is in use, and what is damaged is found.

use std::sync::Arc;

use sinter::device::Device;
use sinter::error::ErrorKind;
use sinter::format::page::{PageKey, Table};
use sinter::store::{ScrubState, ScrubStatus};
use sinter::units::{BLOCK_BYTES, ByteCount, DeviceOffset, Lba};

use crate::assert_sound;
use crate::load::{Load, Pattern, options};

const MIB: u64 = 1 << 20;

fn small_pool(seed: u64) -> Load {
    let mut load = Load::new(ByteCount(24 * MIB), options(ByteCount(64 << 10), ByteCount(MIB)), seed);
    load.fill(70);
    load.store.checkpoint().unwrap();
    load
}

/// Scrubs to the end, `between` the steps doing something else.
fn scrub(load: &mut Load, mut between: impl FnMut(&mut Load)) -> ScrubStatus {
    load.store.start_scrub();
    let mut steps = 0;
    while load.store.scrub_step(ByteCount(128 << 10)).unwrap() {
        between(load);
        steps += 1;
        assert!(steps < 10_000, "it comes to no end");
    }
    let status = load.store.scrub_status();
    assert_eq!(status.state, ScrubState::Finished);
    assert!(
        steps as u64 >= status.bytes / (512 << 10),
        "a step is bounded: {steps} steps, {} bytes",
        status.bytes
    );
    status
}

fn flip(device: &Arc<dyn Device>, offset: DeviceOffset) {
    let mut byte = [0u8];
    device.read_at(offset, &mut byte).unwrap();
    device.write_at(offset, &[&[byte[0] ^ 0x40]]).unwrap();
}

#[test]
fn everything_live_is_read() {
    let mut load = small_pool(11);
    assert_eq!(load.store.scrub_status().state, ScrubState::Never);
    assert!(!load.store.scrub_step(ByteCount(MIB)).unwrap(), "nothing is read unless somebody asks");
    let status = scrub(&mut load, |_| {});
    let statistics = load.store.statistics();
    assert_eq!(status.errors, 0, "{:?}", status.damage);
    assert_eq!(status.blocks, statistics.unique_blocks);
    assert!(status.bytes >= statistics.stored_data_bytes, "{status:?}");
    assert!(status.pages > 20, "{status:?}");
    assert_eq!(status.position.0, status.position.1);
}

#[test]
fn overwrites_and_collection_under_way_are_no_damage() {
    let mut load = small_pool(12);
    let before = load.store.statistics().collected_segments;
    let status = scrub(&mut load, |load| load.overwrite(Pattern::Uniform, MIB));
    assert_eq!(status.errors, 0, "{:?}", status.damage);
    assert!(status.blocks > load.blocks / 2, "{status:?}");
    assert!(load.store.statistics().collected_segments > before + 20);
    assert_sound(&load.store);
}

#[test]
fn p2_a_damaged_block_is_found_and_named() {
    let mut load = small_pool(13);
    let lba = Lba(load.blocks / 2);
    let mut block = vec![0u8; BLOCK_BYTES];
    load.store.read(load.object, lba, &mut block, true).unwrap();
    let mut pool = vec![0u8; usize::try_from(load.device.len().0).unwrap()];
    load.device.read_at(DeviceOffset(0), &mut pool).unwrap();
    let at = pool.chunks(16).position(|start| start == &block[..16]).unwrap() * 16;
    flip(&load.device, DeviceOffset(at as u64 + 1000));
    let status = scrub(&mut load, |_| {});
    assert_eq!((status.errors, status.repaired), (1, 0), "{:?}", status.damage);
    assert!(status.damage[0].contains("fails its checksum"), "{:?}", status.damage);
    let statistics = load.store.statistics();
    assert_eq!((statistics.bad_blocks, statistics.scrub_errors), (1, 1));
    let error = load.store.read(load.object, lba, &mut block, true).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Corrupt);
}

#[test]
fn p2_a_page_with_a_good_copy_is_written_anew() {
    let mut load = small_pool(14);
    let key = PageKey::leaf(Table::Segments, 0);
    let copies = load.store.stored_copies(key).unwrap();
    assert_eq!(copies.len(), 2);
    flip(&load.device, DeviceOffset(copies[1].1.0 + 100));
    let status = scrub(&mut load, |_| {});
    assert_eq!((status.errors, status.repaired), (1, 1), "{:?}", status.damage);
    load.store.checkpoint().unwrap();
    assert_ne!(load.store.stored_copies(key).unwrap(), copies);
    let status = scrub(&mut load, |_| {});
    assert_eq!(status.errors, 0, "{:?}", status.damage);
    assert_sound(&load.store);
}

#[test]
fn a_stopped_scrub_reads_nothing_and_a_new_one_begins_at_the_start() {
    let mut load = small_pool(15);
    load.store.start_scrub();
    assert!(load.store.scrub_step(ByteCount(2 * MIB)).unwrap());
    let read = load.store.scrub_status().bytes;
    assert!(read >= 2 * MIB - (256 << 10));
    load.store.stop_scrub();
    assert!(!load.store.scrub_step(ByteCount(MIB)).unwrap());
    let status = load.store.scrub_status();
    assert_eq!((status.state, status.bytes), (ScrubState::Stopped, read));
    assert_eq!(scrub(&mut load, |_| {}).blocks, load.store.statistics().unique_blocks);
}
