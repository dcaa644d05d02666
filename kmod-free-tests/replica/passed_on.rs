//! Requests to a node that is not the primary.

use serde_json::json;

use crate::http::get;
use crate::http::head_and_body;
use crate::http::send;
use crate::world::World;
use crate::world::base64;
use crate::world::read;
use crate::world::until;
use crate::world::write;

#[test]
fn a_secondary_answers_as_the_primary_does() {
    let world = World::formed();
    let (a, b) = (world.url("a"), world.url("b"));
    let made = send(b, "POST", "/api/v1/volumes", r#"{"name": "made over b", "size_bytes": 1048576}"#);
    assert_eq!(made.status, 201);
    let path = made.header("location").unwrap().to_owned();
    assert_eq!(get(a, &path).json()["name"], "made over b");
    assert_eq!(get(a, &path).header("etag"), get(b, &path).header("etag"));
    get(b, "/api/v1/volumes/nothing").problem(404, "not_found");
    send(b, "POST", "/api/v1/volumes", "{").problem(400, "invalid");
    // A condition goes with the request.
    let changed = head_and_body(
        b,
        &format!(
            "PUT {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIf-Match: \"other\"\r\n\
             Content-Type: application/json\r\nContent-Length: 19\r\n\r\n{{\"description\": \"\"}}"
        ),
    );
    assert_eq!(changed.status, 412, "{}", String::from_utf8_lossy(&changed.body));
    assert_eq!(write(b, 4096, "over b"), 200);
    assert_eq!(read(a, 4096), base64("over b"));
    assert_eq!(read(b, 4096), base64("over b"));
    // A body of some size, there and back.
    let text = "0123456789abcdef".repeat(1 << 16);
    assert_eq!(write(b, 1 << 20, &text), 200);
    let all = get(b, &format!("/api/v1/volumes/disk/read?offset={}&length={}", 1 << 20, text.len()));
    assert_eq!(all.json()["data"], base64(&text));
    assert_eq!(send(b, "DELETE", &path, "").status, 204);
    get(a, &path).problem(404, "not_found");
    send(b, "POST", "/api/v1/mounts", r#"{"mountpoint": "/nowhere"}"#).problem(503, "not_primary");
}

#[test]
fn what_was_passed_on_is_not_passed_on_again() {
    let world = World::formed();
    let head = "GET /api/v1/volumes HTTP/1.1\r\nHost: x\r\nConnection: close\r\nsinter-passed-on: 1\r\n\r\n";
    head_and_body(world.url("b"), head).problem(503, "not_primary");
    assert_eq!(head_and_body(world.url("a"), head).status, 200);
}

#[test]
fn without_a_primary_a_node_says_so_and_its_own_routes_answer() {
    let mut world = World::formed();
    world.end_witness();
    world.a.take().unwrap().kill();
    let b = world.url("b");
    let health = || get(b, "/health").json()["status"].clone();
    until("it knows that something is wrong", || health() == "degraded");
    let detail = get(b, "/api/v1/volumes").problem(503, "no_primary");
    assert!(detail.contains("no primary"), "{detail}");
    let status = get(b, "/api/v1/cluster/status").json();
    assert_eq!((&status["state"], &status["has_quorum"]), (&json!("failed"), &json!(false)), "{status}");
    assert_eq!(status["replication_lag_ms"], json!(null));
    let told = world.node("b").run(&["status"]);
    assert_eq!(told.status.code(), Some(16), "{told:?}");
    let told = world.cluster("b", &["status"]);
    assert_eq!(told.status.code(), Some(16), "{told:?}");
    assert!(String::from_utf8_lossy(&told.stdout).contains("problem: there is no primary"), "{told:?}");
}
