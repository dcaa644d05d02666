//! Plain counters of the HTTP requests that were answered; `metrics` reads them.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::http::Method;

/// Upper bounds, in microseconds, of the buckets of a latency histogram; one more bucket takes what is
/// slower than the last.
pub const LATENCY_BOUNDS_MICROS: [u64; 10] =
    [100, 500, 1_000, 5_000, 10_000, 50_000, 100_000, 500_000, 1_000_000, 5_000_000];

/// What a request was for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Data of a volume was read.
    Read,
    /// Data of a volume was written.
    Write,
    /// Something was looked at.
    Query,
    /// Something was managed.
    Manage,
}

impl Operation {
    /// All of them, in the order of `RestStatistics::operations`.
    pub const ALL: [Operation; 4] = [Operation::Read, Operation::Write, Operation::Query, Operation::Manage];

    /// A word for it, for labels of metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Query => "query",
            Operation::Manage => "manage",
        }
    }

    pub(super) fn of(method: &Method, path: &str) -> Operation {
        match (method, path.rsplit('/').next()) {
            (&Method::GET, Some("read")) => Operation::Read,
            (&Method::POST, Some("write")) => Operation::Write,
            (&Method::GET | &Method::HEAD | &Method::OPTIONS, _) => Operation::Query,
            _ => Operation::Manage,
        }
    }
}

/// Counters of one operation, since the start.
#[derive(Debug, Default)]
pub struct OperationStatistics {
    /// Requests answered, with success or not.
    pub requests: AtomicU64,
    /// Sum of the time from the request's head to the answer's, in microseconds.
    pub latency_sum_micros: AtomicU64,
    /// Requests by latency, in the buckets of `LATENCY_BOUNDS_MICROS`; not cumulative.
    pub latency: [AtomicU64; LATENCY_BOUNDS_MICROS.len() + 1],
}

/// Counters of all HTTP requests.
#[derive(Debug, Default)]
pub struct RestStatistics {
    /// In the order of `Operation::ALL`.
    pub operations: [OperationStatistics; Operation::ALL.len()],
}

impl RestStatistics {
    pub(super) fn count(&self, operation: Operation, latency: Duration) {
        let counters = &self.operations[operation as usize];
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        let bucket = LATENCY_BOUNDS_MICROS.partition_point(|bound| *bound < micros);
        counters.requests.fetch_add(1, Ordering::Relaxed);
        counters.latency_sum_micros.fetch_add(micros, Ordering::Relaxed);
        counters.latency[bucket].fetch_add(1, Ordering::Relaxed);
    }
}
