//! What the recorded figures say of the time to come: capacity, wear, and how recently volumes were used.

use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::response::Response;

use crate::api::Service;
use crate::api::call::Call;
use crate::api::figures;
use crate::api::figures::float;
use crate::api::problem::Problem;
use crate::api::types::CapacityForecast;
use crate::api::types::CapacityPredictions;
use crate::api::types::CapacityThresholds;
use crate::api::types::CurrentCapacity;
use crate::api::types::GrowthRate;
use crate::api::types::HealthAnalysis;
use crate::api::types::HealthGrade;
use crate::api::types::Temperature;
use crate::api::types::Tier;
use crate::api::types::TieringRecommendation;
use crate::api::types::TieringRecommendations;
use crate::api::types::VolumeTemperature;
use crate::api::types::WearMetrics;
use crate::api::types::WearPredictions;
use crate::api::view;
use crate::array::Array;
use crate::array::ArrayStatus;
use crate::array::History;
use crate::array::Sample;
use crate::array::VolumeInfo;
use crate::error::Result as ArrayResult;

type Answer = Result<Response, Problem>;

const HOUR: Duration = Duration::from_secs(60 * 60);
const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What is further away is not foreseen.
const HORIZON_DAYS: f64 = 36_500.0;

pub(super) async fn forecast(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let answer = service.blocking(|array| Ok(forecast_of(&array.status(), &array.history()))).await?;
    Ok(Json(answer).into_response())
}

pub(super) async fn health(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let answer = service.blocking(|array| Ok(health_of(&array.status(), &array.history()))).await?;
    Ok(Json(answer).into_response())
}

pub(super) async fn temperature(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let answer = service
        .blocking(move |array| {
            let volume = array.volume(&call.which)?;
            let last = last_use(array, &volume);
            Ok(VolumeTemperature {
                volume_id: volume.id.to_string(),
                temperature: temperature_of(array.now(), last),
                last_access: last.map(view::time),
                reads: volume.counters.read_ops,
                writes: volume.counters.write_ops,
                volume_name: volume.name,
            })
        })
        .await?;
    Ok(Json(answer).into_response())
}

pub(super) async fn tiering(State(service): State<Arc<Service>>, call: Call) -> Answer {
    call.query.finish()?;
    let answer = service.blocking(tiering_of).await?;
    Ok(Json(answer).into_response())
}

/// When a volume was last used: what was recorded, with what has happened since.
fn last_use(array: &Array, volume: &VolumeInfo) -> Option<Duration> {
    array.observe();
    array.history().last_use(volume.id)
}

fn forecast_of(status: &ArrayStatus, history: &History) -> CapacityForecast {
    let store = &status.store;
    let trend = history.trend(|sample: &Sample| sample.live_bytes);
    let (used, total) = (float(store.live_bytes), float(store.usable_bytes));
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "a float that is too large or negative becomes the nearest number"
    )]
    let in_days = |days: f64| (used + trend.per_day * days).max(0.0) as u64;
    let until = |part: f64| match total * part - used {
        missing if missing <= 0.0 => Some(0.0),
        _ if trend.per_day <= 0.0 => None,
        missing => Some(missing / trend.per_day).filter(|days| *days <= HORIZON_DAYS),
    };
    CapacityForecast {
        current: CurrentCapacity {
            used_bytes: store.live_bytes,
            total_bytes: store.usable_bytes,
            utilization_percent: 100.0 * figures::share(store.live_bytes, store.usable_bytes),
        },
        predictions: CapacityPredictions {
            in_7_days: in_days(7.0),
            in_30_days: in_days(30.0),
            in_90_days: in_days(90.0),
        },
        thresholds: CapacityThresholds {
            days_until_80_percent: until(0.8),
            days_until_90_percent: until(0.9),
            days_until_full: until(1.0),
        },
        growth_rate: GrowthRate {
            bytes_per_day: trend.per_day,
            gb_per_day: trend.per_day / f64::from(1u32 << 30),
        },
        confidence: trend.confidence,
        samples: history.samples().len() as u64,
        observed_days: history.days(),
    }
}

fn health_of(status: &ArrayStatus, history: &History) -> HealthAnalysis {
    let store = &status.store;
    let health_percentage = figures::health_percentage(store);
    let erases_per_day = history.trend(|sample: &Sample| sample.erases).per_day.max(0.0);
    let left = (float(store.rated_cycles) - store.erases_avg).max(0.0) * float(store.segment_count);
    let end_of_life_days =
        (erases_per_day > 0.0).then(|| left / erases_per_day).filter(|days| *days <= HORIZON_DAYS);
    // The worst of what there is decides: a new flash does not make up for a full pool.
    let mut overall_score = health_percentage;
    let mut limit = |applies: bool, score: f64| {
        if applies {
            overall_score = overall_score.min(score);
        }
    };
    limit(store.near_full, 60.0);
    limit(!status.problems.is_empty(), 60.0);
    limit(store.full, 20.0);
    limit(store.stopped.is_some(), 0.0);
    let mut recommendations: Vec<String> =
        status.problems.iter().map(|problem| format!("{}: {}", problem.what, problem.hint)).collect();
    if health_percentage < 20.0 {
        recommendations.push("the segments are nearly worn out: plan to replace the devices".to_owned());
    }
    HealthAnalysis {
        overall_score,
        status: match overall_score {
            score if score >= 80.0 => HealthGrade::Healthy,
            score if score >= 50.0 => HealthGrade::Warning,
            _ => HealthGrade::Critical,
        },
        wear_metrics: WearMetrics {
            health_percentage,
            avg_erase_count: store.erases_avg,
            max_erase_count: store.erases_max,
            min_erase_count: store.erases_min,
            rated_cycles: store.rated_cycles,
            erases_per_day,
        },
        predictions: WearPredictions { end_of_life_days },
        recommendations,
    }
}

fn tiering_of(array: &Array) -> ArrayResult<TieringRecommendations> {
    array.observe();
    let (now, history) = (array.now(), array.history());
    let mut volumes: Vec<(Option<Duration>, VolumeInfo)> =
        array.volumes().into_iter().map(|volume| (history.last_use(volume.id), volume)).collect();
    volumes.sort_by(|(a, _), (b, _)| b.cmp(a));
    let recommendations: Vec<TieringRecommendation> = volumes
        .into_iter()
        .map(|(last, volume)| {
            let temperature = temperature_of(now, last);
            let reason = match last {
                Some(last) => format!("last read or written at {}", view::time(last)),
                None => "never seen to be read or written".to_owned(),
            };
            TieringRecommendation {
                volume_id: volume.id.to_string(),
                volume_name: volume.name,
                temperature,
                recommended_tier: tier_for(temperature),
                used_bytes: volume.used_bytes.0,
                reason,
            }
        })
        .collect();
    Ok(TieringRecommendations { total: recommendations.len() as u64, recommendations })
}

fn temperature_of(now: Duration, last: Option<Duration>) -> Temperature {
    match last.map(|last| now.saturating_sub(last)) {
        Some(age) if age <= HOUR => Temperature::Hot,
        Some(age) if age <= DAY => Temperature::Warm,
        Some(age) if age <= 7 * DAY => Temperature::Cold,
        _ => Temperature::Frozen,
    }
}

fn tier_for(temperature: Temperature) -> Tier {
    match temperature {
        Temperature::Hot => Tier::Nvme,
        Temperature::Warm => Tier::Ssd,
        Temperature::Cold => Tier::Hdd,
        Temperature::Frozen => Tier::Archive,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temperature_falls_with_time() {
        let now = 30 * DAY;
        assert_eq!(temperature_of(now, Some(now)), Temperature::Hot);
        assert_eq!(temperature_of(now, Some(now - HOUR)), Temperature::Hot);
        assert_eq!(temperature_of(now, Some(now - 2 * HOUR)), Temperature::Warm);
        assert_eq!(temperature_of(now, Some(now - 2 * DAY)), Temperature::Cold);
        assert_eq!(temperature_of(now, Some(now - 8 * DAY)), Temperature::Frozen);
        assert_eq!(temperature_of(now, None), Temperature::Frozen);
        assert_eq!(temperature_of(now, Some(now + DAY)), Temperature::Hot, "a clock that was set back");
    }
}
