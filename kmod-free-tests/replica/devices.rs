//! Devices that fail below a node: nobody but the operator has to notice.

use std::process::Command;

use crate::client::Journal;
use crate::failovers::Attached;
use crate::world::World;
use crate::world::member;
use crate::world::members;
use crate::world::until;

/// Blocks of the volume that are written.
const BLOCKS: u64 = 4000;
/// Requests of the client.
const REQUESTS: u64 = 12_000;
/// From there on the pool's file takes no writes. What else a node keeps is smaller.
const FILE_LIMIT: &str = "--fsize=8388608";

/// Lets every further write behind the first MiBs of a node's pool fail.
fn break_device(world: &World, name: &str) {
    let pid = world.node(name).pid().to_string();
    assert!(Command::new("prlimit").args(["--pid", &pid, FILE_LIMIT]).status().unwrap().success());
}

#[test]
fn p7_a_primary_whose_device_fails_hands_over_and_clients_do_not_notice() {
    let mut world = World::formed();
    let attached = Attached::to(&world, &["a", "b"]);
    let journal = Journal::new(world.path("journal"));
    let writing = journal.write(&attached.uri, 11, BLOCKS, Some(REQUESTS));
    std::thread::park_timeout(std::time::Duration::from_millis(500));
    break_device(&world, "a");
    until("the other one serves", || {
        let seen = members(world.url("b"));
        seen["primary"] == "b" && seen["primary_serves"] == true
    });
    let ended = writing.ended();
    assert_eq!(ended.unanswered, 0, "{ended:?}");
    assert!(ended.acknowledged > REQUESTS * 9 / 10, "all but flushes: {ended:?}");
    assert!(journal.verify(&attached.uri) > 0);
    until("the failed one has left the set", || member(world.url("b"), "a")["in_sync"] == false);
    assert!(journal.verify(&world.node("b").uri("disk")) > 0);
    // A node with a failed device passes clients on.
    assert!(journal.verify(&world.node("a").uri("disk")) > 0);
    // Another device, or the same after all: it comes back as any other node does.
    world.take("a").kill();
    world.restart("a");
    world.until_in_sync("b");
    journal.verify(&world.node("a").uri("disk"));
}

#[test]
fn p7_a_secondary_whose_device_fails_leaves_the_set_and_writes_go_on() {
    let mut world = World::formed();
    let journal = Journal::new(world.path("journal"));
    let writing = journal.write(&world.node("a").uri("disk"), 12, BLOCKS, Some(REQUESTS));
    std::thread::park_timeout(std::time::Duration::from_millis(500));
    break_device(&world, "b");
    until("it has left the set", || member(world.url("a"), "b")["in_sync"] == false);
    let ended = writing.ended();
    assert_eq!(ended.unanswered, 0, "{ended:?}");
    assert_eq!(members(world.url("a"))["primary"], "a");
    world.take("b").kill();
    world.restart("b");
    world.until_in_sync("a");
    journal.verify(&world.node("b").uri("disk"));
}
