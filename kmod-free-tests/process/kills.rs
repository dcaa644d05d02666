//! What a killed daemon leaves, and what one that was told to stop does.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use crate::client::Ended;
use crate::client::Journal;
use crate::client::path;
use crate::client::run;
use crate::client::text;
use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::daemon::output_in_time;
use crate::daemon::sinter;
use crate::number_from_environment;
use crate::seed;

/// How often the daemon is killed, unless more is asked for.
const KILLS: u64 = 24;

/// Blocks that the client writes to: 48 MiB.
const BLOCKS: u64 = 12 << 10;

/// A pool that is small for what is written, so that kills meet checkpoints and collection too.
fn configure(data: &Path) {
    let pool = data.join("pool.img");
    let text = format!(
        "[pool]\ndevices = [\"{},size=192MiB\"]\n\
         [memory]\nmetadata = \"1MiB\"\nindex = \"1MiB\"\nrequests = \"33MiB\"\n\
         [checkpoint]\nlog_bytes = \"4MiB\"\n",
        pool.display()
    );
    std::fs::write(data.join("sinter.toml"), text).unwrap();
}

fn arguments(data: &Path) -> Vec<String> {
    let config = data.join("sinter.toml");
    ["--config", path(&config), "--volume", "journal:64MiB", "--volume", "fio:64MiB"]
        .map(str::to_owned)
        .to_vec()
}

fn start(data: &Path) -> Daemon {
    let arguments = arguments(data);
    Daemon::start(data, &arguments.iter().map(String::as_str).collect::<Vec<_>>())
}

/// Moments and choices, the same for the same seed (Marsaglia's xorshift).
struct Choices(u64);

impl Choices {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }

    fn chance(&mut self, one_in: u64) -> bool {
        self.below(one_in) == 0
    }

    fn wait(&mut self, from: u64, to: u64) {
        std::thread::park_timeout(Duration::from_millis(from + self.below(to - from)));
    }
}

/// Starts a daemon and kills it again while it opens the pool, or soon after.
fn kill_while_it_starts(data: &Path, choices: &mut Choices) {
    let mut child = sinter(data)
        .args(["serve", "--api", "127.0.0.1:0", "--nbd", "127.0.0.1:0", "--data-dir"])
        .arg(data)
        .args(arguments(data))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    choices.wait(1, 60);
    child.kill().unwrap();
    child.wait().unwrap();
}

/// fio writes to a volume of its own, or verifies what it wrote the last time.
fn fio(daemon: &Daemon, verify_only: bool) {
    let uri = format!("--uri={}", daemon.uri("fio"));
    let mut arguments = vec![
        "--thread",
        "--name=kills",
        "--ioengine=nbd",
        &uri,
        "--rw=randwrite",
        "--bs=4k",
        "--size=8m",
        "--iodepth=16",
        "--verify=crc32c",
        "--verify_fatal=1",
        "--verify_state_save=0",
    ];
    arguments.push(if verify_only { "--verify_only=1" } else { "--do_verify=0" });
    run("fio", &arguments);
}

#[track_caller]
fn assert_intact(data: &Path) {
    let arguments =
        ["check", "--data-dir", path(data), "--device", path(&data.join("pool.img"))].map(str::to_owned);
    let output = output_in_time(sinter(data).args(arguments));
    assert!(output.status.success(), "{}", text(&output));
}

#[test]
fn p1_killed_daemon_keeps_everything_that_it_acknowledged() {
    let scratch = Scratch::new();
    let data = scratch.path();
    let seed = seed();
    let mut choices = Choices(seed | 1);
    let kills = number_from_environment("SINTER_PROCESS_KILLS").unwrap_or(KILLS);
    configure(data);
    let journal = Journal::new(scratch.join("journal"));
    let mut sum = Ended::default();
    let mut fio_has_written = false;
    for kill in 0..kills {
        let daemon = start(data);
        let uri = if choices.chance(2) {
            daemon.uri("journal")
        } else {
            format!("nbd+unix:///journal?socket={}", path(&daemon.socket()))
        };
        if kill > 0 {
            journal.verify(&uri);
        }
        if fio_has_written {
            fio(&daemon, true);
        }
        fio_has_written = kill % 6 == 2;
        if fio_has_written {
            fio(&daemon, false);
        }
        let writing = journal.write(&uri, seed, BLOCKS, None);
        choices.wait(20, 500);
        daemon.kill();
        let ended = writing.ended();
        sum.acknowledged += ended.acknowledged;
        sum.unanswered += ended.unanswered;
        if choices.chance(4) {
            kill_while_it_starts(data, &mut choices);
        }
    }
    assert!(sum.acknowledged > 50 * kills && sum.unanswered > kills, "the kills met no writes: {sum:?}");

    let daemon = start(data);
    let blocks = journal.verify(&daemon.uri("journal"));
    println!("{kills} kills, {sum:?}, {blocks} blocks verified");
    let lie = journal.with_a_lie().try_verify(&daemon.uri("journal"));
    assert!(
        text(&lie).contains("999999999 was acknowledged"),
        "the client believes anything: {}",
        text(&lie)
    );
    daemon.kill();
    assert_intact(data);
}

/// What the daemon logs while it starts and is killed again.
fn log_of_a_start(data: &Path) -> String {
    let log = data.join("start.log");
    let arguments = arguments(data);
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let daemon = Daemon::start_logging(data, &arguments, std::fs::File::create(&log).unwrap().into());
    daemon.kill();
    std::fs::read_to_string(&log).unwrap()
}

#[test]
fn told_to_stop_it_answers_what_it_has_and_replays_nothing() {
    let scratch = Scratch::new();
    let data = scratch.path();
    let seed = seed();
    configure(data);
    let journal = Journal::new(scratch.join("journal"));
    // Once after the last of the requests, which no flush has followed; once in the middle of them.
    for requests in [Some(500), None] {
        let daemon = start(data);
        let writing = journal.write(&daemon.uri("journal"), seed, BLOCKS, requests);
        let ended = if requests.is_some() {
            let ended = writing.ended();
            assert!(daemon.terminate().success());
            ended
        } else {
            std::thread::park_timeout(Duration::from_millis(300));
            assert!(daemon.terminate().success());
            writing.ended()
        };
        assert!(ended.acknowledged > 100, "{ended:?}");
        let log = log_of_a_start(data);
        assert!(log.contains("nothing to replay"), "{log}");
        let daemon = start(data);
        journal.verify(&daemon.uri("journal"));
        daemon.kill();
    }
    // That the line can say otherwise: this start follows a kill and writes.
    let daemon = start(data);
    journal.write(&daemon.uri("journal"), seed, BLOCKS, Some(100)).ended();
    daemon.kill();
    let log = log_of_a_start(data);
    assert!(log.contains("operations replayed"), "{log}");
    assert_intact(data);
}
