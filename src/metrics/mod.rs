//! Metrics for Prometheus: one table of names, units and help texts, read from the plain counters of
//! the layers below whenever somebody asks.
//!
//! Nothing is counted here, and nothing below knows of Prometheus.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;

use crate::api;
use crate::api::statistics::RestStatistics;
use crate::array::ArrayStatus;
use crate::array::VolumeInfo;
use crate::export::fuse;
use crate::export::fuse::FuseStatistics;
use crate::export::latency::LATENCY_BOUNDS_MICROS;
use crate::export::latency::OperationStatistics;
use crate::export::nbd;
use crate::export::nbd::NbdStatistics;
use crate::metrics::text::Kind;
use crate::metrics::text::Page;
use crate::metrics::text::Samples;

mod cluster;
mod operator;
pub mod text;

pub use cluster::ClusterFigures;
pub use operator::ProcessFigures;

/// What a page of metrics is made from.
#[derive(Clone, Copy)]
pub struct Sources<'a> {
    /// The array at this moment.
    pub status: &'a ArrayStatus,
    /// All volumes.
    pub volumes: &'a [VolumeInfo],
    /// What the NBD server counts.
    pub nbd: &'a NbdStatistics,
    /// What the FUSE mounts count.
    pub fuse: &'a FuseStatistics,
    /// What REST counts.
    pub rest: &'a RestStatistics,
    /// What the operating system says of the process.
    pub process: &'a ProcessFigures,
    /// The cluster, where this node is in one.
    pub cluster: Option<&'a ClusterFigures>,
}

/// One metric: what it is called and where it comes from.
pub struct Metric {
    /// With unit and, for counters, `_total` in the name.
    pub name: &'static str,
    /// What its values mean over time.
    pub kind: Kind,
    /// In a sentence.
    pub help: &'static str,
    read: fn(&Sources<'_>, &mut Samples<'_>),
}

/// All metrics, in the order of the page.
pub fn all() -> impl Iterator<Item = &'static Metric> {
    METRICS.iter().chain(operator::METRICS).chain(cluster::METRICS)
}

/// What clients ask for, and what becomes of it in the engine.
static METRICS: &[Metric] = &[
    Metric {
        name: "sinter_volume_read_bytes_total",
        kind: Kind::Counter,
        help: "Bytes that clients read from the volume.",
        read: |from, to| operator::each_volume(from, to, |volume| volume.counters.read_bytes),
    },
    Metric {
        name: "sinter_volume_read_ops_total",
        kind: Kind::Counter,
        help: "Reads of the volume.",
        read: |from, to| operator::each_volume(from, to, |volume| volume.counters.read_ops),
    },
    Metric {
        name: "sinter_volume_write_bytes_total",
        kind: Kind::Counter,
        help: "Bytes that clients wrote to the volume.",
        read: |from, to| operator::each_volume(from, to, |volume| volume.counters.write_bytes),
    },
    Metric {
        name: "sinter_volume_write_ops_total",
        kind: Kind::Counter,
        help: "Writes to the volume.",
        read: |from, to| operator::each_volume(from, to, |volume| volume.counters.write_ops),
    },
    Metric {
        name: "sinter_volumes",
        kind: Kind::Gauge,
        help: "Volumes.",
        read: |from, to| to.count(&[], from.status.volumes),
    },
    Metric {
        name: "sinter_snapshots",
        kind: Kind::Gauge,
        help: "Snapshots, also of volumes that are gone.",
        read: |from, to| to.count(&[], from.status.snapshots),
    },
    Metric {
        name: "sinter_request_duration_seconds",
        kind: Kind::Histogram,
        help: "Time from a request to its answer.",
        read: request_durations,
    },
    Metric {
        name: "sinter_nbd_connections",
        kind: Kind::Gauge,
        help: "NBD connections open now.",
        read: |from, to| to.count(&[], load(&from.nbd.connections)),
    },
    Metric {
        name: "sinter_fuse_mounts",
        kind: Kind::Gauge,
        help: "FUSE mounts served now.",
        read: |from, to| to.count(&[], load(&from.fuse.mounts)),
    },
    Metric {
        name: "sinter_nbd_connections_refused_total",
        kind: Kind::Counter,
        help: "NBD connections closed at once because there were too many.",
        read: |from, to| to.count(&[], load(&from.nbd.connections_refused)),
    },
    Metric {
        name: "sinter_reduction_pattern_saved_bytes_total",
        kind: Kind::Counter,
        help: "Bytes not stored because they were zeros or one repeated word.",
        read: |from, to| to.count(&[], from.status.store.pattern_saved_bytes),
    },
    Metric {
        name: "sinter_reduction_dedup_saved_bytes_total",
        kind: Kind::Counter,
        help: "Bytes not stored because an equal block was there already.",
        read: |from, to| to.count(&[], from.status.store.dedup_saved_bytes),
    },
    Metric {
        name: "sinter_reduction_compression_saved_bytes_total",
        kind: Kind::Counter,
        help: "Bytes not stored because blocks were compressed.",
        read: |from, to| to.count(&[], from.status.store.compression_saved_bytes),
    },
    Metric {
        name: "sinter_reduction_ratio",
        kind: Kind::Gauge,
        help: "Bytes that volumes hold over the bytes they occupy; thin provisioning does not count.",
        read: |from, to| to.value(&[], from.status.reduction_ratio),
    },
    Metric {
        name: "sinter_pool_capacity_bytes",
        kind: Kind::Gauge,
        help: "Size of the pool.",
        read: |from, to| to.count(&[], from.status.store.capacity_bytes),
    },
    Metric {
        name: "sinter_pool_usable_bytes",
        kind: Kind::Gauge,
        help: "What data and metadata may fill of the pool.",
        read: |from, to| to.count(&[], from.status.store.usable_bytes),
    },
    Metric {
        name: "sinter_pool_used_bytes",
        kind: Kind::Gauge,
        help: "Segments in use, less the unwritten room in open ones.",
        read: |from, to| to.count(&[], from.status.store.used_bytes),
    },
    Metric {
        name: "sinter_pool_free_bytes",
        kind: Kind::Gauge,
        help: "What is not in use of the pool.",
        read: |from, to| to.count(&[], from.status.store.free_bytes),
    },
    Metric {
        name: "sinter_pool_live_bytes",
        kind: Kind::Gauge,
        help: "Data and metadata in the pool that something still needs.",
        read: |from, to| to.count(&[], from.status.store.live_bytes),
    },
    Metric {
        name: "sinter_pool_logical_bytes",
        kind: Kind::Gauge,
        help: "Bytes that the volumes hold.",
        read: |from, to| to.count(&[], from.status.used_bytes.0),
    },
    Metric {
        name: "sinter_segment_erases_total",
        kind: Kind::Counter,
        help: "Erases of segments.",
        read: |from, to| to.count(&[], from.status.store.segment_erases),
    },
    Metric {
        name: "sinter_segment_wear_erases",
        kind: Kind::Gauge,
        help: "Erases of the least, the most and the average worn segment.",
        read: |from, to| {
            to.count(&[("stat", "min")], from.status.store.erases_min);
            to.value(&[("stat", "avg")], from.status.store.erases_avg);
            to.count(&[("stat", "max")], from.status.store.erases_max);
        },
    },
    Metric {
        name: "sinter_gc_runs_total",
        kind: Kind::Counter,
        help: "Runs of garbage collection.",
        read: |from, to| to.count(&[], from.status.store.collections),
    },
    Metric {
        name: "sinter_gc_moved_bytes_total",
        kind: Kind::Counter,
        help: "Live bytes that garbage collection moved.",
        read: |from, to| to.count(&[], from.status.store.moved_bytes),
    },
    Metric {
        name: "sinter_gc_reclaimed_segments_total",
        kind: Kind::Counter,
        help: "Segments that garbage collection won back.",
        read: |from, to| to.count(&[], from.status.store.collected_segments),
    },
    Metric {
        name: "sinter_write_amplification",
        kind: Kind::Gauge,
        help: "Stored bytes of new blocks and of moved ones over those of new blocks, over the pool's life.",
        read: |from, to| to.value(&[], from.status.store.write_amplification),
    },
    Metric {
        name: "sinter_segments_free",
        kind: Kind::Gauge,
        help: "Segments that may be written anew.",
        read: |from, to| to.count(&[], from.status.store.free_segments),
    },
    Metric {
        name: "sinter_pool_punched_bytes_total",
        kind: Kind::Counter,
        help: "Bytes given back to the host as holes or discards.",
        read: |from, to| to.count(&[], from.status.store.punched_bytes),
    },
    Metric {
        name: "sinter_wear_levelled_bytes_total",
        kind: Kind::Counter,
        help: "Live bytes moved because their segments were worn less than others.",
        read: |from, to| to.count(&[], from.status.store.levelled_bytes),
    },
    Metric {
        name: "sinter_segment_wear_variance",
        kind: Kind::Gauge,
        help: "Variance of the erase counts of segments.",
        read: |from, to| to.value(&[], from.status.store.erases_variance),
    },
    Metric {
        name: "sinter_checkpoint_duration_seconds",
        kind: Kind::Summary,
        help: "Time that checkpoints took.",
        read: |from, to| {
            let store = &from.status.store;
            to.summary(&[], store.checkpoints, seconds(store.checkpoint_nanoseconds));
        },
    },
    Metric {
        name: "sinter_log_sync_duration_seconds",
        kind: Kind::Summary,
        help: "Time that syncs of the log took.",
        read: |from, to| {
            let store = &from.status.store;
            to.summary(&[], store.log_syncs, seconds(store.log_sync_nanoseconds));
        },
    },
    Metric {
        name: "sinter_memory_bytes",
        kind: Kind::Gauge,
        help: "Memory in use: metadata cache, the changed part of it, fingerprint index, pending counts.",
        read: |from, to| {
            let store = &from.status.store;
            to.count(&[("use", "metadata")], store.cache_bytes);
            to.count(&[("use", "dirty_metadata")], store.dirty_bytes);
            to.count(&[("use", "index")], store.index_bytes);
            to.count(&[("use", "change_buffer")], store.change_buffer_bytes);
        },
    },
    Metric {
        name: "sinter_scrub_bytes_total",
        kind: Kind::Counter,
        help: "Bytes that scrubs have verified since the start.",
        read: |from, to| to.count(&[], from.status.store.scrubbed_bytes),
    },
    Metric {
        name: "sinter_scrub_errors_total",
        kind: Kind::Counter,
        help: "Pages and blocks that scrubs have found damaged since the start.",
        read: |from, to| to.count(&[], from.status.store.scrub_errors),
    },
    Metric {
        name: "sinter_writes_stopped",
        kind: Kind::Gauge,
        help: "1 while the store takes no writes after a device failed, else 0.",
        read: |from, to| to.count(&[], u64::from(from.status.store.stopped.is_some())),
    },
];

/// The whole page, in the text format 0.0.4.
#[must_use]
pub fn render(sources: &Sources<'_>) -> String {
    let mut page = Page::default();
    for metric in all() {
        (metric.read)(sources, &mut page.metric(metric.name, metric.kind, metric.help));
    }
    page.finish()
}

fn request_durations(from: &Sources<'_>, to: &mut Samples<'_>) {
    let export = |to: &mut Samples<'_>, protocol, operation, counters: &OperationStatistics| {
        let buckets: Vec<u64> = counters.latency.iter().map(load).collect();
        let sum = micros(load(&counters.latency_sum_micros));
        let labels = [("protocol", protocol), ("op", operation)];
        to.histogram(&labels, &LATENCY_BOUNDS_MICROS.map(micros), &buckets, sum);
    };
    for (operation, counters) in nbd::Operation::ALL.iter().zip(&from.nbd.operations) {
        export(to, "nbd", operation.name(), counters);
    }
    for (operation, counters) in fuse::Operation::ALL.iter().zip(&from.fuse.operations) {
        export(to, "fuse", operation.name(), counters);
    }
    for (operation, counters) in api::statistics::Operation::ALL.iter().zip(&from.rest.operations) {
        let labels = [("protocol", "rest"), ("op", operation.name())];
        let buckets: Vec<u64> = counters.latency.iter().map(load).collect();
        let sum = micros(load(&counters.latency_sum_micros));
        to.histogram(&labels, &api::statistics::LATENCY_BOUNDS_MICROS.map(micros), &buckets, sum);
    }
}

fn load(counter: &AtomicU64) -> u64 {
    counter.load(Ordering::Relaxed)
}

fn seconds(nanoseconds: u64) -> f64 {
    float(nanoseconds) / 1e9
}

fn micros(microseconds: u64) -> f64 {
    float(microseconds) / 1e6
}

#[expect(clippy::cast_precision_loss, reason = "Prometheus keeps every value as a 64-bit float")]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::array::Health;
    use crate::store::StoreStatistics;
    use crate::units::ByteCount;
    use std::collections::BTreeSet;

    #[test]
    fn every_metric_is_there_once_with_help_and_type() {
        let status = ArrayStatus {
            name: "sinter".to_owned(),
            health: Health::Healthy,
            problems: Vec::new(),
            store: StoreStatistics { capacity_bytes: 1 << 30, ..StoreStatistics::default() },
            volumes: 0,
            snapshots: 0,
            provisioned_bytes: ByteCount(0),
            used_bytes: ByteCount(0),
            reduction_ratio: 1.0,
            reduction_ratio_with_thin_provisioning: 1.0,
        };
        let (nbd, fuse) = (NbdStatistics::default(), FuseStatistics::default());
        let (rest, process) = (RestStatistics::default(), ProcessFigures::default());
        let (nbd, fuse, rest, process) = (&nbd, &fuse, &rest, &process);
        let sources = Sources { status: &status, volumes: &[], nbd, fuse, rest, process, cluster: None };
        let page = render(&sources);
        let names: BTreeSet<&str> = all().map(|metric| metric.name).collect();
        assert_eq!(names.len(), all().count());
        for metric in all() {
            assert!(page.contains(&format!("# HELP {} ", metric.name)), "{}", metric.name);
            assert!(page.contains(&format!("# TYPE {} ", metric.name)), "{}", metric.name);
            assert_eq!(metric.kind == Kind::Counter, metric.name.ends_with("_total"), "{}", metric.name);
        }
        assert!(page.contains("\nsinter_pool_capacity_bytes 1073741824\n"), "{page}");
        assert!(!page.contains("\nprocess_open_fds "), "nobody knows, so nothing is said: {page}");
    }
}
