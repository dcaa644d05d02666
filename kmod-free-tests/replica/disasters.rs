//! When more is lost than the cluster mends by itself: what the operator says, and what becomes of it.

use serde_json::json;

use crate::http::get;
use crate::http::send;
use crate::world::World;
use crate::world::base64;
use crate::world::both;
use crate::world::member;
use crate::world::members;
use crate::world::read;
use crate::world::until;
use crate::world::write;

fn new_token(world: &World, name: &str) -> String {
    String::from_utf8(world.cluster(name, &["token"]).stdout).unwrap().trim().to_owned()
}

#[test]
fn after_all_were_down_the_array_starts_without_a_node_that_never_returns() {
    let mut world = World::formed();
    assert_eq!(write(world.url("a"), 0, "on both"), 200);
    assert_eq!(
        world.cluster("a", &["start", "--without", "b", "--yes"]).status.code(),
        Some(11),
        "it serves"
    );
    // The power fails: nobody sees the other one die.
    world.signal("b", "-STOP");
    world.take("a").kill();
    world.take("b").kill();
    world.restart("b");
    let b = world.url("b").to_owned();
    until("it hears the witness", || members(&b)["has_quorum"] == true);
    std::thread::park_timeout(std::time::Duration::from_secs(2));
    assert_eq!(members(&b)["primary_serves"], false, "a may hold more");
    send(&b, "POST", "/api/v1/cluster/start", r#"{"without": []}"#).problem(400, "invalid");
    send(&b, "POST", "/api/v1/cluster/start", r#"{"without": ["nobody"]}"#).problem(404, "not_found");
    let wrong = send(&b, "POST", "/api/v1/cluster/start", r#"{"without": ["w"]}"#);
    assert_eq!(wrong.problem(409, "busy"), "a has not said where it stands");
    let unasked = world.cluster("b", &["start", "--without", "a"]);
    assert_eq!(unasked.status.code(), Some(2), "nobody can be asked: {}", both(&unasked));
    let started = world.cluster("b", &["start", "--without", "a", "--yes"]);
    assert_eq!(started.status.code(), Some(0), "{}", both(&started));
    until("it serves", || members(&b)["primary_serves"] == true);
    assert_eq!(read(&b, 0), base64("on both"));
    assert_eq!(write(&b, 4096, "without a"), 200);
    let failovers = members(&b)["failovers"].clone();
    assert_eq!(failovers.as_array().unwrap().last().unwrap()["reason"], "start_without", "{failovers}");
    // It returns all the same: it follows.
    world.restart("a");
    world.until_in_sync("b");
    let verified = world.cluster("b", &["verify"]);
    assert_eq!(verified.status.code(), Some(0), "{}", both(&verified));
}

#[test]
fn a_node_that_was_taken_out_stands_alone_once_it_forgets_and_can_join_again_while_it_runs() {
    let world = World::formed();
    let (a, b) = (world.url("a"), world.url("b"));
    assert_eq!(write(a, 0, "of the cluster"), 200);
    let refused = world.cluster("b", &["forget", "--yes"]);
    assert_eq!(refused.status.code(), Some(11), "{}", both(&refused));
    assert_eq!(world.cluster("a", &["remove", "b", "--yes"]).status.code(), Some(0));
    until("it hears nobody, and forgets", || {
        world.cluster("b", &["forget", "--yes"]).status.code() == Some(0)
    });
    assert_eq!(get(b, "/api/v1/cluster/status").json()["state"], "standalone");
    assert_eq!(read(b, 0), base64("of the cluster"));
    assert_eq!(write(b, 4096, "alone"), 200);
    assert_eq!(write(a, 4096, "in the cluster"), 200);
    assert_eq!(world.cluster("b", &["forget", "--yes"]).status.code(), Some(2), "it is in none");

    let token = new_token(&world, "a");
    let kept = world.cluster("b", &["join", &token]);
    assert_eq!(kept.status.code(), Some(11), "{}", both(&kept));
    assert!(both(&kept).contains("--discard-local-data"), "{}", both(&kept));
    let witness = String::from_utf8(world.cluster("a", &["token", "--role", "witness"]).stdout).unwrap();
    let wrong = world.cluster("b", &["join", witness.trim(), "--discard-local-data", "--yes"]);
    assert_eq!(wrong.status.code(), Some(2), "{}", both(&wrong));
    let unasked = world.cluster("b", &["join", &token, "--discard-local-data"]);
    assert_eq!(unasked.status.code(), Some(2), "{}", both(&unasked));
    let joined = world.cluster("b", &["join", &token, "--discard-local-data", "--yes"]);
    assert_eq!(joined.status.code(), Some(0), "{}", both(&joined));
    world.until_in_sync("a");
    let verified = world.cluster("b", &["verify"]);
    assert_eq!(verified.status.code(), Some(0), "{}", both(&verified));
    assert_eq!(read(b, 4096), base64("in the cluster"));
}

#[test]
fn p7_a_pool_of_a_cluster_is_served_alone_only_when_told_so_and_never_taken_back_as_a_part_of_it() {
    let mut world = World::formed();
    assert_eq!(write(world.url("a"), 0, "on both"), 200);
    let told = world.refused("b", &["--forget-cluster"]);
    assert_eq!(told.status.code(), Some(11), "it is in use: {}", both(&told));
    assert!(world.take("b").terminate().success());
    let told = world.refused("b", &["--forget-cluster"]);
    assert_eq!(told.status.code(), Some(11), "{}", both(&told));
    assert!(both(&told).contains("this node is in a cluster"), "{}", both(&told));

    let (directory, kept) = (world.path("b").join("cluster"), world.path("kept"));
    std::fs::rename(&directory, &kept).unwrap();
    let refused = world.refused("b", &[]);
    assert_eq!(refused.status.code(), Some(11), "{}", both(&refused));
    assert!(both(&refused).contains("--forget-cluster"), "{}", both(&refused));
    let alone = world.start("b", &["--forget-cluster"]);
    assert_eq!(get(&alone.url, "/api/v1/cluster/status").json()["state"], "standalone");
    assert_eq!(read(&alone.url, 0), base64("on both"));
    assert_eq!(write(&alone.url, 4096, "alone"), 200);
    assert!(alone.terminate().success());
    let again = world.start("b", &[]);
    assert_eq!(read(&again.url, 4096), base64("alone"));
    assert!(again.terminate().success());

    std::fs::rename(&kept, &directory).unwrap();
    world.restart("b");
    until("the primary has said what it thinks of that", || {
        member(world.url("a"), "b")["error"].as_str().is_some_and(|error| error.contains("split brain"))
    });
    assert_eq!(members(world.url("a"))["in_sync"], json!(["a"]));
    // What it took alone is still there for whoever wants it.
    assert_eq!(world.cluster("a", &["remove", "b", "--yes"]).status.code(), Some(0));
    until("it hears nobody, and forgets", || {
        world.cluster("b", &["forget", "--yes"]).status.code() == Some(0)
    });
    assert_eq!(read(world.url("b"), 4096), base64("alone"));
}

#[test]
fn p7_a_node_that_has_lost_its_votes_does_not_take_part_under_its_number() {
    let mut world = World::formed();
    world.take("b").kill();
    let votes = world.path("b").join("cluster").join("control.redb");
    std::fs::rename(&votes, world.path("kept")).unwrap();
    let refused = world.refused("b", &[]);
    assert_eq!(refused.status.code(), Some(14), "{}", both(&refused));
    assert!(both(&refused).contains("sinter cluster remove"), "{}", both(&refused));
    std::fs::rename(world.path("kept"), &votes).unwrap();
    world.restart("b");
    world.until_in_sync("a");
}

#[test]
fn by_force_one_node_goes_on_without_a_majority_and_the_others_only_as_new_ones() {
    let mut world = World::formed();
    assert_eq!(write(world.url("a"), 0, "on both"), 200);
    world.end_witness();
    world.take("a").kill();
    let b = world.url("b").to_owned();
    until("it has no quorum", || members(&b)["has_quorum"] == false);
    let before = members(&b);
    assert_eq!(before["primary_serves"], false, "{before}");
    let forced = world.cluster("b", &["promote", "--force", "--yes"]);
    assert_eq!(forced.status.code(), Some(0), "{}", both(&forced));
    until("it serves", || members(&b)["primary_serves"] == true);
    let after = members(&b);
    assert_eq!(after["generation"].as_u64(), before["generation"].as_u64().map(|before| before + 1));
    assert_eq!((&after["voters"], &after["in_sync"]), (&json!(["b"]), &json!(["b"])), "{after}");
    assert_eq!(after["nodes"].as_array().unwrap().len(), 1, "{after}");
    assert_eq!(read(&b, 0), base64("on both"));
    assert_eq!(write(&b, 4096, "goes on"), 200);

    // The others still have a majority of what was: they change nothing, and are let in by nobody.
    world.restart("a");
    world.restart_witness();
    let a = world.url("a").to_owned();
    until("the former group has a majority", || members(&a)["has_quorum"] == true);
    std::thread::park_timeout(std::time::Duration::from_secs(2));
    assert_eq!(members(&a)["primary_serves"], false);
    assert_ne!(write(&b, 8192, "still"), 503);
    assert_eq!(members(&b)["nodes"].as_array().unwrap().len(), 1);
    let forgot = world.cluster("a", &["forget", "--yes"]);
    assert_eq!(forgot.status.code(), Some(0), "{}", both(&forgot));
    let joined = world.cluster("a", &["join", &new_token(&world, "b"), "--discard-local-data", "--yes"]);
    assert_eq!(joined.status.code(), Some(0), "{}", both(&joined));
    world.until_in_sync("b");
    assert_eq!(members(&b)["generation"], after["generation"]);
    let verified = world.cluster("a", &["verify"]);
    assert_eq!(verified.status.code(), Some(0), "{}", both(&verified));
    // What was forced outlives a restart.
    assert!(world.take("b").terminate().success());
    until("a has taken over", || members(world.url("a"))["primary_serves"] == true);
    world.restart("b");
    world.until_in_sync("a");
    assert_eq!(read(world.url("b"), 4096), base64("goes on"));
}

#[test]
fn a_cluster_is_formed_and_a_second_node_taken_in_while_clients_write() {
    let mut world = World::alone();
    let url = world.url("a").to_owned();
    let stopping = std::sync::atomic::AtomicBool::new(false);
    let (writes, failed) = std::thread::scope(|scope| {
        let writers: Vec<_> = (0..4u64)
            .map(|writer| {
                let (url, stopping) = (&url, &stopping);
                scope.spawn(move || {
                    let (mut writes, mut failed) = (0u64, 0u64);
                    while !stopping.load(std::sync::atomic::Ordering::Acquire) {
                        let offset = (writer * 500 + writes % 500) * 4096;
                        let text = format!("writer {writer}, write {writes}");
                        failed += u64::from(write(url, offset, &text) != 200);
                        writes += 1;
                    }
                    (writes, failed)
                })
            })
            .collect();
        std::thread::park_timeout(std::time::Duration::from_millis(300));
        let made = send(&url, "POST", "/api/v1/cluster/init", "{}");
        assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
        world.b = Some(world.start("b", &["--join", made.json()["data_token"].as_str().unwrap()]));
        world.until_in_sync("a");
        std::thread::park_timeout(std::time::Duration::from_millis(300));
        stopping.store(true, std::sync::atomic::Ordering::Release);
        let ended = writers.into_iter().map(|writer| writer.join().unwrap());
        ended.fold((0, 0), |(writes, failed), it| (writes + it.0, failed + it.1))
    });
    assert!(writes > 20, "{writes}");
    assert_eq!(failed, 0, "of {writes}");
    let verified = world.cluster("b", &["verify"]);
    assert_eq!(verified.status.code(), Some(0), "{}", both(&verified));
    assert_eq!(send(&url, "POST", "/api/v1/cluster/failover", "{}").status, 200);
    assert_eq!(write(&url, 0, "the former term has ended"), 200);
}
