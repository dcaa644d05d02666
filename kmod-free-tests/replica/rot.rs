//! Bytes that rot on one node's device: another one has them.

use std::os::unix::fs::FileExt as _;
use std::path::Path;

use serde_json::json;

use crate::http::get;
use crate::world::World;
use crate::world::metric;
use crate::world::until;

const BLOCK: usize = 4096;
const BLOCKS: usize = 300;
/// Every so many blocks one rots.
const EVERY: usize = 50;

/// Turns bytes of some blocks over wherever they lie in a node's pool; how many were found.
fn rot(pool: &Path, content: &[u8]) -> usize {
    let held = std::fs::read(pool).unwrap();
    let file = std::fs::OpenOptions::new().write(true).open(pool).unwrap();
    let mut found = 0;
    for block in content.chunks(BLOCK).step_by(EVERY) {
        // What nothing reduces lies there as it is.
        let head = &block[..64];
        let Some(at) = held.windows(64).position(|window| window == head) else { continue };
        file.write_all_at(&[!block[100], !block[101]], at as u64 + 100).unwrap();
        found += 1;
    }
    file.sync_all().unwrap();
    found
}

/// Formed, and blocks that nothing reduces are on both nodes' devices.
fn written() -> (World, Vec<u8>) {
    let world = World::formed();
    let mut content = vec![0; BLOCKS * BLOCK];
    std::io::Read::read_exact(&mut std::fs::File::open("/dev/urandom").unwrap(), &mut content).unwrap();
    let image = world.path("image");
    std::fs::write(&image, &content).unwrap();
    let imported = world.node("a").run(&["import", "--yes", image.to_str().unwrap(), "disk"]);
    assert!(imported.status.success(), "{imported:?}");
    (world, content)
}

fn repaired(world: &World, name: &str) -> f64 {
    metric(world.url(name), "sinter_replica_repaired_blocks_total").unwrap()
}

#[test]
fn p2_a_read_of_a_block_that_has_rotted_is_answered_from_another_node() {
    let (world, content) = written();
    let rotten = rot(&world.path("a").join("pool"), &content);
    assert_eq!(rotten, BLOCKS / EVERY);
    let image = world.path("read");
    let exported = world.node("a").run(&["export", "disk", image.to_str().unwrap()]);
    assert!(exported.status.success(), "{exported:?}");
    assert!(std::fs::read(&image).unwrap()[..content.len()] == content);
    assert!(repaired(&world, "a") >= 6.0);
    // What was written anew is what the node itself finds from now on, alone too.
    let mut world = world;
    world.take("b").kill();
    std::fs::remove_file(&image).unwrap();
    let exported = world.node("a").run(&["export", "disk", image.to_str().unwrap()]);
    assert!(exported.status.success(), "{exported:?}");
    assert!(std::fs::read(&image).unwrap()[..content.len()] == content);
    let stopped = world.take("a").terminate();
    assert!(stopped.success());
}

#[test]
fn p2_scrub_repairs_a_secondary_from_another_node_and_says_so() {
    let (world, content) = written();
    let rotten = rot(&world.path("b").join("pool"), &content);
    assert_eq!(rotten, BLOCKS / EVERY);
    assert!(world.node("b").run(&["scrub", "start"]).status.success());
    let status = || get(world.url("b"), "/api/v1/scrub").json();
    until("scrub has read everything", || status()["state"] == "finished");
    until("what it has found is repaired", || status()["repaired"] == json!(rotten));
    assert_eq!(status()["errors"], json!(rotten), "{}", status());
    assert_eq!(repaired(&world, "b").to_bits(), 6f64.to_bits());
    assert_eq!(metric(world.url("b"), "sinter_bad_blocks"), Some(0.0));
    assert!(world.node("b").run(&["scrub", "start"]).status.success());
    until("scrub finds nothing more", || status()["state"] == "finished" && status()["errors"] == 0);
}
