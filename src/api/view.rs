//! What the array says, in the shapes of REST.

use jiff::Timestamp;

use crate::api::figures;
use crate::api::types::ChangedRange;
use crate::api::types::Endpoints;
use crate::api::types::HealthState;
use crate::api::types::Mount;
use crate::api::types::RangeKind;
use crate::api::types::Snapshot;
use crate::api::types::Status;
use crate::api::types::StatusArray;
use crate::api::types::StatusCapacity;
use crate::api::types::StatusCluster;
use crate::api::types::StatusCollection;
use crate::api::types::StatusLog;
use crate::api::types::StatusReduction;
use crate::api::types::StatusSnapshots;
use crate::api::types::StatusVolumes;
use crate::api::types::Trouble;
use crate::api::types::Volume;
use crate::api::types::VolumeState;
use crate::array;
use crate::array::ArrayStatus;
use crate::array::SnapshotInfo;
use crate::array::VolumeInfo;
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
        state: volume_state(info.state),
        description: info.description,
        created_at: time(info.created_at),
        updated_at: time(info.updated_at),
        tags: info.tags,
        reduction_ratio: info.reduction_ratio,
        reduction_is_estimate: info.used_bytes.0 > 0 && info.reduction_measured_at.is_none(),
        reduction_measured_at: info.reduction_measured_at.map(time),
    }
}

pub(super) fn health(health: array::Health) -> HealthState {
    match health {
        array::Health::Healthy => HealthState::Healthy,
        array::Health::Degraded => HealthState::Degraded,
    }
}

pub(super) fn snapshot(info: SnapshotInfo) -> Snapshot {
    Snapshot {
        id: info.id.to_string(),
        name: info.name,
        volume_id: info.volume_id.to_string(),
        volume_name: info.volume_name,
        volume_is_deleted: info.volume_is_deleted,
        size_bytes: info.size_bytes.0,
        used_bytes: info.used_bytes.0,
        reclaimable_bytes: info.reclaimable_bytes.map(|bytes| bytes.0),
        state: volume_state(info.state),
        description: info.description,
        created_at: time(info.created_at),
        tags: info.tags,
    }
}

pub(super) fn changed_range(change: array::Change) -> ChangedRange {
    ChangedRange {
        offset: change.offset,
        length: change.len.0,
        kind: match change.kind {
            array::ExtentKind::Data => RangeKind::Data,
            array::ExtentKind::Hole => RangeKind::Hole,
            array::ExtentKind::Pattern => RangeKind::Pattern,
        },
    }
}

fn volume_state(state: array::VolumeState) -> VolumeState {
    match state {
        array::VolumeState::Available => VolumeState::Available,
        array::VolumeState::InUse => VolumeState::InUse,
    }
}

pub(super) fn status(
    status: ArrayStatus,
    id: Uuid,
    endpoints: Endpoints,
    mounts: Vec<Mount>,
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
        mounts,
        capacity: StatusCapacity {
            total_bytes: store.capacity_bytes,
            usable_bytes: store.usable_bytes,
            used_bytes: store.used_bytes,
            free_bytes: store.free_bytes,
            writable_bytes: store.writable_bytes,
            reserved_bytes: store.capacity_bytes.saturating_sub(store.usable_bytes),
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
        snapshots: StatusSnapshots {
            total: status.snapshots,
            pending_releases: store
                .nodes_waiting
                .saturating_add(store.nodes_let_go)
                .saturating_add(store.leaves_borrowing),
            awaits_checkpoint: store.awaits_checkpoint,
        },
        garbage_collection: StatusCollection {
            state: figures::collection_state(store),
            runs: store.collections,
            moved_bytes: store.moved_bytes,
            reclaimed_segments: store.collected_segments,
        },
        cluster: StatusCluster::default(),
        log: StatusLog { lsn: store.lsn, durable_lsn: store.durable_lsn, checkpoints: store.checkpoints },
        problems: status
            .problems
            .into_iter()
            .map(|problem| Trouble { what: problem.what, hint: problem.hint })
            .collect(),
    }
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
