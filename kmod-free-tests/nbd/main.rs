//! The NBD server against a volume in memory: hand-made packets, the project's own client, and the
//! tools that people use.

#![allow(dead_code, reason = "fixtures are shared by several modules and the bench")]
#![allow(clippy::unwrap_used, reason = "a test ends where something unexpected happens")]

mod client;
mod handshake;
mod hostile;
mod limits;
mod memory;
mod ordering;
mod raw;
mod tools;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use memory::{Exports, Memory};
use sinter::export::nbd::{Listener, Server, ServerOptions};

const MIB: u64 = 1 << 20;

/// A server with one export named `v`, on a Unix socket and on a free TCP port.
struct Fixture {
    memory: Arc<Memory>,
    exports: Arc<Exports>,
    server: Option<Server>,
    folder: PathBuf,
    tcp_port: u16,
}

impl Fixture {
    fn new(size: u64) -> Fixture {
        Fixture::with(size, ServerOptions::default())
    }

    fn with(size: u64, options: ServerOptions) -> Fixture {
        static NUMBER: AtomicU64 = AtomicU64::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        let folder = std::env::temp_dir().join(format!("sinter-nbd-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let memory = Memory::new(size);
        let exports = Arc::new(Exports::default());
        exports.add("v", "the only one", &memory);
        let unix = Listener::unix(&folder.join("s")).unwrap();
        let tcp = Listener::tcp("127.0.0.1:0".parse().unwrap()).unwrap();
        let tcp_port = tcp.tcp_address().unwrap().port();
        let server = Server::start(Arc::clone(&exports) as _, vec![unix, tcp], options).unwrap();
        Fixture { memory, exports, server: Some(server), folder, tcp_port }
    }

    fn server(&self) -> &Server {
        self.server.as_ref().unwrap()
    }

    fn socket(&self) -> PathBuf {
        self.folder.join("s")
    }

    fn unix_uri(&self) -> String {
        format!("nbd+unix:///v?socket={}", self.socket().display())
    }

    fn tcp_uri(&self) -> String {
        format!("nbd://127.0.0.1:{}/v", self.tcp_port)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        for gate in [&self.memory.read_gate, &self.memory.flush_gate, &self.memory.write_gate] {
            gate.open();
        }
        drop(self.server.take());
        remove(&self.folder);
    }
}

fn remove(folder: &Path) {
    // What is left in the temporary folder harms nobody.
    let _ = std::fs::remove_dir_all(folder);
}

/// Waits for something that other threads will do soon.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    #[allow(clippy::disallowed_methods, reason = "a test's time limit")]
    let now = Instant::now;
    let begin = now();
    while !holds() {
        assert!(now() - begin < Duration::from_secs(20), "never: {what}");
        std::thread::yield_now();
    }
}

/// Bytes that are different everywhere.
fn noise(len: usize, seed: u64) -> Vec<u8> {
    let mut state = seed.wrapping_mul(2).wrapping_add(1);
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        bytes.extend_from_slice(&(state >> 16).to_be_bytes());
    }
    bytes.truncate(len);
    bytes
}
