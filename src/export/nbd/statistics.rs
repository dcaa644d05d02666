//! Plain counters of what the server did; `metrics` reads them.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Upper bounds, in microseconds, of the buckets of a latency histogram; one more bucket takes what
/// is slower than the last.
pub const LATENCY_BOUNDS_MICROS: [u64; 16] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000,
    5_000_000,
];

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// READ
    Read,
    /// WRITE
    Write,
    /// FLUSH
    Flush,
    /// TRIM
    Trim,
    /// CACHE
    Cache,
    /// WRITE_ZEROES
    WriteZeroes,
    /// BLOCK_STATUS
    BlockStatus,
}

impl Operation {
    /// All of them, in the order of `NbdStatistics::operations`.
    pub const ALL: [Operation; 7] = [
        Operation::Read,
        Operation::Write,
        Operation::Flush,
        Operation::Trim,
        Operation::Cache,
        Operation::WriteZeroes,
        Operation::BlockStatus,
    ];

    /// A word for it, for labels of metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush",
            Operation::Trim => "trim",
            Operation::Cache => "cache",
            Operation::WriteZeroes => "write_zeroes",
            Operation::BlockStatus => "block_status",
        }
    }
}

/// Counters of one operation, since the server's start.
#[derive(Debug, Default)]
pub struct OperationStatistics {
    /// Requests answered, with success or not.
    pub requests: AtomicU64,
    /// Bytes read, written, zeroed or trimmed by those that succeeded.
    pub bytes: AtomicU64,
    /// Requests answered with an error.
    pub errors: AtomicU64,
    /// Sum of the time from receiving to answering, in microseconds.
    pub latency_sum_micros: AtomicU64,
    /// Requests by latency, in the buckets of `LATENCY_BOUNDS_MICROS`; not cumulative.
    pub latency: [AtomicU64; LATENCY_BOUNDS_MICROS.len() + 1],
}

/// Counters of the whole server. Each one is right in itself; they are not one moment's picture.
#[derive(Debug, Default)]
pub struct NbdStatistics {
    /// In the order of `Operation::ALL`.
    pub operations: [OperationStatistics; Operation::ALL.len()],
    /// Connections open now, handshakes included.
    pub connections: AtomicU64,
    /// Connections accepted since the start.
    pub connections_accepted: AtomicU64,
    /// Connections closed at once because there were too many.
    pub connections_refused: AtomicU64,
}

impl NbdStatistics {
    /// The counters of one operation.
    #[must_use]
    pub fn operation(&self, operation: Operation) -> &OperationStatistics {
        &self.operations[operation as usize]
    }

    /// Counts `tally`, whose requests were all answered `latency` after they came.
    pub(super) fn count(&self, operation: Operation, tally: Tally, latency: Duration) {
        let counters = self.operation(operation);
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        counters.requests.fetch_add(tally.requests, Ordering::Relaxed);
        counters.bytes.fetch_add(tally.bytes, Ordering::Relaxed);
        counters.errors.fetch_add(tally.errors, Ordering::Relaxed);
        counters.latency_sum_micros.fetch_add(micros.saturating_mul(tally.requests), Ordering::Relaxed);
        counters.latency[bucket].fetch_add(tally.requests, Ordering::Relaxed);
    }
}

/// Requests of one kind that were answered together.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Tally {
    pub(super) requests: u64,
    pub(super) bytes: u64,
    pub(super) errors: u64,
}

impl Tally {
    pub(super) fn succeeded(&mut self, bytes: u64) {
        self.requests += 1;
        self.bytes += bytes;
    }

    pub(super) fn failed(&mut self) {
        self.requests += 1;
        self.errors += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_their_buckets() {
        let statistics = NbdStatistics::default();
        let one = Tally { requests: 1, bytes: 0, errors: 0 };
        for micros in [0, 10, 11, 5_000_000, 5_000_001] {
            statistics.count(Operation::Trim, one, Duration::from_micros(micros));
        }
        let counters = statistics.operation(Operation::Trim);
        let latency: Vec<u64> =
            counters.latency.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        assert_eq!((latency[0], latency[1], latency[15], latency[16]), (2, 1, 1, 1));
        assert_eq!(counters.requests.load(Ordering::Relaxed), 5);
    }
}
