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
pub(super) const MAPPING_BYTES: u64 = 8;

impl Array {
    /// The array at one moment: all that the store counts is read at once.
    #[must_use]
    pub fn status(&self) -> ArrayStatus {
        let (volumes, provisioned, snapshots, in_snapshots) = {
            let catalog = self.catalog.lock();
            let sizes = catalog.volumes().map(|entry| entry.record.size.0);
            let (volumes, provisioned) =
                sizes.fold((0u64, 0u64), |(count, sum), size| (count + 1, sum.saturating_add(size)));
            let mapped = catalog.snapshots().map(|entry| self.mapped_blocks(entry).0);
            let (snapshots, in_snapshots) =
                mapped.fold((0u64, 0u64), |(n, sum), blocks| (n + 1, sum + blocks));
            (volumes, provisioned, snapshots, in_snapshots)
        };
        let store = self.store.statistics();
        let used = BlockCount(store.mapped_blocks.saturating_sub(in_snapshots));
        let damage = self.damage.lock().clone();
        let problems = problems(&store, &damage, || self.largest_volume());
        ArrayStatus {
            name: self.name().to_owned(),
            health: if problems.is_empty() { Health::Healthy } else { Health::Degraded },
            problems,
            volumes,
            snapshots,
            provisioned_bytes: ByteCount(provisioned),
            used_bytes: used.bytes(),
            reduction_ratio: reduction_ratio(used, &store),
            reduction_ratio_with_thin_provisioning: ratio(provisioned, &store),
            store,
        }
    }

    /// The volume that clients have written most to, and how much.
    fn largest_volume(&self) -> Option<(String, ByteCount)> {
        let largest = self.volumes().into_iter().max_by_key(|volume| volume.used_bytes)?;
        Some((largest.name, largest.used_bytes))
    }
}

/// What is wrong, the worst first. `largest` is asked for the volume that holds most, where that matters.
fn problems(
    store: &StoreStatistics,
    damage: &[String],
    largest: impl FnOnce() -> Option<(String, ByteCount)>,
) -> Vec<Problem> {
    let mut problems = Vec::new();
    let mut add = |what: String, hint: &str| problems.push(Problem { what, hint: hint.to_owned() });
    // A damaged pool is opened as damaged again, however often it is started.
    let accept = "stop the array; `sinter check` shows all that is damaged, `sinter serve --accept-loss` goes on with \
                  what is intact";
    let is_damaged = |reason: &String| damage.iter().any(|line| reason.ends_with(line.as_str()));
    let stopped_by_damage = store.stopped.as_ref().is_some_and(is_damaged);
    if let Some(reason) = &store.stopped {
        let hint = if stopped_by_damage {
            accept
        } else {
            "look after the device, then start `sinter serve` again: it recovers the pool"
        };
        add(format!("the array takes no more writes: {reason}"), hint);
    }
    for line in damage {
        let look = "stop the array and run `sinter check` to see all that is damaged";
        add(line.clone(), if stopped_by_damage { accept } else { look });
    }
    if store.bad_blocks > 0 {
        add(
            format!(
                "{} stored blocks have failed their check: reading them is an I/O error",
                store.bad_blocks
            ),
            "write them anew, from a backup; `sinter check`, with the array stopped, shows all that is damaged",
        );
    }
    if store.scrub_errors > 0 {
        add(
            format!("scrub has found {} damaged pages or blocks", store.scrub_errors),
            "`sinter scrub status` names them; stop the array and run `sinter check` to see all that is damaged",
        );
    }
    let free_some = if store.releases_pending > 0 {
        "space is being freed in the background; if that is not enough, trim or delete what is not needed"
    } else {
        "trim or delete what is not needed: `sinter volume list -s used` shows who holds most"
    };
    if store.full {
        add(
            format!("the pool is full, writes that need space are refused: {}", filling(store, largest())),
            free_some,
        );
    } else if store.near_full {
        add(format!("the pool is nearly full: {}", filling(store, largest())), free_some);
    }
    if store.host_full {
        add(
            "the file system below the pool had no room for it when it was last asked: writes that need space \
             are refused"
                .to_owned(),
            "make room there (`df` shows how much is left); the next write asks again",
        );
    }
    let rated = store.rated_cycles as f64;
    if rated > 0.0 && store.erases_avg >= WORN * rated {
        add(
            format!(
                "the pool is worn: its segments were erased {:.0} times on average, and are rated for {rated:.0}",
                store.erases_avg
            ),
            "plan to replace its devices; `pool.rated_cycles` says what they are rated for",
        );
    }
    problems
}

/// By what the usable space is filled.
fn filling(store: &StoreStatistics, largest: Option<(String, ByteCount)>) -> String {
    let size = |bytes: u64| ByteCount(bytes).rounded();
    let mut text = format!(
        "{} of {} are left, {} hold data and {} metadata",
        size(store.usable_bytes.saturating_sub(store.live_bytes)),
        size(store.usable_bytes),
        size(store.stored_data_bytes),
        size(store.metadata_bytes)
    );
    if let Some((name, used)) = largest.filter(|(_, used)| used.0 > 0) {
        text.push_str(&format!("; most is written to volume {name}, {} before reduction", used.rounded()));
    }
    text
}

/// The bytes that the pool's contents stand for over the bytes that they occupy; 1.0 where there are none.
/// `used` is what volumes hold. Blocks that only snapshots hold count, too, and what volumes and snapshots
/// share counts once, so that taking a snapshot is no reduction.
pub(super) fn reduction_ratio(used: BlockCount, store: &StoreStatistics) -> f64 {
    ratio(used.max(BlockCount(store.referenced_blocks)).bytes().0, store)
}

/// The ratio that a volume's blocks are taken to have: stored blocks with all that refers to them, over the
/// bytes that they occupy. Where the pool holds nothing but patterns, theirs.
pub(super) fn volume_ratio(store: &StoreStatistics) -> f64 {
    match store.referenced_blocks {
        0 => ratio(BlockCount(store.mapped_blocks).bytes().0, store),
        referenced => ratio(BlockCount(referenced).bytes().0, store),
    }
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
        let of = |store: StoreStatistics| reduction_ratio(BlockCount(store.mapped_blocks), &store);
        assert!(near(of(store(0, 0)), 1.0));
        assert!(near(of(store(0, 4096)), 1.0), "nothing refers to it any more");
        assert!(near(of(store(10, 40_960)), 1.0));
        assert!(near(of(store(10, 10_240)), 4.0));
        assert!(near(of(store(10, 0)), 512.0), "patterns alone take their mappings");
        assert!(of(store(u64::MAX / 4096, 0)).is_finite());
    }

    #[test]
    fn thin_provisioning_is_no_reduction() {
        let store = store(10, 20_480);
        assert!(near(reduction_ratio(BlockCount(10), &store), 2.0));
        assert!(near(ratio(40_960_000, &store), 2000.0));
    }

    fn of(store: &StoreStatistics, damage: &[&str]) -> Vec<Problem> {
        let damage: Vec<String> = damage.iter().map(|line| (*line).to_owned()).collect();
        problems(store, &damage, || Some(("big".to_owned(), ByteCount(3 << 30))))
    }

    #[test]
    fn snapshots_are_no_reduction() {
        let before = StoreStatistics { referenced_blocks: 10, ..store(10, 20_480) };
        let after = StoreStatistics { mapped_blocks: 20, ..before.clone() };
        let used = BlockCount(10);
        assert!(near(reduction_ratio(used, &before), reduction_ratio(used, &after)));
        let overwritten = StoreStatistics { referenced_blocks: 20, stored_data_bytes: 40_960, ..after };
        assert!(near(reduction_ratio(used, &overwritten), 2.0), "what only the snapshot holds counts");
        assert!(near(volume_ratio(&overwritten), 2.0));
    }

    #[test]
    fn problems_are_listed_worst_first() {
        assert!(of(&StoreStatistics::default(), &[]).is_empty());
        let troubled = StoreStatistics {
            stopped: Some("pool.img: the disk is gone".to_owned()),
            full: true,
            near_full: true,
            host_full: true,
            bad_blocks: 3,
            rated_cycles: 1000,
            erases_avg: 901.0,
            ..StoreStatistics::default()
        };
        let what: Vec<String> = of(&troubled, &["a page"]).into_iter().map(|problem| problem.what).collect();
        let words =
            ["the disk is gone", "a page", "3 stored blocks", "is full", "file system below", "is worn"];
        assert_eq!(what.len(), words.len(), "a full pool is not called nearly full too: {what:?}");
        assert!(what.iter().zip(words).all(|(what, word)| what.contains(word)), "{what:?}");
        let worn = StoreStatistics { erases_avg: 899.0, stopped: None, ..troubled };
        assert!(!of(&worn, &[]).iter().any(|problem| problem.what.contains("worn")));
    }

    #[test]
    fn a_nearly_full_pool_says_by_what_it_is_filled() {
        let store = StoreStatistics {
            near_full: true,
            usable_bytes: 16 << 30,
            live_bytes: 15 << 30,
            stored_data_bytes: 14 << 30,
            metadata_bytes: 1 << 30,
            ..StoreStatistics::default()
        };
        let what = &of(&store, &[])[0].what;
        assert_eq!(
            what,
            "the pool is nearly full: 1.00 GiB of 16.0 GiB are left, 14.0 GiB hold data and 1.00 GiB metadata; \
             most is written to volume big, 3.00 GiB before reduction"
        );
    }

    #[test]
    fn who_was_stopped_by_damage_is_not_told_to_start_again() {
        let stopped =
            |why: &str| StoreStatistics { stopped: Some(why.to_owned()), ..StoreStatistics::default() };
        let hints = |why: &str| of(&stopped(why), &["LSN 7 is gone"]).remove(0).hint;
        assert!(hints("the log is damaged: LSN 7 is gone").contains("--accept-loss"));
        let all = of(&stopped("the log is damaged: LSN 7 is gone"), &["LSN 7 is gone"]);
        assert!(all.iter().all(|problem| problem.hint.contains("--accept-loss")), "{all:?}");
        let accepted = of(&StoreStatistics::default(), &["LSN 7 is gone"]);
        assert!(!accepted[0].hint.contains("--accept-loss"), "it is given up already");
        assert!(hints("syncing pool.img failed").contains("`sinter serve` again"));
    }

    #[test]
    fn a_full_pool_says_whether_space_is_coming() {
        let mut full = StoreStatistics { full: true, ..StoreStatistics::default() };
        assert!(of(&full, &[])[0].hint.starts_with("trim or delete"));
        full.releases_pending = 1;
        assert!(of(&full, &[])[0].hint.starts_with("space is being freed"));
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
