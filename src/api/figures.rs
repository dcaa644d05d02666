//! The routes of figures: reduction, flash, volumes. All are read from the store's plain counters.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;

use crate::api::Service;
use crate::api::call::Call;
use crate::api::cluster;
use crate::api::problem::Problem;
use crate::api::types::AllCollection;
use crate::api::types::AllCompression;
use crate::api::types::AllDeduplication;
use crate::api::types::AllFlash;
use crate::api::types::AllMetrics;
use crate::api::types::AllPatternRemoval;
use crate::api::types::AllReduction;
use crate::api::types::AllSnapshots;
use crate::api::types::AllVolumes;
use crate::api::types::AllWearLeveling;
use crate::api::types::Backend;
use crate::api::types::BytesSaved;
use crate::api::types::CollectionState;
use crate::api::types::Compression;
use crate::api::types::Deduplication;
use crate::api::types::FlashBlocks;
use crate::api::types::FlashCapacity;
use crate::api::types::FlashCollection;
use crate::api::types::FlashHealth;
use crate::api::types::FlashMetrics;
use crate::api::types::FlashSummary;
use crate::api::types::OverallReduction;
use crate::api::types::PatternRemoval;
use crate::api::types::ReductionMetrics;
use crate::api::types::ReplicationMetrics;
use crate::api::types::Sharing;
use crate::api::types::SnapshotSums;
use crate::api::types::VolumeMetrics;
use crate::api::types::VolumeSums;
use crate::api::types::WearLeveling;
use crate::array::ArrayStatus;
use crate::store::CollectionState as Collection;
use crate::store::StoreStatistics;
use crate::units::BlockCount;

type Answer = Result<Response, Problem>;

pub(super) async fn all(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let (status, by_volume) = service.blocking(|array| Ok((array.status(), array.snapshot_counts()))).await?;
    let cluster = cluster::replication_metrics(&service).await?;
    Ok(Json(all_metrics(&status, show_counts(by_volume), cluster)).into_response())
}

pub(super) async fn reduction(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let status = service.blocking(|array| Ok(array.status())).await?;
    Ok(Json(reduction_metrics(&status)).into_response())
}

pub(super) async fn flash(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let status = service.blocking(|array| Ok(array.status())).await?;
    Ok(Json(flash_metrics(&status.store)).into_response())
}

pub(super) async fn volumes(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let (status, by_volume) = service.blocking(|array| Ok((array.status(), array.snapshot_counts()))).await?;
    let metrics = VolumeMetrics {
        volumes: VolumeSums {
            total: status.volumes,
            provisioned_bytes: status.provisioned_bytes.0,
            used_bytes: status.used_bytes.0,
        },
        snapshots: SnapshotSums { total: status.snapshots, by_volume: show_counts(by_volume) },
    };
    Ok(Json(metrics).into_response())
}

fn show_counts(by_volume: BTreeMap<crate::units::Uuid, u64>) -> BTreeMap<String, u64> {
    by_volume.into_iter().map(|(id, count)| (id.to_string(), count)).collect()
}

fn reduction_metrics(status: &ArrayStatus) -> ReductionMetrics {
    let store = &status.store;
    ReductionMetrics {
        overall_reduction_ratio: status.reduction_ratio,
        deduplication: Deduplication {
            ratio: dedupe_ratio(store),
            unique_blocks: store.unique_blocks,
            duplicate_blocks: store.referenced_blocks.saturating_sub(store.unique_blocks),
        },
        compression: Compression { ratio: compression_ratio(store), algorithm: "lz4".to_owned() },
        pattern_removal: PatternRemoval {
            zero_blocks_found: store.zero_blocks_written,
            pattern_blocks_found: store.pattern_blocks_written,
        },
        bytes_saved: BytesSaved {
            pattern: store.pattern_saved_bytes,
            dedupe: store.dedup_saved_bytes,
            compression: store.compression_saved_bytes,
        },
        sharing: sharing(store),
    }
}

fn sharing(store: &StoreStatistics) -> Sharing {
    let held = store.mapped_blocks;
    let distinct = store.referenced_blocks.min(held);
    let bytes = |blocks: u64| BlockCount(blocks).bytes().0;
    Sharing { held_bytes: bytes(held), distinct_bytes: bytes(distinct), shared_bytes: bytes(held - distinct) }
}

fn flash_metrics(store: &StoreStatistics) -> FlashMetrics {
    FlashMetrics {
        capacity: FlashCapacity {
            total_bytes: store.capacity_bytes,
            used_bytes: store.used_bytes,
            free_bytes: store.free_bytes,
            utilization: share(store.used_bytes, store.capacity_bytes),
        },
        health: FlashHealth {
            health_percentage: health_percentage(store),
            avg_erase_count: store.erases_avg,
            max_erase_count: store.erases_max,
        },
        wear_leveling: WearLeveling {
            blocks_moved: store.levelled_segments,
            wear_variance: store.erases_variance,
        },
        garbage_collection: FlashCollection {
            state: collection_state(store),
            blocks_reclaimed: store.collected_segments,
            gc_runs: store.collections,
        },
    }
}

fn all_metrics(
    status: &ArrayStatus,
    by_volume: BTreeMap<String, u64>,
    cluster: ReplicationMetrics,
) -> AllMetrics {
    let store = &status.store;
    AllMetrics {
        data_reduction: all_reduction(status),
        flash: all_flash(store),
        volumes: AllVolumes {
            total_volumes: status.volumes,
            total_provisioned_bytes: status.provisioned_bytes.0,
            total_used_bytes: status.used_bytes.0,
            total_logical_bytes: BlockCount(store.referenced_blocks).bytes().max(status.used_bytes).0,
            total_physical_bytes: store.stored_data_bytes,
        },
        snapshots: AllSnapshots { total_snapshots: status.snapshots, snapshots_by_volume: by_volume },
        cluster,
    }
}

fn all_reduction(status: &ArrayStatus) -> AllReduction {
    let store = &status.store;
    let blocks_analyzed = store
        .zero_blocks_written
        .saturating_add(store.pattern_blocks_written)
        .saturating_add(store.duplicate_blocks_written)
        .saturating_add(store.new_blocks_written);
    AllReduction {
        overall: OverallReduction {
            total_bytes_in: store.bytes_in,
            total_bytes_stored: store.stored_data_bytes,
            total_reduction_ratio: status.reduction_ratio,
            pattern_bytes_saved: store.pattern_saved_bytes,
            dedupe_bytes_saved: store.dedup_saved_bytes,
            compression_bytes_saved: store.compression_saved_bytes,
        },
        pattern_removal: AllPatternRemoval {
            blocks_analyzed,
            zero_blocks_found: store.zero_blocks_written,
            pattern_blocks_found: store.pattern_blocks_written,
            bytes_saved: store.pattern_saved_bytes,
        },
        deduplication: AllDeduplication {
            dedupe_ratio: dedupe_ratio(store),
            unique_blocks: store.unique_blocks,
            duplicate_blocks: store.referenced_blocks.saturating_sub(store.unique_blocks),
            bytes_saved: store.dedup_saved_bytes,
            index_bytes: store.index_bytes,
        },
        compression: AllCompression {
            compression_ratio: compression_ratio(store),
            algorithm: "lz4".to_owned(),
            blocks_compressed: store.compressed_blocks_written,
            bytes_saved: store.compression_saved_bytes,
        },
        backend: Backend {
            log_bytes_written: store.log_bytes_written,
            metadata_bytes_written: store.metadata_bytes_written,
            moved_bytes: store.moved_bytes,
        },
    }
}

fn all_flash(store: &StoreStatistics) -> AllFlash {
    let in_use = store.segment_count.saturating_sub(store.free_segments);
    let segment_bytes = store.capacity_bytes / store.segment_count.max(1);
    AllFlash {
        flash: FlashSummary {
            total_capacity_bytes: store.capacity_bytes,
            used_bytes: store.used_bytes,
            free_bytes: store.free_bytes,
            utilization: share(store.used_bytes, store.capacity_bytes),
            health_percentage: health_percentage(store),
        },
        blocks: FlashBlocks {
            total_blocks: store.segment_count,
            free_blocks: store.free_segments,
            valid_blocks: in_use,
            bad_blocks: store.bad_blocks,
            total_erases: store.segment_erases,
            avg_erase_count: store.erases_avg,
            max_erase_count: store.erases_max,
            min_erase_count: store.erases_min,
            utilization: share(in_use, store.segment_count),
        },
        wear_leveling: AllWearLeveling {
            blocks_moved: store.levelled_segments,
            strategy: "least_worn_first".to_owned(),
            rated_cycles: store.rated_cycles,
            wear_variance: store.erases_variance,
        },
        garbage_collection: AllCollection {
            state: collection_state(store),
            gc_runs: store.collections,
            blocks_reclaimed: store.collected_segments,
            bytes_reclaimed: store.collected_segments.saturating_mul(segment_bytes),
            bytes_moved: store.moved_bytes,
            current_utilization: share(in_use, store.segment_count),
            gc_threshold: 1.0 - share(store.free_segments_wanted, store.segment_count),
        },
    }
}

/// What garbage collection is doing, as far as the counters say.
pub(super) fn collection_state(store: &StoreStatistics) -> CollectionState {
    if store.stopped.is_some() {
        CollectionState::Stopped
    } else if store.collection != Collection::Idle {
        CollectionState::Running
    } else {
        CollectionState::Idle
    }
}

/// What is left of the rated erase cycles by the average segment, in percent.
pub(super) fn health_percentage(store: &StoreStatistics) -> f64 {
    if store.rated_cycles == 0 {
        return 100.0;
    }
    (100.0 * (1.0 - store.erases_avg / float(store.rated_cycles))).clamp(0.0, 100.0)
}

fn dedupe_ratio(store: &StoreStatistics) -> f64 {
    ratio(store.referenced_blocks, store.unique_blocks)
}

fn compression_ratio(store: &StoreStatistics) -> f64 {
    ratio(BlockCount(store.unique_blocks).bytes().0, store.stored_data_bytes)
}

/// A ratio that is 1 where there is nothing to divide.
fn ratio(part: u64, whole: u64) -> f64 {
    if part == 0 || whole == 0 { 1.0 } else { float(part) / float(whole) }
}

/// A part of a whole, from 0 to 1.
pub(super) fn share(part: u64, whole: u64) -> f64 {
    if whole == 0 { 0.0 } else { (float(part) / float(whole)).clamp(0.0, 1.0) }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio of sizes needs no more than 53 bits")]
pub(super) fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_is_what_is_left_of_the_rated_cycles() {
        let worn = |erases_avg, rated_cycles| {
            health_percentage(&StoreStatistics { erases_avg, rated_cycles, ..StoreStatistics::default() })
        };
        assert!((worn(0.0, 3000) - 100.0).abs() < 1e-9);
        assert!((worn(30.0, 3000) - 99.0).abs() < 1e-9);
        assert!(worn(9000.0, 3000).abs() < 1e-9);
        assert!((worn(5.0, 0) - 100.0).abs() < 1e-9);
    }

    #[test]
    fn an_empty_pool_has_finite_figures() {
        let metrics = flash_metrics(&StoreStatistics::default());
        assert!(metrics.capacity.utilization.abs() < 1e-9);
        assert_eq!(metrics.garbage_collection.state, CollectionState::Idle);
        let stopped = StoreStatistics { stopped: Some("gone".to_owned()), ..StoreStatistics::default() };
        assert_eq!(collection_state(&stopped), CollectionState::Stopped);
    }
}
