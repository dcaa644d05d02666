//! The routes of the cluster while it is on, field by field, on the primary and on the secondary.

use serde_json::Value;
use serde_json::json;

use crate::http::get;
use crate::http::send;
use crate::world::World;
use crate::world::member;
use crate::world::members;
use crate::world::until;
use crate::world::write;

/// Asserts that an answer has these fields and no other, of these types.
#[track_caller]
fn assert_like(found: &Value, example: &Value, at: &str) {
    let (found, example) = (found.as_object().unwrap(), example.as_object().unwrap());
    let names = |object: &serde_json::Map<String, Value>| object.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(found), names(example), "{at}");
    for (name, value) in example {
        let same = match value {
            Value::Number(_) => found[name].is_number(),
            Value::String(_) => found[name].is_string(),
            Value::Bool(_) => found[name].is_boolean(),
            Value::Array(_) => found[name].is_array(),
            Value::Object(_) => found[name].is_object(),
            Value::Null => true,
        };
        assert!(same, "{at}: {name} is {}", found[name]);
    }
}

#[test]
fn status_replication_and_metrics_are_as_documented_on_both_nodes() {
    let world = World::formed();
    assert_eq!(write(world.url("a"), 0, "of a"), 200);
    for (name, other) in [("a", "b"), ("b", "a")] {
        let url = world.url(name);
        let status = get(url, "/api/v1/cluster/status").json();
        assert_like(
            &status,
            &json!({"node_id": "node-1", "state": "healthy", "current_primary": "node-1", "has_quorum": true,
                "node_count": 3, "healthy_nodes": 3, "replication_lag_ms": 0.5}),
            name,
        );
        assert_eq!((&status["node_id"], &status["current_primary"]), (&json!(name), &json!("a")));
        assert_eq!((&status["state"], &status["has_quorum"]), (&json!("healthy"), &json!(true)), "{status}");
        assert_eq!((&status["node_count"], &status["healthy_nodes"]), (&json!(3), &json!(3)));

        let replication = get(url, "/api/v1/cluster/replication").json();
        assert_like(
            &replication,
            &json!({"mode": "sync", "node_id": "node-1", "is_primary": true, "peers": [{}],
                "operations_replicated": 15_000, "operations_pending": 0, "avg_latency_ms": 1.2}),
            name,
        );
        assert_eq!((&replication["mode"], &replication["is_primary"]), (&json!("sync"), &json!(name == "a")));
        let peers = replication["peers"].as_array().unwrap();
        assert_eq!(peers.len(), 1, "{replication}");
        assert_like(
            &peers[0],
            &json!({"node_id": "node-2", "url": "http://node-2:8000", "state": "healthy",
                "last_heartbeat": null, "lag_bytes": 0}),
            name,
        );
        let (node_id, address) = (&peers[0]["node_id"], &peers[0]["url"]);
        assert_eq!((node_id, address), (&json!(other), &json!(world.url(other))));

        let metrics = get(url, "/api/v1/metrics/replication").json();
        assert_like(
            &metrics,
            &json!({"enabled": true, "mode": "sync", "peers": 2, "operations": {}, "latency_ms": 1.5,
                "failover": {}}),
            name,
        );
        assert_like(&metrics["operations"], &json!({"replicated": 1, "pending": 0, "errors": 2}), name);
        assert!(metrics["operations"]["replicated"].as_u64() >= Some(1), "{metrics}");
        assert!(metrics["latency_ms"].as_f64() > Some(0.0), "{metrics}");
        let failover = json!({"state": "normal", "total_failovers": 0, "avg_time_ms": 0.0});
        assert_eq!(metrics["failover"], failover);
        assert_eq!(get(url, "/api/v1/metrics").json()["cluster"]["enabled"], true);
        let health = get(url, "/health").json();
        assert_eq!((&health["status"], &health["cluster_enabled"]), (&json!("healthy"), &json!(true)));
        let status = get(url, "/api/v1/status").json();
        let cluster = &status["cluster"];
        assert_eq!(
            (&cluster["enabled"], &cluster["current_primary"]),
            (&json!(true), &json!("a")),
            "{status}"
        );
    }
    // A primary has heard of its peer a moment ago.
    let heard = member(world.url("a"), "b")["last_heartbeat"].as_f64().unwrap();
    let heartbeat = json!({"source_node": "x", "timestamp": 1.5, "current_primary": "y"}).to_string();
    let answer = send(world.url("b"), "POST", "/api/v1/cluster/heartbeat", &heartbeat).json();
    assert_eq!((&answer["node_id"], &answer["current_primary"]), (&json!("b"), &json!("a")));
    assert!((answer["timestamp"].as_f64().unwrap() - heard).abs() < 10.0, "{answer} {heard}");
}

#[test]
fn prometheus_sees_the_primary_and_its_peer() {
    let world = World::formed();
    let page = |name: &str| String::from_utf8(get(world.url(name), "/metrics").body).unwrap();
    for line in [
        "sinter_cluster_primary 1",
        "sinter_cluster_quorum 1",
        "sinter_cluster_in_sync_nodes 2",
        "sinter_failover_total 0",
        "sinter_replica_in_sync{peer=\"b\"} 1",
        "sinter_replica_lag_bytes{peer=\"b\"} 0",
        "sinter_resync_remaining_bytes{peer=\"b\"} 0",
    ] {
        until(line, || page("a").lines().any(|found| found == line));
    }
    let secondary = page("b");
    assert!(secondary.lines().any(|line| line == "sinter_cluster_primary 0"), "{secondary}");
    assert!(!secondary.contains("sinter_replica_in_sync{"), "only the primary knows: {secondary}");
}

/// Defect 3 of the array that this one's interface comes from: peers added over REST had no effect on the quorum.
#[test]
fn a_name_that_is_announced_votes_only_once_it_has_joined() {
    let world = World::formed();
    let url = world.url("a");
    let voters = members(url)["voters"].clone();
    let asked = json!({"node_id": "node-9", "url": "http://node-9:8000"}).to_string();
    let answer = send(url, "POST", "/api/v1/cluster/peers", &asked);
    assert_eq!(answer.status, 201);
    let example = json!({"node_id": "n", "url": "u", "state": "s", "last_heartbeat": null, "lag_bytes": 0});
    assert_like(&answer.json(), &example, "the announced");
    assert_eq!(answer.json()["state"], "joining");
    send(url, "POST", "/api/v1/cluster/peers", &asked).problem(409, "busy");
    until("the other node knows", || member(world.url("b"), "node-9")["state"] == "joining");
    let after = members(url);
    assert_eq!((&after["voters"], &after["has_quorum"]), (&voters, &json!(true)));
    assert_eq!(get(url, "/api/v1/cluster/status").json()["node_count"], 3);
    assert_eq!(send(world.url("b"), "DELETE", "/api/v1/cluster/peers/node-9", "").status, 204);
    let detail = send(url, "DELETE", "/api/v1/cluster/peers/node-9", "").problem(404, "not_found");
    assert_eq!(detail, "Peer node-9 not found");
}

#[test]
fn a_node_that_is_removed_is_none_any_more_and_the_primary_stays() {
    let world = World::formed();
    let url = world.url("a");
    let detail = send(url, "DELETE", "/api/v1/cluster/peers/a", "").problem(409, "busy");
    assert!(detail.contains("primary"), "{detail}");
    let detail = send(world.url("b"), "DELETE", "/api/v1/cluster/peers/b", "").problem(409, "busy");
    assert!(detail.contains("cannot remove itself"), "{detail}");
    // By its number.
    assert_eq!(send(url, "DELETE", "/api/v1/cluster/peers/2", "").status, 204);
    until("two nodes are left", || members(url)["nodes"].as_array().unwrap().len() == 2);
    until("it votes no more", || !members(url)["voters"].as_array().unwrap().contains(&json!("b")));
    assert_eq!(write(url, 0, "alone"), 200);
    let detail = send(url, "DELETE", "/api/v1/cluster/peers/1", "").problem(409, "busy");
    assert!(detail.contains("the last node that is in sync"), "{detail}");
    let asked = json!({"target_node": "b"}).to_string();
    send(url, "POST", "/api/v1/cluster/failover", &asked).problem(404, "not_found");
}
