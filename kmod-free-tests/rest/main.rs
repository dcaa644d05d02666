//! Every REST route of the real daemon: what it answers, how it refuses, and that a refused request
//! has changed nothing.

#![expect(clippy::unwrap_used, reason = "a helper that fails fails its test")]

mod connections;
mod contract;
#[path = "../common/daemon.rs"]
mod daemon;
mod defects;
mod documents;
mod http;
mod refusals;
mod scrub;
mod snapshots;

use std::time::Duration;

use serde_json::Value;
use serde_json::json;
use sinter::export::nbd::client::Address;
use sinter::export::nbd::client::Client;

use daemon::Daemon;
use daemon::Scratch;
use http::Answer;
use http::get;
use http::request;
use http::send;

fn start(scratch: &Scratch, arguments: &[&str]) -> Daemon {
    Daemon::start(scratch.path(), arguments)
}

fn create(url: &str, name: &str, size_gb: f64) -> Value {
    let answer = send(url, "POST", "/api/v1/volumes", &json!({"name": name, "size_gb": size_gb}).to_string());
    assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()
}

#[test]
fn the_array_describes_itself() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "demo:1GiB"]);
    let url = &daemon.url;
    let health = get(url, "/health").json();
    assert_eq!(health["status"], "healthy");
    assert!(health["reduction_ratio"].as_f64().unwrap() >= 1.0);
    assert_eq!(health["cluster_enabled"], false);
    assert_eq!(get(url, "/").json()["name"], "Sinter API");

    let arrays = get(url, "/api/v1/arrays").json();
    let array = &arrays["arrays"][0];
    assert_eq!(array["name"], "sinter");
    assert_eq!(array["model"], "Sinter Virtual Array");
    assert_eq!(array["version"], env!("CARGO_PKG_VERSION"));
    assert!(array["capacity"]["total_bytes"].as_u64().unwrap() > 15 << 30);
    assert!(array["capacity"]["reduction_ratio"].is_number());
    assert_eq!(array["endpoints"]["nbd"], daemon.nbd);
    let socket = array["endpoints"]["nbd_unix"].as_str().unwrap();
    assert!(socket.ends_with("/nbd.sock"), "{socket}");

    let status = get(url, "/api/v1/status").json();
    assert_eq!(status["health"], "healthy");
    assert_eq!(status["problems"], json!([]));
    assert_eq!(status["volumes"]["total"], 1);
    assert_eq!(status["volumes"]["provisioned_bytes"], 1u64 << 30);
    assert_eq!(status["mounts"], json!([]));
    assert!(status["time"].as_str().unwrap().ends_with('Z'));

    let reduction = get(url, "/api/v1/metrics/reduction").json();
    for (object, fields) in [
        ("deduplication", &["ratio", "unique_blocks", "duplicate_blocks"][..]),
        ("compression", &["ratio", "algorithm"]),
        ("pattern_removal", &["zero_blocks_found", "pattern_blocks_found"]),
        ("bytes_saved", &["pattern", "dedupe", "compression"]),
    ] {
        for field in fields {
            assert!(!reduction[object][field].is_null(), "{object}.{field}");
        }
    }
    assert!(reduction["overall_reduction_ratio"].is_number());
}

#[test]
fn metrics_are_a_page_for_prometheus() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "demo:1GiB"]);
    get(&daemon.url, "/health");
    let page = get(&daemon.url, "/metrics");
    assert_eq!(page.status, 200);
    assert!(page.headers.contains("content-type: text/plain; version=0.0.4"), "{}", page.headers);
    let text = String::from_utf8(page.body).unwrap();
    assert!(text.contains("\nsinter_volume_read_bytes_total{volume=\"demo\"} 0\n"), "{text}");
    assert!(
        text.contains("sinter_request_duration_seconds_count{protocol=\"rest\",op=\"query\"} 1\n"),
        "{text}"
    );
    assert!(text.contains("sinter_pool_capacity_bytes "), "{text}");
    for line in text.lines().filter(|line| !line.starts_with('#')) {
        let value = line.rsplit(' ').next().unwrap();
        assert!(value.parse::<f64>().is_ok(), "{line}");
    }
}

#[test]
fn a_volume_lives() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &[]);
    let url = &daemon.url;
    let body = json!({"name": "production-db", "size_gb": 100, "description": "PostgreSQL data volume",
        "tags": {"env": "production", "app": "postgres"}});
    let answer = send(url, "POST", "/api/v1/volumes", &body.to_string());
    assert_eq!(answer.status, 201);
    let volume = answer.json();
    assert_eq!(volume["name"], "production-db");
    assert_eq!(volume["size_bytes"], 107_374_182_400u64);
    assert_eq!(volume["used_bytes"], 0);
    assert_eq!(volume["state"], "available");
    assert_eq!(volume["description"], "PostgreSQL data volume");
    assert_eq!(volume["tags"], json!({"env": "production", "app": "postgres"}));
    assert_eq!(volume["reduction_ratio"], 1.0);
    assert_eq!(volume["created_at"], volume["updated_at"]);
    assert!(volume["created_at"].as_str().unwrap().ends_with('Z'));
    let id = volume["id"].as_str().unwrap();
    assert_eq!(id.len(), 36);
    assert_eq!(answer.header("location"), Some(format!("/api/v1/volumes/{id}").as_str()));

    for which in [id, "production-db"] {
        assert_eq!(get(url, &format!("/api/v1/volumes/{which}")).json(), volume);
    }
    let list = get(url, "/api/v1/volumes").json();
    assert_eq!(list, json!({"volumes": [volume], "total": 1}));

    let path = format!("/api/v1/volumes/{id}");
    let renamed = send(url, "PUT", &path, r#"{"name": "db", "tags": {"tier": "1"}}"#).json();
    assert_eq!(renamed["name"], "db");
    assert_eq!(renamed["description"], "PostgreSQL data volume");
    assert_eq!(renamed["tags"], json!({"tier": "1"}));
    assert!(renamed["updated_at"].as_str() >= volume["updated_at"].as_str());
    assert_eq!(get(url, "/api/v1/volumes/production-db").status, 404);

    let resized = send(url, "POST", "/api/v1/volumes/db/resize", r#"{"size_gb": 200}"#);
    assert_eq!((resized.status, &resized.json()["size_bytes"]), (200, &json!(200u64 << 30)));

    let deleted = request(url, "DELETE", &path, None, b"");
    assert_eq!((deleted.status, deleted.body.len()), (204, 0));
    let detail = get(url, &path).problem(404, "not_found");
    assert_eq!(detail, format!("Volume {id} not found"));
    assert_eq!(get(url, "/api/v1/volumes").json(), json!({"volumes": [], "total": 0}));
}

#[test]
fn a_connected_volume_is_only_deleted_by_force() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "demo:1MiB"]);
    let url = &daemon.url;
    let mut client = Client::connect(&Address::Unix(daemon.socket()), "demo", 1).unwrap();
    assert_eq!(get(url, "/api/v1/volumes/demo").json()["state"], "in_use");
    request(url, "DELETE", "/api/v1/volumes/demo", None, b"").problem(409, "busy");
    client.write(0, &[7; 4096]).unwrap();
    client.flush().unwrap();
    assert_eq!(request(url, "DELETE", "/api/v1/volumes/demo?force=true", None, b"").status, 204);
    assert!(client.write(0, &[8; 4096]).and_then(|()| client.flush()).is_err());
    get(url, "/api/v1/volumes/demo").problem(404, "not_found");
}

#[test]
fn data_is_written_and_read_as_documented() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "demo:1MiB"]);
    let url = &daemon.url;
    let write = |body: Value| send(url, "POST", "/api/v1/volumes/demo/write", &body.to_string());
    let written = write(json!({"offset": 0, "data": "SGVsbG8gV29ybGQh"}));
    assert_eq!(written.status, 200);
    let written = written.json();
    assert_eq!((&written["offset"], &written["size"]), (&json!(0), &json!(12)));
    for field in ["volume_id", "reduction_ratio", "was_deduplicated", "was_compressed"] {
        assert!(!written[field].is_null(), "{field}");
    }
    let read = get(url, "/api/v1/volumes/demo/read?offset=0").json();
    assert_eq!((&read["size"], &read["data"]), (&json!(12), &json!("SGVsbG8gV29ybGQh")));
    assert_eq!(read["volume_id"], written["volume_id"]);
    assert_eq!(get(url, "/api/v1/volumes/demo/read").json(), read);
    let exact = get(url, "/api/v1/volumes/demo/read?offset=6&length=8").json();
    assert_eq!((&exact["size"], &exact["data"]), (&json!(8), &json!("V29ybGQhAAA=")));

    // The rest of the last block keeps what it held.
    assert_eq!(write(json!({"offset": 0, "data": "Sg=="})).status, 200);
    assert_eq!(get(url, "/api/v1/volumes/demo/read").json()["data"], "SmVsbG8gV29ybGQh");
    assert_eq!(get(url, "/api/v1/volumes/demo").json()["used_bytes"], 4096);

    let detail = get(url, "/api/v1/volumes/demo/read?offset=8192").problem(404, "not_found");
    assert_eq!(detail, "Data not found at offset 8192");
    let detail = write(json!({"offset": 100, "data": "SGVsbG8="})).problem(400, "invalid");
    assert_eq!(detail, "Offset must be aligned to block size (4096)");
    let detail = write(json!({"offset": 4096, "data": "SGVsbG8"})).problem(400, "invalid");
    assert_eq!(detail, "Invalid base64 data");
    let detail = write(json!({"offset": 1 << 20, "data": "SGVsbG8="})).problem(400, "invalid");
    assert_eq!(detail, "Write exceeds volume size");
    write(json!({"offset": u64::MAX - 4095, "data": "SGVsbG8="})).problem(400, "invalid");
    write(json!({"offset": -4096, "data": "SGVsbG8="})).problem(400, "invalid");
    write(json!({"offset": 0})).problem(400, "invalid");
    let detail = send(url, "POST", "/api/v1/volumes/none/write", r#"{"offset":0,"data":""}"#)
        .problem(404, "not_found");
    assert_eq!(detail, "Volume none not found");
    for query in [
        "offset=1",
        "offset=-1",
        "offset=x",
        "offset=0&length=1048577",
        "offset=0&offset=0",
        "of=0",
        "length=99999999",
    ] {
        get(url, &format!("/api/v1/volumes/demo/read?{query}")).problem(400, "invalid");
    }
    assert_eq!(get(url, "/api/v1/volumes/demo/read").json()["data"], "SmVsbG8gV29ybGQh");
    assert_eq!(get(url, "/api/v1/volumes/demo").json()["used_bytes"], 4096);
}

#[test]
fn bad_requests_change_nothing() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "one:1GiB", "--volume", "two:1GiB"]);
    let url = &daemon.url;
    let before = get(url, "/api/v1/volumes").json();
    let long = "x".repeat(256);
    let uuid = "550e8400-e29b-41d4-a716-446655440000";
    let volumes = "/api/v1/volumes";
    for (method, path, body) in [
        ("POST", volumes, "{".to_owned()),
        ("POST", volumes, "\"name\"".to_owned()),
        ("POST", volumes, json!({"name": "", "size_gb": 1}).to_string()),
        ("POST", volumes, json!({"name": long, "size_gb": 1}).to_string()),
        ("POST", volumes, json!({"name": "a@b", "size_gb": 1}).to_string()),
        ("POST", volumes, json!({"name": "a/b", "size_gb": 1}).to_string()),
        ("POST", volumes, json!({"name": "..", "size_gb": 1}).to_string()),
        ("POST", volumes, json!({"name": "a\nb", "size_gb": 1}).to_string()),
        ("POST", volumes, json!({"name": " ", "size_gb": 1}).to_string()),
        ("POST", volumes, json!({"name": "a ", "size_gb": 1}).to_string()),
        ("POST", "/api/v1/volumes/one/snapshots", json!({"name": " s"}).to_string()),
        ("POST", "/api/v1/volumes/one/clone", json!({"name": "\u{a0}"}).to_string()),
        ("POST", volumes, json!({"name": uuid, "size_gb": 1}).to_string()),
        ("POST", volumes, json!({"name": "x", "size_gb": 0}).to_string()),
        ("POST", volumes, json!({"name": "x", "size_gb": 1025}).to_string()),
        ("POST", volumes, json!({"name": "x", "size_gb": "1"}).to_string()),
        ("POST", volumes, json!({"name": "x", "size_gb": 1, "tags": {"k": "v".repeat(3501)}}).to_string()),
        ("PUT", "/api/v1/volumes/one", json!({"name": "a/b"}).to_string()),
        ("PUT", "/api/v1/volumes/one", json!({"size_gb": 2}).to_string()),
        ("PUT", "/api/v1/volumes/one", json!({"tags": {"k": 1}}).to_string()),
        ("POST", "/api/v1/volumes/one/resize", json!({"size_gb": 1}).to_string()),
        ("POST", "/api/v1/volumes/one/resize", json!({"size_gb": 0.5}).to_string()),
        ("POST", "/api/v1/volumes/one/resize", json!({}).to_string()),
    ] {
        let answer = send(url, method, path, &body);
        assert_eq!(answer.status, 400, "{method} {path} {body}");
        answer.problem(400, "invalid");
    }
    let wrong = send(url, "POST", volumes, r#"{"name": 1, "size_gb": -1, "colour": "red"}"#).json();
    let fields: Vec<&str> =
        wrong["errors"].as_array().unwrap().iter().map(|e| e["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["name", "size_gb", "colour"]);

    send(url, "POST", volumes, &json!({"name": "one", "size_gb": 1}).to_string()).problem(409, "exists");
    send(url, "PUT", "/api/v1/volumes/one", r#"{"name": "two"}"#).problem(409, "exists");
    send(url, "PUT", "/api/v1/volumes/none", "{}").problem(404, "not_found");
    request(url, "DELETE", "/api/v1/volumes/none", None, b"").problem(404, "not_found");
    request(url, "DELETE", "/api/v1/volumes/one?force=perhaps", None, b"").problem(400, "invalid");
    request(url, "POST", volumes, None, b"{}").problem(415, "unsupported_media_type");
    request(url, "POST", volumes, Some("text/plain"), b"{}").problem(415, "unsupported_media_type");
    let large = vec![b' '; 1 << 20];
    request(url, "POST", volumes, Some("application/json"), &large).problem(413, "payload_too_large");
    assert_eq!(get(url, volumes).json(), before);
}

#[test]
fn unknown_routes_and_methods_are_problems_too() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &[]);
    let url = &daemon.url;
    for path in ["/nowhere", "/api/v1", "/api/v1/volumes/a/b/c", "/api/v1/cluster/replication/apply"] {
        get(url, path).problem(404, "not_found");
    }
    for (method, path) in [
        ("DELETE", "/health"),
        ("PATCH", "/api/v1/volumes"),
        ("POST", "/api/v1/volumes/x"),
        ("GET", "/api/v1/volumes/x/resize"),
        ("POST", "/metrics"),
    ] {
        request(url, method, path, None, b"").problem(405, "method_not_allowed");
    }
    get(url, "/api/v1/volumes/%ff").problem(400, "invalid");
    get(url, "/api/v1/volumes?limit=0").problem(400, "invalid");
    get(url, "/api/v1/volumes?cursor=%21").problem(400, "invalid");
    get(url, "/api/v1/status?verbose=1").problem(400, "invalid");
}

#[test]
fn lists_come_in_pages() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &[]);
    let url = &daemon.url;
    for number in 0..7 {
        create(url, &format!("v{number}"), 0.001);
    }
    assert_eq!(get(url, "/api/v1/mounts?limit=1").json(), json!({"mounts": [], "total": 0}));
    let whole = get(url, "/api/v1/volumes").json();
    assert_eq!(whole["total"], 7);
    assert!(whole.get("next_cursor").is_none());
    let mut seen = Vec::new();
    let mut path = "/api/v1/volumes?limit=3".to_owned();
    for page in 0.. {
        let answer = get(url, &path).json();
        seen.extend(answer["volumes"].as_array().unwrap().clone());
        if page == 0 {
            // What goes away between two pages neither shifts nor repeats the rest.
            assert_eq!(request(url, "DELETE", "/api/v1/volumes/v2", None, b"").status, 204);
        }
        match answer["next_cursor"].as_str() {
            Some(cursor) => path = format!("/api/v1/volumes?limit=3&cursor={cursor}"),
            None => break,
        }
    }
    assert_eq!(Value::Array(seen), whole["volumes"]);
}

#[test]
#[expect(clippy::disallowed_methods, reason = "measures how long the real daemon takes to end")]
fn hostile_requests_leave_the_daemon_alive() {
    use std::io::Write;
    let scratch = Scratch::new();
    let daemon = start(&scratch, &[]);
    let address = daemon.url.strip_prefix("http://").unwrap();
    let deep = format!("{{\"tags\": {}", "[".repeat(100_000));
    send(&daemon.url, "POST", "/api/v1/volumes", &deep).problem(400, "invalid");
    let mut held = Vec::new();
    for bytes in [
        &b"GET"[..],
        b"\0\xff\xfe\r\n\r\n",
        b"POST /api/v1/volumes HTTP/1.1\r\nContent-Length: 99999999999999999999\r\n\r\n",
    ] {
        let mut stream = std::net::TcpStream::connect(address).unwrap();
        stream.write_all(bytes).unwrap();
        held.push(stream);
    }
    assert_eq!(get(&daemon.url, "/health").status, 200);
    let ended: Answer = get(&daemon.url, "/");
    assert_eq!(ended.status, 200);
    let asked = std::time::Instant::now();
    assert!(daemon.terminate().success());
    assert!(asked.elapsed() < Duration::from_secs(8), "half a request does not hold up the end");
}
