//! The whole cluster in one simulation: roles, decisions, streams, bookmarks, and stores on disks that crash.
//!
//! `SINTER_WHOLE_HISTORIES` sets how many histories are lived through, `SINTER_WHOLE_FIRST_SEED` from which seed on, and
//! `SINTER_WHOLE_SEED` runs one alone. `SINTER_WHOLE_WIDER` gives all of them what otherwise a part has:
//! `devices`, `operator`, `far` or `room`. `SINTER_WHOLE_FAULT` plants those faults alone whose names contain it.

mod attached;
mod clients;
mod devices;
mod far;
mod histories;
mod node;
mod operator;
mod oracle;
mod room;
mod streams;
mod terms;
mod trouble;
mod wider;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicU64, Ordering};

use sinter::replica::role::PlantedFaults;

use oracle::Seen;
use wider::Kind;
use world::{Planted, SECOND, World};

/// One history: faults for a while, then none.
fn live(seed: u64, planted: Planted) -> Seen {
    let mut world = World::new(seed, planted);
    world.run(6 * SECOND);
    world.heal()
}

/// Lives through histories on as many threads as there are processors, and says which failed first.
fn live_many(first: u64, histories: u64, planted: Planted) -> Result<Seen, u64> {
    let next = AtomicU64::new(first);
    let failed = AtomicU64::new(u64::MAX);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut all = Seen::default();
    std::thread::scope(|scope| {
        let lives = || {
            let mut all = Seen::default();
            loop {
                let seed = next.fetch_add(1, Ordering::Relaxed);
                if seed >= first + histories || seed > failed.load(Ordering::Relaxed) {
                    return all;
                }
                match catch_unwind(AssertUnwindSafe(|| live(seed, planted))) {
                    Ok(seen) => all.add(&seen),
                    Err(_) => drop(failed.fetch_min(seed, Ordering::Relaxed)),
                }
            }
        };
        let running: Vec<_> = (0..threads).map(|_| scope.spawn(lives)).collect();
        running.into_iter().for_each(|it| all.add(&it.join().unwrap()));
    });
    match failed.into_inner() {
        u64::MAX => Ok(all),
        seed => Err(seed),
    }
}

/// Nothing is planted.
fn as_it_is() -> Planted {
    let wider = std::env::var("SINTER_WHOLE_WIDER").ok().map(|name| match name.as_str() {
        "devices" => Kind::Devices,
        "operator" => Kind::Operator,
        "far" => Kind::Far,
        "room" => Kind::Room,
        _ => panic!("SINTER_WHOLE_WIDER is none of devices, operator, far, room: {name}"),
    });
    Planted { wider, ..Planted::default() }
}

#[test]
fn p7_a_whole_cluster_keeps_what_it_promised() {
    if let Some(seed) = crate::from_environment("SINTER_WHOLE_SEED") {
        println!("{:?}", live(seed, as_it_is()));
        return;
    }
    let first = crate::from_environment("SINTER_WHOLE_FIRST_SEED").unwrap_or(1);
    let histories = crate::from_environment("SINTER_WHOLE_HISTORIES").unwrap_or(500);
    let seen = live_many(first, histories, as_it_is()).unwrap_or_else(|seed| {
        panic!("seed {seed} failed; replay: SINTER_WHOLE_SEED={seed} cargo test --test cluster whole_cluster_keeps")
    });
    println!("{histories} histories: {seen:?}");
    assert!(seen.primaries > histories && seen.writes > 100 * histories, "{seen:?}");
    let sessions = seen.sent_again.min(seen.unknown).min(seen.refused);
    assert!(histories < 100 || sessions > 0, "{seen:?}");
    let wider = seen
        .devices_failed
        .min(seen.started_without)
        .min(seen.forced)
        .min(seen.discarded)
        .min(seen.far_reports)
        .min(seen.no_space);
    assert!(histories < 500 || wider > 0, "{seen:?}");
}

/// A seed that has found something: a node was away while others filled what it had no room for, and once that was deleted
/// it waited for ever for what would have made room.
#[test]
fn p7_a_node_that_was_full_comes_back_though_nobody_writes() {
    let seen = live(19, Planted { wider: Some(Kind::Room), ..Planted::default() });
    assert!(seen.stuck > 0, "this seed shows something else by now; another one is needed: {seen:?}");
}

#[test]
fn p7_planted_faults_of_a_whole_cluster_are_found() {
    let role = PlantedFaults::default();
    let outside = Planted::default();
    let planted = |role| Planted { role, ..outside };
    let faults = [
        ("positions compared by bare numbers", Planted { bare_numbers: true, ..outside }),
        ("answered on receipt", Planted { answered_on_receipt: true, ..outside }),
        ("shipped outside the lock", Planted { shipped_outside_the_lock: true, ..outside }),
        ("sent again without sessions", Planted { sent_again_without_sessions: true, ..outside }),
        ("any incarnation", planted(PlantedFaults { any_incarnation: true, ..role })),
        ("asked before waited for", planted(PlantedFaults { asked_before_waited_for: true, ..role })),
        ("out before decided", planted(PlantedFaults { out_before_decided: true, ..role })),
        (
            "a FLUSH is answered though its sync has failed",
            Planted { failed_sync_ignored: true, wider: Some(Kind::Devices), ..outside },
        ),
        (
            "nobody is told that a device has failed",
            Planted { failed_device_untold: true, wider: Some(Kind::Devices), ..outside },
        ),
        (
            "nobody is told that the array went on without nodes",
            Planted { risk_untold: true, wider: Some(Kind::Operator), ..outside },
        ),
        (
            "a node that is being compared is forced",
            Planted { forced_while_compared: true, wider: Some(Kind::Operator), ..outside },
        ),
        (
            "what a far node lacks is not all sent",
            Planted { pieces_lost: true, wider: Some(Kind::Far), ..outside },
        ),
        (
            "the primary looks at its own room alone",
            Planted { members_room_ignored: true, wider: Some(Kind::Room), ..outside },
        ),
        (
            "a node that was full is not compared",
            Planted { stuck_ignored: true, wider: Some(Kind::Room), ..outside },
        ),
    ];
    // Rare here: those of roles the simulation of roles alone finds sooner.
    let rare = [
        ("lease looked at before the read", Planted { lease_before_read: true, ..outside }),
        ("a member is compared, and promoted", Planted { member_compared: true, ..outside }),
        ("commands without a precondition", Planted { no_precondition: true, ..outside }),
        ("asked before it holds all", planted(PlantedFaults { asked_before_it_holds_all: true, ..role })),
    ];
    let histories = crate::from_environment("SINTER_WHOLE_FAULT_HISTORIES").unwrap_or(200);
    let rare = rare.into_iter().filter(|_| histories >= 2000);
    let mut missed = Vec::new();
    let wanted = std::env::var("SINTER_WHOLE_FAULT").unwrap_or_default();
    for (name, planted) in faults.into_iter().chain(rare).filter(|(name, _)| name.contains(&wanted)) {
        match live_many(1, histories, planted) {
            Err(seed) => println!("planted fault found after {seed} histories: {name}"),
            Ok(_) => missed.push(name),
        }
    }
    assert!(missed.is_empty(), "not found: {missed:?}");
}
