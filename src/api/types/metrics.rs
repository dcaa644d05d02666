//! Figures of reduction, flash, volumes and replication.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

/// `GET /api/v1/metrics/reduction`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ReductionMetrics {
    /// Host bytes over stored bytes, for what is in the pool now.
    pub overall_reduction_ratio: f64,
    /// What storing equal blocks once brought.
    pub deduplication: Deduplication,
    /// What LZ4 brought.
    pub compression: Compression,
    /// What was never stored, since the start.
    pub pattern_removal: PatternRemoval,
    /// Bytes that were not stored, since the start.
    pub bytes_saved: BytesSaved,
    /// What volumes, clones and snapshots hold in common, now.
    pub sharing: Sharing,
}

/// Part of the reduction metrics: snapshots and clones, which copy nothing until one side is written.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Sharing {
    /// What all volumes and snapshots hold, each for itself.
    pub held_bytes: u64,
    /// What of that is there once for all who share it, before deduplication.
    pub distinct_bytes: u64,
    /// The difference: what snapshots and clones would have copied. Blocks of one repeated word, which are never
    /// stored, are part of it.
    pub shared_bytes: u64,
}

/// Part of the reduction metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Deduplication {
    /// References to stored blocks over stored blocks.
    pub ratio: f64,
    /// Stored blocks, each once.
    pub unique_blocks: u64,
    /// References beyond the first.
    pub duplicate_blocks: u64,
}

/// Part of the reduction metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Compression {
    /// Bytes of stored blocks over the bytes they take.
    pub ratio: f64,
    /// Always `lz4`.
    pub algorithm: String,
}

/// Part of the reduction metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct PatternRemoval {
    /// Blocks of zeros written.
    pub zero_blocks_found: u64,
    /// Blocks of one repeated word written.
    pub pattern_blocks_found: u64,
}

/// Part of the reduction metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct BytesSaved {
    /// By not storing zeros and patterns.
    pub pattern: u64,
    /// By storing equal blocks once.
    pub dedupe: u64,
    /// By LZ4.
    pub compression: u64,
}

/// `GET /api/v1/metrics/flash`: from the real log, whose segments are the flash's erase blocks.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FlashMetrics {
    /// How large and how full.
    pub capacity: FlashCapacity,
    /// How worn.
    pub health: FlashHealth,
    /// How evenly worn.
    pub wear_leveling: WearLeveling,
    /// Winning segments back.
    pub garbage_collection: FlashCollection,
}

/// Part of the flash metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FlashCapacity {
    /// All of the pool.
    pub total_bytes: u64,
    /// What is in use of it.
    pub used_bytes: u64,
    /// What is not in use.
    pub free_bytes: u64,
    /// `used_bytes` over `total_bytes`.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub utilization: f64,
}

/// Part of the flash metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FlashHealth {
    /// What is left of the rated erase cycles, by the average segment.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub health_percentage: f64,
    /// Erases of the average segment.
    pub avg_erase_count: f64,
    /// Erases of the most worn segment.
    pub max_erase_count: u64,
}

/// Part of the flash metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct WearLeveling {
    /// Segments whose live data was moved because they were worn less than others.
    pub blocks_moved: u64,
    /// Variance of the segments' erase counts.
    pub wear_variance: f64,
}

/// What garbage collection is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum CollectionState {
    /// Nothing needs it.
    Idle,
    /// It is winning segments back.
    Running,
    /// The array takes no writes.
    Stopped,
}

/// Part of the flash metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FlashCollection {
    /// What it is doing.
    pub state: CollectionState,
    /// Segments that were won back.
    pub blocks_reclaimed: u64,
    /// Runs since the start.
    pub gc_runs: u64,
}

/// `GET /api/v1/metrics/volumes`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VolumeMetrics {
    /// The volumes together.
    pub volumes: VolumeSums,
    /// The snapshots together.
    pub snapshots: SnapshotSums,
}

/// Part of the volume metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VolumeSums {
    /// How many.
    pub total: u64,
    /// Their sizes together.
    pub provisioned_bytes: u64,
    /// What they hold together.
    pub used_bytes: u64,
}

/// Part of the volume metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct SnapshotSums {
    /// How many.
    pub total: u64,
    /// How many of each volume, by its id; also of volumes that are gone.
    pub by_volume: BTreeMap<String, u64>,
}

/// `GET /api/v1/metrics`: everything at once.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AllMetrics {
    /// How far data is reduced.
    pub data_reduction: AllReduction,
    /// The log on its segments.
    pub flash: AllFlash,
    /// The volumes together.
    pub volumes: AllVolumes,
    /// The snapshots together.
    pub snapshots: AllSnapshots,
    /// The nodes.
    pub cluster: super::cluster::ReplicationMetrics,
}

/// Part of all metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AllReduction {
    /// Patterns, deduplication and compression together.
    pub overall: OverallReduction,
    /// What was never stored.
    pub pattern_removal: AllPatternRemoval,
    /// What was stored once.
    pub deduplication: AllDeduplication,
    /// What LZ4 brought.
    pub compression: AllCompression,
    /// What was written to the devices.
    pub backend: Backend,
}

/// Part of all metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct OverallReduction {
    /// Bytes that clients wrote, over the pool's life.
    pub total_bytes_in: u64,
    /// Bytes that live blocks take now.
    pub total_bytes_stored: u64,
    /// Host bytes over stored bytes, for what is in the pool now.
    pub total_reduction_ratio: f64,
    /// Saved by not storing zeros and patterns.
    pub pattern_bytes_saved: u64,
    /// Saved by storing equal blocks once.
    pub dedupe_bytes_saved: u64,
    /// Saved by LZ4.
    pub compression_bytes_saved: u64,
}

/// Part of all metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AllPatternRemoval {
    /// Blocks written, all of them looked at.
    pub blocks_analyzed: u64,
    /// Blocks of zeros among them.
    pub zero_blocks_found: u64,
    /// Blocks of one repeated word among them.
    pub pattern_blocks_found: u64,
    /// Bytes not stored.
    pub bytes_saved: u64,
}

/// Part of all metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AllDeduplication {
    /// References to stored blocks over stored blocks.
    pub dedupe_ratio: f64,
    /// Stored blocks, each once.
    pub unique_blocks: u64,
    /// References beyond the first.
    pub duplicate_blocks: u64,
    /// Bytes not stored, over the pool's life.
    pub bytes_saved: u64,
    /// Memory of the fingerprint index.
    pub index_bytes: u64,
}

/// Part of all metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AllCompression {
    /// Bytes of stored blocks over the bytes they take.
    pub compression_ratio: f64,
    /// Always `lz4`.
    pub algorithm: String,
    /// Blocks that were stored compressed, over the pool's life.
    pub blocks_compressed: u64,
    /// Bytes not stored, over the pool's life.
    pub bytes_saved: u64,
}

/// Part of all metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Backend {
    /// Bytes appended to the log, over the pool's life.
    pub log_bytes_written: u64,
    /// Bytes of tables and trees written, over the pool's life.
    pub metadata_bytes_written: u64,
    /// Live bytes that garbage collection moved, over the pool's life.
    pub moved_bytes: u64,
}

/// Part of all metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AllFlash {
    /// How large, how full, how worn.
    pub flash: FlashSummary,
    /// The segments, counted.
    pub blocks: FlashBlocks,
    /// How evenly worn.
    pub wear_leveling: AllWearLeveling,
    /// Winning segments back.
    pub garbage_collection: AllCollection,
}

/// Part of all metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FlashSummary {
    /// All of the pool.
    pub total_capacity_bytes: u64,
    /// What is in use of it.
    pub used_bytes: u64,
    /// What is not in use.
    pub free_bytes: u64,
    /// `used_bytes` over `total_capacity_bytes`.
    pub utilization: f64,
    /// What is left of the rated erase cycles.
    pub health_percentage: f64,
}

/// Part of all metrics. The flash's blocks are the pool's segments.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct FlashBlocks {
    /// All segments.
    pub total_blocks: u64,
    /// Segments that hold nothing.
    pub free_blocks: u64,
    /// Segments that hold something.
    pub valid_blocks: u64,
    /// Not segments but stored blocks of 4 KiB, whose check has failed: no segment is given up as a whole.
    pub bad_blocks: u64,
    /// Erases, over the pool's life.
    pub total_erases: u64,
    /// Erases of the average segment.
    pub avg_erase_count: f64,
    /// Erases of the most worn segment.
    pub max_erase_count: u64,
    /// Erases of the least worn segment.
    pub min_erase_count: u64,
    /// Segments that hold something over all.
    pub utilization: f64,
}

/// Part of all metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AllWearLeveling {
    /// As in the flash metrics.
    pub blocks_moved: u64,
    /// How free segments are chosen.
    pub strategy: String,
    /// Erase cycles that a segment is rated for.
    pub rated_cycles: u64,
    /// As in the flash metrics.
    pub wear_variance: f64,
}

/// Part of all metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AllCollection {
    /// What it is doing.
    pub state: CollectionState,
    /// Runs since the start.
    pub gc_runs: u64,
    /// Segments that were won back.
    pub blocks_reclaimed: u64,
    /// Their bytes.
    pub bytes_reclaimed: u64,
    /// Live bytes that were moved.
    pub bytes_moved: u64,
    /// Share of the segments that hold something.
    pub current_utilization: f64,
    /// The share from which on it works.
    pub gc_threshold: f64,
}

/// Part of all metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AllVolumes {
    /// How many.
    pub total_volumes: u64,
    /// Their sizes together.
    pub total_provisioned_bytes: u64,
    /// What they hold together.
    pub total_used_bytes: u64,
    /// What volumes and snapshots refer to; what they share counts once.
    pub total_logical_bytes: u64,
    /// The bytes that it takes in the pool.
    pub total_physical_bytes: u64,
}

/// Part of all metrics.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct AllSnapshots {
    /// How many.
    pub total_snapshots: u64,
    /// How many of each volume, by its id; also of volumes that are gone.
    pub snapshots_by_volume: BTreeMap<String, u64>,
}
