//! `sinter status` on an array that fills up: what is wrong comes first, says why, and goes when it is put right.

use std::io::Write as _;

use crate::both;
use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::get;
use crate::raw;

/// Writes of `len` bytes from offset `from` on that neither repeat nor compress, until one is refused or `count` are
/// done; how many were done.
fn fill_by(daemon: &Daemon, from: u64, count: u64, len: u32) -> u64 {
    let mut stream = raw::connect(&daemon.socket(), "disk");
    let mut state = 0x9e37_79b9_7f4a_7c15_u64 ^ from;
    for number in 0..count {
        let mut data = Vec::with_capacity(len as usize);
        while data.len() < len as usize {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            data.extend(state.to_le_bytes());
        }
        stream
            .write_all(&raw::request(raw::WRITE, number, from + number * u64::from(len), len, &data))
            .unwrap();
        let (error, _) = raw::answer(&mut stream);
        if error != 0 {
            assert_eq!(error, 28, "ENOSPC and nothing else");
            return number;
        }
    }
    count
}

/// As `fill_by`, in MiB.
fn fill(daemon: &Daemon, from: u64, count: u64) -> u64 {
    fill_by(daemon, from << 20, count, 1 << 20)
}

fn status(daemon: &Daemon, flags: &[&str]) -> String {
    let output = daemon.run(&[&["status"], flags].concat());
    assert!(output.status.success(), "{}", both(&output));
    String::from_utf8(output.stdout).unwrap()
}

/// Waits until `status -x` is as it should be; what it said last.
#[track_caller]
fn trouble_until(daemon: &Daemon, right: impl Fn(&str) -> bool) -> String {
    let mut said = String::new();
    for _ in 0..300 {
        said = status(daemon, &["-x"]);
        if right(&said) {
            return said;
        }
        std::thread::park_timeout(std::time::Duration::from_millis(100));
    }
    panic!("{said}");
}

#[test]
fn a_pool_that_fills_up_says_so_first_and_why_until_it_has_room_again() {
    let scratch = Scratch::new();
    let pool = format!("{},size=256MiB", scratch.join("pool.img").display());
    let arguments = ["--device", &pool, "--volume", "disk:1GiB", "--volume", "small:1MiB"];
    let daemon = Daemon::start(scratch.path(), &arguments);
    assert_eq!(status(&daemon, &["-x"]), "");

    let mut written = 0;
    while !status(&daemon, &["-x"]).contains("nearly full: ") {
        assert_eq!(fill(&daemon, written, 4), 4, "it is nearly full before it is full");
        written += 4;
    }
    let nearly = status(&daemon, &[]);
    let first = nearly.lines().next().unwrap();
    assert!(
        first.starts_with("problem: the pool is nearly full: ") && first.contains(" hold data and "),
        "{nearly}"
    );
    assert!(
        first.ends_with(&format!("most is written to volume disk, {written} MiB before reduction")),
        "{nearly}"
    );
    assert!(nearly.lines().nth(1).unwrap().contains("hint: ") && nearly.contains("degraded"), "{nearly}");
    assert!(get(&daemon, "/metrics").contains("\nsinter_pool_near_full 1\n"));

    written += fill(&daemon, written, 1000);
    fill_by(&daemon, written << 20, 256, 4096);
    let full =
        trouble_until(&daemon, |said| said.contains("the pool is full, writes that need space are refused"));
    assert_eq!(full.lines().count(), 2, "only the trouble and what helps: {full}");
    assert!(
        full.contains("   hint: trim or delete") && full.contains("sinter volume list -s used"),
        "{full}"
    );
    let page = get(&daemon, "/metrics");
    assert!(page.contains("\nsinter_pool_full 1\n") && page.contains("\nsinter_problems 1\n"), "{page}");
    assert!(get(&daemon, "/health").contains("\"degraded\""));
    assert!((100..256).contains(&written), "{written} MiB went into 256");

    assert!(daemon.run(&["volume", "delete", "disk", "--yes"]).status.success());
    trouble_until(&daemon, str::is_empty);
    assert!(get(&daemon, "/health").contains("\"healthy\""));
    assert!(get(&daemon, "/metrics").contains("\nsinter_pool_near_full 0\n"));
}

/// The figures that are kept beside the pool go on after a restart, for the pool that they were counted in.
#[test]
fn wear_that_was_evened_out_is_counted_over_restarts() {
    let scratch = Scratch::new();
    let file = scratch.join("history.json");
    let moved = |daemon: &Daemon| {
        let metrics: serde_json::Value = serde_json::from_str(&get(daemon, "/api/v1/metrics/flash")).unwrap();
        metrics["wear_leveling"]["blocks_moved"].as_u64().unwrap()
    };
    let daemon = Daemon::start(scratch.path(), &[]);
    assert_eq!(moved(&daemon), 0);
    assert!(daemon.terminate().success());
    let mut kept: serde_json::Value = serde_json::from_slice(&std::fs::read(&file).unwrap()).unwrap();
    kept["totals"]["levelled_segments"] = 5.into();
    std::fs::write(&file, kept.to_string()).unwrap();
    for _ in 0..2 {
        let daemon = Daemon::start(scratch.path(), &[]);
        assert_eq!(moved(&daemon), 5);
        assert!(get(&daemon, "/metrics").contains("\nsinter_wear_levelled_bytes_total 0\n"));
        assert!(daemon.terminate().success());
    }
    kept["totals"]["pool"] = "another".into();
    std::fs::write(&file, kept.to_string()).unwrap();
    let daemon = Daemon::start(scratch.path(), &[]);
    assert_eq!(moved(&daemon), 0, "they are another pool's");
}
