//! What an operator watches beside the figures of the I/O path: the build and its process, what is wrong,
//! the volumes' sizes, how space and segments are divided, and how far the log is.

use std::time::Duration;

use crate::array::VolumeInfo;
use crate::array::VolumeState;
use crate::export::nbd;

use super::Metric;
use super::Sources;
use super::load;
use super::text::Kind;
use super::text::Samples;

/// What the operating system says of the daemon's process. What it does not say is left out of the page.
#[derive(Clone, Copy, Debug, Default)]
pub struct ProcessFigures {
    /// When it began, since the Unix epoch.
    pub started: Duration,
    /// Processor time that it has taken, in user and kernel mode.
    pub cpu_seconds: Option<f64>,
    /// Memory that it occupies.
    pub resident_bytes: Option<u64>,
    /// Addresses that it has reserved.
    pub virtual_bytes: Option<u64>,
    /// Its threads.
    pub threads: Option<u64>,
    /// Its open file descriptors.
    pub open_files: Option<u64>,
    /// How many it may open.
    pub files_max: Option<u64>,
}

/// These metrics, in the order of the page.
pub(super) static METRICS: &[Metric] = &[
    Metric {
        name: "sinter_build_info",
        kind: Kind::Gauge,
        help: "Always 1; the version is a label.",
        read: |_, to| to.count(&[("version", env!("CARGO_PKG_VERSION"))], 1),
    },
    Metric {
        name: "sinter_array_info",
        kind: Kind::Gauge,
        help: "Always 1; the configured name of the array is a label.",
        read: |from, to| to.count(&[("array", &from.status.name)], 1),
    },
    Metric {
        name: "sinter_problems",
        kind: Kind::Gauge,
        help: "What is wrong with the array, counted; `sinter status -x` says what it is.",
        read: |from, to| to.count(&[], from.status.problems.len() as u64),
    },
    Metric {
        name: "sinter_pool_full",
        kind: Kind::Gauge,
        help: "1 while writes that need space are refused, else 0.",
        read: |from, to| to.count(&[], u64::from(from.status.store.full)),
    },
    Metric {
        name: "sinter_pool_near_full",
        kind: Kind::Gauge,
        help: "1 while less than a sixteenth of the usable space is left, else 0.",
        read: |from, to| to.count(&[], u64::from(from.status.store.near_full)),
    },
    Metric {
        name: "sinter_pool_host_full",
        kind: Kind::Gauge,
        help: "1 while the file system below the pool had no room for it when last asked, else 0.",
        read: |from, to| to.count(&[], u64::from(from.status.store.host_full)),
    },
    Metric {
        name: "sinter_pool_writable_bytes",
        kind: Kind::Gauge,
        help: "What writes may still fill of the pool, in stored sizes; the rest of what is free is kept back.",
        read: |from, to| to.count(&[], from.status.store.writable_bytes),
    },
    Metric {
        name: "sinter_pool_metadata_bytes",
        kind: Kind::Gauge,
        help: "Metadata in the pool that something still needs.",
        read: |from, to| to.count(&[], from.status.store.metadata_bytes),
    },
    Metric {
        name: "sinter_pool_data_bytes",
        kind: Kind::Gauge,
        help: "Stored bytes of the blocks in the pool that something still needs.",
        read: |from, to| to.count(&[], from.status.store.stored_data_bytes),
    },
    Metric {
        name: "sinter_pool_provisioned_bytes",
        kind: Kind::Gauge,
        help: "Sizes of all volumes together, written or not.",
        read: |from, to| to.count(&[], from.status.provisioned_bytes.0),
    },
    Metric {
        name: "sinter_unique_blocks",
        kind: Kind::Gauge,
        help: "Blocks stored, each once.",
        read: |from, to| to.count(&[], from.status.store.unique_blocks),
    },
    Metric {
        name: "sinter_referenced_blocks",
        kind: Kind::Gauge,
        help: "References of volumes to stored blocks.",
        read: |from, to| to.count(&[], from.status.store.referenced_blocks),
    },
    Metric {
        name: "sinter_bad_blocks",
        kind: Kind::Gauge,
        help: "Blocks whose stored bytes have failed their check since the start.",
        read: |from, to| to.count(&[], from.status.store.bad_blocks),
    },
    Metric {
        name: "sinter_segments",
        kind: Kind::Gauge,
        help: "Segments of the pool.",
        read: |from, to| {
            let store = &from.status.store;
            to.count(&[("state", "free")], store.free_segments);
            to.count(&[("state", "used")], store.segment_count.saturating_sub(store.free_segments));
        },
    },
    Metric {
        name: "sinter_segment_rated_erases",
        kind: Kind::Gauge,
        help: "Erases that a segment is rated for.",
        read: |from, to| to.count(&[], from.status.store.rated_cycles),
    },
    Metric {
        name: "sinter_operations_total",
        kind: Kind::Counter,
        help: "Changes of the array: the number of the newest one.",
        read: |from, to| to.count(&[], from.status.store.lsn),
    },
    Metric {
        name: "sinter_operations_not_durable",
        kind: Kind::Gauge,
        help: "Changes of the array that no sync has covered yet.",
        read: |from, to| {
            let store = &from.status.store;
            to.count(&[], store.lsn.saturating_sub(store.durable_lsn));
        },
    },
    Metric {
        name: "sinter_written_bytes_total",
        kind: Kind::Counter,
        help: "Bytes that clients wrote to all volumes.",
        read: |from, to| to.count(&[], from.status.store.bytes_in),
    },
    Metric {
        name: "sinter_log_written_bytes_total",
        kind: Kind::Counter,
        help: "Bytes appended to the log: data, reduced, and its records.",
        read: |from, to| to.count(&[], from.status.store.log_bytes_written),
    },
    Metric {
        name: "sinter_metadata_written_bytes_total",
        kind: Kind::Counter,
        help: "Bytes of metadata that checkpoints wrote.",
        read: |from, to| to.count(&[], from.status.store.metadata_bytes_written),
    },
    Metric {
        name: "sinter_index_unfilled_pages",
        kind: Kind::Gauge,
        help: "Pages of the block table that the fingerprint index is still to be filled from after the start.",
        read: |from, to| to.count(&[], from.status.store.index_pages_left),
    },
    Metric {
        name: "sinter_volume_size_bytes",
        kind: Kind::Gauge,
        help: "Size of the volume as clients see it.",
        read: |from, to| each_volume(from, to, |volume| volume.size_bytes.0),
    },
    Metric {
        name: "sinter_volume_used_bytes",
        kind: Kind::Gauge,
        help: "What clients have written to the volume and not trimmed.",
        read: |from, to| each_volume(from, to, |volume| volume.used_bytes.0),
    },
    Metric {
        name: "sinter_volume_in_use",
        kind: Kind::Gauge,
        help: "1 while a client is connected to the volume, else 0.",
        read: |from, to| each_volume(from, to, |volume| u64::from(volume.state == VolumeState::InUse)),
    },
    Metric {
        name: "sinter_nbd_connections_accepted_total",
        kind: Kind::Counter,
        help: "NBD connections accepted, refused ones included.",
        read: |from, to| to.count(&[], load(&from.nbd.connections_accepted)),
    },
    Metric {
        name: "sinter_request_errors_total",
        kind: Kind::Counter,
        help: "Requests for data that were answered with an error.",
        read: |from, to| {
            for (operation, counters) in nbd::Operation::ALL.iter().zip(&from.nbd.operations) {
                to.count(&[("protocol", "nbd"), ("op", operation.name())], load(&counters.errors));
            }
        },
    },
    Metric {
        name: "sinter_request_bytes_total",
        kind: Kind::Counter,
        help: "Bytes read, written, zeroed or trimmed by requests for data that succeeded.",
        read: |from, to| {
            for (operation, counters) in nbd::Operation::ALL.iter().zip(&from.nbd.operations) {
                to.count(&[("protocol", "nbd"), ("op", operation.name())], load(&counters.bytes));
            }
        },
    },
    Metric {
        name: "process_start_time_seconds",
        kind: Kind::Gauge,
        help: "When the daemon was started, in seconds since 1970.",
        read: |from, to| to.value(&[], from.process.started.as_secs_f64()),
    },
    Metric {
        name: "process_cpu_seconds_total",
        kind: Kind::Counter,
        help: "Processor time that the daemon has taken.",
        read: |from, to| from.process.cpu_seconds.into_iter().for_each(|seconds| to.value(&[], seconds)),
    },
    Metric {
        name: "process_resident_memory_bytes",
        kind: Kind::Gauge,
        help: "Memory that the daemon occupies.",
        read: |from, to| some(to, from.process.resident_bytes),
    },
    Metric {
        name: "process_virtual_memory_bytes",
        kind: Kind::Gauge,
        help: "Addresses that the daemon has reserved.",
        read: |from, to| some(to, from.process.virtual_bytes),
    },
    Metric {
        name: "process_threads",
        kind: Kind::Gauge,
        help: "Threads of the daemon.",
        read: |from, to| some(to, from.process.threads),
    },
    Metric {
        name: "process_open_fds",
        kind: Kind::Gauge,
        help: "Open file descriptors of the daemon.",
        read: |from, to| some(to, from.process.open_files),
    },
    Metric {
        name: "process_max_fds",
        kind: Kind::Gauge,
        help: "File descriptors that the daemon may open.",
        read: |from, to| some(to, from.process.files_max),
    },
];

/// A sample of each volume.
pub(super) fn each_volume(from: &Sources<'_>, to: &mut Samples<'_>, read: fn(&VolumeInfo) -> u64) {
    for volume in from.volumes {
        to.count(&[("volume", &volume.name)], read(volume));
    }
}

fn some(to: &mut Samples<'_>, value: Option<u64>) {
    value.into_iter().for_each(|value| to.count(&[], value));
}
