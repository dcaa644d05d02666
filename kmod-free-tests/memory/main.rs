//! Resident memory is bounded by the configuration and not by the pool.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

#[path = "../common/daemon.rs"]
mod daemon;
mod load;

use daemon::Scratch;
use load::Load;
use load::MIB;

/// What the daemon takes beside the budgets of metadata and index while requests are small: stacks, open batches,
/// one segment that collection reads and one that it writes, a checkpoint's pages on their way, and the
/// allocator's slack. Measured: 12 to 14 MiB beside these budgets; 22 MiB where nothing bounds the metadata.
const FIXED_BESIDE_SMALL_REQUESTS: u64 = 20 * MIB;

/// What it takes beside all budgets under more and larger requests than fit. Measured: 30 MiB, much of it memory
/// that the allocator has kept; 120 MiB where nothing bounds the requests.
const FIXED: u64 = 64 * MIB;

#[test]
fn p3_memory_stays_within_the_budgets_however_much_is_written() {
    let scratch = Scratch::new();
    let load = Load {
        metadata_mib: 1,
        index_mib: 1,
        requests_mib: 33,
        pool_gib: 1,
        fill_mib: 1024,
        overwrites: 20_000,
    };
    let peak = load.run(scratch.path(), |what| println!("{what}"));
    println!("{peak:?}");
    assert!(peak.checkpoints > 20, "too few checkpoints to say anything: {peak:?}");
    let metadata_and_index = (load.metadata_mib + load.index_mib) * MIB;
    assert!(peak.small_requests < metadata_and_index + FIXED_BESIDE_SMALL_REQUESTS, "{peak:?}");
    assert!(peak.anonymous < load.budgets() + FIXED, "{peak:?}");
    assert!(peak.resident < load.budgets() + FIXED, "{peak:?}");
}
