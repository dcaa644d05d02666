//! Nodes that run full, and what is kept for those that are away.

use std::io::Read as _;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;

use crate::world::Wishes;
use crate::world::World;
use crate::world::members;
use crate::world::metric;
use crate::world::until;

const MIB: u64 = 1 << 20;

/// A file of so many bytes that nothing reduces.
fn noise(world: &World, name: &str, bytes: u64) -> PathBuf {
    let path = world.path(name);
    let mut content = Vec::new();
    std::fs::File::open("/dev/urandom").unwrap().take(bytes).read_to_end(&mut content).unwrap();
    std::fs::write(&path, content).unwrap();
    path
}

/// Fills the volume from a file; the exit status.
fn import(world: &World, file: &std::path::Path) -> Option<i32> {
    let output = world.node("a").run(&["import", "--yes", file.to_str().unwrap(), "disk"]);
    output.status.code()
}

fn number_of_changes(world: &World) -> f64 {
    metric(world.url("a"), "sinter_failover_total").unwrap()
}

#[test]
fn a_write_that_the_smallest_member_has_no_room_for_is_refused_and_the_member_stays() {
    let wishes = Wishes { pools: ["256MiB", "96MiB"], volume: "disk:160MiB", ..Wishes::default() };
    let world = World::formed_as(wishes);
    let changes = number_of_changes(&world);
    let large = noise(&world, "large", 150 * MIB);
    assert_eq!(import(&world, &large), Some(12), "there is no room for it on b");
    assert_eq!(members(world.url("a"))["in_sync"], json!(["a", "b"]), "nobody had to leave the set");
    assert!(metric(world.url("a"), "sinter_pool_writable_bytes").unwrap() > 64e6, "it is b that is full");
    // Zeros take no room, and give some back.
    let empty = world.path("empty");
    std::fs::write(&empty, vec![0; 4096]).unwrap();
    assert_eq!(import(&world, &empty), Some(0));
    let small = noise(&world, "small", 20 * MIB);
    until("room has come back", || import(&world, &small) == Some(0));
    assert_eq!(members(world.url("a"))["in_sync"], json!(["a", "b"]));
    assert_eq!(number_of_changes(&world).to_bits(), changes.to_bits());
}

#[test]
fn bookmarks_are_given_up_before_a_client_hears_that_there_is_no_room() {
    let wishes = Wishes { pools: ["96MiB"; 2], volume: "disk:90MiB", ..Wishes::default() };
    let mut world = World::formed_as(wishes);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "some dozens of MiB")]
    let room = metric(world.url("a"), "sinter_pool_writable_bytes").unwrap() as u64;
    let some = room * 6 / 10;
    assert_eq!(import(&world, &noise(&world, "first", some)), Some(0));
    // A node that comes back is followed by a bookmark of what there is.
    world.take("b").kill();
    world.restart("b");
    world.until_in_sync("a");
    std::thread::park_timeout(Duration::from_secs(3));
    for round in 0..3 {
        assert_eq!(import(&world, &noise(&world, "next", some)), Some(0), "round {round}");
    }
    assert_eq!(members(world.url("a"))["in_sync"], json!(["a", "b"]));
}

#[test]
fn a_bookmark_for_a_node_that_stays_away_is_kept_for_as_long_as_is_configured() {
    let wishes = Wishes { environment: &[("SINTER_BOOKMARK_KEEP", "25s")], ..Wishes::default() };
    let mut world = World::formed_as(wishes);
    assert_eq!(import(&world, &noise(&world, "first", 8 * MIB)), Some(0));
    world.take("b").kill();
    world.restart("b");
    world.until_in_sync("a");
    std::thread::park_timeout(Duration::from_secs(3));
    world.take("b").kill();
    assert_eq!(import(&world, &noise(&world, "second", 8 * MIB)), Some(0));
    let held = || metric(world.url("a"), "sinter_bookmark_bytes").unwrap();
    until("what the bookmark holds is shown", || held() >= 8e6);
    until("it is given up", || held() < 1e6);
    world.restart("b");
    world.until_in_sync("a");
}
