//! Plain counters of what all mounts did; `metrics` reads them.

use std::sync::atomic::AtomicU64;

use crate::export::latency::OperationStatistics;

/// What a request asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operation {
    /// Read data.
    Read,
    /// Write data.
    Write,
    /// Make durable what was written.
    Flush,
    /// Punch a hole.
    Trim,
    /// Zero a range.
    WriteZeroes,
    /// Find the next hole or data.
    Seek,
    /// All else: names, attributes, opening and closing.
    Metadata,
}

impl Operation {
    /// All of them, in the order of `FuseStatistics::operations`.
    pub const ALL: [Operation; 7] = [
        Operation::Read,
        Operation::Write,
        Operation::Flush,
        Operation::Trim,
        Operation::WriteZeroes,
        Operation::Seek,
        Operation::Metadata,
    ];

    /// A word for it, for labels of metrics.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Operation::Read => "read",
            Operation::Write => "write",
            Operation::Flush => "flush",
            Operation::Trim => "trim",
            Operation::WriteZeroes => "write_zeroes",
            Operation::Seek => "seek",
            Operation::Metadata => "metadata",
        }
    }
}

/// Counters of all mounts together. Each one is right in itself; they are not one moment's picture.
#[derive(Debug, Default)]
pub struct FuseStatistics {
    /// In the order of `Operation::ALL`.
    pub operations: [OperationStatistics; Operation::ALL.len()],
    /// Mounts that are served now.
    pub mounts: AtomicU64,
}

impl FuseStatistics {
    /// The counters of one operation.
    #[must_use]
    pub fn operation(&self, operation: Operation) -> &OperationStatistics {
        &self.operations[operation as usize]
    }
}
