//! The documented examples, one after another, field by field: each answer has the fields that are documented,
//! of the documented types, and what was sent comes back as it was.

use serde_json::Value;
use serde_json::json;

use crate::daemon::Scratch;
use crate::http::get;
use crate::http::request;
use crate::http::send;
use crate::start;

/// Asserts that `found` has every field of `example`, each of the same type, at every depth. A list is like
/// its first example, a number like any other number.
#[track_caller]
fn assert_like(found: &Value, example: &Value, place: &str) {
    match (found, example) {
        (Value::Object(found), Value::Object(example)) => {
            for (name, example) in example {
                let Some(found) = found.get(name) else { panic!("{place}.{name} is missing") };
                assert_like(found, example, &format!("{place}.{name}"));
            }
        }
        (Value::Array(found), Value::Array(example)) => {
            for item in found {
                assert_like(item, &example[0], &format!("{place}[]"));
            }
        }
        (Value::String(_), Value::String(_))
        | (Value::Number(_), Value::Number(_))
        | (Value::Bool(_), Value::Bool(_)) => {}
        _ => panic!("{place} is {found}, and should be like {example}"),
    }
}

fn volume_example() -> Value {
    json!({
        "id": "550e8400-e29b-41d4-a716-446655440000", "name": "production-db", "size_bytes": 107_374_182_400u64,
        "used_bytes": 0, "state": "available", "description": "PostgreSQL data volume",
        "created_at": "2024-01-15T10:30:00Z", "updated_at": "2024-01-15T10:30:00Z", "tags": {}, "reduction_ratio": 1.0,
    })
}

fn snapshot_example() -> Value {
    json!({
        "id": "660e8400-e29b-41d4-a716-446655440001", "name": "daily-backup-2024-01-15",
        "volume_id": "550e8400-e29b-41d4-a716-446655440000", "volume_name": "production-db",
        "size_bytes": 107_374_182_400u64, "used_bytes": 52_428_800, "state": "available",
        "description": "Automated daily backup", "created_at": "2024-01-15T00:00:00Z", "tags": {},
    })
}

#[track_caller]
fn assert_time(value: &Value) {
    let text = value.as_str().unwrap();
    assert!(text.ends_with('Z') && text.as_bytes()[10] == b'T', "{text}");
}

#[test]
fn the_documented_volumes_and_data() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &[]);
    let url = &daemon.url;
    assert_like(
        &get(url, "/health").json(),
        &json!({"status": "healthy", "reduction_ratio": 2.5, "cluster_enabled": false}),
        "health",
    );
    assert_like(
        &get(url, "/api/v1/arrays").json(),
        &json!({"arrays": [{"id": "node-1", "name": "PStorage", "model": "PStorage Virtual Array",
            "version": "0.1.0",
            "capacity": {"total_bytes": 268_435_456, "used_bytes": 52_428_800, "reduction_ratio": 3.2}}]}),
        "arrays",
    );

    let body = r#"{
        "name": "production-db",
        "size_gb": 100,
        "description": "PostgreSQL data volume",
        "tags": {"env": "production", "app": "postgres"}
    }"#;
    let created = send(url, "POST", "/api/v1/volumes", body);
    assert_eq!(created.status, 201);
    let volume = created.json();
    assert_like(&volume, &volume_example(), "volume");
    assert_eq!(volume["size_bytes"], 107_374_182_400u64);
    assert_eq!(volume["used_bytes"], 0);
    assert_eq!(volume["state"], "available");
    assert_eq!(volume["reduction_ratio"], 1.0);
    assert_eq!(volume["tags"], json!({"env": "production", "app": "postgres"}));
    assert_time(&volume["created_at"]);
    let path = format!("/api/v1/volumes/{}", volume["id"].as_str().unwrap());

    assert_like(
        &get(url, "/api/v1/volumes").json(),
        &json!({"volumes": [volume_example()], "total": 1}),
        "list",
    );
    assert_eq!(get(url, &path).json(), volume);
    let updated = send(url, "PUT", &path, r#"{"description": "other"}"#).json();
    assert_eq!((&updated["description"], &updated["tags"]), (&json!("other"), &volume["tags"]));
    let resized = send(url, "POST", &format!("{path}/resize"), r#"{"size_gb": 200}"#);
    assert_eq!((resized.status, &resized.json()["size_bytes"]), (200, &json!(214_748_364_800u64)));
    let same = send(url, "POST", &format!("{path}/resize"), r#"{"size_gb": 200}"#);
    same.problem(400, "invalid");

    let body = r#"{"offset": 0, "data": "SGVsbG8gV29ybGQh"}"#;
    let written = send(url, "POST", &format!("{path}/write"), body);
    assert_eq!(written.status, 200);
    assert_like(
        &written.json(),
        &json!({"volume_id": "550e8400", "offset": 0, "size": 12, "reduction_ratio": 1.0,
            "was_deduplicated": false, "was_compressed": true}),
        "write",
    );
    assert_eq!(written.json()["size"], 12);
    assert_eq!(written.json()["was_deduplicated"], false);
    assert_eq!(written.json()["was_compressed"], true);
    let read = get(url, &format!("{path}/read?offset=0"));
    assert_eq!(
        read.json(),
        json!({"volume_id": volume["id"], "offset": 0, "size": 12, "data": "SGVsbG8gV29ybGQh"})
    );

    let body = r#"{"name": "production-db-clone", "description": "Clone for testing"}"#;
    let cloned = send(url, "POST", &format!("{path}/clone"), body);
    assert_eq!(cloned.status, 200);
    let cloned = cloned.json();
    assert_like(&cloned, &volume_example(), "clone");
    assert_eq!(
        (&cloned["name"], &cloned["size_bytes"]),
        (&json!("production-db-clone"), &json!(214_748_364_800u64))
    );
    assert_eq!((&cloned["description"], &cloned["tags"]), (&json!("Clone for testing"), &volume["tags"]));
    assert_eq!(get(url, "/api/v1/volumes/production-db-clone/read").json()["data"], "SGVsbG8gV29ybGQh");

    let deleted = request(url, "DELETE", &path, None, b"");
    assert_eq!((deleted.status, deleted.body.len()), (204, 0));
}

#[test]
fn the_documented_snapshots() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &[]);
    let url = &daemon.url;
    let body = r#"{"name": "production-db", "size_gb": 100}"#;
    let volume = send(url, "POST", "/api/v1/volumes", body).json();
    let path = format!("/api/v1/volumes/{}", volume["id"].as_str().unwrap());
    let body = r#"{"offset": 0, "data": "SGVsbG8gV29ybGQh"}"#;
    assert_eq!(send(url, "POST", &format!("{path}/write"), body).status, 200);

    let body = r#"{"name": "daily-backup-2024-01-15", "description": "Automated daily backup"}"#;
    let taken = send(url, "POST", &format!("{path}/snapshots"), body);
    assert_eq!(taken.status, 201);
    let snapshot = taken.json();
    assert_like(&snapshot, &snapshot_example(), "snapshot");
    assert_eq!(snapshot["name"], "daily-backup-2024-01-15");
    assert_eq!(snapshot["volume_id"], volume["id"]);
    assert_eq!(snapshot["volume_name"], "production-db");
    assert_eq!(snapshot["size_bytes"], 107_374_182_400u64);
    assert_eq!(snapshot["used_bytes"], 4096);
    assert_eq!(snapshot["state"], "available");
    assert_eq!(snapshot["description"], "Automated daily backup");
    assert_eq!(snapshot["tags"], json!({}));
    assert_time(&snapshot["created_at"]);

    let list = get(url, &format!("{path}/snapshots")).json();
    assert_eq!(list, json!({"snapshots": [snapshot], "total": 1}));
    assert_eq!(get(url, "/api/v1/snapshots").json(), list);
    let snapshot_path = format!("{path}/snapshots/{}", snapshot["id"].as_str().unwrap());
    assert_eq!(get(url, &snapshot_path).json(), snapshot);

    let unnamed = send(url, "POST", &format!("{path}/snapshots"), "{}").json();
    let name = unnamed["name"].as_str().unwrap();
    let time = name.strip_prefix("production-db-snap-").unwrap();
    assert!(time.len() == 15 && time.as_bytes()[8] == b'-', "{name}");

    let body = r#"{"target_volume_id": null}"#;
    let restored = send(url, "POST", &format!("{snapshot_path}/restore"), body);
    assert_eq!(restored.status, 200);
    let restored = restored.json();
    assert_like(&restored, &volume_example(), "restored");
    assert_eq!(restored["name"], "production-db-restored");
    assert_eq!(restored["description"], "Restored from snapshot daily-backup-2024-01-15");
    assert_eq!(get(url, "/api/v1/volumes/production-db-restored/read").json()["data"], "SGVsbG8gV29ybGQh");
    assert_eq!(send(url, "POST", &format!("{path}/write"), r#"{"offset": 0, "data": "Sg=="}"#).status, 200);
    let body = json!({"target_volume_id": volume["id"]}).to_string();
    let replaced = send(url, "POST", &format!("{snapshot_path}/restore"), &body);
    assert_eq!((replaced.status, &replaced.json()["id"]), (200, &volume["id"]));
    assert_eq!(get(url, &format!("{path}/read")).json()["data"], "SGVsbG8gV29ybGQh");

    let deleted = request(url, "DELETE", &snapshot_path, None, b"");
    assert_eq!((deleted.status, deleted.body.len()), (204, 0));
    let detail = get(url, &snapshot_path).problem(404, "not_found");
    assert_eq!(detail, format!("Snapshot {} not found", snapshot["id"].as_str().unwrap()));
}

#[test]
fn the_documented_figures() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:1GiB"]);
    let url = &daemon.url;
    assert_eq!(send(url, "POST", "/api/v1/volumes/v/snapshots", "{}").status, 201);
    for (path, example) in [
        (
            "/api/v1/metrics/reduction",
            json!({"overall_reduction_ratio": 3.5,
                "deduplication": {"ratio": 2.1, "unique_blocks": 1000, "duplicate_blocks": 1100},
                "compression": {"ratio": 1.7, "algorithm": "lz4"},
                "pattern_removal": {"zero_blocks_found": 500, "pattern_blocks_found": 50},
                "bytes_saved": {"pattern": 2_097_152, "dedupe": 4_608_000, "compression": 1_572_864}}),
        ),
        (
            "/api/v1/metrics/flash",
            json!({"capacity": {"total_bytes": 1, "used_bytes": 1, "free_bytes": 1, "utilization": 0.5},
                "health": {"health_percentage": 99.5, "avg_erase_count": 50, "max_erase_count": 120},
                "wear_leveling": {"blocks_moved": 15, "wear_variance": 25.3},
                "garbage_collection": {"state": "idle", "blocks_reclaimed": 100, "gc_runs": 5}}),
        ),
        (
            "/api/v1/metrics/volumes",
            json!({"volumes": {"total": 5, "provisioned_bytes": 1, "used_bytes": 1},
                "snapshots": {"total": 25, "by_volume": {}}}),
        ),
        ("/api/v1/metrics/replication", json!({"enabled": false, "message": "Clustering is not enabled"})),
        (
            "/api/v1/cluster/status",
            json!({"node_id": "node-1", "state": "healthy", "current_primary": "node-1", "has_quorum": true,
                "node_count": 3, "healthy_nodes": 3, "replication_lag_ms": 0.5}),
        ),
        (
            "/api/v1/cluster/replication",
            json!({"mode": "sync", "node_id": "node-1", "is_primary": true, "peers": [{}],
                "operations_replicated": 15_000, "operations_pending": 0, "avg_latency_ms": 1.2}),
        ),
        (
            "/api/v1/metrics",
            json!({"data_reduction": {"overall": {"total_bytes_in": 0, "total_bytes_stored": 0,
                        "total_reduction_ratio": 1.0, "pattern_bytes_saved": 0, "dedupe_bytes_saved": 0,
                        "compression_bytes_saved": 0},
                    "pattern_removal": {"blocks_analyzed": 0, "zero_blocks_found": 0, "pattern_blocks_found": 0,
                        "bytes_saved": 0},
                    "deduplication": {"dedupe_ratio": 1.0, "unique_blocks": 0, "duplicate_blocks": 0},
                    "compression": {}, "backend": {}},
                "flash": {"flash": {"total_capacity_bytes": 0, "used_bytes": 0, "free_bytes": 0, "utilization": 0.0,
                        "health_percentage": 100.0},
                    "blocks": {"total_blocks": 0, "free_blocks": 0, "valid_blocks": 0, "total_erases": 0,
                        "avg_erase_count": 0, "max_erase_count": 0, "min_erase_count": 0, "utilization": 0.0},
                    "wear_leveling": {"blocks_moved": 0, "strategy": "", "wear_variance": 0.0},
                    "garbage_collection": {"state": "idle", "gc_runs": 0, "blocks_reclaimed": 0,
                        "bytes_reclaimed": 0, "current_utilization": 0.0}},
                "volumes": {"total_volumes": 1, "total_provisioned_bytes": 1, "total_used_bytes": 0,
                    "total_logical_bytes": 0, "total_physical_bytes": 0},
                "snapshots": {"total_snapshots": 1, "snapshots_by_volume": {}},
                "cluster": {"enabled": false}}),
        ),
    ] {
        let answer = get(url, path);
        assert_eq!(answer.status, 200, "{path}");
        assert_like(&answer.json(), &example, path);
    }
    let volumes = get(url, "/api/v1/metrics/volumes").json();
    let id = get(url, "/api/v1/volumes/v").json()["id"].as_str().unwrap().to_owned();
    assert_eq!(volumes["volumes"]["total"], 1);
    assert_eq!(volumes["snapshots"]["by_volume"], json!({ id: 1 }));
    let cluster = get(url, "/api/v1/cluster/status").json();
    assert_eq!((&cluster["state"], &cluster["node_count"]), (&json!("standalone"), &json!(1)));
    assert_eq!(get(url, "/api/v1/cluster/replication").json()["mode"], "disabled");
}

#[test]
fn the_documented_errors() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:1MiB"]);
    let url = &daemon.url;
    let body = r#"{"offset": 1, "data": ""}"#;
    let detail = send(url, "POST", "/api/v1/volumes/v/write", body).problem(400, "invalid");
    assert_eq!(detail, "Offset must be aligned to block size (4096)");
    let id = "550e8400-e29b-41d4-a716-446655440000";
    let detail = get(url, &format!("/api/v1/volumes/{id}")).problem(404, "not_found");
    assert_eq!(detail, format!("Volume {id} not found"));
    for (method, path, body) in [
        ("POST", "/api/v1/cluster/peers", r#"{"node_id": "node-2", "url": "http://node-2:8000"}"#),
        ("DELETE", "/api/v1/cluster/peers/node-2", ""),
        ("POST", "/api/v1/cluster/failover", r#"{"target_node": "node-2"}"#),
        ("POST", "/api/v1/cluster/failover", r#"{"target_node": null}"#),
        ("POST", "/api/v1/cluster/failback", ""),
        ("POST", "/api/v1/cluster/heartbeat", r#"{"source_node": "node-2", "timestamp": 1705312200.5}"#),
    ] {
        let detail = send(url, method, path, body).problem(400, "clustering_disabled");
        assert_eq!(detail, "Clustering is not enabled", "{method} {path}");
    }
}
