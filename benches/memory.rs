//! The most memory that the daemon takes while a volume is filled and then overwritten at random.
//!
//! `cargo bench --bench memory -- GIB OVERWRITES [METADATA_MIB INDEX_MIB]` (32 and 2000000, budgets of 32 and
//! 16 MiB, are what PERFORMANCE shows). Without arguments it does nothing, so that `cargo bench` passes over it.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench, run by hand")]

#[path = "../kmod-free-tests/common/daemon.rs"]
mod daemon;
#[path = "../kmod-free-tests/memory/load.rs"]
mod load;

use daemon::Scratch;
use load::Load;
use load::MIB;

fn main() {
    let arguments = std::env::args().skip(1).filter(|it| !it.starts_with("--"));
    let numbers: Vec<u64> = arguments.map(|argument| argument.parse().unwrap()).collect();
    let [gib, overwrites, ..] = numbers[..] else { return };
    let load = Load {
        metadata_mib: numbers.get(2).copied().unwrap_or(32),
        index_mib: numbers.get(3).copied().unwrap_or(16),
        requests_mib: 33,
        pool_gib: gib.max(16),
        fill_mib: gib << 10,
        overwrites,
    };
    println!("{load:?}");
    let scratch = Scratch::new();
    let peak = load.run(scratch.path(), |what| println!("{what}"));
    println!(
        "peak: {} MiB with small requests, {} MiB with large ones, {} MiB resident without files; the budgets are \
         {} MiB for metadata and index and {} MiB in all; {} checkpoints",
        peak.small_requests / MIB,
        peak.anonymous / MIB,
        peak.resident / MIB,
        load.metadata_mib + load.index_mib,
        load.budgets() / MIB,
        peak.checkpoints
    );
}
