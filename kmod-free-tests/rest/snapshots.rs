//! Snapshots over REST and NBD: groups, diffs, read-only exports, changed blocks, and lives after deletes.

use serde_json::Value;
use serde_json::json;
use sinter::export::nbd::client::Address;
use sinter::export::nbd::client::Client;

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::http::get;
use crate::http::request;
use crate::http::send;
use crate::start;

fn write(url: &str, volume: &str, offset: u64, data: &str) {
    let body = json!({"offset": offset, "data": data}).to_string();
    let answer = send(url, "POST", &format!("/api/v1/volumes/{volume}/write"), &body);
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
}

fn take(url: &str, volume: &str, name: &str) -> Value {
    let body = json!({ "name": name }).to_string();
    let answer = send(url, "POST", &format!("/api/v1/volumes/{volume}/snapshots"), &body);
    assert_eq!(answer.status, 201, "{}", String::from_utf8_lossy(&answer.body));
    let path = answer.header("location").unwrap();
    assert_eq!(get(url, path).json()["name"], name, "{path}");
    answer.json()
}

fn connect(daemon: &Daemon, export: &str) -> Client {
    Client::connect(&Address::Unix(daemon.socket()), export, 4).unwrap()
}

#[test]
fn a_snapshot_is_a_read_only_export() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:1MiB"]);
    let url = &daemon.url;
    write(url, "v", 0, "AQ==");
    take(url, "v", "s");
    write(url, "v", 0, "Ag==");
    let mut client = connect(&daemon, "v@s");
    assert!(client.read_only());
    let mut byte = [0];
    client.read(0, &mut byte).unwrap();
    assert_eq!(byte, [1]);
    assert_eq!(get(url, "/api/v1/volumes/v/snapshots/s").json()["state"], "in_use");
    request(url, "DELETE", "/api/v1/volumes/v/snapshots/s", None, b"").problem(409, "busy");
    let listed =
        std::process::Command::new("nbdinfo").args(["--list", "--json", &daemon.nbd]).output().unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    let names: Vec<&str> =
        listed["exports"].as_array().unwrap().iter().map(|e| e["export-name"].as_str().unwrap()).collect();
    assert_eq!(names, ["v", "v@s"]);

    assert_eq!(request(url, "DELETE", "/api/v1/volumes/v/snapshots/s?force=true", None, b"").status, 204);
    assert!(client.read(0, &mut byte).is_err(), "the client is let go");
    assert!(Client::connect(&Address::Unix(daemon.socket()), "v@s", 1).is_err());
}

#[test]
fn clients_of_a_deleted_volume_are_disconnected() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:1MiB", "--volume", "w:1MiB"]);
    let url = &daemon.url;
    let id = get(url, "/api/v1/volumes/v").json()["id"].as_str().unwrap().to_owned();
    let (by_name, by_id) = (connect(&daemon, "v"), connect(&daemon, &id));
    let mut other = connect(&daemon, "w");
    assert_eq!(request(url, "DELETE", "/api/v1/volumes/v?force=true", None, b"").status, 204);
    let mut byte = [0];
    for mut client in [by_name, by_id] {
        assert!(client.read(0, &mut byte).is_err());
    }
    other.read(0, &mut byte).unwrap();
    let open = || {
        let page = String::from_utf8(get(url, "/metrics").body).unwrap();
        page.contains("\nsinter_nbd_connections 1\n")
    };
    // The connections end once their threads see it.
    assert!((0..2000).any(|_| open()), "they were not closed");
}

#[test]
fn changed_blocks_are_offered_to_backup_tools() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:8MiB"]);
    let url = &daemon.url;
    write(url, "v", 0, "AQ==");
    take(url, "v", "monday");
    write(url, "v", 1 << 20, "Ag==");
    take(url, "v", "tuesday");
    write(url, "v", 4 << 20, "Aw==");
    let map = |export: &str, context: &str| -> Vec<(u64, u64, u64)> {
        let map = format!("--map={context}");
        let output = std::process::Command::new("nbdinfo")
            .args(["--json", &map, &daemon.uri(export)])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let found: Value = serde_json::from_slice(&output.stdout).unwrap();
        let number = |extent: &Value, field: &str| extent[field].as_u64().unwrap();
        let extents = found.as_array().unwrap().iter();
        extents.map(|e| (number(e, "offset"), number(e, "length"), number(e, "type"))).collect()
    };
    let (block, end) = (4096, 8 << 20);
    let second = (1 << 20, block, 1);
    assert_eq!(
        map("v@tuesday", "sinter:changed-since:monday"),
        [(0, 1 << 20, 0), second, ((1 << 20) + block, end - (1 << 20) - block, 0)]
    );
    assert_eq!(
        map("v", "sinter:changed-since:monday"),
        [
            (0, 1 << 20, 0),
            second,
            ((1 << 20) + block, (3 << 20) - block, 0),
            (4 << 20, block, 1),
            ((4 << 20) + block, end - (4 << 20) - block, 0)
        ]
    );
    assert_eq!(map("v", "sinter:changed-since:v@tuesday").iter().filter(|extent| extent.2 == 1).count(), 1);
    assert_eq!(map("v@tuesday", "base:allocation").len(), 4);
    let script = r#"
import nbd
h = nbd.NBD()
for context in ["base:allocation", "sinter:changed-since:monday", "sinter:changed-since:none"]:
    h.add_meta_context(context)
h.connect_uri(URI)
assert h.can_meta_context("sinter:changed-since:monday") and not h.can_meta_context("sinter:changed-since:none")
found = {}
def see(context, offset, entries, error):
    found[context] = entries
h.block_status(8 << 20, 0, see)
assert sorted(found) == ["base:allocation", "sinter:changed-since:monday"], found
assert found["sinter:changed-since:monday"][:4] == [1 << 20, 0, 4096, 1], found
assert found["base:allocation"][:4] == [4096, 0, (1 << 20) - 4096, 3], found
found.clear()
h.block_status(4096, 1 << 20, see, nbd.CMD_FLAG_REQ_ONE)
assert found["sinter:changed-since:monday"] == [4096, 1] and found["base:allocation"] == [4096, 0], found
h.shutdown()
"#;
    let script = script.replace("URI", &format!("{:?}", daemon.uri("v")));
    let output = std::process::Command::new("/usr/bin/python3").args(["-c", &script]).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let listed = std::process::Command::new("nbdinfo").args(["--json", &daemon.uri("v")]).output().unwrap();
    let listed: Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!(
        listed["exports"][0]["contexts"],
        json!(["base:allocation", "sinter:changed-since:monday", "sinter:changed-since:tuesday"])
    );
}

#[test]
fn a_group_is_taken_or_refused_as_a_whole() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "a:1MiB", "--volume", "b:1MiB"]);
    let url = &daemon.url;
    let group = |body: Value| send(url, "POST", "/api/v1/snapshots", &body.to_string());
    let made = group(json!({"volumes": ["b", "a"], "name": "g", "tags": {"k": "v"}}));
    assert_eq!(made.status, 201);
    let snapshots = made.json()["snapshots"].clone();
    assert_eq!((&snapshots[0]["volume_name"], &snapshots[1]["volume_name"]), (&json!("b"), &json!("a")));
    assert_eq!(snapshots[0]["created_at"], snapshots[1]["created_at"]);
    assert_eq!(snapshots[1]["tags"], json!({"k": "v"}));
    group(json!({"volumes": ["a", "none"]})).problem(404, "not_found");
    group(json!({"volumes": ["a", "a"]})).problem(400, "invalid");
    group(json!({"volumes": []})).problem(400, "invalid");
    group(json!({"volumes": "a"})).problem(400, "invalid");
    group(json!({"volumes": [1]})).problem(400, "invalid");
    group(json!({})).problem(400, "invalid");
    group(json!({"volumes": ["a", "b"], "name": "g"})).problem(409, "exists");
    assert_eq!(get(url, "/api/v1/snapshots").json()["total"], 2);
    assert_eq!(get(url, "/api/v1/status").json()["snapshots"]["total"], 2);
}

#[test]
fn differences_come_in_pages() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:8MiB"]);
    let url = &daemon.url;
    take(url, "v", "s");
    for block in [1u64, 3, 5, 1000] {
        write(url, "v", block * 4096, "AQ==");
    }
    let whole = get(url, "/api/v1/volumes/v/snapshots/s/diff").json();
    let offsets: Vec<u64> =
        whole["ranges"].as_array().unwrap().iter().map(|range| range["offset"].as_u64().unwrap()).collect();
    assert_eq!(offsets, [4096, 3 * 4096, 5 * 4096, 1000 * 4096]);
    assert_eq!(whole["ranges"][0], json!({"offset": 4096, "length": 4096, "kind": "data"}));
    assert!(whole.get("next_offset").is_none());
    let mut pages = Vec::new();
    let mut next = Some(0);
    while let Some(offset) = next {
        let page = get(url, &format!("/api/v1/volumes/v/snapshots/s/diff?limit=1&offset={offset}")).json();
        pages.extend(page["ranges"].as_array().unwrap().clone());
        next = page["next_offset"].as_u64();
    }
    assert_eq!(Value::Array(pages), whole["ranges"]);
    take(url, "v", "t");
    let later = get(url, "/api/v1/volumes/v/snapshots/s/diff?to=v@t").json();
    assert_eq!(later["ranges"], whole["ranges"]);
    for query in ["to=none", "to=v@none"] {
        get(url, &format!("/api/v1/volumes/v/snapshots/s/diff?{query}")).problem(404, "not_found");
    }
    for query in ["to=v@s", "offset=x", "offset=99999999", "limit=0", "from=t"] {
        get(url, &format!("/api/v1/volumes/v/snapshots/s/diff?{query}")).problem(400, "invalid");
    }
}

#[test]
fn snapshots_of_a_deleted_volume_live_on_under_its_id() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:1MiB"]);
    let url = &daemon.url;
    write(url, "v", 0, "AQ==");
    let snapshot = take(url, "v", "s");
    let id = snapshot["volume_id"].as_str().unwrap().to_owned();
    assert_eq!(request(url, "DELETE", "/api/v1/volumes/v", None, b"").status, 204);
    daemon.terminate();
    let daemon = start(&scratch, &[]);
    let url = &daemon.url;
    get(url, &format!("/api/v1/volumes/{id}")).problem(404, "not_found");
    for volume in [id.as_str(), "v"] {
        let list = get(url, &format!("/api/v1/volumes/{volume}/snapshots")).json();
        assert_eq!(list["total"], 1);
        assert_eq!(list["snapshots"][0]["volume_is_deleted"], true);
        assert_eq!(get(url, &format!("/api/v1/volumes/{volume}/snapshots/s")).json()["id"], snapshot["id"]);
    }
    send(url, "POST", &format!("/api/v1/volumes/{id}/snapshots"), "{}").problem(404, "not_found");
    let path = format!("/api/v1/volumes/{id}/snapshots/s");
    let cloned = send(url, "POST", &format!("{path}/clone"), r#"{"name": "c"}"#);
    assert_eq!((cloned.status, &cloned.json()["description"]), (200, &json!("Clone of v@s")));
    let restored = send(url, "POST", &format!("{path}/restore"), r#"{"name": "back"}"#).json();
    assert_eq!(restored["name"], "back");
    assert_eq!(get(url, "/api/v1/volumes/back/read").json()["data"], "AQ==");
    assert_eq!(request(url, "DELETE", &path, None, b"").status, 204);
    get(url, &format!("/api/v1/volumes/{id}/snapshots")).problem(404, "not_found");
    assert_eq!(get(url, "/api/v1/volumes/c/read").json()["data"], "AQ==");
}

#[test]
fn a_snapshot_belongs_to_its_volume() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "a:1MiB", "--volume", "b:1MiB"]);
    let url = &daemon.url;
    let snapshot = take(url, "a", "s");
    let id = snapshot["id"].as_str().unwrap();
    let detail = get(url, &format!("/api/v1/volumes/b/snapshots/{id}")).problem(404, "not_found");
    assert_eq!(detail, format!("Snapshot {id} not found"));
    request(url, "DELETE", &format!("/api/v1/volumes/b/snapshots/{id}"), None, b"").problem(404, "not_found");
    assert_eq!(get(url, &format!("/api/v1/volumes/a/snapshots/{id}")).status, 200);
}
