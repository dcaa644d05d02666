//! The one place where this export looks at a clock: for latencies and time limits.

use std::time::Instant;

/// The time now.
#[expect(clippy::disallowed_methods, reason = "exports measure real time; nothing here is simulated")]
pub(super) fn now() -> Instant {
    Instant::now()
}
