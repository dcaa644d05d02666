//! `/api/v1/scrub` and `sinter scrub`.

use std::time::Duration;

use crate::daemon::Scratch;
use crate::http::get;
use crate::http::request;
use crate::start;

#[test]
fn a_scrub_is_started_watched_and_stopped() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "demo:1GiB"]);
    let url = &daemon.url;
    assert_eq!(get(url, "/api/v1/scrub").json()["state"], "never");
    let stopped = request(url, "DELETE", "/api/v1/scrub", None, b"");
    assert_eq!((stopped.status, stopped.json()["state"].as_str()), (200, Some("never")));
    let started = request(url, "POST", "/api/v1/scrub", None, b"");
    assert_eq!((started.status, started.json()["state"].as_str()), (200, Some("running")));
    let finished = (0..200).map(|_| {
        std::thread::park_timeout(Duration::from_millis(50));
        get(url, "/api/v1/scrub").json()
    });
    let scrub =
        { finished }.find(|scrub| scrub["state"] == "finished").expect("a scrub of next to nothing ends");
    assert_eq!((scrub["errors"].as_u64(), scrub["damage"].as_array().unwrap().len()), (Some(0), 0));
    assert!(scrub["pages_verified"].as_u64().unwrap() > 0, "{scrub}");
    get(url, "/api/v1/scrub?fast=1").problem(400, "invalid");
    request(url, "PUT", "/api/v1/scrub", None, b"").problem(405, "method_not_allowed");
}
