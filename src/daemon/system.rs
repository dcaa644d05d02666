//! The clock and the random source of the real world, to be handed to what may not take them itself.

use std::time::Duration;
use std::time::SystemTime;

use rustix::time::ClockId;
use rustix::time::clock_gettime;

use crate::sync::Clock;
use crate::sync::RandomSource;
use crate::units::ByteCount;

/// The operating system's clocks. The monotonic one also counts while the machine sleeps: a lease that was given before
/// has run out after.
#[derive(Clone, Copy, Debug)]
pub struct SystemClock {
    started: Duration,
}

impl SystemClock {
    /// A clock whose monotonic time begins now.
    #[must_use]
    #[expect(clippy::new_without_default, reason = "a default that looks at the time would surprise")]
    pub fn new() -> SystemClock {
        SystemClock { started: since_boot() }
    }
}

fn since_boot() -> Duration {
    let time = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default())
}

impl Clock for SystemClock {
    fn monotonic(&self) -> Duration {
        since_boot().saturating_sub(self.started)
    }

    #[expect(clippy::disallowed_methods, reason = "this is the clock that everyone else is handed")]
    fn since_unix_epoch(&self) -> Duration {
        SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
    }
}

/// The operating system's random bytes.
#[derive(Clone, Copy, Debug)]
pub struct SystemRandom;

impl RandomSource for SystemRandom {
    fn fill(&self, bytes: &mut [u8]) {
        getrandom::fill(bytes).expect("a system without random bytes cannot make keys or ids");
    }
}

/// What names this run of the machine's kernel, if it says so.
pub(super) fn boot_id() -> Option<String> {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").ok()?;
    Some(text.trim().to_owned()).filter(|id| !id.is_empty())
}

/// The memory of this machine, without what it has on disks.
#[must_use]
pub fn memory() -> ByteCount {
    let found = rustix::system::sysinfo();
    let [units, unit] = [found.totalram as u64, u64::from(found.mem_unit)];
    ByteCount(units.saturating_mul(unit))
}
