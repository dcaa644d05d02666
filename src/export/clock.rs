//! The one place where exports look at a clock: for latencies and time limits.

use std::time::Instant;

/// The time now.
#[expect(clippy::disallowed_methods, reason = "exports measure real time; nothing here is simulated")]
pub(in crate::export) fn now() -> Instant {
    Instant::now()
}
