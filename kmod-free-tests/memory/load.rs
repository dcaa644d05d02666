//! A daemon under a load that needs much metadata and little disk, and how much memory it takes for it.
//!
//! Every block is unique and nearly all of it repeats: it costs a table entry, a fingerprint and a place in a
//! map like any other, and some fifty bytes of the pool.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

use sinter::export::nbd::client::Address;
use sinter::export::nbd::client::Client;

use crate::daemon::Daemon;

pub(crate) const MIB: u64 = 1 << 20;
const BLOCK: usize = 4096;
/// Blocks of one request of the fill.
const FILL_BLOCKS: usize = 16;
/// Requests under way at a time: 1 MiB of data at most, so that what the budgets of metadata and index hold
/// back is not hidden behind what requests take.
const DEPTH: usize = 16;

/// What is written, and with which budgets.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Load {
    /// `memory.metadata`, in MiB.
    pub(crate) metadata_mib: u64,
    /// `memory.index`, in MiB.
    pub(crate) index_mib: u64,
    /// `memory.requests`, in MiB.
    pub(crate) requests_mib: u64,
    /// Size of the pool's file, which is sparse, in GiB.
    pub(crate) pool_gib: u64,
    /// Size of the volume that is filled, in MiB.
    pub(crate) fill_mib: u64,
    /// Single blocks that are then written again, uniformly at random.
    pub(crate) overwrites: u64,
}

/// The most memory that was seen, in bytes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Peak {
    /// Memory that belongs to no file, while the requests under way were 1 MiB at most.
    pub(crate) small_requests: u64,
    /// Memory that belongs to no file.
    pub(crate) anonymous: u64,
    /// All that was resident at the worst moment (as the kernel kept it), less what belongs to files (the
    /// program itself) at the end.
    pub(crate) resident: u64,
    /// Checkpoints that were made meanwhile.
    pub(crate) checkpoints: u64,
}

impl Load {
    /// All budgets together, in bytes.
    pub(crate) fn budgets(&self) -> u64 {
        (self.metadata_mib + self.index_mib + self.requests_mib) * MIB
    }

    /// Starts a daemon with its data in `data`, writes, and watches. `tell` hears what is being done.
    pub(crate) fn run(&self, data: &Path, tell: impl Fn(&str)) -> Peak {
        let daemon = self.start(data);
        let sampler = Sampler::start(daemon.pid());
        let mut client = Client::connect(&Address::Unix(daemon.socket()), "load", DEPTH).unwrap();
        let now = |what: &str, sampler: &Sampler| {
            tell(&format!("{what}: {} MiB anonymous at most", sampler.peak.load(Ordering::Relaxed) / MIB));
        };
        now("started", &sampler);
        let mut serial = 0;
        let mut stretch = Vec::with_capacity(FILL_BLOCKS * BLOCK);
        for at in (0..self.fill_mib * MIB).step_by(FILL_BLOCKS * BLOCK) {
            stretch.clear();
            for _ in 0..FILL_BLOCKS {
                put_block(&mut stretch, &mut serial);
            }
            client.write(at, &stretch).unwrap();
            if at % (1 << 30) == 0 && at > 0 {
                now(&format!("{} GiB filled", at >> 30), &sampler);
            }
        }
        client.flush().unwrap();
        now("filled", &sampler);
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        for done in 0..self.overwrites {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            stretch.clear();
            put_block(&mut stretch, &mut serial);
            client.write(state % (self.fill_mib * MIB / BLOCK as u64) * BLOCK as u64, &stretch).unwrap();
            if done % 100_000 == 0 && done > 0 {
                now(&format!("{done} blocks overwritten"), &sampler);
            }
        }
        client.flush().unwrap();
        now("overwritten", &sampler);
        let checkpoints = checkpoints(&daemon);
        let small_requests = sampler.peak.load(Ordering::Relaxed);
        large_requests(&daemon);
        now("and large requests", &sampler);
        let resident = field(daemon.pid(), "VmHWM:").saturating_sub(field(daemon.pid(), "RssFile:"));
        let anonymous = sampler.stop();
        client.disconnect().unwrap();
        assert!(daemon.terminate().success());
        Peak { small_requests, anonymous, resident, checkpoints }
    }

    fn start(&self, data: &Path) -> Daemon {
        let config = data.join("sinter.toml");
        let pool = data.join("pool.img");
        let text = format!(
            "[pool]\ndevices = [\"{},size={}GiB\"]\n\
             [memory]\nmetadata = \"{}MiB\"\nindex = \"{}MiB\"\nrequests = \"{}MiB\"\n",
            pool.display(),
            self.pool_gib,
            self.metadata_mib,
            self.index_mib,
            self.requests_mib
        );
        std::fs::write(&config, text).unwrap();
        let volume = format!("load:{}MiB", self.fill_mib);
        Daemon::start(data, &["--config", config.to_str().unwrap(), "--volume", &volume])
    }
}

/// More and larger requests at a time than `memory.requests` has room for.
fn large_requests(daemon: &Daemon) {
    const LEN: usize = 8 << 20;
    let socket = daemon.socket();
    std::thread::scope(|scope| {
        for connection in 0..4_u64 {
            let address = Address::Unix(socket.clone());
            scope.spawn(move || {
                let mut client = Client::connect(&address, "load", 4).unwrap();
                for request in 0..8 {
                    let word = connection << 32 | request << 1 | 1;
                    let data = word.to_le_bytes().repeat(LEN / 8);
                    client.write(connection * 8 * LEN as u64 + request * LEN as u64, &data).unwrap();
                }
                client.flush().unwrap();
                client.disconnect().unwrap();
            });
        }
    });
}

/// Appends a block that no other one equals.
fn put_block(bytes: &mut Vec<u8>, serial: &mut u64) {
    *serial += 1;
    bytes.extend_from_slice(&serial.to_le_bytes());
    bytes.resize(bytes.len() + BLOCK - 8, 0xa5);
}

fn checkpoints(daemon: &Daemon) -> u64 {
    let address = daemon.url.strip_prefix("http://").unwrap();
    let text = get(address, "/metrics");
    let line = text.lines().find(|line| line.starts_with("sinter_checkpoint_duration_seconds_count"));
    line.and_then(|line| line.rsplit(' ').next()).unwrap().parse().unwrap()
}

fn get(address: &str, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// Looks at a process's memory until it is stopped.
struct Sampler {
    peak: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<()>,
}

impl Sampler {
    fn start(pid: u32) -> Sampler {
        let (peak, stop) = (Arc::<AtomicU64>::default(), Arc::<AtomicBool>::default());
        let (to, until) = (peak.clone(), stop.clone());
        let watch = move || {
            while !until.load(Ordering::Relaxed) {
                to.fetch_max(field(pid, "RssAnon:"), Ordering::Relaxed);
                std::thread::park_timeout(Duration::from_millis(10));
            }
        };
        let thread = std::thread::Builder::new().name("sampler".to_owned()).spawn(watch).unwrap();
        Sampler { peak, stop, thread }
    }

    fn stop(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap();
        self.peak.load(Ordering::Relaxed)
    }
}

/// A size that the kernel tells of a process, in bytes.
fn field(pid: u32, name: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}
