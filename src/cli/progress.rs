//! A progress bar on standard error, on a terminal only.

use std::io::IsTerminal;
use std::time::Duration;

use crate::cli::output;
use crate::daemon::quantity::round_size;
use crate::daemon::system::SystemClock;
use crate::sync::Clock;
use crate::units::ByteCount;

/// How often the bar is drawn.
const INTERVAL: Duration = Duration::from_millis(100);

/// Characters between the brackets.
const WIDTH: usize = 30;

/// Shows how far some long work is.
pub struct Progress {
    label: &'static str,
    unit: Unit,
    all: Option<u64>,
    visible: bool,
    clock: SystemClock,
    started: Duration,
    drawn: Option<Duration>,
}

#[derive(Clone, Copy)]
enum Unit {
    Bytes,
    Blocks,
    /// What is counted down is not done at a rate that says anything.
    Left,
}

impl Unit {
    fn show(self, amount: u64) -> String {
        match self {
            Unit::Bytes => round_size(ByteCount(amount)),
            Unit::Blocks => format!("{amount} blocks"),
            Unit::Left => amount.to_string(),
        }
    }
}

impl Progress {
    /// A bar for `all` bytes; `None` where their number is not known.
    #[must_use]
    pub fn bytes(label: &'static str, all: Option<ByteCount>) -> Progress {
        Progress::new(label, Unit::Bytes, all.map(|all| all.0))
    }

    /// A bar for blocks whose number will be told.
    #[must_use]
    pub fn blocks(label: &'static str) -> Progress {
        Progress::new(label, Unit::Blocks, None)
    }

    /// A line for a number that goes down.
    #[must_use]
    pub fn left(label: &'static str) -> Progress {
        Progress::new(label, Unit::Left, None)
    }

    fn new(label: &'static str, unit: Unit, all: Option<u64>) -> Progress {
        let clock = SystemClock::new();
        let started = clock.monotonic();
        Progress { label, unit, all, visible: std::io::stderr().is_terminal(), clock, started, drawn: None }
    }

    /// So much is done, of perhaps a new total.
    pub fn show(&mut self, done: u64, all: Option<u64>) {
        self.all = all.or(self.all);
        let now = self.clock.monotonic();
        if !self.visible || self.drawn.is_some_and(|drawn| now - drawn < INTERVAL) {
            return;
        }
        self.drawn = Some(now);
        let (amount, rate) = (self.unit.show(done), self.unit.show(rate(done, now - self.started)));
        let line = match self.all {
            Some(all) => {
                let parts = u128::from(done) * WIDTH as u128 / u128::from(all.max(1));
                let full = usize::try_from(parts).unwrap_or(WIDTH).min(WIDTH);
                let bar = "#".repeat(full) + &"-".repeat(WIDTH - full);
                format!("{} [{bar}] {amount} of {}, {rate}/s", self.label, self.unit.show(all))
            }
            None if matches!(self.unit, Unit::Left) => format!("{} {amount}", self.label),
            None => format!("{} {amount}, {rate}/s", self.label),
        };
        output::transient(&format!("\r{line}\x1b[K"));
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if self.drawn.is_some() {
            output::transient("\r\x1b[K");
        }
    }
}

fn rate(done: u64, time: Duration) -> u64 {
    let milliseconds = time.as_millis().max(1);
    u64::try_from(u128::from(done) * 1000 / milliseconds).unwrap_or(u64::MAX)
}
