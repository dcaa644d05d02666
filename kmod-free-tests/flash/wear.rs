//! What an overwrite costs in moved bytes, and how evenly segments wear.

use sinter::units::ByteCount;

use crate::assert_sound;
use crate::load::{Load, Pattern, amplification, options};

const MIB: u64 = 1 << 20;

/// A pool of 1,024 segments, 80 % full, overwritten twice; what the second time has cost. Segments are small here, so
/// more of each is lost at its end than in a large pool.
fn second_volume(pattern: Pattern) -> f64 {
    let pool = ByteCount(128 * MIB);
    let mut load = Load::new(pool, options(ByteCount(128 << 10), ByteCount(MIB)), 80);
    load.fill(80);
    load.overwrite(pattern, pool.0);
    let before = load.store.statistics();
    load.overwrite(pattern, pool.0);
    let cost = amplification(&before, &load.store.statistics());
    println!("{pattern:?}: write amplification {cost:.2}");
    cost
}

#[test]
fn random_overwrites_of_a_pool_four_fifths_full_move_little() {
    let cost = second_volume(Pattern::Uniform);
    assert!(cost > 1.2, "a pool so full cannot be overwritten for {cost}");
    assert!(cost <= 2.5, "{cost}");
}

#[test]
fn skewed_overwrites_move_less() {
    let cost = second_volume(Pattern::EightyTwenty);
    assert!(cost > 1.2, "a pool so full cannot be overwritten for {cost}");
    assert!(cost <= 2.0, "{cost}");
}

#[test]
fn segments_wear_evenly_over_a_long_run() {
    for (percent, pattern) in [(25, Pattern::Tenth), (80, Pattern::Tenth), (80, Pattern::Uniform)] {
        let mut load = Load::new(ByteCount(24 * MIB), options(ByteCount(64 << 10), ByteCount(MIB / 2)), 5);
        load.fill(percent);
        let mut mean = 0.0;
        while mean < 80.0 {
            load.overwrite(pattern, 4 * MIB);
            mean = load.store.statistics().erases_avg;
        }
        let wear = load.store.statistics();
        println!(
            "{percent} % full, {pattern:?}: erases {} to {}, {:.1} on average; {} segments emptied for wear",
            wear.erases_min, wear.erases_max, wear.erases_avg, wear.levelled_segments
        );
        assert!(wear.erases_max as f64 <= 2.0 * mean, "{} is the most, {mean} the mean", wear.erases_max);
        assert!(wear.erases_min as f64 >= mean / 2.0, "{} is the least, {mean} the mean", wear.erases_min);
        assert!(
            percent > 25 || wear.levelled_segments > 0,
            "no collection moves what rests in a pool with room"
        );
        assert_sound(&load.store);
    }
}
