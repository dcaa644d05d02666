//! The engine from outside: what it does behind the volumes' backs, on a pool in memory.

#![expect(clippy::unwrap_used, reason = "a test ends where it cannot go on")]

mod apply;
mod index;
mod opening;
#[path = "../common/pool.rs"]
mod pool;
mod repair;
mod resync;
mod snapshots;

use sinter::store::{CheckReport, Store};
use sinter::sync::seeded::mix;
use sinter::units::{BLOCK_BYTES, Lba, ObjectNumber};

/// Blocks with these contents, none like another.
fn blocks(contents: impl Iterator<Item = u64>) -> Vec<u8> {
    let mut bytes = Vec::new();
    for content in contents {
        let mut state = mix(content);
        for _ in 0..BLOCK_BYTES / 8 {
            state = mix(state);
            bytes.extend_from_slice(&state.to_le_bytes());
        }
    }
    bytes
}

fn read(store: &Store, object: ObjectNumber, first: u64, count: usize) -> sinter::error::Result<Vec<u8>> {
    let mut buffer = vec![1u8; count * BLOCK_BYTES];
    store.read(object, Lba(first), &mut buffer, true).map(|_| buffer)
}

fn verified(store: &Store) -> CheckReport {
    store.verify(&mut |_, _| {}).unwrap()
}

fn assert_sound(store: &Store) {
    let report = verified(store);
    assert!(report.faults.is_empty(), "{:#?}", &report.faults[..report.faults.len().min(8)]);
}
