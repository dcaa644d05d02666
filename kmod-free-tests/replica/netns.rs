//! Real daemons in network namespaces, joined by a bridge: links are cut in one direction and in both, nodes are killed
//! and paused, while a client writes and verifies through `sinter attach`. It must see no error, and all nodes must be
//! equal in the end.
//!
//! `SINTER_NETNS_FAILOVERS` sets how many failovers in a row there are.

use std::io::BufRead as _;
use std::io::BufReader;
use std::io::Read as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU32;
use std::sync::atomic::Ordering;
use std::time::Duration;

use serde_json::Value;

use crate::daemon::Scratch;
use crate::world::both;
use crate::world::signal_process;

/// Failovers in a row, unless more is asked for.
const FAILOVERS: u32 = 20;
/// Tenths of a second within which everything that is waited for must come.
const ROUNDS: u32 = 400;
/// Nobody has this address: what is sent there is lost.
const NOBODY: &str = "02:00:00:00:00:99";

/// What happens to a primary.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    Killed,
    Paused,
    CutOff,
    /// It is not heard, and hears.
    Mute,
}

const FAULTS: [Fault; 4] = [Fault::Killed, Fault::CutOff, Fault::Paused, Fault::Mute];

/// A node in a namespace of its own.
struct Node {
    name: &'static str,
    number: u32,
    witness: bool,
    process: Option<Child>,
}

struct World {
    prefix: String,
    scratch: Scratch,
    nodes: Vec<Node>,
}

fn pause(milliseconds: u64) {
    std::thread::park_timeout(Duration::from_millis(milliseconds));
}

fn ip(arguments: &str) -> Output {
    Command::new("ip").args(arguments.split_whitespace()).stdin(Stdio::null()).output().unwrap()
}

#[track_caller]
fn ip_done(arguments: &str) {
    let output = ip(arguments);
    assert!(output.status.success(), "ip {arguments}: {}", both(&output));
}

/// What the names of namespaces begin with that nobody else has.
fn new_prefix() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("s{}x{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed))
}

/// Whether namespaces and fio can be had here; says so loudly where not.
fn is_possible() -> bool {
    let probe = format!("{}-probe", new_prefix());
    let made = Command::new("ip").args(["netns", "add", &probe]).output();
    let made = made.is_ok_and(|output| output.status.success());
    if made {
        ip_done(&format!("netns delete {probe}"));
    }
    let fio = Command::new("fio").arg("--version").output().is_ok_and(|output| output.status.success());
    if !(made && fio) {
        // Past the test's own capture: a test that was skipped must not look like one that has passed.
        let what = "failovers between network namespaces: they need root, `ip netns` and fio";
        let _ = writeln!(std::io::stderr(), "NOT VERIFIED: {what}");
    }
    made && fio
}

impl World {
    /// A bridge with a client beside it, and a node in a namespace for each name; the last one may be a witness.
    fn new(names: &[&'static str], witness: bool) -> World {
        let mut world = World { prefix: new_prefix(), scratch: Scratch::new(), nodes: Vec::new() };
        let client = world.namespace("client");
        ip_done(&format!("netns add {client}"));
        ip_done(&format!("-n {client} link set lo up"));
        ip_done(&format!("-n {client} link add name bridge type bridge"));
        ip_done(&format!("-n {client} addr add 10.78.0.254/24 dev bridge"));
        ip_done(&format!("-n {client} link set bridge up"));
        for (number, name) in (1..).zip(names.iter().copied()) {
            let namespace = world.namespace(name);
            ip_done(&format!("netns add {namespace}"));
            ip_done(&format!(
                "-n {client} link add name to-{name} type veth peer name eth0 netns {namespace}"
            ));
            ip_done(&format!("-n {client} link set to-{name} master bridge"));
            ip_done(&format!("-n {client} link set to-{name} up"));
            ip_done(&format!("-n {namespace} addr add 10.78.0.{number}/24 dev eth0"));
            ip_done(&format!("-n {namespace} link set eth0 up"));
            ip_done(&format!("-n {namespace} link set lo up"));
            let witness = witness && number as usize == names.len();
            world.nodes.push(Node { name, number, witness, process: None });
        }
        world
    }

    fn namespace(&self, name: &str) -> String {
        format!("{}-{name}", self.prefix)
    }

    /// A command in a namespace, seeing nothing of the user's own configuration.
    fn within(&self, name: &str, program: &str) -> Command {
        let mut command = Command::new("ip");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("SINTER_"))
        {
            command.env_remove(name);
        }
        command.env("HOME", self.scratch.path()).env_remove("XDG_DATA_HOME").env_remove("XDG_CONFIG_HOME");
        command.args(["netns", "exec", &self.namespace(name), program]).stdin(Stdio::null());
        command
    }

    /// Forms the cluster: the first node begins it.
    fn form(&mut self) {
        self.start(0, &["--volume", "disk:32MiB"]);
        let made = self.cluster(0, &["init", "--listen", "10.78.0.1:7000", "--json"]);
        let made: Value = serde_json::from_slice(&made.stdout).unwrap();
        let tokens: Vec<String> = (1..self.nodes.len())
            .map(|at| match (at, self.nodes[at].witness) {
                (_, true) => made["witness_token"].as_str().unwrap().to_owned(),
                _ => String::from_utf8(self.cluster(0, &["token"]).stdout).unwrap().trim().to_owned(),
            })
            .collect();
        for (at, token) in (1..).zip(tokens) {
            self.start(at, &["--join", &token]);
        }
        self.until("all are in sync and vote", |world| {
            let members = world.members(0);
            world.all_in_sync(&members) && members["voters"].as_array().is_some_and(|all| all.len() == 3)
        });
    }

    /// Starts a node, for the first time or again.
    fn start(&mut self, at: usize, more: &[&str]) {
        let Node { name, number, witness, .. } = self.nodes[at];
        let data = self.path(name);
        std::fs::create_dir_all(&data).unwrap();
        let mut command = self.within(name, env!("CARGO_BIN_EXE_sinter"));
        command.env("SINTER_CLUSTER_NAME", name).env("SINTER_MEMORY_METADATA", "16MiB");
        command.env("SINTER_MEMORY_INDEX", "16MiB").env("SINTER_MEMORY_REQUESTS", "33MiB");
        command.args(["serve", "--cluster", &format!("10.78.0.{number}:7000"), "--data-dir"]).arg(&data);
        if witness {
            command.arg("--witness");
        } else {
            command.args(["--insecure-open", "--api", &format!("10.78.0.{number}:8000")]);
            command.args(["--nbd", &format!("10.78.0.{number}:10809")]);
            command.arg("--device").arg(format!("{},size=512MiB", data.join("pool").display()));
        }
        let log = std::fs::File::options().create(true).append(true).open(self.path(&format!("{name}.log")));
        let mut child = command.args(more).stdout(Stdio::piped()).stderr(log.unwrap()).spawn().unwrap();
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        self.nodes[at].process = Some(child);
        let mut said = String::new();
        while !witness && !said.contains("\nNext:\n  ") {
            let read = stdout.read_line(&mut said).unwrap();
            assert!(read > 0, "{name} ended instead of serving: {}", self.logs());
        }
        let rest = move || drop(stdout.read_to_string(&mut String::new()));
        std::thread::Builder::new().name("rest".to_owned()).spawn(rest).unwrap();
    }

    fn path(&self, name: &str) -> PathBuf {
        self.scratch.join(name)
    }

    fn logs(&self) -> String {
        let logs = self.nodes.iter().map(|node| {
            let log = std::fs::read_to_string(self.path(&format!("{}.log", node.name))).unwrap_or_default();
            let last: Vec<&str> = log.lines().rev().take(40).collect();
            format!("--- {}\n{}\n", node.name, last.into_iter().rev().collect::<Vec<_>>().join("\n"))
        });
        logs.collect()
    }

    /// Runs `sinter cluster` as the client, against a node.
    fn cluster(&self, at: usize, arguments: &[&str]) -> Output {
        let url = format!("http://10.78.0.{}:8000", self.nodes[at].number);
        let mut command = self.within("client", "timeout");
        command.args(["30", env!("CARGO_BIN_EXE_sinter"), "cluster"]).args(arguments).env("SINTER_URL", url);
        command.output().unwrap()
    }

    /// What a node says of the cluster; nothing where it does not answer.
    fn members(&self, at: usize) -> Value {
        serde_json::from_slice(&self.cluster(at, &["peers", "--json"]).stdout).unwrap_or_default()
    }

    fn data_nodes(&self) -> Vec<usize> {
        (0..self.nodes.len()).filter(|at| !self.nodes[*at].witness).collect()
    }

    /// Waits until all are in sync, as the node says that knows the latest epoch; the primary.
    #[track_caller]
    fn until_in_sync(&self) -> usize {
        let mut primary = None;
        self.until("all are in sync", |world| {
            let told = world.data_nodes().into_iter().map(|at| world.members(at));
            let epoch = |told: &Value| (told["generation"].as_u64(), told["epoch"].as_u64());
            let latest = told.max_by_key(epoch).filter(|told| world.all_in_sync(told));
            let name = latest.as_ref().and_then(|latest| latest["primary"].as_str());
            primary = name.and_then(|name| world.nodes.iter().position(|node| node.name == name));
            primary.is_some()
        });
        primary.unwrap()
    }

    fn all_in_sync(&self, members: &Value) -> bool {
        let in_sync = members["in_sync"].as_array().map_or(0, Vec::len);
        in_sync == self.data_nodes().len() && members["primary_serves"] == true
    }

    /// Whether a node says that it serves. It is asked as one that passes a request on: else it would first ask the
    /// primary that it knew.
    fn serves(&self, at: usize) -> bool {
        let url = format!("http://10.78.0.{}:8000/api/v1/cluster/members", self.nodes[at].number);
        let mut command = self.within("client", "curl");
        let told = command.args(["-s", "-m", "1", "-H", "sinter-passed-on: 1", &url]).output().unwrap();
        let told: Value = serde_json::from_slice(&told.stdout).unwrap_or_default();
        told["role"] == "primary" && told["primary_serves"] == true
    }

    #[track_caller]
    fn until(&self, what: &str, mut is_so: impl FnMut(&World) -> bool) {
        for _ in 0..ROUNDS {
            if is_so(self) {
                return;
            }
            pause(100);
        }
        panic!("waited in vain until {what}: {:#}\n{}", self.members(0), self.logs());
    }

    fn signal(&self, at: usize, signal: &str) {
        signal_process(self.nodes[at].process.as_ref().unwrap().id(), signal);
    }

    fn inflict(&mut self, fault: Fault, at: usize) {
        let Node { name, .. } = self.nodes[at];
        match fault {
            Fault::Killed => {
                let mut process = self.nodes[at].process.take().unwrap();
                process.kill().unwrap();
                process.wait().unwrap();
            }
            Fault::Paused => self.signal(at, "-STOP"),
            Fault::CutOff => ip_done(&format!("-n {} link set to-{name} down", self.namespace("client"))),
            Fault::Mute => {
                let namespace = self.namespace(name);
                let others =
                    self.nodes.iter().map(|node| node.number).filter(|it| *it != self.nodes[at].number);
                for other in others.chain([254]) {
                    ip_done(&format!(
                        "-n {namespace} neigh replace 10.78.0.{other} lladdr {NOBODY} dev eth0 nud permanent"
                    ));
                }
            }
        }
    }

    fn mend(&mut self, fault: Fault, at: usize) {
        let Node { name, .. } = self.nodes[at];
        match fault {
            Fault::Killed => self.start(at, &[]),
            Fault::Paused => self.signal(at, "-CONT"),
            Fault::CutOff => ip_done(&format!("-n {} link set to-{name} up", self.namespace("client"))),
            Fault::Mute => {
                ip_done(&format!("-n {} neigh flush dev eth0 nud permanent", self.namespace(name)));
            }
        }
    }

    /// Fails over so many times in a row, whatever it takes.
    fn fail_over(&mut self, times: u32) {
        for time in 0..times {
            let fault = FAULTS[time as usize % FAULTS.len()];
            let old = self.until_in_sync();
            let others: Vec<usize> = self.data_nodes().into_iter().filter(|at| *at != old).collect();
            self.inflict(fault, old);
            self.until(&format!("another one serves: {} is {fault:?}", self.nodes[old].name), |world| {
                others.iter().any(|at| world.serves(*at))
            });
            pause(200);
            self.mend(fault, old);
        }
        self.until_in_sync();
    }

    /// How often another node has become primary.
    fn failovers(&self) -> u64 {
        let members = self.data_nodes().into_iter().map(|at| self.members(at));
        members.filter_map(|members| members["total_failovers"].as_u64()).max().unwrap_or(0)
    }

    /// Fails over again and again while a client writes and verifies.
    fn endure(&mut self, times: u32) {
        let socket = self.path("attached.sock");
        let addresses: Vec<String> = self
            .data_nodes()
            .into_iter()
            .map(|at| format!("10.78.0.{}:10809", self.nodes[at].number))
            .collect();
        let mut attach = self.within("client", env!("CARGO_BIN_EXE_sinter"));
        attach.args(["attach", &format!("{}/disk", addresses.join(",")), "--unix"]).arg(&socket);
        let log = std::fs::File::create(self.path("attach.log")).unwrap();
        let mut attached = attach.stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(attached.stdout.take().unwrap()).read_line(&mut line).unwrap();
        assert!(line.starts_with("Attached "), "{line}");
        let socket = socket.display().to_string();
        let stopping = AtomicBool::new(false);
        let before = self.failovers();
        let client = self.namespace("client");
        let passes = std::thread::scope(|scope| {
            let writer = scope.spawn(|| {
                let mut passes: Vec<Output> = Vec::new();
                while !stopping.load(Ordering::Acquire) && passes.last().is_none_or(|it| it.status.success())
                {
                    passes.push(fio(&client, &socket, "--rate_iops=1000"));
                }
                passes
            });
            let stop = StopAtEnd(&stopping);
            self.fail_over(times);
            drop(stop);
            writer.join().unwrap()
        });
        for pass in &passes {
            assert!(pass.status.success(), "a client saw an error: {}\n{}", both(pass), self.logs());
        }
        let failovers = self.failovers() - before;
        assert!(failovers >= u64::from(times), "{failovers} failovers");
        assert!(!passes.is_empty(), "the client has done nothing");
        let last = fio(&client, &socket, "--verify_only=1");
        assert!(last.status.success(), "{}", both(&last));
        let verified = self.cluster(0, &["verify"]);
        assert_eq!(verified.status.code(), Some(0), "{}\n{}", both(&verified), self.logs());
        assert!(Command::new("kill").arg(attached.id().to_string()).status().unwrap().success());
        assert!(attached.wait().unwrap().success());
    }
}

/// One pass of a client that writes and verifies, in a namespace and through a socket.
fn fio(namespace: &str, socket: &str, more: &str) -> Output {
    let mut command = Command::new("ip");
    command.args(["netns", "exec", namespace, "fio", "--name=pass", "--thread", "--ioengine=nbd", "--bs=4k"]);
    command.args(["--size=4m", "--iodepth=8", "--rw=randwrite", "--verify=crc32c", "--verify_fatal=1"]);
    command.args(["--verify_state_save=0", "--fsync=64", &format!("--uri=nbd+unix:///disk?socket={socket}")]);
    command.arg(more).stdin(Stdio::null()).output().unwrap()
}

/// Tells others to stop, also where a test fails.
struct StopAtEnd<'a>(&'a AtomicBool);

impl Drop for StopAtEnd<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Release);
    }
}

fn times() -> u32 {
    std::env::var("SINTER_NETNS_FAILOVERS").ok().and_then(|value| value.parse().ok()).unwrap_or(FAILOVERS)
}

#[test]
fn p7_clients_of_two_copies_and_a_witness_notice_nothing_of_failovers_in_a_row() {
    if !is_possible() {
        return;
    }
    let mut world = World::new(&["a", "b", "w"], true);
    world.form();
    world.endure(times());
}

#[test]
fn p7_clients_of_three_copies_notice_nothing_of_failovers_in_a_row() {
    if !is_possible() {
        return;
    }
    let mut world = World::new(&["a", "b", "c"], false);
    world.form();
    world.endure(times() / 3);
}

impl Drop for World {
    fn drop(&mut self) {
        for node in &mut self.nodes {
            if let Some(mut process) = node.process.take() {
                let _ = process.kill();
                let _ = process.wait();
            }
        }
        for name in self.nodes.iter().map(|node| node.name).chain(["client"]) {
            let _ = ip(&format!("netns delete {}", self.namespace(name)));
        }
    }
}
