//! What the recorded figures say of the time to come.

use schemars::JsonSchema;
use serde::Deserialize;
use serde::Serialize;

/// `GET /api/v1/analytics/capacity/forecast`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CapacityForecast {
    /// The pool now.
    pub current: CurrentCapacity,
    /// The pool at times to come, if it goes on as it did.
    pub predictions: CapacityPredictions,
    /// When it will be full.
    pub thresholds: CapacityThresholds,
    /// How fast it grows.
    pub growth_rate: GrowthRate,
    /// How well a straight line describes the past, and how much past there is of it: 0 for none.
    #[schemars(range(min = 0.0, max = 1.0))]
    pub confidence: f64,
    /// Samples that it is made from.
    pub samples: u64,
    /// Time between the first and the last of them.
    pub observed_days: f64,
}

/// Part of the forecast.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CurrentCapacity {
    /// Live data and metadata.
    pub used_bytes: u64,
    /// What they may fill.
    pub total_bytes: u64,
    /// The one in percent of the other.
    pub utilization_percent: f64,
}

/// Part of the forecast: `used_bytes` to come.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CapacityPredictions {
    /// In a week.
    #[serde(rename = "7_days")]
    pub in_7_days: u64,
    /// In a month.
    #[serde(rename = "30_days")]
    pub in_30_days: u64,
    /// In a quarter.
    #[serde(rename = "90_days")]
    pub in_90_days: u64,
}

/// Part of the forecast; `null` where it is not to be expected within a hundred years.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct CapacityThresholds {
    /// Days until four fifths are full.
    pub days_until_80_percent: Option<f64>,
    /// Days until nine tenths are full.
    pub days_until_90_percent: Option<f64>,
    /// Days until all is full.
    pub days_until_full: Option<f64>,
}

/// Part of the forecast.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct GrowthRate {
    /// Negative where it shrinks.
    pub bytes_per_day: f64,
    /// The same in GiB.
    pub gb_per_day: f64,
}

/// `GET /api/v1/analytics/health`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct HealthAnalysis {
    /// 100 is as new and as it should be.
    #[schemars(range(min = 0.0, max = 100.0))]
    pub overall_score: f64,
    /// The same in a word.
    pub status: HealthGrade,
    /// How worn the segments are.
    pub wear_metrics: WearMetrics,
    /// When they will be worn out.
    pub predictions: WearPredictions,
    /// What to do, the most urgent first.
    pub recommendations: Vec<String>,
}

/// The array's health.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum HealthGrade {
    /// Nothing to do.
    Healthy,
    /// Something to do soon.
    Warning,
    /// Something to do now.
    Critical,
}

/// Part of the health analysis.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct WearMetrics {
    /// What is left of the rated erase cycles, in percent.
    pub health_percentage: f64,
    /// Erases of the average segment.
    pub avg_erase_count: f64,
    /// Erases of the most worn segment.
    pub max_erase_count: u64,
    /// Erases of the least worn segment.
    pub min_erase_count: u64,
    /// Erase cycles that a segment is rated for.
    pub rated_cycles: u64,
    /// Erases of all segments a day, as recorded.
    pub erases_per_day: f64,
}

/// Part of the health analysis.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct WearPredictions {
    /// Days until the average segment has its rated cycles; `null` where nothing wears it.
    pub end_of_life_days: Option<f64>,
}

/// `GET /api/v1/analytics/temperature/{volume}`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct VolumeTemperature {
    /// The volume's id.
    pub volume_id: String,
    /// Its name.
    pub volume_name: String,
    /// Hot within an hour of the last access, warm within a day, cold within a week, else frozen.
    pub temperature: Temperature,
    /// When it was last read or written, to a minute; `null` where that was never seen.
    pub last_access: Option<String>,
    /// Reads since the array was started.
    pub reads: u64,
    /// Writes since the array was started.
    pub writes: u64,
}

/// How recently something was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Temperature {
    /// Within an hour.
    Hot,
    /// Within a day.
    Warm,
    /// Within a week.
    Cold,
    /// Longer ago, or never.
    Frozen,
}

/// A kind of storage.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Tier {
    /// The fastest.
    Nvme,
    /// Fast.
    Ssd,
    /// Cheap.
    Hdd,
    /// The cheapest.
    Archive,
}

/// `GET /api/v1/analytics/tiering/recommendations`.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TieringRecommendations {
    /// One for each volume, the hottest first.
    pub recommendations: Vec<TieringRecommendation>,
    /// How many.
    pub total: u64,
}

/// Where a volume would be kept best.
#[derive(Clone, Debug, Serialize, Deserialize, JsonSchema)]
pub struct TieringRecommendation {
    /// The volume's id.
    pub volume_id: String,
    /// Its name.
    pub volume_name: String,
    /// How recently it was used.
    pub temperature: Temperature,
    /// Where it would be kept best.
    pub recommended_tier: Tier,
    /// What it holds.
    pub used_bytes: u64,
    /// Why, in a sentence.
    pub reason: String,
}
