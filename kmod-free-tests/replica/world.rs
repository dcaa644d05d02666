//! A cluster of two nodes with copies, and a witness, all of them small.

use std::path::Path;
use std::process::Child;
use std::process::Command;
use std::process::Output;
use std::process::Stdio;
use std::time::Duration;

use serde_json::Value;
use serde_json::json;

use crate::daemon::Daemon;
use crate::daemon::Scratch;
use crate::daemon::output_in_time;
use crate::daemon::sinter;
use crate::http::get;
use crate::http::send;

/// Tenths of a second within which everything that is waited for must come.
const ROUNDS: u32 = 300;

pub(crate) struct World {
    scratch: Scratch,
    pub(crate) a: Option<Daemon>,
    pub(crate) b: Option<Daemon>,
    witness: Option<Child>,
    wishes: Wishes,
}

/// How a world differs from others.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wishes {
    /// The sizes of the pools of `a` and `b`.
    pub(crate) pools: [&'static str; 2],
    /// What `--volume` makes.
    pub(crate) volume: &'static str,
    /// How `b` follows.
    pub(crate) mode_of_b: &'static str,
    /// More of the environment of both.
    pub(crate) environment: &'static [(&'static str, &'static str)],
}

impl Default for Wishes {
    fn default() -> Wishes {
        let pools = ["256MiB"; 2];
        Wishes { pools, volume: "disk:16MiB", mode_of_b: "sync", environment: &[] }
    }
}

impl Wishes {
    /// The arguments and the environment of a small node.
    fn small(&self, directory: &Path, name: &str) -> (String, Vec<(&'static str, String)>) {
        let mut environment = vec![
            ("SINTER_CLUSTER_NAME", name.to_owned()),
            ("SINTER_MEMORY_METADATA", "16MiB".to_owned()),
            ("SINTER_MEMORY_INDEX", "16MiB".to_owned()),
            ("SINTER_MEMORY_REQUESTS", "33MiB".to_owned()),
        ];
        environment.extend(self.environment.iter().map(|(key, value)| (*key, (*value).to_owned())));
        if name == "b" {
            environment.push(("SINTER_CLUSTER_MODE", self.mode_of_b.to_owned()));
        }
        let pool = self.pools[usize::from(name == "b")];
        (format!("{},size={pool}", directory.join("pool").display()), environment)
    }
}

impl World {
    /// One node, which is in no cluster yet, with a volume `disk`.
    pub(crate) fn alone() -> World {
        World::alone_as(Wishes::default())
    }

    fn alone_as(wishes: Wishes) -> World {
        let mut world = World { scratch: Scratch::new(), a: None, b: None, witness: None, wishes };
        world.a = Some(world.start("a", &["--volume", wishes.volume]));
        world
    }

    /// Two nodes in sync, and a witness that votes.
    pub(crate) fn formed() -> World {
        World::formed_as(Wishes::default())
    }

    /// The same, with wishes; what follows asynchronously is not waited for.
    pub(crate) fn formed_as(wishes: Wishes) -> World {
        let mut world = World::alone_as(wishes);
        let made = send(world.url("a"), "POST", "/api/v1/cluster/init", "{}");
        assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
        let made = made.json();
        world.b = Some(world.start("b", &["--join", made["data_token"].as_str().unwrap()]));
        world.witness = Some(world.start_witness(made["witness_token"].as_str().unwrap()));
        if wishes.mode_of_b == "sync" {
            world.until_in_sync("a");
        }
        until("the nodes have said where they serve", || member(world.url("a"), "b")["url"].is_string());
        let voters = || members(world.url("a"))["voters"].as_array().unwrap().len();
        until("three nodes vote", || voters() == 3 || wishes.mode_of_b != "sync");
        world
    }

    /// Starts a node, for the first time or again.
    pub(crate) fn start(&self, name: &str, arguments: &[&str]) -> Daemon {
        let directory = self.scratch.join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let (device, environment) = self.wishes.small(&directory, name);
        let environment: Vec<(&str, &str)> =
            environment.iter().map(|(key, value)| (*key, value.as_str())).collect();
        let arguments = [&["--device", &device], arguments].concat();
        Daemon::start_with(&directory, &arguments, Stdio::inherit(), &environment)
    }

    /// A file beside the nodes.
    pub(crate) fn path(&self, name: &str) -> std::path::PathBuf {
        self.scratch.join(name)
    }

    /// Takes a node out, to end it.
    pub(crate) fn take(&mut self, name: &str) -> Daemon {
        let node = if name == "a" { &mut self.a } else { &mut self.b };
        node.take().unwrap()
    }

    /// Starts a node again.
    pub(crate) fn restart(&mut self, name: &str) {
        let node = self.start(name, &[]);
        *(if name == "a" { &mut self.a } else { &mut self.b }) = Some(node);
    }

    /// Starts a node that must not come up.
    pub(crate) fn refused(&self, name: &str, arguments: &[&str]) -> Output {
        let directory = self.scratch.join(name);
        std::fs::create_dir_all(&directory).unwrap();
        let (device, environment) = self.wishes.small(&directory, name);
        let mut command = sinter(&directory);
        command.envs(environment).args(["serve", "--api", "127.0.0.1:0", "--nbd", "127.0.0.1:0"]);
        command.args(["--device", &device, "--data-dir"]).arg(&directory).args(arguments);
        output_in_time(&mut command)
    }

    /// Starts the witness again.
    pub(crate) fn restart_witness(&mut self) {
        self.witness = Some(self.start_witness("it has joined"));
    }

    pub(crate) fn start_witness(&self, token: &str) -> Child {
        let directory = self.scratch.join("w");
        let mut command = sinter(self.scratch.path());
        command.env("SINTER_CLUSTER_NAME", "w").args(["serve", "--witness", "--join", token, "--data-dir"]);
        command.arg(&directory).stdout(Stdio::null()).spawn().unwrap()
    }

    pub(crate) fn end_witness(&mut self) {
        if let Some(mut witness) = self.witness.take() {
            let _ = witness.kill();
            let _ = witness.wait();
        }
    }

    pub(crate) fn node(&self, name: &str) -> &Daemon {
        let node = if name == "a" { &self.a } else { &self.b };
        node.as_ref().unwrap()
    }

    pub(crate) fn url(&self, name: &str) -> &str {
        &self.node(name).url
    }

    /// Runs `sinter cluster` against a node.
    pub(crate) fn cluster(&self, name: &str, arguments: &[&str]) -> Output {
        self.node(name).run(&[&["cluster"], arguments].concat())
    }

    /// Waits until a node says that both copies are in sync.
    #[track_caller]
    pub(crate) fn until_in_sync(&self, asked: &str) {
        let mut last = Value::Null;
        for _ in 0..ROUNDS {
            last = members(self.url(asked));
            let all = last["in_sync"].as_array().is_some_and(|nodes| nodes.len() == 2);
            if all && last["primary_serves"] == true {
                return;
            }
            std::thread::park_timeout(Duration::from_millis(100));
        }
        panic!("both nodes are not in sync: {last:#}");
    }

    pub(crate) fn signal(&self, name: &str, signal: &str) {
        signal_process(self.node(name).pid(), signal);
    }
}

impl Drop for World {
    fn drop(&mut self) {
        self.end_witness();
    }
}

/// Sends a signal. `-STOP` is waited for: until the last thread has heard of it, a process goes on answering.
pub(crate) fn signal_process(pid: u32, signal: &str) {
    assert!(Command::new("kill").args([signal, &pid.to_string()]).status().unwrap().success());
    if signal == "-STOP" {
        until("all threads have stopped", || {
            let threads = std::fs::read_dir(format!("/proc/{pid}/task")).unwrap();
            threads.map(|thread| thread.unwrap().path().join("stat")).all(|stat| {
                // The state follows the name, which stands in brackets. A thread may have ended meanwhile.
                std::fs::read_to_string(stat).is_ok_and(|it| it.rsplit(')').next().unwrap().starts_with(" T"))
            })
        });
    }
}

/// Waits until something is so.
#[track_caller]
pub(crate) fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    for _ in 0..ROUNDS {
        if is_so() {
            return;
        }
        std::thread::park_timeout(Duration::from_millis(100));
    }
    panic!("waited in vain until {what}");
}

pub(crate) fn members(url: &str) -> Value {
    let answer = get(url, "/api/v1/cluster/members");
    assert_eq!(answer.status, 200, "{}", String::from_utf8_lossy(&answer.body));
    answer.json()
}

/// One of the members.
pub(crate) fn member(url: &str, name: &str) -> Value {
    let members = members(url);
    let nodes = members["nodes"].as_array().unwrap();
    nodes.iter().find(|node| node["node_id"] == name).cloned().unwrap_or_default()
}

/// Writes a text to the volume; the status of the answer.
pub(crate) fn write(url: &str, offset: u64, text: &str) -> u16 {
    let body = json!({"offset": offset, "data": base64(text)}).to_string();
    send(url, "POST", "/api/v1/volumes/disk/write", &body).status
}

/// What the volume holds at an offset, in Base64.
pub(crate) fn read(url: &str, offset: u64) -> Value {
    get(url, &format!("/api/v1/volumes/disk/read?offset={offset}")).json()["data"].clone()
}

pub(crate) fn base64(text: &str) -> String {
    use base64::Engine as _;
    base64::prelude::BASE64_STANDARD.encode(text)
}

pub(crate) fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// What a metric of a node says, labels among its name.
pub(crate) fn metric(url: &str, name: &str) -> Option<f64> {
    let page = String::from_utf8(get(url, "/metrics").body).unwrap();
    let line = page.lines().find(|line| line.split(' ').next() == Some(name));
    line.and_then(|line| line.split(' ').next_back()?.parse().ok())
}
