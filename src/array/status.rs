//! What the whole array looks like: one moment, what is wrong first.

use crate::store::StoreStatistics;
use crate::units::BlockCount;
use crate::units::ByteCount;

use super::Array;
use super::info::ArrayStatus;
use super::info::Health;
use super::info::Problem;

/// Part of the rated erase cycles from which on wear is a problem.
const WORN: f64 = 0.9;

/// Lines of damage that are kept.
const DAMAGE_LINES_MAX: usize = 100;

/// Bytes that one mapped block takes in a volume's map: the least that it can occupy.
const MAPPING_BYTES: u64 = 8;

impl Array {
    /// The array at one moment: all that the store counts is read at once.
    #[must_use]
    pub fn status(&self) -> ArrayStatus {
        let (volumes, provisioned) = {
            let catalog = self.catalog.lock();
            let sizes = catalog.entries().map(|entry| entry.record.size.0);
            sizes.fold((0u64, 0u64), |(count, sum), size| (count + 1, sum.saturating_add(size)))
        };
        let store = self.store.statistics();
        let mut problems = store_problems(&store);
        problems.extend(self.damage.lock().iter().map(|line| Problem {
            what: line.clone(),
            hint: "stop the array and run `sinter check` to see all that is damaged".to_owned(),
        }));
        ArrayStatus {
            name: self.name().to_owned(),
            health: if problems.is_empty() { Health::Healthy } else { Health::Degraded },
            problems,
            volumes,
            provisioned_bytes: ByteCount(provisioned),
            used_bytes: BlockCount(store.mapped_blocks).bytes(),
            reduction_ratio: reduction_ratio(&store),
            reduction_ratio_with_thin_provisioning: ratio(provisioned, &store),
            store,
        }
    }
}

/// What of the store's own state is a problem, the worst first.
fn store_problems(store: &StoreStatistics) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |what: String, hint: &str| problems.push(Problem { what, hint: hint.to_owned() });
    if let Some(reason) = &store.stopped {
        add(
            format!("the array takes no more writes: {reason}"),
            "look after the device, then start `sinter serve` again: it recovers the pool",
        );
    }
    if store.scrub_errors > 0 {
        add(
            format!("scrub has found {} damaged pages or blocks", store.scrub_errors),
            "`sinter scrub status` names them; stop the array and run `sinter check` to see all that is damaged",
        );
    }
    if store.full || store.near_full {
        let what = if store.full {
            "the pool is full: writes that need space are refused"
        } else {
            "the pool is nearly full"
        };
        let hint = if store.releases_pending > 0 {
            "space is being freed in the background; if that is not enough, trim or delete what is not needed"
        } else {
            "trim or delete what is not needed: `sinter volume list -s used` shows who holds most"
        };
        add(format!("{what}; {}", what_fills(store)), hint);
    }
    let worn = store.erases_avg / (store.rated_cycles.max(1) as f64);
    if worn >= WORN {
        add(
            format!(
                "the pool's segments have been erased {:.0} times on average, and are rated for {}",
                store.erases_avg, store.rated_cycles
            ),
            "plan to replace the device, or set `pool.rated_cycles` to what it is rated for",
        );
    }
    problems
}

/// What the usable bytes are taken by.
fn what_fills(store: &StoreStatistics) -> String {
    let metadata = store.metadata_bytes + store.unstored_metadata_bytes;
    let data = store.live_bytes.saturating_sub(store.metadata_bytes);
    let left = store.usable_bytes.saturating_sub(data + metadata);
    format!(
        "of {} usable bytes data takes {data} and metadata {metadata}, {left} are left",
        store.usable_bytes
    )
}

/// The bytes of all mapped blocks over the bytes that they occupy; 1.0 where there are none.
pub(super) fn reduction_ratio(store: &StoreStatistics) -> f64 {
    ratio(BlockCount(store.mapped_blocks).bytes().0, store)
}

/// `bytes` over the bytes that all mapped blocks occupy; 1.0 where there are none. A repeated pattern
/// is stored in the map alone, so no block is counted with less than what it takes there, and the
/// ratio stays finite.
fn ratio(bytes: u64, store: &StoreStatistics) -> f64 {
    let occupied = store.stored_data_bytes.max(store.mapped_blocks.saturating_mul(MAPPING_BYTES));
    if store.mapped_blocks == 0 || occupied == 0 { 1.0 } else { bytes as f64 / occupied as f64 }
}

/// Adds `lines` to `damage`; what is too much is only said to be more.
pub(super) fn keep_damage(damage: &mut Vec<String>, lines: Vec<String>) {
    let room = DAMAGE_LINES_MAX.saturating_sub(damage.len());
    let more = lines.len() > room;
    damage.extend(lines.into_iter().take(room));
    if more && room > 0 {
        damage.pop();
        damage.push("more is damaged than is listed here".to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn store(mapped_blocks: u64, stored_data_bytes: u64) -> StoreStatistics {
        StoreStatistics { mapped_blocks, stored_data_bytes, ..StoreStatistics::default() }
    }

    fn near(a: f64, b: f64) -> bool {
        (a - b).abs() < 1e-9
    }

    #[test]
    fn ratios_are_finite_and_one_where_nothing_is_stored() {
        assert!(near(reduction_ratio(&store(0, 0)), 1.0));
        assert!(near(reduction_ratio(&store(0, 4096)), 1.0), "nothing refers to it any more");
        assert!(near(reduction_ratio(&store(10, 40_960)), 1.0));
        assert!(near(reduction_ratio(&store(10, 10_240)), 4.0));
        assert!(near(reduction_ratio(&store(10, 0)), 512.0), "patterns alone take their mappings");
        assert!(reduction_ratio(&store(u64::MAX / 4096, 0)).is_finite());
    }

    #[test]
    fn thin_provisioning_is_no_reduction() {
        let store = store(10, 20_480);
        assert!(near(reduction_ratio(&store), 2.0));
        assert!(near(ratio(40_960_000, &store), 2000.0));
    }

    #[test]
    fn problems_are_listed_worst_first() {
        assert!(
            store_problems(&StoreStatistics { rated_cycles: 1, ..StoreStatistics::default() }).is_empty()
        );
        let troubled = StoreStatistics {
            stopped: Some("pool.img: the disk is gone".to_owned()),
            full: true,
            near_full: true,
            ..StoreStatistics::default()
        };
        let what: Vec<String> = store_problems(&troubled).into_iter().map(|problem| problem.what).collect();
        assert_eq!(what.len(), 2, "a full pool is not called nearly full too");
        assert!(what[0].contains("the disk is gone") && what[1].contains("full"));
        let near_full = StoreStatistics { near_full: true, ..StoreStatistics::default() };
        assert!(store_problems(&near_full)[0].what.contains("nearly full"));
    }

    #[test]
    fn a_full_pool_says_what_fills_it_and_whether_space_is_coming() {
        let mut full = StoreStatistics {
            full: true,
            usable_bytes: 1000,
            live_bytes: 950,
            metadata_bytes: 100,
            unstored_metadata_bytes: 40,
            ..StoreStatistics::default()
        };
        let problem = &store_problems(&full)[0];
        assert!(problem.what.ends_with("data takes 850 and metadata 140, 10 are left"), "{}", problem.what);
        assert!(problem.hint.starts_with("trim or delete"));
        full.releases_pending = 1;
        assert!(store_problems(&full)[0].hint.starts_with("space is being freed"));
    }

    #[test]
    fn worn_segments_are_a_problem_before_they_are_worn_out() {
        let worn =
            |erases_avg| StoreStatistics { rated_cycles: 100, erases_avg, ..StoreStatistics::default() };
        assert!(store_problems(&worn(89.0)).is_empty());
        assert!(store_problems(&worn(90.0))[0].what.contains("erased 90 times"));
    }

    #[test]
    fn damage_is_kept_within_bounds() {
        let mut damage = Vec::new();
        keep_damage(&mut damage, (0..60).map(|n| n.to_string()).collect());
        assert_eq!(damage.len(), 60);
        for _ in 0..3 {
            keep_damage(&mut damage, (0..60).map(|n| n.to_string()).collect());
            assert_eq!(damage.len(), DAMAGE_LINES_MAX);
            assert!(damage[DAMAGE_LINES_MAX - 1].contains("more"));
        }
    }
}
