//! What the array says, in the shapes of REST.

use jiff::Timestamp;

use crate::api::types::BytesSaved;
use crate::api::types::Compression;
use crate::api::types::Deduplication;
use crate::api::types::Endpoints;
use crate::api::types::HealthState;
use crate::api::types::PatternRemoval;
use crate::api::types::ReductionMetrics;
use crate::api::types::Status;
use crate::api::types::StatusArray;
use crate::api::types::StatusCapacity;
use crate::api::types::StatusCollection;
use crate::api::types::StatusLog;
use crate::api::types::StatusReduction;
use crate::api::types::StatusVolumes;
use crate::api::types::Trouble;
use crate::api::types::Volume;
use crate::api::types::VolumeState;
use crate::array;
use crate::array::ArrayStatus;
use crate::array::VolumeInfo;
use crate::units::BlockCount;
use crate::units::Uuid;

/// A time as RFC 3339 in UTC, such as `2024-01-15T10:30:00.000Z`: always of one length, so that texts sort as times.
pub(super) fn time(since_unix_epoch: std::time::Duration) -> String {
    // Milliseconds everywhere: what volumes keep, and no more than anyone needs.
    let since_unix_epoch =
        std::time::Duration::from_millis(u64::try_from(since_unix_epoch.as_millis()).unwrap_or(u64::MAX));
    let timestamp = jiff::SignedDuration::try_from(since_unix_epoch)
        .ok()
        .and_then(|time| Timestamp::from_duration(time).ok());
    format!("{:.3}", timestamp.unwrap_or(Timestamp::MAX))
}

pub(super) fn volume(info: VolumeInfo) -> Volume {
    Volume {
        id: info.id.to_string(),
        name: info.name,
        size_bytes: info.size_bytes.0,
        used_bytes: info.used_bytes.0,
        state: match info.state {
            array::VolumeState::Available => VolumeState::Available,
            array::VolumeState::InUse => VolumeState::InUse,
        },
        description: info.description,
        created_at: time(info.created_at),
        updated_at: time(info.updated_at),
        tags: info.tags,
        reduction_ratio: info.reduction_ratio,
        reduction_is_estimate: true,
    }
}

pub(super) fn health(health: array::Health) -> HealthState {
    match health {
        array::Health::Healthy => HealthState::Healthy,
        array::Health::Degraded => HealthState::Degraded,
    }
}

pub(super) fn reduction(status: &ArrayStatus) -> ReductionMetrics {
    let store = &status.store;
    ReductionMetrics {
        overall_reduction_ratio: status.reduction_ratio,
        deduplication: Deduplication {
            ratio: ratio(store.referenced_blocks, store.unique_blocks),
            unique_blocks: store.unique_blocks,
            duplicate_blocks: store.referenced_blocks.saturating_sub(store.unique_blocks),
        },
        compression: Compression {
            ratio: ratio(BlockCount(store.unique_blocks).bytes().0, store.stored_data_bytes),
            algorithm: "lz4".to_owned(),
        },
        pattern_removal: PatternRemoval {
            zero_blocks_found: store.zero_blocks_written,
            pattern_blocks_found: store.pattern_blocks_written,
        },
        bytes_saved: BytesSaved {
            pattern: store.pattern_saved_bytes,
            dedupe: store.dedup_saved_bytes,
            compression: store.compression_saved_bytes,
        },
    }
}

pub(super) fn status(
    status: ArrayStatus,
    id: Uuid,
    endpoints: Endpoints,
    now: std::time::Duration,
    uptime: std::time::Duration,
) -> Status {
    let store = &status.store;
    Status {
        time: time(now),
        health: health(status.health),
        array: StatusArray {
            id: id.to_string(),
            name: status.name,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_seconds: uptime.as_secs(),
        },
        endpoints,
        capacity: StatusCapacity {
            total_bytes: store.capacity_bytes,
            usable_bytes: store.usable_bytes,
            used_bytes: store.used_bytes,
            free_bytes: store.free_bytes,
            live_bytes: store.live_bytes,
            metadata_bytes: store.metadata_bytes,
        },
        reduction: StatusReduction {
            ratio: status.reduction_ratio,
            total_ratio: status.reduction_ratio_with_thin_provisioning,
            logical_bytes: status.used_bytes.0,
            stored_bytes: store.stored_data_bytes,
        },
        volumes: StatusVolumes {
            total: status.volumes,
            provisioned_bytes: status.provisioned_bytes.0,
            used_bytes: status.used_bytes.0,
        },
        garbage_collection: StatusCollection {
            runs: store.collections,
            moved_bytes: store.moved_bytes,
            reclaimed_segments: store.collected_segments,
        },
        log: StatusLog { lsn: store.lsn, durable_lsn: store.durable_lsn, checkpoints: store.checkpoints },
        problems: status
            .problems
            .into_iter()
            .map(|problem| Trouble { what: problem.what, hint: problem.hint })
            .collect(),
    }
}

/// A ratio that is 1 where there is nothing to divide.
#[expect(clippy::cast_precision_loss, reason = "a ratio of sizes needs no more than 53 bits")]
fn ratio(part: u64, whole: u64) -> f64 {
    if part == 0 || whole == 0 { 1.0 } else { part as f64 / whole as f64 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn times_are_rfc_3339_in_utc() {
        assert_eq!(time(Duration::from_secs(1_705_314_600)), "2024-01-15T10:30:00.000Z");
        assert_eq!(time(Duration::from_millis(1_705_314_600_250)), "2024-01-15T10:30:00.250Z");
        assert!(time(Duration::from_secs(u64::MAX)).ends_with('Z'));
    }

    #[test]
    fn times_sort_as_texts() {
        let times = [0, 1, 60, 61, 500, 1000].map(|milliseconds| time(Duration::from_millis(milliseconds)));
        assert!(times.is_sorted(), "{times:?}");
    }
}
