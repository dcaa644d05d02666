//! What was acknowledged, and who may become primary: what the array that this one's interface comes from got wrong.

use serde_json::Value;
use serde_json::json;

use crate::http::send;
use crate::world::World;
use crate::world::base64;
use crate::world::member;
use crate::world::members;
use crate::world::read;
use crate::world::until;
use crate::world::write;

fn fail_over(url: &str, to: Value) -> crate::http::Answer {
    send(url, "POST", "/api/v1/cluster/failover", &json!({"target_node": to}).to_string())
}

#[test]
fn failover_and_failback_lead_there_and_back() {
    let world = World::formed();
    let (a, b) = (world.url("a"), world.url("b"));
    assert_eq!(write(a, 0, "before"), 200);
    let none = send(a, "POST", "/api/v1/cluster/failback", "").problem(400, "invalid");
    assert_eq!(none, "No failback available (not in failed-over state)");
    fail_over(a, json!("nobody")).problem(404, "not_found");
    fail_over(a, json!("w")).problem(409, "busy");
    fail_over(b, json!("a")).problem(409, "busy");
    // Asked of the one that is to become it.
    let answer = fail_over(b, json!("b"));
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    let answer = answer.json();
    let (old, new) = (&answer["old_primary"], &answer["new_primary"]);
    assert_eq!((old, new, &answer["reason"]), (&json!("a"), &json!("b"), &json!("manual")));
    assert_eq!(answer["state"], "failed_over", "{answer}");
    assert!(answer["duration_ms"].as_f64() > Some(0.0));
    assert_eq!((read(a, 0), read(b, 0)), (json!(base64("before")), json!(base64("before"))));
    assert_eq!(write(a, 4096, "over the former primary"), 200);
    assert_eq!(members(b)["failback_to"], "a");
    world.until_in_sync("b");
    let answer = send(a, "POST", "/api/v1/cluster/failback", "").json();
    assert_eq!((&answer["new_primary"], &answer["state"]), (&json!("a"), &json!("normal")), "{answer}");
    assert_eq!(read(b, 4096), base64("over the former primary"));
    send(b, "POST", "/api/v1/cluster/failback", "").problem(400, "invalid");
    let members = members(a);
    assert_eq!((&members["total_failovers"], &members["failback_to"]), (&json!(2), &json!(null)));
    let history = members["failovers"].as_array().unwrap();
    assert_eq!((&history[0]["new_primary"], &history[1]["new_primary"]), (&json!("b"), &json!("a")));
    // The answer to a null target is any node in sync.
    world.until_in_sync("a");
    assert_eq!(fail_over(a, Value::Null).json()["new_primary"], "b");
}

/// Defect 2: nothing was replicated at all. Defect 4: the former primary became it again without what it had missed.
#[test]
fn a_dead_primary_is_replaced_by_one_that_holds_all_and_takes_over_again_only_once_it_does() {
    let mut world = World::formed();
    assert_eq!(write(world.url("a"), 0, "acknowledged"), 200);
    world.a.take().unwrap().kill();
    until("the other one serves", || members(world.url("b"))["primary_serves"] == true);
    let b = world.url("b");
    assert_eq!(read(b, 0), base64("acknowledged"));
    assert_eq!(write(b, 0, "while it was away"), 200);
    send(b, "POST", "/api/v1/cluster/failback", "").problem(409, "busy");
    let failovers = members(b)["failovers"].clone();
    assert_eq!(failovers[0]["reason"], "node_failure");
    let metrics = crate::http::get(b, "/api/v1/metrics/replication").json();
    assert_eq!(metrics["failover"]["state"], "failed_over");
    assert!(metrics["failover"]["avg_time_ms"].as_f64() > Some(0.0), "{metrics}");
    world.a = Some(world.start("a", &[]));
    world.until_in_sync("b");
    let b = world.url("b");
    assert_eq!(members(b)["primary"], "b", "nobody has asked for a failback");
    assert_eq!(world.node("b").run(&["wait", "--for", "resync"]).status.code(), Some(0));
    assert_eq!(send(b, "POST", "/api/v1/cluster/failback", "").json()["new_primary"], "a");
    assert_eq!(read(world.url("a"), 0), base64("while it was away"));
}

/// Defect 5: a write was acknowledged when one node had it, and nodes that had failed were skipped.
#[test]
fn a_write_is_acknowledged_by_all_in_sync_nodes_or_after_one_has_left_them() {
    let world = World::formed();
    let (a, b) = (world.url("a"), world.url("b"));
    assert_eq!(write(a, 0, "held by both"), 200);
    world.signal("b", "-STOP");
    assert_eq!(write(a, 4096, "held by one"), 200);
    let seen = members(a);
    assert_eq!(seen["in_sync"], json!(["a"]), "it was acknowledged without b: {seen}");
    assert_eq!(seen["state"], "degraded");
    fail_over(a, json!("b")).problem(409, "busy");
    world.signal("b", "-CONT");
    world.until_in_sync("a");
    assert_eq!(member(a, "b")["state"], "healthy");
    assert_eq!(fail_over(a, json!("b")).status, 200);
    assert_eq!((read(b, 0), read(b, 4096)), (json!(base64("held by both")), json!(base64("held by one"))));
}

#[test]
fn without_quorum_nobody_is_promoted_and_the_primary_goes_on() {
    let mut world = World::formed();
    world.end_witness();
    world.signal("b", "-STOP");
    let a = world.url("a").to_owned();
    until("the quorum is lost", || members(&a)["has_quorum"] == false);
    let refused = fail_over(&a, Value::Null);
    refused.problem(409, "no_quorum");
    world.signal("b", "-CONT");
    until("the quorum is back", || members(&a)["has_quorum"] == true);
    world.until_in_sync("a");
    assert_eq!(write(&a, 0, "again"), 200);
}

#[test]
fn force_makes_a_node_primary_that_nobody_would_choose() {
    let mut world = World::formed();
    let b = world.url("b").to_owned();
    world.signal("b", "-STOP");
    assert_eq!(write(world.url("a"), 0, "lost with a"), 200);
    world.a.take().unwrap().kill();
    world.signal("b", "-CONT");
    until("it hears the witness", || members(&b)["has_quorum"] == true);
    let before = members(&b);
    assert_eq!(before["primary_serves"], false, "it is not in sync: {before}");
    send(&b, "POST", "/api/v1/cluster/promote", "{}").problem(400, "invalid");
    let refused = world.cluster("b", &["promote", "--force"]);
    assert_eq!(refused.status.code(), Some(2), "nobody can be asked: {refused:?}");
    let forced = world.cluster("b", &["promote", "--force", "--yes"]);
    assert_eq!(forced.status.code(), Some(0), "{forced:?}");
    until("it serves", || members(&b)["primary_serves"] == true);
    assert_eq!(members(&b)["generation"].as_u64(), before["generation"].as_u64().map(|before| before + 1));
    assert_eq!(write(&b, 4096, "goes on"), 200);
    send(&b, "POST", "/api/v1/cluster/promote", r#"{"force": true}"#).problem(409, "exists");
}
