//! The page for Prometheus: the promised names, real values, and that dashboard and alert rules name what is on it.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::io::Write as _;
use std::time::SystemTime;
use std::time::UNIX_EPOCH;

use serde_json::Value;

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::file;
use crate::get;
use crate::have;
use crate::raw;
use crate::run;

pub(crate) const DASHBOARD: &str = "docs/grafana/sinter.json";
pub(crate) const ALERTS: &str = "docs/prometheus/alerts.yml";

/// The names that users were promised, but for those of a cluster: an array that stands alone has no values for them.
const PROMISED: &[&str] = &[
    "sinter_volume_read_bytes_total",
    "sinter_volume_write_bytes_total",
    "sinter_volume_read_ops_total",
    "sinter_volume_write_ops_total",
    "sinter_request_duration_seconds_bucket",
    "sinter_request_duration_seconds_sum",
    "sinter_request_duration_seconds_count",
    "sinter_reduction_pattern_saved_bytes_total",
    "sinter_reduction_dedup_saved_bytes_total",
    "sinter_reduction_compression_saved_bytes_total",
    "sinter_pool_capacity_bytes",
    "sinter_pool_used_bytes",
    "sinter_pool_free_bytes",
    "sinter_pool_logical_bytes",
    "sinter_reduction_ratio",
    "sinter_segment_erases_total",
    "sinter_segment_wear_erases",
    "sinter_gc_runs_total",
    "sinter_gc_moved_bytes_total",
    "sinter_gc_reclaimed_segments_total",
    "sinter_write_amplification",
    "sinter_checkpoint_duration_seconds_sum",
    "sinter_log_sync_duration_seconds_count",
    "sinter_memory_bytes",
];

/// A daemon with a volume to which something was written, and that was read.
pub(crate) fn busy_daemon(scratch: &Scratch) -> Daemon {
    let daemon = Daemon::start(scratch.path(), &["--volume", "disk:256MiB"]);
    work(&daemon);
    daemon
}

/// 48 blocks: 16 of zeros, 16 of their own, and these again; one request that is refused; some reads.
pub(crate) fn work(daemon: &Daemon) {
    let mut stream = raw::connect(&daemon.socket(), "disk");
    let mut data = vec![0u8; 16 * 4096];
    for _ in 0..2 {
        for block in 0..16u8 {
            let mut bytes = vec![block + 1; 4096];
            bytes[usize::from(block)] = 0;
            data.extend(bytes);
        }
    }
    let length = u32::try_from(data.len()).unwrap();
    let requests = [
        raw::request(raw::WRITE, 1, 0, length, &data),
        raw::request(raw::WRITE, 2, u64::MAX - 4095, 4096, &[0; 4096]),
    ];
    for (request, refused) in requests.iter().zip([false, true]) {
        stream.write_all(request).unwrap();
        let (error, _) = raw::answer(&mut stream);
        assert_eq!(error != 0, refused);
    }
    // The answers are read by nobody, but small enough to be on their way.
    stream.write_all(&raw::request(raw::READ, 3, 0, 8192, b"")).unwrap();
    assert_eq!(raw::answer(&mut stream), (0, 3));
}

/// The values on the page, by name, then by labels as they stand there.
pub(crate) fn scrape(daemon: &Daemon) -> (String, BTreeMap<String, BTreeMap<String, f64>>) {
    let page = get(daemon, "/metrics");
    let mut values: BTreeMap<String, BTreeMap<String, f64>> = BTreeMap::new();
    for line in page.lines().filter(|line| !line.starts_with('#')) {
        let (sample, value) = line.rsplit_once(' ').unwrap();
        let (name, labels) = sample.split_once('{').unwrap_or((sample, ""));
        let labels = labels.trim_end_matches('}').to_owned();
        values.entry(name.to_owned()).or_default().insert(labels, value.parse().unwrap());
    }
    (page, values)
}

#[test]
fn all_promised_names_are_there_and_promtool_has_nothing_to_say() {
    let scratch = Scratch::new();
    let daemon = busy_daemon(&scratch);
    let (page, values) = scrape(&daemon);
    for name in PROMISED {
        assert!(values.contains_key(*name), "{name} is not on the page");
    }
    for labels in ["stat=\"min\"", "stat=\"avg\"", "stat=\"max\""] {
        assert!(values["sinter_segment_wear_erases"].contains_key(labels), "{labels}");
    }
    for protocol in ["nbd", "rest"] {
        let durations = &values["sinter_request_duration_seconds_count"];
        let labels = format!("protocol=\"{protocol}\",op=\"read\"");
        assert!(durations.contains_key(&labels), "{durations:?}");
    }
    if have("promtool", "that it finds nothing to say of the metrics") {
        assert_eq!(run("promtool", &["check", "metrics"], page.as_bytes()), "");
    }
}

#[test]
fn values_are_those_of_what_was_done() {
    let scratch = Scratch::new();
    let daemon = busy_daemon(&scratch);
    let (page, values) = scrape(&daemon);
    let value = |name: &str, labels: &str| {
        let samples = values.get(name).unwrap_or_else(|| panic!("{name} is not on the page"));
        *samples.get(labels).unwrap_or_else(|| panic!("{name}{{{labels}}} is not on the page"))
    };
    let is = |name: &str, labels: &str, wanted: f64| {
        let found = value(name, labels);
        assert!((found - wanted).abs() < 1e-6, "{name}{{{labels}}} is {found}, not {wanted}\n{page}");
    };
    is("sinter_build_info", &format!("version=\"{}\"", env!("CARGO_PKG_VERSION")), 1.0);
    is("sinter_array_info", "array=\"sinter\"", 1.0);
    is("sinter_volume_size_bytes", "volume=\"disk\"", 268_435_456.0);
    is("sinter_volume_used_bytes", "volume=\"disk\"", 131_072.0);
    is("sinter_volume_write_bytes_total", "volume=\"disk\"", 196_608.0);
    is("sinter_pool_provisioned_bytes", "", 268_435_456.0);
    is("sinter_written_bytes_total", "", 196_608.0);
    is("sinter_reduction_pattern_saved_bytes_total", "", 65_536.0);
    is("sinter_reduction_dedup_saved_bytes_total", "", 65_536.0);
    is("sinter_unique_blocks", "", 16.0);
    is("sinter_referenced_blocks", "", 32.0);
    is("sinter_request_bytes_total", "protocol=\"nbd\",op=\"write\"", 196_608.0);
    is("sinter_request_errors_total", "protocol=\"nbd\",op=\"write\"", 1.0);
    is("sinter_request_errors_total", "protocol=\"nbd\",op=\"read\"", 0.0);
    is("sinter_nbd_connections_accepted_total", "", 1.0);
    is("sinter_nbd_connections_refused_total", "", 0.0);
    for name in ["sinter_problems", "sinter_writes_stopped", "sinter_bad_blocks", "sinter_pool_full"] {
        is(name, "", 0.0);
    }
    is("sinter_pool_near_full", "", 0.0);
    is("sinter_pool_host_full", "", 0.0);
    is("sinter_segment_rated_erases", "", 3000.0);
    let segments = value("sinter_segments", "state=\"free\"") + value("sinter_segments", "state=\"used\"");
    assert!((100.0..100_000.0).contains(&segments), "{segments}");
    assert!(value("sinter_operations_total", "") >= 2.0);
    assert!(value("sinter_log_written_bytes_total", "") >= 16.0);
    let parts = value("sinter_pool_data_bytes", "") + value("sinter_pool_metadata_bytes", "");
    assert!(parts > 0.0 && parts <= value("sinter_pool_live_bytes", "") + 1.0, "{page}");

    #[expect(clippy::disallowed_methods, reason = "what the daemon says is compared with this clock")]
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64();
    let age = now - value("process_start_time_seconds", "");
    assert!((0.0..120.0).contains(&age), "the daemon says it was started {age} s ago");
    let resident = value("process_resident_memory_bytes", "");
    assert!((1e6..4e9).contains(&resident), "{resident}");
    assert!(value("process_virtual_memory_bytes", "") >= resident);
    assert!(value("process_threads", "") > 3.0 && value("process_open_fds", "") > 8.0);
    assert!(value("process_max_fds", "") > value("process_open_fds", ""));
    assert!(value("process_cpu_seconds_total", "") < 60.0);
}

/// The texts of this key, wherever they stand.
pub(crate) fn texts<'a>(value: &'a Value, key: &str, found: &mut Vec<&'a str>) {
    match value {
        Value::Object(fields) => {
            found.extend(fields.get(key).and_then(Value::as_str));
            fields.values().for_each(|value| texts(value, key, found));
        }
        Value::Array(items) => items.iter().for_each(|item| texts(item, key, found)),
        _ => {}
    }
}

/// The names of metrics in a text: words that begin as ours do.
fn names(text: &str) -> BTreeSet<&str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || c == '_'))
        .filter(|word| word.starts_with("sinter_") || word.starts_with("process_"))
        .collect()
}

#[test]
fn dashboard_and_alerts_name_what_is_on_the_page() {
    let scratch = Scratch::new();
    let daemon = busy_daemon(&scratch);
    let (page, values) = scrape(&daemon);
    let dashboard: Value = serde_json::from_str(&file(DASHBOARD)).unwrap();
    let mut expressions = Vec::new();
    texts(&dashboard, "expr", &mut expressions);
    texts(&dashboard, "query", &mut expressions);
    assert!(expressions.len() > 40, "{expressions:?}");
    let alerts = file(ALERTS);
    let all = expressions.join("\n");
    for (path, text) in [(DASHBOARD, &all), (ALERTS, &alerts)] {
        let named = names(text);
        assert!(named.len() > 10, "{path} names next to nothing: {named:?}");
        for name in named {
            let there = values.contains_key(name) || is_of_cluster(&page, name);
            assert!(there, "{path} names {name}, which is not on the page");
        }
    }
    // And the other way round: what is there is to be seen on the dashboard.
    let shown = names(&all);
    for name in page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next()) {
        let seen = shown.iter().any(|shown| *shown == name || shown.strip_prefix(name).is_some_and(is_part));
        assert!(seen || UNSEEN.contains(&name), "{DASHBOARD} does not show {name}");
    }
}

/// How the names begin that have values only in a cluster.
pub(crate) const OF_CLUSTER: &[&str] =
    &["sinter_bookmark_", "sinter_cluster_", "sinter_failover_", "sinter_replica_", "sinter_resync_"];

/// Whether this is on the page of a node in a cluster: one that stands alone knows the name and has no value.
fn is_of_cluster(page: &str, name: &str) -> bool {
    let name = name.strip_suffix("_sum").or(name.strip_suffix("_count")).unwrap_or(name);
    OF_CLUSTER.iter().any(|prefix| name.starts_with(prefix)) && page.contains(&format!("# TYPE {name} "))
}

/// What a histogram or a summary adds to its name.
fn is_part(suffix: &str) -> bool {
    matches!(suffix, "_bucket" | "_sum" | "_count")
}

/// What the dashboard shows in another way, or what is only for alerts.
const UNSEEN: &[&str] = &[
    "sinter_pool_free_bytes",
    "sinter_pool_full",
    "sinter_pool_near_full",
    "sinter_pool_host_full",
    "process_virtual_memory_bytes",
];

#[test]
fn promtool_accepts_the_rules_and_each_fires_when_it_should() {
    if !have("promtool", "the alert rules") {
        return;
    }
    let root = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let rules = root.join(ALERTS);
    let said = run("promtool", &["check", "rules", "--lint-fatal", rules.to_str().unwrap()], b"");
    assert!(said.contains("SUCCESS"), "{said}");
    let tests = root.join("kmod-free-tests/operator/alerts.yml");
    run("promtool", &["test", "rules", tests.to_str().unwrap()], b"");
    let tested = file("kmod-free-tests/operator/alerts.yml");
    for alert in file(ALERTS).lines().filter_map(|line| line.trim().strip_prefix("- alert: ")) {
        assert!(tested.contains(&format!("alertname=\"{alert}\"")), "{alert} is not shown to fire");
    }
}
