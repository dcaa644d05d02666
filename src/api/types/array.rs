//! The array as a whole.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

/// `GET /health`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct Health {
    /// `healthy`, or `degraded` while something is wrong.
    pub status: HealthState,
    /// Host bytes over the bytes they occupy in the pool.
    pub reduction_ratio: f64,
    /// Whether the array is one of several nodes.
    pub cluster_enabled: bool,
}

/// Whether everything works.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthState {
    /// Everything works.
    Healthy,
    /// Something is wrong; `/api/v1/status` says what.
    Degraded,
}

/// `GET /`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct About {
    /// What this is.
    pub name: String,
    /// Its version.
    pub version: String,
    /// In a sentence.
    pub description: String,
}

/// `GET /api/v1/arrays`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ArrayList {
    /// This array, and no other.
    pub arrays: Vec<ArrayInfo>,
}

/// One array.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
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
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct ArrayCapacity {
    /// All of the pool.
    pub total_bytes: u64,
    /// What is in use of it.
    pub used_bytes: u64,
    /// Host bytes over the bytes they occupy.
    pub reduction_ratio: f64,
}

/// Where volumes are served, as NBD URIs without a volume's name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Endpoints {
    /// Over TCP: `nbd://127.0.0.1:10809`.
    pub nbd: Option<String>,
    /// Over a Unix socket: `nbd+unix:///?socket=/run/nbd.sock`.
    pub nbd_unix: Option<String>,
}
