//! The NBD server on a volume in memory, without an array behind it: what the protocol costs here.
//!
//! `cargo bench --bench nbd_loop -- PATH [SIZE_MIB] [cold]` serves the Unix socket PATH until
//! standard input ends; `scripts` and people point fio's `nbd` engine at it. `cold` sends every
//! read to the workers. Without a path it does nothing (so that `cargo bench` passes over it).

#![allow(clippy::unwrap_used, clippy::print_stdout, reason = "a bench, run by hand")]

#[path = "../kmod-free-tests/nbd/memory.rs"]
#[allow(dead_code, reason = "the tests use all of it")]
mod memory;

use std::io::Read;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use memory::{Exports, Memory};
use sinter::export::nbd::{Listener, Operation, Server, ServerOptions};

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).filter(|it| !it.starts_with("--")).collect();
    let Some(path) = arguments.first() else { return };
    let size_mib: u64 = arguments.get(1).map_or(2048, |size| size.parse().unwrap());
    let memory = Memory::new(size_mib << 20);
    memory.cold.store(arguments.get(2).is_some_and(|word| word == "cold"), Ordering::Relaxed);
    let exports = Exports::default();
    exports.add("memory", "", &memory);
    let listener = Listener::unix(Path::new(path)).unwrap();
    let server = Server::start(Arc::new(exports), vec![listener], ServerOptions::default()).unwrap();
    println!("serving {path}; end of input stops it");
    std::io::stdin().read_to_end(&mut Vec::new()).unwrap();
    let statistics = server.statistics();
    server.stop(Duration::from_secs(5));
    for operation in Operation::ALL {
        let counters = statistics.operation(operation);
        let requests = counters.requests.load(Ordering::Relaxed);
        let sum = counters.latency_sum_micros.load(Ordering::Relaxed);
        if let Some(mean) = sum.checked_div(requests) {
            println!("{}: {requests} requests, {mean} us in the server on average", operation.name());
        }
    }
}
