//! Bad input on every route: the right status, a problem that names what is wrong, and nothing changed.

use serde_json::Value;
use serde_json::json;

use crate::daemon::Scratch;
use crate::http::Answer;
use crate::http::get;
use crate::http::head_and_body;
use crate::http::request;
use crate::http::send;
use crate::start;

/// All that a refused request could have changed.
fn state(url: &str) -> Value {
    json!([get(url, "/api/v1/volumes").json(), get(url, "/api/v1/snapshots").json()])
}

/// The operations of the document: method, path with names filled in, whether it takes a body.
fn operations(url: &str, volume: &str, snapshot: &str) -> Vec<(String, String, bool)> {
    let document = get(url, "/openapi.json").json();
    let mut found = Vec::new();
    for (path, operations) in document["paths"].as_object().unwrap() {
        let path = path.replace("{volume}", volume).replace("{snapshot}", snapshot).replace("{node}", "n");
        let path = path.replace("{mountpoint}", "%2Fnowhere");
        for (method, operation) in operations.as_object().unwrap() {
            found.push((method.to_uppercase(), path.clone(), operation.get("requestBody").is_some()));
        }
    }
    assert!(found.len() >= 35, "{}", found.len());
    found
}

#[test]
fn bad_input_on_every_route_changes_nothing() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:1GiB"]);
    let url = &daemon.url;
    assert_eq!(send(url, "POST", "/api/v1/volumes/v/snapshots", r#"{"name": "s"}"#).status, 201);
    let before = state(url);
    for (method, path, has_body) in operations(url, "v", "s") {
        let say = |answer: &Answer| format!("{method} {path}: {}", String::from_utf8_lossy(&answer.body));
        let unknown = send(url, &method, &format!("{path}?colour=red"), "{}");
        assert!(path == "/health" || unknown.status == 400, "{}", say(&unknown));
        let twice = send(url, &method, &format!("{path}?force=true&force=true"), "{}");
        assert!(path == "/health" || twice.status == 400, "{}", say(&twice));
        if !has_body {
            continue;
        }
        for body in ["", "{", "[]", "null", "1", "\"x\"", "{\"colour\": \"red\"}", "{} {}", "{\"name\": 1}"] {
            let answer = send(url, &method, &path, body);
            assert_eq!(answer.status, 400, "{body} to {}", say(&answer));
            answer.problem(400, "invalid");
        }
        request(url, &method, &path, Some("application/json"), b"{\"name\": \"\xff\"}")
            .problem(400, "invalid");
        request(url, &method, &path, None, b"{}").problem(415, "unsupported_media_type");
        request(url, &method, &path, Some("text/plain"), b"{}").problem(415, "unsupported_media_type");
        request(url, &method, &path, Some("application/x-www-form-urlencoded"), b"{}")
            .problem(415, "unsupported_media_type");
        let claimed = head_and_body(
            url,
            &format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
                 Content-Length: 99999999999\r\n\r\n"
            ),
        );
        claimed.problem(413, "payload_too_large");
    }
    for (method, path, has_body) in operations(url, "none", "none") {
        if !path.contains("none") {
            continue;
        }
        let bodies: &[&str] = if has_body {
            &[
                r#"{"name": "x"}"#,
                r#"{"size_gb": 2}"#,
                r#"{"offset": 0, "data": ""}"#,
                r#"{"target_volume_id": null}"#,
                "{}",
            ]
        } else {
            &[""]
        };
        let statuses: Vec<u16> = bodies.iter().map(|body| send(url, &method, &path, body).status).collect();
        assert!(statuses.contains(&404), "{method} {path}: {statuses:?}");
        assert!(statuses.iter().all(|status| matches!(status, 400 | 404)), "{method} {path}: {statuses:?}");
    }
    let with_s = operations(url, "v", "none");
    for (method, path, has_body) in with_s.into_iter().filter(|(_, path, _)| path.contains("none")) {
        let body =
            if has_body { if path.ends_with("clone") { r#"{"name": "x"}"# } else { "{}" } } else { "" };
        let detail = send(url, &method, &path, body).problem(404, "not_found");
        assert_eq!(detail, "Snapshot none not found", "{method} {path}");
    }
    assert_eq!(state(url), before);
}

#[test]
fn bad_values_are_refused_with_their_fields() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:1GiB", "--volume", "w:1GiB"]);
    let url = &daemon.url;
    assert_eq!(send(url, "POST", "/api/v1/volumes/v/snapshots", r#"{"name": "s"}"#).status, 201);
    let before = state(url);
    let (snapshots, clone, restore) =
        ("/api/v1/volumes/v/snapshots", "/api/v1/volumes/v/clone", "/api/v1/volumes/v/snapshots/s/restore");
    for (path, body) in [
        (snapshots, json!({"name": "a@b"})),
        (snapshots, json!({"name": ""})),
        (snapshots, json!({"name": "x".repeat(256)})),
        (snapshots, json!({"name": "550e8400-e29b-41d4-a716-446655440000"})),
        (snapshots, json!({"name": "x", "description": "d".repeat(3501)})),
        (clone, json!({"name": ".."})),
        (clone, json!({"name": "a\u{7}b"})),
        (clone, json!({"name": "x", "description": 5})),
        (clone, json!({"name": "x", "size_gb": 1})),
        ("/api/v1/volumes/v/snapshots/s/clone", json!({"name": "a/b"})),
        (restore, json!({"name": "a/b"})),
        (restore, json!({"target_volume_id": 7})),
        (restore, json!({"target_volume_id": "w", "name": "x"})),
        ("/api/v1/cluster/peers", json!({"node_id": "n", "url": "ftp://x"})),
        ("/api/v1/cluster/peers", json!({"node_id": "n"})),
        ("/api/v1/cluster/peers", json!({"node_id": "", "url": "http://node-2:8000"})),
        ("/api/v1/cluster/failover", json!({"target_node": 1})),
        ("/api/v1/cluster/heartbeat", json!({"source_node": "n", "timestamp": "now"})),
    ] {
        send(url, "POST", path, &body.to_string()).problem(400, "invalid");
    }
    send(url, "POST", snapshots, r#"{"name": "s"}"#).problem(409, "exists");
    send(url, "POST", clone, r#"{"name": "w"}"#).problem(409, "exists");
    send(url, "POST", restore, r#"{"name": "w"}"#).problem(409, "exists");
    send(url, "POST", restore, r#"{"target_volume_id": "none"}"#).problem(404, "not_found");
    let wrong = send(url, "POST", "/api/v1/cluster/peers", r#"{"url": 1, "x": 2}"#).json();
    let fields: Vec<&str> =
        wrong["errors"].as_array().unwrap().iter().map(|error| error["field"].as_str().unwrap()).collect();
    assert_eq!(fields, ["node_id", "url", "x"]);
    assert_eq!(state(url), before);
}

#[test]
fn a_change_can_be_made_conditional() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:1GiB"]);
    let url = &daemon.url;
    let path = "/api/v1/volumes/v";
    let change = |method: &str, path: &str, body: &str, tag: &str| {
        let length = body.len();
        head_and_body(
            url,
            &format!(
                "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nIf-Match: {tag}\r\n\
                 Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
            ),
        )
    };
    let first = tag(&get(url, path));
    assert_eq!(tag(&get(url, path)), first, "looking changes nothing");
    assert_eq!(send(url, "POST", "/api/v1/volumes/v/write", r#"{"offset": 0, "data": "AQ=="}"#).status, 200);
    assert_eq!(tag(&get(url, path)), first, "data is not what an administrator changes");

    let changed = change("PUT", path, r#"{"description": "one"}"#, &first);
    assert_eq!(changed.status, 200);
    let second = tag(&changed);
    assert_ne!(first, second);
    let resize = "/api/v1/volumes/v/resize";
    for stale in [first.clone(), format!("W/{second}"), "\"nothing\"".to_owned()] {
        change("PUT", path, r#"{"description": "two"}"#, &stale).problem(412, "changed");
        change("POST", resize, r#"{"size_gb": 2}"#, &stale).problem(412, "changed");
        change("DELETE", path, "", &stale).problem(412, "changed");
    }
    for wrong in ["", "x", "\"a\" \"b\""] {
        change("PUT", path, r#"{"description": "two"}"#, wrong).problem(400, "invalid");
    }
    assert_eq!(get(url, path).json()["description"], "one");
    write_and_snapshots_are_conditional(url, &change, &first, &second);
    let both = format!("{first}, {second}");
    let third = change("POST", resize, r#"{"size_gb": 2}"#, &both);
    assert_eq!(third.status, 200);
    assert_eq!(change("PUT", path, "{}", "*").status, 200);
    assert_eq!(tag(&get(url, path)), tag(&third), "what changes nothing is no change");
    assert_eq!(change("PUT", path, r#"{"name": "v", "description": "one"}"#, &tag(&third)).status, 200);
    assert_eq!(get(url, path).json()["updated_at"], third.json()["updated_at"]);
    assert_eq!(change("DELETE", path, "", &tag(&get(url, path))).status, 204);
    change("PUT", path, "{}", &second).problem(404, "not_found");
}

fn tag(answer: &Answer) -> String {
    let header = answer.headers.lines().find_map(|line| line.strip_prefix("etag: "));
    header.expect("a volume or snapshot has an entity tag").to_owned()
}

/// Volume `v` had the tag `first`, and has `second`.
fn write_and_snapshots_are_conditional(
    url: &str,
    change: &dyn Fn(&str, &str, &str, &str) -> Answer,
    first: &str,
    second: &str,
) {
    let made = send(url, "POST", "/api/v1/volumes/v/snapshots", r#"{"name": "s"}"#);
    let snapshot = "/api/v1/volumes/v/snapshots/s";
    let of_snapshot = tag(&made);
    assert_eq!(tag(&get(url, snapshot)), of_snapshot);
    let before = [get(url, "/api/v1/volumes").json(), get(url, "/api/v1/snapshots").json()];
    let (write, data) = ("/api/v1/volumes/v/write", r#"{"offset": 4096, "data": "Ag=="}"#);
    let (clone, restore) = (format!("{snapshot}/clone"), format!("{snapshot}/restore"));
    let onto = r#"{"target_volume_id": "v"}"#;
    for (method, path, body, good) in [
        ("POST", write, data, second),
        ("POST", "/api/v1/volumes/v/clone", r#"{"name": "c"}"#, second),
        ("POST", &clone, r#"{"name": "d"}"#, &of_snapshot),
        ("POST", &restore, "{}", &of_snapshot),
        ("DELETE", snapshot, "", &of_snapshot),
        ("POST", &restore, onto, second),
    ] {
        for stale in [first, "\"nothing\"", if good == second { &of_snapshot } else { second }] {
            change(method, path, body, stale).problem(412, "changed");
        }
    }
    assert_eq!([get(url, "/api/v1/volumes").json(), get(url, "/api/v1/snapshots").json()], before);
    assert_eq!(change("POST", write, data, second).status, 200);
    assert_eq!(change("POST", "/api/v1/volumes/v/clone", r#"{"name": "c"}"#, second).status, 200);
    assert_eq!(change("POST", &clone, r#"{"name": "d"}"#, &of_snapshot).status, 200);
    assert_eq!(change("POST", &restore, "{}", &of_snapshot).status, 200);
    assert_eq!(change("DELETE", snapshot, "", &of_snapshot).status, 204);
}
