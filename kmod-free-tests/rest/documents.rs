//! The `OpenAPI` document and its pages, the analytics, and what outlives a restart.

use std::collections::BTreeSet;

use serde_json::Value;
use serde_json::json;

use crate::daemon::Scratch;
use crate::http::get;
use crate::http::send;
use crate::start;

#[test]
fn the_document_describes_every_route() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &[]);
    let url = &daemon.url;
    let answer = get(url, "/openapi.json");
    assert!(answer.headers.contains("content-type: application/json"), "{}", answer.headers);
    let document = answer.json();
    assert_eq!(document["openapi"], "3.1.0");
    let found: BTreeSet<String> = document["paths"]
        .as_object()
        .unwrap()
        .iter()
        .flat_map(|(path, operations)| {
            operations
                .as_object()
                .unwrap()
                .keys()
                .map(move |method| format!("{} {path}", method.to_uppercase()))
        })
        .collect();
    for route in [
        "GET /",
        "GET /health",
        "GET /api/v1/arrays",
        "GET /api/v1/status",
        "GET /api/v1/volumes",
        "POST /api/v1/volumes",
        "GET /api/v1/volumes/{volume}",
        "PUT /api/v1/volumes/{volume}",
        "DELETE /api/v1/volumes/{volume}",
        "POST /api/v1/volumes/{volume}/resize",
        "POST /api/v1/volumes/{volume}/clone",
        "POST /api/v1/volumes/{volume}/write",
        "GET /api/v1/volumes/{volume}/read",
        "POST /api/v1/volumes/{volume}/snapshots",
        "GET /api/v1/volumes/{volume}/snapshots",
        "GET /api/v1/snapshots",
        "POST /api/v1/snapshots",
        "GET /api/v1/volumes/{volume}/snapshots/{snapshot}",
        "DELETE /api/v1/volumes/{volume}/snapshots/{snapshot}",
        "POST /api/v1/volumes/{volume}/snapshots/{snapshot}/restore",
        "POST /api/v1/volumes/{volume}/snapshots/{snapshot}/clone",
        "GET /api/v1/volumes/{volume}/snapshots/{snapshot}/diff",
        "GET /api/v1/mounts",
        "POST /api/v1/mounts",
        "DELETE /api/v1/mounts/{mountpoint}",
        "GET /api/v1/metrics",
        "GET /api/v1/metrics/reduction",
        "GET /api/v1/metrics/flash",
        "GET /api/v1/metrics/volumes",
        "GET /api/v1/metrics/replication",
        "GET /api/v1/cluster/status",
        "GET /api/v1/cluster/replication",
        "POST /api/v1/cluster/peers",
        "DELETE /api/v1/cluster/peers/{node}",
        "POST /api/v1/cluster/failover",
        "POST /api/v1/cluster/failback",
        "POST /api/v1/cluster/heartbeat",
        "GET /api/v1/analytics/capacity/forecast",
        "GET /api/v1/analytics/health",
        "GET /api/v1/analytics/temperature/{volume}",
        "GET /api/v1/analytics/tiering/recommendations",
    ] {
        assert!(found.contains(route), "{route}");
    }
    for operation in
        document["paths"].as_object().unwrap().values().flat_map(|path| path.as_object().unwrap().values())
    {
        let responses = operation["responses"].as_object().unwrap();
        assert!(responses.contains_key("400") && !responses.contains_key("422"), "{operation}");
    }
}

#[test]
fn the_pages_load_nothing_from_elsewhere() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &[]);
    for path in ["/docs", "/redoc"] {
        let answer = get(&daemon.url, path);
        assert_eq!(answer.status, 200);
        assert!(answer.headers.contains("content-type: text/html"), "{}", answer.headers);
        let text = String::from_utf8(answer.body).unwrap();
        assert!(text.len() > 500_000 && text.contains("/openapi.json"), "{path}");
        for outside in ["<script src", "<link rel=\"stylesheet\" href", "@import url(http", "<img src=\"http"]
        {
            assert!(!text.contains(outside), "{path} holds {outside}");
        }
    }
}

#[test]
fn analytics_are_made_from_what_was_seen() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "used:1MiB", "--volume", "idle:1MiB"]);
    let url = &daemon.url;
    let body = r#"{"offset": 0, "data": "AQ=="}"#;
    assert_eq!(send(url, "POST", "/api/v1/volumes/used/write", body).status, 200);

    let forecast = get(url, "/api/v1/analytics/capacity/forecast").json();
    assert_eq!(forecast["samples"], 1);
    assert_eq!(forecast["confidence"], 0.0, "one sample is no trend");
    let used = &forecast["current"]["used_bytes"];
    for days in ["7_days", "30_days", "90_days"] {
        assert_eq!(&forecast["predictions"][days], used, "{days}");
    }
    for field in ["days_until_80_percent", "days_until_90_percent", "days_until_full"] {
        assert_eq!(forecast["thresholds"].get(field), Some(&Value::Null), "{field}");
    }
    assert_eq!(forecast["growth_rate"], json!({"bytes_per_day": 0.0, "gb_per_day": 0.0}));
    assert!(forecast["current"]["utilization_percent"].as_f64().unwrap() < 1.0);

    let health = get(url, "/api/v1/analytics/health").json();
    assert_eq!((&health["status"], &health["recommendations"]), (&json!("healthy"), &json!([])));
    assert!(health["overall_score"].as_f64().unwrap() > 99.0);
    assert_eq!(health["predictions"]["end_of_life_days"], Value::Null);
    assert_eq!(health["wear_metrics"]["rated_cycles"], 3000);

    let temperature = get(url, "/api/v1/analytics/temperature/used").json();
    assert_eq!((&temperature["temperature"], &temperature["writes"]), (&json!("hot"), &json!(1)));
    assert!(temperature["last_access"].as_str().unwrap().ends_with('Z'));
    let idle = get(url, "/api/v1/analytics/temperature/idle").json();
    assert_eq!((&idle["temperature"], &idle["last_access"]), (&json!("frozen"), &Value::Null));
    get(url, "/api/v1/analytics/temperature/none").problem(404, "not_found");

    let tiering = get(url, "/api/v1/analytics/tiering/recommendations").json();
    assert_eq!(tiering["total"], 2);
    let first = &tiering["recommendations"][0];
    assert_eq!((&first["volume_name"], &first["recommended_tier"]), (&json!("used"), &json!("nvme")));
    assert_eq!(tiering["recommendations"][1]["recommended_tier"], "archive");
}

#[test]
fn what_was_seen_outlives_a_restart() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:1MiB"]);
    let body = r#"{"offset": 0, "data": "AQ=="}"#;
    assert_eq!(send(&daemon.url, "POST", "/api/v1/volumes/v/write", body).status, 200);
    assert!(daemon.terminate().success());

    // Samples of the last two weeks: a gibibyte more each week.
    let path = scratch.join("history.json");
    let mut history: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let now = history["samples"][0]["at_ms"].as_u64().unwrap();
    let day = 24 * 60 * 60 * 1000;
    let sample = |days: u64| json!({"at_ms": now - days * day, "live_bytes": (14 - days) << 30, "erases": (14 - days) * 70});
    history["samples"] = (1..=14).rev().map(sample).collect();
    std::fs::write(&path, history.to_string()).unwrap();

    let daemon = start(&scratch, &[]);
    let url = &daemon.url;
    assert_eq!(get(url, "/api/v1/analytics/temperature/v").json()["temperature"], "hot");
    let forecast = get(url, "/api/v1/analytics/capacity/forecast").json();
    assert_eq!(forecast["samples"], 15);
    assert!((14.0..14.1).contains(&forecast["observed_days"].as_f64().unwrap()), "{forecast}");
    assert!(forecast["growth_rate"]["bytes_per_day"].as_f64().unwrap() > 0.0, "{forecast}");
    assert!((0.1..=1.0).contains(&forecast["confidence"].as_f64().unwrap()), "{forecast}");
    assert!(forecast["thresholds"]["days_until_full"].as_f64().unwrap() > 0.0, "{forecast}");
    let health = get(url, "/api/v1/analytics/health").json();
    assert!(health["wear_metrics"]["erases_per_day"].as_f64().unwrap() > 0.0, "{health}");
    assert!(daemon.terminate().success());

    std::fs::write(&path, b"{\"samples\": [{\"at_ms\": -1}]}").unwrap();
    let daemon = start(&scratch, &[]);
    let forecast = get(&daemon.url, "/api/v1/analytics/capacity/forecast").json();
    assert_eq!(forecast["samples"], 1, "what cannot be read is begun anew");
}
