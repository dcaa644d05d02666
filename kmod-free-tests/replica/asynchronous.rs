//! A far node that follows at its own pace: never waited for, never promoted by itself, and always a prefix.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::json;
use sinter::daemon::config::DeviceSpec;
use sinter::daemon::pool;
use sinter::daemon::pool::OtherContent;
use sinter::store::StoreOptions;
use sinter::units::Lba;
use sinter::units::ObjectNumber;

use crate::client::Journal;
use crate::world::Wishes;
use crate::world::World;
use crate::world::base64;
use crate::world::member;
use crate::world::members;
use crate::world::metric;
use crate::world::read;
use crate::world::until;
use crate::world::write;

/// A ring that a second of writing passes.
const WISHES: Wishes = Wishes {
    pools: ["256MiB"; 2],
    volume: "disk:16MiB",
    mode_of_b: "async",
    environment: &[("SINTER_MEMORY_RING", "1MiB")],
};

/// Behind what the client with the journal writes.
const LAST_OFFSET: u64 = 4050 * 4096;

/// Waits until the far node has everything that there is now.
fn until_even(world: &World) {
    until("the far node has everything", || {
        let seen = member(world.url("a"), "b");
        seen["lag_bytes"] == 0 && seen["lag_operations"] == 0 && seen["state"] != "syncing"
    });
}

#[test]
fn a_far_node_is_not_waited_for_and_its_lag_is_shown_in_bytes_and_seconds() {
    let world = World::formed_as(WISHES);
    let a = world.url("a");
    until_even(&world);
    let seen = member(a, "b");
    assert_eq!((&seen["mode"], &seen["in_sync"]), (&json!("async"), &json!(false)), "{seen}");
    world.signal("b", "-STOP");
    assert_eq!(write(a, 0, "nobody waits"), 200);
    until("it lags", || member(a, "b")["lag_seconds"].as_f64() > Some(1.5));
    let seen = member(a, "b");
    assert!(seen["lag_bytes"].as_u64() > Some(0), "{seen}");
    assert!(metric(a, "sinter_replica_lag_bytes{peer=\"b\"}") > Some(0.0));
    assert!(metric(a, "sinter_replica_lag_seconds{peer=\"b\"}") > Some(1.5));
    assert_eq!(metric(a, "sinter_replica_in_sync{peer=\"b\"}"), Some(0.0));
    world.signal("b", "-CONT");
    until_even(&world);
    until("nothing is left of it", || metric(a, "sinter_replica_lag_seconds{peer=\"b\"}") == Some(0.0));
}

#[test]
fn a_far_node_catches_up_after_a_cut_and_never_becomes_primary_by_itself() {
    let mut world = World::formed_as(WISHES);
    until_even(&world);
    let journal = Journal::new(world.path("journal"));
    world.signal("b", "-STOP");
    // More than the ring holds: it has to be compared.
    let written = journal.write(&world.node("a").uri("disk"), 31, 4000, Some(6000)).ended();
    assert_eq!(written.unanswered, 0, "{written:?}");
    world.signal("b", "-CONT");
    until_even(&world);
    assert_eq!(write(world.url("a"), LAST_OFFSET, "the last"), 200);
    until_even(&world);
    world.take("a").kill();
    let b = world.url("b");
    // Longer than a member would take by far.
    std::thread::park_timeout(Duration::from_secs(4));
    let seen = members(b);
    assert_eq!((&seen["primary"], &seen["primary_serves"]), (&json!("a"), &json!(false)), "{seen}");
    world.restart("a");
    until("the primary is back", || members(world.url("a"))["primary_serves"] == true);
    until_even(&world);
    assert_eq!(read(world.url("a"), LAST_OFFSET), base64("the last"));
    assert!(world.take("b").terminate().success());
    assert!(world.take("a").terminate().success());
    assert!(held(&world, "a") == held(&world, "b"), "both hold the same");
}

/// All objects of a node that is not running: what is kept with each, and its content.
fn held(world: &World, name: &str) -> BTreeMap<ObjectNumber, (Vec<u8>, Vec<u8>)> {
    let spec = DeviceSpec { path: world.path(name).join("pool"), size: None };
    let options = StoreOptions::default();
    let opened = pool::open(&[spec], OtherContent::Refuse, options, sinter::daemon::environment()).unwrap();
    let objects = opened.store.objects().unwrap().into_iter().map(|object| {
        let mut content = vec![0; usize::try_from(object.size.bytes().0).unwrap()];
        opened.store.read(object.number, Lba(0), &mut content, true).unwrap();
        (object.number, (object.opaque, content))
    });
    objects.collect()
}
