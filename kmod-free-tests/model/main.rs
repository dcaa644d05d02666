//! The array against plain maps: whatever a program of management verbs, writes, zeroings, trims and
//! reads does, the array answers as a map of byte vectors would. Everything goes through the array's
//! front door.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

#[path = "../common/pool.rs"]
mod pool;

mod gate;
mod management;
mod partial_writes;
mod programs;
mod snapshots;
mod world;

use std::sync::Arc;

use sinter::error::ErrorKind;
use sinter::error::Result;
use sinter::sync::Baton;
use sinter::sync::carry_baton;

/// Lets another thread run at every lock.
struct Polite;

impl Baton for Polite {
    fn yield_now(&self) {
        std::thread::yield_now();
    }
}

/// From now on the calling thread may lose its turn at every lock, so that races show.
fn be_polite() {
    carry_baton(Some(Arc::new(Polite)));
}

/// The kind of the error that `result` must be.
fn kind<T>(result: Result<T>) -> ErrorKind {
    match result {
        Ok(_) => panic!("an error was expected"),
        Err(error) => error.kind(),
    }
}
