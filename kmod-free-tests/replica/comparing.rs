//! Nodes that come back after the ring has gone on: what that costs, and how fast it may be.

use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use serde_json::json;

use crate::world::Wishes;
use crate::world::World;
use crate::world::member;
use crate::world::members;
use crate::world::metric;
use crate::world::until;
use crate::world::write;

const MIB: usize = 1 << 20;

/// Fills the beginning of a volume from a file; what is behind that becomes zeros.
fn import(world: &World, volume: &str, file: &Path) {
    let output = world.node("a").run(&["import", "--yes", file.to_str().unwrap(), volume]);
    assert!(output.status.success(), "{output:?}");
}

fn noise(bytes: usize) -> Vec<u8> {
    let mut content = vec![0; bytes];
    std::fs::File::open("/dev/urandom").unwrap().read_exact(&mut content).unwrap();
    content
}

fn shipped(world: &World) -> f64 {
    metric(world.url("a"), "sinter_replica_shipped_bytes{peer=\"b\"}").unwrap()
}

#[test]
fn without_a_bookmark_only_what_a_node_does_not_hold_is_sent() {
    // Bookmarks go as soon as they are made.
    let wishes = Wishes {
        environment: &[("SINTER_MEMORY_RING", "1MiB"), ("SINTER_BOOKMARK_KEEP", "1s")],
        ..Wishes::default()
    };
    let mut world = World::formed_as(wishes);
    let mut content = noise(10 * MIB);
    let image = world.path("image");
    std::fs::write(&image, &content).unwrap();
    import(&world, "disk", &image);
    world.until_in_sync("a");
    std::thread::park_timeout(Duration::from_secs(4));
    // Not paused: its sockets would take what is written, and it would have missed nothing.
    world.take("b").kill();
    content[..2 * MIB].copy_from_slice(&noise(2 * MIB));
    std::fs::write(&image, &content).unwrap();
    import(&world, "disk", &image);
    assert_eq!(members(world.url("a"))["in_sync"], json!(["a"]));
    let before = shipped(&world);
    world.restart("b");
    until("something was sent", || shipped(&world) > before);
    world.until_in_sync("a");
    let sent = shipped(&world) - before;
    assert!((1e6..4e6).contains(&sent), "two of ten MiB have changed: {sent} bytes were sent");
}

#[test]
fn a_comparison_keeps_to_its_rate_while_writes_go_on_and_goes_on_where_it_was_broken_off() {
    let wishes = Wishes {
        environment: &[("SINTER_MEMORY_RING", "8MiB"), ("SINTER_RESYNC_RATE", "2MiB")],
        ..Wishes::default()
    };
    let world = World::formed_as(wishes);
    world.signal("b", "-STOP");
    let image = world.path("image");
    std::fs::write(&image, noise(15 * MIB)).unwrap();
    import(&world, "disk", &image);
    let before = shipped(&world);
    world.signal("b", "-CONT");
    until("it is compared", || member(world.url("a"), "b")["state"] == "syncing");
    until("some of it was sent", || shipped(&world) > before + 6e6);
    let left = metric(world.url("a"), "sinter_resync_remaining_bytes{peer=\"b\"}").unwrap();
    assert!(left > 1e6, "15 MiB take longer than that: {left}");
    assert_eq!(write(world.url("a"), 15_900_000 / 4096 * 4096, "meanwhile"), 200);
    // Longer than the others wait for an answer: the connection is lost.
    let mut world = world;
    world.take("b").kill();
    world.restart("b");
    world.until_in_sync("a");
    let sent = shipped(&world) - before;
    assert!(sent < 21e6, "15 MiB, and what was on its way: {sent} bytes were sent");
}
