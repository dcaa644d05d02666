//! Plain counters of what the server did; `metrics` reads them.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use crate::export::latency::OperationStatistics;
pub(super) use crate::export::latency::Tally;

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
        self.operation(operation).count(tally, latency);
    }
}
