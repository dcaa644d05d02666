//! What the original array got wrong, as far as REST shows it: a test for each. (That clones and snapshots
//! outlive their source is in `snapshots`; what concerns several nodes is not there yet.)

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::json;

use crate::daemon::Scratch;
use crate::http::get;
use crate::http::request;
use crate::http::send;
use crate::start;

/// Bytes that neither repeat nor compress.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn write(url: &str, volume: &str, offset: u64, data: &[u8]) -> Value {
    let body = json!({"offset": offset, "data": STANDARD.encode(data)}).to_string();
    let answer = send(url, "POST", &format!("/api/v1/volumes/{volume}/write"), &body);
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()
}

fn read(url: &str, volume: &str, query: &str) -> Vec<u8> {
    let answer = get(url, &format!("/api/v1/volumes/{volume}/read?{query}")).json();
    STANDARD.decode(answer["data"].as_str().unwrap()).unwrap()
}

/// Asks until the answer is as it should be; the work is done in the background.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let pause = (std::sync::Mutex::new(()), std::sync::Condvar::new());
    for _ in 0..600 {
        if holds() {
            return;
        }
        drop(pause.1.wait_timeout(pause.0.lock().unwrap(), std::time::Duration::from_millis(50)).unwrap());
    }
    panic!("never: {what}");
}

#[test]
fn defect_1_the_flash_is_in_the_path_of_io() {
    let scratch = Scratch::new();
    let device = format!("{},size=1GiB", scratch.join("pool").display());
    let daemon = start(&scratch, &["--device", &device, "--volume", "v:64MiB"]);
    let url = &daemon.url;
    let before = get(url, "/api/v1/metrics/flash").json();
    let written: u64 = 24 << 20;
    for round in 0..3 {
        write(url, "v", round * (8 << 20), &noise(8 << 20, round + 1));
    }
    let after = get(url, "/api/v1/metrics/flash").json();
    let used = |metrics: &Value| metrics["capacity"]["used_bytes"].as_u64().unwrap();
    assert!(used(&after) >= used(&before) + written, "{before} {after}");
    let erases = |metrics: &Value| metrics["health"]["avg_erase_count"].as_f64().unwrap();
    assert!(erases(&after) > erases(&before), "{before} {after}");
    assert!(after["health"]["health_percentage"].as_f64() <= before["health"]["health_percentage"].as_f64());
}

#[test]
fn defect_7_an_overwrite_releases_the_old_blocks() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:64MiB"]);
    let url = &daemon.url;
    let unique =
        || get(url, "/api/v1/metrics/reduction").json()["deduplication"]["unique_blocks"].as_u64().unwrap();
    for round in 0..6 {
        write(url, "v", 0, &noise(4 << 20, 100 + round));
    }
    assert_eq!(get(url, "/api/v1/volumes/v").json()["used_bytes"], 4 << 20);
    let one_copy = (4u64 << 20) / 4096;
    // Counts are merged with a checkpoint. One is due by itself soon after a volume with data is deleted; that
    // volume's own block waits for the next.
    assert_eq!(send(url, "POST", "/api/v1/volumes", r#"{"name": "x", "size_gb": 1}"#).status, 201);
    write(url, "x", 0, b"x");
    assert_eq!(request(url, "DELETE", "/api/v1/volumes/x", None, b"").status, 204);
    eventually("only the last copy is kept", || unique() <= one_copy + 1);
    assert_eq!(read(url, "v", "offset=0&length=4194304"), noise(4 << 20, 105));
}

#[test]
fn defect_8_zeros_come_back_as_long_as_they_were_asked_for() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:1MiB"]);
    let url = &daemon.url;
    for len in [1, 12, 4095, 4096, 10_000] {
        assert_eq!(write(url, "v", 0, &vec![0; len])["size"], len);
        assert_eq!(read(url, "v", &format!("offset=0&length={len}")), vec![0; len]);
    }
    get(url, "/api/v1/volumes/v/read?offset=0").problem(404, "not_found");
    write(url, "v", 4096, b"ab\0\0");
    assert_eq!(read(url, "v", "offset=4096"), b"ab");
    assert_eq!(read(url, "v", "offset=4096&length=4"), b"ab\0\0");
}

#[test]
fn defect_9_patterns_are_counted_as_what_they_are() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "a:1MiB", "--volume", "b:1MiB"]);
    let url = &daemon.url;
    let pattern = [0xde, 0xad, 0xbe, 0xef].repeat(1024);
    for volume in ["a", "b"] {
        write(url, volume, 0, &pattern);
        write(url, volume, 4096, &pattern);
    }
    let reduction = get(url, "/api/v1/metrics/reduction").json();
    assert_eq!(reduction["pattern_removal"]["pattern_blocks_found"], 4);
    assert_eq!(reduction["deduplication"]["unique_blocks"], 0);
    assert_eq!(request(url, "DELETE", "/api/v1/volumes/a", None, b"").status, 204);
    write(url, "b", 0, &noise(4096, 1));
    assert_eq!(read(url, "b", "offset=4096"), pattern);
    assert_eq!(read(url, "b", "offset=0"), noise(4096, 1));
}

#[test]
fn defect_10_bytes_of_a_volume_are_summed() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:64MiB"]);
    let url = &daemon.url;
    let half = |seed| [noise(2048, seed), vec![0; 2048]].concat();
    for round in 0..64 {
        write(url, "v", round * 4096, &half(round + 1));
    }
    let volume = get(url, "/api/v1/volumes/v").json();
    assert_eq!(volume["used_bytes"], 64 * 4096);
    let ratio = volume["reduction_ratio"].as_f64().unwrap();
    assert!((1.7..2.2).contains(&ratio), "half of each block is noise: {ratio}");
    let all = get(url, "/api/v1/metrics").json();
    let physical = all["volumes"]["total_physical_bytes"].as_u64().unwrap();
    assert!((64 * 2048..64 * 2500).contains(&physical), "{physical}");
}

#[test]
fn defect_11_everything_outlives_a_crash() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &[]);
    let url = &daemon.url;
    let body = r#"{"name": "v", "size_gb": 1, "description": "d", "tags": {"k": "w"}}"#;
    assert_eq!(send(url, "POST", "/api/v1/volumes", body).status, 201);
    write(url, "v", 0, b"kept");
    assert_eq!(send(url, "POST", "/api/v1/volumes/v/snapshots", r#"{"name": "s"}"#).status, 201);
    write(url, "v", 0, b"more");
    assert_eq!(send(url, "POST", "/api/v1/volumes/v/clone", r#"{"name": "c"}"#).status, 200);
    let volumes = get(url, "/api/v1/volumes").json();
    let snapshots = get(url, "/api/v1/snapshots").json();
    daemon.kill();
    let daemon = start(&scratch, &[]);
    let url = &daemon.url;
    assert_eq!(get(url, "/api/v1/volumes").json(), volumes);
    assert_eq!(get(url, "/api/v1/snapshots").json(), snapshots);
    assert_eq!((read(url, "v", ""), read(url, "c", "")), (b"more".to_vec(), b"more".to_vec()));
    let restored = send(url, "POST", "/api/v1/volumes/v/snapshots/s/restore", "{}").json();
    assert_eq!(read(url, restored["name"].as_str().unwrap(), ""), b"kept");
}

#[test]
fn defect_12_bounds_are_checked_before_anything_is_stored() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:1MiB"]);
    let url = &daemon.url;
    let figures = || {
        let all = get(url, "/api/v1/metrics").json();
        let mut volume = get(url, "/api/v1/volumes/v").json();
        // To look at a volume has it measured, which may be done or not by now.
        volume.as_object_mut().unwrap().remove("reduction_measured_at");
        (all["data_reduction"]["overall"]["total_bytes_in"].clone(), volume)
    };
    let before = figures();
    let data = STANDARD.encode(noise(8192, 5));
    for offset in [(1u64 << 20) - 4096, 1 << 20, 1 << 40, u64::MAX - 4095] {
        let body = json!({"offset": offset, "data": data}).to_string();
        send(url, "POST", "/api/v1/volumes/v/write", &body).problem(400, "invalid");
    }
    assert_eq!(figures(), before);
}

#[test]
fn defect_13_overlapping_writes_are_of_the_same_bytes() {
    let scratch = Scratch::new();
    let daemon = start(&scratch, &["--volume", "v:1MiB"]);
    let url = &daemon.url;
    write(url, "v", 0, &[1; 12_288]);
    write(url, "v", 4096, &[2; 100]);
    write(url, "v", 0, &[3; 4100]);
    let mut expected = vec![3; 4100];
    expected.extend_from_slice(&[2; 96]);
    expected.extend_from_slice(&[1; 8092]);
    assert_eq!(read(url, "v", "offset=0&length=12288"), expected);
    assert_eq!(read(url, "v", "offset=4096"), expected[4096..8192]);
    assert_eq!(read(url, "v", "offset=4000&length=200"), expected[4000..4200]);
}
