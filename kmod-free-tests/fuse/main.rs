//! FUSE: the file system without a mount, and real mounts where the machine has FUSE.
//!
//! Tests of real mounts need `/dev/fuse` and root; those of loop devices need those, too. Without them they
//! say on standard error what they did not verify, and `scripts/test` says it again at its end.
//!
//! A test that draws random numbers prints its seed; `SINTER_FUSE_SEED` repeats it, and `SINTER_FUSE_STEPS`
//! asks for more steps than the usual.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod catalog;
mod commands;
#[path = "../common/daemon.rs"]
mod daemon;
mod host;
mod load;
mod loops;
mod mounted;
mod object;
#[path = "../common/pool.rs"]
mod pool;

use std::time::SystemTime;
use std::time::UNIX_EPOCH;

/// The seed that was asked for, or a new one.
#[expect(clippy::print_stdout, reason = "a failure must be repeatable")]
fn seed() -> u64 {
    let seed = number_from_environment("SINTER_FUSE_SEED").unwrap_or_else(|| {
        #[expect(clippy::disallowed_methods, reason = "a new seed at each run, which is printed")]
        let now = SystemTime::now();
        u64::from(now.duration_since(UNIX_EPOCH).unwrap().subsec_nanos())
    });
    println!("SINTER_FUSE_SEED={seed}");
    seed
}

/// How many steps a random load has.
fn steps(usual: u64) -> u64 {
    number_from_environment("SINTER_FUSE_STEPS").unwrap_or(usual)
}

fn number_from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().unwrap())
}
