//! What was seen of the array over time: how full and how worn it was, and when each volume was last used.
//!
//! Bounded: once there are `SAMPLES_MAX` samples, every second one of the older half goes, so that the
//! recent past is known closely and the distant past roughly. Whoever calls [`Array::observe`] now and then
//! keeps it across restarts as he likes; without that it begins anew.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Deserialize;
use serde::Serialize;

use crate::store::CarriedFigures;
use crate::units::ByteCount;
use crate::units::Uuid;

use super::Array;
use super::info::ArrayStatus;
use super::info::VolumeInfo;

/// Most samples that are kept.
const SAMPLES_MAX: usize = 2048;

/// Least time between two samples, in milliseconds.
const SAMPLE_INTERVAL_MS: u64 = 5 * 60 * 1000;

const DAY_MS: f64 = 24.0 * 60.0 * 60.0 * 1000.0;

/// The pool at one time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sample {
    /// Milliseconds since 1970-01-01 00:00:00 UTC.
    pub at_ms: u64,
    /// Live data and metadata, in bytes.
    pub live_bytes: u64,
    /// Segments begun, over the pool's life.
    pub erases: u64,
}

/// When a volume was used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Use {
    /// Reads and writes as they were counted last; since the array was opened.
    #[serde(skip)]
    counted: u64,
    /// When they were last seen to have grown: milliseconds since 1970-01-01 00:00:00 UTC.
    last_ms: Option<u64>,
}

/// Sums that the store counts while it is open, and goes on with from here.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
struct Totals {
    /// Of which pool.
    pool: String,
    levelled_segments: u64,
    levelled_bytes: u64,
    punched_bytes: u64,
}

/// What was seen over time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct History {
    samples: Vec<Sample>,
    volumes: BTreeMap<String, Use>,
    #[serde(default)]
    totals: Totals,
}

/// A straight line through a figure over time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Trend {
    /// How much it grows in a day.
    pub per_day: f64,
    /// How well the line fits, and how long the time is that it was seen for: from 0 to 1, which it is from
    /// a week on.
    pub confidence: f64,
}

impl History {
    /// Takes what is now; whether that changed anything that is worth keeping.
    pub fn observe(&mut self, now_ms: u64, status: &ArrayStatus, volumes: &[VolumeInfo]) -> bool {
        let mut changed = false;
        let mut seen = BTreeMap::new();
        for volume in volumes {
            let id = volume.id.to_string();
            let mut used = self.volumes.get(&id).copied().unwrap_or_default();
            let counted = volume.counters.read_ops.saturating_add(volume.counters.write_ops);
            if counted != used.counted {
                used = Use { counted, last_ms: Some(now_ms) };
                changed = true;
            }
            seen.insert(id, used);
        }
        self.volumes = seen;
        let due = self.samples.last().is_none_or(|last| {
            // A clock that was set back begins a new past: samples of the future would never be followed.
            now_ms < last.at_ms || now_ms - last.at_ms >= SAMPLE_INTERVAL_MS
        });
        if due {
            self.samples.retain(|sample| sample.at_ms < now_ms);
            let store = &status.store;
            let (live_bytes, erases) = (store.live_bytes, store.segment_erases);
            self.samples.push(Sample { at_ms: now_ms, live_bytes, erases });
            self.thin_out();
        }
        changed || due
    }

    /// Keeps the samples within bounds; those that were read from somewhere, too.
    fn thin_out(&mut self) {
        while self.samples.len() > SAMPLES_MAX {
            let half = self.samples.len() / 2;
            let mut place = 0;
            self.samples.retain(|_| {
                place += 1;
                place > half || place % 2 == 1
            });
        }
    }

    /// The samples, the oldest first.
    #[must_use]
    pub fn samples(&self) -> &[Sample] {
        &self.samples
    }

    /// When a volume was last read or written, as far as that was seen; since 1970-01-01 00:00:00 UTC.
    #[must_use]
    pub fn last_use(&self, volume: Uuid) -> Option<Duration> {
        self.volumes.get(&volume.to_string())?.last_ms.map(Duration::from_millis)
    }

    /// Days from the first sample to the last.
    #[must_use]
    pub fn days(&self) -> f64 {
        match (self.samples.first(), self.samples.last()) {
            (Some(first), Some(last)) => float(last.at_ms.saturating_sub(first.at_ms)) / DAY_MS,
            _ => 0.0,
        }
    }

    /// The line of least squares through a figure of the samples.
    #[must_use]
    pub fn trend(&self, figure: impl Fn(&Sample) -> u64) -> Trend {
        let days = self.days();
        let Some(first) = self.samples.first().filter(|_| days > 0.0) else { return Trend::default() };
        let points: Vec<(f64, f64)> = self
            .samples
            .iter()
            .map(|sample| (float(sample.at_ms.saturating_sub(first.at_ms)) / DAY_MS, float(figure(sample))))
            .collect();
        let count = float(points.len() as u64);
        let mean = |value: fn(&(f64, f64)) -> f64| points.iter().map(value).sum::<f64>() / count;
        let (mean_x, mean_y) = (mean(|point| point.0), mean(|point| point.1));
        let sum = |term: &dyn Fn(f64, f64) -> f64| {
            points.iter().map(|(x, y)| term(x - mean_x, y - mean_y)).sum::<f64>()
        };
        let (xx, xy, yy) = (sum(&|x, _| x * x), sum(&|x, y| x * y), sum(&|_, y| y * y));
        if xx <= 0.0 {
            return Trend::default();
        }
        // What never changes lies on its line exactly.
        let fit = if yy > 0.0 { (xy * xy / (xx * yy)).clamp(0.0, 1.0) } else { 1.0 };
        Trend { per_day: xy / xx, confidence: fit * (days / 7.0).min(1.0) }
    }
}

impl Array {
    /// Notes how the array is now; whether anything changed that is worth keeping across a restart.
    /// Meant to be called once a minute or so.
    pub fn observe(&self) -> bool {
        let (status, volumes) = (self.status(), self.volumes());
        let now_ms = self.now_ms();
        let store = &status.store;
        let totals = Totals {
            pool: self.id().to_string(),
            levelled_segments: store.levelled_segments,
            levelled_bytes: store.levelled_bytes,
            punched_bytes: store.punched_bytes,
        };
        let mut history = self.history.lock();
        let counted = history.totals != totals;
        history.totals = totals;
        history.observe(now_ms, &status, &volumes) || counted
    }

    /// What was seen so far.
    #[must_use]
    pub fn history(&self) -> History {
        self.history.lock().clone()
    }

    /// Goes on from what was seen before the restart; to be called once at most.
    pub fn set_history(&self, mut history: History) {
        history.samples.sort_unstable_by_key(|sample| sample.at_ms);
        history.samples.dedup_by_key(|sample| sample.at_ms);
        history.thin_out();
        let Totals { pool, levelled_segments, levelled_bytes, punched_bytes } = &history.totals;
        if *pool == self.id().to_string() {
            self.store.continue_counting(&CarriedFigures {
                levelled_segments: *levelled_segments,
                levelled: ByteCount(*levelled_bytes),
                punched: ByteCount(*punched_bytes),
            });
        }
        *self.history.lock() = history;
    }

    /// Since 1970-01-01 00:00:00 UTC, by the clock that was handed in.
    #[must_use]
    pub fn now(&self) -> Duration {
        Duration::from_millis(self.now_ms())
    }
}

#[expect(clippy::cast_precision_loss, reason = "a trend needs no more than 53 bits")]
fn float(number: u64) -> f64 {
    number as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn history(points: &[(u64, u64)]) -> History {
        let sample = |(hours, live_bytes): &(u64, u64)| Sample {
            at_ms: hours * 3_600_000,
            live_bytes: *live_bytes,
            erases: 0,
        };
        History { samples: points.iter().map(sample).collect(), ..History::default() }
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-6
    }

    #[test]
    fn a_line_is_found_and_trusted_by_its_length() {
        let week = history(&[(0, 1000), (84, 1350), (168, 1700)]);
        let trend = week.trend(|sample| sample.live_bytes);
        assert!(near(trend.per_day, 100.0) && near(trend.confidence, 1.0), "{trend:?}");
        let day = history(&[(0, 1000), (24, 1100)]);
        let trend = day.trend(|sample| sample.live_bytes);
        assert!(near(trend.per_day, 100.0) && near(trend.confidence, 1.0 / 7.0), "{trend:?}");
        let noise = history(&[(0, 0), (48, 900), (96, 0), (144, 900), (192, 0)]);
        assert!(noise.trend(|sample| sample.live_bytes).confidence < 0.2);
        assert_eq!(history(&[]).trend(|sample| sample.live_bytes), Trend::default());
        assert_eq!(history(&[(1, 5)]).trend(|sample| sample.live_bytes), Trend::default());
        let still = history(&[(0, 7), (168, 7)]).trend(|sample| sample.live_bytes);
        assert!(near(still.per_day, 0.0) && near(still.confidence, 1.0));
    }

    #[test]
    fn the_past_is_thinned_out_and_kept_in_order() {
        let points: Vec<(u64, u64)> = (0..10_000).map(|hour| (hour, hour)).collect();
        let mut history = history(&points);
        history.thin_out();
        assert!(history.samples.len() <= SAMPLES_MAX);
        assert!(history.samples.is_sorted_by_key(|sample| sample.at_ms));
        assert_eq!(history.samples.first().unwrap().live_bytes, 0);
        let recent = history.samples.iter().rev().take(500).map(|sample| sample.live_bytes);
        assert!(recent.eq((9_500..10_000).rev()), "the recent past is whole");
    }
}
