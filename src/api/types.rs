//! What goes over REST, as Rust types; the command line reads with the same ones.
//!
//! Fields are named as clients see them. Sizes are bytes, ratios are finite, times are RFC 3339 in UTC.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::Serialize;

/// `GET /health`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Health {
    /// `healthy`, or `degraded` while something is wrong.
    pub status: HealthState,
    /// Host bytes over the bytes they occupy in the pool.
    pub reduction_ratio: f64,
    /// Whether the array is one of several nodes.
    pub cluster_enabled: bool,
}

/// Whether everything works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// Everything works.
    Healthy,
    /// Something is wrong; `/api/v1/status` says what.
    Degraded,
}

/// `GET /`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct About {
    /// What this is.
    pub name: String,
    /// Its version.
    pub version: String,
    /// In a sentence.
    pub description: String,
}

/// `GET /api/v1/arrays`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArrayList {
    /// This array, and no other.
    pub arrays: Vec<ArrayInfo>,
}

/// One array.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArrayInfo {
    /// The id of its pool.
    pub id: String,
    /// `array.name` of the configuration.
    pub name: String,
    /// What kind of array it is.
    pub model: String,
    /// Version of the software.
    pub version: String,
    /// How large and how full.
    pub capacity: ArrayCapacity,
    /// Where volumes are served.
    pub endpoints: Endpoints,
}

/// Capacity as `/arrays` shows it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ArrayCapacity {
    /// All of the pool.
    pub total_bytes: u64,
    /// What is in use of it.
    pub used_bytes: u64,
    /// Host bytes over the bytes they occupy.
    pub reduction_ratio: f64,
}

/// Where volumes are served, as NBD URIs without a volume's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoints {
    /// Over TCP: `nbd://127.0.0.1:10809`.
    pub nbd: Option<String>,
    /// Over a Unix socket: `nbd+unix:///?socket=/run/nbd.sock`.
    pub nbd_unix: Option<String>,
}

/// Whether a client is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// No client is connected.
    Available,
    /// At least one client is connected.
    InUse,
}

/// One volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Volume {
    /// A UUID; never changes and is never used again.
    pub id: String,
    /// Unique among the volumes.
    pub name: String,
    /// Size as clients see it.
    pub size_bytes: u64,
    /// What clients have written and not trimmed.
    pub used_bytes: u64,
    /// Whether a client is connected.
    pub state: VolumeState,
    /// Free text.
    pub description: String,
    /// When it was made.
    pub created_at: String,
    /// When it was last changed by a management request.
    pub updated_at: String,
    /// Free labels.
    pub tags: BTreeMap<String, String>,
    /// `used_bytes` over the bytes it occupies; 1 while it holds nothing.
    pub reduction_ratio: f64,
    /// Whether `reduction_ratio` is an estimate from the pool's average rather than measured on the
    /// volume's own blocks.
    pub reduction_is_estimate: bool,
}

/// `GET /api/v1/volumes`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct VolumeList {
    /// The volumes of this page, by name.
    pub volumes: Vec<Volume>,
    /// How many volumes there are in all.
    pub total: u64,
    /// Where the next page begins; absent on the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next_cursor: Option<String>,
}

/// `POST /api/v1/volumes`.
#[derive(Clone, Debug, Serialize)]
pub struct CreateVolume {
    /// 1 to 255 bytes, unique.
    pub name: String,
    /// Size; rounded up to whole blocks.
    pub size_bytes: u64,
    /// Free text.
    pub description: String,
    /// Free labels.
    pub tags: BTreeMap<String, String>,
}

/// `PUT /api/v1/volumes/{id}`: what is absent stays as it is.
#[derive(Clone, Debug, Default, Serialize)]
pub struct UpdateVolume {
    /// The new name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The new description.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub description: Option<String>,
    /// The new labels, in place of all old ones.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tags: Option<BTreeMap<String, String>>,
}

/// `POST /api/v1/volumes/{id}/resize`.
#[derive(Clone, Debug, Serialize)]
pub struct ResizeVolume {
    /// The new size, larger than the old one.
    pub size_bytes: u64,
}

/// Answer to `POST /api/v1/volumes/{id}/write`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WriteAnswer {
    /// The volume's id.
    pub volume_id: String,
    /// Where the data was written.
    pub offset: u64,
    /// Bytes written.
    pub size: u64,
    /// The volume's reduction ratio after the write.
    pub reduction_ratio: f64,
    /// Whether any of its blocks was there already.
    pub was_deduplicated: bool,
    /// Whether any of its blocks was stored compressed.
    pub was_compressed: bool,
}

/// Answer to `GET /api/v1/volumes/{id}/read`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ReadAnswer {
    /// The volume's id.
    pub volume_id: String,
    /// Where the data begins.
    pub offset: u64,
    /// Bytes in `data` before its encoding.
    pub size: u64,
    /// The data in Base64 (RFC 4648, section 4).
    pub data: String,
}

/// `GET /api/v1/metrics/reduction`.
#[derive(Clone, Debug, Serialize, Deserialize)]
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
}

/// Part of the reduction metrics.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Deduplication {
    /// References to stored blocks over stored blocks.
    pub ratio: f64,
    /// Stored blocks, each once.
    pub unique_blocks: u64,
    /// References beyond the first.
    pub duplicate_blocks: u64,
}

/// Part of the reduction metrics.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Compression {
    /// Bytes of stored blocks over the bytes they take.
    pub ratio: f64,
    /// Always `lz4`.
    pub algorithm: String,
}

/// Part of the reduction metrics.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PatternRemoval {
    /// Blocks of zeros written.
    pub zero_blocks_found: u64,
    /// Blocks of one repeated word written.
    pub pattern_blocks_found: u64,
}

/// Part of the reduction metrics.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BytesSaved {
    /// By not storing zeros and patterns.
    pub pattern: u64,
    /// By storing equal blocks once.
    pub dedupe: u64,
    /// By LZ4.
    pub compression: u64,
}

/// `GET /api/v1/status`: one consistent moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Status {
    /// When.
    pub time: String,
    /// Whether everything works.
    pub health: HealthState,
    /// What is wrong, worst first.
    pub problems: Vec<Trouble>,
    /// Which array.
    pub array: StatusArray,
    /// Where volumes are served.
    pub endpoints: Endpoints,
    /// How large and how full the pool is.
    pub capacity: StatusCapacity,
    /// How far data is reduced.
    pub reduction: StatusReduction,
    /// The volumes together.
    pub volumes: StatusVolumes,
    /// Garbage collection since the start.
    pub garbage_collection: StatusCollection,
    /// Checkpoints and the log since the start.
    pub log: StatusLog,
}

/// One thing that is wrong.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Trouble {
    /// What is wrong.
    pub what: String,
    /// What to do about it.
    pub hint: String,
}

/// Part of the status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusArray {
    /// The id of the pool.
    pub id: String,
    /// `array.name` of the configuration.
    pub name: String,
    /// Version of the software.
    pub version: String,
    /// Since the daemon has opened the pool.
    pub uptime_seconds: u64,
}

/// Part of the status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusCapacity {
    /// All of the pool.
    pub total_bytes: u64,
    /// What data and metadata may fill.
    pub usable_bytes: u64,
    /// Segments in use, less the unwritten room in open ones.
    pub used_bytes: u64,
    /// What is not in use.
    pub free_bytes: u64,
    /// Data and metadata that something still needs.
    pub live_bytes: u64,
    /// The part of it that is metadata.
    pub metadata_bytes: u64,
}

/// Part of the status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusReduction {
    /// Host bytes over stored bytes; thin provisioning does not count.
    pub ratio: f64,
    /// Provisioned bytes over stored bytes: with thin provisioning.
    pub total_ratio: f64,
    /// Bytes that the volumes hold.
    pub logical_bytes: u64,
    /// Bytes that their unique blocks take in the pool.
    pub stored_bytes: u64,
}

/// Part of the status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusVolumes {
    /// How many.
    pub total: u64,
    /// Their sizes together.
    pub provisioned_bytes: u64,
    /// What they hold together.
    pub used_bytes: u64,
}

/// Part of the status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusCollection {
    /// Runs.
    pub runs: u64,
    /// Live bytes that were moved.
    pub moved_bytes: u64,
    /// Segments that were won back.
    pub reclaimed_segments: u64,
}

/// Part of the status.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusLog {
    /// Newest operation.
    pub lsn: u64,
    /// Newest operation known to be durable.
    pub durable_lsn: u64,
    /// Checkpoints made.
    pub checkpoints: u64,
}

/// An error, as RFC 9457 shapes it (`application/problem+json`).
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ProblemDetails {
    /// `about:blank`: `code` says more.
    #[serde(rename = "type", default)]
    pub kind: String,
    /// The HTTP status in words.
    #[serde(default)]
    pub title: String,
    /// The HTTP status.
    #[serde(default)]
    pub status: u16,
    /// What went wrong with what.
    pub detail: String,
    /// Stable, for programs.
    #[serde(default)]
    pub code: String,
    /// The fields that were wrong, if the request was.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// What is wrong with one field of a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldError {
    /// The field or query parameter.
    pub field: String,
    /// What is wrong with it.
    pub detail: String,
}

/// `POST /api/v1/mounts`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreateMount {
    /// The absolute path of an empty directory on the array's machine.
    pub mountpoint: String,
}

/// A directory in which volumes and snapshots are files.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// The directory, as an absolute path.
    pub mountpoint: String,
    /// Whether it can be seen, or waits for its last user after it was taken away.
    pub state: MountState,
    /// Files that are open in it.
    pub open_files: u64,
}

/// How far a mount has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum MountState {
    /// It is there.
    Mounted,
    /// It was taken away while files were open in it: it ends with the last of them.
    Detached,
}

/// `GET /api/v1/mounts`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct MountList {
    /// All mounts, in the order of their paths.
    pub mounts: Vec<Mount>,
    /// How many there are.
    pub total: u64,
}
