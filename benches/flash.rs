//! What garbage collection costs: write amplification and wear of a pool that is 80 % full, under overwrites.
//!
//! `cargo bench --bench flash -- GIB VOLUMES [SEGMENT_KIB METADATA_MIB]` fills 80 % of a pool's usable bytes with
//! blocks that neither compress nor repeat, and then overwrites single blocks until VOLUMES times the pool's size
//! has been written: uniformly at random, and with four writes of five to a fifth of the blocks. The pool lies in
//! memory, and has the proportions of one 32 times as large with the default segments and budgets unless they are
//! given. Without arguments it does nothing, so that `cargo bench` passes over it.

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench, run by hand")]

#[path = "../kmod-free-tests/flash/load.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod load;

use std::time::Instant;

use load::{Load, Pattern, amplification, options, user_bytes};
use sinter::units::ByteCount;

const GIB: f64 = (1u64 << 30) as f64;
const SEED: u64 = 80_20;

fn main() {
    let arguments = std::env::args().skip(1).filter(|it| !it.starts_with("--"));
    let numbers: Vec<f64> = arguments.map(|argument| argument.parse().unwrap()).collect();
    let [gib, volumes, ..] = numbers[..] else { return };
    let given = |index: usize, otherwise: f64| numbers.get(index).copied().unwrap_or(otherwise);
    let segment = ByteCount(given(2, 256.0) as u64 * 1024);
    let metadata = ByteCount((given(3, (gib * 8.0).max(1.0)) * 1048576.0) as u64);
    for pattern in [Pattern::Uniform, Pattern::EightyTwenty] {
        run(pattern, ByteCount((gib * GIB) as u64), volumes as u64, segment, metadata);
    }
}

#[expect(clippy::disallowed_methods, reason = "a bench reads the clock")]
fn run(pattern: Pattern, pool: ByteCount, volumes: u64, segment: ByteCount, metadata: ByteCount) {
    let begin = Instant::now();
    let mut load = Load::new(pool, options(segment, metadata), SEED);
    load.fill(80);
    let filled = load.store.statistics();
    let percent = |part: u64, whole: u64| part as f64 * 100.0 / whole as f64;
    println!(
        "{pattern:?}: {} segments of {} KiB, {:.1} % of the pool usable, {:.1} % of all live, {:.0} s",
        filled.segment_count,
        segment.0 >> 10,
        percent(filled.usable_bytes, filled.capacity_bytes),
        percent(filled.live_bytes, filled.capacity_bytes),
        begin.elapsed().as_secs_f64()
    );
    println!(
        "{:>8} {:>8} {:>8} {:>9} {:>6} {:>6} {:>7} {:>6} {:>6} {:>6} {:>6}",
        "written", "amplif.", "overall", "metadata", "live %", "free", "erases", "min", "mean", "max", "s"
    );
    let mut before = filled.clone();
    for volume in 1..=volumes {
        load.overwrite(pattern, pool.0);
        let now = load.store.statistics();
        let metadata = now.metadata_bytes_written - before.metadata_bytes_written;
        println!(
            "{:>8} {:>8.3} {:>8.3} {:>9.3} {:>6.1} {:>6} {:>7} {:>6} {:>6.1} {:>6} {:>6.0}",
            volume,
            amplification(&before, &now),
            amplification(&filled, &now),
            metadata as f64 / user_bytes(&before, &now) as f64,
            percent(now.live_bytes, now.capacity_bytes),
            now.free_segments,
            now.segment_erases,
            now.erases_min,
            now.erases_avg,
            now.erases_max,
            begin.elapsed().as_secs_f64()
        );
        before = now;
    }
}
