//! A real Prometheus scrapes the daemon, loads the alert rules, and answers what the dashboard asks.

use std::net::TcpListener;
use std::process::Child;
use std::process::Command;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::file;
use crate::have;
use crate::metrics::ALERTS;
use crate::metrics::DASHBOARD;
use crate::metrics::OF_CLUSTER;
use crate::metrics::busy_daemon;
use crate::metrics::texts;
use crate::metrics::work;

/// Tenths of a second that anything may take.
const ROUNDS: u32 = 600;

struct Prometheus {
    child: Child,
    url: String,
}

impl Prometheus {
    /// Starts one that scrapes the daemon four times a second, and waits until it answers.
    fn start(scratch: &Scratch, daemon: &Daemon) -> Prometheus {
        let config = scratch.join("prometheus.yml");
        let rules = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(ALERTS);
        let text = format!(
            "global: {{scrape_interval: 250ms, evaluation_interval: 250ms}}\n\
             rule_files: ['{}']\n\
             scrape_configs:\n- job_name: sinter\n  static_configs: [{{targets: ['{}']}}]\n",
            rules.display(),
            daemon.url.strip_prefix("http://").unwrap()
        );
        std::fs::write(&config, text).unwrap();
        // A port that was free a moment ago.
        let address = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let log = std::fs::File::create(scratch.join("prometheus.log")).unwrap();
        let child = Command::new("prometheus")
            .arg(format!("--config.file={}", config.display()))
            .arg(format!("--storage.tsdb.path={}", scratch.join("prometheus").display()))
            .arg(format!("--web.listen-address={address}"))
            .current_dir(scratch.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut prometheus = Prometheus { child, url: format!("http://{address}") };
        for _ in 0..ROUNDS {
            if prometheus.try_ask("/-/ready", &[]).is_some() {
                return prometheus;
            }
            let log = || std::fs::read_to_string(scratch.join("prometheus.log")).unwrap();
            assert!(prometheus.child.try_wait().unwrap().is_none(), "it has ended: {}", log());
            std::thread::park_timeout(Duration::from_millis(100));
        }
        panic!("it does not become ready");
    }

    fn try_ask(&self, path: &str, query: &[(&str, &str)]) -> Option<String> {
        let mut request = ureq::get(format!("{}{path}", self.url));
        for (name, value) in query {
            request = request.query(name, value);
        }
        request.call().ok()?.body_mut().read_to_string().ok()
    }

    fn ask(&self, path: &str, query: &[(&str, &str)]) -> Value {
        let answer = self.try_ask(path, query).unwrap_or_else(|| panic!("{path} {query:?} is refused"));
        serde_json::from_str(&answer).unwrap()
    }

    /// The series that an expression has now.
    fn query(&self, expression: &str) -> Vec<Value> {
        let answer = self.ask("/api/v1/query", &[("query", expression)]);
        assert_eq!(answer["status"], "success", "{expression}: {answer}");
        answer["data"]["result"].as_array().unwrap().clone()
    }

    /// Waits until an expression has series.
    #[track_caller]
    fn wait_for(&self, expression: &str) {
        for _ in 0..ROUNDS {
            if !self.query(expression).is_empty() {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        panic!("{expression} stays empty");
    }
}

impl Drop for Prometheus {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
fn a_real_prometheus_scrapes_it_and_answers_the_dashboard() {
    if !have("prometheus", "that a real Prometheus scrapes the daemon") {
        return;
    }
    let scratch = Scratch::new();
    let daemon = busy_daemon(&scratch);
    let prometheus = Prometheus::start(&scratch, &daemon);
    prometheus.wait_for("up{job=\"sinter\"} == 1");
    work(&daemon);
    // Rates need a few scrapes, and a checkpoint since the first of them.
    prometheus
        .wait_for("rate(sinter_request_duration_seconds_count{protocol=\"nbd\",op=\"write\"}[10s]) > 0");
    prometheus.wait_for("count_over_time(sinter_build_info[10s]) > 4");

    let targets = prometheus.ask("/api/v1/targets", &[("state", "active")]);
    let target = &targets["data"]["activeTargets"][0];
    assert_eq!((target["health"].as_str(), target["lastError"].as_str()), (Some("up"), Some("")), "{target}");
    let instance = target["labels"]["instance"].as_str().unwrap();

    let rules = prometheus.ask("/api/v1/rules", &[]);
    let rules = rules["data"]["groups"][0]["rules"].as_array().unwrap();
    assert!(rules.len() > 10);
    for rule in rules {
        assert_ne!(rule["health"], "err", "{rule}");
        assert!(
            rule["state"] != "firing" || rule["name"] == "SinterRequestErrors",
            "nothing is wrong: {rule}"
        );
    }

    let dashboard: Value = serde_json::from_str(&file(DASHBOARD)).unwrap();
    let mut expressions = Vec::new();
    texts(&dashboard["panels"], "expr", &mut expressions);
    assert!(expressions.len() > 40, "{expressions:?}");
    let alone = |expression: &&str| !OF_CLUSTER.iter().any(|prefix| expression.contains(prefix));
    for expression in expressions.into_iter().filter(alone) {
        let asked = expression
            .replace("$instance", instance)
            .replace("$volume", "disk")
            .replace("$__rate_interval", "10s");
        assert!(!asked.contains('$'), "{asked}");
        assert!(!prometheus.query(&asked).is_empty(), "the dashboard shows nothing for {asked}");
    }
    let asked = format!("sinter_volume_used_bytes{{instance=\"{instance}\",volume=\"disk\"}} == 131072");
    assert_eq!(prometheus.query(&asked).len(), 1);

    daemon.kill();
    prometheus.wait_for("up{job=\"sinter\"} == 0");
}
