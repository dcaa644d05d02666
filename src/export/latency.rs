//! How often each kind of request came, and how long it took: the same counters for every export.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Upper bounds, in microseconds, of the buckets of a latency histogram; one more bucket takes what
/// is slower than the last.
pub const LATENCY_BOUNDS_MICROS: [u64; 16] = [
    10, 20, 50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 1_000_000,
    5_000_000,
];

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

impl OperationStatistics {
    /// Counts `tally`, whose requests were all answered `latency` after they came.
    pub(in crate::export) fn count(&self, tally: Tally, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        self.requests.fetch_add(tally.requests, Ordering::Relaxed);
        self.bytes.fetch_add(tally.bytes, Ordering::Relaxed);
        self.errors.fetch_add(tally.errors, Ordering::Relaxed);
        self.latency_sum_micros.fetch_add(micros.saturating_mul(tally.requests), Ordering::Relaxed);
        self.latency[bucket].fetch_add(tally.requests, Ordering::Relaxed);
    }
}

/// Requests of one kind that were answered together.
#[derive(Clone, Copy, Debug, Default)]
pub(in crate::export) struct Tally {
    pub(in crate::export) requests: u64,
    pub(in crate::export) bytes: u64,
    pub(in crate::export) errors: u64,
}

impl Tally {
    pub(in crate::export) fn succeeded(&mut self, bytes: u64) {
        self.requests += 1;
        self.bytes += bytes;
    }

    pub(in crate::export) fn failed(&mut self) {
        self.requests += 1;
        self.errors += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn latencies_fall_into_their_buckets() {
        let counters = OperationStatistics::default();
        let one = Tally { requests: 1, bytes: 0, errors: 0 };
        for micros in [0, 10, 11, 5_000_000, 5_000_001] {
            counters.count(one, Duration::from_micros(micros));
        }
        let latency: Vec<u64> =
            counters.latency.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        assert_eq!((latency[0], latency[1], latency[15], latency[16]), (2, 1, 1, 1));
        assert_eq!(counters.requests.load(Ordering::Relaxed), 5);
    }
}
