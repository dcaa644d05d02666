//! Volumes and their data.

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

/// Whether a client is connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum VolumeState {
    /// No client is connected.
    Available,
    /// At least one client is connected.
    InUse,
}

/// One volume.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
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
    /// When it was measured; `null` where it was not. Looking at the volume asks for it.
    pub reduction_measured_at: Option<String>,
}

/// `GET /api/v1/volumes`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
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
