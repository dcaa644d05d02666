//! The real daemon as a process: killed at random moments, told to stop, and used with the clients that people
//! have.
//!
//! A test that draws random numbers prints its seed; `SINTER_PROCESS_SEED` repeats its choices (the moment of a
//! kill is still the machine's own). `SINTER_PROCESS_KILLS` asks for more kills than the usual.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod client;
#[path = "../common/daemon.rs"]
mod daemon;
mod damage;
mod kills;
mod tools;

use std::time::SystemTime;
use std::time::UNIX_EPOCH;

/// The seed that was asked for, or a new one.
#[expect(clippy::print_stdout, reason = "a failure must be repeatable")]
fn seed() -> u64 {
    let seed = number_from_environment("SINTER_PROCESS_SEED").unwrap_or_else(|| {
        #[expect(clippy::disallowed_methods, reason = "a new seed at each run, which is printed")]
        let now = SystemTime::now();
        u64::from(now.duration_since(UNIX_EPOCH).unwrap().subsec_nanos())
    });
    println!("SINTER_PROCESS_SEED={seed}");
    seed
}

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}
