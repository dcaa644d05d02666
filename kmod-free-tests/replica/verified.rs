//! `sinter cluster verify`: equal nodes are found equal, and a planted difference is found, named and mended.

use std::path::Path;
use std::sync::Arc;

use serde_json::Value;
use serde_json::json;

use sinter::device::Device;
use sinter::device::file::FileDevice;
use sinter::format::catalog::Record;
use sinter::store::Store;
use sinter::store::StoreOptions;
use sinter::units::Lba;

use crate::http::get;
use crate::http::send;
use crate::world::World;
use crate::world::base64;
use crate::world::both;
use crate::world::read;
use crate::world::until;
use crate::world::write;

fn verify(world: &World, name: &str) -> (Option<i32>, Value, String) {
    let output = world.cluster(name, &["verify", "--json"]);
    let text = both(&output);
    (output.status.code(), serde_json::from_slice(&output.stdout).unwrap_or_default(), text)
}

/// Writes a block of the volume `disk` into the pool of a node that is not running.
fn write_behind_its_back(pool: &Path, lba: Lba, fill: u8) {
    let device: Arc<dyn Device> = Arc::new(FileDevice::open(pool).unwrap());
    let options = StoreOptions::default();
    let (store, report) = Store::open(vec![device], options, sinter::daemon::environment()).unwrap();
    assert!(report.damage.is_empty(), "{:?}", report.damage);
    let objects = store.objects().unwrap();
    let disk = objects.iter().find(|it| Record::decode(&it.opaque).is_ok_and(|record| record.name == "disk"));
    let text: Vec<u8> = (0..4096).map(|at| fill.wrapping_add((at % 251) as u8)).collect();
    store.write(disk.unwrap().number, lba, &text).unwrap();
    store.checkpoint().unwrap();
}

#[test]
fn equal_nodes_are_equal_and_a_planted_difference_is_found_and_mended() {
    let mut world = World::formed();
    for block in 0..20 {
        assert_eq!(write(world.url("a"), block * 8192, &format!("text number {block}")), 200);
    }
    assert_eq!(write(world.url("a"), 60 * 8192, &"x".repeat(4096)), 200, "a pattern");
    let snapshot = send(world.url("a"), "POST", "/api/v1/volumes/disk/snapshots", r#"{"name": "monday"}"#);
    assert_eq!(snapshot.status, 201);
    assert_eq!(write(world.url("a"), 0, "after the snapshot"), 200);
    // Asked of the secondary, answered by the primary.
    let (status, answer, text) = verify(&world, "b");
    assert_eq!(status, Some(0), "{text}");
    assert_eq!((&answer["state"], &answer["primary"]), (&json!("finished"), &json!("a")), "{answer}");
    assert!(answer["compared_bytes"].as_u64() >= Some(40 * 4096), "{answer}");
    let nodes = json!([{"node_id": "b", "verdict": "equal", "differences": [], "error": null}]);
    assert_eq!(answer["nodes"], nodes, "{answer}");
    let shown = both(&world.cluster("a", &["verify", "--status"]));
    assert!(shown.contains("b           equal"), "{shown}");
    let stopped = send(world.url("a"), "DELETE", "/api/v1/cluster/verify", "").json();
    assert_eq!(stopped["state"], "finished");

    // The same number of an operation, and another operation: no position can tell.
    assert!(world.take("b").terminate().success());
    until("it is out", || crate::world::members(world.url("a"))["in_sync"] == json!(["a"]));
    assert_eq!(write(world.url("a"), 40 * 8192, "only on a"), 200);
    assert_eq!(write(world.url("a"), 41 * 8192, "on both"), 200);
    let (status, _, text) = verify(&world, "a");
    assert_eq!(status, Some(11), "nobody to compare with: {text}");
    write_behind_its_back(&world.path("b").join("pool"), Lba(1000), 7);
    world.restart("b");
    world.until_in_sync("a");
    let (status, answer, text) = verify(&world, "a");
    assert_eq!(status, Some(14), "{text}");
    let differences = answer["nodes"][0]["differences"].as_array().unwrap();
    let blocks: Vec<&Value> = differences.iter().map(|it| &it["lba"]).collect();
    assert_eq!(blocks, [&json!(80), &json!(1000)], "{answer}");
    assert!(differences.iter().all(|it| it["object"] == "disk"), "{answer}");
    assert_eq!(answer["nodes"][0]["verdict"], "different");

    // It has left the set, and comes back with what the primary holds.
    world.until_in_sync("a");
    let (status, answer, text) = verify(&world, "a");
    assert_eq!(status, Some(0), "{text}");
    assert_eq!(answer["nodes"][0]["verdict"], "equal");
    let moved = send(world.url("a"), "POST", "/api/v1/cluster/failover", r#"{"target_node": "b"}"#);
    assert_eq!(moved.status, 200, "{}", String::from_utf8_lossy(&moved.body));
    assert_eq!(read(world.url("b"), 40 * 8192), base64("only on a"));
    assert_eq!(read(world.url("b"), 1000 * 4096), Value::Null);
    let never = get(world.url("b"), "/api/v1/cluster/verify").json();
    assert_eq!(never["state"], "never", "another primary has begun none");
}
